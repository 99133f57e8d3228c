"""FactVAE: spatial domains of its codes, its settings one by one, time and memory.

GPNSF_DATA_DIR=... gpnsf benchmark factvae --only domains sweep scale
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
from baselines import domains_of
from factvae_rivals import agreement
from matplotlib import pyplot as plt
from report import FIGURES, in_fresh_process, machine, measured, parser, write_table
from sklearn.metrics import adjusted_rand_score

import gpnsf
from gpnsf.core.companions import factvae_training
from gpnsf.core.scores.metrics import knn_weights
from gpnsf.datasets.files import data_dir, load

FEW = 2  # seeds of domains
NEIGHBOURS = 6  # over which codes are averaged, for comparison
SIZES = (1_000, 3_000, 10_000)
LARGE = 35_000  # cells for which time and memory are extrapolated
FEATURES = {"n_genes": 3_000, "n_peaks": 30_000}
EPOCHS = 1, 4  # whose difference is the time of an epoch
MOST = 100  # epochs of a default call, at most
DEFAULTS = {"n_latent": 50, "alignment": 0.5, "regulatory_weight": 1.0}
SWEPT = {
    "n_latent": (10, 25, 50, 100),
    "alignment": (0.0, 0.1, 0.5, 2.0),
    "regulatory_weight": (0.0, 1.0, 10.0),
}
TITLES = {
    "n_latent": "dimensions of the codes of a modality",
    "alignment": "rate of the alignment, of that of the joint step",
    "regulatory_weight": "weight of overlaps",
}


def domains(n_seeds: int, _: int) -> None:
    """Regions of the semi-synthetic cortex, which FactVAE looks for without coordinates."""
    scores: dict[str, list[tuple[float, float]]] = {}
    for seed in range(min(n_seeds, FEW)):
        data = load("semi_cortex_spots")
        holder = data if "region" in data.obs else data["rna"]
        regions = holder.obs["region"].to_numpy()
        k = len(np.unique(regions))
        with measured() as codes:
            gpnsf.tl.factvae(data, seed=seed, progress=False)
        with measured() as fit:
            gpnsf.tl.fit(data, n_factors=12, n_spatial=8, seed=seed, progress=False)
        coords = np.asarray(data.obsm["spatial"])
        weights = knn_weights(coords, NEIGHBOURS)
        values = data.obsm["X_factvae"]
        smooth = (values + NEIGHBOURS * (weights @ values)) / (NEIGHBOURS + 1)
        labels = {"FactVAE, mean over 6 neighbours and the spot": domains_of(smooth, coords, k)}
        for name, key in (("FactVAE", "factvae"), ("tl.fit, K = 12, T = 8", "gpnsf")):
            gpnsf.tl.domains(data, n_domains=k, key=key, key_added=f"{key}_region")
            labels[name] = data.obs[f"{key}_region"].to_numpy()
        for name, found in labels.items():
            cpu = fit.cpu if name.startswith("tl.fit") else codes.cpu
            scores.setdefault(name, []).append((adjusted_rand_score(regions, found), cpu))
    rows = [
        {
            "domains of": name,
            "ARI with the regions": f"{np.mean(found, axis=0)[0]:.3f}",
            "lowest, highest": f"{min(found)[0]:.3f}, {max(found)[0]:.3f}",
            "seeds": len(found),
            "CPU s": f"{np.mean(found, axis=0)[1]:.0f}",
        }
        for name, found in sorted(scores.items())
    ]
    note = "Semi-synthetic: real SNARE-seq cells at osmFISH positions, summed into 602 spots of 8 regions. FactVAE sees no coordinates, tl.fit does."
    write_table("factvae_domains", pd.DataFrame(rows), f"{note} {machine()}.")


def sweep(*_: int) -> None:
    """The figure of settings, each changed by itself."""
    known: dict[tuple, tuple[float, float]] = {}
    figure, panels = plt.subplots(1, len(SWEPT), figsize=(10, 3), sharey=True, layout="constrained")
    for panel, (name, values) in zip(panels, SWEPT.items(), strict=True):
        found = []
        for value in values:
            setting = tuple((DEFAULTS | {name: value}).items())
            if setting not in known:
                known[setting] = half(**dict(setting))
                print(setting, known[setting], flush=True)
            found.append(known[setting])
        draw(panel, values, np.array(found), DEFAULTS[name])
        panel.set_xlabel(TITLES[name])
    panels[0].set_ylabel("ARI with the cell lines")
    panels[0].legend(frameon=False, loc="lower right")
    figure.savefig(FIGURES / "factvae_sweep.png", dpi=150)
    plt.close(figure)


def half(n_latent: int, alignment: float, regulatory_weight: float) -> tuple[float, float]:
    """ARI of the joint codes and of those of ATAC, on half of the cells of the cell lines."""
    mdata = load("snareseq_human_celllines")
    mdata = mdata[np.random.default_rng(0).permutation(mdata.n_obs) % 2 == 0].copy()
    kept, truth = factvae_training.ALIGNMENT_RATE, mdata.obs["cell_type"].to_numpy()
    factvae_training.ALIGNMENT_RATE = alignment  # no argument of the public function
    try:
        gpnsf.tl.factvae(
            mdata,
            annotation=data_dir() / "genes_hg38.csv",
            n_latent=n_latent,
            alignment=alignment > 0,
            regulatory_weight=regulatory_weight,
            progress=False,
        )
    finally:
        factvae_training.ALIGNMENT_RATE = kept
    codes = (holder.obsm["X_factvae"] for holder in (mdata, mdata["atac"]))
    joint, atac = (agreement(values, truth, 0)[0] for values in codes)
    return joint, atac


def draw(panel, values: tuple, found: np.ndarray, default: float) -> None:
    """Both lines of one setting, at equal distances, and where the default is."""
    places = np.arange(len(values))
    for scores, name, color in zip(found.T, ("joint", "ATAC"), ("#0072B2", "#D55E00"), strict=True):
        panel.plot(places, scores, "o-", label=f"{name} codes", color=color, markersize=5)
    panel.axvline(values.index(default), color="0.8", zorder=0, linewidth=6)
    panel.set_xticks(places, [f"{value:g}" for value in values])
    panel.set_ylim(0, 1.02)
    panel.spines[["top", "right"]].set_visible(False)


def scale(*_: int) -> None:
    """Time and memory of simulated cells, and those of more cells by straight lines."""
    with tempfile.TemporaryDirectory() as folder:
        seen = pd.DataFrame(list(sizes(Path(folder))))
    lines = [
        {
            "cells": f"{row.n_obs:,.0f}",
            "CPU s before the first epoch": f"{row.before:.1f}",
            "CPU s of an epoch": f"{row.epoch:.2f}",
            f"CPU min of {MOST} epochs": f"{(row.before + MOST * row.epoch) / 60:.1f}",
            "GB of the loaded object": f"{row.loaded:.2f}",
            "GB at most": f"{row.memory:.2f}",
        }
        for row in pd.concat([seen, beyond(seen, LARGE).to_frame().T]).itertuples()
    ]
    lines[-1]["cells"] += ", extrapolated"
    note = (
        f"Simulated tissue, its coordinates not used, {FEATURES['n_genes']:,} genes and {FEATURES['n_peaks']:,} peaks, of which the default takes 2,000 and 5,000. One thread; "
        f"epochs: the difference between calls of {EPOCHS[0]} and {EPOCHS[1]}; {MOST} are the most that a default call makes. Memory: of the process, libraries and counts included. Last "
        f"row: the straight line through the two rows above it. {machine()}."
    )
    write_table("factvae_scale", pd.DataFrame(lines), note)


def sizes(folder: Path) -> Iterator[dict[str, float]]:
    """What each size takes, in a process of its own."""
    for n_obs in SIZES:
        path = folder / f"{n_obs}.h5mu"
        gpnsf.datasets.tissue(n_obs=n_obs, seed=0, **FEATURES).write(path)
        took = json.loads(in_fresh_process(__file__, "--of", str(path), threads=1))
        print(n_obs, took, flush=True)
        path.unlink()
        yield {"n_obs": n_obs} | took


def taken(path: str) -> dict[str, float]:
    """CPU seconds and GB of calls on one file."""
    with measured() as reading:
        mdata = mudata.read_h5mu(path)
    few = mdata[:100].copy()  # imports and compilation are not to be timed
    gpnsf.tl.factvae(few, max_epochs=1, progress=False)
    cpu = []
    for epochs in EPOCHS:
        with measured() as run:
            gpnsf.tl.factvae(mdata, max_epochs=epochs, progress=False)
        cpu.append(run.cpu)
    epoch = (cpu[1] - cpu[0]) / (EPOCHS[1] - EPOCHS[0])
    before = cpu[0] - EPOCHS[0] * epoch
    return {"before": before, "epoch": epoch, "loaded": reading.memory, "memory": run.memory}


def beyond(seen: pd.DataFrame, n_obs: int) -> pd.Series:
    """Every column at another number of cells, by the straight line through the two largest."""
    last, largest = seen.sort_values("n_obs").iloc[-2:].itertuples(index=False)
    share = (n_obs - largest.n_obs) / (largest.n_obs - last.n_obs)
    return pd.Series(np.array(largest) + share * (np.array(largest) - last), seen.columns)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--of", required=True, help="file of counts to be measured on")
    print(json.dumps(taken(arguments.parse_args(sys.argv[1:]).of)))
