"""How well a score ranks pairs that are known to belong together, within bins of distance.

What distance alone would rank by is the contact of two places on the genome.
"""

from __future__ import annotations

import numpy as np

__all__ = ["bin_order", "bin_rankings", "contact", "mean_ranking"]

FLOOR, GAMMA = 5_000, 1.024  # bases, exponent: contact in Hi-C, as the ABC model takes it


def contact(distance: np.ndarray) -> np.ndarray:
    """How often two places [n] so many bases apart touch, relative to near ones.

    ``(max(|d|, 5 kb) / 5 kb) ** -1.024``, the law and the constants with which the Activity-by-Contact
    model (Fulco et al. 2019) takes the place of Hi-C data where there are none.
    """
    return (np.maximum(np.abs(distance), FLOOR) / FLOOR) ** -GAMMA


def bin_order(score: np.ndarray, bins: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of each bin of pairs [n], in the order of the codes, and their rank there, best first.

    Ties share a rank.
    """
    rows = (np.flatnonzero(bins == code) for code in np.unique(bins))
    return [(part, np.unique(-score[part], return_inverse=True)[1]) for part in rows]


def bin_rankings(
    order: list[tuple[np.ndarray, np.ndarray]], truth: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Weight of links and of other pairs, AUROC and average precision of each bin [B, 4].

    Pairs count ``weight`` [n] times; ties count half, or stand at one rank. NaN where a bin lacks
    one kind of pairs.
    """
    return np.array([_ranking(rank, truth[rows], weight[rows]) for rows, rank in order])


def mean_ranking(rankings: np.ndarray) -> np.ndarray:
    """AUROC, average precision and base rate within bins, averaged over them.

    NaN where no bin has both kinds of pairs.

    AUROC is averaged by the number of comparisons, so that it is the share of pairs of a link and
    another pair of the same bin that are in order; average precision and base rate are averaged by
    links.
    """
    both = (rankings[:, :2] > 0).all(axis=1)
    if not both.any():
        return np.full(3, np.nan)
    links, others, area, precision = rankings[both].T
    return np.array(
        [
            np.average(area, weights=links * others),
            np.average(precision, weights=links),
            np.average(links / (links + others), weights=links),
        ]
    )


def _ranking(
    rank: np.ndarray, truth: np.ndarray, weight: np.ndarray
) -> tuple[float, float, float, float]:
    links, others = (np.bincount(rank, weight * kind) for kind in (truth, ~truth))
    found, wrong = links.cumsum(), others.cumsum()
    if min(found[-1], wrong[-1]) == 0:
        return found[-1], wrong[-1], np.nan, np.nan
    area = (links * (wrong[-1] - wrong + others / 2)).sum() / (found[-1] * wrong[-1])
    share = np.divide(found, found + wrong, out=np.zeros_like(found), where=found > 0)
    return found[-1], wrong[-1], area, (links * share).sum() / found[-1]
