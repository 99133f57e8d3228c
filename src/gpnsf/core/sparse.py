"""Counts on their nonzeros: rates, value and gradients of the sparse likelihood terms.

With rates ``r_ij = sum_k G_ik W_jk`` a count likelihood needs ``sum_nz f(y, r)`` and its two gradient products only where a
count is nonzero. Torch's sampled product (SDDMM) gives the rates, CSR products give the gradients; both patterns (by rows
and by columns) are kept, so that no step permutes values. No N x P array is ever made.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

__all__ = ["LINKS", "TINY", "SparseCounts", "SparseTerm", "TransposedProduct", "csr_tensor"]

TINY = 1e-20  # added to rates, so that a factor that vanished leaves a finite logarithm


def _log_link(y: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """``y log r`` (Poisson, negative binomial): log ratio per nonzero, and derivative ``y / r``."""
    return y * torch.log(rate), y / rate


def _cloglog_link(y: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """``log(expm1 r)`` (Bernoulli with p = 1 - exp(-r)), and its derivative ``1 / (1 - exp(-r))``."""
    slope = -1 / torch.expm1(-rate)
    return rate - torch.log(slope), slope


LINKS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {"log": _log_link, "cloglog": _cloglog_link}


def csr_tensor(pointers: Tensor, indices: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """A torch CSR tensor; torch calls the layout beta, which is no news to our users."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(pointers, indices, values, size=size, check_invariants=False)


class SparseCounts:
    """Counts of one row block in both sparse patterns, on one device."""

    def __init__(self, counts: sp.csr_matrix, device: torch.device | str = "cpu") -> None:
        self.shape = counts.shape
        self.nnz = counts.nnz
        self._rows = _Pattern(counts, device)
        self._columns = _Pattern(counts.T.tocsr(), device)

    @property
    def values(self) -> Tensor:
        """Nonzero counts [nnz] in row order."""
        return self._rows.values

    @property
    def columns(self) -> Tensor:
        """Feature [nnz] of each nonzero, in row order."""
        return self._rows.indices

    @property
    def per_row(self) -> Tensor:
        """Number of nonzeros [n] of each row."""
        return self._rows.pointers.diff().long()

    @property
    def per_column(self) -> Tensor:
        """Number of nonzeros [P] of each column."""
        return self._columns.pointers.diff().long()

    @cached_property
    def log_factorials(self) -> Tensor:
        """``sum log y!``."""
        return torch.lgamma(self.values + 1).sum()

    @property
    def column_sums(self) -> Tensor:
        """``sum_i y_ij`` [P]."""
        return torch.zeros(self.shape[1], device=self.values.device).index_add_(0, self.columns, self.values)

    @cached_property
    def column_squares(self) -> Tensor:
        """``sum_i y_ij^2`` [P]."""
        squares = torch.zeros(self.shape[1], device=self.values.device)
        return squares.index_add_(0, self.columns, self.values**2)

    @cached_property
    def histogram(self) -> tuple[Tensor, Tensor, Tensor]:
        """Distinct (feature, count) pairs: feature index, count, and how often the pair occurs."""
        order = int(self.values.max()) + 1 if self.nnz else 1
        codes, numbers = torch.unique(self.columns.long() * order + self.values.long(), return_counts=True)
        return codes // order, (codes % order).float(), numbers.float()

    def dense_rows(self, rows: slice) -> Tensor:
        """A small dense block [rows, P]."""
        start, stop = self._rows.pointers[rows.start].item(), self._rows.pointers[rows.stop].item()
        block = torch.zeros(rows.stop - rows.start, self.shape[1], device=self.values.device)
        index = torch.arange(len(block), device=block.device).repeat_interleave(self.per_row[rows])
        block[index, self.columns[start:stop].long()] = self.values[start:stop]
        return block

    def rates(self, G: Tensor, W: Tensor) -> Tensor:
        """``sum_k G_ik W_jk`` at the nonzeros [nnz], in row order."""
        return self._rows.sampled(G, W)

    def product(self, W: Tensor) -> Tensor:
        """``Y W`` [n, K], differentiable in W."""
        return TransposedProduct.apply(self._rows.matrix, self._columns.matrix, W)

    def weighted(self, weights: Tensor, B: Tensor) -> Tensor:
        """``C B`` [n, K] for a matrix C that holds ``weights`` [nnz] (row order) on the pattern of the counts."""
        return self._rows.with_values(weights) @ B

    def terms(self, G: Tensor, W: Tensor, link: str) -> tuple[Tensor, Tensor, Tensor]:
        """``sum_nz f(y, r)`` and its gradients in G [n, K] and W [P, K]."""
        value, slope = LINKS[link](self._rows.values, self._rows.sampled(G, W) + TINY)
        dG = self._rows.with_values(slope) @ W
        return value.sum(), dG, self.half_loadings(G, W, link)

    def half(self, G: Tensor, W: Tensor, link: str) -> Tensor:
        """Gradient in G [n, K] alone."""
        slope = LINKS[link](self._rows.values, self._rows.sampled(G, W) + TINY)[1]
        return self._rows.with_values(slope) @ W

    def half_loadings(self, G: Tensor, W: Tensor, link: str) -> Tensor:
        """Gradient in W [P, K] alone."""
        slope = LINKS[link](self._columns.values, self._columns.sampled(W, G) + TINY)[1]
        return self._columns.with_values(slope) @ G

    def transposed(self) -> SparseCounts:
        """The same counts with the roles of rows and columns exchanged, sharing memory."""
        other = object.__new__(SparseCounts)
        other.shape, other.nnz = self.shape[::-1], self.nnz
        other._rows, other._columns = self._columns, self._rows
        return other


