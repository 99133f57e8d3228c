"""Sections that every peer gets, what is kept aside, and how what was found is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mudata
import numpy as np
import scipy.sparse as sp
from mudata import MuData
from sklearn.metrics import adjusted_rand_score

import gpnsf
from gpnsf.core.scores.clustering import cluster
from gpnsf.core.scores.embedding import coordinates
from gpnsf.core.scores.metrics import match_factors
from gpnsf.datasets.files import load

HELD_OUT = 0.05  # share of the spots
N_GENES = 500  # of the real section that is predicted
FLOOR = 1e-3  # share of the section's mean profile in every prediction, so that no rate is zero
SPARSE = 0.01  # share of a feature below which a loading counts as zero


@dataclass(frozen=True)
class Section:
    """A data set of the race."""

    title: str
    make: Callable[[], tuple[MuData, dict[str, np.ndarray]]]  # the section, what is kept aside
    n_factors: int
    score: str  # key of SCORES
    size_factors: bool = True
    seed: int = 0


def blocks(depth: float) -> tuple[MuData, dict[str, np.ndarray]]:
    """RNA of ggblocks: four shapes, three nonspatial factors; the simulated size factors are 1."""
    mdata = gpnsf.datasets.ggblocks(depth=depth, n_peaks=36, seed=0)
    truth = {"factors": mdata.obsm["true_factors"], "n_spatial": 4, "size": np.ones(mdata.n_obs)}
    return bare({"rna": mdata["rna"].X}, mdata.obsm["spatial"]), truth


def tissue() -> tuple[MuData, dict[str, np.ndarray]]:
    """RNA and ATAC of one simulated tissue."""
    mdata = gpnsf.datasets.tissue(
        n_obs=1000,
        n_genes=500,
        n_peaks=1500,
        n_spatial=4,
        n_nonspatial=2,
        rna_depth=300,
        atac_depth=75,
        seed=0,
    )
    truth = {
        "factors": mdata.obsm["true_factors"],
        "n_spatial": 4,
        "size": mdata.obs["true_size_rna"].to_numpy(),
    }
    return bare({name: mdata[name].X for name in ("rna", "atac")}, mdata.obsm["spatial"]), truth


def tumour() -> tuple[MuData, dict[str, np.ndarray]]:
    """Some genes of a real liver metastasis, drawn at random; a twentieth of the spots is not in the file at all."""
    adata = load("visium_crc.h5ad")
    rng = np.random.default_rng(0)
    genes = np.sort(rng.choice(adata.n_vars, N_GENES, replace=False))
    held = rng.random(adata.n_obs) < HELD_OUT
    counts, coords = sp.csr_matrix(adata.X)[:, genes], np.asarray(adata.obsm["spatial"], float)
    mdata = bare({"rna": counts[~held]}, coords[~held])
    mdata.uns["new_coords"] = coords[held]
    return mdata, {"counts": counts[held].toarray(), "mean": counts[~held].mean(0).A1}


def cortex(*modalities: str) -> tuple[MuData, dict[str, np.ndarray]]:
    """Cells with real RNA and ATAC at the positions of another section: semi-synthetic."""
    mdata = load("semi_cortex_spots.h5mu")
    counts = {name: mdata[name].X for name in modalities}
    return bare(counts, mdata.obsm["spatial"]), {"regions": mdata.obs["region"].astype(str)}


def lymph_node() -> tuple[MuData, dict[str, np.ndarray]]:
    """Proteins of one real section with regions by experts; rows of the array lie farther apart than its columns."""
    adata = load("hln_protein_2sections.h5ad")
    adata = adata[adata.obs["library"] == "A1"]
    mdata = bare({"protein": adata.X}, adata.obsm["spatial"] * np.array([np.sqrt(3.0), 1.0]))
    return mdata, {"regions": adata.obs["region"].astype(str)}


def bare(counts: dict[str, sp.csr_matrix], coords: np.ndarray) -> MuData:
    """Nothing but counts and coordinates."""
    tables = {name: _table(name, sp.csr_matrix(X, dtype=np.float32)) for name, X in counts.items()}
    for table in tables.values():
        table.obsm["spatial"] = np.asarray(coords, dtype=float)
    mdata = MuData(tables)
    mdata.obsm["spatial"] = np.asarray(coords, dtype=float)
    return mdata


def _table(name: str, counts: sp.csr_matrix):
    from anndata import AnnData

    table = AnnData(counts)
    table.obs_names = [f"spot{i}" for i in range(table.n_obs)]
    table.var_names = [f"{name}{j}" for j in range(table.n_vars)]
    return table


SECTIONS = {
    "blocks": Section("ggblocks", lambda: blocks(1.0), 7, "recovery", size_factors=False),
    "shallow": Section("ggblocks, .5 %", lambda: blocks(0.005), 7, "recovery", size_factors=False),
    "tissue": Section("tissue, RNA + ATAC", tissue, 6, "recovery"),
    "tumour": Section("liver metastasis, unseen spots", tumour, 12, "prediction"),
    "cortex_rna": Section("cortex, RNA", lambda: cortex("rna"), 12, "regions"),
    "cortex": Section("cortex, RNA + ATAC", lambda: cortex("rna", "atac"), 12, "regions"),
    "lymph_node_proteins": Section("lymph node, proteins", lymph_node, 12, "regions"),
}


def written(name: str, folder: Path) -> tuple[Path, Path]:
    """Paths of the section and of what is kept aside, made unless they are there."""
    paths = folder / f"{name}.h5mu", folder / f"{name}_aside.npz"
    if not paths[1].exists():
        folder.mkdir(parents=True, exist_ok=True)
        mudata.set_options(pull_on_update=False)
        mdata, aside = SECTIONS[name].make()
        mdata.write_h5mu(paths[0])
        np.savez(paths[1], **{key: np.asarray(value) for key, value in aside.items()})
    return paths


def judge(name: str, found: dict[str, np.ndarray], aside: dict[str, np.ndarray]) -> dict:
    """Scores of one run."""
    loadings = {key: W for key, W in found.items() if key.startswith("loadings_")}
    scores = SCORES[SECTIONS[name].score](found, aside)
    return scores | ({"zeros": zeros(found["factors"], loadings)} if loadings else {})


def recovery(found: dict[str, np.ndarray], aside: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean correlation of true factors with the columns that match them best, either sign."""
    # size factors are not identified: the truth is put on the scale of those that were used
    size = aside["size"] / found["scale"] if "scale" in found else aside["size"]
    truth, factors = aside["factors"] * size[:, None], found["factors"]
    both = np.hstack([factors, -factors]) if factors.min() < 0 else factors
    both = np.hstack([both, np.zeros((len(both), max(0, truth.shape[1] - both.shape[1])))])
    r, T = match_factors(truth, both)[1], int(aside["n_spatial"])
    return {"spatial": float(r[:T].mean()), "nonspatial": float(r[T:].mean())}


