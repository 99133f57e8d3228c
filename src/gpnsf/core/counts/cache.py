"""Counts of row blocks, read when they are asked for and kept while there is room."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import scipy.sparse as sp
import torch

from gpnsf.core.counts.sparse import SparseCounts
from gpnsf.core.types import View

__all__ = ["BlockCounts", "Shelf"]

BYTES = 8  # of a nonzero: value and index
# found out from all values, and worth keeping without them
SMALL = ("log_factorials", "histogram", "column_squares")


class Shelf:
    """Counts of some blocks.

    The first ones stay until the room is full, and after that the last block that was read.

    A step goes through all blocks in order. To throw out the oldest one, as caches do, would throw
    out each block just before it is needed again.
    """

    def __init__(self, room: float) -> None:
        self._room = room
        self._kept: dict[tuple[int, str], SparseCounts] = {}
        self._last: dict[tuple[int, str], SparseCounts] = {}  # all of one block
        self._facts: dict[tuple[int, str], dict[str, object]] = {}  # of blocks that were here

    def take(self, block: int, name: str, read: Callable[[], SparseCounts]) -> SparseCounts:
        """Counts of a modality in the block that begins at a row."""
        key = block, name
        for place in (self._kept, self._last):
            if key in place:
                return place[key]
        if any(other != block for other, _ in self._last):
            self._drop()  # before the next block is read: there is memory for one
        counts = read()
        vars(counts).update(self._facts.get(key, {}))
        fits = BYTES * counts.nnz <= self._room
        self._room -= BYTES * counts.nnz if fits else 0
        (self._kept if fits else self._last)[key] = counts
        return counts

    def _drop(self) -> None:
        """Forget the last block but for the few numbers that took time to find out."""
        for key, counts in self._last.items():
            self._facts[key] = {
                name: value for name, value in vars(counts).items() if name in SMALL
            }
        self._last.clear()


class BlockCounts(Mapping[str, SparseCounts]):
    """Counts of one block by modality."""

    def __init__(
        self, views: tuple[View, ...], rows: slice, device: torch.device, shelf: Shelf
    ) -> None:
        self._views = {view.name: view for view in views}
        self._rows, self._device, self._shelf = rows, device, shelf

    def __getitem__(self, name: str) -> SparseCounts:
        """Read the counts, unless they are at hand."""
        return self._shelf.take(
            self._rows.start, name, lambda: self._read(self._views[name].counts)
        )

    def _read(self, counts: Any) -> SparseCounts:
        """Counts of a block; those in memory are shared, not copied."""
        if sp.issparse(counts):
            return SparseCounts(counts, self._device, self._rows)
        return SparseCounts(counts[self._rows], self._device)

    def __iter__(self) -> Iterator[str]:
        """Names of the modalities."""
        return iter(self._views)

    def __len__(self) -> int:
        """Number of modalities."""
        return len(self._views)
