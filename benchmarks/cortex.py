"""Regions of the semi-synthetic cortex section from RNA and ATAC, beside simple baselines, with the figure of the docs.

GPNSF_DATA_DIR=... gpnsf benchmark cortex [--seeds 5] [--figures FILE.h5mu]

With `--figures` the figures alone are drawn, from the first fit, which is kept in the file as `docs/gallery.py --fit` keeps it.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
from baselines import domains_of
from matplotlib import pyplot as plt
from report import FIGURES, machine, measured, parser, write_table
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score

import gpnsf
from gpnsf.core.scores.metrics import knn_weights
from gpnsf.datasets.files import load


def score(embedding: np.ndarray, coords: np.ndarray, regions: np.ndarray) -> float:
    """Adjusted Rand index of the same domains of another embedding."""
    return adjusted_rand_score(regions, domains_of(embedding, coords, len(np.unique(regions))))


def domains(data, regions: np.ndarray, **arguments) -> float:
    """Adjusted Rand index of the domains of one fit or several."""
    gpnsf.tl.domains(data, n_domains=len(np.unique(regions)), **arguments)
    return adjusted_rand_score(regions, data.obs["gpnsf_domain"])


def ours(data, seed: int, modalities: list[str], key: str | None = None) -> float:
    """Fit under a key of its own; CPU seconds."""
    arguments = {
        "n_factors": 12,
        "n_spatial": 8,
        "modalities": modalities,
        "seed": seed,
        "key_added": key or f"seed{seed}",
    }
    with measured() as run:
        gpnsf.tl.fit(data, progress=False, **arguments)
    return run.cpu


def smoothed_nmf(data, n_neighbors: int, seed: int) -> tuple[np.ndarray, float]:
    """KL-NMF(10) of RNA, normalised by totals, after a mean over neighbours (0: raw)."""
    counts = data["rna"].X
    with measured() as run:
        if n_neighbors:
            weights = knn_weights(np.asarray(data.obsm["spatial"]), n_neighbors)
            counts = (counts + n_neighbors * (weights @ counts)) / (n_neighbors + 1)
        nmf = NMF(
            10,
            beta_loss="kullback-leibler",
            solver="mu",
            init="nndsvda",
            max_iter=200,
            random_state=seed,
        )
        factors = nmf.fit_transform(counts) * nmf.components_.sum(1)
    return np.sqrt(factors / factors.sum(1, keepdims=True)), run.cpu


def draw(fitted, regions: np.ndarray, key: str) -> None:
    """The figures of the docs: the spatial factors of one fit, and its domains beside the regions."""
    domains(fitted, regions, key=key)
    names = [name for name in fitted.uns[key]["factor_names"] if name.startswith("spatial")]
    given = {"key": key, "return_fig": True}
    figures = {
        "cortex_factors": gpnsf.pl.spatial_factors(fitted, factors=names, scale="sqrt", **given),
        "cortex_domains": gpnsf.pl.domains(fitted, **given),
        "cortex_regions": gpnsf.pl.domains(fitted, key_added="region", **given),
    }
    for name, figure in figures.items():
        figure.savefig(FIGURES / f"{name}.png", dpi=150, bbox_inches="tight")
        plt.close(figure)


def redraw(data, regions: np.ndarray, path: Path) -> None:
    """The figures alone, from a fit that is kept in a file."""
    if path.exists():
        data = mudata.read_h5mu(path)
    else:
        ours(data, 0, ["rna", "atac"], "gpnsf")
        data.write(path)
    draw(data, regions, "gpnsf")


def main() -> None:
    """All rows of the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--figures", type=Path, metavar="FILE.h5mu")
    options = arguments.parse_args()
    seeds = range(options.seeds)
    warnings.simplefilter("ignore", ConvergenceWarning)
    logging.getLogger("gpnsf").setLevel("WARNING")
    if hasattr(mudata, "set_options"):
        mudata.set_options(pull_on_update=False)
    data = load("semi_cortex_spots.h5mu")
    holder = data if "region" in data.obs else data["rna"]
    regions, coords = holder.obs["region"].astype(str), np.asarray(data.obsm["spatial"])
    if options.figures:
        redraw(data, regions, options.figures)
        return
    rows = []

    def add(method: str, scores: list[float], cpu: list[float]) -> None:
        row = {
            "method": method,
            "ARI": f"{np.mean(scores):.3f} ± {np.std(scores):.3f}",
            "CPU s": f"{np.mean(cpu):.1f}",
        }
        rows.append(row)
        print(row, flush=True)

    for label, modalities in {"RNA + ATAC": ["rna", "atac"], "RNA": ["rna"]}.items():
        fitted = data.copy()
        cpu = [ours(fitted, seed, modalities) for seed in seeds]
        keys = [f"seed{seed}" for seed in seeds]
        add(f"gpnsf, {label}", [domains(fitted, regions, key=key) for key in keys], cpu)
        add(
            f"gpnsf, {label}, consensus of {len(keys)} fits",
            [domains(fitted, regions, consensus=keys)],
            [sum(cpu)],
        )
        if label == "RNA + ATAC":
            draw(fitted, regions, "seed0")
    for n_neighbors in (0, 6, 18):
        runs = [smoothed_nmf(data, n_neighbors, seed) for seed in seeds]
        name = f"KL-NMF of {n_neighbors}-neighbour means, RNA" if n_neighbors else "KL-NMF, RNA"
        add(
            name,
            [score(embedding, coords, regions) for embedding, _ in runs],
            [cpu for _, cpu in runs],
        )
    add("coordinates alone", [score(coords, coords, regions)], [0.0])
    note = (
        "Semi-synthetic data: real SNARE-seq cells placed at osmFISH cortex positions, 602 spots, 8 regions. "
        f"`tl.domains(n_domains=8)`, and the same way from the embeddings of the others; mean ± sd over {len(seeds)} seeds of the method. gpnsf: K = 12, T = 8, defaults otherwise. "
        f"{machine()}."
    )
    write_table("cortex", pd.DataFrame(rows), note)


if __name__ == "__main__":
    main()
