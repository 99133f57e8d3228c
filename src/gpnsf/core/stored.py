"""Entries of a file about a fit, read as data that may be damaged or hostile.

Each function takes one entry of a mapping and returns it in the type and shape asked for. Nothing
is looked up by a name from a file except in a closed list, and nothing is allocated before the
sizes have been held against arrays that exist.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

__all__ = [
    "array",
    "check_field",
    "flag",
    "modality_weights",
    "names",
    "number",
    "option",
    "problem",
    "record",
    "remedied",
    "text",
    "whole",
]

REMEDY = "Restore what the fit has written, every slot subset alike, or run `gpnsf.tl.fit` again"


def array(
    mapping: Mapping[str, object],
    key: str,
    shape: Sequence[int | None],
    *,
    low: float = -math.inf,
    high: float = math.inf,
    kinds: str = "fiu",
    nan: bool = False,
    where: str = "the record",
) -> np.ndarray:
    """A numeric array of a shape (None: any length above 0) with finite values in [low, high].

    ``nan`` lets NaN pass.
    """
    value, what = _array(_entry(mapping, key, where), key, where), f"{key!r} in {where}"
    if value.dtype.kind not in kinds:
        words = {"fiu": "numbers", "iu": "integers", "b": "booleans"}[kinds]
        raise TypeError(problem(f"{what} to hold {words}", f"dtype {value.dtype}"))
    if not _fits(value.shape, shape):
        wanted = str(tuple("any" if n is None else n for n in shape)).replace("'", "")
        raise ValueError(problem(f"{what} of shape {wanted}", str(value.shape)))
    bad = ~(np.isfinite(value) & (value >= low) & (value <= high)) & ~(np.isnan(value) & nan)
    if bad.any():
        rule = f"finite values in [{low:g}, {high:g}] for {what}"
        raise ValueError(
            problem(rule, f"{bad.sum()} of {bad.size} that are not, the first {value[bad][0]:g}")
        )
    return value


def number(
    mapping: Mapping[str, object],
    key: str,
    *,
    low: float,
    high: float = math.inf,
    where: str = "the record",
) -> float:
    """A finite number in [low, high]."""
    value, what = _scalar(_entry(mapping, key, where)), f"{key!r} in {where}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(problem(f"{what} to be a number", _shown(value)))
    if not math.isfinite(value) or not low <= value <= high:
        raise ValueError(
            problem(f"{what} to be a finite number in [{low:g}, {high:g}]", _shown(value))
        )
    return value


def whole(
    mapping: Mapping[str, object], key: str, *, low: int, high: int, where: str = "the record"
) -> int:
    """An integer in [low, high]."""
    value = number(mapping, key, low=low, high=high, where=where)
    if value != int(value):
        raise ValueError(problem(f"{key!r} in {where} to be an integer", _shown(value)))
    return int(value)


def flag(mapping: Mapping[str, object], key: str, *, where: str = "the record") -> bool:
    """True or False."""
    value = _scalar(_entry(mapping, key, where))
    if not isinstance(value, bool):
        raise TypeError(problem(f"{key!r} in {where} to be True or False", _shown(value)))
    return value


def text(mapping: Mapping[str, object], key: str, *, where: str = "the record") -> str | None:
    """A string or None."""
    value = _scalar(_entry(mapping, key, where))
    if value is not None and not isinstance(value, str):
        raise TypeError(problem(f"{key!r} in {where} to be a string or None", _shown(value)))
    return value


def option(
    mapping: Mapping[str, object], key: str, known: Iterable[str], *, where: str = "the record"
) -> str:
    """A string out of a closed list."""
    value, listed = text(mapping, key, where=where), list(known)
    if value is None or value not in listed:
        rule = f"{key!r} in {where} to be one of {', '.join(map(repr, listed))}"
        raise ValueError(problem(rule, _shown(value)))
    return value


def names(
    mapping: Mapping[str, object], key: str, *, unique: bool = True, where: str = "the record"
) -> list[str]:
    """One or more strings; no two alike if they are to be ``unique``."""
    value, what = _array(_entry(mapping, key, where), key, where), f"{key!r} in {where}"
    listed = np.atleast_1d(value).tolist()
    if value.ndim > 1 or not listed or not all(isinstance(name, str) for name in listed):
        raise TypeError(
            problem(f"{what} to hold strings", f"shape {value.shape} of dtype {value.dtype}")
        )
    if unique and len(set(listed)) < len(listed):
        twice = next(name for name in listed if listed.count(name) > 1)
        raise ValueError(
            problem(f"{what} to differ from one another", f"{_shown(twice)} more than once")
        )
    return listed


def record(
    mapping: Mapping[str, object], key: str, *, where: str = "the record"
) -> Mapping[str, object]:
    """A mapping."""
    value = _entry(mapping, key, where)
    if not isinstance(value, Mapping):
        raise TypeError(problem(f"{key!r} in {where} to be a mapping", type(value).__name__))
    return value


def modality_weights(mapping: Mapping[str, object]) -> dict[str, float]:
    """Weights of the modalities; none where the record has none."""
    if "modality_weights" not in mapping:
        return {}
    held = record(mapping, "modality_weights")
    where = "the weights of modalities"
    return {name: number(held, name, low=np.finfo(float).tiny, where=where) for name in held}


def check_field(state: Mapping[str, object], n_spatial: int) -> None:
    """Check the geometry of a field and its factors; its process is checked where it is rebuilt."""
    where = "the field"
    libraries = names(state, "libraries", where=where)
    n_dims = array(state, "centre", (len(libraries), None), where=where).shape[1]
    number(state, "scale", low=np.finfo(float).tiny, where=where)
    flag(state, "nonnegative", where=where)
    last = n_spatial - 1
    order = array(state, "order", (n_spatial,), kinds="iu", low=0, high=last, where=where)
    if len(set(order.tolist())) < n_spatial:
        rule = "'order' to name each spatial factor once"
        raise ValueError(problem(rule, str(order.tolist())))
    array(state, "factor_mean", (n_spatial,), low=1e-12, high=1e24, where=where)
    array(state, "nugget", (n_spatial,), low=0, high=1e24, where=where)
    if "mass" in state:  # factors are relative to totals
        n_factors = len(array(state, "mass", (None,), low=0, high=1e24, where=where))
        n_others = n_factors - n_spatial
        array(state, "others", (None, n_others), low=0, high=1e24, where=where)
        array(state, "others_mean", (n_others,), low=1e-12, high=1e24, where=where)
    if n_spatial:
        process = record(state, "process", where=where)
        shape = (len(libraries), n_spatial, n_dims)
        array(process, "slope", shape, where="the process of the field")


def _entry(mapping: Mapping[str, object], key: str, where: str) -> object:
    if key not in mapping:
        raise KeyError(
            problem(f"{key!r} in {where}", f"only {reprlib.repr([str(name) for name in mapping])}")
        )
    return mapping[key]


def _array(value: object, key: str, where: str) -> np.ndarray:
    """An array of what was stored; ragged lists are refused."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise TypeError(
            problem(f"{key!r} in {where} to be an array", type(value).__name__)
        ) from error


def _scalar(value: object) -> object:
    """A Python scalar where numpy holds one."""
    return value.item() if isinstance(value, np.generic | np.ndarray) and value.size == 1 else value


def _fits(shape: tuple[int, ...], wanted: Sequence[int | None]) -> bool:
    """Whether lengths are those wanted; the free ones above 0."""
    free = len(shape) == len(wanted)
    return free and all(m > 0 if n is None else n == m for m, n in zip(shape, wanted, strict=True))


def _shown(value: object) -> str:
    return f"{reprlib.repr(value)} of type {type(value).__name__}"


@contextmanager
def remedied(remedy: str) -> Iterator[None]:
    """Errors about what was stored end with another remedy than that for a fit."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise type(error)(str(error.args[0]).replace(REMEDY, remedy)) from None


def problem(rule: str, found: str) -> str:
    """Message of an error about what was stored: what holds, what was found, what to do."""
    return f"Expected {rule}; got {found}. {REMEDY}."
