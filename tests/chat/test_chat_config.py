"""Settings from a file and the environment."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from headkv_local.chat import main
from headkv_local.chat.args import build_parser
from headkv_local.chat.config import default_file, parse_options, require_retention, settings_of, shown
from headkv_local.chat.options import FLAG, Options


def options(*argv: str, **environ: str) -> Options:
    return parse_options(list(argv), build_parser(), environ)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def write(text: str, path: str | None = None) -> str:
    file = Path(path or default_file())
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_the_command_line_comes_before_the_environment_before_the_file() -> None:
    file = write("temp = 0.1\ntop-p = 0.2\nseed = 3\nbudget = '5%'\njson = true\nfile = ['a', 'b']\n")
    found = options("--temp", "0.3", "--no-json", HEADKV_CHAT_TEMP="0.4", HEADKV_CHAT_TOP_P="0.5")
    assert (found.temp, found.top_p, found.seed, found.budget) == (0.3, 0.5, 3, "5%")
    assert (found.json, found.files, found.config) == (False, ("a", "b"), file)
    assert [found.sources[name] for name in ("temp", "top_p", "seed")] == [FLAG, "HEADKV_CHAT_TOP_P", file]
    assert found.completed({"temp": 0.9, "top_p": 0.9, "seed": 9}, "a session").seed == 9
    assert found.completed({"temp": 0.9}, "a session").temp == 0.3


def test_a_form_takes_the_place_of_the_other() -> None:
    write("json-schema = '{}'")
    found = options(HEADKV_CHAT_GRAMMAR="g")
    assert (found.json_schema, found.grammar, "json_schema" in found.sources) == (None, "g", False)
    assert options("-j", "{}", HEADKV_CHAT_GRAMMAR="g").grammar is None


def test_each_flag_has_a_twin() -> None:
    values = {
        "archive": "off",
        "temp": "1",
        "color": "never",
        "threads": "2",
        "thinking": "hide",
        "markdown": "off",
    }
    for name in settings_of(build_parser()).keys() - {"config"}:
        variable = "HEADKV_CHAT_" + name.upper().replace("-", "_")
        text = values.get(name, "1" if name != "budget" else "9")
        assert variable in options(**{variable: text}).sources.values(), name
    assert options(HEADKV_CHAT_FILE="a:b", HEADKV_CHAT_STREAM="off").files == ("a", "b")
    assert options(HEADKV_CHAT_TEMP="") == Options()


def test_what_is_shown_is_such_a_file(tmp_path: Path) -> None:
    given = options(
        "m.gguf",
        "-f",
        "a b",
        "-sys",
        'Say "é\\n"\n',
        "--budget",
        "full",
        "--fold",
        "off",
        "--temp",
        "0",
        "--no-stream",
    )
    file = write(shown(given, build_parser()), str(tmp_path / "other.toml"))
    Path(file).write_bytes(codecs.BOM_UTF8 + Path(file).read_bytes())  # as some editors do
    found = options("--config", file)
    assert (found.system, found.stream, found.fold) == (given.system, False, "off")
    settings = [
        [line.split("  #")[0] for line in shown(each, build_parser()).splitlines()] for each in (given, found)
    ]
    assert settings[0] == settings[1]


@pytest.mark.parametrize(
    ("text", "environ", "reason"),
    [
        ("temperature = 1", {}, "has 'temperature', which is no setting"),
        ("max_tokens = 1", {}, "has 'max_tokens', which is no setting; is max-tokens meant?"),
        ("config = 'x'", {}, "has 'config', which is no setting\n"),
        ("archive = false", {}, 'archive: false is of a kind that it does not take; is "off" meant?'),
        ("fold = false", {}, 'fold: false is of a kind that it does not take; is "off" meant?'),
        ("[sampling]\ntemp = 1", {}, "has 'sampling', which is no setting"),
        ("temp = 'hot'", {}, "temp: 'hot' is not a number from 0 up"),
        ("temp = true", {}, "temp: true is of a kind that it does not take"),
        ("json = 1.5", {}, "json: '1.5' is neither true nor false"),
        ("model = ['a']", {}, 'model: ["a"] is of a kind'),
        ("color = 'blue'", {}, "color: 'blue' is none of auto, always, never"),
        ("temp = ", {}, "is no TOML: Invalid value"),
        ("grammar = 'a'\njson-schema = '{}'", {}, "has json-schema and grammar, and an answer has one form"),
        ("temp = 'hot\\n\\u001b[2J'".replace("'", '"'), {}, "temp: 'hot??[2J' is not a number from 0 up"),
        ('"a\\nb" = 1', {}, "has 'a?b', which is no setting"),
        ("", {"HEADKV_CHAT_TMP": "1"}, "HEADKV_CHAT_TMP, which is no setting; is HEADKV_CHAT_TEMP meant?"),
        ("", {"HEADKV_CHAT_TOP_K": "x"}, "HEADKV_CHAT_TOP_K: 'x' is not a whole number"),
        ("", {"HEADKV_CHAT_BUDGET": "0"}, "HEADKV_CHAT_BUDGET: budget must be at least the window of 8"),
        ("", {"HEADKV_CHAT_WINDOW": "200"}, "HEADKV_CHAT_WINDOW: budget must be at least the window of 200"),
        ("", {"HEADKV_CHAT_OBSERVE": "0"}, "HEADKV_CHAT_OBSERVE: observe must be an int of at least 1"),
        ("fold = 8", {}, "chat.toml: fold must be an int of at least 64"),
        ("fold = 'never'", {}, "fold: 'never' is neither a number of tokens nor off"),
        ("budget = 5.5", {}, "chat.toml: budget must be an int"),
        ("scores = ''", {}, "chat.toml, scores: it is the path of a file"),
        ("", {"HEADKV_CHAT_CONFIG": "/missing"}, "cannot read the configuration file /missing: No such file"),
    ],
)
def test_one_sentence(
    text: str, environ: dict[str, str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(text)
    with pytest.raises(SystemExit) as leave:
        require_retention(options(**environ), build_parser())
    assert leave.value.code == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1


def test_what_is_shown_can_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show-config", "--budget", "abc"]) == 2
    out, err = capsys.readouterr()
    assert (out, "budget must be an int" in err) == ("", True)
