"""Layers that ``pp.normalise`` has made of counts: what it leaves to be read, and the counts found again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from gpnsf.checks import problem
from gpnsf.core import stored
from gpnsf.core.scores.normalising import normalised
from gpnsf.io.fits import Fit
from gpnsf.io.measured import layer_of, same_totals, used
from gpnsf.io.read import read_counts

__all__ = ["METHOD", "Normalised", "counts_behind", "normalised_of", "size_key"]

METHOD = "normalise"


@dataclass(frozen=True)
class Normalised:
    """How a layer of one modality was made of its n cells."""

    layer: str
    source: str | None  # layer of the counts, None for X
    size: np.ndarray  # [n] size factors
    by_total: bool  # size factors follow the totals of the counts
    log: bool
    holdout_key: str | None
    learned: bool  # the unit of the size factors is a mean over cells


def size_key(layer: str) -> str:
    """Column of ``obs`` for the size factors of a layer."""
    return f"{layer}_size"


def normalised_of(fit: Fit, modality: str) -> Normalised | None:
    """The layer that the fit has read, or one that holds the same values; None if `pp.normalise` made none of them."""
    mod = fit.modalities[modality]
    made = [name for name in mod.layers if name is not None and _is_record(mod.uns.get(name))]
    if not made:
        return None
    read = layer_of(fit, modality)
    alike = [name for name in made if name == read] or [n for n in made if _alike(mod, read, n)]
    return _record(mod, modality, alike[0]) if alike else None


def _is_record(value: object) -> bool:
    """Whether an entry of ``uns`` tells how a layer was normalised."""
    return isinstance(value, Mapping) and value.get("method") == METHOD


def _alike(mod: AnnData, layer: str | None, other: str) -> bool:
    """Whether two layers hold the same values, up to single precision."""
    pair = [mod.X if name is None else mod.layers[name] for name in (layer, other)]
    difference = abs(sp.csr_matrix(pair[0]) - sp.csr_matrix(pair[1]))
    return bool(difference.max() <= 1e-6 * abs(sp.csr_matrix(pair[1])).max())


def _record(mod: AnnData, modality: str, layer: str) -> Normalised:
    """Read what `pp.normalise` has written of a layer."""
    record, where = mod.uns[layer], f"uns[{layer!r}] of {modality!r}"
    tiny, shape = np.finfo(float).tiny, (mod.n_obs,)
    return Normalised(
        layer=layer,
        source=stored.text(record, "layer", where=where),
        size=stored.array(mod.obs, size_key(layer), shape, low=tiny, where=f"obs of {modality!r}"),
        by_total=stored.text(record, "size_factors", where=where) == "total",
        log=stored.flag(record, "log", where=where),
        holdout_key=stored.text(record, "holdout_key", where=where),
        learned=stored.flag(record, "learned", where=where),
    )


def counts_behind(fit: Fit, modality: str, made: Normalised, use: np.ndarray) -> sp.csr_matrix:
    """Counts [n, P] of the features to use [P_full], from the layer that was normalised or where a copy of it is."""
    mod, totals = fit.modalities[modality], fit.total(modality)
    for layer in dict.fromkeys([made.source, None, *mod.layers]):
        counts = _counts(mod, modality, layer, used(fit, modality))
        if counts is None:
            continue
        values = normalised(counts, made.size, log=made.log)
        found = np.asarray(values.sum(axis=1, dtype=np.float64)).ravel()
        if totals is None or same_totals(fit, modality, found, totals):
            return counts[:, use[used(fit, modality)]]
    place = "X" if made.source is None else f"layer {made.source!r}"
    remedy = "Put them into a layer of any name, where they are found, or run gpnsf.pp.normalise and the fit again"
    rule = f"the counts behind layer {made.layer!r} of modality {modality!r}"
    raise ValueError(problem(rule, f"other values in {place}, and no copy in a layer", remedy))


def _counts(
    mod: AnnData, modality: str, layer: str | None, use: np.ndarray
) -> sp.csr_matrix | None:
    """The counts in a layer; None where there are none."""
    try:
        return read_counts(mod, layer=layer, likelihood="poisson", modality=modality, use=use)
    except (KeyError, TypeError, ValueError):
        return None
