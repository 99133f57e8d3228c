"""Tools: fit a model, predict from it, and read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpnsf.lazy import attach

__all__ = [
    "check_calibration",
    "domains",
    "evaluate",
    "factor_adata",
    "fit",
    "predict",
    "rank_features",
    "select_n_factors",
    "spatial_importance",
]

if TYPE_CHECKING:
    from gpnsf.tl.calibration import check_calibration
    from gpnsf.tl.domains import domains
    from gpnsf.tl.evaluate import evaluate
    from gpnsf.tl.factor_adata import factor_adata
    from gpnsf.tl.fit import fit
    from gpnsf.tl.importance import spatial_importance
    from gpnsf.tl.predict import predict
    from gpnsf.tl.rank import rank_features
    from gpnsf.tl.select import select_n_factors
else:
    attach(
        __name__,
        attributes={
            "check_calibration": "calibration",
            "domains": "domains",
            "evaluate": "evaluate",
            "factor_adata": "factor_adata",
            "fit": "fit",
            "predict": "predict",
            "rank_features": "rank",
            "select_n_factors": "select",
            "spatial_importance": "importance",
        },
    )
