"""Coordinates that come as a table: which column is which axis, and how a text file is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from gpnsf.checks import problem

__all__ = ["AXES", "in_order", "read_table"]

AXES = ("x", "y", "z")
SEPARATORS = (",", ";", "\t")  # or else spaces


def in_order(table: pd.DataFrame, n_dims: int, own: Sequence[str] | None = None) -> pd.DataFrame:
    """The columns of the axes, in the order of the fit: by the names that its own coordinates have, else x, y and z in any case.

    Tables without names, or with numbers for names, are taken as they stand.
    """
    if not any(isinstance(name, str) for name in table.columns):
        return table
    wanted = [str(name) for name in own] if own is not None else list(AXES[:n_dims])
    found = {str(name).strip().lower(): name for name in table.columns}
    if all(name.lower() in found for name in wanted):
        return table[[found[name.lower()] for name in wanted]]
    rule = f"columns {', '.join(map(repr, wanted))} for the axes of the fit, in any order"
    remedy = f"Rename them, the first axis of the fit to {wanted[0]!r}, or pass an array whose columns are in the order of the fit"
    raise ValueError(problem(rule, f"columns {list(map(str, table.columns))}", remedy))


def read_table(path: Path) -> pd.DataFrame:
    """Coordinates in a text file, one row a place: columns by the names of a header, without names where there is none.

    Separators are found out. A first column of words, or without a name beside others that have one, names the rows.
    """
    if not path.is_file():
        raise FileNotFoundError(
            problem("a table of coordinates", f"{path}, which is no file", "Check the path")
        )
    try:
        with path.open(encoding="utf-8-sig") as file:
            line = next((line for line in file if line.strip()), "")
        separator = max(SEPARATORS, key=line.count)
        separator = separator if separator in line else r"\s+"
        first = pd.read_csv(
            path, sep=separator, header=None, nrows=1, dtype=str, encoding="utf-8-sig"
        ).iloc[0]
        words = pd.to_numeric(first, errors="coerce").isna().to_numpy()
        has_header = bool(words[1:].any() or words.all())
        table = pd.read_csv(
            path, sep=separator, header=0 if has_header else None, encoding="utf-8-sig"
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(
            problem("a table of coordinates", f"{path}: {error}", "Write it as CSV")
        ) from error
    nameless = has_header and str(table.columns[0]).startswith("Unnamed")
    if len(table.columns) > 1 and (nameless or not pd.api.types.is_numeric_dtype(table.iloc[:, 0])):
        table = table.set_index(table.columns[0])
        table.index = table.index.astype(str)
    if not has_header:
        table.columns = range(len(table.columns))
    lost = table.index[table.isna().any(axis=1)]
    if len(lost) or table.empty:
        found = f"{path} with {len(table)} rows, {len(lost)} of them with an empty field"
        raise ValueError(
            problem("coordinates in every row", found, "Fill these fields in, or remove the rows")
        )
    return table
