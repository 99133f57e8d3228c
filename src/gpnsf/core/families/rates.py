"""Rates at the nonzeros and over row blocks: a dense N x P array is never made.

Sums over zeros come from column sums where the likelihood allows it, elsewhere from row blocks of
bounded size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from gpnsf.core.types import RowReader, parts

__all__ = ["nonzero_rates", "observed_pieces", "prepared", "row_slices", "with_values"]

BLOCK = 2**22  # entries of the largest temporary array


def prepared(
    counts: sp.csr_matrix, A: np.ndarray, W: np.ndarray, rows: np.ndarray | None
) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    """The chosen rows, and both sides of the rates in double precision."""
    A = A if rows is None else A[rows]
    return (
        _canonical(counts, rows),
        np.asarray(A, dtype=np.float64),
        np.asarray(W, dtype=np.float64),
    )


def _canonical(counts: sp.csr_matrix, rows: np.ndarray | None) -> sp.csr_matrix:
    """The chosen rows without duplicates and stored zeros; what was passed is never changed."""
    counts = sp.csr_matrix(counts) if rows is None else sp.csr_matrix(counts)[rows]
    if counts.has_canonical_format and counts.data.all():
        return counts
    counts = counts.copy()
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def nonzero_rates(counts: sp.csr_matrix, A: np.ndarray, W: np.ndarray) -> np.ndarray:
    """``r_ij`` at the nonzeros [nnz], in row order."""
    row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    rate = np.empty(counts.nnz)
    for part in row_slices(counts.nnz, A.shape[1]):
        rate[part] = np.einsum("nk,nk->n", A[row[part]], W[counts.indices[part]])
    return rate


def row_slices(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Row slices of an array, each of at most ``BLOCK`` entries (or one row)."""
    step = max(1, BLOCK // max(1, n_columns))
    return (slice(start, start + step) for start in range(0, n_rows, step))


def observed_pieces(
    counts: sp.csr_matrix | RowReader, size: np.ndarray, rows: np.ndarray | None
) -> Iterator[tuple[sp.csr_matrix, np.ndarray]]:
    """Ranges of the chosen rows with their size factors in double precision."""
    for at, part in parts(counts):
        kept = None if rows is None else rows[at]
        own = np.asarray(size[at] if kept is None else size[at][kept], dtype=np.float64)
        yield _canonical(part, kept), own


def with_values(counts: sp.csr_matrix, values: np.ndarray) -> sp.csr_matrix:
    """Another matrix on the pattern of the counts, its zeros removed."""
    pattern = counts.indices.copy(), counts.indptr.copy()
    matrix = sp.csr_matrix((values.astype(np.float32), *pattern), shape=counts.shape)
    matrix.eliminate_zeros()
    return matrix
