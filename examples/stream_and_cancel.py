"""Stream an answer, stop it from another thread, and go on.

    python examples/stream_and_cancel.py [MODEL.gguf]

cancel() stops whatever runs. Where several threads use the model, or the work may not have begun yet, use a
CancelToken: it stops one piece of work and no other.

The default model prints, with other words on other CPUs,

    read 0 of 1009 tokens
    read 512 of 1009 tokens
    read 977 of 1009 tokens
    read 1009 of 1009 tokens
    stopped after 'The text says that the lighthouse is a round'
    read 0 of 29 tokens
    read 29 of 29 tokens
    then 'The text says that the lighthouse was first lit in 1871.'

The prompt has 996: a question in the text, which may be what is asked, is read once more.
"""

import threading

from material import MODEL, about_the_text

from headkv_local import Cancelled, Llama, Retention

WHEN = "In which year was its lamp first lit?"

enough = threading.Event()


def stop(llm: Llama) -> None:
    enough.wait()
    llm.cancel()  # may be called from any thread; takes effect within the running decode


def show_progress(done: int, total: int) -> None:
    print(f"read {done} of {total} tokens", flush=True)


kept = Retention(budget="10%", archive="memory", order="tokens")
with Llama(MODEL, n_ctx=8192, retention=kept, on_prefill=show_progress) as llm:
    stopper = threading.Thread(target=stop, args=(llm,))
    stopper.start()
    messages = [about_the_text("What does the text say about the lighthouse?")]
    text = ""
    try:
        for chunk in llm.create_chat_completion(
            messages=messages, max_tokens=200, temperature=0.0, stream=True
        ):
            text += chunk["choices"][0]["delta"].get("content") or ""
            if len(text) > 40:
                enough.set()
    except Cancelled:
        print(f"stopped after {text!r}")
    finally:
        enough.set()
        stopper.join()

    # the conversation goes on: only the new turn is read, and chooses anew what is kept of the text
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": WHEN}]
    reply = llm.create_chat_completion(messages=messages, max_tokens=24, temperature=0.0)
    print(f"then {reply['choices'][0]['message']['content'].strip()!r}")
