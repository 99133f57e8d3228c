"""The gene next to each peak."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from mudata import MuData

from gpnsf import genome
from gpnsf.checks import choices
from gpnsf.io.names import named
from gpnsf.io.objects import owner
from gpnsf.io.tables import takes_tables
from gpnsf.keys import NEAREST, NEAREST_DISTANCE

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["nearest_genes"]


@takes_tables
def nearest_genes(
    data: AnnData | MuData,
    *,
    annotation: pd.DataFrame | str | os.PathLike[str] | None = None,
    rna: str = "rna",
    atac: str = "atac",
) -> None:
    """Name the gene whose start is nearest to the middle of each peak.

    Parameters
    ----------
    data
        MuData with the modality ``atac``, or the AnnData of peaks itself. No fit is needed.
    annotation
        Places of genes, as in :func:`gpnsf.tl.link_peaks`: all genes of the genome, measured or not. None for the columns in
        ``var`` of ``rna``.
    rna, atac
        Names of the modalities; by default also those that the field uses, such as "gex" and "Peaks".

    Raises
    ------
    KeyError
        If a modality, or a column of the annotation, is missing.
    ValueError
        If a peak has no readable place, or ``data`` is a view.

    Notes
    -----
    Reads places of peaks as :func:`gpnsf.tl.link_peaks` does. Writes ``var["nearest_gene"]`` ("" on chromosomes without a
    gene) and ``var["nearest_gene_distance"]``, in bases, negative upstream, of the peaks;
    :func:`gpnsf.tl.rank_features` shows the former.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=50, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.nearest_genes(mdata)
    >>> bool((mdata["atac"].var["nearest_gene"] != "").all())
    True
    """
    owner(data)
    mods = dict(data.mod) if isinstance(data, MuData) else {atac: data}
    rna, atac = named(rna, list(mods)), named(atac, list(mods))
    choices(
        [atac] if annotation is not None else [atac, rna], mods, what="modalities", where="the data"
    )
    var = mods[atac].var
    peaks = genome.peak_positions(var, where=f"modality {atac!r}")
    genes = genome.genes_of(
        annotation, mods[rna].var if rna in mods else var, where=f"var of {rna!r}"
    )
    genome.same_chromosomes(genes, peaks)
    found = genome.nearest(peaks, genes)
    near, has = genes.iloc[np.maximum(found, 0)], found >= 0
    mods[atac].var[NEAREST] = np.where(has, near.index, "").astype(object)
    mods[atac].var[NEAREST_DISTANCE] = np.where(has, genome.signed_distance(near, peaks), np.nan)
