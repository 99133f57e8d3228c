"""What new data take from a fit: features matched by name, and loadings in the unit of its size factors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from gpnsf import checks
from gpnsf.core import stored
from gpnsf.core.families import FAMILIES
from gpnsf.core.scores.expected import expected
from gpnsf.core.types import Given
from gpnsf.io import measured
from gpnsf.io.chosen import first_names, listed
from gpnsf.io.fits import Fit
from gpnsf.io.objects import modality_of, open_data, rows_of
from gpnsf.io.read import Layout
from gpnsf.io.sizes import in_column

__all__ = ["Matched", "given", "match", "mean_size"]

SMALLEST = 1e-12  # of what is divided by

_logger = logging.getLogger("gpnsf")


@dataclass(frozen=True)
class Matched:
    """Features of new data that a fit knows, by modality."""

    use: dict[str, np.ndarray]  # [P_new] bool: features of the new data
    source: dict[str, np.ndarray]  # [P] position in the fit of each of these
    missing: dict[str, pd.Index]  # features with signal in the fit that the new data lack


def match(data: AnnData | MuData, fit: Fit, modalities: Sequence[str] | str | None) -> Matched:
    """Find the features of a fit in new data, and tell which are missing."""
    use, source, missing = {}, {}, {}
    for name, mod in _shared(data, fit, modalities).items():
        use[name], source[name], missing[name] = _match(mod.var_names, fit, name)
    n_common, n_factors = sum(map(len, source.values())), len(fit.names)
    if n_common < n_factors:
        shown = "; ".join(_shown(fit, name, data) for name in use)
        rule = f"at least {n_factors} features in common with the fit, as many as it has factors"
        remedy = "Rename the features in var_names as in the fit"
        raise ValueError(checks.problem(rule, f"{n_common} ({shown})", remedy))
    for name, lost in missing.items():
        if len(lost):
            _logger.warning(
                "%d of the %d features of modality %r that the fit knows are missing in the new data (%s): factors are found without "
                "them. If you expected these features, compare the names in var_names.",
                len(lost),
                len(lost) + len(source[name]),
                name,
                first_names(lost),
            )
    some = {name for name in use if len(source[name])}
    return Matched(*({n: own[n] for n in own if n in some} for own in (use, source, missing)))


def _shared(
    data: AnnData | MuData, fit: Fit, modalities: Sequence[str] | str | None
) -> dict[str, AnnData]:
    """The modalities that the fit and the new data have."""
    wanted = None if modalities is None else listed(modalities, "modalities")
    if isinstance(data, AnnData) and wanted is None and len(fit.modalities) == 1:
        wanted = list(fit.modalities)
    elif isinstance(data, MuData) and wanted is None:
        wanted = [name for name in fit.modalities if name in data.mod] or None
    opened = open_data(data, modalities=wanted)
    there = {name: opened.mods[name] for name in opened.names}
    if unknown := [name for name in there if name not in fit.modalities]:
        rule = f"modalities of the fit, {list(fit.modalities)}"
        remedy = f"Call them as in the fit; for AnnData, pass modalities={list(fit.modalities)[:1]}"
        raise ValueError(checks.problem(rule, f"{unknown} in the new data", remedy))
    return there


def _match(names: pd.Index, fit: Fit, modality: str) -> tuple[np.ndarray, np.ndarray, pd.Index]:
    """One modality: features [P_new] bool, positions [P] in the fit, and features that are missing."""
    known = fit.modalities[modality].var_names
    for index, where in ((names, "the new data"), (known, "the fit")):
        if not index.is_unique:
            twice = index[index.duplicated()][0]
            rule = f"unique names of features of modality {modality!r} in {where}"
            remedy = "Call var_names_make_unique() on both objects before the fit"
            raise ValueError(checks.problem(rule, f"{str(twice)!r} more than once", remedy))
    seen = known[measured.used(fit, modality)]
    use = np.asarray(names.isin(seen))
    return use, known.get_indexer(names[use]), seen[~seen.isin(names)]


def _shown(fit: Fit, modality: str, data: AnnData | MuData) -> str:
    """The first names on either side."""
    mod = modality_of(data, modality)
    known = fit.modalities[modality].var_names
    return (
        f"{modality}: {first_names(mod.var_names)} in the new data, {first_names(known)} in the fit"
    )


def mean_size(
    fit: Fit, matched: Matched, data: AnnData | MuData, layout: Layout, source: str | None
) -> dict[str, float]:
    """Mean size factor of the new cells of each modality, in the unit of the fit.

    1 where the fit has had size factors of another kind, and where there are none.
    """
    sizes = {}
    for name in layout.modalities:
        signed = FAMILIES[fit.likelihoods[name]].signed
        if source is None or signed:
            sizes[name] = 1.0
        elif source == "total":
            one = _total_of_one(fit, name, matched.source[name])
            sizes[name] = float(layout.totals[name].mean() / max(one, SMALLEST))
        elif source == fit.param("size_factors"):
            train = ~measured.held_out(fit, name)
            own = _column(fit.data, fit.modalities[name], fit.rows[name], source)[train]
            mod = modality_of(data, name)
            new = _column(data, mod, rows_of(data, name, mod), source)
            sizes[name] = float(new.mean() / own.mean())
        else:
            sizes[name] = 1.0
    return sizes


def _column(data: AnnData | MuData, mod: AnnData, rows: np.ndarray, name: str) -> np.ndarray:
    """Size factors [n] of the cells of a modality."""
    if name not in data.obs:
        remedy = "Restore the column that the fit has read, or pass size_factors='total'"
        checks.choices([name], mod.obs, what="size factors", where="obs", remedy=remedy)
    column = data.obs[name].iloc[rows] if name in data.obs else mod.obs[name]
    return in_column(column, what=f"size factors in {name!r}")


def _total_of_one(fit: Fit, name: str, source: np.ndarray) -> float:
    """Total of some features [P] of a modality that the fit takes for size factor 1."""
    train = ~measured.held_out(fit, name)
    totals, factors = fit.total(name), fit.mean[fit.rows[name]][train].astype(np.float64)
    weights = np.ones(len(factors)) if totals is None else totals[train].astype(np.float64)
    mixture = (weights @ factors / weights.sum())[None]
    W, b = fit.loadings[name].astype(np.float64), fit.constant(name)
    every = expected(fit.likelihoods[name], mixture, W, b).sum()
    some = expected(fit.likelihoods[name], mixture, W[source], b[source]).sum()
    return float(some if totals is None else weights.mean() * some / every)


def given(fit: Fit, matched: Matched, scale: float) -> Given:
    """The fit on the features of new data, whose half-width is ``scale``, in the unit of the coordinates."""
    T, keys = int(fit.is_spatial.sum()), fit.keys

    def columns(key: str) -> dict[str, np.ndarray]:
        """A column [P] of each modality that has it."""
        return {
            name: fit.var(name, key)[at].astype(np.float32)
            for name, at in matched.source.items()
            if key in fit.modalities[name].var
        }

    certain = {name: np.zeros_like(W) for name, W in fit.loadings.items()}
    std = fit.loadings_std or certain
    importance_std = columns(keys.importance_std)
    field = fit.field
    return Given(
        loadings={name: fit.loadings[name][at] for name, at in matched.source.items()},
        loadings_std={name: std[name][at] for name, at in matched.source.items()},
        background=columns(keys.background),
        dispersion={
            name: values
            for name, values in columns(keys.dispersion).items()
            if FAMILIES[fit.likelihoods[name]].has_dispersion
        },
        importance_std={
            name: importance_std.get(name, np.zeros(len(at), np.float32))
            for name, at in matched.source.items()
        },
        lengthscale=fit.lengthscale[:T] / scale,
        amplitude=_amplitude(fit, T),
        nugget=np.asarray(field["nugget"])[np.asarray(field["order"])],
        scale=_scale(fit, T),
    )


def _scale(fit: Fit, T: int) -> np.ndarray:
    """By what [K] the fit has divided the factors of its model.

    That of nonspatial factors is not stored: their prior tells it, and where they have a sign they
    are taken as they are.
    """
    field = fit.field
    scale = np.ones(len(fit.names))
    scale[:T] = np.asarray(field["factor_mean"])[np.asarray(field["order"])]
    if field["nonnegative"]:
        scale[T:] = np.exp(0.5 * _stored_amplitude(fit)[T:] ** 2)
    return scale


def _amplitude(fit: Fit, T: int) -> np.ndarray:
    """Standard deviations [K] a priori of what the model calls log factors."""
    amplitude = _stored_amplitude(fit)
    if not fit.field["nonnegative"] and fit.std is not None:
        amplitude[T:] = np.sqrt((fit.mean**2 + fit.std**2).mean(0))[T:]
    return amplitude


def _stored_amplitude(fit: Fit) -> np.ndarray:
    """The amplitudes [K] of the record."""
    kernel = stored.record(fit.uns, "kernel", where=fit.where)
    shape, where = (len(fit.names),), "the kernel of the fit"
    found = stored.array(kernel, "amplitude", shape, low=0, high=30, where=where)
    return np.maximum(found.astype(np.float64), 1e-3)
