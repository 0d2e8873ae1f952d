"""What is kept of a document for a question: how much each head keeps, and where most heads look.

python examples/retention_mask.py [MODEL.gguf]
"""

from material import MODEL, about_the_text

from headkv_local import Llama, Retention

with Llama(MODEL, n_ctx=8192, retention=Retention(budget=64)) as llm:
    question = about_the_text("What is the door code of the signal house?")
    llm.create_chat_completion(messages=[question], max_tokens=1, temperature=0.0)

    mask = llm.retention_mask()  # bool (n_layer, n_head_kv, n_prompt)
    kept = mask.sum(axis=2)
    print(f"{mask.shape[0]} layers, {mask.shape[1]} KV heads, {mask.shape[2]} prompt tokens")
    print(f"kept per KV head: {kept.min()} to {kept.max()}, mean {kept.mean():.0f}")
    print(f"kept of the prompt: {llm.cache_stats().kept_share:.1%}; scores from {llm.scores_from}")

    # the stretch of the document that most heads have kept, without the first tokens and the window
    heads = mask.sum(axis=(0, 1))
    first, last = 4, mask.shape[2] - 2 * llm.retention.window
    middle = int(first + heads[first:last].argmax())
    around = llm.input_ids[max(first, middle - 12) : middle + 12].tolist()
    text = llm.detokenize(around).decode("utf-8", errors="replace")
    print(f"kept by most ({heads[middle]} of {mask.shape[0] * mask.shape[1]} KV heads): {text!r}")
