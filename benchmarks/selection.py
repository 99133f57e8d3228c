"""Numbers of factors that `tl.select_n_factors` finds in simulated data, with its defaults but for the seeds.

gpnsf benchmark selection [--seeds 2] [--jobs 2]
"""

from __future__ import annotations

import logging
import warnings

import pandas as pd
from matplotlib import pyplot as plt
from report import FIGURES, machine, measured, parser, write_table

import gpnsf


def ggblocks(depth: float, seed: int, n_peaks: int = 300):
    """4 spatial and 3 nonspatial factors, 900 spots; the peaks know the spatial ones only."""
    return gpnsf.datasets.ggblocks(depth=depth, n_peaks=n_peaks, seed=seed)


def tissue(depth: float, seed: int):
    """8 spatial and 2 nonspatial factors, 900 spots, RNA alone; 4,000 counts a spot at full depth."""
    return gpnsf.datasets.tissue(
        n_obs=900, n_genes=500, n_peaks=50, rna_depth=4000 * depth, seed=seed
    )["rna"]


RUNS = [  # name, simulation, depth, seeds of the data, true T and K - T, size factors
    ("ggblocks, 10 %, RNA + 300 peaks", ggblocks, 0.1, (10, 11, 12), (4, 3), None),
    ("ggblocks, 1 %, RNA + 300 peaks", ggblocks, 0.01, (10, 11), (4, 3), None),
    ("tissue, full, RNA", tissue, 1.0, (10, 11, 12), (8, 2), "total"),
    ("tissue, 30 %, RNA", tissue, 0.3, (10, 11), (8, 2), "total"),
    (
        "ggblocks, 1 %, RNA + 500 peaks",
        lambda *draw: ggblocks(*draw, n_peaks=500),
        0.01,
        (10,),
        (4, 3),
        None,
    ),
    (
        "ggblocks, 1 %, RNA",
        lambda depth, seed: ggblocks(depth, seed)["rna"],
        0.01,
        (10,),
        (4, 3),
        None,
    ),
]


def main() -> None:
    """A row for each data set."""
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=2, help="divisions of the counts")
    arguments.add_argument("--jobs", type=int, default=2, help="processes")
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("gpnsf").setLevel("ERROR")
    rows = []
    for name, simulate, depth, seeds, (T, rest), size_factors in RUNS:
        for seed in seeds:
            data = simulate(depth, seed)
            with measured() as run:
                table = gpnsf.tl.select_n_factors(
                    data,
                    n_seeds=options.seeds,
                    n_jobs=options.jobs,
                    size_factors=size_factors,
                    seed=seed,
                    progress=False,
                )
            K, found = table.attrs["n_factors"], table.attrs["n_spatial"]
            right = (
                ""
                if K is None
                else "yes"
                if max(abs(found - T), abs(K - found - rest)) <= 1
                else "NO"
            )
            row = {"simulated data": name, "seed": seed, "true T + (K - T)": f"{T} + {rest}"}
            row |= {
                "chosen": "cannot tell" if K is None else f"{found} + {K - found}",
                "within 1": right,
            }
            row |= {
                "numbers tried": ", ".join(map(str, table.n_factors)),
                "s per fit": f"{table.seconds.mean():.1f}",
            }
            row |= {"s": f"{run.wall:.0f}"}
            rows.append(row)
            print(row, table.attrs["reason"], flush=True)
            if len(rows) == 1:
                figure = gpnsf.pl.selection(table, return_fig=True)
                figure.savefig(FIGURES / "selection.png", dpi=150, bbox_inches="tight")
                plt.close(figure)
    judged = [row["within 1"] for row in rows if row["within 1"]]
    note = (
        f"{judged.count('yes')} of {len(judged)} within 1 (bar: 8 of 10): the number of spatial factors and the number of nonspatial ones are each at most 1 off. Simulated data, 900 spots, {options.seeds} division(s) of the counts per run, {options.jobs} processes on "
        f"a shared machine, wall seconds. {machine()}."
    )
    write_table("selection", pd.DataFrame(rows), note)


if __name__ == "__main__":
    main()
