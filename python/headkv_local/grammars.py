"""Grammars and JSON schemas, looked at before llama.cpp compiles them: some would end the process."""

from __future__ import annotations

import json
import re
import textwrap
from typing import Any, Final

import llama_cpp
from llama_cpp.llama_grammar import json_schema_to_gbnf

from ._core.logging import collected_errors
from .errors import GrammarError, SchemaError
from .schemas import MOST_BYTES as MOST_BYTES  # exported
from .schemas import MOST_RULES, MOST_TIMES, TOO_LARGE, TOO_MANY  # schemas mends the converter

_MOST_SCHEMA_BYTES: Final = 2**18
_MOST_OF_PATTERNS: Final = 2**15  # characters: the converter takes a time that grows with their square
_DEEPEST: Final = 500  # parentheses in each other
_MOST_ELEMENTS: Final = 2**22  # 8 bytes each
_COUNTS: Final = ("minItems", "maxItems", "minLength")
_QUANTIFIER: Final = re.compile(r"\{[\s\d,]*\}")
_SHOWN: Final = 200  # characters of a reason
_PREFIX: Final = re.compile(r"^\w+: (error parsing grammar: )?", re.MULTILINE)
_TOO_DEEP: Final = "the JSON schema is nested too deeply"

_SYMBOL: Final = re.compile(  # what has no end goes to that of the text, for each of many would look for one
    r"""(?P<comment>\#[^\r\n]*)
    |   (?P<chars>"(?:\\.|[^"\\])*(?:"|\\?\Z)|\[(?:\\.|[^\]\\])*(?:\]|\\?\Z))
    |   (?P<token><[^>]*(?:>|\Z))
    |   (?P<rule>::=)
    |   (?P<times>\{[^}]*(?:\}|\Z)|[*+?])
    |   (?P<open>\()
    |   (?P<close>\))
    |   (?P<other>[^\s])""",
    re.VERBOSE | re.DOTALL,
)


def of_schema(schema: Any) -> str:
    """As from_schema(), of a schema that is no text yet."""
    try:
        text = json.dumps(schema)
    except RecursionError:
        raise SchemaError(_TOO_DEEP) from None
    except (TypeError, ValueError):
        raise SchemaError("the JSON schema is no JSON") from None
    return from_schema(text)


def is_too_large(schema: Any) -> bool:
    """Whether of_schema() refuses it, whatever it says."""
    try:
        _require_few_times(schema)
        return len(json.dumps(schema)) > _MOST_SCHEMA_BYTES
    except (RecursionError, TypeError, ValueError):
        return True


def from_schema(text: str) -> str:
    """The grammar of a JSON schema. Raises SchemaError, whose text begins with "the JSON schema"."""
    try:
        if len(text) > _MOST_SCHEMA_BYTES:
            raise ValueError(f"it has more than {_MOST_SCHEMA_BYTES} bytes")
        schema = json.loads(text)
        if not isinstance(schema, dict):
            raise ValueError("it is no object")
        _require_few_times(schema)
        grammar = str(json_schema_to_gbnf(text))
    except json.JSONDecodeError as error:
        raise SchemaError(f"the JSON schema is no JSON: {error}") from None
    except RecursionError:
        raise SchemaError(_TOO_DEEP) from None
    except Exception as error:  # the converter raises whatever it stumbles over
        told = (
            str(error) if isinstance(error, ValueError | AssertionError) else "it is none that is known here"
        )
        reason = " ".join(told.split())[:_SHOWN] or type(error).__name__
        raise SchemaError(f"the JSON schema cannot be compiled: {reason}") from None
    return grammar


def require_bounded(grammar: str) -> None:
    """Raises GrammarError for a grammar on which llama.cpp overflows the stack, or takes memory without end.

    Its parser, and its search for left recursion, call themselves for what is nested and for each rule that
    begins with another one; and a repetition is written out, so one that ends before it begins never ends.
    """
    if len(grammar) > MOST_BYTES:
        raise GrammarError(TOO_LARGE)
    if "\0" in grammar:
        raise GrammarError("a grammar has no zero bytes")
    depth = rules = elements = 0
    last = 1  # elements of the symbol before
    for symbol in _SYMBOL.finditer(grammar):
        kind = symbol.lastgroup
        if kind == "times":
            times = _times(symbol[0])
            rules += times
            elements += times * (last + 3)
        elif kind != "comment":
            depth += {"open": 1, "close": -1}.get(kind or "", 0)
            rules += kind in ("rule", "open")
            last = len(symbol[0]) if kind == "chars" else 1
            elements += last
        if depth > _DEEPEST:
            raise GrammarError(f"it is nested more than {_DEEPEST} deep")
    if rules > MOST_RULES or elements > _MOST_ELEMENTS:
        raise GrammarError(TOO_MANY)


def require_compiled(vocab: Any, grammar: str, root: str = "root") -> None:
    """Raises GrammarError for a grammar that llama.cpp does not compile for this vocabulary.

    A sampler of such a grammar is a null pointer, which it would read. The reason is what it logs.
    """
    require_bounded(grammar)
    with collected_errors() as said:
        try:
            made = llama_cpp.llama_sampler_init_grammar(vocab, grammar.encode("utf-8"), root.encode("utf-8"))
        except UnicodeEncodeError:
            raise GrammarError("it has half a character, which is no text in UTF-8") from None
    if not made:
        raise GrammarError(reason_of("\n".join(said)) or "llama.cpp does not take it")
    llama_cpp.llama_sampler_free(made)


def reason_of(said: str) -> str:
    """What llama.cpp's lines say of a grammar, without its functions' names; "" where that is nothing."""
    text = " ".join(_PREFIX.sub("", said).split())
    return textwrap.shorten(text, _SHOWN, placeholder=" ...")


def _times(quantifier: str) -> int:
    """How often the symbol before it is written out."""
    numbers = [int(number[:9]) for number in re.findall(r"[0-9]+", quantifier)]
    if numbers != sorted(numbers):
        raise GrammarError(f"{quantifier[:_SHOWN]} ends before it begins")
    return min(max(numbers, default=1), MOST_TIMES)


def _require_few_times(schema: Any) -> None:
    """Raises ValueError for more repetitions than a grammar can hold, or patterns that take too long."""
    rest, n_characters = [schema], 0
    while rest:
        part = rest.pop()
        if isinstance(part, list):
            rest += part
        elif isinstance(part, dict):
            rest += part.values()
            counts = [part[name] for name in _COUNTS if isinstance(part.get(name), int | float)]
            if isinstance(part.get("pattern"), str):
                n_characters += len(part["pattern"])
                found = _QUANTIFIER.findall(part["pattern"])
                counts += [int(number) for one in found for number in re.findall(r"\d+", one)]
            if max(counts, default=0) > MOST_TIMES:
                raise ValueError(f"something in it may be repeated more than {MOST_TIMES} times")
            if n_characters > _MOST_OF_PATTERNS:
                raise ValueError(f"its patterns have more than {_MOST_OF_PATTERNS} characters")
