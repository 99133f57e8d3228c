"""Places on a simulated genome, which say which peaks lie near the gene that they follow."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import cKDTree

__all__ = ["place"]

REACH = 150_000  # bases from the start of a gene to its farthest peak
SPACING = 100_000  # mean distance of neighbouring genes: a peak lies near some three of them
GENES = 100  # on a chromosome
LINKED = 0.5  # share of the peaks that lie near the gene that they resemble most
PEAK = 500  # bases


def place(rna: AnnData, atac: AnnData, rng: np.random.Generator) -> pd.DataFrame:
    """Write places into ``var`` of both modalities, and return the true links ``gene``, ``peak``.

    Half of the peaks lie near the gene whose true loadings are most like theirs, the others near
    any gene, all of them at the same distances: a place alone says nothing about links.
    """
    chrom, order = np.divmod(np.arange(rna.n_vars), GENES)
    forward = rng.random(rna.n_vars) < 0.5
    site = (1_000_000 + SPACING * (order + rng.uniform(-0.4, 0.4, rna.n_vars))).astype(np.int64)
    length = rng.integers(5_000, 40_000, rna.n_vars)
    names = np.array([f"chr{number + 1}" for number in chrom], dtype=object)
    rna.var["chrom"] = pd.Categorical(names)
    rna.var["chromStart"], rna.var["chromEnd"] = (
        np.where(forward, site, site - length),
        np.where(forward, site + length, site),
    )
    rna.var["strand"] = pd.Categorical(np.where(forward, "+", "-"))
    linked = rng.random(atac.n_vars) < LINKED
    gene = np.where(linked, _most_alike(rna, atac), rng.integers(rna.n_vars, size=atac.n_vars))
    start = (site[gene] + rng.uniform(-REACH, REACH, atac.n_vars)).astype(np.int64) - PEAK // 2
    atac.var["chrom"] = pd.Categorical(names[gene])
    atac.var["chromStart"], atac.var["chromEnd"] = start, start + PEAK
    return pd.DataFrame({"gene": rna.var_names[gene[linked]], "peak": atac.var_names[linked]})


def _most_alike(rna: AnnData, atac: AnnData) -> np.ndarray:
    """Position [P] of the gene whose true loadings have the direction of those of each peak."""
    genes, peaks = (mod.varm["true_loadings"].astype(np.float64) for mod in (rna, atac))
    genes, peaks = (
        W / np.maximum(np.linalg.norm(W, axis=1, keepdims=True), 1e-300) for W in (genes, peaks)
    )
    return cKDTree(genes).query(peaks)[1]
