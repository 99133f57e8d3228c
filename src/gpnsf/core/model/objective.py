"""The evidence lower bound: one page."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer.elbo import ELBO
from torch import Tensor

from gpnsf.core.model.factorization import Block, Factorization

__all__ = ["ClosedFormELBO"]


class ClosedFormELBO(ELBO):  # type: ignore[misc]
    """Negative evidence lower bound of a :class:`~gpnsf.core.model.factorization.Factorization`, without draws (eq. 27).

    What the counts say, minus what the posteriors of factors and loadings are charged for leaving
    their priors. Loadings of features with few counts are charged less than their divergence
    (``loadings.charge``, in docs/decisions.md): where the charge is below 1, and where modalities
    or divergences are weighted, the value is an objective and no longer a bound. The weight of a
    modality is that of its counts and of its loadings: these stay what they are, and move the
    factors less.

    It takes the place of ``pyro.infer.Trace_ELBO`` in
    ``pyro.infer.SVI(model, model.guide, optimizer, loss=...)``.
    """

    def differentiable_loss(self, model: Factorization, guide: Any, block: Block) -> Tensor:
        """The share of a row block in the negative bound; those of all blocks add up to it."""
        # q(W): eq. L2 to L4
        loadings = {
            name: view.loadings.posterior(view.multipliers, 1 / model.kl_weight)
            for name, view in model.items()
        }
        # q(h): mean and variance [n, K], eq. 32 to 34
        h = model.relative_marginals(block, {name: W.mean for name, W in loadings.items()})
        fit = divergence = prior = torch.zeros((), device=h[0].device)
        for part in model.parts:
            # eq. 28
            share = 1 if part.is_local else block.share
            divergence = divergence + share * part.divergence(block.rows)
        for name, view in model.items():
            W = loadings[name]
            # eq. 29 to 31
            fit = fit + view.weight * model.expected_log_likelihood(name, block, h, W)
            share = view.weight * block.share
            divergence = divergence + share * W.divergence
            prior = prior + share * view.log_prior()  # of point estimates
        return model.kl_weight * divergence - prior - fit

    def loss_and_grads(self, model: Factorization, guide: Any, block: Block) -> float:
        """Value and gradients of a block of all rows, as ``pyro.infer.SVI.step`` wants them."""
        model.register()
        loss = self.differentiable_loss(model, guide, block)
        loss.backward()
        model.end_pass()
        return loss.item()

    def loss(self, model: Factorization, guide: Any, block: Block) -> float:
        """The value alone."""
        loss = self.differentiable_loss(model, guide, block)
        model.end_pass()
        return loss.item()

    def _get_trace(self, *arguments: Any) -> Any:
        """There is nothing to trace: all expectations have a closed form."""
        raise TypeError(
            "Expected an objective that draws; got ClosedFormELBO. Pass pyro.infer.Trace_ELBO instead."
        )
