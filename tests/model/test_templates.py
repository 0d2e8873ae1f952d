"""Chat templates: what was asked is in the prompt, and the next turn goes on from the compacted one."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from architectures import VARIANTS
from headkv_local import ArgumentError, Cancelled, CancelToken, Llama, ModelError, Retention
from headkv_local._core import templates

Load = Callable[..., Llama]
LOOP = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n<TEXT><|im_end|>\n{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PARTS = "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
ONLY = (
    "{% for m in messages if m['role'] in ROLES %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
)
HISTORY = [
    {"role": "system", "content": "Be brief, please."},
    {"role": "user", "content": 'A "first"\n\nquestion: ä <b>'},
    {"role": "assistant", "content": "<think>so</think>An answer."},
    {"role": "user", "content": "  And a second one? /no_think\n"},
]
NO_THOUGHTS = "{{ m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'] }}"


def loop(text: str) -> str:
    return LOOP.replace("<TEXT>", text) + OPEN


@pytest.fixture
def prompt_of(load: Load, tiny: Callable[..., Path]) -> Callable[..., str]:
    """The prompt that a model with this template has read of these messages."""

    def prompt_of(template: str, messages: Any, **arguments: Any) -> str:
        llm = load(tiny(chat_template=template), retention=Retention(budget=64))
        llm.create_chat_completion(messages, max_tokens=1, temperature=0.0, **arguments)
        return llm.detokenize(llm.input_ids[: llm.n_tokens].tolist(), special=True).decode(errors="replace")

    return prompt_of


WHOLE = {
    "as it is": loop("{{ m['content'] }}"),
    "trimmed": loop("{{ m['content'] | trim }}"),
    "parts": loop(PARTS),
    "either": loop("{% if m['content'] is string %}{{ m['content'] }}{% else %}" + PARTS + "{% endif %}"),
    "as JSON": loop("{{ m['content'] | tojson }}"),
    "upper case": loop("{{ m['content'] | upper }}"),
    "no thoughts": loop(NO_THOUGHTS),
    "no system role": NO_SYSTEM + loop("{{ m['content'] }}"),
    "no system role, parts": NO_SYSTEM + loop(PARTS),
    "system dropped": ONLY.replace("ROLES", "['user', 'assistant']"),
    "none": "",
    "switches taken out": loop("{{ m['content'].replace('/no_think', '').strip() }}"),
    "first parts only": loop("{{ m['content'] if m['content'] is string else m['content'][0]['text'] }}"),
}


@pytest.mark.parametrize("template", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("given", ["text", "parts"])
def test_all_of_a_chat_is_in_its_prompt(prompt_of: Callable[..., str], template: str, given: str) -> None:
    messages = HISTORY
    if given == "parts":
        messages = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in HISTORY]
        messages[1]["content"] = [
            {"type": "text", "text": text} for text in HISTORY[1]["content"].split("\n\n")
        ]
    prompt = prompt_of(template, messages).casefold()
    for message in HISTORY:
        for text in message["content"].split("</think>")[-1].replace("/no_think", "").split("\n\n"):
            text = text.strip().casefold()
            assert text in prompt or json.dumps(text, ensure_ascii=False)[1:-1] in prompt
    assert "'type'" not in prompt
    assert prompt.count("question: ä") == 1


class Searched(str):
    """Counts the characters that are looked through in it, whatever becomes of it."""

    n_seen = 0

    def find(self, text: str, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        found = super().find(text, start, end)
        Searched.n_seen += (min(len(self), len(self) if end is None else end) if found < 0 else found) - start
        return found

    def __contains__(self, text: object) -> bool:
        return self.find(str(text)) >= 0

    def casefold(self) -> Searched:
        return Searched(super().casefold())


def systems_first(messages: list[dict[str, Any]]) -> str:
    """As JSON, so that no text is found as it is."""
    ordered = sorted(messages, key=lambda m: str(m["role"]) != "system")
    return Searched("".join(f"<{m['role']}>{json.dumps(m['content'])}" for m in ordered))


def test_many_messages_are_looked_for_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = templates._bare
    monkeypatch.setattr(templates, "_bare", lambda text: Searched(bare(text)))
    messages = [{"role": "user", "content": f'"{i}"'} for i in range(2000)]
    messages[::7] = [m | {"role": "system"} for m in messages[::7]]
    Searched.n_seen = 0
    form, prompt, _ = templates.fitted(messages, systems_first, "the template")
    assert form == messages
    assert Searched.n_seen < 40 * len(prompt)
    with pytest.raises(ModelError, match=r"a part of message 2000 \(user\): '\"1999\"'"):
        templates.fitted(messages, lambda form: systems_first(form).replace('"1999', '"1998'), "the template")


def test_a_chat_is_stopped_before_its_prompt_is_read() -> None:
    """While its messages are looked for in what the template writes."""
    stop, n_written = CancelToken(), 0

    def render(messages: list[dict[str, Any]]) -> str:
        nonlocal n_written
        n_written += 1
        stop.cancel()
        return ""

    with stop, pytest.raises(Cancelled):
        templates.fitted([{"role": "assistant", "content": "a"}], render, "the template")
    assert n_written <= 2


@pytest.mark.parametrize(
    ("template", "lost"),
    [
        (ONLY.replace("ROLES", "['system', 'assistant']"), r"message 2 \(user\): 'A \"first\" question"),
        (ONLY.replace("ROLES", "['system', 'user']"), r"message 3 \(assistant\)"),
        (loop("{{ m['contents'] }}"), r"message 1 \(system\): 'Be brief, please.'"),
        ("{{ messages[-1]['content'] }}", r"message \d \("),
        (loop("{{ m['content'][:12] }}"), r"a part of message 1 \(system\)"),
        (loop("{{ m['content'] if m['content'] | length < 20 else '' }}"), r"a part of message 2 \(user\)"),
    ],
)
def test_what_a_template_leaves_out_is_named(
    load: Load, tiny: Callable[..., Path], template: str, lost: str
) -> None:
    llm = load(tiny(chat_template=template))
    with pytest.raises(ModelError, match=f"^the model's chat template leaves out {lost}"):
        llm.create_chat_completion(HISTORY, max_tokens=1)
    assert llm.n_tokens == 0
    assert llm("hello", max_tokens=2)["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("template", "error", "sentence"),
    [
        ("{% for m in messages %}{{ m", ModelError, "is broken: TemplateSyntaxError: "),
        (
            "{{ nothing.there.is }}",
            ModelError,
            "is broken: UndefinedError: 'nothing' is undefined .completions work",
        ),
        ("{{ 1 + messages }}", ModelError, "is broken: TypeError: "),
        ("{{ raise_exception('roles must alternate') }}", ArgumentError, "refuses .*: roles must alternate"),
    ],
)
def test_a_broken_template_is_the_models(
    load: Load, tiny: Callable[..., Path], template: str, error: type[Exception], sentence: str
) -> None:
    llm = load(tiny(chat_template=template))
    for stream in (False, True):
        with pytest.raises(error, match=f"^the model's chat template {sentence}"):
            llm.create_chat_completion(HISTORY, max_tokens=1, stream=stream)
    assert llm("hello", max_tokens=2)["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    "chat_format", ["mistral-instruct", "llama-2", "chatml", "gemma", "zephyr", "alpaca"]
)
def test_formats_of_llama_cpp_lose_nothing_either(load: Load, tiny_path: Path, chat_format: str) -> None:
    llm = load(tiny_path, chat_format=chat_format)
    llm.create_chat_completion(HISTORY, max_tokens=1)
    prompt = llm.detokenize(llm.input_ids[: llm.n_tokens].tolist(), special=True).decode(errors="replace")
    assert all(m["content"].split("</think>")[-1].strip() in prompt for m in HISTORY)
    with pytest.raises(ArgumentError, match="chat_format: Invalid chat handler: nothing"):
        load(tiny_path, chat_format="nothing")


def test_pictures_are_refused(load: Load, tiny_path: Path) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    with pytest.raises(ArgumentError, match="message 1 has a part of type 'image_url'"):
        load(tiny_path).create_chat_completion([{"role": "user", "content": [picture]}])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("text", "is none: it must have a role, and a text or a list of parts: 'text'$"),
        ({"content": "text"}, "is none: it must have a role"),
        ({"role": "user", "content": "\ud83d"}, "has half a character"),
        ({"role": "user"}, r"\(user\) has no content: a text or a list of parts is needed$"),
        ({"role": "user", "content": None}, r"\(user\) has no content"),
        ({"role": "assistant", "content": None}, r"\(assistant\) has no content"),
        ({"role": "user", "content": []}, r"\(user\) is an empty list"),
        ({"role": "system", "content": 5}, r"\(system\) must be a text or a list of parts, not 5$"),
        ({"role": "user", "content": ["text"]}, r"\(user\) must have a type, such as 'text': 'text'$"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "[^:]* of type 'text', but has no text"),
        *(
            (
                {"role": "user", "content": [{"type": "text", "text": "a", "document": mark}]},
                r"\(user\) must be marked by true or false as a document",
            )
            for mark in ("false", "true", 1, 0, [])
        ),
    ],
)
def test_what_is_no_message_is_not_the_templates_fault(
    load: Load, tiny_path: Path, bad: Any, said: str
) -> None:
    llm = load(tiny_path)
    for ask in (llm.create_chat_completion, llm.chat_prompt):
        with pytest.raises(ArgumentError, match=f"message 2 {said}"):
            ask([HISTORY[1], bad])


@pytest.mark.parametrize("bad", [None, 5, "text", HISTORY[1]])
def test_messages_are_a_list(load: Load, tiny_path: Path, bad: Any) -> None:
    with pytest.raises(ArgumentError, match="^messages must be a list of chat messages, not "):
        load(tiny_path).create_chat_completion(bad)


def test_a_call_of_a_tool_needs_no_content(load: Load, tiny_path: Path) -> None:
    """As OpenAI's clients hand an answer back; templates would write "None"."""
    llm = load(tiny_path)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    called = {"role": "assistant", "tool_calls": [call]}
    prompts = {
        llm.chat_prompt([HISTORY[1], called | content, HISTORY[1]])
        for content in ({}, {"content": None}, {"content": ""})
    }
    assert len(prompts) == 1
    assert "None" not in prompts.pop()


