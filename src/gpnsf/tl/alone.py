"""Long work: one piece at a time in a process, and small work on one thread.

Random generators, filters of warnings, the log and the standard output belong to the whole process.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

from gpnsf.core.torch_state import usual_torch

__all__ = ["LARGE", "SMALL", "few_threads", "fit_threads", "one_at_a_time"]

# entries, or nonzeros, below which threads wait for each other longer than they work
SMALL = 1_000_000
LARGE = 20_000_000  # nonzeros from which operations of torch have work for threads that spin

P = ParamSpec("P")
R = TypeVar("R")


class _Turn:
    """Whose turn it is in this process; what a fork leaves of the turn of another thread is void."""

    def __init__(self) -> None:
        self.renew()
        if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
            os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        """Begin with a lock that nobody holds."""
        self.lock = threading.RLock()


_turn = _Turn()


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Let calls from other threads wait, so that each has the result that it would have alone."""

    @wraps(function)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> R:
        """The call, in its turn."""
        with _turn.lock, usual_torch():
            return function(*args, **kwargs)

    return waiting


@contextmanager
def fit_threads(nnz: int) -> Iterator[int]:
    """How many threads add up the nonzeros of a fit; torch has one, unless they are very many."""
    import torch

    from gpnsf.core.counts.backends import pool_of

    n = 1 if nnz < SMALL else torch.get_num_threads()
    with pool_of(n), few_threads(nnz < LARGE):
        yield n


@contextmanager
def few_threads(small: bool) -> Iterator[None]:
    """One thread for small work, and whatever is set for other work.

    A second thread saves a third of the time of small work on an idle machine, and costs ten times
    as much on a busy one, where threads that have nothing to do wait for each other at full speed.
    """
    if not small:
        yield
        return
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 1
    with threadpool_limits(1):
        if torch:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)
