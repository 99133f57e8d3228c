"""Scores by which the features of a factor are ranked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincinv

__all__ = ["METHODS", "PRIOR_COUNTS", "Weights", "best", "score"]

METHODS = ("posterior", "lift", "loading", "share", "specificity")
PRIOR_COUNTS = 50.0  # that a feature is taken to have seen of a factor that has its part of it
LEVEL = 0.05  # below which the ratio lies with this probability
TINY = np.finfo(float).tiny


@dataclass(frozen=True)
class Weights:
    """Magnitudes of the loadings of one modality, looked at from one factor."""

    every: np.ndarray  # [P, K]
    factor: int
    background: np.ndarray | float = 0.0  # [P]

    @property
    def own(self) -> np.ndarray:
        """Those of the factor [P]."""
        return self.every[:, self.factor]

    @property
    def others(self) -> np.ndarray:
        """The largest of the other factors [P]."""
        return np.delete(self.every, self.factor, axis=1).max(axis=1, initial=0.0)

    @property
    def total(self) -> np.ndarray:
        """Those of all factors [P]."""
        return self.every.sum(axis=1)

    @property
    def share(self) -> np.ndarray:
        """Share of the factor in each feature [P]."""
        return _ratio(self.own, self.total)

    @property
    def expected(self) -> np.ndarray:
        """Loading [P] of a feature whose share of the factor is its share of all counts."""
        whole = self.total + self.background
        return whole * (self.own.sum() / whole.sum() if self.own.any() else 1.0)

    @property
    def lift(self) -> np.ndarray:
        """Loading over that of a feature like any other [P]."""
        return _ratio(self.own, self.expected)


def score(
    weights: Weights,
    method: str,
    *,
    n_obs: int,
    prior_counts: float = PRIOR_COUNTS,
    complete: bool = False,
) -> np.ndarray:
    """Score [P] by one of the methods; -inf: left out.

    Left out is what has no loading on the factor, and what does not stand out: what has less than
    expected or, by "specificity", more in another factor. With ``complete`` the latter is there.
    """
    own, expected = weights.own, weights.expected
    outstanding = own >= expected
    if method == "posterior":
        found = _ratio_at_least(n_obs * own, n_obs * expected, prior_counts)
    elif method == "lift":
        gain = own * np.log(np.maximum(weights.lift, TINY)) - (own - expected)
        found = np.where(outstanding, 1, -1) * np.maximum(gain, 0.0)
    elif method == "specificity":
        found = _ratio(own - weights.others, weights.total)
        outstanding = own >= weights.others
    else:
        found = own if method == "loading" else weights.share
        outstanding = own > 0
    return np.where((own > 0) & (outstanding | complete), found, -np.inf)


def best(weights: Weights, scores: np.ndarray, n_features: int) -> np.ndarray:
    """Positions of the highest scores, the larger loading first where two are equal."""
    allowed = np.flatnonzero(np.isfinite(scores))
    return allowed[np.lexsort((-weights.own[allowed], -scores[allowed]))][:n_features]


def _ratio_at_least(counts: np.ndarray, expected: np.ndarray, prior: float) -> np.ndarray:
    r"""Binary logarithm [P] of the lower end of the 90 % interval of counts over expected counts.

    :math:`c \sim \mathrm{Poisson}(r e)` with :math:`r \sim \mathrm{Gamma}(a, a)`, a the prior's
    counts, gives :math:`r \mid c \sim \mathrm{Gamma}(a + c, a + e)`.
    """
    lower = gammaincinv(prior + counts, LEVEL) / np.maximum(prior + expected, TINY)
    return np.log2(np.maximum(lower, TINY))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Quotient that is zero where there is nothing."""
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
