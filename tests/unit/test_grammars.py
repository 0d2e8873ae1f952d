"""Grammars that would end the process, or never end, are refused before llama.cpp sees them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from headkv_local import ArgumentError
from headkv_local.grammars import from_schema, of_schema, require_bounded
from headkv_local.strict import require_held

DEEP = "(" * 600 + '"a"' + ")" * 600
CHAIN = "\n".join(f"r{i} ::= r{i + 1}" for i in range(20_000))


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (f"root ::= {DEEP}", "nested more than 500 deep"),
        (f'# "\nroot ::= {DEEP} # "', "nested more than 500 deep"),  # quotes of comments quote nothing
        (f'root ::= <"> {DEEP} <">', "nested more than 500 deep"),
        (f'root ::= r0\n{CHAIN}\nr20000 ::= "a"', "too many rules"),
        ("root ::= " + '("a"?){0,1000} ' * 30, "too many rules"),
        (f'root ::= "{"a" * 5000}"{{2000}}', "too many rules"),
        ('root ::= "a"{5,2}', "5,2} ends before it begins"),
        ('root ::= "a"{5 ,\n0}', "ends before it begins"),
        ('root ::= "a\0"', "no zero bytes"),
        ("#" * (2**20 + 1), "too large"),
    ],
)
def test_what_is_refused(grammar: str, reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason):
        require_bounded(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "' + "(" * 600 + '" [(]{2} "{5,2}" # ' + "(" * 600,
        'root ::= ("a" | "b")+ [^\\]"]{3,} "\\"" "c"{0,2000}',
        "root ::= " + "(" * 400 + '"a"' + ")" * 400,
    ],
)
def test_what_is_taken(grammar: str) -> None:
    require_bounded(grammar)


@pytest.mark.parametrize("text", ['"' + '\\"' * 20_000, "{" * 100_000, "<" * 100_000])
def test_what_has_no_end_is_looked_at_once(text: str) -> None:
    started = time.process_time()
    require_bounded(f"root ::= {text}")
    assert time.process_time() - started < 2


@pytest.mark.parametrize("pattern", ["x{" + " " * 500, r"\p" + r"[\]" * 10_000])
def test_a_pattern_that_has_no_end_is_looked_at_once(pattern: str) -> None:
    started = time.process_time()
    of_schema({"type": "string", "pattern": pattern})
    with pytest.raises(ValueError, match="'pattern'"):
        require_held({"type": "string", "pattern": pattern})
    assert time.process_time() - started < 2


def test_a_strict_pattern_is_not_nested_too_deeply() -> None:
    with pytest.raises(ValueError, match="'pattern'"):
        require_held({"type": "string", "pattern": "(" * 3000 + ")" * 3000})


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "array", "items": {}, "minItems": 10**9}, "more than 2000 times"),
        ({"type": "string", "pattern": "^(a{5000})$"}, "more than 2000 times"),
        ({"$ref": "https://example.org/schema.json"}, "cannot be compiled: "),
        ({"enum": ["a" * 2**18]}, "more than 262144 bytes"),
        ([], "it is no object"),
    ],
)
def test_schemas_that_are_refused(schema: Any, reason: str) -> None:
    with pytest.raises(ArgumentError, match=f"the JSON schema .*{reason}"):
        from_schema(json.dumps(schema))


def test_what_is_no_schema_of_json() -> None:
    deep: dict[str, Any] = {}
    for _ in range(20_000):
        deep = {"items": deep}
    for schema, reason in (({"enum": [{1}]}, "is no JSON"), (deep, "is nested too deeply")):
        with pytest.raises(ArgumentError, match=f"^the JSON schema {reason}$"):
            of_schema(schema)
