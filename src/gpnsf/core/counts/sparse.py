"""Counts on their nonzeros: rates, value and gradients of the sparse likelihood terms.

With rates ``r_ij = sum_k G_ik W_jk`` a count likelihood needs ``sum_nz f(y, r)`` and its two
gradient products only where a count is nonzero. No N x P array is ever made. The matrix that is put
in is shared, not copied, where its types allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

import scipy.sparse as sp
import torch
from torch import Tensor

from gpnsf.core.counts.backends import Pattern, Simd, Torch, backend
from gpnsf.core.types import TINY

__all__ = ["SparseCounts", "SparseTerm", "TransposedProduct"]

CHUNK = 2_000_000  # nonzeros for which a temporary array is made at a time
Weight = Callable[[Tensor, Tensor, Tensor], Tensor]  # of count, rate and feature, on the nonzeros


class SparseCounts:
    """Counts of one row block, on one device."""

    def __init__(
        self, counts: sp.csr_matrix, device: torch.device | str = "cpu", rows: slice = slice(None)
    ) -> None:
        self._set(Pattern.read(counts, device, rows))

    def _set(self, by_rows: Pattern) -> None:
        self._rows, self.shape, self.nnz = by_rows, by_rows.shape, by_rows.values.numel()

    @classmethod
    def _of(cls, by_rows: Pattern) -> SparseCounts:
        self = object.__new__(cls)
        self._set(by_rows)
        return self

    @cached_property
    def _columns(self) -> Pattern:
        """The same by columns, made only for what needs it."""
        return self._rows.transposed()

    @cached_property
    def _kernel(self) -> Simd | Torch:
        """Code that computes the terms."""
        if backend(self.values.device.type) == "numba":
            return Simd(self._rows)
        return Torch(self._rows, lambda: self._columns)

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
        return self._rows.pointers.diff()

    @property
    def per_column(self) -> Tensor:
        """Number of nonzeros [P] of each column."""
        return torch.bincount(self.columns, minlength=self.shape[1])

    @cached_property
    def log_factorials(self) -> Tensor:
        """``sum log y!``."""
        return torch.stack(
            [torch.lgamma(part + 1).sum() for part in self.values.split(CHUNK)]
        ).sum()

    @property
    def entropy(self) -> float:
        """``sum y log y``."""
        return sum(
            float(torch.special.xlogy(part, part).sum(dtype=torch.float64))
            for part in self.values.split(CHUNK)
        )

    @property
    def column_sums(self) -> Tensor:
        """``sum_i y_ij`` [P]."""
        return self._over_columns(lambda values: values)

    @cached_property
    def column_squares(self) -> Tensor:
        """``sum_i y_ij^2`` [P]."""
        return self._over_columns(torch.square)

    def _over_columns(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        """Sums [P] of what is made of the counts, added up in double precision: single would lose ones beside 2^24."""
        total = torch.zeros(self.shape[1], dtype=torch.float64, device=self.values.device)
        for columns, values in zip(
            self.columns.split(CHUNK), self.values.split(CHUNK), strict=True
        ):
            total.index_add_(0, columns, of(values.double()))
        return total.float()

    @cached_property
    def histogram(self) -> tuple[Tensor, Tensor, Tensor]:
        """Distinct (feature, count) pairs: feature index, count, and how often the pair occurs."""
        order = int(self.values.max()) + 1 if self.nnz else 1
        codes = self.columns.long() * order + self.values.long()
        # counting takes a place for each pair that there may be, and no sorting
        if order * self.shape[1] < 2 * self.nnz:
            counted = torch.bincount(codes)
            codes = counted.nonzero().ravel()
            numbers = counted[codes]
        else:
            codes, numbers = torch.unique(codes, return_counts=True)
        return codes // order, (codes % order).float(), numbers.float()

    def dense_rows(self, rows: slice) -> Tensor:
        """A small dense block [rows, P]."""
        part = self._rows.rows(rows)
        block = torch.zeros(part.shape, device=self.values.device)
        index = torch.arange(len(block), device=block.device).repeat_interleave(
            part.pointers.diff()
        )
        block[index, part.indices.long()] = part.values
        return block

    def product(self, W: Tensor) -> Tensor:
        """``Y W`` [n, K], differentiable in W."""
        return TransposedProduct.apply(self._rows.matrix, self._columns.matrix, W)

    def rates(self, G: Tensor, W: Tensor) -> Tensor:
        """``sum_k G_ik W_jk`` at the nonzeros [nnz], in row order."""
        return self._kernel.rates(G, W)

    def terms(self, G: Tensor, W: Tensor, link: str) -> tuple[Tensor, Tensor, Tensor]:
        """``sum_nz f(y, r)`` and its gradients in G [n, K] and W [P, K]."""
        return self._kernel.terms(G, W, link, "GW")

    def value(self, G: Tensor, W: Tensor, link: str) -> Tensor:
        """``sum_nz f(y, r)`` alone."""
        return self._kernel.terms(G, W, link, "")[0]

    def without(self, G: Tensor, changes: Tensor, W: Tensor, link: str) -> Tensor:
        """``sum_nz f(y, r)`` [K] with ``changes`` [n, K] added to one column of G at a time."""
        return self._kernel.without(G, changes, W, link)

    def half(self, G: Tensor, W: Tensor, link: str) -> Tensor:
        """Gradient in G [n, K] alone."""
        return self._kernel.terms(G, W, link, "G")[1]

    def half_loadings(self, G: Tensor, W: Tensor, link: str) -> Tensor:
        """Gradient in W [P, K] alone."""
        return self._kernel.terms(G, W, link, "W")[2]

    def information(self, A: Tensor, W: Tensor, weight: Weight) -> Tensor:
        """``sum_j c_ij w_j w_j^T`` [n, K, K], c being ``weight`` at the rates ``A W^T``.

        The last column of W is left out.
        """
        K = W.shape[1] - 1
        result = torch.zeros(self.shape[0], K, K, device=W.device)
        for rows, part in self._chunks():
            rate = part.rates(A[rows], W) + TINY
            part._kernel.information(
                weight(part.values, rate, part.columns), W[:, :-1], result[rows]
            )
        return result

    def loading_information(self, A: Tensor, W: Tensor, weight: Weight) -> Tensor:
        """``sum_i c_ij a_i a_i^T`` [P, K, K], as :meth:`information`.

        Only a part of the rows is ever transposed.
        """
        K = W.shape[1] - 1
        result = torch.zeros(self.shape[1], K, K, device=W.device)
        feature = torch.arange(self.shape[1], device=W.device)
        for rows, part in self._chunks():
            turned = SparseCounts._of(part._rows.transposed())
            rate = turned.rates(W, A[rows]) + TINY
            weights = weight(turned.values, rate, feature.repeat_interleave(turned.per_row))
            turned._kernel.information(weights, A[rows, :-1], result)
        return result

    def _chunks(self) -> Iterator[tuple[slice, SparseCounts]]:
        """Row ranges of about as many nonzeros as fit a temporary array, with their counts."""
        limits = torch.tensor(
            range(CHUNK, self.nnz, CHUNK), dtype=torch.long, device=self.values.device
        )
        ends = torch.searchsorted(self._rows.pointers, limits).tolist()
        for start, stop in pairwise([0, *ends, self.shape[0]]):
            rows = slice(start, stop)
            yield (
                rows,
                self if stop - start == self.shape[0] else SparseCounts._of(self._rows.rows(rows)),
            )


class SparseTerm(torch.autograd.Function):
    """``sum_nz f(y, r(G, W))`` with the hand-written gradient of :meth:`SparseCounts.terms`."""

    @staticmethod
    def forward(ctx: Any, G: Tensor, W: Tensor, counts: SparseCounts, link: str) -> Tensor:
        """Value; where gradients are wanted both are made here, while the rates are at hand."""
        if not any(ctx.needs_input_grad):
            return counts.value(G.contiguous(), W.contiguous(), link)
        value, dG, dW = counts.terms(G.contiguous(), W.contiguous(), link)
        ctx.save_for_backward(dG, dW)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Scale the stored gradients."""
        dG, dW = ctx.saved_tensors
        return grad * dG, grad * dW, None, None


class TransposedProduct(torch.autograd.Function):
    """Product of a constant CSR matrix and a dense one; backward uses a stored transpose."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, B: Tensor) -> Tensor:
        """``matrix @ B``."""
        ctx.transposed = transposed
        return matrix @ B

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        """``matrix^T @ grad``."""
        return None, None, ctx.transposed @ grad.contiguous()
