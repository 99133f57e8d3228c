"""Real values with normal noise."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from gpnsf.core import distributed
from gpnsf.core.counts.sparse import SparseCounts
from gpnsf.core.families import FAMILIES
from gpnsf.core.likelihoods.base import AbstractLikelihood
from gpnsf.core.likelihoods.moments import Moments

__all__ = ["Gaussian"]


class Gaussian(AbstractLikelihood):
    """``y ~ N(r, sd_j^2)``: ``E (y - r)^2 = y^2 - 2 y rE + rE^2 + sum_k W^2 Var H``.

    The expectation is exact, and comes from K x K products. Loadings are point estimates.
    """

    family = FAMILIES["gaussian"]

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features)
        self.log_sd = nn.Parameter(torch.zeros(n_features))

    def distribution(self, rate: Tensor) -> dist.Distribution:
        """Normal values."""
        return dist.Normal(rate, self.log_sd.exp())

    @torch.no_grad()
    def prepare(self, counts: Iterable[SparseCounts]) -> None:
        """Root mean square of each feature."""
        sums = [(block.column_squares, block.shape[0]) for block in counts]
        squares = torch.stack([part for part, _ in sums]).double().sum(0)
        distributed.add_up(squares)
        n_rows = distributed.total(sum(n for _, n in sums))
        self.log_sd.copy_(0.5 * torch.log(squares / n_rows + 1e-6))

    @torch.no_grad()
    def hold(self, dispersion: Tensor | None) -> None:
        """Standard deviations."""
        self.log_sd.copy_(dispersion.log())  # type: ignore[union-attr]
        self.log_sd.requires_grad_(False)

    def bound(
        self, counts: SparseCounts, moments: Moments, W: Tensor, geometric: Tensor | None = None
    ) -> Tensor:
        """Rows that were not observed have size factor 0 and drop out."""
        precision = torch.exp(-2 * self.log_sd)  # [P]
        weighted = W * precision[:, None]
        n_rows = (moments.mean[:, -1] > 0).sum()
        squares = (counts.column_squares * precision).sum()
        cross = (counts.product(weighted) * moments.mean).sum()
        second = moments.mean.T @ moments.mean + torch.diag(moments.variance().sum(0))  # [K+1, K+1]
        quadratic = (second * (W.T @ weighted)).sum()
        normaliser = n_rows * (self.log_sd.sum() + 0.5 * self.n_features * math.log(2 * math.pi))
        return -0.5 * (squares - 2 * cross + quadratic) - normaliser

    def curvature(
        self, counts: SparseCounts, A: Tensor, W: Tensor, information: bool
    ) -> tuple[Tensor, Tensor | None]:
        """``sum_j (y - r) w / sd^2`` and ``sum_j w w^T / sd^2``, alike for all observed rows."""
        weighted = W * torch.exp(-2 * self.log_sd)[:, None]
        gram = W.T @ weighted
        gradient = (counts.product(weighted) - A @ gram)[:, :-1]
        observed = (A[:, -1] > 0).to(A.dtype)
        return gradient * observed[:, None], gram[:-1, :-1] * observed[
            :, None, None
        ] if information else None

    def loading_information(self, counts: SparseCounts, A: Tensor, W: Tensor) -> Tensor:
        """``sum_i a a^T / sd^2``."""
        return (A.T @ A)[:-1, :-1] * torch.exp(-2 * self.log_sd)[:, None, None]

    def totals(self, A: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        """``sum r``."""
        total = A.sum(0).double() @ W.sum(0).double()
        return total, total

    def dispersion(self) -> Tensor:
        """Standard deviation of the noise."""
        return self.log_sd.detach().exp()
