"""A fit in a process of its own: the memory that it takes, and the forecast."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import scipy.sparse as sp

__all__ = ["SHAPES", "increment"]

# observations, features, nonzeros of an observation, likelihood, factors
SHAPES = {
    "many factors": (30_000, 300, 20, "poisson", 30),
    "many features": (3_000, 60_000, 300, "bernoulli", 30),
    "many counts": (4_400, 26_000, 1_500, "nb", 30),
}


def increment(
    n_obs: int, n_features: int, per_row: int, likelihood: str, n_factors: int
) -> tuple[float, float]:
    """Bytes that a short fit of noise adds to what the process holds, and those that were forecast."""
    from anndata import AnnData

    import gpnsf
    from gpnsf.core.inference.training import give_back

    rng = np.random.default_rng(0)
    small = AnnData(sp.random(100, 30, 0.5, "csr", np.float32, random_state=0).ceil())
    small.obsm["spatial"] = rng.uniform(0, 1, (100, 2))
    gpnsf.tl.fit(
        small, n_factors=2, max_steps=8, split="assumed", progress=False
    )  # imports and compiles
    per_row = max(1, per_row)
    indices = np.sort(rng.integers(0, n_features, (n_obs, per_row), dtype=np.int32), axis=1).ravel()
    pointers = np.arange(0, len(indices) + 1, per_row)
    counts = sp.csr_matrix(
        (np.ones(len(indices), np.float32), indices, pointers), (n_obs, n_features)
    )
    counts.sum_duplicates()
    counts.data[:] = 1
    adata = AnnData(counts)
    adata.obsm["spatial"] = rng.uniform(0, 1, (n_obs, 2))
    options = {
        "likelihoods": likelihood,
        "n_factors": n_factors,
        "split": "assumed",
        "max_steps": 8,
    }
    if likelihood != "nb":  # its forecast is 36 % above the peak of a fit from one start
        options["init"] = "spot"
    found = gpnsf.tl.forecast(adata, **options)
    give_back()  # what was freed is not held
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    gpnsf.tl.fit(adata, **options, progress=False)
    return _status("VmHWM") - before, found.memory - found.held


def _status(name: str) -> float:
    """An entry of what the system knows of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


if __name__ == "__main__":
    sys.stdout.write(" ".join(map(str, increment(*SHAPES[sys.argv[1]]))))
