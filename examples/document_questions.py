"""Questions about one document: as turns of one conversation, and each on its own.

    python examples/document_questions.py [MODEL.gguf]

The prompt is compacted once, for the first question. A later turn is quick, because the document is not read
again, but what it asks for may be gone. Where every answer matters, ask each question on its own: reset()
makes the model read the document again and select anew.
"""

from material import MODEL, TEXT, about_the_text

from headkv_local import Llama, Retention

QUESTIONS = {
    "What is the door code of the signal house?": "48213",
    "In which year was the lamp of the lighthouse first lit?": "1871",
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
print(f"({len(TEXT)} characters of text)")
