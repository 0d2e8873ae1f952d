"""What the grammars of JSON schemas take: ranges of integers, and what strict schemas may ask for."""

from __future__ import annotations

import ctypes
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp.llama_grammar import json_schema_to_gbnf

from headkv_local import Llama
from headkv_local.errors import SchemaError
from headkv_local.forms import plain_format
from headkv_local.grammars import of_schema, require_compiled


@pytest.fixture(scope="module")
def vocab(tiny_path: Path) -> Iterator[Any]:
    with Llama(tiny_path, vocab_only=True, n_ctx=64) as llm:
        yield llm._model.vocab


def allows(vocab: Any, schema: Any, text: str) -> bool:
    """Whether llama.cpp takes this text, to its end, as an answer in the form of the schema."""
    grammar = of_schema(schema)
    require_compiled(vocab, grammar)
    sampler = llama_cpp.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
    try:
        return all(
            _is_next(sampler, token) for token in [*_tokens(vocab, text), llama_cpp.llama_vocab_eos(vocab)]
        )
    finally:
        llama_cpp.llama_sampler_free(sampler)


def _tokens(vocab: Any, text: str) -> list[int]:
    data = text.encode()
    found = (llama_cpp.llama_token * (len(data) + 8))()
    n = llama_cpp.llama_tokenize(vocab, data, len(data), found, len(found), False, False)
    return list(found[:n])


def _is_next(sampler: Any, token: int) -> bool:
    one = llama_cpp.llama_token_data_array(
        data=(llama_cpp.llama_token_data * 1)(llama_cpp.llama_token_data(token, 0.0, 0.0)), size=1
    )
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(one))
    if one.data[0].logit == -math.inf:
        return False
    llama_cpp.llama_sampler_accept(sampler, token)
    return True


def of_integers(schema: dict[str, Any]) -> re.Pattern[str]:
    """The rule for the integers of a schema, as a regular expression."""
    grammar = json_schema_to_gbnf(json.dumps(schema))
    rule = next(line for line in grammar.splitlines() if line.startswith("root ::= "))
    rule = rule.removeprefix("root ::= ").removesuffix(" space")
    return re.compile(re.sub(r'["\s]', "", rule))


