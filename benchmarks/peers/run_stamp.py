"""STAMP (package sctm): topics of one modality by a graph network."""

from __future__ import annotations

import numpy as np
import scanpy as sc
import squidpy as sq
import torch
from contract import Job, main
from sctm.seed import seed_everything
from sctm.stamp import STAMP


def fit(job: Job) -> dict[str, np.ndarray]:
    torch.set_num_threads(1)
    seed_everything(job.seed)
    name = job.modalities[0]
    table = job.mdata[name].copy()
    table.layers["counts"] = table.X.copy()
    sc.pp.filter_genes(table, min_cells=max(1, round(0.01 * table.n_obs)))
    sq.gr.spatial_neighbors(table)
    model = STAMP(table, n_topics=job.n_factors, layer="counts")
    model.train(device="cpu", learning_rate=0.01)
    topics = model.get_cell_by_topic().to_numpy()
    return {"factors": topics, "embedding": topics, "scale": _totals(job, name)}


def _totals(job: Job, name: str) -> np.ndarray:
    """Topics are proportions: every spot is divided by its total."""
    total = np.asarray(job.counts(name).sum(1)).ravel()
    return np.maximum(total, 1) / total.mean()


if __name__ == "__main__":
    main(fit)