def test_without_a_template_a_chat_is_plain_text_and_that_is_said_once(
    load: Load, tiny: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    llm = load(tiny(chat_template=""))
    assert llm("hello", max_tokens=1)["usage"]["completion_tokens"] == 1
    assert caplog.text == ""
    for _ in range(2):
        llm.create_chat_completion(HISTORY, max_tokens=1)
    prompt = llm.detokenize(llm.input_ids[: llm.n_tokens].tolist()).decode()
    assert prompt.startswith("Be brief, please.\nUser: A")
    assert prompt.endswith("one? /no_think\n\nAssistant:")
    (record,) = caplog.records
    assert (record.levelno, "no chat template" in record.message) == (logging.WARNING, True)


OPENED = {
    "nothing": ("", "{{ m['content'] }}"),
    "<think>": ("<think>\n", NO_THOUGHTS),
    "an empty block": ("<think>\n\n</think>\n\n", NO_THOUGHTS),
    "a blank": (" ", "{{ m['content'] | trim }}"),
}


@pytest.mark.parametrize(("opened", "text"), OPENED.values(), ids=OPENED)
def test_a_turn_reads_only_what_is_new(load: Load, tiny: Callable[..., Path], opened: str, text: str) -> None:
    template = LOOP.replace("<TEXT>", text) + OPEN.replace(
        "assistant\n", "assistant\n{{ '" + opened.replace("\n", "\\n") + "' }}"
    )
    reads: list[int] = []
    llm = load(
        tiny(chat_template=template),
        n_ctx=2048,
        retention=Retention(budget=64),
        on_prefill=lambda done, total: reads.append(total) if done == 0 else None,
    )
    messages = [{"role": "user", "content": "A line of the document. " * 30 + "What is it about?"}]
    masks = []
    for question in ("And then?", "Why?", "When?"):
        answer = llm.create_chat_completion(messages, max_tokens=8, temperature=0.0)
        masks.append(llm.retention_mask())
        assert llm.reread_reason is None
        assert answer["usage"]["prompt_tokens"] - llm.cache_stats().prompt_tokens >= 0
        prompt = llm.detokenize(llm.input_ids[: llm.n_tokens].tolist(), special=True)
        assert f"assistant\n{opened}".encode() in prompt
        messages += [
            {"role": "assistant", "content": "Because " + "it was so " * len(masks)},
            {"role": "user", "content": question},
        ]
    assert reads[0] > 500
    assert max(reads[1:]) < 100
    assert all((mask == masks[0]).all() for mask in masks)
    first = llm.create_chat_completion(messages, max_tokens=8, temperature=0.0)["choices"][0]["message"]
    again = llm.create_chat_completion(messages, max_tokens=8, temperature=0.0)["choices"][0]["message"]
    assert first == again


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen35"])
def test_the_same_chat_again_reads_what_answers_begin_with(
    load: Load, tiny: Callable[..., Path], name: str
) -> None:
    """No more of it, and nothing selects anew, though layers that cannot go back have gone far beyond."""
    opened = OPEN.replace("assistant\n", "assistant\n{{ '<think>\\n' }}")
    reads: list[int] = []
    llm = load(
        tiny(**VARIANTS[name], chat_template=LOOP.replace("<TEXT>", NO_THOUGHTS) + opened),
        n_ubatch=64,
        n_batch=64,
        retention=Retention(budget=64, archive="memory"),
        on_prefill=lambda done, total: reads.append(total) if done == 0 else None,
    )
    messages = [{"role": "user", "content": "A line of the document. " * 20 + "What is it about?"}]
    n_answer = 220 if name == "gemma3" else 20  # more than a window of 64 has spare cells
    asked: dict[str, Any] = {"max_tokens": n_answer, "temperature": 0.0}
    asked["logit_bias"] = {llm.token_eos(): -100.0}
    found = []
    for cancels in (False, False, True, False):
        answer = llm.create_chat_completion(messages, stream=cancels, **asked)
        if cancels:
            next(answer)
            answer.close()
            continue
        found.append((answer["choices"][0]["message"], llm.retention_mask().tolist()))
        assert llm.reread_reason is None
    assert reads[0] > 300
    assert 0 < max(reads[1:]) < 10
    assert found[1:] == found[:1] * 2


def test_the_same_again_after_an_answer_that_was_folded(
    load: Load, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Its prompt fits into the budget, and ends before what the template lets an answer begin with."""
    opened = OPEN.replace("assistant\n", "assistant\n{{ '<think>\\n' }}")
    path = tiny(chat_template=LOOP.replace("<TEXT>", NO_THOUGHTS) + opened)
    options: dict[str, Any] = {"n_ctx": 2048, "retention": Retention(budget=400, fold=64, archive="memory")}
    llm = load(path, **options)
    messages = [{"role": "user", "content": "What is it?"}]
    answer = {"max_tokens": 600, "temperature": 0.0, "logit_bias": {llm.token_eos(): -100.0}}
    for _ in range(2):
        llm.create_chat_completion(messages, **answer)
        stats = llm.cache_stats()
        assert stats.turn_tokens < stats.prompt_tokens
    llm.save_session(tmp_path / "s.headkv")
    with Llama.open_session(tmp_path / "s.headkv", n_threads=1, verbose=False) as other:
        assert other.cache_stats().turn_tokens == stats.turn_tokens


def test_a_whole_read_is_explained(load: Load, tiny: Callable[..., Path]) -> None:
    """A template that writes the system message before the last question, as some do."""
    template = (
        "{% for m in messages %}{% if loop.last %}SYSTEM{% endif %}{{ m['role'] }}: {{ m['content'] }}\n"
        "{% endfor %}assistant:"
    )
    llm = load(tiny(chat_template=template), retention=Retention(budget=64))
    messages = [{"role": "user", "content": "A line of the document. " * 20}]
    llm.create_chat_completion(messages, max_tokens=4)
    assert llm.reread_reason is None
    messages += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]
    llm.create_chat_completion(messages, max_tokens=4)
    assert "token 0 of " in str(llm.reread_reason)
    assert "the model's chat template writes messages in another way" in str(llm.reread_reason)
    llm.prefill([1, 2, 3])
    assert "template" not in str(llm.reread_reason)
    llm.reset()
    llm.prefill([4, 5, 6])
    assert llm.reread_reason is None


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    ("template", "given", "n_said"),
    [
        (loop("{{ m['content'] }}"), {"tools": TOOLS}, 1),
        (loop("{{ m['content'] }}"), {"tools": TOOLS, "tool_choice": TOOLS[0]}, 1),
        (loop("{{ m['content'] }}"), {"tools": TOOLS, "tool_choice": "none"}, 0),
        ("{{ tools | tojson }}" + loop("{{ m['content'] }}"), {"tools": TOOLS}, 0),
        ("{{ tools | length }}" + loop("{{ m['content'] }}"), {"tools": TOOLS}, 0),
    ],
)
def test_tools_that_a_template_does_not_tell(
    load: Load,
    tiny: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    template: str,
    given: dict[str, Any],
    n_said: int,
) -> None:
    llm = load(tiny(chat_template=template))
    for _ in range(2):  # said once
        llm.create_chat_completion([{"role": "user", "content": "Hello."}], max_tokens=4, **given)
    said = [record.message for record in caplog.records if record.name == "headkv_local"]
    assert said == ["the model's chat template knows no tools: the model is not told of them"] * n_said


def test_functions_are_no_tools(
    load: Load, tiny: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    llm = load(tiny(chat_template="{{ tools }}" + loop("{{ m['content'] }}")))
    functions = [TOOLS[0]["function"]]
    llm.create_chat_completion([{"role": "user", "content": "Hello."}], max_tokens=4, functions=functions)
    (record,) = (record for record in caplog.records if record.name == "headkv_local")
    assert "template knows `tools`, and no `functions`: the model is not told of them" in record.message


@pytest.mark.parametrize("content", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
def test_a_developer_is_a_system_where_a_template_knows_that(
    load: Load, tiny: Callable[..., Path], caplog: pytest.LogCaptureFixture, content: Any
) -> None:
    """As Qwen's does: it leaves out what it does not know."""
    known = loop("{% if m['role'] in ['system', 'user'] %}{{ m['role'] }}: {{ m['content'] }}\n{% endif %}")
    llm = load(tiny(chat_template=known))
    messages = [
        {"role": "system", "content": "You count."},
        {"role": "developer", "content": content},
        {"role": "user", "content": "Hello."},
    ]
    lines = re.findall("^[a-z]+: .*$", llm.chat_prompt(messages), re.MULTILINE)
    assert lines == ["system: You count.", "system: Be brief.", "user: Hello."]
    llm.create_chat_completion(messages, max_tokens=1)
    assert not [record for record in caplog.records if record.name == "headkv_local"]


def test_no_messages_are_refused(load: Load, tiny_path: Path) -> None:
    with pytest.raises(ArgumentError, match="^messages is an empty list: there is nothing to answer$"):
        load(tiny_path).create_chat_completion([])


def test_handlers_of_the_callers_own_get_the_messages_as_they_are(load: Load, tiny_path: Path) -> None:
    """Whatever they do: no prompt, two of them, tokens that nobody reads."""
    messages, seen = [{"role": "user", "content": [{"type": "image_url"}]}], []

    def handler(*, llama: Llama, messages: Any, **_: Any) -> Any:
        seen.append(
            (messages, len(llama.tokenize(b"ab")), llama("abc", max_tokens=1)["usage"]["prompt_tokens"])
        )
        return "canned"

    assert load(tiny_path, chat_handler=handler).create_chat_completion(messages) == "canned"
    assert [(given is messages, *numbers) for given, *numbers in seen] == [(True, 2, 3)]


def test_a_formatter_of_the_callers_own_is_checked(load: Load, tiny_path: Path) -> None:
    formatter = Jinja2ChatFormatter("{{ messages[0]['role'] }}", eos_token="", bos_token="")
    llm = load(tiny_path, chat_handler=formatter.to_chat_handler())
    with pytest.raises(ModelError, match="^the chat handler leaves out message 1"):
        llm.create_chat_completion(HISTORY, max_tokens=1)


def test_a_tokenizer_of_the_callers_own(tiny_path: Path) -> None:
    class Own(Llama):
        def tokenize(self, text: bytes, *_: Any, **__: Any) -> list[int]:
            return list(text)

    with Own(tiny_path, n_ctx=512, n_threads=1) as llm:
        usage = llm.create_chat_completion([{"role": "user", "content": "text"}], max_tokens=1)["usage"]
    assert usage["prompt_tokens"] == len("<|im_start|>user\ntext<|im_end|>\n<|im_start|>assistant\n")
