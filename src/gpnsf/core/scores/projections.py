"""Scores of cells that encoders read.

Principal components of log counts, and singular vectors of tf-idf weighted peaks.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from gpnsf.core.types import row_sums

__all__ = ["principal_components", "semantic_index"]

LARGEST = 10.0  # standard deviations above its mean of a scaled gene
SCALE = 1e4


def principal_components(counts: sp.csr_matrix, n_components: int, *, seed: int) -> np.ndarray:
    """Scores [N, C] of log counts of equal totals, each feature at unit variance.

    Nothing dense is made of them.
    """
    from sklearn.decomposition import PCA

    logs = _per_total(counts, float(np.median(row_sums(counts)[row_sums(counts) > 0]))).log1p()
    mean = np.asarray(logs.mean(axis=0)).ravel()
    sd = np.sqrt(np.maximum(np.asarray(logs.multiply(logs).mean(axis=0)).ravel() - mean**2, 0.0))
    sd[sd < 1e-6] = np.inf
    scaled = sp.csr_matrix(logs, copy=True)
    scaled.data = np.minimum(
        scaled.data / sd[scaled.indices], (mean / sd)[scaled.indices] + LARGEST
    )
    n_components = min(n_components, min(counts.shape) - 1)
    return (
        PCA(n_components, svd_solver="arpack", random_state=seed)
        .fit_transform(scaled)
        .astype(np.float32)
    )


def semantic_index(counts: sp.csr_matrix, n_components: int, *, seed: int) -> np.ndarray:
    """Scores [N, C] of cells on singular vectors of log tf-idf weights.

    Those of each cell at mean 0 and unit variance.
    """
    from sklearn.utils.extmath import randomized_svd

    idf = counts.shape[0] / np.maximum(np.asarray(counts.sum(axis=0)).ravel(), 1.0)
    weights = _per_total(sp.csr_matrix(_per_total(counts, 1.0) @ sp.diags(idf)), SCALE).log1p()
    left, values, _ = randomized_svd(
        weights, min(n_components, min(counts.shape) - 1), random_state=seed
    )
    scores = left * values
    scores -= scores.mean(axis=1, keepdims=True)
    return (scores / np.maximum(scores.std(axis=1, keepdims=True), 1e-6)).astype(np.float32)


def _per_total(counts: sp.csr_matrix, total: float) -> sp.csr_matrix:
    """Rows that all have this total; empty ones stay so."""
    return sp.csr_matrix(sp.diags(total / np.maximum(row_sums(counts), 1e-12)) @ counts)