def prediction(found: dict[str, np.ndarray], aside: dict[str, np.ndarray]) -> dict[str, float]:
    """Share of the Poisson deviance of unseen spots, given their totals, that rates explain beyond the section's mean profile."""
    if "rates" not in found:
        return {}
    counts, mean = aside["counts"], aside["mean"] / aside["mean"].sum()
    profile = found["rates"] / found["rates"].sum(1, keepdims=True)
    profile = (1 - FLOOR) * profile + FLOOR * mean
    return {"explained": 1 - _deviance(counts, profile) / _deviance(counts, mean)}


def _deviance(counts: np.ndarray, profile: np.ndarray) -> float:
    """Poisson deviance of rates that add up to the total of each spot."""
    rates = counts.sum(1, keepdims=True) * profile
    logs = np.log(np.maximum(counts, 1)) - np.log(rates)
    return float(2 * (counts * logs)[counts > 0].sum())


def regions(found: dict[str, np.ndarray], aside: dict[str, np.ndarray]) -> dict[str, float]:
    """Adjusted Rand index of k-means and of a tied Gaussian mixture with the true number of regions."""
    truth, points = aside["regions"], _points(found)
    number = len(np.unique(truth))
    return {
        method: adjusted_rand_score(truth, cluster(points, number, method=method))
        for method in ("kmeans", "gmm")
    }


def _points(found: dict[str, np.ndarray]) -> np.ndarray:
    """What is clustered: what the script says, or the coordinates that `tl.domains` would make of the factors, or the factors."""
    if "embedding" in found:
        return found["embedding"]
    loadings = {key: W for key, W in found.items() if key.startswith("loadings_")}
    signed = found["factors"].min() < 0
    return found["factors"] if signed or not loadings else coordinates(found["factors"], loadings)


def zeros(factors: np.ndarray, loadings: dict[str, np.ndarray]) -> float:
    """Share of the loadings that are at most a hundredth of their feature, factors at mean absolute value 1."""
    scaled = np.vstack(list(loadings.values())) * np.abs(factors).mean(0)
    total = np.abs(scaled).sum(1, keepdims=True)
    return float((np.abs(scaled) <= SPARSE * total).mean())


SCORES = {"recovery": recovery, "prediction": prediction, "regions": regions}
