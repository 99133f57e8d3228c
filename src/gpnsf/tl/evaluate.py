"""How well a fit explains counts that it has seen, and counts that it has not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from gpnsf import checks
from gpnsf.checks import Rule, problem
from gpnsf.core.families import FAMILIES
from gpnsf.core.scores import metrics, yardsticks
from gpnsf.io import fits, measured
from gpnsf.io.tables import takes_tables
from gpnsf.tl.judged import Judged, as_counts, judged, other_counts

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from gpnsf.io.fits import Fit

__all__ = ["evaluate", "grouped_deviance"]

OF_COUNTS = ("deviance", "poisson", "rmse")
METRICS = (*OF_COUNTS, "sparsity", "moran")


@takes_tables
def evaluate(
    data: AnnData | MuData,
    *,
    metric: str = "deviance",
    layers: str | Mapping[str, str] | None = None,
    key: str = "gpnsf",
) -> pd.DataFrame:
    r"""Judge a fit: how far expected counts are from the counts, beside a null model, or what its factors and loadings are like.

    Expected counts follow from rates: size factor times ``X_gpnsf @ loadings.T + background`` (times ``varm["gpnsf_batch"]`` of the
    row's batch after a fit with ``batch_key``). The null model has one rate per feature, estimated on the training rows, with the same
    size factors and dispersions; ``explained`` is the share of its deviance, or of its squared error, that the fit explains.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated, with the observations it was fitted on.
    metric
        What is measured:

        - ``"deviance"``: mean deviance under the likelihood of the modality: twice the log likelihood which a model with one rate per
          entry has more, zeros included, divided by the number of entries. Fits of one likelihood can be compared by it.
        - ``"poisson"``: the same of Poisson counts with the expected counts of the fit, :math:`2 [y \log(y / \mu) - y + \mu]`, whatever
          its likelihood. All models can be compared by it, on the same counts and features.
        - ``"rmse"``: root mean squared error of the expected counts.
        - ``"sparsity"``: share of loadings that count as zero: at most a hundredth of the loadings of their feature, all without their
          sign and times the mean of their factor; backgrounds are left out.
        - ``"moran"``: Moran's I of each factor over the training rows, with the 6 nearest neighbours in the slice as weights, its mean in each slice taken out.
    layers
        Layer with other counts of the same observations, for each modality or one name for all; say ``"thinned_test"``
        after :func:`gpnsf.pp.thin` and a fit of ``"thinned_train"``. For the first three metrics.
    key
        Prefix of the slots, ``key_added`` of the fit.

    Returns
    -------
    Tidy table with a column ``metric``. The first three have one line for each modality and kind of rows: ``modality``, ``rows``,
    ``likelihood``, ``metric``, ``deviance`` and ``null_deviance`` (means per entry; with "rmse": ``rmse`` and ``null_rmse``), ``explained``, ``n_obs``,
    ``n_features``. ``rows`` is

    - ``"train"``: the observations and the counts that were fitted,
    - ``"holdout"``: observations that ``holdout_key`` kept out of the fit; their factors are what the field predicts,
    - ``"thinned"``: the observations that were fitted, with the counts of ``layers``.

    "sparsity" has one line for each modality: ``modality``, ``metric``, ``sparsity``, ``n_factors``, ``n_features`` (with any loading). "moran" has one for each
    factor: ``factor``, ``is_spatial``, ``metric``, ``moran``, ``n_obs``.

    Raises
    ------
    KeyError
        If the object has no such fit, modality or layer.
    ValueError
        If the counts do not suit the likelihood, or if "poisson" is to judge a Gaussian fit of values that neither are
        counts nor were made of counts by :func:`gpnsf.pp.normalise`.

    Notes
    -----
    Reads the counts that the fit has read, ``obsm["X_gpnsf"]`` and, of each modality, ``varm["gpnsf_loadings"]`` and ``_batch``,
    ``var["gpnsf_background"]`` and ``var["gpnsf_dispersion"]``. Features without a count in the training rows are left
    out. Size factors from totals are those of the counts that are judged, in units of the training counts; so depth is
    not predicted, neither by the fit nor by the null model: rates of held-out rows are brought to the sum that those of training
    rows have on average. Size factors from a column, or None, are multiplied by the
    ratio of the two totals for ``layers``.

    "poisson" and "rmse" judge fits with Gaussian noise ("fa", "rsf", ``likelihoods="gaussian"``) by counts too, if they were fitted to what
    :func:`gpnsf.pp.normalise` wrote, or to counts. With expected value :math:`x` and noise :math:`\sigma_j` of the feature, what is expected after
    a logarithm is :math:`\exp(x + \sigma_j^2 / 2) - 1`, times the size factor: the mean of the fitted model. ``expm1(x)`` would be its median,
    which is below the mean, the more so the fewer the counts. Counts are not log-normal, so the mean is not exact either. Expected counts
    below a hundredth of the null model's, which signed models have at times, are raised to it: their Poisson deviance would be infinite.
    "rmse" takes other values as they are.

    With "poisson" and "rmse" the null model is the same for all models with the same size factors: the ratio of the totals of counts and
    size factors. The counts of a Bernoulli modality are 0 and 1, and its expected counts probabilities.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> gpnsf.tl.evaluate(mdata, metric="poisson")[["modality", "rows", "n_obs"]].values.tolist()
    [['rna', 'train', 100], ['atac', 'train', 100]]
    """
    Rule(str, "poisson", options=METRICS).check("metric", metric)
    fit = fits.find(data, key)
    other = checks.per_modality(layers, "layers", names=list(fit.modalities), known=fit.modalities)
    if metric in OF_COUNTS:
        lines = [line for name in fit.modalities for line in _of_rows(fit, name, metric, other)]
        return pd.DataFrame(lines)
    if other:
        rule, remedy = (
            f"`layers` only with a metric of counts, among {OF_COUNTS}",
            "Leave `layers` out",
        )
        raise ValueError(problem(rule, f"metric={metric!r}", remedy))
    return _sparsity(fit) if metric == "sparsity" else _moran(fit)


def _of_rows(
    fit: Fit, name: str, metric: str, other: Mapping[str, str]
) -> list[dict[str, str | float]]:
    """Lines of one modality."""
    own = judged(fit, name)
    if metric != "deviance":
        own = as_counts(fit, own, only=metric != "rmse")
    lines = [
        _line(own, own.counts, own.size, rows, metric)
        for rows in ("train", "holdout")
        if own.has(rows)
    ]
    if name in other:
        lines.append(_line(own, *other_counts(fit, own, other[name]), "thinned", metric))
    return lines


def _line(
    own: Judged, counts: sp.csr_matrix, size: np.ndarray, rows: str, metric: str
) -> dict[str, str | float]:
    """One line of the table."""
    selected = own.select(rows)
    checks.positive(
        size[selected], what=f"size factors of the rows {rows!r} of modality {own.name!r}"
    )
    if metric == "deviance":
        pair = [_deviance(own, counts, model, selected) for model in _models(own, size)]
    else:
        pair = _distances(own, counts, size, selected, metric)
    column = "rmse" if metric == "rmse" else "deviance"
    ratio = pair[0] / pair[1]
    return {
        "modality": own.name,
        "rows": rows,
        "likelihood": own.likelihood,
        "metric": metric,
        column: pair[0],
        f"null_{column}": pair[1],
        "explained": 1 - (ratio**2 if metric == "rmse" else ratio),
        "n_obs": int(selected.sum()),
        "n_features": counts.shape[1],
    }


def _distances(
    own: Judged, counts: sp.csr_matrix, size: np.ndarray, selected: np.ndarray, metric: str
) -> list[float]:
    """Distance of the counts of selected rows [n] bool from those that the fit expects, and the null model."""
    null = own.null_rates()
    expected = (lambda rows: own.expected(rows, size)), (lambda rows: size[rows, None] * null)
    chosen = np.flatnonzero(selected)
    return [yardsticks.distance(metric, counts, each, chosen) for each in expected]


def _models(own: Judged, size: np.ndarray) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Both sides of the rates of the fit and of the null model, the second one for each batch."""
    null_rates = FAMILIES[own.likelihood].null_rates(own.counts, own.size, rows=own.select("train"))
    return [
        (
            (size * own.level)[:, None] * own.factors,
            [own.loadings * m[:, None] for m in own.multipliers],
        ),
        (size[:, None], [null_rates[:, None]] * len(own.multipliers)),
    ]


def _deviance(
    own: Judged,
    counts: sp.csr_matrix,
    model: tuple[np.ndarray, list[np.ndarray]],
    selected: np.ndarray,
) -> float:
    """Mean deviance of the selected rows [n] bool."""
    total, n_entries = _total_deviance(own, counts, model, selected)
    return total / n_entries


def _total_deviance(
    own: Judged,
    counts: sp.csr_matrix,
    model: tuple[np.ndarray, list[np.ndarray]],
    selected: np.ndarray,
) -> tuple[float, int]:
    """Deviance of the selected rows [n] bool, and the number of their entries."""
    A, by_batch = model
    parts = [
        metrics.deviance(
            own.likelihood, counts, A, W, own.dispersion, rows=selected & (own.batch == code)
        )
        for code, W in enumerate(by_batch)
    ]
    total, n_entries = np.sum(parts, axis=0)
    return float(total), int(n_entries)


def grouped_deviance(
    data: AnnData | MuData, groups: np.ndarray, *, layer: str
) -> tuple[np.ndarray, np.ndarray]:
    """Deviance and null deviance [G] of the counts in a layer, by group [N] of the training rows, modalities added up."""
    fit = fits.find(data)
    total = np.zeros((2, groups.max() + 1))
    for name in fit.modalities:
        own = judged(fit, name)
        counts, size = other_counts(fit, own, layer)
        models = _models(own, size)
        for code in range(total.shape[1]):
            selected = own.select("train") & (groups[fit.rows[name]] == code)
            total[:, code] += [_total_deviance(own, counts, model, selected)[0] for model in models]
    return total[0], total[1]


def _sparsity(fit: Fit) -> pd.DataFrame:
    """One line for each modality."""
    found = [yardsticks.sparsity(fit.mean[at], fit.loadings[m]) for m, at in fit.rows.items()]
    return pd.DataFrame(
        {
            "modality": list(fit.rows),
            "metric": "sparsity",
            "sparsity": [share for share, _ in found],
            "n_factors": len(fit.names),
            "n_features": [number for _, number in found],
        }
    )


def _moran(fit: Fit) -> pd.DataFrame:
    """One line for each factor."""
    train = ~measured.held_out_rows(fit)
    library = np.zeros(len(train)) if fit.library is None else fit.library.codes
    values = metrics.morans_i_within(fit.mean[train], fit.coords[train], library[train])
    return pd.DataFrame(
        {
            "factor": fit.names,
            "is_spatial": fit.is_spatial,
            "metric": "moran",
            "moran": values,
            "n_obs": int(train.sum()),
        }
    )
