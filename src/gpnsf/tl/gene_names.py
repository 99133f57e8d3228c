"""Names of genes in two tables: how many are the same, and which other spelling would make it more."""

from __future__ import annotations

from itertools import product

import pandas as pd

__all__ = ["respelled"]

VERSION = r"\.\d+$"
GAIN = 2.0  # times more genes in common that are worth a word


def respelled(
    ours: pd.DataFrame, theirs: pd.DataFrame, shared: int, *, where: tuple[str, str]
) -> tuple[int, str] | None:
    """Genes in common by the best other spelling, and the statements that bring it about; None where none brings far more.

    Rows of the tables are genes; ``where`` is what a user assigns names to.
    """
    found = [_spellings(table, place) for table, place in zip((ours, theirs), where, strict=True)]
    sets = [{code: set(names) for code, names in each.items()} for each in found]
    number, codes = max(
        ((len(sets[0][a] & sets[1][b]), (a, b)) for a, b in product(*sets)),
        key=lambda item: item[0],
    )
    if number < GAIN * max(shared, 1):
        return None
    return number, " and ".join(
        f"{place} = {code}" for place, code in zip(where, codes, strict=True) if code != place
    )


def _spellings(table: pd.DataFrame, place: str) -> dict[str, pd.Index]:
    """Names of the genes as they are, in capitals, without versions, and by columns, each with the code that makes them."""
    names = table.index.astype(str)
    columns = {
        f"{place.rsplit('.', 1)[0]}.var[{column!r}].astype(str)": table[column].astype(str)
        for column in table
        if isinstance(table[column].dtype, pd.CategoricalDtype)
        or pd.api.types.is_string_dtype(table[column])
    }
    return {
        place: names,
        f"{place}.str.upper()": names.str.upper(),
        f"{place}.str.replace(r'{VERSION}', '', regex=True)": names.str.replace(
            VERSION, "", regex=True
        ),
        **{code: pd.Index(values) for code, values in columns.items()},
    }
