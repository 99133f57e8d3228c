"""What the cell types of a reference express, gene by gene."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from gpnsf import checks
from gpnsf.checks import problem
from gpnsf.core.types import row_sums
from gpnsf.io.read import read_counts
from gpnsf.tl.gene_names import respelled
from gpnsf.tl.logarithms import SMALL, base_of, effective

__all__ = ["compared", "counts_of", "matched", "profiles_of"]

FEWEST_GENES = 10
FEW_GENES = 0.1  # of the genes of the smaller table
RELIABLE = 2.0  # variance between types over the mean sampling variance
FLATTER = 2.0  # times more genes that share the total of a table of logarithms
NO_LABELS = {"", "nan", "none", "na", "n/a", "<na>", "null", "unknown", "unassigned"}

_log = logging.getLogger("gpnsf")


def counts_of(adata: AnnData, layer: str | None, *, what: str) -> sp.csr_matrix:
    """Counts [N, P] that are not negative; real numbers are accepted, as some references and spots are averages."""
    counts = read_counts(adata, layer=layer, likelihood="gaussian", modality=what)
    low = float(counts.data.min())
    if low < 0:
        remedy = "Pass raw counts, in X or in the layer that is named"
        found = f"{int((counts.data < 0).sum())} negative values, down to {low:g}"
        raise ValueError(problem(f"counts of the {what} that are not negative", found, remedy))
    if base := base_of(counts):
        _log.warning(
            "Values of the %s, up to %.3g, are logarithms of normalised counts, base %s. A spot is a sum of cells in linear values only. %s.",
            what,
            counts.data.max(),
            base,
            _linear(adata, what, base),
        )
    return counts


def _linear(adata: AnnData, what: str, base: str) -> str:
    """Where linear values are, or how to have them."""
    argument = "layer" if what == "spots" else "reference_layer"
    layers = [name for name in adata.layers if name and _is_whole(adata.layers[name])]
    name = "adata" if what == "spots" else "reference"
    values = f"{name}.X" if base == "e" else f"{name}.X * np.log({base})"
    return (
        f"Pass {argument}={layers[0]!r}, which holds whole numbers"
        if layers
        else f"Pass counts, or undo the logarithm, for example {name}.X = np.expm1({values})"
    )


def _is_whole(values: object) -> bool:
    """Whether a layer in memory holds whole numbers."""
    stored = getattr(values, "data", values) if sp.issparse(values) else values
    return isinstance(stored, np.ndarray) and bool((stored.ravel()[:10_000] % 1 == 0).all())


def profiles_of(
    reference: AnnData | pd.DataFrame,
    *,
    label_key: str | None,
    layer: str | None,
    reliable: bool = False,
) -> pd.DataFrame:
    """Mean profiles, genes by types: of cells that are first divided by their totals, or as given.

    With ``reliable`` of genes alone whose means differ more between types than they are uncertain.
    """
    if isinstance(reference, pd.DataFrame):
        if reference.empty:
            remedy = "Pass a table of genes by types, or cells with `label_key`"
            raise ValueError(problem("profiles in `reference`", f"shape {reference.shape}", remedy))
        if reliable:
            remedy = "Pass the cells as AnnData, or leave `reliable_genes` out"
            raise ValueError(problem("cells for `reliable_genes`", "a table of means", remedy))
        if label_key is not None or layer is not None:
            found = f"label_key={label_key!r}, reference_layer={layer!r}"
            remedy = "Remove them, or pass the cells as AnnData"
            raise ValueError(
                problem(
                    "neither `label_key` nor `reference_layer` for a table of profiles",
                    found,
                    remedy,
                )
            )
        return _checked(reference)
    if not isinstance(reference, AnnData):
        remedy = "Pass cells with `label_key`, or a table of genes by types"
        raise TypeError(
            problem("`reference` to be AnnData or DataFrame", type(reference).__name__, remedy)
        )
    if label_key is None:
        columns = list(reference.obs.columns)[:10]
        remedy = f"Pass label_key= one of {columns}"
        raise ValueError(problem("`label_key`, the obs column of the cell types", "None", remedy))
    checks.choices([label_key], reference.obs, what="`label_key`", where="obs of the reference")
    labels = checks.labels(
        checks.column(reference.obs, label_key, where="obs of the reference"), name=label_key
    )
    _warn_of_unlabelled(labels, label_key)
    counts = counts_of(reference, layer, what="reference")
    totals = row_sums(counts)
    scale = np.divide(totals.mean(), totals, out=np.zeros_like(totals), where=totals > 0)
    names, code = np.unique(labels.astype(str), return_inverse=True)
    number = np.bincount(code, totals > 0, minlength=len(names))
    average = sp.csr_matrix((scale / np.maximum(number, 1)[code], (code, np.arange(len(code)))))
    profiles = np.asarray((average @ counts).todense(), dtype=np.float64).T  # [P, C]
    table = _checked(pd.DataFrame(profiles, index=reference.var_names, columns=names))
    if not reliable:
        return table
    squares = sp.csr_matrix(average.multiply(scale) @ counts.multiply(counts)).toarray().T
    return table[_differ(profiles, squares, number)]


def _differ(means: np.ndarray, squares: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Genes [P] whose means [P, C] vary between types by more than twice their sampling variance.

    ``squares`` [P, C] are means of squares, over so many cells [C].
    """
    several = number > 1
    if several.sum() < 2:
        remedy = "Leave `reliable_genes` out"
        raise ValueError(
            problem("types of several cells for `reliable_genes`", "fewer than two", remedy)
        )
    means, squares = means[:, several], squares[:, several]
    error = np.mean((squares - np.square(means)) / (number[several] - 1), axis=1)
    return means.var(axis=1, ddof=1) > RELIABLE * error


