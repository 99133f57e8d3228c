"""poismf: Poisson (KL) factorisation by conjugate gradients, sparse on purpose."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from contract import Job, main, nearest_mean
from poismf import PoisMF


def fit(job: Job) -> dict[str, np.ndarray]:
    tables = [job.counts(name) for name in job.modalities]
    counts = sp.hstack(tables, format="coo")
    more = {"random_state": job.seed + 1, "nthreads": 1, "use_float": False}
    model = PoisMF(k=job.n_factors, **more, **job.options)
    model.fit(counts)
    ends = np.cumsum([table.shape[1] for table in tables])[:-1]
    parts = zip(job.modalities, np.split(model.B, ends), strict=True)
    found = {"factors": model.A, **{f"loadings_{name}": part for name, part in parts}}
    if job.new_coords is not None:
        found["rates"] = nearest_mean(job, model.A) @ model.B.T
    return found


if __name__ == "__main__":
    main(fit)
