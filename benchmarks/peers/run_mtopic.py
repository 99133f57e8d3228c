"""mTopic: topics of several modalities by variational inference, neighbours drawn together."""

from __future__ import annotations

import numpy as np
from contract import Job, main
from mtopic.tl import sMTM


def fit(job: Job) -> dict[str, np.ndarray]:
    for name in job.modalities:
        job.mdata[name].X = job.counts(name)
    model = sMTM(
        job.mdata,
        n_topics=job.n_factors,
        seed=job.seed,
        spatial_key="spatial",
        verbose=False,
        n_jobs=1,
    )
    model.VI(**job.options)
    topics = model.gamma / model.gamma.sum(1, keepdims=True)
    # topics are proportions of all modalities' counts together
    total = sum(np.asarray(job.counts(name).sum(1)).ravel() for name in job.modalities)
    found = {"factors": topics, "embedding": topics, "scale": np.maximum(total, 1) / total.mean()}
    for name in job.modalities:
        found[f"loadings_{name}"] = model.lambda_[name].T
    return found


if __name__ == "__main__":
    main(fit)
