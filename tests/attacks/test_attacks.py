"""Every hostile file gives its own error: code, exception and one sentence that says what is wrong."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from attack_cases import REQUIRED, cases
from hostile_gguf import (
    F32,
    HEADS,
    KV_HEADS,
    LAYERS,
    SHARES,
    STR,
    U32,
    Case,
    File,
    added,
    array,
    changed,
    model,
    patched,
    scalar,
    sidecar,
)

from headkv_local import HeadScores, ScoresAbsentError, ScoresError, cli, exits
from headkv_local._core import native
from headkv_local.budgets import ModelShape

CASES = cases()
ROOT = Path(__file__).parents[2]


def load(path: Path) -> tuple[str, str]:
    """What headkv_scores_load() returns: the name of the code, and the last error's text."""
    handle = native.ffi.new("struct headkv_scores **")
    code = native._functions["headkv_scores_load"](os.fsencode(path), handle)
    names = {getattr(native.lib, name): name for name in dir(native.lib) if name.startswith("HEADKV_")}
    if code == native.lib.HEADKV_OK:
        native._functions["headkv_scores_free"](handle[0])
        return "OK", ""
    assert handle[0] == native.ffi.NULL
    return next(n for c, n in names.items() if c == code).removeprefix("HEADKV_ERR_"), native.last_error()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_file(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(case.content)
    code, said = load(path)
    assert (code, bool(re.search(case.says, said))) == (case.code, True), said
    assert said.startswith(str(path))

    absent = case.code == "SCORES_ABSENT"
    with pytest.raises(ScoresError) as caught:
        HeadScores.from_gguf(path)
    assert type(caught.value) is (ScoresAbsentError if absent else ScoresError)
    assert str(caught.value) == said
    if absent:
        assert HeadScores.find(path) is None
    else:
        with pytest.raises(ScoresError, match=re.escape(said)):
            HeadScores.find(path)

    assert capfd.readouterr() == ("", "")
    assert cli.main(["scores", "show", str(path)]) == exits.FAILED
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"headkv: {said}")
    assert shown.err.count("\n") == 1
    assert shown.err.rstrip("\n").isprintable()

    # its identity: what is wrong with the scores alone does not matter, what is wrong with the file does
    with pytest.raises(ScoresError, match=case.says if case.code == "FILE" else "holds no tensors"):
        native.model_id(str(path))


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60
    assert len({case.content for case in CASES}) > 0.95 * len(CASES)
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.code for case in CASES} == {
        "FILE",
        *(f"SCORES_{kind}" for kind in ("ABSENT", "VERSION", "MISSING", "TYPE", "LENGTH", "VALUE")),
    }


@pytest.mark.parametrize("make", [sidecar, model], ids=["sidecar", "model"])
def test_cut_at_every_byte(make: Callable[[], File], tmp_path: Path) -> None:
    content = make().content()
    path = tmp_path / "cut.gguf"
    for n in range(len(content)):
        path.write_bytes(content[:n])
        assert load(path)[0] == "FILE", n
    path.write_bytes(content)
    assert load(path)[0] == "OK"


@pytest.mark.parametrize("make", [sidecar, model], ids=["sidecar", "model"])
def test_every_byte_changed(make: Callable[[], File], tmp_path: Path) -> None:
    """Whatever comes of it, it is a documented code, and what is read keeps to the format."""
    content = bytearray(make().content())
    path = tmp_path / "changed.gguf"
    seen = set()
    for at in range(len(content)):
        was = content[at]
        content[at] ^= 0xFF
        path.write_bytes(content)
        content[at] = was
        code, said = load(path)
        seen.add(code)
        assert code == "OK" or said.startswith(str(path))
        if code == "OK":
            HeadScores.from_gguf(path)
    assert {"OK", "FILE", "SCORES_VALUE", "SCORES_VERSION", "SCORES_MISSING"} <= seen


