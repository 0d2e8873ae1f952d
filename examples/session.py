"""Save a conversation about a document, and open it again without reading the document.

    python examples/session.py [MODEL.gguf]

The default model prints the two answers, the sizes of cache and files, and

    read after opening: 30 of 1031 tokens
"""

import tempfile
from pathlib import Path

from material import MODEL, about_the_text

from headkv_local import Llama, Retention

messages = [about_the_text("In which year was the lamp of the lighthouse first lit?")]

with tempfile.TemporaryDirectory() as folder:
    file, light = Path(folder) / "lighthouse.session", Path(folder) / "light.session"

    with Llama(MODEL, n_ctx=8192, retention=Retention(budget=64, archive="memory")) as llm:
        reply = llm.create_chat_completion(messages=messages, max_tokens=24, temperature=0.0)
        messages.append(reply["choices"][0]["message"])
        print(f"answer: {messages[-1]['content'].strip()!r}")
        print(f"cache: {llm.cache_stats().resident_bytes / 2**20:.1f} MiB")
        llm.save_session(file, messages=messages)
        llm.save_session(light, light=True)  # what is kept, without the archive
    print(f"session: {file.stat().st_size / 2**20:.1f} MiB, light: {light.stat().st_size / 2**20:.1f} MiB")

    read: list[int] = []
    with Llama.open_session(file, on_prefill=lambda _, total: read.append(total)) as llm:
        messages = [*llm.session_messages, {"role": "user", "content": "Who lit it?"}]
        reply = llm.create_chat_completion(messages=messages, max_tokens=24, temperature=0.0)
        print(f"read after opening: {max(read)} of {llm.n_tokens} tokens")
        print(f"answer: {reply['choices'][0]['message']['content'].strip()!r}")
