"""Scales, shares and importance scores: pure functions of factors and loadings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = [
    "feature_importance",
    "importance_std",
    "observation_importance",
    "observation_shares",
    "to_one",
    "top_factor",
]


def to_one(values: np.ndarray, *, axis: int = 1) -> np.ndarray:
    """Divide each row, or each column with ``axis=0``, by its sum; what has no mass stays zero."""
    total = values.sum(axis=axis, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values), where=total > 0)


def observation_shares(factors: np.ndarray, loadings: Mapping[str, np.ndarray]) -> np.ndarray:
    """Shares [N, K] of each factor in the expected signal of a spot.

    ``H_ik sum_j W_jk``, rows summing to one.
    """
    mass = np.sum([W.sum(axis=0, dtype=np.float64) for W in loadings.values()], axis=0)  # [K]
    return to_one(factors * mass)


def observation_importance(
    factors: np.ndarray, loadings: Mapping[str, np.ndarray], is_spatial: np.ndarray
) -> np.ndarray:
    """Share [N] of the expected signal of a spot that comes from spatial factors.

    The background is left out.
    """
    return observation_shares(np.abs(factors), _magnitudes(loadings))[:, is_spatial].sum(axis=1)


def feature_importance(loadings: np.ndarray, is_spatial: np.ndarray) -> np.ndarray:
    """Share [P] of a feature's expected signal that comes from spatial factors (mean one)."""
    return to_one(np.abs(loadings).astype(np.float64))[:, is_spatial].sum(axis=1)


def _magnitudes(loadings: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Absolute loadings: signed models have a share of magnitude, not of signal."""
    return {name: np.abs(W) for name, W in loadings.items()}


def importance_std(
    loadings: np.ndarray, covariance: np.ndarray, is_spatial: np.ndarray
) -> np.ndarray:
    """Standard deviation [P] of ``feature_importance`` by the delta method.

    It follows from covariances [P, K, K] of the loadings.

    With ``s = sum_spatial w / sum w`` the gradient is ``(1[spatial] - s) / sum w``.
    """
    total = np.abs(loadings).sum(axis=1, dtype=np.float64)  # [P]
    share = feature_importance(loadings, is_spatial)  # [P]
    gradient = (is_spatial[None, :] - share[:, None]) / np.maximum(total, 1e-30)[:, None]  # [P, K]
    variance = np.einsum("pk,pkl,pl->p", gradient, covariance, gradient)
    return np.where(total > 0, np.sqrt(np.clip(variance, 0.0, 0.25)), 0.0)


def top_factor(loadings: np.ndarray) -> np.ndarray:
    """Index [P] of the factor with the largest share of each feature.

    -1 for features without signal.
    """
    magnitude = np.abs(loadings)
    return np.where(magnitude.sum(axis=1) > 0, magnitude.argmax(axis=1), -1)
