"""Writing head scores: sidecars and embedding, and everything that can go wrong on the way."""

from __future__ import annotations

import os
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest

from headkv_local import ArgumentError, HeadScores, ScoresError, cli
from headkv_local._core import native
from headkv_local._gguf import reading
from headkv_local.exits import FAILED, MISUSED
from headkv_local.models import retained_shape

RAW = np.arange(8, dtype=np.float32).reshape(2, 4)


def scores_for(model: Path | None = None, **fields: object) -> HeadScores:
    source = {} if model is None else {"model_id": native.model_id(str(model))}
    given: dict[str, object] = {"scores": RAW, "n_head_kv": 2, "method": "r", "source": source}
    return HeadScores(**(given | fields))  # type: ignore[arg-type]


@pytest.fixture
def model(tiny_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_path, tmp_path / "model.gguf"))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.headkv.gguf"
    source = {
        "model": "n\u00e4me",
        "seed": 2**32 - 1,
        "offset": -5,
        "big": 2**40,
        "numpy": np.int64(3),
    }
    scores_for(beta=np.float32(1.02), window=np.int32(8), kernel=13, sinks=0, source=source).to_sidecar(path)
    found = HeadScores.from_gguf(path)
    assert np.array_equal(found.scores, RAW)
    assert (found.n_head_kv, found.method) == (2, "r")
    assert found.beta == pytest.approx(1.02)
    assert (found.window, found.kernel, found.sinks) == (8, 13, 0)
    assert found.source == {  # all texts
        "model": "n\u00e4me",
        "seed": str(2**32 - 1),
        "offset": "-5",
        "big": str(2**40),
        "numpy": "3",
    }
    assert [p.name for p in tmp_path.iterdir()] == ["a.headkv.gguf"]


def test_a_whole_number_as_beta(tmp_path: Path) -> None:
    scores_for(beta=2).to_sidecar(tmp_path / "a.gguf")
    assert HeadScores.from_gguf(tmp_path / "a.gguf").beta == 2.0


def test_gguf_py_reads_a_sidecar(tmp_path: Path) -> None:
    scores_for(kernel=7).to_sidecar(tmp_path / "a.gguf")
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    types = {name: [t.name for t in f.types] for name, f in fields.items() if name.startswith("headkv.")}
    assert types == {
        "headkv.version": ["UINT32"],
        "headkv.method": ["STRING"],
        "headkv.block_count": ["UINT32"],
        "headkv.head_count": ["UINT32"],
        "headkv.head_count_kv": ["UINT32"],
        "headkv.scores": ["ARRAY", "FLOAT32"],
        "headkv.kernel": ["UINT32"],
    }


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scores": np.ones(8)}, r"must have the shape \(n_layer, n_head\), not \(8,\)"),
        ({"scores": np.ones((0, 4))}, r"must have the shape"),
        ({"scores": RAW * np.nan}, "must be finite, not negative and not all zero"),
        ({"scores": -RAW}, "must be finite, not negative and not all zero"),
        ({"scores": RAW * 0}, "must be finite, not negative and not all zero"),
        ({"scores": RAW.astype(np.float64) * 1e300}, "must be finite, not negative and not all zero"),
        ({"n_head_kv": 3}, "n_head_kv must divide the 4 query heads, 3 does not"),
        ({"n_head_kv": 0}, "n_head_kv must be an int of at least 1, not 0"),
        ({"n_head_kv": "2"}, "n_head_kv must be an int of at least 1, not '2'"),
        ({"scores": RAW * 1j}, "scores must be an array of numbers"),
        ({"scores": [["1", "2"]]}, "scores must be an array of numbers"),
        ({"scores": [[1, 2], [3]]}, "scores must be an array of numbers"),
        ({"beta": 1e39}, "beta must be finite in 32 bits, not 1e"),
        ({"beta": "2"}, "beta must be a finite number above 1, not '2'"),
        ({"source": None}, "source must be names with values, not None"),
        ({"method": ""}, "headkv.method must not be empty"),
        ({"method": "x" * 5000}, "headkv.method must have 1 to 4096 bytes, not 5000"),
        ({"beta": 1.0}, "headkv.beta must be finite and above 1, not 1"),
        ({"kernel": 4}, "headkv.kernel must be odd, not 4"),
        ({"kernel": 2.5}, "kernel must be an int of at least 0, not 2.5"),
        ({"window": -1}, "window must be an int of at least 0, not -1"),
        ({"source": {"a": ""}}, "headkv.source.a must not be empty"),
        ({"source": {"a": 1.5}}, "the source 'a' must be a text or a whole number, not 1.5"),
        ({"source": {"a": "b\0c"}}, "the value of headkv.source.a has a zero byte in it"),
        ({"source": {"a b": "c"}}, "has a key that is not printable ASCII"),
    ],
)
def test_what_breaks_the_format_is_not_written(
    fields: dict[str, object], said: str, tiny_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=said) as caught:
        scores_for(**fields).to_sidecar(tmp_path / "a.gguf")
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(ArgumentError, match=said):
        scores_for(**fields).embed(tiny_path, tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"layers": ["a", "b"]}, "layers must be an int of at least 0, not 'a'"),
        ({"layers": "01"}, "layers must be a sequence of ints, not '01'"),
        ({"layers": 2}, "layers must be a sequence of ints, not 2"),
        ({"layers": [0, 0.5]}, "layers must be an int of at least 0, not 0.5"),
        ({"layers": [-1, 0]}, "layers must be an int of at least 0, not -1"),
        ({"layers": [1, 0]}, "layers must be 2 different ones, ascending"),
        ({"layers": [0]}, "layers must be 2 different ones, ascending"),
        ({"method": None}, "method must be a text, not None"),
        ({"curves": "steep"}, "curves must be Curves, not 'steep'"),
    ],
)
def test_what_is_of_another_kind_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        scores_for(**fields)


