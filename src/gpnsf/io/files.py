"""Files of AnnData and MuData, opened without their counts, and given the slots of a fit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import anndata
import h5py
import mudata
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem, read_h5ad, read_zarr, sparse_dataset, write_elem
from mudata import MuData, read_h5mu

from gpnsf.checks import problem
from gpnsf.io.kinds import check_input, is_zarr, replacing, stored_tables
from gpnsf.io.objects import no_pulling
from gpnsf.io.tables import ATTRIBUTES, choose, joined, place
from gpnsf.keys import SPATIAL, Keys

__all__ = ["opened", "opened_tables", "read", "save", "write"]

MAPS = ("obsmap", "varmap")


def read(path: Path) -> AnnData | MuData:
    """A whole object: h5ad, h5mu or zarr."""
    check_input(path)
    readers = {".h5ad": read_h5ad, ".h5mu": read_h5mu, ".zarr": mudata.read_zarr, "": read_zarr}
    with _readable(path):
        return readers[path.suffix](path)


def write(data: AnnData | MuData, path: Path) -> None:
    """A whole object into h5ad, h5mu or zarr, whole or not at all."""
    # what was read with names of this kind must be written with them
    with replacing(path) as partial, anndata.settings.override(allow_write_nullable_strings=True):
        data.write_zarr(partial) if path.suffix == ".zarr" else data.write(partial)


@contextmanager
def opened(
    path: str | os.PathLike[str], *, spatial_key: str, writable: bool = True
) -> Iterator[AnnData | MuData]:
    """An object with annotations and coordinates in memory and counts in the file, which is open inside the block.

    With ``writable``, what would keep the slots from being written is found out here, before any work is done.
    """
    path = Path(path)
    check_input(path)
    if writable:
        _check_room(path)
    with ExitStack() as stack:
        with _readable(path):
            root = _open(path, "r")
            if isinstance(root, h5py.File):
                stack.enter_context(root)
            data = _object(root, spatial_key)
        yield data


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say of a file that it is damaged, whatever a reader raises: that is not documented."""
    try:
        yield
    except PermissionError:  # says nothing of what the file holds
        raise
    except Exception as error:
        remedy = "Write it again"
        if isinstance(error, MemoryError):  # or the file claims a length that it does not have
            remedy += ", or if it is that large, pass its path to gpnsf.tl.fit"
        rule = f"a readable {path.suffix[1:]} file"
        raise ValueError(problem(rule, f"{path}: {error}", remedy)) from error


@contextmanager
def opened_tables(
    path: Path, table: str | Mapping[str, str] | None, *, spatial_key: str, writable: bool = True
) -> Iterator[tuple[AnnData | MuData, dict[Path, AnnData | MuData]]]:
    """The same of a file, or of tables of a SpatialData store as one object; and what goes into which path afterwards."""
    stored = stored_tables(path)
    if stored is None:
        if table is not None:
            remedy = "Leave `table` out, or pass the path of a SpatialData store"
            raise ValueError(problem("a SpatialData store with `table`", str(path), remedy))
        with opened(path, spatial_key=spatial_key, writable=writable) as data:
            yield data, {path: data}
        return
    named = choose(list(stored), table)
    with ExitStack() as stack:
        mods = {
            name: stack.enter_context(
                opened(stored[own], spatial_key=spatial_key, writable=writable)
            )
            for name, own in named.items()
        }
        missing = {own: name for name, own in named.items() if spatial_key not in mods[name].obsm}
        if missing and spatial_key == SPATIAL:
            from spatialdata import read_zarr

            elements = read_zarr(path, selection=("shapes", "labels"))
            for own, name in missing.items():
                place(mods[name], elements, own)
        with joined(mods, named) as data:
            yield data, {stored[own]: mods[name] for name, own in named.items()}


def save(path: str | os.PathLike[str], data: AnnData | MuData, keys: Keys) -> None:
    """Write the slots of a fit into the file of the object that has them; nothing else in it changes.

    An HDF5 file is copied beside itself, and the copy takes its place when it is complete: at any moment the path names a
    whole file. If another process has put its own results there meanwhile, these are copied too. In a zarr store, arrays are
    files of their own: first the slots of an earlier fit go, then the new ones come, at the end the record in ``uns``, without
    which there is no fit.
    """
    path = Path(path).resolve()
    if is_zarr(path):
        _renew(_open(path, "r+"), data, keys, lambda: _consolidate(path))
        return
    with replacing(path) as partial:
        copied = None
        while copied != (copied := _version(path)):
            shutil.copyfile(path, partial)
            shutil.copymode(path, partial)
            with _open(partial, "r+") as root:
                _renew(root, data, keys, lambda: None)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())


