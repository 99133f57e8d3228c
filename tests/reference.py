"""Definitions written as loops over single entries: slow, and plain enough to be believed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.special import gamma, kv

from gpnsf.core.types import Dataset, View

__all__ = [
    "bernoulli_deviance",
    "feature_deviance",
    "gaussian_deviance",
    "gaussian_kl",
    "matern",
    "morans_i",
    "nb_deviance",
    "neighbours",
    "poisson_deviance",
    "scai_objective",
    "scai_step",
    "toy_dataset",
    "zinb_log_prob",
]


def _xlogy(x: float, y: float) -> float:
    return x * math.log(y) if x else 0.0


def _sum(counts: np.ndarray, A: np.ndarray, W: np.ndarray, term) -> float:
    """Sum of ``term(y, rate, j)`` over all entries."""
    total = 0.0
    for i in range(counts.shape[0]):
        for j in range(counts.shape[1]):
            rate = sum(float(A[i, k]) * float(W[j, k]) for k in range(A.shape[1]))
            total += term(float(counts[i, j]), rate, j)
    return total


def poisson_deviance(counts: np.ndarray, A: np.ndarray, W: np.ndarray) -> float:
    """Sum of ``2 (y log(y/r) - y + r)``."""
    return _sum(counts, A, W, lambda y, r, _: 2 * (_xlogy(y, y / r) - y + r))


def nb_deviance(counts: np.ndarray, A: np.ndarray, W: np.ndarray, theta: np.ndarray) -> float:
    """Sum of ``2 (y log(y/r) - (y + t) log((y + t)/(r + t)))``."""

    def term(y: float, r: float, j: int) -> float:
        t = float(theta[j])
        return 2 * (_xlogy(y, y / r) - (y + t) * math.log((y + t) / (r + t)))

    return _sum(counts, A, W, term)


def bernoulli_deviance(counts: np.ndarray, A: np.ndarray, W: np.ndarray) -> float:
    """Sum of ``-2 log p`` of what was seen, with probability ``1 - exp(-r)`` to be open."""
    return _sum(counts, A, W, lambda y, r, _: -2 * (math.log(1 - math.exp(-r)) if y > 0 else -r))


def gaussian_deviance(counts: np.ndarray, A: np.ndarray, W: np.ndarray, sd: np.ndarray) -> float:
    """Sum of squared standardised residuals."""
    return _sum(counts, A, W, lambda y, r, j: ((y - r) / float(sd[j])) ** 2)


def feature_deviance(counts: np.ndarray, kind: str) -> np.ndarray:
    """Deviance of each feature from a constant share of the row totals."""
    n_obs, n_features = counts.shape
    totals = [float(sum(row)) for row in counts]
    deviance = np.zeros(n_features)
    for j in range(n_features):
        share = sum(float(counts[i, j]) for i in range(n_obs)) / sum(totals)
        for i in range(n_obs):
            y, n = float(counts[i, j]), totals[i]
            if share == 0 or n == 0:
                continue
            deviance[j] += 2 * (_xlogy(y, y / (n * share)) - y + n * share)
            if kind == "binomial":
                deviance[j] += 2 * (_xlogy(n - y, (n - y) / (n - n * share)) + y - n * share)
    return deviance


def neighbours(coords: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Weights of the nearest other spots, rows summing to one."""
    weights = np.zeros((len(coords), len(coords)))
    for i, here in enumerate(coords):
        distance = [
            math.inf if j == i else math.dist(here, there) for j, there in enumerate(coords)
        ]
        for j in sorted(range(len(coords)), key=distance.__getitem__)[:n_neighbors]:
            weights[i, j] = 1 / n_neighbors
    return weights


def morans_i(values: np.ndarray, weights: np.ndarray) -> float:
    """``N / sum(w) * sum_ij w_ij z_i z_j / sum z^2`` of one column."""
    n_obs, z = len(values), [float(value) - float(np.mean(values)) for value in values]
    covariance = sum(weights[i, j] * z[i] * z[j] for i in range(n_obs) for j in range(n_obs))
    return n_obs / weights.sum() * covariance / sum(value**2 for value in z)


def matern(distance: float, lengthscale: float, nu: float) -> float:
    """Matern covariance by its Bessel function; squared exponential for nu = infinity."""
    if distance == 0:
        return 1.0
    if math.isinf(nu):
        return math.exp(-0.5 * (distance / lengthscale) ** 2)
    z = math.sqrt(2 * nu) * distance / lengthscale
    return 2 ** (1 - nu) / gamma(nu) * z**nu * kv(nu, z)


def gaussian_kl(mean: np.ndarray, covariance: np.ndarray) -> float:
    """Kullback-Leibler divergence of ``N(mean, covariance)`` from the standard normal."""
    mahalanobis, trace = sum(float(value) ** 2 for value in mean), float(np.trace(covariance))
    return 0.5 * (mahalanobis + trace - len(mean) - np.linalg.slogdet(covariance)[1])


