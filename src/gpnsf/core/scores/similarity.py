"""Observations as means over those whose factors are alike."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

__all__ = ["mean_rates", "similar"]

SMALLEST = 1e-6  # weight, so that no row is without any


def similar(shares: np.ndarray, candidates: np.ndarray, *, n_neighbors: int) -> sp.csr_matrix:
    """Cosine similarities [N, n] of ``shares`` [N, K] to those of ``candidates`` [n].

    The largest of each row are kept.
    """
    unit = np.asarray(shares, dtype=np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.finfo(float).tiny)
    n_neighbors = min(n_neighbors, len(candidates))
    distance, found = cKDTree(unit[candidates]).query(unit, range(1, n_neighbors + 1))
    cosine = np.maximum(1 - distance**2 / 2, SMALLEST)  # of unit vectors
    indptr = np.arange(0, cosine.size + 1, n_neighbors)
    weights = sp.csr_matrix(
        (cosine.ravel(), found.ravel(), indptr), shape=(len(unit), len(candidates))
    )
    weights.sort_indices()
    return weights


def mean_rates(weights: sp.csr_matrix, counts: sp.csr_matrix, size: np.ndarray) -> sp.csr_matrix:
    """Rates [N, P] at size factor 1.

    Weighted sums of counts [n, P] over weighted sums of size factors [n].

    Shallow rows weigh little: no row is divided by its own total.
    """
    scale = 1 / (weights @ np.asarray(size, dtype=np.float64))
    return (sp.diags(scale) @ weights).astype(np.float32) @ counts
