"""The way in: MuData or AnnData to arrays. Nothing of the object is changed here; `write` is the way out."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from gpnsf import checks
from gpnsf.arguments import Reading
from gpnsf.core.families import FAMILIES
from gpnsf.core.types import Dataset, View, row_sums
from gpnsf.io import modalities, names
from gpnsf.io.geometry import Geometry, geometry
from gpnsf.io.objects import Opened, gather, holders, open_data, read_coords, read_labels
from gpnsf.io.sizes import in_column, relative_totals, size_column
from gpnsf.io.streaming import (
    StoredCounts,
    canonical,
    is_stored,
    loaded,
    memory_budget,
    sound,
)
from gpnsf.io.suspicions import suspicions

__all__ = [
    "Layout",
    "features_used",
    "held_out_rows",
    "read",
    "read_counts",
    "row_totals",
    "told_of",
]

SAME_TOTAL = 0.01  # relative difference of size factors from totals that they may have and be these
MOST_OPEN = 0.1  # share of the peaks beyond which open ones hide too many events to be their total
NOT_BINARY = "modality %r holds values other than 0 and 1; %r reads x > 0"
MANY_BATCHES = (
    5  # times the root of the number of observations: batches that are no samples any more
)

_logger = logging.getLogger("gpnsf")


@dataclass(frozen=True)
class Layout:
    """How a Dataset came from the user's object: for writing back and for prediction."""

    modalities: tuple[str, ...]
    likelihoods: dict[str, str]
    rows: dict[str, np.ndarray]  # modality -> [n] row of the dataset of each of its cells
    features: dict[str, np.ndarray]  # modality -> [P_full] bool: features that the core sees
    libraries: tuple[str, ...]  # names of the slices; "" alone where there is one
    batches: tuple[str, ...]  # names of the batches; none where there is no key of batches
    # [N] row of the dataset of each observation of the object: rows of a batch are neighbours
    position: np.ndarray
    centre: np.ndarray  # [n_libraries, D] in the data's own units
    scale: float  # the data's own units per half-width unit, one for all slices and axes
    totals: dict[str, np.ndarray]  # modality -> [n] total of each of its cells, held out or not
    warnings: tuple[str, ...] = ()  # what was told before the fit


def read(
    data: AnnData | MuData,
    reading: Reading | None = None,
    *,
    default_likelihoods: Mapping[str, str] | None = None,
    spatial: bool = True,
    features: Mapping[str, np.ndarray] | None = None,
    tell: bool = True,
) -> tuple[Dataset, Layout]:
    """Read what a fit needs; ``spatial=False`` is for models without a field, which can do without coordinates.

    ``features`` [P_full] bool by modality take the place of ``reading.use_var``. What is legal and may mislead a fit is told, unless ``tell`` is false: for reading once more what has been fitted.

    ``default_likelihoods`` maps kinds of modalities (:mod:`gpnsf.io.names`) to likelihoods, "" standing for any other.
    """
    reading = reading or Reading()
    opened = open_data(data, modalities=reading.modalities, likelihoods=reading.likelihoods)
    chosen = reading.modalities is not None
    told = told_of(modalities.suspicions(opened, chosen=chosen)) if tell else ()
    kinds = _likelihoods(opened, reading.likelihoods, default_likelihoods or names.LIKELIHOODS)
    features = dict(features or features_used(opened, reading.use_var))
    for name in opened.names:
        modalities.check_types(opened.mods[name].var[features[name]], name)
    weights = _weights(opened, reading.modality_weights)
    layer = checks.per_modality(reading.layers, "layers", names=opened.names, known=opened.mods)
    library, libraries = pd.factorize(read_labels(opened, reading.library_key), sort=True)
    slices = tuple(map(str, libraries))
    coords, places = _places(opened, reading.spatial_key, library, slices, spatial=spatial)
    if tell and spatial:
        told += told_of(suspicions(opened, coords, library, slices, places.stray))
    trained = ~held_out_rows(opened, reading.holdout_key)
    views, totals = [], {}
    for name in opened.names:
        counts, changed = _opened(
            opened.mods[name], layer.get(name), kinds[name], name, features[name]
        )
        if tell and changed:
            _logger.info(NOT_BINARY, name, kinds[name])
        totals[name] = _totals(counts)
        view = _view(opened, name, counts, kinds[name], trained, reading.size_factors)
        views.append(replace(view, weight=weights.get(name, 1.0)))
    batch, batches = pd.factorize(
        read_labels(opened, reading.batch_key, argument="batch_key"), sort=True
    )
    position = np.argsort(np.argsort(batch, kind="stable"))
    _tell_of_batches(reading.batch_key, len(batch), batches)
    layout = Layout(
        modalities=opened.names,
        likelihoods=kinds,
        rows={name: position[opened.rows[name]] for name in opened.names},
        features=features,
        libraries=slices,
        batches=() if reading.batch_key is None else tuple(map(str, batches)),
        position=position,
        centre=places.centre,
        scale=places.scale,
        totals=totals,
        warnings=told,
    )
    in_file = any(isinstance(view.counts, StoredCounts) for view in views)
    memory = memory_budget() if in_file else math.inf
    dataset = Dataset(
        coords=places.coords, library=library.astype(np.int64), views=tuple(views), memory=memory
    )
    return dataset if reading.batch_key is None else _by_batch(dataset, batch), layout


