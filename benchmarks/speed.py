"""Time and memory of whole fits (starts, optimisation, local stage, writing) on simulated tissues, one process each.

gpnsf benchmark speed [--threads 1] [--only NAME]
"""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pandas as pd
from fits import loaded
from report import in_fresh_process, machine, measured, parser, write_table

CASES = {
    "36,000 x 2,000, 3 %, K = 10": (
        {"n_obs": 36_000, "rna_depth": 75.0, "n_spatial": 8, "n_nonspatial": 2, "layout": "random"},
        "NSF in TensorFlow, L = 12: 1,222 s wall, 13,682 CPU s (a)",
    ),
    "2,500 x 2,000, 53 %, K = 20": (
        {"n_obs": 2_500, "rna_depth": 4_000.0, "n_spatial": 12, "n_nonspatial": 8},
        "NSF in TensorFlow, L = 20: 415 s wall, 4,215 CPU s (b)",
    ),
}
PUBLISHED = (
    "Published, on other data of about that size and on other machines: the stored results of the authors of NSF (`benchmark.csv` of their repository `nsf-paper`), Poisson, 1,000 inducing "
    "points, 12 cores. (a) `scrna/sshippo`, Slide-seqV2 hippocampus of about 36,000 beads, 150 epochs; with L = 20 it is 2,160 s wall, 22,694 CPU s. "
    "(b) `scrna/visium_brain_sagittal`, 2,363 spots, 2,000 genes, 290 epochs."
)
LIKELIHOODS = ("poisson", "nb")
SPLITS = ("assumed", "tested")


def run(case: str, likelihood: str, split: str) -> dict[str, float]:
    """One fit in this process."""
    import gpnsf
    from gpnsf.core.scores.metrics import match_factors

    settings, _ = CASES[case]
    mdata = gpnsf.datasets.tissue(n_genes=2_000, n_peaks=10, seed=1, **settings)
    adata, n_spatial = mdata["rna"].copy(), settings["n_spatial"]
    n_factors, fit = n_spatial + settings["n_nonspatial"], loaded()
    with measured() as seen:
        fit(
            adata,
            n_factors=n_factors,
            n_spatial=n_spatial,
            likelihoods=likelihood,
            split=split,
            progress=False,
        )
    totals = np.asarray(adata.X.sum(1)).ravel()
    # size factors are not identified: the truth is put on the scale of those that the fit used
    ratio = np.asarray(mdata.obs["true_size_rna"]) / (totals / totals.mean())
    truth, found = mdata.obsm["true_factors"] * ratio[:, None], adata.obsm["X_gpnsf"]
    return {
        "wall": seen.wall,
        "cpu": seen.cpu,
        "memory": seen.memory,
        "steps": len(adata.uns["gpnsf"]["history"]["elbo"]),
        "spatial": match_factors(truth[:, :n_spatial], found[:, :n_spatial])[1].mean(),
        "nonspatial": match_factors(truth[:, n_spatial:], found[:, n_spatial:])[1].mean(),
    }


def main() -> None:
    """Every case and likelihood."""
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--only", nargs=3, metavar=("CASE", "LIKELIHOOD", "SPLIT"))
    chosen = arguments.parse_args()
    if chosen.only:
        print(json.dumps(run(*chosen.only)))
        return
    rows = []
    for case, (_, reference) in CASES.items():
        for likelihood, split in product(LIKELIHOODS, SPLITS):
            seen = json.loads(
                in_fresh_process(
                    __file__, "--only", case, likelihood, split, threads=chosen.threads
                )
            )
            rows.append(
                {
                    "simulated tissue": case,
                    "likelihood": likelihood,
                    "split": split,
                    "steps": seen["steps"],
                    "CPU s": f"{seen['cpu']:.1f}",
                    "wall s": f"{seen['wall']:.1f}",
                    "peak GB": f"{seen['memory']:.2f}",
                    "spatial r": f"{seen['spatial']:.3f}",
                    "nonspatial r": f"{seen['nonspatial']:.3f}",
                    "for comparison": reference,
                }
            )
            print(rows[-1], flush=True)
    note = (
        f"Simulated tissues, seed 1, {chosen.threads} thread(s); imports and the loading of compiled code are not counted. "
        f"{machine()}. {PUBLISHED}"
    )
    write_table("speed", pd.DataFrame(rows), note)


if __name__ == "__main__":
    main()
