"""The exception tree: every leaf is caught as the package's own, and as Python's."""

from __future__ import annotations

import pytest

import headkv_local
from headkv_local import HeadKVError

TREE = {
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


@pytest.mark.parametrize(("name", "base"), TREE.items())
def test_an_error_is_caught_by_either_base(name: str, base: type[Exception]) -> None:
    error = getattr(headkv_local, name)
    for caught_as in (HeadKVError, base):
        with pytest.raises(caught_as, match="^the reason$"):
            raise error("the reason")


def test_a_full_context_is_a_matter_of_state() -> None:
    assert issubclass(headkv_local.ContextFullError, headkv_local.StateError)


def test_all_of_the_tree_is_listed_here_and_exported() -> None:
    # the tools have errors of their own
    ours = [e for e in HeadKVError.__subclasses__() if e.__module__ == "headkv_local.errors"]
    leaves = {error.__name__ for error in ours}
    leaves |= {"ContextFullError", "ScoresAbsentError"}
    assert leaves == set(TREE)
    assert leaves <= set(headkv_local.__all__)
