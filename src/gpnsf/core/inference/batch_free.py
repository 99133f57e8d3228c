"""Counts with the multipliers of batches taken out, for the starts, which know no batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from gpnsf.core.families import FAMILIES
from gpnsf.core.types import Dataset, View

__all__ = ["corrected"]

PRIOR_COUNTS = 4.0  # counts that pull the ratio of observed to expected counts towards one


def corrected(dataset: Dataset) -> Dataset:
    """Divide the counts of each batch by its excess of a feature over what size factors expect.

    What a batch has more of a factor goes with it: the fit finds that again, since its field is
    cheaper than multipliers.
    """
    if dataset.batch is None:
        return dataset
    batch = dataset.batch
    views = tuple(
        view if FAMILIES[view.likelihood].signed else _corrected(view, batch)
        for view in dataset.views
    )
    return replace(dataset, views=views, batch=None)


def _corrected(view: View, batch: np.ndarray) -> View:
    """One modality; counts that are zero or one stay at most one."""
    member = sp.csr_matrix((np.ones(len(batch)), (batch, np.arange(len(batch)))))  # [S, N]
    observed = (member @ view.counts).toarray()  # [S, P]
    size = member @ view.size.astype(np.float64)
    expected = size[:, None] * (observed.sum(0) / size.sum())
    ratio = (observed + PRIOR_COUNTS) / (expected + PRIOR_COUNTS)
    if FAMILIES[view.likelihood].binary:
        ratio = ratio / ratio.min(0)
    counts = view.counts.copy()
    counts.data /= ratio[np.repeat(batch, np.diff(counts.indptr)), counts.indices].astype(
        np.float32
    )
    return replace(view, counts=counts)
