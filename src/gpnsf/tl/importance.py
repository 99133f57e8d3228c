"""Spatial importance: how much of a feature, or of an observation, is spatial."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from gpnsf import results
from gpnsf.checks import problem
from gpnsf.core import simplex
from gpnsf.tissue import editable

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

__all__ = ["spatial_importance"]

_log = logging.getLogger("gpnsf")


def spatial_importance(data: AnnData | MuData, *, key: str = "gpnsf", copy: bool = False) -> AnnData | MuData | None:
    r"""Compute the spatial importance again from the slots of a fit, say after leaving out features or factors.

    Importance is the share of the expected signal that comes from spatial factors. With factors :math:`H` (mean one over
    observations) and loadings :math:`W`,

    .. math::

        \rho_j = \frac{\sum_{k\,\mathrm{spatial}} W_{jk}}{\sum_k W_{jk}}, \qquad
        \rho_i = \frac{\sum_{k\,\mathrm{spatial}} H_{ik} \sum_j W_{jk}}{\sum_k H_{ik} \sum_j W_{jk}}

    for feature j and observation i. The constant background counts neither above nor below the line. Where no factor is
    spatial, or a feature has no signal, importance is 0.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated; subset factors in all slots alike.
    key
        Prefix of the slots, ``key_added`` of the fit.
    copy
        Return an annotated copy and leave ``data`` as it is.

    Returns
    -------
    None, or the copy.

    Raises
    ------
    KeyError
        If the object has no such fit.
    ValueError
        If ``data`` is a view, or its slots disagree.

    Notes
    -----
    Writes ``obs["gpnsf_spatial_importance"]`` on the object (over the features of all modalities) and on each modality
    (over its own), ``var["gpnsf_spatial_importance"]`` and ``var["gpnsf_top_factor"]`` of each modality. Where the
    importance of a modality's features has changed, ``var["gpnsf_spatial_importance_std"]``, which only the fit can
    know, is removed.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> mdata.mod["rna"] = mdata["rna"][:, :20].copy()
    >>> gpnsf.tl.spatial_importance(mdata)
    """
    if getattr(data, "is_view", False) and not copy:
        found = f"a view of {data.n_obs} observations"
        raise ValueError(problem("an object of its own to write to", found, "Call `.copy()` first, or pass copy=True"))
    data = editable(data, copy=copy)
    fit = results.find(data, key)
    data.obs[fit.keys.importance] = _observations(fit.mean, fit.loadings, fit.is_spatial)
    for name, mod in fit.modalities.items():
        if mod is not data:
            own = {name: fit.loadings[name]}
            mod.obs[fit.keys.importance] = _observations(fit.mean[fit.rows[name]], own, fit.is_spatial)
        _write_features(fit, name)
    return data if copy else None


def _observations(mean: np.ndarray, loadings: dict[str, np.ndarray], is_spatial: np.ndarray) -> np.ndarray:
    """Importance [N] of observations in single precision, as the fit writes it."""
    return simplex.observation_importance(mean, loadings, is_spatial).astype(np.float32)


def _write_features(fit: results.Fit, name: str) -> None:
    """Importance and top factor of the features of one modality."""
    var, W, keys = fit.modalities[name].var, fit.loadings[name], fit.keys
    before = var.get(keys.importance)
    var[keys.importance] = simplex.feature_importance(W, fit.is_spatial).astype(np.float32)
    top = simplex.top_factor(W)
    var[keys.top_factor] = np.where(top < 0, "", fit.names[top])
    changed = before is None or before.dtype.kind != "f" or not np.allclose(before, var[keys.importance], atol=1e-3)
    if changed and keys.importance_std in var:
        del var[keys.importance_std]
        _log.info("%s: importance has changed, so its standard deviation was removed from var", name)
