"""mTopic: topics of several modalities by variational inference, neighbours drawn together."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from contract import Job, main
from mtopic.tl import sMTM
from sklearn.feature_extraction.text import TfidfTransformer


def fit(job: Job) -> dict[str, np.ndarray]:
    for name in job.modalities:  # as its tutorial on RNA and ATAC does with functions of its own
        weighted = TfidfTransformer(norm=None, smooth_idf=False).fit_transform(job.counts(name))
        job.mdata[name].X = sp.csr_matrix(weighted * (1e4 * job.mdata.n_obs / weighted.sum()))
    model = sMTM(
        job.mdata,
        n_topics=job.n_factors,
        seed=job.seed,
        spatial_key="spatial",
        verbose=False,
        n_jobs=1,
        **job.options,
    )
    model.VI()
    topics = model.gamma / model.gamma.sum(1, keepdims=True)
    # topics are proportions of all modalities' counts together
    total = sum(np.asarray(job.counts(name).sum(1)).ravel() for name in job.modalities)
    found = {"factors": topics, "embedding": topics, "scale": np.maximum(total, 1) / total.mean()}
    for name in job.modalities:
        found[f"loadings_{name}"] = model.lambda_[name].T
    return found


if __name__ == "__main__":
    main(fit)
