"""The objective over row blocks, as a step of training sees it."""

from __future__ import annotations

import torch

from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.model.objective import ClosedFormELBO

__all__ = ["loss"]


def loss(model: Factorization, blocks: list[Block]) -> torch.Tensor:
    """Negative closed form, the posteriors of the loadings at what they are exposed to now."""
    model.look(blocks)
    objective = ClosedFormELBO()
    value = sum(objective.differentiable_loss(model, model.guide, block) for block in blocks)
    model.end_pass()
    return value
