"""A regular lattice of points over the tissue."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy.spatial import cKDTree

from gpnsf.arguments import answering
from gpnsf.checks import Rule, problem
from gpnsf.io.objects import open_data, read_coords, read_labels, spot_distance
from gpnsf.io.places import AXES
from gpnsf.keys import SPATIAL

__all__ = ["grid"]

FINER = 5  # points between neighbouring spots, by default
ACROSS = 300  # points along the longest side, at most, by default
LARGEST = 10_000_000  # points of the frames of all slices


@answering
def grid(
    data: AnnData | MuData,
    *,
    spacing: float | None = None,
    margin: float = 1.5,
    spatial_key: str = SPATIAL,
    library_key: str | None = None,
) -> pd.DataFrame:
    """Lay a regular lattice over the tissue, for :func:`gpnsf.tl.predict`.

    Parameters
    ----------
    data
        Object with coordinates; it need not be fitted.
    spacing
        Distance of neighbouring points, in the units of the coordinates. Default: a fifth of the
        distance of neighbouring spots, or what makes 300 points along the longest side if that is
        more.
    margin
        Points that are farther from the nearest spot than this are left out; in distances of
        neighbouring spots. Holes of single spots are closed by any margin of 1 or more.
    spatial_key
        Name of the coordinates [N, 1 to 3] in ``obsm``.
    library_key
        ``obs`` column of slices, each of which gets a lattice of its own.

    Returns
    -------
    Table with a line for each point: one column of coordinates an axis (``x``, ``y``, ``z``) and,
    with ``library_key``, a column of that name.

    Raises
    ------
    KeyError
        A named slot or column does not exist.
    TypeError, ValueError
        ``spacing`` or ``margin`` is no positive number, or so small that there are more than ten
        million points; the column of slices is named as an axis.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=150, n_genes=40, n_peaks=60, seed=0)
    >>> lattice = gpnsf.pp.grid(mdata, spacing=50.0)
    >>> lattice.columns.tolist(), len(lattice) > mdata.n_obs
    (['x', 'y'], True)
    """
    Rule(float, 25.0, low=0, above=True, optional=True).check("spacing", spacing)
    Rule(float, 1.5, low=0, above=True).check("margin", margin)
    if library_key in AXES:
        found = f"{library_key!r}, which is that of an axis"
        remedy = "Copy the column to another name"
        raise ValueError(
            problem("`library_key` to be a name of its own in the table", found, remedy)
        )
    opened = open_data(data)
    coords, names = read_coords(opened, spatial_key), read_labels(opened, library_key)
    slices = {str(name): coords[names == name] for name in sorted(set(names))}
    longest = max(np.ptp(part, axis=0).max() for part in slices.values())
    distance = spot_distance(slices.values()) or longest or 1.0
    spacing = max(distance / FINER, longest / ACROSS) if spacing is None else spacing
    _check_number(slices, spacing, margin * distance)
    tables = []
    for name, part in slices.items():
        points = _frame(part, spacing, margin * distance)
        near = cKDTree(part).query(points)[0] <= margin * distance
        table = pd.DataFrame(points[near], columns=list(AXES[: points.shape[1]]))
        tables.append(table if library_key is None else table.assign(**{library_key: name}))
    return pd.concat(tables, ignore_index=True)


def _check_number(slices: Mapping[str, np.ndarray], spacing: float, reach: float) -> None:
    """Refuse a lattice that would not fit into memory before it is made."""
    with np.errstate(over="ignore"):
        sizes = [
            np.prod((np.ptp(part, axis=0) + 2 * reach) / spacing + 1) for part in slices.values()
        ]
    if sum(sizes) > LARGEST:
        found = f"spacing={spacing:g}, which makes {sum(sizes):.3g} points"
        remedy = f"Pass for example spacing={spacing * np.sqrt(sum(sizes) / LARGEST) * 1.1:.3g}"
        raise ValueError(
            problem(f"at most {LARGEST:,} points in the frame of the tissue", found, remedy)
        )


def _frame(coords: np.ndarray, spacing: float, reach: float) -> np.ndarray:
    """All points [n, D] of a lattice in the middle of a box.

    The box holds the spots and what is within reach of them.
    """
    low, high = coords.min(axis=0) - reach, coords.max(axis=0) + reach
    numbers = np.floor((high - low) / spacing).astype(int) + 1
    first = (low + high - (numbers - 1) * spacing) / 2
    axes = [
        start + spacing * np.arange(number) for start, number in zip(first, numbers, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, coords.shape[1])
