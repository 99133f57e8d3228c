"""Counts that vary more than their mean."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.special import rel_entr

from gpnsf.core.families.base import NEGATIVE, Family
from gpnsf.core.families.poisson import FRACTIONAL
from gpnsf.core.families.rates import nonzero_rates, prepared, row_slices, with_values

__all__ = ["NegativeBinomial"]

LARGEST_THETA = 1e12  # from here on it is a Poisson distribution to machine precision
LARGEST_SPLIT_THETA = 1e6  # from here on counts are split as those of a Poisson distribution


class NegativeBinomial(Family):
    """``y ~ NB(mean r, size theta_j)``, variance ``r + r^2 / theta``."""

    events = True
    has_dispersion = True
    illegal = (NEGATIVE, FRACTIONAL)
    fast = "poisson"  # any likelihood makes a valid score
    scorer = "poisson"  # sums over all zeros cost a dense pass for each factor that is judged

    def draw(
        self, rate: np.ndarray, dispersion: np.ndarray | float, rng: np.random.Generator
    ) -> np.ndarray:
        """Poisson draws whose rates have gamma noise."""
        rate = rate * rng.standard_gamma(dispersion, rate.shape) / dispersion
        return rng.poisson(rate)

    def split(
        self,
        counts: sp.csr_matrix,
        dispersion: np.ndarray | None,
        share: float,
        rng: np.random.Generator,
        *,
        n_rows: int | None = None,
    ) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Two matrices [N, P] with the ``share`` f and 1 - f of the rates.

        Binomial parts share the gamma noise of their rate, unless the probability of each count is
        itself drawn from ``Beta(f theta, (1 - f) theta)``.
        """
        if dispersion is None:  # not known
            dispersion = np.zeros(counts.shape[1])
        theta = np.asarray(dispersion)
        # 0: a feature that the fit has not seen
        theta = np.where(theta > 0, theta, LARGEST_SPLIT_THETA)
        theta = np.minimum(theta, LARGEST_SPLIT_THETA)[counts.indices]
        probability = rng.beta(share * theta, (1 - share) * theta)
        values = counts.data.astype(np.int64)
        first = rng.binomial(values, probability)
        return with_values(counts, first), with_values(counts, values - first)

    def part_dispersion(self, dispersion: np.ndarray, share: float) -> np.ndarray:
        """Theta is shared out like the rates."""
        return dispersion * share

    def deviance(
        self,
        counts: sp.csr_matrix,
        A: np.ndarray,
        W: np.ndarray,
        dispersion: np.ndarray | None = None,
        *,
        rows: np.ndarray | None = None,
    ) -> tuple[float, int]:
        """``2 sum [y log(y/r) - (y + theta) log((y + theta) / (r + theta))]``."""
        counts, A, W = prepared(counts, A, W, rows)
        theta = np.broadcast_to(np.asarray(dispersion, dtype=np.float64), counts.shape[1:])
        theta = np.minimum(theta, LARGEST_THETA)
        y, rate = counts.data.astype(np.float64), nonzero_rates(counts, A, W)
        shape = theta[counts.indices]
        as_count = rel_entr(y, rate) - (y + shape) * np.log1p((y - rate) / (rate + shape))
        as_zero = shape * np.log1p(rate / shape)
        everywhere_zero = sum(
            float((np.log1p(A[block] @ (W / theta[:, None]).T) @ theta).sum())
            for block in row_slices(*counts.shape)
        )
        total = 2 * (everywhere_zero + (as_count - as_zero).sum())
        return float(total), int(np.prod(counts.shape))
