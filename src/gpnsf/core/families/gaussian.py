"""Real values with normal noise."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from gpnsf.core.families.base import Family
from gpnsf.core.families.rates import nonzero_rates, observed_pieces, prepared
from gpnsf.core.types import RowReader

__all__ = ["Gaussian"]


class Gaussian(Family):
    """``y ~ N(r, sd_j^2)``."""

    signed = True
    has_dispersion = True
    illegal = ()

    def draw(
        self, rate: np.ndarray, dispersion: np.ndarray | float, rng: np.random.Generator
    ) -> np.ndarray:
        """Normal draws."""
        return rng.normal(rate, dispersion)

    def split(
        self,
        counts: sp.csr_matrix,
        dispersion: np.ndarray | None,
        share: float,
        rng: np.random.Generator,
        *,
        n_rows: int | None = None,
    ) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Two matrices [N, P] with the same mean and shares f and 1 - f of the precision.

        ``y + a e`` and ``y - e / a`` are independent if e varies as much as the noise of y, and
        ``a^2 = (1 - f) / f``.
        """
        dense, ratio = counts.toarray(), np.sqrt((1 - share) / share)
        noise = rng.standard_normal(dense.shape) * np.asarray(dispersion)
        pair = dense + ratio * noise, dense - noise / ratio
        return sp.csr_matrix(pair[0].astype(np.float32)), sp.csr_matrix(pair[1].astype(np.float32))

    def halves(
        self, counts: sp.csr_matrix, observed: np.ndarray, rng: np.random.Generator
    ) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """``y + e`` and ``y - e``, where e has the whole variance of its feature.

        They lean to opposite sides, which errs on the safe side.
        """
        dense = counts.toarray()
        spread = dense[observed].std(0)
        noise = rng.standard_normal(dense.shape, dtype=np.float32) * spread
        noise[~observed] = 0
        return sp.csr_matrix(dense + noise), sp.csr_matrix(dense - noise)

    def part_dispersion(self, dispersion: np.ndarray, share: float) -> np.ndarray:
        """A share of the precision is left."""
        return dispersion / np.sqrt(share)

    def deviance(
        self,
        counts: sp.csr_matrix,
        A: np.ndarray,
        W: np.ndarray,
        dispersion: np.ndarray | None = None,
        *,
        rows: np.ndarray | None = None,
    ) -> tuple[float, int]:
        """``sum ((y - r) / sd)^2``; ``sum r^2`` is the trace of two K x K Gram matrices."""
        counts, A, W = prepared(counts, A, W, rows)
        sd = np.broadcast_to(np.asarray(dispersion, dtype=np.float64), counts.shape[1:])
        precision = 1 / np.square(sd)
        y, rate = counts.data.astype(np.float64), nonzero_rates(counts, A, W)
        at_nonzeros = ((y - 2 * rate) * y * precision[counts.indices]).sum()
        squared_rates = np.sum((A.T @ A) * (W.T @ (W * precision[:, None])))
        return float(at_nonzeros + squared_rates), int(np.prod(counts.shape))

    def null_rates(
        self,
        counts: sp.csr_matrix | RowReader,
        size: np.ndarray,
        *,
        rows: np.ndarray | None = None,
        pseudocount: float = 0.0,
    ) -> np.ndarray:
        """Least squares [P]."""
        total, mass = np.full(counts.shape[1], pseudocount), 0.0
        for part, own in observed_pieces(counts, size, rows):
            total, mass = total + part.T @ own, mass + np.square(own).sum()
        return total / mass
