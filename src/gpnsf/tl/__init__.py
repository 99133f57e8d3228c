"""Tools: fit a model, predict from it, and read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpnsf.lazy import attach

__all__ = [
    "check_calibration",
    "deconvolve",
    "denoise",
    "domains",
    "enrich",
    "evaluate",
    "evaluate_deconvolution",
    "evaluate_links",
    "factor_adata",
    "factvae",
    "fit",
    "forecast",
    "grid",
    "impute",
    "link_peaks",
    "mefisto",
    "nearest_genes",
    "predict",
    "project",
    "rank_features",
    "scai",
    "select_n_factors",
    "spatial_importance",
    "train_unrolled",
    "variance_explained",
]

if TYPE_CHECKING:
    from gpnsf.tl.calibration import check_calibration
    from gpnsf.tl.deconvolve import deconvolve
    from gpnsf.tl.denoise import denoise, impute
    from gpnsf.tl.domains import domains
    from gpnsf.tl.enrich import enrich
    from gpnsf.tl.evaluate import evaluate
    from gpnsf.tl.evaluate_deconvolution import evaluate_deconvolution
    from gpnsf.tl.evaluate_links import evaluate_links
    from gpnsf.tl.factor_adata import factor_adata
    from gpnsf.tl.factvae import factvae
    from gpnsf.tl.fit import fit
    from gpnsf.tl.forecast import forecast
    from gpnsf.tl.grid import grid
    from gpnsf.tl.importance import spatial_importance
    from gpnsf.tl.link_peaks import link_peaks
    from gpnsf.tl.mefisto import mefisto
    from gpnsf.tl.nearest_genes import nearest_genes
    from gpnsf.tl.predict import predict
    from gpnsf.tl.project import project
    from gpnsf.tl.rank import rank_features
    from gpnsf.tl.scai import scai
    from gpnsf.tl.select import select_n_factors
    from gpnsf.tl.train_unrolled import train_unrolled
    from gpnsf.tl.variance import variance_explained
else:
    attach(
        __name__,
        attributes={
            "check_calibration": "calibration",
            "deconvolve": "deconvolve",
            "denoise": "denoise",
            "domains": "domains",
            "enrich": "enrich",
            "evaluate": "evaluate",
            "evaluate_deconvolution": "evaluate_deconvolution",
            "evaluate_links": "evaluate_links",
            "factor_adata": "factor_adata",
            "factvae": "factvae",
            "fit": "fit",
            "forecast": "forecast",
            "grid": "grid",
            "impute": "denoise",
            "link_peaks": "link_peaks",
            "mefisto": "mefisto",
            "nearest_genes": "nearest_genes",
            "predict": "predict",
            "project": "project",
            "rank_features": "rank",
            "scai": "scai",
            "select_n_factors": "select",
            "spatial_importance": "importance",
            "train_unrolled": "train_unrolled",
            "variance_explained": "variance",
        },
    )
