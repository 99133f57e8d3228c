"""What a fit will take, from its shapes alone: bytes at the peak, and seconds.

Nothing is read and nothing tried. Each stage counts its large arrays beside its code (``memory``); here they are added up. Time is
an order of magnitude: passes over the counts, times what a pass takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import scipy.sparse as sp

from gpnsf.core.counts.cache import BYTES
from gpnsf.core.families import FAMILIES
from gpnsf.core.fields.base import RIDGE_STEPS, FieldSize
from gpnsf.core.inference import (
    bins,
    initial,
    loading_stage,
    local_stage,
    posterior,
    spatial_test,
    steps,
    subset_start,
    training,
)
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.inference.shapes import Shapes
from gpnsf.core.model.build import field_size
from gpnsf.core.presets import PRESETS
from gpnsf.core.types import Dataset

__all__ = ["Forecast", "forecast"]

LIBRARIES = 5e7  # bytes of code that is loaded and compiled on the way
# Seconds on one thread of a processor of 2024.
NONZERO, NONZERO_FACTOR = 1.2e-9, 0.16e-9  # of a pass: value and gradients
ENTRY, ENTRY_FACTOR = 0.5e-9, 0.09e-9  # of a dense pass, for negative binomials
ROW_FACTOR, FEATURE_FACTOR, BLOCK = 3e-8, 1.8e-8, 2.5e-3
ROW_PAIR = 8e-8  # of the covariance of the factors of a row, for each pair of factors
BINNED = 7e-8  # of an entry of the binned counts of a start, for each factor
BYTE = 6e-10  # of counts that are read again in each pass
FROZEN = 0.4  # of the time of inducing points: most steps no longer learn length scales
# Passes over the counts.
START = 20  # to make a start
CLIMB = 75  # at the constant rate, after the steps that choose among starts
LOCAL = 8  # of the local stage
SUMMARY = 10


@dataclass(frozen=True, repr=False)
class Forecast:
    """Memory and time that a fit will take.

    ``parts`` are not all there at a time: ``memory`` is the largest sum that is. ``held`` of it is there before the fit, counts
    that have been passed in memory.
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
        return "\n".join(
            lines + [f"  {name:<14}{seconds:>8.2g} s" for name, seconds in self.stages.items()]
        )


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
    """Forecast :func:`gpnsf.core.inference.fitting.fit` on a CPU; arguments as there and as for :func:`gpnsf.core.model.build.build`."""
    whole = Shapes.of(dataset, n_factors, n_spatial, block_size, n_samples)
    first = _first(dataset, whole)
    space = field_size(field, dataset, n_spatial, lengthscale, n_inducing)
    signed = not PRESETS[model].nonnegative
    in_file = float(
        sum(BYTES * view.counts.nnz for view in dataset.views if not sp.issparse(view.counts))
    )
    held, missing = BYTES * dataset.nnz - in_file, max(0.0, in_file - dataset.memory)
    outputs, covariance, deviance = posterior.memory(whole, space)
    parts = {
        "counts": held + in_file - missing + (BYTES * whole.block_nnz if missing else 0),
        "sample": _of_first(first, whole, space, copied=in_file > 0),
        "parameters": steps.parameters(whole, space),
        "starts": initial.memory(first, signed=signed),
        "gradient": steps.memory(whole, space),
        "dispersion": training.memory_of_polish(whole),
        "local stage": local_stage.memory(whole) if refine else 0.0,
        "field": space.exact if refine else 0.0,
        "covariance": covariance,
        "deviance": deviance,
        "outputs": outputs,
    }
    stages = _stages(
        first, whole, space, BYTE * missing, init="svd" if signed else init, max_steps=max_steps
    )
    for name in ("loadings", "local stage"):
        stages[name] *= refine
    stages["test"] *= tested and n_spatial > 0
    return Forecast(_peak(parts), sum(stages.values()), float(held), parts, stages)


def _peak(parts: Mapping[str, float]) -> float:
    """The largest of what is there at a time; temporary arrays of a step are seldom given back to the system."""
    lasting = LIBRARIES + sum(parts[name] for name in ("counts", "parameters", "gradient"))
    return lasting + max(
        parts["sample"] + parts["starts"],
        parts["dispersion"],
        parts["local stage"],
        parts["field"],
        parts["outputs"] + max(parts["covariance"], parts["deviance"]),
    )


