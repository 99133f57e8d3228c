"""A fit in a process of its own, which a test may kill."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["OPTIONS", "fit_and_save", "slots"]

OPTIONS: dict[str, Any] = {
    "n_factors": 4,
    "n_spatial": 2,
    "max_steps": 32,
    "tol": 1e-12,
    "progress": False,
}


def slots(data: Any) -> dict[str, np.ndarray]:
    """Everything that a fit gives, but for what measures time and memory."""
    found = {name: data.obsm[name] for name in ("X_gpnsf", "X_gpnsf_smooth", "X_gpnsf_std")}
    for name, mod in data.mod.items():
        found |= {f"{name} {slot}": mod.varm[slot] for slot in ("gpnsf_loadings",)}
        found |= {
            f"{name} {slot}": mod.var[slot].to_numpy()
            for slot in mod.var
            if slot.startswith("gpnsf_")
        }
    info = data.uns["gpnsf"]
    found |= {
        "starts": np.array([str(sorted(info["starts"].items()))]),
        "repairs": np.array(info["repairs"], dtype=str),
    }
    found |= {name: np.asarray(info["history"][name]) for name in ("elbo", "phase")}
    found |= {name: value for name, value in info["field"].items() if isinstance(value, np.ndarray)}
    return {
        name: value.astype(str) if value.dtype == object else value for name, value in found.items()
    }


def fit_and_save(
    target: str, checkpoint: str | None, patience: float, options: dict[str, Any]
) -> None:
    """Fit a simulated section and write all slots to a file."""
    import gpnsf
    from gpnsf.core.inference import checkpoint as files
    from gpnsf.datasets import tissue

    files.PATIENCE = patience
    mdata = tissue(n_obs=90, n_genes=20, n_peaks=30, n_spatial=2, n_nonspatial=1, seed=0)
    gpnsf.tl.fit(mdata, **{**OPTIONS, **options}, checkpoint=checkpoint)
    np.savez(target, **slots(mdata))
