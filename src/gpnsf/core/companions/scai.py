"""scAI: nonnegative factors of RNA and of ATAC averaged over similar cells.

They are found by multiplicative updates.

After Jin, Zhang & Nie (2020), equations (S1) to (S7), with N cells, P features and K factors:

    F = alpha |X1 - H W1'|^2 + |T X2 / s - H W2'|^2 + beta |X2 - H W2'|^2 + lambda/K |T - R o HH'|^2
    + gamma/K |H 1|^2

X1, X2 [N, P] have Frobenius norm 1 and the columns of H [N, K] have norm 1, so that weights mean
the same for all data, and rows of HH' are means over like cells. R [N, N] is a random mask with a
share s of ones, and T [N, N] the weights of the averages: outside of the mask they are zero, since
the published objective is minimised there by HH' itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from gpnsf.core.progress import Progress
from gpnsf.core.types import row_sums

__all__ = [
    "Averages",
    "Outcome",
    "Solution",
    "Weights",
    "averaged",
    "fit",
    "memory",
    "normalised",
    "objective",
    "redundancy",
    "start",
    "step",
]

BLOCK = 512  # rows of an N x N array that are worked on at a time
PILOT = 15  # steps that each start gets before one of them goes on
WINDOW = 10  # steps over which a decrease is measured
SOFT = 0.3  # what a start has of the factors of other clusters
SMALLEST = 2.0**-10  # exponent of the update of H below which there is no way down
TOTAL = 1e4  # of a cell before the logarithm
TINY = 1e-30


@dataclass(frozen=True)
class Weights:
    """Weights of the terms of the objective (S1), and the share of the mask."""

    alpha: float = 1.0
    beta: float = 1.0
    lam: float = 0.01
    gamma: float = 0.003
    mask: float = 0.25


@dataclass(frozen=True)
class Averages:
    """Data and settings that stay the same during a fit."""

    rna: sp.csr_matrix  # [N, P1], norm 1
    atac: sp.csr_matrix  # [N, P2], norm 1
    norms: tuple[float, float]  # of both before
    gram: np.ndarray  # [N, N] float32, X2 X2'
    mask: np.ndarray  # [N, N] bool
    weights: Weights

    @classmethod
    def make(cls, rna: sp.csr_matrix, atac: sp.csr_matrix, weights: Weights, seed: int) -> Averages:
        """Scale both modalities, and draw the mask."""
        norms = float(np.linalg.norm(rna.data)), float(np.linalg.norm(atac.data))
        X1, X2 = (
            sp.csr_matrix(X, dtype=np.float64) / norm
            for X, norm in zip((rna, atac), norms, strict=True)
        )
        n_obs, rng = X1.shape[0], np.random.default_rng(seed)
        gram = np.empty((n_obs, n_obs), dtype=np.float32)
        mask = np.empty((n_obs, n_obs), dtype=bool)
        for rows in _blocks(n_obs):
            gram[rows] = (X2[rows] @ X2.T).toarray()
            mask[rows] = (
                rng.random((rows.stop - rows.start, n_obs), dtype=np.float32) < weights.mask
            )
        return cls(X1, X2, norms, gram, mask, weights)

    def similar(self, H: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of rows of ``R o HH'``."""
        H = H.astype(np.float32)
        for rows in _blocks(len(H)):
            yield rows, np.where(self.mask[rows], H[rows] @ H.T, np.float32(0))


@dataclass
class Solution:
    """Factors, loadings and weights of averages; the objective after each step."""

    H: np.ndarray  # [N, K], columns of norm 1
    W1: np.ndarray  # [P1, K]
    W2: np.ndarray  # [P2, K]
    T: np.ndarray  # [N, N] float32
    trace: list[float]
    exponents: list[float]  # of the update of H in each step; 0 where H stayed as it was


@dataclass(frozen=True)
class Outcome:
    """Result of a fit, in the unit of the values that it was given."""

    # [N, K] float32 with mean 1 over the cells, those with the largest loadings first
    factors: np.ndarray
    loadings: tuple[np.ndarray, np.ndarray]  # [P1, K] and [P2, K] float32
    similarity: np.ndarray  # [N, N] float32: T within the mask, HH' outside of it
    trace: np.ndarray  # objective after each step
    exponents: np.ndarray  # of the update of the factors
    redundancy: np.ndarray  # [n_restarts] of the loadings of each start
    converged: bool


def normalised(counts: sp.csr_matrix) -> sp.csr_matrix:
    """Logarithms of the counts [N, P] of cells scaled to a total of 10,000 (S2).

    Empty cells stay empty.
    """
    totals = row_sums(counts)
    scale = np.divide(TOTAL, totals, out=np.zeros_like(totals), where=totals > 0)
    return sp.csr_matrix(sp.diags(scale) @ counts).log1p()


