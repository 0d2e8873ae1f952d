"""--json-schema and --grammar."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from headkv_local import ArgumentError
from headkv_local.chat import setting
from headkv_local.chat.options import Options
from headkv_local.chat.session import open_session

SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": [7]}},
    "required": ["n"],
    "additionalProperties": False,
}


def test_answers_have_the_form(tiny_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    options = Options(model=str(tiny_path), threads=1, ctx=1024, json_schema=str(file))
    with closing(open_session(options)) as session:

        def ask() -> str:
            return session.ask("Which?", lambda _: None).text

        assert json.loads(ask()) == {"n": 7}
        setting.change(session, "grammar", 'root ::= "yes"')
        assert (ask(), session.options.json_schema) == ("yes", None)
        with pytest.raises(ArgumentError, match="does not compile"):
            setting.change(session, "grammar", "root ::= (")
        assert ask() == "yes"
        setting.change(session, "grammar", "default")
        assert session.llm.grammar is None


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("grammar", 'root ::= "a', "the grammar does not compile: "),
        ("grammar", 'rot ::= "a"', "the grammar does not compile: grammar does not contain a 'root' symbol"),
        ("grammar", 'root ::= root "a"', "the grammar does not compile: unsupported grammar, left recursion"),
        (
            "grammar",
            "root ::= " + "(" * 20000 + '"a"' + ")" * 20000,
            "the grammar does not compile: it is nest",
        ),
        ("grammar", "missing", "cannot read the grammar 'missing': No such file or directory"),
        ("json_schema", '{"type": "obj', "the JSON schema is no JSON: "),
        ("json_schema", '[{"type": "object"}]', "the JSON schema cannot be compiled: it is no object"),
        ("json_schema", '{"type": "wat"}', "the JSON schema cannot be compiled: Unrecognized schema"),
        ("json_schema", '{"$ref": "#/nothing"}', "the JSON schema cannot be compiled: "),
        ("json_schema", '{"not": ' * 3000 + "{}" + "}" * 3000, "the JSON schema "),
    ],
)
def test_what_does_not_compile(
    tiny_path: Path, name: str, text: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    options = Options(model=str(tiny_path), threads=1, ctx=256, budget=None, **{name: text})  # type: ignore[arg-type]
    with pytest.raises(ArgumentError) as caught:
        open_session(options)
    assert str(caught.value).startswith(reason)
    assert capfd.readouterr() == ("", "")
