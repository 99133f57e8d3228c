"""Proportions of cell types in spots.

Least squares with a graph, whose unknowns are N spots by C types (equations D1 to D5).

Counts enter through their products with the profiles of the types only, so that a step costs as
much for ten thousand genes as for a hundred.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.optimize import nnls

from gpnsf.core.types import row_sums

__all__ = [
    "Mixture",
    "Penalties",
    "Solution",
    "accelerated",
    "exact",
    "gene_weights",
    "multiplicative",
    "normalised",
    "objective",
    "ratio",
    "summarised",
]

FLOOR = 1e-3  # of the mean profile, over the mean of all genes: rare genes are no surer than this
TINY = 1e-12  # least denominator of an update
WINDOW = 10  # steps over which the decrease is judged
# share of the largest eigenvalue below which a direction of the profiles is taken for none
RANK = 1e-12


@dataclass(frozen=True)
class Mixture:
    """Counts and profiles in the units of the least squares.

    The mean squared length of a profile is 1.
    """

    cross: np.ndarray  # [N, C] weighted counts times profiles
    gram: np.ndarray  # [C, C] products of the profiles
    squares: np.ndarray  # [N] sums of the squared weighted counts
    # [N] 1 for spots with counts, 0 for those without: the others say nothing about them
    seen: np.ndarray

    def step(self, V: np.ndarray) -> np.ndarray:
        """Expected products [N, C] at the abundances [N, C]."""
        return self.seen[:, None] * (V @ self.gram)

    def at(self, rows: np.ndarray) -> Mixture:
        """The same of some spots."""
        return Mixture(self.cross[rows], self.gram, self.squares[rows], self.seen[rows])


@dataclass(frozen=True)
class Penalties:
    """The regularisers of (D3), in the same units; zero switches one off."""

    graph: sp.csr_matrix  # [N, N] strengths of neighbours
    groups: np.ndarray  # [N, C] what a type costs in the region of a spot
    spatial: float = 0.0  # lambda_1
    total: float = 0.0  # lambda_2
    group: float = 0.0  # lambda_3

    @property
    def degree(self) -> np.ndarray:
        """Sums [N, 1] of the strengths of each spot."""
        return np.asarray(self.graph.sum(axis=1)).reshape(-1, 1)


@dataclass(frozen=True)
class Solution:
    """Abundances and the way to them."""

    V: np.ndarray  # [N, C]
    trace: np.ndarray  # [steps + 1] objective
    converged: bool


def gene_weights(profiles: np.ndarray) -> np.ndarray:
    """Weights [P] of the genes.

    One over the standard deviation of a Poisson count at the mean profile (D2).
    """
    mean = profiles.mean(axis=1)
    return 1 / np.sqrt(mean / mean.mean() + FLOOR)


def summarised(counts: sp.csr_matrix, profiles: np.ndarray) -> Mixture:
    """Counts [N, P] at the depth of the profiles [P, C] (D1), weighted (D2), times the profiles."""
    totals = row_sums(counts)
    scale = np.divide(
        profiles.sum(axis=0).mean(), totals, out=np.zeros_like(totals), where=totals > 0
    )
    weights = gene_weights(profiles)
    B = weights[:, None] * profiles  # [P, C]
    gram = B.T @ B  # [C, C]
    unit = np.trace(gram) / len(gram)
    cross = scale[:, None] * (counts @ (weights[:, None] * B))  # [N, C]
    squares = counts.multiply(counts) @ np.square(weights)  # [N]
    return Mixture(
        cross / unit,
        gram / unit,
        np.square(scale) * squares / unit,
        (totals > 0).astype(float),
    )


def objective(mixture: Mixture, penalties: Penalties, V: np.ndarray) -> float:
    """The function of (D3) that is made small."""
    fit = (
        0.5 * mixture.squares.sum() - np.vdot(mixture.cross, V) + 0.5 * np.vdot(mixture.step(V), V)
    )
    roughness = np.vdot(V, penalties.degree * V - penalties.graph @ V)
    excess = np.square(V.sum(axis=1) - 1).sum()
    cost = np.square((penalties.groups * V).sum(axis=1)).sum()
    return float(
        fit
        + 0.5 * (penalties.spatial * roughness + penalties.total * excess + penalties.group * cost)
    )


def ratio(mixture: Mixture, penalties: Penalties, V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Negative and positive part [N, C] of the gradient; their ratio is the update (D5)."""
    pull = mixture.cross + penalties.spatial * (penalties.graph @ V) + penalties.total
    groups = penalties.groups
    push = (
        mixture.step(V)
        + penalties.spatial * penalties.degree * V
        + penalties.total * V.sum(axis=1, keepdims=True)
        + penalties.group * groups * (groups * V).sum(axis=1, keepdims=True)
    )
    return pull, push


