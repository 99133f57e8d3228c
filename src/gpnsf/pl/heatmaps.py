"""Heatmaps: which features belong to which factors, and which factors say the same."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpnsf.checks import problem
from gpnsf.io import fits
from gpnsf.io.chosen import Factors
from gpnsf.io.ranked import ranked
from gpnsf.io.tables import takes_tables
from gpnsf.pl import canvas, maps
from gpnsf.pl.options import explained

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from mudata import MuData

    from gpnsf.io.fits import Fit

__all__ = ["factor_correlation", "loadings"]

MOST = 100  # rows of a panel whose names can still be read on one page
ROW, LETTER = 0.105, 0.054  # inches: a row, and a letter of its name
CELL = (0.105, 0.22)  # inches: least and largest width of a column
HEAD = 0.3  # inches above a panel
LEAST = 1.5  # inches: the smallest side of a heatmap, which the words around it need
SQUARE = (0.17, 0.34)  # inches: least and largest side of a cell
NUMBERED = 0.24  # side of a cell that has room for a number
DARK = 0.6  # share of the limit beyond which a number is white

_log = logging.getLogger("gpnsf")


@explained
@takes_tables
def loadings(
    data: AnnData | MuData,
    *,
    n_features: int = 5,
    factors: Factors = None,
    modality: str | Sequence[str] | None = None,
    method: str = "posterior",
    italic: str | Sequence[str] = "rna",
    ncols: int | None = None,
    cmap: str | Colormap | None = None,
    key: str = "gpnsf",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the loadings of the best features of each factor as a heatmap, one panel a modality.

    Colours are shares: how much of the expected signal of a feature comes from each factor, over
    all factors of the fit. A feature that is among the best of several factors stands with the
    first of them. A panel has at most 100 rows: where there would be more, each factor gets fewer
    features than asked for, and the line above the panel and the log say how many.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    n_features
        Features of each factor and modality.
    factors
        Names of the factors to draw, or their positions from 0, in this order; None for all.
    modality
        Names of the modalities; None for all.
    method
        How features are ranked, as in :func:`gpnsf.tl.rank_features`.
    italic
        Modalities whose features are written in italics, as genes are.
    ncols
        Panels in a row; None for as many as the page has room for.
    cmap
        Colour map of the shares; None for a light to dark one, or "RdBu_r" around zero for signed
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
        If the object has no such fit, factor or modality.
    ValueError
        If an option is unknown, no factor has features, or ``ax`` is given for more than one panel.

    Notes
    -----
    Reads what :func:`gpnsf.tl.rank_features` reads.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=2)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> axes = gpnsf.pl.loadings(mdata, n_features=3, show=False)
    >>> [ax.get_title(loc="left") for ax in axes]
    ['rna', 'atac']
    """
    fit = fits.find(data, key)
    chosen, modalities = fit.factor_indices(factors), fit.modality_names(modality)
    quota = _quota(n_features, chosen.size)
    tables = {name: _best(fit, name, chosen, quota, method) for name in modalities}
    tables = {name: positions for name, positions in tables.items() if positions.size}
    if not tables:
        raise ValueError(
            problem(
                "features with signal",
                f"none in {modalities}",
                "Choose other factors or modalities",
            )
        )
    letters = max(fit.modalities[name].var_names[at].str.len().max() for name, at in tables.items())
    most_rows = max(at.size for at in tables.values())
    width, height = _size(chosen.size, letters, most_rows, len(tables), fit)
    fitting = max(int(canvas.PAGE / width), 1)
    with canvas.style():
        ncols = min(fitting if ncols is None else ncols, len(tables))
        ncols = canvas.columns(len(tables), lambda _: (width, height), ncols=ncols)
        figure, axes = canvas.grid(
            len(tables), width=width, height=height, ncols=ncols, ax=ax, spare=0.5
        )
        for panel, (name, positions) in zip(axes, tables.items(), strict=True):
            _panel(panel, fit, name, positions, chosen, cmap)
            for label in panel.get_yticklabels():
                label.set_fontstyle(canvas.font_style(name, italic))
            canvas.title(panel, name, f"{quota} best feature{'s' * (quota > 1)} of each factor")
        _bar(axes, signed=fit.signed)
    return canvas.finish(figure, axes, show=show, return_fig=return_fig)