def zinb_log_prob(x: float, mean: float, theta: float, logit: float) -> float:
    """Zero-inflated negative binomial: log of ``pi 1[x = 0] + (1 - pi) NB(x; mean, theta)``, variance ``mean + mean**2 / theta``."""
    pi = 1 / (1 + math.exp(-logit))
    choose = math.lgamma(x + theta) - math.lgamma(theta) - math.lgamma(x + 1)
    nb = math.exp(
        choose + theta * math.log(theta / (theta + mean)) + x * math.log(mean / (theta + mean))
    )
    return math.log((pi if x == 0 else 0.0) + (1 - pi) * nb)


def toy_dataset(
    likelihoods: dict[str, str],
    *,
    n_obs: int = 60,
    n_features: int = 10,
    n_dims: int = 2,
    n_libraries: int = 1,
    missing: int = 0,
    by_total: bool = False,
    seed: int = 0,
) -> Dataset:
    """Simulated counts of two smooth factors and a rough one; the last modality lacks the first ``missing`` rows."""
    rng = np.random.default_rng(seed)
    coords = rng.uniform(-1, 1, (n_obs, n_dims)).astype(np.float32)
    smooth = [np.exp(1.5 * np.sin(3 * coords[:, 0])), np.exp(1.5 * np.cos(3 * coords[:, -1]))]
    factors = np.column_stack([*smooth, rng.lognormal(0, 1, n_obs)])
    views = []
    for name, kind in likelihoods.items():
        observed = np.ones(n_obs, bool)
        observed[: missing if name == list(likelihoods)[-1] else 0] = False
        size = np.where(observed, rng.uniform(0.5, 1.5, n_obs) if kind != "gaussian" else 1.0, 0.0)
        size[observed] /= size[observed].mean()
        loadings = rng.gamma(0.5, 2.0 if kind in ("nb", "poisson") else 0.2, (n_features, 3))
        rate = size[:, None] * (factors @ loadings.T + 0.05)
        values = _drawn(rate, kind, rng) * observed[:, None]
        counts = sp.csr_matrix(values.astype(np.float32))
        views.append(View(name, kind, counts, size.astype(np.float32), observed, by_total=by_total))
    return Dataset(coords, np.arange(n_obs) % n_libraries, tuple(views))


def _drawn(rate: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Values around a rate, from the named likelihood."""
    if kind == "gaussian":
        return rate - rate.mean(axis=0) + 0.3 * rng.standard_normal(rate.shape)
    if kind == "nb":
        return rng.poisson(rate * rng.gamma(5.0, 0.2, rate.shape))
    counts = rng.poisson(rate)
    return counts > 0 if kind.startswith("bernoulli") else counts


def scai_objective(
    X1: np.ndarray,
    X2: np.ndarray,
    R: np.ndarray,
    H: np.ndarray,
    W1: np.ndarray,
    W2: np.ndarray,
    T: np.ndarray,
    w: Any,
) -> float:
    """Objective (S1), every difference written out."""
    K = H.shape[1]
    fit = w.alpha * ((X1 - H @ W1.T) ** 2).sum() + ((T @ X2 / w.mask - H @ W2.T) ** 2).sum()
    fit += w.beta * ((X2 - H @ W2.T) ** 2).sum()
    return (
        fit
        + w.lam / K * ((T - R * (H @ H.T)) ** 2).sum()
        + w.gamma / K * (H.sum(axis=1) ** 2).sum()
    )


def scai_step(
    X1: np.ndarray,
    X2: np.ndarray,
    R: np.ndarray,
    H: np.ndarray,
    W1: np.ndarray,
    W2: np.ndarray,
    T: np.ndarray,
    w: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One iteration of scAI (S3 to S7) entry by entry, with exponent 1 for H."""
    (N, K), s = H.shape, w.mask
    for _ in range(2):
        W1 = W1 * (X1.T @ H) / (W1 @ (H.T @ H))
        W2 = W2 * ((T @ X2 / s).T @ H + w.beta * X2.T @ H) / ((1 + w.beta) * W2 @ (H.T @ H))
    S = R * (H @ H.T)
    new = np.empty_like(H)
    pull, push = np.zeros((N, K)), np.zeros((N, K))
    for i in range(N):
        for k in range(K):
            pull[i, k] = w.lam / K * sum((T[i, j] + T[j, i]) * H[j, k] for j in range(N))
            push[i, k] = (
                w.lam / K * sum((S[i, j] + S[j, i]) * H[j, k] for j in range(N))
                + w.gamma / K * H[i].sum()
            )
    for k in range(K):
        for i in range(N):
            up = w.alpha * (X1 @ W1)[i, k] + (T @ X2 @ W2)[i, k] / s + w.beta * (X2 @ W2)[i, k]
            down = w.alpha * (H @ W1.T @ W1)[i, k] + (1 + w.beta) * (H @ W2.T @ W2)[i, k]
            up += pull[i, k] + H[i, k] * (H[:, k] @ push[:, k])
            down += push[i, k] + H[i, k] * (H[:, k] @ pull[:, k])
            new[i, k] = H[i, k] * up / down
    length = np.sqrt((new**2).sum(axis=0))
    H, W1, W2 = new / length, W1 * length, W2 * length
    up = R * (H @ W2.T @ X2.T / s + w.lam / K * H @ H.T)
    down = R * (T @ X2 @ X2.T / s**2 + w.lam / K * T)
    return H, W1, W2, np.where(down > 0, T * up / np.where(down > 0, down, 1), 0)
