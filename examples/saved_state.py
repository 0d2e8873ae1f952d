"""Save a compacted conversation, and go on in another Llama without reading the document again.

    python examples/saved_state.py [MODEL.gguf]

A state is a pickle: load only files that you wrote yourself.

The default model prints the two answers, the sizes of cache and file, and

    read after loading: 15 of 1026 tokens
"""

import pickle
import tempfile
from pathlib import Path

from material import MODEL, about_the_text

from headkv_local import Llama, Retention

SETTINGS = {"n_ctx": 8192, "retention": Retention(budget=64)}
messages = [about_the_text("In which year was the lamp of the lighthouse first lit?")]

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "conversation.state"

    with Llama(MODEL, **SETTINGS) as llm:
        reply = llm.create_chat_completion(messages=messages, max_tokens=24, temperature=0.0)
        messages.append(reply["choices"][0]["message"])
        print(f"answer: {messages[-1]['content'].strip()!r}")
        print(f"cache: {llm.cache_stats().resident_bytes / 2**20:.1f} MiB")
        file.write_bytes(pickle.dumps(llm.save_state()))
    print(f"file: {file.stat().st_size / 2**20:.1f} MiB")

    read: list[int] = []
    with Llama(MODEL, **SETTINGS, on_prefill=lambda _, total: read.append(total)) as llm:
        llm.load_state(pickle.loads(file.read_bytes()))
        messages.append({"role": "user", "content": "Who lit it?"})
        reply = llm.create_chat_completion(messages=messages, max_tokens=24, temperature=0.0)
        print(f"read after loading: {max(read)} of {llm.n_tokens} tokens")
        print(f"answer: {reply['choices'][0]['message']['content'].strip()!r}")
