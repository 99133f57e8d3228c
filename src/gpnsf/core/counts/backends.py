"""Sums over the nonzeros of counts, by torch's sparse products or compiled vector code.

Both have the same methods. :class:`Torch` is the reference, and what runs on GPUs: a sampled
product (SDDMM) for the rates, CSR products for the gradients, with the counts by rows and by
columns, so that no step permutes values. :class:`Simd` runs on the CPU and needs the counts by rows
only: threads share the rows and keep a gradient of the loadings each.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gpnsf.core.types import TINY

__all__ = [
    "LINKS",
    "Pattern",
    "Simd",
    "Torch",
    "backend",
    "csr_tensor",
    "one_changed",
    "pool_of",
    "saturation",
]

logger = logging.getLogger("gpnsf")

_allowed: ContextVar[int] = ContextVar("allowed", default=0)  # threads; 0: as many as torch has

# bytes that one stripe of columns gathers from: loadings, and their gradient if wanted
STRIPE_BYTES = 1_000_000
STRIPE_NONZEROS = 32  # of a row in a stripe, below which stripes do not pay
THREAD_NONZEROS = 200_000  # of a thread, below which threads do not pay


def _log_link(y: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """``y log r`` (Poisson, negative binomial): log ratio per nonzero, and derivative ``y / r``."""
    return y * torch.log(rate), y / rate


def _cloglog_link(y: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """``log(expm1 r)`` (Bernoulli, p = 1 - exp(-r)), and its derivative ``1 / (1 - exp(-r))``."""
    slope = -1 / torch.expm1(-rate)
    return rate - torch.log(slope), slope


LINKS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "log": _log_link,
    "cloglog": _cloglog_link,
}


def one_changed(G: Tensor, changes: Tensor) -> Iterator[Tensor]:
    """Copies of G [n, K] with ``changes`` [n, K] added to one column after the other."""
    for k in range(G.shape[1]):
        changed = G.clone()
        changed[:, k] += changes[:, k]
        yield changed


def csr_tensor(pointers: Tensor, indices: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """A torch CSR tensor; torch calls the layout beta, which is no news to our users."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(pointers, indices, values, size=size, check_invariants=False)


@dataclass(frozen=True)
class Pattern:
    """One compressed pattern with its values."""

    pointers: Tensor  # [n + 1] int64
    indices: Tensor  # [nnz] int32, ascending in each row
    values: Tensor  # [nnz] float32
    shape: tuple[int, int]

    @classmethod
    def read(
        cls, counts: sp.csr_matrix, device: torch.device | str, rows: slice = slice(None)
    ) -> Pattern:
        """Some rows of a matrix, whose arrays are shared where they have the right type already."""
        if not counts.has_sorted_indices:
            counts = counts.sorted_indices()
        start, stop, _ = rows.indices(counts.shape[0])
        pointers = counts.indptr[start : stop + 1]
        inside = slice(int(pointers[0]), int(pointers[-1]))

        def tensor(array: np.ndarray, dtype: Any) -> Tensor:
            # torch wants writeable arrays, though nothing is written here
            return torch.as_tensor(np.require(array, dtype, ["C", "W"]), device=device)

        indices = tensor(counts.indices[inside], np.int32)
        values = tensor(counts.data[inside], np.float32)
        return cls(
            tensor(pointers - pointers[0], np.int64),
            indices,
            values,
            (stop - start, counts.shape[1]),
        )

    def rows(self, rows: slice) -> Pattern:
        """A range of rows, sharing memory."""
        if (rows.start, rows.stop) == (0, self.shape[0]):
            return self
        pointers = self.pointers[rows.start : rows.stop + 1]
        inside = slice(int(pointers[0]), int(pointers[-1]))
        shape = (rows.stop - rows.start, self.shape[1])
        return Pattern(pointers - pointers[0], self.indices[inside], self.values[inside], shape)

    def transposed(self) -> Pattern:
        """The same by columns."""
        arrays = (part.cpu().numpy() for part in (self.values, self.indices, self.pointers))
        return Pattern.read(
            sp.csr_matrix(tuple(arrays), shape=self.shape).T.tocsr(), self.values.device
        )

    @cached_property
    def matrix(self) -> Tensor:
        """The same as a CSR tensor."""
        return self.with_values(self.values)

    def with_values(self, values: Tensor) -> Tensor:
        """A CSR tensor of this pattern that holds ``values``."""
        return csr_tensor(self.pointers.int(), self.indices, values, self.shape)

    def sampled(self, A: Tensor, B: Tensor) -> Tensor:
        """``(A B^T)`` at the pattern [nnz]."""
        if self.values.numel() == 0:
            return self.values
        return torch.sparse.sampled_addmm(self.matrix, A, B.T, beta=0.0).values()