@given(st.integers(-(10**7), 10**7), st.integers(0, 10**7), st.data())
def test_integers_keep_to_their_bounds(low: int, width: int, data: st.DataObject) -> None:
    high = low + width
    allowed = of_integers({"type": "integer", "minimum": low, "exclusiveMaximum": high + 1})
    for number in (low - 1, low, high, high + 1, 0, data.draw(st.integers(low - 10**3, high + 10**3))):
        assert bool(allowed.fullmatch(str(number))) == (low <= number <= high)
    assert not allowed.fullmatch("-0")
    assert not allowed.fullmatch(f"0{abs(high)}")


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        ({"minimum": 0}, [0, 7, 10**15], [-1]),
        ({"exclusiveMinimum": 0}, [1, 123456], [0, -5]),
        ({"maximum": -3}, [-3, -(10**9)], [-2, 0, 3]),
        ({"minimum": 1.5, "maximum": 3.5}, [2, 3], [1, 4]),
    ],
)
def test_bounds_of_one_side(bounds: dict[str, Any], inside: list[int], outside: list[int]) -> None:
    allowed = of_integers({"type": "integer", **bounds})
    assert all(allowed.fullmatch(str(number)) for number in inside)
    assert not any(allowed.fullmatch(str(number)) for number in outside)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "integer", "minimum": 7, "maximum": 5}, "no integer is from 7 to 5"),
        ({"type": "string", "pattern": "("}, "'[(]' is no pattern: missing [)]"),
        ({"type": "string", "pattern": 3}, "3 is no pattern"),
        ({"type": "array", "items": [{"type": "null"}, False]}, "a part of it is false"),
        ({"properties": {"a": 5}}, "cannot be compiled: 5 is no schema"),
        ({"$ref": "#/$defs/missing"}, r"it has no '#/\$defs/missing'"),
        ({"$defs": {"a": {"items": {"$ref": 3}}}}, "[$]ref 3 is no part of it"),
        ({"anyOf": [{"enum": [1]}, {"$ref": "#/anyOf/2"}]}, "it has no '#/anyOf/2'"),
        ({"anyOf": [{"enum": [1]}, {"$ref": "#/anyOf/-1"}]}, "it has no '#/anyOf/-1'"),
        ({"properties": {"a": {"$ref": "https://example.com/a"}}}, "is no part of it"),
        ({"anyOf": 3}, "cannot be compiled: it is none that is known here"),
        ({"minItems": 3, "maxItems": 1}, "nothing has at least 3 items and at most 1"),
        ({"items": False, "minItems": 1}, "nothing has at least 1 items and at most 0"),
        ({"type": "string", "minLength": 2, "maxLength": 0}, "nothing has at least 2 characters"),
        ({"enum": ["a", True], "type": "integer"}, "or not of its type"),
        ({"enum": ["a", "b"], "minLength": 2}, "none of its constants is as long"),
        ({"properties": {x: {"pattern": "a" * 2**14} for x in "abc"}}, "have more than 32768 characters"),
        ({"properties": {"a": {"const": math.nan}}}, "not JSON compliant"),
        ({"properties": {"a": False}, "required": ["a"]}, "a part of it is false"),
    ],
)
def test_what_no_answer_can_be_is_refused(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(SchemaError, match=reason):
        of_schema(schema)


NODE = {"type": "object", "properties": {"of": {"type": "array", "items": {"$ref": "#/$defs/Node"}}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"Node": NODE}, "$ref": "#/$defs/Node"},
        {"$defs": {"Node": NODE}, "properties": {"first": {"$ref": "#/$defs/Node"}}},
        {"items": {}},
        {"items": {"items": {}}},
        {"items": True, "maxItems": 2},
        {"$defs": {"Tree_Node": NODE, "Node": NODE}, "$ref": "#/$defs/Tree_Node"},
        {"type": "object", "properties": {"of": {"type": "array", "items": {"$ref": "#"}}}},
        {"title": "A"},
        {"type": "object", "properties": {"a": {"description": "b", "default": None}, "c": {}}},
        {"type": "object", "additionalProperties": {}},
        {"type": "string", "maxLength": 1500},
        {"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083},
        {"type": "array", "items": {"type": "integer"}, "maxItems": 600},
        {"type": "string", "pattern": r"^[\w\.-]+@[\w\.-]+\.\w+$"},
        {"type": "string", "pattern": r"^\$\d+(\.\d{2})?$"},
        {"type": "string", "pattern": "^(?!a)b$"},
        {"type": "string", "pattern": r"\p{L}"},
        {"type": "string", "format": "email", "pattern": r"^(?!\.)(?!.*\.\.)([\w.-]*)@([a-z]+\.)+[a-z]{2,}$"},
    ],
)
def test_what_tools_write_is_compiled(vocab: Any, schema: dict[str, Any]) -> None:
    grammar = of_schema(schema)
    require_compiled(vocab, grammar)
    if schema.keys() <= {"title"} or "c" in schema.get("properties", {}):
        assert {"number", "string", "object", "array", "boolean", "null"} <= set(
            re.findall(r"[a-z]+", grammar)
        )
    rules = set(re.findall(r"^([\w-]+) ::= ", grammar, re.MULTILINE))
    assert "root" in rules


@pytest.mark.parametrize(
    ("schema", "taken", "refused"),
    [
        ({"enum": ["a", "abc", 7], "minLength": 2}, ['"abc"', "7"], ['"a"']),
        ({"enum": [1, 5, 9.5, "b"], "exclusiveMinimum": 1, "maximum": 9}, ["5", '"b"'], ["1", "9.5"]),
        ({"enum": [[], [1], [1, 2]], "minItems": 1, "maxItems": 1}, ["[1]"], ["[]", "[1, 2]"]),
        ({"allOf": [{"enum": [3, 4]}, {"minimum": 4}]}, ["4"], ["3"]),
    ],
)
def test_constants_are_as_long_and_as_large_as_asked(
    vocab: Any, schema: Any, taken: list[str], refused: list[str]
) -> None:
    assert all(allows(vocab, schema, text) for text in taken)
    assert not any(allows(vocab, schema, text) for text in refused)


COLOR = {"$defs": {"Color": {"enum": ["red", "green"], "title": "Color", "type": "string"}}}
OF_COLOR = {"allOf": [{"$ref": "#/$defs/Color"}], "default": "red", "description": "of the wall"}
BASE = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
LIST = {"properties": {"v": {"enum": [1]}, "next": {"allOf": [{"$ref": "#/$defs/L"}]}}, "required": ["v"]}
TREE = {"properties": {"of": {"allOf": [{"$ref": "#/$defs/T"}, {"required": ["v"]}]}, "v": {"enum": [1]}}}
PAIR = {"properties": {"a": {"enum": [1]}, "b": {"enum": [2]}}}