def _quota(n_features: int, n_factors: int) -> int:
    """Features of each factor: those asked for, unless a panel would have too many rows."""
    if n_features < 1:
        raise ValueError(
            problem("`n_features` of at least 1", str(n_features), "Pass a positive integer")
        )
    quota = min(n_features, max(MOST // n_factors, 1))
    if quota < n_features:
        _log.info("%d features of each of %d factors are drawn, not %d: name some `factors` to see more",
                  quota, n_factors, n_features)  # fmt: skip
    return quota


def _best(fit: Fit, modality: str, factors: np.ndarray, quota: int, method: str) -> np.ndarray:
    """Positions of the best features of each factor, each once."""
    tables = [ranked(fit, modality, int(k), n_features=quota, method=method) for k in factors]
    return np.array(list(dict.fromkeys(j for table in tables for j in table.index)), dtype=np.int64)


def _size(
    n_factors: int, letters: int, n_rows: int, n_panels: int, fit: Fit
) -> tuple[float, float]:
    """Width and height of a panel in inches, names of features and factors included."""
    names = LETTER * letters + 0.15
    cell = float(np.clip((canvas.PAGE / n_panels - names) / n_factors, *CELL))
    longest = max(len(name) for name in fit.names)
    return max(cell * n_factors, LEAST) + names, max(ROW * n_rows, LEAST) + LETTER * longest + HEAD


def _panel(
    ax: Axes,
    fit: Fit,
    modality: str,
    positions: np.ndarray,
    factors: np.ndarray,
    cmap: str | Colormap | None,
) -> None:
    """Shares of features [rows] by factors [columns]."""
    weights = fit.loadings[modality][positions].astype(np.float64)
    shares = weights / np.maximum(np.abs(weights).sum(axis=1, keepdims=True), np.finfo(float).tiny)
    low, colors = (-1, "RdBu_r") if fit.signed else (0, "magma_r")
    ax.imshow(
        shares[:, factors],
        aspect="auto",
        interpolation="nearest",
        cmap=cmap or colors,
        vmin=low,
        vmax=1,
    )
    ax.set_xticks(range(factors.size), fit.names[factors], rotation=90)
    ax.set_yticks(range(positions.size), fit.modalities[modality].var_names[positions])
    canvas.plain(ax)
    ax.tick_params(length=0, labelsize=canvas.SMALL - 1)
    _divide(ax, fit.is_spatial[factors], across=False)
    ax.spines[:].set_visible(False)


def _bar(axes: list[Axes], *, signed: bool) -> None:
    """One bar for all panels: the ends of the scale are the same."""
    shrink = float(np.clip(1.6 / axes[0].figure.canvas.figure.get_figheight(), 0.2, 1))
    bar = axes[0].figure.colorbar(
        axes[0].images[0], ax=axes, fraction=0.03, pad=0.02, shrink=shrink, aspect=22
    )
    canvas.tidy_bar(bar.ax)
    bar.ax.set_ylabel(
        "signed share" if signed else "share of the feature's signal", fontsize=canvas.SMALL - 0.5
    )


@explained
@takes_tables
def factor_correlation(
    data: AnnData | MuData,
    *,
    factors: Factors = None,
    moment: str = "mean",
    vmax: float = 1.0,
    cmap: str | Colormap = "RdBu_r",
    key: str = "gpnsf",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the correlations of the factors over the observations.

    A line divides spatial from nonspatial factors. Numbers stand in the cells where there is room
    for them, that is up to about 20 factors. The diagonal is grey, and so are factors that are
    constant.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    factors
        Names of the factors to draw, or their positions from 0, in this order; None for all.
    moment
        "mean" correlates posterior means, "smooth" the spatial fields alone.
    vmax
        End of the colour scale on both sides of zero.
    cmap
        Colour map around zero.
    key
        Prefix of the slots, ``key_added`` of the fit.
    {shown}

    Returns
    -------
    The axes, or the figure with ``return_fig=True``; None once shown.

    Raises
    ------
    KeyError
        If the object has no such fit or factor.
    ValueError
        If ``moment`` is unknown, ``vmax`` is not positive, or there are fewer than two factors.

    Notes
    -----
    Reads ``obsm["X_gpnsf"]`` or ``obsm["X_gpnsf_smooth"]``, and ``uns["gpnsf"]``.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> ax = gpnsf.pl.factor_correlation(mdata, show=False)
    >>> ax.images[0].get_array().shape
    (4, 4)
    """
    fit = fits.find(data, key)
    chosen = fit.factor_indices(factors)
    correlation = _correlation({"mean": fit.mean, "smooth": fit.smooth}, moment, chosen)
    if not vmax > 0:
        raise ValueError(
            problem(
                "`vmax` above 0", str(vmax), "Pass 1, or a smaller number for weak correlations"
            )
        )
    names = fit.names[chosen]
    margin = 0.06 * max(map(len, names)) + 0.15
    cell = float(np.clip((canvas.PAGE - margin - 0.6) / chosen.size, *SQUARE))
    side = cell * chosen.size + margin
    with canvas.style():
        figure, (panel,) = canvas.grid(1, width=side + 0.7, height=side, ncols=1, ax=ax)
        image = panel.imshow(
            correlation, cmap=maps.with_grey(cmap), vmin=-vmax, vmax=vmax, interpolation="nearest"
        )
        panel.set_xticks(range(chosen.size), names, rotation=90)
        panel.set_yticks(range(chosen.size), names)
        canvas.plain(panel)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        _divide(panel, fit.is_spatial[chosen], across=True)
        if cell >= NUMBERED:
            _number(panel, correlation, vmax)
        bar = figure.colorbar(
            image,
            ax=panel,
            fraction=0.04,
            pad=0.02,
            shrink=0.5 if chosen.size > 5 else 1.0,
            aspect=18,
        )
        canvas.tidy_bar(bar.ax)
        bar.ax.set_ylabel("correlation", fontsize=canvas.SMALL - 0.5)
    return canvas.hand_over(figure, panel, show=show, return_fig=return_fig)


def _correlation(moments: dict[str, np.ndarray], moment: str, chosen: np.ndarray) -> np.ndarray:
    """Correlations [K, K] without the diagonal; NaN where a factor is constant."""
    if moment not in moments:
        raise ValueError(
            problem(f"`moment` to be one of {list(moments)}", repr(moment), "Pass one of these")
        )
    if chosen.size < 2:
        raise ValueError(
            problem(
                "at least two factors", str(chosen.size), "Name more `factors`, or None for all"
            )
        )
    values = moments[moment][:, chosen].astype(np.float64)
    values = values - values.mean(axis=0)
    norm = np.linalg.norm(values, axis=0)
    norm[norm <= 1e-12 * np.abs(moments[moment][:, chosen]).max(axis=0)] = np.nan
    correlation = (values / norm).T @ (values / norm)
    np.fill_diagonal(correlation, np.nan)
    return correlation


def _number(ax: Axes, correlation: np.ndarray, vmax: float) -> None:
    """Values in the cells, in two digits without the leading zero."""
    for (row, column), value in np.ndenumerate(correlation):
        if np.isfinite(value):
            text = f"{value:.2f}".replace("0.", ".").replace("-.00", ".00")
            color = "white" if abs(value) > DARK * vmax else "0.15"
            ax.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=canvas.SMALL - 1.5,
                color=color,
            )


def _divide(ax: Axes, is_spatial: np.ndarray, *, across: bool) -> None:
    """Lines between spatial and nonspatial factors.

    They stand between columns, and with ``across`` also between rows.
    """
    for place in np.flatnonzero(np.diff(is_spatial.astype(int))) + 0.5:
        for line in (ax.axvline, ax.axhline)[: 1 + across]:
            line(place, color="black", linewidth=0.8)
