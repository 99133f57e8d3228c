"""Statistics of features that sets of features are tested with."""

from __future__ import annotations

import numpy as np
from scipy.stats import hypergeom

__all__ = ["over_representation", "signed_gain"]


def signed_gain(loadings: np.ndarray) -> np.ndarray:
    r"""How far each loading [P, K] lies from that of a feature like any other.

    That loading is :math:`e_{jk} = w_{j.} w_{.k} / w_{..}`.

    Signed root of the Poisson deviance, :math:`\pm \sqrt{2 (w \log(w / e) - w + e)}`: specific and
    abundant features lie at the ends, housekeeping genes and noise around zero.
    """
    W = np.abs(loadings).astype(np.float64)
    expected = W.sum(axis=1, keepdims=True) * (W.sum(axis=0) / max(W.sum(), np.finfo(float).tiny))
    ratio = np.divide(W, expected, out=np.ones_like(W), where=(W > 0) & (expected > 0))
    deviance = 2 * (W * np.log(ratio) - W + expected)
    return np.sign(W - expected) * np.sqrt(np.maximum(deviance, 0.0))


def over_representation(member: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log odds ratios and one-sided hypergeometric p values [sets, K].

    They are those of the chosen features [P, K] in sets [P, sets].

    Half a feature is added to each cell of the table of the odds ratio, so that it stays finite; a
    set of all features or none gets 0.
    """
    both = member.T.astype(np.float64) @ chosen  # [sets, K]
    size, number, total = member.sum(axis=0)[:, None], chosen.sum(axis=0), len(member)
    cells = both, size - both, number - both, total - size - number + both
    a, b, c, d = (cell + 0.5 for cell in cells)
    told = (size > 0) & (size < total)
    return np.where(told, np.log(a * d / (b * c)), 0.0), hypergeom.sf(both - 1, total, size, number)