class Torch:
    """Sums by torch's sparse products."""

    def __init__(self, rows: Pattern, columns: Callable[[], Pattern]) -> None:
        self._rows, self._columns = rows, columns

    def rates(self, G: Tensor, W: Tensor) -> Tensor:
        """``sum_k G_ik W_jk`` at the nonzeros [nnz]."""
        return self._rows.sampled(G, W)

    def terms(self, G: Tensor, W: Tensor, link: str, wanted: str) -> tuple[Any, Any, Any]:
        """Value ``sum_nz f(y, r)``, and its gradients dG [n, K] and dW [P, K], as wanted.

        The value comes with dG, or alone.
        """
        value = dG = dW = None
        if wanted != "W":
            values, slope = LINKS[link](self._rows.values, self.rates(G, W) + TINY)
            value, dG = values.sum(), self._rows.with_values(slope) @ W if "G" in wanted else None
        if "W" in wanted:
            columns = self._columns()
            slope = LINKS[link](columns.values, columns.sampled(W, G) + TINY)[1]
            dW = columns.with_values(slope) @ G
        return value, dG, dW

    def without(self, G: Tensor, changes: Tensor, W: Tensor, link: str) -> Tensor:
        """Values [K] with ``changes`` [n, K] added to one column of G after the other."""
        return torch.stack(
            [self.terms(G, W, link, "")[0] for G in one_changed(G, changes)]
        ).double()

    def information(self, weights: Tensor, B: Tensor, result: Tensor) -> None:
        """Add ``sum_j c_ij b_j b_j^T`` to ``result`` [n, K, K] by K products."""
        matrix, B = self._rows.with_values(weights), B.contiguous()
        for k in range(B.shape[1]):
            result[:, k] += matrix @ (B[:, k : k + 1] * B)


