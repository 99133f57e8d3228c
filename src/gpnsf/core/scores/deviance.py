"""Features that deviate most from a constant share of the total of each observation."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.special import xlog1py

from gpnsf.core.types import row_sums

__all__ = ["feature_deviance", "largest"]


def feature_deviance(counts: sp.csr_matrix, kind: str) -> np.ndarray:
    """Deviance [P], "poisson" or "binomial", from constant shares of the row totals.

    With totals n_i and shares p_j the Poisson deviance is ``2 sum y log(y / (n p))``, since fitted
    and observed totals agree. The binomial one adds ``2 sum (n - y) log((n - y) / (n (1 - p)))``,
    of which the zeros need column sums only.
    """
    y, feature, n_features = counts.data.astype(np.float64), counts.indices, counts.shape[1]
    total = row_sums(counts)
    of_feature = np.bincount(feature, y, minlength=n_features)
    share = of_feature / max(total.sum(), 1)
    n = np.repeat(total, np.diff(counts.indptr))  # [nnz]
    hits = np.bincount(feature, y * np.log(y / (n * share[feature])), minlength=n_features)
    if kind != "binomial":
        return 2 * hits
    misses = np.bincount(feature, xlog1py(n - y, -y / n), minlength=n_features)
    return 2 * (hits + misses - xlog1py(total.sum() - of_feature, -share))


def largest(values: np.ndarray, n_top: int) -> np.ndarray:
    """Mask [P] of the n largest values that are positive; ties go to the earlier one."""
    flags = np.zeros(len(values), dtype=bool)
    flags[np.argsort(-values, kind="stable")[:n_top]] = True
    return flags & (values > 0)
