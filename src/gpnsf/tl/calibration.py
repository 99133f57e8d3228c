"""What a user may trust on this data set: a fit of counts that were drawn from the fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from mudata import MuData

from gpnsf import checks
from gpnsf.arguments import check_arguments
from gpnsf.checks import Rule, problem
from gpnsf.core.families import FAMILIES
from gpnsf.core.inference.scaled import VARIANCE_CAP
from gpnsf.core.scores import metrics
from gpnsf.core.scores.calibration import log_errors, log_moments, simulate_counts
from gpnsf.io import fits
from gpnsf.io.measured import reread
from gpnsf.io.objects import editable, modality_of
from gpnsf.io.tables import takes_tables
from gpnsf.settings import settings
from gpnsf.tl.fit import fit as refit

if TYPE_CHECKING:
    from anndata import AnnData

    from gpnsf.core.types import Dataset, View
    from gpnsf.io.read import Layout

__all__ = ["check_calibration"]

LEVEL = 0.9  # of the intervals
COUNTS_NEEDED = 20  # of a feature whose importance is judged
CONSTANT = 1e-6  # spread of importances that are all the same


class _Line(NamedTuple):
    """How well a factor, or the importance of the features of a modality, has been found again."""

    kind: str
    name: str
    is_spatial: object  # bool of a factor, else NA
    kept_spatial: object
    recovery: float
    error: float
    coverage: float
    n: int


@takes_tables
def check_calibration(
    data: AnnData | MuData,
    *,
    n_simulations: int = 1,
    key: str = "gpnsf",
    seed: int = 0,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Simulate counts from a fit, fit them with the same arguments, and compare with what they were simulated from.

    Takes as long as the fit did, times ``n_simulations``.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated, with the counts that it was fitted on. It is not changed.
    n_simulations
        Number of simulated data sets.
    key
        Prefix of the slots, ``key_added`` of the fit.
    seed
        Seed of the simulated counts; the fits repeat the seed of the fit.
    progress
        Whether to show the progress bar of each fit. Default: ``gpnsf.settings.progress``.

    Returns
    -------
    Tidy table. Each simulation has a line for each factor (``kind`` "factor") and one for the features of each modality
    (``kind`` "importance"), with the columns

    - ``simulation``, ``kind``, ``name``: number of the simulation; name of the factor or modality,
    - ``is_spatial``, ``kept_spatial``: whether the factor is spatial, and whether its match in the new fit is (for factors),
    - ``recovery``: correlation of the factor with its match, or of the spatial importances of all features (NaN where all are the same),
    - ``error``: root mean squared error of the log factor, its mean removed, or mean absolute error of the importances,
    - ``coverage``: share of values inside of their 90 % interval; it should be close to .9,
    - ``n``: number of values: observations that were fitted, or features with more than 20 simulated counts.

    Raises
    ------
    KeyError
        If the object has no such fit, or no longer the layer or column that the fit has read.
    TypeError, ValueError
        If an argument is of the wrong type or out of its range, if the model is signed, or the fit a projection.

    Notes
    -----
    Reads the counts (for their size factors and their place, not their values), ``obsm["X_gpnsf"]``,
    ``varm["gpnsf_loadings"]``, ``varm["gpnsf_batch"]`` after a fit with ``batch_key``, ``var["gpnsf_background"]``,
    ``var["gpnsf_dispersion"]`` and the parameters in ``uns["gpnsf"]``. Counts have the rates, dispersions, size factors
    and batch multipliers of the fit, so its depth too.

    It tells what depth, density, number of observations and overlap of the factors allow, if the model is right: a factor
    that is not recovered here is not to be relied upon in the data. It cannot see that the model is wrong, since the truth is
    itself a fit. Where that fit is smoother than the tissue, the simulation is easier than the data, and where it has
    taken noise for pattern, rougher. Size factors from totals are computed anew, so their error is part of the result.

    Examples
    --------
    >>> import gpnsf
    >>> adata = gpnsf.datasets.ggblocks(n_side=12, n_genes=60, n_peaks=36, seed=0)["rna"]
    >>> gpnsf.tl.fit(adata, n_factors=4, n_spatial=3, max_steps=5, progress=False)
    >>> table = gpnsf.tl.check_calibration(adata, progress=False)
    >>> table.kind.value_counts().to_dict()
    {'factor': 4, 'importance': 1}
    """
    check_arguments({"seed": seed, "progress": progress})
    Rule(int, 1, low=1).check("n_simulations", n_simulations)
    fit = fits.find(data, key)
    if fit.is_projection:
        rule = "a fit, whose factors and loadings were both learnt"
        remedy = "Check the fit of the reference"
        raise ValueError(problem(rule, "a projection, at the loadings of another fit", remedy))
    if not fit.field["nonnegative"] or fit.signed:
        rule = "a nonnegative model, whose log factors have intervals"
        remedy = "Fit 'gpnsf' or 'nsfh'"
        raise ValueError(
            problem(rule, f"model={fit.params['model']!r}, with factors of both signs", remedy)
        )
    dataset, layout = reread(fit)
    rows = np.any([view.observed for view in dataset.views], axis=0)
    lines = []
    for number in range(n_simulations):
        simulated, totals = _simulate(fit, dataset, layout, np.random.default_rng([seed, number]))
        with settings.override(verbosity="error"):  # the fit itself has said what there is to say
            refit(simulated, **fit.params, progress=progress)
        found = fits.find(simulated, key)
        own = (*_factors(fit, found, rows), *_importance(fit, found, totals))
        lines += [{"simulation": number, **line._asdict()} for line in own]
    return pd.DataFrame(lines).astype({"is_spatial": "boolean", "kept_spatial": "boolean"})


