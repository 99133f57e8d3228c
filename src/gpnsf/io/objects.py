"""MuData or AnnData opened for reading: its modalities, the rows of their cells, and what is stored about rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from gpnsf import checks
from gpnsf.core.scores.metrics import spot_distance
from gpnsf.io import names
from gpnsf.keys import SPATIAL

__all__ = [
    "Opened",
    "editable",
    "entries",
    "gather",
    "holders",
    "modality_of",
    "no_pulling",
    "open_data",
    "owner",
    "read_coords",
    "read_labels",
    "rows_of",
    "spot_distance",
]


_logger = logging.getLogger("gpnsf")
DEFAULT_KINDS = ("rna", "atac")  # that are read without being asked for


@dataclass(frozen=True)
class Opened:
    """An object opened for reading."""

    data: AnnData | MuData
    mods: dict[str, AnnData]  # all modalities; an AnnData is its own only one
    rows: dict[str, np.ndarray]  # for each of them, [n] row of the object of each cell
    names: tuple[str, ...]  # the modalities to be read


def open_data(
    data: AnnData | MuData,
    *,
    modalities: Sequence[str] | None = None,
    likelihoods: str | Mapping[str, str] | None = None,
    writes: bool = False,
) -> Opened:
    """Check the object itself, with ``writes`` that results can go into it, and find its modalities.

    An AnnData is named after ``modalities`` or the only entry of ``likelihoods``, else what its feature types say, else "rna". Of a MuData, those whose
    name says that they are RNA or ATAC are read if there are any, else everything.
    """
    owner(data, writes=writes)
    wanted = _wanted(modalities)
    mods = dict(data.mod) if isinstance(data, MuData) else {_name(data, likelihoods, wanted): data}
    _check_object(data)
    for name, mod in mods.items():
        _check_modality(name, mod)
    checks.choices(wanted or (), mods, what="modalities", where="the data")
    chosen = wanted or _known(list(mods)) or list(mods)
    return Opened(
        data, mods, {name: rows_of(data, name, mod) for name, mod in mods.items()}, tuple(chosen)
    )


def _known(there: list[str]) -> list[str]:
    """RNA and then ATAC, by the names that the field gives them."""
    return [name for kind in DEFAULT_KINDS for name in names.of_kind(kind, there)]


def owner(data: Any, *, writes: bool = True) -> None:
    """Check the type of an object, and with ``writes`` that results written to it stay."""
    if not isinstance(data, AnnData | MuData):
        remedy = (
            "Pass the object itself; for a file, what mudata.read_h5mu or anndata.read_h5ad returns"
        )
        raise TypeError(
            checks.problem("`data` to be AnnData or MuData", type(data).__name__, remedy)
        )
    if writes and data.is_view:
        found = f"a view of {data.n_obs} observations"
        remedy = "Pass data.copy(): results written to a view never reach its parent"
        raise ValueError(checks.problem(f"{type(data).__name__} that owns its data", found, remedy))


def in_memory(data: AnnData | MuData, what: str) -> None:
    """Check that an object is not backed by a file, of which what is to be done would need a copy."""
    if getattr(data, "isbacked", False):
        rule = f"an object in memory, of which {what} can be made"
        raise ValueError(
            checks.problem(rule, "one that is backed by a file", "Pass data.to_memory()")
        )


def editable(data: AnnData | MuData, *, copy: bool) -> AnnData | MuData:
    """The object itself or its copy; a MuData is copied without pulling columns out of its modalities."""
    if not copy:
        return data
    in_memory(data, "a copy")
    with no_pulling():
        return data.copy()


def modality_of(data: AnnData | MuData, name: str) -> AnnData:
    """A modality; an AnnData is its own only one."""
    return data.mod[name] if isinstance(data, MuData) else data


def entries(holder: AnnData | MuData, part: str) -> dict[str, object]:
    """Keys and values of a part of an object; new versions of anndata count X among the layers, without a name."""
    return {key: value for key, value in getattr(holder, part).items() if key is not None}


def no_pulling() -> AbstractContextManager[Any]:
    """Keep MuData from copying columns of its modalities; old versions cannot be told."""
    if not hasattr(mudata, "set_options"):
        return nullcontext()
    options: AbstractContextManager[Any] = mudata.set_options(pull_on_update=False)
    return options


def read_labels(opened: Opened, key: str | None, *, argument: str = "library_key") -> np.ndarray:
    """Name [N] of the slice or batch of each row, from an obs column; "" without one."""
    if key is None:
        return np.full(opened.data.n_obs, "", dtype=object)
    return gather(
        opened, "obs", key, lambda column, *_: checks.labels(column, name=key), argument=argument
    )


def read_coords(opened: Opened, key: str = SPATIAL) -> np.ndarray:
    """Coordinates [N, D] in the data's own units, float64."""

    def check(values: Any, where: str, holder: AnnData | MuData) -> np.ndarray:
        return checks.coordinates(values, where=where, obs_names=holder.obs_names)

    return gather(opened, "obsm", key, check, argument="spatial_key")


