"""Which features follow the spatial factors.

A score against rows of the factors that were permuted.

A feature's null model is its background and its nonspatial factors, fitted to it alone. Its
residuals ``e`` [N, P] meet the spatial factors in ``z_jk = sum_i (H_ik - mean) e_ij``, in units of
the standard deviation that ``z_jk`` has over all permutations of the rows of H; the largest of a
feature's T values is its score. Permuted rows give the same scores again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from gpnsf.core.scores.metrics import centred_within, permutation_variance

__all__ = ["permutation_p_values"]

BLOCK = 2**21  # entries of a dense block of features
N_UPDATES = 60  # of the null loadings
POOL = 50  # features that share a null distribution, at least
TINY = 1e-12


def permutation_p_values(
    counts: sp.csr_matrix,
    spatial: np.ndarray,
    null: np.ndarray,
    library: np.ndarray,
    batches: tuple[np.ndarray, np.ndarray],
    *,
    binary: bool,
    n_permutations: int,
    seed: int,
) -> np.ndarray:
    """P values [P] of features against "no spatial factor matters".

    Counts are [n, P], each feature with at least one.

    ``spatial`` [n, T] are the factors that are permuted, within the slices ``library`` [n].
    ``null`` [n, K0] are size factors times the nonspatial factors and the constant one.

    A score is compared with the permuted scores of the features whose residuals are about as
    skewed, so that p values can be smaller than one over the number of permutations: standardised
    scores of two features differ in their null distribution by little else.
    """
    slices = [np.flatnonzero(library == code) for code in np.unique(library)]
    patterns = centred_within(np.asarray(spatial, dtype=np.float32), slices)
    shuffled = np.hstack(
        [patterns, *_permuted(patterns, slices, n_permutations, np.random.default_rng(seed))]
    )
    (codes, multipliers), scores, skewness = batches, [], []
    by_feature = counts.tocsc()
    step = max(1, BLOCK // counts.shape[0])
    for start in range(0, counts.shape[1], step):
        part = slice(start, start + step)
        Y = by_feature[:, part].toarray().astype(np.float32)
        own = multipliers[:, part].astype(np.float32)[codes]  # [n, p]
        residuals = centred_within(_residuals(Y, null, own, binary), slices)
        scale = np.sqrt(permutation_variance(patterns, residuals, slices)) + TINY  # [T, p]
        z = (shuffled.T @ residuals).reshape(-1, *scale.shape) / scale  # [1 + B, T, p]
        scores.append(z.max(axis=1))
        skewness.append((residuals**3).mean(axis=0) / ((residuals**2).mean(axis=0) ** 1.5 + TINY))
    return _pooled(np.hstack(scores), np.concatenate(skewness))


def _permuted(
    patterns: np.ndarray, slices: list[np.ndarray], n_permutations: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Rows in random order, slice by slice."""
    for _ in range(n_permutations):
        order = np.arange(len(patterns))
        for rows in slices:
            order[rows] = rng.permutation(rows)
        yield patterns[order]


def _residuals(Y: np.ndarray, A: np.ndarray, multipliers: np.ndarray, binary: bool) -> np.ndarray:
    """Counts [n, p] minus ``multipliers * A W^T``, with W close to the maximum of the likelihood.

    Plain differences: divided by their standard deviation they would weigh most where the
    nonspatial factors are small, and there these are known worst, with errors that lean on the
    spatial factors.
    """
    A = A.astype(np.float32)
    mass = multipliers.T @ A  # [p, K0]
    W = Y.sum(axis=0)[:, None] / (mass * A.shape[1])
    for _ in range(N_UPDATES):
        rate = multipliers * (A @ W.T) + np.float32(TINY)
        W *= ((multipliers * Y / (-np.expm1(-rate) if binary else rate)).T @ A) / mass
    rate = multipliers * (A @ W.T)
    return Y + np.expm1(-rate) if binary else Y - rate


def _pooled(scores: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """P values of the first row of scores [1 + B, P] among the other rows of the feature pool."""
    p_values = np.empty(scores.shape[1])
    for pool in np.array_split(np.argsort(skewness, kind="stable"), max(1, len(skewness) // POOL)):
        null = np.sort(scores[1:, pool], axis=None)
        reached = null.size - np.searchsorted(null, scores[0, pool], side="left")
        p_values[pool] = (1 + reached) / (1 + null.size)
    return p_values