def multiplicative(
    mixture: Mixture,
    penalties: Penalties,
    *,
    max_steps: int = 2000,
    tol: float = 1e-6,
    V: np.ndarray | None = None,
) -> Solution:
    """Multiply abundances by the ratio of (D5), which never raises the objective.

    Ends when it falls by less than ``tol`` in ten steps.
    """
    V = np.full_like(mixture.cross, 1 / len(mixture.gram)) if V is None else V
    trace = [objective(mixture, penalties, V)]
    while len(trace) <= max_steps and not _settled(trace, tol):
        pull, push = ratio(mixture, penalties, V)
        V = V * pull / np.maximum(push, TINY)
        trace.append(objective(mixture, penalties, V))
    return Solution(V, np.array(trace), _settled(trace, tol))


def accelerated(
    mixture: Mixture, penalties: Penalties, *, max_steps: int = 2000, tol: float = 1e-6
) -> Solution:
    """The minimum by projected gradients with momentum, given up where it leads uphill (FISTA)."""
    V = np.full_like(mixture.cross, 1 / len(mixture.gram))
    length = 1 / _curvature(mixture, penalties)
    ahead, momentum, trace = V, 1.0, [objective(mixture, penalties, V)]
    while len(trace) <= max_steps and not _settled(trace, tol):
        pull, push = ratio(mixture, penalties, ahead)
        new = np.maximum(ahead - length * (push - pull), 0.0)
        trace.append(objective(mixture, penalties, new))
        uphill = trace[-1] > trace[-2]
        following = 1.0 if uphill else (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (0.0 if uphill else (momentum - 1) / following) * (new - V)
        V, momentum = new, following
    return Solution(V, np.array(trace), _settled(trace, tol))


def exact(mixture: Mixture) -> np.ndarray:
    """Nonnegative least squares [N, C] of every spot by itself, without any penalty."""
    values, vectors = np.linalg.eigh(mixture.gram)
    kept = values > RANK * values[-1]
    root = np.sqrt(values[kept])[:, None] * vectors[:, kept].T  # [R, C] with root^T root = gram
    targets = mixture.cross @ (vectors[:, kept] / np.sqrt(values[kept]))  # [N, R]
    return np.array([nnls(root, target)[0] for target in targets])


def normalised(V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Proportions [N, C] and sums [N] of abundances; where the sum is zero, all types alike."""
    sums = V.sum(axis=1)
    share = np.divide(
        V, sums[:, None], out=np.full_like(V, 1 / V.shape[1]), where=sums[:, None] > 0
    )
    return share, sums


def _settled(trace: list[float], tol: float) -> bool:
    """Whether the last steps gained too little to go on."""
    return len(trace) > WINDOW and abs(trace[-1 - WINDOW] - trace[-1]) <= tol * abs(trace[-1])


def _curvature(mixture: Mixture, penalties: Penalties) -> float:
    """No less than the largest eigenvalue of the Hessian."""
    n_types = len(mixture.gram)
    graph = 2 * penalties.spatial * penalties.degree.max(initial=0.0)
    groups = penalties.group * np.square(penalties.groups).sum(axis=1).max(initial=0.0)
    return float(np.linalg.norm(mixture.gram, 2) + graph + penalties.total * n_types + groups)
