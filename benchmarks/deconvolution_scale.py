"""Time and memory of deconvolution by the number of spots, each run in a process of its own."""

from __future__ import annotations

import json
import sys
from itertools import product

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from report import in_fresh_process, machine, measured, write_table

import gpnsf
from gpnsf.core.companions.pseudospots import drawn, smooth
from gpnsf.core.scores import agreement

SIDES = (100, 224, 500)  # of a square of spots
N_GENES, N_TYPES, DEPTH, PART = 500, 20, 100.0, 20_000
METHODS = {"nnls": {}, "graph": {"solver": "fista"}, "unrolled": {}}


def section(side: int) -> tuple[anndata.AnnData, pd.DataFrame]:
    """Simulated spots on a square, and the profiles of their types."""
    rng = np.random.default_rng(0)
    coords = np.column_stack(np.divmod(np.arange(side**2), side)).astype(float)
    profiles = rng.lognormal(0, 1, (N_GENES, 1)) * rng.lognormal(0, 0.8, (N_GENES, N_TYPES))
    profiles /= profiles.sum(axis=0)
    field = {"lengthscale": 10.0, "amplitude": 2.0, "abundance": 0.5, "noise": 0.2}
    truth, counts = [], []
    for rows in np.array_split(np.arange(side**2), side**2 // PART + 1):
        share = smooth(coords[rows], N_TYPES, rng=np.random.default_rng(1), **field)
        truth.append(share.astype(np.float32))
        counts.append(drawn(share, profiles, np.full(len(rows), DEPTH), rng).astype(np.float32))
    spots = anndata.AnnData(sp.vstack(counts, format="csr"))
    spots.var_names = [f"gene_{k}" for k in range(N_GENES)]
    spots.obsm["spatial"], spots.obsm["true_proportions"] = coords, np.concatenate(truth)
    types = [f"type_{k}" for k in range(N_TYPES)]
    return spots, pd.DataFrame(profiles, index=spots.var_names, columns=types)


def run(side: int, method: str) -> dict[str, object]:
    """One deconvolution, and what the process held before it."""
    spots, profiles = section(side)
    with measured() as before:
        pass
    options = {**METHODS[method], "method": method, "uncertainty": True, "progress": False}
    with measured() as after:
        gpnsf.tl.deconvolve(spots, profiles, **options)
    found, truth = spots.obsm["X_proportions"], spots.obsm["true_proportions"]
    error = agreement.relative_error(found.astype(float), truth.astype(float))
    return {
        "spots": f"{spots.n_obs:,}",
        "method": method,
        "CPU s": f"{after.cpu:.0f}",
        "GB before": f"{before.memory:.2f}",
        "GB at most": f"{after.memory:.2f}",
        "relative error": f"{error:.3f}",
    }


def scale() -> None:
    """The table of sizes."""
    rows = []
    for side, method in product(SIDES, METHODS):
        rows.append(json.loads(in_fresh_process(__file__, str(side), method, threads=1)))
        print(rows[-1], flush=True)
    note = (
        f"Simulated spots on a square with {DEPTH:.0f} counts each in {N_GENES} genes, {N_TYPES} types, profiles known, `uncertainty=True`. One thread; CPU seconds of the call. "
        f'Memory of the process: with the spots, the truth and the libraries before the call, and at most. "graph" by `solver="fista"`, its weight the default. {machine()}.'
    )
    write_table("deconvolution_scale", pd.DataFrame(rows), note)


if __name__ == "__main__":
    gpnsf.settings.verbosity = "error"
    print(json.dumps(run(int(sys.argv[1]), sys.argv[2])))
