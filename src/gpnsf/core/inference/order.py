"""Order of factors in held-out counts: what the neighbours of a spot tell of it, and the same spot.

All is about scores of the same factors in two halves of the counts, estimated spot by spot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from scipy.stats import norm

from gpnsf.core.scores.metrics import centred_within, knn_weights, permutation_variance
from gpnsf.core.types import Dataset

__all__ = [
    "CLEAR_Z",
    "MIN_Z",
    "Order",
    "Surroundings",
    "beyond_neighbours",
    "clear_order",
    "crossed_order",
    "misplaced",
    "passed",
    "same_spots",
    "standard",
]

MIN_Z = 3.0  # above which a factor counts as spatial
CLEAR_Z = 6.0  # above which a factor shows that the data are not too shallow to judge each alone
# of the order of spatial factors, that others can have by what these leave over
INHERITED = 1 / 3
# of what spatial factors have of it, the share of a factor that is order because it holds some of them
MIXED = 1 / 3
# of what the same spots tell of a field, the share that neighbours do not tell above which it may be
# none, and above how many times that of most fields; and the share above which it always may
BEYOND, MANY_TIMES, MOSTLY = 0.25, 2.5, 0.65
SCATTER = 4.0  # of z over factors with the same order: three standard deviations
BELOW = 0.6  # share of the z of another factor below which a factor has less because of that one
# standard deviations of the order that real differences between spots have by chance, taken off z
CHANCE = 2.0
N_NEIGHBORS = (6, 60)


@dataclass(frozen=True)
class Order:
    """Order of the factors of a fit."""

    z: np.ndarray  # [K] of what neighbours in the one half of the counts tell of the other
    repeated: np.ndarray  # z [K] of what the same spots tell
    # [K] z times how alike the factors are that it was found for, counted once for each of those
    rank: np.ndarray

    @classmethod
    def unknown(cls, n_factors: int) -> Order:
        """Of factors that were not tested."""
        return cls(*np.full((3, n_factors), np.nan))

    @property
    def p(self) -> np.ndarray:
        """One-sided p [K]."""
        return norm.sf(self.z)

    @property
    def noise(self) -> np.ndarray:
        """Factors [K] of which held-out counts show nothing, neither in a spot nor beside it."""
        return (self.z < MIN_Z) & (self.repeated < MIN_Z)

    def clear(self, n_spatial: int) -> np.ndarray:
        """Which factors [K] show clear order of their own beside the spatial ones, which come first."""
        return clear_order(self.z, self.repeated, n_spatial)

    def at_most(self, z: np.ndarray, repeated: np.ndarray, asked: np.ndarray) -> Order:
        """With another z and ``repeated`` [K] of the factors asked for where neighbours tell less by them."""
        less = asked & (z / np.maximum(repeated, 1.0) < self.z / np.maximum(self.repeated, 1.0))
        return replace(
            self, z=np.where(less, z, self.z), repeated=np.where(less, repeated, self.repeated)
        )


def passed(z: np.ndarray) -> np.ndarray:
    """Which spatial factors [T] are spatial.

    Each that shows it alone. In very shallow data, where none can show it clearly, they may show it
    together, at the level that T single tests have; none counts for more than it takes to pass
    alone. Then one is given up only if it falls short of what the better half of them shows.
    """
    T, alone = len(z), z > MIN_Z
    if not T:
        return alone
    together = np.minimum(z, MIN_Z).sum() > np.sqrt(T) * norm.isf(min(0.5, T * norm.sf(MIN_Z)))
    if not together or z.max() > CLEAR_Z:
        return alone
    typical = np.sort(z)[T // 2 :].mean()
    return z > min(MIN_Z, typical - SCATTER)


def clear_order(z: np.ndarray, repeated: np.ndarray, n_spatial: int) -> np.ndarray:
    """Which factors [K] show clear order of their own; none of the spatial ones, which come first.

    Where spatial factors are high, the others have less of the counts, and so some of their order.
    And factors hold some of each other: then neighbours tell a small part of what the same spots
    tell in both halves (``repeated``, z [K]), beside that of the spatial factors.
    """
    T, share = n_spatial, z / np.maximum(repeated, 1.0)
    with_order = passed(z[:T])
    if with_order.any():
        typical, own = np.median(z[:T][with_order]), np.median(share[:T][with_order])
        clear = (z > np.clip(INHERITED * typical, MIN_Z, CLEAR_Z)) & (share > MIXED * own)
    else:
        clear = z > CLEAR_Z
    clear[:T] = False
    return clear


def misplaced(beyond: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Which fields [T] hardly follow neighbours, by :func:`beyond_neighbours`, or much less than most do.

    Most are those with half of the sizes. The one that follows them the most is none of these.
    """
    order = np.argsort(beyond)
    half = np.searchsorted(np.cumsum(size[order]), size.sum() / 2)
    bound = min(MOSTLY, max(BEYOND, MANY_TIMES * beyond[order[half]]))
    return beyond > max(bound, beyond[order[0]])


