"""Small simulated objects to be read and written, and a hash of everything that they hold."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from mudata import MuData

__all__ = ["anndata", "digest", "mudata", "pair", "partial", "section"]


def anndata(
    n_obs: int = 20, n_vars: int = 6, *, mean: float = 15.0, prefix: str = "gene", seed: int = 0
) -> ad.AnnData:
    """Counts on a 10 : 1 grid with obs names that sort otherwise than they stand."""
    rng = np.random.default_rng(seed)
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(mean, (n_obs, n_vars)).astype(np.float32)))
    adata.obs_names = [f"spot{(7 * i) % n_obs}" for i in range(n_obs)]
    adata.var_names = [f"{prefix}{j}" for j in range(n_vars)]
    adata.obsm["spatial"] = 100 + 5.0 * np.column_stack(
        [np.arange(n_obs) // 2, np.arange(n_obs) % 2]
    )
    return adata


def mudata(axis: int = 0, **mods: ad.AnnData) -> MuData:
    """Modalities joined, without what some versions announce."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MuData(mods, axis=axis)


def partial() -> MuData:
    """RNA of 18 cells; peaks of 17 cells in the opposite order; 15 cells have both; coordinates in both modalities."""
    rna, atac = anndata(), anndata(n_vars=9, mean=0.7, prefix="peak", seed=1)
    return mudata(rna=rna[:18].copy(), atac=atac[:2:-1].copy())


def section() -> ad.AnnData:
    """A simulated AnnData of counts on a grid."""
    rng = np.random.default_rng(0)
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(9.0, (24, 8)).astype(np.float32)))
    adata.obs_names = [f"spot{i}" for i in range(24)]
    adata.var_names = [f"gene{j}" for j in range(8)]
    adata.obsm["spatial"] = np.column_stack(np.divmod(np.arange(24), 6)).astype(float)
    adata.layers["counts"] = adata.X.copy()
    adata.obs["slice"] = pd.Categorical(np.repeat(["a", "b"], 12))
    adata.obs["held"] = np.arange(24) < 3
    adata.obs["depth"] = 1.0 + np.arange(24)
    adata.var["chosen"] = np.arange(8) < 5
    return adata


def pair() -> MuData:
    """A simulated MuData whose modalities both carry the coordinates."""
    rna = section()
    peaks = np.random.default_rng(1).random((24, 10)) < 0.4
    atac = ad.AnnData(
        sp.csr_matrix(peaks.astype(np.float32)), obs=pd.DataFrame(index=rna.obs_names)
    )
    atac.var_names = [f"chr1:{100 * j}-{100 * j + 50}" for j in range(10)]
    atac.obsm["spatial"] = rna.obsm["spatial"].copy()
    return mudata(rna=rna, atac=atac)


def digest(value: Any) -> str:
    """Hash of everything that an object holds, order and dtypes included."""
    sha = hashlib.sha256()

    def feed(item: Any) -> None:
        sha.update(type(item).__name__.encode())
        if isinstance(item, MuData | ad.AnnData):
            for part in (
                "obs",
                "var",
                "obsm",
                "varm",
                "uns",
                *(["layers"] if isinstance(item, ad.AnnData) else []),
            ):
                feed(getattr(item, part))
            feed(dict(item.mod) if isinstance(item, MuData) else item.X)
            feed(
                {name: np.asarray(item.obsmap[name]) for name in item.mod}
                if isinstance(item, MuData)
                else None
            )
        elif isinstance(item, pd.DataFrame | pd.Series):
            feed(str(item.dtypes))
            feed(item.to_csv())
        elif sp.issparse(item):
            for part in (item.data, item.indices, item.indptr):
                feed(part)
        elif isinstance(item, Mapping):
            for key in item:
                sha.update(str(key).encode())
                feed(item[key])
        elif isinstance(item, np.ndarray) and item.dtype != object:
            sha.update(f"{item.dtype}{item.shape}".encode() + np.ascontiguousarray(item).tobytes())
        else:
            sha.update(repr(item).encode())

    feed(value)
    return sha.hexdigest()
