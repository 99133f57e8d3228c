"""A simulated tissue section.

Smooth factors on a hexagonal lattice, realistic depth, dispersion and density of peaks.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from gpnsf.arguments import Options, answering
from gpnsf.checks import Rule, problem
from gpnsf.datasets.blocks import assemble, modality
from gpnsf.datasets.places import place

__all__ = ["tissue"]

SPACING = 100.0  # distance of neighbouring spots, in micrometres
ROW_HEIGHT = np.sqrt(0.75)  # of a hexagonal lattice with spacing 1
SIZE_SD = 0.35  # standard deviation of the log size factors
GAMMA_SHAPE = 0.3  # of the loadings: few factors per feature
OPEN_SHARE = 0.05  # default expected ATAC reads per spot and peak
N_WAVES = 1000  # random Fourier features of one field, enough that none of them shows
BLOCK = 2**20  # entries of a dense block of rates


@answering
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
    n_libraries: int = 1,
    batch_effect: float = 0.0,
    seed: int = 0,
    layout: str = "hex",
) -> MuData:
    """Simulate a tissue section whose RNA and peaks share spatial and nonspatial factors.

    Spatial factors are ``exp(amplitude * f)`` with Matern-3/2 Gaussian processes f, nonspatial
    factors are log-normal; each has mean 1 over the spots. Loadings are gamma distributed with a
    log-normal scale per feature, size factors are log-normal. RNA is negative binomial; a peak is
    open where a Poisson count with its rate is positive.

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
        Expected reads of a spot, all peaks together; 5 % of the number of peaks by default. The
        number of open peaks is smaller, since a peak with several reads counts once.
    dispersion
        Size theta of the negative binomial, ``variance = mean + mean**2 / theta``; None for Poisson
        counts.
    lengthscales
        Shortest and longest length scale as a share of the section's width; the spatial factors lie
        between them in equal ratios.
    amplitude
        Standard deviation of the log spatial factors.
    n_libraries
        Number of sections among which the spots are shared out: with the same loadings, each with
        fields of its own.
    batch_effect
        Standard deviation of the log multipliers, one for each feature and section, of the expected
        counts.
    seed
        Seed of the random draws.
    layout
        "hex" for a hexagonal lattice with 100 units between spots, "random" for cells scattered at
        the same density.

    Returns
    -------
    Simulated MuData with ``n_obs`` spots.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range or of the wrong type.

    Notes
    -----
    Writes the truth: ``obsm["true_factors"]`` [N, K], spatial factors first;
    ``varm["true_loadings"]`` [P, K] of each modality; ``obs["true_size_rna"]`` and
    ``obs["true_size_atac"]``, mean 1, so that the expected count (``atac``: the rate, with
    probability ``1 - exp(-rate)`` to be open) is ``true_size * (true_factors @ true_loadings.T)``;
    the size factors also as ``obs["true_size"]`` of each modality; ``true_spatial_importance`` in
    ``var`` and ``obs`` of each modality; where there are several sections, ``obs["library"]`` and
    the multipliers ``varm["true_batch"]`` [P, S] of each modality, by which the expected counts of
    section s are to be multiplied; ``uns["truth"]``, the settings with the length scale of each
    spatial factor in the units of the coordinates.

    Places on a genome, in ``var`` of both modalities: ``chrom``, ``chromStart``, ``chromEnd``, of
    genes also ``strand``. Half of the peaks lie within 150 kb of the gene whose true loadings are
    most like theirs, the others of any gene: ``uns["true_links"]``, a table with columns ``gene``
    and ``peak``.

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
        "n_libraries": n_libraries,
        "batch_effect": batch_effect,
        "seed": seed,
        "layout": layout,
    }
    _check(settings, lengthscales)
    layout_rng, factor_rng, rna_rng, atac_rng, place_rng = np.random.default_rng(seed).spawn(5)
    library = np.arange(n_obs) * n_libraries // n_obs
    sections = [_section(number, layout, layout_rng) for number in np.bincount(library)]
    scales = np.geomspace(*lengthscales, n_spatial) * np.ptp(sections[0][:, 0])
    factors = np.concatenate(
        [_factors(part, scales, amplitude, n_nonspatial, factor_rng) for part in sections]
    )
    factors, coords = factors / factors.mean(axis=0), np.concatenate(sections)
    atac_depth = OPEN_SHARE * n_peaks if atac_depth is None else atac_depth
    shared = {
        "factors": factors,
        "n_spatial": n_spatial,
        "library": library,
        "batch_effect": batch_effect,
    }
    rna, rna_size = _features("gene", n_genes, rna_depth, rna_rng, theta=dispersion, **shared)
    atac, atac_size = _features("peak", n_peaks, atac_depth, atac_rng, binary=True, **shared)
    used = settings | {"atac_depth": atac_depth, "lengthscales": list(lengthscales)}
    links = place(rna, atac, place_rng)
    mdata = assemble(
        {"rna": rna, "atac": atac},
        coords,
        factors,
        recipe="tissue",
        n_spatial=n_spatial,
        lengthscale=scales,
        settings=used,
    )
    mdata.uns["true_links"] = links
    mdata.obs["true_size_rna"], mdata.obs["true_size_atac"] = rna_size, atac_size
    if n_libraries > 1:
        for holder in (mdata, rna, atac):
            holder.obs["library"] = pd.Categorical([f"section_{code + 1}" for code in library])
    return mdata


