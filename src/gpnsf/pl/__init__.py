"""Figures of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpnsf.lazy import attach

__all__ = ["convergence", "domains", "importance", "selection", "spatial_factors", "top_features"]

if TYPE_CHECKING:
    from gpnsf.pl.convergence import convergence
    from gpnsf.pl.domains import domains
    from gpnsf.pl.factors import spatial_factors
    from gpnsf.pl.features import top_features
    from gpnsf.pl.importance import importance
    from gpnsf.pl.selection import selection
else:
    attach(
        __name__,
        attributes={
            "convergence": "convergence",
            "domains": "domains",
            "importance": "importance",
            "selection": "selection",
            "spatial_factors": "factors",
            "top_features": "features",
        },
    )
