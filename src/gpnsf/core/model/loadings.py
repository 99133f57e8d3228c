"""Loadings and background of one modality: each class holds a prior and its guide side by side.

The last of the K+1 columns is the background. Nonnegative loadings have gamma posteriors,

    W_jk ~ Gamma(alpha_k, alpha_k / (mu_k m_j)): few features of a factor are large    (eq. L1)
    q(W_jk) = Gamma(a_jk, b_jk),  b_jk = alpha_k / (mu_k m_j) + sum_i nu_i E H_ik / (eta kappa)  (L2)

with the level m_j of the feature, and alpha_k and mu_k estimated for each factor: a factor that the
counts do not ask for loses its loadings altogether (automatic relevance determination). b is the
rate that is optimal for Poisson counts; only ``a = b E W`` is learnt, so that there is one
parameter a loading.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from gpnsf.core import distributed
from gpnsf.core.model.gammas import SMALLEST_SHAPE, gamma_posterior
from gpnsf.core.types import TINY

__all__ = [
    "FIRST_SHAPE",
    "AbstractLoadings",
    "GammaLoadings",
    "GivenLoadings",
    "PointLoadings",
    "PosteriorLoadings",
]

FIRST_SHAPE, SHAPES = 0.5, (0.05, 20.0)  # of the prior: where it begins, and its range
# weight of the divergence of loadings: the mean count of a feature over the first, between the others; see docs/decisions.md
FULL_COUNTS, CHARGES = 100.0, (0.25, 0.5)
LEAST_OF_LEAD = 0.1  # charge of the leading modality at the least
LEVEL_SD = 1.0  # of the log level of a factor in new data, a priori
SWITCHED_OFF = 1e-6  # loadings of a factor that is not in use, relative to the mean of all


class PosteriorLoadings(NamedTuple):
    """Parts of q(W) that the bound needs."""

    mean: Tensor  # E W [P, K+1]
    geometric: Tensor | None  # exp E log W [P, K+1]; None where loadings are point estimates
    divergence: Tensor  # from the prior, weighted by its charge


class AbstractLoadings(nn.Module, ABC):
    """Loadings [P, K+1] of one modality."""

    raw: nn.Parameter
    nonnegative: bool

    def __init__(self, n_features: int, n_factors: int, *, background: bool) -> None:
        super().__init__()
        self.shape, self.background = (n_features, n_factors + 1), background

    @property
    def mean(self) -> Tensor:
        """``E W`` [P, K+1]; the background is zero in models without."""
        W = self.raw.exp() if self.nonnegative else self.raw
        return W if self.background else torch.cat([W[:, :-1], torch.zeros_like(W[:, -1:])], 1)

    @abstractmethod
    def posterior(self, multipliers: Tensor | None, weight: float) -> PosteriorLoadings:
        """``q(W)``, with the multipliers [S, P] of batches.

        ``weight`` is that of the counts over that of the divergences.
        """

    @abstractmethod
    def model(self, name: str) -> Tensor:
        """Sample from the prior."""

    @abstractmethod
    def guide(self, name: str, multipliers: Tensor | None, weight: float) -> None:
        """Sample from the approximation."""

    def see(self, batch: int, mean: Tensor) -> None:
        """Take note of ``size E H`` [n, K+1] of a block."""

    def end_pass(self) -> None:
        """All blocks were seen."""

    @torch.no_grad()
    def load(self, loadings: Tensor) -> None:
        """Start at loadings [P, K+1].

        Logarithms are taken of values floored at a thousandth of the mean.
        """
        if self.nonnegative:
            loadings = loadings.clamp_min(max(float(loadings.mean()) * 1e-3, 1e-12)).log()
        self.raw.copy_(loadings)

    def prepare(self, column_sums: Tensor, *, leads: bool) -> None:
        """See total counts [P], and whether this modality leads, before a start is tried."""

    def clamp_(self) -> None:
        """Keep the parameters of the prior inside their range."""

    @torch.no_grad()
    def put(self, factor: int, loadings: Tensor, like: int | None) -> None:
        """Give a factor new loadings [P], and the prior that another has."""
        self.raw[:, factor] = loadings.clamp_min(1e-12).log()

    def switch_off(self, factor: int) -> None:
        """Next to nothing of a factor."""
        self.put(factor, SWITCHED_OFF * self.mean.detach().mean() * self._of_each(), None)

    def _of_each(self) -> Tensor:
        """Level [P] of the features, 1 on average."""
        return torch.ones_like(self.raw[:, 0])


class PointLoadings(AbstractLoadings):
    """Point estimates, without a prior: the loadings of the papers, and of models with a sign."""

    def __init__(
        self, n_features: int, n_factors: int, *, background: bool, nonnegative: bool
    ) -> None:
        super().__init__(n_features, n_factors, background=background)
        self.nonnegative = nonnegative
        # a model is built without touching the global random state
        own = torch.Generator().manual_seed(0)
        flat = torch.full(self.shape, -math.log(n_factors + 1))
        self.raw = nn.Parameter(flat if nonnegative else torch.randn(self.shape, generator=own))

    def posterior(self, multipliers: Tensor | None, weight: float) -> PosteriorLoadings:
        """The estimate itself."""
        return PosteriorLoadings(self.mean, None, self.raw.new_zeros(()))

    def model(self, name: str) -> Tensor:
        """The estimate itself."""
        return self.mean

    def guide(self, name: str, multipliers: Tensor | None, weight: float) -> None:
        """Nothing is uncertain."""


class GivenLoadings(AbstractLoadings):
    """Loadings of another fit, of which a level is learnt for each factor, common to all modalities.

    ``W_jk exp(level_k)``, ``level_k ~ N(first_k, LEVEL_SD^2)``: new data may have more of a factor
    everywhere, for which a field around zero has no place. Loadings with a sign have no levels.
    """

    given: Tensor
    first: Tensor

    def __init__(
        self, given: Tensor, level: nn.Parameter, *, nonnegative: bool, share: float
    ) -> None:
        """``given`` [P, K+1] with the background last; ``share`` of the prior of the levels [K]."""
        super().__init__(given.shape[0], given.shape[1] - 1, background=True)
        self.nonnegative, self.level, self.share = nonnegative, level, share
        self.register_buffer("given", given)
        self.register_buffer("first", level.detach().clone())

    @property
    def mean(self) -> Tensor:
        """Loadings at the level of the new data [P, K+1]."""
        one = torch.ones_like(self.level[:1])
        return self.given * torch.cat([self.level.exp(), one]) if self.nonnegative else self.given

    def posterior(self, multipliers: Tensor | None, weight: float) -> PosteriorLoadings:
        """Loadings as points, and what the levels are charged for leaving their prior."""
        charge = 0.5 * ((self.level - self.first) / LEVEL_SD).square().sum()
        return PosteriorLoadings(self.mean, None, self.share * charge)

    def model(self, name: str) -> Tensor:
        """The loadings themselves."""
        return self.mean

    def guide(self, name: str, multipliers: Tensor | None, weight: float) -> None:
        """Nothing is sampled."""


class GammaLoadings(AbstractLoadings):
    """Gamma priors with a shape and a mean for each factor, and gamma posteriors."""

    nonnegative = True
    level: Tensor
    charge: Tensor

    def __init__(
        self, n_features: int, n_factors: int, *, background: bool, n_batches: int = 1
    ) -> None:
        super().__init__(n_features, n_factors, background=background)
        self.raw = nn.Parameter(torch.full(self.shape, -math.log(n_factors + 1)))  # log E W
        self.log_shape = nn.Parameter(torch.full((n_factors + 1,), math.log(FIRST_SHAPE)))
        # set by the steps, not learnt: sums of size factor times factor over the rows of each batch
        self.exposure = nn.Parameter(torch.zeros(n_batches, n_factors + 1), requires_grad=False)
        self._seen: Tensor | None = None
        self.register_buffer("level", torch.ones(n_features))
        self.register_buffer("charge", torch.ones(()))

    @torch.no_grad()
    def prepare(self, column_sums: Tensor, *, leads: bool) -> None:
        """Levels, and what the divergence weighs.

        The charge is less where a feature has few counts, least in the leading modality.
        """
        least, most = CHARGES
        self.level.copy_((column_sums + 1) / (column_sums + 1).mean())
        self.charge.copy_(
            (column_sums.mean() / FULL_COUNTS).clamp(LEAST_OF_LEAD if leads else least, most)
        )

    def _of_each(self) -> Tensor:
        """Levels by total counts."""
        return self.level

    @property
    def n_columns(self) -> int:
        """Factors, and the background where there is one."""
        return self.shape[1] if self.background else self.shape[1] - 1

    def posterior(self, multipliers: Tensor | None, weight: float) -> PosteriorLoadings:
        """Mean, geometric mean, and divergence from the prior times the charge."""
        alpha, mu = self._prior()
        n, exposure = self.n_columns, weight / self.charge * self.exposed(multipliers)
        geometric, divergence = gamma_posterior(
            self.raw[:, :n], alpha[:n], mu[:n], self.level, exposure[:, :n]
        )
        if not self.background:
            geometric = torch.cat([geometric, torch.zeros_like(self.raw[:, :1])], 1)
        return PosteriorLoadings(self.mean, geometric, self.charge * divergence)

    def model(self, name: str) -> Tensor:
        """``W ~ Gamma(alpha, alpha / (mu m))`` (eq. L1)."""
        alpha, beta = self._prior_rates()
        with pyro.poutine.scale(scale=float(self.charge)):
            W = pyro.sample(name, dist.Gamma(alpha.expand_as(beta), beta).to_event(2))
        return W if self.background else torch.cat([W, torch.zeros_like(W[:, :1])], 1)

    def guide(self, name: str, multipliers: Tensor | None, weight: float) -> None:
        """``W ~ Gamma(a, b)`` (eq. L2)."""
        _, beta = self._prior_rates()
        n = self.n_columns
        b = beta.detach() + weight / self.charge * self.exposed(multipliers)[:, :n]
        with pyro.poutine.scale(scale=float(self.charge)):
            own = dist.Gamma((self.raw[:, :n].exp() * b).clamp_min(SMALLEST_SHAPE), b)
            pyro.sample(name, own.to_event(2))

    def put(self, factor: int, loadings: Tensor, like: int | None) -> None:
        """Loadings, and the shape of the prior of another factor."""
        super().put(factor, loadings, like)
        self.log_shape.data[factor] = (
            math.log(FIRST_SHAPE) if like is None else self.log_shape.data[like]
        )

    def see(self, batch: int, mean: Tensor) -> None:
        """Add up what the loadings are exposed to."""
        if self._seen is None:
            self._seen = torch.zeros_like(self.exposure, dtype=torch.float64)
        self._seen[batch] += mean.detach().sum(0)

    @torch.no_grad()
    def end_pass(self) -> None:
        """The sums over all rows, of all processes, are the exposure from here on."""
        if self._seen is None and distributed.number() == 1:
            return
        seen = (
            torch.zeros_like(self.exposure, dtype=torch.float64)
            if self._seen is None
            else self._seen
        )
        distributed.add_up(seen)
        self.exposure.copy_(seen)
        self._seen = None

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep shapes inside their range.

        Beyond it all features are alike, or all but one are absent.
        """
        self.log_shape.clamp_(*map(math.log, SHAPES))

    def exposed(self, multipliers: Tensor | None) -> Tensor:
        """``sum_i nu_i E H_ik`` [1, K+1], or [P, K+1] as the batches see it."""
        return self.exposure if multipliers is None else multipliers.T @ self.exposure

    def _prior(self) -> tuple[Tensor, Tensor]:
        """Shapes alpha, and means mu at their optimum [K+1]."""
        mu = (self.raw.detach().exp() / self.level[:, None]).mean(0).clamp_min(TINY)
        return self.log_shape.exp(), mu

    def _prior_rates(self) -> tuple[Tensor, Tensor]:
        """Shapes alpha [K] and rates beta [P, K] of the loadings that are there.

        K + 1 with a background.
        """
        alpha, mu = (values[: self.n_columns] for values in self._prior())
        return alpha, alpha / (mu * self.level[:, None])