def _version(path: Path) -> tuple[int, int, int]:
    """What is another number once a file was replaced or written to."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _check_room(path: Path) -> None:
    """The file may be changed, and has room beside it for its copy."""
    folder = path.resolve().parent
    writable = (
        os.access(path, os.W_OK) and path.stat().st_mode & 0o222 and os.access(folder, os.W_OK)
    )
    if not writable:
        remedy = "Allow writing to the file and its folder, or pass the object in memory"
        raise PermissionError(
            problem("a file that can be written to", f"{path}, which is read-only", remedy)
        )
    size, free = path.stat().st_size, shutil.disk_usage(folder).free
    if path.is_file() and free < size:
        found = f"{free / 1e9:.3g} GB free in {folder}, of {size / 1e9:.3g} GB"
        raise OSError(
            problem(
                f"room for a copy of {path.name} beside it", found, "Make room, or move the file"
            )
        )


def _open(path: Path, mode: Literal["r", "r+"]) -> Any:
    """The root group of a file."""
    if not is_zarr(path):
        return h5py.File(path, mode)
    import zarr

    return zarr.open_group(path, mode=mode, use_consolidated=False)


def _object(root: Any, spatial_key: str) -> AnnData | MuData:
    """What a root group holds."""
    if "mod" not in root:
        return AnnData(**_annotations(root, spatial_key), **_matrices(root))
    mods = {
        name: root["mod"][name] for name in root["mod"].attrs.get("mod-order", list(root["mod"]))
    }
    objects = {
        str(name): AnnData(**_annotations(mod, spatial_key), **_matrices(mod))
        for name, mod in mods.items()
    }
    maps = {name: read_elem(root[name]) for name in MAPS if name in root}
    with no_pulling():
        return MuData(
            objects, **_annotations(root, spatial_key), **maps, axis=int(root.attrs.get("axis", 0))
        )


def _annotations(group: Any, spatial_key: str) -> dict[str, object]:
    """What is small: tables of rows and features, and coordinates."""
    coords = (
        {spatial_key: read_elem(group["obsm"][spatial_key])}
        if spatial_key in group.get("obsm", {})
        else {}
    )
    uns = group.get("uns", {})
    about = {ATTRIBUTES: read_elem(uns[ATTRIBUTES])} if ATTRIBUTES in uns else {}
    frames = {"obs": read_elem(group["obs"]), "var": read_elem(group["var"])}
    return {**frames, "obsm": coords, "uns": about}


def _matrices(group: Any) -> dict[str, object]:
    """What may be large, as references into the file."""
    stored = group.get("layers", {})
    layers = {name: _matrix(stored[name]) for name in stored}
    X = _matrix(group["X"]) if "X" in group else None
    return {"X": X, "layers": {name: layer for name, layer in layers.items() if layer is not None}}


def _matrix(stored: Any) -> Any:
    """A sparse or dense matrix, or None for anything else."""
    kind = stored.attrs.get("encoding-type")
    if kind in ("csr_matrix", "csc_matrix"):
        return sparse_dataset(stored)
    return stored if kind == "array" else None


def _renew(root: Any, data: AnnData | MuData, keys: Keys, settle: Callable[[], None]) -> None:
    """What was there under our names goes, then the new slots come; ``settle`` is called after each."""
    mods = dict(data.mod) if isinstance(data, MuData) else {}
    places = [*((root["mod"][name], mod) for name, mod in mods.items()), (root, data)]
    pulled = [f"{name}:" for name in mods]
    for group, _ in places:
        _clear(group, keys, ["", *pulled])
    settle()
    for group, holder in places:
        _fill(group, holder, keys)
    settle()


def _clear(group: Any, keys: Keys, prefixes: list[str]) -> None:
    """Remove the slots of a fit; ``prefixes`` are those of columns that were copied from a modality."""
    for attribute, names in keys.slots.items():
        place = group.require_group(attribute)
        if attribute in ("obs", "var"):
            names = tuple(prefix + name for prefix in prefixes for name in names)
            _name_columns(place, [name for name in _columns(place) if name not in names])
        for name in names:
            if name in place:
                del place[name]


def _fill(group: Any, holder: AnnData | MuData, keys: Keys) -> None:
    """Write the slots that a holder has; a column exists once the list of columns names it."""
    for attribute, names in keys.slots.items():
        place, mapping = group[attribute], getattr(holder, attribute)
        there = [name for name in names if name in mapping]
        for name in there:
            value = mapping[name]
            if isinstance(value, pd.Series):
                text = pd.api.types.is_string_dtype(value.dtype)
                value = pd.Categorical(value) if text else value.to_numpy()
            write_elem(place, name, value)
        if attribute in ("obs", "var"):
            _name_columns(place, _columns(place) + there)


def _columns(group: Any) -> list[str]:
    """The list of the columns of a table."""
    return [str(name) for name in group.attrs["column-order"]]


def _name_columns(group: Any, names: list[str]) -> None:
    """Change the list of the columns of a table."""
    if names != _columns(group):
        group.attrs["column-order"] = names


def _consolidate(path: Path) -> None:
    """Bring the lists of arrays that a store and those around it may keep up to date."""
    import zarr

    for group in (path, *path.parents):
        if not is_zarr(group):
            return
        if zarr.open_group(group, mode="r").metadata.consolidated_metadata is not None:
            zarr.consolidate_metadata(group)