def test_layers_may_be_any_ints() -> None:
    assert scores_for(layers=np.array([1, 3])).layers == scores_for(layers=iter((1, 3))).layers == (1, 3)


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    """Not with force either, and nothing is left beside it."""
    folder, pipe = tmp_path / "folder.gguf", tmp_path / "pipe.gguf"
    folder.mkdir()
    os.mkfifo(pipe)
    for path in (folder, pipe):
        with pytest.raises(ArgumentError, match="is not a file: give another name"):
            scores_for().to_sidecar(path, force=True)
    for name in ("", "/"):
        with pytest.raises(ArgumentError, match="is no name for a file"):
            scores_for().to_sidecar(name, force=True)
        with pytest.raises(ArgumentError, match="is no name for a file"):
            HeadScores.find(name)
    assert sorted(tmp_path.iterdir()) == [folder, pipe]


def test_existing_files_stay_without_force(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("mine")
    path.chmod(0o640)
    with pytest.raises(ArgumentError, match="exists already: give another name, or force it"):
        scores_for().to_sidecar(path)
    assert path.read_text() == "mine"
    scores_for().to_sidecar(path, force=True)
    assert HeadScores.from_gguf(path).method == "r"
    assert path.stat().st_mode & 0o777 == 0o640


def test_only_the_keys_differ_in_a_copy(model: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.gguf", tmp_path / "twice.gguf"
    scores_for(model, method="first", sinks=3).embed(model, once)
    scores_for(model, method="second").embed(once, twice)
    before, after = gguf.GGUFReader(model), gguf.GGUFReader(twice)
    kept = {name: f.contents() for name, f in before.fields.items() if not name.startswith("GGUF.")}
    found = {name: f.contents() for name, f in after.fields.items() if not name.startswith("GGUF.")}
    assert {name: value for name, value in found.items() if not name.startswith("headkv.")} == kept
    assert found["headkv.method"] == "second"
    assert "headkv.sinks" not in found
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert (old.name, old.tensor_type, old.shape.tolist()) == (
            new.name,
            new.tensor_type,
            new.shape.tolist(),
        )
        assert np.array_equal(old.data, new.data)
    assert native.model_id(str(twice)) == native.model_id(str(model))


def test_a_model_with_an_alignment_of_its_own(model: Path, tmp_path: Path) -> None:
    """general.alignment says where the data begins: the copy's keys are longer, and it moves."""
    aligned = tmp_path / "aligned.gguf"
    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(aligned, "llama")
    writer.add_custom_alignment(1024)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    scores_for(aligned).embed(aligned, tmp_path / "copy.gguf")
    copy = gguf.GGUFReader(tmp_path / "copy.gguf")
    assert copy.data_offset % 1024 == 0
    for old, new in zip(reader.tensors, copy.tensors, strict=True):
        assert np.array_equal(old.data, new.data)


def test_the_command_and_stock_llama_cpp(model: Path, tmp_path: Path) -> None:
    sidecar, copy = tmp_path / "s.gguf", tmp_path / "copy.gguf"
    scores_for(model).to_sidecar(sidecar)
    assert cli.main(["scores", "embed", str(sidecar), str(model), "-o", str(copy)]) == 0
    assert np.array_equal(HeadScores.from_gguf(copy).scores, RAW)
    logits = []
    for path in (model, copy):
        llm = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, verbose=False, logits_all=True)
        llm.eval([1, 2, 3])
        logits.append(llm.scores[:3].copy())
        llm.close()
    assert np.array_equal(*logits)


def fails(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], code: int = FAILED) -> None:
    assert cli.main(["scores", *arguments]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert said in shown.err


def test_what_is_read_is_not_replaced(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named or found: the model, its sidecar, another file of scores."""
    copy, sidecar, other = tmp_path / "m.gguf", tmp_path / "m.headkv.gguf", tmp_path / "other.gguf"
    copy.write_bytes(model.read_bytes())
    for path in (sidecar, other):
        scores_for(model).to_sidecar(path)
    before = {path: path.read_bytes() for path in (copy, sidecar, other)}
    for source, target in ((copy, sidecar), (other, copy), (other, other)):
        assert cli.main(["scores", "embed", str(source), str(copy), "-o", str(target), "--force"]) == 2
        assert "would be lost" in capsys.readouterr().err
    for source, target in ((copy, sidecar), (copy, copy), (other, other)):
        assert cli.main(["scores", "show", str(source), "--png", str(target), "--force"]) in (1, 2)
        said = capsys.readouterr().err
        assert "would be lost" in said or "needs matplotlib" in said
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: None, "cannot be opened: No such file or directory"),
        (lambda p: p.mkdir(), "is not a regular file"),
        (lambda p: p.write_bytes(b""), "is not a GGUF file: it is empty"),
        (lambda p: p.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0)), "it ends within tensor number 1"),
        (lambda p: p.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0)), "holds no tensors"),
    ],
    ids=["missing", "directory", "empty", "damaged", "nothing in it"],
)
def test_embedding_into_what_is_no_model(
    make: Callable[[Path], object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, sidecar, copy = tmp_path / "broken.gguf", tmp_path / "s.gguf", tmp_path / "copy.gguf"
    scores_for().to_sidecar(sidecar)
    make(broken)
    fails(["embed", str(sidecar), str(broken), "-o", str(copy)], said, capsys)
    assert not list(tmp_path.glob("copy*"))


def test_embedding_into_another_model(
    model: Path, tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sidecar, copy = tmp_path / "s.gguf", tmp_path / "copy.gguf"
    scores_for(model).to_sidecar(sidecar)
    for other, said in (
        (tiny(n_layer=3), "for 2 layers of 4 query and 2 KV heads, the model has 3 layers of 4 and 2"),
        (tiny(seed=9), "were measured on another model file: they name fnv1a-"),
    ):
        fails(["embed", str(sidecar), str(other), "-o", str(copy)], said, capsys)
    windows = tiny(arch="gemma3")
    scores_for(windows, layers=(0, 5)).to_sidecar(sidecar, force=True)
    said = "are for the layers 0, 5, and the model retains the layers 2, 5"
    fails(["embed", str(sidecar), str(windows), "-o", str(copy)], said, capsys)
    scores_for(windows, layers=(2, 5)).to_sidecar(sidecar, force=True)
    said = "are for the layers 2, 5, and the model retains the layers 0, 1"  # as many, of as many heads
    fails(["embed", str(sidecar), str(model), "-o", str(copy)], said, capsys)
    differ = tiny(arch="lfm2")  # in their heads too
    layers = tuple(layer.il for layer in retained_shape(differ).layers)
    scores_for(differ, layers=layers, n_head_kv=4).to_sidecar(sidecar, force=True)
    assert cli.main(["scores", "embed", str(sidecar), str(differ), "-o", str(copy)]) == 0
    copy.write_text("mine")
    fails(["embed", str(sidecar), str(model), "-o", str(copy)], "exists already", capsys, MISUSED)
    assert copy.read_text() == "mine"
    fails(["embed", str(model), str(model), "-o", str(tmp_path / "x")], "holds no head scores", capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.gguf", "model.gguf", "s.gguf"]


def test_no_room_for_the_copy(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel refuses to let the file grow, as it does on a full disk."""
    sidecar, copy = tmp_path / "s.gguf", tmp_path / "copy.gguf"
    scores_for(model).to_sidecar(sidecar)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (model.stat().st_size // 2, before[1]))
    try:
        fails(
            ["embed", str(sidecar), str(model), "-o", str(copy)],
            f"{copy} cannot be written: {os.strerror(27)}",
            capsys,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.gguf", "s.gguf"]


def test_no_folder_for_the_copy(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sidecar, copy = tmp_path / "s.gguf", tmp_path / "none" / "copy.gguf"
    scores_for(model).to_sidecar(sidecar)
    said = f"{copy} cannot be written: No such file or directory"
    fails(["embed", str(sidecar), str(model), "-o", str(copy)], said, capsys)


def test_the_layers_of_a_model(tiny: Callable[..., Path], smollm2: Path) -> None:
    assert reading.n_layers(tiny(n_layer=3)) == 3
    assert reading.n_layers(smollm2) == 30


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "does not say how many layers it has"),
        ({"block_count": 0}, "no usable llama.block_count"),
        ({"block_count": "2"}, "no usable llama.block_count"),
        ({"block_count": 2, "nextn_predict_layers": 2}, "draft heads alone"),
    ],
)
def test_a_model_without_usable_layers(keys: dict[str, object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(_model_with(keys))
    with pytest.raises(ScoresError, match=said):
        reading.n_layers(path)


def _model_with(keys: dict[str, object]) -> bytes:
    def text(content: str) -> bytes:
        return struct.pack("<Q", len(content)) + content.encode()

    def value(given: object) -> bytes:
        if isinstance(given, str):
            return struct.pack("<I", 8) + text(given)
        return struct.pack("<II", 4, given)

    named = {"general.architecture": "llama"} | {f"llama.{key}": given for key, given in keys.items()}
    content = b"GGUF" + struct.pack("<IQQ", 3, 1, len(named))
    content += b"".join(text(name) + value(given) for name, given in named.items())
    content += text("a.weight") + struct.pack("<IqIQ", 1, 8, 0, 0)
    return content + bytes(-len(content) % 32) + bytes(32)
