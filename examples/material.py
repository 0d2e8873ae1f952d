"""What the examples share: a text of about 900 tokens, and the model that is named or the default one."""

import sys
from importlib.resources import files

from headkv_local import default_model_path

TEXT = files("headkv_local.demo").joinpath("document.txt").read_text(encoding="utf-8")[:4000]
MODEL = sys.argv[1] if len(sys.argv) > 1 else str(default_model_path())


def about_the_text(question: str) -> dict[str, str]:
    """A first message: the text, and a question about it."""
    return {"role": "user", "content": f"{TEXT}\n\nQuestion: {question}"}
