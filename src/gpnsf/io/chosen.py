"""Which factors and features a user means."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from gpnsf.checks import choices, problem

__all__ = ["Factors", "factor_indices", "feature_indices", "first_names", "listed"]

NAMED = 3  # in a message

Factors: TypeAlias = str | int | Sequence[str | int] | None


def factor_indices(names: np.ndarray, factors: Factors, *, where: str) -> np.ndarray:
    """Positions of factors that are named or numbered, in the order asked for; all of them for None."""
    if factors is None:
        return np.arange(names.size)
    wanted = [_name(names, factor) for factor in listed(factors, "factors")]
    choices(wanted, names, what="factors", where=where)
    if len(set(wanted)) < len(wanted):
        twice = next(name for name in wanted if wanted.count(name) > 1)
        rule, remedy = "`factors` that name each factor once", "Leave one of them out"
        raise ValueError(problem(rule, f"{twice!r} more than once", remedy))
    return np.array([int(np.flatnonzero(names == name)[0]) for name in wanted])


def feature_indices(
    names: pd.Index, features: str | Sequence[str] | None, *, where: str
) -> np.ndarray:
    """Positions of the named features, in the order asked for; all of them for None."""
    if features is None:
        return np.arange(len(names))
    wanted = [str(name) for name in listed(features, "features")]
    choices([name for name in wanted if name not in names], names, what="the feature", where=where)
    found = names.isin(wanted)
    twice = names[found][names[found].duplicated()]
    if len(twice):
        rule = "names in `features` that each mean one feature"
        remedy = "Call var_names_make_unique() and fit again"
        raise ValueError(problem(rule, f"{twice[0]!r} more than once", remedy))
    return np.flatnonzero(found)[names[found].get_indexer(wanted)]


def first_names(names: pd.Index) -> str:
    """The first names for a message, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(repr(str(name)) for name in names[:NAMED]) + more


def listed(names: Any, argument: str) -> list[Any]:
    """One name or several as a list."""
    several = [names] if np.ndim(names) == 0 else list(names)
    if not several:
        rule = f"`{argument}` to name at least one"
        raise ValueError(problem(rule, "none", "Pass names, or None for all"))
    return several


def _name(names: np.ndarray, factor: Any) -> str:
    """Name of a factor that is named or numbered."""
    if isinstance(factor, bool | np.bool_) or not isinstance(factor, Integral):
        return str(factor)
    if not 0 <= int(factor) < len(names):
        rule = f"positions of factors from 0 to {len(names) - 1}"
        raise KeyError(problem(rule, f"{factor}", "Pass one of these, or a name"))
    return str(names[int(factor)])