def _of_x(kind: str) -> dict[str, str]:
    return {"$ref": "#/$defs/x", "type": kind}


def _tagged(kind: str) -> dict[str, Any]:
    """As pydantic writes an alternative that is told by one of its fields."""
    return {"type": "object", "properties": {"kind": {"const": kind}, "n": {}}, "required": ["kind"]}


def strict(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "number", "minimum": 0}, "minimum"),
        ({"type": ["integer", "number"], "minimum": 0}, "minimum"),
        ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
        ({"anyOf": [{"type": "null"}, {"type": "integer", "multipleOf": 3}]}, "multipleOf"),
        ({"type": "string", "format": "idn-email"}, "format"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"properties": {"a": {"oneOf": [{"enum": ["a", "b"]}, {"const": "b"}]}}}, "oneOf"),
        ({"allOf": [{"oneOf": [{"type": "string"}, {}]}, {"minLength": 1}]}, "oneOf"),
        ({"oneOf": [_tagged("a"), _tagged("b"), _tagged("a")]}, "oneOf"),
        ({"enum": ["a", "b"], "pattern": "^a$"}, "pattern"),
        ({"type": "string", "pattern": "^(?=a)b$"}, "pattern"),
        ({"type": "string", "pattern": "^a{$"}, "pattern"),
        ({"type": "string", "maxLength": 5000}, "maxLength"),
        ({"$defs": {"n": {"not": {}}}, "$ref": "#/$defs/n"}, "not"),
        ({"$defs": {"n": {"type": "string"}}, "$ref": "#/$defs/n", "not": {}}, "not"),
        ({"allOf": [{"type": "string", "pattern": "^a+$"}, {"minLength": 5}]}, "minLength"),
        ({"type": "string", "pattern": "^a+$", "maxLength": 5}, "maxLength"),
        ({"type": "string", "format": "date", "maxLength": 5}, "maxLength"),
        ({"type": "string", "format": "date", "minLength": None}, "minLength"),
        ({"type": "string", "format": "date", "pattern": "^2024"}, "format"),
        ({"type": "array", "prefixItems": [{"type": "null"}], "items": {}}, "items"),
        ({"type": "array", "prefixItems": [{"type": "null"}], "minItems": 2}, "minItems"),
        ({"type": "object", "properties": {}, "required": ["a"], "additionalProperties": False}, "required"),
    ],
)
def test_a_strict_schema_is_held_to(schema: Any, keyword: str) -> None:
    with pytest.raises(SchemaError, match=f"is strict, and no grammar holds to its '{keyword}'"):
        plain_format(strict(schema))


@pytest.mark.parametrize("form", ["email", "hostname", "ipv4", "ipv6", "duration", "uri", "date", "uuid"])
def test_a_format_that_is_known_is_held_to(form: str) -> None:
    schema = {"type": "string", "format": form, "pattern": "^(?=.)"}
    assert plain_format(strict(schema))["type"] == "json_object"
    assert of_schema(schema) != of_schema({"type": "string"})


@pytest.mark.parametrize(
    "schema",
    [
        {**COLOR, "type": "object", "properties": {"c": OF_COLOR}, "required": ["c"]},
        {"$defs": {"T": TREE}, "$ref": "#/$defs/T"},
        {"type": "string", "format": "uri", "minLength": 1},
        {"oneOf": [{"type": "null"}, {"type": "integer"}, {"enum": ["a"]}, {"const": "b"}]},
        {"oneOf": [_tagged("a"), {"$ref": "#/$defs/b"}, {"type": "null"}], "$defs": {"b": _tagged("b")}},
        {"enum": [1, 2.5], "minimum": 1},
        {"type": "array", "prefixItems": [{"type": "null"}] * 2, "minItems": 2, "maxItems": 2},
        {"type": "string", "format": "ipv4", "pattern": r"^\d+\.\d+\.\d+\.\d+$"},
    ],
)
def test_what_is_held_to_may_be_strict(schema: Any) -> None:
    assert plain_format(strict(schema)) == {"type": "json_object", "schema": schema}