def fit(
    rna: sp.csr_matrix,
    atac: sp.csr_matrix,
    n_factors: int,
    *,
    weights: Weights = Weights(),
    n_restarts: int = 5,
    max_steps: int = 300,
    tol: float = 1e-5,
    seed: int = 0,
    progress: bool = False,
) -> Outcome:
    """Fit from the start whose loadings are least alike after a few steps.

    Converged is what has lost less than ``tol`` of the objective, on average over ten steps, in a
    step.
    """
    data = Averages.make(rna, atac, weights, seed)
    labels = _clusters(data, n_factors, n_restarts, seed)
    converged = False
    with Progress("scai", PILOT * n_restarts + max_steps, shown=progress) as bar:
        bar.stage("trying starts")
        scores = np.array([_pilot(data, label, n_factors, bar) for label in labels])
        found = start(data, labels[int(scores.argmin())], n_factors)
        bar.stage("finding factors")
        while len(found.trace) < max_steps and not converged:
            step(data, found)
            bar.step()
            trace = found.trace
            converged = (
                len(trace) > WINDOW and trace[-1 - WINDOW] - trace[-1] < WINDOW * tol * trace[-1]
            )
        bar.converged = converged
    return _outcome(data, found, scores, converged)


def _outcome(data: Averages, found: Solution, scores: np.ndarray, converged: bool) -> Outcome:
    """Scale and order the factors."""
    mean = found.H.mean(axis=0)
    loadings = [W * mean * norm for W, norm in zip((found.W1, found.W2), data.norms, strict=True)]
    order = np.argsort(-sum(W.sum(axis=0) for W in loadings), kind="stable")
    return Outcome(
        factors=(found.H / mean)[:, order].astype(np.float32),
        loadings=(
            loadings[0][:, order].astype(np.float32),
            loadings[1][:, order].astype(np.float32),
        ),
        similarity=_similarity(data, found),
        trace=np.array(found.trace),
        exponents=np.array(found.exponents),
        redundancy=scores,
        converged=bool(converged),
    )


def _similarity(data: Averages, found: Solution) -> np.ndarray:
    """T, and outside of the mask what minimises the published objective there."""
    H, Z = found.H.astype(np.float32), found.T
    for rows in _blocks(len(H)):
        np.copyto(Z[rows], H[rows] @ H.T, where=~data.mask[rows])
    return Z


def _pilot(data: Averages, labels: np.ndarray, n_factors: int, bar: Progress) -> float:
    """Redundancy of the loadings after a few steps from these clusters."""
    found = start(data, labels, n_factors)
    for _ in range(PILOT):
        step(data, found)
        bar.step()
    return redundancy(found.W1, found.W2)


def redundancy(*loadings: np.ndarray) -> float:
    """Sum of the correlations of all pairs of factors, in each of several loadings [P, K].

    Constant ones correlate with none.
    """
    total = 0.0
    for W in loadings:
        centred = W - W.mean(axis=0)
        unit = centred / np.maximum(np.linalg.norm(centred, axis=0), TINY)
        total += float(np.triu(unit.T @ unit, k=1).sum())
    return total


def start(data: Averages, labels: np.ndarray, n_factors: int) -> Solution:
    """A factor for each cluster of cells [N].

    Loadings are the means of the clusters, averages those of the factors.
    """
    H = np.eye(n_factors)[labels] + SOFT
    H /= np.linalg.norm(H, axis=0)
    T = np.empty(data.gram.shape, dtype=np.float32)
    for rows, similar in data.similar(H):
        T[rows] = similar
    return Solution(H, data.rna.T @ H, data.atac.T @ H, T, [], [])


def step(data: Averages, found: Solution) -> None:
    """Update loadings (S3), factors (S4 to S6), averages (S7); none raises the objective."""
    for _ in range(2):
        _update_loadings(data, found)
    rest = _update_factors(data, found)
    found.trace.append(rest + _update_averages(data, found))


def objective(data: Averages, found: Solution) -> float:
    """The objective (S1)."""
    w, H = data.weights, found.H
    averages = (
        sum(float(np.vdot(found.T[rows] @ data.gram, found.T[rows])) for rows in _blocks(len(H)))
        / w.mask**2
    )
    attraction, curvature = _data_terms(data, found)
    return _data_value(data, H, attraction, curvature) + _penalty(data, found.T, H) + averages


def _update_loadings(data: Averages, found: Solution) -> None:
    """Multiplicative updates of both loadings (S3)."""
    w, H = data.weights, found.H
    found.W1 *= (data.rna.T @ H) / (found.W1 @ (H.T @ H) + TINY)
    seen = data.atac.T @ (found.T.T @ H.astype(np.float32) / w.mask + w.beta * H)  # [P2, K]
    found.W2 *= seen / ((1 + w.beta) * found.W2 @ (H.T @ H) + TINY)


