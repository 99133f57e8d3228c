"""Scores by which the features of a factor are ranked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincinv

__all__ = ["METHODS", "MIN_COUNTS", "Weights", "best", "posterior", "score"]

METHODS = ("posterior", "lift", "loading", "share", "specificity")
MIN_COUNTS = 50.0  # that a factor is expected to give to a feature, all observations together
ALWAYS = 50  # features with the largest loadings that are abundant whatever their counts
LEVEL = 0.05  # below which the loading lies with this probability
LEAST, MOST = 1e-3, 1e10  # shape of a gamma distribution whose quantiles are finite numbers


@dataclass(frozen=True)
class Weights:
    """Magnitudes of the loadings of one modality, looked at from one factor."""

    every: np.ndarray  # [P, K]
    factor: int

    @property
    def own(self) -> np.ndarray:
        """Those of the factor [P]."""
        return self.every[:, self.factor]

    @property
    def total(self) -> np.ndarray:
        """Those of all factors [P]."""
        return self.every.sum(axis=1)

    @property
    def share(self) -> np.ndarray:
        """Share of the factor in each feature [P]."""
        return _ratio(self.own, self.total)

    @property
    def lift(self) -> np.ndarray:
        """Loading over that of a feature like any other [P]."""
        return _ratio(self.own, self.expected())

    def expected(self, background: np.ndarray | float = 0.0) -> np.ndarray:
        """Loading [P] of a feature whose share of the factor is its share of all counts.

        The background [P] is included.
        """
        whole = self.total + background
        return whole * (self.own.sum() / whole.sum() if self.own.any() else 1.0)


def posterior(
    weights: Weights,
    std: np.ndarray,
    background: np.ndarray,
    *,
    n_obs: int,
    min_counts: float = MIN_COUNTS,
    complete: bool = False,
) -> np.ndarray:
    r"""Binary logarithm [P] of the lower end of each loading's interval over the one expected.

    The interval is that of 90 %; -inf: left out.

    The interval is that of a gamma distribution with the posterior's mean and standard deviation
    [P]. Left out is what has less than expected, or fewer expected counts, ``n_obs * loading``
    since factors and size factors have mean 1, than ``min_counts``; the 50 largest loadings are
    never too small. With ``complete``, what has less than expected is there with its score below 0.
    """
    own, expected = weights.own, weights.expected(background)
    counts = n_obs * own
    floor = min(min_counts, np.partition(counts, -ALWAYS)[-ALWAYS] if counts.size > ALWAYS else 0.0)
    enough = (own >= expected) | complete
    chosen = np.flatnonzero((own > 0) & enough & (counts >= floor))
    shape = np.clip((own[chosen] / np.maximum(std[chosen], 1e-150)) ** 2, LEAST, MOST)
    lower = own[chosen] * gammaincinv(shape, LEVEL) / shape
    found = np.full(own.size, -np.inf)
    found[chosen] = np.log2(np.maximum(lower / expected[chosen], np.finfo(float).tiny))
    return found


def score(weights: Weights, method: str, *, complete: bool = False) -> np.ndarray:
    """Score [P] by the loadings alone; -inf: left out.

    With ``complete``, what has less lift than 1 is there with its score below 0.
    """
    own, total, lift = weights.own, weights.total, weights.lift
    if method == "loading":
        found = own
    elif method == "share":
        found = weights.share
    elif method == "specificity":
        others = np.delete(weights.every, weights.factor, axis=1).max(axis=1, initial=0.0)
        found = np.where(own >= others, _ratio(own - others, total), -np.inf)
    else:
        log_lift = np.log(np.maximum(lift, np.finfo(float).tiny))
        gain = np.maximum(own * log_lift - (own - weights.expected()), 0.0)
        found = np.where(lift >= 1, gain, -gain if complete else -np.inf)
    return np.where(own > 0, found, -np.inf)


def best(weights: Weights, scores: np.ndarray, n_features: int) -> np.ndarray:
    """Positions of the highest scores, the larger loading first where two are equal."""
    allowed = np.flatnonzero(np.isfinite(scores))
    return allowed[np.lexsort((-weights.own[allowed], -scores[allowed]))][:n_features]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Quotient that is zero where there is nothing."""
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