def _warn_of_unlabelled(labels: np.ndarray, key: str) -> None:
    """Tell how many cells have a label that says that there is none."""
    names, number = np.unique(labels.astype(str), return_counts=True)
    counted = zip(names.tolist(), number.tolist(), strict=True)
    void = {name: n for name, n in counted if name.lower() in NO_LABELS}
    if void:
        _log.warning(
            "%d of %d cells of the reference have a label that means no type, and it is fitted as a type: %s. Leave them out: "
            "reference[~reference.obs[%r].astype(str).isin(%s)].copy().",
            sum(void.values()),
            len(labels),
            ", ".join(f"{name!r} ({n})" for name, n in void.items()),
            key,
            list(void),
        )


def compared(profiles: pd.DataFrame, spots: np.ndarray) -> None:
    """Tell of a table of profiles that is far more even among genes than the totals [P] of the spots, as logarithms are."""
    total = profiles.to_numpy().sum(axis=1)
    ours, theirs = effective(total), effective(spots)
    if profiles.to_numpy().max() <= SMALL and ours > FLATTER * theirs:
        _log.warning(
            "Profiles of the reference, up to %.3g, are as even as if %.0f genes shared the total. In the spots it is %.0f. They may be "
            "logarithms. Pass means of counts, or of np.expm1 of the logarithms: a spot is a sum of cells in linear values only.",
            profiles.to_numpy().max(),
            ours,
            theirs,
        )


def matched(
    profiles: pd.DataFrame, spots: AnnData, reference: AnnData | pd.DataFrame
) -> pd.DataFrame:
    """Profiles of the genes that the spots have too and that any type expresses."""
    genes = spots.var_names
    for name, index in (("spots", genes), ("reference", profiles.index)):
        if not index.is_unique:
            twice = index[index.duplicated()]
            found = f"{len(twice)} duplicate(s) in the {name}, the first {str(twice[0])!r}"
            raise ValueError(
                problem("unique names of genes", found, "Call var_names_make_unique() or drop them")
            )
    both = profiles.loc[profiles.index.intersection(genes, sort=False)]
    shared, fewest = len(both), min(len(genes), len(profiles))
    is_table = isinstance(reference, pd.DataFrame)
    var = pd.DataFrame(index=profiles.index) if is_table else reference.var
    where = "adata.var_names", "reference.index" if is_table else "reference.var_names"
    better = respelled(spots.var, var, shared, where=where) if shared < fewest / 2 else None
    both = both[(both > 0).any(axis=1)]
    if len(both) < FEWEST_GENES:
        found = f"{len(both)} among {len(genes)} of the spots ({str(genes[0])!r}, ..) and {len(profiles)} of the reference"
        found += f" ({str(profiles.index[0])!r}, ..)"
        remedy = "Use the same kind of gene names in both, such as symbols"
        if better is not None:
            remedy = f"Set {better[1]}: {better[0]} names are the same then"
        raise ValueError(
            problem(f"at least {FEWEST_GENES} expressed genes in common", found, remedy)
        )
    if better is not None or shared < FEW_GENES * fewest:
        _log.warning(
            "Only %d genes are in common, of %d of the spots (%r, ..) and %d of the reference (%r, ..). %s",
            shared,
            len(genes),
            str(genes[0]),
            len(profiles),
            str(profiles.index[0]),
            "Check that both use the same kind of gene names."
            if better is None
            else f"Set {better[1]}: {better[0]} names are the same then.",
        )
    silent = list(both.columns[(both == 0).all()])
    if silent:
        remedy = "Leave these types out, or add genes that they express"
        raise ValueError(
            problem(
                "types that express some of the common genes", f"none for {silent[0]!r}", remedy
            )
        )
    return both


def _checked(table: pd.DataFrame) -> pd.DataFrame:
    """The table with text as names and finite, nonnegative values."""
    table = table.set_axis([str(name) for name in table.columns], axis=1).set_axis(
        table.index.astype(str), axis=0
    )
    if table.shape[1] < 2 or not table.columns.is_unique:
        remedy = "Pass a reference with several types, each with its own name"
        raise ValueError(
            problem(
                "at least two types with different names", str(list(table.columns)[:10]), remedy
            )
        )
    if len(table.select_dtypes("number").columns) < table.shape[1]:
        found = f"dtypes {sorted({str(kind) for kind in table.dtypes})}"
        raise TypeError(
            problem(
                "numbers in the table of profiles, genes by types",
                found,
                "Convert it with .astype(float)",
            )
        )
    values = table.to_numpy(dtype=np.float64)
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        found = f"{bad.sum()} of {bad.size} values that are negative, missing or infinite"
        raise ValueError(
            problem("finite, nonnegative profiles", found, "Pass mean counts, not logarithms")
        )
    return pd.DataFrame(values, index=table.index, columns=table.columns)
