"""Spatial test of a factor: divide the counts, fit each half, find its order in the other half.

A field follows noise as readily as signal, so neither its amplitude, nor the bound, nor Moran's I
of the fitted factors can tell. Held-out counts can: with its loadings, factors
are estimated spot by spot, without any field, in both halves. In noise alone, a spot of the one
half knows nothing of its neighbours in the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.sparse as sp
import torch
from scipy.stats import norm
from torch import Tensor

from gpnsf.core.families import FAMILIES
from gpnsf.core.inference import initial, local_stage, training
from gpnsf.core.inference.confirmed import confirmed, weights
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.inference.standing import ALIVE, shares
from gpnsf.core.likelihoods.moments import MEAN_RANGE
from gpnsf.core.model.factorization import Factorization
from gpnsf.core.progress import Progress
from gpnsf.core.scores.metrics import centred_within, knn_weights, permutation_variance
from gpnsf.core.types import Dataset, View

__all__ = [
    "CLEAR_Z",
    "MIN_Z",
    "SpatialTest",
    "clear_order",
    "halves",
    "passed",
    "spatial_test",
]

MIN_Z = 3.0  # above which a factor counts as spatial
CLEAR_Z = 6.0  # above which a factor shows that the data are not too shallow to judge each alone
# of the order of spatial factors, that others can have by what these leave over
INHERITED = 1 / 3
# of what spatial factors have of it, the share of a factor that is order because it holds some of them
MIXED = 1 / 3
SCATTER = 4.0  # of z over factors with the same order: three standard deviations
BELOW = 0.6  # share of the z of another factor below which a factor has less because of that one
# standard deviations of the order that real differences between spots have by chance, taken off z
CHANCE = 2.0
# nonzero counts over those of a half with which patterns that a half cannot tell are to be expected
AMPLE = 4.0
MAX_SPOTS = 5_000
MAX_NONZEROS = 2_000_000
SCHEDULE = Schedule(max_steps=60, pick_steps=15, moves=0)
N_NEIGHBORS = (6, 60)


@dataclass(frozen=True)
class SpatialTest:
    """Order of the factors of each half's fit in the counts of the other half."""

    rows: np.ndarray  # [n] rows of the dataset that took part
    factors: list[np.ndarray]  # [n, K] log factors of each half's fit
    z: list[np.ndarray]  # [K]
    repeated: list[np.ndarray]  # z [K] of what the same spots say of the factor in both halves
    used: list[np.ndarray]  # [K] whether the counts of the half ask for the factor
    n_spatial: int  # factors that had a field, the first ones
    growth: float = 2.0  # nonzero counts of all the data over those of a half
    weights: dict[str, float] = field(default_factory=dict)  # of modalities, where they are found

    @property
    def slots(self) -> int:
        """How many spatial factors a fit should begin with.

        All but those without spatial order of which the other half of the counts tells the same, spot
        by spot. What a half makes of noise takes no place away from fields that all counts may still
        tell: where they are many more than those of a half, none at all.

        As many as the test itself began with where no factor has order.
        """
        plain, found, T = [], 0, self.n_spatial
        noise = max(0.0, 1 - self.growth / AMPLE)
        for half, used, repeated in zip(self.z, self.used, self.repeated, strict=True):
            z = np.sqrt(2) * half
            has_order = np.append(passed(z[:T]), clear_order(z, np.sqrt(2) * repeated, T)[T:])
            without = used & ~has_order
            plain.append(np.where(repeated > CLEAR_Z, 1.0, noise)[without].sum())
            found += (used & has_order).sum()
        return len(self.z[0]) - round(np.mean(plain)) if found else self.n_spatial

    def matched(self, log_factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Z and one-sided p [K] of the factors of another fit, by the factors most like each.

        Its log factors are [N, K].
        """
        z = self._of_most_alike(self.z, log_factors)
        return z, norm.sf(z)

    def agreement(self, log_factors: np.ndarray) -> np.ndarray:
        """Z [K] of what the same spots say of the factors in both halves, in the same way."""
        return self._of_most_alike(self.repeated, log_factors)

    def rank(self, log_factors: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Z [K] times how alike the factors are, where z counts once.

        Of several that are most like the same factor, it counts for the one that is most like it
        for its size [K]: the others are what that one has left over.
        """
        return self._of_most_alike(self.z, log_factors, size)

    def noise(self, log_factors: np.ndarray) -> np.ndarray:
        """Factors [K] of another fit of which held-out counts show nothing.

        Held-out counts show it neither in a spot nor beside it.
        """
        return np.all(
            [self._of_most_alike(z, log_factors) < MIN_Z for z in (self.z, self.repeated)], axis=0
        )

    def _of_most_alike(
        self, values: list[np.ndarray], log_factors: np.ndarray, size: np.ndarray | None = None
    ) -> np.ndarray:
        """Z [K] of both halves together, by the factor most like each of another fit.

        The log factors of that fit are [N, K]. With sizes [K], times the correlation, and 0 for
        those beside which another one resembles it more, times its size.
        """
        wanted, total = _standard(log_factors[self.rows]), np.zeros(log_factors.shape[1])
        for factors, z in zip(self.factors, values, strict=True):
            r = _standard(factors).T @ wanted
            match, alike = r.argmax(0), r.max(0).clip(0)
            if size is not None:
                claim = alike * size
                rivals = np.where(match[:, None] == match, claim, -1.0)
                alike *= claim >= rivals.max(1)
            total += z[match] * (1.0 if size is None else alike)
        return total / np.sqrt(2)


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


def _standard(values: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and length 1; constant ones are 0."""
    centred = values - values.mean(0)
    return centred / np.maximum(np.linalg.norm(centred, axis=0), 1e-12)


def spatial_test(
    dataset: Dataset,
    build: Callable[[Dataset, int], Factorization],
    *,
    n_factors: int,
    n_spatial: int,
    start: str | None,
    weigh: bool = False,
    max_steps: int = SCHEDULE.max_steps,
    seed: int = 0,
    progress: Progress | None = None,
) -> SpatialTest:
    """Test all factors of a model that ``build(dataset, n_spatial)`` makes.

    The fits begin at the named start, or at the widest smoothing, which half of shallow counts may
    need; without a name at the one of three that is best in the first half. They are short, and
    take no more than ``max_steps``. With ``weigh`` several modalities weigh by what is confirmed
    of them, when factors are estimated spot by spot.
    """
    progress = progress or Progress("test", 2 * max_steps)
    rng = np.random.default_rng(seed)
    schedule = replace(SCHEDULE, max_steps=min(SCHEDULE.max_steps, max_steps))
    rows = _sample(dataset, rng)
    kinds = {"wide", *([start] if start else ["smooth_0", "spot"])}
    parts = halves(_subset(dataset, rows), rng)
    factors, z, repeated, used = [], [], [], []
    said = list[dict[str, float]]()
    for fitted, kept in (parts, parts[::-1]):
        model = build(fitted, n_spatial)
        candidates = initial.starts(
            fitted, n_factors, n_spatial, nonnegative=model.nonnegative, kinds=kinds, seed=seed
        )
        with progress.part("testing for spatial order", fitted.nnz / max(dataset.nnz, 1)):
            history = training.fit(
                model,
                fitted,
                init=candidates,
                schedule=schedule,
                nested=True,
                seed=seed,
                progress=progress,
            )
        if start is None:  # the other half begins where this one found it best
            kinds = {history.best}
        m = local_stage.mean_field(model, model.blocks(fitted)).m
        if weigh and len(dataset.views) > 1:
            said.append(confirmed(model, m, fitted, kept))
            own = weights(said[-1:], 1.0)
            for name, view in model.items():
                view.weight = own.get(name, view.weight)
        used.append((shares(model, m) > ALIVE).any(0).cpu().numpy())
        one, other = (_project(model, m.mean(0), build(part, 0), part) for part in (fitted, kept))
        factors.append(m.cpu().numpy())
        z.append(_crossed_order(one, other, fitted, n_spatial, _signal(model, m)))
        repeated.append(_repeated(one, other, fitted))
    growth = dataset.nnz / max(1.0, (parts[0].nnz + parts[1].nnz) / 2)
    found = weights(said, growth) if said else {}
    return SpatialTest(rows, factors, z, repeated, used, n_spatial, growth, found)


def halves(dataset: Dataset, rng: np.random.Generator) -> tuple[Dataset, Dataset]:
    """Two datasets whose counts are independent given their rates."""
    pairs = [_thin(view, rng) for view in dataset.views]
    first, second = (tuple(pair[i] for pair in pairs) for i in (0, 1))
    return replace(dataset, views=first), replace(dataset, views=second)


def _sample(dataset: Dataset, rng: np.random.Generator) -> np.ndarray:
    """Rows that were observed, no more than fit into the limits of the test."""
    rows = np.flatnonzero(np.any([view.observed for view in dataset.views], axis=0))
    limit = min(MAX_SPOTS, int(len(rows) * MAX_NONZEROS / max(dataset.nnz, 1)))
    return rows if len(rows) <= limit else np.sort(rng.choice(rows, limit, replace=False))


def _subset(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """Some rows of a dataset, under the likelihoods of the test.

    Slices and batches that are left out lose their codes.
    """
    part = dataset.subset(rows)
    views = tuple(_fast(view) for view in part.views)
    library = np.unique(part.library, return_inverse=True)[1]
    batch = None if part.batch is None else np.unique(part.batch, return_inverse=True)[1]
    return replace(part, library=library, views=views, batch=batch)


def _thin(view: View, rng: np.random.Generator) -> tuple[View, View]:
    """One modality."""
    first, second = FAMILIES[view.likelihood].halves(view.counts, view.observed, rng)
    return replace(view, counts=first), replace(view, counts=second)


def _fast(view: View) -> View:
    """The same counts under a likelihood that is fast: any one makes a valid score."""
    return replace(view, likelihood=FAMILIES[view.likelihood].fast or view.likelihood)


@torch.no_grad()
def _project(
    model: Factorization, centre: Tensor, without_field: Factorization, part: Dataset
) -> np.ndarray:
    """Log factors [n, K] of a part of the counts, spot by spot, at the loadings of the model."""
    for (_, source), (_, target) in zip(model.items(), without_field.items(), strict=True):
        target.load_state_dict(source.state_dict())
        target.weight = source.weight
        if model.nonnegative:
            target.loadings.raw[:, :-1] += centre
    return local_stage.local(without_field, without_field.blocks(part)).m.cpu().numpy()


@torch.no_grad()
def _signal(model: Factorization, m: Tensor) -> np.ndarray:
    """Shares [n, K+1] of factors and background in the expected signal of each spot."""
    H = torch.cat([m.clamp(*MEAN_RANGE).exp(), torch.ones_like(m[:, :1])], 1)
    mass = torch.stack([view.loadings.mean.abs().sum(0) for _, view in model.items()]).sum(0)
    signal = H * mass
    return (signal / signal.sum(1, keepdim=True).clamp_min(1e-30)).cpu().numpy()


def _crossed_order(
    fitted: np.ndarray, kept: np.ndarray, dataset: Dataset, n_spatial: int, signal: np.ndarray
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
    slices, K = _slices(dataset), len(fitted.T)
    near = [_neighbours(dataset, slices, number) for number in N_NEIGHBORS]
    fitted, kept = _standard(centred_within(fitted, slices)), centred_within(kept, slices)
    expected = np.sum(
        [_standard(centred_within(n * (graph @ fitted), slices)) for graph, n in near], axis=0
    )

    def order(k: int, ordered: np.ndarray) -> float:
        """Z of a factor beside those with order [K]."""
        own = kept[:, [k]]
        if k >= n_spatial:
            left = np.log((signal * ~np.append(ordered, False)).sum(1) + 1e-6)[:, None]
            rest = centred_within(np.mean([graph @ left for graph, _ in near], axis=0), slices)
            slope = float((rest * own).sum()) / max(float((rest**2).sum()), 1e-12)
            own = own - rest * min(max(slope, 0.0), 1.0)
        own, around = _standard(own), expected[:, [k]]
        spread = float(np.sqrt(permutation_variance(around, own, slices)[0, 0]))
        z = float((around * own).sum()) / spread if spread > 1e-12 else 0.0
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


def _repeated(fitted: np.ndarray, kept: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Z [K] of correlations, within slices, of scores [n, K] of the same spots in both halves."""
    one, other = (_standard(centred_within(scores, _slices(dataset))) for scores in (fitted, kept))
    return (one * other).sum(0) * np.sqrt(len(one))


def _slices(dataset: Dataset) -> list[np.ndarray]:
    """Rows of each slice."""
    return [np.flatnonzero(dataset.library == code) for code in np.unique(dataset.library)]
