"""Sections made for one benchmark: simulated waves, and semi-synthetic layers of real cells.

``layers`` needs ``GPNSF_DATA_DIR``: cells of semi_cortex_cells.h5mu, and the depth that was
measured on a section of MISAR-seq, in misar_E15_5-S1_depth.csv.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData
from scipy.spatial import cKDTree

from gpnsf.datasets.files import data_dir, load

N_SINES = 200  # of a random field, enough that none of them shows
MODALITIES = ("rna", "atac")


def waves(
    seed: int = 0,
    *,
    n_obs: int = 3000,
    n_genes: int = 600,
    n_peaks: int = 800,
    n_factors: int = 10,
    rna_depth: float = 300.0,
    atac_depth: float = 60.0,
) -> MuData:
    """Simulate RNA and ATAC that share smooth factors and nothing else: no factor is nonspatial.

    Factors are exponentials of Gaussian fields, divided by their sum in each spot, so that totals
    make right size factors. Loadings are gamma distributed, a fifth of all signal is background.
    RNA is negative binomial, a peak is open where a Poisson count is positive.

    Parameters
    ----------
    seed
        Seed of everything.
    n_obs, n_genes, n_peaks, n_factors
        Sizes.
    rna_depth, atac_depth
        Expected counts of a spot; reads of one peak that is open twice are one.

    Returns
    -------
    Simulated MuData with ``obsm["spatial"]`` in [-1, 1] and ``obsm["true_factors"]``.
    """
    rng = np.random.default_rng(seed)
    coords = rng.uniform(-1, 1, (n_obs, 2))
    scales = rng.uniform(0.3, 0.5, n_factors)
    H = np.exp(1.5 * np.column_stack([_field(coords, scale, rng) for scale in scales]))
    H /= H.sum(1, keepdims=True)
    size = rng.lognormal(0, 0.3, n_obs)
    genes = rna_depth * _rates(H, size, n_genes, rng)
    peaks = atac_depth * _rates(H, size, n_peaks, rng)
    dispersed = rng.gamma(10.0, 0.1, genes.shape) * genes
    data = _section(
        {"rna": rng.poisson(dispersed), "atac": rng.poisson(peaks) > 0},
        coords,
        obs=pd.DataFrame({"true_size": size}, index=_names("spot", n_obs)),
    )
    data.obsm["true_factors"] = H / H.mean(0)
    return data


def _field(coords: np.ndarray, lengthscale: float, rng: np.random.Generator) -> np.ndarray:
    """A draw [N] of a Gaussian field with a squared exponential kernel."""
    frequency = rng.standard_normal((2, N_SINES)) / lengthscale
    waves = np.cos(coords @ frequency + rng.uniform(0, 2 * np.pi, N_SINES))
    return waves @ rng.standard_normal(N_SINES) * np.sqrt(2 / N_SINES)


def _rates(H: np.ndarray, size: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Expected counts [N, P], mean one a spot, of sparse loadings and a background."""
    scale = rng.lognormal(0, 1, n)[:, None]
    W = scale * rng.gamma(0.3, 1.0, (n, H.shape[1]))
    background = scale[:, 0] / scale.sum()
    return size[:, None] * (0.8 * H @ (W / W.sum(0)).T + 0.2 * background)


