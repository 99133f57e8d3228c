"""Figures of merit: deviances, spatial autocorrelation, recovery of a known truth.

Rates are products ``r_ij = sum_k A_ik W_jk``: ``A`` holds the factors with the constant column,
multiplied by the size factors, ``W`` the loadings with the background. A deviance is twice the log
likelihood that the saturated model has more; zero counts are part of it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.special import ndtri

from gpnsf.core.families import FAMILIES

__all__ = [
    "APART",
    "apart",
    "centred_within",
    "coverage",
    "deviance",
    "importance_error",
    "knn_weights",
    "match_factors",
    "morans_i",
    "morans_i_within",
    "spot_distance",
]

APART = 1e3  # between slices, in half-widths of the tissue


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

    ``dispersion`` is theta of "nb" or the noise standard deviation of "gaussian". ``rows`` [N] bool
    selects observations. The result is infinite where a positive count meets a rate of exactly
    zero.
    """
    known = sorted(name for name, family in FAMILIES.items() if family.has_deviance)
    if likelihood not in known:
        raise ValueError(
            f"A deviance needs a known likelihood; got {likelihood!r}. Choose one of {known}."
        )
    family = FAMILIES[likelihood]
    if family.has_dispersion and dispersion is None:
        raise ValueError(
            f"The {likelihood!r} deviance needs one dispersion per feature; got none for "
            f"{counts.shape[1]} features. Pass dispersion=."
        )
    return family.deviance(counts, A, W, dispersion, rows=rows)


def morans_i(values: np.ndarray, weights: sp.csr_matrix) -> np.ndarray:
    """Moran's I [C] of each column of ``values`` [N, C] for neighbour weights [N, N].

    0 for a constant column.
    """
    centred = np.asarray(values, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    variance = np.square(centred).mean(axis=0)
    covariance = (centred * (weights @ centred)).sum(axis=0) / weights.sum()
    varies = variance > 1e-12 * np.square(values).mean(axis=0)
    return np.divide(covariance, variance, out=np.zeros_like(variance), where=varies)


def morans_i_within(values: np.ndarray, coords: np.ndarray, library: np.ndarray) -> np.ndarray:
    """Moran's I [C] of columns [N, C] over the 6 nearest neighbours in the slice [N] of each spot.

    The mean of each slice is taken out; slices of one spot are left out.
    """
    slices = [np.flatnonzero(library == code) for code in np.unique(library)]
    slices = [rows for rows in slices if len(rows) > 1]
    if not slices:
        return np.zeros(values.shape[1])
    centred = centred_within(np.asarray(values, dtype=np.float64), slices)
    centred[np.abs(centred) <= 1e-6 * np.abs(values).max(axis=0)] = 0  # rounding of a constant
    weights = sp.block_diag([knn_weights(coords[rows]) for rows in slices], format="csr")
    return morans_i(centred[np.concatenate(slices)], weights)


def spot_distance(slices: Iterable[np.ndarray]) -> float:
    """Distance of neighbouring spots over slices [n, D]; 0 where there are none.

    Geometric mean of the median distances to the first and the fourth neighbour: on a square or
    hexagonal grid both are the spacing; among scattered cells the first alone would be far less
    than the room that a cell has.
    """
    distances = np.concatenate([_neighbour_distances(coords) for coords in slices])  # [N, 2]
    distances = distances[(distances > 0).all(axis=1)]
    return float(np.sqrt(np.prod(np.median(distances, axis=0)))) if len(distances) else 0.0


def _neighbour_distances(coords: np.ndarray) -> np.ndarray:
    """Distances [N, 2] to the first and the fourth neighbour (the last one of fewer)."""
    if len(coords) < 2:
        return np.zeros((0, 2))
    distances, _ = cKDTree(coords).query(coords, k=min(5, len(coords)))
    return distances[:, [1, -1]]


def centred_within(values: np.ndarray, slices: list[np.ndarray]) -> np.ndarray:
    """Columns with mean zero in each slice, which is an array of rows."""
    result = values.copy()
    for rows in slices:
        result[rows] -= values[rows].mean(axis=0)
    return result


def permutation_variance(
    one: np.ndarray, other: np.ndarray, slices: list[np.ndarray]
) -> np.ndarray:
    """Variance [T, P] of ``one^T other`` over permutations of rows within slices.

    Both [n, T], [n, P] are centred; all permutations count.
    """
    total = np.zeros((one.shape[1], other.shape[1]))
    for rows in slices:
        squares = np.square(one[rows]).sum(axis=0)[:, None] * np.square(other[rows]).sum(axis=0)
        total += squares / max(len(rows) - 1, 1)
    return total


def apart(coords: np.ndarray, library: np.ndarray) -> np.ndarray:
    """Coordinates [N, D] with the slices [N] moved so far apart that nobody has a neighbour in another."""
    return coords.astype(np.float64) + APART * library[:, None]


def knn_weights(coords: np.ndarray, n_neighbors: int = 6) -> sp.csr_matrix:
    """Row-normalised weights [N, N] of the nearest neighbours.

    A spot itself is excluded even among coinciding spots.
    """
    n_obs = len(coords)
    n_neighbors = min(n_neighbors, n_obs - 1)
    found = cKDTree(coords).query(coords, range(1, n_neighbors + 2))[1]
    own = found == np.arange(n_obs)[:, None]
    # more coinciding spots than neighbours: the spot itself was not among the found
    own[~own.any(axis=1), -1] = True
    data = np.full(n_obs * n_neighbors, 1 / max(n_neighbors, 1))
    indptr = np.arange(n_obs + 1) * n_neighbors
    weights = sp.csr_matrix((data, found[~own], indptr), shape=(n_obs, n_obs))
    weights.sort_indices()
    return weights


def match_factors(truth: np.ndarray, estimate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair columns of ``truth`` [N, K] with columns of ``estimate`` [N, L].

    The summed correlation is then largest.

    Returns the column of the estimate for each column of the truth, and their correlations. With L
    < K the columns left over get -1 and correlation 0.
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


def coverage(
    truth: np.ndarray | float, mean: np.ndarray, sd: np.ndarray, level: float = 0.9
) -> float:
    """Share of true values inside the central normal intervals of the given level.

    For factors it is on the log scale.
    """
    return float(np.mean(np.abs(truth - mean) <= ndtri((1 + level) / 2) * sd))


def importance_error(truth: np.ndarray, estimate: np.ndarray) -> float:
    """Mean absolute error of importance scores [P]."""
    return float(np.mean(np.abs(np.asarray(truth, dtype=np.float64) - estimate)))
