"""The model of lm-evaluation-harness: its arguments, what it reads, and requests where lm_eval is there."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from headkv_local import ArgumentError, Llama, Retention
from headkv_local.cli import main
from headkv_local.eval.reader import Reader
from headkv_local.eval.settings import parse
from headkv_local.eval.tasks import suites
from headkv_local.tokens import log_softmax

FILLER = "It rained all day long, and nobody came to see the old house. " * 12
ASKED = "\nQuestion: {}?"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"budgets": "5%"}, "'budgets' is no argument of headkv; those there are: model, budget"),
        ({"scores": "uniform"}, "without a budget everything is kept"),
        ({"budget": "5%", "chosen": "later", "split": "x"}, "chosen must be with, before or anew"),
        ({"budget": "5%", "chosen": "anew"}, "chosen=anew needs split=TEXT"),
        ({"budget": "much"}, "budget must be"),
        ({"type_k": "q2_k"}, "type_k must be one of"),
        ({"type_v": ["f16"]}, "type_v must be one of"),
        ({"model": 7}, "model must be the path of a file, not 7: give ./7"),
        ({"threads": "two"}, "threads must be a whole number of at least 1"),
        ({"truncate": "left"}, "truncate must be middle"),
        ({"batch_size": 8}, "batch_size must be 1"),
    ],
)
def test_arguments_that_cannot_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        parse(given)


def test_arguments_of_the_harness_are_let_through() -> None:
    settings = parse({"budget": 64, "batch_size": 1, "max_batch_size": None, "device": "cuda:0"})
    assert settings.retention == Retention(budget=64)
    assert parse({}).retention is None


def test_without_lm_eval_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["eval", "--model", "headkv"]) == 1
    err = capsys.readouterr().err
    assert "pip install 'headkv-local[eval]'" in err
    assert err.count("\n") == 1


def reader(model: Path, **given: Any) -> Reader:
    return Reader(parse({"model": str(model), "n_ctx": 1024, "threads": 1, **given}))


def test_what_does_not_fit_is_counted_or_cut_in_the_middle(tiny_path: Path) -> None:
    text = "begin " + FILLER * 4 + "end"
    one = reader(tiny_path)
    assert one.prompt(one.tokens(text), text, 100) is None
    assert one.costs.skipped == 1
    cut = reader(tiny_path, truncate="middle")
    tokens = cut.tokens(text)
    prompt = cut.prompt(tokens, text, 100)
    assert prompt is not None
    assert len(prompt.tokens) == 924
    assert (prompt.tokens[:462], prompt.tokens[462:]) == (tokens[:462], tokens[-462:])
    assert (cut.costs.skipped, cut.costs.truncated) == (0, 1)


def test_a_message_whose_middle_was_cut_out_asks_where_it_did(
    tiny_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut = reader(tiny_path, truncate="middle", budget=32)
    messages = [{"role": "user", "content": f"Who came to see the house?\n\n{FILLER * 4}"}]
    text = cut.llm.chat_prompt(messages)
    prompt = cut.prompt(cut.tokens(text, add_bos=False), text, 100)
    assert prompt is not None
    cut.read(prompt, messages)
    assert "what asks is not in the prompt" not in caplog.text
    (said,) = prompt.said(messages)
    assert said["content"].startswith("Who came to see the house?")
    assert len(said["content"]) < len(messages[0]["content"])


@pytest.mark.parametrize("filler", ["山の上の古い家には、もう誰も来ない。", "雨下了一整天。", "It rained. "])
def test_a_cut_leaves_whole_characters(
    tiny_path: Path, filler: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And a message that the template trims is found."""
    cut = reader(tiny_path, truncate="middle", budget=32)
    for n in range(200, 206):
        messages = [{"role": "user", "content": f"Who came?\n\n{filler * n}\n"}]
        text = cut.llm.chat_prompt([{**messages[0], "content": messages[0]["content"].strip()}])
        prompt = cut.prompt(cut.tokens(text, add_bos=False), text, 100 + n % 3)
        assert prompt is not None
        cut.read(prompt, messages)
    assert "what asks is not in the prompt" not in caplog.text