@dataclass(frozen=True)
class Layout:
    """How a layered section is made."""

    shape: tuple[int, int]  # spots along x and y
    sizes: tuple[float, ...]  # share of the section that each layer takes
    types: tuple[str, ...]  # the type that marks each layer
    share: float  # of the marking type; the others are mixed as in all cells
    wavy: bool  # horizontal waves, otherwise arcs
    rna_depth: float  # mean counts of a spot
    atac_depth: float

    def depth_below(self, coords: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Distance [N] from the edge that the layers follow."""
        x, y = coords.T
        start = rng.uniform(0, 2 * np.pi, 2)
        if self.wavy:
            return -y + 0.14 * np.sin(3.5 * x + start[0]) + 0.05 * np.sin(9 * x + start[1])
        return np.hypot(x + 0.6 * np.sin(start[0]), y + 1.6) + 0.04 * np.sin(6 * x + start[1])


LAYOUTS = {
    "deep": Layout(
        (60, 50),
        (0.15, 0.15, 0.5, 0.2),
        ("L2/3", "L4", "L6", "Oligo"),
        0.85,
        True,
        500.0,
        140.0,
    ),
    "shallow": Layout(
        (50, 40),
        (0.14, 0.2, 0.22, 0.2, 0.24),
        ("Oligo", "L6", "L5", "L4", "L2/3"),
        0.7,
        False,
        160.0,
        35.0,
    ),
}
LAYOUTS["faint"] = replace(LAYOUTS["deep"], share=0.6)


def layers(
    name: str,
    seed: int = 0,
    *,
    rna_depth: float | None = None,
    atac_depth: float | None = None,
) -> MuData:
    """Make a semi-synthetic layered section: sums of real cells, thinned to a measured depth.

    Each layer has a mixture of cell types of its own. A spot sums 8 to 16 cells drawn from its
    mixture with replacement, RNA and ATAC of the same cells; counts are then thinned binomially to
    the depth of a measured section at the same place, which is mirrored and turned by the seed.

    Parameters
    ----------
    name
        "deep" (3,000 spots, four wavy layers, one of which is half of the section), "shallow"
        (2,000 spots, five curved bands), or "faint" (as deep, with mixtures that differ less).
    seed
        Seed of layout, cells and counts.
    rna_depth, atac_depth
        Mean counts of a spot. Default: those of the layout.

    Returns
    -------
    Semi-synthetic MuData with ``obs["layer"]``.
    """
    layout, rng = LAYOUTS[name], np.random.default_rng(seed)
    coords = _lattice(layout.shape)
    below = layout.depth_below(coords, rng).argsort().argsort() / len(coords)
    layer = np.searchsorted(np.cumsum(layout.sizes)[:-1], below, side="right")
    drawn = _drawn_cells(layer, layout, rng)
    surface = _depth_surface(coords, rng)
    wanted = {"rna": rna_depth or layout.rna_depth, "atac": atac_depth or layout.atac_depth}
    counts = {
        modality: _thinned(drawn @ _cells()[modality], mean * surface[modality], rng)
        for modality, mean in wanted.items()
    }
    obs = pd.DataFrame({"layer": pd.Categorical(layer + 1)}, index=_names("spot", len(coords)))
    return _section(counts, coords, obs=obs)


@cache
def _cells() -> dict:
    """Counts of the real cells by modality, and their types."""
    cells = load("semi_cortex_cells.h5mu")
    counts = {name: sp.csr_matrix(cells[name].X).astype(np.int64) for name in MODALITIES}
    return {**counts, "type": cells["rna"].obs["cell_type"].astype(str).to_numpy()}


@cache
def _measured_depth() -> pd.DataFrame:
    """Places and depths of the measured section, tissue only, depths relative to their means."""
    table = pd.read_csv(data_dir() / "misar_E15_5-S1_depth.csv").query("in_tissue == 1")
    depth = table[["gex_umis", "atac_fragments"]].set_axis(MODALITIES, axis=1)
    return table[["array_col", "array_row"]].join(depth / depth.mean())


def _depth_surface(coords: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """Relative depth [N, 2] at the nearest place of the measured section, mean one."""
    measured = _measured_depth()
    places = measured[["array_col", "array_row"]].to_numpy(float)
    places = (places - 25.5) / 25 * rng.choice([-1, 1], 2)
    places = places[:, rng.permutation(2)]
    near = cKDTree(places).query(coords / np.abs(coords).max(0))[1]
    depth = measured[list(MODALITIES)].iloc[near].reset_index(drop=True)
    return depth / depth.mean()


def _drawn_cells(layer: np.ndarray, layout: Layout, rng: np.random.Generator) -> sp.csr_matrix:
    """How often each cell is part of each spot [N, cells]."""
    of_type = _cells()["type"]
    names, sizes = np.unique(of_type, return_counts=True)
    common = sizes / len(of_type)
    rows, columns = [], []
    for spot, number in enumerate(rng.integers(8, 17, len(layer))):
        marking = names == layout.types[layer[spot]]
        mixture = layout.share * marking + (1 - layout.share) * common
        probability = (mixture / sizes)[np.searchsorted(names, of_type)]
        columns.append(rng.choice(len(of_type), number, p=probability))
        rows.append(np.full(number, spot))
    row, column = np.concatenate(rows), np.concatenate(columns)
    shape = len(layer), len(of_type)
    return sp.coo_matrix((np.ones(len(row), np.int64), (row, column)), shape=shape).tocsr()


def _thinned(counts: sp.csr_matrix, wanted, rng: np.random.Generator) -> sp.csr_matrix:
    """Counts of which each spot keeps the wanted number [N] on average, or all that it has."""
    share = np.minimum(np.asarray(wanted) / np.asarray(counts.sum(1)).ravel(), 1.0)
    kept = rng.binomial(counts.data, np.repeat(share, np.diff(counts.indptr)))
    result = sp.csr_matrix((kept, counts.indices, counts.indptr), shape=counts.shape)
    result.eliminate_zeros()
    return result


def _lattice(shape: tuple[int, int]) -> np.ndarray:
    """Places [N, 2] of a square lattice, the longer side from -1 to 1."""
    x, y = (np.arange(n) - (n - 1) / 2 for n in shape)
    places = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
    return places / np.abs(places).max()


def _section(counts: dict, coords: np.ndarray, *, obs: pd.DataFrame) -> MuData:
    """Modalities without the features that have no count; ATAC is open or closed."""
    mods = {}
    for modality, values in counts.items():
        values = sp.csr_matrix(values).astype(np.float32)
        if modality == "atac":
            values.data[:] = 1
        var = pd.DataFrame(index=_names(modality, values.shape[1]))
        adata = AnnData(values, obs=obs.copy(), var=var, obsm={"spatial": coords})
        mods[modality] = adata[:, values.getnnz(0) > 0].copy()
    data = MuData(mods)
    data.obs, data.obsm["spatial"] = obs.copy(), coords
    return data


def _names(what: str, n: int) -> list[str]:
    """Names that differ between spots, genes and peaks."""
    return [f"{what}{i}" for i in range(n)]