def test_names_are_no_keywords() -> None:
    named = {"properties": {"not": {"type": "integer", "minimum": 1}}, "default": {"multipleOf": 2}}
    assert plain_format(strict(named)) == {"type": "json_object", "schema": named}


def nested(n: int, of: Callable[[Any], Any]) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(n):
        schema = of(schema)
    return schema


def test_what_grows_beyond_the_limit_is_refused_before_it_has() -> None:
    with pytest.raises(SchemaError, match="it is too large"):
        of_schema(nested(100, lambda of: {"properties": {"a" * 1000: of}}))
    with pytest.raises(SchemaError, match="it has too many rules"):
        of_schema({"prefixItems": [{}] * 20_001})


def test_a_type_that_is_named_twice_is_one() -> None:
    twice = nested(12, lambda of: {"type": ["object", "object"], "properties": {"a": of}})
    assert len(of_schema(twice)) < 10_000


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        (
            {
                "properties": {"part-0": {"enum": [1]}, "b": {"$ref": "#/$defs/Word"}},
                "required": ["part-0", "b"],
                "$defs": {"Word": {"enum": ["x"]}},
            },
            '{"part-0":1,"b":"x"}',
            '{"part-0":"x","b":"x"}',
        ),
        (
            {
                "properties": {"a": {"$ref": "#/$defs/Word"}, "part-0": {"enum": [1]}},
                "required": ["a", "part-0"],
                "$defs": {"Word": {"enum": ["x"]}},
            },
            '{"a":"x","part-0":1}',
            '{"a":1,"part-0":1}',
        ),
        ({"properties": {"": {"type": "integer"}}, "required": [""]}, '{"":1}', "1"),
        ({"properties": {"": {"properties": {"": {"type": "null"}}}}}, '{"":{"":null}}', '{"":null}'),
        (
            {
                "properties": {"decimal part": {"enum": ["x"]}, "n": {"type": "number"}},
                "required": ["decimal part", "n"],
            },
            '{"decimal part":"x","n":1.5}',
            '{"decimal part":"x","n":1."x"}',
        ),
    ],
)
def test_names_are_no_names_of_other_rules(vocab: Any, schema: Any, inside: str, outside: str) -> None:
    assert allows(vocab, schema, inside)
    assert not allows(vocab, schema, outside)


