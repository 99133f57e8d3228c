"""Values that were made of counts, by ``pp.normalise`` or by a method itself: how, and the counts found again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from gpnsf.checks import positive, problem
from gpnsf.core import stored
from gpnsf.core.scores.normalising import normalised
from gpnsf.core.types import row_sums
from gpnsf.io.fits import Fit
from gpnsf.io.measured import counts_of, held_out, layer_of, same_totals, size_factors, used
from gpnsf.io.read import read_counts

__all__ = ["METHOD", "Normalised", "tells_of_layer", "normalised_by", "normalised_of", "size_key"]

METHOD = "normalise"


@dataclass(frozen=True)
class Normalised:
    """How the values of one modality were made of the counts of its n cells."""

    counts: sp.csr_matrix  # [n, P] of the features that were asked for
    size: np.ndarray  # [n] size factors
    by_total: bool  # size factors follow the totals of the counts
    log: bool
    unit: float = 1.0  # what the values were divided by at the end
    # layer whose size factors have a unit from rows that the fit holds out
    peeks: str | None = None

    @property
    def own_values(self) -> sp.csr_matrix:
        """Values [n, P] of its own counts."""
        return self.values(self.counts, self.size)

    def values(self, counts: sp.csr_matrix, size: np.ndarray) -> sp.csr_matrix:
        """Values [n, P] of any counts [n, P] and size factors [n]."""
        return normalised(counts, size, log=self.log) / self.unit


def size_key(layer: str) -> str:
    """Column of ``obs`` for the size factors of a layer."""
    return f"{layer}_size"


def normalised_of(fit: Fit, modality: str, use: np.ndarray) -> Normalised | None:
    """How the values that the fit has read, of the features to use [P_full], were made of counts; None if nobody knows."""
    if fit.normalised is not None:
        return normalised_by(fit, modality, use)
    mod = fit.modalities[modality]
    made = [name for name in mod.layers if name is not None and tells_of_layer(mod.uns.get(name))]
    if not made:
        return None
    read = layer_of(fit, modality)
    alike = [name for name in made if name == read] or [n for n in made if _alike(mod, read, n)]
    return _by_layer(fit, modality, alike[0], use) if alike else None


def normalised_by(fit: Fit, modality: str, use: np.ndarray) -> Normalised:
    """What a method has done to the counts that it has read, with size factors of median 1 over the training cells."""
    own = stored.record(fit.normalised or {}, modality, where=fit.where)
    where = f"what {fit.where} says of {modality!r}"
    counts, train = counts_of(fit, modality, use, kind="poisson"), ~held_out(fit, modality)
    size = size_factors(fit, modality, counts, train, kind="poisson")
    return Normalised(
        counts=counts,
        size=size / np.median(size[train]),
        by_total=fit.param("size_factors") == "total",
        log=stored.flag(own, "log", where=where),
        unit=stored.number(own, "unit", low=1e-20, where=where),
    )


def tells_of_layer(value: object) -> bool:
    """Whether an entry of ``uns`` tells how a layer was normalised."""
    return isinstance(value, Mapping) and value.get("method") == METHOD


def _alike(mod: AnnData, layer: str | None, other: str) -> bool:
    """Whether two layers hold the same values, up to single precision."""
    pair = [mod.X if name is None else mod.layers[name] for name in (layer, other)]
    difference = abs(sp.csr_matrix(pair[0]) - sp.csr_matrix(pair[1]))
    return bool(difference.max() <= 1e-6 * abs(sp.csr_matrix(pair[1])).max())


def _by_layer(fit: Fit, modality: str, layer: str, use: np.ndarray) -> Normalised:
    """What `pp.normalise` has written of a layer, and the counts behind it."""
    mod = fit.modalities[modality]
    record, where = mod.uns[layer], f"uns[{layer!r}] of {modality!r}"
    key, source = size_key(layer), stored.text(record, "size_factors", where=where)
    size = stored.array(mod.obs, key, (mod.n_obs,), where=f"obs of {modality!r}")
    positive(size, what=f"obs[{key!r}] of {modality!r}")
    log = stored.flag(record, "log", where=where)
    same_rows = stored.text(record, "holdout_key", where=where) == fit.param("holdout_key")
    peeked = stored.flag(record, "learned", where=where) and not same_rows
    return Normalised(
        counts=_counts_behind(fit, modality, layer, size, log=log)[:, use[used(fit, modality)]],
        size=size,
        by_total=source == "total",
        log=log,
        peeks=layer if peeked and held_out(fit, modality).any() else None,
    )


def _counts_behind(
    fit: Fit, modality: str, made: str, size: np.ndarray, *, log: bool
) -> sp.csr_matrix:
    """Counts [n, P] of the features that the fit has used, from the layer that was normalised or where a copy of it is."""
    mod, totals = fit.modalities[modality], fit.total(modality)
    source = stored.text(mod.uns[made], "layer", where=f"uns[{made!r}] of {modality!r}")
    for layer in dict.fromkeys([source, None, *mod.layers]):
        counts = _counts(mod, modality, layer, used(fit, modality))
        if counts is None:
            continue
        values = normalised(counts, size, log=log)
        found = row_sums(values)
        if totals is None or same_totals(fit, modality, found, totals):
            return counts
    place = "X" if source is None else f"layer {source!r}"
    remedy = "Put the counts into a layer of any name, or run gpnsf.pp.normalise and the fit again"
    rule = f"the counts behind layer {made!r} of modality {modality!r}"
    raise ValueError(problem(rule, f"other values in {place}, and no copy in a layer", remedy))


def _counts(
    mod: AnnData, modality: str, layer: str | None, use: np.ndarray
) -> sp.csr_matrix | None:
    """The counts in a layer; None where there are none."""
    try:
        return read_counts(mod, layer=layer, likelihood="poisson", modality=modality, use=use)
    except (KeyError, TypeError, ValueError):
        return None
