"""Counts that vary more than their mean."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from gpnsf.core import distributed
from gpnsf.core.counts.rowblocks import (
    NegativeBinomialCounts,
    NegativeBinomialZeros,
    outer_products,
    unsaturated,
)
from gpnsf.core.counts.sparse import SparseCounts, SparseTerm
from gpnsf.core.families import FAMILIES
from gpnsf.core.likelihoods.base import AbstractLikelihood
from gpnsf.core.likelihoods.moments import Moments
from gpnsf.core.likelihoods.poisson import Poisson
from gpnsf.core.types import TINY

__all__ = ["NegativeBinomial"]


class NegativeBinomial(AbstractLikelihood):
    """``y ~ NB(mean r, size theta_j)``, variance ``r + r^2 / theta`` (eq. 5).

    ``sum_nz [y log rG - y log(theta + rE) + lgamma(y + theta) - lgamma(theta) - log y!]
    - sum_ij theta log1p(rE / theta)``.
    The Poisson bound is the surrogate: theta is only estimated once the rates are good.
    """

    family = FAMILIES["nb"]
    uncertain_loadings = True
    surrogate = "poisson"

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features)
        self.log_theta = nn.Parameter(torch.full((n_features,), math.log(10.0)))
        self._poisson = Poisson(n_features)

    @torch.no_grad()
    def hold(self, dispersion: Tensor | None) -> None:
        """Theta."""
        self.log_theta.copy_(dispersion.log())  # type: ignore[union-attr]
        self.log_theta.requires_grad_(False)

    def distribution(self, rate: Tensor) -> dist.Distribution:
        """Gamma-Poisson counts with mean ``rate``."""
        theta = self.log_theta.exp()
        return dist.GammaPoisson(theta, theta / rate.clamp_min(TINY))

    def bound(
        self, counts: SparseCounts, moments: Moments, W: Tensor, geometric: Tensor | None = None
    ) -> Tensor:
        """Zeros by dense row blocks; lgamma terms on the distinct (feature, count) pairs."""
        if self.in_surrogate:
            return self._poisson.bound(counts, moments, W, geometric)
        inner = W if geometric is None else geometric
        theta = self.log_theta.exp()
        feature, count, number = counts.histogram
        size = theta[feature]
        gammas = (number * (torch.lgamma(count + size) - torch.lgamma(size))).sum()
        nonzero = SparseTerm.apply(moments.geometric, inner, counts, "log")
        nonzero = nonzero - NegativeBinomialCounts.apply(moments.mean, W, theta, counts)
        zeros = NegativeBinomialZeros.apply(moments.mean, W, theta)
        return nonzero + gammas - counts.log_factorials - zeros

    def curvature(
        self, counts: SparseCounts, A: Tensor, W: Tensor, information: bool
    ) -> tuple[Tensor, Tensor | None]:
        """``sum_j (y/r - (y + theta)/(theta + r)) w``, and the information of the nonzeros."""
        theta = self.log_theta.exp()
        augmented = torch.cat([A, torch.ones_like(A[:, :1])], 1), torch.cat([W, theta[:, None]], 1)
        gradient = counts.half(A, W, "log") - counts.half(*augmented, "log")[:, :-1]
        gradient -= unsaturated(A, W, theta)
        return gradient[:, :-1], counts.information(
            A, W, self.nonzero_information
        ) if information else None

    def expected_information(self, counts: SparseCounts, A: Tensor, W: Tensor) -> Tensor:
        """``sum_j theta / (r (theta + r)) w w^T``."""
        inverse = torch.exp(-self.log_theta)
        return outer_products(
            A, W, lambda rate, feature: torch.addcmul(rate, rate**2, inverse[feature]).reciprocal_()
        )

    def nonzero_information(self, values: Tensor, rate: Tensor, feature: Tensor) -> Tensor:
        """``y theta / (r^2 (theta + r))``."""
        theta = self.log_theta.exp()[feature]
        return values * theta / (rate**2 * (theta + rate))

    def totals(self, A: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        """``sum r``."""
        return self._poisson.totals(A, W)

    def log_prior(self) -> Tensor | float:
        """``log theta ~ N(1, 2^2)``: features with a handful of counts say nothing about theta."""
        if self.in_surrogate:
            return 0.0
        return -0.5 * (((self.log_theta - 1.0) / 2.0) ** 2).sum()

    @torch.no_grad()
    def leave_surrogate(self, blocks: Iterable[tuple[SparseCounts, Moments, Tensor]]) -> None:
        """Moment estimate ``theta_j = sum r^2 / (sum (y - r)^2 - sum r)``.

        Each block brings its counts, its factors, and the loadings [P, K+1] that its batch sees. It
        takes O(nnz K + (N + P) K^2). Theta that is held stays.
        """
        self.in_surrogate = False
        if not self.log_theta.requires_grad:
            return
        rate_sq, excess = (torch.zeros_like(self.log_theta, dtype=torch.float64) for _ in range(2))
        for counts, moments, W in blocks:
            squares = ((W @ (moments.mean.T @ moments.mean)) * W).sum(1)  # [P]
            rate_sq += squares
            own = squares - W @ moments.mean.sum(0)
            r = counts.rates(moments.mean, W)
            excess += own.index_add_(0, counts.columns, counts.values**2 - 2 * counts.values * r)
        distributed.add_up(rate_sq, excess)
        theta = torch.where(
            excess > 0, rate_sq / excess.clamp_min(1e-6), torch.full_like(excess, 100.0)
        )
        self.log_theta.copy_(theta.clamp(0.05, 100.0).log())

    def dispersion(self) -> Tensor:
        """Theta."""
        return self.log_theta.detach().exp()

    def scorer(self) -> AbstractLikelihood:
        """The Poisson distribution: sums over all zeros would need K dense passes."""
        return self._poisson