@pytest.mark.parametrize("chosen", ["with", "before", "anew"])
def test_each_question_is_read_as_if_it_were_the_only_one(tiny_path: Path, chosen: str) -> None:
    """Whatever came before: nothing is kept for another question."""
    texts = [FILLER + ASKED.format(what) for what in ("Who", "When", "Who")]

    def logits(one: Reader, text: str) -> Any:
        prompt = one.prompt(one.tokens(text), text, 8)
        assert prompt is not None
        assert 0 < len(prompt.tokens) - prompt.n_document < 40
        one.read(prompt, ())
        from headkv_local.tokens import logits_of

        found = logits_of(one.llm).copy()
        one.llm.eval([int(found.argmax())])  # an answer, which the next question must not see
        return found

    given = {"budget": 32, "scores": "uniform", "chosen": chosen, "split": "\nQuestion:"}
    together = reader(tiny_path, **given)
    found = [logits(together, text) for text in texts]
    for text, one in zip(texts, found, strict=True):
        assert logits(reader(tiny_path, **given), text) == pytest.approx(one, abs=1e-4)
    assert found[0] == pytest.approx(found[2], abs=1e-4)
    assert together.costs.kept_bytes == [32 * 4 * 2 * 64 * 2] * 3


def test_a_prompt_without_the_split_is_counted(tiny_path: Path) -> None:
    one = reader(tiny_path, budget=32, split="\nQuestion:", chosen="before")
    prompt = one.prompt(one.tokens(FILLER), FILLER, 8)
    assert prompt is not None
    one.read(prompt, ())
    assert one.costs.unsplit == 1
    assert one.costs.summary()["kept_bytes"] == 32 * 4 * 2 * 64 * 2


def test_a_long_question_chooses_nothing_once_its_document_is_compacted(tiny_path: Path) -> None:
    given = {"budget": 32, "scores": "uniform", "chosen": "before", "split": "\nQuestion:"}
    one = reader(tiny_path, n_ctx=8192, **given)
    text = FILLER + ASKED.format(FILLER * 4)
    prompt = one.prompt(one.tokens(text), text, 8)
    assert prompt is not None
    assert len(prompt.tokens) - prompt.n_document > 1100
    one.read(prompt, ())
    one.llm.eval([1, 1])
    assert one.llm.cache_stats().prompt_tokens == prompt.n_document
    for fold, folds in ((128, 128), ("off", None)):
        assert parse(given | {"fold": fold}).retention == Retention(budget=32, scores="uniform", fold=folds)
    assert parse(given | {"observe": "all"}).retention == Retention(
        budget=32, scores="uniform", fold=None, observe="all"
    )


def test_likelihoods_are_those_of_the_model(lm_eval: Any, tiny_path: Path) -> None:
    from lm_eval.api.instance import Instance

    from headkv_local.eval.model import HeadKVLM

    context, continuations = "The old house stands at", (" the river", " the mill")
    model = HeadKVLM(model=str(tiny_path), n_ctx=512, threads=1)
    found = model.loglikelihood(
        [Instance("loglikelihood", {}, (context, one), 0) for one in continuations], disable_tqdm=True
    )
    with Llama(tiny_path, n_ctx=512, logits_all=True, n_threads=1) as llm:
        for continuation, (total, greedy) in zip(continuations, found, strict=True):
            tokens = llm.tokenize((context + continuation).encode(), add_bos=True)
            n_context = len(llm.tokenize(context.encode(), add_bos=True))
            llm.reset()
            llm.eval(tokens)
            scores = [log_softmax(llm.scores[i - 1]) for i in range(n_context, len(tokens))]
            expected = sum(float(one[t]) for one, t in zip(scores, tokens[n_context:], strict=True))
            assert total == pytest.approx(expected, abs=0.02)
            assert greedy == all(
                int(one.argmax()) == t for one, t in zip(scores, tokens[n_context:], strict=True)
            )
    assert all(math.isfinite(total) for total, _ in found)


