"""Options of `headkv bench quality` that do not go together, with a suite and without one."""

from __future__ import annotations

import argparse

from ...errors import ArgumentError
from .names import BABILONG, LONGBENCH, LOOGLE, RULER, RULER_QA, TASKS

_ONLY_HERE = ("data", "results", "context", "truncate_middle", "chosen")
_NOT_HERE = ("wordings", "haystacks", "question")


def refuse_without_suite(options: argparse.Namespace) -> None:
    for name in _ONLY_HERE:
        if getattr(options, name):
            raise ArgumentError(f"--{name.replace('_', '-')} goes with --suite")


def check(options: argparse.Namespace) -> None:
    """Raises ArgumentError for options that do not go with this suite."""
    for name in _NOT_HERE:
        if getattr(options, name) != options.default_of(name):
            raise ArgumentError(f"--{name} does not go with --suite, whose questions are worded already")
    known = TASKS[options.suite]
    for task in options.tasks or ():
        if task not in known:
            raise ArgumentError(f"{task!r} is no task of {options.suite}: {', '.join(known)}")
    if options.suite == RULER:
        _check_ruler(options)
    elif options.data is None:
        raise ArgumentError(f"--suite {options.suite} needs --data DIR, the folder of its files")
    if options.lengths and options.suite in (LONGBENCH, LOOGLE):
        raise ArgumentError(f"--lengths does not go with --suite {options.suite}, whose texts have their own")
    if options.suite == BABILONG:
        from . import babilong

        for length in options.lengths or ():
            babilong.name_of(length)


def _check_ruler(options: argparse.Namespace) -> None:
    if options.truncate_middle:
        raise ArgumentError("--truncate-middle does not go with ruler: it could cut out what is asked for")
    of_files = [task for task in options.tasks or () if task in RULER_QA]
    if of_files and options.data is None:
        raise ArgumentError(
            f"{of_files[0]} of ruler needs --data DIR, the folder of the set that it asks about"
        )
    if options.data is not None and options.tasks and not of_files:
        raise ArgumentError(
            f"--data does not go with these tasks, which are made on the spot: only {' and '.join(RULER_QA)} "
            "read files"
        )
