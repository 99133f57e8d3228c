"""Tables of a SpatialData, AnnData by modality, and AnnData that are read lazily: lent as one object in memory.

A function sees an AnnData or a MuData that shares the arrays of the tables. What it has written is
brought back into the tables when it has ended well; until then they are as they were.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from gpnsf.arguments import all_plain, check_given, known_arguments
from gpnsf.checks import choices, problem
from gpnsf.core.torch_state import usual_torch
from gpnsf.io import names
from gpnsf.io.companions import is_record
from gpnsf.io.objects import entries, no_pulling, rows_of
from gpnsf.io.pictures import pictures, system_of
from gpnsf.keys import SPATIAL, Keys

__all__ = ["ATTRIBUTES", "choose", "joined", "lent", "place", "takes_tables"]

F = TypeVar("F", bound=Callable[..., Any])
Slots = dict[str, dict[str, object]]
ATTRIBUTES = "spatialdata_attrs"  # in uns of a table: what its rows annotate
TABLES = "tables"  # in the record of a fit: the names of its tables, by modality
FRAMES = ("obs", "var")
SLOTS = ("obsm", "varm", "obsp", "varp", "uns")
KINDS = ("rna", "atac")  # of tables that go together unasked


def _is_spatialdata(data: object) -> bool:
    """Whether an object is a SpatialData, which need not be installed."""
    return any(base.__module__.startswith("spatialdata.") for base in type(data).__mro__)


def takes_tables(function: F) -> F:
    """Let a function of an AnnData or MuData take a SpatialData, AnnData by modality, or lazy AnnData as well.

    With a SpatialData, it then takes ``table`` as :func:`lent` does.
    """
    signature = inspect.signature(function)
    first, known = next(iter(signature.parameters)), signature.parameters.get("key")
    draws = "img_key" in signature.parameters

    @wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        given = args[0] if args else options.get(first)
        table = options.pop("table", None) if _is_spatialdata(given) else None
        known_arguments(function, options)
        check_given(function, args, options)
        args, options = all_plain(args, options)
        bound = signature.bind(*args, **options)
        key = bound.arguments.get("key", "gpnsf" if known is None else known.default)
        with usual_torch(), lent(bound.arguments[first], table, key=key, images=draws) as one:
            bound.arguments[first] = one
            return function(*bound.args, **bound.kwargs)

    return called  # type: ignore[return-value]


@contextmanager
def lent(
    data: Any,
    table: str | Mapping[str, str] | None = None,
    *,
    key: str = "gpnsf",
    images: bool = False,
) -> Iterator[Any]:
    """Lend tables as one object: an AnnData for one table, a MuData for tables by modality; other objects as they are.

    Slots that the block has added or changed are written into the tables at its end: those of
    features into their table, those of observations and ``uns`` into every one.

    Parameters
    ----------
    data
        SpatialData, AnnData by name of modality, or AnnData; anything else is left for others to judge.
    table
        Name of a table of the SpatialData, or names by modality. Default: those of the fit ``key``, else
        the only table, else those whose names say RNA and ATAC.
    key
        Name of a fit.
    images
        Whether the tables of a SpatialData come with its images, in ``uns["spatial"]``.

    Raises
    ------
    ValueError
        If tables cannot be told, or places of observations cannot be found.
    KeyError
        If a table is absent.
    TypeError
        If ``table`` is passed with something that has no tables, or a value of a dict is not AnnData.
    """
    if table is not None and not _is_spatialdata(data):
        remedy = "Leave `table` out, or pass the SpatialData that has the tables"
        raise TypeError(problem("a SpatialData with `table`", type(data).__name__, remedy))
    named: dict[str, str] = {}
    if _is_spatialdata(data):
        named = (table is None and _fitted(data, key)) or choose(list(data.tables), table)
        owners = {name: data.tables[own] for name, own in named.items()}
    elif isinstance(data, dict):
        owners = _by_modality(data)
    elif isinstance(data, AnnData) and _is_lazy(data):
        owners = {"": data}
    else:
        yield data
        return
    copies = {name: _shallow(owner) for name, owner in owners.items()}
    for name, own in named.items():
        if SPATIAL not in copies[name].obsm:
            place(copies[name], data, own)
        if images and SPATIAL not in copies[name].uns:
            copies[name].uns[SPATIAL] = pictures(data, _regions(copies[name]))
    before = {name: _slots(copy) for name, copy in copies.items()}
    with joined(copies, named) as one:
        yield one
    for name, owner in owners.items():
        _write(owner, copies[name], before[name])


@contextmanager
def joined(mods: Mapping[str, AnnData], named: Mapping[str, str]) -> Iterator[AnnData | MuData]:
    """Join AnnData to a MuData and hand down to each what becomes new on it; one named "" stays alone.

    ``named`` are the names of their tables, which the record of a new fit keeps.
    """
    one = mods[""] if "" in mods else _together(mods)
    before = _slots(one)
    yield one
    _remember(one, before, named)
    if isinstance(one, MuData):
        _hand_down(one, before)


def choose(there: list[str], table: str | Mapping[str, str] | None) -> dict[str, str]:
    """Names of tables by modality out of those there are; "" stands for a single one that is an AnnData by itself."""
    if table is None:
        return _usual(there)
    named = {"": table} if isinstance(table, str) else dict(table)
    choices(list(named.values()), there, what="`table`", where="the SpatialData")
    return named


def _fitted(sdata: Any, key: str) -> dict[str, str]:
    """Names of the tables that hold a fit, if there is one."""
    found = {
        tuple(sorted(record[TABLES].items()))
        for table in sdata.tables.values()
        if isinstance(record := table.uns.get(Keys(key).uns), Mapping) and TABLES in record
    }
    if len(found) > 1:
        shown = "; ".join(str(dict(names)) for names in sorted(found))
        remedy = "Pass one of their tables, sdata.tables[...], or AnnData by modality"
        raise ValueError(problem(f"one fit {key!r} in the SpatialData", f"fits of {shown}", remedy))
    return dict(next(iter(found), ()))


def _usual(there: list[str]) -> dict[str, str]:
    """The only table, or the one of each kind."""
    if len(there) == 1:
        return {"": there[0]}
    kinds = {kind: names.of_kind(kind, there) for kind in KINDS}
    if all(len(found) == 1 for found in kinds.values()):
        return {kind: found[0] for kind, found in kinds.items()}
    remedy = "Pass table='NAME', or table={'rna': 'NAME', 'atac': 'NAME'}"
    raise ValueError(problem("a SpatialData with one table, or `table`", f"tables {there}", remedy))


def _by_modality(data: dict[Any, Any]) -> dict[str, AnnData]:
    """AnnData by name of modality, checked."""
    other = [
        f"{type(value).__name__} under {name!r}"
        for name, value in data.items()
        if not (isinstance(name, str) and isinstance(value, AnnData))
    ]
    if other or not data:
        remedy = "Pass {'rna': adata, 'atac': adata}"
        found = other[0] if other else "an empty dict"
        raise TypeError(problem("AnnData by name of modality", found, remedy))
    return data


def _is_lazy(adata: AnnData) -> bool:
    """Whether annotations of an AnnData are still in a file."""
    return not isinstance(adata.obs, pd.DataFrame)


def _regions(copy: AnnData) -> list[str]:
    """Names of the shapes or labels that a table annotates."""
    about = copy.uns.get(ATTRIBUTES)
    return [] if about is None else list(pd.unique(copy.obs[about["region_key"]].astype(str)))


def place(copy: AnnData, sdata: Any, table: str) -> None:
    """Give a table coordinates: the centroids of the shapes or labels that it annotates, if it does."""
    about = copy.uns.get(ATTRIBUTES)
    if about is None:
        return
    region = copy.obs[about["region_key"]].astype(str)
    centroids = pd.concat([_centroids(sdata, name) for name in pd.unique(region)])
    wanted = pd.MultiIndex.from_arrays([region, copy.obs[about["instance_key"]]])
    absent = copy.obs_names[~wanted.isin(centroids.index)]
    if len(absent):
        found = f"none for {len(absent)} of {copy.n_obs}, the first {absent[0]!r}"
        remedy = "Subset the table to what its regions hold, or store obsm['spatial'] in it"
        rule = f"a shape or label for each observation of table {table!r}"
        raise ValueError(problem(rule, found, remedy))
    copy.obsm[SPATIAL] = centroids.loc[wanted].to_numpy(dtype=np.float64)


def _centroids(sdata: Any, element: str) -> pd.DataFrame:
    """Coordinates of the shapes or labels of an element, by its name and their own."""
    from spatialdata import get_centroids

    system = system_of(sdata[element])
    points = get_centroids(sdata[element], coordinate_system=system).compute()
    return points.set_axis(pd.MultiIndex.from_product([[element], points.index]))


def _shallow(adata: AnnData) -> AnnData:
    """An AnnData with the same arrays, whose slots can be changed without changing those of the other."""
    slots = {
        name: {key: _in_memory(value) for key, value in getattr(adata, name).items()}
        for name in SLOTS
    }
    frames = {name: _in_memory(getattr(adata, name)).copy(deep=False) for name in FRAMES}
    return AnnData(X=adata.X, layers=entries(adata, "layers"), **frames, **slots)


def _in_memory(value: Any) -> Any:
    """Annotations that are read lazily."""
    if hasattr(value, "compute"):
        return value.compute()
    return value.to_memory() if hasattr(value, "to_memory") else value


def _together(mods: Mapping[str, AnnData]) -> MuData:
    """One MuData, with what earlier calls have left in every table: slots of fits, and ``uns``."""
    with no_pulling():
        mdata = MuData(dict(mods))
    first = next(iter(mods.values()))
    mdata.uns.update(
        {key: first.uns[key] for key in first.uns if all(key in mod.uns for mod in mods.values())}
    )
    fits = [key for key, record in mdata.uns.items() if is_record(record)]
    for key in fits:
        for slot in Keys(key).slots["obsm"]:
            if all(slot in mod.obsm for mod in mods.values()):
                mdata.obsm[slot] = _gathered(
                    mdata, {name: mod.obsm[slot] for name, mod in mods.items()}
                )
    return mdata


def _gathered(mdata: MuData, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Values [N, ...] from those of the cells of each modality."""
    first = next(iter(parts.values()))
    values = np.zeros((mdata.n_obs, *first.shape[1:]), first.dtype)
    for name, part in parts.items():
        values[rows_of(mdata, name, mdata.mod[name])] = part
    return values


