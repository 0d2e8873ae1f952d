"""What a Retention is given, and a Llama to override: checked, and as Python's own numbers. ArgumentError for
what can never work."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ArgumentError
from .settings import ALL, DEFAULT_BUDGET, INT32_MAX
from .wording import shown


def budget_of(budget: object) -> int | str:
    if isinstance(budget, str):
        return budget
    if budget is None:
        return DEFAULT_BUDGET
    if not isinstance(budget, int | np.integer) or isinstance(budget, bool):
        raise ArgumentError(
            "budget must be an int (mean entries per KV head), a percentage of the prompt such as '5%' "
            f"or a size of what is kept such as '64MiB', not {budget!r}"
        )
    if not -INT32_MAX <= budget <= INT32_MAX:
        raise ArgumentError(f"budget must be at most {INT32_MAX} entries per KV head, not {budget}")
    return int(budget)


def beta_of(beta: object) -> float:
    with suppress(OverflowError):
        if isinstance(beta, Real):
            return float(beta)
    raise ArgumentError(f"beta must be a finite number above 1, not {beta!r}")


def int_of(name: str, value: object, least: int) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name} must be an int of at least {least}, not {value!r}")
    if value > INT32_MAX:
        raise ArgumentError(f"{name} must be at most {INT32_MAX}, not {value}")
    return int(value)


def observe_of(value: object) -> int | str:
    if isinstance(value, str) and value == ALL:
        return ALL
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ArgumentError(f'observe must be an int of at least 1 or "{ALL}", not {value!r}')
    return int_of("observe", value, 1)


def path_of(path: str | os.PathLike[str]) -> str:
    """As it is from any folder: a session may be opened in another one."""
    return os.path.abspath(os.fsdecode(path))


def numbers(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    try:
        return np.array(values).astype(np.float64, casting="same_kind")  # complex numbers are none of these
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name} must be an array of numbers: {error}") from error


def floats(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """What is too large for a float32 is infinite then."""
    with np.errstate(over="ignore"):
        return np.array(numbers(name, values), dtype=np.float32, order="C")


def scores_of(scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = numbers("scores", scores)
    if array.ndim != 2 or array.size == 0:
        raise ArgumentError(f"scores must have the shape (n_layer, n_head), not {array.shape}")
    if not np.isfinite(array).all() or array.min() < 0 or array.max() == 0:
        raise ArgumentError("scores must be finite and not negative, and at least one must be above 0")
    array.setflags(write=False)
    return array


def require_wide(caps: npt.NDArray[Any], window: int) -> None:
    if caps.min() < window or caps.max() > INT32_MAX:
        bad = caps.min() if caps.min() < window else caps.max()
        raise ArgumentError(f"every cap must be from the window of {window} to {INT32_MAX}, not {bad}")


def caps_of(caps: npt.ArrayLike, window: int) -> npt.NDArray[np.int64]:
    try:
        array = np.array(caps)
    except ValueError as error:
        raise ArgumentError(f"caps must be an int array: {error}") from error
    if array.ndim != 2 or array.size == 0:
        raise ArgumentError(f"caps must have the shape (n_layer, n_head_kv), not {array.shape}")
    if array.dtype.kind not in "iu":
        raise ArgumentError(f"caps must be ints, not {array.dtype}")
    # KV heads that a layer does not have are 0, after its own; some layer has all
    absent = np.flip(np.cumsum(np.flip(array, axis=1) != 0, axis=1) == 0, axis=1)
    there = array.ravel() if absent[:, 0].any() or absent.any(axis=1).all() else array[~absent]
    require_wide(there, window)
    array = array.astype(np.int64)
    array.setflags(write=False)
    return array


def require_overrides(found: object) -> None:
    """The kv_overrides that llama.cpp has room for."""
    if not isinstance(found, Mapping):
        raise ArgumentError(f"kv_overrides must be a dict, not {shown(found)}")
    for name, value in found.items():
        try:
            usable = (type(name) is str and 0 < len(name.encode()) < 128) and (
                type(value) is bool
                or (type(value) is int and -(2**63) <= value < 2**63)
                or (type(value) is float and math.isfinite(value))
                or (type(value) is str and len(value.encode()) < 128)
            )
        except UnicodeEncodeError:
            usable = False
        if not usable:
            raise ArgumentError(f"kv_overrides cannot hold {shown({name: value})}")
