"""Without a model of space: KL-NMF or PCA of scikit-learn, of the values as they are or of means over neighbours."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from contract import Job, main, nearest_mean, neighbour_mean
from sklearn.decomposition import NMF, PCA


def klnmf(job: Job) -> dict[str, np.ndarray]:
    tables = [job.counts(name) for name in job.modalities]
    counts = sp.hstack(tables, format="csr")
    if job.options["neighbors"]:
        counts = neighbour_mean(counts, job.coords, job.options["neighbors"])
    model = NMF(
        job.n_factors,
        beta_loss="kullback-leibler",
        solver="mu",
        init="nndsvda",
        max_iter=200,
        tol=1e-5,
        random_state=job.seed,
    )
    factors = model.fit_transform(counts)
    return {
        "factors": factors,
        **_parts(job, model.components_.T, tables),
        **_rates(job, factors, model),
    }


def _parts(job: Job, W: np.ndarray, tables: list) -> dict[str, np.ndarray]:
    """Loadings by modality."""
    ends = np.cumsum([table.shape[1] for table in tables])[:-1]
    return {
        f"loadings_{n}": part for n, part in zip(job.modalities, np.split(W, ends), strict=True)
    }


def _rates(job: Job, factors: np.ndarray, model: NMF) -> dict[str, np.ndarray]:
    """Expected counts of spots that are held out, from the mean profile of the nearest spots."""
    if job.new_coords is None:
        return {}
    return {"rates": nearest_mean(job, factors) @ model.components_}


def pca(job: Job) -> dict[str, np.ndarray]:
    tables = [job.log_normalised(name) for name in job.modalities]
    # the modalities side by side, each with total variance 1
    centred = [table - table.mean(0) for table in tables]
    values = np.hstack([table / np.sqrt(np.square(table).sum() / len(table)) for table in centred])
    if job.options["neighbors"]:
        values = neighbour_mean(values, job.coords, job.options["neighbors"])
    model = PCA(job.n_factors, random_state=job.seed)
    factors = model.fit_transform(values)
    found = {"factors": factors, "scale": job.size(job.modalities[0])}
    found |= _parts(job, model.components_.T, tables)
    if job.new_coords is not None:
        spread = np.sqrt(np.square(centred[0]).sum() / len(tables[0]))
        logs = model.inverse_transform(nearest_mean(job, factors)) * spread + tables[0].mean(0)
        found["rates"] = np.maximum(np.expm1(logs), 0)
    return found


def mean_of_counts(job: Job) -> dict[str, np.ndarray]:
    """No factors at all: what the nearest spots have."""
    counts = job.counts(job.modalities[0]).toarray()
    return {"factors": np.zeros((len(counts), 0)), "rates": nearest_mean(job, counts)}


METHODS = {"klnmf": klnmf, "pca": pca, "mean": mean_of_counts}


if __name__ == "__main__":
    main(lambda job: METHODS[job.options["method"]](job))
