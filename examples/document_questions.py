"""Questions about one document: as turns of one conversation, and each on its own.

    python examples/document_questions.py [MODEL.gguf]

The prompt is compacted once, for the first question. A later turn is quick, because the document is not read
again, but what it asks for may be gone. Where every answer matters, ask each question on its own: reset()
makes the model read the document again and select anew. The default model prints, without the answers:

    full cache, as turns: 3 of 3 right, cache 180.0 MiB
    full cache, each on its own: 3 of 3 right, cache 180.0 MiB
    64 entries per KV head, as turns: 1 of 3 right, cache 4.2 MiB
    64 entries per KV head, each on its own: 3 of 3 right, cache 4.2 MiB
"""

from material import MODEL, about_the_text

from headkv_local import Llama, Retention

QUESTIONS = {
    "In which year was the lamp of the lighthouse first lit?": "1871",
    "What is the name of the harbour master?": "Ingrid Solheim",
    "On which radio channel does the harbour listen?": "74",
}


def answer(llm: Llama, messages: list[dict[str, str]]) -> str:
    reply = llm.create_chat_completion(messages=messages, max_tokens=24, temperature=0.0)
    return reply["choices"][0]["message"]["content"].strip()


def as_turns(llm: Llama) -> list[str]:
    llm.reset()
    messages: list[dict[str, str]] = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question} if messages else about_the_text(question))
        messages.append({"role": "assistant", "content": answer(llm, messages)})
    return [message["content"] for message in messages if message["role"] == "assistant"]


def on_their_own(llm: Llama) -> list[str]:
    answers = []
    for question in QUESTIONS:
        llm.reset()
        answers.append(answer(llm, [about_the_text(question)]))
    return answers


for name, retention in {"full cache": None, "64 entries per KV head": Retention(budget=64)}.items():
    with Llama(MODEL, n_ctx=8192, flash_attn=True, retention=retention) as llm:
        for way, ask in {"as turns": as_turns, "each on its own": on_their_own}.items():
            answers = ask(llm)
            right = sum(e in a for e, a in zip(QUESTIONS.values(), answers, strict=True))
            size = llm.cache_stats().resident_bytes / 2**20
            print(f"{name}, {way}: {right} of {len(QUESTIONS)} right, cache {size:.1f} MiB", flush=True)
            for text in answers:
                print(f"    {text!r}")
