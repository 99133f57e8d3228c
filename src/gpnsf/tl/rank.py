"""The features that stand for each factor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from gpnsf.checks import Rule
from gpnsf.io import fits
from gpnsf.io.chosen import Factors
from gpnsf.io.ranked import ranked
from gpnsf.io.tables import takes_tables

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

__all__ = ["rank_features"]


@takes_tables
def rank_features(
    data: AnnData | MuData,
    *,
    modality: str | Sequence[str] | None = None,
    factors: Factors = None,
    n_features: int = 20,
    method: str = "posterior",
    min_counts: float = 50,
    key: str = "gpnsf",
) -> pd.DataFrame:
    r"""Rank the features of each factor.

    With loadings :math:`w_{jk}`, the share of factor k in feature j is :math:`s_{jk} = w_{jk} / \sum_l w_{jl}`. A feature
    like any other has the share of the factor in the modality, and so the loading
    :math:`e_{jk} = (\sum_l w_{jl}) (\sum_i w_{ik}) / \sum_{il} w_{il}`. The score is

    - ``"posterior"``: :math:`\log_2` of the lower end of the 90 % interval of :math:`w_{jk}` over :math:`e_{jk}`, here with the
      background :math:`b_j` counted among the :math:`w_{jl}`. A score of 2: the feature's part in what the factor expresses is,
      95 to 5, at least four times its part in the whole section. Housekeeping genes have about 0. Rare features are left out
      (``min_counts``). Below 0, the counts do not tell, or tell that the factor has less of it.
    - ``"lift"``: :math:`w_{jk} \log(w_{jk} / e_{jk}) - (w_{jk} - e_{jk})`, the Poisson log likelihood ratio of the loading
      to the expected one: abundance counts as much as being specific, so that ribosomal genes come first in many tissues.
      Features with less than the expected loading have a score below 0.
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
        Names of the factors, or their positions from 0; None for all.
    n_features
        Features for each factor and modality; fewer where fewer have a loading on the factor, or fewer are counted often enough, or
        (with "specificity") fewer have their largest share there.
    method
        "posterior", "lift", "loading", "share" or "specificity". Where nothing is known about the precision of the loadings, after
        :func:`gpnsf.tl.scai` and :func:`gpnsf.tl.mefisto` and in fits of earlier versions, "posterior" ranks by lift.
    min_counts
        Expected counts of a feature that come from the factor, all observations together, below which "posterior" leaves it
        out. The 50 largest loadings of a factor always stay.
    key
        Prefix of the slots, ``key_added`` of the fit.

    Returns
    -------
    Tidy table, best features first: ``factor``, ``modality``, ``feature``, ``rank`` (from 1), ``score``, ``loading``,
    ``loading_std`` (NaN where it is not known), ``share``, ``lift`` (loading over expected loading), ``importance`` (the
    feature's spatial importance) and, after :func:`gpnsf.tl.nearest_genes`, ``nearest_gene`` ("" in modalities without).

    Raises
    ------
    KeyError
        If the object has no such fit, factor or modality.
    ValueError
        If ``method`` is unknown, ``n_features`` is below 1 or ``min_counts`` below 0.

    Notes
    -----
    Reads ``varm["gpnsf_loadings"]``, ``varm["gpnsf_loadings_std"]``, ``var["gpnsf_background"]`` and
    ``var["gpnsf_spatial_importance"]`` of each modality. The interval is that of a gamma distribution. Expected counts are
    those of size factors and factors of mean 1. Signed loadings (models ``fa`` and ``rsf``) are ranked by magnitude, and keep
    their sign in the column ``loading``.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> table = gpnsf.tl.rank_features(mdata, modality="rna", n_features=3)
    >>> table.groupby("factor", sort=False).size().tolist()
    [3, 3, 3, 3]
    """
    Rule(float, 50.0, low=0).check("min_counts", min_counts)
    fit = fits.find(data, key)
    names, chosen = fit.modality_names(modality), fit.factor_indices(factors)
    return pd.concat(
        [
            ranked(
                fit,
                name,
                int(factor),
                n_features=n_features,
                method=method,
                min_counts=min_counts,
                complete=True,
            )
            for factor in chosen
            for name in names
        ],
        ignore_index=True,
    )
