"""From counts to values of a Gaussian model, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

__all__ = ["Return", "normalised"]

FLOOR = 0.01  # least expected count, in those of a constant rate


def normalised(counts: sp.csr_matrix, size: np.ndarray, *, log: bool) -> sp.csr_matrix:
    """``log(1 + y / s)``, or ``y / s``, of counts [n, P] and size factors [n]; zeros stay zeros."""
    scaled = sp.csr_matrix(sp.diags_array(1 / size) @ counts)
    return sp.csr_matrix(scaled.log1p() if log else scaled)


@dataclass(frozen=True)
class Return:
    """The way from expected values of a Gaussian model back to expected counts at size factor 1.

    Where ``log(1 + y) ~ N(x, sd^2)``, ``E y = exp(x + sd^2 / 2) - 1``; ``expm1(x)`` is the median,
    which is below. A signed model may expect less than nothing: then it is a hundredth of a
    constant rate. Values are logarithms over ``unit``.
    """

    log: bool
    unit: float
    constant: np.ndarray  # [P] rates of a model that has one for each feature
    noise: np.ndarray  # [P] standard deviation

    def rates(self, values: np.ndarray) -> np.ndarray:
        """Expected counts [n, P]."""
        values, noise = self.unit * values, self.unit * self.noise
        raw = np.expm1(values + 0.5 * np.square(noise)) if self.log else values
        return np.maximum(raw, FLOOR * self.constant)
