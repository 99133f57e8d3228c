"""Figures of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpnsf.lazy import attach

__all__ = ["convergence", "importance", "links", "spatial_factors", "top_features"]

if TYPE_CHECKING:
    from gpnsf.pl.convergence import convergence
    from gpnsf.pl.factors import spatial_factors
    from gpnsf.pl.features import top_features
    from gpnsf.pl.importance import importance
    from gpnsf.pl.links import links
else:
    attach(
        __name__,
        attributes={
            "convergence": "convergence",
            "importance": "importance",
            "links": "links",
            "spatial_factors": "factors",
            "top_features": "features",
        },
    )
