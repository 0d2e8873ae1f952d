"""Log-probabilities of an answer's tokens, without logits_all=True, which keeps those of the prompt too."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import Llama
from ..tokens import log_softmax

LEAST: Final = -9999.0
"""What OpenAI says of a token that cannot be: JSON has no infinity."""
_IN_HEX: Final = "bytes:"
"""How OpenAI begins a token that is a part of a character: bytes:\\xf0\\x9f."""


class _Token(NamedTuple):
    text: bytes
    logprob: float
    top: list[tuple[int, float]]


class Logprobs:
    """Of one answer. n_top: how many of the likeliest tokens are told beside the one that was taken.
    n_text: characters of the prompt, behind which the answer's begin."""

    def __init__(self, llm: Llama, n_top: int, n_text: int) -> None:
        self._llm, self._n_top = llm, n_top
        self._tokens: list[_Token] = []
        self._n_told = 0  # tokens
        self._offset = n_text  # characters of prompt and answer that are told

    def add(self, token: int, logits: npt.NDArray[np.float32]) -> None:
        """logits: (n_vocab,), of which the token was drawn, before temperature and penalties."""
        found = np.maximum(log_softmax(logits), LEAST)
        n_top = min(self._n_top, len(found))
        best = np.argpartition(found, -n_top)[-n_top:] if n_top > 0 else np.empty(0, np.int64)
        best = best[np.argsort(-found[best])]
        top = [(int(i), float(found[i])) for i in best]
        self._tokens.append(_Token(self._piece(token), float(found[token]), top))

    def of_text(self, n_tokens: int) -> dict[str, Any]:
        """In OpenAI's older form, of the first n_tokens."""
        return self._told(self._tokens[:n_tokens])

    def of_chunk(self) -> dict[str, Any] | None:
        """Of the tokens since the last piece of a stream; None where there are none."""
        tokens = self._tokens[self._n_told :]
        self._n_told += len(tokens)
        return self._told(tokens) if tokens else None

    def _told(self, tokens: list[_Token]) -> dict[str, Any]:
        texts = [_text_of(token.text) for token in tokens]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.text.decode("utf-8", errors="ignore"))
        tops = []
        for text, token in zip(texts, tokens, strict=True):
            top = {_text_of(self._piece(i)): logprob for i, logprob in token.top}
            tops.append(top | {text: token.logprob})
        return {
            "tokens": texts,
            "text_offset": offsets,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": tops,
        }

    def _piece(self, token: int) -> bytes:
        return self._llm.detokenize([token])


def _text_of(piece: bytes) -> str:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return _IN_HEX + "".join(f"\\x{byte:02x}" for byte in piece)


def add_bytes(reply: Any) -> Any:
    """Of each token of a chat's log-probabilities, in an answer or a chunk: llama-cpp-python has none."""
    for choice in reply["choices"]:
        for token in (choice.get("logprobs") or {}).get("content") or ():
            for one in (token, *token["top_logprobs"]):
                one["bytes"] = _bytes_of(one["token"])
    return reply


def _bytes_of(text: str) -> list[int] | None:
    """None of a token whose text says nothing."""
    if text.startswith(f"{_IN_HEX}\\x"):
        return list(bytes.fromhex(text.removeprefix(_IN_HEX).replace("\\x", "")))
    return list(text.encode("utf-8")) or None