def test_choices_that_do_not_fit_are_refused_or_all_cut_alike(
    lm_eval: Any, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first one alone would fit."""
    from lm_eval.api.instance import Instance

    from headkv_local.eval.model import HeadKVLM

    def requests(model: HeadKVLM) -> list[Any]:
        text = next(t for i in range(len(FILLER)) if len(model.tok_encode(t := FILLER[:i])) == 490)
        return [Instance("loglikelihood", {}, (text.strip(), one), 0) for one in (" a", " a" * 40)]

    model = HeadKVLM(model=str(tiny_path), n_ctx=512, threads=1)
    said = r"do not fit into the context of 512: give truncate=middle, or a larger n_ctx"
    with pytest.raises(ArgumentError, match=said):
        model.loglikelihood(requests(model), disable_tqdm=True)
    assert model.get_model_info()["headkv"]["prompts"] == 0

    cut = HeadKVLM(model=str(tiny_path), n_ctx=512, threads=1, truncate="middle")
    read = []
    original = cut._reader.read
    monkeypatch.setattr(
        cut._reader, "read", lambda p, known, again: (read.append(p.tokens), original(p, known, again))
    )
    found = cut.loglikelihood(requests(cut), disable_tqdm=True)
    assert read[0] == read[1]
    assert len(read[0]) == 512 - 40
    assert all(math.isfinite(total) for total, _ in found)
    assert (cut._reader.costs.prompts, cut._reader.costs.truncated) == (1, 1)


def test_a_message_whose_middle_was_cut_out_asks_before_continuations_too(
    lm_eval: Any, tiny_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """lm_eval takes blanks off a context's end, such as the template's line end, and puts them behind it."""
    from lm_eval.api.instance import Instance

    from headkv_local.eval.model import HeadKVLM

    model = HeadKVLM(model=str(tiny_path), n_ctx=1024, threads=1, truncate="middle", budget=32)
    model.chat_template(True)
    for n in range(200, 206):
        content = "Who came?\n\n" + "".join(f"{i} came. " for i in range(n))
        text = model.apply_chat_template([{"role": "user", "content": content}])
        assert text != text.rstrip()
        model.loglikelihood([Instance("loglikelihood", {}, (text, "No"), 0)], disable_tqdm=True)
    assert model.get_model_info()["headkv"]["truncated"] == 6
    assert "what asks is not in the prompt" not in caplog.text


@pytest.mark.parametrize("chosen", ["with", "before", "anew"])
def test_a_context_is_one_prompt_however_many_continuations_it_has(
    lm_eval: Any, tiny_path: Path, chosen: str
) -> None:
    """And its tokens are those that were evaluated: of a document that two questions share, once."""
    from lm_eval.api.instance import Instance

    from headkv_local.eval.model import HeadKVLM

    given = {"budget": 32, "scores": "uniform", "chosen": chosen, "split": "\nQuestion:"}
    model = HeadKVLM(model=str(tiny_path), n_ctx=1024, threads=1, **given)
    contexts = [FILLER + ASKED.format(who) for who in ("Who", "When")] + ["No split is here." + 20 * " None."]
    requests = [
        Instance("loglikelihood", {}, (text, f" {answer}"), 0) for text in contexts for answer in "abcd"
    ]
    model.loglikelihood(requests, disable_tqdm=True)
    costs = model.get_model_info()["headkv"]
    assert (costs["prompts"], costs["unsplit"]) == (3, 1)
    first, second, third = (len(model.tok_encode(text)) for text in contexts)
    asked = [len(model.tok_encode(text)) - len(model.tok_encode(FILLER)) for text in contexts[:2]]
    expected = {
        "with": first + second + third,
        "before": len(model.tok_encode(FILLER)) + 4 * sum(asked) + third,
        "anew": first + asked[1] + third,
    }
    once_more = 2 * 3 if chosen == "anew" else 0  # the last token, where a question chooses again
    assert costs["prompt_tokens"] == expected[chosen] + once_more


def test_sampling_is_what_was_asked_for(
    lm_eval: Any, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.api.instance import Instance

    from headkv_local.eval.model import HeadKVLM

    def answers(seed: int, **options: Any) -> list[str]:
        random.seed(seed)  # as lm_eval does before it makes the model
        model = HeadKVLM(model=str(tiny_path), n_ctx=512, threads=1)
        given: list[dict[str, Any]] = []
        original = model._llm.sample
        monkeypatch.setattr(model._llm, "sample", lambda **all: (given.append(all), original(**all))[1])
        requests = [Instance("generate_until", {}, ("The old house", options), i) for i in range(2)]
        found = model.generate_until(requests, disable_tqdm=True)
        cut = {"temp": 1.0, "top_k": options.get("top_k", 0), "top_p": 1.0, "min_p": 0.0}
        assert given == [cut] * len(given)
        assert bool(given) == bool(options.get("temperature"))
        assert model._reader.costs.answer_tokens <= 2 * options["max_completion_tokens"]
        return found

    options = {"temperature": 1.0, "max_completion_tokens": 8}
    first = answers(1, **options)
    assert first[0] != first[1]
    assert answers(1, **options) == first
    assert answers(2, **options) != first
    assert len(set(answers(1, **options, top_k=1))) == 1
    assert len(set(answers(1, max_completion_tokens=8))) == 1


def test_a_templates_name_is_refused(lm_eval: Any, tiny_path: Path) -> None:
    from headkv_local.eval.model import HeadKVLM

    model = HeadKVLM(model=str(tiny_path), n_ctx=512)
    with pytest.raises(ArgumentError, match="--apply_chat_template takes no name, such as 'rag'"):
        model.chat_template("rag")
    assert "<|im_start|>" in model.chat_template(True)


@pytest.mark.parametrize("option", ["--include_path", "--include"])
def test_a_users_tasks_stand_beside_ours(
    lm_eval: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "task: my_own_task\ndataset_path: json\noutput_type: generate_until\n"
    )
    names = "my_own_task,headkv_babilong_qa1,headkv_no_such"
    assert main(["eval", "validate", "--tasks", names, option, str(tmp_path)]) == 1
    assert capsys.readouterr().out.endswith("Tasks not found: headkv_no_such\n")


def test_a_run_of_the_harness(
    lm_eval: Any, tiny_path: Path, babilong: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *("eval", "--model", "headkv", "--tasks", "headkv_babilong_qa1", "--apply_chat_template"),
        *("--model_args", f"model={tiny_path},budget=10%,scores=uniform,n_ctx=2048,threads=1"),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
    ]
    metadata = json.dumps({"data": str(babilong), "length": "1k"})
    assert main([*arguments, "--metadata", metadata]) == 0
    assert "headkv_babilong_qa1" in capsys.readouterr().out
    (path,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(path.read_text())
    assert found["results"]["headkv_babilong_qa1"]["babilong,none"] in (0.0, 0.5, 1.0)
    told = found["config"]["headkv"]
    assert told["prompts"] == 2
    assert told["kept_shares"] == pytest.approx(0.1, abs=0.01)
    assert told["kept_bytes"] > 0
    assert told["answer_tokens_per_second"] > 0

    data = babilong / "1k" / "qa1.jsonl"
    data.write_text(data.read_text().replace('office"}', 'moon"}'))
    assert main([*arguments, "--metadata", metadata]) == 1
    err = capsys.readouterr().err
    assert "qa1.jsonl, line 1: 'target' must be of bathroom" in err.strip().split("\n")[-1]
    assert main(arguments) == 2
    assert "babilong needs its files" in capsys.readouterr().err


def test_the_length_of_babilong_is_asked_for(babilong: Path) -> None:
    """All lengths would come to one score."""
    shutil.copytree(babilong / "1k", babilong / "2k")
    with pytest.raises(ArgumentError, match=r'"length": "1k"}\'; .*/data has 1k, 2k$'):
        suites.load("babilong", "qa1", str(babilong))


def test_metadata_may_be_any_json(lm_eval: Any, babilong: Path) -> None:
    folder = str(babilong)
    for length in ("1k", 1024):
        assert len(suites.load("babilong", "qa1", folder, length)["test"]) == 2
    for data, length, said in (
        (5, "1k", "data of --metadata must be the name of a folder, not 5"),
        (folder, ["1k"], r"BABILong has no length \['1k'\]: 0k, 1k"),
        (folder, False, "BABILong has no length False: 0k, 1k"),
    ):
        with pytest.raises(ArgumentError, match=said):
            suites.load("babilong", "qa1", data, length)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"repetition_penalty": 1.9},
            "repetition_penalty=1.9 has no effect here; known are until, max_gen_toks",
        ),
        ({"num_beams": 4}, "num_beams=4 has no effect"),
        ({"foo": "bar"}, "foo='bar' has no effect"),
        ({"max_gen_toks": 0}, "max_gen_toks must be at least 1, not 0"),
        ({"max_new_tokens": -3}, "max_gen_toks must be at least 1, not -3"),
        ({"until": [5]}, "until must be a text or a list of texts"),
        ({"temperature": "warm"}, "could not convert"),
        ({"temperature": -1.0}, "temperature cannot be -1.0"),
        ({"temperature": math.inf}, "temperature cannot be inf"),
        ({"top_p": 1.5}, "top_p cannot be 1.5"),
        ({"top_k": 2.7}, "top_k cannot be 2.7"),
        ({"do_sample": 1}, "do_sample must be true or false, not 1"),
    ],
)
def test_what_an_answer_cannot_be_asked_for(
    lm_eval: Any, tiny_path: Path, given: dict[str, Any], said: str
) -> None:
    """The results would say that it had been done. Nothing is read before."""
    from lm_eval.api.instance import Instance

    from headkv_local.eval.model import HeadKVLM

    model = HeadKVLM(model=str(tiny_path), n_ctx=512, threads=1)
    requests = [
        Instance("generate_until", {}, ("Who?", one), 0) for one in ({"until": []}, {"until": []} | given)
    ]
    with pytest.raises(ArgumentError, match=re.escape(said)):
        model.generate_until(requests, disable_tqdm=True)
    assert model.get_model_info()["headkv"]["prompts"] == 0


def test_numbers_of_other_kinds_are_numbers(lm_eval: Any, tiny_path: Path) -> None:
    from lm_eval.api.instance import Instance

    from headkv_local.eval.model import HeadKVLM

    model = HeadKVLM(model=str(tiny_path), n_ctx=512, threads=1)
    given = {"until": None, "max_gen_toks": 2, "temperature": "0.8", "top_k": 40.0, "top_p": "0.9"}
    for others in ({}, {"top_k": -1, "repetition_penalty": None}):
        requests = [Instance("generate_until", {}, ("Who?", given | others), 0)]
        assert len(model.generate_until(requests, disable_tqdm=True)) == 1


def test_an_empty_prompt_is_answered(lm_eval: Any, tiny_path: Path) -> None:
    """As a continuation of nothing is compared: behind the token that texts begin with."""
    from lm_eval.api.instance import Instance

    from headkv_local.eval.model import HeadKVLM

    model = HeadKVLM(model=str(tiny_path), n_ctx=512, threads=1)
    neutral = {"until": None, "max_gen_toks": 3, "num_beams": 1, "repetition_penalty": 1.0}
    requests = [Instance("generate_until", {}, (text, neutral), 0) for text in ("", "<|endoftext|>")]
    empty, begun = model.generate_until(requests, disable_tqdm=True)
    assert empty == begun
    assert model.get_model_info()["headkv"]["prompts"] == 2
