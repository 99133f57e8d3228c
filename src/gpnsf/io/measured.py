"""What was measured, read as the fit has read it, beside what the fit expects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
from mudata import MuData

from gpnsf import checks
from gpnsf.arguments import Reading
from gpnsf.core.families import FAMILIES
from gpnsf.core.types import Dataset, View, row_sums
from gpnsf.io.fits import Fit
from gpnsf.io.read import Layout, read, read_counts, row_totals
from gpnsf.io.sizes import relative_totals

__all__ = [
    "Compared",
    "compare",
    "counts_of",
    "find_features",
    "held_out",
    "held_out_rows",
    "layer_of",
    "layer_read",
    "reread",
    "resized",
    "same_totals",
    "size_factors",
    "used",
]

SAME = 1e-4  # relative difference of totals in single precision


@dataclass(frozen=True)
class Compared:
    """Chosen features of one modality on the observations of the object; NaN where the modality has no cell."""

    likelihood: str
    # [N, F] counts per size factor; 0 and 1 for open chromatin; values as they are if real
    observed: np.ndarray
    # [N, F] in the same unit: rates, probabilities of open chromatin at the cell's size factor
    expected: np.ndarray
    weight: np.ndarray  # [N] what an observation counts in a mean: its size factor, or 1

    @property
    def binary(self) -> bool:
        """Whether observed values are 0 and 1 and expected ones probabilities."""
        return FAMILIES[self.likelihood].binary


def compare(fit: Fit, modality: str, positions: Sequence[int] | np.ndarray) -> Compared:
    """Observed and expected values of the features [F] at these positions of a modality."""
    rows, likelihood = fit.rows[modality], fit.likelihoods[modality]
    use = used(fit, modality)
    counts = counts_of(fit, modality, use)
    size = size_factors(fit, modality, counts, ~held_out(fit, modality))
    column = np.cumsum(use) - 1
    values = np.zeros((len(rows), len(positions)))
    seen = use[positions]
    values[:, seen] = counts[:, column[positions][seen]].toarray()
    rate = (
        fit.mean[rows] @ fit.loadings[modality][positions].T
        + fit.var(modality, fit.keys.background)[positions]
    )
    batch, multipliers = fit.batches(modality)
    rate = rate * multipliers[batch][:, positions]
    family = FAMILIES[likelihood]
    if family.binary:
        rate = family.mean(size[:, None] * rate)
        size = np.where(np.isfinite(size), 1.0, np.nan)
    parts = (values / size[:, None], rate, size)
    return Compared(likelihood, *(_on_rows(part, rows, fit.data.n_obs) for part in parts))


def find_features(
    fit: Fit, features: Sequence[str], modality: Sequence[str]
) -> list[tuple[str, int]]:
    """Modality and position of each named feature, which is to be the only one of its name."""
    names = {name: fit.modalities[name].var_names for name in modality}
    known = [feature for index in names.values() for feature in index]
    checks.choices(features, known, what="features", where=f"var_names of {list(modality)}")
    places = []
    for feature in features:
        found = [
            (name, int(j))
            for name, index in names.items()
            for j in np.flatnonzero(index == feature)
        ]
        if len(found) > 1:
            where = [name for name, _ in found]
            remedy = "Name its `modality`, or call .var_names_make_unique() on it"
            raise ValueError(
                checks.problem(f"one feature {feature!r}", f"{len(found)}, in {where}", remedy)
            )
        places += found
    return places


def used(fit: Fit, modality: str) -> np.ndarray:
    """Features [P] that the fit has seen and that had a count."""
    return fit.loadings[modality].any(axis=1) | (fit.offset(modality) != 0)


def held_out(fit: Fit, modality: str) -> np.ndarray:
    """Cells [n] of a modality that have trained nothing."""
    return held_out_rows(fit)[fit.rows[modality]]


def held_out_rows(fit: Fit) -> np.ndarray:
    """Rows [N] of the object that have trained nothing."""
    key = fit.param("holdout_key")
    if key is None:
        return np.zeros(fit.data.n_obs, dtype=bool)
    remedy = "Restore the column that the fit has read"
    return checks.flags(pd.Series(fit.obs(key)), name=key, remedy=remedy)


def reread(fit: Fit, modality: str | None = None) -> tuple[Dataset, Layout]:
    """What :func:`gpnsf.tl.fit` has read, in the order of the rows of the object; of one modality alone if it is named."""
    kept = {own.name: fit.params[own.name] for own in fields(Reading) if own.name in fit.params}
    chosen = list(fit.modalities) if modality is None else [modality]
    layers = {name: layer_of(fit, name) for name in chosen}
    own = {
        "modalities": chosen,
        "likelihoods": fit.likelihoods,
        "layers": {name: layer for name, layer in layers.items() if layer is not None},
    }
    reading = Reading(**{**kept, **own, "use_var": None, "batch_key": None})
    features = {name: used(fit, name) for name in chosen}
    spatial = bool(fit.is_spatial.any())
    dataset, layout = read(fit.data, reading, spatial=spatial, features=features, tell=False)
    views = tuple(resized(view, fit.mean_size(view.name)) for view in dataset.views)
    return replace(dataset, views=views), layout


def resized(view: View, unit: float) -> View:
    """A modality whose size factors have another mean than 1."""
    return view if unit == 1.0 else replace(view, size=(unit * view.size).astype(np.float32))


def layer_read(fit: Fit, modality: str) -> str | None:
    """The layer that the fit has read, None for ``X``."""
    known = fit.data.mod if isinstance(fit.data, MuData) else fit.modalities
    layers = checks.per_modality(fit.params.get("layers"), "layers", names=[modality], known=known)
    return layers.get(modality)


def layer_of(fit: Fit, modality: str) -> str | None:
    """The layer that holds what the fit has read, None for ``X``: the one it was, or where a copy of it is."""
    asked = layer_read(fit, modality)
    totals, mod = fit.total(modality), fit.modalities[modality]
    if totals is None:
        return asked
    for layer in dict.fromkeys([asked, None, *mod.layers]):
        if _holds(fit, modality, layer, totals):
            return layer
    where = f"{'X' if asked is None else f'layer {asked!r}'} of modality {modality!r}"
    found = f"other values there, and no copy in the layers {[name for name in mod.layers if name]}"
    remedy = (
        f"Put the values that were fitted into a layer of any name, for example {_place(fit, modality)}.layers['counts'] = "
        f"counts (their median total is {np.median(totals):g}), or run gpnsf.tl.fit again"
    )
    raise ValueError(checks.problem(f"the values that the fit has read in {where}", found, remedy))


def _place(fit: Fit, modality: str) -> str:
    """How the user may call a modality."""
    return f"mdata[{modality!r}]" if isinstance(fit.data, MuData) else "adata"


def _holds(fit: Fit, modality: str, layer: str | None, totals: np.ndarray) -> bool:
    """Whether a layer has the totals [n] of what the fit has read."""
    mod, likelihood, use = fit.modalities[modality], fit.likelihoods[modality], used(fit, modality)
    try:
        found = row_totals(mod, layer=layer, likelihood=likelihood, modality=modality, use=use)
    except (KeyError, TypeError, ValueError):
        return False
    return same_totals(fit, modality, found, totals)


def same_totals(fit: Fit, modality: str, found: np.ndarray, totals: np.ndarray) -> bool:
    """Whether these are the totals [n] of what the fit has read, in most cells: some features of held-out ones were not seen.

    Where features were left out since, counts that are legal and not larger may be the same.
    """
    tolerance = SAME * (np.abs(totals) + np.abs(totals).mean())
    if used(fit, modality).sum() < fit.n_features(modality):
        signed = FAMILIES[fit.likelihoods[modality]].signed
        return signed or bool(np.median(found - totals - tolerance) <= 0)
    return bool(np.median(np.abs(found - totals) - tolerance) <= 0)


def counts_of(
    fit: Fit,
    modality: str,
    use: np.ndarray | None = None,
    *,
    layer: str | None = None,
    kind: str | None = None,
) -> sp.csr_matrix:
    """Checked counts [n, P] of the features to use [P_full], None for all, from a layer, None for the one that was fitted.

    ``kind`` is the likelihood that they have to suit, if it is not that of the fit.
    """
    layer = layer_of(fit, modality) if layer is None else layer
    likelihood = kind or fit.likelihoods[modality]
    return read_counts(
        fit.modalities[modality], layer=layer, likelihood=likelihood, modality=modality, use=use
    )


def size_factors(
    fit: Fit,
    modality: str,
    counts: sp.csr_matrix,
    train: np.ndarray,
    *,
    kind: str | None = None,
) -> np.ndarray:
    """Size factors [n] of the fit for its counts [n, P], relative to their mean over the training cells [n].

    Cells that were held out and have none in the column that was fitted get NaN. ``kind`` is the likelihood that the counts
    suit, if it is not that of the fit. After a
    projection they are in the unit of the reference.
    """
    source = fit.param("size_factors")
    if source is None or FAMILIES[kind or fit.likelihoods[modality]].signed:
        return np.ones(counts.shape[0])
    unit = fit.mean_size(modality)
    if source == "total":
        return unit * relative_totals(row_sums(counts), train)
    own = fit.modalities[modality].obs
    remedy = "Restore the column that the fit has read"
    checks.choices(
        [source],
        [*fit.data.obs, *own],
        what="size factors",
        where=f"obs of {modality!r}",
        remedy=remedy,
    )
    column = (
        fit.data.obs[source].iloc[fit.rows[modality]] if source in fit.data.obs else own[source]
    )
    checks.positive(column[train], what=f"size factors in {source!r}")
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    known = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    return unit * known / values[train].mean()


def _on_rows(values: np.ndarray, rows: np.ndarray, n_obs: int) -> np.ndarray:
    """Values of cells [n, ...] on the rows [N, ...] of the object."""
    full = np.full((n_obs, *values.shape[1:]), np.nan)
    full[rows] = values
    return full
