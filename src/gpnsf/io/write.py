"""The way out: a Posterior into the slots of MuData or AnnData, all of them or none."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, ImplicitModificationWarning
from mudata import MuData

from gpnsf import checks
from gpnsf.core import stored
from gpnsf.core.scores import embedding
from gpnsf.core.scores.simplex import feature_importance, observation_importance, top_factor
from gpnsf.core.types import Posterior
from gpnsf.io.companions import is_record
from gpnsf.io.objects import entries, modality_of
from gpnsf.io.read import Layout
from gpnsf.keys import Keys

__all__ = ["Slot", "check_free", "check_key", "factor_names", "on_all_features", "put", "write"]

RESERVED = (".", "..", "_index")  # names that mean something else in files

Slot = tuple[AnnData | MuData, str, str, Any]  # holder, attribute, key, value


def write(
    data: AnnData | MuData,
    posterior: Posterior,
    layout: Layout,
    *,
    keys: Keys,
    info: Mapping[str, object],
) -> None:
    """Fill every slot of a fit; what an earlier fit left under the same key is removed.

    ``info`` joins ``uns`` and holds at least the arguments of the fit, ``params``. Everything is prepared before the
    object is touched.
    """
    mods = {name: modality_of(data, name) for name in layout.modalities}
    slots: list[Slot] = [(data, "uns", keys.uns, _record(posterior, layout, info))]
    arrays = _arrays(posterior, keys, stored.modality_weights(info))
    slots += _rows(data, layout.position, posterior.loadings, arrays, posterior, keys)
    for name, mod in mods.items():
        if mod is not data:
            slots += _rows(
                mod, layout.rows[name], {name: posterior.loadings[name]}, arrays, posterior, keys
            )
        slots.append((mod, "obs", keys.total, layout.totals[name].astype(np.float32)))
        slots += _features(mod, name, layout.features[name], posterior, keys)
    put(data, slots, instead_of=keys.slots)


def put(
    data: AnnData | MuData, slots: Iterable[Slot], *, instead_of: Mapping[str, Sequence[str]]
) -> None:
    """Put values into their slots, all of them or none, instead of the slots named in the object and its modalities.

    Whatever goes wrong in between, Ctrl-C included, the object is as it was before.
    """
    slots = list(slots)
    holders = [data, *data.mod.values()] if isinstance(data, MuData) else [data]
    with warnings.catch_warnings():
        # a modality that is a view becomes actual here; the MuData holds it, so nothing is lost
        warnings.simplefilter("ignore", ImplicitModificationWarning)
        for holder in holders:
            if holder.is_view:
                holder.obs = holder.obs.copy()
        before = [
            (holder, name, _held(holder, name))
            for holder in holders
            for name in _attributes(holder)
        ]
        try:
            for holder in holders:
                _erase(holder, instead_of)
            for holder, attribute, key, value in slots:
                getattr(holder, attribute)[key] = value
        except BaseException:
            for holder, attribute, held in before:
                _restore(holder, attribute, held)
            raise


def _attributes(holder: AnnData | MuData) -> tuple[str, ...]:
    """Where a result may go."""
    common = ("obs", "var", "obsm", "varm", "uns")
    return common if isinstance(holder, MuData) else (*common, "layers")


def _held(holder: AnnData | MuData, attribute: str) -> pd.DataFrame | dict[str, object]:
    """Everything in a part of an object, not copied itself; X is no layer here."""
    mapping = getattr(holder, attribute)
    if isinstance(mapping, pd.DataFrame):
        return mapping.copy(deep=False)
    return entries(holder, attribute)


def _restore(
    holder: AnnData | MuData, attribute: str, held: pd.DataFrame | dict[str, object]
) -> None:
    """Undo what has happened to a part of an object since it was held."""
    if isinstance(held, pd.DataFrame):
        setattr(holder, attribute, held)
    else:
        mapping = getattr(holder, attribute)
        for key in [key for key in mapping if key is not None]:
            del mapping[key]
        mapping.update(held)


def factor_names(is_spatial: np.ndarray) -> list[str]:
    """Names of the factors: ``spatial_1``, .., ``nonspatial_1``, .."""
    kinds = np.where(is_spatial, "spatial", "nonspatial")
    return [f"{kind}_{np.sum(kinds[: k + 1] == kind)}" for k, kind in enumerate(kinds)]


def _arrays(
    posterior: Posterior, keys: Keys, weights: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """What there is of each row of the dataset: factors [N, K] and the embedding [N, d]."""
    used = embedding.factors_used(posterior.is_spatial)
    loadings = {name: W[:, used] for name, W in posterior.loadings.items()}
    return {
        keys.factors: posterior.mean,
        keys.smooth: posterior.smooth,
        keys.std: posterior.std,
        keys.embedding: embedding.coordinates(posterior.coarse[:, used], loadings, weights),
    }


def _rows(
    holder: AnnData | MuData,
    rows: np.ndarray,
    loadings: dict[str, np.ndarray],
    arrays: dict[str, np.ndarray],
    posterior: Posterior,
    keys: Keys,
) -> list[Slot]:
    """Factors and importance of the rows [n] that a holder has."""
    importance = observation_importance(posterior.mean[rows], loadings, posterior.is_spatial)
    return [
        *((holder, "obsm", key, array[rows].astype(np.float32)) for key, array in arrays.items()),
        (holder, "obs", keys.importance, importance.astype(np.float32)),
    ]


def _features(
    mod: AnnData, name: str, used: np.ndarray, posterior: Posterior, keys: Keys
) -> list[Slot]:
    """Loadings and what belongs to features [P_full]; those that the core has not seen get 0, or ""."""
    loadings = posterior.loadings[name]
    top = np.full(len(used), "", dtype=object)
    top[used] = np.array([*factor_names(posterior.is_spatial), ""], dtype=object)[
        top_factor(loadings)
    ]
    columns = {
        keys.background: posterior.background[name],
        keys.importance: feature_importance(loadings, posterior.is_spatial),
        keys.importance_std: posterior.importance_std[name],
    }
    if name in posterior.dispersion:
        columns[keys.dispersion] = posterior.dispersion[name]
    slots: list[Slot] = [
        (mod, "varm", keys.loadings, on_all_features(loadings, used)),
        (mod, "varm", keys.loadings_std, on_all_features(posterior.loadings_std[name], used)),
    ]
    if name in posterior.multipliers:
        slots.append(
            (mod, "varm", keys.batch, on_all_features(posterior.multipliers[name], used, fill=1.0))
        )
    return [
        *slots,
        (mod, "var", keys.top_factor, top),
        *((mod, "var", key, on_all_features(values, used)) for key, values in columns.items()),
    ]


def _with_signal(posterior: Posterior, name: str) -> int:
    """Features of a modality that have any rate."""
    return int(np.column_stack([posterior.loadings[name], posterior.background[name]]).any(1).sum())


def on_all_features(values: np.ndarray, used: np.ndarray, fill: float = 0.0) -> np.ndarray:
    """Scatter [P, ...] to all features [P_full, ...]."""
    full = np.full((len(used), *values.shape[1:]), fill, dtype=np.float32)
    full[used] = values
    return full


def _record(posterior: Posterior, layout: Layout, info: Mapping[str, object]) -> dict[str, object]:
    """The ``uns`` entry. ``field`` also holds the geometry that prediction needs: centre, scale and names of slices."""
    return _plain(
        {
            **info,
            "factor_names": factor_names(posterior.is_spatial),
            "is_spatial": posterior.is_spatial,
            "kernel": {
                "name": stored.record(info, "params")["kernel"],
                "lengthscale": posterior.lengthscale * layout.scale,
                "amplitude": posterior.amplitude,
            },
            "field": {
                **posterior.field,
                "centre": layout.centre,
                "scale": layout.scale,
                "libraries": layout.libraries,
            },
            "variance_explained": posterior.variance_explained,
            "likelihoods": layout.likelihoods,
            "modalities": layout.modalities,
            "batches": layout.batches,
            "n_features": {name: _with_signal(posterior, name) for name in layout.modalities},
        }
    )


def _plain(value: Any) -> Any:
    """What h5ad, h5mu and zarr can hold: tuples become lists, NumPy scalars Python ones."""
    if isinstance(value, Mapping):
        unwritable = [key for key in value if "/" in str(key)]
        if unwritable:
            remedy = "Rename it: files cannot hold such keys"
            raise ValueError(checks.problem("names without '/'", repr(unwritable[0]), remedy))
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.copy()
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        checks.problem(
            "plain values in `uns`", f"{type(value).__name__}", "Convert it to an array or string"
        )
    )


def _erase(holder: AnnData | MuData, slots: Mapping[str, Sequence[str]]) -> None:
    """Remove the slots of an earlier fit, and the copies of its columns that MuData has pulled from modalities."""
    pulled = [f"{name}:" for name in holder.mod] if isinstance(holder, MuData) else []
    for attribute, names in slots.items():
        mapping = getattr(holder, attribute)
        prefixes = ["", *pulled] if attribute in ("obs", "var") else [""]
        for key in [prefix + name for prefix in prefixes for name in names]:
            if key in mapping:
                del mapping[key]


def check_key(
    key: str,
    modalities: Iterable[str] = (),
    *,
    argument: str = "key_added",
    example: str = "gpnsf",
) -> None:
    """Check that a key can be written to files and that none of its slots shadows the mask of a modality."""
    remedy = f"Pass for example {argument}={example!r}"
    if not key or "/" in key or "\0" in key or key in RESERVED:
        rule = f"`{argument}` not empty, without '/', and none of {', '.join(map(repr, RESERVED))}, which files reserve"
        raise ValueError(checks.problem(rule, repr(key), remedy))
    reserved = set(modalities)
    clash = sorted({key, *Keys(key).slots["obsm"]} & reserved)
    if clash:
        rule = f"`{argument}` whose slots differ from the names of the modalities, which MuData reserves"
        found = f"{key!r}, which gives a slot the name {clash[0]!r}"
        raise ValueError(checks.problem(rule, found, f"Pass for example {argument}='{key}_fit'"))


def check_free(
    data: AnnData | MuData, name: str, *, argument: str = "key_added", example: str
) -> None:
    """Check the name of a new slot: files can hold it, and no fit has a slot of this name."""
    remedy = f"Pass for example {argument}={example!r}"
    check_key(name, argument=argument, example=example)
    for key, value in data.uns.items():
        if is_record(value) and name in {name for own in Keys(key).slots.values() for name in own}:
            rule = f"`{argument}` other than the slots of the fits"
            raise ValueError(checks.problem(rule, f"{name!r}, a slot of fit {key!r}", remedy))
