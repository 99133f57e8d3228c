"""Tangram: types mapped to spots in clusters mode; each type has as many like cells as in the reference."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import tangram as tg
import torch
from mixtures import Job, main


def fit(job: Job) -> np.ndarray:
    torch.set_num_threads(1)
    genes = pd.DataFrame(index=[f"gene {i}" for i in range(len(job.profiles))])
    names = [f"type {i:03d}" for i in range(len(job.numbers))]
    code = np.repeat(np.arange(len(names)), job.numbers.astype(int))
    labels = pd.DataFrame(
        {"type": np.array(names)[code]}, index=[f"cell {i}" for i in range(len(code))]
    )
    cells = anndata.AnnData(job.profiles.T[code].astype(np.float32), obs=labels, var=genes.copy())
    spots = anndata.AnnData(
        job.counts.astype(np.float32),
        obs=pd.DataFrame(index=[f"spot {i}" for i in range(len(job.counts))]),
        var=genes.copy(),
    )
    tg.pp_adatas(cells, spots, genes=None)
    mapping = tg.map_cells_to_space(
        cells,
        spots,
        mode="clusters",
        cluster_label="type",
        device="cpu",
        random_state=0,
        **job.options,
    )
    tg.project_cell_annotations(mapping, spots, annotation="type")
    share = spots.obsm["tangram_ct_pred"].reindex(columns=names, fill_value=0.0).to_numpy()
    return share * job.numbers  # where the cells of a type are, times their number


if __name__ == "__main__":
    main(fit)
