"""What a path holds, by its own account and not by its name; and results that take the place of earlier ones."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from gpnsf.checks import problem

__all__ = ["check_input", "check_output", "is_zarr", "replacing", "stored_tables"]

FORMATS = (".h5ad", ".h5mu", ".zarr")
OURS = (
    b'name="generator" content="gpnsf"',
    b"Software\0gpnsf",
)  # in the first bytes of our pages and pictures
OPENING = 4096  # bytes
LEFT_BEHIND = 86_400  # seconds after which nobody writes to a file any more
BROKEN = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
)  # of files that are damaged, as readers raise them
ANNDATA = {"X", "layers", "obs", "obsm", "obsp", "raw", "uns", "var", "varm", "varp"}
MUDATA = {"mod", "obs", "obsm", "obsmap", "obsp", "uns", "var", "varm", "varmap", "varp"}
SPATIALDATA = {"images", "labels", "points", "shapes", "tables", "table"}


class Kind(NamedTuple):
    """A kind of file or folder."""

    words: str
    suffixes: tuple[str, ...]  # under which it can be read; none where it cannot
    remedy: str


KINDS = {
    "anndata": Kind("an AnnData in HDF5", (".h5ad",), "Rename it to {stem}.h5ad"),
    "mudata": Kind("a MuData in HDF5", (".h5mu",), "Rename it to {stem}.h5mu"),
    "anndata zarr": Kind("a zarr store of an AnnData", (".zarr",), "Rename it to {stem}.zarr"),
    "mudata zarr": Kind("a zarr store of a MuData", (".zarr",), "Rename it to {stem}.zarr"),
    "spatialdata": Kind("a SpatialData store", (), "Pass one of its tables: {tables}"),
    "10x": Kind(
        "a count matrix of 10x Genomics",
        (),
        "Read it with scanpy.read_10x_h5 or muon.read_10x_h5, add coordinates as obsm['spatial'], and write .h5ad or .h5mu",
    ),
    "hdf5": Kind("HDF5 of another kind", (), "Convert it with anndata or mudata first"),
    "zarr": Kind("a zarr group of another kind", (), "Convert it with anndata or mudata first"),
    "folder": Kind("a folder", (), "Pass the path of a file in it"),
    "file": Kind("a file of another kind", (), "Convert it with anndata or mudata first"),
}


def check_input(path: Path) -> None:
    """Check that a path exists, and holds what its name says and we can read."""
    named = path.suffix in FORMATS
    if not path.exists():
        if path.suffix and not named:
            raise ValueError(
                problem(
                    f"a file {', '.join(FORMATS)}",
                    str(path),
                    "Convert it with anndata or mudata first",
                )
            )
        raise FileNotFoundError(problem("a file that exists", str(path), "Check the path"))
    found, _ = _look(path)
    kind = KINDS[found]
    in_a_store = found == "anndata zarr" and not path.suffix  # a table of a SpatialData store
    if path.suffix in kind.suffixes or in_a_store:
        return
    if named and found in ("file", "hdf5", "zarr", "folder"):
        rule, remedy = f"a readable {path.suffix[1:]} file", "Write it again"
    else:
        rule = f"a file {', '.join(FORMATS)} that holds what its name says"
        tables = ", ".join(map(os.fspath, (stored_tables(path) or {}).values()))
        remedy = kind.remedy.format(stem=path.stem, tables=tables or "it has none")
    raise ValueError(problem(rule, f"{path}, which is {kind.words}", remedy))


def stored_tables(path: Path) -> dict[str, Path] | None:
    """Tables of a SpatialData store by name; None for any other path."""
    if not path.is_dir() or not is_zarr(path) or _look(path)[0] != "spatialdata":
        return None
    folders = (path / name for name in ("tables", "table") if (path / name).is_dir())
    return {
        table.name: table
        for folder in folders
        for table in sorted(folder.iterdir())
        if is_zarr(table)
    }


def check_output(path: Path, suffix: str | None, *, source: Path | None = None) -> None:
    """Check that a result may be written to a path, before any work is done; without a suffix, a page of any name.

    Its folder is there; what is there under its name may be replaced only if it is such a result itself, and not the source.
    """
    if suffix is not None and path.suffix != suffix:
        raise ValueError(
            problem(
                f"a result named *{suffix}", str(path), f"Write to {path.stem or 'result'}{suffix}"
            )
        )
    if not path.absolute().parent.is_dir():
        remedy = f"Make it first: mkdir -p {path.parent}"
        raise FileNotFoundError(problem("a folder that exists for the result", str(path), remedy))
    if not path.exists():
        return
    if source is not None and path.samefile(source):
        raise ValueError(
            problem("a result beside its source", f"{path} as both", "Write to another path")
        )
    found, others = _look(path)
    if (suffix in KINDS[found].suffixes and not others) or (found == "file" and _is_ours(path)):
        return
    rule = f"a free path, or an earlier result *{suffix or path.suffix} to be replaced"
    raise FileExistsError(
        problem(rule, f"{path}, which is {KINDS[found].words}", "Write to another path, or move it")
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside the target to write to, which takes its place when the block ends well and is removed otherwise.

    At any moment the target, or what was there before, is whole; a folder is set aside until the new one is in its place.
    Every writer has a path of its own; what a killed one has left goes after a day.
    """
    path = path.resolve()
    partial, before = (
        path.with_name(f".{path.stem}.{uuid4().hex[:8]}.{use}{path.suffix}")
        for use in ("partial", "before")
    )
    for left in path.parent.glob(f".{escape(path.stem)}.*.partial{escape(path.suffix)}"):
        with suppress(FileNotFoundError):  # another process has removed it
            if time.time() - left.stat().st_mtime > LEFT_BEHIND:
                _remove(left)
    try:
        yield partial
        if path.is_dir():
            path.rename(before)
        partial.replace(path)
    finally:
        _remove(partial)
        if before.exists() and not path.exists():
            before.rename(path)
        _remove(before)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr group."""
    return any((path / name).is_file() for name in (".zgroup", "zarr.json"))


def _remove(path: Path) -> None:
    """Remove what we have written for a while."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    """Whether a page or picture says that this package has written it; empty files are nobody's."""
    with path.open("rb") as file:
        opening = file.read(OPENING)
    return not opening or any(mark in opening for mark in OURS)


