"""One of several processes that share fits, or that fail together."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

__all__ = ["CASES", "fit_case", "main"]

CASES: dict[str, dict[str, Any]] = {
    "tested": {},
    "batches": {"library_key": "slice", "batch_key": "slice", "split": "assumed", "init": "spot"},
    "inducing": {"field": "inducing", "n_inducing": 30, "split": "assumed", "init": "spot"},
    "signed": {
        "model": "rsf",
        "n_factors": 3,
        "n_spatial": None,
        "split": "assumed",
        "init": "spot",
    },
    "pilot": {"split": "assumed", "likelihoods": "poisson"},
}


def fit_case(name: str) -> dict[str, np.ndarray]:
    """Slots of a short fit of a simulated section with two slices."""
    import gpnsf
    from gpnsf.core.inference import subset_start

    mdata = gpnsf.datasets.tissue(
        n_obs=240, n_genes=40, n_peaks=50, n_spatial=2, n_nonspatial=1, seed=0
    )
    mdata.obs["slice"] = np.where(np.arange(mdata.n_obs) % 2, "a", "b")
    rows, fewest = subset_start.ROWS, subset_start.FEWEST
    if name == "pilot":
        subset_start.ROWS = subset_start.FEWEST = 160
    options = {
        "n_factors": 4,
        "n_spatial": 2,
        "max_steps": 12,
        "block_size": 60,
        "progress": False,
        **CASES[name],
    }
    gpnsf.tl.fit(mdata, **options)
    subset_start.ROWS, subset_start.FEWEST = rows, fewest
    info = mdata.uns["gpnsf"]
    return {
        "X": mdata.obsm["X_gpnsf"],
        "std": mdata.obsm["X_gpnsf_std"],
        "rna": mdata["rna"].varm["gpnsf_loadings"],
        "atac": mdata["atac"].varm["gpnsf_loadings"],
        "elbo": info["history"]["elbo"],
        "processes": np.array(info["processes"]),
    }


def main(task: str, target: str) -> None:
    """Do a task beside the others."""
    import torch.distributed as dist

    from gpnsf.core import distributed

    distributed.join()
    try:
        if task == "fit":
            found = {
                f"{name} {slot}": value for name in CASES for slot, value in fit_case(name).items()
            }
            np.savez(f"{target}.{dist.get_rank()}.npz", **found)
        elif task == "error":
            distributed.from_first(lambda: 1 / 0)
        elif task == "differ":
            distributed.agree(distributed.rank(), "number")
        elif task == "die":
            if dist.get_rank() == 1:
                os._exit(9)
            distributed.total(1.0)
    finally:
        distributed.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
