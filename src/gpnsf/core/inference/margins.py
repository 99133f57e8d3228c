"""Loadings after the optimisation: what the counts have not seen goes, and so does the mean of batches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gpnsf.core.model.factorization import Block, Factorization, ViewModel

__all__ = ["Margins", "centred_multipliers", "margins", "scaled_loadings"]

NEGLIGIBLE = 1e-6  # loadings below this share of their feature's total are set to zero


class Margins(NamedTuple):
    """Margins of all counts of a modality."""

    seen: Tensor  # [P] whether a feature has any
    total: float
    smallest: float


def margins(blocks: list[Block], name: str) -> Margins:
    """Read every block once."""
    seen, total, smallest = [], 0.0, 0.0
    for block in blocks:
        counts = block.counts[name]
        seen.append(counts.per_column > 0)
        total += float(counts.values.double().sum())
        smallest = min(smallest, float(counts.values.min())) if counts.nnz else smallest
    return Margins(torch.stack(seen).any(0), total, smallest)


def scaled_loadings(view: ViewModel, margins: Margins, scale: Tensor) -> Tensor:
    """Loadings [P, K+1] that go with the scaled factors.

    Traces are zero, and so are features without a count.
    """
    W = view.loadings.mean * torch.cat([scale, torch.ones(1, device=scale.device)])
    if not view.loadings.nonnegative:
        return W
    kept = W >= NEGLIGIBLE * W.sum(1, keepdim=True)
    kept[:, -1] = True
    return W * kept * margins.seen[:, None]


def centred_multipliers(
    model: Factorization, blocks: list[Block], loadings: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Batch multipliers [S, P] with mean one over spots, by size factor.

    Their mean goes into the loadings.
    """
    centred = {}
    for name, view in model.items():
        if view.log_multipliers is not None:
            multipliers = view.log_multipliers.exp()
            weight = torch.zeros(len(multipliers), 1, device=multipliers.device)
            for block in blocks:
                weight[block.batch] += block.size[name].sum()
            mean = (weight * multipliers).sum(0) / weight.sum()
            centred[name] = multipliers / mean
            loadings[name] = loadings[name] * mean[:, None]
    return centred