def _by_batch(dataset: Dataset, batch: np.ndarray) -> Dataset:
    """The same rows, batch after batch, so that row blocks need not mix them."""
    order = np.argsort(batch, kind="stable")
    views = tuple(
        replace(
            view,
            counts=view.counts.arranged(order)
            if isinstance(view.counts, StoredCounts)
            else view.counts[order],
            size=view.size[order],
            observed=view.observed[order],
        )
        for view in dataset.views
    )
    return Dataset(
        dataset.coords[order],
        dataset.library[order],
        views,
        batch[order].astype(np.int64),
        dataset.memory,
    )


def _likelihoods(opened: Opened, likelihoods: Any, defaults: Mapping[str, str]) -> dict[str, str]:
    chosen = checks.per_modality(likelihoods, "likelihoods", names=opened.names, known=opened.mods)
    for name, kind in chosen.items():
        if kind not in FAMILIES:
            rule = "`likelihoods` to be among " + ", ".join(map(repr, FAMILIES))
            remedy = f"Pass for example likelihoods={{{name!r}: 'nb'}}"
            raise ValueError(checks.problem(rule, f"{kind!r} for modality {name!r}", remedy))
    usual = {
        kind: defaults.get(kind, defaults[""]) for kind in map(names.kind, [*opened.names, "atac"])
    }
    unasked = {name: usual[names.kind(name)] for name in opened.names if name not in chosen}
    modalities.tell_of_names(unasked)
    modalities.tell_of_peaks(opened, unasked, usual["atac"])
    return {name: chosen.get(name) or unasked[name] for name in opened.names}


def features_used(opened: Opened, use_var: Any) -> dict[str, np.ndarray]:
    """Features [P_full] to be read; a single name holds for the modalities that have the column."""
    columns = checks.per_modality(use_var, "use_var", names=opened.names, known=opened.mods)
    if isinstance(use_var, str):
        known = {column for name in opened.names for column in opened.mods[name].var}
        checks.choices(
            [use_var],
            sorted(map(str, known)),
            what="the column of `use_var`",
            where="var of a modality",
        )
        columns = {name: use_var for name in opened.names if use_var in opened.mods[name].var}
    features = {}
    for name in opened.names:
        mod = opened.mods[name]
        features[name] = np.ones(mod.n_vars, dtype=bool)
        if name in columns:
            checks.choices(
                [columns[name]], mod.var, what="the column of `use_var`", where=f"var of {name!r}"
            )
            features[name] = checks.flags(
                checks.column(mod.var, columns[name], where=f"var of {name!r}"),
                name=columns[name],
                remedy="Name a boolean var column in `use_var`",
            )
    return features