NAMED: dict[str, Any] = {"properties": {"a": {"enum": [1]}, "ab": {"enum": [2]}, '"': {"enum": [3]}}}


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        (
            {**NAMED, "additionalProperties": {"enum": [4]}},
            [
                "{}",
                '{"a":1,"ab":2,"x":4}',
                '{"a":1,"aba":4,"b":4}',
                r'{"\"":3,"":4}',
                r'{"\\":4,"\n":4,"é":4}',
            ],
            ['{"a":1"x":4}', '{"a":4}', '{"x":4,"ab":4}', r'{"\u0061":4}', r'{"a\u0062":4}', r'{"\"":4}'],
        ),
        (
            {**NAMED, "required": ["ab", "a"], "additionalProperties": True},
            ['{"a":1,"ab":2}', r'{"a":1,"ab":2,"\"":3,"x":{"a":[]}}', '{"a":1,"ab":2,"x":4,"y":5}'],
            ['{"a":1}', '{"a":1,"ab":2,"ab":4}', '{"a":1,"ab":2"x":4}'],
        ),
        (
            {"properties": {"*": {"enum": [1]}, "": {"enum": [2]}}, "additionalProperties": {"enum": [3]}},
            ['{"*":1,"":2,"**":3}', '{"":2}'],
            ['{"*":3}', '{"":3}'],
        ),
        (
            {"properties": {"a": False, "b": {"enum": [1]}}, "additionalProperties": {"enum": [2]}},
            ["{}", '{"b":1,"c":2}'],
            ['{"a":1}', '{"a":2}', '{"b":1,"a":2}'],
        ),
        (
            {"properties": {"a": {"enum": [1]}}, "additionalProperties": {"allOf": [False]}},
            ['{"a":1}'],
            ['{"b":1}'],
        ),
        ({"additionalProperties": True}, ["{}", '{"a":[]}'], ["1"]),
        ({"required": []}, ["{}", '{"a":[]}'], ["1"]),
        ({"properties": {}, "additionalProperties": False}, ["{}"], ['{"a":1}']),
        ({"enum": ["größer", "小"]}, ['"größer"', '"小"'], [r'"gr\u00f6\u00dfer"']),
        ({"properties": {"größe": {"enum": [1]}}}, ['{"größe":1}'], ['{"große":1}']),
        ({"enum": ["a", 1, 2.0, None], "type": ["integer", "null"]}, ["1", "2.0", "null"], ['"a"']),
        ({"const": 1, "enum": [1, 2]}, ["1"], ["2"]),
        (
            {"anyOf": [{"type": "string", "minLength": 3, "maxLength": 2}, {"enum": [1]}]},
            ["1"],
            ['""', '"abc"'],
        ),
        ({"minLength": 1, "maxLength": 2}, ['"ab"'], ['""', '"abc"', "1"]),
        (  # as zod and TypeScript's tools write references
            {
                "properties": {
                    "a": {"anyOf": [{"enum": [1]}, {"enum": [2]}]},
                    "b": {"$ref": "#/properties/a/anyOf/1"},
                    "c": {"$ref": "#/$defs/Of%3Cx%3E"},
                    "d": {"$ref": "#/$defs/x~1y~0z"},
                },
                "$defs": {"Of<x>": {"enum": [3]}, "x/y~z": {"enum": [4]}},
            },
            ['{"a":1,"b":2,"c":3,"d":4}'],
            ['{"b":1}', '{"c":4}', '{"d":3}'],
        ),
        ({"pattern": "^a|b$"}, ['"a"', '"ax"', '"xb"'], ['"xa"', '"bx"', '"a', 'b"']),
        ({"pattern": "^(a|b)$|^[|]$"}, ['"a"', '"b"', '"|"'], ['"ab"', '"x"']),
    ],
)
def test_what_answers_have(vocab: Any, schema: Any, inside: list[str], outside: list[str]) -> None:
    assert [text for text in inside if not allows(vocab, schema, text)] == []
    assert [text for text in outside if allows(vocab, schema, text)] == []


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        ({"allOf": [{"type": "string", "minLength": 3}]}, ['"abc"'], ["{}", '"ab"']),
        ({"allOf": [{"enum": ["a", "b"]}]}, ['"b"'], ["{}", '"c"']),
        ({"allOf": [{"enum": ["a", "b"]}, {"const": "b"}]}, ['"b"'], ['"a"']),
        ({**COLOR, "properties": {"c": OF_COLOR}, "required": ["c"]}, ['{"c":"green"}'], ['{"c":{}}']),
        ({**COLOR, "$ref": "#/$defs/Color", "const": "red"}, ['"red"'], ['"green"']),
        (
            {"$defs": {"B": BASE}, "allOf": [{"$ref": "#/$defs/B"}], **PAIR, "required": ["a"]},
            ['{"id":1,"a":1}', '{"id":1,"a":1,"b":2}'],
            ['{"id":1}', '{"a":1}'],
        ),
        ({"$defs": {"L": LIST}, "$ref": "#/$defs/L"}, ['{"v":1,"next":{"v":1}}'], ['{"v":1,"next":{}}']),
        ({"$defs": {"T": TREE}, "$ref": "#/$defs/T"}, ["{}", '{"v":1}'], ['{"of":{}}']),
        (
            {"properties": {"a": {"$ref": "#", "type": "object"}, "b": {"enum": [2]}}},
            ['{"a":{"b":2}}'],
            ['{"a":2}'],
        ),
        (
            {**PAIR, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
            ['{"a":1}', '{"a":1,"b":2}', '{"b":2}'],
            ["{}", "3", '{"a":2}'],
        ),
        (
            {"type": ["string", "null"], "anyOf": [{"minLength": 2}, {"type": "null"}, {"type": "integer"}]},
            ['"ab"', "null"],
            ["7", '"a"'],
        ),
        ({"anyOf": [{"const": 1}, {"const": 2}], "oneOf": [{"const": 2}, {"const": 3}]}, ["2"], ["1", "3"]),
        (
            {"$defs": {"S": {"type": "string"}}, "$ref": "#/$defs/S", "minLength": 5},
            ['"abcde"'],
            ['"abc"'],
        ),
        ({"properties": {"a": {"enum": [1]}}, "required": ["b"]}, ['{"b":[],"a":1}', '{"b":2}'], ['{"a":1}']),
        (  # a part that nothing is of, and its number
            {
                "$defs": {"B": {"properties": {"b": {"enum": [1]}}, "required": ["b"]}, "N": {"enum": [3]}},
                "anyOf": [
                    {
                        "properties": {
                            "b": {"$ref": "#/$defs/B"},
                            "c": {"allOf": [{"const": 1}, {"const": 2}]},
                        }
                    },
                    {"properties": {"n": {"$ref": "#/$defs/N"}, "b": {"$ref": "#/$defs/B"}}},
                ],
            },
            ['{"n":3,"b":{"b":1}}'],
            ['{"b":3}', '{"n":{"b":1}}', '{"c":1}'],
        ),
        ({"type": "object", "required": ["b"]}, ['{"b":2,"c":{}}'], ["{}", '{"c":1}']),
        ({"prefixItems": [{"enum": [1]}], "items": {"type": "string"}}, ["[1]"], ['["a"]']),
        (
            {"allOf": [{"type": "integer", "minimum": 3}, {"type": "number", "minimum": 1, "maximum": 5}]},
            ["3", "5"],
            ["2", "6", "3.5"],
        ),
    ],
)
def test_what_holds_at_once_is_merged(vocab: Any, schema: Any, inside: list[str], outside: list[str]) -> None:
    assert [text for text in inside if not allows(vocab, schema, text)] == []
    assert [text for text in outside if allows(vocab, schema, text)] == []


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"allOf": [{"pattern": "^a$"}, {"pattern": "^b$"}]}, "no grammar holds to both of 'pattern'"),
        ({"allOf": [{"type": "string"}, {"type": "object"}]}, "nothing has the type 'string' and 'object'"),
        ({"allOf": [{"const": 1}, {"enum": [2, True]}]}, "a constant of one part of it is none of another"),
        (
            {"allOf": [BASE, {"type": "object", "properties": {}, "additionalProperties": False}]},
            "it requires 'id', which another part of it does not allow",
        ),
    ],
)
def test_what_cannot_be_merged_is_refused(schema: Any, reason: str) -> None:
    with pytest.raises(SchemaError, match=f"the JSON schema cannot be compiled: {reason}"):
        of_schema(schema)


