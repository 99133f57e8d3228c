"""How far the loadings of rare features are to be trusted.

A pull towards the feature's mean, chosen by cross-validation.

A feature with few counts has loadings that follow these counts. With ``n_j`` counts, its rates
become ``(1 - a_j) (H w_j + b_j) + a_j mean_j`` with ``a_j = strength / (strength + n_j)``: as if
that many more counts had been seen that know nothing of the factors.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from gpnsf.core.families import FAMILIES, Family

__all__ = ["best_strength", "known", "shrunk"]

STRENGTHS = 10.0 ** np.arange(-0.5, 4.0, 0.5)
N_FOLDS = 5
N_STEPS = 15  # of the loadings on the rows of a fold's complement
FEATURES, NONZEROS = 2000, 1_000_000  # of the sample that one number is estimated from
FLOOR = 1e-4  # share of a loading below which multiplicative steps would not bring it back
HALF = 0.5  # count added to each feature of a fold: none has rate zero


def _judge(likelihood: str) -> Family:
    """The likelihood whose deviance decides."""
    return FAMILIES[FAMILIES[likelihood].scorer or likelihood]


def shrunk(
    loadings: np.ndarray, mean: np.ndarray, n_counts: np.ndarray, strength: float
) -> np.ndarray:
    """Loadings [P, K+1], background last, pulled towards the mean rate [P] of each feature."""
    pull = strength / (strength + np.maximum(n_counts, 1e-12)) if strength else np.zeros(len(mean))
    result = loadings * (1 - pull)[:, None]
    result[:, -1] += pull * mean
    return result


def known(
    likelihood: str,
    counts: sp.csr_matrix,
    size: np.ndarray,
    batch: np.ndarray,
    multipliers: np.ndarray,
    *,
    extra: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean rate [P] of each feature and how many counts [P] it has.

    Those of open chromatin are open entries.

    Rates of a batch are mean rates times its multipliers [S, P]; for open chromatin that holds to
    first order.
    """
    family = _judge(likelihood)
    mean = family.null_rates(counts, size, pseudocount=extra)
    mean = mean * size.sum() / (np.bincount(batch, size, minlength=len(multipliers)) @ multipliers)
    n_counts = np.bincount(
        counts.indices, None if family.binary else counts.data, minlength=counts.shape[1]
    )
    return mean, n_counts + extra


def best_strength(
    likelihood: str,
    counts: sp.csr_matrix,
    size: np.ndarray,
    factors: np.ndarray,
    loadings: np.ndarray,
    batch: np.ndarray,
    multipliers: np.ndarray,
) -> float:
    """The strength with the smallest deviance on rows whose counts the loadings have not seen.

    Given are factors [n, K+1], the batch [n] of each row and the multipliers [S, P]. Features
    without loadings say nothing.
    """
    family, rng = _judge(likelihood), np.random.default_rng(0)
    wanted = min(FEATURES, int(counts.shape[1] * NONZEROS / max(counts.nnz, 1)) + 1)
    seen = np.flatnonzero((counts.getnnz(axis=0) > 0) & loadings.any(axis=1))
    sample = np.sort(rng.permutation(seen)[:wanted])
    counts = sp.csr_matrix(counts[:, sample])
    A = size[:, None] * factors
    multipliers = multipliers[:, sample]
    fold = rng.permutation(len(A)) % N_FOLDS
    total = np.zeros(len(STRENGTHS))
    for number in range(N_FOLDS):
        train = fold != number
        mean, n_counts = known(
            likelihood, counts[train], size[train], batch[train], multipliers, extra=HALF
        )
        W = _updated(family, counts[train], A[train], loadings[sample], batch[train], multipliers)
        for i, strength in enumerate(STRENGTHS):
            pulled = shrunk(W, mean, n_counts, strength)
            for code, own in enumerate(multipliers):
                judged = ~train & (batch == code)
                total[i] += family.deviance(counts, A, pulled * own[:, None], rows=judged)[0]
    return float(STRENGTHS[np.argmin(total)])


def _updated(
    family: Family,
    counts: sp.csr_matrix,
    A: np.ndarray,
    W: np.ndarray,
    batch: np.ndarray,
    multipliers: np.ndarray,
) -> np.ndarray:
    """Expectation-maximisation steps of the loadings [P, K+1] on other rows, given the factors."""
    W = np.maximum(W, FLOOR * W.sum(axis=1, keepdims=True)).astype(np.float64)
    row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    own = multipliers[batch[row], counts.indices]
    exposure = sum(np.outer(m, A[batch == code].sum(axis=0)) for code, m in enumerate(multipliers))
    for _ in range(N_STEPS):
        rate = np.einsum("nk,nk->n", A[row], W[counts.indices])
        ratio = family.events_per_rate(counts.data, rate, own)
        W = (
            W
            * (sp.csr_matrix((ratio, counts.indices, counts.indptr), shape=counts.shape).T @ A)
            / exposure
        )
    return W
