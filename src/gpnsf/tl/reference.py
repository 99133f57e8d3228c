"""What the cell types of a reference express, gene by gene."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from gpnsf import checks
from gpnsf.checks import problem
from gpnsf.io.read import read_counts

__all__ = ["counts_of", "matched", "profiles_of"]

FEWEST_GENES = 10


def counts_of(adata: AnnData, layer: str | None, *, what: str) -> sp.csr_matrix:
    """Counts [N, P] that are not negative; real numbers are accepted, as some references and spots are averages."""
    counts = read_counts(adata, layer=layer, likelihood="gaussian", modality=what)
    low = float(counts.data.min())
    if low < 0:
        remedy = "Pass raw counts, in X or in the layer that is named"
        raise ValueError(
            problem(
                f"counts of the {what} that are not negative", f"values down to {low:g}", remedy
            )
        )
    return counts


def profiles_of(
    reference: AnnData | pd.DataFrame, *, label_key: str | None, layer: str | None
) -> pd.DataFrame:
    """Mean profiles, genes by types: of cells that are first divided by their totals, or as given."""
    if isinstance(reference, pd.DataFrame):
        if label_key is not None or layer is not None:
            found = f"label_key={label_key!r}, reference_layer={layer!r}"
            remedy = "Remove them, or pass the cells as AnnData"
            raise ValueError(
                problem(
                    "no `label_key` and `reference_layer` for a table of profiles", found, remedy
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
    counts = counts_of(reference, layer, what="reference")
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(totals.mean(), totals, out=np.zeros_like(totals), where=totals > 0)
    names, code = np.unique(labels.astype(str), return_inverse=True)
    number = np.bincount(code, totals > 0, minlength=len(names))
    average = sp.csr_matrix((scale / np.maximum(number, 1)[code], (code, np.arange(len(code)))))
    profiles = np.asarray((average @ counts).todense(), dtype=np.float64).T  # [P, C]
    return _checked(pd.DataFrame(profiles, index=reference.var_names, columns=names))


def matched(profiles: pd.DataFrame, genes: pd.Index) -> pd.DataFrame:
    """Profiles of the genes that the spots have too and that any type expresses."""
    for name, index in (("spots", genes), ("reference", profiles.index)):
        if not index.is_unique:
            twice = index[index.duplicated()]
            found = f"{len(twice)} duplicate(s) in the {name}, the first {str(twice[0])!r}"
            raise ValueError(
                problem("unique names of genes", found, "Call var_names_make_unique() or drop them")
            )
    both = profiles.loc[profiles.index.intersection(genes, sort=False)]
    both = both[(both > 0).any(axis=1)]
    if len(both) < FEWEST_GENES:
        found = f"{len(both)} among {len(genes)} of the spots ({str(genes[0])!r}, ..) and {len(profiles)} of the reference"
        found += f" ({str(profiles.index[0])!r}, ..)"
        remedy = "Use the same kind of gene names in both, such as symbols"
        raise ValueError(
            problem(f"at least {FEWEST_GENES} expressed genes in common", found, remedy)
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
        remedy = "Pass a reference with several types, each of one name"
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
        found = f"{bad.sum()} of {bad.size} that are not"
        raise ValueError(
            problem(
                "finite profiles that are not negative", found, "Pass mean counts, not logarithms"
            )
        )
    return pd.DataFrame(values, index=table.index, columns=table.columns)
