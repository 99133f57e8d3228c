"""Square bins of spots, and what is done with them: smoothed, judged for order, averaged over neighbours."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from gpnsf.core.scores.metrics import knn_weights, morans_i

__all__ = [
    "FEWEST_BINS",
    "LARGE",
    "MAX_DENSE",
    "at_spots",
    "gaussian_smoother",
    "neighbour_mean",
    "n_bins",
    "order_of_bins",
    "rows_to_one",
    "square_bins",
]

MAX_DENSE = 1_200_000  # entries of binned counts
MAX_BINS, FEWEST_BINS, BINS_OF_LARGE = 2_000, 64, 400
LARGE = 20_000  # spots
FAINT = 0.02  # added to factors, of mean one, before their logarithm
CELLS = 4  # bins per squared bandwidth: a bin is as wide as the bandwidth on a full square
SPOTS, SPOTS_OF_DEEP = 8, 4  # of a bin without a smoother; where a spot has so many counts
DEEP_BINS = 1_000


def n_bins(n_obs: int, n_features: int, bandwidth: float = 0.0, *, depth: float = 0.0) -> int:
    """How many bins: of some spots each, by the counts of a spot, or as wide as the bandwidth of a smoother."""
    limit = min(MAX_BINS, max(FEWEST_BINS, MAX_DENSE // max(n_features, 1)))
    spots = SPOTS_OF_DEEP if depth >= DEEP_BINS else SPOTS
    asked = n_obs // spots if bandwidth == 0 else round(CELLS / bandwidth**2)
    wanted = min(limit, max(FEWEST_BINS, asked))
    return min(wanted, BINS_OF_LARGE) if n_obs > LARGE else wanted


def square_bins(coords: np.ndarray, library: np.ndarray, wanted: int) -> np.ndarray:
    """Labels 0 .. B-1 of square cells, their width bisected until about ``wanted`` are occupied."""
    low, high = 1e-4, 2.0
    for _ in range(25):
        width = np.sqrt(low * high)
        cells = np.column_stack([library, np.floor((coords - coords.min(0)) / width)]).astype(
            np.int64
        )
        codes = np.ravel_multi_index(cells.T, cells.max(0) + 1)
        labels = np.unique(codes, return_inverse=True)[1]
        low, high = (width, high) if labels.max() + 1 > wanted else (low, width)
    return labels


def rows_to_one(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Divide each row by its sum."""
    total = np.asarray(matrix.sum(1)).ravel()
    return sp.diags(1 / np.maximum(total, 1e-12)) @ matrix


def at_spots(binned: Tensor, centres: np.ndarray, coords: np.ndarray) -> Tensor:
    """Factors [N, T] of spots from those of the bins [B, T] that are nearest."""
    distance, nearest = cKDTree(centres).query(coords, min(4, len(centres)))
    weights = torch.as_tensor(1 / (distance.reshape(len(coords), -1) + 1e-3), dtype=torch.float32)
    weights = weights / weights.sum(1, keepdim=True)
    # [N, 4, T]
    logs = torch.log(binned + FAINT)[torch.as_tensor(nearest.reshape(weights.shape))]
    return torch.exp((logs * weights[..., None]).sum(1))


def gaussian_smoother(centres: np.ndarray, bandwidth: float) -> sp.csr_matrix:
    """Gaussian kernel weights [B, B] with rows summing to one, cut off at three bandwidths."""
    if bandwidth == 0:
        return sp.identity(len(centres), dtype=np.float32, format="csr")
    tree = cKDTree(centres)
    near = tree.sparse_distance_matrix(tree, 3 * bandwidth, output_type="coo_matrix").tocsr()
    near.data = np.exp(-0.5 * (near.data / bandwidth) ** 2)
    near.setdiag(1.0)
    return rows_to_one(near.tocsr()).astype(np.float32)


def order_of_bins(centres: np.ndarray, factors: Tensor) -> np.ndarray:
    """Moran's I [K] of the logarithms of binned factors [B, K]."""
    graph = knn_weights(centres, n_neighbors=8)
    return morans_i(torch.log(factors + FAINT).numpy(), graph)


def neighbour_mean(graph: sp.csr_matrix, values: np.ndarray) -> np.ndarray:
    """Mean over a spot and its neighbours (``graph`` has rows summing to one)."""
    per_row = np.diff(graph.indptr)[:, None]
    return ((values + per_row * (graph @ values)) / (1 + per_row)).astype(np.float32)
