"""Spatial test of a factor: divide the counts, fit each half, find its order in the other half.

A field follows noise as readily as signal, so neither its amplitude, nor the bound, nor Moran's I
of the fitted factors can tell. Held-out counts can: with its loadings, factors
are estimated spot by spot, without any field, in both halves. In noise alone, a spot of the one
half knows nothing of its neighbours in the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpnsf.core.families import FAMILIES
from gpnsf.core.inference import initial, local_stage, training
from gpnsf.core.inference.confirmed import confirmed, weights
from gpnsf.core.inference.order import (
    CLEAR_Z,
    Order,
    Surroundings,
    beyond_neighbours,
    clear_order,
    crossed_order,
    passed,
    same_spots,
    standard,
)
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.inference.standing import ALIVE, log_factors, shares
from gpnsf.core.likelihoods.moments import MEAN_RANGE
from gpnsf.core.model.factorization import Factorization
from gpnsf.core.progress import Progress
from gpnsf.core.types import Dataset, View

__all__ = ["OwnOrder", "SpatialTest", "halves", "own_order", "spatial_test"]

# nonzero counts over those of a half with which patterns that a half cannot tell are to be expected
AMPLE = 4.0
MAX_SPOTS = 5_000
MAX_NONZEROS = 2_000_000
SCHEDULE = Schedule(max_steps=60, pick_steps=15, moves=0)


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
        noise = max(0.0, 1 - self.growth / AMPLE)
        T, root = self.n_spatial, np.sqrt(2)
        has_order = [
            np.append(passed(root * z[:T]), clear_order(root * z, root * repeated, T)[T:])
            for z, repeated in zip(self.z, self.repeated, strict=True)
        ]
        plain = [
            np.where(repeated > CLEAR_Z, 1.0, noise)[used & ~ordered].sum()
            for ordered, used, repeated in zip(has_order, self.used, self.repeated, strict=True)
        ]
        found = any((used & own).any() for used, own in zip(self.used, has_order, strict=True))
        return len(self.z[0]) - round(np.mean(plain)) if found else self.n_spatial

    def order(self, log_factors: np.ndarray, size: np.ndarray) -> Order:
        """Order of the factors of another fit, by the factors most like each.

        Its log factors are [N, K]. Of several that are most like the same factor, the rank of that one
        goes to the one most like it for its size [K]: the others are what that one has left over.
        """
        z, repeated = (self._of_most_alike(own, log_factors) for own in (self.z, self.repeated))
        return Order(z, repeated, self._of_most_alike(self.z, log_factors, size))

    def _of_most_alike(
        self, values: list[np.ndarray], log_factors: np.ndarray, size: np.ndarray | None = None
    ) -> np.ndarray:
        """Z [K] of both halves together, by the factor most like each of another fit.

        The log factors of that fit are [N, K]. With sizes [K], times the correlation, and 0 for
        those beside which another one resembles it more, times its size.
        """
        wanted, total = standard(log_factors[self.rows]), np.zeros(log_factors.shape[1])
        for factors, z in zip(self.factors, values, strict=True):
            r = standard(factors).T @ wanted
            match, alike = r.argmax(0), r.max(0).clip(0)
            if size is not None:
                claim = alike * size
                rivals = np.where(match[:, None] == match, claim, -1.0)
                alike *= claim >= rivals.max(1)
            total += z[match] * (1.0 if size is None else alike)
        return total / np.sqrt(2)


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
    around = Surroundings.of(parts[0])
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
        m = log_factors(model, model.blocks(fitted))
        if weigh and len(dataset.views) > 1:
            said.append(confirmed(model, m, fitted, kept))
            own = weights(said[-1:], 1.0)
            for name, view in model.items():
                view.weight = own.get(name, view.weight)
        used.append((shares(model, m) > ALIVE).any(0).cpu().numpy())
        one, other = (
            _project(model, model.relative(m).mean(0), build(part, 0), part)
            for part in (fitted, kept)
        )
        factors.append(m.cpu().numpy())
        z.append(crossed_order(one, other, around, n_spatial, _signal(model, m)))
        repeated.append(same_spots(one, other, around))
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


class OwnOrder(NamedTuple):
    """Order of factors by scores in both halves of the counts at the loadings of the fit of all."""

    # [K]; right for factors without a field, which nothing has drawn to what has order: those with
    # one show more of it than held-out counts would
    z: np.ndarray
    repeated: np.ndarray  # z [K] of what the same spots tell
    beyond: np.ndarray  # share [K] of that which neighbours do not tell


@torch.no_grad()
def own_order(
    model: Factorization,
    m: Tensor,
    dataset: Dataset,
    build: Callable[[Dataset, int, int], Factorization],
    rows: np.ndarray,
    seed: int = 0,
) -> OwnOrder:
    """Order of the factors of a fit by its own loadings.

    ``m`` [N, K] are the log factors of the fit; the counts of these rows of the dataset are divided.
    """
    part = _subset(dataset, rows)
    batches = slice(None) if dataset.batch is None else np.unique(dataset.batch[rows])
    m = m[torch.as_tensor(rows, device=m.device)]
    centre = model.relative(m).exp().mean(0).log() if model.nonnegative else m.mean(0)
    one, other = (
        _project(model, centre, build(half, 0, model.n_factors), half, batches, share=0.5)
        for half in halves(part, np.random.default_rng(seed))
    )
    around, signal, T = Surroundings.of(part), _signal(model, m), model.n_spatial
    both = [crossed_order(*pair, around, T, signal) for pair in ((one, other), (other, one))]
    return OwnOrder(
        sum(both) / np.sqrt(2),
        np.sqrt(2) * same_spots(one, other, around),
        beyond_neighbours(one, other, around),
    )


@torch.no_grad()
def _project(
    model: Factorization,
    centre: Tensor,
    without_field: Factorization,
    part: Dataset,
    batches: np.ndarray | slice = slice(None),
    share: float = 1.0,
) -> np.ndarray:
    """Log factors [n, K] of a part of the counts, spot by spot, at the loadings of the model.

    Of its batches the part has these, and of its counts this share.
    """
    for (_, source), (_, target) in zip(model.items(), without_field.items(), strict=True):
        target.weight = source.weight
        raw = source.loadings.raw.clone()
        if model.nonnegative:
            raw[:, :-1] += centre
            raw += math.log(share)
        if type(source.likelihood) is type(target.likelihood):
            target.likelihood.load_state_dict(source.likelihood.state_dict())
        if source.log_multipliers is not None:
            logs = source.log_multipliers[batches]
            if target.log_multipliers is None:  # only one of the batches is there
                raw += logs[0, :, None]
            else:
                target.log_multipliers.copy_(logs)
        target.loadings.raw.copy_(raw)
    return local_stage.local(without_field, without_field.blocks(part)).m.cpu().numpy()


@torch.no_grad()
def _signal(model: Factorization, m: Tensor) -> np.ndarray:
    """Shares [n, K+1] of factors and background in the expected signal of each spot."""
    m = model.relative(m)
    H = torch.cat([m.clamp(*MEAN_RANGE).exp(), torch.ones_like(m[:, :1])], 1)
    mass = torch.stack([view.loadings.mean.abs().sum(0) for _, view in model.items()]).sum(0)
    signal = H * mass
    return (signal / signal.sum(1, keepdim=True).clamp_min(1e-30)).cpu().numpy()
