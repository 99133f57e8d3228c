"""Functions compiled by numba, whose code is kept on disk for other processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from filelock import FileLock
from numba import njit

__all__ = ["compiled"]


def compiled(*, fastmath: Iterable[str], parts: Iterable[str] = ()) -> Callable[[Any], Any]:
    """Compile a function when it is first called, without Python's lock; ``parts`` are other files that its code comes from."""
    to_code = partial(njit, nogil=True, error_model="numpy", fastmath=set(fastmath))

    def compiling(function: Any) -> Any:
        try:
            dispatcher: Any = to_code(cache=True)(function)
            _share(dispatcher._cache._cache_file, parts)
        # no folder that numba could write to, or a numba that keeps code in another way
        except (RuntimeError, AttributeError):
            return to_code()(function)
        return dispatcher

    return compiling


def _share(file: Any, parts: Iterable[str]) -> None:
    """Let one process at a time write: numba names a new file by what it has read, and two that read the same mix up their code.

    Code is also compiled again where one of ``parts`` has changed.
    """
    stats = [os.stat(part) for part in parts]
    file._source_stamp = file._source_stamp, *((stat.st_mtime, stat.st_size) for stat in stats)
    save, lock = file.save, FileLock(f"{file._index_path}.lock")

    def alone(key: Any, code: Any) -> None:
        try:
            with lock:
                save(key, code)
        except OSError:  # a full disk: the next process compiles again
            pass

    file.save = alone
