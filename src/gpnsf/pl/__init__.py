"""Figures of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpnsf.lazy import attach

__all__ = [
    "convergence",
    "factor_correlation",
    "feature_maps",
    "importance",
    "loadings",
    "observed_expected",
    "report",
    "spatial_factors",
    "top_features",
]

if TYPE_CHECKING:
    from gpnsf.pl.convergence import convergence
    from gpnsf.pl.expected import observed_expected
    from gpnsf.pl.factors import spatial_factors
    from gpnsf.pl.feature_maps import feature_maps
    from gpnsf.pl.features import top_features
    from gpnsf.pl.heatmaps import factor_correlation, loadings
    from gpnsf.pl.importance import importance
    from gpnsf.pl.report import report
else:
    attach(
        __name__,
        attributes={
            "convergence": "convergence",
            "factor_correlation": "heatmaps",
            "feature_maps": "feature_maps",
            "importance": "importance",
            "loadings": "heatmaps",
            "observed_expected": "expected",
            "report": "report",
            "spatial_factors": "factors",
            "top_features": "features",
        },
    )
