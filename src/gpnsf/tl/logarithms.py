"""Whether values are logarithms of counts, where linear ones are needed."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

__all__ = ["SMALL", "base_of", "effective"]

SMALL = 50.0  # largest logarithm of counts, to base 2 even
BASES = {"e": 1.0, "2": float(np.log(2)), "10": float(np.log(10))}  # and their logarithms
LOOKED_AT = 200  # cells
FEWEST = 5  # nonzero values of a cell that tell anything
MULTIPLES = 50  # up to which single precision shows that a multiple is whole
WHOLE, BROKEN = (
    0.97,
    0.9,
)  # shares of whole multiples among linear values, and among their logarithms


def base_of(values: sp.csr_matrix) -> str:
    """The base, if values [N, P] are ``log(1 + s y)`` with whole numbers y and a scale s of the cell; "" if not.

    All linear values of a cell are then multiples of its smallest one, and their logarithms are not. Means of cells are neither.
    """
    if values.data.max(initial=0.0) > SMALL or (values.data[:10_000] % 1 == 0).all():
        return ""
    rows = np.arange(values.shape[0])[:: max(1, values.shape[0] // LOOKED_AT)]
    some = values[rows].astype(np.float64)
    share = {base: _whole(some, np.expm1(some.data * log)) for base, log in BASES.items()}
    best = max(share, key=share.__getitem__)
    return best if _whole(some, some.data) < BROKEN and share[best] > WHOLE else ""


def _whole(cells: sp.csr_matrix, linear: np.ndarray) -> float:
    """Share of the linear values [nnz] of cells that are whole multiples of the smallest of their cell."""
    length = np.diff(cells.indptr)
    row = np.repeat(np.arange(len(length)), length)
    smallest = np.full(len(length), np.inf)
    np.minimum.at(smallest, row[linear > 0], linear[linear > 0])
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        ratio = linear / smallest[row]
    told = (length[row] >= FEWEST) & (ratio > 1) & (ratio < MULTIPLES)
    if not told.any():
        return 1.0
    return float((np.abs(ratio[told] - np.round(ratio[told])) < 2e-3 * ratio[told]).mean())


def effective(total: np.ndarray) -> float:
    """Number of genes that would share a total [P] alike: small where a few have most, as linear values do."""
    share = np.asarray(total, dtype=np.float64) / max(float(np.sum(total)), np.finfo(float).tiny)
    return 1.0 / max(float((share**2).sum()), np.finfo(float).tiny)
