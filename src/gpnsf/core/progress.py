"""One bar for long work of several stages: it only goes forward, and ends full where the work ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm.auto import tqdm

__all__ = ["Progress"]

Item = TypeVar("Item")
# of the bar: beyond, work that takes longer than expected comes ever nearer to the end
STEADY = 0.8
EARLY = 0.1  # of the bar: before, how long it will take is not told
FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"


class Progress:
    """Work done, as a share of what is expected.

    ``expected`` is in units of steps, may grow, and need not be right: the bar is full when the work has
    ended, however soon or late. With an error it stays where it was.
    """

    def __init__(self, name: str, expected: float, *, shown: bool = False) -> None:
        self.name, self.expected = name, max(expected, 1.0)
        self.converged = True  # what has not converged does not end in green
        self._done, self._scale, self._words = 0.0, 1.0, ""
        self._bar = tqdm(total=100, desc=name, disable=not shown, bar_format=FORMAT)

    def stage(self, words: str) -> None:
        """Name the stage that begins."""
        if not self._words:
            self._bar.set_description_str(f"{self.name}, {words}")

    @contextmanager
    def part(self, words: str, share: float) -> Iterator[None]:
        """Work of one name, whatever its stages, whose steps take so much of a step of the whole."""
        before = self._scale, self._words
        self.stage(words)
        self._scale, self._words = self._scale * share, self._words or words
        try:
            yield
        finally:
            self._scale, self._words = before

    def step(self, work: float = 1.0) -> None:
        """Go forward by a step, or what takes as long as so many steps."""
        self._done += work * self._scale
        part = self._done / self.expected
        if part > STEADY:
            part = 1 - (1 - STEADY) * math.exp(-(part - STEADY) / (1 - STEADY))
        if part > EARLY and not self._bar.disable:
            whole = self._bar.format_interval(self._bar.format_dict["elapsed"] / part)
            self._bar.set_postfix_str(f"of about {whole}", refresh=False)
        self._bar.update(max(99.9 * part - self._bar.n, 0.0))

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, a step each."""
        for item in items:
            yield item
            self.step()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Fill the bar, unless an error has ended the work."""
        if kind is None:
            self._bar.set_description_str(self.name, refresh=False)
            self._bar.set_postfix_str("", refresh=False)
            self._bar.n = self._bar.total
            if self.converged and not self._bar.disable:
                self._bar.colour = "green"
        self._bar.close()
