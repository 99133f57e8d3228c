"""Blocks of factors: each class holds a prior and its guide side by side."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from gpnsf.core.fields import AbstractField, Located

__all__ = ["AbstractFactors", "FieldFactors", "NormalFactors"]


class AbstractFactors(nn.Module, ABC):
    """A group of factors with its prior, its guide, and the marginals of the guide."""

    n_factors: int
    is_local: bool  # whether every row block brings its own latent variables

    @abstractmethod
    def model(self, rows: slice, located: Located, draw: bool) -> Tensor | None:
        """Sample the latent variables from the prior; with ``draw`` also the log factors [n, K]."""

    @abstractmethod
    def guide(self, rows: slice) -> None:
        """Sample the same latent variables from the approximation."""

    @abstractmethod
    def marginals(self, rows: slice, located: Located) -> tuple[Tensor, Tensor]:
        """Mean and variance [n, K] of the log factors under the guide."""


class FieldFactors(AbstractFactors):
    """Spatial factors: ``h_k = f_k(s)`` with a Gaussian-process prior (eq. 1 to 3)."""

    is_local = False

    def __init__(self, field: AbstractField) -> None:
        super().__init__()
        self.field, self.n_factors = field, field.n_factors

    def model(self, rows: slice, located: Located, draw: bool) -> Tensor | None:
        """``u ~ N(0, I)``, ``h | u`` from the field (eq. 9 and 12)."""
        u = pyro.sample("u", self.field.prior())
        if not draw:
            return None
        mean, variance = self.field.conditional(u, located)
        return pyro.sample("h_spatial", dist.Normal(mean, (variance + 1e-10).sqrt()).to_event(2))

    def guide(self, rows: slice) -> None:
        """``q(u)`` (eq. 17)."""
        pyro.sample("u", self.field.posterior())

    def marginals(self, rows: slice, located: Located) -> tuple[Tensor, Tensor]:
        """``q(h)`` (eq. 32)."""
        return self.field.marginals(located)


class NormalFactors(AbstractFactors):
    """Nonspatial factors: independent ``h_ik ~ N(0, sigma_k^2)`` with a mean-field guide."""

    is_local = True

    def __init__(self, n_obs: int, n_factors: int) -> None:
        super().__init__()
        self.n_factors = n_factors
        self.log_sigma = nn.Parameter(torch.zeros(n_factors))
        self.loc = nn.Parameter(torch.zeros(n_obs, n_factors))
        self.log_scale = nn.Parameter(torch.full((n_obs, n_factors), -1.0))

    def model(self, rows: slice, located: Located, draw: bool) -> Tensor | None:
        """The prior of these rows."""
        scale = self.log_sigma.exp().expand(len(self.loc[rows]), -1)
        return pyro.sample("h_nonspatial", dist.Normal(torch.zeros_like(scale), scale).to_event(2))

    def guide(self, rows: slice) -> None:
        """The approximation of these rows."""
        pyro.sample("h_nonspatial", dist.Normal(self.loc[rows], self.log_scale[rows].exp()).to_event(2))

    def marginals(self, rows: slice, located: Located) -> tuple[Tensor, Tensor]:
        """Its two moments."""
        return self.loc[rows], (2 * self.log_scale[rows]).exp()
