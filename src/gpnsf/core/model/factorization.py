"""The joint model of all modalities and its guide, in Pyro.

    h_k = f_k(s), f_k ~ GP                      k = 1 .. T             (eq. 1 to 3)
    h_ik ~ N(0, sigma_k^2)                      k = T + 1 .. K
    r_ij = size_i (sum_k W_jk exp(h_ik - d_i) + b_j)                   (eq. 4 and 4b)
    y_ij ~ NB(r_ij, theta_j), Bernoulli(1 - exp(-r_ij)), ..            (eq. 5 and 6)

h has a Gaussian guide, loadings W >= 0 and backgrounds b >= 0 have a gamma prior and a gamma guide;
all hyperparameters are point estimates. The signed models ``fa`` and ``rsf`` put h itself in the
place of exp(h); their W and b are free, and point estimates.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from gpnsf.core import distributed
from gpnsf.core.counts.cache import BlockCounts, Shelf
from gpnsf.core.counts.sparse import SparseCounts
from gpnsf.core.fields.base import Located, to_tensors
from gpnsf.core.likelihoods import AbstractLikelihood
from gpnsf.core.likelihoods.moments import Moments
from gpnsf.core.model.factors import AbstractFactors, FieldFactors, NormalFactors
from gpnsf.core.model.loadings import AbstractLoadings, GammaLoadings, PosteriorLoadings
from gpnsf.core.model.relative import relative, same_total
from gpnsf.core.types import Dataset, Start

__all__ = ["Block", "Factorization", "ViewModel"]

LEAST_WEIGHT = 1e-6  # of the divergences
BATCH_SD = 0.5  # of the log multipliers of a batch, a priori


@dataclass
class Block:
    """Some rows of the dataset with all that a step needs of them."""

    rows: slice
    located: Located
    size: dict[str, Tensor]  # modality -> [n, 1]
    counts: Mapping[str, SparseCounts]  # empty: the model draws counts instead of scoring them
    share: float = 1.0  # part of the whole-data terms that this block carries
    batch: int = 0  # all rows are of one batch

    @property
    def every_row(self) -> slice:
        """All rows, as the block counts them."""
        return slice(0, self.rows.stop - self.rows.start)


class ViewModel(nn.Module):
    """Loadings, batch multipliers and likelihood of one modality."""

    def __init__(
        self,
        likelihood: AbstractLikelihood,
        loadings: AbstractLoadings,
        weight: float,
        n_batches: int = 1,
    ) -> None:
        super().__init__()
        self.likelihood, self.loadings, self.weight = likelihood, loadings, weight
        none = torch.zeros(n_batches, likelihood.n_features)
        self.log_multipliers = nn.Parameter(none) if n_batches > 1 else None  # [S, P]

    @property
    def multipliers(self) -> Tensor | None:
        """Multipliers [S, P] of the batches, which q(W) takes as known."""
        return None if self.log_multipliers is None else self.log_multipliers.detach().exp()

    def as_seen(self, loadings: Tensor, batch: int) -> Tensor:
        """Loadings [P, K+1] times the multipliers of a batch."""
        return (
            loadings
            if self.log_multipliers is None
            else self.log_multipliers[batch].exp()[:, None] * loadings
        )

    def loadings_of(self, batch: int) -> Tensor:
        """``E W`` [P, K+1] as one batch sees them."""
        return self.as_seen(self.loadings.mean, batch)

    def log_prior(self) -> Tensor | float:
        """Log prior of the point estimates that have one."""
        own = self.likelihood.log_prior()
        return (
            own
            if self.log_multipliers is None
            else own - 0.5 * (self.log_multipliers / BATCH_SD).square().sum()
        )


class Factorization(nn.Module):
    """The joint model: factor blocks and modalities, as a Pyro program with its guide.

    ``pyro.infer.SVI(model, model.guide, optimizer, ClosedFormELBO())`` trains it, and so does any
    other objective of Pyro.
    """

    def __init__(
        self,
        spatial: FieldFactors | None,
        nonspatial: NormalFactors | None,
        views: dict[str, ViewModel],
        *,
        n_obs: int,
        nonnegative: bool = True,
        by_total: bool = False,
        kl_weight: float = 1.0,
        n_samples: int | None = None,
    ) -> None:
        super().__init__()
        self.by_total = by_total
        self.spatial, self.nonspatial = spatial, nonspatial
        self.names = tuple(views)
        self.views = nn.ModuleList(views.values())
        self.n_obs, self.nonnegative = n_obs, nonnegative
        self.kl_weight, self.n_samples = max(kl_weight, LEAST_WEIGHT), n_samples
        self._store_name = f"gpnsf_{uuid.uuid4().hex}"

    @property
    def parts(self) -> list[AbstractFactors]:
        """The factor blocks that exist, spatial first."""
        return [part for part in (self.spatial, self.nonspatial) if part is not None]

    @property
    def n_spatial(self) -> int:
        """T."""
        return self.spatial.n_factors if self.spatial else 0

    @property
    def n_factors(self) -> int:
        """K."""
        return sum(part.n_factors for part in self.parts)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def has_posterior(self) -> bool:
        """Whether all loadings have one, and with it a way to lose a factor."""
        return all(isinstance(view.loadings, GammaLoadings) for view in self.views)

    def row_parameters(self) -> list[nn.Parameter]:
        """Parameters [N, ..] whose rows are each known to one block alone."""
        return [] if self.nonspatial is None else [self.nonspatial.loc, self.nonspatial.log_scale]

    def items(self) -> Iterator[tuple[str, ViewModel]]:
        """Modalities by name."""
        return zip(self.names, self.views, strict=True)  # type: ignore[arg-type]

    def forward(self, block: Block) -> dict[str, Tensor]:
        """The generative program, with parameters in Pyro's store for ``pyro.infer.SVI``."""
        self.register()
        return self.model(block)

    def register(self) -> None:
        """Make learnt parameters known to Pyro, under a name that no other model has."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                pyro.param(f"{self._store_name}.{name}", parameter)

    def model(self, block: Block) -> dict[str, Tensor]:
        """Latent variables, then the counts of every modality.

        Drawn, or scored where the block holds them (eq. 1 to 6).
        """
        h = torch.cat([self._scaled(part.model, part.is_local, block) for part in self.parts], 1)
        loadings, draws = {}, {}
        for name, view in self.items():
            with poutine.scale(scale=view.weight):
                loadings[name] = self._scaled(view.loadings.model, False, block, f"{name}_loadings")
        h = self.relative(h, loadings=loadings)
        factors = h.exp() if self.nonnegative else h
        for name, view in self.items():
            size, W = block.size[name], loadings[name]
            observed = block.counts[name].dense_rows(block.every_row) if block.counts else None
            with poutine.scale(scale=view.weight):
                rate = torch.cat([size * factors, size], 1) @ view.as_seen(W, block.batch).T
                law = view.likelihood.distribution(rate).mask(size > 0).to_event(2)
                draws[name] = pyro.sample(name, law, obs=observed)
                pyro.factor(f"{name}_prior", block.share * torch.as_tensor(view.log_prior()))
        return draws

    def guide(self, block: Block) -> None:
        """Mean-field approximation of the latent variables of the block."""
        if block.share == 1.0:
            self.look([block])
        for part in self.parts:
            self._scaled(part.guide, part.is_local, block)
        for name, view in self.items():
            arguments = f"{name}_loadings", view.multipliers, 1 / self.kl_weight
            with poutine.scale(scale=view.weight):
                self._scaled(view.loadings.guide, False, block, *arguments)

    def _scaled(
        self, sample: Callable[..., Any], is_local: bool, block: Block, *arguments: Any
    ) -> Any:
        """Sites under eta.

        They are shared out over the blocks where latent variables are common to all.
        """
        arguments = arguments or (block.rows, block.located)
        with poutine.scale(scale=self.kl_weight * (1.0 if is_local else block.share)):
            return sample(*arguments)

    def expected_log_likelihood(
        self, name: str, block: Block, h: tuple[Tensor, Tensor], W: PosteriorLoadings
    ) -> Tensor:
        """Closed-form bound on ``E_q log p(y | h, W)`` of a modality (eq. 29 to 31).

        With draws it is the mean over draws of the rows of h.
        """
        view, counts, size = dict(self.items())[name], block.counts[name], block.size[name]
        mean = view.as_seen(W.mean, block.batch)
        geometric = None if W.geometric is None else view.as_seen(W.geometric, block.batch)
        moments = self._moments(*h, size)
        view.loadings.see(block.batch, moments.mean)
        if self.n_samples is None:
            return view.likelihood.bound(counts, moments, mean, geometric)
        m, v = h
        # the slope of the root is infinite at 0
        scale, certain = v.clamp_min(1e-12).sqrt(), torch.zeros_like(v)
        draws = [
            self._moments(self.relative(m + scale * torch.randn_like(m)), certain, size)
            for _ in range(self.n_samples)
        ]
        return torch.stack(
            [view.likelihood.bound(counts, draw, mean, geometric) for draw in draws]
        ).mean()

    def marginals(self, block: Block) -> tuple[Tensor, Tensor]:
        """Mean and variance [n, K] of h under the guide (eq. 32 to 34)."""
        moments = [part.marginals(block.rows, block.located) for part in self.parts]
        return torch.cat([m for m, _ in moments], dim=1), torch.cat([v for _, v in moments], dim=1)

    def relative(
        self, m: Tensor, v: Tensor | None = None, loadings: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Log factors [n, K] in relation to the totals of the spots, from means and variances of h (eq. 4b).

        They are h itself where size factors are no totals. ``loadings`` [P, K+1]: default those of q.
        """
        return relative(m, v, self.mass(loadings)) if self.by_total else m

    def mass(self, loadings: Mapping[str, Tensor] | None = None) -> Tensor:
        """Expected counts [K] of a factor of size one, over the modalities at their weights."""
        known = loadings or {name: view.loadings.mean for name, view in self.items()}
        return sum(view.weight * known[name][:, :-1].sum(0) for name, view in self.items())  # type: ignore[return-value]

    def relative_marginals(
        self, block: Block, loadings: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance [n, K] of the log factors that rates are made of."""
        m, v = self.marginals(block)
        return self.relative(m, v, loadings), v

    def moments(self, name: str, block: Block) -> Moments:
        """Moments of the factors of a modality under the guide, background column included."""
        return self._moments(*self.relative_marginals(block), block.size[name])

    def _moments(self, m: Tensor, v: Tensor, size: Tensor) -> Moments:
        """Factors from log factors."""
        return (Moments.lognormal if self.nonnegative else Moments.normal)(m, v, size)

    @torch.no_grad()
    def look(self, blocks: list[Block]) -> None:
        """Work out, for the posteriors of the loadings, what they are exposed to now."""
        for block in distributed.mine(blocks):
            h = self.relative_marginals(block)
            for name, view in self.items():
                view.loadings.see(block.batch, self._moments(*h, block.size[name]).mean)
        self.end_pass()

    def end_pass(self) -> None:
        """All blocks were seen.

        The next pass takes the posteriors of the loadings from what this one has summed up.
        """
        for _, view in self.items():
            view.loadings.end_pass()

    def load(self, start: Start, blocks: list[Block]) -> None:
        """Begin at a start: log factors into the blocks, loadings into the modalities."""
        factors = torch.as_tensor(start.factors, device=self.device)
        logs = torch.log(factors + 0.02) if self.nonnegative else factors
        shift = logs[:, : self.n_spatial].mean(0)  # a field has no intercept: the loadings take it
        if self.spatial is not None:
            self.spatial.field.load(
                logs[:, : self.n_spatial] - shift, [block.located for block in blocks]
            )
        if self.nonspatial is not None:
            self.nonspatial.loc.data.copy_(logs[:, self.n_spatial :])
        known = {
            name: torch.as_tensor(start.loadings[name], device=factors.device).clone()
            for name in self.names
        }
        with same_total(self, self.mass(known).sum()):
            for name, view in self.items():
                if self.nonnegative:
                    known[name][:, : self.n_spatial] *= shift.exp()
                view.loadings.load(known[name])
        for name, view in self.items():
            if view.log_multipliers is not None and not view.likelihood.signed:
                view.log_multipliers.data.copy_(
                    self._first_multipliers(name, view, factors, blocks)
                )
        self.prepare(blocks)
        self.look(blocks)

    def prepare(self, blocks: list[Block]) -> None:
        """Take from the counts what priors and likelihoods have to know before a start is tried."""
        sums = {}
        for name, view in self.items():
            view.likelihood.prepare(block.counts[name] for block in distributed.mine(blocks))
            # column sums of one block at a time
            parts = [block.counts[name].column_sums for block in distributed.mine(blocks)]
            sums[name] = torch.stack(parts).double().sum(0)
            distributed.add_up(sums[name])
        strength = {
            name: view.weight * float(sums[name].sum()) / len(sums[name]) ** 0.5
            for name, view in self.items()
        }
        for name, view in self.items():
            view.loadings.prepare(
                sums[name].float(), leads=strength[name] == max(strength.values())
            )

    @torch.no_grad()
    def _first_multipliers(
        self, name: str, view: ViewModel, factors: Tensor, blocks: list[Block]
    ) -> Tensor:
        """Log ratio of each batch's counts of a feature to those that a start expects.

        It is shrunken as under a gamma prior.
        """
        W = view.loadings.mean
        observed = torch.zeros(blocks[-1].batch + 1, len(W), device=W.device)
        expected = torch.zeros_like(observed)
        for block in distributed.mine(blocks):
            size = block.size[name]
            A = torch.cat([size * factors[block.rows], size], 1)
            observed[block.batch] += block.counts[name].column_sums
            expected[block.batch] += W @ A.sum(0)
        distributed.add_up(observed, expected)
        logs = torch.log((observed + BATCH_SD**-2) / (expected + BATCH_SD**-2))
        return logs - logs.mean(0)

    def blocks(self, dataset: Dataset, block_size: int | None = None) -> list[Block]:
        """Row blocks of a dataset, whose counts are read when they are asked for.

        One block in memory is the special case.
        """
        shelf, n = Shelf(dataset.memory), distributed.number()
        # where nobody asks for a size, several processes get as many rows each
        n_parts = (
            max(n, math.ceil(dataset.n_obs / block_size))
            if block_size
            else n * math.ceil(dataset.n_obs / (n * dataset.block_size))
        )
        ends = np.cumsum(
            np.bincount(np.zeros(dataset.n_obs, int) if dataset.batch is None else dataset.batch)
        )
        cuts = np.union1d(np.linspace(0, dataset.n_obs, n_parts + 1).astype(int), ends).tolist()
        batches = np.searchsorted(ends, cuts[:-1], side="right").tolist()
        parts = zip(pairwise(cuts), batches, strict=True)
        return [
            self._block(dataset, slice(*rows), 1 / len(batches), shelf, batch)
            for rows, batch in parts
        ]

    def _block(
        self, dataset: Dataset, rows: slice, share: float, shelf: Shelf, batch: int
    ) -> Block:
        """One block, on the device of the model."""
        device = self.device
        place = dataset.coords[rows], dataset.library[rows]
        located = (
            self.spatial.field.locate(*place)
            if self.spatial
            else Located(*to_tensors(*place, device))
        )
        size = {
            v.name: torch.as_tensor(v.size[rows], device=device)[:, None] for v in dataset.views
        }
        counts = BlockCounts(dataset.views, rows, device, shelf)
        return Block(rows, located, size, counts, share, batch)
