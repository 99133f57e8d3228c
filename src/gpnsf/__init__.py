"""Spatially aware, nonnegative, probabilistic factor models of spatial multi-omic counts.

``pp`` prepares, ``tl`` fits and reads fits, ``pl`` draws, ``datasets`` simulates; each is imported when it is first used.
``settings`` holds defaults.
"""

from __future__ import annotations

from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from gpnsf.lazy import attach as _attach
from gpnsf.settings import settings

__all__ = ["__version__", "datasets", "pl", "pp", "settings", "tl"]

__version__ = _version("gpnsf")

if TYPE_CHECKING:
    from gpnsf import datasets, pl, pp, tl
else:
    _attach(__name__, submodules=("datasets", "pl", "pp", "tl"))
