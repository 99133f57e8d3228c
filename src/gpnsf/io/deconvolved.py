"""What a deconvolution has left in an object, checked and resolved once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from gpnsf.checks import choices, problem
from gpnsf.core import stored
from gpnsf.io.fits import Fit
from gpnsf.io.objects import open_data, read_coords, read_labels
from gpnsf.keys import SPATIAL, ProportionKeys

__all__ = ["Deconvolved", "Placed", "find"]


@dataclass(frozen=True)
class Deconvolved:
    """Proportions and where their spots lie."""

    data: AnnData
    keys: ProportionKeys
    names: np.ndarray  # [C] of the types
    proportions: np.ndarray  # [N, C], NaN for spots that were left out
    std: np.ndarray | None  # [N, C], too
    modalities: Mapping[str, AnnData] = field(default_factory=dict)  # none but the object itself

    @property
    def params(self) -> Mapping[str, Any]:
        """Arguments of the deconvolution."""
        return stored.record(
            self.data.uns[self.keys.uns], "params", where=f"uns[{self.keys.uns!r}]"
        )

    @property
    def coords(self) -> np.ndarray:
        """Coordinates [N, D] in the units of the data."""
        return read_coords(open_data(self.data), stored.text(self.params, "spatial_key") or SPATIAL)

    @property
    def library(self) -> pd.Categorical | None:
        """Slice [N] of each spot, or None without slices."""
        key = stored.text(self.params, "library_key")
        return None if key is None else pd.Categorical(read_labels(open_data(self.data), key))

    def indices(self, types: str | Sequence[str] | None) -> np.ndarray:
        """Positions of the named types, in the order asked for; all of them for None."""
        if types is None:
            return np.arange(len(self.names))
        wanted = [types] if isinstance(types, str) else list(types)
        choices(wanted, self.names, what="types", where=f"uns[{self.keys.uns!r}]")
        if not wanted or len(set(wanted)) < len(wanted):
            raise ValueError(
                problem("`types` that name some types, each once", repr(wanted), "Correct the list")
            )
        return np.array([int(np.flatnonzero(self.names == name)[0]) for name in wanted])


Placed: TypeAlias = Fit | Deconvolved  # what a figure of spots can be drawn of


def find(data: AnnData, key: str = "proportions") -> Deconvolved:
    """Resolve what ``tl.deconvolve(data, key_added=key)`` left in the object.

    Raises
    ------
    TypeError
        If ``data`` is not an AnnData.
    KeyError
        If there is no deconvolution of that name.
    ValueError
        If its slots do not agree.
    """
    if not isinstance(data, AnnData):
        remedy = "Pass the object that `gpnsf.tl.deconvolve` annotated"
        raise TypeError(problem("AnnData", type(data).__name__, remedy))
    keys = ProportionKeys(key)
    record = data.uns.get(keys.uns)
    if not isinstance(record, Mapping) or "types" not in record:
        there = [
            name
            for name, value in data.uns.items()
            if isinstance(value, Mapping)
            and "types" in value
            and ProportionKeys(name).proportions in data.obsm
        ]
        remedy = f"Pass `key=` one of {there}" if there else "Run `gpnsf.tl.deconvolve` first"
        raise KeyError(
            problem(f"a deconvolution in uns[{keys.uns!r}]", f"those of {there}", remedy)
        )
    names = np.array(stored.names(record, "types", where=f"uns[{keys.uns!r}]"), dtype=object)
    shape = data.n_obs, len(names)
    has_std = keys.std in data.obsm
    return Deconvolved(
        data,
        keys,
        names,
        stored.array(data.obsm, keys.proportions, shape, low=0, high=1, nan=True, where="obsm"),
        stored.array(data.obsm, keys.std, shape, low=0, nan=True, where="obsm")
        if has_std
        else None,
    )
