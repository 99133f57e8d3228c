"""Where spots lie, and simulated ones: smooth or regional compositions, and counts that mix profiles by them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from gpnsf.core.scores.neighbours import Ties, ties

__all__ = ["Places", "drawn", "regional", "smooth"]

PATCH = 256  # spots of a section to learn from
N_WAVES = 200  # random Fourier features of a field
BLOCK = 2**22  # entries of a dense block of rates


@dataclass(frozen=True)
class Places:
    """Where the spots of the data lie, and how deep they are."""

    coords: np.ndarray  # [N, D]
    slices: np.ndarray  # [N]
    totals: np.ndarray  # [N] counts
    unit: float  # distance of neighbours
    n_neighbors: int
    regions: np.ndarray | None = None  # [N, R] indicators or intensities
    labels: np.ndarray | None = None  # [N] names of the regions, where they are categories

    def at(self, rows: np.ndarray) -> Places:
        """Some of the spots."""
        return replace(
            self,
            coords=self.coords[rows],
            slices=self.slices[rows],
            totals=self.totals[rows],
            regions=None if self.regions is None else self.regions[rows],
            labels=None if self.labels is None else self.labels[rows],
        )

    def ties(self) -> Ties:
        """Ties among the spots."""
        return ties(self.coords, self.slices, n_neighbors=self.n_neighbors, regions=self.regions)

    def patch(self, rng: np.random.Generator) -> np.ndarray:
        """Rows of the spots nearest to one of them, of its slice."""
        centre = rng.integers(len(self.coords))
        rows = np.flatnonzero(self.slices == self.slices[centre])
        distance = np.linalg.norm(self.coords[rows] - self.coords[centre], axis=1)
        return np.sort(rows[np.argsort(distance, kind="stable")[:PATCH]])


def smooth(
    coords: np.ndarray,
    n_types: int,
    *,
    lengthscale: float,
    amplitude: float,
    abundance: float,
    noise: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Proportions [N, C].

    Softmax of squared-exponential Gaussian processes over the coordinates [N, D].

    ``abundance`` is the standard deviation of a constant for each type, ``noise`` that of each
    spot's own deviations.
    """
    frequency = rng.standard_normal((n_types, coords.shape[1], N_WAVES)) / lengthscale
    phase = rng.uniform(0, 2 * np.pi, (n_types, N_WAVES))
    fields = [
        np.sqrt(2 / N_WAVES) * np.cos(coords @ waves + shift).sum(axis=1)
        for waves, shift in zip(frequency, phase, strict=True)
    ]
    logits = amplitude * np.column_stack(fields) + abundance * rng.standard_normal(n_types)
    logits += noise * rng.standard_normal(logits.shape)
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    return share / share.sum(axis=1, keepdims=True)


def regional(
    regions: np.ndarray,
    n_types: int,
    *,
    concentration: float,
    within: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Proportions [N, C]: a Dirichlet draw for each region, and around it one for each spot."""
    names, code = np.unique(regions, return_inverse=True)
    centres = rng.dirichlet(np.full(n_types, concentration), len(names))  # [R, C]
    share = rng.standard_gamma(within * np.maximum(centres, 1e-6)[code])
    return share / np.maximum(share.sum(axis=1, keepdims=True), np.finfo(float).tiny)


def drawn(
    proportions: np.ndarray, profiles: np.ndarray, totals: np.ndarray, rng: np.random.Generator
) -> sp.csr_matrix:
    """Poisson counts [N, P] of spots with the expected totals [N].

    They mix the profiles [P, C] by the proportions [N, C].
    """
    blocks = []
    for rows in np.array_split(
        np.arange(len(proportions)), len(proportions) * len(profiles) // BLOCK + 1
    ):
        rate = proportions[rows] @ profiles.T
        rate *= (totals[rows] / rate.sum(axis=1))[:, None]
        blocks.append(sp.csr_matrix(rng.poisson(rate).astype(np.float64)))
    return sp.vstack(blocks, format="csr")
