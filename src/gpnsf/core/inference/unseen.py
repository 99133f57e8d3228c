"""Rows without any count: what the field says of them, and what their neighbours do."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from gpnsf.core.model.factorization import Block
from gpnsf.core.scores.metrics import APART

__all__ = ["beside", "unseen"]

N_NEIGHBORS = 6


def unseen(blocks: list[Block]) -> Tensor:
    """Whether [N] a row was held out of every modality, or not measured in any."""
    parts = [torch.stack([size <= 0 for size in block.size.values()]).all(0) for block in blocks]
    return torch.cat(parts)[:, 0]


def beside(log_factors: Tensor, wanted: Tensor, blocks: list[Block]) -> Tensor:
    """Factors [n, k] of the rows ``wanted`` [N] by those beside them, relative to the mean.

    A factor without field is at its mean there, unless neighbours of the other rows resemble each
    other: its logarithm [N, k] is then that of the six nearest rows of the slice, times the slope
    with which the other rows follow theirs (between 0 and 1).
    """
    places = [
        torch.cat([block.located.coords, APART * block.located.library[:, None]], 1)
        for block in blocks
    ]
    coords = torch.cat(places).double().cpu().numpy()
    known = (~wanted).cpu().numpy()
    tree = cKDTree(coords[known])
    m = log_factors[~wanted] - log_factors[~wanted].mean(0)
    values = torch.cat([m, torch.zeros_like(m[:1])])  # the last stands for no neighbour

    def mean_of_nearest(rows: np.ndarray, first: int) -> Tensor:
        ranks = range(first, first + N_NEIGHBORS)
        found = tree.query(coords[rows], ranks, distance_upper_bound=APART / 2)[1]
        return values[torch.as_tensor(found, device=m.device)].mean(1)

    near = mean_of_nearest(known, 2)  # the first is the row itself
    slope = ((near * m).sum(0) / (near**2).sum(0).clamp_min(1e-12)).clamp(0.0, 1.0)
    return (slope * mean_of_nearest(~known, 1)).exp() / (slope * near).exp().mean(0)
