"""How fine the basis functions of a Hilbert field are: what they keep, and what the finest of them know."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gpnsf.core.fields.kernels import KERNELS
from gpnsf.core.fields.nodes import Grid, grid_of

__all__ = ["INNER", "KEPT", "outer_variance", "retained_variance"]

INNER = 28  # basis functions per axis and half-width whose covariance is kept whole
KEPT = 0.9  # share of the prior variance in the middle of the box that basis functions should keep
# levels of the information at which the variance is worked out, and decades from the first to the last
LEVELS, DECADES = 25, 6
IMAGES = 8  # of the box to each side, in the variance of infinitely many basis functions


def retained_variance(
    kernel: str, lengthscale: np.ndarray, extent: Sequence[float], n_basis: int
) -> np.ndarray:
    """Share [T] of the prior variance in the middle of the box that the basis functions keep.

    With half-widths L of the box, all sines have ``sum_n (-1)^n k(2 L n)`` there, and m of them the
    sum over odd j of ``S(pi j / (2 L)) / L``, in two dimensions over both axes. Length scales
    beyond the width of the box count as its width.
    """
    grid = grid_of(extent, n_basis)
    boxes, n_dims = torch.tensor(grid.boxes, dtype=torch.float64), len(grid.boxes)
    ell = torch.as_tensor(lengthscale, dtype=torch.float64)[:, None].clamp(max=2 * min(grid.boxes))
    odd = [
        torch.arange(1, m + 1, 2) * math.pi / (2 * box)
        for m, box in zip(grid.sizes, boxes, strict=True)
    ]
    squared = torch.cartesian_prod(*[omega**2 for omega in odd]).reshape(-1, n_dims).sum(1)
    kept = KERNELS[kernel].log_spectral_density(squared, ell, n_dims).exp().sum(1) / boxes.prod()
    images = torch.cartesian_prod(*[torch.arange(-IMAGES, IMAGES + 1)] * n_dims).reshape(-1, n_dims)
    covariance = KERNELS[kernel].covariance((2 * boxes * images).norm(dim=1), ell)
    return (kept / ((-1.0) ** images.sum(1) * covariance).sum(1)).numpy()


def outer_variance(
    grid: Grid, inner: Sequence[int], bases: Sequence[Tensor], information: Tensor, prior: Tensor
) -> Tensor:
    """Variance [nodes] of the basis functions that are not inner ones, given ``information`` [nodes].

    With prior variances S_j ``prior`` [M] of functions phi_j, ``bases`` [nodes, m] of each axis.
    They are finer than what changes around a node, so each meets there the mean information lambda
    of an area: ``sum_j phi_j(s)^2 S_j / (1 + S_j lambda(s))``. The sum is worked out at some levels
    of lambda and interpolated. Information is averaged over half the width of the bumps of the
    first of these functions.
    """
    density = information.reshape(grid.shape)
    for reach, box, m, n in zip(grid.reach, grid.boxes, inner, grid.shape, strict=True):
        nodes = torch.linspace(-reach, reach, n, dtype=prior.dtype, device=prior.device)
        near = torch.exp(-0.5 * ((nodes[:, None] - nodes) * m / box) ** 2)
        near = near / near.sum(1, keepdim=True) * (n - 1) / (2 * reach)
        density = torch.tensordot(density, near, dims=([0], [1]))
    share = torch.logspace(-DECADES, 0, LEVELS, dtype=prior.dtype, device=prior.device)
    top = density.max().clamp_min(1e-9)
    outer = prior.reshape(grid.sizes).clone()
    outer[tuple(slice(m) for m in inner)] = 0.0
    sums = outer / (1 + outer * (share * top).reshape(-1, *[1] * outer.dim()))
    for basis in bases:
        sums = torch.tensordot(sums, basis.to(prior.dtype) ** 2, dims=([1], [1]))
    sums = sums.reshape(LEVELS, -1)
    place = (density.reshape(-1) / top).clamp_min(share[0]).log10() / DECADES
    place = (1 + place) * (LEVELS - 1)
    below = place.long().clamp(0, LEVELS - 2)
    low, high = (sums.gather(0, row[None])[0] for row in (below, below + 1))
    return low + (place - below) * (high - low)
