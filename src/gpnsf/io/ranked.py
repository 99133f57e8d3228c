"""Features of a fit in order of what they say about its factors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from gpnsf.checks import problem
from gpnsf.core.families import FAMILIES
from gpnsf.core.scores import ranking
from gpnsf.io.fits import Fit
from gpnsf.keys import NEAREST

__all__ = ["ranked", "shared_out"]


def shared_out(n_features: int, modalities: Sequence[str]) -> dict[str, int]:
    """A number of features divided evenly among modalities, each of which is to get one at least."""
    if n_features < len(modalities):
        rule = f"`n_features` of at least {len(modalities)}, one for each modality"
        raise ValueError(problem(rule, str(n_features), "Raise it or name a `modality`"))
    parts = np.array_split(np.arange(n_features), len(modalities))
    return {name: len(part) for name, part in zip(modalities, parts, strict=True)}


def ranked(
    fit: Fit,
    modality: str,
    factor: int,
    *,
    n_features: int,
    method: str = ranking.METHODS[0],
    prior_counts: float = ranking.PRIOR_COUNTS,
    complete: bool = False,
) -> pd.DataFrame:
    """Best features of one factor in one modality, as :func:`gpnsf.tl.rank_features` explains it; the index is their position.

    With ``complete``, features that do not stand out follow those that do.
    """
    if method not in ranking.METHODS:
        raise ValueError(
            problem(f"`method` to be one of {ranking.METHODS}", repr(method), "Pass one of these")
        )
    if n_features < 1:
        raise ValueError(
            problem("`n_features` of at least 1", str(n_features), "Pass a positive integer")
        )
    weights = ranking.Weights(
        np.abs(fit.loadings[modality]).astype(np.float64), factor, fit.constant(modality)
    )
    score = ranking.score(
        weights,
        "lift" if method == "posterior" and not _counts(fit, modality) else method,
        n_obs=len(fit.rows[modality]),
        prior_counts=prior_counts,
        complete=complete,
    )
    best = ranking.best(weights, score, n_features)
    mod, blank = fit.modalities[modality], np.zeros(len(score), np.float32)
    columns = {
        "score": score,
        "loading": fit.loadings[modality][:, factor],
        "loading_std": _std(fit, modality, factor),
        "share": weights.share,
        "lift": weights.lift,
        "importance": blank if fit.std is None else fit.var(modality, fit.keys.importance),
    }
    if any(NEAREST in other.var for other in fit.modalities.values()):
        columns[NEAREST] = (
            mod.var[NEAREST].to_numpy() if NEAREST in mod.var else np.full(len(score), "")
        )
    about = {
        "factor": fit.names[factor],
        "modality": modality,
        "feature": mod.var.index.to_numpy()[best],
    }
    ranks = {"rank": np.arange(1, best.size + 1)}
    return pd.DataFrame(
        {**about, **ranks, **{name: values[best] for name, values in columns.items()}}, index=best
    )


def _counts(fit: Fit, modality: str) -> bool:
    """Whether loadings are parts of counts."""
    return not FAMILIES[fit.likelihoods[modality]].signed


def _std(fit: Fit, modality: str, factor: int) -> np.ndarray:
    """Standard deviations of the loadings [P]; NaN where they are not known."""
    if fit.loadings_std is None:
        return np.full(fit.modalities[modality].n_vars, np.nan)
    return fit.loadings_std[modality][:, factor].astype(np.float64)
