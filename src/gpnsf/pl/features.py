"""The features that stand for each factor."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from gpnsf.checks import problem
from gpnsf.io import fits
from gpnsf.io.chosen import Factors
from gpnsf.io.ranked import ranked, shared_out
from gpnsf.io.tables import takes_tables
from gpnsf.pl import canvas
from gpnsf.pl.options import explained

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mudata import MuData

__all__ = ["top_features"]

ROW, LETTER = 0.128, 0.054  # inches: a line of names, and a letter of a name
GAP = 0.5  # lines between the modalities of a panel

_log = logging.getLogger("gpnsf")


@explained
@takes_tables
def top_features(
    data: AnnData | MuData,
    *,
    n_features: int = 10,
    factors: Factors = None,
    modality: str | Sequence[str] | None = None,
    method: str = "posterior",
    italic: str | Sequence[str] = "rna",
    ncols: int | None = None,
    key: str = "gpnsf",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the best features of each factor, one panel a factor, best on top.

    Lines are as long as the scores of :func:`gpnsf.tl.rank_features`, relative to the best feature
    of the factor and modality, and none where the score is below 0; those of ``method="share"`` are
    the shares themselves. Factors without features are left out.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    n_features
        Lines of a panel, shared out evenly among the modalities.
    factors
        Names of the factors to draw, or their positions from 0, in this order; None for all.
    modality
        Names of the modalities; None for all, in colours of their own.
    method
        "posterior", "lift", "loading", "share" or "specificity", as in
        :func:`gpnsf.tl.rank_features`.
    italic
        Modalities whose features are written in italics, as genes are.
    ncols
        Panels in a row; None for a choice by the length of the names.
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
    >>> axes = gpnsf.pl.top_features(mdata, modality="rna", show=False)
    >>> len(axes)
    4
    """
    fit = fits.find(data, key)
    modalities = fit.modality_names(modality)
    tables = _tables(fit, fit.factor_indices(factors), modalities, n_features, method)
    letters = max(table["feature"].str.len().max() for table in tables.values())
    lines = max(_lines(table).max() for table in tables.values()) + 1
    height, least = ROW * lines + 0.4, LETTER * letters + 0.6
    most = int(canvas.PAGE / least)
    ncols = canvas.columns(
        len(tables), lambda n: (_width(n, least), height), ncols=ncols, target=1.6, most=most
    )
    colors = dict(zip(modalities, canvas.MODALITY_COLORS * len(modalities), strict=False))
    with canvas.style():
        width = _width(ncols, least)
        figure, axes = canvas.grid(
            len(tables), width=width, height=height, ncols=ncols, ax=ax, gap=0.06
        )
        for panel, (factor, table) in zip(axes, tables.items(), strict=True):
            _panel(panel, table, colors, method, italic)
            panel.set(ylim=(lines - 0.4, -0.6))
            _title(panel, factor, letters)
        _explain(axes, colors, method, outside=ax is None)
    return canvas.finish(figure, axes, show=show, return_fig=return_fig)


def _tables(
    fit: fits.Fit, factors: np.ndarray, modalities: list[str], n_features: int, method: str
) -> dict[str, pd.DataFrame]:
    """Factor name -> its best features of each modality, for the factors that have any."""
    quotas = shared_out(n_features, modalities)
    tables = {}
    for factor in factors:
        parts = [
            ranked(fit, name, int(factor), n_features=quota, method=method)
            for name, quota in quotas.items()
        ]
        tables[str(fit.names[factor])] = pd.concat(parts, ignore_index=True)
    empty = [name for name, table in tables.items() if table.empty]
    if len(empty) == len(tables):
        found = f"none for {empty} in {modalities}"
        raise ValueError(
            problem("features with signal", found, "Choose other factors or modalities")
        )
    if empty:
        _log.info("factors without features are left out: %s", empty)
    return {name: table for name, table in tables.items() if not table.empty}


def _width(ncols: int, least: float) -> float:
    """Width of a panel in inches: the page is filled, but lines are no longer than they need be."""
    return float(np.clip(canvas.PAGE / ncols, least, least + 0.8))


def _lines(table: pd.DataFrame) -> np.ndarray:
    """Line of each feature, with a gap between modalities."""
    return np.arange(len(table)) + GAP * pd.factorize(table["modality"])[0]


def _panel(
    ax: Axes, table: pd.DataFrame, colors: dict[str, str], method: str, italic: str | Sequence[str]
) -> None:
    """A line with a head and a name for each feature."""
    value = table["score"]
    if method != "share":
        best = table.groupby("modality")["score"].transform("max")
        value = value.clip(lower=0) / best.where(best > 0, 1)
    color = table["modality"].map(colors)
    lines = _lines(table)
    ax.hlines(lines, 0, value, colors=color, linewidth=1.2)
    ax.scatter(value, lines, c=color, s=9, linewidths=0, clip_on=False, zorder=3)
    ax.set(xlim=(0, 1), xticks=[])
    ax.set_yticks(lines, table["feature"])
    canvas.plain(ax)
    ax.tick_params(axis="y", length=0, labelsize=canvas.SMALL - 0.5)
    for label, name in zip(ax.get_yticklabels(), table["modality"], strict=True):
        label.set_fontstyle(canvas.font_style(name, italic))
    ax.spines["bottom"].set_visible(False)


def _title(ax: Axes, factor: str, letters: int) -> None:
    """Name of the factor above the names of its features, where there is room for it."""
    place = (-72 * LETTER * letters, 4)
    ax.annotate(factor, (0, 1), place, xycoords="axes fraction", textcoords="offset points")


def _explain(axes: list[Axes], colors: dict[str, str], method: str, *, outside: bool) -> None:
    """Explain the length of the lines, and which colour is which modality.

    Outside the panels, or on the one panel.
    """
    from matplotlib.lines import Line2D

    figure = axes[0].figure
    label = (
        "share of the feature's signal"
        if method == "share"
        else "score relative to the best feature"
    )
    handles = [
        Line2D([], [], color=color, marker="o", markersize=3, lw=1.2) for color in colors.values()
    ]
    if outside:
        figure.supxlabel(label, fontsize=canvas.SMALL, color=canvas.GREY)
    else:
        axes[0].set_xlabel(label, fontsize=canvas.SMALL, color=canvas.GREY)
    if len(colors) > 1 and outside:
        figure.legend(
            handles, list(colors), loc="outside upper right", ncols=len(colors), borderaxespad=0
        )
    elif len(colors) > 1:
        axes[0].legend(
            handles, list(colors), loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0
        )
