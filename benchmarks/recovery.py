"""Recovery of simulated spatial patterns, beside KL-NMF of the same counts, raw and smoothed.

gpnsf benchmark recovery [--seeds 3]
gpnsf benchmark recovery --mefisto [--seeds 3]     # ggblocks at full depth, MEFISTO beside the others
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from baselines import klnmf, neighbour_mean
from report import machine, measured, parser, write_table

import gpnsf
from gpnsf.core.scores.metrics import match_factors


def fitted(mdata, likelihood: str, seed: int) -> tuple[float, float, float]:
    """Mean correlation of the spatial and nonspatial factors, and CPU seconds."""
    adata = mdata["rna"].copy()
    with measured() as run:
        gpnsf.tl.fit(
            adata,
            n_factors=7,
            n_spatial=4,
            likelihoods=likelihood,
            size_factors=None,
            seed=seed,
            progress=False,
        )
    truth, found = mdata.obsm["true_factors"], adata.obsm["X_gpnsf"]
    spatial = match_factors(truth[:, :4], found[:, :4])[1].mean()
    return spatial, match_factors(truth[:, 4:], found[:, 4:])[1].mean(), run.cpu


def baseline(mdata, n_neighbors: int, seed: int) -> tuple[float, float, float]:
    """The same of KL-NMF with seven components, after a mean over neighbours (0: raw)."""
    counts = mdata["rna"].X
    with measured() as run:
        if n_neighbors:
            counts = neighbour_mean(counts, mdata.obsm["spatial"], n_neighbors)
        found = klnmf(counts, 7, seed)
    truth = mdata.obsm["true_factors"]
    correlation = match_factors(truth, found)[1]
    return correlation[:4].mean(), correlation[4:].mean(), run.cpu


def mefisto(mdata, seed: int) -> tuple[float, float, float]:
    """The same of MEFISTO with seven factors, in 200 steps at most, normalised by log1p alone: totals carry signal here."""
    adata = mdata["rna"].copy()
    with measured() as run:
        gpnsf.tl.mefisto(
            adata, n_factors=7, size_factors=None, max_steps=200, seed=seed, progress=False
        )
    print(
        "converged:",
        adata.uns["mefisto"]["converged"],
        "scale:",
        adata.uns["mefisto"]["kernel"]["scale"].round(2),
    )
    signed = np.hstack(
        [adata.obsm["X_mefisto"], -adata.obsm["X_mefisto"]]
    )  # either sign may stand for a pattern
    correlation = match_factors(mdata.obsm["true_factors"], signed)[1]
    return correlation[:4].mean(), correlation[4:].mean(), run.cpu


def main() -> None:
    """Every method on the same draws."""
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument(
        "--mefisto", action="store_true", help="a table of its own, with MEFISTO in it"
    )
    options = arguments.parse_args()
    methods = {
        "gpnsf, Poisson": lambda mdata, seed: fitted(mdata, "poisson", seed),
        "gpnsf, NB": lambda mdata, seed: fitted(mdata, "nb", seed),
        "KL-NMF": lambda mdata, seed: baseline(mdata, 0, seed),
        "KL-NMF of 8-neighbour means": lambda mdata, seed: baseline(mdata, 8, seed),
    }
    sections, depths, name = ("ggblocks", "quilt"), (1.0, 0.01, 0.005), "recovery"
    if options.mefisto:
        methods["MEFISTO, log1p, 200 steps at most"] = mefisto
        sections, depths, name = ("ggblocks",), (1.0,), "mefisto"
    rows = []
    for data in sections:
        for depth in depths:
            draws = [
                getattr(gpnsf.datasets, data)(depth=depth, seed=seed)
                for seed in range(options.seeds)
            ]
            for method, run in methods.items():
                spatial, nonspatial, cpu = np.array(
                    [run(draw, seed) for seed, draw in enumerate(draws)]
                ).T
                rows.append(
                    {
                        "simulated data": data,
                        "depth": f"{depth:.1%}",
                        "method": method,
                        "spatial r, mean": f"{spatial.mean():.3f}",
                        "spatial r, worst": f"{spatial.min():.3f}",
                        "nonspatial r": f"{nonspatial.mean():.3f}",
                        "CPU s": f"{cpu.mean():.1f}",
                    }
                )
                print(rows[-1], flush=True)
    note = (
        f"Simulated data, RNA only, {options.seeds} draw(s) with seed = 0 .. {options.seeds - 1} of data and fit; K = 7 factors, T = 4 of them spatial, "
        f"`size_factors=None`. r: correlation of each true pattern with the factor that matches it; all seven patterns are matched together. {machine()}."
    )
    write_table(name, pd.DataFrame(rows), note)


if __name__ == "__main__":
    main()