class Simd:
    """Sums by :mod:`gpnsf.core.counts.simd`, with as many threads as torch uses.

    The module is imported when it is needed.
    """

    def __init__(self, rows: Pattern) -> None:
        from gpnsf.core.counts import simd

        self._code, self._n_columns = simd, rows.shape[1]
        self._pointers, self._indices, self._values = (
            rows.pointers.numpy(),
            rows.indices.numpy(),
            rows.values.numpy(),
        )
        self._stripes: dict[int, np.ndarray] = {}

    def rates(self, G: Tensor, W: Tensor) -> Tensor:
        """``sum_k G_ik W_jk`` at the nonzeros [nnz]."""
        A, B, rates = _array(G), self._padded(W), np.empty(len(self._indices), np.float32)
        starts, eights = self._starts(B.nbytes), self._eights(B)

        def part(rows: tuple[int, int]) -> None:
            r = np.empty(self._code.EIGHT, np.float32)
            self._code.nonzeros(
                *rows, starts, self._indices, None, A, B, None, None, None, rates, r, eights
            )

        _together(part, self._parts())
        return torch.from_numpy(rates)

    def terms(self, G: Tensor, W: Tensor, link: str, wanted: str) -> tuple[Any, Any, Any]:
        """Value ``sum_nz f(y, r)``, and its gradients dG [n, K] and dW [P, K], as wanted.

        The value comes with both, or alone.
        """
        A, B, parts = _array(G), self._padded(W), self._parts()
        starts, eights = self._starts(B.nbytes * (1 + ("W" in wanted))), self._eights(B)
        values = self._values if link == "log" else None
        dA = np.zeros_like(A) if "G" in wanted else None
        # one for each thread
        dBs: list[Any] = [np.zeros_like(B) if "W" in wanted else None for _ in parts]

        def part(rows: tuple[int, int], dB: np.ndarray | None) -> float:
            d = None if dA is None else np.zeros(B.shape[1], np.float32)
            return self._code.nonzeros(
                *rows, starts, self._indices, values, A, B, dA, d, dB, None, None, eights
            )

        value = torch.tensor(sum(_together(part, parts, dBs)), dtype=G.dtype)
        dG = None if dA is None else torch.from_numpy(dA)
        if dBs[0] is None:
            return value, dG, None
        # not by torch, whose threads would be woken for it, which takes longer on a busy machine
        # than all the rest
        return (
            value,
            dG,
            torch.from_numpy(np.ascontiguousarray(reduce(np.add, dBs)[:, : W.shape[1]])),
        )

    def without(self, G: Tensor, changes: Tensor, W: Tensor, link: str) -> Tensor:
        """Values [K] with ``changes`` [n, K] added to one column of G at a time, in one pass."""
        B, parts = self._padded(W), self._parts()
        values = self._values if link == "log" else None
        arrays = self._starts(B.nbytes), self._indices, values, _array(G), _array(changes), B
        sums = [np.zeros(B.shape[1]) for _ in parts]  # one for each thread
        _together(
            lambda rows, own: self._code.without(*rows, *arrays, own, self._eights(B)), parts, sums
        )
        return torch.from_numpy(np.sum(sums, axis=0)[: W.shape[1]])

    def information(self, weights: Tensor, B: Tensor, result: Tensor) -> None:
        """Add ``sum_j c_ij b_j b_j^T`` to ``result`` [n, K, K]; weights c [nnz] on the nonzeros."""
        padded = self._padded(B)
        arrays = self._starts(padded.nbytes), self._indices, _array(weights), padded, result.numpy()
        _together(lambda rows: self._code.information(*rows, *arrays), self._parts())

    def _padded(self, W: Tensor) -> np.ndarray:
        """W with zeros up to a multiple of eight factors."""
        A, rest = _array(W), -W.shape[1] % self._code.EIGHT
        return np.hstack([A, np.zeros((len(A), rest), np.float32)])  # np.pad is slower

    def _eights(self, padded: np.ndarray) -> tuple[int, ...]:
        """A tuple as long as a row has vectors of eight."""
        return (0,) * (padded.shape[1] // self._code.EIGHT)

    def _starts(self, gathered: int) -> np.ndarray:
        """Position [n_stripes + 1, n] at which each stripe of columns begins in each row.

        A stripe gathers from so many bytes.
        """
        n_rows = len(self._pointers) - 1
        most = len(self._indices) // max(1, STRIPE_NONZEROS * n_rows)
        n_stripes = max(1, min(most, round(gathered / STRIPE_BYTES)))
        if n_stripes not in self._stripes:
            starts = np.empty((n_stripes + 1, n_rows), np.int64)
            starts[0], starts[-1] = self._pointers[:-1], self._pointers[1:]
            if n_stripes > 1:
                edges = np.linspace(0, self._n_columns, n_stripes + 1).astype(np.int64)
                self._code.cut(self._pointers, self._indices, edges[1:-1], starts)
            self._stripes[n_stripes] = starts
        return self._stripes[n_stripes]

    def _parts(self) -> list[tuple[int, int]]:
        """Ranges of rows with as many nonzeros each, one for every thread that is worth it."""
        allowed = _allowed.get() or torch.get_num_threads()
        n = max(1, min(allowed, len(self._indices) // THREAD_NONZEROS))
        ends = np.searchsorted(self._pointers, np.linspace(0, self._pointers[-1], n + 1)[1:-1])
        return list(pairwise([0, *ends.tolist(), len(self._pointers) - 1]))


def _array(tensor: Tensor) -> np.ndarray:
    """A contiguous float32 array that shares memory where it can."""
    return tensor.detach().float().contiguous().numpy()


def _together(function: Callable[..., Any], *arguments: list[Any]) -> list[Any]:
    """Results of a function on each set of arguments.

    The first set is computed in this thread, each other in one of its own.
    """
    first, *others = zip(*arguments, strict=True)
    tasks = [_pool(os.getpid()).submit(function, *other) for other in others]
    return [function(*first), *(task.result() for task in tasks)]


@contextmanager
def pool_of(n_threads: int) -> Iterator[None]:
    """So many threads for sums over nonzeros, which sleep while they wait, however many torch has."""
    token = _allowed.set(n_threads)
    try:
        yield
    finally:
        _allowed.reset(token)


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of a process; those of its parent do not live on in a fork."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="gpnsf")


@cache
def backend(device: str) -> str:
    """Name of the code that a kind of device computes with, found out once.

    "numba", or "torch" and why where numba could have been.
    """
    if device != "cpu":
        return "torch"
    wanted = os.environ.get("GPNSF_KERNEL", "numba")
    if wanted not in ("numba", "torch"):
        raise ValueError(
            f"Expected GPNSF_KERNEL to be 'numba' or 'torch'; got {wanted!r}. Unset it, or choose one."
        )
    if wanted == "torch":
        return "torch (GPNSF_KERNEL)"
    try:
        _try_simd()
    # what a compiler raises on a machine that we have not seen
    except Exception as error:  # noqa: BLE001
        logger.warning(
            "The compiled kernel does not work here, torch takes its place and is slower: %s", error
        )
        return f"torch ({type(error).__name__})"
    return "numba"


def _try_simd() -> None:
    """Import and compile, then compare with torch on a small example.

    20 factors need vectors of sixteen and of eight.
    """
    counts = Pattern.read(sp.random(9, 10, 0.5, "csr", np.float32, random_state=0), "cpu")
    G, W = (torch.linspace(0.1, 2.0, n * 20).reshape(n, 20) for n in counts.shape)
    found, expected = (
        which.terms(G, W, "log", "GW") for which in (Simd(counts), Torch(counts, counts.transposed))
    )
    if not all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(found, expected, strict=True)):
        raise ArithmeticError("results differ from those of torch")


def saturation(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Replace ``x`` [n, P] by ``1 / (1 + x)``.

    Sums [P] over rows of ``log(1 + x)`` and of ``x / (1 + x)``.
    """
    if backend(ratio.device.type) == "numba":
        from gpnsf.core.counts import simd

        logs, shares = torch.empty(2, ratio.shape[1], device=ratio.device)
        simd.saturation(ratio.numpy(), logs.numpy(), shares.numpy())
        return logs, shares
    weight = (1 + ratio).reciprocal_()
    shares = ratio.mul_(weight).sum(0)
    return -ratio.copy_(weight).log().sum(0), shares
