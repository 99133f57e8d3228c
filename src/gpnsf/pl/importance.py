"""Spatial importance of features and observations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpnsf.checks import choices
from gpnsf.io import fits
from gpnsf.io.chosen import listed
from gpnsf.io.tables import takes_tables
from gpnsf.pl import canvas, maps, sections
from gpnsf.pl.options import explained

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from mudata import MuData

__all__ = ["importance"]

OBSERVATIONS, MAP = "observations", "map"
BINS = 25


@explained
@takes_tables
def importance(
    data: AnnData | MuData,
    *,
    panels: str | Sequence[str] | None = None,
    library: str | Sequence[str] | None = None,
    img_key: str | None = "auto",
    alpha_img: float = 1.0,
    crop_coord: sections.Crop = None,
    size: float = 1.0,
    alpha: float = 1.0,
    ncols: int | None = None,
    cmap: str | Colormap = "viridis",
    key: str = "gpnsf",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the spatial importance of features and observations.

    Histograms, and a map of the observations.

    Importance is the share of the expected signal that comes from spatial factors. Features without
    signal are left out.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    panels
        What to draw: names of modalities, "observations", "map"; None for everything.
    {place}
    {spots}
    ncols
        Panels in a row.
    cmap
        Colour map of the map.
    key
        Prefix of the slots, ``key_added`` of the fit.
    {shown}

    Returns
    -------
    The axes (a list if there are several), or the figure with ``return_fig=True``; None once shown.

    Raises
    ------
    KeyError
        If the object has no such fit, panel, slice or image.
    ValueError
        If ``ax`` is given for more than one panel.

    Notes
    -----
    Reads ``obs["gpnsf_spatial_importance"]``, ``var["gpnsf_spatial_importance"]`` and
    ``varm["gpnsf_loadings"]`` of each modality, the coordinates and ``uns["spatial"]``.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> axes = gpnsf.pl.importance(mdata, show=False)
    >>> [ax.get_title(loc="left") for ax in axes]
    ['rna', 'atac', 'observations', 'observations in space']
    """
    fit = fits.find(data, key)
    chosen = _chosen(fit, panels)
    where = None
    if MAP in chosen:
        where = sections.section(
            fit,
            library=library,
            img_key=img_key,
            alpha_img=alpha_img,
            crop_coord=crop_coord,
            size=size,
            alpha=alpha,
        )
    ncols = canvas.columns(len(chosen), _panel, ncols=ncols, target=2.2)
    width, height = _panel(ncols)
    with canvas.style():
        figure, axes = canvas.grid(len(chosen), width=width, height=height, ncols=ncols, ax=ax)
        for panel, name in zip(axes, chosen, strict=True):
            if where is not None and name == MAP:
                _map(panel, fit, where, cmap)
            elif name == OBSERVATIONS:
                _histogram(panel, fit.importance, name, color="0.45")
            else:
                _features(panel, fit, name)
    return canvas.finish(figure, axes, show=show, return_fig=return_fig)


def _panel(ncols: int) -> tuple[float, float]:
    """Width and height of a panel in inches."""
    return min(canvas.PAGE / ncols, 2.4), 1.9


def _chosen(fit: fits.Fit, panels: str | Sequence[str] | None) -> list[str]:
    """Names of the panels; the map needs coordinates."""
    known = [*fit.modalities, OBSERVATIONS, *([MAP] if fit.has_coords else [])]
    if panels is None:
        return known
    wanted = [str(name) for name in listed(panels, "panels")]
    choices(wanted, known, what="panels", where=f"the figure of fit {fit.keys.key!r}")
    return wanted


def _features(ax: Axes, fit: fits.Fit, modality: str) -> None:
    """Histogram of the features that have signal."""
    values = fit.var(modality, fit.keys.importance)[fit.loadings[modality].any(axis=1)]
    color = canvas.MODALITY_COLORS[
        list(fit.modalities).index(modality) % len(canvas.MODALITY_COLORS)
    ]
    _histogram(ax, values, modality, color=color)
    ax.set(ylabel="features")


def _histogram(ax: Axes, values: np.ndarray, name: str, *, color: str) -> None:
    """Histogram on [0, 1] with its median."""
    from matplotlib.ticker import MaxNLocator

    note = f"{values.size:,}"
    if values.size:
        median = float(np.median(values))
        ax.axvline(median, color="black", linewidth=0.8, linestyle=(0, (3, 2)))
        note += f" · median {median:.2f}"
    ax.hist(
        values,
        bins=np.linspace(0, 1, BINS + 1).tolist(),
        color=color,
        edgecolor="white",
        linewidth=0.4,
    )
    ax.set(xlim=(0, 1), xticks=[0, 0.5, 1], xlabel="spatial importance", ylabel=name)
    ax.set_xticklabels(["0", "0.5", "1"])
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    canvas.plain(ax)
    canvas.title(ax, name, note)


def _map(ax: Axes, fit: fits.Fit, where: sections.Section, cmap: str | Colormap) -> None:
    """Observations in space."""
    values = fit.importance[where.rows].astype(float)
    norm = canvas.norm("linear", 0.0, 1.0)  # a share, as in the histograms
    maps.draw(ax, where, values, scale="linear", cmap=cmap, norm=norm)
    maps.bars([ax], where)
    sections.name_slices([ax], where)
    canvas.title(ax, "observations in space", "spatial importance")
