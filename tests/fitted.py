"""Small simulated objects whose slots are filled by a plain NMF, in the layout that ``tl.fit`` writes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData
from sklearn.decomposition import NMF

from gpnsf.core.scores import embedding
from gpnsf.keys import Keys

__all__ = ["anndata", "coordinates", "fill", "history", "mudata"]


def coordinates(shape: str, n_obs: int, seed: int = 0) -> np.ndarray:
    """Positions [N, D] of a toy section: "grid", "hex", "cells", "strip", "line" or "cube"."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(n_obs)))
    row, column = np.divmod(np.arange(n_obs), side)
    if shape == "grid":
        return np.column_stack([column, row]).astype(float)
    if shape == "hex":
        return np.column_stack([100 * column + 50 * (row % 2), 100 * np.sqrt(0.75) * row])
    if shape == "strip":
        row, column = np.divmod(np.arange(n_obs), max(n_obs // 8, 1))
        return np.column_stack([column, row]).astype(float)
    if shape == "line":
        return np.sort(rng.uniform(0, 10, (n_obs, 1)), axis=0)
    if shape == "cube":
        return rng.uniform(0, 1, (n_obs, 3))
    angle, radius = rng.uniform(0, 2 * np.pi, n_obs), np.sqrt(rng.uniform(0, 1, n_obs))
    return 1000 * np.column_stack([1.2 * radius * np.cos(angle), radius * np.sin(angle)])


def _truth(
    coords: np.ndarray, n_factors: int, n_spatial: int, rng: np.random.Generator
) -> np.ndarray:
    """Factors [N, K]: smooth bumps, then independent noise; mean 1 each."""
    span = np.ptp(coords, axis=0)
    centres = coords.min(axis=0) + span * rng.uniform(0.1, 0.9, (n_spatial, coords.shape[1]))
    width = span.max() * rng.uniform(0.08, 0.3, n_spatial)
    distance = ((coords[:, None] - centres) ** 2).sum(axis=2)
    factors = np.hstack(
        [
            np.exp(-distance / (2 * width**2)) + 0.02,
            rng.lognormal(0, 1, (len(coords), n_factors - n_spatial)),
        ]
    )
    return factors / factors.mean(axis=0)


def _features(n_features: int, kind: str) -> list[str]:
    """Names of genes or of peaks."""
    if kind == "atac":
        return [
            f"chr{1 + j % 19}:{3_000_000 + 7919 * j}-{3_000_500 + 7919 * j}"
            for j in range(n_features)
        ]
    return [f"Gene{j + 1}" for j in range(n_features)]


def _counts(
    factors: np.ndarray, n_features: int, depth: float, kind: str, rng: np.random.Generator
) -> AnnData:
    """Simulated counts: each feature loads on one factor strongly and on another one weakly."""
    n_factors = factors.shape[1]
    loadings = np.zeros((n_features, n_factors))
    loadings[np.arange(n_features), np.arange(n_features) % n_factors] = rng.gamma(
        1.0, depth, n_features
    )
    loadings[np.arange(n_features), rng.integers(0, n_factors, n_features)] += rng.gamma(
        1.0, depth / 3, n_features
    )
    counts = rng.poisson(factors @ loadings.T + depth / 10).astype(np.float32)
    counts[:, -1] = 0
    if kind == "atac":
        counts = np.minimum(counts, 1)
    return AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=_features(n_features, kind)))


def mudata(
    n_obs: int = 144,
    *,
    n_factors: int = 4,
    n_spatial: int = 2,
    shape: str = "hex",
    n_slices: int = 1,
    n_peaks: int = 80,
    n_genes: int = 60,
    key: str = "gpnsf",
    seed: int = 0,
) -> MuData:
    """Fitted toy MuData with modalities rna and atac."""
    rng = np.random.default_rng(seed)
    coords = np.concatenate([coordinates(shape, n_obs, seed + s) for s in range(n_slices)])
    factors = _truth(coords, n_factors, n_spatial, rng)
    mods = {
        "rna": _counts(factors, n_genes, 4.0, "rna", rng),
        "atac": _counts(factors, n_peaks, 0.2, "atac", rng),
    }
    for mod in mods.values():
        mod.obs_names = [f"spot{i}" for i in range(len(coords))]
        mod.obs["section"] = pd.Categorical(
            [f"slice {'ABCDEFGH'[s]}" for s in range(n_slices) for _ in range(n_obs)]
        )
    data = MuData(mods)
    data.obsm["spatial"] = coords
    data.obs["section"] = data["rna"].obs["section"]
    fill(
        data, factors, n_spatial=n_spatial, library_key="section" if n_slices > 1 else None, key=key
    )
    return data