class _Pattern:
    """One compressed pattern with its values."""

    def __init__(self, counts: sp.csr_matrix, device: torch.device | str) -> None:
        def tensor(array: np.ndarray, dtype: Any) -> Tensor:
            return torch.as_tensor(np.array(array, dtype=dtype), device=device)

        self.pointers = tensor(counts.indptr, np.int32)
        self.indices = tensor(counts.indices, np.int32)
        self.values = tensor(counts.data, np.float32)
        self.shape = counts.shape
        self.matrix = self.with_values(self.values)

    def with_values(self, values: Tensor) -> Tensor:
        """A CSR tensor of this pattern that holds ``values``."""
        return csr_tensor(self.pointers, self.indices, values, self.shape)

    def sampled(self, A: Tensor, B: Tensor) -> Tensor:
        """``(A B^T)`` at the pattern [nnz]."""
        if self.values.numel() == 0:
            return self.values
        return torch.sparse.sampled_addmm(self.matrix, A, B.T, beta=0.0).values()


class SparseTerm(torch.autograd.Function):
    """``sum_nz f(y, r(G, W))`` with the hand-written gradient of :meth:`SparseCounts.terms`."""

    @staticmethod
    def forward(ctx: Any, G: Tensor, W: Tensor, counts: SparseCounts, link: str) -> Tensor:
        """Value; where gradients are wanted both are made here, while the rates are at hand."""
        if not any(ctx.needs_input_grad):
            return LINKS[link](counts.values, counts.rates(G.contiguous(), W.contiguous()) + TINY)[0].sum()
        value, dG, dW = counts.terms(G.contiguous(), W.contiguous(), link)
        ctx.save_for_backward(dG, dW)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Scale the stored gradients."""
        dG, dW = ctx.saved_tensors
        return grad * dG, grad * dW, None, None


class TransposedProduct(torch.autograd.Function):
    """Product of a constant CSR matrix with a dense one whose backward pass uses a stored transpose."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, B: Tensor) -> Tensor:
        """``matrix @ B``."""
        ctx.transposed = transposed
        return matrix @ B

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        """``matrix^T @ grad``."""
        return None, None, ctx.transposed @ grad.contiguous()
