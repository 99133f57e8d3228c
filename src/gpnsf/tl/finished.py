"""The file of a search: what its finished fits have found, so that an interrupted search goes on.

Numbers and JSON, never a pickle.
"""

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpnsf.arguments import Options
from gpnsf.checks import problem
from gpnsf.core.inference.checkpoint import digest
from gpnsf.io.kinds import replacing
from gpnsf.io.parcel import Parcel

__all__ = ["Finished", "facts_of"]

FACTS, BETWEEN = "facts", "|"  # name of the array of facts; what stands between a fit and a field
KEYS = ("library_key", "batch_key", "holdout_key", "size_factors", "use_var")
VERSIONS = ("gpnsf", "torch", "pyro-ppl")
UNREADABLE = (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile)

_log = logging.getLogger("gpnsf")


class Finished:
    """Arrays by the name of a fit, in memory and, with a path, in a file that is whole at any moment."""

    def __init__(self, path: str | os.PathLike[str] | None, facts: Mapping[str, object]) -> None:
        self.path = None if path is None else Path(path)
        self._facts = np.frombuffer(json.dumps(facts, sort_keys=True).encode(), np.uint8)
        self.found: dict[str, dict[str, np.ndarray]] = {}
        self._failed = False
        if self.path is not None:
            if self.path.exists():
                self._read(self.path)
            self._write(self.path)  # what cannot be written is found out before the first fit

    def keep(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Take what a fit has found, and write all of it down; a disk that is full by now does not end the search."""
        self.found[name] = dict(arrays)
        if self.path is None:
            return
        try:
            self._write(self.path)
        except OSError as error:
            if not self._failed:
                _log.warning(
                    "The checkpoint %s could not be written (%s); the search goes on, the file is as it was before.",
                    self.path,
                    getattr(error.__cause__, "strerror", None) or error,
                )
            self._failed = True

    def tell(self) -> None:
        """Say how to go on after an interruption."""
        how = "With checkpoint=PATH the same call could go on from there."
        if self.path is not None:
            how = f"The same call with checkpoint={str(self.path)!r} goes on from there."
        _log.warning("Interrupted after %d fits. %s", len(self.found), how)

    def remove(self) -> None:
        """Delete the file, which a search that is complete has no use for."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _write(self, path: Path) -> None:
        named: dict[str, Any] = {
            f"{name}{BETWEEN}{field}": array
            for name, arrays in self.found.items()
            for field, array in arrays.items()
        }
        try:
            with replacing(path) as partial, partial.open("wb") as file:
                np.savez(file, **{FACTS: self._facts, **named})
        except OSError as error:
            found = f"{str(path)!r} ({error.strerror})"
            remedy = "Name a file in a folder that exists, can be written to and has room"
            raise type(error)(
                problem("`checkpoint` to be a file that can be written", found, remedy)
            ) from error

    def _read(self, path: Path) -> None:
        rule = "`checkpoint` to name a file of this search, or a file that does not exist yet"
        remedy = "Repeat the call that was interrupted, or name another file, or delete this one"
        try:
            with np.load(path) as file:
                arrays = dict(file)
            facts, here = (json.loads(a.tobytes()) for a in (arrays.pop(FACTS), self._facts))
            differ = [name for name in {**here, **facts} if here.get(name) != facts.get(name)]
            for name, array in arrays.items():
                fit, _, field = name.rpartition(BETWEEN)
                self.found.setdefault(fit, {})[field] = array
        except UNREADABLE as error:
            found = f"{str(path)!r}, which is no checkpoint of a search, or is damaged"
            raise ValueError(problem(rule, found, remedy)) from error
        if differ:
            found = f"{str(path)!r}, which differs in {', '.join(sorted(differ))}"
            raise ValueError(problem(rule, found, remedy))


def facts_of(whole: Parcel, arguments: Options, **others: object) -> dict[str, str]:
    """What has to be the same for finished fits to be of this search: arguments, versions, data."""
    found = {name: repr(value) for name, value in {**arguments, **others}.items()}
    found |= {f"version of {name}": version(name) for name in VERSIONS}
    holders = {"data": whole, **whole.mods}
    for name, mod in whole.mods.items():
        if mod.X is not None:
            counts = sp.csr_matrix(mod.X)
            found[f"counts of {name}"] = digest(counts.data, counts.indices, counts.indptr)
    for name, holder in holders.items():
        tables = [holder.obs] if name == "data" else [holder.obs, holder.var]
        columns = [
            table[key].astype(str).to_numpy()
            for table in tables
            if table is not None
            for key in map(arguments.get, KEYS)
            if isinstance(key, str) and key in table
        ]
        places = [np.asarray(values) for values in holder.obsm.values()]
        found[f"columns and coordinates of {name}"] = digest(
            *places, *(np.frombuffer("\n".join(c).encode(), np.uint8) for c in columns)
        )
    return found
