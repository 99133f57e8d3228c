"""Counts whose variance is their mean."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import pyro.distributions as dist
import torch
from torch import Tensor

from gpnsf.core.counts.rowblocks import outer_products
from gpnsf.core.counts.sparse import SparseCounts, SparseTerm
from gpnsf.core.families import FAMILIES
from gpnsf.core.likelihoods.base import AbstractLikelihood, RowBlock
from gpnsf.core.likelihoods.moments import Moments
from gpnsf.core.types import View

__all__ = ["Poisson"]


class Poisson(AbstractLikelihood):
    """``y ~ Poisson(r)``: ``sum_nz y log rG - sum_k (sum_i E_ik)(sum_j W_jk) - sum log y!``.

    The second term is exact.
    """

    family = FAMILIES["poisson"]
    uncertain_loadings = True

    def distribution(self, rate: Tensor) -> dist.Distribution:
        """Poisson counts."""
        return dist.Poisson(rate)

    def bound(
        self, counts: SparseCounts, moments: Moments, W: Tensor, geometric: Tensor | None = None
    ) -> Tensor:
        """Nonzeros and column sums only."""
        inner = W if geometric is None else geometric
        nonzero = SparseTerm.apply(moments.geometric, inner, counts, self.link)
        return nonzero - (moments.mean.sum(0) * W.sum(0)).sum() - counts.log_factorials

    def curvature(
        self, counts: SparseCounts, A: Tensor, W: Tensor, information: bool
    ) -> tuple[Tensor, Tensor | None]:
        """``sum_j (df/dr - 1) w``, f the term of the nonzeros, and their information."""
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

    def flat_deviance(self, view: View, blocks: Sequence[RowBlock]) -> float:
        """``2 sum_nz y log(y / r)``, since expected and observed totals are equal."""
        name = view.name
        mass = sum(float(block.size[name].sum()) for block in blocks)
        totals = reduce(torch.add, (block.counts[name].column_sums for block in blocks))
        rate = totals[:, None] / max(mass, 1e-12)
        counts = ((block.counts[name], block.size[name]) for block in blocks)
        return 2 * sum(own.entropy - float(own.value(size, rate, "log")) for own, size in counts)
