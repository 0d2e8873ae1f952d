"""JSON Lines, and JSON lists, of other people: each field is checked, errors name file, line and key."""

from __future__ import annotations

import ast
import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from headkv_local.errors import DataError
from headkv_local.wording import shown


class Row:
    """One object of a file. What it does not have, or has in another form, is a DataError."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self._fields, self.where = fields, where

    def __contains__(self, key: str) -> bool:
        return key in self._fields

    def text(self, key: str) -> str:
        value = self.value(key)
        if not isinstance(value, str):
            self.refuse(key, f"must be a text, not {shown(value, 60)}")
        return self._whole(key, value)

    def filled(self, key: str) -> str:
        """A text that is more than spaces."""
        if not (value := self.text(key)).strip():
            self.refuse(key, "is empty")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, with at least one."""
        value = self.value(key)
        if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
            self.refuse(key, f"must be a list of texts with at least one, not {shown(value, 60)}")
        return tuple(self._whole(key, one) for one in value)

    def texts_or_null(self, key: str) -> tuple[str, ...]:
        return () if self.value(key) is None else self.texts(key)

    def rows(self, key: str, name: str) -> list[Row]:
        """A list of objects. name: what one of them is."""
        value = self.value(key)
        if not isinstance(value, list):
            self.refuse(key, f"must be a list, not {shown(value, 60)}")
        return [_row(one, f"{self.where}, {name} {i}") for i, one in enumerate(value, 1)]

    def value(self, key: str) -> Any:
        if key not in self._fields:
            self.refuse(key, "is missing")
        return self._fields[key]

    def refuse(self, key: str, why: str) -> NoReturn:
        raise DataError(f"{self.where}: {key!r} {why}")

    def _whole(self, key: str, text: str) -> str:
        try:
            require_whole(text)
        except ValueError as error:
            self.refuse(key, str(error))
        return text


def rows(path: Path) -> Iterator[Row]:
    """The objects of a file: one a line, or all in one list. Raises DataError, OSError."""
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    found = False
    if data.lstrip()[:1] == b"[":
        for number, value in enumerate(_parsed(data, str(path)), 1):
            found = True
            yield _row(value, f"{path}, item {number}")
        data = b""
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            found, where = True, f"{path}, line {number}"
            yield _row(_parsed(line, where), where)
    if not found:
        raise DataError(f"{path} is empty")


def whole(path: Path) -> Row:
    """The one object of a file. Raises DataError, OSError."""
    return _row(_parsed(path.read_bytes(), str(path)), str(path))


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads(object_pairs_hook=). ValueError for a key that is there twice: which one counts?"""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key, 60)} is there twice")
        found[key] = value
    return found


def require_whole(text: str) -> None:
    """Raises ValueError for a text with half of a surrogate pair: JSON can write it, but it has no tokens."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half of a character, {text[error.start]!a}") from error


def literal(text: str) -> Any:
    """A value as Python writes it. ValueError for anything else."""
    try:
        return ast.literal_eval(text)
    except (TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from error


def found_tasks(
    folder: Path, wanted: tuple[str, ...] | None, known: tuple[str, ...], path_of: Any, layout: str
) -> dict[str, Path]:
    """The file of each task: of all that are wanted, or of those that are there.

    path_of: makes a Path or None of a task. layout: how files would be named, for the sentence.
    Raises DataError where one that is wanted is missing, or none is there.
    """
    require_folder(folder)
    files = {task: path_of(task) for task in wanted or known}
    missing = [task for task, path in files.items() if path is None]
    if len(missing) == len(files) or (wanted and missing):
        raise DataError(f"{folder} has no {missing[0]}: {layout}")
    return {task: path for task, path in files.items() if path is not None}


def require_folder(path: Path) -> None:
    if not path.is_dir():
        raise DataError(f"{path} is not a folder")


def first_file(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be a JSON object, not {shown(value, 60)}")
    return Row(value, where)


def _parsed(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # of UTF-8 too
        raise DataError(f"{where}: is no JSON: {error}") from error
