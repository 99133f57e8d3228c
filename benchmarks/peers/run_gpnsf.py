"""gpnsf, the default call with the number of factors that all get."""

from __future__ import annotations

import logging

import numpy as np
from contract import Job, main

import gpnsf
from gpnsf.core.counts.backends import backend

backend("cpu")  # compiled code, loaded as imports are


def fit(job: Job) -> dict[str, np.ndarray]:
    logging.getLogger("gpnsf").setLevel("ERROR")
    # a table of its own where there is one modality: its name need not be one that gpnsf knows
    one = len(job.modalities) == 1
    data = job.mdata[job.modalities[0]].copy() if one else job.mdata
    gpnsf.tl.fit(
        data,
        n_factors=job.n_factors,
        size_factors="total" if job.size_factors else None,
        seed=job.seed,
        progress=False,
        **job.options,
    )
    tables = {name: data if one else data[name] for name in job.modalities}
    found = {f"loadings_{name}": table.varm["gpnsf_loadings"] for name, table in tables.items()}
    found |= {"factors": data.obsm["X_gpnsf"], "embedding": data.obsm["X_gpnsf_embedding"]}
    found |= {"scale": job.size(job.modalities[0])}
    if job.new_coords is not None:
        table = tables[job.modalities[0]]
        new = gpnsf.tl.predict(data, job.new_coords)
        background = table.var["gpnsf_background"].to_numpy()
        found["rates"] = new.X @ table.varm["gpnsf_loadings"].T + background
    return found


if __name__ == "__main__":
    main(fit)
