"""Places on the genome: peaks and genes as intervals, and which of them lie close to one another."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gpnsf.checks import choices, column, problem

__all__ = [
    "gene_positions",
    "genes_of",
    "middle",
    "nearest",
    "pairs_overlapping",
    "pairs_within",
    "peak_positions",
    "same_chromosomes",
    "signed_distance",
    "starts",
]

COLUMNS = (  # in any case: of BED, pyranges and muon, GRanges and ArchR, Ensembl
    ("chrom", "chromstart", "chromend"),
    ("chrom", "start", "end"),
    ("chromosome", "start", "end"),
    ("chr", "start", "end"),
    ("seqnames", "start", "end"),
    ("chromosome_name", "start_position", "end_position"),
)
INTERVAL = "interval"  # of Cell Ranger ARC and muon
PATTERN = r"^(?P<chrom>.+?)[:_-](?P<start>\d+)[_-](?P<end>\d+)$"
GENE_NAMES = ("gene", "gene_name", "external_gene_name", "name")
STRANDS = {
    "+": "+",
    "1": "+",
    "1.0": "+",
    "-": "-",
    "-1": "-",
    "-1.0": "-",
    ".": "",
    "?": "",
    "": "",
}
GTF = (".gtf", ".gff", ".gff3")
GTF_COLUMNS = {0: "chrom", 2: "kind", 3: "start", 4: "end", 6: "strand", 8: "attributes"}
GTF_NAMES = (r'\bgene_name[ =]"?([^";]+)', r"\bName=([^;]+)", r'\bgene_id[ =]"?([^";]+)')
ROWS_AT_ONCE = 200_000  # of a GTF file, of which one in thirty is a gene
REMEDY = "Give them columns chrom, chromStart, chromEnd in var, or names like 'chr1:1000-1500'"

ALIASES = {"x": "X", "y": "Y", "m": "M", "mt": "M"}
PLINK = {"chr23": "chrX", "chr24": "chrY", "chr26": "chrM"}

_log = logging.getLogger("gpnsf")


def peak_positions(var: pd.DataFrame, *, where: str) -> pd.DataFrame:
    """``chrom``, ``start``, ``end`` of peaks [P]: from columns, else from the column ``interval``, else from their names.

    Raises
    ------
    ValueError
        If a peak has no chromosome or place, or one that ends before it starts.
    """
    table = _from_columns(var, where)
    if table is None:
        texts = column(var, INTERVAL, where=where) if INTERVAL in var else var.index.to_series()
        table = _divided(texts)
        unread = table["chrom"].isna().to_numpy()
        if unread.any():
            rule = f"a place on the genome for every peak of {where}"
            raise ValueError(problem(rule, _count(unread, texts.astype(str).to_numpy()), REMEDY))
    return _clean(table.set_axis(var.index), where)


def gene_positions(
    annotation: pd.DataFrame | str | os.PathLike[str], *, where: str
) -> pd.DataFrame:
    """``chrom``, ``start``, ``end`` and ``strand`` ("+", "-" or "") of genes by name, from a table, a csv or a GTF file.

    Genes without a name or a place ("NA" in a column ``interval``) are left out; of genes that occur several times the first is
    kept.
    """
    table = annotation if isinstance(annotation, pd.DataFrame) else _from_file(annotation, where)
    places = _from_columns(table, where)
    if places is None and INTERVAL in table:
        places = _divided(column(table, INTERVAL, where=where))
    if places is None:
        remedy = "Pass annotation=, a table or the path of a file, with columns gene, chrom, start, end and, if known, strand"
        choices(
            ["chrom"],
            [*map(str, table.columns)],
            what="positions of genes",
            where=where,
            remedy=remedy,
        )
        raise KeyError(
            problem(f"columns start and end in {where}", str(list(table.columns)), remedy)
        )
    names = next(
        (column(table, name, where=where) for name in GENE_NAMES if name in table),
        table.index.to_series(),
    )
    known = places.notna().all(axis=1).to_numpy() & names.notna().to_numpy()
    places = _clean(places[known].set_axis(names.astype(str).to_numpy()[known]), where)
    places["strand"] = _strands(table, where)[known]
    again = places.index.duplicated()
    if again.any():
        _log.info("%s: %d gene(s) occur again, and the first is kept", where, again.sum())
    return places[~again]


def genes_of(
    annotation: pd.DataFrame | str | os.PathLike[str] | None, var: pd.DataFrame, *, where: str
) -> pd.DataFrame:
    """The same from an annotation or, without one, from ``var`` of the genes themselves, whose names are its index."""
    if annotation is not None:
        return gene_positions(annotation, where="`annotation`")
    return gene_positions(var.drop(columns=list(GENE_NAMES), errors="ignore"), where=where)


def starts(genes: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Gene [n] and place [n] of its transcription start site; both ends of a gene whose strand is not known."""
    strand = genes["strand"].to_numpy()
    forward, backward = np.flatnonzero(strand != "-"), np.flatnonzero(strand != "+")
    sites = np.concatenate([genes["start"].to_numpy()[forward], genes["end"].to_numpy()[backward]])
    return np.concatenate([forward, backward]), sites


