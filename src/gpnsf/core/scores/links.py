"""Links between two sets of features.

How alike their loadings are, how often chance makes them so, and how well that ranks.

A feature's profile is ``s_jk = w_jk / sum_l |w_jl|``, the share of factor k in its expected signal,
minus the share of the factor in the signal of its whole modality; where loadings have a sign,
``w_j`` itself. The score of a pair is the cosine of two profiles.
"""

from __future__ import annotations

import numpy as np

__all__ = ["matched_ranking", "pair_p_values", "pair_scores", "profiles", "strata"]

BLOCK = 2**20  # pairs whose profiles are multiplied at a time
CUTS, STRATUM = 3, 50  # parts of a bin by one property, each of at least so many pairs
TINY = 1e-9  # rounding of a cosine


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


def pair_scores(first: np.ndarray, second: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Cosines [n] of the unit profiles [P1, K] and [P2, K] of the pairs ``i``, ``j`` [n]."""
    return np.concatenate(
        [np.einsum("nk,nk->n", first[i[part]], second[j[part]]) for part in _parts(len(i))]
    )


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
) -> np.ndarray:
    """One-sided p values [n] of the pairs.

    How often a score as high is reached where the ``j`` of a stratum change places.

    Each ``i`` meets the ``j`` of ``n_permutations`` pairs of its stratum, or of all of them if
    there are fewer, its own among them. All these scores together are the null of the stratum, so
    that p values can be smaller than one over their number.
    """
    rng = np.random.default_rng(seed)
    score, p_values = pair_scores(first, second, i, j), np.empty(len(i))
    for code in np.unique(stratum):
        rows = np.flatnonzero(stratum == code)
        drawn = rng.permutation(rows)[:n_permutations]
        null = np.sort(first[i[rows]] @ second[j[drawn]].T, axis=None)
        reached = null.size - np.searchsorted(null, score[rows] - TINY, side="left")
        p_values[rows] = (1 + reached) / (1 + null.size)
    return p_values


def matched_ranking(
    score: np.ndarray, truth: np.ndarray, bins: np.ndarray, weight: np.ndarray
) -> tuple[float, float, float]:
    """AUROC, average precision and base rate within bins [n], averaged over them.

    NaN where no bin has both kinds of pairs.

    Pairs count ``weight`` [n] times. AUROC is averaged by the number of comparisons, so that it is
    the share of pairs of a link and another pair of the same bin that are in order; average
    precision and base rate are averaged by links.
    """
    parts = [
        _ranking(score[rows], truth[rows], weight[rows])
        for rows in (bins == code for code in np.unique(bins))
    ]
    links, others, area, precision = np.array(parts).T
    both = (links > 0) & (others > 0)
    links, others = links[both], others[both]
    if not both.any():
        return np.nan, np.nan, np.nan
    base = links / (links + others)
    auroc = np.average(area[both], weights=links * others)
    return (
        float(auroc),
        float(np.average(precision[both], weights=links)),
        float(np.average(base, weights=links)),
    )


def _ranking(
    score: np.ndarray, truth: np.ndarray, weight: np.ndarray
) -> tuple[float, float, float, float]:
    """Weight of links and of other pairs, AUROC and average precision of one bin.

    Ties count half, or stand at one rank.
    """
    group = np.unique(-score, return_inverse=True)[1]  # best first
    links, others = (np.bincount(group, weight * kind) for kind in (truth, ~truth))
    found, wrong = links.cumsum(), others.cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (links * (wrong[-1] - wrong + others / 2)).sum() / (found[-1] * wrong[-1])
        precision = (links * np.nan_to_num(found / (found + wrong))).sum() / found[-1]
    return found[-1], wrong[-1], area, precision


def _centred_shares(W: np.ndarray) -> np.ndarray:
    """Shares of the factors in each feature [P, K], minus those in all of them.

    0 for features without signal.
    """
    total = np.abs(W).sum(axis=1, keepdims=True)  # [P, 1]
    share = np.divide(W, total, out=np.zeros_like(W), where=total > 0)
    return np.where(total > 0, share - W.sum(axis=0) / max(total.sum(), np.finfo(float).tiny), 0.0)


def _parts(n_pairs: int) -> list[slice]:
    """Blocks of pairs."""
    return [slice(start, start + BLOCK) for start in range(0, max(n_pairs, 1), BLOCK)]
