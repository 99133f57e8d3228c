"""Principal coordinates of what observations express.

Distances between them mean what distances between mixtures mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heappop, heappush

import numpy as np
from scipy.linalg import eigh

__all__ = ["composition", "coordinates", "factors_used", "signal"]

N_DIMS = 15
GROUPS = 256  # of features with like loadings, in each modality
SAMPLE = 2_000  # observations that the principal axes are first sought in
SPARE = 10  # axes that are kept beyond those wanted, until all observations have been seen
BLOCK_BYTES = 50_000_000  # of an array [rows, groups]


def factors_used(is_spatial: np.ndarray) -> np.ndarray:
    """Positions of the factors that span the embedding.

    The spatial ones, or all where fewer than two are spatial.
    """
    return np.flatnonzero(is_spatial) if is_spatial.sum() > 1 else np.arange(len(is_spatial))


def coordinates(
    factors: np.ndarray,
    loadings: Mapping[str, np.ndarray],
    weights: Mapping[str, float] | None = None,
) -> np.ndarray:
    """The embedding [N, at most 15] of factors [N, K] and loadings.

    It is by composition, modalities at their weights, or by signal where any of them has a sign.
    """
    signed = factors.min() < 0 or any((W < 0).any() for W in loadings.values())
    return signal(factors, loadings) if signed else composition(factors, loadings, weights)


def composition(
    factors: np.ndarray,
    loadings: Mapping[str, np.ndarray],
    weights: Mapping[str, float] | None = None,
    *,
    block_bytes: int = BLOCK_BYTES,
    seed: int = 0,
) -> np.ndarray:
    r"""Coordinates [N, d] at Hellinger distances of expected compositions, d = min(15, K).

    With ``E = H W^T`` and ``p_ij = E_ij / sum_j E_ij`` in each modality, the squared distance of i
    and l is ``1/2 sum_j (sqrt(p_ij) - sqrt(p_lj))^2``, added over modalities times their
    weights over the largest one (default: 1 each). The arrays ``sqrt(p)`` [N, P] are never made:

    - Features with proportional loadings can be added up, for then ``sum_j sqrt(p_ij p_lj)`` stays
      what it is. So features are merged to at most 256 groups with like profiles
      ``W_jk / sum_k W_jk``, which can only make distances smaller.
    - Axes are sought in a sample of 2,000 rows, some more than wanted; all rows are projected on
      them, block after block, and turned to the principal axes of the projections.
    """
    own = [(weights or {}).get(name, 1.0) for name in loadings]
    profiles = [
        (_merged(W.astype(np.float64)), weight / max(own))
        for W, weight in zip(loadings.values(), own, strict=True)
    ]
    N, K = factors.shape
    rows = np.sort(np.random.default_rng(seed).choice(N, min(N, SAMPLE), replace=False))
    sample = _roots(factors[rows], profiles)
    centre = sample.mean(axis=0)
    axes = _axes((sample - centre).T @ (sample - centre), min(N_DIMS, K) + SPARE)  # [G, d + spare]
    projected = np.empty((N, axes.shape[1]))
    for block in _blocks(N, 8 * sample.shape[1], block_bytes):
        projected[block] = (_roots(factors[block], profiles) - centre) @ axes
    return _principal(projected, min(N_DIMS, K))


def signal(factors: np.ndarray, loadings: Mapping[str, np.ndarray]) -> np.ndarray:
    """Principal components [N, d] of signed factors in units of signal.

    The signal is ``h_ik sqrt(sum_j W_jk^2)``.
    """
    # [K]
    power = np.sum([np.square(W, dtype=np.float64).sum(axis=0) for W in loadings.values()], axis=0)
    return _principal(factors.astype(np.float64) * np.sqrt(power), min(N_DIMS, factors.shape[1]))


def _roots(factors: np.ndarray, profiles: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """``sqrt(w p / 2)`` [n, G], modalities side by side; zero where a row expects nothing."""
    parts = []
    for W, weight in profiles:
        expected = factors @ W.T
        expected /= np.maximum(
            2 / weight * expected.sum(axis=1, keepdims=True), np.finfo(float).tiny
        )
        parts.append(np.sqrt(expected, out=expected))
    return np.concatenate(parts, axis=1)


def _principal(points: np.ndarray, n_dims: int) -> np.ndarray:
    """Points [N, D], centred in place, on their first principal axes [N, n_dims].

    Axes that are not there are zero.
    """
    points -= points.mean(axis=0)
    axes = _axes(points.T @ points, n_dims)
    found = np.zeros((len(points), n_dims), dtype=np.float32)
    found[:, : axes.shape[1]] = points @ axes
    return found


def _axes(scatter: np.ndarray, n_axes: int) -> np.ndarray:
    """Leading eigenvectors [D, at most n_axes], largest first, largest entry positive."""
    D = len(scatter)
    axes = eigh(scatter, subset_by_index=(max(D - n_axes, 0), D - 1))[1][:, ::-1]
    return axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])


def _blocks(n_rows: int, row_bytes: int, block_bytes: int) -> Iterator[slice]:
    """Ranges of rows whose arrays stay within the bytes."""
    step = max(1, block_bytes // row_bytes)
    return (slice(start, start + step) for start in range(0, n_rows, step))


def _merged(W: np.ndarray) -> np.ndarray:
    """Loadings [at most 256, K] of groups of features.

    The group that is widest for its signal is cut until there are so many.

    A feature counts as much as its loadings ``c_j`` sum to, and lies at the roots of its profile:
    the scatter of a group, ``sum_j c_j |r_j - mean|^2``, bounds what merging takes from a distance.
    Cuts are across the principal axis at the mean.
    """
    W = W[W.any(axis=1)]
    if len(W) <= GROUPS:
        return W if len(W) else np.zeros((1, W.shape[1]))
    mass = W.sum(axis=1)  # [P]
    roots = np.sqrt(W / mass[:, None])
    groups: list[np.ndarray] = []
    whole = (np.arange(len(W)), *_scatter(roots, mass))
    waiting = [(-np.trace(whole[2]), 0, whole)]  # a heap; the number in the middle settles ties
    while waiting and len(groups) + len(waiting) < GROUPS:
        _, _, (members, mean, scatter) = heappop(waiting)
        beyond = (roots[members] - mean) @ np.linalg.eigh(scatter)[1][:, -1] > 0
        if beyond.all() or not beyond.any():  # only rounding errors are left to cut
            groups.append(members)
            continue
        for part in (members[beyond], members[~beyond]):
            own = (part, *_scatter(roots[part], mass[part]))
            heappush(waiting, (-np.trace(own[2]), int(part[0]), own))
    groups += [members for _, _, (members, _, _) in waiting]
    return np.array([W[members].sum(axis=0) for members in groups])


def _scatter(roots: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [K] of some features, weighted by mass, and their scatter [K, K] around it."""
    mean = mass @ roots / mass.sum()
    centred = roots - mean
    return mean, centred.T @ (mass[:, None] * centred)
