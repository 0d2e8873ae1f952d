"""Tasks of our suites for lm_eval: the same files, prompts and metrics as `headkv bench quality --suite`.

lm_eval loads this file by itself, so its imports are absolute.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from headkv_local import ArgumentError
from headkv_local.bench.suites import babilong, loogle, metrics
from headkv_local.bench.suites.item import Item
from headkv_local.wording import shown


def load(suite: str, task: str, data: object = None, length: object = None, **_: Any) -> dict[str, Any]:
    """The split "test". data: the folder of the suite's files. length: of BABILong, "4k", or 4096 tokens.
    From --metadata, so they may be any JSON.

    Raises ArgumentError where one of them is missing, or cannot be; DataError for files.
    """
    if data is None:
        raise ArgumentError(f"""{suite} needs its files: --metadata '{{"data": "DIR"}}'""")
    if not isinstance(data, str):
        raise ArgumentError(f"data of --metadata must be the name of a folder, not {shown(data)}")
    folder = Path(data)
    if suite == "babilong":
        if length is None:  # all of them would come to one score
            there = babilong.lengths_in(folder, task)
            raise ArgumentError(
                f"""babilong needs the length of its texts: --metadata '{{"data": "{data}", """
                f""""length": "{there[0]}"}}'; {folder} has {", ".join(there)}"""
            )
        items = babilong.items(folder, [task], [length])
    else:
        items = loogle.items(folder, [task])
    from datasets import Dataset

    return {"test": Dataset.from_list([asdict(item) for item in items])}


def text(doc: dict[str, Any]) -> str:
    return _item(doc).text


def judge(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return metrics.score(_item(doc), results[0])


def _item(doc: dict[str, Any]) -> Item:
    values: dict[str, Any] = {one.name: doc[one.name] for one in fields(Item)}
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
    return Item(**values)
