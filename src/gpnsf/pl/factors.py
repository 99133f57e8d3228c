"""Factors in space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpnsf import results
from gpnsf.checks import problem
from gpnsf.pl import canvas

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from mudata import MuData

    from gpnsf.results import Fit

__all__ = ["spatial_factors"]


def spatial_factors(
    data: AnnData | MuData,
    *,
    factors: str | Sequence[str] | None = None,
    moment: str = "mean",
    scale: str = "linear",
    shared_scale: bool = False,
    vmin: float | None = None,
    vmax: float | None = None,
    quantiles: tuple[float, float] = (0.005, 0.995),
    library: str | Sequence[str] | None = None,
    ncols: int | None = None,
    cmap: str | Colormap | None = None,
    size: float | None = None,
    key: str = "gpnsf",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw each factor over the section, one panel a factor.

    Titles name the factor; below stand its length scale ℓ, in the units of the coordinates, and its share of the
    expected signal. Panels keep the shape of the tissue. The y axis points upwards, as coordinates are given, unless the
    object or a modality holds an image in ``uns["spatial"]``: then downwards, as in scanpy and squidpy. Slices that
    overlap are set side by side, and named in the first panel. One coordinate gives profiles; of three, the first two are drawn.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    factors
        Names of the factors to draw, in this order; None for all.
    moment
        "mean" draws the posterior mean, "smooth" the spatial field alone, "std" the posterior standard deviation.
    scale
        How values become colours: "linear", "sqrt" (as in the figures of NSF), or "log". Bars are labelled in values.
    shared_scale
        One colour scale and one bar for all panels, instead of one for each.
    vmin, vmax
        Ends of the colour scale.
    quantiles
        Quantiles of the values that stand for an end that is not given.
    library
        Names of the slices to draw; None for all.
    ncols
        Panels in a row; None for a choice by the shape of the tissue.
    cmap
        Colour map; None for magma without its palest end, or "RdBu_r" around zero for signed models.
    size
        Diameter of a spot in the units of the coordinates; None for spots that just touch.
    key
        Prefix of the slots, ``key_added`` of the fit.
    ax
        Axes for a single panel.
    show
        Show the figure; None does so where there is a window or a notebook.
    return_fig
        Return the figure.

    Returns
    -------
    The axes (a list if there are several), or the figure with ``return_fig=True``; None once shown.

    Raises
    ------
    KeyError
        If the object has no such fit, factor or slice.
    ValueError
        If an option is unknown, or ``ax`` is given for more than one panel.

    Notes
    -----
    Reads ``obsm["X_gpnsf"]`` (or ``_smooth``, ``_std``), ``varm["gpnsf_loadings"]``, ``uns["gpnsf"]`` and the
    coordinates.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> axes = gpnsf.pl.spatial_factors(mdata, scale="sqrt", show=False)
    >>> len(axes)
    4
    """
    fit = results.find(data, key)
    chosen = fit.factor_indices(factors)
    where = canvas.section(fit, library=library, size=size)
    values = _moment(fit, moment)[np.ix_(where.rows, chosen)]  # [n, panels]
    norms = _norms(values, scale, shared_scale=shared_scale, ends=(vmin, vmax), quantiles=quantiles)
    cmap = cmap or canvas.colormap(signed=values.min() < 0)
    bar = 0.1 if shared_scale else canvas.BAR
    ncols = canvas.columns(chosen.size, lambda n: where.panel(n, bar=bar), ncols=ncols)
    width, height = where.panel(ncols, bar=bar)
    with canvas.style():
        spare = canvas.BAR if shared_scale else 0.0
        figure, axes = canvas.grid(chosen.size, width=width, height=height, ncols=ncols, ax=ax, spare=spare)
        _draw(axes, where, values, norms, cmap=cmap, scale=scale)
        if where.coords.shape[1] > 1:
            figure.draw_without_rendering()  # titles take their place, and panels their height
            _bars(axes, shared_scale=shared_scale)
        for panel, factor in zip(axes, chosen, strict=True):
            canvas.title(panel, fit.names[factor], _note(fit, factor))
        canvas.name_slices(axes[0], where)
    return canvas.finish(figure, axes, show=show, return_fig=return_fig)


def _moment(fit: Fit, moment: str) -> np.ndarray:
    """One of the three arrays [N, K] of the factors."""
    moments = {"mean": fit.mean, "smooth": fit.smooth, "std": fit.std}
    if moment not in moments:
        raise ValueError(problem(f"`moment` to be one of {list(moments)}", repr(moment), "Pass one of these"))
    return moments[moment]


def _norms(
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


def _draw(
    axes: list[Axes],
    where: canvas.Section,
    values: np.ndarray,
    norms: list[Normalize],
    *,
    cmap: str | Colormap,
    scale: str,
) -> None:
    """One column of values [n, panels] in each panel."""
    for panel, column, norm in zip(axes, values.T, norms, strict=True):
        if where.coords.shape[1] == 1:
            canvas.profile(panel, where, column, scale=scale, cmap=cmap, norm=norm)
        else:
            canvas.spots(panel, where, column, cmap=cmap, norm=norm)


def _bars(axes: list[Axes], *, shared_scale: bool) -> None:
    """A bar beside each panel, or one for all."""
    if not shared_scale:
        canvas.colorbars(axes)
        return
    bar = axes[0].figure.colorbar(axes[0].collections[0], ax=axes, fraction=0.02, pad=0.01, shrink=0.5, aspect=25)
    canvas.tidy_bar(bar.ax)


def _note(fit: Fit, factor: int) -> str:
    """Length scale and share of a factor."""
    length, share = fit.lengthscale[factor], f"{100 * fit.shares[factor]:.1f} %"
    if not np.isfinite(length):
        return share
    return f"ℓ {length:,.0f} · {share}" if length >= 100 else f"ℓ {length:.3g} · {share}"
