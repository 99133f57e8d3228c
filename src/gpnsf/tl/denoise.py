"""What a fit expects of each observation, and of those that lack a modality."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from gpnsf.checks import Rule, problem
from gpnsf.core.families import FAMILIES
from gpnsf.core.scores.expected import expected
from gpnsf.core.scores.shrinkage import best_strength, known, shrunk
from gpnsf.core.scores.similarity import mean_rates, similar
from gpnsf.core.scores.simplex import observation_shares
from gpnsf.io import fits
from gpnsf.io.measured import held_out, layer_of, reread, used
from gpnsf.io.objects import editable, open_data
from gpnsf.io.streaming import memory_budget
from gpnsf.io.tables import takes_tables
from gpnsf.io.write import check_free
from gpnsf.keys import DENOISED, SPATIAL

if TYPE_CHECKING:
    from mudata import MuData

    from gpnsf.core.types import View
    from gpnsf.io.fits import Fit

__all__ = ["denoise", "impute"]

_logger = logging.getLogger("gpnsf")

RULES = {
    "method": Rule(str, "model", options=("model", "similarity")),
    "depth": Rule(str, "mean", options=("mean", "own")),
    "shrinkage": Rule(float, 30.0, low=0, optional=True),
    "n_neighbors": Rule(int, 50, low=1),
}


@takes_tables
def denoise(
    data: AnnData | MuData,
    *,
    modality: str | Sequence[str] | None = None,
    method: str = "model",
    depth: str = "mean",
    shrinkage: float | None = None,
    n_neighbors: int = 50,
    layer_added: str = DENOISED,
    key: str = "gpnsf",
    copy: bool = False,
) -> AnnData | MuData | None:
    """Write what the fit expects of each observation as a layer.

    With ``method="model"`` that is ``X_gpnsf @ loadings.T + background``: expected counts, and for "bernoulli" the
    probability ``1 - exp(-rate)`` that a peak is open, where rare features are pulled towards their mean, since their
    loadings follow the few counts there are. With ``method="similarity"`` it is a mean of the counts themselves
    over the observations whose factors are most alike (after section 2.2 of the note on GPNSF): the ratio of weighted
    counts to weighted size factors, weights being the cosines of the factors' shares in the expected signal of the
    modality. The model is the better estimate of rates; the other method keeps what a modality has beyond the factors.
    Neither is data: do not fit it again.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    modality
        Names of the modalities; None for all.
    method
        "model" (a dense layer) or "similarity" (a sparse one).
    depth
        "mean" gives values at size factor 1, which removes the depth of the observation; "own" at its own size factor
        and with the multipliers of its batch, what should have been counted. Observations that were held out have size factor 1.
    shrinkage
        Number of counts by which features are pulled towards their mean, for ``method="model"``: a feature with as many
        counts is half its mean. None for the number that predicts counts of other observations best, by cross-validation
        of the loadings; 0 for the loadings as they were fitted. Gaussian modalities have no pull.
    n_neighbors
        Observations, itself included, that a mean is taken over, for ``method="similarity"``.
    layer_added
        Name of the layer.
    key
        Prefix of the slots, ``key_added`` of the fit.
    copy
        Return an annotated copy, and leave ``data`` as it is.

    Returns
    -------
    None, or the annotated copy.

    Raises
    ------
    KeyError
        If the object has no such fit or modality.
    ValueError, TypeError
        If an option is unknown, the layer would take more than ``gpnsf.settings.memory_budget`` bytes, or factors have a
        sign, or there is only one, where similarities are asked for.

    Notes
    -----
    Reads ``obsm["X_gpnsf"]``, ``varm["gpnsf_loadings"]``, ``var["gpnsf_background"]`` and the counts that were fitted. Writes ``layers["gpnsf_denoised"]`` of each modality, float32 [n, P]; 0
    for features that the fit left out. Multipliers of batches have a part with ``depth="own"`` and ``method="model"`` alone.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> gpnsf.tl.denoise(mdata, modality="atac")
    >>> bool(mdata["atac"].layers["gpnsf_denoised"].max() <= 1)
    True
    """
    options = _Options(method, depth, shrinkage, n_neighbors)
    Rule(str, "gpnsf_denoised").check("layer_added", layer_added)
    open_data(data, writes=not copy)
    fit = fits.find(data, key)
    names = fit.modality_names(modality)
    check_free(data, layer_added, argument="layer_added", example="gpnsf_denoised")
    _check_source(fit, names, layer_added)
    layers = {
        name: _values(fit, name, fit.rows[name], fit.feature_indices(name, None), options)
        for name in names
    }
    data = editable(data, copy=copy)
    for name, values in layers.items():
        (data if isinstance(data, AnnData) else data.mod[name]).layers[layer_added] = values
    return data if copy else None


@takes_tables
def impute(
    data: AnnData | MuData,
    *,
    modality: str,
    features: str | Sequence[str] | None = None,
    method: str = "model",
    shrinkage: float | None = None,
    n_neighbors: int = 50,
    key: str = "gpnsf",
) -> AnnData:
    """Expected values of one modality for every observation, also for those that lack it.

    What an observation has in the other modalities, and its neighbours in space, say where it lies among the factors; the
    loadings say what follows for this modality. Values are those of :func:`gpnsf.tl.denoise` at size factor 1, also where
    the modality was measured, so that they can be compared among observations.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    modality
        Name of the modality.
    features
        Names of features, in this order; None for all that the fit has seen.
    method, shrinkage, n_neighbors
        As in :func:`gpnsf.tl.denoise`.
    key
        Prefix of the slots, ``key_added`` of the fit.

    Returns
    -------
    AnnData [N, features], float32, in the order of the observations of ``data``: ``obs["measured"]`` says which of them the
    fit has seen in this modality, ``var`` is that of the modality, ``obsm["spatial"]`` holds the coordinates if there are any.

    Raises
    ------
    KeyError
        If the object has no such fit, modality or feature.
    ValueError, TypeError
        If an option is unknown, the values would take more than ``gpnsf.settings.memory_budget`` bytes, or factors have a
        sign, or there is only one, where similarities are asked for.

    Notes
    -----
    Reads what :func:`gpnsf.tl.denoise` reads.

    Examples
    --------
    >>> import gpnsf, mudata
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> mdata = mudata.MuData({"rna": mdata["rna"], "atac": mdata["atac"][:70].copy()})
    >>> gpnsf.tl.fit(mdata, model="pnmf", n_factors=3, max_steps=2, progress=False)
    >>> gpnsf.tl.impute(mdata, modality="atac", features=["peak_1", "peak_2"]).shape
    (100, 2)
    """
    options = _Options(method, "mean", shrinkage, n_neighbors)
    fit = fits.find(data, key)
    (name,) = fit.modality_names(modality)
    chosen = (
        np.flatnonzero(used(fit, name)) if features is None else fit.feature_indices(name, features)
    )
    values = _values(fit, name, np.arange(len(fit.mean)), chosen, options)
    measured = np.zeros(len(fit.mean), dtype=bool)
    measured[fit.rows[name]] = ~held_out(fit, name)
    obs = pd.DataFrame({"measured": measured}, index=fit.data.obs_names.copy())
    obsm = {SPATIAL: fit.coords.copy()} if fit.has_coords else {}
    return AnnData(values, obs=obs, var=fit.modalities[name].var.iloc[chosen].copy(), obsm=obsm)


@dataclass(frozen=True)
class _Options:
    """What both functions ask for."""

    method: str
    depth: str
    shrinkage: float | None
    n_neighbors: int

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            rule.check(name, getattr(self, name))


@dataclass(frozen=True)
class _Measured:
    """One modality on the rows [N] of the object, as the fit has read it."""

    view: View
    used: np.ndarray  # [P_full] bool: features whose counts it has

    @property
    def size(self) -> np.ndarray:
        """Size factors [N]; 1 where the fit has seen nothing."""
        return np.where(self.view.observed, self.view.size, 1.0)


def _read(fit: Fit, name: str) -> _Measured:
    """Read the counts of one modality once more."""
    dataset, layout = reread(fit, name)
    (view,) = dataset.loaded().views
    return _Measured(view, layout.features[name])


def _check_source(fit: Fit, names: Sequence[str], layer_added: str) -> None:
    """Check that the counts of the fit are not written over."""
    for name in names:
        with suppress(ValueError):  # the counts are gone, or other ones
            if layer_of(fit, name) == layer_added:
                break
    else:
        return
    rule = "`layer_added` other than the layer that the fit has read"
    remedy = "Pass for example layer_added='gpnsf_denoised'"
    raise ValueError(problem(rule, f"{layer_added!r} in modality {name!r}", remedy))


def _values(
    fit: Fit, name: str, rows: np.ndarray, chosen: np.ndarray, options: _Options
) -> np.ndarray | sp.csr_matrix:
    """Values [n, features] of some rows of the object and some features of one modality; counts are read if need be."""
    if options.method == "similarity":
        return _by_similarity(fit, name, rows, chosen, options)
    _check_memory(4 * len(rows) * len(chosen), (len(rows), len(chosen)), name)
    W = np.column_stack([fit.loadings[name], fit.var(name, fit.keys.background)])
    pull = options.shrinkage != 0 and FAMILIES[fit.likelihoods[name]].events and not fit.signed
    measured = _read(fit, name) if pull or options.depth == "own" else None
    if measured is not None and pull:
        W[measured.used] = _pulled(fit, name, W[measured.used], measured, options.shrinkage)
    if measured is None or options.depth == "mean":
        return expected(fit.likelihoods[name], fit.mean[rows], W[chosen, :-1], W[chosen, -1])
    return _at_own_depth(fit, name, W[chosen], chosen, measured.size[rows])


def _at_own_depth(
    fit: Fit, name: str, W: np.ndarray, chosen: np.ndarray, size: np.ndarray
) -> np.ndarray:
    """Values [n, features] of the cells of a modality at their size factors, batch by batch."""
    batch, multipliers = fit.batches(name)
    values = np.empty((len(batch), len(chosen)), dtype=np.float32)
    for code, own in enumerate(multipliers):
        cells, loadings = batch == code, W * own[chosen, None]
        factors = fit.mean[fit.rows[name][cells]]
        values[cells] = expected(
            fit.likelihoods[name], factors, loadings[:, :-1], loadings[:, -1], size[cells]
        )
    return values


def _pulled(
    fit: Fit, name: str, W: np.ndarray, measured: _Measured, strength: float | None
) -> np.ndarray:
    """Loadings and background [P, K+1] of a modality, pulled towards the mean of each feature."""
    view, kind = measured.view, fit.likelihoods[name]
    rows = np.flatnonzero(view.observed)
    counts, size = view.counts[rows], view.size[rows].astype(np.float64)
    codes, multipliers = fit.batches(name)
    batch = np.zeros(len(fit.mean), dtype=np.int64)
    batch[fit.rows[name]] = codes
    batches = batch[rows], multipliers[:, measured.used]
    if strength is None:
        factors = np.column_stack([fit.mean[rows], np.ones(len(rows))]).astype(np.float64)
        strength = best_strength(kind, counts, size, factors, W, *batches)
        _logger.info("features of %r are pulled towards their mean by %.3g counts", name, strength)
    return shrunk(W, *known(kind, counts, size, *batches), strength)


def _by_similarity(
    fit: Fit, name: str, rows: np.ndarray, chosen: np.ndarray, options: _Options
) -> sp.csr_matrix:
    """Means [n, features] of the counts of similar observations, for some rows of the object."""
    if fit.signed:
        remedy = "Pass method='model'"
        raise ValueError(
            problem("nonnegative factors for method='similarity'", "factors with a sign", remedy)
        )
    if len(fit.names) == 1:
        rule = "at least 2 factors for method='similarity'"
        remedy = "Pass method='model', or fit more factors"
        raise ValueError(problem(rule, "1, whose share is 1 in all observations", remedy))
    measured = _read(fit, name)
    seen = np.flatnonzero(measured.view.observed)
    counts = _selected(measured.view.counts[seen], measured.used, chosen)
    n_values = min(len(rows) * len(chosen), options.n_neighbors * counts.nnz)
    _check_memory(8 * n_values, (len(rows), len(chosen)), name)
    shares = observation_shares(fit.mean, {name: fit.loadings[name]})
    rates = mean_rates(
        similar(shares, seen, n_neighbors=options.n_neighbors)[rows],
        counts,
        measured.view.size[seen],
    )
    if options.depth == "own":
        rates = sp.csr_matrix(sp.diags(measured.size[rows].astype(np.float32)) @ rates)
    if FAMILIES[fit.likelihoods[name]].binary:
        rates.data = np.minimum(rates.data, 1.0)
    return rates


def _selected(counts: sp.csr_matrix, used: np.ndarray, chosen: np.ndarray) -> sp.csr_matrix:
    """Columns ``chosen`` of all features of a modality, from counts of the features ``used`` [P_full] alone; 0 elsewhere."""
    shape = len(counts.indptr) - 1, len(used)
    whole = sp.csr_matrix(
        (counts.data, np.flatnonzero(used)[counts.indices], counts.indptr), shape=shape
    )
    return whole[:, chosen]


def _check_memory(n_bytes: int, shape: tuple[int, int], name: str) -> None:
    """Refuse what would not fit before it is made."""
    budget = memory_budget()
    if n_bytes > budget:
        rule = f"values of modality {name!r} that fit into gpnsf.settings.memory_budget, {budget / 1e9:.3g} GB"
        found = f"{shape[0]} x {shape[1]}, up to {n_bytes / 1e9:.3g} GB"
        remedy = f"Name features in gpnsf.tl.impute(data, modality={name!r}, features=[...]), or raise the setting"
        raise ValueError(problem(rule, found, remedy))
