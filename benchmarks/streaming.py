"""Time, memory and recovery of whole fits whose counts stay in a file, on simulated sections, one process each.

gpnsf benchmark streaming [--threads 2] [--only NAME] [--folder DIR]
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from report import in_fresh_process, machine, measured, parser, write_table

N_GENES, N_SPATIAL, N_NONSPATIAL = 2_000, 8, 2
DEPTH = 48.0  # counts of a spot: 46 genes, 2.3 % of them
CHUNK = 50_000
CASES = {
    "1,000,000 spots, h5ad": {"n_obs": 1_000_000, "place": "path"},
    "1,000,000 spots, h5ad, nothing kept": {"n_obs": 1_000_000, "place": "path", "memory_budget": 0},
    "200,000 spots, h5ad, nothing kept": {"n_obs": 200_000, "place": "path", "memory_budget": 0},
    "200,000 spots, in memory": {"n_obs": 200_000, "place": "memory"},
    "200,000 spots, in memory, nb": {"n_obs": 200_000, "place": "memory", "likelihood": "nb"},
}


def simulate(path: Path, n_obs: int, seed: int = 0) -> None:
    """A section written chunk by chunk: exact Poisson counts, drawn factor by factor and gene by gene."""
    from anndata import AnnData
    from anndata.io import write_elem

    rng = np.random.default_rng(seed)
    coords = rng.uniform(-1, 1, (n_obs, 2)) * 5_000
    factors = true_factors(coords / 5_000, rng)
    W = rng.gamma(0.3, 1.0, (N_GENES, factors.shape[1])) + 1e-3
    cumulated = np.cumsum(W / W.sum(0), axis=0)
    size = rng.lognormal(0, 0.3, n_obs)
    expected = DEPTH / factors.shape[1] * size[:, None] * factors
    table = AnnData(obs=pd.DataFrame({"true_size": size}, index=names("spot", n_obs)))
    table.obsm["spatial"], table.obsm["true_factors"] = coords, factors.astype(np.float32)
    var = AnnData(var=pd.DataFrame(index=names("gene", N_GENES))).var
    parts = (draw(expected[start : start + CHUNK], cumulated, rng) for start in range(0, n_obs, CHUNK))
    with h5py.File(path, "w") as file:
        write_elem(file, "/", table)
        write_elem(file, "var", var)
        write_elem(file, "X", sp.csr_matrix((n_obs, N_GENES), dtype=np.float32))
        append_rows(file["X"], parts)


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


def true_factors(coords: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Log-normal fields made of random waves, and factors without any order; mean one."""
    waves, shift = rng.standard_normal((N_SPATIAL, 30, 2)) / 0.25, rng.uniform(0, 2 * np.pi, (N_SPATIAL, 30))
    fields = [np.cos(coords @ w.T + b).sum(1) * np.sqrt(2 / 30) for w, b in zip(waves, shift, strict=True)]
    H = np.exp(np.column_stack([1.2 * np.column_stack(fields), rng.standard_normal((len(coords), N_NONSPATIAL))]))
    return H / H.mean(0)


def draw(expected: np.ndarray, cumulated: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
    """Counts of some rows."""
    numbers = rng.poisson(expected)
    rows = [np.repeat(np.arange(len(numbers)), numbers[:, k]) for k in range(numbers.shape[1])]
    genes = [np.searchsorted(cumulated[:, k], rng.random(len(row))) for k, row in enumerate(rows)]
    row, gene = np.concatenate(rows), np.minimum(np.concatenate(genes), N_GENES - 1)
    ones = np.ones(len(row), np.float32)
    counts = sp.coo_matrix((ones, (row, gene)), shape=(len(numbers), N_GENES)).tocsr()
    counts.sum_duplicates()
    return counts


def names(what: str, n: int) -> list[str]:
    """spot0, spot1, .."""
    return [f"{what}{i}" for i in range(n)]


def run(case: str, path: str) -> dict[str, float]:
    """One fit in this process."""
    import anndata as ad

    import gpnsf

    settings = CASES[case]
    target = path if settings["place"] == "path" else ad.read_h5ad(path)
    with gpnsf.settings.override(memory_budget=settings.get("memory_budget")), measured() as seen:
        gpnsf.tl.fit(
            target,
            n_factors=N_SPATIAL + N_NONSPATIAL,
            n_spatial=N_SPATIAL,
            likelihoods=settings.get("likelihood", "poisson"),
            split="assumed",
            progress=False,
        )
    return {
        "wall": seen.wall,
        "cpu": seen.cpu,
        "memory": seen.memory,
        **judged(path if settings["place"] == "path" else target),
    }


def judged(result: object) -> dict[str, float]:
    """Correlation of the factors with the truth, and the number of steps."""
    import anndata as ad

    from gpnsf.core.metrics import match_factors

    adata = ad.read_h5ad(result, backed="r") if isinstance(result, str) else result
    truth, found = adata.obsm["true_factors"], adata.obsm["X_gpnsf"]
    return {
        "steps": len(adata.uns["gpnsf"]["history"]["elbo"]),
        "spatial": match_factors(truth[:, :N_SPATIAL], found[:, :N_SPATIAL])[1].mean(),
        "nonspatial": match_factors(truth[:, N_SPATIAL:], found[:, N_SPATIAL:])[1].mean(),
    }


def main() -> None:
    """Every case."""
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--folder", type=Path, help="where the simulated files are kept; default: nowhere")
    arguments.add_argument("--only", nargs="+", metavar="CASE")
    arguments.add_argument("--simulate", nargs=2, metavar=("PATH", "N"))
    arguments.add_argument("--run", nargs=2, metavar=("CASE", "PATH"))
    chosen = arguments.parse_args()
    if chosen.simulate:
        simulate(Path(chosen.simulate[0]), int(chosen.simulate[1]))
        print("{}")
    elif chosen.run:
        print(json.dumps(run(*chosen.run)))
    else:
        os.environ |= {"OMP_NUM_THREADS": str(chosen.threads), "OMP_WAIT_POLICY": "passive"}
        with tempfile.TemporaryDirectory() as folder:
            table(chosen.only or list(CASES), chosen.folder or Path(folder), chosen.threads)


def table(cases: list[str], folder: Path, threads: int) -> None:
    """Measure the cases and write them down."""
    rows = []
    for case in cases:
        path = folder / f"simulated_{CASES[case]['n_obs']}.h5ad"
        if not path.exists():
            in_fresh_process(__file__, "--simulate", str(path), str(CASES[case]["n_obs"]))
        copy = shutil.copyfile(path, path.with_stem("fitted"))
        seen = json.loads(in_fresh_process(__file__, "--run", case, str(copy)))
        rows.append(
            {
                "simulated section, 2,000 genes, 2.3 %": case,
                "steps": seen["steps"],
                "wall s": f"{seen['wall']:.0f}",
                "CPU s": f"{seen['cpu']:.0f}",
                "peak GB": f"{seen['memory']:.2f}",
                "spatial r": f"{seen['spatial']:.3f}",
                "nonspatial r": f"{seen['nonspatial']:.3f}",
            }
        )
        print(rows[-1], flush=True)
    note = f"""Poisson where nothing else is said, K = 8 + 2, `split="assumed"`, uncompressed h5ad, {threads} threads; peak memory of
the process, imports included. {machine()}."""
    write_table("streaming", pd.DataFrame(rows), note)


if __name__ == "__main__":
    main()