def holders(opened: Opened, slot: str, key: str) -> dict[str, tuple[AnnData | MuData, np.ndarray]]:
    """What has the key, with its rows: the object alone, else modalities, those to be read first."""
    if key in getattr(opened.data, slot):
        return {"the data": (opened.data, np.arange(opened.data.n_obs))}
    order = dict.fromkeys([*opened.names, *opened.mods])
    return {
        f"modality {name!r}": (opened.mods[name], opened.rows[name])
        for name in order
        if key in getattr(opened.mods[name], slot)
    }


def gather(
    opened: Opened,
    slot: str,
    key: str,
    check: Callable[[Any, str, AnnData | MuData], np.ndarray],
    *,
    argument: str = "",
) -> np.ndarray:
    """Values [N] or [N, D] under a key of the object, else of its modalities, which agree where they overlap.

    ``check`` takes what is stored, where, and its holder, and returns an array; ``argument`` is how the user named the key, if
    they did.
    """
    found = holders(opened, slot, key)
    if not found:
        everything = (opened.data, *opened.mods.values())
        masks = opened.mods if isinstance(opened.data, MuData) else ()  # MuData keeps them there
        known = dict.fromkeys(
            str(name)
            for holder in everything
            for name in getattr(holder, slot)
            if name not in masks
        )
        remedy = (
            f"Add it, or name another with `{argument}`"
            if argument
            else "Restore it, or run `gpnsf.tl.fit` again"
        )
        if argument == "spatial_key":
            remedy += ", or fit a model that needs none, model='pnmf' or 'fa'"
        checks.choices(
            [key], known, what=f"`{argument}`" if argument else "the key", where=slot, remedy=remedy
        )
    parts = []
    for where, (holder, rows) in found.items():
        stored = (
            checks.column(holder.obs, key, where=f"obs of {where}")
            if slot == "obs"
            else getattr(holder, slot)[key]
        )
        parts.append((where, rows, check(stored, f"{slot}[{key!r}] of {where}", holder)))
    values = np.zeros((opened.data.n_obs, *parts[0][2].shape[1:]), parts[0][2].dtype)
    covered = np.zeros(len(values), dtype=bool)
    for where, rows, part in parts:
        again = covered[rows]
        _agree(values[rows[again]], part[again], f"{slot}[{key!r}]", where)
        values[rows[~again]] = part[~again]
        covered[rows] = True
    if not covered.all():
        lost = opened.data.obs_names[~covered]
        none = f"none for {len(lost)} observation(s), the first {str(lost[0])!r}"
        remedy = f"Write {slot}[{key!r}] on the MuData itself, for all observations"
        raise ValueError(checks.problem(f"{slot}[{key!r}] for every observation", none, remedy))
    _logger.debug("%s[%r] is read from %s", slot, key, ", ".join(found))
    return values


def _wanted(modalities: Any) -> list[str] | None:
    if modalities is None:
        return None
    names = [modalities] if isinstance(modalities, str) else modalities
    rule = "`modalities` to be names of modalities"
    remedy = "Pass for example modalities=['rna', 'atac']"
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            checks.problem(rule, f"{modalities!r} of type {type(modalities).__name__}", remedy)
        )
    if not names or len(set(names)) < len(names):
        raise ValueError(
            checks.problem(f"{rule}, at least one and each once", repr(modalities), remedy)
        )
    return list(names)


