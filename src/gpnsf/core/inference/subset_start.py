"""Where a large fit begins: at the end of a fit of some of its counts, carried over to all of them.

Starts, and the steps that choose among them, look at all counts many times. What they have to find
out, smooth fields and what goes with them, a sample of the rows shows as well, and so does the
leading modality. The fit itself then sees everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gpnsf.core import distributed
from gpnsf.core.counts.sparse import SparseCounts
from gpnsf.core.families import FAMILIES
from gpnsf.core.inference import training
from gpnsf.core.inference.initial import lead, loadings_at
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.likelihoods.moments import MEAN_RANGE
from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.types import Dataset, Start

__all__ = ["MANY", "SubsetStart", "lone", "sample", "sample_size"]

ROWS = 40_000  # of a sample
NONZEROS = 20_000_000  # of a sample that has more than the fewest rows
FEWEST = 5_000
# nonzeros from which the leading modality is fitted first, if the others are larger
MANY = 10_000_000
STRATUM = 200  # rows of a slice, a batch, or a set of modalities that is small, if it has as many
N_UPDATES = 10


def sample(dataset: Dataset, seed: int) -> np.ndarray | None:
    """Rows in rising order, drawn in proportion from slices, batches and sets of modalities.

    None where all are to be taken.

    Models of real values begin at a singular value decomposition of everything.
    """
    limit = sample_size(dataset)
    if limit is None:
        return None
    observed = np.column_stack([view.observed for view in dataset.views])
    rng = np.random.default_rng(seed)
    batch = np.zeros(dataset.n_obs, np.int64) if dataset.batch is None else dataset.batch
    strata = np.unique(
        np.column_stack([dataset.library, batch, observed]), axis=0, return_inverse=True
    )[1].ravel()
    share = limit / dataset.n_obs
    rows = []
    for members in (np.flatnonzero(strata == stratum) for stratum in range(strata.max() + 1)):
        wanted = min(len(members), max(STRATUM, round(share * len(members))))
        rows.append(rng.choice(members, wanted, replace=False))
    return np.sort(np.concatenate(rows))


def sample_size(dataset: Dataset) -> int | None:
    """About how many rows a sample has; None where there is none."""
    limit = min(ROWS, max(FEWEST, dataset.n_obs * NONZEROS // max(dataset.nnz, 1)))
    return None if dataset.n_obs <= limit or _has_real_values(dataset) else limit


def _has_real_values(dataset: Dataset) -> bool:
    """Whether a modality is not counted."""
    return any(FAMILIES[view.likelihood].signed for view in dataset.views)


def lone(dataset: Dataset) -> str | None:
    """The modality that goes ahead of the others.

    None where it would save little, lacks many rows, or real values are fitted.
    """
    if dataset.nnz < MANY or _has_real_values(dataset):
        return None
    few = dataset.subset(np.unique(np.linspace(0, dataset.n_obs - 1, 500, dtype=np.int64)))
    name = lead(few).name
    first = next(view for view in dataset.views if view.name == name)
    return name if dataset.nnz > 2 * first.counts.nnz and first.observed.mean() > 0.9 else None


@dataclass(frozen=True)
class SubsetStart:
    """The one start of a large fit, made when it is asked for."""

    dataset: Dataset
    rows: np.ndarray | None  # of the sample, if there is one
    ahead: str | None  # the modality that goes ahead, if there is one
    build: Callable[[Dataset, int], Factorization]
    n_spatial: int
    init: str
    options: training.Options

    def __str__(self) -> str:
        """Text by which a checkpoint knows it."""
        return f"{self.init}, {'all' if self.rows is None else len(self.rows)} rows, {self.ahead or 'all modalities'}"

    @property
    def left(self) -> Schedule:
        """Schedule of the steps after it: mostly loadings, which need no long approach."""
        schedule = self.options["schedule"]
        return replace(
            schedule,
            pick_steps=5,
            min_steps=30,
            tail_steps=schedule.tail_steps // 2,
            tol=5 * schedule.tol,
            moves=0,
        )

    def __iter__(self) -> Iterator[Start]:
        """Fit the part, and go on from there."""
        part = self.dataset if self.rows is None else self.dataset.subset(self.rows)
        model = self.build(_only(part, self.ahead), self.n_spatial)
        schedule = replace(self.options["schedule"], polish_steps=0)
        options: training.Options = {**self.options, "schedule": schedule}
        share = _only(part, self.ahead).nnz / max(self.dataset.nnz, 1)
        with options["progress"].part("beginning with a part of the counts", share):
            run = training.Optimisation(model, _only(part, self.ahead), nested=True, **options)
            run.climb(self.init)
        start = _continued(model, self._log_factors(model), run.history().best)
        factors = torch.as_tensor(start.factors if self.rows is None else start.factors[self.rows])
        for view in part.views if self.ahead else ():
            if view.name != self.ahead:
                view = _only(part, view.name).loaded().views[0]
                start.loadings[view.name] = loadings_at(view, SparseCounts(view.counts), factors)
        yield start

    @torch.no_grad()
    def _log_factors(self, model: Factorization) -> Tensor:
        """Log factors [N, K] of all rows at the fields and loadings of a model of some of them."""
        whole = replace(_only(self.dataset, self.ahead), memory=0.0)  # each block is looked at once
        blocks = model.blocks(whole, self.options["block_size"])
        if self.rows is None:
            return torch.cat([model.marginals(block)[0] for block in blocks])
        return distributed.by_block(blocks, lambda block: _carried(model, block))


def _only(dataset: Dataset, name: str | None) -> Dataset:
    """A dataset without the modalities that do not go ahead."""
    return (
        dataset
        if name is None
        else replace(dataset, views=tuple(v for v in dataset.views if v.name == name))
    )


@torch.no_grad()
def _continued(model: Factorization, log_factors: Tensor, name: str) -> Start:
    """Where a fit has arrived, as a start of this name."""
    factors = log_factors.exp().clamp(1e-4, 1e4)
    scale = factors.mean(0)
    widths = torch.cat([scale, torch.ones(1, device=scale.device)])
    if model.by_total:  # factors are relative: their counts in a spot stay what they are
        mass = model.mass()
        widths[:-1] *= mass.sum() / (mass @ scale)
    loadings = {
        modality: (view.loadings.mean * widths).cpu().numpy() for modality, view in model.items()
    }
    return Start(name, (factors / scale).cpu().numpy(), loadings)


def _field(model: Factorization, block: Block) -> Tensor:
    """Spatial log factors [n, T]."""
    if model.spatial is None:
        return torch.zeros(len(block.located.coords), 0, device=block.located.coords.device)
    return model.spatial.marginals(block.rows, block.located)[0]


def _carried(model: Factorization, block: Block) -> Tensor:
    """Nonspatial factors by multiplicative updates, shrunken towards one.

    The shrinkage is that of a gamma prior of their variance.
    """
    fixed = _field(model, block).clamp(*MEAN_RANGE).exp()
    if model.nonspatial is None:
        return fixed.log()
    T, prior = model.n_spatial, (-2 * model.nonspatial.log_sigma).exp()  # [K-T]
    H = torch.ones(len(fixed), len(prior), device=fixed.device)
    for _ in range(N_UPDATES):
        above, below = prior.expand_as(H), prior.expand_as(H)
        together = torch.cat([fixed, H], 1)
        relative = model.relative(together.log()).exp()
        share = relative[:, :1] / together[:, :1]
        for name, view in model.items():
            W, weight = view.loadings_of(block.batch), view.weight * block.size[name] * share
            A = block.size[name] * torch.cat([relative, torch.ones_like(share)], 1)
            above = (
                above + weight * H * block.counts[name].half(A, W, view.likelihood.link)[:, T:-1]
            )
            below = below + weight * W[:, T:-1].sum(0)
        H = above / below
    return torch.cat([fixed.log(), H.log()], 1)
