"""The regular grid of nodes on which a field is evaluated, and the way from there to the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gpnsf.core.counts.backends import csr_tensor

__all__ = ["MARGIN", "Grid", "csr", "grid_of", "interpolation"]

MARGIN = 0.25  # distance from the nodes to the edge of the Hilbert box, in half-width units


class Grid(NamedTuple):
    """The regular grid of a field, by axis."""

    reach: tuple[float, ...]  # half-width that the nodes cover
    boxes: tuple[float, ...]  # half-width of the Hilbert box
    sizes: tuple[int, ...]  # basis functions
    shape: tuple[int, ...]  # nodes


def grid_of(extent: Sequence[float], n_basis: int) -> Grid:
    """Nodes cover a little more than the tissue.

    An axis has basis functions in proportion to its length.
    """
    reach = tuple(1.02 * float(x) + 0.01 for x in extent)
    boxes = tuple(half + MARGIN for half in reach)
    sizes = tuple(max(6, math.ceil(n_basis * box / (1 + MARGIN))) for box in boxes)
    shape = tuple(
        math.ceil(3 * m * half / box) + 2 for m, half, box in zip(sizes, reach, boxes, strict=True)
    )
    return Grid(reach, boxes, sizes, shape)


def interpolation(
    coords: np.ndarray,
    library: np.ndarray,
    reach: Sequence[float],
    shape: Sequence[int],
    n_libraries: int,
) -> sp.csr_matrix:
    """(Bi)linear interpolation weights [n, slices * nodes].

    Coordinates beyond the nodes take the nearest edge.
    """
    n, n_dims = coords.shape
    index, weight = library.astype(np.int64)[:, None], np.ones((n, 1))
    for axis in range(n_dims):
        position = (
            (coords[:, axis].astype(np.float64) + reach[axis])
            / (2 * reach[axis])
            * (shape[axis] - 1)
        )
        position = np.clip(position, 0, shape[axis] - 1)
        low = np.minimum(position.astype(np.int64), shape[axis] - 2)[:, None]
        part = position[:, None] - low
        index = np.concatenate([index * shape[axis] + low, index * shape[axis] + low + 1], axis=1)
        weight = np.concatenate([weight * (1 - part), weight * part], axis=1)
    rows = np.repeat(np.arange(n), weight.shape[1])
    size = (n, n_libraries * math.prod(shape))
    return sp.csr_matrix((weight.ravel().astype(np.float32), (rows, index.ravel())), shape=size)


def csr(matrix: sp.csr_matrix, device: torch.device) -> Tensor:
    """A torch CSR tensor with 32-bit indices."""
    pointers, indices, values = (
        torch.as_tensor(array, device=device)
        for array in (matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), matrix.data)
    )
    return csr_tensor(pointers, indices, values, matrix.shape)