def standard(values: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and length 1; constant ones are 0."""
    centred = values - values.mean(0)
    return centred / np.maximum(np.linalg.norm(centred, axis=0), 1e-12)


@dataclass(frozen=True)
class Surroundings:
    """Slices of a dataset, and the neighbours of its spots."""

    slices: list[np.ndarray]  # rows of each
    # of each of ``N_NEIGHBORS``: weights [n, n], and how many neighbours a spot has [n, 1]
    near: list[tuple[sp.csr_matrix, np.ndarray]]

    @classmethod
    def of(cls, dataset: Dataset) -> Surroundings:
        """Of the spots of a dataset."""
        codes = np.unique(dataset.library)
        slices = [np.flatnonzero(dataset.library == code) for code in codes]
        return cls(slices, [_neighbours(dataset, slices, number) for number in N_NEIGHBORS])


def crossed_order(
    fitted: np.ndarray, kept: np.ndarray, around: Surroundings, n_spatial: int, signal: np.ndarray
) -> np.ndarray:
    """Z [K] of the bivariate Moran's I between the two halves of the counts.

    Scores [n, K] of the kept half, and those of the neighbours in the fitted one.

    Mean and variance are those over all permutations of the kept scores within slices. Near and
    wide neighbourhoods weigh alike: in shallow data only wide ones average enough noise away.
    Scores of the same spot correlate by rho where spots really differ. Differences without order
    have some by chance, and the fit may have picked them for it: as much as ``CHANCE`` rho is taken
    off.

    Relative to totals, all nonspatial factors are less where those with order are more: their
    logarithms follow that of what these leave of the ``signal`` [n, K+1], which the neighbours
    tell. That much of their order, with a slope of 1 at most, is taken out. Factors with order are
    those that had a field and, for each other one, all whose z is clear and clearly above its own.
    """
    slices, near, K = around.slices, around.near, len(fitted.T)
    fitted, kept = standard(centred_within(fitted, slices)), centred_within(kept, slices)
    expected = np.sum(
        [standard(centred_within(n * (graph @ fitted), slices)) for graph, n in near], axis=0
    )

    def order(k: int, ordered: np.ndarray) -> float:
        """Z of a factor beside those with order [K]."""
        own = kept[:, [k]]
        if k >= n_spatial:
            left = np.log((signal * ~np.append(ordered, False)).sum(1) + 1e-6)[:, None]
            rest = centred_within(np.mean([graph @ left for graph, _ in near], axis=0), slices)
            slope = float((rest * own).sum()) / max(float((rest**2).sum()), 1e-12)
            own = own - rest * min(max(slope, 0.0), 1.0)
        own, beside = standard(own), expected[:, [k]]
        spread = float(np.sqrt(permutation_variance(beside, own, slices)[0, 0]))
        z = float((beside * own).sum()) / spread if spread > 1e-12 else 0.0
        return z - CHANCE * max(0.0, float((fitted[:, [k]] * own).sum()))

    with_field = np.arange(K) < n_spatial
    z = np.array([order(k, with_field) for k in range(K)])
    clear = [with_field | ((z > CLEAR_Z) & (BELOW * z > own)) for own in z]
    return np.array([order(k, ordered) for k, ordered in enumerate(clear)])


def _neighbours(
    dataset: Dataset, slices: list[np.ndarray], number: int
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Weights [n, n] of the nearest spots of the same slice, rows adding up to 1, and how many they are [n, 1].

    Fewer in small slices; a spot that is alone in its slice has none.
    """
    order, numbers, graphs = np.concatenate(slices), np.zeros((len(dataset.coords), 1)), []
    for rows in slices:
        numbers[rows] = min(number, max(1, len(rows) // 8)) if len(rows) > 1 else 0
        graphs.append(
            knn_weights(dataset.coords[rows], n_neighbors=int(numbers[rows[0], 0]))
            if len(rows) > 1
            else sp.csr_matrix((1, 1))
        )
    back = np.argsort(order)
    return sp.block_diag(graphs, format="csr")[back][:, back], numbers


def same_spots(one: np.ndarray, other: np.ndarray, around: Surroundings) -> np.ndarray:
    """Z [K] of correlations, within slices, of scores [n, K] of the same spots in both halves."""
    one, other = (standard(centred_within(scores, around.slices)) for scores in (one, other))
    return (one * other).sum(0) * np.sqrt(len(one))


def beyond_neighbours(one: np.ndarray, other: np.ndarray, around: Surroundings) -> np.ndarray:
    """Share [K] of what the same spots tell in both halves, scores [n, K], that their neighbours do not."""
    one, other = (centred_within(scores, around.slices) for scores in (one, other))
    told_by = np.stack([graph @ (one + other) for graph, _ in around.near], axis=-1)  # [n, K, 2]
    shares = np.zeros(one.shape[1])
    for k, told in enumerate(told_by.transpose(1, 0, 2)):
        own = np.column_stack([one[:, k], other[:, k]])
        left = own - told @ np.linalg.lstsq(told, own, rcond=None)[0]
        shares[k] = left.prod(axis=1).sum() / max(own.prod(axis=1).sum(), 1e-12)
    return shares