def test_merged_parts_that_double_are_refused_before_they_have() -> None:
    def part(n: int, names: str) -> Any:
        return {x: {"allOf": [{"$ref": f"#/$defs/{name}{n}"} for name in names]} for x in "xy"}

    parts: dict[str, Any] = {f"a{n}": {"properties": part(n + 1, "ab")} for n in range(40)}
    parts |= {f"b{n}": {"properties": part(n + 1, "ba")} for n in range(40)}
    parts |= {"a40": {"type": "string"}, "b40": {"minLength": 1}}
    schema = {"$defs": parts, "allOf": [{"$ref": "#/$defs/a0"}, {"$ref": "#/$defs/b0"}]}
    with pytest.raises(SchemaError, match="it has too many rules|it is too large"):
        of_schema(schema)
    with pytest.raises(SchemaError, match="it has too many parts"):
        plain_format(strict(schema))


def test_alternatives_that_have_each_other_in_them_end() -> None:
    part = {"$ref": "#", "anyOf": [{"type": "string"}, {"$ref": "#/$defs/B", "minLength": 1}]}
    schema = {"anyOf": [{"maxLength": 3}, {"$ref": "#/$defs/B"}], "$defs": {"B": part}}
    with pytest.raises(SchemaError, match="^the JSON schema "):
        of_schema(schema)
    with suppress(SchemaError):
        plain_format(strict(schema))


_PAIRS = {"type": "string", "pattern": "^" + "(ab|cd)*" * 100 + "$"}
_CODES = {"enum": [f"code {i}" for i in range(1000)]}
_NAMES = {"properties": {f"name {i}": {} for i in range(6000)}}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {f"a{i}": _PAIRS for i in range(8000)}},
        {"$defs": {"x": _CODES}, "properties": {f"a{i}": _of_x("string") for i in range(200)}},
        {"$defs": {"x": _NAMES}, "properties": {f"a{i}": _of_x("object") for i in range(2000)}},
    ],
    ids=["large", "values", "properties"],
)
def test_what_is_looked_at_for_long_is_refused_before(schema: Any) -> None:
    """Other clients of a server would wait for it, up to half a minute."""
    schema = json.loads(json.dumps(schema))  # each part its own
    began = time.process_time()
    with suppress(SchemaError):
        plain_format(strict(schema))
    with pytest.raises(SchemaError):
        of_schema(schema)
    assert time.process_time() - began < 5
