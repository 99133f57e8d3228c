"""Simulated groups of cells without places.

RNA and open peaks, each group with features of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from gpnsf.arguments import answering
from gpnsf.checks import Rule
from gpnsf.datasets.places import place
from gpnsf.io.objects import no_pulling

__all__ = ["VARIANTS", "groups"]


@dataclass(frozen=True)
class Settings:
    """What a variant is made of; the defaults are those of "plain"."""

    shares: tuple[float, ...] = (0.2,) * 5  # of the cells, by group
    rna: tuple[int, ...] | None = None  # every group differs from all others
    atac: tuple[int, ...] | None = None
    fold: float = 4.0  # expression of a gene in the group that it marks, relative to others
    depth: float = 2000.0  # expected RNA counts of a cell, before dropout
    open_share: float = 0.05  # rate at which a mean peak is open
    opening: float = 4.0  # the same ratio for peaks


# What differs from the settings of "plain". Groups of the same number in `rna` or `atac` are alike in that modality.
VARIANTS = {
    "plain": Settings(),
    "weak": Settings(fold=2.5, opening=2.6),
    "unequal": Settings(shares=(0.5, 0.25, 0.15, 0.07, 0.03)),
    "closed": Settings(open_share=0.01, opening=5.0),
    "shallow": Settings(depth=200.0),
    "many": Settings(shares=(0.1,) * 10),
    "alike_in_rna": Settings(rna=(0, 0, 1, 1, 2)),
    "alike_in_atac": Settings(atac=(0, 0, 1, 1, 2)),
    "crossed": Settings(rna=(0, 0, 1, 1, 2), atac=(0, 1, 1, 2, 2)),
}
MARKERS = 0.05  # share of the features that mark a group, for each group
DROPOUT = 0.3  # share of RNA counts, entry by entry, that is lost
SHAPE = 2.0  # of the negative binomial: variance = mean + mean**2 / 2
SIZE_SD = 0.35  # standard deviation of the log size factors
SPREAD = {"rna": 1.5, "atac": 0.8}  # standard deviation of the log mean of features


@answering
def groups(
    variant: str = "plain",
    *,
    n_obs: int = 500,
    n_genes: int = 2000,
    n_peaks: int = 5000,
    seed: int = 0,
) -> MuData:
    """Simulate cells of several groups that differ in genes and in open peaks, without coordinates.

    Each group has its own 5 % of the genes, expressed four times as high as in other cells, and its
    own 5 % of the peaks, open four times as often. RNA counts are negative binomial with size 2,
    and 30 % of the entries are lost; peaks are open or closed, 5 % of them in a cell. "plain" is of
    the kind that scAI was published with; the others are harder.

    Parameters
    ----------
    variant
        "plain": five groups of equal size. "weak": genes and peaks of a group stand out 2.5 and 2.6
        times. "unequal": groups of 50, 25, 15, 7 and 3 % of the cells. "closed": 1 % of the peaks
        open, 5 % of those of the group. "shallow": 200 counts a cell instead of 2,000. "many": ten
        groups. "alike_in_rna": five groups in ATAC, of which RNA tells three apart;
        "alike_in_atac": the reverse. "crossed": either modality tells three kinds of cells apart,
        both together five.
    n_obs
        Number of cells, at least 50.
    n_genes, n_peaks
        Number of features of the modalities ``rna`` and ``atac``.
    seed
        Seed of the random draws.

    Returns
    -------
    Simulated MuData with ``n_obs`` cells.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range or of the wrong type.

    Notes
    -----
    Writes the truth: ``obs["true_group"]`` of the object and of each modality, as
    ``obsm["true_factors"]`` [N, groups] in zeros and ones; ``obs["true_size"]`` of each modality,
    mean 1; ``varm["true_loadings"]`` [P, groups] of each modality, so that the expected count
    before any is lost (``atac``: the rate, with probability ``1 - exp(-rate)`` to be open) is
    ``true_size * (true_factors @ true_loadings.T)``; ``var["marker"]``, whether a feature marks a
    group; ``uns["truth"]``, the settings.

    Places on a genome as in :func:`gpnsf.datasets.tissue`. ``uns["true_links"]`` has the peaks that
    mark groups and lie near a gene that marks the same groups.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.groups("many", n_obs=100, n_genes=60, n_peaks=90)
    >>> mdata.obs["true_group"].value_counts().tolist()
    [10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
    """
    Rule(str, "plain", options=tuple(VARIANTS)).check("variant", variant)
    Rule(int, 500, low=50).check("n_obs", n_obs)
    Rule(int, 2000, low=1).check("n_genes", n_genes)
    Rule(int, 5000, low=1).check("n_peaks", n_peaks)
    Rule(int, 0, low=0).check("seed", seed)
    chosen = VARIANTS[variant]
    group_rng, rna_rng, atac_rng, place_rng = np.random.default_rng(seed).spawn(4)
    group = group_rng.permutation(_members(chosen.shares, n_obs))
    n_groups = len(chosen.shares)
    rna_rates = _rates("rna", n_genes, chosen.rna or range(n_groups), chosen.fold, rna_rng)
    rna_rates *= chosen.depth / rna_rates.sum(axis=0)  # [P, groups]
    atac_rates = _rates("atac", n_peaks, chosen.atac or range(n_groups), chosen.opening, atac_rng)
    atac_rates *= chosen.open_share / np.exp(SPREAD["atac"] ** 2 / 2)
    rna = _modality("gene", rna_rates, group, rna_rng)
    atac = _modality("peak", atac_rates, group, atac_rng)
    rna.X = _counts(rna_rates.T[group] * rna.obs["true_size"].to_numpy()[:, None], rna_rng)
    atac.X = _open(atac_rates.T[group] * atac.obs["true_size"].to_numpy()[:, None], atac_rng)
    links = place(rna, atac, place_rng)
    with no_pulling():
        mdata = MuData({"rna": rna, "atac": atac})
    mdata.obs["true_group"] = rna.obs["true_group"].array
    mdata.obsm["true_factors"] = np.eye(n_groups, dtype=np.float32)[group]
    marking = [mod.var_names[mod.var["marker"]] for mod in (rna, atac)]
    told = links["gene"].isin(marking[0]) & links["peak"].isin(marking[1])
    mdata.uns["true_links"] = links[told].reset_index(drop=True)
    settings = {name: value for name, value in asdict(chosen).items() if value is not None}
    mdata.uns["truth"] = {
        "simulated": True,
        "recipe": "groups",
        "variant": variant,
        "settings": {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}
        | {"seed": seed},
    }
    return mdata


def _members(shares: Sequence[float], n_obs: int) -> np.ndarray:
    """Group [N] of each cell, in order."""
    ends = np.round(np.cumsum(shares) * n_obs).astype(np.int64)
    return np.searchsorted(ends, np.arange(n_obs), side="right")


def _rates(
    kind: str, n_features: int, alike: Sequence[int], fold: float, rng: np.random.Generator
) -> np.ndarray:
    """Mean [P, groups] of each feature, higher in the groups that it marks.

    Groups that are ``alike`` share their features.
    """
    base = rng.lognormal(0, SPREAD[kind], (n_features, 1))
    marks = rng.random((n_features, max(alike) + 1)) < MARKERS
    return base * np.where(marks[:, list(alike)], fold, 1.0)


def _modality(
    prefix: str, rates: np.ndarray, group: np.ndarray, rng: np.random.Generator
) -> AnnData:
    """A modality with its truth, without counts."""
    size = rng.lognormal(0, SIZE_SD, len(group))
    codes = pd.Categorical(
        [f"group_{number + 1}" for number in group],
        [f"group_{k + 1}" for k in range(rates.shape[1])],
    )
    obs = pd.DataFrame({"true_group": codes, "true_size": size / size.mean()})
    obs.index = [f"cell_{number}" for number in range(1, len(group) + 1)]
    var = pd.DataFrame(index=[f"{prefix}_{number}" for number in range(1, len(rates) + 1)])
    adata = AnnData(obs=obs, var=var)
    adata.varm["true_loadings"] = rates.astype(np.float32)
    adata.var["marker"] = np.ptp(rates / rates.max(axis=1, keepdims=True), axis=1) > 0.5
    return adata


def _counts(rates: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
    """Negative binomial counts, of which some entries are lost."""
    counts = rng.poisson(rates * rng.standard_gamma(SHAPE, rates.shape) / SHAPE)
    return sp.csr_matrix(counts * (rng.random(rates.shape) >= DROPOUT), dtype=np.float32)


def _open(rates: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
    """Peaks that are open."""
    return sp.csr_matrix(rng.random(rates.shape) < -np.expm1(-rates), dtype=np.float32)