def _slots(data: AnnData | MuData) -> Slots:
    """What there is, by key; nothing is copied."""
    there = SLOTS if isinstance(data, MuData) else (*SLOTS, "layers")
    return {name: entries(data, name) for name in (*FRAMES, *there)}


def _changed(
    data: AnnData | MuData, before: Slots, name: str
) -> tuple[dict[str, object], list[str]]:
    """Values of a part of an object that are new since, and keys that have gone."""
    now = entries(data, name)
    new = {
        key: value
        for key, value in now.items()
        if not (key in before[name] and _same(before[name][key], value))
    }
    return new, [key for key in before[name] if key not in now]


def _same(one: Any, other: Any) -> bool:
    """Whether a slot is as it was."""
    return one.equals(other) if isinstance(one, pd.Series) else one is other


def _remember(one: AnnData | MuData, before: Slots, named: Mapping[str, str]) -> None:
    """Write the names of the tables into the record of a new fit."""
    new, _ = _changed(one, before, "uns")
    if named:
        one.uns.update(
            {
                key: {**record, TABLES: dict(named)}
                for key, record in new.items()
                if is_record(record)
            }
        )


def _hand_down(mdata: MuData, before: Slots) -> None:
    """Give every modality what is new on the MuData."""
    for name, mod in mdata.mod.items():
        rows = rows_of(mdata, name, mod)
        for part in ("obs", "obsm", "uns"):
            new, gone = _changed(mdata, before, part)
            target = getattr(mod, part)
            for key in gone:
                target.pop(key, None)
            for key, value in new.items():
                target[key] = value if part == "uns" else _rows(value, rows, mod.obs_names)


def _rows(value: Any, rows: np.ndarray, obs_names: pd.Index) -> Any:
    """Some rows of an array or table."""
    return value[rows] if isinstance(value, np.ndarray) else value.iloc[rows].set_axis(obs_names)


def _write(owner: AnnData, copy: AnnData, before: Slots) -> None:
    """Write what has changed in a copy into the table that it was made of."""
    for part in before:
        new, gone = _changed(copy, before, part)
        target = getattr(owner, part)
        for key in gone:
            del target[key]
        for key, value in new.items():
            target[key] = value