def _simulate(
    fit: fits.Fit, dataset: Dataset, layout: Layout, rng: np.random.Generator
) -> tuple[AnnData | MuData, dict[str, np.ndarray]]:
    """A copy of the object with other counts in the places that the fit reads, and their totals [P_full] by modality."""
    simulated, totals = editable(fit.data, copy=True), {}
    layers = checks.per_modality(
        fit.params["layers"], "layers", names=list(fit.modalities), known=fit.modalities
    )
    for view in dataset.views:
        mod = modality_of(simulated, view.name)
        counts = _counts(fit, view, layout, rng)
        totals[view.name] = np.asarray(counts.sum(axis=0)).ravel()
        if view.name in layers:
            mod.layers[layers[view.name]] = counts
        else:
            mod.X = counts
    return simulated, totals


def _counts(fit: fits.Fit, view: View, layout: Layout, rng: np.random.Generator) -> sp.csr_matrix:
    """Simulated counts [n, P_full] of one modality; rows and features that the fit has not read stay empty."""
    name, used = view.name, layout.features[view.name]
    size = view.size[layout.rows[name]]
    factors = np.column_stack([fit.mean[layout.rows[name]], np.ones(len(size))])
    loadings = np.column_stack([fit.loadings[name], fit.var(name, fit.keys.background)])[used]
    own = FAMILIES[view.likelihood].has_dispersion
    dispersion = fit.var(name, fit.keys.dispersion)[used] if own else np.nan
    codes, multipliers = fit.batches(name)
    batches = codes, multipliers[:, used]
    counts = simulate_counts(
        size[:, None] * factors, loadings, view.likelihood, dispersion, rng, batches
    )
    columns = np.flatnonzero(used)[counts.indices]
    return sp.csr_matrix((counts.data, columns, counts.indptr), shape=(len(size), len(used)))


def _factors(fit: fits.Fit, found: fits.Fit, rows: np.ndarray) -> list[_Line]:
    """A line for each factor."""
    truth = fit.mean.astype(np.float64)
    columns, recovery = metrics.match_factors(truth[rows], found.mean[rows])
    centre, sd = log_moments(
        found.mean[:, columns], np.asarray(found.std)[:, columns], VARIANCE_CAP
    )
    error = log_errors(truth, centre)[rows]
    lost = columns < 0  # of a fit with fewer factors
    error[:, lost] = np.nan
    return [
        _Line(
            kind="factor",
            name=name,
            is_spatial=bool(fit.is_spatial[k]),
            kept_spatial=bool(found.is_spatial[columns[k]]) and not lost[k],
            recovery=recovery[k],
            error=float(np.sqrt(np.mean(error[:, k] ** 2))),
            coverage=np.nan if lost[k] else metrics.coverage(0.0, error[:, k], sd[rows, k], LEVEL),
            n=int(rows.sum()),
        )
        for k, name in enumerate(fit.names)
    ]


def _importance(fit: fits.Fit, found: fits.Fit, counts: dict[str, np.ndarray]) -> list[_Line]:
    """A line for the features of each modality."""
    lines = []
    for name in fit.modalities:
        seen = counts[name] > COUNTS_NEEDED
        truth, score, std = (
            each.var(name, column)[seen].astype(np.float64)
            for each, column in (
                (fit, fit.keys.importance),
                (found, fit.keys.importance),
                (found, fit.keys.importance_std),
            )
        )
        lines.append(
            _Line(
                kind="importance",
                name=name,
                is_spatial=pd.NA,
                kept_spatial=pd.NA,
                recovery=metrics.match_factors(truth[:, None], score[:, None])[1][0]
                if seen.any() and truth.std() > CONSTANT
                else np.nan,
                error=metrics.importance_error(truth, score) if seen.any() else np.nan,
                coverage=metrics.coverage(truth, score, std, LEVEL) if seen.any() else np.nan,
                n=int(seen.sum()),
            )
        )
    return lines
