"""Values of the observations in space: panels, their bars and titles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpnsf.checks import choices
from gpnsf.pl import canvas, sections

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize

__all__ = ["bars", "draw", "norms_of", "title", "with_grey"]

MISSING = "0.88"  # grey of what has no value
# width of a letter over its size, and the smallest size of a name in points
LETTER, SMALLEST = 0.64, 5.5
GAP = 0.08  # inches between the names of neighbouring panels


def draw(
    ax: Axes,
    where: sections.Section,
    values: np.ndarray,
    *,
    scale: str,
    cmap: str | Colormap,
    norm: Normalize,
) -> None:
    """Values [n] as discs, or along an axis where there is a single coordinate.

    NaN is drawn in grey or not at all.
    """
    if where.coords.shape[1] == 1:
        sections.profile(ax, where, values, scale=scale, cmap=cmap, norm=norm)
    else:
        sections.spots(ax, where, values, cmap=with_grey(cmap), norm=norm)


def with_grey(cmap: str | Colormap) -> Colormap:
    """The colour map with grey for what has no value."""
    import matplotlib as mpl

    if isinstance(cmap, str):
        remedy = "Pass a name of matplotlib's, for example cmap='viridis', or a Colormap"
        choices([cmap], mpl.colormaps, what="`cmap`", where="matplotlib", remedy=remedy)
        cmap = mpl.colormaps[cmap]
    return cmap.with_extremes(bad=MISSING)


def norms_of(
    values: np.ndarray,
    scale: str,
    *,
    shared_scale: bool,
    ends: tuple[float | None, float | None],
    quantiles: tuple[float, float],
) -> list[Normalize]:
    """One colour scale for each column of values [n, panels], the same one for all if shared."""
    groups = [values] if shared_scale else list(values.T)
    norms = []
    for group in groups:
        low, high = canvas.limits(group, ends=ends, quantiles=quantiles)
        norms.append(canvas.norm(scale, low, high))
    return norms * values.shape[1] if shared_scale else norms


def bars(axes: list[Axes], where: sections.Section, *, shared: bool = False) -> None:
    """A bar beside each panel, or one for all; profiles have an axis instead."""
    if where.coords.shape[1] == 1 or not axes:
        return
    # titles take their place, and panels their height
    axes[0].figure.canvas.figure.draw_without_rendering()
    if not shared:
        canvas.colorbars(axes)
        return
    bar = axes[0].figure.colorbar(
        canvas.opaque(axes[0].collections[0]),
        ax=axes,
        fraction=0.02,
        pad=0.01,
        shrink=0.5,
        aspect=25,
    )
    canvas.tidy_bar(bar.ax)


def title(ax: Axes, name: str, note: str, *, width: float) -> None:
    """A name and a note above a panel.

    A long name is made smaller, then cut in its middle, to fit the width in inches.
    """
    width -= GAP
    room = int(72 * width / (LETTER * SMALLEST))
    if len(name) > room:
        name = f"{name[: (room - 1) // 2]}…{name[len(name) - room // 2 + 1 :]}"
    canvas.title(ax, name, note)
    size = min(canvas.TEXT, 72 * width / (LETTER * max(len(name), 1)))
    ax.set_title(name, loc="left", pad=12, fontsize=size)
