"""The three sections of the paper on nonnegative spatial factorization, from files that the user has downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData, read_h5ad
from anndata.utils import make_index_unique

from gpnsf.checks import Rule, problem

__all__ = ["slideseq_hippocampus", "visium_sagittal", "xyzeq_liver"]

FEWEST, MOST_MITOCHONDRIAL = 100, 20.0  # counts of an observation, and per cent of them
GENES_AT_ONCE = 200  # rows of the dense text file of a puck: 53,000 beads each
PUCK = (
    "from the Single Cell Portal, study SCP815, or pass the .h5ad that SeuratDisk makes of ssHippo"
)
TENX = "from the page of 'Mouse Brain Serial Section 1 (Sagittal-Anterior)' at 10x Genomics, and unpack the archive 'spatial' beside it"
GEO = "from GSM5009531 of GSE164430 and unpack it; the authors of XYZeq have sent the two tables on request"


def slideseq_hippocampus(path: str | os.PathLike[str]) -> AnnData:
    r"""Read the Slide-seqV2 section of a mouse hippocampus, ``Puck_200115_08``.

    Beads with fewer than 100 counts, or with 20 % of them or more from mitochondrial genes, are left out, and genes that no other bead
    has: the quality control of the paper.

    Parameters
    ----------
    path
        Folder with ``Puck_200115_08.digital_expression.txt`` (or ``.txt.gz``; genes in rows, divided by tabs) and
        ``Puck_200115_08_bead_locations.csv`` (columns ``barcodes``, ``xcoord``, ``ycoord``); or the ``.h5ad`` that the scripts of the
        paper make of the data set ``ssHippo`` of SeuratData by SeuratDisk (counts in ``raw``, ``x`` and ``y`` in ``obs``).

    Returns
    -------
    AnnData [beads, genes] with raw counts in ``X`` (CSR), coordinates in ``obsm["spatial"]``, as they are in the file, and
    ``total_counts`` and ``pct_counts_mt`` in ``obs``.

    Raises
    ------
    FileNotFoundError
        If a file is not there.
    ValueError
        If a file is not what it should be, or has values that are no counts.

    Notes
    -----
    The formats are those that public scripts read; the files themselves were not at hand. In some copies of the bead locations, the
    header is divided by tabs and the rows by commas; both are read. The paper then takes the 2,000 genes of the highest
    deviance: ``gpnsf.pp.deviance_features(data, n_top=2000)``.

    References
    ----------
    :cite:t:`townes2023nonnegative`, section 4.7, and its scripts in ``scrna/`` of willtownes/nsf-paper.

    Examples
    --------
    >>> import gpnsf, pathlib
    >>> puck = pathlib.Path("Puck_200115_08")
    >>> _ = puck.with_suffix(".digital_expression.txt").write_text("GENE\tA\tB\nPcp4\t90\t150\n")
    >>> _ = pathlib.Path(f"{puck}_bead_locations.csv").write_text(
    ...     "barcodes,xcoord,ycoord\nA,1,2\nB,3,4\n"
    ... )
    >>> gpnsf.datasets.slideseq_hippocampus(".").obsm["spatial"]
    array([[3., 4.]])
    """
    Rule(os.PathLike, "folder").check("path", path)
    if Path(path).suffix == ".h5ad":
        return _checked(_converted(_found(path, "", PUCK)))
    counts = _found(path, "*digital_expression.txt*", PUCK)
    beads = _found(path, "*bead_locations.csv", PUCK)
    table = _table(beads, PUCK, sep="[,\t]", engine="python")
    places = _columns(table, ["barcodes", "xcoord", "ycoord"], beads).set_index("barcodes")
    data = _expressed(counts)
    return _checked(_placed(data, places, data.obs_names))


def visium_sagittal(path: str | os.PathLike[str]) -> AnnData:
    """Read the Visium section of a mouse brain, ``V1_Mouse_Brain_Sagittal_Anterior``, or another one of Space Ranger.

    Spots with fewer than 100 counts, or with 20 % of them or more from mitochondrial genes, are left out, and genes that no other spot
    has: the quality control of the paper.

    Parameters
    ----------
    path
        Folder with ``V1_Mouse_Brain_Sagittal_Anterior_filtered_feature_bc_matrix.h5`` (any name that ends so) and the unpacked folder
        ``spatial``, of which ``tissue_positions_list.csv`` (``tissue_positions.csv`` since Space Ranger 2) is read.

    Returns
    -------
    AnnData [spots, genes] with raw counts in ``X`` (CSR), pixels of the full image in ``obsm["spatial"]``, columns first, ``gene_ids`` and
    ``feature_types`` in ``var``, ``total_counts`` and ``pct_counts_mt`` in ``obs``. Genes of the same name get a number.

    Raises
    ------
    FileNotFoundError
        If a file is not there.
    ValueError
        If a file is not what it should be, or has values that are no counts.

    Notes
    -----
    Images are not read; ``squidpy.read.visium`` does. The paper then takes the 2,000 genes of the highest deviance:
    ``gpnsf.pp.deviance_features(data, n_top=2000)``.

    References
    ----------
    :cite:t:`townes2023nonnegative`, section 4.7, and its scripts in ``scrna/`` of willtownes/nsf-paper.

    Examples
    --------
    >>> import gpnsf
    >>> gpnsf.datasets.visium_sagittal("not_here")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: Expected ...
    """
    matrix = _found(path, "*filtered_feature_bc_matrix.h5", TENX)
    positions = _found(path, "spatial/tissue_positions*.csv", TENX)
    header = None if positions.name == "tissue_positions_list.csv" else 0
    places = _table(positions, TENX, header=header, index_col=0)
    if places.shape[1] != 5:
        found = f"{positions} with {1 + places.shape[1]}"
        raise ValueError(problem("six columns", found, f"Download it {TENX}"))
    data = _tenx(matrix)
    return _checked(_placed(data, places.iloc[:, [4, 3]], data.obs_names))


def xyzeq_liver(path: str | os.PathLike[str]) -> AnnData:
    """Read the XYZeq section of a mouse liver with a tumour, ``L20C1`` of GSE164430.

    Mouse cells and mouse genes alone, as in the paper; several cells share a well, and so their place. Cells with fewer than
    100 counts, or with 20 % of them or more from mitochondrial genes, are left out (the paper had none), and genes that no other cell has.

    Parameters
    ----------
    path
        Folder with ``GSM5009531_L20C1.h5ad``, from GEO and unpacked, and the two tables that the authors of the paper had from those of XYZeq:
        ``L20C1.csv`` (columns ``index``, the names of the cells, ``PREFIX.BARCODE``, and ``cell_call``, "M" for mouse) and
        ``plate23_map.csv`` (barcodes of wells first, columns ``X`` and ``Y``).

    Returns
    -------
    AnnData [cells, genes] with raw counts in ``X`` (CSR), wells in ``obsm["spatial"]``, and ``barcode``, the other columns of ``L20C1.csv``,
    ``total_counts`` and ``pct_counts_mt`` in ``obs``; names of genes without ``mm10_``.

    Raises
    ------
    FileNotFoundError
        If a file is not there.
    ValueError
        If a file is not what it should be, or has values that are no counts.

    Notes
    -----
    The two tables are not public: what they hold is known from the script of the paper alone, and this function has not seen the originals.
    The paper then takes the 2,000 genes of the highest deviance: ``gpnsf.pp.deviance_features(data, n_top=2000)``.

    References
    ----------
    :cite:t:`townes2023nonnegative`, section 4.7, and its scripts in ``scrna/`` of willtownes/nsf-paper.

    Examples
    --------
    >>> import gpnsf
    >>> gpnsf.datasets.xyzeq_liver("not_here")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: Expected ...
    """
    counts = _found(path, "*L20C1.h5ad", GEO)
    cells = _found(path, "L20C1.csv", GEO)
    wells = _found(path, "plate23_map.csv", GEO)
    labels = _columns(_table(cells, GEO), ["index", "cell_call"], cells, rest=True).set_index(
        "index"
    )
    labels["barcode"] = labels.index.astype(str).str.split(".").str[1]
    places = _columns(_table(wells, GEO, index_col=0), ["X", "Y"], wells)
    data = _opened(counts, GEO)
    data = data[:, data.var_names.str.startswith("mm10_")].copy()
    data.var_names = data.var_names.str.removeprefix("mm10_")
    # cells without a label or a well are no part of the section, as in the inner joins of the paper
    known = labels.index[(labels["cell_call"] == "M") & labels["barcode"].isin(places.index)]
    data = data[data.obs_names.isin(known)].copy()
    data.obs = labels.loc[data.obs_names]
    return _checked(_placed(data, places, data.obs["barcode"]))


def _found(path: str | os.PathLike[str], pattern: str, origin: str) -> Path:
    """The file of a folder, or the path itself without a pattern."""
    Rule(os.PathLike, "folder").check("path", path)
    folder = Path(path)
    files = sorted(folder.glob(pattern)) if pattern else [folder] * folder.is_file()
    if files:
        return files[0]
    rule = f"a folder with a file {pattern!r}" if pattern else "a file"
    there = ", ".join(sorted(part.name for part in folder.iterdir())) if folder.is_dir() else ""
    found = f"{folder} with {there or 'nothing in it'}" if folder.is_dir() else str(folder)
    raise FileNotFoundError(problem(rule, found, f"Download it {origin}"))


@contextmanager
def _reading(what: str, path: Path, origin: str) -> Iterator[None]:
    """Say of a file that cannot be read what it should have been."""
    try:
        yield
    except Exception as error:  # what readers raise on a damaged file is not documented
        raise ValueError(problem(what, f"{path}: {error}", f"Download it {origin}")) from error


def _table(path: Path, origin: str, **options: Any) -> pd.DataFrame:
    """A table in text."""
    with _reading("a table in text", path, origin):
        return pd.read_csv(path, **options)


def _columns(
    table: pd.DataFrame, names: list[str], path: Path, *, rest: bool = False
) -> pd.DataFrame:
    """These columns of a table, or the whole table if it has them."""
    if missing := [name for name in names if name not in table]:
        found = f"{path} with {', '.join(map(repr, table.columns))}"
        rule = f"the columns {', '.join(map(repr, names))}"
        remedy = f"Name the column {missing[0]!r} so, or download the file again"
        raise ValueError(problem(rule, found, remedy))
    return table if rest else table[names]


def _opened(path: Path, origin: str) -> AnnData:
    """An AnnData."""
    with _reading("an AnnData in HDF5", path, origin):
        return read_h5ad(path)


def _expressed(path: Path) -> AnnData:
    """Digital expression in text, read in parts: dense, it would take gigabytes."""
    with _reading("genes by beads in text", path, PUCK):
        parts = list(_parts(path))
    genes = pd.DataFrame(index=np.concatenate([names for names, _, _ in parts]))
    beads = pd.DataFrame(index=parts[0][1])
    return AnnData(sp.vstack([counts for _, _, counts in parts]).T.tocsr(), beads, genes)


def _parts(path: Path) -> Iterator[tuple[pd.Index, pd.Index, sp.csr_matrix]]:
    """Genes, beads and counts of some rows at a time."""
    for part in pd.read_csv(path, sep="\t", index_col=0, chunksize=GENES_AT_ONCE):
        counts = sp.csr_matrix(part.to_numpy(dtype=np.float32))
        yield part.index.astype(str), part.columns, counts


def _converted(path: Path) -> AnnData:
    """What SeuratDisk makes of ssHippo: counts in ``raw``, coordinates in ``obs``."""
    data = _opened(path, PUCK)
    places = _columns(data.obs, ["x", "y"], path)
    own = data if data.raw is None else data.raw
    names = pd.DataFrame(index=own.var_names)
    return _placed(
        AnnData(own.X, pd.DataFrame(index=data.obs_names), names), places, data.obs_names
    )


def _tenx(path: Path) -> AnnData:
    """A count matrix of Cell Ranger and Space Ranger from version 3: genes in rows, kept by spots."""
    with _reading("a filtered matrix of Space Ranger", path, TENX), h5py.File(path) as file:
        matrix = file["matrix"]
        arrays = tuple(matrix[name][()] for name in ("data", "indices", "indptr"))
        counts = sp.csr_matrix(arrays, shape=tuple(matrix["shape"][()][::-1]))
        features, barcodes = matrix["features"], matrix["barcodes"].asstr()[()]
        names, ids, types = (features[own].asstr()[()] for own in ("name", "id", "feature_type"))
    genes = pd.DataFrame({"gene_ids": ids, "feature_types": types})
    genes.index = make_index_unique(pd.Index(names))
    return AnnData(counts, pd.DataFrame(index=barcodes), genes)


def _placed(data: AnnData, places: pd.DataFrame, names: pd.Index | pd.Series) -> AnnData:
    """With the coordinates of rows that have these names."""
    lost = [name for name in names if name not in places.index]
    if lost:
        rule = "a place for every observation with counts"
        found = f"none for {len(lost)} of {len(names)}, such as {lost[0]!r}"
        raise ValueError(problem(rule, found, "Take both files from the same section"))
    data.obsm["spatial"] = places.loc[list(names)].to_numpy(dtype=np.float64)
    return data


def _checked(data: AnnData) -> AnnData:
    """Observations and genes that pass the quality control of the paper, with raw counts in CSR."""
    counts = sp.csr_matrix(data.X, dtype=np.float32)
    if len(wrong := counts.data[(counts.data < 0) | (counts.data % 1 != 0)]):
        remedy = "Take the file with raw counts: normalised values cannot be undone"
        raise ValueError(problem("raw counts", f"values such as {wrong[0]:g}", remedy))
    total = counts.sum(axis=1).A1
    of_mitochondria = data.var_names.str.upper().str.startswith("MT-")
    share = 100 * counts[:, of_mitochondria].sum(axis=1).A1 / np.maximum(total, 1)
    passed = (total >= FEWEST) & (share < MOST_MITOCHONDRIAL)
    genes = counts[passed].sum(axis=0).A1 > 0
    if not genes.any():
        rule = f"an observation of {FEWEST} counts and less than {MOST_MITOCHONDRIAL:g} % mitochondrial ones"
        found = f"none of {len(total)}; the largest total is {total.max(initial=0):g}"
        raise ValueError(problem(rule, found, "Download the files again"))
    data.X = counts
    data.obs["total_counts"], data.obs["pct_counts_mt"] = total, share
    return data[passed][:, genes].copy()
