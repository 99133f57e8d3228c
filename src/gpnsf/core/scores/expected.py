"""Expected values of features, given factors.

At size factor 1 they are what is measured, without the depth of the spot.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from gpnsf.core.families import FAMILIES

__all__ = ["expected", "expected_shares"]


def expected(
    likelihood: str,
    factors: np.ndarray,
    loadings: np.ndarray,
    background: np.ndarray,
    size: np.ndarray | None = None,
) -> np.ndarray:
    """Expected counts [n, P] float32 at the given factors [n, K] and ``size`` [n] (default 1).

    Open probabilities of peaks.
    """
    rate = factors.astype(np.float32) @ loadings.T.astype(np.float32)
    rate += background.astype(np.float32)
    if size is not None:
        rate *= size[:, None].astype(np.float32)
    return FAMILIES[likelihood].mean(rate, out=rate)


def expected_shares(codes: np.ndarray, embeddings: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Shares [n, P] of features in the counts of cells.

    They follow from codes [n, d], embeddings [P, d] and log shares [P] at codes of zero.
    """
    return softmax(codes @ embeddings.T + base, axis=1)
