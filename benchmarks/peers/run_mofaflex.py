"""MOFA-FLEX: its preset for nonnegative spatial factors, with a start of one's choice."""

from __future__ import annotations

import numpy as np
import torch
from contract import Job, main
from mofaflex import MOFAFLEX, DataOptions, ModelOptions, SmoothOptions, TrainingOptions

LIKELIHOODS = {"rna": "NegativeBinomial", "protein": "NegativeBinomial", "atac": "Bernoulli"}


def fit(job: Job) -> dict[str, np.ndarray]:
    torch.set_num_threads(1)
    for name in job.modalities:
        table = job.mdata[name]
        table.X = job.counts(name)
        if LIKELIHOODS[name] == "Bernoulli":
            table.X.data[:] = 1
        table.obsm["covariates"] = _scaled(job, job.coords)
    model = MOFAFLEX(
        job.mdata,
        DataOptions(covariates_obsm_key="covariates", plot_data_overview=False, subset_var=None),
        ModelOptions(
            n_factors=job.n_factors,
            weight_prior="Horseshoe",
            factor_prior="GP",
            likelihoods={name: LIKELIHOODS[name] for name in job.modalities},
            nonnegative_weights=True,
            nonnegative_factors=True,
            init_factors=job.options["start"],
        ),
        TrainingOptions(
            device="cpu",
            lr=0.05,
            max_epochs=job.options["max_epochs"],
            seed=job.seed,
            save_path=False,
        ),
        SmoothOptions(n_inducing=job.options["n_inducing"], kernel="Matern"),
    )
    group, factors = next(iter(model.get_factors("numpy").items()))
    weights = model.get_weights("numpy")
    # regions are made of the fields: they do better than the factors
    found = {"factors": factors, "embedding": model.get_gps("numpy")[group]}
    for name in job.modalities:
        found[f"loadings_{name}"] = _whole(job, model, name, weights[name])
    if job.new_coords is not None:
        new = {group: torch.as_tensor(_scaled(job, job.new_coords), dtype=torch.float32)}
        fields = np.maximum(
            model.get_gps("numpy", x=new)[group], 0
        )  # its factors are a ReLU of them
        found["rates"] = fields @ found[f"loadings_{job.modalities[0]}"].T + 1e-9
    return found


def _whole(job: Job, model: MOFAFLEX, name: str, weights: np.ndarray) -> np.ndarray:
    """Loadings [P, K] with zeros for features that it has left out as constant."""
    weights = weights if weights.shape[1] == job.n_factors else weights.T
    places = job.mdata[name].var_names.get_indexer(model.feature_names[name])
    whole = np.zeros((job.mdata[name].n_vars, job.n_factors))
    whole[places] = weights
    return whole


def _scaled(job: Job, coords: np.ndarray) -> np.ndarray:
    """Coordinates in half-widths of the section."""
    return ((coords - job.coords.mean(0)) / (np.ptp(job.coords, axis=0).max() / 2)).astype(
        np.float32
    )


if __name__ == "__main__":
    main(fit)
