"""Preparation: choose features, normalise, hold observations out, split counts, lay a lattice over tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpnsf.lazy import attach

__all__ = ["deviance_features", "grid", "normalise", "split", "thin"]

if TYPE_CHECKING:
    from gpnsf.pp.features import deviance_features
    from gpnsf.pp.grid import grid
    from gpnsf.pp.normalise import normalise
    from gpnsf.pp.split import split
    from gpnsf.pp.thin import thin
else:
    attach(
        __name__,
        attributes={
            "deviance_features": "features",
            "grid": "grid",
            "normalise": "normalise",
            "split": "split",
            "thin": "thin",
        },
    )
