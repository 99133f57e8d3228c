"""Packages whose public names are imported when they are first used."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["LazyPackage", "attach"]


class LazyPackage(ModuleType):
    """A package that imports its public names on first access.

    A function and its file share a name: ``tl/fit.py`` holds ``tl.fit``. Python binds an imported file to its package
    under that name, whoever imports it and whenever; here the function takes the place of the file.
    """

    _submodules: frozenset[str] = frozenset()
    _attributes: Mapping[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        """Import ``name``; called only while it is not there yet."""
        if name in self._submodules:
            return import_module(f"{self.__name__}.{name}")
        if name not in self._attributes:
            offers = ", ".join(sorted({*self._submodules, *self._attributes}))
            raise AttributeError(
                f"module {self.__name__!r} has no attribute {name!r}; it offers {offers}"
            )
        value = getattr(import_module(f"{self.__name__}.{self._attributes[name]}"), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        """Bind the function where the import system binds the file of the same name."""
        if name in self._attributes and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let functions that mention the package go to other processes, as they do with any module."""
        return import_module, (self.__name__,)

    def __dir__(self) -> list[str]:
        """Public names, imported or not."""
        return sorted(
            {
                *self._submodules,
                *self._attributes,
                *(name for name in self.__dict__ if name[:2] == "__"),
            }
        )


def attach(
    package: str, *, submodules: Iterable[str] = (), attributes: Mapping[str, str] | None = None
) -> None:
    """Make a package lazy; ``attributes`` maps each public name to the file that holds it."""
    module = sys.modules[package]
    module.__class__ = LazyPackage
    module.__dict__["_submodules"] = frozenset(submodules)
    module.__dict__["_attributes"] = dict(attributes or {})
