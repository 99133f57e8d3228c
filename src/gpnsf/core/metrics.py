"""Figures of merit: deviances, spatial autocorrelation, recovery of a known truth.

Rates are products ``r_ij = sum_k A_ik W_jk``: ``A`` holds the factors with the constant column, multiplied by the size
factors, ``W`` the loadings with the background. A deviance is twice the log likelihood that the saturated model has more;
zero counts are part of it. Sums over zeros come from column sums where the likelihood allows it, from row blocks of
bounded size elsewhere: a dense N x P array is never made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.special import exprel, ndtri, rel_entr

from gpnsf.core.types import RowReader, parts

__all__ = [
    "bernoulli_deviance",
    "centred_within",
    "coverage",
    "deviance",
    "gaussian_deviance",
    "importance_error",
    "knn_weights",
    "match_factors",
    "morans_i",
    "nb_deviance",
    "null_deviance",
    "null_rates",
    "poisson_deviance",
    "sparsity",
]

BLOCK = 2**22  # entries of the largest temporary array
LARGEST_THETA = 1e12  # from here on a negative binomial is a Poisson distribution to machine precision
NEWTON_STEPS = 30


def deviance(
    likelihood: str,
    counts: sp.csr_matrix,
    A: np.ndarray,
    W: np.ndarray,
    dispersion: np.ndarray | None = None,
    *,
    rows: np.ndarray | None = None,
) -> tuple[float, int]:
    """Total deviance under the named likelihood, and the number of entries that it sums over.

    ``dispersion`` is theta of "nb" or the noise standard deviation of "gaussian". ``rows`` [N] bool selects observations.
    The result is infinite where a positive count meets a rate of exactly zero.
    """
    if likelihood in _WITH_DISPERSION:
        if dispersion is None:
            raise ValueError(
                f"The {likelihood!r} deviance needs one dispersion per feature; got none for {counts.shape[1]} features. "
                "Pass dispersion=."
            )
        return _WITH_DISPERSION[likelihood](counts, A, W, dispersion, rows=rows)
    if likelihood not in _WITHOUT_DISPERSION:
        known = sorted({*_WITHOUT_DISPERSION, *_WITH_DISPERSION})
        raise ValueError(f"A deviance needs a known likelihood; got {likelihood!r}. Choose one of {known}.")
    return _WITHOUT_DISPERSION[likelihood](counts, A, W, rows=rows)


def poisson_deviance(
    counts: sp.csr_matrix, A: np.ndarray, W: np.ndarray, *, rows: np.ndarray | None = None
) -> tuple[float, int]:
    """``2 sum [y log(y/r) - y + r]``; the rates of the zeros come from column sums."""
    counts, A, W = _prepared(counts, A, W, rows)
    at_nonzeros = rel_entr(counts.data, _nonzero_rates(counts, A, W)).sum() - counts.data.sum(dtype=np.float64)
    return float(2 * (at_nonzeros + A.sum(axis=0) @ W.sum(axis=0))), _entries(counts)


def nb_deviance(
    counts: sp.csr_matrix, A: np.ndarray, W: np.ndarray, theta: np.ndarray, *, rows: np.ndarray | None = None
) -> tuple[float, int]:
    """``2 sum [y log(y/r) - (y + theta) log((y + theta) / (r + theta))]``, variance ``r + r^2 / theta``."""
    counts, A, W = _prepared(counts, A, W, rows)
    theta = np.minimum(np.broadcast_to(np.asarray(theta, dtype=np.float64), counts.shape[1:]), LARGEST_THETA)
    y, rate, shape = counts.data.astype(np.float64), _nonzero_rates(counts, A, W), theta[counts.indices]
    as_count = rel_entr(y, rate) - (y + shape) * np.log1p((y - rate) / (rate + shape))
    as_zero = shape * np.log1p(rate / shape)
    everywhere_zero = sum(
        float((np.log1p(A[block] @ (W / theta[:, None]).T) @ theta).sum()) for block in _blocks(*counts.shape)
    )
    return float(2 * (everywhere_zero + (as_count - as_zero).sum())), _entries(counts)


def bernoulli_deviance(
    counts: sp.csr_matrix, A: np.ndarray, W: np.ndarray, *, rows: np.ndarray | None = None
) -> tuple[float, int]:
    """``-2 [sum_open log(1 - exp(-r)) - sum_closed r]``: an entry is open where the count is positive."""
    counts, A, W = _prepared(counts, A, W, rows)
    rate = _nonzero_rates(counts, A, W)
    with np.errstate(divide="ignore"):
        log_open = np.log(-np.expm1(-rate)).sum()
    closed = A.sum(axis=0) @ W.sum(axis=0) - rate.sum()
    return float(-2 * (log_open - closed)), _entries(counts)


def gaussian_deviance(
    counts: sp.csr_matrix, A: np.ndarray, W: np.ndarray, sd: np.ndarray, *, rows: np.ndarray | None = None
) -> tuple[float, int]:
    """``sum ((y - r) / sd)^2``; ``sum r^2`` over all entries is the trace of two K x K Gram matrices."""
    counts, A, W = _prepared(counts, A, W, rows)
    precision = 1 / np.square(np.broadcast_to(np.asarray(sd, dtype=np.float64), counts.shape[1:]))
    y = counts.data.astype(np.float64)
    at_nonzeros = ((y - 2 * _nonzero_rates(counts, A, W)) * y * precision[counts.indices]).sum()
    squared_rates = np.sum((A.T @ A) * (W.T @ (W * precision[:, None])))
    return float(at_nonzeros + squared_rates), _entries(counts)


_WITHOUT_DISPERSION: dict[str, Callable[..., tuple[float, int]]] = {
    "poisson": poisson_deviance,
    "bernoulli": bernoulli_deviance,
}
_WITH_DISPERSION: dict[str, Callable[..., tuple[float, int]]] = {"nb": nb_deviance, "gaussian": gaussian_deviance}


def _prepared(
    counts: sp.csr_matrix, A: np.ndarray, W: np.ndarray, rows: np.ndarray | None
) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    """The chosen rows, and both sides of the rates in double precision."""
    A = A if rows is None else A[rows]
    return _canonical(counts, rows), np.asarray(A, dtype=np.float64), np.asarray(W, dtype=np.float64)


def _canonical(counts: sp.csr_matrix, rows: np.ndarray | None) -> sp.csr_matrix:
    """The chosen rows without duplicates and stored zeros; what was passed is never changed."""
    counts = sp.csr_matrix(counts) if rows is None else sp.csr_matrix(counts)[rows]
    if counts.has_canonical_format and counts.data.all():
        return counts
    counts = counts.copy()
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def _nonzero_rates(counts: sp.csr_matrix, A: np.ndarray, W: np.ndarray) -> np.ndarray:
    """``r_ij`` at the nonzeros [nnz], in row order."""
    row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    rate = np.empty(counts.nnz)
    for part in _blocks(counts.nnz, A.shape[1]):
        rate[part] = np.einsum("nk,nk->n", A[row[part]], W[counts.indices[part]])
    return rate


def _blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Row slices of an array, each of at most ``BLOCK`` entries (or one row)."""
    step = max(1, BLOCK // max(1, n_columns))
    return (slice(start, start + step) for start in range(0, n_rows, step))


def _entries(counts: sp.csr_matrix) -> int:
    """Number of entries, zeros included."""
    return counts.shape[0] * counts.shape[1]


def null_deviance(
    likelihood: str,
    counts: sp.csr_matrix | RowReader,
    size: np.ndarray,
    dispersion: np.ndarray | None = None,
    *,
    rows: np.ndarray | None = None,
    train: np.ndarray | None = None,
    pseudocount: float = 0.0,
) -> tuple[float, int]:
    """Deviance on ``rows`` of one constant rate per feature, times ``size`` [N], estimated on the rows ``train``.

    A feature without counts in ``train`` has rate zero, so that counts in other rows cost an infinite deviance: a positive
    ``pseudocount`` per feature avoids it.
    """
    size = np.asarray(size, dtype=np.float64)
    rate = null_rates(likelihood, counts, size, rows=train, pseudocount=pseudocount)[:, None]
    total, n_entries = 0.0, 0
    for at, part in parts(counts):
        kept = None if rows is None else rows[at]
        added = deviance(likelihood, part, size[at, None], rate, dispersion, rows=kept)
        total, n_entries = total + added[0], n_entries + added[1]
    return total, n_entries


def null_rates(
    likelihood: str,
    counts: sp.csr_matrix | RowReader,
    size: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    pseudocount: float = 0.0,
) -> np.ndarray:
    """Constant rate [P] of each feature per unit of ``size``: maximum likelihood, for "nb" the ratio of the totals."""

    def pieces() -> Iterator[tuple[sp.csr_matrix, np.ndarray]]:
        for at, part in parts(counts):
            kept = None if rows is None else rows[at]
            yield _canonical(part, kept), np.asarray(size[at] if kept is None else size[at][kept], dtype=np.float64)

    if likelihood == "bernoulli":
        return _bernoulli_null(pieces, counts.shape[1], pseudocount)
    total, mass = np.full(counts.shape[1], pseudocount), 0.0
    for part, own in pieces():
        if likelihood == "gaussian":
            total, mass = total + part.T @ own, mass + np.square(own).sum()
        else:
            total, mass = total + np.bincount(part.indices, part.data, minlength=len(total)), mass + own.sum()
    return total / mass


def _bernoulli_null(
    pieces: Callable[[], Iterable[tuple[sp.csr_matrix, np.ndarray]]], n_features: int, pseudocount: float
) -> np.ndarray:
    """Solve ``sum_open s / expm1(s rate) = sum_closed s`` per feature by Newton steps on the log rate.

    The likelihood is concave in the log rate. Steps are at most one unit, so that the rate of a feature that is open
    everywhere grows to a large value and not to infinity.
    """
    n_open, closed, mass = np.full(n_features, pseudocount), np.zeros(n_features), 0.0
    for counts, size in pieces():
        n_open += np.bincount(counts.indices, minlength=n_features)
        closed += size.sum() - np.bincount(counts.indices, _open_size(counts, size), minlength=n_features)
        mass += size.sum()
    seen = n_open > 0
    log_rate = np.full(n_features, -np.inf)
    log_rate[seen] = np.log(n_open[seen] / mass)
    for _ in range(NEWTON_STEPS):
        rate = np.exp(log_rate)
        extra, extra_slope = _open_terms(rate)
        gradient, curvature = pseudocount * extra - rate * closed, pseudocount * extra_slope + rate * closed
        for counts, size in pieces():
            share, slope = _open_terms(_open_size(counts, size) * rate[counts.indices])
            gradient += np.bincount(counts.indices, share, minlength=n_features)
            curvature += np.bincount(counts.indices, slope, minlength=n_features)
        step = np.divide(gradient, curvature, out=np.zeros(n_features), where=seen & (curvature > 0))
        log_rate[seen] += np.clip(step, -1, 1)[seen]
        if np.abs(step).max(initial=0) < 1e-7:  # the next step would be its square
            break
    return np.exp(log_rate)


def _open_size(counts: sp.csr_matrix, size: np.ndarray) -> np.ndarray:
    """Size factors [nnz] at the nonzeros."""
    return np.repeat(size, np.diff(counts.indptr))


def _open_terms(rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and negative second derivative of ``log(1 - exp(-r))`` in ``log r``."""
    rate = np.minimum(rate, 700.0)  # exp overflows beyond
    first = 1 / exprel(rate)  # r / expm1(r)
    return first, first * (first * np.exp(rate) - 1)


def morans_i(values: np.ndarray, weights: sp.csr_matrix) -> np.ndarray:
    """Moran's I [C] of each column of ``values`` [N, C] for neighbour weights [N, N]; 0 for a constant column."""
    centred = np.asarray(values, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    variance = np.square(centred).mean(axis=0)
    covariance = (centred * (weights @ centred)).sum(axis=0) / weights.sum()
    varies = variance > 1e-12 * np.square(values).mean(axis=0)
    return np.divide(covariance, variance, out=np.zeros_like(variance), where=varies)


def centred_within(values: np.ndarray, slices: list[np.ndarray]) -> np.ndarray:
    """Columns with mean zero in each slice, which is an array of rows."""
    result = values.copy()
    for rows in slices:
        result[rows] -= values[rows].mean(axis=0)
    return result


def permutation_variance(one: np.ndarray, other: np.ndarray, slices: list[np.ndarray]) -> np.ndarray:
    """Variance [T, P] of ``one^T other`` over all permutations of rows within slices, where both [n, T], [n, P] are centred."""
    total = np.zeros((one.shape[1], other.shape[1]))
    for rows in slices:
        squares = np.square(one[rows]).sum(axis=0)[:, None] * np.square(other[rows]).sum(axis=0)
        total += squares / max(len(rows) - 1, 1)
    return total


def knn_weights(coords: np.ndarray, n_neighbors: int = 6) -> sp.csr_matrix:
    """Row-normalised weights [N, N] of the nearest neighbours, a spot itself excluded even among coinciding spots."""
    n_obs = len(coords)
    n_neighbors = min(n_neighbors, n_obs - 1)
    found = cKDTree(coords).query(coords, range(1, n_neighbors + 2))[1]
    own = found == np.arange(n_obs)[:, None]
    own[~own.any(axis=1), -1] = True  # more coinciding spots than neighbours: the spot itself was not among the found
    data = np.full(n_obs * n_neighbors, 1 / max(n_neighbors, 1))
    indptr = np.arange(n_obs + 1) * n_neighbors
    weights = sp.csr_matrix((data, found[~own], indptr), shape=(n_obs, n_obs))
    weights.sort_indices()
    return weights


def match_factors(truth: np.ndarray, estimate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair columns of ``truth`` [N, K] with columns of ``estimate`` [N, L] so that the summed correlation is largest.

    Returns the column of the estimate for each column of the truth, and their correlations. With L < K the columns left
    over get -1 and correlation 0.
    """
    correlation = _standardised(truth).T @ _standardised(estimate)  # [K, L]
    first, second = linear_sum_assignment(-correlation)
    columns, matched = np.full(truth.shape[1], -1), np.zeros(truth.shape[1])
    columns[first], matched[first] = second, correlation[first, second]
    return columns, matched


def _standardised(values: np.ndarray) -> np.ndarray:
    """Columns with mean zero and length one; constant columns become zero."""
    centred = np.asarray(values, dtype=np.float64) - np.mean(values, axis=0, dtype=np.float64)
    length = np.linalg.norm(centred, axis=0)
    constant = length <= 1e-9 * np.linalg.norm(values, axis=0)
    return centred / np.where(constant, np.inf, length)


def coverage(truth: np.ndarray, mean: np.ndarray, sd: np.ndarray, level: float = 0.9) -> float:
    """Share of true values inside the central normal intervals of the given level; on the log scale for factors."""
    return float(np.mean(np.abs(truth - mean) <= ndtri((1 + level) / 2) * sd))


def sparsity(loadings: np.ndarray, rtol: float = 1e-6) -> float:
    """Share of loadings [P, K] that are zero next to the largest one of their factor."""
    magnitude = np.abs(loadings)
    return float(np.mean(magnitude <= rtol * magnitude.max(axis=0)))


def importance_error(truth: np.ndarray, estimate: np.ndarray) -> float:
    """Mean absolute error of importance scores [P]."""
    return float(np.mean(np.abs(np.asarray(truth, dtype=np.float64) - estimate)))
