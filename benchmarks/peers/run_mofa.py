"""mofapy2: MOFA without space, MEFISTO with it, both Gaussian on log-normalised counts."""

from __future__ import annotations

import numpy as np
from contract import Job, main
from mofapy2.run.entry_point import entry_point


def fit(job: Job) -> dict[str, np.ndarray]:
    tables = {name: job.log_normalised(name) for name in job.modalities}
    used = {name: table.std(0) > 1e-8 for name, table in tables.items()}
    entry = _entry(job, {name: table[:, used[name]] for name, table in tables.items()})
    entry.build()
    with job.in_time():
        entry.run()
    factors = entry.model.nodes["Z"].getExpectations()["E"]
    loadings = [node["E"] for node in entry.model.nodes["W"].getExpectations()]
    found = {"factors": factors, "scale": job.size(job.modalities[0])}
    for name, W in zip(tables, loadings, strict=True):
        found[f"loadings_{name}"] = np.zeros((len(used[name]), W.shape[1]))
        found[f"loadings_{name}"][used[name]] = W
    if job.new_coords is not None and "smooth" in job.options:
        found["rates"] = _rates(job, entry, tables[job.modalities[0]], found)
    return found


def _entry(job: Job, tables: dict[str, np.ndarray]) -> entry_point:
    """Options in the order in which mofapy2 wants them; all that is not named is its default."""
    entry = entry_point()
    entry.set_data_options(
        scale_views=True
    )  # else its start is too far from tables of small values
    entry.set_data_matrix(
        [[table] for table in tables.values()],
        likelihoods=["gaussian"] * len(tables),
        views_names=list(tables),
        samples_names=[[f"obs{i}" for i in range(job.mdata.n_obs)]],
        features_names=[
            [f"{name}_{j}" for j in range(table.shape[1])] for name, table in tables.items()
        ],
    )
    if "smooth" in job.options:
        entry.set_covariates([_scaled(job, job.coords)])
    entry.set_model_options(factors=job.n_factors)
    entry.set_train_options(seed=job.seed, convergence_mode="fast")
    if "smooth" in job.options:
        entry.set_smooth_options(**job.options["smooth"])
    return entry


def _scaled(job: Job, coords: np.ndarray) -> np.ndarray:
    """Coordinates in half-widths of the section."""
    return (coords - job.coords.mean(0)) / (np.ptp(job.coords, axis=0).max() / 2)


def _rates(job: Job, entry: entry_point, logs: np.ndarray, found: dict) -> np.ndarray:
    """Expected counts at new places by mofapy2's own interpolation of the factors."""
    new = _scaled(job, job.new_coords)
    entry.predict_factor(new_covariates=new, uncertainty=False)
    # mofapy2 returns the places sorted
    order = np.unique(new, axis=0, return_inverse=True)[1].ravel()
    predicted = entry.Zpredictions["mean"][order]
    W = found[f"loadings_{job.modalities[0]}"]
    return np.maximum(np.expm1(predicted @ W.T + logs.mean(0)), 0)


if __name__ == "__main__":
    main(fit)
