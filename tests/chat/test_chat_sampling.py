from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from gguf_factory import TinyModel
from headkv_local.chat.model import ChatLlama, load_model
from headkv_local.chat.options import Options
from headkv_local.chat.sampling import Sampling, choose_sampling

QWEN = {
    "general.sampling.temp": "0.700000",
    "general.sampling.top_k": "20",
    "general.sampling.top_p": "0.8",
    "general.sampling.min_p": "0",
    "general.sampling.penalty_repeat": "1.1",
    "general.sampling.penalty_last_n": "-1",
    "general.sampling.sequence": "top_k;temp",
}


def test_the_model_recommends() -> None:
    wanted = Sampling(temp=0.7, top_k=20, top_p=0.8, min_p=0.0, repeat_penalty=1.1, repeat_last_n=-1)
    assert choose_sampling(Options(), QWEN) == wanted


def test_without_a_recommendation_ours_hold() -> None:
    assert choose_sampling(Options(), {"general.name": "x"}) == Sampling()
    assert Sampling().temp > 0


def test_the_user_decides() -> None:
    asked = choose_sampling(Options(temp=1.0, top_k=5, top_p=0.5, min_p=0.1, repeat_penalty=1.0), QWEN)
    assert asked == Sampling(temp=1.0, top_k=5, top_p=0.5, min_p=0.1, repeat_penalty=1.0, repeat_last_n=-1)


def test_temperature_0_is_greedy_whatever_the_model_recommends() -> None:
    mirostat = QWEN | {"general.sampling.mirostat": "2"}
    arguments = choose_sampling(Options(temp=0.0), mirostat).arguments()
    assert arguments["temperature"] == 0
    assert arguments["repeat_penalty"] == 1
    assert arguments["mirostat_mode"] == 0
    assert choose_sampling(Options(temp=0.0, repeat_penalty=1.2), QWEN).repeat_penalty == 1.2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temp", "-1"),
        ("temp", "nan"),
        ("temp", ""),
        ("top_p", "7"),
        ("top_k", "1e30"),
        ("mirostat", "9"),
        ("penalty_last_n", str(2**31 - 1)),
    ],
)
def test_a_recommendation_that_cannot_be_is_none(key: str, value: str) -> None:
    assert choose_sampling(Options(), {f"general.sampling.{key}": value}) == Sampling()


def test_a_file_that_recommends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_header = gguf.GGUFWriter.write_header_to_file

    def with_keys(writer: gguf.GGUFWriter) -> None:
        writer.add_float32("general.sampling.temp", 0.7)
        writer.add_int32("general.sampling.top_k", 20)
        writer.add_int32("general.sampling.penalty_last_n", -1)
        write_header(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_keys)
    path = TinyModel().write(tmp_path / "model.gguf")
    with load_model(str(path), Options(threads=1, ctx=256, budget=None), None) as llm:
        assert isinstance(llm, ChatLlama)
        assert (llm.sampling.temp, llm.sampling.top_k) == (0.7, 20)
        assert llm.last_n_tokens_size == 256  # -1: the whole context
