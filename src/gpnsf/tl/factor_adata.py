"""The factors as an AnnData of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from gpnsf.io import fits
from gpnsf.io.tables import takes_tables
from gpnsf.keys import SPATIAL

if TYPE_CHECKING:
    from mudata import MuData

__all__ = ["factor_adata"]


@takes_tables
def factor_adata(data: AnnData | MuData, *, key: str = "gpnsf") -> AnnData:
    """Observations by factors, for everything that scanpy and squidpy do with genes.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    key
        Prefix of the slots, ``key_added`` of the fit.

    Returns
    -------
    AnnData [N, K] with

    - ``X`` the posterior mean, ``layers["smooth"]`` the spatial field alone, ``layers["std"]`` the posterior standard
      deviation (no layers after :func:`gpnsf.tl.scai`),
    - ``var_names`` the factor names; ``var`` with ``is_spatial``, ``lengthscale`` (units of the coordinates, NaN for
      nonspatial factors) and ``importance`` (share of the expected signal),
    - ``obs`` of the object, then the columns that only a modality has, as ``"rna:column"``,
    - ``obsm["spatial"]`` (if there are coordinates), ``obsm["X_gpnsf"]`` and ``obsm["X_gpnsf_embedding"]``; images and palettes in ``uns``.

    Raises
    ------
    KeyError
        If the object has no such fit.

    Notes
    -----
    Reads ``obsm["X_gpnsf"]``, ``_smooth``, ``_std``, ``_embedding``, ``varm["gpnsf_loadings"]``, ``uns["gpnsf"]`` and the
    coordinates.
    Everything is copied, except the images.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=2)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, split="assumed", progress=False)
    >>> gpnsf.tl.factor_adata(mdata).var_names.tolist()
    ['spatial_1', 'spatial_2', 'nonspatial_1', 'nonspatial_2']
    """
    fit = fits.find(data, key)
    obs = _obs(fit)
    obsm = {fit.keys.factors: fit.mean.copy(), fit.keys.embedding: fit.embedding.copy()}
    layers = {} if fit.std is None else {"smooth": fit.smooth.copy(), "std": fit.std.copy()}
    if fit.has_coords:
        obsm[SPATIAL] = fit.coords.copy()
    return AnnData(
        X=fit.mean.copy(),
        obs=obs,
        var=pd.DataFrame(
            {
                "is_spatial": fit.is_spatial,
                "lengthscale": fit.lengthscale,
                "importance": fit.shares,
            },
            index=fit.names.astype(str),
        ),
        obsm=obsm,
        layers=layers,
        uns=_uns(fit, obs),
    )


def _obs(fit: fits.Fit) -> pd.DataFrame:
    """Columns of the object, and of its modalities where only they have them."""
    obs = fit.data.obs.copy()
    if isinstance(fit.data, AnnData):
        return obs
    for name, mod in fit.modalities.items():
        for column in mod.obs.columns.difference(obs.columns, sort=False):
            if f"{name}:{column}" not in obs:
                obs[f"{name}:{column}"] = _gathered(mod.obs[column], fit.rows[name], obs.index)
    return obs


def _gathered(column: pd.Series, rows: np.ndarray, index: pd.Index) -> pd.Series:
    """A column of a modality on the rows of the object, missing where the cell is."""
    values = pd.Series(column.array, index=rows).reindex(np.arange(len(index)))
    if column.dtype == bool and values.isna().any():
        values = values.astype("boolean")
    return values.set_axis(index)


def _uns(fit: fits.Fit, obs: pd.DataFrame) -> dict[str, object]:
    """Tissue images, and the palettes of the columns of ``obs``."""
    kept = {f"{column}_colors" for column in obs} | {SPATIAL}
    holders = [*reversed(fit.modalities.values()), fit.data]
    return {name: value for holder in holders for name, value in holder.uns.items() if name in kept}
