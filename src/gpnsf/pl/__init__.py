"""Figures of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpnsf.lazy import attach

__all__ = [
    "convergence",
    "importance",
    "links",
    "spatial_factors",
    "spatial_map",
    "top_features",
    "variance_explained",
]
__all__ = ["convergence", "importance", "spatial_factors", "spatial_map", "top_features", "variance_explained"]

if TYPE_CHECKING:
    from gpnsf.pl.convergence import convergence
    from gpnsf.pl.factors import spatial_factors
    from gpnsf.pl.features import top_features
    from gpnsf.pl.importance import importance
    from gpnsf.pl.links import links
    from gpnsf.pl.maps import spatial_map
    from gpnsf.pl.variance import variance_explained
else:
    attach(
        __name__,
        attributes={
            "convergence": "convergence",
            "importance": "importance",
            "links": "links",
            "spatial_factors": "factors",
            "spatial_map": "maps",
            "top_features": "features",
            "variance_explained": "variance",
        },
    )
