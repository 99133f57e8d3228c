"""Counts whose variance is their mean."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.special import rel_entr

from gpnsf.core.families.base import NEGATIVE, Family, Illegal
from gpnsf.core.families.rates import nonzero_rates, prepared

__all__ = ["FRACTIONAL", "Poisson"]

FRACTIONAL = Illegal(lambda values: values != np.floor(values), "whole counts", "fractional")


class Poisson(Family):
    """``y ~ Poisson(r)``."""

    events = True
    illegal = (NEGATIVE, FRACTIONAL)

    def draw(
        self, rate: np.ndarray, dispersion: np.ndarray | float, rng: np.random.Generator
    ) -> np.ndarray:
        """Poisson draws."""
        return rng.poisson(rate)

    def deviance(
        self,
        counts: sp.csr_matrix,
        A: np.ndarray,
        W: np.ndarray,
        dispersion: np.ndarray | None = None,
        *,
        rows: np.ndarray | None = None,
    ) -> tuple[float, int]:
        """``2 sum [y log(y/r) - y + r]``; the rates of the zeros come from column sums."""
        counts, A, W = prepared(counts, A, W, rows)
        observed = counts.data.sum(dtype=np.float64)
        at_nonzeros = rel_entr(counts.data, nonzero_rates(counts, A, W)).sum() - observed
        expected = A.sum(axis=0) @ W.sum(axis=0)
        return float(2 * (at_nonzeros + expected)), int(np.prod(counts.shape))
