"""Files of real data for tests and benchmarks, which are not part of the package.

Found through ``GPNSF_DATA_DIR``.
"""

from __future__ import annotations

import os
from pathlib import Path

import anndata
import mudata
from anndata import AnnData
from mudata import MuData

from gpnsf.checks import problem

__all__ = ["data_dir", "load"]

VARIABLE = "GPNSF_DATA_DIR"
SUFFIXES = (".h5ad", ".h5mu")


def data_dir() -> Path | None:
    """Folder named by the environment variable ``GPNSF_DATA_DIR``, or None where it is not set."""
    value = os.environ.get(VARIABLE)
    return Path(value) if value else None


def load(name: str) -> AnnData | MuData:
    """Read a file of the data folder by its name, with or without ``.h5ad`` or ``.h5mu``.

    Raises
    ------
    ValueError
        If ``GPNSF_DATA_DIR`` does not name a folder.
    KeyError
        If the folder has no such file.
    """
    folder = data_dir()
    if folder is None or not folder.is_dir():
        remedy = f"Set it to the folder that holds {name!r}"
        raise ValueError(
            problem(
                f"{VARIABLE} to name a folder of data files", repr(os.environ.get(VARIABLE)), remedy
            )
        )
    files = {path.name: path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES}
    path = next(
        (files[name + ending] for ending in ("", *SUFFIXES) if name + ending in files), None
    )
    if path is None:
        there = ", ".join(files) or "none"
        raise KeyError(
            problem(f"a file in {folder} (there: {there})", repr(name), "Use one of these names")
        )
    return mudata.read_h5mu(path) if path.suffix == ".h5mu" else anndata.read_h5ad(path)
