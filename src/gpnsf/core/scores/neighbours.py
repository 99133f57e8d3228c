"""Which spots are neighbours, and how strongly they are tied (equation D4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from gpnsf.core.scores.metrics import knn_weights

__all__ = ["Ties", "ties"]


@dataclass(frozen=True)
class Ties:
    """Pairs of neighbours, each in both directions."""

    n_obs: int
    row: np.ndarray  # [E]
    column: np.ndarray  # [E]
    distance: np.ndarray  # [E] in the units of the coordinates
    contrast: np.ndarray  # [E] how different their regions or images are

    def strength(self, bandwidth: float, region_bandwidth: float) -> np.ndarray:
        """Strengths [E], ``exp(-(d / s1)^2 - (z / s2)^2)``, over the largest sum of a spot."""
        strength = np.exp(
            -((self.distance / bandwidth) ** 2) - (self.contrast / region_bandwidth) ** 2
        )
        largest = np.bincount(self.row, strength, minlength=self.n_obs).max(initial=0.0)
        return strength / largest if largest > 0 else np.zeros(len(strength))

    def graph(self, bandwidth: float, region_bandwidth: float = 1.0) -> sp.csr_matrix:
        """Strengths as a symmetric matrix [N, N], no diagonal, row sums at most 1."""
        values = self.strength(bandwidth, region_bandwidth)
        return sp.csr_matrix((values, (self.row, self.column)), shape=(self.n_obs, self.n_obs))


def ties(
    coords: np.ndarray, slices: np.ndarray, *, n_neighbors: int, regions: np.ndarray | None = None
) -> Ties:
    """Ties of each spot to its nearest ones in the slice [N], and to those it is nearest to.

    ``regions`` [N, R] describe the spots otherwise, by indicators of a region or by intensities of
    an image.
    """
    rows, columns = [], []
    for name in dict.fromkeys(slices):
        spots = np.flatnonzero(slices == name)
        nearest = knn_weights(coords[spots], n_neighbors)
        pairs = nearest.maximum(nearest.T).tocoo()
        rows.append(spots[pairs.row])
        columns.append(spots[pairs.col])
    row, column = np.concatenate(rows), np.concatenate(columns)
    contrast = (
        np.zeros(len(row))
        if regions is None
        else np.abs(regions[row] - regions[column]).sum(axis=1)
    )
    return Ties(
        len(coords), row, column, np.linalg.norm(coords[row] - coords[column], axis=1), contrast
    )
