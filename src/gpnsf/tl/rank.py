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
    prior_counts: float = 50,
    key: str = "gpnsf",
) -> pd.DataFrame:
    r"""Rank the features of each factor.

    With loadings :math:`w_{jk}` and background :math:`b_j`, the whole of feature j is
    :math:`w_j = b_j + \sum_l w_{jl}`. A feature like any other has the part of factor k in the
    modality, and so the loading :math:`e_{jk} = w_j \sum_i w_{ik} / \sum_i w_i`. The share of the
    factor is :math:`s_{jk} = w_{jk} / \sum_l w_{jl}`. The score is

    - ``"posterior"``: how many times more of the feature the factor has than the section, at
      least. The ratio :math:`r_{jk}` has the prior :math:`\mathrm{Gamma}(a, a)` of mean 1, worth a
      counts (``prior_counts``), and :math:`n w_{jk}` counts where :math:`n e_{jk}` are expected of
      n observations; the score is :math:`\log_2` of the lower end of the 90 % interval of its
      posterior :math:`\mathrm{Gamma}(a + n w_{jk}, a + n e_{jk})`. A score of 2: at least four
      times, 95 to 5. Housekeeping genes have about 0, rare features a little less, for about them
      the counts do not tell; what the factor has less of comes last.
    - ``"lift"``: :math:`w_{jk} \log(w_{jk} / e_{jk}) - (w_{jk} - e_{jk})`, the Poisson log
      likelihood ratio of the loading to the expected one, below 0 where there is less than
      expected. Abundance counts as much as being specific: ribosomal genes come first in many
      tissues.
    - ``"loading"``: :math:`w_{jk}`, the most abundant features.
    - ``"share"``: :math:`s_{jk}`, the features that belong to the factor most completely, however
      rare.
    - ``"specificity"``: :math:`s_{jk} - \max_{l \neq k} s_{jl}`, the share above that of the
      runner-up, however rare; below 0 where another factor has more.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    modality
        Names of the modalities to rank; None for all, one after the other.
    factors
        Names of the factors, or their positions from 0; None for all.
    n_features
        Features for each factor and modality; fewer where fewer have a loading on the factor.
    method
        "posterior", "lift", "loading", "share" or "specificity". Modalities of real values, which
        count nothing (Gaussian fits, :func:`gpnsf.tl.scai`, :func:`gpnsf.tl.mefisto`), are ranked
        by lift where "posterior" is asked for.
    prior_counts
        Counts that the prior of "posterior" is worth: the larger, the more abundant the features.
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
        If ``method`` is unknown, ``n_features`` is below 1 or ``prior_counts`` below 0.

    Notes
    -----
    Reads ``varm["gpnsf_loadings"]``, ``varm["gpnsf_loadings_std"]``, ``var["gpnsf_background"]``
    and ``var["gpnsf_spatial_importance"]`` of each modality. Counts are those of size factors and
    factors of mean 1. Signed loadings (models ``fa`` and ``rsf``) are ranked by magnitude, and keep
    their sign in the column ``loading``.

    References
    ----------
    "posterior" is the gamma-Poisson shrinker of :cite:t:`dumouchel1999`, with a prior that is given
    and not fitted.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> table = gpnsf.tl.rank_features(mdata, modality="rna", n_features=3)
    >>> table.groupby("factor", sort=False).size().tolist()
    [3, 3, 3, 3]
    """
    Rule(float, 50.0, low=0).check("prior_counts", prior_counts)
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
                prior_counts=prior_counts,
                complete=True,
            )
            for factor in chosen
            for name in names
        ],
        ignore_index=True,
    )
