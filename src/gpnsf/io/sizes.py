"""Size factors: relative totals, or a column of the user's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gpnsf import checks
from gpnsf.io.objects import Opened

__all__ = ["SIZE_FLOOR", "in_column", "relative_totals", "size_column"]

SIZE_FLOOR = 0.05  # smallest size factor from totals: empty spots take the value of the field
SPREAD = 1e6  # of size factors around their median


def relative_totals(totals: np.ndarray, train: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Size factors [n] from totals, in means of the training rows."""
    return np.maximum(totals / totals[train].mean(), SIZE_FLOOR)


def size_column(opened: Opened, name: str, source: str) -> pd.Series:
    """Column [N] of size factors on the rows of the object."""
    if source in opened.data.obs:
        return checks.column(opened.data.obs, source, where="obs of the data").reset_index(
            drop=True
        )
    mod = opened.mods[name]
    checks.choices(
        [source],
        mod.obs,
        what="`size_factors`",
        where=f"obs of the data or of {name!r}, or be 'total'",
    )
    column = checks.column(mod.obs, source, where=f"obs of {name!r}").reset_index(drop=True)
    column.index = opened.rows[name]
    return column.reindex(range(opened.data.n_obs))


def in_column(values: Any, *, what: str) -> np.ndarray:
    """Positive numbers of which none is so far from most that single precision would lose one of the two."""
    array = checks.positive(values, what=what)
    typical = np.median(array) if len(array) else 1.0
    far = (array < typical / SPREAD) | (array > typical * SPREAD)
    if far.any():
        found = f"{far.sum()} of {far.size} beyond that, the first {array[far][0]:g}; the median is {typical:g}"
        rule, remedy = (
            f"{what} within {SPREAD:g} times their median",
            "Correct them, or remove these observations",
        )
        raise ValueError(checks.problem(rule, found, remedy))
    return array
