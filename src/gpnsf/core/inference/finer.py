"""Fields that follow single spots: when they get more basis functions, and what they are without these."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gpnsf.core.fields.base import AbstractField
from gpnsf.core.fields.hilbert import HilbertField
from gpnsf.core.fields.nodes import MARGIN
from gpnsf.core.fields.resolution import KEPT
from gpnsf.core.model.build import BASIS_RANGE
from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.scores.metrics import spot_distance
from gpnsf.core.types import Dataset

__all__ = ["coarse", "finer_basis", "finest_basis"]

PER_SPOT = 2  # basis functions per distance of neighbouring spots, at most


def finest_basis(dataset: Dataset) -> int:
    """Basis functions per axis beyond which those of a Hilbert field are finer than spots can tell."""
    slices = (dataset.coords[dataset.library == code] for code in np.unique(dataset.library))
    return math.ceil(PER_SPOT * (1 + MARGIN) / (spot_distance(slices) or 1.0))


def finer_basis(field: AbstractField, dataset: Dataset) -> int | None:
    """Basis functions per axis for a field that has fewer than its length scales ask for.

    None where it has enough, or as many as the spots can tell.
    """
    if not isinstance(field, HilbertField) or field.kept_variance().min() >= KEPT:
        return None
    n_basis = min(finest_basis(dataset), BASIS_RANGE[1])
    return n_basis if n_basis > field.n_basis else None


def coarse(
    model: Factorization, blocks: list[Block], smooth: Tensor, spatial_order: Tensor
) -> Tensor:
    """Means by the field alone ``smooth`` [N, K], without what it says of single spots."""
    if model.spatial is None:
        return smooth
    parts = [model.spatial.field.fine(block.located) for block in blocks]
    fine = [part for part in parts if part is not None]
    if not fine:
        return smooth
    added, T = torch.cat(fine)[:, spatial_order], model.n_spatial
    spatial = smooth[:, :T] / added.exp() if model.nonnegative else smooth[:, :T] - added
    return torch.cat([spatial, smooth[:, T:]], dim=1)