def _tell_of_batches(key: str | None, n_obs: int, batches: np.ndarray) -> None:
    """Say of one batch, and of more than are samples, what that means."""
    if key is not None and len(batches) == 1:
        _logger.warning(
            "batch_key=%r has no effect: all observations belong to batch %r. Leave it out.",
            key,
            batches[0],
        )
    elif len(batches) > MANY_BATCHES * n_obs**0.5:
        _logger.warning(
            "batch_key=%r names %d batches of %d observations, %.3g each. Each batch has a multiplier for every feature, and "
            "small ones take over what differs from place to place. Name the column of the samples or runs.",
            key,
            len(batches),
            n_obs,
            n_obs / len(batches),
        )


def _weights(opened: Opened, modality_weights: Any) -> dict[str, float]:
    argument = "modality_weights"
    weights = checks.per_modality(
        modality_weights, argument, names=opened.names, known=opened.mods, numeric=True
    )
    for name, weight in weights.items():
        checks.positive([weight], what=f"`modality_weights` of {name!r}")
    return {name: float(weight) for name, weight in weights.items()}


def read_counts(
    adata: AnnData,
    *,
    layer: str | None,
    likelihood: str,
    modality: str,
    use: np.ndarray | None = None,
) -> sp.csr_matrix:
    """Checked counts [n, P] of one modality as canonical CSR float32; arrays that are so already are shared."""
    counts, _ = _opened(
        adata,
        layer,
        likelihood,
        modality,
        np.ones(adata.n_vars, dtype=bool) if use is None else use,
    )
    return counts[:] if isinstance(counts, StoredCounts) else counts


def row_totals(
    adata: AnnData, *, layer: str | None, likelihood: str, modality: str, use: np.ndarray
) -> np.ndarray:
    """Totals [n] of the counts of the features to use [P_full], checked as those of a fit are."""
    return _totals(_opened(adata, layer, likelihood, modality, use)[0])


def _opened(
    adata: AnnData, layer: str | None, likelihood: str, modality: str, use: np.ndarray
) -> tuple[sp.csr_matrix | StoredCounts, bool]:
    """The same, and whether values above zero are read as one; counts that are in a file stay there."""
    if layer is not None:
        known = [name for name in adata.layers if name is not None]
        checks.choices(
            [layer],
            known,
            what="the layer",
            where=f"modality {modality!r}",
            remedy="Name one of these layers",
        )
    stored = adata.X if layer is None else adata.layers[layer]
    if stored is None:
        remedy = f"Pass layers={{{modality!r}: 'counts'}} to read a layer"
        raise ValueError(checks.problem(f"counts in X of modality {modality!r}", "None", remedy))
    checks.extent(adata.n_obs, int(use.sum()), modality=modality)
    if is_stored(stored):
        features = adata.var_names[use]
        counts = StoredCounts.open(
            stored, modality=modality, use=use, likelihood=likelihood, features=features
        )
        checks.some(counts, modality=modality)
        return counts, counts.ones
    stored = loaded(stored, modality=modality)
    sound(stored, modality=modality)
    matrix = canonical(stored if use.all() else stored[:, use], modality=modality)
    checks.counts(matrix, likelihood, modality=modality, features=adata.var_names[use])
    checks.some(matrix, modality=modality)
    if not FAMILIES[likelihood].binary or (matrix.data == 1).all():
        return matrix, False
    ones = np.ones_like(matrix.data)
    return sp.csr_matrix((ones, matrix.indices, matrix.indptr), shape=matrix.shape), True