def anndata(
    n_obs: int = 144,
    *,
    n_factors: int = 4,
    n_spatial: int = 2,
    shape: str = "hex",
    n_genes: int = 60,
    key: str = "gpnsf",
    likelihood: str = "nb",
    seed: int = 0,
) -> AnnData:
    """Fitted toy AnnData with one modality, rna."""
    rng = np.random.default_rng(seed)
    coords = coordinates(shape, n_obs, seed)
    factors = _truth(coords, n_factors, n_spatial, rng)
    data = _counts(factors, n_genes, 4.0, "rna", rng)
    data.obs_names = [f"spot{i}" for i in range(n_obs)]
    data.obsm["spatial"] = coords
    fill(data, factors, n_spatial=n_spatial, key=key, likelihoods={"rna": likelihood})
    return data


def fill(
    data: MuData | AnnData,
    factors: np.ndarray,
    *,
    n_spatial: int,
    library_key: str | None = None,
    key: str = "gpnsf",
    likelihoods: dict[str, str] | None = None,
) -> None:
    """Fill every slot of a fit by one joint NMF started at ``factors``; all modalities share their cells, in order."""
    keys, mods = Keys(key), dict(data.mod) if isinstance(data, MuData) else {"rna": data}
    likelihoods = likelihoods or {"rna": "nb", "atac": "bernoulli"}
    size = {name: np.asarray(mod.X.sum(axis=1)).ravel() for name, mod in mods.items()}
    stacked = sp.hstack([mod.X for mod in mods.values()]).toarray()
    H, W = _factorise(stacked, factors)
    std = 0.1 * H + 0.01
    coords = data.obsm["spatial"]
    for name, mod in mods.items():
        mod.varm[keys.loadings], W = np.split(W, [mod.n_vars])
        background = 0.05 * np.asarray(mod.X.mean(axis=0)).ravel() / max(size[name].mean(), 1)
        mod.varm[keys.loadings_std] = (
            0.1 * mod.varm[keys.loadings]
            + np.float32(0.01) * mod.varm[keys.loadings].any(axis=1)[:, None]
        )
        mod.var[keys.background] = background.astype(np.float32)
        if likelihoods[name] == "nb":
            mod.var[keys.dispersion] = np.float32(20.0)
        mod.obs[keys.total] = size[name].astype(np.float32)
        _fill_importance(mod, H, {name: mod.varm[keys.loadings]}, n_spatial, keys)
    for holder in {id(item): item for item in [data, *mods.values()]}.values():
        holder.obsm[keys.factors] = H
        holder.obsm[keys.smooth] = 0.9 * H + 0.1
        holder.obsm[keys.std] = std
    loadings = {name: mod.varm[keys.loadings] for name, mod in mods.items()}
    used = embedding.factors_used(np.arange(factors.shape[1]) < n_spatial)
    points = embedding.coordinates(
        (0.9 * H + 0.1)[:, used], {name: W[:, used] for name, W in loadings.items()}
    )
    for holder in (data, *mods.values()):
        holder.obsm[keys.embedding] = points
    data.obs[keys.importance] = _obs_importance(H, loadings, n_spatial)
    data.uns[keys.uns] = _record(
        loadings, likelihoods, coords, factors.shape[1], n_spatial, library_key
    )


