"""scAI: simulated groups of cells, real cells with labels, averaged peaks, time and memory.

GPNSF_DATA_DIR=... gpnsf benchmark scai [--seeds 2] [--jobs 1] [--only groups real averages scale]
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from joblib import Parallel, delayed
from report import in_fresh_process, machine, measured, parser, write_table
from sklearn.cluster import KMeans
from sklearn.decomposition import NMF, PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import gpnsf
from gpnsf.core.companions.scai import (
    Averages,
    Weights,
    memory,
    normalised,
    redundancy,
    start,
    step,
)
from gpnsf.datasets.files import load
from gpnsf.datasets.groups import VARIANTS

SIZES = (500, 1000, 2000, 4000)
EPS = np.float32(np.finfo(float).eps)


def values(mdata) -> list[sp.csr_matrix]:
    """Normalised values of RNA and of open peaks, each with norm 1."""
    both = [normalised(mdata["rna"].X), normalised(mdata["atac"].X.sign())]
    return [X / np.linalg.norm(X.data) for X in both]


def kmeans(points: np.ndarray, k: int) -> np.ndarray:
    return KMeans(k, n_init=20, random_state=0).fit_predict(points)


def components(parts: list[sp.csr_matrix], k: int) -> np.ndarray:
    """Clusters on 2k principal components."""
    dense = sp.hstack(parts).toarray().astype(np.float32)
    return kmeans(PCA(2 * k, random_state=0).fit_transform(dense), k)


def largest(H: np.ndarray) -> np.ndarray:
    return (H / np.maximum(H.mean(axis=0), EPS)).argmax(axis=1)


def joint_nmf(parts: list[sp.csr_matrix], k: int) -> np.ndarray:
    """Largest factor of a plain NMF of both modalities side by side."""
    side = sp.hstack(parts).tocsr() * np.sqrt(parts[0].shape[0])
    return largest(NMF(k, init="nndsvda", max_iter=300, random_state=0).fit_transform(side))


def published(
    parts: list[sp.csr_matrix], k: int, seed: int, *, n_steps: int = 300, n_starts: int = 2
) -> np.ndarray:
    """Largest factor by the published updates from random starts, at the default weights of the R package."""
    share, alpha, lam, gamma = 0.25, 1.0, 1e5, 1.0
    X1, X2 = (sp.csr_matrix(X.T, dtype=np.float32) for X in parts)  # features x cells
    n, found = X1.shape[1], []
    G = (X2.T @ X2).toarray().astype(np.float32)
    for number in range(n_starts):
        rng = np.random.default_rng([seed, number])
        R = rng.random((n, n), dtype=np.float32) < share
        H, Z = rng.random((k, n), dtype=np.float32), rng.random((n, n), dtype=np.float32)
        W1, W2 = (rng.random((X.shape[0], k), dtype=np.float32) for X in (X1, X2))
        for _ in range(n_steps):
            H /= H.sum(axis=1, keepdims=True)
            M = Z * R
            W1 *= (X1 @ H.T) / (W1 @ (H @ H.T) + EPS)
            W2 *= (X2 @ (M @ H.T)) / (W2 @ (H @ H.T) + EPS)
            up = alpha * (X1.T @ W1).T + (X2.T @ W2).T @ M + lam * H @ (Z + Z.T)
            H *= up / ((alpha * W1.T @ W1 + W2.T @ W2 + 2 * lam * H @ H.T + gamma) @ H + EPS)
            Z *= (R * ((X2.T @ W2) @ H) + lam * H.T @ H) / (R * (G @ M) + lam * Z + EPS)
        found.append((redundancy(W1, W2), H.T))
    return largest(min(found, key=lambda item: item[0])[1])


def scai(mdata, k: int, **options) -> np.ndarray:
    """Largest factor of each cell."""
    gpnsf.tl.scai(mdata, n_factors=k, progress=False, **options)
    return mdata.obsm["X_scai"].argmax(axis=1)


def agreement(variant: str, seed: int) -> dict[str, float]:
    """Agreement of the clusters of each method with the true groups of one simulation."""
    logging.getLogger("gpnsf").setLevel("ERROR")
    mdata = gpnsf.datasets.groups(variant, seed=seed)
    truth, k, parts = mdata.obs["true_group"], mdata.obsm["true_factors"].shape[1], values(mdata)
    labels = {
        "PCs of RNA": components(parts[:1], k),
        "PCs of ATAC": components(parts[1:], k),
        "PCs of both": components(parts, k),
        "NMF of both": joint_nmf(parts, k),
        "as published": published([normalised(mdata[name].X) for name in ("rna", "atac")], k, seed),
        "beta = 0": scai(mdata, k, beta=0.0, seed=seed),
        "scAI": scai(mdata, k, seed=seed),
    }
    return {name: adjusted_rand_score(truth, found) for name, found in labels.items()}


def groups(n_seeds: int, n_jobs: int) -> None:
    """Agreement with the true groups, mean and lowest over seeds."""
    cases = [(variant, seed) for variant in VARIANTS for seed in range(n_seeds)]
    found = pd.DataFrame(
        Parallel(n_jobs, backend="multiprocessing")(delayed(agreement)(*case) for case in cases)
    )
    found.insert(0, "groups", [variant for variant, _ in cases])
    table = found.groupby("groups", sort=False).agg(_mean).reset_index()
    same = ", so both are the same," if n_seeds == 1 else ""
    note = (
        f"Adjusted Rand index with the true groups, mean (lowest) of {n_seeds} simulation(s){same} of 500 cells, 2,000 genes, 5,000 peaks. "
        "PCs: k-means on twice as many principal components as groups. NMF and the last three: the largest factor of each cell. As published: the "
        "multiplicative updates and weights of the R package (s = .25, alpha = 1, lambda = 1e5, gamma = 1), our implementation, 300 "
        f"steps, best of 2 random starts by its own criterion. All methods are told the true number of groups. {machine()}."
    )
    write_table("scai_groups", table, note)


def _mean(scores: pd.Series) -> str:
    return f"{scores.mean():.2f} ({scores.min():.2f})"


def real(*_: int) -> None:
    """Agreement with the labels of real cells."""
    lines = []
    for name, column in (("scicar_a549", "time_h"), ("snareseq_human_celllines", "cell_type")):
        mdata = load(name)
        labels = mdata.obs[column] if column in mdata.obs else mdata["rna"].obs[column]
        truth, k, parts = labels.astype(str).to_numpy(), labels.nunique(), values(mdata)
        rivals = {
            "k-means, PCs of RNA": lambda p=parts, k=k: components(p[:1], k),
            "k-means, PCs of ATAC": lambda p=parts, k=k: components(p[1:], k),
            "k-means, PCs of both": lambda p=parts, k=k: components(p, k),
            "NMF of both": lambda p=parts, k=k: joint_nmf(p, k),
            "scAI": lambda m=mdata, k=k: scai(m, k),
        }
        for method, call in rivals.items():
            with measured() as run:
                found = call()
            lines.append(
                {
                    "cells": f"{name}: {mdata.n_obs:,} in {k} of {column}",
                    "method": method,
                    "ARI": f"{adjusted_rand_score(truth, found):.2f}",
                    "NMI": f"{normalized_mutual_info_score(truth, found):.2f}",
                    "CPU s": f"{run.cpu:.0f}",
                }
            )
            print(lines[-1], flush=True)
    note = (
        "As many clusters or factors as labels; k-means on twice as many principal components; NMF and scAI: the largest factor of each cell. sci-CAR A549 cells 0, 1 and 3 hours after dexamethasone (RNA "
        f"back-transformed, peaks binary); SNARE-seq of four cell lines (500 genes). {machine()}."
    )
    write_table("scai_real", pd.DataFrame(lines), note)


def averages(n_seeds: int, _: int) -> None:
    """How well peaks that mark groups follow their true rates."""
    lines = []
    for variant in ("plain", "weak", "closed"):
        scores: dict[str, list[float]] = {}
        for seed in range(n_seeds):
            mdata = gpnsf.datasets.groups(variant, seed=seed)
            atac, k = mdata["atac"], mdata.obsm["true_factors"].shape[1]
            truth = mdata.obsm["true_factors"] @ atac.varm["true_loadings"].T
            marking = np.flatnonzero(
                atac.var["marker"].to_numpy() & (np.asarray(atac.X.sum(axis=0)).ravel() > 0)
            )
            estimates = {"normalised counts": normalised(atac.X).toarray()}
            for mask in (0.25, 1.0):
                scai(mdata, k, mask=mask, seed=seed, layer_added="averaged")
                estimates[f"averaged, mask = {mask:g}"] = atac.layers["averaged"]
            estimates["X_scai @ scai_loadings.T"] = (
                mdata.obsm["X_scai"] @ atac.varm["scai_loadings"].T
            )
            for name, X in estimates.items():
                each = [np.corrcoef(X[:, j], truth[:, j])[0, 1] for j in marking]
                scores.setdefault(name, []).append(float(np.nanmean(each)))
        lines.append(
            {"groups": variant} | {name: f"{np.mean(each):.2f}" for name, each in scores.items()}
        )
        print(lines[-1], flush=True)
    note = (
        "Mean correlation over the cells, for peaks that mark groups, with the true rate of the cell's group; mean of "
        f"{n_seeds} simulation(s). {machine()}."
    )
    write_table("scai_averages", pd.DataFrame(lines), note)


def scale(*_: int) -> None:
    """Seconds of a step and peak memory against the number of cells, each in a process of its own."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for n_obs in SIZES:
            path = Path(folder) / f"{n_obs}.h5mu"
            gpnsf.datasets.groups(n_obs=n_obs).write_h5mu(path)
            found = json.loads(in_fresh_process(__file__, "--measure", str(path), threads=1))
            lines.append(
                {
                    "cells": f"{n_obs:,}",
                    "CPU s before": f"{found['before']:.1f}",
                    "CPU s a step": f"{found['step']:.2f}",
                    "CPU s of five starts and 100 steps": f"{found['before'] + 175 * found['step']:.0f}",
                    "peak GB": f"{found['memory']:.2f}",
                    "of it similarities, GB": f"{memory(n_obs) / 1e9:.2f}",
                }
            )
            print(lines[-1], flush=True)
    note = (
        "Simulated groups, 2,000 genes and 5,000 peaks, 5 factors, one thread. Measured: the time before the first step, and the mean of five steps; "
        f"a call with five starts and 100 steps makes 175 steps in all. The peak holds Python, the libraries and the data. {machine()}."
    )
    write_table("scai_scale", pd.DataFrame(lines), note)


def measure(path: str) -> None:
    """CPU seconds before the first step and of a step, and the peak of memory."""
    mdata = mudata.read_h5mu(path)
    parts, labels = values(mdata), mdata.obs["true_group"].cat.codes.to_numpy()
    with measured() as before:
        data = Averages.make(*parts, Weights(), 0)
        found = start(data, labels, 5)
    with measured() as steps:
        for _ in range(5):
            step(data, found)
    print(json.dumps({"before": before.cpu, "step": steps.cpu / 5, "memory": steps.memory}))


PARTS = {"groups": groups, "real": real, "averages": averages, "scale": scale}


def main() -> None:
    """The tables asked for."""
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=2)
    arguments.add_argument("--jobs", type=int, default=1)
    arguments.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments.add_argument("--measure", metavar="FILE")
    chosen = arguments.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("gpnsf").setLevel("ERROR")
    if chosen.measure:
        measure(chosen.measure)
        return
    for name in chosen.only:
        PARTS[name](chosen.seeds, chosen.jobs)


if __name__ == "__main__":
    sys.exit(main())