def _view(
    opened: Opened,
    name: str,
    counts: sp.csr_matrix | StoredCounts,
    likelihood: str,
    trained: np.ndarray,
    size_factors: str | None,
) -> View:
    """Counts [n, P] of a modality on the rows [N] of the object that are trained."""
    rows = opened.rows[name]
    observed = np.zeros(len(trained), dtype=bool)
    observed[rows] = trained[rows]
    counts = _scatter(counts, rows, observed)
    if not counts.nnz:
        remedy = "Hold out fewer rows, or leave the modality out with `modalities`"
        rule = f"nonzero counts in the training rows of modality {name!r}"
        raise ValueError(checks.problem(rule, f"none in {int(observed.sum())} row(s)", remedy))
    size = observed.astype(np.float32)
    family, totals = FAMILIES[likelihood], _totals(counts)
    if size_factors is not None and not family.signed:
        size[observed] = _size_factors(opened, name, totals, observed, size_factors)
    own, total = relative_totals(size[observed]), relative_totals(totals[observed])
    same = np.allclose(own, total, rtol=SAME_TOTAL)
    few = not family.binary or totals[observed].mean() <= MOST_OPEN * counts.shape[1]
    by_total = not family.signed and few and (size_factors == "total" or same)
    return View(name, likelihood, counts, size, observed, by_total=by_total)


def _scatter(
    counts: sp.csr_matrix | StoredCounts, rows: np.ndarray, observed: np.ndarray
) -> sp.csr_matrix | StoredCounts:
    """Counts [N, P] on the rows of the object, empty where nothing is observed."""
    if len(rows) == len(observed) and observed.all() and np.array_equal(rows, np.arange(len(rows))):
        return counts
    position = np.zeros(len(observed), dtype=np.int64)
    position[rows] = np.arange(len(rows))
    if isinstance(counts, StoredCounts):
        return counts.arranged(np.where(observed, position, -1))
    kept = counts[position[observed]]
    lengths = np.zeros(len(observed), dtype=kept.indptr.dtype)
    lengths[observed] = np.diff(kept.indptr)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(kept.indptr.dtype)
    return sp.csr_matrix((kept.data, kept.indices, indptr), shape=(len(observed), counts.shape[1]))


def _totals(counts: sp.csr_matrix | StoredCounts) -> np.ndarray:
    """Row sums [N]."""
    if isinstance(counts, StoredCounts):
        return np.where(counts.index >= 0, counts.totals[counts.index], 0.0)
    return row_sums(counts)


def _size_factors(
    opened: Opened, name: str, total: np.ndarray, observed: np.ndarray, source: str
) -> np.ndarray:
    """Size factors of the observed rows, relative to their mean."""
    if source != "total":
        what = f"size factors in column {source!r} for modality {name!r}"
        values = in_column(size_column(opened, name, source)[observed], what=what)
        return values / values.mean()
    return relative_totals(total[observed])


def held_out_rows(opened: Opened, key: str | None) -> np.ndarray:
    """Rows [N] that train nothing."""
    if key is None:
        return np.zeros(opened.data.n_obs, dtype=bool)
    remedy = "Name a boolean obs column in `holdout_key`"
    held = gather(
        opened,
        "obs",
        key,
        lambda column, *_: checks.flags(column, name=key, remedy=remedy),
        argument="holdout_key",
    )
    if held.all():
        found = f"all {len(held)} rows held out by {key!r}"
        raise ValueError(checks.problem("rows to train on", found, "Set some of them to False"))
    return held


def _places(
    opened: Opened, key: str, library: np.ndarray, slices: tuple[str, ...], *, spatial: bool
) -> tuple[np.ndarray, Geometry]:
    """Coordinates [N, D] of the rows in the data's own units, and normalised."""
    if not spatial and not holders(opened, "obsm", key):
        none = np.zeros((len(library), 1), np.float32)
        centre = np.zeros((len(slices), 1))
        return none, Geometry(none, centre, 1.0, np.zeros(len(library), dtype=bool))
    coords = read_coords(opened, key)
    return coords, geometry(coords, library, key)


def told_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Warnings, in the log and for the record."""
    told = tuple(texts)
    for text in told:
        _logger.warning(text)
    return told
