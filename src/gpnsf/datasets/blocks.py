"""Simulations on a grid after Townes & Engelhardt (2023), section 4.6.

The layout is the one that all simulated data share.

Every spot of a grid is inside or outside of four shapes. The shapes are drawn below; one character
is one cell of the design, which spans several spots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from gpnsf.arguments import answering
from gpnsf.checks import Rule, problem
from gpnsf.io.objects import no_pulling
from gpnsf.keys import SPATIAL

__all__ = ["assemble", "ggblocks", "modality", "quilt"]

# Four separate shapes, each in its own quadrant
GGBLOCKS = """
    #.#... ...### ...... ......
    ###... ...#.# ...... ......
    #.#... ...### ...... ......
    ...... ...... #..... ....#.
    ...... ...... ##.... ...###
    ...... ...... ###... ....#.
"""
# Four patterns laid over one another, so that most spots are inside of several; where all four meet
# in a wide area, nothing but the smoothness of the field tells a common shift of the spatial
# factors from one of the nonspatial factors
QUILT = """
    ################## ###...###...###... ####....####....## ..................
    ################## ###...###...###... ###....####....### ..................
    ################## ###...###...###... ##....####....#### ..................
    .................. ###...###...###... #....####....####. ..................
    .................. ###...###...###... ....####....####.. ..................
    .................. ###...###...###... ...####....####... .....#####........
    ################## ###...###...###... ..####....####.... ...#########......
    ################## ###...###...###... .####....####....# ...#########......
    ################## ###...###...###... ####....####....## ..###########.....
    .................. ###...###...###... ###....####....### ..###########.....
    .................. ###...###...###... ##....####....#### ..###########.....
    .................. ###...###...###... #....####....####. ..###########.....
    ################## ###...###...###... ....####....####.. ..###########.....
    ################## ###...###...###... ...####....####... ...#########......
    ################## ###...###...###... ..####....####.... ...#########......
    .................. ###...###...###... .####....####....# .....#####........
    .................. ###...###...###... ####....####....## ..................
    .................. ###...###...###... ###....####....### ..................
