"""SpaMV: topics that modalities share and topics of their own, by a graph network."""

from __future__ import annotations

import numpy as np
import torch
from contract import Job, main
from SpaMV.spamv import SpaMV

NAMES = {"rna": "Transcriptome", "atac": "Epigenome", "protein": "Proteome"}


def fit(job: Job) -> dict[str, np.ndarray]:
    torch.set_num_threads(1)
    tables = []
    for name in job.modalities:
        counts = job.counts(name).toarray()
        most = np.sort(np.argsort(-counts.var(0), kind="stable")[: job.options["most_features"]])
        table = job.mdata[name][:, most].copy()
        table.X = counts[:, most]
        tables.append(table)
    model = SpaMV(
        tables,
        interpretable=True,
        omics_names=[NAMES[name] for name in job.modalities],
        device=torch.device("cpu"),
        random_seed=job.seed,
    )
    model.train()
    topics, _ = model.get_embedding_and_feature_by_topic()
    total = np.asarray(job.counts(job.modalities[0]).sum(1)).ravel()
    # topics are proportions: every spot is divided by its total
    return {
        "factors": topics.to_numpy(),
        "embedding": topics.to_numpy(),
        "scale": np.maximum(total, 1) / total.mean(),
    }


if __name__ == "__main__":
    main(fit)