def _name(adata: AnnData, likelihoods: Any, wanted: list[str] | None) -> str:
    types = adata.var.get(names.FEATURE_TYPES, pd.Series(dtype=str)).astype(str)
    usual = [names.kind_of_types(types.unique()) or "rna"]
    named = wanted or (list(likelihoods) if isinstance(likelihoods, Mapping) else []) or usual
    if len(named) > 1:
        remedy = "Name one modality, or pass a MuData that holds all of them"
        raise ValueError(
            checks.problem("one modality for AnnData", f"{len(named)}: {named}", remedy)
        )
    return named[0]


def _check_object(data: AnnData | MuData) -> None:
    if isinstance(data, MuData) and (not data.mod or data.axis == 1):
        found = "MuData with axis=1" if data.mod else "MuData without modalities"
        remedy = "Build it by MuData({'rna': ..., 'atac': ...}), whose modalities share their observations"
        raise ValueError(
            checks.problem("modalities that share the axis of observations", found, remedy)
        )
    if not data.n_obs:
        remedy = "Check the filter that was applied last"
        raise ValueError(checks.problem("data with observations", f"shape {data.shape}", remedy))


def _check_modality(name: str, mod: Any) -> None:
    if not isinstance(mod, AnnData):
        found, remedy = f"{type(mod).__name__} in {name!r}", "Take the nested modalities out"
        raise TypeError(checks.problem("every modality to be AnnData", found, remedy))
    if "/" in name or not name:
        remedy = "Rename the modality: such names cannot be written to files"
        raise ValueError(
            checks.problem("names of modalities without '/' and not empty", repr(name), remedy)
        )
    if not mod.obs_names.is_unique:
        found = f"{int(mod.obs_names.duplicated().sum())} duplicate name(s) in modality {name!r}"
        remedy = "Call .obs_names_make_unique() on it, before a MuData is built from it"
        raise ValueError(checks.problem("unique obs_names", found, remedy))


def rows_of(data: AnnData | MuData, name: str, mod: AnnData) -> np.ndarray:
    """Row of the object of each cell of a modality."""
    if isinstance(data, AnnData):
        return np.arange(data.n_obs)
    # obsmap counts from 1 with 0 for an absent cell, and has shape (n, 1) in some versions of mudata
    position = (
        np.asarray(data.obsmap[name]).ravel().astype(np.int64)
        if name in data.obsmap
        else np.zeros(0, np.int64)
    )
    present = np.flatnonzero(position)
    fresh = len(position) == data.n_obs and np.array_equal(
        np.sort(position[present]), np.arange(1, mod.n_obs + 1)
    )
    if not fresh or not (mod.obs_names[position[present] - 1] == data.obs_names[present]).all():
        found = f"{mod.n_obs} observations in modality {name!r} that the {data.n_obs} of the MuData no longer describe"
        remedy = "Call data.update() after changing a modality"
        raise ValueError(checks.problem("a MuData that is up to date", found, remedy))
    rows = np.empty(mod.n_obs, dtype=np.int64)
    rows[position[present] - 1] = present
    return rows


def _agree(first: np.ndarray, second: np.ndarray, what: str, where: str) -> None:
    """Check that a second source says the same [n, ...] as what has been gathered."""
    rule = f"modalities that agree on {what}"
    remedy = "Write it on the MuData itself: that of the modalities is then ignored"
    if first.shape != second.shape:
        found = f"{second.shape[1]} column(s) in {where} and {first.shape[1]} before"
        raise ValueError(checks.problem(rule, found, remedy))
    if not len(first):
        return
    size = ""
    if first.dtype.kind == "f":
        gap = np.abs(first - second).reshape(len(first), -1).max(axis=1)
        # float32 and float64 copies of one slide do agree
        differ = gap > 1e-5 * np.ptp(first, axis=0).max()
        size = f", by up to {gap.max():g}"
    else:
        lost, again = pd.isna(first), pd.isna(second)
        known, differ = ~(lost | again), lost != again
        differ[known] = first[known] != second[known]
    if differ.any():
        found = f"{int(differ.sum())} of {len(differ)} shared observation(s) that differ in {where}{size}"
        raise ValueError(checks.problem(rule, found, remedy))
