"""Spatial importance: how much of a feature, or of an observation, is spatial."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import false_discovery_control

from gpnsf.checks import Rule, problem
from gpnsf.core.families import FAMILIES
from gpnsf.core.scores import simplex
from gpnsf.core.scores.association import permutation_p_values
from gpnsf.io import fits
from gpnsf.io.measured import reread
from gpnsf.io.objects import editable
from gpnsf.io.tables import takes_tables

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

__all__ = ["spatial_importance"]

_log = logging.getLogger("gpnsf")


@takes_tables
def spatial_importance(
    data: AnnData | MuData,
    *,
    null: str | None = None,
    n_permutations: int = 200,
    seed: int = 0,
    key: str = "gpnsf",
    copy: bool = False,
) -> AnnData | MuData | None:
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
        Object that :func:`gpnsf.tl.fit` annotated. To leave factors out, subset them in all slots alike and delete
        ``obsm["X_gpnsf_embedding"]``, which is then worked out where it is needed.
    null
        "permutation" adds a p and a q value to each feature: how often spatial factors whose rows were permuted fit what
        the nonspatial factors leave of the feature as well as the true rows do.
    n_permutations
        Number of permutations, at least 20.
    seed
        Seed of the permutations.
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
        If the object has no such fit, or no longer the layer or column that the fit has read.
    ValueError
        If ``data`` is a view, its slots disagree, or ``null`` is asked for data that are no counts.
    TypeError
        If an argument has the wrong type.

    Notes
    -----
    Writes ``obs["gpnsf_spatial_importance"]`` on the object (over the features of all modalities) and on each modality
    (over its own), ``var["gpnsf_spatial_importance"]`` and ``var["gpnsf_top_factor"]`` of each modality. Where the
    importance of a modality's features has changed, ``var["gpnsf_spatial_importance_std"]``, which only the fit can
    know, and p and q values of an earlier call are removed.

    With ``null="permutation"`` also ``var["gpnsf_spatial_importance_p"]`` and, after Benjamini-Hochberg over the features of
    the modality that have counts, ``var["gpnsf_spatial_importance_q"]``; both are 1 where no factor is spatial and for
    features without a count. It reads the counts again as the fit did. The null model of a feature is its background and
    the nonspatial factors, times its batch multipliers after a fit with ``batch_key``; the score is the largest covariance of its residuals with the smooth spatial factors, each in
    units of its standard deviation over permutations (within slices, where there are several). A score is compared with
    the permuted scores of at least 50 features with similar skewness, so p values reach below one over the number of
    permutations. Only covariances above zero count, since loadings are nonnegative.

    The factors are taken as they are: that there are spatial factors at all is not what this tests (see ``split`` of
    :func:`gpnsf.tl.fit`), and a feature that is spatial in a way that no factor follows is not found.

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
        raise ValueError(
            problem(
                "an object of its own to write to", found, "Call `.copy()` first, or pass copy=True"
            )
        )
    _check(null, n_permutations, seed)
    data = editable(data, copy=copy)
    fit = fits.find(data, key)
    tests = {} if null is None else _tests(fit, n_permutations, seed)
    data.obs[fit.keys.importance] = _observations(fit.mean, fit.loadings, fit.is_spatial)
    for name, mod in fit.modalities.items():
        if mod is not data:
            own = {name: fit.loadings[name]}
            mod.obs[fit.keys.importance] = _observations(
                fit.mean[fit.rows[name]], own, fit.is_spatial
            )
        _write_features(fit, name)
        if name in tests:
            _write_p_values(fit, name, *tests[name])
    return data if copy else None


def _observations(
    mean: np.ndarray, loadings: dict[str, np.ndarray], is_spatial: np.ndarray
) -> np.ndarray:
    """Importance [N] of observations in single precision, as the fit writes it."""
    return simplex.observation_importance(mean, loadings, is_spatial).astype(np.float32)


def _write_features(fit: fits.Fit, name: str) -> None:
    """Importance and top factor of the features of one modality."""
    var, W, keys = fit.modalities[name].var, fit.loadings[name], fit.keys
    before = var.get(keys.importance)
    var[keys.importance] = simplex.feature_importance(W, fit.is_spatial).astype(np.float32)
    top = simplex.top_factor(W)
    var[keys.top_factor] = np.where(top < 0, "", fit.names[top])
    changed = (
        before is None
        or before.dtype.kind != "f"
        or not np.allclose(before, var[keys.importance], atol=1e-3)
    )
    stale = [
        column
        for column in (keys.importance_std, keys.importance_p, keys.importance_q)
        if column in var
    ]
    if changed and stale:
        for column in stale:
            del var[column]
        _log.info("%s: importance has changed, so %s was removed from var", name, ", ".join(stale))


def _check(null: str | None, n_permutations: int, seed: int) -> None:
    """Check the arguments of the test."""
    Rule(str, "permutation", options=("permutation",), optional=True).check("null", null)
    Rule(int, 200, low=20).check("n_permutations", n_permutations)
    Rule(int, 0, low=0).check("seed", seed)


def _tests(
    fit: fits.Fit, n_permutations: int, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By modality, the features that were tested [P] bool and their p values; none is where no factor is spatial."""
    real = [name for name, kind in fit.likelihoods.items() if FAMILIES[kind].signed]
    if real:
        found = f"likelihood {fit.likelihoods[real[0]]!r} of modality {real[0]!r}"
        raise ValueError(
            problem("counts for null='permutation'", found, "Leave null out, or fit the raw counts")
        )
    if not fit.is_spatial.any():
        return {
            name: (np.zeros(mod.n_vars, dtype=bool), np.empty(0))
            for name, mod in fit.modalities.items()
        }
    dataset, layout = reread(fit)
    tests = {}
    for view in dataset.views:
        rows, tested = view.observed, layout.features[view.name].copy()
        counts = view.counts[rows]
        seen = counts.getnnz(axis=0) > 0
        tested[tested] = seen
        nonspatial = np.column_stack([fit.mean[rows][:, ~fit.is_spatial], np.ones(counts.shape[0])])
        p_values = permutation_p_values(
            counts[:, seen],
            fit.smooth[rows][:, fit.is_spatial],
            view.size[rows, None] * nonspatial,
            dataset.library[rows],
            _batches(fit, view.name, rows, tested),
            binary=FAMILIES[view.likelihood].binary,
            n_permutations=n_permutations,
            seed=seed,
        )
        tests[view.name] = tested, p_values
    return tests


def _batches(
    fit: fits.Fit, name: str, rows: np.ndarray, tested: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Batch of each observed row, and multipliers [S, p] of the features that are tested."""
    own, multipliers = fit.batches(name)
    codes = np.zeros(len(rows), dtype=np.int64)
    codes[fit.rows[name]] = own
    return codes[rows], multipliers[:, tested]


def _write_p_values(fit: fits.Fit, name: str, tested: np.ndarray, p_values: np.ndarray) -> None:
    """P values of one modality, and q values over the features that were tested; 1 for the others."""
    var = fit.modalities[name].var
    q_values = false_discovery_control(p_values) if p_values.size else p_values
    for column, values in ((fit.keys.importance_p, p_values), (fit.keys.importance_q, q_values)):
        var[column] = np.ones(len(tested))
        var.loc[tested, column] = values
