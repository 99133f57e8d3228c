"""Counts drawn from a fit, and how the intervals of another fit hold what they were drawn from."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from gpnsf.core.families import FAMILIES

__all__ = ["log_errors", "log_moments", "simulate_counts"]

BLOCK = 2**21  # entries of a dense block of rates


def simulate_counts(
    A: np.ndarray,
    W: np.ndarray,
    likelihood: str,
    dispersion: np.ndarray | float,
    rng: np.random.Generator,
    batches: tuple[np.ndarray, np.ndarray],
) -> sp.csr_matrix:
    """Draws [n, P] from a likelihood with rates ``A W^T`` (eq. 4), by dense blocks of rows.

    ``batches`` are the batch [n] of each row and the multipliers [S, P] of the rates (eq. 4a). Some
    likelihoods have no dispersion.
    """
    codes, multipliers = batches
    step, draw = max(1, BLOCK // len(W)), FAMILIES[likelihood].draw
    parts = [slice(start, start + step) for start in range(0, len(A), step)]
    rates = (A[part] @ W.T * multipliers[codes[part]] for part in parts)
    blocks = [sp.csr_matrix(draw(rate, dispersion, rng), dtype=np.float32) for rate in rates]
    return sp.vstack(blocks, format="csr")


def log_moments(mean: np.ndarray, std: np.ndarray, cap: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of log factors, given those of log-normal factors.

    ``cap`` bounds the variance in ``mean = exp(m + v / 2)``, as where the moments were made.
    """
    mean, std = np.asarray(mean, dtype=np.float64), np.asarray(std, dtype=np.float64)
    variance = np.log1p((std / mean) ** 2)
    return np.log(mean) - np.minimum(variance, cap) / 2, np.sqrt(variance)


def log_errors(truth: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Errors [N, K] of log factors in the scale of the slots.

    Factors are known up to a scale, and have mean one.
    """
    return centre - np.log(truth / truth.mean(axis=0))