GOOD = {
    "every key": sidecar(),
    "model": model(),
    "only what must be": File([key for key in sidecar().keys if key[0] in (*REQUIRED, "headkv.scores")]),
    "version 2 of GGUF": patched(sidecar(), version=2),
    "unknown keys": added("headkv.later", scalar(STR, "")),
    "one head": File(
        [
            ("headkv.version", scalar(U32, 1)),
            ("headkv.method", scalar(STR, "r")),
            ("headkv.block_count", scalar(U32, 1)),
            ("headkv.head_count", scalar(U32, 1)),
            ("headkv.head_count_kv", scalar(U32, 1)),
            ("headkv.scores", array(F32, [1e-45])),
        ]
    ),
    "the largest scores": changed("headkv.scores", array(F32, [3.4028234e38] * LAYERS * HEADS)),
    "the longest text": changed("headkv.method", scalar(STR, "\u20ac" * 1365 + "x")),
    "the longest key": added("headkv.source.".ljust(128, "x"), scalar(STR, "y")),
    "a smaller alignment": added("general.alignment", scalar(U32, 1)),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_the_format_allows(name: str, tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(GOOD[name].content())
    scores = HeadScores.from_gguf(path)
    assert scores.scores.shape in ((LAYERS, HEADS), (1, 1))


def test_all_that_is_in_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(sidecar().content())
    scores = HeadScores.from_gguf(path)
    assert scores.scores.ravel().tolist() == [i / 8 for i in range(LAYERS * HEADS)]
    assert (scores.n_head_kv, scores.method) == (KV_HEADS, "r2")
    assert scores.curves is not None
    assert scores.curves.shares.tolist() == SHARES
    assert scores.curves.losses.ravel().tolist() == [-i / 8 for i in range(LAYERS * KV_HEADS * len(SHARES))]
    assert (scores.beta, scores.window, scores.kernel, scores.sinks) == (1.5, 8, 13, 4)
    assert scores.source == {"model": "tiny \u20ac", "seed": "7"}


def test_more_metadata_than_any_model_has(tmp_path: Path) -> None:
    """A file that takes next to no room on the disk must not take gigabytes of memory either."""
    path = tmp_path / "sparse.gguf"
    content = added("general.blob", b"").content()
    n = 2**30
    with path.open("wb") as file:
        file.write(content + (9).to_bytes(4, "little") + (0).to_bytes(4, "little") + n.to_bytes(8, "little"))
        file.truncate(file.tell() + n)
    assert load(path) == ("FILE", f"{path} is damaged: it has more than 128 MiB of metadata")


def test_a_path_without_a_file(tmp_path: Path) -> None:
    assert load(tmp_path / "none.gguf") == (
        "FILE",
        f"{tmp_path / 'none.gguf'} cannot be opened: No such file or directory",
    )
    code, said = load(tmp_path)
    assert (code, said) == ("FILE", f"{tmp_path} is not a regular file")
    code, said = load(tmp_path / ("x" * 300))
    assert (code, said.rpartition(": ")[2]) == ("FILE", "File name too long")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("writer", [False, True], ids=["nobody writes", "somebody writes"])
def test_a_fifo_does_not_hang(writer: bool, tmp_path: Path) -> None:
    path = tmp_path / "fifo.gguf"
    os.mkfifo(path)
    handle = os.open(path, os.O_RDWR | os.O_NONBLOCK) if writer else None
    found: list[tuple[str, str]] = []
    thread = threading.Thread(target=lambda: found.append(load(path)), daemon=True)
    thread.start()
    thread.join(timeout=10)
    if handle is not None:
        os.close(handle)
    assert found == [("FILE", f"{path} is not a regular file")]


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_a_device_is_no_file() -> None:
    assert load(Path("/dev/zero")) == ("FILE", "/dev/zero is not a regular file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(sidecar().content())
    path.chmod(0)
    assert load(path) == ("FILE", f"{path} cannot be opened: Permission denied")


@pytest.mark.parametrize("kind", ["directory", "dangling link", "fifo"])
def test_a_sidecar_that_is_no_file_is_not_passed_over(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model().content())
    assert HeadScores.find(path)
    beside = tmp_path / "model.headkv.gguf"
    if kind == "directory":
        beside.mkdir()
    elif kind == "fifo":
        os.mkfifo(beside)
    else:
        beside.symlink_to(tmp_path / "gone")
    with pytest.raises(ScoresError, match="is not a regular file|cannot be opened"):
        HeadScores.find(path)


SHAPE = ModelShape(LAYERS, HEADS, KV_HEADS, row_bytes=1)


@pytest.mark.parametrize("shape", [(1, 4, 2), (3, 4, 2), (2, 8, 2), (2, 4, 4), (2, 4, 1)])
def test_scores_of_another_shape(shape: tuple[int, int, int], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model().content())
    scores = HeadScores.from_gguf(path)
    scores.for_model(SHAPE, path)
    said = (
        "the head scores are for 2 layers of 4 query and 2 KV heads, the model has {} layers of {} and {}"
    ).format(*shape)
    with pytest.raises(ScoresError, match=said):
        scores.for_model(ModelShape(*shape, row_bytes=1), path)


@pytest.mark.parametrize("given", ["fnv1a-0000000000000000", "sha256-1", "\u20ac", 7], ids=repr)
def test_scores_of_another_model(given: str | int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    file = model()
    name = "headkv.source.model_id"
    value = scalar(U32, given) if isinstance(given, int) else scalar(STR, given)
    file.keys.append((name, value))
    path.write_bytes(file.content())
    actual = native.model_id(str(path))
    said = f"another model file: they name {given}, this is {actual}$"
    with pytest.raises(ScoresError, match=said):
        HeadScores.from_gguf(path).for_model(SHAPE, path)
    file.keys[-1] = (name, scalar(STR, actual))
    path.write_bytes(file.content())
    HeadScores.from_gguf(path).for_model(SHAPE, path)


def test_the_specification_lists_every_error_of_the_header() -> None:
    header = (ROOT / "native/include/headkv.h").read_text()
    codes = dict(re.findall(r"(HEADKV_(?:ERR_\w+|OK))\s*=\s*(-?\d+)", header))
    assert len(codes) >= 13
    specification = (ROOT / "docs/gguf-metadata.md").read_text()
    table = dict(re.findall(r"^\| `(HEADKV_\w+)` \| (-?\d+) \|", specification, re.MULTILINE))
    assert table == codes
