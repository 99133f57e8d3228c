"""How far counts are from what is expected of them, whichever model expects it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from scipy.special import rel_entr

from gpnsf.core.families.rates import row_slices

__all__ = ["distance", "sparsity"]

FEW = 0.01  # share of the loadings of a feature that counts as none


def distance(
    metric: str,
    counts: sp.csr_matrix,
    expected: Callable[[np.ndarray], np.ndarray],
    rows: np.ndarray,
) -> float:
    """Mean over all entries of some ``rows`` [n], zeros included.

    That of "poisson" is twice the log-likelihood that a model with one rate per entry has more,
    ``2 [y log(y / mu) - y + mu]``, infinite where a count meets an expectation of zero; that of
    "rmse" is the root of the mean square of ``y - mu``. ``expected`` gives ``mu`` [b, P] of rows [b].
    """
    measure = {"poisson": _poisson, "rmse": _squares}[metric]
    total = 0.0
    for block in row_slices(len(rows), counts.shape[1]):
        total += measure(counts[rows[block]], expected(rows[block]))
    mean = total / (len(rows) * counts.shape[1])
    return float(np.sqrt(mean)) if metric == "rmse" else mean


def _poisson(counts: sp.csr_matrix, expected: np.ndarray) -> float:
    """Sum over a block [b, P]."""
    y = counts.data.astype(np.float64)
    at_nonzeros = rel_entr(y, expected[_row(counts), counts.indices]) - y
    return float(2 * (at_nonzeros.sum() + expected.sum()))


def _squares(counts: sp.csr_matrix, expected: np.ndarray) -> float:
    """Sum over a block [b, P]."""
    error = expected.copy()
    error[_row(counts), counts.indices] -= counts.data
    return float(np.square(error).sum())


def _row(counts: sp.csr_matrix) -> np.ndarray:
    """Row of each nonzero."""
    return np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))


def sparsity(factors: np.ndarray, loadings: np.ndarray) -> tuple[float, int]:
    """Share of loadings [P, K] that count as zero, and the number of features that have any.

    A loading does if it is at most a hundredth of the loadings of its feature, all taken without
    their sign and times the mean of the factor [N, K], taken so too.
    """
    weight = np.abs(loadings) * np.abs(factors).mean(axis=0, dtype=np.float64)
    total = weight.sum(axis=1)
    loaded = total > 0
    return float((weight[loaded] <= FEW * total[loaded, None]).mean()), int(loaded.sum())
