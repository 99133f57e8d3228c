"""Figures of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpnsf.lazy import attach

__all__ = [
    "convergence",
    "domains",
    "factor_correlation",
    "feature_maps",
    "grid",
    "importance",
    "links",
    "loadings",
    "observed_expected",
    "proportions",
    "report",
    "selection",
    "spatial_factors",
    "spatial_map",
    "top_features",
    "variance_explained",
]

if TYPE_CHECKING:
    from gpnsf.pl.convergence import convergence
    from gpnsf.pl.domains import domains
    from gpnsf.pl.expected import observed_expected
    from gpnsf.pl.factors import spatial_factors
    from gpnsf.pl.feature_maps import feature_maps
    from gpnsf.pl.features import top_features
    from gpnsf.pl.grid import grid
    from gpnsf.pl.heatmaps import factor_correlation, loadings
    from gpnsf.pl.importance import importance
    from gpnsf.pl.links import links
    from gpnsf.pl.proportions import proportions
    from gpnsf.pl.report import report
    from gpnsf.pl.selection import selection
    from gpnsf.pl.spatial_map import spatial_map
    from gpnsf.pl.variance import variance_explained
else:
    attach(
        __name__,
        attributes={
            "convergence": "convergence",
            "domains": "domains",
            "factor_correlation": "heatmaps",
            "feature_maps": "feature_maps",
            "grid": "grid",
            "importance": "importance",
            "links": "links",
            "loadings": "heatmaps",
            "observed_expected": "expected",
            "proportions": "proportions",
            "report": "report",
            "selection": "selection",
            "spatial_factors": "factors",
            "spatial_map": "spatial_map",
            "top_features": "features",
            "variance_explained": "variance",
        },
    )
