"""Cell types in space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpnsf.checks import Rule, problem
from gpnsf.io import deconvolved
from gpnsf.io.tables import takes_tables
from gpnsf.palette import category_colors, hex_colors
from gpnsf.pl import canvas, maps, sections
from gpnsf.pl.options import explained

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure


__all__ = ["proportions"]

KINDS = ("maps", "pies")
MOST_PIES = 2000  # spots beyond which a pie is smaller than its outline
REST, REST_COLOR = "other", "0.85"
ARC = 0.12  # radians between two points of the edge of a slice


@explained
@takes_tables
def proportions(
    adata: AnnData,
    *,
    types: str | Sequence[str] | None = None,
    kind: str = "maps",
    scale: str = "linear",
    shared_scale: bool = False,
    vmin: float | None = 0.0,
    vmax: float | None = None,
    quantiles: tuple[float, float] = (0.005, 0.995),
    library: str | Sequence[str] | None = None,
    img_key: str | None = "auto",
    alpha_img: float = 1.0,
    crop_coord: sections.Crop = None,
    size: float = 1.0,
    alpha: float = 1.0,
    palette: Sequence[str] | None = None,
    ncols: int | None = None,
    cmap: str | Colormap | None = None,
    key: str = "proportions",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the proportions of cell types over the section.

    Maps have one panel a type, with its mean proportion below the name. Pies have one panel, in
    which each spot is divided among the types: of a few hundred spots, all can be seen at once.

    Parameters
    ----------
    adata
        Object that :func:`gpnsf.tl.deconvolve` annotated.
    types
        Names of the types to draw, in this order; None for all. In pies, the rest is grey.
    kind
        "maps" or "pies".
    scale
        How proportions become colours in maps: "linear", "sqrt" or "log".
    shared_scale
        One colour scale and one bar for all maps, instead of one for each.
    vmin, vmax
        Ends of the colour scale of maps.
    quantiles
        Quantiles of the proportions that stand for an end that is not given.
    {place}
    {spots}
    palette
        A colour for each type that is drawn in pies; None for twenty that are told apart with any
        colour vision.
    ncols
        Maps in a row; None for a choice by the shape of the tissue.
    cmap
        Colour map of maps; None for magma without its palest end.
    key
        Prefix of the slots, ``key_added`` of the deconvolution.
    {shown}

    Returns
    -------
    The axes (a list if there are several), or the figure with ``return_fig=True``; None once shown.

    Raises
    ------
    KeyError
        If the object has no such deconvolution, type, slice or coordinates.
    ValueError
        If an option is unknown, pies are asked for more than 2,000 spots or on a line, or ``ax`` is
        given for more than one panel.

    Notes
    -----
    Reads ``obsm["X_proportions"]``, ``uns["proportions"]``, the coordinates and ``uns["spatial"]``.

    Examples
    --------
    >>> import gpnsf
    >>> spots, cells = gpnsf.datasets.mixture(n_obs=100, n_genes=80, seed=0)
    >>> gpnsf.tl.deconvolve(spots, cells, label_key="cell_type")
    >>> len(gpnsf.pl.proportions(spots, show=False))
    6
    """
    Rule(str, "maps", options=KINDS).check("kind", kind)
    found = deconvolved.find(adata, key)
    chosen = found.indices(types)
    where = sections.section(
        found,
        library=library,
        img_key=img_key,
        alpha_img=alpha_img,
        crop_coord=crop_coord,
        size=size,
        alpha=alpha,
    )
    values = found.proportions[np.ix_(where.rows, chosen)].astype(np.float64)  # [n, types]
    names = [str(name) for name in found.names[chosen]]
    with canvas.style():
        if kind == "pies":
            figure, axes = _pies(where, values, names, palette=palette, ax=ax)
        else:
            figure, axes = _maps(
                where,
                values,
                names,
                scale=scale,
                shared=shared_scale,
                ends=(vmin, vmax),
                quantiles=quantiles,
                cmap=cmap,
                ncols=ncols,
                ax=ax,
            )
        sections.name_slices(axes, where)
    return canvas.finish(figure, axes, show=show, return_fig=return_fig)