def _look(path: Path) -> tuple[str, set[str]]:
    """Key of ``KINDS`` of a path that exists, and what an AnnData or MuData has beside it in its root."""
    import h5py

    if path.is_dir():
        return _look_into_zarr(path) if is_zarr(path) else ("folder", set())
    if not h5py.is_hdf5(path):
        return "file", set()
    try:
        with h5py.File(path, "r") as root:
            names = set(root)
            found, others = _annotated(root.attrs, names)
    except BROKEN:
        return "hdf5", set()
    return found or ("10x" if "matrix" in names else "hdf5"), others


def _look_into_zarr(path: Path) -> tuple[str, set[str]]:
    """The same of a zarr group."""
    import zarr

    try:
        root = zarr.open_group(path, mode="r", use_consolidated=False)
        names = set(root)
    except BROKEN:
        return "zarr", set()
    found, others = _annotated(root.attrs, names)
    if "spatialdata_attrs" in root.attrs or (names & SPATIALDATA and not found):
        return "spatialdata", set()
    return f"{found} zarr" if found else "zarr", others


def _annotated(attrs: Any, names: set[str]) -> tuple[str, set[str]]:
    """Give "anndata" or "mudata" if a root group holds one, else "", and what else it holds."""
    if not {"obs", "var"} <= names:
        return "", set()
    if "mod" in names or str(attrs.get("encoding-type", "")).lower() == "mudata":
        return "mudata", names - MUDATA
    return "anndata", names - ANNDATA
