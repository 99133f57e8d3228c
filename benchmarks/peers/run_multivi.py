"""MultiVI of scvi-tools, defaults, on raw counts of paired cells without places."""

from __future__ import annotations

import numpy as np
import scvi
import torch
from contract import Job, main


def fit(job: Job) -> dict[str, np.ndarray]:
    torch.set_num_threads(1)
    scvi.settings.seed = job.seed
    for name in ("rna", "atac"):
        job.mdata[name].X = job.counts(name)
    job.mdata["atac"].X = job.mdata["atac"].X.sign()
    read = {"rna_layer": None, "atac_layer": None}
    where = {"rna_layer": "rna", "atac_layer": "atac"}
    scvi.model.MULTIVI.setup_mudata(job.mdata, **read, modalities=where)
    model = scvi.model.MULTIVI(
        job.mdata, n_genes=job.mdata["rna"].n_vars, n_regions=job.mdata["atac"].n_vars
    )
    model.train(accelerator="cpu", enable_progress_bar=False, **job.options)
    return {"factors": model.get_latent_representation()}


if __name__ == "__main__":
    main(fit)