def _maps(
    where: sections.Section,
    values: np.ndarray,
    names: list[str],
    *,
    scale: str,
    shared: bool,
    ends: tuple[float | None, float | None],
    quantiles: tuple[float, float],
    cmap: str | Colormap | None,
    ncols: int | None,
    ax: Axes | None,
) -> tuple[Figure, list[Axes]]:
    """One panel a type."""
    norms = maps.norms_of(values, scale, shared_scale=shared, ends=ends, quantiles=quantiles)
    bar = 0.1 if shared else canvas.BAR
    ncols = canvas.columns(len(names), lambda n: where.panel(n, bar=bar), ncols=ncols)
    width, height = where.panel(ncols, bar=bar)
    spare = canvas.BAR if shared else 0.0
    figure, axes = canvas.grid(
        len(names), width=width, height=height, ncols=ncols, ax=ax, spare=spare
    )
    for panel, column, norm in zip(axes, values.T, norms, strict=True):
        maps.draw(
            panel, where, column, scale=scale, cmap=cmap or canvas.colormap(signed=False), norm=norm
        )
    maps.bars(axes, where, shared=shared)
    for panel, name, column in zip(axes, names, values.T, strict=True):
        maps.title(panel, name, f"{100 * np.nanmean(column):.1f} %", width=width)
    return figure, axes


def _pies(
    where: sections.Section,
    values: np.ndarray,
    names: list[str],
    *,
    palette: Sequence[str] | None,
    ax: Axes | None,
) -> tuple[Figure, list[Axes]]:
    """One panel, in which every spot is a pie."""
    if len(values) > MOST_PIES or where.coords.shape[1] == 1:
        found = f"{len(values)} spots in {where.coords.shape[1]} dimension(s)"
        rule = f"at most {MOST_PIES} spots in the plane for kind='pies'"
        raise ValueError(problem(rule, found, "Pass kind='maps', or a `library` with fewer spots"))
    if palette is not None and len(palette) < len(names):
        rule, remedy = f"`palette` with {len(names)} colours", "Pass one for each type, or None"
        raise ValueError(problem(rule, str(len(palette)), remedy))
    colors = category_colors(len(names)) if palette is None else hex_colors(palette[: len(names)])
    values = np.nan_to_num(values)  # spots that were left out have no slices
    rest = np.where(values.any(axis=1), np.clip(1 - values.sum(axis=1), 0, 1), 0.0)
    if rest.max() > 1e-3:
        values = np.column_stack([values, rest])
        names = [*names, REST]
        colors = [*colors, REST_COLOR]
    spare = 0.5 + 0.068 * max(map(len, names))
    width = min(canvas.PAGE - spare, 5.2 / where.aspect, 5.2)
    figure, axes = canvas.grid(
        1, width=width, height=width * where.aspect + 0.15, ncols=1, ax=ax, spare=spare
    )
    _draw(axes[0], where, values, colors)
    canvas.legend(axes[0], zip(names, colors, strict=True))
    return figure, axes


def _draw(ax: Axes, where: sections.Section, values: np.ndarray, colors: Sequence[str]) -> None:
    """Slices of all pies, type by type, clockwise from the top."""
    from matplotlib.collections import PolyCollection

    sections.paper(ax, where, where.frame)
    # [n, types + 1]
    ends = np.concatenate([np.zeros((len(values), 1)), values.cumsum(axis=1)], axis=1)
    for column, color in enumerate(colors):
        drawn = np.flatnonzero(values[:, column] > 1e-3).tolist()
        polygons = [_slice(where, row, *ends[row, column : column + 2]) for row in drawn]
        ax.add_collection(
            PolyCollection(
                polygons, facecolors=color, linewidths=0, rasterized=True, alpha=where.alpha
            ),
            autolim=False,
        )


def _slice(where: sections.Section, row: int, begin: float, end: float) -> np.ndarray:
    """Outline [points, 2] of one slice, between two shares of the turn."""
    turn = 2 * np.pi * np.linspace(begin, end, max(int(2 * np.pi * (end - begin) / ARC), 1) + 2)
    radius = where.diameter[row] / 2  # y grows downwards
    edge = where.coords[row] + radius * np.column_stack([np.sin(turn), -np.cos(turn)])
    return np.vstack([where.coords[row], edge])
