"""An object reduced to what a fit reads, in a form that goes to another process: MuData cannot be pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from gpnsf.io.objects import no_pulling

__all__ = ["Parcel", "pack"]


@dataclass(frozen=True)
class Parcel:
    """Modalities with their counts in X, and what the object itself knows about its N observations."""

    mods: dict[str, AnnData]
    obs: pd.DataFrame | None  # None: the only modality is the object
    obsm: dict[str, np.ndarray | pd.DataFrame]

    def unpacked(self) -> AnnData | MuData:
        """The object, to be changed at will."""
        mods = {name: mod.copy() for name, mod in self.mods.items()}
        if self.obs is None:
            return next(iter(mods.values()))
        with no_pulling():
            data = MuData(mods)
            if not data.obs_names.equals(self.obs.index):
                data = data[self.obs.index].copy()
        data.obs = self.obs.copy()
        for key, values in self.obsm.items():
            data.obsm[key] = values
        return data


def pack(
    data: AnnData | MuData,
    counts: Mapping[str, sp.csr_matrix],
    *,
    obsm: str,
    layers: Mapping[str, Mapping[str, sp.csr_matrix]] | None = None,
) -> Parcel:
    """Put counts [n, P] of the modalities in place of theirs; other modalities keep what they say about observations."""
    holders = data.mod if isinstance(data, MuData) else dict.fromkeys(counts, data)
    mods = {
        name: AnnData(
            counts.get(name),
            obs=mod.obs,
            var=mod.var if name in counts else None,
            obsm=_kept(mod, obsm),
            layers=(layers or {}).get(name),
        )
        for name, mod in holders.items()
    }
    return Parcel(mods, data.obs if isinstance(data, MuData) else None, _kept(data, obsm))


def _kept(holder: AnnData | MuData, key: str) -> dict[str, np.ndarray | pd.DataFrame]:
    """The one entry of obsm that is needed."""
    return {key: holder.obsm[key]} if key in holder.obsm else {}
