"""Filled maps of what a fit predicts between the spots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from gpnsf.checks import problem
from gpnsf.io import fits
from gpnsf.io.chosen import Factors
from gpnsf.io.places import AXES
from gpnsf.io.tables import takes_tables
from gpnsf.keys import SPATIAL
from gpnsf.pl import canvas, maps, sections
from gpnsf.pl.factors import note
from gpnsf.pl.options import explained
from gpnsf.pp.grid import grid

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from mudata import MuData

    from gpnsf.io.fits import Fit

    Features = str | Sequence[str] | Mapping[str, str | Sequence[str]] | None

__all__ = ["spatial_map"]


@explained
@takes_tables
def spatial_map(
    data: AnnData | MuData,
    *,
    factors: Factors = None,
    features: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    moment: str = "mean",
    spacing: float | None = None,
    margin: float = 1.5,
    scale: str = "linear",
    shared_scale: bool = False,
    vmin: float | None = None,
    vmax: float | None = None,
    quantiles: tuple[float, float] = (0.005, 0.995),
    library: str | Sequence[str] | None = None,
    img_key: str | None = "auto",
    alpha_img: float = 1.0,
    crop_coord: sections.Crop = None,
    alpha: float = 1.0,
    ncols: int | None = None,
    cmap: str | Colormap | None = None,
    key: str = "gpnsf",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw what the field predicts on a lattice over the tissue, one panel a factor or feature.

    The lattice is that of :func:`gpnsf.pp.grid`, the values are those of :func:`gpnsf.tl.predict`;
    what is farther from all spots than ``margin`` stays white. Titles, colours, the y axis and
    slices are as in :func:`gpnsf.pl.spatial_factors`.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated, with two coordinates.
    factors
        Names of the spatial factors to draw, in this order; None for all, or for none if there are
        ``features``.
    features
        Features whose expected counts at size factor 1 (probability of being open, for "bernoulli")
        are drawn: names, or names by modality.
    moment
        "mean", or "std" for the posterior standard deviation of factors.
    spacing, margin
        Lattice, as in :func:`gpnsf.pp.grid`.
    scale
        How values become colours: "linear", "sqrt" or "log".
    shared_scale
        One colour scale and one bar for all panels, instead of one for each.
    vmin, vmax
        Ends of the colour scale.
    quantiles
        Quantiles of the values that stand for an end that is not given.
    {place}
    alpha
        Opacity of the map, from 0 to 1: less than 1 lets an image shine through.
    ncols
        Panels in a row; None for a choice by the shape of the tissue.
    cmap
        Colour map; None for magma without its palest end, or "RdBu_r" around zero for signed
        models.
    key
        Prefix of the slots, ``key_added`` of the fit.
    {shown}

    Returns
    -------
    The axes (a list if there are several), or the figure with ``return_fig=True``; None once shown.

    Raises
    ------
    KeyError
        If the object has no such fit, factor, feature, slice or image.
    ValueError
        If an option is unknown, a factor is nonspatial, the coordinates are not two, or ``ax`` is
        given for more than one panel.

    Notes
    -----
    Reads what :func:`gpnsf.tl.predict` reads, and ``uns["spatial"]``.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, split="assumed", progress=False)
    >>> axes = gpnsf.pl.spatial_map(mdata, features=["gene_1", "peak_2"], show=False)
    >>> len(axes)
    2
    """
    fit = fits.find(data, key)
    chosen = _chosen(fit, factors, features, moment)
    where = sections.section(
        fit,
        library=library,
        img_key=img_key,
        alpha_img=alpha_img,
        crop_coord=crop_coord,
        alpha=alpha,
        margin=margin,
    )
    table, tiles = _lattice(fit, where, spacing, margin)
    values, notes = _values(fit, table, chosen, features, moment)
    norms = maps.norms_of(
        values.to_numpy(), scale, shared_scale=shared_scale, ends=(vmin, vmax), quantiles=quantiles
    )
    cmap = cmap or canvas.colormap(signed=values.to_numpy().min() < 0)
    bar = 0.1 if shared_scale else canvas.BAR
    ncols = canvas.columns(len(notes), lambda n: where.panel(n, bar=bar), ncols=ncols)
    width, height = where.panel(ncols, bar=bar)
    with canvas.style():
        spare = canvas.BAR if shared_scale else 0.0
        figure, axes = canvas.grid(
            len(notes), width=width, height=height, ncols=ncols, ax=ax, spare=spare
        )
        for panel, name, norm in zip(axes, values, norms, strict=True):
            _fill(panel, where, tiles, values[name].to_numpy(), cmap=cmap, norm=norm)
        maps.bars(axes, where, shared=shared_scale)
        for panel, name in zip(axes, values, strict=True):
            canvas.title(panel, name, notes[name])
        sections.name_slices(axes, where)
    return canvas.finish(figure, axes, show=show, return_fig=return_fig)


@dataclass(frozen=True)
class _Tile:
    """Where the lattice of one slice goes."""

    points: np.ndarray  # [n] lines of the table of points
    row: np.ndarray  # [n] of the picture
    column: np.ndarray  # [n]
    x: np.ndarray  # [columns + 1] edges
    y: np.ndarray  # [rows + 1] edges


