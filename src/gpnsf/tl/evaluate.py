"""How well a fit explains counts that it has seen, and counts that it has not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from gpnsf import checks
from gpnsf.core.families import FAMILIES
from gpnsf.core.scores import metrics
from gpnsf.io import fits, measured
from gpnsf.io.read import SIZE_FLOOR
from gpnsf.io.tables import takes_tables

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from gpnsf.io.fits import Fit

__all__ = ["evaluate", "grouped_deviance"]


@takes_tables
def evaluate(
    data: AnnData | MuData, *, layers: str | Mapping[str, str] | None = None, key: str = "gpnsf"
) -> pd.DataFrame:
    r"""Mean deviance of the fitted rates from the counts, per modality, next to a null model.

    Rates are size factor times ``X_gpnsf @ loadings.T + background`` (times ``varm["gpnsf_batch"]`` of the row's batch after a
    fit with ``batch_key``), and the deviance is that of the modality's
    likelihood: twice the log likelihood which a model with one rate per entry has more, zeros included, divided by the
    number of entries. The null model has one rate per feature, estimated on the training rows, with the same size factors
    and dispersions; ``explained`` is one minus the ratio of the two.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated, with the observations it was fitted on.
    layers
        Layer with other counts of the same observations, for each modality or one name for all; say ``"thinned_test"``
        after :func:`gpnsf.pp.thin` and a fit of ``"thinned_train"``.
    key
        Prefix of the slots, ``key_added`` of the fit.

    Returns
    -------
    Tidy table with one line for each modality and kind of rows: ``modality``, ``rows``, ``likelihood``, ``deviance``,
    ``null_deviance`` (means per entry), ``explained``, ``n_obs``, ``n_features``. ``rows`` is

    - ``"train"``: the observations and the counts that were fitted,
    - ``"holdout"``: observations that ``holdout_key`` kept out of the fit; their factors are what the field predicts,
    - ``"thinned"``: the observations that were fitted, with the counts of ``layers``.

    Raises
    ------
    KeyError
        If the object has no such fit, modality or layer.
    ValueError
        If the counts do not suit the likelihood.

    Notes
    -----
    Reads the counts that the fit has read, ``obsm["X_gpnsf"]`` and, of each modality, ``varm["gpnsf_loadings"]`` and ``_batch``,
    ``var["gpnsf_background"]`` and ``var["gpnsf_dispersion"]``. Features without a count in the training rows are left
    out. Size factors from totals are those of the counts that are judged, in units of the training counts; so depth is
    not predicted, neither by the fit nor by the null model. Size factors from a column, or None, are multiplied by the
    ratio of the two totals for ``layers``.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> gpnsf.tl.evaluate(mdata)[["modality", "rows", "n_obs"]].values.tolist()
    [['rna', 'train', 100], ['atac', 'train', 100]]
    """
    fit = fits.find(data, key)
    other = checks.per_modality(layers, "layers", names=list(fit.modalities), known=fit.modalities)
    lines = []
    for name in fit.modalities:
        judged = _open(fit, name)
        lines += [
            _line(judged, judged.counts, judged.size, rows)
            for rows in ("train", "holdout")
            if judged.has(rows)
        ]
        if name in other:
            counts = measured.counts_of(fit, name, judged.seen, layer=other[name])
            lines.append(_line(judged, counts, _other_size(judged, counts), "thinned"))
    return pd.DataFrame(lines)


@dataclass(frozen=True)
class _Judged:
    """One modality: its n cells, and the P features that have counts in the training rows."""

    name: str
    likelihood: str
    counts: sp.csr_matrix  # [n, P] as fitted
    size: np.ndarray  # [n]
    by_total: bool  # size factors follow the totals of the counts
    unit: float  # mean of the size factors
    seen: np.ndarray  # [P_full] bool
    factors: np.ndarray  # [n, K + 1], the last column is the constant one
    loadings: np.ndarray  # [P, K + 1], the last column is the background
    dispersion: np.ndarray | None  # [P]
    held_out: np.ndarray  # [n] bool
    batch: np.ndarray  # [n] code of the batch
    multipliers: np.ndarray  # [S, P] of the batches

    def has(self, rows: str) -> bool:
        """Whether there are rows of this kind."""
        return rows != "holdout" or bool(self.held_out.any())

    def select(self, rows: str) -> np.ndarray:
        """Rows [n] bool of this kind; thinned counts are those of training rows."""
        return self.held_out if rows == "holdout" else ~self.held_out


def _line(
    judged: _Judged, counts: sp.csr_matrix, size: np.ndarray, rows: str
) -> dict[str, str | float]:
    """One line of the table."""
    selected = judged.select(rows)
    checks.positive(
        size[selected], what=f"size factors of the rows {rows!r} of modality {judged.name!r}"
    )
    found = {}
    for column, model in _models(judged, size).items():
        total, n_entries = _deviance(judged, counts, model, selected)
        found[column] = total / n_entries
    return {
        "modality": judged.name,
        "rows": rows,
        "likelihood": judged.likelihood,
        **found,
        "explained": 1 - found["deviance"] / found["null_deviance"],
        "n_obs": int(selected.sum()),
        "n_features": counts.shape[1],
    }


def _models(judged: _Judged, size: np.ndarray) -> dict[str, tuple[np.ndarray, list[np.ndarray]]]:
    """Both sides of the rates of the fit and of the null model, the second one for each batch."""
    null_rates = FAMILIES[judged.likelihood].null_rates(
        judged.counts, judged.size, rows=judged.select("train")
    )
    return {
        "deviance": (
            size[:, None] * judged.factors,
            [judged.loadings * m[:, None] for m in judged.multipliers],
        ),
        "null_deviance": (size[:, None], [null_rates[:, None]] * len(judged.multipliers)),
    }


def _deviance(
    judged: _Judged,
    counts: sp.csr_matrix,
    model: tuple[np.ndarray, list[np.ndarray]],
    selected: np.ndarray,
) -> tuple[float, int]:
    """Deviance of the selected rows [n] bool, and the number of their entries."""
    A, by_batch = model
    parts = [
        metrics.deviance(
            judged.likelihood,
            counts,
            A,
            W,
            judged.dispersion,
            rows=selected & (judged.batch == code),
        )
        for code, W in enumerate(by_batch)
    ]
    total, n_entries = np.sum(parts, axis=0)
    return float(total), int(n_entries)


def grouped_deviance(
    data: AnnData | MuData, groups: np.ndarray, *, layer: str, key: str = "gpnsf"
) -> tuple[np.ndarray, np.ndarray]:
    """Deviance and null deviance [G] of the counts in a layer, by group [N] of the training rows, modalities added up."""
    fit = fits.find(data, key)
    total = np.zeros((2, groups.max() + 1))
    for name in fit.modalities:
        judged = _open(fit, name)
        counts = measured.counts_of(fit, name, judged.seen, layer=layer)
        models = _models(judged, _other_size(judged, counts)).values()
        for code in range(total.shape[1]):
            selected = judged.select("train") & (groups[fit.rows[name]] == code)
            total[:, code] += [_deviance(judged, counts, model, selected)[0] for model in models]
    return total[0], total[1]


def _open(fit: Fit, name: str) -> _Judged:
    """Read one modality as the fit did."""
    mod, rows, likelihood = fit.modalities[name], fit.rows[name], fit.likelihoods[name]
    held_out = measured.held_out(fit, name)
    loadings = np.column_stack([fit.loadings[name], fit.var(name, fit.keys.background)])
    seen = np.any(loadings, axis=1)
    counts = measured.counts_of(fit, name, seen)
    counted = counts[~held_out].getnnz(axis=0) > 0
    seen[seen], counts = counted, counts[:, counted]
    batch, multipliers = fit.batches(name)
    return _Judged(
        name=name,
        likelihood=likelihood,
        counts=counts,
        size=measured.size_factors(fit, name, counts, ~held_out),
        by_total=not FAMILIES[likelihood].signed and fit.param("size_factors") == "total",
        unit=fit.mean_size(name),
        seen=seen,
        factors=np.column_stack([fit.mean[rows], np.ones(mod.n_obs)]),
        loadings=loadings[seen],
        dispersion=_dispersion(fit, name, seen),
        held_out=held_out,
        batch=batch,
        multipliers=multipliers[:, seen],
    )


def _dispersion(fit: Fit, name: str, seen: np.ndarray) -> np.ndarray | None:
    """Dispersion of the features that the fit has seen, where its likelihood has one."""
    if not FAMILIES[fit.likelihoods[name]].has_dispersion:
        return None
    key = fit.keys.dispersion
    return checks.positive(fit.var(name, key)[seen], what=f"var[{key!r}] of {name!r}")


def _other_size(judged: _Judged, counts: sp.csr_matrix) -> np.ndarray:
    """Size factors [n] of other counts of the same cells, in units of the training counts."""
    train = judged.select("train")
    mean, other_mean = _totals(judged.counts)[train].mean(), _totals(counts)[train].mean()
    ratio = 1.0 if FAMILIES[judged.likelihood].signed else other_mean / mean
    if judged.by_total:
        return judged.unit * ratio * np.maximum(_totals(counts) / other_mean, SIZE_FLOOR)
    return ratio * judged.size


def _totals(counts: sp.csr_matrix) -> np.ndarray:
    """Row sums in double precision."""
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
