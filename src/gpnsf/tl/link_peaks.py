"""Which peaks may regulate which genes: pairs on the genome whose loadings agree."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from gpnsf import genome
from gpnsf.checks import Rule, choices, column, problem
from gpnsf.core import stored
from gpnsf.core.scores import links
from gpnsf.io.fits import LARGEST_LOADING
from gpnsf.io.names import named
from gpnsf.io.objects import open_data
from gpnsf.io.tables import takes_tables
from gpnsf.keys import Keys

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

__all__ = ["DISTANCES", "bins_of", "gene_places", "link_peaks", "pair_table", "unique_names"]

WINDOW = 150_000  # bases to either side of the start of a gene
DISTANCES = (0, 25_000, 50_000, 75_000, 100_000, 125_000, 150_000)  # ends of the bins
PAIR = ("gene", "peak")
FEW, PART = (
    20,
    0.1,
)  # pairs of a stratum that say little, and the share of all pairs that may be in such

_log = logging.getLogger("gpnsf")


@takes_tables
def link_peaks(
    mdata: MuData,
    *,
    genes: str | Sequence[str] | None = None,
    annotation: pd.DataFrame | str | os.PathLike[str] | None = None,
    pairs: pd.DataFrame | None = None,
    window: int = WINDOW,
    rna: str = "rna",
    atac: str = "atac",
    conditional: bool = False,
    n_permutations: int = 500,
    seed: int = 0,
    key: str = "gpnsf",
) -> None:
    r"""Link genes to nearby peaks that load on the same factors.

    The profile of a feature is its share of each factor, :math:`s_{jk} = w_{jk} / \sum_l w_{jl}`, minus the share of that
    factor in all features of the modality; backgrounds do not count. Loadings with a sign, such as the embeddings of
    :func:`gpnsf.tl.factvae`, are profiles themselves. The score of a pair is the cosine of its two profiles.

    The p value of a pair says how often a score as high is reached where the pairs of its stratum exchange their peaks: pairs as
    far apart (bins of 25 kb) whose gene and peak are about as specific (length of the profile; unspecific features agree with
    many others a little). Nearly all of these peaks are near other genes, but the pair itself and other peaks of its gene are
    among them. The null hypothesis is thus that near peaks are peaks like any other at that distance. It is one-sided; q values are after
    Benjamini-Hochberg over all pairs. Profiles over K factors take few distinct directions: a peak that shares the main
    factor of a gene by chance looks like a link, so q values are seldom small, and the ranking says more than their number.

    With ``conditional=True`` the gene's other peaks in the table are held fixed, so that a peak that only follows another one falls.
    Let :math:`c_{ab}` be the cosine of the profiles of two features, each of which has, besides, a tenth of its squared length to itself
    (:math:`c_{aa} = 1 + \lambda`, :math:`\lambda = .1`). The score of gene g and peak p, given the other peaks O of g, is
    :math:`1 + \lambda` times their partial correlation,

    .. math:: (1 + \lambda) \frac{c_{gp \mid O}}{\sqrt{c_{gg \mid O}\, c_{pp \mid O}}}, \qquad c_{ab \mid O} = c_{ab} - c_{aO}\, c_{OO}^{-1} c_{Ob},

    the cosine for a gene with one peak. Its p value has the same null, the other peaks staying in place. K factors have room for fewer
    than K different peaks, and true links of one gene take from each other: planted links are ranked clearly worse than by the cosine, those
    of real cells no better (:doc:`/benchmarks`). Use it to ask which of several peaks of a gene explains the others, not to find links.

    Parameters
    ----------
    mdata
        MuData that :func:`gpnsf.tl.fit`, or another tool that writes loadings, annotated, with the modalities ``rna`` and ``atac``.
    genes
        Genes to link; None for all.
    annotation
        Places of genes: a table, or the path of a csv file, with columns ``gene`` (or gene names as index), ``chrom``,
        ``start``, ``end`` and, if known, ``strand``; or the path of a GTF or GFF3 file with rows of genes, such as ``genes.gtf.gz`` of
        Cell Ranger. None for such columns, or a column ``interval``, in ``var`` of ``rna``.
        Without a strand either end of a gene may be its start.
    pairs
        Table with columns ``gene`` and ``peak`` of the pairs to score, and ``distance`` (bases) if it is to be taken from
        there; None for all peaks whose middle lies within ``window`` of the start of a gene.
    window
        Bases to either side of the start of a gene.
    rna, atac
        Names of the modalities; by default also those that the field uses, such as "gex" and "Peaks".
    conditional
        Hold the other peaks of the gene fixed.
    n_permutations
        Peaks of a stratum that each of its genes is compared with, drawn at random where there are more.
    seed
        Seed of these draws.
    key
        Prefix of the slots, ``key_added`` of the fit; "factvae" for the embeddings of :func:`gpnsf.tl.factvae`.

    Raises
    ------
    KeyError
        If the object has no such loadings, modality, gene or peak, or the annotation lacks a column.
    ValueError
        If ``mdata`` is a view, the fit has one factor only, a peak has no readable place, or there is no pair.

    Notes
    -----
    Reads ``varm["gpnsf_loadings"]`` of both modalities, and places of peaks from ``var`` of ``atac``: columns ``chrom``,
    ``chromStart``, ``chromEnd`` (or ``chrom``, ``start``, ``end``), a column ``interval``, or names such as ``chr1:1-2``,
    ``chr1_1_2``, ``chr1-1-2``. Columns of pyranges (``Chromosome``), GRanges (``seqnames``) and Ensembl (``chromosome_name``)
    are known, and case does not count. Given ``pairs``, places are read only with an annotation; pairs without a distance share a
    bin, as do those beyond 150 kb.

    Writes ``uns["gpnsf_links"]``: a table with columns ``gene``, ``peak``, ``distance`` (from the start of the gene, negative
    upstream, NaN if not known), ``score``, ``p`` and ``q``, best first; with ``conditional=True`` also ``cosine``, the score without
    that. Genes and peaks without signal are left out.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> gpnsf.tl.link_peaks(mdata)
    >>> list(mdata.uns["gpnsf_links"])
    ['gene', 'peak', 'distance', 'score', 'p', 'q']
    """
    Rule(int, WINDOW, low=0).check("window", window)
    Rule(bool, False).check("conditional", conditional)
    Rule(int, 500, low=20).check("n_permutations", n_permutations)
    Rule(int, 0, low=0).check("seed", seed)
    there = list(getattr(mdata, "mod", ()))  # no other object comes further than the next lines
    rna, atac = named(rna, there), named(atac, there)
    mods, loadings = _read(mdata, (rna, atac), key)
    names = [unique_names(mods[name], name) for name in (rna, atac)]
    if genes is not None:
        genes = [genes] if isinstance(genes, str) else list(genes)
        choices(genes, names[0], what="genes", where=f"modality {rna!r}")
    table = (
        _near(mods, rna, atac, annotation, window)
        if pairs is None
        else _given(mods, rna, atac, annotation, pairs)
    )
    signed = any((W < 0).any() for W in loadings)
    profiles, lengths = zip(*(links.profiles(W, signed=signed) for W in loadings), strict=True)
    i, j = (known.get_indexer(table[kind]) for known, kind in zip(names, PAIR, strict=True))
    told = (lengths[0][i] > 0) & (lengths[1][j] > 0)
    asked = told if genes is None else told & table["gene"].isin(genes).to_numpy()
    if not asked.any():
        found = f"none among {len(table)} pairs" + ("" if genes is None else " of the `genes`")
        remedy = "Check that genes and peaks are placed on the same genome, or raise `window`"
        raise ValueError(problem("pairs of a gene and a peak with signal", found, remedy))
    table, i, j = table[told].copy(), i[told], j[told]
    stratum = links.strata(bins_of(table["distance"], DISTANCES), lengths[1][j], lengths[0][i])
    _tell_of_few(stratum)
    scored = (profiles[0], profiles[1], i, j)
    table["score"] = links.pair_scores(*scored, conditional=conditional)
    if conditional:
        table["cosine"] = links.pair_scores(*scored)
    table["p"] = links.pair_p_values(
        *scored, stratum, n_permutations=n_permutations, seed=seed, conditional=conditional
    )
    if genes is not None:
        table = table[asked[told]].copy()
    table["q"] = false_discovery_control(table["p"])
    mdata.uns[Keys(key).links] = table.sort_values(
        ["p", "score"], ascending=[True, False], ignore_index=True
    )


def bins_of(distance: pd.Series, ends: Sequence[float] | None) -> np.ndarray:
    """Bin [n] of each distance, whichever its sign; those beyond the last end share one, those not known another."""
    if ends is None:
        return np.zeros(len(distance), dtype=np.int64)
    values = np.abs(distance.to_numpy(dtype=np.float64))
    return np.where(
        np.isnan(values), -1, np.searchsorted(np.asarray(ends)[1:], values, side="left")
    )


def gene_places(
    mod: AnnData, rna: str, annotation: pd.DataFrame | str | os.PathLike[str] | None
) -> pd.DataFrame:
    """Places of the genes of a modality, by name; those that the annotation lacks are left out, and counted in the log."""
    names = mod.var_names
    places = genome.genes_of(annotation, mod.var, where=f"var of {rna!r}")
    known = places.loc[names[names.isin(places.index)]]
    if known.empty:
        first = next(iter(places.index), "no gene with a place")
        found = f"none of {len(names)}; the first is {names[0]!r} in the data and {first!r} there"
        remedy = (
            "Pass an annotation with the gene names of the data, as a column 'gene' or as its index"
        )
        raise ValueError(problem("genes of the data in the annotation", found, remedy))
    if len(known) < len(names):
        _log.info(
            "%d of %d genes have no place and are left out", len(names) - len(known), len(names)
        )
    return known


def unique_names(mod: AnnData, modality: str) -> pd.Index:
    """Names of the features of a modality, which are to differ."""
    names = mod.var_names
    if not names.is_unique:
        found = f"{names.duplicated().sum()} duplicate name(s)"
        raise ValueError(
            problem(
                f"unique var_names in modality {modality!r}",
                found,
                "Call .var_names_make_unique() on it",
            )
        )
    return names


def _read(
    mdata: MuData, pair: tuple[str, str], key: str
) -> tuple[dict[str, AnnData], list[np.ndarray]]:
    """Both modalities, and the loadings [P, K] of each on the same factors."""
    opened, slot = open_data(mdata, modalities=pair, writes=True), Keys(key).loadings
    for name in pair:
        remedy = f"Run `gpnsf.tl.fit(data, key_added={key!r})` or another tool that writes loadings first"
        choices(
            [slot],
            opened.mods[name].varm,
            what="loadings",
            where=f"varm of {name!r}",
            remedy=remedy,
        )
    loadings: list[np.ndarray] = []
    for name in pair:
        shape = opened.mods[name].n_vars, loadings[0].shape[1] if loadings else None
        found = stored.array(
            opened.mods[name].varm,
            slot,
            shape,
            low=-LARGEST_LOADING,
            high=LARGEST_LOADING,
            where=f"varm of {name!r}",
        )
        loadings.append(found)
    if loadings[0].shape[1] < 2:
        rule = "at least two factors, whose shares differ between features"
        raise ValueError(problem(rule, f"{loadings[0].shape[1]} alone", "Fit more factors"))
    return opened.mods, loadings


def _tell_of_few(stratum: np.ndarray) -> None:
    """Warn where the strata [n] of many pairs have so few pairs that nothing could be seen in their p values."""
    few = np.bincount(stratum)[stratum] < FEW
    if few.mean() > PART:
        _log.warning(
            "%d of %d pairs are compared with fewer than %d pairs at a like distance: their p and q values are never small, whatever the score. "
            "Pass the places of all genes as `annotation`, and name those of interest in `genes`; otherwise read the scores.",
            few.sum(),
            few.size,
            FEW,
        )


def _near(
    mods: dict[str, AnnData], rna: str, atac: str, annotation: Any, window: int
) -> pd.DataFrame:
    """All pairs within the window, with their distance."""
    peaks = genome.peak_positions(mods[atac].var, where=f"modality {atac!r}")
    places = gene_places(mods[rna], rna, annotation)
    genome.same_chromosomes(places, peaks)
    i, j = genome.pairs_within(places, peaks, window)
    distance = genome.signed_distance(places.iloc[i], peaks.iloc[j])
    return pd.DataFrame({"gene": places.index[i], "peak": peaks.index[j], "distance": distance})


def _given(
    mods: dict[str, AnnData], rna: str, atac: str, annotation: Any, pairs: pd.DataFrame
) -> pd.DataFrame:
    """The pairs asked for, with the distance that they bring, or that the annotation gives."""
    table = pair_table(pairs, argument="pairs")
    for kind, modality in zip(PAIR, (rna, atac), strict=True):
        choices(
            table[kind],
            mods[modality].var_names,
            what=f"{kind}s in `pairs`",
            where=f"modality {modality!r}",
        )
    if "distance" in pairs:
        distance = column(pairs, "distance", where="`pairs`")
        if not pd.api.types.is_numeric_dtype(distance):
            remedy = "Convert it with pandas.to_numeric"
            raise TypeError(
                problem(
                    "numbers of bases in column 'distance' of `pairs`", str(distance.dtype), remedy
                )
            )
        return table.assign(distance=distance.to_numpy(dtype=np.float64, na_value=np.nan))
    table["distance"] = np.nan
    if annotation is not None:
        places = gene_places(mods[rna], rna, annotation)
        peaks = genome.peak_positions(mods[atac].var, where=f"modality {atac!r}")
        known = table["gene"].isin(places.index)
        near = places.loc[table.loc[known, "gene"]], peaks.loc[table.loc[known, "peak"]]
        table.loc[known, "distance"] = genome.signed_distance(*near)
    return table


def pair_table(pairs: pd.DataFrame, *, argument: str) -> pd.DataFrame:
    """Columns ``gene`` and ``peak`` of a table as strings, each pair once."""
    if not isinstance(pairs, pd.DataFrame):
        raise TypeError(
            problem(
                f"`{argument}` to be a DataFrame",
                type(pairs).__name__,
                "Give it columns gene and peak",
            )
        )
    choices(PAIR, pairs.columns, what="columns", where=f"`{argument}`")
    table = pairs[list(PAIR)].astype(str).astype(object).reset_index(drop=True)
    again = table.duplicated()
    if again.any():
        found = f"{again.sum()} of {len(table)} again"
        raise ValueError(
            problem(f"every pair in `{argument}` once", found, "Call .drop_duplicates() on it")
        )
    return table
