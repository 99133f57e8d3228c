"""Clusters of observations, how they follow the tissue, and how stable they are."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import kneighbors_graph

from gpnsf.core.scores.metrics import knn_weights

if TYPE_CHECKING:
    import igraph

__all__ = [
    "METHODS",
    "SMOOTHNESS",
    "cluster",
    "smoothed",
    "stability",
    "stable_number",
    "subsample_size",
]

METHODS = ("kmeans", "gmm", "leiden")
# share of the best agreement between subsamples: below, a number of clusters is not stable
LEAST_STABLE = 0.95
N_SUBSAMPLES, SUBSAMPLE = 8, 0.8
RESOLUTIONS = 1e-3, 1e2  # between which a graph falls into one and into very many communities
HALVINGS = 40  # of this interval, on the log scale
# weight of the neighbours, of which there are two rings on hexagons and three on squares
SMOOTHNESS, N_NEIGHBORS, MAX_ROUNDS = 4.0, 12, 40


def cluster(
    points: np.ndarray,
    n_clusters: int,
    *,
    method: str = "kmeans",
    n_init: int = 20,
    n_neighbors: int = 15,
    seed: int = 0,
) -> np.ndarray:
    """Label [N] of each point [N, D], 0 for the largest cluster.

    Communities of a graph may miss the number by a few.
    """
    if method == "leiden":
        labels = _leiden(points, n_clusters, n_neighbors=n_neighbors, seed=seed)
    elif method == "gmm":
        labels = _mixture(n_clusters, n_init, seed).fit_predict(points)
    else:
        labels = KMeans(n_clusters, n_init=n_init, random_state=seed).fit_predict(points)
    return _by_size(labels)


def smoothed(
    labels: np.ndarray, points: np.ndarray, coords: np.ndarray, smoothness: float
) -> np.ndarray:
    """Labels [N] of a Potts model of clusters: they follow those of the neighbours too.

    Lowers ``sum_i |x_i - c(l_i)|^2 / m - smoothness / 2 * sum_i s_i`` by iterated conditional modes
    (Besag 1986). Here ``c`` are the means of the clusters of points [N, D], and ``s_i`` is the
    share of the twelve spots nearest to i, by their coordinates [N, 1 or 2], that have its label.
    The scale m is what it typically takes to change the label: the median over points of how much
    further the second nearest mean is than the nearest one (squared), at the first labels. No
    cluster ends empty.
    """
    graph, K = knn_weights(coords, N_NEIGHBORS), labels.max() + 1
    scale, lowest, best, last = 0.0, np.inf, labels, None
    for _ in range(MAX_ROUNDS if K > 1 else 0):
        chosen = np.eye(K)[labels]  # [N, K]
        centres = chosen.T @ points / chosen.sum(axis=0)[:, None]
        # squared distances [N, K] but for a part that is the same for all clusters
        distance = (centres**2).sum(axis=1) - 2 * points @ centres.T
        if not scale:
            nearest = np.partition(distance, 1, axis=1)
            scale = max(float(np.median(nearest[:, 1] - nearest[:, 0])), np.finfo(float).tiny)
        alike = graph @ chosen
        energy = float((chosen * (distance / scale - smoothness / 2 * alike)).sum())
        if energy < lowest:
            best, lowest = labels, energy
        last, labels = labels, (distance / scale - smoothness * alike).argmin(axis=1)
        if (labels == last).all() or len(np.unique(labels)) < K:
            break
    return _by_size(best)


def stability(
    points: np.ndarray, numbers: Iterable[int], *, method: str = "kmeans", seed: int = 0
) -> np.ndarray:
    """Mean adjusted Rand index of labels over pairs of subsamples, by number of clusters.

    The labels are those of all points.

    Each subsample is clustered, and all points get the label of the cluster they would belong to.
    """
    rng = np.random.default_rng(seed)
    size = subsample_size(len(points))
    subsamples = [
        np.sort(rng.choice(len(points), size, replace=False)) for _ in range(N_SUBSAMPLES)
    ]
    return np.array(
        [
            _agreement([_labels(points, rows, k, method, seed) for rows in subsamples])
            for k in numbers
        ]
    )


def subsample_size(n_points: int) -> int:
    """Number of points in a subsample."""
    return int(np.ceil(SUBSAMPLE * n_points))


def stable_number(numbers: np.ndarray, stable: np.ndarray) -> int:
    """The largest number of clusters that is nearly as stable as the best one."""
    return int(numbers[stable >= LEAST_STABLE * stable.max()].max())


def _labels(
    points: np.ndarray, rows: np.ndarray, n_clusters: int, method: str, seed: int
) -> np.ndarray:
    """Labels of all points by a model of some of them."""
    model = (
        _mixture(n_clusters, 3, seed)
        if method == "gmm"
        else KMeans(n_clusters, n_init=5, random_state=seed)
    )
    return model.fit(points[rows]).predict(points)


def _agreement(labels: list[np.ndarray]) -> float:
    """Mean adjusted Rand index over pairs."""
    pairs = [adjusted_rand_score(a, b) for i, a in enumerate(labels) for b in labels[:i]]
    return float(np.mean(pairs))


def _mixture(n_clusters: int, n_init: int, seed: int) -> GaussianMixture:
    """Gaussians of one shape: with a covariance each, small clusters collapse."""
    return GaussianMixture(
        n_clusters, covariance_type="tied", n_init=n_init, reg_covar=1e-5, random_state=seed
    )


def _leiden(points: np.ndarray, n_clusters: int, *, n_neighbors: int, seed: int) -> np.ndarray:
    """Communities of the graph of nearest neighbours, in the number asked for.

    The resolution is the one that gives that number or comes closest.
    """
    import igraph

    near = kneighbors_graph(points, min(n_neighbors, len(points) - 1))
    near = near.maximum(near.T).tocoo()
    once = near.row < near.col
    graph = igraph.Graph(len(points), np.column_stack([near.row[once], near.col[once]]).tolist())
    low, high = np.log(RESOLUTIONS)
    best = np.zeros(len(points), dtype=np.int64)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        labels = _communities(graph, float(np.exp(middle)), seed)
        found = labels.max() + 1
        if abs(found - n_clusters) <= abs(best.max() + 1 - n_clusters):
            best = labels
        if found == n_clusters:
            break
        low, high = (middle, high) if found < n_clusters else (low, middle)
    return best


def _communities(graph: igraph.Graph, resolution: float, seed: int) -> np.ndarray:
    """Labels [N], with a generator for igraph, which draws from Python's own otherwise.

    It is one for the whole process.
    """
    import igraph

    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = graph.community_leiden("modularity", resolution=resolution, n_iterations=4)
    finally:
        igraph.set_random_number_generator(random)
    return np.asarray(found.membership, dtype=np.int64)


def _by_size(labels: np.ndarray) -> np.ndarray:
    """The same clusters, the largest one called 0; equal ones in the order of their first point."""
    _, first, codes, sizes = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.lexsort((first, -sizes))
    return np.argsort(order)[codes]