"""
N_SPATIAL, N_NONSPATIAL, BURST_PROBABILITY = 4, 3, 0.2
SPATIAL_MEAN, NONSPATIAL_MEAN, BACKGROUND = 11.0, 9.0, 0.1
SHAPE = 10.0  # of the negative binomial: variance = mean + mean**2 / 10


@answering
def ggblocks(
    *,
    n_side: int = 30,
    n_genes: int = 500,
    n_peaks: int = 500,
    depth: float = 1.0,
    seed: int = 0,
    atac_open: tuple[float, float] = (0.15, 0.02),
    nonspatial: bool = True,
) -> MuData:
    """Simulate a section: four separate shapes, three nonspatial factors, RNA and open peaks.

    Each gene follows one shape, with mean 11 inside and 0.1 outside of it, plus one of three
    nonspatial factors, with mean 9 in the fifth of the spots where it is active and 0.1 elsewhere;
    counts are negative binomial with shape 10. Each peak follows one shape.

    Parameters
    ----------
    n_side
        Spots along one side of the square; a multiple of 6.
    n_genes, n_peaks
        Number of features of the modalities ``rna`` and ``atac``.
    depth
        Share of the RNA counts that is kept, in (0, 1]: counts are thinned binomially. ATAC is not
        touched by it.
    seed
        Seed of the random draws.
    atac_open
        Probability that a peak is open inside and outside of its shape.
    nonspatial
        Whether genes follow a nonspatial factor too.

    Returns
    -------
    Simulated MuData with ``n_side ** 2`` spots; y grows upwards.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range or of the wrong type.

    Notes
    -----
    Writes the truth: ``obsm["true_factors"]`` [N, 7], 0 or 1, four spatial factors first;
    ``varm["true_loadings"]`` [P, 7] and ``var["true_background"]`` of each modality, so that the
    expected count (``atac``: the probability to be open) is
    ``true_factors @ true_loadings.T + true_background``; ``var["pattern"]``, the spatial factor of
    a feature; ``true_spatial_importance`` in ``var`` and ``obs`` of each modality, the spatial
    share of the expected signal without background; ``uns["truth"]``, the settings.

    The recipe is that of Townes & Engelhardt (2023), section 4.6, the shapes are our own.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.ggblocks(n_side=12, n_genes=40, n_peaks=60)
    >>> mdata.shape, mdata.obsm["true_factors"].shape
    ((144, 100), (144, 7))
    """
    return _simulate(
        GGBLOCKS,
        "ggblocks",
        n_side=n_side,
        n_genes=n_genes,
        n_peaks=n_peaks,
        depth=depth,
        seed=seed,
        atac_open=atac_open,
        nonspatial=nonspatial,
    )


@answering
def quilt(
    *,
    n_side: int = 36,
    n_genes: int = 500,
    n_peaks: int = 500,
    depth: float = 1.0,
    seed: int = 0,
    atac_open: tuple[float, float] = (0.15, 0.02),
    nonspatial: bool = True,
) -> MuData:
    """Simulate a section with four overlapping patterns: bands, columns, diagonals and a disc.

    The same recipe as ``ggblocks``, but most spots are inside of several patterns, which makes them
    harder to tell apart.

    Parameters
    ----------
    n_side
        Spots along one side of the square; a multiple of 18.
    n_genes, n_peaks
        Number of features of the modalities ``rna`` and ``atac``.
    depth
        Share of the RNA counts that is kept, in (0, 1].
    seed
        Seed of the random draws.
    atac_open
        Probability that a peak is open inside and outside of its pattern.
    nonspatial
        Whether genes follow a nonspatial factor too.

    Returns
    -------
    Simulated MuData with ``n_side ** 2`` spots; y grows upwards.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range or of the wrong type.

    Notes
    -----
    Writes the same slots as ``ggblocks``.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.quilt(n_side=18, n_genes=40, n_peaks=60, depth=0.1)
    >>> int(mdata.obsm["true_factors"][:, :4].sum(axis=1).max())
    4
    """
    return _simulate(
        QUILT,
        "quilt",
        n_side=n_side,
        n_genes=n_genes,
        n_peaks=n_peaks,
        depth=depth,
        seed=seed,
        atac_open=atac_open,
        nonspatial=nonspatial,
    )


def _simulate(art: str, recipe: str, **settings: Any) -> MuData:
    """Both modalities from independent random streams: settings of one leave the other alone."""
    _check(**settings)
    shapes = _shapes(art, settings["n_side"])
    burst_rng, rna_rng, atac_rng = np.random.default_rng(settings["seed"]).spawn(3)
    bursts = (
        burst_rng.random((len(shapes), N_NONSPATIAL * settings["nonspatial"])) < BURST_PROBABILITY
    )
    factors = np.hstack([shapes, bursts]).astype(np.float32)
    mods = {
        "rna": _genes(factors, settings["n_genes"], settings["depth"], rna_rng),
        "atac": _peaks(factors, settings["n_peaks"], settings["atac_open"], atac_rng),
    }
    row, column = np.divmod(np.arange(len(shapes)), settings["n_side"])
    coords = np.column_stack([column, settings["n_side"] - 1 - row])
    settings["atac_open"] = [float(share) for share in settings["atac_open"]]
    return assemble(mods, coords, factors, recipe=recipe, n_spatial=N_SPATIAL, settings=settings)


def _check(
    *,
    n_side: int,
    n_genes: int,
    n_peaks: int,
    depth: float,
    seed: int,
    atac_open: tuple[float, float],
    nonspatial: bool,
) -> None:
    for name, value in {"n_side": n_side, "n_genes": n_genes, "n_peaks": n_peaks}.items():
        Rule(int, 36, low=1).check(name, value)
    Rule(int, 0, low=0).check("seed", seed)
    Rule(bool, example=True).check("nonspatial", nonspatial)
    Rule(float, 1.0, low=0, above=True).check("depth", depth)
    if depth > 1:
        raise ValueError(
            problem(
                "`depth` of at most 1, a share of the full counts", repr(depth), "Pass depth=1.0"
            )
        )
    shares = np.asarray(atac_open, dtype=np.float64)
    if shares.shape != (2,) or not ((shares >= 0) & (shares <= 1)).all():
        rule = "`atac_open` to be two probabilities, inside and outside"
        raise ValueError(problem(rule, repr(atac_open), "Pass for example atac_open=(0.15, 0.02)"))


def _shapes(art: str, n_side: int) -> np.ndarray:
    """The drawn patterns [n_side ** 2, 4], bool, row by row from the top."""
    lines = [line.split() for line in art.split("\n") if line.strip()]
    if n_side % len(lines):
        rule = f"`n_side` to be a multiple of {len(lines)}, the cells along one side of the design"
        remedy = f"Pass for example n_side={len(lines) * max(1, round(n_side / len(lines)))}"
        raise ValueError(problem(rule, repr(n_side), remedy))
    # [rows, patterns, columns]
    cells = np.array([[[mark == "#" for mark in part] for part in line] for line in lines])
    zoom = n_side // len(lines)
    return (
        cells.repeat(zoom, axis=0)
        .repeat(zoom, axis=2)
        .transpose(0, 2, 1)
        .reshape(n_side**2, N_SPATIAL)
    )


def _genes(factors: np.ndarray, n_genes: int, depth: float, rng: np.random.Generator) -> AnnData:
    """Negative binomial counts.

    One spatial factor per gene and, where there are any, one nonspatial factor.
    """
    n_bursts = factors.shape[1] - N_SPATIAL
    gene, pattern = np.arange(n_genes), rng.integers(0, N_SPATIAL, n_genes)
    loadings = np.zeros((n_genes, factors.shape[1]))
    loadings[gene, pattern] = SPATIAL_MEAN - BACKGROUND
    background = np.full(n_genes, BACKGROUND)
    if n_bursts:
        loadings[gene, N_SPATIAL + rng.integers(0, n_bursts, n_genes)] = (
            NONSPATIAL_MEAN - BACKGROUND
        )
        background += BACKGROUND
    mean = factors @ loadings.T + background
    counts = rng.binomial(rng.negative_binomial(SHAPE, SHAPE / (SHAPE + mean)), depth)
    adata = modality(
        "gene", counts, factors, depth * loadings, depth * background, n_spatial=N_SPATIAL
    )
    return _with_patterns(adata, pattern)


def _peaks(
    factors: np.ndarray, n_peaks: int, atac_open: tuple[float, float], rng: np.random.Generator
) -> AnnData:
    """Open or closed: one spatial factor per peak."""
    inside, outside = atac_open
    pattern = rng.integers(0, N_SPATIAL, n_peaks)
    loadings = np.zeros((n_peaks, factors.shape[1]))
    loadings[np.arange(n_peaks), pattern] = inside - outside
    is_open = rng.random((len(factors), n_peaks)) < factors @ loadings.T + outside
    adata = modality(
        "peak", is_open, factors, loadings, np.full(n_peaks, outside), n_spatial=N_SPATIAL
    )
    return _with_patterns(adata, pattern)


def _with_patterns(adata: AnnData, pattern: np.ndarray) -> AnnData:
    adata.var["pattern"] = [f"spatial_{number}" for number in pattern + 1]
    return adata


def modality(
    prefix: str,
    counts: Any,
    factors: np.ndarray,
    loadings: np.ndarray,
    background: np.ndarray,
    *,
    n_spatial: int,
) -> AnnData:
    """Counts [N, P] with the truth that made them; ``prefix`` begins the names of the features."""
    n_obs, n_features = counts.shape
    adata = AnnData(
        X=sp.csr_matrix(counts, dtype=np.float32),
        obs=pd.DataFrame(index=[f"spot_{number}" for number in range(1, n_obs + 1)]),
        var=pd.DataFrame(index=[f"{prefix}_{number}" for number in range(1, n_features + 1)]),
    )
    adata.varm["true_loadings"] = loadings.astype(np.float32)
    adata.var["true_background"] = background
    adata.var["true_spatial_importance"] = _spatial_share(
        loadings * factors.mean(axis=0), n_spatial
    )
    adata.obs["true_spatial_importance"] = _spatial_share(factors * loadings.sum(axis=0), n_spatial)
    return adata


def _spatial_share(signal: np.ndarray, n_spatial: int) -> np.ndarray:
    """Share of the first columns in the row sums; 0 for rows without signal."""
    total = signal.sum(axis=1, dtype=np.float64)
    spatial = signal[:, :n_spatial].sum(axis=1, dtype=np.float64)
    return np.divide(spatial, total, out=np.zeros_like(total), where=total > 0)


def assemble(
    mods: Mapping[str, AnnData],
    coords: np.ndarray,
    factors: np.ndarray,
    *,
    recipe: str,
    n_spatial: int,
    **others: object,
) -> MuData:
    """The MuData of a simulation, coordinates and true factors on it and each modality."""
    with no_pulling():
        mdata = MuData(dict(mods))
    for holder in (mdata, *mods.values()):
        holder.obsm[SPATIAL] = coords.astype(np.float32)
        holder.obsm["true_factors"] = factors.astype(np.float32)
    names = [
        f"spatial_{k + 1}" if k < n_spatial else f"nonspatial_{k + 1 - n_spatial}"
        for k in range(factors.shape[1])
    ]
    truth = {"recipe": recipe, "n_spatial": n_spatial, **others}
    mdata.uns["truth"] = {"simulated": True, "factor_names": names, **truth}
    return mdata
