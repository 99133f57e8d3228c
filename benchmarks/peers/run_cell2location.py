"""cell2location: mean counts as signatures, a variational fit of few epochs, posterior means of abundances."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import scvi
import torch
from cell2location.models import Cell2location
from mixtures import Job, main


def fit(job: Job) -> np.ndarray:
    torch.set_num_threads(1)
    scvi.settings.seed = 0
    options = dict(job.options)
    training = options.pop("train")
    kept = (job.profiles.sum(axis=1) > 0) & (job.counts.sum(axis=0) > 0)
    genes = [f"gene {i}" for i in np.flatnonzero(kept)]
    names = [f"type {i:03d}" for i in range(len(job.numbers))]
    spots = anndata.AnnData(
        job.counts[:, kept].astype(np.float32),
        obs=pd.DataFrame(index=[f"spot {i}" for i in range(len(job.counts))]),
        var=pd.DataFrame(index=genes),
    )
    signatures = pd.DataFrame(job.profiles[kept], index=genes, columns=names)
    Cell2location.setup_anndata(spots)
    model = Cell2location(spots, cell_state_df=signatures, **options)
    model.train(**training, batch_size=None, train_size=1, accelerator="cpu")
    found = model.export_posterior(
        spots, sample_kwargs={"num_samples": 200, "batch_size": spots.n_obs, "accelerator": "cpu"}
    )
    return np.asarray(found.obsm["means_cell_abundance_w_sf"])


if __name__ == "__main__":
    main(fit)
