"""Contract of a likelihood: dense density, closed-form bound, local curvature.

With factors ``A`` [n, K+1] (size factors and the constant background column multiplied in) and
loadings ``W`` [P, K+1] the rate is ``r = A W^T``. Under q the factors have geometric mean
``G = exp(m)`` and arithmetic mean ``E = exp(m + v/2)``; write ``rG = G W^T`` and ``rE = E W^T``.
Two facts give every bound: ``E log r >= log rG`` (log-sum-exp is convex) and ``E r = rE``. At v = 0
each bound is the log-likelihood itself, which is what the Monte Carlo objective uses.

Uncertain loadings have a geometric mean ``exp E log W`` beside their mean W. Then ``rG`` is made of
both geometric means, ``rE`` of both means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from gpnsf.core.counts.backends import one_changed
from gpnsf.core.counts.sparse import SparseCounts
from gpnsf.core.families import Family
from gpnsf.core.likelihoods.moments import Moments
from gpnsf.core.types import View

__all__ = ["AbstractLikelihood", "RowBlock"]


class RowBlock(Protocol):
    """Rows of all modalities."""

    @property
    def counts(self) -> Mapping[str, SparseCounts]:
        """Modality -> counts [n, P]."""

    @property
    def size(self) -> Mapping[str, Tensor]:
        """Modality -> size factors [n, 1]."""


class AbstractLikelihood(nn.Module, ABC):
    """Conditional distribution of one modality given its rates.

    It may have a parameter per feature.
    """

    family: ClassVar[Family]
    uncertain_loadings: ClassVar[bool] = False  # whether `bound` makes use of ``geometric``
    surrogate: ClassVar[str | None] = None  # whose bound stands in until the rates are good

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.n_features = n_features
        self.in_surrogate = False  # whether `bound` is that of the surrogate

    @property
    def signed(self) -> bool:
        """Whether rates may be negative."""
        return self.family.signed

    @property
    def link(self) -> str:
        """Link of multiplicative updates on the nonzeros."""
        return self.family.link

    @abstractmethod
    def distribution(self, rate: Tensor) -> dist.Distribution:
        """Dense distribution of the counts [n, P] at the given rates."""

    # ---- the objective ---------------------------------------------------------------------------

    @abstractmethod
    def bound(
        self, counts: SparseCounts, moments: Moments, W: Tensor, geometric: Tensor | None = None
    ) -> Tensor:
        """Lower bound on the expected log-likelihood of a row block.

        Parameters
        ----------
        counts
            Counts [n, P] of the block.
        moments
            Moments [n, K+1] of its factors.
        W
            Means [P, K+1] of the loadings.
        geometric
            Geometric means ``exp E log W`` [P, K+1] of uncertain loadings: they take the place of W
            in the logarithms. Ignored where ``uncertain_loadings`` is false: there, loadings are
            point estimates.
        """

    def prepare(self, counts: Iterable[SparseCounts]) -> None:
        """Set own parameters before a start is tried; begin with the surrogate, if there is one."""
        self.in_surrogate = self.surrogate is not None

    def leave_surrogate(self, blocks: Iterable[tuple[SparseCounts, Moments, Tensor]]) -> None:
        """Go over to the likelihood's own bound; each block brings counts, moments and loadings."""

    def hold(self, dispersion: Tensor | None) -> None:
        """Take over per-feature parameters [P], which are not learnt from here on."""

    def log_prior(self) -> Tensor | float:
        """Log prior of the likelihood's own parameters."""
        return 0.0

    def dispersion(self) -> Tensor | None:
        """Per-feature parameter [P] that is reported, if there is one."""
        return None

    # ---- the local stage -------------------------------------------------------------------------

    @abstractmethod
    def curvature(
        self, counts: SparseCounts, A: Tensor, W: Tensor, information: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Gradient [n, K] of the log-likelihood in the factors.

        If asked for, information [n, K, K].

        ``A`` and ``W`` hold the background as their last column, which gets neither.
        """

    def expected_information(self, counts: SparseCounts, A: Tensor, W: Tensor) -> Tensor:
        """Fisher's information [n, K, K] on the factors.

        It is what :meth:`curvature` has the counts estimate, which few counts do badly.
        """
        return self.curvature(counts, A, W, information=True)[1]  # type: ignore[return-value]

    def nonzero_information(self, values: Tensor, rate: Tensor, feature: Tensor) -> Tensor:
        """Weights on the nonzeros whose sum over ``w w^T`` is unbiased for Fisher's information."""
        return values / rate**2

    def loading_information(self, counts: SparseCounts, A: Tensor, W: Tensor) -> Tensor:
        """Information [P, K, K] on the loadings: the curvature with rows and columns exchanged."""
        return counts.loading_information(A, W, self.nonzero_information)

    # ---- scores ----------------------------------------------------------------------------------

    @abstractmethod
    def totals(self, A: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        """Expected total of a row block, and its derivative in the logarithm of a factor on W."""

    def scorer(self) -> AbstractLikelihood:
        """The likelihood that judges factors in its place."""
        return self

    def lost(self, counts: SparseCounts, A: Tensor, W: Tensor, changes: Tensor) -> Tensor:
        """Loss [K+1] of log-likelihood when ``changes`` [n, K+1] are made, one column at a time."""

        def value(A: Tensor) -> Tensor:
            return self.bound(counts, Moments.certain(A), W).double()

        values = [value(changed) for changed in one_changed(A, changes)]
        return value(A) - torch.stack(values)

    def flat_deviance(self, view: View, blocks: Sequence[RowBlock]) -> float:
        """Deviance of a modality at one constant rate per feature."""
        return self._flat_deviance_by(self.family, view)

    def _flat_deviance_by(self, family: Family, view: View) -> float:
        """The same, from the counts themselves."""
        noise = self.dispersion()
        own = None if noise is None else noise.cpu().numpy()
        rows = view.observed
        return family.null_deviance(view.counts, view.size, own, rows=rows, train=rows)[0]
