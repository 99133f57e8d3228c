"""Rivals of FactVAE on cells without places: their codes, each for k-means, and a paired test over seeds."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from peers import CACHE
from race import PEERS, Method, ended, installed, read
from report import measured
from scipy.stats import ttest_rel
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_score,
)

import gpnsf
from gpnsf.core.scores.deviance import feature_deviance, largest
from gpnsf.core.scores.projections import principal_components, semantic_index
from gpnsf.io.read import read_counts

N_PEAKS = 5000  # of largest deviance, for models that read all they get
N_FACTORS = 10
LIMIT = 400.0  # CPU seconds of one run of a peer
REFERENCE = "50 principal components of RNA"

Scores = list[tuple[float, ...]]


def agreement(codes: np.ndarray, truth: np.ndarray, seed: int) -> tuple[float, float, float]:
    """ARI and NMI of k-means with the true number of clusters, and the silhouette of the true ones."""
    found = KMeans(len(np.unique(truth)), n_init=10, random_state=seed).fit_predict(codes)
    return (
        adjusted_rand_score(truth, found),
        normalized_mutual_info_score(truth, found),
        silhouette_score(codes, truth),
    )


def paired(scores: Scores, reference: Scores) -> str:
    """p of a paired t test over the seeds that both have, of ARI and of NMI; nothing where there are none to test."""
    n = min(len(scores), len(reference))
    own, other = (np.array(each)[:n, :2] for each in (scores, reference))
    if n < 3 or np.allclose(own, other):
        return ""
    signs = ("higher" if mean > 0 else "lower" for mean in (own - other).mean(axis=0))
    tested = zip(signs, ttest_rel(own, other).pvalue, strict=True)
    return " / ".join(f"{sign}, {p:.2g}" for sign, p in tested)


def beside(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Both scores [N, C] side by side, with the same total variance."""
    return np.hstack([X / np.sqrt(X.var(axis=0).sum()) for X in (one, other)])


def inputs(mdata) -> dict[str, np.ndarray]:
    """What the encoders read."""
    rna, atac = (
        read_counts(mdata[name], layer=None, likelihood="poisson", modality=name)
        for name in ("rna", "atac")
    )
    components, index = principal_components(rna, 50, seed=0), semantic_index(atac, 100, seed=0)
    return {
        f"no model: {REFERENCE}": components,
        "no model: LSI of ATAC, 100 components": index,
    }


def fewer_peaks(mdata):
    """The object with the peaks of largest deviance."""
    counts = read_counts(mdata["atac"], layer=None, likelihood="poisson", modality="atac")
    mdata.mod["atac"] = mdata["atac"][
        :, largest(feature_deviance(counts, "poisson"), N_PEAKS)
    ].copy()
    mdata.update()
    return mdata


def factors(mdata, seed: int) -> np.ndarray:
    """Factors of `tl.fit` without space, by what they express."""
    gpnsf.tl.fit(mdata, model="pnmf", n_factors=N_FACTORS, seed=seed, progress=False)
    return gpnsf.tl.factor_adata(mdata).obsm["X_gpnsf_embedding"]


def averaged(mdata, seed: int) -> np.ndarray:
    """Factors of scAI, by what they express."""
    gpnsf.tl.scai(mdata, n_factors=N_FACTORS, seed=seed, progress=False)
    return gpnsf.tl.factor_adata(mdata, key="scai").obsm["X_scai_embedding"]


def peer(name: str) -> Callable[..., np.ndarray]:
    """Codes of a peer that runs in a process of its own, in its own environment; what has run is not run again."""

    def codes(mdata, seed: int) -> np.ndarray:
        environments, methods = read(PEERS / "factvae.toml")
        method = methods[name]
        found = CACHE / "results" / f"factvae_{name}_{seed}_{digest(method.script)}.npz"
        took = found.with_suffix(".took.json")
        if not took.exists():
            python, failure = installed(environments[method.environment], CACHE / "environments")
            failure = failure or process(python, method, mdata, seed, found)
            if failure:
                raise RuntimeError(failure)
        codes.seconds = json.loads(took.read_text())["cpu"]
        return np.load(found)["factors"]

    return codes


def digest(script: str) -> str:
    """What changes when the code of a peer's run or the number of peaks does."""
    parts = [(PEERS / name).read_bytes() for name in (script, "contract.py")]
    return hashlib.sha256(b"".join([*parts, str(N_PEAKS).encode()])).hexdigest()[:12]


def process(python: str, method: Method, mdata, seed: int, found: Path) -> str:
    """Run a peer in a process of its own; what went wrong, or nothing."""
    found.parent.mkdir(parents=True, exist_ok=True)
    settings = {"n_factors": method.n_factors or N_FACTORS, "size_factors": True}
    settings |= {"seed": seed, "limit": LIMIT, "options": method.options}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5mu"
        mdata.write(path)
        script = str(PEERS / method.script)
        command = [python, "-W", "ignore", script, str(path), str(found), json.dumps(settings)]
        return ended(command, 20 * LIMIT, cpu_limit=LIMIT)


RIVALS: dict[str, tuple[Callable[..., np.ndarray], int]] = {  # and the seeds, at most
    f"tl.fit, pnmf, {N_FACTORS} factors": (factors, 5),
    f"scAI, {N_FACTORS} factors": (averaged, 2),
    f"MOFA, {N_FACTORS} factors": (peer("mofa"), 1),
    "MultiVI, its defaults": (peer("multivi"), 1),
}


def run(load: Callable, truth: np.ndarray, n_seeds: int) -> dict[str, tuple[Scores, float | str]]:
    """Scores of each rival by seed and its CPU seconds, or what it said when it failed."""
    found: dict[str, tuple[Scores, float | str]] = {}
    for name, (codes, most) in RIVALS.items():
        scores, seconds = [], []
        for seed in range(min(n_seeds, most)):
            mdata = fewer_peaks(load())
            try:
                with measured() as took:
                    here = codes(mdata, seed)
            except RuntimeError as error:
                found[name] = ([], str(error))
                break
            scores.append(agreement(here, truth, seed))
            seconds.append(getattr(codes, "seconds", took.cpu))
            print(name, seed, scores[-1], f"{seconds[-1]:.0f} s", flush=True, file=sys.stderr)
        else:
            found[name] = (scores, float(np.mean(seconds)))
    return found
