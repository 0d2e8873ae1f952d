"""What is kept of a document for a question: how much each head keeps, and where most heads look.

    python examples/retention_mask.py [MODEL.gguf]

The default model prints

    30 layers, 3 KV heads, 980 prompt tokens
    kept per KV head: 58 to 98, mean 64
    kept of the prompt: 6.5%
    kept by most (71 of 90 KV heads): ... ever since. The lamp of the lighthouse was first lit in the year
    1871. The keeper's wife...
"""

from material import MODEL, TEXT, about_the_text

from headkv_local import Llama, Retention

with Llama(MODEL, n_ctx=8192, retention=Retention(budget=64)) as llm:
    question = about_the_text("In which year was the lamp of the lighthouse first lit?")
    llm.create_chat_completion(messages=[question], max_tokens=1, temperature=0.0)

    mask = llm.retention_mask()  # bool (n_layer, n_head_kv, n_prompt)
    kept = mask.sum(axis=2)
    print(f"{mask.shape[0]} layers, {mask.shape[1]} KV heads, {mask.shape[2]} prompt tokens")
    print(f"kept per KV head: {kept.min()} to {kept.max()}, mean {kept.mean():.0f}")
    print(f"kept of the prompt: {llm.cache_stats().kept_share:.1%}")

    # the stretch of the document that most heads have kept, besides its beginning
    heads = mask.sum(axis=(0, 1))
    n_document = len(llm.tokenize(TEXT.encode(), add_bos=False))
    middle = 50 + int(heads[50:n_document].argmax())
    text = llm.detokenize(llm.input_ids[middle - 12 : middle + 12].tolist()).decode("utf-8", errors="replace")
    print(f"kept by most ({heads[middle]} of {mask.shape[0] * mask.shape[1]} KV heads): ...{text}...")
