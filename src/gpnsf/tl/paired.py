"""Cells that were measured in two modalities, for tools that need both of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from gpnsf import checks
from gpnsf.checks import problem
from gpnsf.io.names import named
from gpnsf.io.objects import open_data
from gpnsf.io.read import read_counts
from gpnsf.io.streaming import memory_budget
from gpnsf.io.write import check_key

__all__ = ["Side", "check_layer", "read_pair"]


@dataclass(frozen=True)
class Side:
    """One of the two modalities."""

    name: str
    mod: AnnData
    rows: np.ndarray  # [N] row of the MuData of each cell of the modality
    counts: sp.csr_matrix  # [N, P] in the order of the MuData
    layer: str | None  # that they come from


def read_pair(
    mdata: MuData,
    names: tuple[str, str],
    likelihoods: tuple[str, str],
    layers: Mapping[str, str] | str | None,
) -> list[Side]:
    """Counts of two modalities, checked against a likelihood each; every cell is to be in both."""
    if not isinstance(mdata, MuData):
        remedy = "Build it by MuData({'rna': ..., 'atac': ...})"
        raise TypeError(
            problem("MuData with RNA and ATAC of the same cells", type(mdata).__name__, remedy)
        )
    names = (named(names[0], list(mdata.mod)), named(names[1], list(mdata.mod)))
    opened = open_data(mdata, modalities=names, writes=True)
    layer = checks.per_modality(layers, "layers", names=opened.names, known=opened.mods)
    sides = []
    for name, likelihood in zip(names, likelihoods, strict=True):
        mod, rows = opened.mods[name], opened.rows[name]
        if mod.n_obs < mdata.n_obs:
            found = f"{mdata.n_obs - mod.n_obs} of {mdata.n_obs} observation(s) without {name!r}"
            remedy = "Take those that have both, for example by muon.pp.intersect_obs(mdata), which changes it in place"
            raise ValueError(
                problem(f"every observation in both {names[0]!r} and {names[1]!r}", found, remedy)
            )
        counts = read_counts(mod, layer=layer.get(name), likelihood=likelihood, modality=name)
        sides.append(
            Side(name, mod, rows, sp.csr_matrix(counts[np.argsort(rows)]), layer.get(name))
        )
    return sides


def check_layer(name: str, side: Side, *, what: str) -> None:
    """Check that a dense layer of all cells and features can be written, and is not that of the counts."""
    check_key(name, argument="layer_added", example="averaged")
    if name == side.layer:
        rule = "`layer_added` other than the layer of the counts"
        remedy = f"Pass for example '{name}_2'"
        raise ValueError(problem(rule, repr(name), remedy))
    (n_obs, n_features), budget = side.counts.shape, memory_budget()
    needed = 4 * n_obs * n_features
    if needed > budget:
        rule = f"{what} that fits into gpnsf.settings.memory_budget, {budget / 1e9:.3g} GB"
        found = f"{n_obs} x {n_features}, {needed / 1e9:.3g} GB"
        raise ValueError(problem(rule, found, "Take fewer features, or raise the setting"))
