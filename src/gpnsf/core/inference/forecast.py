"""Cost of a fit, from its shapes alone: bytes at the peak, and seconds.

Nothing is read and nothing tried. The large arrays are counted; what cannot be counted, copies that
are made for a gradient and nanoseconds, was measured and stands in two tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from gpnsf.core.counts.cache import BYTES
from gpnsf.core.counts.rowblocks import MOST_FEATURES
from gpnsf.core.counts.sparse import CHUNK
from gpnsf.core.families import FAMILIES
from gpnsf.core.fields.base import RIDGE_STEPS
from gpnsf.core.inference import initial, spatial_test, subset_start
from gpnsf.core.inference.local_stage import NEWTON_STEPS
from gpnsf.core.inference.posterior import FEATURES
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.inference.training import FEWEST_POLISH, POLISH_ENTRIES
from gpnsf.core.likelihoods import LIKELIHOODS
from gpnsf.core.model.build import BASIS_RANGE, DEFAULT_INDUCING, PRESETS
from gpnsf.core.types import Dataset, rows_at_a_time

__all__ = ["Forecast", "forecast"]

NUMBER = 4  # bytes
# Bytes of what is made for a while.
LIBRARIES = 5e7  # code that is loaded and compiled on the way
COPIES = (
    # copies of the parameters: gradient, two of Adam, where the fit began, where the bound was
    # best, those of two starts
    8
)
ROW_FACTOR_STEP = 80.0  # a row of a block, a factor, and a modality: moments and their gradients
FEATURE_FACTOR_STEP = 24.0
DENSE_CLIPPED = 16.0  # an entry of a block and a draw
NONZERO_POLISH = 36.0  # distinct counts of a block
NONZERO_START = 8.0  # of a modality of which a start takes some features
ROW_FACTOR_START = 60.0
ROW_FACTOR_LOCAL = 20.0
ROW_PAIR_LOCAL = 15.0  # a row of a block and a pair of factors: information, covariance
NONZERO_LOCAL = 12.0  # of a chunk
FEATURE_PAIR = (
    # a feature and a pair of factors: information on the loadings, twice where there are blocks to
    # be added
    4.0
)
PAIR_COVARIANCE = 32.0
NONZERO_COVARIANCE = 30.0  # of a chunk, by columns
NONZERO_DEVIANCE = 50.0  # of a range of rows
ROW_FACTOR_OUTPUT = 30.0
ROW_NODE = 100.0  # a row: its place on the grid
ROW_INDUCING = 100.0  # a row of a block, an inducing point and a factor
# Seconds on one thread of a processor of 2024.
BLOCK = 2.5e-3  # a step, each block
NONZERO, NONZERO_FACTOR = 1.2e-9, 0.16e-9
ROW_FACTOR = 3e-8
FEATURE_FACTOR = 1.8e-8
ENTRY, ENTRY_FACTOR = 0.5e-9, 0.09e-9  # of a dense pass, for negative binomials
NONZERO_PAIR = 0.1e-9  # of the information at the nonzeros
ROW_PAIR = 6e-8  # of an inverse
SEARCH = 0.1e-9  # of an entry of the binned counts, a factor, and an update
READ = 6e-10  # of a byte that is not kept
PRODUCT = 1e-10  # of a multiplication, many in large products
CUBE = 1.5e-10  # of basis functions cubed: eigenvalues, and a covariance
# a row, a factor, and a pair of inducing points, while length scales are learnt
ROW_POINTS = 1.8e-10
KEPT_POINTS = 0.3  # of that, once they are frozen
DEVIANCE = 1e-7  # of a nonzero
HALF = 0.6  # of a step at the nonzeros, where one of two gradients is wanted
CLIMB = 75  # steps at the constant rate, after those that choose among starts
VALUES = 4  # passes over the nonzeros that all factors and the null take to be judged


@dataclass(frozen=True, repr=False)
class Forecast:
    """Memory and time that a fit will take.

    ``parts`` are not all there at a time: ``memory`` is the largest sum that is. ``held`` of it is
    there before the fit, counts that have been passed in memory.
    """

    memory: float  # bytes at the peak
    seconds: float  # on one thread, about
    held: float  # bytes
    parts: dict[str, float]  # name -> bytes
    stages: dict[str, float]  # name -> seconds

    def __repr__(self) -> str:
        """Both numbers, and what they are made of."""
        lines = [f"memory: about {_bytes(self.memory)} at the peak, of these parts"]
        lines += [f"  {name:<14}{_bytes(size):>10}" for name, size in self.parts.items()]
        lines += [f"time: about {self.seconds:.2g} s on one thread"]
        return "\n".join(lines + [f"  {name:<14}{seconds:>8.2g} s" for name, seconds in self.stages.items()])


def _bytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def forecast(
    dataset: Dataset,
    model: str = "gpnsf",
    *,
    n_factors: int,
    n_spatial: int,
    init: str = "auto",
    tested: bool = False,
    refine: bool = True,
    block_size: int | None = None,
    n_samples: int | None = None,
    field: str = "hilbert",
    n_inducing: int | None = None,
    lengthscale: float | None = None,
    max_steps: int = Schedule.max_steps,
) -> Forecast:
    """Memory and time of :func:`gpnsf.core.inference.fitting.fit` on a CPU.

    Arguments as there and as for :func:`gpnsf.core.model.build`.
    """
    views = tuple(
        _ViewSize(view.counts.shape[1], view.counts.nnz, view.likelihood, view.weight) for view in dataset.views
    )
    block = min(block_size or dataset.block_size, dataset.n_obs)
    by_points = field == "inducing"
    space = _inducing(dataset, n_spatial, n_inducing) if by_points else _hilbert(dataset, n_spatial, lengthscale)
    init = init if PRESETS[model].nonnegative else "svd"
    whole = _Size(dataset.n_obs, views, n_factors, n_spatial, block, n_samples or 1, space, dataset.n_batches)
    first = _first(dataset, whole)
    stored = sum(BYTES * view.counts.nnz for view in dataset.views if not sp.issparse(view.counts))
    held = float(BYTES * dataset.nnz - stored)
    missing = max(0.0, stored - dataset.memory)
    copied = BYTES * first.nnz if stored or first.n_obs < whole.n_obs else 0.0
    parts = {
        "counts": held + stored - missing + (BYTES * whole.block_nnz if missing else 0),
        "sample": copied + (0 if first == whole else COPIES * NUMBER * first.parameters),
        "parameters": COPIES * NUMBER * whole.parameters,
        "starts": first.bytes_of_start(signed=init == "svd"),
        "gradient": whole.bytes_of_step(),
        "dispersion": whole.bytes_of_polish(),
        "local stage": whole.bytes_of_local() if refine else 0.0,
        "field": space.exact if refine else 0.0,
        "covariance": whole.bytes_of_covariance(),
        "deviance": whole.bytes_of_deviance(),
        "outputs": whole.n_obs * (ROW_FACTOR_OUTPUT * n_factors + space.row) + 2 * NUMBER * whole.loadings,
    }
    reading = READ * missing
    stages = {
        "starts": first.starts(init, max_steps),
        "optimisation": whole.climb(max_steps, reading) + (0 if first == whole else first.climb(max_steps, 0.0)),
        "dispersion": whole.polish(),
        "local stage": whole.local(reading) + space.seconds if refine else 0.0,
        "test": whole.test() if tested and 0 < n_spatial else 0.0,
        "summary": whole.summary(reading),
    }
    return Forecast(_peak(parts), sum(stages.values()), held, parts, stages)


def _peak(parts: Mapping[str, float]) -> float:
    """The largest sum that is there at a time; memory of a step is seldom given back."""
    lasting = LIBRARIES + sum(parts[name] for name in ("counts", "parameters", "gradient"))
    return lasting + max(
        parts["sample"] + parts["starts"],
        parts["dispersion"],
        parts["local stage"],
        parts["field"],
        parts["outputs"] + max(parts["covariance"], parts["deviance"]),
    )


def _first(dataset: Dataset, whole: _Size) -> _Size:
    """The smaller fit that a large one begins with, or the fit itself."""
    n_obs = subset_start.sample_size(dataset)
    size = whole if n_obs is None else whole.of(n_obs)
    real = any(FAMILIES[view.likelihood].signed for view in whole.views)
    if dataset.nnz < subset_start.MANY or real or dataset.nnz <= 2 * whole.lead.nnz:
        return size
    return replace(size, views=(size.lead,))


class _ViewSize(NamedTuple):
    """A modality."""

    n_features: int
    nnz: float
    likelihood: str
    weight: float


class _Space(NamedTuple):
    """A field."""

    parameters: int
    row: float  # bytes of each row
    block_row: float  # bytes of each row of a block, in a step
    exact: float  # bytes, to find its exact variance
    seconds: float  # for that
    # seconds of each row, in a step that learns length scales; 0 where it does not count
    row_seconds: float


def _hilbert(dataset: Dataset, n_spatial: int, lengthscale: float | None) -> _Space:
    """Basis functions on a grid that is three times as fine."""
    n_axis = np.clip(4 / (lengthscale or 0.2), *BASIS_RANGE) * (np.abs(dataset.coords).max(0) + 0.25) / 1.25
    weights, slices = np.prod(n_axis), dataset.n_libraries
    exact = 2 * NUMBER * weights**2 * 6
    seconds = CUBE * n_spatial * weights**3 * slices
    return _Space(
        int(2 * slices * n_spatial * weights), ROW_NODE, 0.0, float(exact) * (n_spatial > 0), float(seconds), 0.0
    )


def _inducing(dataset: Dataset, n_spatial: int, n_inducing: int | None) -> _Space:
    """Weights of all rows on all inducing points, kept once the length scales are frozen."""
    M = min(n_inducing or DEFAULT_INDUCING, dataset.n_obs)
    full = M <= DEFAULT_INDUCING
    each = M * n_spatial
    exact = 2.0 * NUMBER * each * dataset.n_obs
    return _Space(
        each * (2 + M * full), NUMBER * each, ROW_INDUCING * each, exact, PRODUCT * exact * M, ROW_POINTS * each * M
    )


@dataclass(frozen=True)
class _Size:
    """A fit, or a smaller one that it begins with, in numbers."""

    n_obs: int
    views: tuple[_ViewSize, ...]
    n_factors: int
    n_spatial: int
    block: int  # rows
    n_samples: int
    space: _Space
    n_batches: int

    def of(self, n_obs: int) -> _Size:
        """The same of some of the rows."""
        views = tuple(view._replace(nnz=view.nnz * n_obs / self.n_obs) for view in self.views)
        return replace(self, n_obs=n_obs, views=views, block=min(self.block, n_obs))

    @property
    def lead(self) -> _ViewSize:
        """The modality that seems to tell most."""
        return max(self.views, key=lambda view: view.weight * view.nnz / view.n_features**0.5)

    @property
    def seen(self) -> float:
        """Nonzeros that a start looks at: most variable features, with more than their share."""
        return self.lead.nnz * min(1.0, initial.MAX_FEATURES / self.lead.n_features) ** 0.5

    @property
    def nnz(self) -> float:
        """Nonzero counts."""
        return sum(view.nnz for view in self.views)

    @property
    def block_nnz(self) -> float:
        """Nonzero counts of a block."""
        return self.nnz * self.block / self.n_obs

    @property
    def chunk(self) -> float:
        """Nonzero counts of which temporary arrays are made at a time."""
        return min(CHUNK, max(view.nnz for view in self.views) * self.block / self.n_obs)

    @property
    def n_features(self) -> int:
        """Of all modalities."""
        return sum(view.n_features for view in self.views)

    @property
    def loadings(self) -> int:
        """Loadings and backgrounds."""
        return self.n_features * (self.n_factors + 1)

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        nonspatial = 2 * self.n_obs * (self.n_factors - self.n_spatial)
        multipliers = self.n_batches * self.n_features if self.n_batches > 1 else 0
        return self.loadings + multipliers + nonspatial + self.space.parameters

    @property
    def dispersed(self) -> list[_ViewSize]:
        """Modalities whose own bound comes last: negative binomials."""
        return [view for view in self.views if LIKELIHOODS[view.likelihood].surrogate]

    def bytes_of_start(self, *, signed: bool) -> float:
        """Some features of the leading modality; of signed models all of them, densely."""
        main = self.lead
        if signed:
            return 3.0 * NUMBER * self.n_obs * main.n_features
        some = NONZERO_START * main.nnz if main.n_features > initial.MAX_FEATURES else 0.0
        return some + 6 * NUMBER * (initial.MAX_DENSE + self.loadings) + ROW_FACTOR_START * self.n_obs * self.n_factors

    def bytes_of_step(self) -> float:
        """Moments of the factors of a block, and the loadings, with their gradients."""
        rows = self.block * (ROW_FACTOR_STEP * self.n_factors * len(self.views) * self.n_samples + self.space.block_row)
        clipped = sum(view.n_features for view in self.views if not FAMILIES[view.likelihood].has_bound)
        return rows + FEATURE_FACTOR_STEP * self.loadings + DENSE_CLIPPED * self.block * clipped * self.n_samples

    def bytes_of_polish(self) -> float:
        """Distinct counts of a block."""
        return NONZERO_POLISH * max((view.nnz for view in self.dispersed), default=0) * self.block / self.n_obs

    def bytes_of_local(self) -> float:
        """Information and covariance of the factors of a block."""
        pairs = self.n_factors**2
        rows = ROW_FACTOR_LOCAL * self.n_obs * self.n_factors + ROW_PAIR_LOCAL * self.block * pairs
        return rows + NONZERO_LOCAL * self.chunk

    def bytes_of_covariance(self) -> float:
        """Information on the loadings of the widest modality, and its inverse."""
        pairs, n_features = self.n_factors**2, max(view.n_features for view in self.views)
        information = pairs * FEATURE_PAIR * n_features
        added = information * (self.block < self.n_obs) + NONZERO_COVARIANCE * self.chunk
        return information + max(added, pairs * PAIR_COVARIANCE * min(FEATURES, n_features))

    def bytes_of_deviance(self) -> float:
        """Of the range of rows that is looked at at a time."""
        # not compiled
        others = [view for view in self.views if not FAMILIES[view.likelihood].events]
        shares = [(view.nnz, rows_at_a_time(self.n_obs, view.n_features, int(view.nnz))) for view in others]
        return NONZERO_DEVIANCE * max((nnz * rows / self.n_obs for nnz, rows in shares), default=0.0)

    def nonzeros(self, nnz: float) -> float:
        """Seconds for value and gradients at some nonzeros."""
        return nnz * (NONZERO + NONZERO_FACTOR * 8 * math.ceil((self.n_factors + 1) / 8))

    def step(self) -> float:
        """Seconds of a step while all counts are taken as Poisson or Bernoulli."""
        n_blocks = max(self.n_batches, math.ceil(self.n_obs / self.block))
        rows = ROW_FACTOR * self.n_obs * self.n_factors * len(self.views)
        fixed = n_blocks * (BLOCK + FEATURE_FACTOR * self.loadings)
        return self.n_samples * (self.nonzeros(self.nnz) + rows) + fixed

    def dense(self) -> float:
        """Seconds of a step with negative binomials."""
        entries = self.n_obs * sum(view.n_features for view in self.dispersed)
        return entries * (ENTRY + ENTRY_FACTOR * self.n_factors) + (2 * self.step() if entries else 0.0)

    def polish(self) -> float:
        """Seconds of all these steps, the fewer the more entries there are."""
        entries = self.n_obs * sum(view.n_features for view in self.dispersed)
        n_steps = np.clip(POLISH_ENTRIES // max(entries, 1), FEWEST_POLISH, Schedule.polish_steps)
        return float(n_steps) * self.dense()

    def start(self) -> float:
        """Seconds to make a start: binned counts searched, then all of them updated."""
        width = min(self.lead.n_features, initial.MAX_FEATURES)
        updates = 60 + initial.N_SEARCH * (40 + max(2, self.n_factors // 3) * 3)
        bins = 400 if self.n_obs > initial.LARGE else max(64, self.n_obs // 8)
        search = SEARCH * min(initial.MAX_DENSE, bins * width) * self.n_factors * updates
        return search + HALF * (40 * self.nonzeros(self.seen) + 10 * self.nonzeros(self.nnz))

    def starts(self, init: str, max_steps: int) -> float:
        """Seconds of all starts and of the steps that choose among them."""
        many = self.n_obs > initial.LARGE or self.seen > initial.MANY
        smooth = (1 if many else len(initial.BANDWIDTHS)) * (self.n_spatial > 0)
        number = {"auto": smooth + 1, "smooth": max(1, smooth)}.get(init, 1)
        made = number * self.start() if init in ("auto", "smooth") else HALF * 50 * self.nonzeros(self.nnz)
        steps = min(Schedule.pick_steps, max_steps)
        return made + number * (steps * self.step() + (RIDGE_STEPS + steps) * self.n_obs * self.space.row_seconds)

    def climb(self, max_steps: int, reading: float) -> float:
        """Seconds of the steps after that."""
        steps = min(CLIMB + Schedule.tail_steps, max_steps)
        learning = min(Schedule.kernel_steps - Schedule.pick_steps, steps)
        points = (learning + KEPT_POINTS * (steps - learning)) * self.n_obs * self.space.row_seconds
        return steps * (self.step() + reading) + points

    def local(self, reading: float) -> float:
        """Seconds of the local stage."""
        K = self.n_factors
        entries = self.n_obs * sum(view.n_features for view in self.dispersed)
        each = HALF * self.nonzeros(self.nnz) + entries * (ENTRY + ENTRY_FACTOR * K) + reading
        information = NONZERO_PAIR * self.nnz + ROW_PAIR * self.n_obs
        looked_at = self.n_obs * sum(min(view.n_features, MOST_FEATURES) for view in self.views)
        return sum(NEWTON_STEPS) * each + (len(NEWTON_STEPS) * information + PRODUCT * looked_at / 2) * K**2

    def test(self) -> float:
        """Seconds of the fits of two halves of some counts."""
        n_obs = min(self.n_obs, spatial_test.MAX_SPOTS, int(self.n_obs * spatial_test.MAX_NONZEROS / max(self.nnz, 1)))
        size = self.of(max(1, n_obs))
        fast = [FAMILIES[view.likelihood].fast or view.likelihood for view in size.views]
        views = tuple(v._replace(likelihood=kind) for v, kind in zip(size.views, fast, strict=True))
        size = replace(size, views=views)
        return 2 * (size.start() + 75 * size.step() + 2 * size.local(0.0))

    def summary(self, reading: float) -> float:
        """Seconds for the posterior: what each factor explains, information on the loadings."""
        return VALUES * self.nonzeros(self.nnz) + (NONZERO_PAIR * self.n_factors**2 + DEVIANCE) * self.nnz + 8 * reading