def pairs_within(
    genes: pd.DataFrame, peaks: pd.DataFrame, window: float
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of gene and peak [n] of all pairs whose peak has its middle within ``window`` bases of a start of the gene."""
    gene, sites = starts(genes)
    chrom, centre = peaks["chrom"].to_numpy(), middle(peaks)
    found = []
    for name in np.unique(chrom):
        here = np.flatnonzero(chrom == name)
        here = here[np.argsort(centre[here], kind="stable")]
        own = np.flatnonzero(genes["chrom"].to_numpy()[gene] == name)
        first = np.searchsorted(centre[here], sites[own] - window, side="left")
        number = np.searchsorted(centre[here], sites[own] + window, side="right") - first
        found.append(np.column_stack(_ranges(gene[own], first, number, here)))
    return _ordered(found)


def pairs_overlapping(
    genes: pd.DataFrame, peaks: pd.DataFrame, upstream: float
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of gene and peak [n] of all pairs whose peak overlaps the body of the gene or ``upstream`` bases before its start.

    Intervals are half open. Where the strand is not known, either end of a gene may be its start.
    """
    strand = genes["strand"].to_numpy()
    low = genes["start"].to_numpy() - np.where(strand == "-", 0, upstream)
    high = genes["end"].to_numpy() + np.where(strand == "+", 0, upstream)
    chrom, start, end = (peaks[name].to_numpy() for name in ("chrom", "start", "end"))
    found = []
    for name in np.unique(chrom):
        here, own = np.flatnonzero(chrom == name), np.flatnonzero(genes["chrom"].to_numpy() == name)
        here = here[np.argsort(start[here], kind="stable")]
        longest = (end[here] - start[here]).max()
        first = np.searchsorted(start[here], low[own] - longest, side="left")
        number = np.searchsorted(start[here], high[own], side="left") - first
        gene, peak = _ranges(own, first, number, here)
        near = end[peak] > low[gene]
        found.append(np.column_stack([gene[near], peak[near]]))
    return _ordered(found)


def signed_distance(genes: pd.DataFrame, peaks: pd.DataFrame) -> np.ndarray:
    """Bases [n] from the start of each gene to the middle of its peak, row by row; NaN on different chromosomes.

    Negative upstream. Where the strand is not known, the nearer end of the gene counts as its start.
    """
    centre, start, end = middle(peaks), genes["start"].to_numpy(), genes["end"].to_numpy()
    strand = genes["strand"].to_numpy()
    forward, backward = centre - start, end - centre
    nearer = np.where(np.abs(forward) <= np.abs(backward), forward, backward)
    distance = np.select([strand == "+", strand == "-"], [forward, backward], nearer)
    return np.where(genes["chrom"].to_numpy() == peaks["chrom"].to_numpy(), distance, np.nan)


def nearest(peaks: pd.DataFrame, genes: pd.DataFrame) -> np.ndarray:
    """Position [P] of the gene whose start is nearest to the middle of each peak; -1 on chromosomes without genes."""
    gene, sites = starts(genes)
    chrom, centre = peaks["chrom"].to_numpy(), middle(peaks)
    found = np.full(len(peaks), -1)
    for name in np.unique(chrom):
        here = np.flatnonzero(chrom == name)
        own = np.flatnonzero(genes["chrom"].to_numpy()[gene] == name)
        if own.size:
            own = own[np.argsort(sites[own], kind="stable")]
            right = np.searchsorted(sites[own], centre[here])
            around = np.stack([np.maximum(right - 1, 0), np.minimum(right, own.size - 1)])
            better = np.abs(sites[own][around] - centre[here]).argmin(axis=0)
            found[here] = gene[own[around[better, np.arange(here.size)]]]
    return found


def middle(places: pd.DataFrame) -> np.ndarray:
    """Middle [n] of each interval."""
    return ((places["start"] + places["end"]) / 2).to_numpy()


def _ranges(
    genes: np.ndarray, first: np.ndarray, number: np.ndarray, peaks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gene and peak [n] of pairs: each of ``genes`` with as many ``peaks`` as its number says, from its first one on."""
    place = np.arange(number.sum()) + np.repeat(first - number.cumsum() + number, number)
    return np.repeat(genes, number), peaks[place]


def _ordered(found: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs [n, 2] of all chromosomes by gene and peak, each once."""
    pairs = np.unique(np.concatenate(found), axis=0) if found else np.zeros((0, 2), dtype=np.int64)
    return pairs[:, 0], pairs[:, 1]


def _from_file(path: str | os.PathLike[str], where: str) -> pd.DataFrame:
    """A csv file as it is, or the genes of a GTF or GFF file."""
    if not os.path.isfile(path):
        rule, found = "`annotation` to be a table or a file", f"{os.fspath(path)!r}, which is none"
        raise FileNotFoundError(problem(rule, found, "Check the path"))
    plain = os.fspath(path).lower().removesuffix(".gz")
    return _from_gtf(path, where) if plain.endswith(GTF) else pd.read_csv(path)


def _from_gtf(path: str | os.PathLike[str], where: str) -> pd.DataFrame:
    """Rows of genes, with places as intervals that begin at 0 and are half open; names are gene_name, else gene_id."""
    parts = pd.read_csv(
        path,
        sep="\t",
        names=range(9),
        usecols=list(GTF_COLUMNS),
        dtype={0: str, 3: str},  # comments have neither
        quoting=csv.QUOTE_NONE,
        chunksize=ROWS_AT_ONCE,
    )
    genes = pd.concat([part[part[2] == "gene"] for part in parts]).rename(columns=GTF_COLUMNS)
    if genes.empty:
        remedy = "Pass the file of GENCODE, Ensembl or Cell Ranger, or a table with columns gene, chrom, start, end, strand"
        raise ValueError(
            problem(f"rows of kind 'gene' in {where}", f"none in {os.fspath(path)!r}", remedy)
        )
    genes["start"] = pd.to_numeric(genes["start"], errors="coerce") - 1
    names = pd.Series(np.nan, index=genes.index, dtype=object)
    for pattern in GTF_NAMES:
        names = names.where(names.notna(), genes["attributes"].str.extract(pattern)[0])
    return genes.drop(columns="attributes").assign(gene=names)


def _strands(table: pd.DataFrame, where: str) -> np.ndarray:
    """Strand [n] of each gene, "" where it is not known."""
    own = _own_names(table)
    if "strand" not in own:
        return np.full(len(table), "")
    values = column(table, own["strand"], where=where)
    texts = values.astype(object).where(values.notna(), "").astype(str)
    wrong = ~texts.isin(STRANDS).to_numpy()
    if wrong.any():
        rule = f"a strand of '+', '-', '.', '?', 1 or -1 for every gene in {where}, or none"
        raise ValueError(
            problem(
                rule, _count(wrong, texts.to_numpy()), "Correct these rows, or remove the column"
            )
        )
    return texts.map(STRANDS).to_numpy()


def _from_columns(table: pd.DataFrame, where: str) -> pd.DataFrame | None:
    """The three columns of places under their usual names, if there are such."""
    own = _own_names(table)
    names = next((names for names in COLUMNS if own.keys() >= set(names)), None)
    if names is None:
        return None
    return pd.DataFrame(
        {
            new: column(table, own[name], where=where)
            for new, name in zip(("chrom", "start", "end"), names, strict=True)
        }
    )


def _own_names(table: pd.DataFrame) -> dict[str, str]:
    """What a table calls its columns, by their names in lower case."""
    names = [name for name in table.columns if isinstance(name, str)]
    return {name.lower(): name for name in names} | {name: name for name in names}


def _divided(texts: pd.Series) -> pd.DataFrame:
    """Chromosome, start and end of texts such as "chr1:1000-1500"; NaN where they cannot be read."""
    return texts.astype(str).str.extract(PATTERN)


def _clean(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Chromosomes that begin with "chr", whole numbers in order."""
    chrom = table["chrom"].astype(object).map(_chromosome)
    ends = table[["start", "end"]].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    placed = np.isfinite(ends).all(axis=1) & table["chrom"].notna().to_numpy()
    wrong = ~(placed & (ends[:, 0] <= ends[:, 1]) & (ends[:, 0] >= 0))
    if wrong.any():
        remedy = "Correct these rows, or leave them out"
        shown = [f"{row[0]} at {' '.join(map(str, row[1:]))}" for row in table.itertuples()]
        raise ValueError(
            problem(
                f"a chromosome and 0 <= start <= end for every row of {where}",
                _count(wrong, shown),
                remedy,
            )
        )
    return pd.DataFrame(
        {"chrom": _as_of_humans(chrom), "start": ends[:, 0], "end": ends[:, 1]}, index=table.index
    )


def _chromosome(name: Any) -> str:
    """Its name, of whatever case and with or without "chr", as "chr" and what sets it apart.

    Numbers in a column with gaps have become real.
    """
    text = str(int(name)) if isinstance(name, float) and name.is_integer() else str(name).strip()
    bare = text[3:] if text[:3].lower() == "chr" else text
    own = bare.lstrip("_").lower()
    return f"chr{ALIASES.get(own, bare)}"


def _as_of_humans(chrom: pd.Series) -> pd.Series:
    """X, Y and M in place of the numbers that plink gives them, unless others tell that the species has so many chromosomes."""
    others = chrom.str[3:].where(chrom.str[3:].str.isdecimal(), "0").astype(int)
    return chrom if ((others == 25) | (others > 26)).any() else chrom.replace(PLINK)


def same_chromosomes(genes: pd.DataFrame, peaks: pd.DataFrame) -> None:
    """Say which chromosomes of peaks have no gene; refuse places that share none."""
    here, there = (sorted(set(places["chrom"])) for places in (peaks, genes))
    lacking = [name for name in here if name not in set(there)]
    if len(lacking) == len(here):
        found = f"peaks on {', '.join(here[:4])} and genes on {', '.join(there[:4])}"
        remedy = "Check that both are of the same genome, and rename the chromosomes of one of them"
        raise ValueError(problem("genes and peaks that share chromosomes", found, remedy))
    if lacking:
        number = int(peaks["chrom"].isin(lacking).sum())
        _log.info("%d peaks on %s, where there is no gene", number, ", ".join(lacking[:4]))


def _count(wrong: np.ndarray, texts: Sequence[Any]) -> str:
    """How many rows are wrong, and the first of them."""
    return f"{wrong.sum()} of {wrong.size} without, the first {str(texts[int(np.flatnonzero(wrong)[0])])!r}"
