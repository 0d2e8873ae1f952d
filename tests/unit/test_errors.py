"""The exception tree: each error is caught as the package's own, and as Python's."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import headkv_local
from headkv_local import HeadKVError, errors

EXPORTED = {
    "ArgumentError": ValueError,
    "UnsupportedError": NotImplementedError,
    "StateError": RuntimeError,
    "OutOfMemoryError": MemoryError,
    "ContextFullError": ValueError,
    "Cancelled": HeadKVError,
    "ModelError": ValueError,
    "LibraryConflictError": ImportError,
    "ScoresError": ValueError,
    "ScoresAbsentError": ValueError,
    "InternalError": RuntimeError,
    "ArchiveError": OSError,
    "SessionError": OSError,
}
TREE = EXPORTED | {
    "DataError": ValueError,
    "SchemaError": ValueError,
    "GrammarError": ValueError,
    "ToolChoiceError": ValueError,
    "EncoderError": NotImplementedError,
    "TemplateError": ValueError,
    "AdapterError": RuntimeError,
    "LoadMemoryError": ValueError,
    "DecodeMemoryError": RuntimeError,
    "BatchError": RuntimeError,
    "TokensError": TypeError,
    "StateMismatchError": KeyError,
}


@pytest.mark.parametrize(("name", "base"), TREE.items())
def test_an_error_is_caught_by_either_base(name: str, base: type[Exception]) -> None:
    error = getattr(errors, name)
    more = " (completions work without it)" if name == "TemplateError" else ""
    for caught_as in (HeadKVError, base):
        with pytest.raises(caught_as, match=f"^the reason{re.escape(more)}$"):
            raise error("the reason")


def test_a_full_context_is_a_matter_of_state() -> None:
    assert issubclass(headkv_local.ContextFullError, headkv_local.StateError)


def test_all_of_the_tree_is_listed_here_and_what_is_caught_by_name_is_exported() -> None:
    # the tools have errors of their own
    ours = {e.__name__ for e in below(HeadKVError) if e.__module__ == "headkv_local.errors"}
    assert ours == set(TREE)
    assert ours & set(headkv_local.__all__) == set(EXPORTED)
    direct = {e.__name__ for e in HeadKVError.__subclasses__() if e.__module__ == "headkv_local.errors"}
    assert direct <= set(EXPORTED)


def below(error: type[Exception]) -> Iterator[type[Exception]]:
    for one in error.__subclasses__():
        yield one
        yield from below(one)
