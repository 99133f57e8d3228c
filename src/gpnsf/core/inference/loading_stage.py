r"""The loading stage: gamma posteriors of the loadings without what mean field gets wrong.

Mean field takes ``exp(psi(a)) / b`` for a loading, half a count less than its mean ``a / b``, whatever
its factor has of the feature. Features with a handful of counts then fall to one factor or two, and
which ones is noise. At fixed factors the collapsed update (Asuncion et al. 2009) does better: a
count is shared out by what all *other* counts say of the loadings,

    n_jk = sum_i y_ij A_ik W'_jk / r'_ij,  r' = A W'^T,  W'_jk = (a_jk - rho_jk) / b_jk      (eq. L5)
    a_jk = 1/2 + n_jk,  b_jk = 1 / (2 mu_k m_j) + sum_i A_ik                               (eq. L6)

A being the factors times size factors. rho_jk, what a count of feature j is to factor k on average,
is ``n_jk / sum_l n_jl``, so that no array over nonzeros is kept. Counts are taken as Poisson.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gpnsf.core import distributed
from gpnsf.core.inference.moves import Adopted
from gpnsf.core.inference.standing import log_factors
from gpnsf.core.model.factorization import Block, Factorization, ViewModel
from gpnsf.core.model.loadings import FIRST_SHAPE, GammaLoadings
from gpnsf.core.types import TINY

__all__ = ["N_PASSES", "settle"]

N_PASSES = 6


@torch.no_grad()
def settle(
    model: Factorization, blocks: list[Block], adopted: Mapping[int, Adopted] | None = None
) -> None:
    """Give the model the loadings that follow from its factors; those without a posterior stay.

    Spatial factors that are ``adopted``, by number, are what they were, not their fields alone.
    """
    stages = {
        name: _Collapsed(view, view.loadings, 1 / model.kl_weight)
        for name, view in model.items()
        if isinstance(view.loadings, GammaLoadings)
    }
    if model.spatial is not None and adopted:
        fields = log_factors(model, blocks)[:, : model.n_spatial]
        deviations = torch.zeros_like(fields)
        for k, own in adopted.items():
            deviations[:, k] = own.log_factor - fields[:, k]
        model.spatial.deviations = deviations, torch.zeros_like(deviations)
    model.look(blocks)
    factors = [
        (block, {name: model.moments(name, block).mean for name in stages})
        for block in distributed.mine(blocks)
    ]
    for _ in range(N_PASSES if stages else 0):
        for block, A in factors:
            for name, stage in stages.items():
                stage.see(block, name, A[name])
        distributed.add_up(*(stage.seen for stage in stages.values()))
        for stage in stages.values():
            stage.end_pass()
    if model.spatial is not None:
        model.spatial.deviations = None  # the local stage looks for them anew


class _Collapsed:
    """The posterior of one modality. ``weight`` is that of the counts over that of the prior."""

    def __init__(self, view: ViewModel, loadings: GammaLoadings, weight: float) -> None:
        self.view, self.loadings, self.weight = view, loadings, weight
        self._share_out((self.loadings.mean * self._rates() - FIRST_SHAPE).clamp_min(0.0))

    def see(self, block: Block, name: str, A: Tensor) -> None:
        """Share out the counts of a block; A [n, K+1] are its factors times size factors."""
        W = self.view.as_seen(self._others, block.batch)
        link = self.view.likelihood.family.link
        self.seen += W * block.counts[name].half_loadings(A, W, link)

    def end_pass(self) -> None:
        """All counts were shared out."""
        expected = self.weight * self.seen.to(self._others.dtype)
        mean = (expected + FIRST_SHAPE) / self._rates()
        self.loadings.raw.copy_(mean.clamp_min(TINY).log())
        self._share_out(expected)

    def _share_out(self, expected: Tensor) -> None:
        """From expected counts [P, K+1], what the other counts say of the loadings."""
        own = expected / (expected.sum(1, keepdim=True) + TINY) * self.weight
        self._others = (FIRST_SHAPE + expected - own).clamp_min(TINY) / self._rates()
        if not self.loadings.background:
            self._others[:, -1] = 0.0
        self.seen = torch.zeros_like(self._others, dtype=torch.float64)

    def _rates(self) -> Tensor:
        """Rates b [P, K+1] of the posterior."""
        level = self.loadings.level[:, None]
        mu = (self.loadings.raw.exp() / level).mean(0).clamp_min(TINY)
        exposure = self.weight * self.loadings.exposed(self.view.multipliers)
        return FIRST_SHAPE / (mu * level) + exposure
