"""Fits in a process of its own, whose memory is limited or measured."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np
import scipy.sparse as sp

__all__ = ["fit_within", "peak_of_fit", "write_file"]


def write_file(path: str, n_obs: int, n_features: int, density: float) -> None:
    """Simulated counts of two smooth factors, few of them larger than zero."""
    from anndata import AnnData

    rng = np.random.default_rng(0)
    coords = rng.uniform(-1, 1, (n_obs, 2))
    per_row = rng.poisson(density * n_features * np.exp(0.5 * np.sin(3 * coords[:, 0])))
    right = rng.random(per_row.sum()) < np.repeat(0.5 + 0.4 * np.sin(4 * coords[:, 1]), per_row)
    feature = (rng.integers(0, n_features // 2, per_row.sum()) + right * (n_features // 2)).astype(
        np.int32
    )
    counts = sp.csr_matrix(
        (np.ones(len(feature), np.float32), feature, np.append(0, np.cumsum(per_row))),
        (n_obs, n_features),
    )
    counts.sum_duplicates()
    adata = AnnData(counts)
    adata.obsm["spatial"] = coords
    adata.write_h5ad(path)


def fit_within(path: str, limit: int) -> None:
    """A fit of the file in this many bytes of addresses."""
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    import gpnsf

    gpnsf.tl.fit(
        path, n_factors=10, likelihoods="bernoulli", split="assumed", max_steps=4, progress=False
    )


def peak_of_fit(path: str) -> int:
    """Largest resident memory in bytes of a process that fits the file and keeps none of its counts."""
    import gpnsf
    from gpnsf.core.inference import subset_start

    subset_start.ROWS = subset_start.FEWEST = 1_000  # a start is looked for in so many rows
    with gpnsf.settings.override(memory_budget=0):
        gpnsf.tl.fit(
            path,
            n_factors=4,
            likelihoods="poisson",
            split="assumed",
            max_steps=4,
            block_size=5_000,
            progress=False,
        )
    # not of getrusage, which begins at what the parent held when it made this process
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    task, path, *rest = sys.argv[1:]
    if task == "peak":
        sys.stdout.write(str(peak_of_fit(path)))
    else:
        fit_within(path, int(*rest))