def _first(dataset: Dataset, whole: Shapes) -> Shapes:
    """The smaller fit that a large one begins with, or the fit itself."""
    n_obs = subset_start.sample_size(dataset)
    first = whole if n_obs is None else whole.rows(n_obs)
    real = any(FAMILIES[view.likelihood].signed for view in whole.views)
    if dataset.nnz < subset_start.MANY or real or dataset.nnz <= 2 * whole.lead.nnz:
        return first
    return replace(first, views=(first.lead,))


def _of_first(first: Shapes, whole: Shapes, space: FieldSize, *, copied: bool) -> float:
    """Bytes of the smaller fit: its counts, where they are copies, and its parameters."""
    counts = BYTES * first.nnz if copied or first.n_obs < whole.n_obs else 0.0
    return counts + (0.0 if first == whole else steps.parameters(first, space))


def _stages(
    first: Shapes, whole: Shapes, space: FieldSize, reading: float, *, init: str, max_steps: int
) -> dict[str, float]:
    """Seconds of each stage."""
    deep = first.lead.nnz >= initial.DEEP * first.n_obs
    tried = initial.bandwidths(first.n_obs, first.lead.nnz, deep=deep)
    smooth = len(tried) * (first.n_spatial > 0)
    number = {"auto": smooth + 1, "smooth": max(1, smooth)}.get(init, 1)
    chosen, climb = min(Schedule.pick_steps, max_steps), min(CLIMB + Schedule.tail_steps, max_steps)
    points = space.row_seconds
    rows = min(
        whole.n_obs,
        spatial_test.MAX_SPOTS,
        int(whole.n_obs * spatial_test.MAX_NONZEROS / max(whole.nnz, 1)),
    )
    half = whole.rows(max(1, rows))
    return {
        "starts": number
        * (_start(first) + chosen * _step(first) + (RIDGE_STEPS + chosen) * points * first.n_obs),
        "optimisation": climb * (_step(whole) + reading + FROZEN * points * whole.n_obs)
        + min(CLIMB, max_steps) * _step(first) * (first != whole),
        "dispersion": Schedule().polish(_entries(whole)) * (_dense(whole) + 2 * _step(whole)),
        "loadings": loading_stage.N_PASSES * (_step(whole) + reading),
        "local stage": _local(whole) + LOCAL * (_dense(whole) + reading) + space.exact_seconds,
        "test": 2
        * (_start(half) + spatial_test.SCHEDULE.max_steps * _step(half) + 2 * _local(half)),
        "summary": SUMMARY * (_step(whole) + reading),
    }


def _step(shapes: Shapes) -> float:
    """Seconds of a pass in which all counts are taken as Poisson or Bernoulli."""
    factors = 8 * math.ceil((shapes.n_factors + 1) / 8)
    nonzeros = shapes.nnz * (NONZERO + NONZERO_FACTOR * factors)
    n_blocks = max(shapes.n_batches, math.ceil(shapes.n_obs / shapes.block))
    rows = ROW_FACTOR * shapes.n_obs * shapes.n_factors * len(shapes.views)
    return shapes.n_samples * (nonzeros + rows) + n_blocks * (
        BLOCK + FEATURE_FACTOR * shapes.loadings
    )


def _entries(shapes: Shapes) -> int:
    """Entries of a dense pass."""
    return shapes.n_obs * sum(view.n_features for view in shapes.dispersed)


def _dense(shapes: Shapes) -> float:
    """Seconds of a dense pass."""
    return _entries(shapes) * (ENTRY + ENTRY_FACTOR * shapes.n_factors)


def _start(shapes: Shapes) -> float:
    """Seconds to make a start: binned counts are searched, then all of them updated."""
    width = min(shapes.lead.n_features, initial.MAX_FEATURES)
    binned = min(bins.MAX_DENSE, max(bins.FEWEST_BINS, shapes.n_obs // 8) * width)
    return BINNED * binned * shapes.n_factors + START * _step(shapes)


def _local(shapes: Shapes) -> float:
    """Seconds of the local stage at the nonzeros."""
    return (
        LOCAL * _step(shapes)
        + len(local_stage.NEWTON_STEPS) * ROW_PAIR * shapes.n_obs * shapes.n_factors**2
    )
