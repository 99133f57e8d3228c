"""Where observations lie on the paper: slices side by side, sizes of spots, and the marks of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpnsf.checks import choices, problem
from gpnsf.io.objects import spot_distance
from gpnsf.pl.canvas import BAR, GREY, PAGE, SMALL, columns, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection, PathCollection
    from matplotlib.colors import Colormap, Normalize

    from gpnsf.io.deconvolved import Placed

__all__ = ["Section", "name_slices", "profile", "section", "spot_diameter", "spots"]


@dataclass(frozen=True)
class Section:
    """Where the observations of a figure lie on the paper."""

    rows: np.ndarray  # [n] observations that are drawn
    coords: np.ndarray  # [n, 2] or [n, 1], slices set side by side where they overlap
    diameter: float  # of a spot, in the units of the coordinates
    down: bool  # y grows downwards, as in images
    labels: dict[str, tuple[float, float]]  # slice -> where its name goes; empty for a single one

    @property
    def aspect(self) -> float:
        """Height of the picture over its width; profiles of one coordinate are wider than high."""
        if self.coords.shape[1] == 1:
            return 0.6
        width, height = np.ptp(self.coords, axis=0) + self.diameter
        return float(height / width)

    def panel(self, ncols: int, *, bar: float = BAR) -> tuple[float, float]:
        """Inches of a panel among ``ncols``, width by height, with bar and two lines of title."""
        width = min(max(PAGE / ncols - bar, 0.6), 2.4 / np.sqrt(self.aspect), 5 / self.aspect)
        axis = 0.2 if self.coords.shape[1] == 1 else 0.0
        return max(width + bar, 1.05), width * self.aspect + 0.36 + axis


def section(
    fit: Placed,
    *,
    library: str | Sequence[str] | None = None,
    size: float | None = None,
    margin: float = 0.0,
) -> Section:
    """Coordinates of observations to draw: of three, the first two; the third decides the top.

    ``margin`` is room around each slice, in distances of neighbouring spots.
    """
    coords, slices = fit.coords, fit.library
    if slices is None and library is not None:
        remedy = "Leave `library` out, or fit with `library_key=`"
        raise ValueError(
            problem("a fit with slices for `library`", "one without `library_key`", remedy)
        )
    names = (
        np.zeros(len(coords), dtype=object) if slices is None else np.asarray(slices, dtype=object)
    )
    rows = np.arange(len(coords))
    if slices is not None and library is not None:
        wanted = [library] if isinstance(library, str) else [str(name) for name in library]
        choices(
            wanted, slices.categories, what="slices", where=f"obs[{fit.params['library_key']!r}]"
        )
        rows = np.flatnonzero(np.isin(names, wanted))
    if coords.shape[1] == 3:
        rows = rows[np.argsort(coords[rows, 2], kind="stable")]
    coords, names = coords[rows, :2], names[rows]
    down = _has_image(fit)
    room = margin * spot_distance(coords[names == name] for name in set(names)) if margin else 0.0
    coords, labels = _side_by_side(coords, names, down=down, room=room)
    diameter = spot_diameter(coords, names) if size is None else size
    return Section(rows=rows, coords=coords, diameter=diameter, down=down, labels=labels)


def spot_diameter(coords: np.ndarray, library: np.ndarray) -> float:
    """Diameter of a spot, in coordinate units, at which neighbouring spots just touch."""
    diameter = spot_distance(coords[library == name] for name in set(library))
    span = float(np.ptp(coords, axis=0).max())
    if not diameter:
        return span / 20 or 1.0
    # small discs overlap a little and have a least size: else paper shines through and colours fade
    return max(diameter if span < 40 * diameter else 1.2 * diameter, span / 250)


def spots(
    ax: Axes, where: Section, values: np.ndarray, *, cmap: str | Colormap, norm: Normalize
) -> EllipseCollection:
    """Discs of a diameter in data units: they touch at any panel size; rasterized above 2,000."""
    from matplotlib.collections import EllipseCollection

    coords, diameter = where.coords, where.diameter
    discs = EllipseCollection(
        diameter,
        diameter,
        0.0,
        units="xy",
        offsets=coords,
        offset_transform=ax.transData,
        linewidths=0,
        rasterized=len(coords) > 2000,
        cmap=cmap,
        norm=norm,
    )
    discs.set_array(values)
    ax.add_collection(discs, autolim=False)
    low, high = coords.min(axis=0) - diameter / 2, coords.max(axis=0) + diameter / 2
    ylim = (high[1], low[1]) if where.down else (low[1], high[1])
    ax.set(xlim=(low[0], high[0]), ylim=ylim, xticks=[], yticks=[], aspect="equal", anchor="NW")
    ax.spines[:].set_visible(False)
    return discs


def profile(
    ax: Axes,
    where: Section,
    values: np.ndarray,
    *,
    scale: str,
    cmap: str | Colormap,
    norm: Normalize,
) -> PathCollection:
    """Values along a single coordinate, on an axis of the scale of the colours."""
    low, high = norm.vmin, norm.vmax
    marks = ax.scatter(
        where.coords[:, 0],
        np.clip(values, low, high),
        c=values,
        s=5,
        linewidths=0,
        rasterized=len(values) > 2000,
        cmap=cmap,
        norm=norm,
        clip_on=False,
    )
    if scale == "log":
        ax.set_yscale("log")
    elif scale == "sqrt":
        ax.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    ax.set(ylim=(low, high), xlabel="position")
    plain(ax)
    return marks


def name_slices(ax: Axes, where: Section) -> None:
    """Names of the slices below each of them."""
    edge = (0.5 if where.down else -0.5) * where.diameter * (where.coords.shape[1] > 1)
    for name, (x, y) in where.labels.items():
        label = ax.annotate(name, (x, y + edge), (0, -2), textcoords="offset points")
        label.set(ha="center", va="top", fontsize=SMALL - 1.5, color=GREY)


def _has_image(fit: Placed) -> bool:
    """Whether object or modality carries a tissue image, whose y axis points downwards."""
    return any("spatial" in holder.uns for holder in [fit.data, *fit.modalities.values()])


def _side_by_side(
    coords: np.ndarray, names: np.ndarray, *, down: bool, room: float
) -> tuple[np.ndarray, dict[str, tuple[float, float]]]:
    """Slices moved apart where frames overlap, and where their names go, below their middle."""
    slices = list(dict.fromkeys(names))
    low = np.array([coords[names == name].min(axis=0) - room for name in slices])  # [slices, D]
    high = np.array([coords[names == name].max(axis=0) + room for name in slices])
    if len(slices) == 1:
        return coords, {}
    up = -1.0 if down else 1.0
    shift = np.zeros_like(low)
    if _overlapping(low, high):
        cell = (high - low).max(axis=0) * 1.15
        place = np.arange(len(slices))
        across = (
            len(slices)
            if coords.shape[1] == 1
            else columns(len(slices), lambda _: (cell[0], cell[1]), target=1.5)
        )
        middle = (
            np.column_stack([place % across, -up * (place // across)])[:, : coords.shape[1]] * cell
        )
        shift = middle - (low + high) / 2
    code = {name: position for position, name in enumerate(slices)}
    low, high = low + shift, high + shift
    bottom = (low if up > 0 else high)[:, -1]
    labels = {
        name: (float((low + high)[i, 0] / 2), float(bottom[i])) for i, name in enumerate(slices)
    }
    return coords + shift[[code[name] for name in names]], labels


def _overlapping(low: np.ndarray, high: np.ndarray) -> bool:
    """Whether any two of the frames [slices, D] share more than an edge."""
    apart = (low[:, None] >= high[None]) | (high[:, None] <= low[None])  # [slices, slices, D]
    together = ~np.any(apart, axis=2)
    np.fill_diagonal(together, False)
    return bool(together.any())
