"""Links between two sets of features.

How alike their loadings are, and how often chance makes them so.

A feature's profile is ``s_jk = w_jk / sum_l |w_jl|``, the share of factor k in its expected signal,
minus the share of the factor in the signal of its whole modality; where loadings have a sign,
``w_j`` itself. The score of a pair is the cosine of two profiles, or, with the other peaks of the
gene held fixed, the partial correlation that follows from all cosines among them.
"""

from __future__ import annotations

import numpy as np

__all__ = ["pair_p_values", "pair_scores", "profiles", "strata"]

BLOCK = 2**20  # pairs whose profiles are multiplied at a time
CUTS, STRATUM = 3, 50  # parts of a bin by one property, each of at least so many pairs
TINY = 1e-9  # rounding of a cosine
NOISE = 0.1  # own part of a profile's squared length, where others are held fixed


def profiles(loadings: np.ndarray, *, signed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Profiles [P, K] of unit length, and their length [P] before.

    0 for features without signal or like all others.
    """
    W = loadings.astype(np.float64)
    profile = W if signed else _centred_shares(W)
    length = np.linalg.norm(profile, axis=1)
    told = length > np.sqrt(np.finfo(np.float32).eps)  # the rest is the rounding of the loadings
    return np.divide(profile, length[:, None], out=np.zeros_like(W), where=told[:, None]), np.where(
        told, length, 0.0
    )


def pair_scores(
    first: np.ndarray,
    second: np.ndarray,
    i: np.ndarray,
    j: np.ndarray,
    *,
    conditional: bool = False,
) -> np.ndarray:
    """Scores [n] of the pairs ``i``, ``j`` [n] of unit profiles [P1, K] and [P2, K].

    Cosines, or partial ones, the other ``j`` of the same ``i`` held fixed.
    """
    if not conditional:
        parts = _parts(len(i), BLOCK)
        return np.concatenate(
            [np.einsum("nk,nk->n", first[i[rows]], second[j[rows]]) for rows in parts]
        )
    held, scores = _held(first, second, i, j), []
    for rows in _parts(len(i), BLOCK // first.shape[1] ** 2):
        a, b, left = first[i[rows]], second[j[rows]], _left(held, second, i[rows], j[rows])
        scores.append(_partial(_form(a, left, b), _form(a, left, a), _form(b, left, b)))
    return np.concatenate(scores)


def strata(bins: np.ndarray, *matched: np.ndarray) -> np.ndarray:
    """Code [n] of each pair's stratum.

    Its bin, cut along each property [n] in turn into up to ``CUTS`` equal parts.
    """
    codes = np.unique(bins, return_inverse=True)[1]
    for values in matched:
        order = np.lexsort((values, codes))
        sizes = np.bincount(codes)
        cuts = np.clip(sizes // STRATUM, 1, CUTS)
        # within the stratum
        place = np.arange(len(order)) - np.repeat(sizes.cumsum() - sizes, sizes)
        part = place * np.repeat(cuts, sizes) // np.repeat(np.maximum(sizes, 1), sizes)
        codes[order] = np.unique(codes[order] * CUTS + part, return_inverse=True)[1]
    return codes


def pair_p_values(
    first: np.ndarray,
    second: np.ndarray,
    i: np.ndarray,
    j: np.ndarray,
    stratum: np.ndarray,
    *,
    n_permutations: int,
    seed: int,
    conditional: bool = False,
) -> np.ndarray:
    """One-sided p values [n] of the pairs.

    How often a score as high is reached where the ``j`` of a stratum change places.

    Each ``i`` meets the ``j`` of ``n_permutations`` pairs of its stratum, or of all of them if
    there are fewer, its own among them. All these scores together are the null of the stratum, so
    that p values can be smaller than one over their number. Where the others are held fixed, they
    stay in their places.
    """
    rng = np.random.default_rng(seed)
    score = pair_scores(first, second, i, j, conditional=conditional)
    held, p_values = _held(first, second, i, j) if conditional else None, np.empty(len(i))
    for code in np.unique(stratum):
        rows = np.flatnonzero(stratum == code)
        drawn = rng.permutation(rows)[:n_permutations]
        null = np.sort(_null(first, second, i[rows], j[rows], j[drawn], held), axis=None)
        reached = null.size - np.searchsorted(null, score[rows] - TINY, side="left")
        p_values[rows] = (1 + reached) / (1 + null.size)
    return p_values


def _held(first: np.ndarray, second: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """``I + S' S / NOISE`` [P1, K, K], S the profiles of all ``j`` that an ``i`` is paired with."""
    held = np.tile(np.eye(second.shape[1]), (len(first), 1, 1))
    order = np.argsort(i, kind="stable")
    names, begin = np.unique(i[order], return_index=True)
    for name, rows in zip(names, np.split(order, begin[1:]), strict=True):
        held[name] += second[j[rows]].T @ second[j[rows]] / NOISE
    return held


def _left(held: np.ndarray, second: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """What is left of a product of profiles, the others of each pair held fixed [n, K, K].

    With S the profiles of the others [m, K],
    ``I - S' (S S' + NOISE I)^-1 S = (I + S' S / NOISE)^-1``.
    """
    return np.linalg.inv(held[i] - _squares(second[j]) / NOISE)


def _null(
    first: np.ndarray,
    second: np.ndarray,
    i: np.ndarray,
    j: np.ndarray,
    drawn: np.ndarray,
    held: np.ndarray | None,
) -> np.ndarray:
    """Scores [n, d] of each pair with one of the ``drawn`` [d] in the place of its ``j``."""
    if held is None:
        return first[i] @ second[drawn].T
    squares = _squares(second[drawn]).reshape(len(drawn), -1)  # [d, K * K]
    scores = []
    for rows in _parts(len(i), BLOCK // first.shape[1] ** 2):
        a, left = first[i[rows]], _left(held, second, i[rows], j[rows])
        shared = np.einsum("nk,nkl->nl", a, left) @ second[drawn].T
        other = left.reshape(len(left), -1) @ squares.T
        scores.append(_partial(shared, _form(a, left, a)[:, None], other))
    return np.concatenate(scores)


def _partial(shared: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Partial correlation from what is left of ``a'b``, ``a'a`` and ``b'b``.

    Times ``1 + NOISE``, so that it is the cosine where nothing is held fixed.
    """
    return (1 + NOISE) * shared / np.sqrt((NOISE + own) * (NOISE + other))


def _form(a: np.ndarray, left: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("nk,nkl,nl->n", a, left, b, optimize=True)


def _squares(profile: np.ndarray) -> np.ndarray:
    return profile[:, :, None] * profile[:, None, :]  # [n, K, K]


def _centred_shares(W: np.ndarray) -> np.ndarray:
    """Shares of the factors in each feature [P, K], minus those in all of them.

    0 for features without signal.
    """
    total = np.abs(W).sum(axis=1, keepdims=True)  # [P, 1]
    share = np.divide(W, total, out=np.zeros_like(W), where=total > 0)
    return np.where(total > 0, share - W.sum(axis=0) / max(total.sum(), np.finfo(float).tiny), 0.0)


def _parts(n_pairs: int, size: int) -> list[slice]:
    """Blocks of pairs."""
    return [slice(start, start + max(size, 1)) for start in range(0, max(n_pairs, 1), max(size, 1))]