def _chosen(fit: Fit, factors: Factors, features: Features, moment: str) -> np.ndarray:
    """Positions of the factors to draw."""
    if moment not in ("mean", "std"):
        raise ValueError(
            problem("`moment` to be 'mean' or 'std'", repr(moment), "Pass one of the two")
        )
    if features is not None and moment == "std":
        rule = "`moment` to be 'mean' for expected counts of features"
        raise ValueError(problem(rule, repr(moment), "Leave `moment` or `features` out"))
    if not fit.is_spatial.any() or fit.coords.shape[1] != 2:
        found = (
            f"{int(fit.is_spatial.sum())} spatial factor(s) and {fit.coords.shape[1]} coordinate(s)"
        )
        raise ValueError(
            problem(
                "spatial factors over two coordinates", found, "Draw pl.spatial_factors instead"
            )
        )
    if factors is None:
        return np.flatnonzero(fit.is_spatial) if features is None else np.zeros(0, dtype=int)
    chosen = fit.factor_indices(factors)
    flat = fit.names[chosen][~fit.is_spatial[chosen]]
    if len(flat):
        rule = (
            "spatial factors, because nonspatial ones have one value wherever nothing was measured"
        )
        raise ValueError(problem(rule, repr(flat[0]), "Draw it with pl.spatial_factors"))
    return chosen


def _lattice(
    fit: Fit, where: sections.Section, spacing: float | None, margin: float
) -> tuple[pd.DataFrame, list[_Tile]]:
    """Points over the slices that are drawn, and their places on the paper."""
    column = fit.param("library_key")
    spatial_key = fit.param("spatial_key") or SPATIAL
    table = grid(
        fit.data, spacing=spacing, margin=margin, spatial_key=spatial_key, library_key=column
    )
    of_point = np.full(len(table), "") if column is None else table[column].to_numpy()
    kept: list[int] = []
    tiles = []
    for each in where.slices:
        points = np.flatnonzero(of_point == each.name)
        coords = table.loc[points, list(AXES[:2])].to_numpy() + each.shift
        if each.fixed:
            inside = ((coords >= each.frame[0]) & (coords <= each.frame[1])).all(axis=1)
            points, coords = points[inside], coords[inside]
        if len(points):
            tiles.append(_tile(len(kept) + np.arange(len(points)), coords))
            kept += points.tolist()
    if not kept:
        rule, remedy = "points of the grid inside `crop_coord`", "Pass a smaller `spacing`"
        raise ValueError(problem(rule, "none", remedy))
    return table.loc[kept].reset_index(drop=True), tiles


def _tile(points: np.ndarray, coords: np.ndarray) -> _Tile:
    """Rows, columns and edges of the cells around the points [n, 2] of a lattice."""
    low, extent = coords.min(axis=0), np.ptp(coords, axis=0)
    gaps = np.diff(np.sort(coords, axis=0), axis=0)
    step = gaps[gaps > 1e-6 * max(extent.max(), 1e-300)].min(initial=np.inf)
    step = float(step) if np.isfinite(step) else 1.0  # a single point
    place = np.rint((coords - low) / step).astype(int)
    x, y = (
        start + step * (np.arange(number + 2) - 0.5)
        for start, number in zip(low, place.max(axis=0), strict=True)
    )
    return _Tile(points, place[:, 1], place[:, 0], x, y)


def _values(
    fit: Fit, table: pd.DataFrame, chosen: np.ndarray, features: Features, moment: str
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Values [n, panels] on the lattice, and what is written below the titles."""
    # torch is loaded where a field is rebuilt, not by the figures
    from gpnsf.tl.predict import predict

    library = None if len(table.columns) == 2 else table.iloc[:, 2].tolist()
    predicted = predict(
        fit.data, table.iloc[:, :2], library=library, features=features, key=fit.keys.key
    )
    source = predicted.X if moment == "mean" else predicted.layers["std"]
    values = pd.DataFrame(source[:, chosen], columns=fit.names[chosen])
    notes = {str(fit.names[factor]): note(fit, factor) for factor in chosen}
    if features is not None:
        expected = predicted.obsm["expected"].reset_index(drop=True)
        values = pd.concat([values, expected], axis=1)
        notes |= dict.fromkeys(expected, "expected at mean depth")
    return values, notes


def _fill(
    ax: Axes,
    where: sections.Section,
    tiles: Sequence[_Tile],
    values: np.ndarray,
    *,
    cmap: str | Colormap,
    norm: Normalize,
) -> None:
    """Cells of the lattice in their colours, on axes as tight as those of spots."""
    for tile in tiles:
        picture = np.full((len(tile.y) - 1, len(tile.x) - 1), np.nan)
        picture[tile.row, tile.column] = values[tile.points]
        cells = np.ma.masked_invalid(picture)
        ax.pcolormesh(
            tile.x, tile.y, cells, cmap=cmap, norm=norm, alpha=where.alpha, rasterized=True
        )
    frame = where.frame
    if not any(each.fixed for each in where.slices):
        low = np.min([(tile.x[0], tile.y[0]) for tile in tiles], axis=0)
        frame = np.array([low, np.max([(tile.x[-1], tile.y[-1]) for tile in tiles], axis=0)])
    sections.paper(ax, where, frame)
