"""Spots with known and unknown composition, on which cell types of spots are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.optimize import nnls

import gpnsf
from gpnsf.datasets.files import load

PER_SQUARE, FEWEST = 8, 3  # cells of a square of the osmFISH section: on average, and at least


@dataclass(frozen=True)
class Mixture:
    """Spots, what the types express, and what the spots are made of."""

    section: str
    reference: str  # where the profiles are from, in words
    spots: anndata.AnnData
    profiles: pd.DataFrame  # mean counts, genes by types
    numbers: np.ndarray  # cells of each type in the reference [C]
    truth: pd.DataFrame | None = None  # numbers of cells, spots by types

    def thinned(self, share: float) -> Mixture:
        """The same spots with a share of their counts."""
        spots, rng = self.spots.copy(), np.random.default_rng(1)
        counts = spots.X.toarray().astype(int)
        spots.X = sp.csr_matrix(rng.binomial(counts, share).astype(np.float32))
        return replace(self, spots=spots)

    @property
    def depth(self) -> str:
        """Mean counts of a spot."""
        return f"{self.spots.X.sum() / self.spots.n_obs:,.0f}"


def shares(adata, reference, key: str = "proportions", **options) -> np.ndarray:
    """Proportions [N, C]."""
    gpnsf.tl.deconvolve(adata, reference, key_added=key, progress=False, **options)
    return adata.obsm[f"X_{key}"].astype(float)


def silver() -> list[Mixture]:
    """Sums of real cells whose types are known, at falling depth."""
    cells = load("osmfish_cortex")
    cells = cells[cells.obs["cell_type"].notna() & (cells.obs["cell_type"] != "unlabelled")].copy()
    is_half = np.random.default_rng(0).random(cells.n_obs) < 0.5
    osm = [
        summed(cells, cells, "the same cells"),
        summed(cells[~is_half], cells[is_half], "another half of the cells"),
    ]
    own = [_seqfish(noise=0.0), _seqfish(noise=0.5)]
    return [one.thinned(share) for one in osm for share in (1.0, 0.1, 0.03)] + [
        one.thinned(share) for one in own for share in (1.0, 0.01)
    ]


def summed(cells, reference, words: str) -> Mixture:
    """Cells summed over squares of their own positions, beside mean counts of the types of the reference."""
    coords = cells.obsm["spatial"].astype(float)
    place, square, side = squares(coords)
    is_in = sp.csr_matrix((np.ones(len(coords)), (square, np.arange(len(coords)))))
    types = sorted(set(reference.obs["cell_type"]))
    number = is_in @ _members(cells, types)
    kept = number.sum(axis=1) >= FEWEST
    spots = anndata.AnnData(
        sp.csr_matrix(is_in @ cells.to_df().to_numpy())[kept].astype(np.float32),
        obs=pd.DataFrame(index=[f"square {i}" for i in range(kept.sum())]),
        var=pd.DataFrame(index=cells.var_names),
        obsm={"spatial": (place[kept] + 0.5) * side},
    )
    truth = pd.DataFrame(number[kept], index=spots.obs_names, columns=types)
    profiles, numbers = means(reference)
    return Mixture("osmFISH cortex, squares", words, spots, profiles, numbers, truth)


def squares(coords) -> tuple[np.ndarray, np.ndarray, float]:
    """Squares that hold any cell [S, 2], which of them each cell is in [N], and their side, so that they hold ``PER_SQUARE`` on average."""
    side = np.sqrt(np.prod(np.ptp(coords, axis=0)) * PER_SQUARE / len(coords))
    for _ in range(10):  # as the section does not fill its rectangle
        place, square = np.unique(
            np.floor((coords - coords.min(axis=0)) / side), axis=0, return_inverse=True
        )
        last, side = side, side * np.sqrt(len(place) * PER_SQUARE / len(coords))
    return place, square.ravel(), float(last)


def means(cells) -> tuple[pd.DataFrame, np.ndarray]:
    """Mean counts of the types, genes by types, and their numbers of cells."""
    types = sorted(set(cells.obs["cell_type"]))
    members = _members(cells, types)
    numbers = members.sum(axis=0)
    total = cells.to_df().to_numpy(dtype=float).T @ members
    return pd.DataFrame(total / numbers, index=cells.var_names, columns=types), numbers


def _members(cells, types) -> np.ndarray:
    """Which type each cell has, cells by types."""
    return (cells.obs["cell_type"].to_numpy()[:, None] == np.array(types, object)).astype(float)


def _seqfish(noise: float) -> Mixture:
    """Squares of seqFISH+ cells, as published; profiles by least squares on the true numbers of cells."""
    adata = load("seqfish_gridded_deconv")
    cells = adata.obsm["true_cell_counts"]
    X, number = adata.to_df().to_numpy(dtype=float), cells.to_numpy(dtype=float)
    own = np.array([nnls(number, gene)[0] for gene in X.T])
    own = own / own.sum(axis=0) * 1e4
    profiles = own * np.random.default_rng(0).lognormal(0, noise, own.shape)
    return Mixture(
        "seqFISH+ cortex, squares",
        "own, noisy" if noise else "own",
        adata,
        pd.DataFrame(profiles, index=adata.var_names, columns=cells.columns),
        number.sum(axis=0),
        cells,
    )


def simulated(seed: int, depth: float):
    """Simulated spots and their true profiles."""
    spots, _ = gpnsf.datasets.mixture(
        n_obs=196, n_genes=200, n_types=6, depth=depth, difference=0.5, seed=seed
    )
    profiles = pd.DataFrame(
        spots.varm["true_profiles"], index=spots.var_names, columns=spots.uns["truth"]["types"]
    )
    return spots, profiles


def pdac():
    """The section of PDAC and the profiles that come with it."""
    adata = load("pdac_a")
    names = {
        "index": adata.uns["reference_mean_genes"],
        "columns": adata.uns["reference_mean_types"],
    }
    return adata, pd.DataFrame(adata.uns["reference_mean"], **names)