def _update_factors(data: Averages, found: Solution) -> float:
    """Multiply H by the ratio of both parts of its gradient (S5).

    The exponent is the largest that lowers the objective (S6).

    Columns keep norm 1, and loadings take what was divided off. Returns the objective without the
    norm of the averages.
    """
    H = found.H
    attraction, curvature = _data_terms(data, found)
    pull, push = _penalty_gradient(data, found.T, H)
    # of the gradient only what is at right angles to the column moves a column of norm 1
    up = attraction + pull + H * (H * push).sum(axis=0)
    down = H @ curvature + push + H * (H * pull).sum(axis=0)
    ratio = up / (down + TINY)
    before = _data_value(data, H, attraction, curvature) + _penalty(data, found.T, H)
    exponent = 1.0
    while exponent >= SMALLEST:
        moved = H * ratio**exponent
        length = np.linalg.norm(moved, axis=0)
        after = _data_value(data, moved, attraction, curvature) + _penalty(
            data, found.T, moved / length
        )
        if after <= before:
            found.H, found.W1, found.W2 = moved / length, found.W1 * length, found.W2 * length
            found.exponents.append(exponent)
            return after
        exponent /= 2
    found.exponents.append(0.0)
    return before


def _data_terms(data: Averages, found: Solution) -> tuple[np.ndarray, np.ndarray]:
    """Pull of the data on H [N, K], and the matrix [K, K] of the quadratic form in H."""
    w = data.weights
    projected = data.atac @ found.W2
    attraction = (
        w.alpha * (data.rna @ found.W1)
        + found.T @ projected.astype(np.float32) / w.mask
        + w.beta * projected
    )
    return attraction, w.alpha * found.W1.T @ found.W1 + (1 + w.beta) * found.W2.T @ found.W2


def _data_value(
    data: Averages, H: np.ndarray, attraction: np.ndarray, curvature: np.ndarray
) -> float:
    """The three terms of the data without the norm of the averages."""
    w = data.weights
    return w.alpha + w.beta - 2 * float(np.vdot(attraction, H)) + float(np.vdot(curvature, H.T @ H))


def _penalty(data: Averages, T: np.ndarray, H: np.ndarray) -> float:
    """The terms of similarity and overlap."""
    w, n_factors = data.weights, H.shape[1]
    apart = sum(
        float(np.square(T[rows] - similar).sum(dtype=np.float64))
        for rows, similar in data.similar(H)
    )
    return (w.lam * apart + w.gamma * float(np.square(H.sum(axis=1)).sum())) / n_factors


def _penalty_gradient(
    data: Averages, T: np.ndarray, H: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Negative and positive part [N, K] of half the gradient of these terms."""
    w, n_factors, single = data.weights, H.shape[1], H.astype(np.float32)
    push = np.repeat(w.gamma * H.sum(axis=1, keepdims=True), n_factors, axis=1)
    for rows, similar in data.similar(H):
        push[rows] += w.lam * (similar @ single)
        push += w.lam * (similar.T @ single[rows])
    return w.lam * (T @ single + T.T @ single) / n_factors, push / n_factors


def _update_averages(data: Averages, found: Solution) -> float:
    """Multiplicative update of the weights of the averages (S7).

    Returns the norm of the averages before it.
    """
    w, n_factors = data.weights, found.H.shape[1]
    lam, norm = np.float32(w.lam / n_factors), 0.0
    H = found.H.astype(np.float32)
    # [N, K]
    towards = (data.atac @ found.W2 / w.mask + w.lam / n_factors * found.H).astype(np.float32)
    for rows in _blocks(len(H)):
        T = found.T[rows]
        summed = T @ data.gram / np.float32(w.mask**2)
        norm += float(np.vdot(summed, T))
        found.T[rows] = T * (H[rows] @ towards.T) / (summed + lam * T + np.float32(TINY))
    return norm


def averaged(similarity: np.ndarray, counts: sp.csr_matrix) -> np.ndarray:
    """Counts [N, P] of similar cells added up by their weights, normalised (S8).

    Normalised as single cells are; float32.
    """
    values, columns = np.empty(counts.shape, dtype=np.float32), counts.T.astype(np.float32)
    for rows in _blocks(len(similarity)):
        values[rows] = (columns @ similarity[rows].T).T
    values *= (TOTAL / np.maximum(values.sum(axis=1, keepdims=True), TINY)).astype(np.float32)
    return np.log1p(values, out=values)


def memory(n_obs: int) -> int:
    """Bytes of the N x N arrays of a fit: Gram matrix, weights, mask, and blocks of rows."""
    return 9 * n_obs**2 + 24 * min(BLOCK, n_obs) * n_obs


def _clusters(data: Averages, n_factors: int, number: int, seed: int) -> list[np.ndarray]:
    """Labels [N] of several k-means of the principal components of both modalities side by side."""
    both = sp.hstack([data.rna, data.atac], format="csr")
    n_components = min(2 * n_factors, min(both.shape) - 1)
    pca = PCA(n_components, svd_solver="arpack", random_state=seed)
    points = pca.fit_transform(both) if n_components > 0 else np.zeros((both.shape[0], 1))
    return [
        KMeans(n_factors, n_init=1, random_state=seed + i).fit_predict(points)
        for i in range(number)
    ]


def _blocks(n_obs: int) -> Iterator[slice]:
    """Rows of an N x N array, some at a time."""
    for begin in range(0, n_obs, BLOCK):
        yield slice(begin, min(begin + BLOCK, n_obs))