def _factorise(counts: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors [N, K] with mean 1 and loadings [P, K] of a Frobenius NMF that keeps the order of its start."""
    model = NMF(factors.shape[1], init="custom", max_iter=20, tol=0)
    W = np.maximum(np.linalg.lstsq(factors, counts, rcond=None)[0], 1e-3)
    H = model.fit_transform(counts, W=factors.astype(counts.dtype), H=W.astype(counts.dtype)) + 1e-4
    scale = H.mean(axis=0)
    return (H / scale).astype(np.float32), (model.components_.T * scale).astype(np.float32)


def _obs_importance(H: np.ndarray, loadings: dict[str, np.ndarray], n_spatial: int) -> np.ndarray:
    """Share of the expected signal of each spot that comes from the first ``n_spatial`` factors."""
    signal = H * np.sum([W.sum(axis=0) for W in loadings.values()], axis=0)
    return (signal[:, :n_spatial].sum(axis=1) / signal.sum(axis=1)).astype(np.float32)


def _fill_importance(
    mod: AnnData, H: np.ndarray, loadings: dict[str, np.ndarray], n_spatial: int, keys: Keys
) -> None:
    """Importance columns of one modality."""
    (W,) = loadings.values()
    total = W.sum(axis=1)
    mod.obs[keys.importance] = _obs_importance(H, loadings, n_spatial)
    mod.var[keys.importance] = W[:, :n_spatial].sum(axis=1) / np.maximum(total, 1e-30)
    mod.var[keys.importance_std] = np.where(total > 0, 0.02, 0.0)
    names = np.array(_names(W.shape[1], n_spatial), dtype=object)
    mod.var[keys.top_factor] = np.where(total > 0, names[W.argmax(axis=1)], "")


def _names(n_factors: int, n_spatial: int) -> list[str]:
    """Factor names, spatial ones first."""
    return [f"spatial_{k + 1}" for k in range(n_spatial)] + [
        f"nonspatial_{k + 1}" for k in range(n_factors - n_spatial)
    ]


def _record(
    loadings: dict[str, np.ndarray],
    likelihoods: dict[str, str],
    coords: np.ndarray,
    n_factors: int,
    n_spatial: int,
    library_key: str | None,
) -> dict:
    """The ``uns`` entry of a fit."""
    is_spatial = np.arange(n_factors) < n_spatial
    half = np.ptp(coords, axis=0).max() / 2
    return {
        "params": {
            "model": "gpnsf",
            "n_factors": n_factors,
            "n_spatial": n_spatial,
            "spatial_key": "spatial",
            "layers": None,
            "library_key": library_key,
            "size_factors": "total",
            "use_var": None,
            "holdout_key": None,
            "seed": 0,
        },
        "n_factors_asked": n_factors,
        "factor_names": _names(n_factors, n_spatial),
        "is_spatial": is_spatial,
        "kernel": {
            "name": "matern32",
            "lengthscale": np.where(is_spatial, half * np.linspace(0.4, 0.1, n_factors), np.nan),
            "amplitude": np.ones(n_factors),
        },
        "history": history(),
        "variance_explained": {name: W.sum(axis=0) / W.sum() for name, W in loadings.items()},
        "converged": True,
        "repairs": [],
        "starts": {
            "smooth_0": -15230.0,
            "smooth_0.06": -14780.5,
            "smooth_0.1": -14702.0,
            "spot": -14911.2,
            "best": "smooth_0.1",
        },
        "spatial_test": {},
        "field": {},
        "likelihoods": {name: likelihoods[name] for name in loadings},
        "modalities": list(loadings),
        "n_features": {name: int(W.any(axis=1).sum()) for name, W in loadings.items()},
        "versions": {},
        "seed": 0,
        "seconds": 2.5,
        "peak_memory": 1.0e8,
    }


def history(*, polish: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """A simulated trace: quick rise, long approach, cosine tail, then another objective."""
    rng = np.random.default_rng(seed)
    lengths = {"pick": 25, "main": 80, "tail": 20} | ({"polish": 20} if polish else {})
    phase = np.concatenate([np.full(n, name, dtype=object) for name, n in lengths.items()])
    step = np.arange(phase.size)
    elbo = (
        -14000 - 3000 * np.exp(-step / 9) - 200 * np.exp(-step / 45) + rng.normal(0, 2, step.size)
    )
    elbo[phase == "polish"] += 1500
    return {"elbo": elbo, "seconds": 0.02 * (step + 1), "phase": phase.astype(str)}
