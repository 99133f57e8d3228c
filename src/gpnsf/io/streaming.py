"""Counts in a file: looked through once, then read row by row when they are asked for."""

from __future__ import annotations

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp
from anndata.abc import CSCDataset, CSRDataset

from gpnsf import checks
from gpnsf.core.families import FAMILIES
from gpnsf.core.types import row_sums, rows_at_a_time
from gpnsf.settings import settings

__all__ = [
    "StoredCounts",
    "available_memory",
    "canonical",
    "is_stored",
    "loaded",
    "memory_budget",
    "sound",
]

DENSE_ENTRIES = 4_000_000  # of a dense array, read at a time
DASK = "dask.array"
COLUMN_BYTES = 24  # of a value by columns, on its way to rows
CONTAINER = tuple(
    map(Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"))
)
USED, MACHINE = Path("/proc/self/statm"), Path("/proc/meminfo")
SHARE = 0.25  # of the memory of the machine, for counts that are kept


def is_stored(matrix: Any) -> bool:
    """Whether rows of a matrix can be read without the others: it is in a file, or in chunks of dask."""
    from_elsewhere = type(matrix).__module__.startswith(("zarr", DASK))
    return from_elsewhere or isinstance(matrix, CSRDataset | h5py.Dataset)


def loaded(matrix: Any, *, modality: str) -> Any:
    """A matrix in memory: one that a file stores by columns is read as a whole, if there is room."""
    if not isinstance(matrix, CSCDataset):
        return matrix
    n_stored, budget = int(matrix.group["data"].shape[0]), memory_budget()
    if COLUMN_BYTES * n_stored > budget:
        rule = f"counts in modality {modality!r} that are stored by rows (CSR), or fit into memory"
        found = f"CSC with {n_stored} values, which need {COLUMN_BYTES * n_stored / 1e9:.3g} GB, with a budget of {budget / 1e9:.3g} GB"
        remedy = "Write the file again with X.tocsr(), or raise gpnsf.settings.memory_budget"
        raise ValueError(checks.problem(rule, found, remedy))
    return matrix.to_memory()


def memory_budget() -> float:
    """Bytes of counts of a file that may be kept in memory: this process's part of the setting, or a quarter of what it may use."""
    if settings.memory_budget is not None:
        return settings.memory_budget / _processes()
    return SHARE * min(min(limits, default=2**32) for limits in _limits())


def available_memory() -> float:
    """Bytes that this process may still take, swap included; infinite where the system does not tell."""
    machine, addresses = (min(limits, default=math.inf) for limits in _limits())
    try:
        size, resident = (
            int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in USED.read_text().split()[:2]
        )
    except (AttributeError, OSError, ValueError):
        size = resident = 0
    return min(machine - resident, addresses - size)


def _limits() -> tuple[list[float], list[float]]:
    """Bytes of memory that the machine has or that a container may take, and of addresses, as far as the system tells."""
    machine, addresses = [], []
    try:
        machine.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") + _swap())
        machine += [
            int(path.read_text())
            for path in CONTAINER
            if path.exists() and path.read_text().strip().isdigit()
        ]
        import resource

        addresses.append(resource.getrlimit(resource.RLIMIT_AS)[0])
    except (AttributeError, ImportError, OSError, ValueError):
        pass
    return [limit / _processes() for limit in machine if limit > 0], [
        limit for limit in addresses if limit > 0
    ]


def _swap() -> int:
    """Bytes of free swap, as far as the system tells."""
    try:
        return sum(
            1024 * int(kilobytes)
            for kilobytes in re.findall(r"SwapFree:\s*(\d+)", MACHINE.read_text())
        )
    except OSError:
        return 0


def _processes() -> int:
    """Processes that torchrun has started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def canonical(matrix: Any, *, modality: str) -> sp.csr_matrix:
    """CSR float32, sorted, without duplicates and stored zeros; the arrays put in are shared or copied, never changed."""
    array = matrix if sp.issparse(matrix) else np.asarray(matrix)
    if array.dtype.kind not in "biuf" or np.ma.isMaskedArray(matrix):
        remedy = "Convert it to a numeric array or sparse matrix in memory, for example by adata.to_memory()"
        found = f"{type(matrix).__name__} of dtype {array.dtype}"
        raise TypeError(checks.problem(f"numeric data in modality {modality!r}", found, remedy))
    with np.errstate(
        over="ignore"
    ):  # what float32 cannot hold becomes infinite, which is refused by name
        csr = sp.csr_matrix(array.astype(np.float32, copy=False))
    csr = sp.csr_matrix(
        (csr.data, csr.indices, csr.indptr), shape=csr.shape
    )  # its flags are not the user's
    if not csr.has_canonical_format or not csr.data.all():
        csr = csr.copy()
        csr.sum_duplicates()
        csr.eliminate_zeros()
    return csr


def sound(matrix: Any, *, modality: str) -> None:
    """Refuse a sparse matrix whose indices point outside of it: compiled code would follow them."""
    if not sp.issparse(matrix):
        return
    try:
        # a shell of its own: the check may replace arrays by copies of another dtype
        shell = type(matrix)(
            (matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape, copy=False
        )
        shell.check_format(full_check=True)
    except ValueError as error:
        rule = f"a sound sparse matrix in modality {modality!r}"
        remedy = "Build it anew from its source"
        raise ValueError(checks.problem(rule, str(error), remedy)) from error


@dataclass(frozen=True)
class StoredCounts:
    """Counts of a modality in a file, some rows in some order; the rows asked for are read and made canonical float32."""

    source: _Source
    modality: str
    use: np.ndarray  # [P_full] bool: features that are read
    totals: np.ndarray  # [n] of the rows in the file
    lengths: np.ndarray  # [n] nonzeros of the rows in the file
    index: np.ndarray  # [N] row in the file of each row; -1: an empty row
    tidy: bool  # whether the file holds what `canonical` would make of it
    ones: bool  # whether values above zero are read as one

    @classmethod
    def open(
        cls,
        stored: Any,
        *,
        modality: str,
        use: np.ndarray,
        likelihood: str,
        features: Sequence[str],
    ) -> StoredCounts:
        """Look through a matrix of a file once: check its values, and find what every row has to tell."""
        source = _Source.open(stored, modality)
        n_rows = source.shape[0]
        totals, lengths = np.zeros(n_rows), np.zeros(n_rows, dtype=np.int32)
        binary = FAMILIES[likelihood].binary
        tidy, ones = True, True
        for start, stop in source.ranges():
            raw = source.read(start, stop)
            sound(raw, modality=modality)
            whole = canonical(raw, modality=modality)
            tidy &= (
                sp.issparse(raw)
                and whole.nnz == raw.nnz
                and bool((whole.indices == raw.indices).all())
            )
            part = whole if use.all() else whole[:, use]
            checks.counts(part, likelihood, modality=modality, features=features)
            ones &= not binary or bool((part.data == 1).all())
            values = part.sign() if binary else part
            totals[start:stop] = row_sums(values)
            lengths[start:stop] = np.diff(part.indptr)
        return cls(source, modality, use, totals, lengths, np.arange(n_rows), tidy, not ones)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features."""
        return len(self.index), int(self.use.sum())

    @property
    def nnz(self) -> int:
        """Number of nonzero counts."""
        return int(self.lengths[self.index[self.index >= 0]].sum(dtype=np.int64))

    def arranged(self, rows: np.ndarray) -> StoredCounts:
        """Other rows [N], by their position in these; -1 for an empty row."""
        return replace(self, index=np.where(rows >= 0, self.index[rows], -1))

    def __getitem__(self, rows: slice | np.ndarray) -> sp.csr_matrix:
        """Read some rows."""
        index = self.index[rows]
        there = index >= 0
        wanted = index[there]
        order = np.argsort(wanted, kind="stable")
        pieces = [
            self._usable(self.source.read_rows(piece))
            for piece in self.source.pieces(wanted[order])
        ]
        found = sp.vstack(pieces, format="csr") if len(pieces) != 1 else pieces[0]
        if not np.array_equal(order, np.arange(len(order))):
            found = found[np.argsort(order)]
        if there.all():
            return found
        pointers = np.zeros(len(index) + 1, dtype=found.indptr.dtype)
        pointers[1:][there] = np.diff(found.indptr)
        return sp.csr_matrix(
            (found.data, found.indices, np.cumsum(pointers)), shape=(len(index), self.shape[1])
        )

    def _usable(self, raw: Any) -> sp.csr_matrix:
        """What the core may see of rows as they are in the file."""
        if self.tidy:
            counts = sp.csr_matrix(
                (raw.data.astype(np.float32, copy=False), raw.indices, raw.indptr), shape=raw.shape
            )
            counts.has_canonical_format = True
        else:
            counts = canonical(raw, modality=self.modality)
        if not self.use.all():
            counts = counts[:, self.use]
        if self.ones:
            counts.data[:] = 1
        return counts


class _Source(ABC):
    """A matrix in a file."""

    shape: tuple[int, int]

    @staticmethod
    def open(stored: Any, modality: str) -> _Source:
        """The matrix, sparse or dense."""
        if isinstance(stored, CSRDataset):
            return _SparseSource(stored, modality)
        in_chunks = type(stored).__module__.startswith(DASK)
        return _DaskSource(stored, modality) if in_chunks else _DenseSource(stored, modality)

    def __init__(self, modality: str, step: int) -> None:
        self._modality, self._step = modality, step

    def read(self, start: int, stop: int) -> Any:
        """Rows as they are in the file."""
        try:
            return self._read(start, stop)
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            rule = f"a file whose counts of modality {self._modality!r} can be read"
            found = f"an error in rows {start} to {stop - 1}: {error}"
            raise ValueError(
                checks.problem(rule, found, "Write the file again from its source")
            ) from error

    def ranges(self) -> Iterator[tuple[int, int]]:
        """All rows, as many at a time as memory should hold."""
        for start in range(0, self.shape[0], self._step):
            yield start, min(start + self._step, self.shape[0])

    def pieces(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows, in rising order, cut where the ranges are."""
        return np.split(rows, np.flatnonzero(np.diff(rows // self._step)) + 1)

    def read_rows(self, rows: np.ndarray) -> Any:
        """Rows of one piece: between the first and the last all are read, for files are slow where they are read row by row."""
        if not len(rows):
            return self.read(0, 0)
        start, stop = int(rows[0]), int(rows[-1]) + 1
        block = self.read(start, stop)
        return block if np.array_equal(rows, np.arange(start, stop)) else block[rows - start]

    @abstractmethod
    def _read(self, start: int, stop: int) -> Any:
        """Rows as they are in the file, and whatever error the file causes."""


class _SparseSource(_Source):
    """Rows in compressed sparse row format, of HDF5 or zarr."""

    def __init__(self, stored: Any, modality: str) -> None:
        group, self.shape = stored.group, (int(stored.shape[0]), int(stored.shape[1]))
        self._data, self._indices = group["data"], group["indices"]
        self._pointers = np.asarray(group["indptr"][:]).astype(np.int64)
        n_stored = int(self._data.shape[0])
        ends = len(self._pointers) == self.shape[0] + 1 and (
            self._pointers[0],
            self._pointers[-1],
        ) == (0, n_stored)
        if not ends or self._indices.shape[0] != n_stored or (np.diff(self._pointers) < 0).any():
            found = (
                f"{len(self._pointers)} row pointers for {self.shape[0]} rows and {n_stored} values"
            )
            rule = f"a sound sparse matrix in modality {modality!r}"
            remedy = "Build it anew from its source"
            raise ValueError(checks.problem(rule, found, remedy))
        super().__init__(modality, rows_at_a_time(*self.shape, n_stored))

    def _read(self, start: int, stop: int) -> sp.csr_matrix:
        first, last = self._pointers[start], self._pointers[stop]
        arrays = (
            self._data[first:last],
            self._indices[first:last],
            self._pointers[start : stop + 1] - first,
        )
        return sp.csr_matrix(arrays, shape=(stop - start, self.shape[1]))


class _DenseSource(_Source):
    """A dense array, of HDF5 or zarr."""

    def __init__(self, stored: Any, modality: str) -> None:
        _check_matrix(stored, modality)
        self._array, self.shape = stored, (int(stored.shape[0]), int(stored.shape[1]))
        super().__init__(modality, max(1, DENSE_ENTRIES // max(self.shape[1], 1)))

    def _read(self, start: int, stop: int) -> np.ndarray:
        return np.asarray(self._array[start:stop])


class _DaskSource(_Source):
    """An array of dask, whose chunks are dense or sparse; rows of a chunk are computed together."""

    def __init__(self, stored: Any, modality: str) -> None:
        _check_matrix(stored, modality)
        if np.isnan(stored.shape).any():
            stored = stored.compute_chunk_sizes()
        self._array, self.shape = stored, (int(stored.shape[0]), int(stored.shape[1]))
        super().__init__(modality, max(1, *stored.chunks[0]))

    def _read(self, start: int, stop: int) -> Any:
        rows = self._array[start:stop].compute()
        return sp.csr_matrix(rows) if sp.issparse(rows) else np.asarray(rows)


def _check_matrix(stored: Any, modality: str) -> None:
    """Check that an array can hold counts."""
    if stored.dtype.kind not in "biuf" or len(stored.shape) != 2:
        rule = f"numeric counts in modality {modality!r}"
        remedy = "Write the file again from its source"
        found = f"an array of shape {tuple(stored.shape)} and dtype {stored.dtype}"
        raise TypeError(checks.problem(rule, found, remedy))
