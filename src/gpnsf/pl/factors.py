"""Factors in space."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from gpnsf.checks import problem
from gpnsf.io import fits
from gpnsf.io.chosen import Factors
from gpnsf.io.tables import takes_tables
from gpnsf.pl import canvas, maps, sections
from gpnsf.pl.options import explained

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from mudata import MuData

    from gpnsf.io.fits import Fit

__all__ = ["note", "spatial_factors"]

LABELS = {"smooth": "spatial field", "std": "standard deviation"}


@explained
@takes_tables
def spatial_factors(
    data: AnnData | MuData,
    *,
    factors: Factors = None,
    moment: str | Sequence[str] = "mean",
    scale: str = "linear",
    shared_scale: bool = False,
    vmin: float | None = None,
    vmax: float | None = None,
    quantiles: tuple[float, float] = (0.005, 0.995),
    library: str | Sequence[str] | None = None,
    img_key: str | None = "auto",
    alpha_img: float = 1.0,
    crop_coord: sections.Crop = None,
    size: float = 1.0,
    alpha: float = 1.0,
    ncols: int | None = None,
    cmap: str | Colormap | None = None,
    key: str = "gpnsf",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw each factor over the section, one panel a factor.

    Titles name the factor; below stand its length scale ℓ, in the units of the coordinates, and its
    share of the expected signal. Panels keep the shape of the tissue, and y grows downwards, as in
    scanpy and squidpy. Slices that overlap are set side by side. One coordinate gives profiles; of
    three, the first two are drawn.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    factors
        Names of the factors to draw, or their positions from 0, in this order; None for all.
    moment
        "mean" draws the posterior mean, "smooth" the spatial field alone, "std" the posterior
        standard deviation. Several, as in ``("mean", "std")``, stand side by side for each factor.
    scale
        How values become colours: "linear", "sqrt" (as in the figures of NSF), or "log". Bars are
        labelled in values.
    shared_scale
        One colour scale and one bar for all panels, instead of one for each.
    vmin, vmax
        Ends of the colour scale.
    quantiles
        Quantiles of the values that stand for an end that is not given.
    {place}
    {spots}
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
        If the object has no such fit, factor, slice or image.
    ValueError
        If an option is unknown, or ``ax`` is given for more than one panel.

    Notes
    -----
    Reads ``obsm["X_gpnsf"]`` (or ``_smooth``, ``_std``), ``varm["gpnsf_loadings"]``,
    ``uns["gpnsf"]``, the coordinates and ``uns["spatial"]``.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> axes = gpnsf.pl.spatial_factors(mdata, scale="sqrt", show=False)
    >>> len(axes)
    4
    """
    fit = fits.find(data, key)
    chosen = fit.factor_indices(factors)
    moments = [moment] if isinstance(moment, str) else list(moment)
    where = sections.section(
        fit,
        library=library,
        img_key=img_key,
        alpha_img=alpha_img,
        crop_coord=crop_coord,
        size=size,
        alpha=alpha,
    )
    # [n, panels]
    values = _values(fit, moments)[np.ix_(where.rows, chosen)].reshape(where.rows.size, -1)
    norms = maps.norms_of(
        values, scale, shared_scale=shared_scale, ends=(vmin, vmax), quantiles=quantiles
    )
    cmap = cmap or canvas.colormap(signed=values.min() < 0)
    bar = 0.1 if shared_scale else canvas.BAR
    ncols = _columns(chosen.size, len(moments), where, bar, ncols)
    width, height = where.panel(ncols, bar=bar)
    with canvas.style():
        spare = canvas.BAR if shared_scale else 0.0
        figure, axes = canvas.grid(
            values.shape[1], width=width, height=height, ncols=ncols, ax=ax, spare=spare
        )
        for panel, column, norm in zip(axes, values.T, norms, strict=True):
            maps.draw(panel, where, column, scale=scale, cmap=cmap, norm=norm)
        maps.bars(axes, where, shared=shared_scale)
        for panel, (factor, name) in zip(axes, product(chosen, moments), strict=True):
            canvas.title(panel, fit.names[factor], LABELS.get(name) or note(fit, factor))
        sections.name_slices(axes, where)
    return canvas.finish(figure, axes, show=show, return_fig=return_fig)


def _values(fit: Fit, moments: list[str]) -> np.ndarray:
    """Some of the three arrays of the factors, [N, K, moments]."""
    known = {"mean": fit.mean, "smooth": fit.smooth} | ({} if fit.std is None else {"std": fit.std})
    if not moments or not set(moments) <= known.keys():
        raise ValueError(
            problem(
                f"`moment` to be of {list(known)}", repr(moments), "Pass one or several of these"
            )
        )
    return np.stack([known[name] for name in moments], axis=2)


def _columns(
    n_factors: int, n_moments: int, where: sections.Section, bar: float, ncols: int | None
) -> int:
    """Panels in a row: those asked for, or whole groups of moments."""
    if ncols is not None:
        return canvas.columns(n_factors * n_moments, lambda n: where.panel(n, bar=bar), ncols=ncols)

    def group(n: int) -> tuple[float, float]:
        """Width and height of all moments of a factor."""
        width, height = where.panel(n * n_moments, bar=bar)
        return width * n_moments, height

    return n_moments * canvas.columns(n_factors, group, most=8 // n_moments)


def note(fit: Fit, factor: int) -> str:
    """Length scale and share of a factor."""
    length, share = fit.lengthscale[factor], f"{100 * fit.shares[factor]:.1f} %"
    if not np.isfinite(length):
        return share
    return f"ℓ {length:,.0f} · {share}" if length >= 100 else f"ℓ {length:.3g} · {share}"
