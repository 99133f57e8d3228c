"""A simulated tissue section: smooth factors on a hexagonal lattice, realistic depth, dispersion and density of peaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from gpnsf.checks import Rule, problem
from gpnsf.datasets.blocks import assemble, modality

__all__ = ["tissue"]

SPACING = 100.0  # distance of neighbouring spots, in micrometres
ROW_HEIGHT = np.sqrt(0.75)  # of a hexagonal lattice with spacing 1
SIZE_SD = 0.35  # standard deviation of the log size factors
GAMMA_SHAPE = 0.3  # of the loadings: few factors per feature
OPEN_SHARE = 0.05  # default expected ATAC reads per spot and peak
N_WAVES = 1000  # random Fourier features of one field, enough that none of them shows
BLOCK = 2**20  # entries of a dense block of rates


def tissue(
    *,
    n_obs: int = 2500,
    n_genes: int = 2000,
    n_peaks: int = 5000,
    n_spatial: int = 8,
    n_nonspatial: int = 2,
    rna_depth: float = 4000.0,
    atac_depth: float | None = None,
    dispersion: float | None = 2.0,
    lengthscales: tuple[float, float] = (0.06, 0.3),
    amplitude: float = 1.5,
    seed: int = 0,
    layout: str = "hex",
) -> MuData:
    """Simulate a tissue section with RNA counts and open peaks that share their spatial and nonspatial factors.

    Spatial factors are ``exp(amplitude * f)`` with Matern-3/2 Gaussian processes f, nonspatial factors are log-normal;
    each has mean 1 over the spots. Loadings are gamma distributed with a log-normal scale per feature, size factors are
    log-normal. RNA is negative binomial; a peak is open where a Poisson count with its rate is positive.

    Parameters
    ----------
    n_obs
        Number of spots, at least 10.
    n_genes, n_peaks
        Number of features of the modalities ``rna`` and ``atac``.
    n_spatial, n_nonspatial
        Number of factors of either kind.
    rna_depth
        Expected counts of a spot, all genes together.
    atac_depth
        Expected reads of a spot, all peaks together; 5 % of the number of peaks by default. The number of open peaks is
        smaller, since a peak with several reads counts once.
    dispersion
        Size theta of the negative binomial, ``variance = mean + mean**2 / theta``; None for Poisson counts.
    lengthscales
        Shortest and longest length scale as a share of the section's width; the spatial factors lie between them in equal
        ratios.
    amplitude
        Standard deviation of the log spatial factors.
    seed
        Seed of the random draws.
    layout
        "hex" for a hexagonal lattice with 100 units between spots, "random" for cells scattered at the same density.

    Returns
    -------
    Simulated MuData with ``n_obs`` spots.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range or of the wrong type.

    Notes
    -----
    Writes the truth: ``obsm["true_factors"]`` [N, K], spatial factors first; ``varm["true_loadings"]`` [P, K] of each
    modality; ``obs["true_size_rna"]`` and ``obs["true_size_atac"]``, mean 1, so that the expected count (``atac``: the
    rate, with probability ``1 - exp(-rate)`` to be open) is ``true_size * (true_factors @ true_loadings.T)``; the size
    factors also as ``obs["true_size"]`` of each modality; ``true_spatial_importance`` in ``var`` and ``obs`` of each
    modality; ``uns["truth"]``, the settings with the length scale of each spatial factor in the units of the coordinates.

    Dense arrays are made for a few rows at a time only.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=150, n_genes=40, n_peaks=60, n_spatial=3)
    >>> mdata.shape, mdata.obsm["true_factors"].shape
    ((150, 100), (150, 5))
    """
    settings = {
        "n_obs": n_obs,
        "n_genes": n_genes,
        "n_peaks": n_peaks,
        "n_spatial": n_spatial,
        "n_nonspatial": n_nonspatial,
        "rna_depth": rna_depth,
        "atac_depth": atac_depth,
        "dispersion": dispersion,
        "amplitude": amplitude,
        "seed": seed,
        "layout": layout,
    }
    _check(settings, lengthscales)
    layout_rng, factor_rng, rna_rng, atac_rng = np.random.default_rng(seed).spawn(4)
    coords = _section(n_obs, layout, layout_rng)
    scales = np.geomspace(*lengthscales, n_spatial) * np.ptp(coords[:, 0])
    factors = _factors(coords, scales, amplitude, n_nonspatial, factor_rng)
    atac_depth = OPEN_SHARE * n_peaks if atac_depth is None else atac_depth
    rna, rna_size = _features("gene", n_genes, factors, n_spatial, rna_depth, rna_rng, theta=dispersion)
    atac, atac_size = _features("peak", n_peaks, factors, n_spatial, atac_depth, atac_rng, binary=True)
    settings |= {"atac_depth": atac_depth, "lengthscales": list(lengthscales)}
    truth = {"recipe": "tissue", "n_spatial": n_spatial, "lengthscale": scales, "settings": settings}
    mdata = assemble({"rna": rna, "atac": atac}, coords, factors, truth)
    mdata.obs["true_size_rna"], mdata.obs["true_size_atac"] = rna_size, atac_size
    return mdata


def _check(settings: dict[str, Any], lengthscales: tuple[float, float]) -> None:
    Rule(int, 600, low=10).check("n_obs", settings["n_obs"])
    for name in ("n_genes", "n_peaks"):
        Rule(int, 600, low=1).check(name, settings[name])
    for name in ("n_spatial", "n_nonspatial", "seed"):
        Rule(int, 2, low=0).check(name, settings[name])
    for name in ("rna_depth", "atac_depth", "dispersion", "amplitude"):
        optional = name in ("atac_depth", "dispersion")
        Rule(float, 2.0, low=0, above=True, optional=optional).check(name, settings[name])
    Rule(str, "hex", options=("hex", "random")).check("layout", settings["layout"])
    if settings["n_spatial"] + settings["n_nonspatial"] == 0:
        raise ValueError(problem("at least one factor", "n_spatial=0 and n_nonspatial=0", "Pass n_spatial=8"))
    ends = np.asarray(lengthscales, dtype=np.float64)
    if ends.shape != (2,) or not (np.isfinite(ends).all() and 0 < ends[0] <= ends[1]):
        rule = "`lengthscales` to be a shortest and a longest positive length scale"
        raise ValueError(problem(rule, repr(lengthscales), "Pass for example lengthscales=(0.06, 0.3)"))


def _section(n_obs: int, layout: str, rng: np.random.Generator) -> np.ndarray:
    """Positions [N, 2] inside a lobed outline that is as large as the number of spots asks for."""
    n_columns = int(np.sqrt(2 * n_obs)) + 3
    n_rows = int(n_columns / ROW_HEIGHT) + 1
    row, column = np.divmod(np.arange(n_rows * n_columns), n_columns)
    spots = np.column_stack([column + 0.5 * (row % 2), row * ROW_HEIGHT])
    if layout == "random":
        spots = rng.uniform(0, n_columns, spots.shape)
    x, y = (spots - n_columns / 2).T
    angle = np.arctan2(y, x)
    outline = 1 + 0.12 * np.cos(2 * angle - 0.5) + 0.06 * np.cos(3 * angle + 1) + 0.03 * np.sin(5 * angle)
    inside = np.sort(np.argsort(np.hypot(x, y) / outline, kind="stable")[:n_obs])
    return SPACING * (spots[inside] - spots[inside].min(axis=0))


def _factors(
    coords: np.ndarray, lengthscales: np.ndarray, amplitude: float, n_nonspatial: int, rng: np.random.Generator
) -> np.ndarray:
    """Spatial, then nonspatial factors [N, K], each with mean 1."""
    logs = [amplitude * _matern32(coords, lengthscale, rng) for lengthscale in lengthscales]
    logs += list(rng.standard_normal((n_nonspatial, len(coords))))
    factors = np.exp(np.column_stack(logs))
    return factors / factors.mean(axis=0)


def _matern32(coords: np.ndarray, lengthscale: float, rng: np.random.Generator) -> np.ndarray:
    """Draw [N] from a Gaussian process by random waves, whose frequencies follow the Student t spectral density."""
    frequency = rng.standard_normal((2, N_WAVES)) / np.sqrt(rng.chisquare(3, N_WAVES) / 3)
    phase = rng.uniform(0, 2 * np.pi, N_WAVES).astype(np.float32)
    parts = np.array_split((coords / lengthscale).astype(np.float32), len(coords) * N_WAVES // BLOCK + 1)
    waves = [np.cos(part @ frequency.astype(np.float32) + phase).sum(axis=1, dtype=np.float64) for part in parts]
    return np.sqrt(2 / N_WAVES) * np.concatenate(waves)


def _features(
    prefix: str,
    n_features: int,
    factors: np.ndarray,
    n_spatial: int,
    depth: float,
    rng: np.random.Generator,
    *,
    theta: float | None = None,
    binary: bool = False,
) -> tuple[AnnData, np.ndarray]:
    """One modality and its size factors [N]; the loadings are scaled so that a spot expects ``depth`` counts."""
    n_obs, n_factors = factors.shape
    size = rng.lognormal(0, SIZE_SD, n_obs)
    size = size / size.mean()
    loadings = rng.gamma(GAMMA_SHAPE, 1, (n_features, n_factors)) * rng.lognormal(0, 1, (n_features, 1))
    loadings *= depth * n_obs / (size @ factors @ loadings.sum(axis=0))
    counts = _draw((size[:, None] * factors).astype(np.float32), loadings.astype(np.float32), theta, rng)
    if binary:
        counts.data[:] = 1
    adata = modality(prefix, counts, factors, loadings, np.zeros(n_features), n_spatial=n_spatial)
    adata.obs["true_size"] = size
    return adata, size


def _draw(A: np.ndarray, W: np.ndarray, theta: float | None, rng: np.random.Generator) -> sp.csr_matrix:
    """Counts with rates ``A W^T``, Poisson or, with gamma noise on the rates, negative binomial.

    A Poisson count is the number of arrivals before time ``rate``: one exponential draw says whether there is any, and
    only those entries draw the number of arrivals in the time that is left.
    """
    data, indices, lengths = [], [], []
    for block in np.array_split(A, len(A) * len(W) // BLOCK + 1):
        rate = block @ W.T
        if theta is not None:
            rate *= rng.standard_gamma(theta, rate.shape, dtype=np.float32) / np.float32(theta)
        rate -= rng.standard_exponential(rate.shape, dtype=np.float32)
        row, column = np.nonzero(rate > 0)
        data.append((1 + rng.poisson(rate[row, column])).astype(np.float32))
        indices.append(column.astype(np.int32))
        lengths.append(np.bincount(row, minlength=len(block)))
    indptr = np.concatenate([[0], *lengths]).cumsum()
    return sp.csr_matrix((np.concatenate(data), np.concatenate(indices), indptr), shape=(len(A), len(W)))
