"""What gpnsf is compared with on simulated patterns: KL-NMF of the counts, and of counts that were smoothed first."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from gpnsf.core.scores.clustering import SMOOTHNESS, cluster, smoothed
from gpnsf.core.scores.metrics import knn_weights, match_factors

BANDWIDTHS = (0.06, 0.1, 0.16, 0.24)  # of the Gaussian kernel, in half-widths of the section


def klnmf(counts, n_factors: int, seed: int) -> np.ndarray:
    """Factors [N, K] of sklearn's KL-NMF."""
    nmf = NMF(
        n_factors,
        beta_loss="kullback-leibler",
        solver="mu",
        init="nndsvda",
        max_iter=200,
        tol=1e-5,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return nmf.fit_transform(counts)


def domains_of(points: np.ndarray, coords: np.ndarray, number: int, seed: int = 0) -> np.ndarray:
    """Labels [N] of the points [N, D] as `tl.domains` gives them."""
    return smoothed(cluster(points, number, seed=seed), points, coords, SMOOTHNESS)


def neighbour_mean(counts, coords: np.ndarray, n_neighbors: int):
    """Counts averaged over a spot and its neighbours."""
    weights = knn_weights(coords, n_neighbors)
    return (counts + n_neighbors * (weights @ counts)) / (n_neighbors + 1)


def kernel_mean(counts, coords: np.ndarray, bandwidth: float) -> np.ndarray:
    """Counts [N, P], dense, averaged with Gaussian weights."""
    coords = coords / (np.ptp(coords, axis=0).max() / 2)
    tree = cKDTree(coords)
    near = tree.sparse_distance_matrix(tree, 3 * bandwidth, output_type="coo_matrix").tocsr()
    near.data = np.exp(-0.5 * (near.data / bandwidth) ** 2)
    near = near + sp.identity(len(coords), format="csr")
    weights = sp.diags(1 / np.asarray(near.sum(1)).ravel()) @ near
    return (weights.astype(np.float32) @ counts).toarray()


def recovery(truth: np.ndarray, found: np.ndarray) -> float:
    """Mean correlation of the true patterns with the columns that match them best."""
    return float(match_factors(truth, found)[1].mean())


def smoothed_recovery(
    counts, coords: np.ndarray, truth: np.ndarray, n_factors: int, seed: int
) -> np.ndarray:
    """Recovery of the spatial patterns [bandwidths] by KL-NMF of kernel-smoothed counts."""
    smoothed = (kernel_mean(counts, coords, bandwidth) for bandwidth in BANDWIDTHS)
    return np.array([recovery(truth, klnmf(values, n_factors, seed)) for values in smoothed])
