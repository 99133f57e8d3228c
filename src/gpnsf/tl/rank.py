"""The features that stand for each factor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from gpnsf import results

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

__all__ = ["rank_features"]


def rank_features(
    data: AnnData | MuData,
    *,
    modality: str | Sequence[str] | None = None,
    factors: str | Sequence[str] | None = None,
    n_features: int = 20,
    method: str = "lift",
    key: str = "gpnsf",
) -> pd.DataFrame:
    r"""Rank the features of each factor.

    With loadings :math:`w_{jk}`, the share of factor k in feature j is :math:`s_{jk} = w_{jk} / \sum_l w_{jl}`. A feature
    like any other has the share of the factor in the modality, and so the loading
    :math:`e_{jk} = (\sum_l w_{jl}) (\sum_i w_{ik}) / \sum_{il} w_{il}`. The score is

    - ``"lift"``: :math:`w_{jk} \log(w_{jk} / e_{jk}) - (w_{jk} - e_{jk})`, the Poisson log likelihood ratio of the loading
      to the expected one. It wants a feature both specific and abundant: noise with a handful of counts has a small
      loading, a housekeeping gene has the expected one. Features with less than that are left out.
    - ``"loading"``: :math:`w_{jk}`, the most abundant features.
    - ``"share"``: :math:`s_{jk}`, the features that belong to the factor most completely, however rare.
    - ``"specificity"``: :math:`s_{jk} - \max_{l \neq k} s_{jl}`, the share above that of the runner-up, however rare.
      Features whose largest share is elsewhere are left out, so that no feature stands for two factors.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    modality
        Names of the modalities to rank; None for all, one after the other.
    factors
        Names of the factors; None for all.
    n_features
        Features for each factor and modality; fewer where fewer have signal in the factor.
    method
        "lift", "loading", "share" or "specificity".
    key
        Prefix of the slots, ``key_added`` of the fit.

    Returns
    -------
    Tidy table, best features first: ``factor``, ``modality``, ``feature``, ``rank`` (from 1), ``score``, ``loading``,
    ``share``, ``lift`` (loading over expected loading), ``importance`` (the feature's spatial importance) and, after
    :func:`gpnsf.tl.nearest_genes`, ``nearest_gene`` ("" in modalities without).

    Raises
    ------
    KeyError
        If the object has no such fit, factor or modality.
    ValueError
        If ``method`` is unknown or ``n_features`` is below 1.

    Notes
    -----
    Reads ``varm["gpnsf_loadings"]`` and ``var["gpnsf_spatial_importance"]`` of each modality. Signed loadings (models
    ``fa`` and ``rsf``) are ranked by magnitude, and keep their sign in the column ``loading``.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> table = gpnsf.tl.rank_features(mdata, modality="rna", n_features=3)
    >>> table.groupby("factor", sort=False).size().tolist()
    [3, 3, 3, 3]
    """
    fit = results.find(data, key)
    names, chosen = fit.modality_names(modality), fit.factor_indices(factors)
    return pd.concat(
        [
            results.ranked(fit, name, int(factor), n_features=n_features, method=method)
            for factor in chosen
            for name in names
        ],
        ignore_index=True,
    )
