"""Defaults of a session, and the log."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["Settings", "settings"]

LEVELS = ("debug", "info", "warning", "error")
_log = logging.getLogger("gpnsf")


@dataclass
class Settings:
    """What gpnsf does where a call does not say it; a wrong value is refused when it is set.

    Parameters
    ----------
    verbosity
        Level of the log ``gpnsf``: "debug", "info", "warning" or "error".
    progress
        Show a progress bar on long work where a function is called with ``progress=None``.
    device
        Where a function is called with ``device="auto"``: "auto" takes CUDA if there is any, "cpu", "cuda" or "cuda:1".
    memory_budget
        Bytes of counts of a file that a fit may keep in memory; what does not fit is read again at every step. Default: a quarter
        of the memory of the machine, or of what the process may use.

    Examples
    --------
    >>> import gpnsf
    >>> with gpnsf.settings.override(progress=False, verbosity="warning"):
    ...     gpnsf.settings.verbosity
    'warning'
    >>> gpnsf.settings.verbosity
    'info'
    """

    verbosity: str = "info"
    progress: bool = True
    device: str = "auto"
    memory_budget: float | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse unknown names and values; the level reaches the log at once."""
        if name not in _CHECKS:
            raise AttributeError(
                f"Settings are {', '.join(_CHECKS)}; got {name!r}. Set one of those."
            )
        accepts, rule = _CHECKS[name]
        if not accepts(value):
            raise ValueError(
                f"Setting `{name}` must be {rule}; got {value!r}. Nothing was changed: set it again."
            )
        super().__setattr__(name, value)
        if name == "verbosity":
            _log.setLevel(value.upper())

    def shows(self, progress: bool | None) -> bool:
        """Whether a bar is shown for the argument ``progress`` of a function."""
        return self.progress if progress is None else progress

    @contextmanager
    def override(self, **values: Any) -> Iterator[Settings]:
        """Set values for the duration of a ``with`` block."""
        before, level = {name: getattr(self, name) for name in values}, _log.level
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield self
        finally:
            for name, value in before.items():
                setattr(self, name, value)
            _log.setLevel(level)  # which the application may have set by itself


def _is_level(value: Any) -> bool:
    """Tell whether this names a level of the log."""
    return value in LEVELS


def _is_flag(value: Any) -> bool:
    """Tell whether this is a plain boolean."""
    return isinstance(value, bool)


def _is_device(value: Any) -> bool:
    """Tell whether this is the name of a device; whether the machine has it is found out by the fit."""
    return isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is not None


def _is_budget(value: Any) -> bool:
    """Tell whether this is a number of bytes, or None."""
    return value is None or (
        isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    )


_CHECKS = {
    "verbosity": (_is_level, f"one of {', '.join(LEVELS)}"),
    "progress": (_is_flag, "True or False"),
    "device": (_is_device, '"auto", "cpu", "cuda" or "cuda:<index>"'),
    "memory_budget": (_is_budget, "a number of bytes, at least 0, or None"),
}


def _open_log() -> None:
    """Give the log a handler of its own, unless the application has set up logging already."""
    if logging.getLogger().handlers or _log.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    _log.addHandler(handler)
    _log.propagate = False


_open_log()
settings = Settings()
