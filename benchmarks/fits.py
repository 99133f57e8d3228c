"""Whole fits of simulated data, each in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.io import write_elem
from report import in_fresh_process, measured

CHUNK = 50_000


def section(
    path: Path,
    n_obs: int,
    *,
    n_genes: int = 2_000,
    depth: float = 48.0,
    n_spatial: int = 8,
    n_nonspatial: int = 2,
) -> Path:
    """A section written chunk by chunk, unless it is there: exact Poisson counts, drawn factor by factor and gene by gene."""
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    coords = rng.uniform(-1, 1, (n_obs, 2)) * 5_000
    factors = true_factors(coords / 5_000, n_spatial, n_nonspatial, rng)
    W = rng.gamma(0.3, 1.0, (n_genes, factors.shape[1])) + 1e-3
    cumulated = np.cumsum(W / W.sum(0), axis=0)
    size = rng.lognormal(0, 0.3, n_obs)
    expected = depth / factors.shape[1] * size[:, None] * factors
    table = AnnData(obs=pd.DataFrame({"true_size": size}, index=names("spot", n_obs)))
    table.obsm["spatial"], table.obsm["true_factors"] = coords, factors.astype(np.float32)
    var = AnnData(var=pd.DataFrame(index=names("gene", n_genes))).var
    parts = (
        draw(expected[start : start + CHUNK], cumulated, rng) for start in range(0, n_obs, CHUNK)
    )
    unfinished = path.with_suffix(".part")
    with h5py.File(unfinished, "w") as file:
        write_elem(file, "/", table)
        write_elem(file, "var", var)
        write_elem(file, "X", sp.csr_matrix((n_obs, n_genes), dtype=np.float32))
        append_rows(file["X"], parts)
    return unfinished.rename(path)


def append_rows(group: h5py.Group, parts: Iterable[sp.csr_matrix]) -> None:
    """Fill an empty matrix, in chunks of a megabyte."""
    lengths = [np.zeros(1, np.int64)]
    for name, dtype in (("data", np.float32), ("indices", np.int32)):
        del group[name]
        group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(2**18,))
    for part in parts:
        for name in ("data", "indices"):
            start = len(group[name])
            group[name].resize((start + part.nnz,))
            group[name][start:] = getattr(part, name)
        lengths.append(np.diff(part.indptr))
    del group["indptr"]
    group["indptr"] = np.cumsum(np.concatenate(lengths))


def true_factors(
    coords: np.ndarray, n_spatial: int, n_nonspatial: int, rng: np.random.Generator
) -> np.ndarray:
    """Log-normal fields made of random waves, and factors without any order; mean one."""
    waves = rng.standard_normal((n_spatial, 30, 2)) / 0.25
    shift = rng.uniform(0, 2 * np.pi, (n_spatial, 30))
    fields = [
        np.cos(coords @ w.T + b).sum(1) * np.sqrt(2 / 30) for w, b in zip(waves, shift, strict=True)
    ]
    H = np.exp(
        np.column_stack(
            [1.2 * np.column_stack(fields), rng.standard_normal((len(coords), n_nonspatial))]
        )
    )
    return H / H.mean(0)


def draw(expected: np.ndarray, cumulated: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
    """Counts of some rows."""
    numbers = rng.poisson(expected)
    rows = [np.repeat(np.arange(len(numbers)), numbers[:, k]) for k in range(numbers.shape[1])]
    genes = [np.searchsorted(cumulated[:, k], rng.random(len(row))) for k, row in enumerate(rows)]
    row, gene = np.concatenate(rows), np.minimum(np.concatenate(genes), len(cumulated) - 1)
    ones = np.ones(len(row), np.float32)
    counts = sp.coo_matrix((ones, (row, gene)), shape=(len(numbers), len(cumulated))).tocsr()
    counts.sum_duplicates()
    return counts


def names(what: str, n: int) -> list[str]:
    """spot0, spot1, .."""
    return [f"{what}{i}" for i in range(n)]


def fit(path: Path, *, threads: int, **options: Any) -> dict[str, float]:
    """Fit a file in a fresh process; ``options`` are those of ``fit_here``."""
    return json.loads(in_fresh_process(__file__, str(path), json.dumps(options), threads=threads))


def fit_here(
    path: str,
    *,
    in_memory: bool = True,
    memory_budget: float | None = None,
    n_spatial: int = 8,
    **options: Any,
) -> dict[str, float]:
    """One fit in this process; a file that is not read into memory gets the slots."""
    import gpnsf

    target, run = read(path) if in_memory else path, loaded()
    with gpnsf.settings.override(memory_budget=memory_budget), measured() as seen:
        run(target, n_spatial=n_spatial, split="assumed", progress=False, **options)
    return {**vars(seen), **judged(target if in_memory else read(path), n_spatial)}


def loaded() -> Callable[..., Any]:
    """The fit, its imports done and its compiled code in memory, so that their second or two are not taken for its time."""
    import gpnsf
    from gpnsf.core.counts.backends import backend

    backend("cpu")
    return gpnsf.tl.fit


def read(path: str) -> Any:
    """A whole file."""
    import anndata
    import mudata

    mudata.set_options(pull_on_update=False)
    return mudata.read_h5mu(path) if path.endswith(".h5mu") else anndata.read_h5ad(path)


def judged(data: Any, n_spatial: int) -> dict[str, float]:
    """Correlation of the factors with the truth, the number of steps, and what one of the last ones takes."""
    from gpnsf.core.scores.metrics import match_factors

    table = data if isinstance(data, AnnData) else data["rna"]
    totals = np.asarray(table.X.sum(1)).ravel()
    # size factors are not identified: the truth is put on the scale of those that the fit used
    ratio = table.obs["true_size"].to_numpy() / np.maximum(totals, 0.05 * totals.mean())
    truth, found = data.obsm["true_factors"] * ratio[:, None], data.obsm["X_gpnsf"]
    history = data.uns["gpnsf"]["history"]
    last = np.asarray(history["seconds"])[np.asarray(history["phase"]) == "tail"]
    return {
        "steps": len(history["elbo"]),
        "step": float(np.median(np.diff(last))),
        "spatial": match_factors(truth[:, :n_spatial], found[:, :n_spatial])[1].mean(),
        "nonspatial": match_factors(truth[:, n_spatial:], found[:, n_spatial:])[1].mean(),
    }


if __name__ == "__main__":
    print(json.dumps(fit_here(sys.argv[1], **json.loads(sys.argv[2]))))