def _check(settings: Options, lengthscales: tuple[float, float]) -> None:
    Rule(int, 600, low=10).check("n_obs", settings["n_obs"])
    for name in ("n_genes", "n_peaks", "n_libraries"):
        Rule(int, 600, low=1).check(name, settings[name])
    Rule(float, 0.3, low=0, high=10).check("batch_effect", settings["batch_effect"])
    if settings["n_obs"] < 10 * settings["n_libraries"]:
        found = f"n_obs={settings['n_obs']} with n_libraries={settings['n_libraries']}"
        raise ValueError(
            problem("at least 10 spots in each section", found, "Raise n_obs or lower n_libraries")
        )
    for name in ("n_spatial", "n_nonspatial", "seed"):
        Rule(int, 2, low=0).check(name, settings[name])
    for name in ("rna_depth", "atac_depth", "dispersion", "amplitude"):
        optional = name in ("atac_depth", "dispersion")
        Rule(float, 2.0, low=0, above=True, optional=optional).check(name, settings[name])
    Rule(str, "hex", options=("hex", "random")).check("layout", settings["layout"])
    if settings["n_spatial"] + settings["n_nonspatial"] == 0:
        raise ValueError(
            problem("at least one factor", "n_spatial=0 and n_nonspatial=0", "Pass n_spatial=8")
        )
    ends = np.asarray(lengthscales, dtype=np.float64)
    if ends.shape != (2,) or not (np.isfinite(ends).all() and 0 < ends[0] <= ends[1]):
        rule = "`lengthscales` to be a shortest and a longest positive length scale"
        raise ValueError(
            problem(rule, repr(lengthscales), "Pass for example lengthscales=(0.06, 0.3)")
        )


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
    outline = (
        1 + 0.12 * np.cos(2 * angle - 0.5) + 0.06 * np.cos(3 * angle + 1) + 0.03 * np.sin(5 * angle)
    )
    inside = np.sort(np.argsort(np.hypot(x, y) / outline, kind="stable")[:n_obs])
    return SPACING * (spots[inside] - spots[inside].min(axis=0))


def _factors(
    coords: np.ndarray,
    lengthscales: np.ndarray,
    amplitude: float,
    n_nonspatial: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Spatial, then nonspatial factors [N, K] of one section, in any scale."""
    logs = [amplitude * _matern32(coords, lengthscale, rng) for lengthscale in lengthscales]
    logs += list(rng.standard_normal((n_nonspatial, len(coords))))
    return np.exp(np.column_stack(logs))


def _matern32(coords: np.ndarray, lengthscale: float, rng: np.random.Generator) -> np.ndarray:
    """Draw [N] from a Gaussian process by random waves.

    Their frequencies follow the Student t spectral density.
    """
    frequency = rng.standard_normal((2, N_WAVES)) / np.sqrt(rng.chisquare(3, N_WAVES) / 3)
    phase = rng.uniform(0, 2 * np.pi, N_WAVES).astype(np.float32)
    parts = np.array_split(
        (coords / lengthscale).astype(np.float32), len(coords) * N_WAVES // BLOCK + 1
    )
    waves = [
        np.cos(part @ frequency.astype(np.float32) + phase).sum(axis=1, dtype=np.float64)
        for part in parts
    ]
    return np.sqrt(2 / N_WAVES) * np.concatenate(waves)


def _features(
    prefix: str,
    n_features: int,
    depth: float,
    rng: np.random.Generator,
    *,
    factors: np.ndarray,
    n_spatial: int,
    library: np.ndarray,
    batch_effect: float,
    theta: float | None = None,
    binary: bool = False,
) -> tuple[AnnData, np.ndarray]:
    """One modality and its size factors [N].

    The loadings are scaled so that a spot expects ``depth`` counts.
    """
    n_obs, n_factors = len(factors), factors.shape[1]
    size = rng.lognormal(0, SIZE_SD, n_obs)
    size = size / size.mean()
    loadings = rng.gamma(GAMMA_SHAPE, 1, (n_features, n_factors)) * rng.lognormal(
        0, 1, (n_features, 1)
    )
    loadings *= depth * n_obs / (size @ factors @ loadings.sum(axis=0))
    multipliers = _multipliers(n_features, int(library.max()) + 1, batch_effect, rng)
    A, W = (size[:, None] * factors).astype(np.float32), loadings.astype(np.float32)
    counts = sp.vstack(
        [
            _draw(A[library == code], W * column[:, None], theta, rng)
            for code, column in enumerate(multipliers.T)
        ],
        "csr",
    )
    if binary:
        counts.data[:] = 1
    adata = modality(prefix, counts, factors, loadings, np.zeros(n_features), n_spatial=n_spatial)
    adata.obs["true_size"] = size
    if multipliers.shape[1] > 1:
        adata.varm["true_batch"] = multipliers
    return adata, size


def _multipliers(
    n_features: int, n_libraries: int, sd: float, rng: np.random.Generator
) -> np.ndarray:
    """Log-normal multipliers [P, S] with mean 1 over the sections.

    A single section, or ``sd = 0``, draws nothing.
    """
    if n_libraries == 1 or sd == 0:
        return np.ones((n_features, n_libraries), dtype=np.float32)
    multipliers = rng.lognormal(0, sd, (n_features, n_libraries))
    return (multipliers / multipliers.mean(axis=1, keepdims=True)).astype(np.float32)


def _draw(
    A: np.ndarray, W: np.ndarray, theta: float | None, rng: np.random.Generator
) -> sp.csr_matrix:
    """Counts with rates ``A W^T``, Poisson or, with gamma noise on the rates, negative binomial.

    A Poisson count is the number of arrivals before time ``rate``: one exponential draw says
    whether there is any, and only those entries draw the number of arrivals in the time that is
    left.
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
    return sp.csr_matrix(
        (np.concatenate(data), np.concatenate(indices), indptr), shape=(len(A), len(W))
    )
