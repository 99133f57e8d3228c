"""Simulated spots of several cells each, with the cells of a reference."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from gpnsf.arguments import answering
from gpnsf.checks import Rule, problem
from gpnsf.core.companions.pseudospots import drawn, regional, smooth
from gpnsf.keys import SPATIAL

__all__ = ["mixture"]

BASE_SD = 1.0  # of the log mean expression of genes
DEPTH_SD = 0.4  # of the log totals of spots and cells
CELL_SIZE = 5.0  # of the gamma noise of a gene between cells of a type
CELL_DEPTH = 2000.0  # mean total of a cell
CONCENTRATION, WITHIN = 0.5, 30.0  # of the Dirichlet draws of regions and of their spots


@answering
def mixture(
    *,
    n_obs: int = 400,
    n_genes: int = 300,
    n_types: int = 6,
    depth: float = 1000.0,
    difference: float = 0.8,
    lengthscale: float = 0.2,
    n_regions: int = 0,
    n_cells: int = 30,
    seed: int = 0,
) -> tuple[AnnData, AnnData]:
    """Simulate spots that mix cell types, and cells of these types that were measured elsewhere.

    Proportions are the softmax of Gaussian processes over a square lattice or, with ``n_regions``,
    Dirichlet draws around the composition of the region that a spot lies in. Counts of spots are
    Poisson with log-normal totals, those of cells negative binomial.

    Parameters
    ----------
    n_obs
        Spots; the lattice is filled row by row, so a square number makes a square.
    n_genes, n_types
        Number of genes and of cell types.
    depth
        Expected total of a spot.
    difference
        Standard deviation of the log ratio of a gene's expression in a type to that in all; small
        values make types alike.
    lengthscale
        Length scale of the proportions as a share of the section's width.
    n_regions
        Regions, each of which has a composition of its own; 0 for smooth proportions.
    n_cells
        Cells of each type in the reference.
    seed
        Seed of the random draws.

    Returns
    -------
    Simulated spots, and the cells of the reference, as two AnnData with the same genes.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range or of the wrong type.

    Notes
    -----
    Writes into the spots ``obsm["true_proportions"]`` [N, types], ``varm["true_profiles"]`` [P,
    types], the share of each gene in the RNA of a type, ``obs["region"]`` where there are regions,
    and ``uns["truth"]``, with the names of the types and the settings; into the cells
    ``obs["cell_type"]``.

    Examples
    --------
    >>> import gpnsf
    >>> spots, cells = gpnsf.datasets.mixture(n_obs=100, n_genes=80)
    >>> spots.shape, cells.shape
    ((100, 80), (180, 80))
    """
    settings = {
        "n_obs": n_obs,
        "n_genes": n_genes,
        "n_types": n_types,
        "depth": depth,
        "difference": difference,
    }
    settings |= {
        "lengthscale": lengthscale,
        "n_regions": n_regions,
        "n_cells": n_cells,
        "seed": seed,
    }
    _check(settings)
    place_rng, type_rng, spot_rng, cell_rng = np.random.default_rng(seed).spawn(4)
    side = int(np.ceil(np.sqrt(n_obs)))
    coords = np.column_stack(np.divmod(np.arange(n_obs), side))[:, ::-1].astype(float)
    names = [f"type_{number + 1}" for number in range(n_types)]
    profiles = np.exp(BASE_SD * type_rng.standard_normal((n_genes, 1)))
    profiles = profiles * np.exp(difference * type_rng.standard_normal((n_genes, n_types)))
    profiles /= profiles.sum(axis=0)
    regions = _regions(coords, n_regions, place_rng) if n_regions else None
    if regions is None:
        options = {
            "lengthscale": lengthscale * side,
            "amplitude": 1.5,
            "abundance": 0.3,
            "noise": 0.2,
        }
        share = smooth(coords, n_types, rng=place_rng, **options)
    else:
        share = regional(
            regions, n_types, concentration=CONCENTRATION, within=WITHIN, rng=place_rng
        )
    totals = depth * spot_rng.lognormal(-(DEPTH_SD**2) / 2, DEPTH_SD, n_obs)
    spots = _anndata(drawn(share, profiles, totals, spot_rng), "spot")
    spots.obsm[SPATIAL], spots.obsm["true_proportions"] = coords, share.astype(np.float32)
    spots.varm["true_profiles"] = profiles
    if regions is not None:
        spots.obs["region"] = pd.Categorical([f"region_{code + 1}" for code in regions])
    spots.uns["truth"] = {
        "simulated": True,
        "recipe": "mixture",
        "types": names,
        "settings": settings,
    }
    return spots, _cells(profiles, names, n_cells, cell_rng)


def _check(settings: dict[str, float]) -> None:
    for name, low in (
        ("n_obs", 4),
        ("n_genes", 10),
        ("n_types", 2),
        ("n_cells", 1),
        ("n_regions", 0),
        ("seed", 0),
    ):
        Rule(int, 6, low=low).check(name, settings[name])
    for name in ("depth", "lengthscale"):
        Rule(float, 0.5, low=0, above=True).check(name, settings[name])
    Rule(float, 0.5, low=0, high=10, above=True).check("difference", settings["difference"])
    if settings["n_regions"] > settings["n_obs"]:
        found = f"n_regions={settings['n_regions']} with n_obs={settings['n_obs']}"
        raise ValueError(problem("no more regions than spots", found, "Lower n_regions"))


def _regions(coords: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Region [N] of each spot: the nearest of some spots, taken as centres."""
    centres = coords[rng.choice(len(coords), number, replace=False)]
    return np.linalg.norm(coords[:, None] - centres, axis=2).argmin(axis=1)


def _cells(
    profiles: np.ndarray, names: list[str], number: int, rng: np.random.Generator
) -> AnnData:
    """Cells of all types, whose genes vary around the profile of the type."""
    code = np.repeat(np.arange(len(names)), number)
    rate = profiles.T[code] * rng.gamma(CELL_SIZE, 1 / CELL_SIZE, (len(code), len(profiles)))
    rate *= CELL_DEPTH * rng.lognormal(-(DEPTH_SD**2) / 2, DEPTH_SD, (len(code), 1))
    cells = _anndata(sp.csr_matrix(rng.poisson(rate)), "cell")
    cells.obs["cell_type"] = pd.Categorical.from_codes(code, names)
    return cells


def _anndata(counts: sp.csr_matrix, prefix: str) -> AnnData:
    """Counts with names of observations and genes."""
    n_obs, n_genes = counts.shape
    return AnnData(
        X=counts.astype(np.float32),
        obs=pd.DataFrame(index=[f"{prefix}_{number}" for number in range(1, n_obs + 1)]),
        var=pd.DataFrame(index=[f"gene_{number}" for number in range(1, n_genes + 1)]),
    )
