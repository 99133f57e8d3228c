"""SMOPCA: principal components of several modalities with a Matern prior over space."""

from __future__ import annotations

import numpy as np
from contract import Job, main
from scipy.spatial import cKDTree
from SMOPCA import SMOPCA


def fit(job: Job) -> dict[str, np.ndarray]:
    tables, used = [], []
    for name in job.modalities:
        logs = job.log_normalised(name)
        keep = _kept(job, name, logs.std(0))
        tables.append(((logs[:, keep] - logs[:, keep].mean(0)) / logs[:, keep].std(0)).T)
        used.append(keep)
    # its length scale of 5 is for coordinates of an array: 1 between neighbours
    spacing = np.median(cKDTree(job.coords).query(job.coords, 2)[0][:, 1])
    number = len(tables)
    model = SMOPCA(tables, job.coords / spacing, Z_dim=job.n_factors, intercept=False)
    model.estimateParams(
        sigma_init_list=(1,) * number, sigma_xtol_list=(1e-6,) * number, gamma_init=5
    )
    found = {
        "factors": np.asarray(model.calculatePosterior()),
        "scale": job.size(job.modalities[0]),
    }
    for name, keep, W in zip(job.modalities, used, model.W_hat_list, strict=True):
        found[f"loadings_{name}"] = np.zeros((job.mdata[name].n_vars, job.n_factors))
        found[f"loadings_{name}"][keep] = W
    return found


def _kept(job: Job, name: str, spread: np.ndarray) -> np.ndarray:
    """Features that vary; of peaks those that are open most often: its eigenvectors are those of a matrix [P, P]."""
    keep = np.flatnonzero(spread > 1e-8)
    most = job.options["most_features"]
    totals = np.asarray(job.counts(name).sum(0)).ravel()[keep]
    return np.sort(keep[np.argsort(-totals, kind="stable")[:most]])


if __name__ == "__main__":
    main(fit)
