"""Coordinates that are legal and mislead a fit: cells far off, squeezed arrays, sections on top of each other, other units."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from gpnsf.io.chosen import first_names
from gpnsf.io.objects import Opened

__all__ = ["suspicions", "units_apart"]

LOOKED_AT = 2_000  # observations that tell how sections lie
SECTIONS = 50  # values of a column that may name sections
FEWEST = 20  # observations of a section, and of a slice whose spacing counts
SHARED = 0.1  # of the observations at the place of another one, for which sections are looked for
OVERLAID = 0.6  # of the spacing within a section: nearer than neighbours on any grid
REGULAR = 1.05  # ratio of distances to nearest neighbours, upper to lower decile, on a grid
NEIGHBOURS = 8  # among which those of other sections are looked for
MIXED = 0.5  # of the observations, and of the neighbours that an even mixture would have elsewhere
UNITS = 3.0, 1.5  # ratio of spacings between slices of cells, and between regular grids
SIZES = 2.0  # ratio of half-widths that sections of one unit may well have
SECTION = re.compile(r"section|slice|slide|sample|library|capture|donor|patient|batch", re.I)
ENDS = r"([-_][A-Za-z0-9]+)$", r"^([A-Za-z0-9]+[-_])"  # of names of observations
NO_COLUMN = "Name the section of each observation in an obs column and pass it as library_key"


def suspicions(
    opened: Opened,
    coords: np.ndarray,
    library: np.ndarray,
    slices: tuple[str, ...],
    stray: np.ndarray,
) -> Iterator[str]:
    """A warning for each kind of what is suspicious about the coordinates [N, D] of slices [N]."""
    yield from _far_off(stray, opened.data.obs_names)
    yield from _squeezed(coords)
    yield from _other_units(coords, library, slices)
    if len(slices) == 1:
        yield from _stacked(opened, coords)


def units_apart(
    coords: np.ndarray, known: np.ndarray, scale: float, known_scale: float
) -> Iterator[str]:
    """A warning where new coordinates [n, D] seem to be in another unit than known ones; the scales are half-widths.

    Fewer spots of the same tissue lie farther apart too, but its half-width stays what it is.
    """
    library = np.repeat([0, 1], [len(known), len(coords)])
    both = np.concatenate([known, coords])
    ratio = max(scale / known_scale, known_scale / scale)
    if ratio > SIZES:
        yield from _other_units(both, library, ("reference", "data"))


def _far_off(stray: np.ndarray, names: pd.Index) -> Iterator[str]:
    """Observations [N] that have no say in where the tissue is."""
    number = int(stray.sum())
    if number:
        yield (
            f"{number} of {len(stray)} observations lie far outside of the tissue ({first_names(names[stray])}). They may be debris, or have "
            "wrong coordinates. The size of the tissue is measured without them, and spatial factors know nothing of them. Remove "
            "them, unless they are tissue."
        )


def _squeezed(coords: np.ndarray) -> Iterator[str]:
    """Rows and columns [N, 2] of a hexagonal array: whole numbers, columns odd in odd rows and even in the others, or the reverse."""
    if coords.shape[1] != 2 or (coords != np.rint(coords)).any():
        return
    odd = coords % 2
    one_colour = len(np.unique(odd.sum(axis=1) % 2)) == 1  # of a chessboard
    if one_colour and 0 < odd[:, 0].mean() < 1 and len(np.unique(coords, axis=0)) >= FEWEST:
        yield (
            "Coordinates are rows and columns of a hexagonal array, as array_row and array_col of Visium are, and not distances: rows are 3 ** 0.5 "
            "times as far apart as columns, so the tissue is squeezed. Multiply the coordinate of the rows by 3 ** 0.5, or use those in pixels."
        )


def _other_units(coords: np.ndarray, library: np.ndarray, slices: tuple[str, ...]) -> Iterator[str]:
    """Slices [N] whose spots are so much farther apart than those of others that their units must differ."""
    spacing, regular = {}, True
    for code, name in enumerate(slices if len(slices) > 1 else ()):
        nearest = _near(coords[library == code])
        if (library == code).sum() >= FEWEST and (np.median(nearest, axis=0)[[1, -1]] > 0).all():
            spacing[name] = float(np.sqrt(np.median(nearest, axis=0)[[1, -1]].prod()))
            regular = regular and _is_regular(nearest[:, 1])
    if len(spacing) < 2:
        return
    near, far = min(spacing, key=spacing.__getitem__), max(spacing, key=spacing.__getitem__)
    if spacing[far] / spacing[near] > UNITS[regular]:
        yield (
            f"Neighbouring observations are {spacing[near]:.3g} apart in section {near!r} and {spacing[far]:.3g} in section {far!r}, as "
            "if coordinates were in different units. All sections need the same unit. Multiply the coordinates of one section by "
            "the ratio of the units, such as micrometres per pixel."
        )


def _stacked(opened: Opened, coords: np.ndarray) -> Iterator[str]:
    """Sections at the same places [N, D], where no slices were named; those of one modality, as others may be of other spots."""
    mod, own = opened.mods[opened.names[0]], opened.rows[opened.names[0]]
    coords, rows = coords[own], np.arange(len(own))
    rng = np.random.default_rng(0)
    rows = rows if len(rows) <= LOOKED_AT else np.sort(rng.choice(rows, LOOKED_AT, replace=False))
    place = pd.DataFrame(coords).groupby(list(range(coords.shape[1]))).ngroup().to_numpy()
    shared = np.bincount(place)[place] > 1
    near = cKDTree(coords).query(coords[rows], k=min(NEIGHBOURS + 1, len(coords)))
    for name, codes in _labels(mod.obs, opened.data.obs.iloc[own]):
        if _separates(codes, place, shared) or _overlays(name, codes, coords, rows, near):
            yield _among(mod.obs_names[shared], *_by(name))
            return
    if _separates(_blocks(place), place, shared):
        where = "the order of rows: they come in blocks in which no place occurs twice"
        yield _among(mod.obs_names[shared], where, NO_COLUMN)


def _by(name: str) -> tuple[str, str]:
    """What tells sections apart, and the remedy."""
    if name in ENDS:
        column = f"data.obs['section'] = data.obs_names.str.extract(r'{name}', expand=False)"
        remedy = f"Set {column} and pass library_key='section'"
        return "the ends of their names", remedy
    return f"obs[{name!r}]", f"Pass library_key={name!r}"


def _among(names: pd.Index, where: str, remedy: str) -> str:
    """The one message for all evidence; the names are those of observations that share a place."""
    exact = (
        f" ({len(names)} observations at exactly the place of another one: {first_names(names)})"
    )
    return (
        f"Several sections seem to lie on top of each other{exact if len(names) else ''}, to judge by {where}. Without library_key "
        f"they are fitted as one tissue, and neighbours come from different sections. {remedy}, unless they are one section."
    )


def _labels(*tables: pd.DataFrame) -> Iterator[tuple[str, np.ndarray]]:
    """What may name sections, a column or an end of names, with the code [n] of each observation."""
    columns = {str(name): table[name] for table in tables for name in table}
    for name, column in columns.items():
        codes = np.zeros(1) if _is_real(column) else pd.factorize(column)[0]
        if _may_be_sections(codes):
            yield name, codes
    names = tables[0].index.astype(str)
    for end in ENDS:
        some = names[:: max(1, len(names) // LOOKED_AT)].str.extract(end, expand=False)
        if some.isna().any() or not 1 < some.nunique() < SECTIONS:
            continue
        codes = pd.factorize(names.str.extract(end, expand=False))[0]
        if _may_be_sections(codes):
            yield end, codes


def _is_real(column: pd.Series | pd.DataFrame) -> bool:
    """Whether a column cannot hold names."""
    return isinstance(column, pd.DataFrame) or pd.api.types.is_float_dtype(column)


def _may_be_sections(codes: np.ndarray) -> bool:
    """Whether there are several, not too many, none of them tiny and no label missing."""
    if codes.min() < 0 or codes.max() < 1 or codes.max() >= SECTIONS:
        return False
    return bool(np.bincount(codes).min() >= FEWEST)


def _separates(codes: np.ndarray, place: np.ndarray, shared: np.ndarray) -> bool:
    """Whether many observations share a place and, within a section, none of them do."""
    if shared.sum() < max(SHARED * len(codes), FEWEST) or codes.max() >= SECTIONS:
        return False
    return not pd.DataFrame({"section": codes, "place": place})[shared].duplicated().any()


def _blocks(place: np.ndarray) -> np.ndarray:
    """Number [N] of the block of rows, a new one where a place of the block would occur again."""
    codes, number = np.empty(len(place), dtype=np.int64), 0
    seen: set[int] = set()
    for row, where in enumerate(place.tolist()):
        if where in seen:
            number, seen = number + 1, set()
        seen.add(where)
        codes[row] = number
    return codes


def _overlays(
    name: str,
    codes: np.ndarray,
    coords: np.ndarray,
    rows: np.ndarray,
    near: tuple[np.ndarray, np.ndarray],
) -> bool:
    """Whether sections lie upon each other: grids that cannot be one, or names that say so and places that mix.

    ``near`` are the distances and the rows [n, k] of the nearest neighbours of some ``rows`` [n], themselves first.
    """
    distances, neighbours = near
    if neighbours.shape[1] <= NEIGHBOURS:
        return False
    share = np.bincount(codes) / len(codes)
    elsewhere = (codes[neighbours] != codes[rows][:, None]).mean(axis=1)
    mixed = (elsewhere > MIXED * (1 - share)[codes[rows]]).mean() > MIXED
    if not mixed:
        return False
    return bool(SECTION.search(name)) or _finer(codes, coords, rows, distances)


def _finer(codes: np.ndarray, coords: np.ndarray, rows: np.ndarray, distances: np.ndarray) -> bool:
    """Whether the largest section is a regular grid, and all of them together are a finer one that is not."""
    largest = np.bincount(codes).argmax()
    own = _near(coords[codes == largest])[:, 1]
    pooled = distances[codes[rows] == largest]
    if not len(pooled) or not _is_regular(own):
        return False
    finer = pooled[:, 1] < OVERLAID * np.median(own)
    uneven = pooled[:, 4] > REGULAR * pooled[:, 1]
    return bool((finer & uneven).mean() > MIXED)


def _near(coords: np.ndarray) -> np.ndarray:
    """Distances [n, 5] of some observations to themselves and the four nearest, or as many as there are."""
    some = coords[:: max(1, len(coords) // LOOKED_AT)]
    return cKDTree(coords).query(some, k=range(1, min(5, len(coords)) + 1))[0]


def _is_regular(distances: np.ndarray) -> bool:
    """Whether nearest neighbours are as far apart everywhere."""
    low, high = np.quantile(distances, [0.1, 0.9])
    return bool(low > 0 and high <= REGULAR * low)
