"""Blocks of factors: each class holds a prior, its guide and their divergence side by side."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from gpnsf.core.fields.base import AbstractField, Located

__all__ = ["LARGEST_SD", "AbstractFactors", "FieldFactors", "NormalFactors"]

# of relative nonspatial factors a priori: once a factor has nearly all counts of a spot, nothing
# but the prior keeps it from growing
LARGEST_SD = 2.0


class AbstractFactors(nn.Module, ABC):
    """A group of factors with its prior, its guide, and what the bound needs of both."""

    n_factors: int
    is_local: bool  # whether every row block brings its own latent variables

    @abstractmethod
    def model(self, rows: slice, located: Located) -> Tensor:
        """Sample the latent variables from the prior; the log factors [n, K] that they make."""

    @abstractmethod
    def guide(self, rows: slice, located: Located) -> None:
        """Sample the same latent variables from the approximation."""

    @abstractmethod
    def marginals(self, rows: slice, located: Located) -> tuple[Tensor, Tensor]:
        """Mean and variance [n, K] of the log factors under the guide."""

    @abstractmethod
    def divergence(self, rows: slice) -> Tensor:
        """``KL(q || p)`` of the latent variables (eq. 28).

        It is that of these rows where they are local, else of all.
        """

    @abstractmethod
    def clamp_(self) -> None:
        """Keep parameters within their limits."""


class FieldFactors(AbstractFactors):
    """Spatial factors: a Gaussian process and deviations of single spots from it (eq. 1 to 3).

        h_ik = f_k(s_i) + e_ik,  e_ik ~ N(0, gamma_k)

    The nugget gamma is zero in training, where it would steal the signal of the field; the local
    stage estimates it.
    """

    is_local = False
    nugget: Tensor

    def __init__(self, field: AbstractField) -> None:
        super().__init__()
        self.field, self.n_factors = field, field.n_factors
        self.register_buffer("nugget", torch.zeros(field.n_factors), persistent=False)
        # mean and variance [N, T], after the local stage
        self.deviations: tuple[Tensor, Tensor] | None = None

    def model(self, rows: slice, located: Located) -> Tensor:
        """``u ~ N(0, I)``, ``f | u`` from the field (eq. 9 and 12), ``e ~ N(0, gamma)``."""
        u = pyro.sample("u", self.field.prior())
        mean, variance = self.field.conditional(u, located)
        f = mean if variance is None else pyro.sample("f", self._residual(mean, variance))
        if not self.nugget.any():
            return f
        prior = dist.Normal(torch.zeros_like(mean), self.nugget.sqrt().expand_as(mean))
        return f + pyro.sample("e", prior.to_event(2))

    def guide(self, rows: slice, located: Located) -> None:
        """``q(u)`` (eq. 17), f given u as in the prior, and q(e)."""
        u = pyro.sample("u", self.field.posterior())
        mean, variance = self.field.conditional(u, located)
        if variance is not None:
            pyro.sample("f", self._residual(mean, variance))
        if self.deviations is not None:
            loc, variance = (part[rows] for part in self.deviations)
            pyro.sample("e", dist.Normal(loc, variance.sqrt()).to_event(2))

    def marginals(self, rows: slice, located: Located) -> tuple[Tensor, Tensor]:
        """``q(h)`` (eq. 32)."""
        m, v = self.field.marginals(located)
        if self.deviations is None:
            return m, v
        loc, variance = (part[rows] for part in self.deviations)
        return m + loc, v + variance

    def divergence(self, rows: slice) -> Tensor:
        """``KL(q(u) || N(0, I))``."""
        return kl_divergence(self.field.posterior(), self.field.prior())

    def clamp_(self) -> None:
        """Those of the kernel."""
        self.field.clamp_()

    def _residual(self, mean: Tensor, variance: Tensor) -> dist.Distribution:
        """The process given u; at an inducing point nothing is left to vary."""
        return dist.Normal(mean, (variance + 1e-10).sqrt()).to_event(2)


class NormalFactors(AbstractFactors):
    """Nonspatial factors: independent ``h_ik ~ N(0, sigma_k^2)`` with a mean-field guide."""

    is_local = True

    def __init__(self, n_obs: int, n_factors: int, largest_sd: float = math.inf) -> None:
        super().__init__()
        self.n_factors, self.largest_sd = n_factors, largest_sd
        self.log_sigma = nn.Parameter(torch.zeros(n_factors))
        self.loc = nn.Parameter(torch.zeros(n_obs, n_factors))
        self.log_scale = nn.Parameter(torch.full((n_obs, n_factors), -1.0))

    def model(self, rows: slice, located: Located) -> Tensor:
        """The prior of these rows."""
        return pyro.sample("h_nonspatial", self._prior(rows))

    def guide(self, rows: slice, located: Located) -> None:
        """The approximation of these rows."""
        pyro.sample("h_nonspatial", self._posterior(rows))

    def marginals(self, rows: slice, located: Located) -> tuple[Tensor, Tensor]:
        """Its two moments."""
        return self.loc[rows], (2 * self.log_scale[rows]).exp()

    def divergence(self, rows: slice) -> Tensor:
        """``KL(q(h) || N(0, sigma^2))`` of these rows."""
        loc, variance = self.loc[rows], (2 * self.log_scale[rows]).exp()
        square = (loc.square() + variance).sum(0) * (-2 * self.log_sigma).exp()
        each = 0.5 * (square - len(loc)) + len(loc) * self.log_sigma
        return each.sum() - self.log_scale[rows].sum()

    def clamp_(self) -> None:
        """The standard deviation a priori."""
        self.log_sigma.data.clamp_(max=math.log(self.largest_sd))

    def _prior(self, rows: slice) -> dist.Distribution:
        scale = self.log_sigma.exp().expand_as(self.loc[rows])
        return dist.Normal(torch.zeros_like(scale), scale).to_event(2)

    def _posterior(self, rows: slice) -> dist.Distribution:
        return dist.Normal(self.loc[rows], self.log_scale[rows].exp()).to_event(2)
