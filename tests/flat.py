"""Datasets of one modality from arrays of counts."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from gpnsf.core.types import Dataset, View


def flat(counts: np.ndarray, likelihood: str, n_libraries: int = 1) -> Dataset:
    """Counts [n, P] at random places, spots dealt out to slices in turn."""
    n = len(counts)
    rng = np.random.default_rng(0)
    view = View(
        "m",
        likelihood,
        sp.csr_matrix(counts.astype(np.float32)),
        np.ones(n, np.float32),
        np.ones(n, bool),
    )
    library = np.arange(n) % n_libraries
    return Dataset(rng.uniform(-1, 1, (n, 2)).astype(np.float32), library, (view,))
