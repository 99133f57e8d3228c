"""Open or closed: two readings of the probability that a peak is open."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import pyro.distributions as dist
import torch
from torch import Tensor

from gpnsf.core.counts.rowblocks import outer_products, row_blocks
from gpnsf.core.counts.sparse import SparseCounts
from gpnsf.core.families import FAMILIES
from gpnsf.core.likelihoods.base import AbstractLikelihood, RowBlock
from gpnsf.core.likelihoods.moments import Moments
from gpnsf.core.likelihoods.poisson import Poisson
from gpnsf.core.types import TINY, View

__all__ = ["Bernoulli", "ClippedBernoulli"]

MAX_ENTRIES = 50_000_000  # of a dense pass over all rows
N_NULL, SETTLED = 25, 1e-3  # steps towards the constant rates of peaks, and the last one
FULL = 10.0  # the largest constant rate


class Bernoulli(Poisson):
    """``P(y = 1) = 1 - exp(-r)`` (cloglog): ``sum_nz log(expm1 rG) - sum rE``.

    It is a bound by a latent Poisson count.
    """

    family = FAMILIES["bernoulli"]

    def distribution(self, rate: Tensor) -> dist.Distribution:
        """Bernoulli of at least one event."""
        return dist.Bernoulli(probs=-torch.expm1(-rate))

    def expected_information(self, counts: SparseCounts, A: Tensor, W: Tensor) -> Tensor:
        """``sum_j (1 - p) / p w w^T``."""
        return outer_products(A, W, lambda rate, feature: rate.expm1_().reciprocal_())

    def nonzero_information(self, values: Tensor, rate: Tensor, feature: Tensor) -> Tensor:
        """``(1 - p) / p^2``."""
        return torch.exp(-rate) / torch.expm1(-rate) ** 2

    def totals(self, A: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        """``sum p`` and ``sum r exp(-r)``, over dense row blocks.

        Where there are many entries, the ratios of both to ``sum r`` come from some of the rows.
        """
        A = A[A[:, -1] > 0]  # observed
        some = A[:: 1 + len(A) * len(W) // MAX_ENTRIES]
        total = slope = torch.zeros((), dtype=torch.float64, device=A.device)
        for rows in row_blocks(len(some), len(W)):
            rate = some[rows] @ W.T
            closed = torch.exp(-rate)
            total = total + (1 - closed).sum().double()
            slope = slope + (rate * closed).sum().double()
        if len(some) == len(A):
            return total, slope
        linear, of_some = (
            (part.sum(0).double() @ W.sum(0).double()).clamp_min(TINY) for part in (A, some)
        )
        return total * linear / of_some, slope * linear / of_some

    def flat_deviance(self, view: View, blocks: Sequence[RowBlock]) -> float:
        """At the rates whose expected numbers of open peaks are the observed ones."""
        name = view.name
        mass = sum(float(block.size[name].sum()) for block in blocks)
        n_rows = sum(int((block.size[name] > 0).sum()) for block in blocks)
        n_open = reduce(torch.add, (block.counts[name].per_column for block in blocks))[:, None]
        mean = mass / max(n_rows, 1)
        rate = -torch.log1p(-n_open / (n_rows + 0.5)) / mean
        for _ in range(N_NULL):
            before, rate = rate, self._towards_flat(name, blocks, rate, n_open, mass, mean)
            if bool(((rate - before).abs() <= SETTLED * before).all()):
                break
        flat = ((block.counts[name], block.size[name]) for block in blocks)
        return -2 * sum(float(self.bound(counts, Moments.certain(A), rate)) for counts, A in flat)

    def _towards_flat(
        self,
        name: str,
        blocks: Sequence[RowBlock],
        rate: Tensor,
        n_open: Tensor,
        mass: float,
        mean: float,
    ) -> Tensor:
        """Newton step of constant rates [P, 1] in their logarithm, with the slope of equal sizes.

        At the maximum ``sum_open s / (1 - exp(-s rate)) = sum s``.
        """
        events = (b.counts[name].half_loadings(b.size[name], rate, self.link) for b in blocks)
        expected = reduce(torch.add, events)
        step = torch.log(expected / mass) * torch.expm1(rate * mean) / (rate * mean)
        moved = (rate * step.clamp(-1.0, 1.0).exp()).clamp_max(FULL / mean)
        return torch.where(n_open > 0, moved, 0.0)


class ClippedBernoulli(AbstractLikelihood):
    """``y ~ Bernoulli(min(r, 1 - eps))``: the other reading of eq. 6, for Monte Carlo only.

    ``log(1 - r)`` is concave, so that Jensen's inequality points the wrong way and no
    closed form bounds its expectation. Loadings are point estimates.
    """

    family = FAMILIES["bernoulli_clipped"]
    epsilon = 1e-3

    def _probability(self, rate: Tensor) -> Tensor:
        """Rates above one are cut off, with a small slope left so that they can come back."""
        return torch.where(
            rate < 1 - self.epsilon, rate, 1 - self.epsilon + 1e-4 * (rate - rate.detach())
        )

    def distribution(self, rate: Tensor) -> dist.Distribution:
        """Bernoulli with the clipped rate as its probability."""
        return dist.Bernoulli(probs=self._probability(rate))

    def bound(
        self, counts: SparseCounts, moments: Moments, W: Tensor, geometric: Tensor | None = None
    ) -> Tensor:
        """Dense log-likelihood at the means (exact at v = 0), by row blocks."""
        total: Tensor | float = 0.0
        for rows in row_blocks(counts.shape[0], counts.shape[1]):
            p = self._probability(moments.mean[rows] @ W.T)
            y = counts.dense_rows(rows)
            # size factor 0 marks rows that were not observed
            observed = moments.mean[rows, -1:] > 0
            total = total + ((y * torch.log(p + TINY) + (1 - y) * torch.log1p(-p)) * observed).sum()
        return torch.as_tensor(total)

    def curvature(
        self, counts: SparseCounts, A: Tensor, W: Tensor, information: bool
    ) -> tuple[Tensor, Tensor | None]:
        """``sum_j (y/p - (1 - y)/(1 - p)) w`` and ``sum_j w w^T / (p (1 - p))``.

        Rates that are clipped count in neither.
        """
        K = W.shape[1] - 1
        pairs = (W[:, :-1, None] * W[:, None, :-1]).reshape(len(W), -1)
        gradients, infos = [], []
        for rows in row_blocks(len(A), len(W)):
            rate = A[rows] @ W.T
            p = rate.clamp(1e-6, 1 - self.epsilon)
            free = (rate < 1 - self.epsilon) * (A[rows, -1:] > 0)
            y = counts.dense_rows(rows)
            gradients.append(((y / p - (1 - y) / (1 - p)) * free) @ W[:, :-1])
            infos.append(((free / (p * (1 - p))) @ pairs).reshape(-1, K, K))
        return torch.cat(gradients), torch.cat(infos) if information else None

    def nonzero_information(self, values: Tensor, rate: Tensor, feature: Tensor) -> Tensor:
        """``1 / (p^2 (1 - p))``."""
        p = rate.clamp(1e-6, 1 - self.epsilon)
        return 1 / (p**2 * (1 - p))

    def totals(self, A: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        """``sum p`` and its derivative, over dense row blocks."""
        total = slope = torch.zeros((), dtype=torch.float64, device=A.device)
        for rows in row_blocks(len(A), len(W)):
            rate = A[rows] @ W.T
            total = total + rate.clamp_max(1 - self.epsilon).sum().double()
            slope = slope + (rate * (rate < 1 - self.epsilon)).sum().double()
        return total, slope

    def flat_deviance(self, view: View, blocks: Sequence[RowBlock]) -> float:
        """That of the other reading, whose constant rates give the same probabilities."""
        return self._flat_deviance_by(FAMILIES["bernoulli"], view)
