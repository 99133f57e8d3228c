"""Likelihoods of counts given rates: dense density, closed-form bound, local curvature.

With factors ``A`` [n, K+1] (size factors and the constant background column multiplied in) and loadings ``W`` [P, K+1] the rate
is ``r = A W^T``. Under q the factors have geometric mean ``G = exp(m)`` and arithmetic mean ``E = exp(m + v/2)``; write
``rG = G W^T`` and ``rE = E W^T``. Two facts give every bound here: ``E log r >= log rG`` (log-sum-exp is convex) and
``E r = rE``. At v = 0 each bound is the log-likelihood itself, which is what the Monte Carlo objective uses.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from gpnsf.core import distributed
from gpnsf.core.backends import one_changed
from gpnsf.core.moments import Moments
from gpnsf.core.rowblocks import NegativeBinomialCounts, NegativeBinomialZeros, outer_products, row_blocks, unsaturated
from gpnsf.core.sparse import SparseCounts, SparseTerm
from gpnsf.core.types import TINY

__all__ = [
    "LIKELIHOODS",
    "AbstractLikelihood",
    "Bernoulli",
    "ClippedBernoulli",
    "Gaussian",
    "NegativeBinomial",
    "Poisson",
]

MAX_ENTRIES = 50_000_000  # of a dense pass over all rows


class AbstractLikelihood(nn.Module, ABC):
    """Conditional distribution of one modality given its rates."""

    uncertain_loadings = False
    surrogate: str | None = None
    in_surrogate = False
    signed = False  # whether rates may be negative
    link = "log"  # of updates on the nonzeros; "cloglog" where an open peak hides how many events there were
    has_bound = True  # whether `bound` is a lower bound for v > 0

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.n_features = n_features

    @abstractmethod
    def distribution(self, rate: Tensor) -> dist.Distribution:
        """Dense distribution of the counts [n, P] at the given rates."""

    @abstractmethod
    def bound(self, counts: SparseCounts, moments: Moments, W: Tensor, geometric: Tensor | None = None) -> Tensor:
        """Lower bound on the expected log-likelihood of a row block."""

    @abstractmethod
    def curvature(self, counts: SparseCounts, A: Tensor, W: Tensor, information: bool) -> tuple[Tensor, Tensor | None]:
        """Gradient [n, K] of the log-likelihood in the factors A and, if asked for, their information [n, K, K].

        ``A`` and ``W`` hold the background as their last column, which gets neither.
        """

    def expected_information(self, counts: SparseCounts, A: Tensor, W: Tensor) -> Tensor:
        """Fisher's information [n, K, K] on the factors: what :meth:`curvature` has the counts estimate, which few counts do badly."""
        return self.curvature(counts, A, W, information=True)[1]  # type: ignore[return-value]

    def nonzero_information(self, values: Tensor, rate: Tensor, feature: Tensor) -> Tensor:
        """Weights on the nonzeros whose sum over ``w w^T`` is unbiased for Fisher's information."""
        return values / rate**2

    def lost(self, counts: SparseCounts, A: Tensor, W: Tensor, changes: Tensor) -> Tensor:
        """What the log-likelihood loses [K+1] when ``changes`` [n, K+1] are added to one column of A after the other."""
        values = [self.bound(counts, Moments.certain(changed), W) for changed in one_changed(A, changes)]
        return self.bound(counts, Moments.certain(A), W).double() - torch.stack(values).double()

    def loading_information(self, counts: SparseCounts, A: Tensor, W: Tensor) -> Tensor:
        """Information [P, K, K] on the loadings: the local curvature with rows and columns exchanged."""
        return counts.loading_information(A, W, self.nonzero_information)

    @abstractmethod
    def totals(self, A: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        """Expected total of a row block, and its derivative in the logarithm of a common factor on W."""

    def prepare(self, counts: Iterable[SparseCounts]) -> None:
        """Set the likelihood's own parameters from the data before a start is tried."""

    def leave_surrogate(self, blocks) -> None:
        """Nothing."""

    def log_prior(self) -> Tensor | float:
        """Log prior of the likelihood's own parameters."""
        return 0.0

    def dispersion(self) -> Tensor | None:
        """Per-feature parameter [P] that is reported, if there is one."""
        return None


class Poisson(AbstractLikelihood):
    """``y ~ Poisson(r)``: ``sum_nz y log rG - sum_k (sum_i E_ik)(sum_j W_jk) - sum log y!``; the second term is exact."""

    uncertain_loadings = True

    def distribution(self, rate: Tensor) -> dist.Distribution:
        """Poisson counts."""
        return dist.Poisson(rate)

    def bound(self, counts: SparseCounts, moments: Moments, W: Tensor, geometric: Tensor | None = None) -> Tensor:
        """Nonzeros and column sums only."""
        nonzero = SparseTerm.apply(moments.geometric, W if geometric is None else geometric, counts, self.link)
        return nonzero - (moments.mean.sum(0) * W.sum(0)).sum() - counts.log_factorials

    def curvature(self, counts: SparseCounts, A: Tensor, W: Tensor, information: bool) -> tuple[Tensor, Tensor | None]:
        """``sum_j (df/dr - 1) w``, f being the term of the nonzeros, and the information that they carry."""
        gradient = counts.half(A, W, self.link)[:, :-1] - W.sum(0)[:-1]
        return gradient, counts.information(A, W, self.nonzero_information) if information else None

    def expected_information(self, counts: SparseCounts, A: Tensor, W: Tensor) -> Tensor:
        """``sum_j w w^T / r``."""
        return outer_products(A, W, lambda rate, feature: rate.reciprocal_())

    def lost(self, counts: SparseCounts, A: Tensor, W: Tensor, changes: Tensor) -> Tensor:
        """One pass over the nonzeros for all columns."""
        nonzero = counts.value(A, W, self.link) - counts.without(A, changes, W, self.link)
        return nonzero + changes.sum(0).double() * W.sum(0).double()

    def totals(self, A: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        """``sum r``, which is its own derivative."""
        total = A.sum(0).double() @ W.sum(0).double()
        return total, total


class Bernoulli(Poisson):
    """``P(y = 1) = 1 - exp(-r)`` (cloglog): ``sum_nz log(expm1 rG) - sum rE``, a bound by a latent Poisson count."""

    link = "cloglog"
    uncertain_loadings = True

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
        """``sum p`` and ``sum r exp(-r)``, over dense row blocks; of large ones their ratio to ``sum r``, in some of the rows."""
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
        linear, of_some = ((part.sum(0).double() @ W.sum(0).double()).clamp_min(TINY) for part in (A, some))
        return total * linear / of_some, slope * linear / of_some


class NegativeBinomial(AbstractLikelihood):
    """``y ~ NB(mean r, size theta_j)``, variance ``r + r^2 / theta`` (eq. 5).

    ``sum_nz [y log rG - y log(theta + rE) + lgamma(y + theta) - lgamma(theta) - log y!] - sum_ij theta log1p(rE / theta)``.
    While ``in_surrogate`` holds, the bound is the Poisson one: theta is only estimated once the rates are good.
    """

    uncertain_loadings = True
    surrogate = "poisson"

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features)
        self.log_theta = nn.Parameter(torch.full((n_features,), math.log(10.0)))
        self.in_surrogate = False
        self._poisson = Poisson(n_features)

    def distribution(self, rate: Tensor) -> dist.Distribution:
        """Gamma-Poisson counts with mean ``rate``."""
        theta = self.log_theta.exp()
        return dist.GammaPoisson(theta, theta / rate.clamp_min(TINY))

    def bound(self, counts: SparseCounts, moments: Moments, W: Tensor, geometric: Tensor | None = None) -> Tensor:
        """Exact in the zeros by dense row blocks; lgamma terms on the distinct (feature, count) pairs."""
        if self.in_surrogate:
            return self._poisson.bound(counts, moments, W, geometric)
        theta = self.log_theta.exp()
        feature, count, number = counts.histogram
        size = theta[feature]
        gammas = (number * (torch.lgamma(count + size) - torch.lgamma(size))).sum()
        nonzero = SparseTerm.apply(moments.geometric, W if geometric is None else geometric, counts, "log")
        nonzero = nonzero - NegativeBinomialCounts.apply(moments.mean, W, theta, counts)
        return nonzero + gammas - counts.log_factorials - NegativeBinomialZeros.apply(moments.mean, W, theta)

    def curvature(self, counts: SparseCounts, A: Tensor, W: Tensor, information: bool) -> tuple[Tensor, Tensor | None]:
        """``sum_j (y/r - (y + theta)/(theta + r)) w``, and the information that the nonzeros carry."""
        theta = self.log_theta.exp()
        augmented = torch.cat([A, torch.ones_like(A[:, :1])], 1), torch.cat([W, theta[:, None]], 1)
        gradient = counts.half(A, W, "log") - counts.half(*augmented, "log")[:, :-1]
        gradient -= unsaturated(A, W, theta)
        return gradient[:, :-1], counts.information(A, W, self.nonzero_information) if information else None

    def expected_information(self, counts: SparseCounts, A: Tensor, W: Tensor) -> Tensor:
        """``sum_j theta / (r (theta + r)) w w^T``."""
        inverse = torch.exp(-self.log_theta)
        return outer_products(A, W, lambda rate, feature: torch.addcmul(rate, rate**2, inverse[feature]).reciprocal_())

    def nonzero_information(self, values: Tensor, rate: Tensor, feature: Tensor) -> Tensor:
        """``y theta / (r^2 (theta + r))``."""
        theta = self.log_theta.exp()[feature]
        return values * theta / (rate**2 * (theta + rate))

    def totals(self, A: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        """``sum r``."""
        return self._poisson.totals(A, W)

    def prepare(self, counts: Iterable[SparseCounts]) -> None:
        """Begin in the Poisson phase."""
        self.in_surrogate = True

    def log_prior(self) -> Tensor | float:
        """``log theta ~ N(1, 2^2)``: features with a handful of counts say nothing about theta."""
        return 0.0 if self.in_surrogate else -0.5 * (((self.log_theta - 1.0) / 2.0) ** 2).sum()

    @torch.no_grad()
    def leave_surrogate(self, blocks: Iterable[tuple[SparseCounts, Moments, Tensor]]) -> None:
        """Moment estimate ``theta_j = sum r^2 / (sum (y - r)^2 - sum r)`` in O(nnz K + (N + P) K^2), then leave the Poisson phase.

        Each block brings its counts, its factors, and the loadings [P, K+1] that its batch sees.
        """
        rate_sq, excess = (torch.zeros_like(self.log_theta, dtype=torch.float64) for _ in range(2))
        for counts, moments, W in blocks:
            squares = ((W @ (moments.mean.T @ moments.mean)) * W).sum(1)  # [P]
            rate_sq += squares
            own = squares - W @ moments.mean.sum(0)
            r = counts.rates(moments.mean, W)
            excess += own.index_add_(0, counts.columns, counts.values**2 - 2 * counts.values * r)
        distributed.add_up(rate_sq, excess)
        theta = torch.where(excess > 0, rate_sq / excess.clamp_min(1e-6), torch.full_like(excess, 100.0))
        self.log_theta.copy_(theta.clamp(0.05, 100.0).log())
        self.in_surrogate = False

    def dispersion(self) -> Tensor:
        """Theta."""
        return self.log_theta.detach().exp()


class ClippedBernoulli(AbstractLikelihood):
    """``y ~ Bernoulli(min(r, 1 - eps))``: the other reading of eq. 6, kept for comparison and for the Monte Carlo objective only.

    ``log(1 - r)`` is concave, so that Jensen's inequality points the wrong way and no closed form bounds its expectation.
    """

    has_bound = False
    link = "cloglog"
    epsilon = 1e-3

    def _probability(self, rate: Tensor) -> Tensor:
        """Rates above one are cut off, with a small slope left so that they can come back."""
        return torch.where(rate < 1 - self.epsilon, rate, 1 - self.epsilon + 1e-4 * (rate - rate.detach()))

    def distribution(self, rate: Tensor) -> dist.Distribution:
        """Bernoulli with the clipped rate as its probability."""
        return dist.Bernoulli(probs=self._probability(rate))

    def bound(self, counts: SparseCounts, moments: Moments, W: Tensor, geometric: Tensor | None = None) -> Tensor:
        """Dense log-likelihood at the means (exact at v = 0), by row blocks."""
        total: Tensor | float = 0.0
        for rows in row_blocks(counts.shape[0], counts.shape[1]):
            p = self._probability(moments.mean[rows] @ W.T)
            y = counts.dense_rows(rows)
            observed = moments.mean[rows, -1:] > 0  # size factor 0 marks rows that were not observed
            total = total + ((y * torch.log(p + TINY) + (1 - y) * torch.log1p(-p)) * observed).sum()
        return torch.as_tensor(total)

    def curvature(self, counts: SparseCounts, A: Tensor, W: Tensor, information: bool) -> tuple[Tensor, Tensor | None]:
        """``sum_j (y/p - (1 - y)/(1 - p)) w`` and ``sum_j w w^T / (p (1 - p))`` over the rates that are not clipped."""
        K = W.shape[1] - 1
        pairs = (W[:, :-1, None] * W[:, None, :-1]).reshape(len(W), -1)
        gradients, infos = [], []
        for rows in row_blocks(len(A), len(W)):
            rate = A[rows] @ W.T
            p, free = rate.clamp(1e-6, 1 - self.epsilon), (rate < 1 - self.epsilon) * (A[rows, -1:] > 0)
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


class Gaussian(AbstractLikelihood):
    """``y ~ N(r, sd_j^2)``: exact expectation ``E (y - r)^2 = y^2 - 2 y rE + rE^2 + sum_k W^2 Var H`` by K x K products."""

    signed = True

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

    def bound(self, counts: SparseCounts, moments: Moments, W: Tensor, geometric: Tensor | None = None) -> Tensor:
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

    def curvature(self, counts: SparseCounts, A: Tensor, W: Tensor, information: bool) -> tuple[Tensor, Tensor | None]:
        """``sum_j (y - r) w / sd^2`` and ``sum_j w w^T / sd^2``, the same for every observed row."""
        weighted = W * torch.exp(-2 * self.log_sd)[:, None]
        gram = W.T @ weighted
        gradient = (counts.product(weighted) - A @ gram)[:, :-1]
        observed = (A[:, -1] > 0).to(A.dtype)
        return gradient * observed[:, None], gram[:-1, :-1] * observed[:, None, None] if information else None

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


LIKELIHOODS: dict[str, type[AbstractLikelihood]] = {
    "poisson": Poisson,
    "nb": NegativeBinomial,
    "bernoulli": Bernoulli,
    "bernoulli_clipped": ClippedBernoulli,
    "gaussian": Gaussian,
}
