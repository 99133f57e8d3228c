"""Where observations lie: from the data's own units to half-widths, which the bulk of the tissue decides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from gpnsf import checks

__all__ = ["Geometry", "geometry", "normalise_coords", "stray"]

SPAN = (1e-30, 1e30)  # of coordinates: single precision holds their length scales
TAIL = 0.01  # of the observations of a slice, at each end of an axis, that the bulk does without
BEYOND = 2.0  # half-widths of the bulk from its middle, where no tissue is expected
GAP = 0.25  # half-widths that separate a stray cell from tissue
FEWEST = 50  # observations of a slice, below which nothing is called stray
AWAY = 2.0  # half-widths: where stray cells are put, beyond the reach of the fields of the tissue


@dataclass(frozen=True)
class Geometry:
    """Normalised coordinates, and how they came about."""

    coords: np.ndarray  # [N, D] float32, half-widths
    centre: np.ndarray  # [n_libraries, D] in the data's own units
    scale: float  # the data's own units per half-width, one for all slices and axes
    stray: np.ndarray  # [N] bool: far off, without a say in centre and scale


def geometry(coords: np.ndarray, library: np.ndarray, key: str) -> Geometry:
    """Each slice on the mid-range of its tissue, one scale for all; ``key`` names the slot of ``coords`` [N, D]."""
    n_libraries = int(library.max()) + 1
    away = stray(coords, library)
    slices = [coords[(library == code) & ~away] for code in range(n_libraries)]
    low = np.array([part.min(0) for part in slices])
    high = np.array([part.max(0) for part in slices])
    with np.errstate(over="ignore"):
        scale = float((high / 2 - low / 2).max())
    if scale == 0:
        found = f"{len(coords)} identical point(s)" + (
            " in each section" if n_libraries > 1 else ""
        )
        remedy = (
            "Store the positions of the observations there, or name another slot with `spatial_key`"
        )
        raise ValueError(checks.problem(f"coordinates in obsm[{key!r}] that differ", found, remedy))
    if not SPAN[0] < scale < SPAN[1]:
        rule = f"coordinates in obsm[{key!r}] with a half-width between {SPAN[0]:g} and {SPAN[1]:g}"
        raise ValueError(checks.problem(rule, f"{scale:g}", "Convert them to another unit"))
    centre = (low + high) / 2
    own = normalise_coords(coords, library, centre, scale)
    own[away] = np.clip(own[away], -AWAY, AWAY)
    return Geometry(own, centre, scale, away)


def normalise_coords(
    coords: np.ndarray, library: np.ndarray, centre: np.ndarray, scale: float
) -> np.ndarray:
    """Own units [n, D] to half-width units, float32, by the centre [n_libraries, D] of each row's slice and one scale.

    Nothing is farther away than a million: by then every field has returned to its prior.
    """
    with np.errstate(over="ignore"):
        own = (np.asarray(coords, dtype=np.float64) - centre[library]) / scale
    return np.clip(own, -1e6, 1e6).astype(np.float32)


def stray(coords: np.ndarray, library: np.ndarray) -> np.ndarray:
    """Observations [N] that lie far outside of the tissue of their slice, a few and with nothing in between."""
    away = np.zeros(len(coords), dtype=bool)
    for code in np.unique(library):
        own = np.flatnonzero(library == code)
        if len(own) >= FEWEST:
            away[own] = _stray(coords[own])
    return away


def _stray(coords: np.ndarray) -> np.ndarray:
    """The same in one slice; the box of the bulk comes from quantiles, and what a chain of cells joins to it is tissue."""
    low = np.quantile(coords, TAIL, axis=0, method="higher")
    high = np.quantile(coords, 1 - TAIL, axis=0, method="lower")
    with np.errstate(over="ignore"):
        half = (high / 2 - low / 2).max()
        if half == 0:
            return np.zeros(len(coords), dtype=bool)
        own = (coords - (low / 2 + high / 2)) / half
    outside = (np.abs(own) > BEYOND).any(axis=1)
    return outside & ~_joined(own, ~outside) if outside.any() else outside


def _joined(own: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Rows [N] in squares that touch, one after the other, a square with rows of the inside."""
    squares, label = np.unique(
        np.floor(np.clip(own, -1e6, 1e6) / GAP).astype(np.int64), axis=0, return_inverse=True
    )
    pairs = cKDTree(squares).query_pairs(1.5, p=np.inf, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(squares), len(squares)))
    group = connected_components(graph, directed=False)[1][label.ravel()]
    return np.isin(group, group[inside])
