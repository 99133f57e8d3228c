"""What a grid of fits has found, over the number of factors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from gpnsf.checks import MODELS, choices, problem
from gpnsf.pl import canvas
from gpnsf.pl.options import explained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["grid"]

LABELS = {
    "deviance": "Poisson deviance, seen",
    "deviance_holdout": "Poisson deviance, held out",
    "explained": "explained, seen",
    "explained_holdout": "explained, held out",
    "rmse": "RMSE, seen",
    "rmse_holdout": "RMSE, held out",
    "sparsity": "share of zero loadings",
    "morans_i": "Moran's I of spatial factors",
    "seconds": "seconds",
    "cpu_seconds": "CPU seconds",
    "peak_memory": "peak memory, bytes",
    "n_kept": "factors that were kept",
}
LOGARITHMIC = ("seconds", "cpu_seconds", "peak_memory")
LINES = ("-", "--", ":", "-.")
MARKERS = "osD^vP*X"
COLORS = dict(zip((*MODELS[::-1], "mefisto"), cycle(canvas.MODALITY_COLORS), strict=False))
WIDTH, LEGEND = 2.2, 1.4  # inches


class _Style(NamedTuple):
    """How a line is drawn, in the words of matplotlib."""

    color: str
    linestyle: str
    marker: str
    label: str


@explained
def grid(
    table: pd.DataFrame,
    *,
    y: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the table of :func:`gpnsf.tl.grid` over the number of factors.

    Each model has a colour, each likelihood a style of lines, and other arguments that differ a marker. Points are means over
    seeds, bars go from the lowest to the highest. Each data set and modality has a row of panels. Runs that failed are left out.

    Parameters
    ----------
    table
        Table of :func:`gpnsf.tl.grid`, or what was read from its ``table.csv``.
    y
        Columns of numbers to draw. Default: the deviance of held-out observations (of all, where none were held out), the
        sparsity of loadings, and the CPU seconds.
    {shown}

    Returns
    -------
    The axes (a list if there are several), or the figure with ``return_fig=True``; None once shown.

    Raises
    ------
    KeyError
        If the table lacks a column.
    ValueError
        If no run has ended well, or ``ax`` is given for more than one panel.

    Examples
    --------
    >>> import gpnsf, pandas as pd
    >>> table = pd.DataFrame({"data": "blocks", "model": "nsf", "n_factors": [2, 3, 4], "seed": 0})
    >>> table = table.assign(modality="rna", likelihood="poisson", deviance_holdout=[3.0, 2.0, 1.9])
    >>> ax = gpnsf.pl.grid(table, y="deviance_holdout", show=False)
    >>> ax.get_xlabel()
    'factors'
    """
    wanted = ["data", "model", "n_factors", "modality", "likelihood"]
    columns = _drawn(table) if y is None else [y] if isinstance(y, str) else list(y)
    remedy = "Pass the table of `gpnsf.tl.grid`"
    choices([*wanted, *columns], table, what="the column", where="the table", remedy=remedy)
    table = table[table["modality"].notna()]
    if table.empty or not columns:
        found = "none that ended well" if table.empty else "no column"
        raise ValueError(problem("runs and columns to draw", found, remedy))
    asked = _asked(table)
    styles = _styles(table, asked)
    rows = list(table.groupby(["data", "modality"], sort=False))
    with canvas.style():
        figure, axes = canvas.grid(
            len(rows) * len(columns),
            width=WIDTH,
            height=1.9,
            ncols=len(columns),
            ax=ax,
            spare=LEGEND,
        )
        panels = iter(axes)
        for (data, modality), part in rows:
            several = table.loc[table["data"] == data, "modality"].nunique() > 1
            note = f"{data}, {modality}" if several else str(data)
            for column in columns:
                place = next(panels)
                for key, line in part.groupby(asked, sort=False, dropna=False):
                    _draw(place, line, column, styles[str(key)])
                _finish_panel(place, column, note)
        _legend(figure, axes[0], inside=ax is not None)
    return canvas.finish(figure, axes, show=show, return_fig=return_fig)


def _drawn(table: pd.DataFrame) -> list[str]:
    """What matters most of what there is."""
    holds = "deviance_holdout" in table and table["deviance_holdout"].notna().any()
    return ["deviance_holdout" if holds else "deviance", "sparsity", "cpu_seconds"]


def _asked(table: pd.DataFrame) -> list[str]:
    """Columns that tell lines apart: model, likelihood, and other arguments that differ."""
    names = list(table.columns)
    between = names[names.index("model") + 1 : names.index("modality")]
    others = [n for n in between if n not in ("n_factors", "n_spatial", "seed", "likelihoods")]
    asked = ["model", "likelihood", *others]
    if "n_spatial" in between:
        numbers = table.groupby([*asked, "n_factors"], dropna=False)["n_spatial"]
        asked += ["n_spatial"] * int(numbers.nunique(dropna=False).max() > 1)
    return asked


def _styles(table: pd.DataFrame, asked: list[str]) -> dict[str, _Style]:
    """Colour, style, marker and name of each line."""
    likelihoods, styles = list(table["likelihood"].unique()), {}
    others: dict[str, int] = {}
    for key, _ in table.groupby(asked, sort=False, dropna=False):
        model, likelihood, *rest = key
        named = ", ".join(f"{n}={v}" for n, v in zip(asked[2:], rest, strict=True) if v == v)
        number = others.setdefault(named, len(others))
        styles[str(key)] = _Style(
            color=COLORS.get(model, canvas.GREY),
            linestyle=LINES[likelihoods.index(likelihood) % len(LINES)],
            marker=MARKERS[number % len(MARKERS)],
            label=", ".join(filter(None, [model, likelihood, named])),
        )
    return styles


def _draw(ax: Axes, line: pd.DataFrame, column: str, style: _Style) -> None:
    """Means over seeds, and from where to where they go."""
    values = line.groupby("n_factors")[column].agg(["mean", "min", "max"]).dropna()
    bars = [values["mean"] - values["min"], values["max"] - values["mean"]]
    ax.errorbar(
        values.index,
        values["mean"],
        bars,
        markersize=3,
        linewidth=1.2,
        elinewidth=0.8,
        capsize=1.5,
        **style._asdict(),
    )


def _finish_panel(ax: Axes, column: str, note: str) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    if column in LOGARITHMIC:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    ax.set_xlabel("factors")
    canvas.plain(ax)
    canvas.title(ax, LABELS.get(column, column), note)


def _legend(figure: Figure, ax: Axes, *, inside: bool) -> None:
    """Names of the lines, once: beside the panels, or in the one that was handed in."""
    handles, names = ax.get_legend_handles_labels()
    place = ax.legend if inside else partial(figure.legend, loc="outside right upper")
    place(handles, names, handlelength=2.4, labelspacing=0.3)
