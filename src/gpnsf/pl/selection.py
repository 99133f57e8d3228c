"""How the number of factors was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gpnsf.checks import choices, problem
from gpnsf.io.tables import takes_tables
from gpnsf.pl import canvas
from gpnsf.pl.options import explained

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mudata import MuData

__all__ = ["selection"]

PANELS = {  # column: what it is
    "excess": "deviance above the lowest",
    "stability": "stability of spatial factors",
    "n_spatial": "spatial factors",
}
COLOR, MARK = canvas.MODALITY_COLORS[0], canvas.MODALITY_COLORS[1]


@explained
@takes_tables
def selection(
    table: pd.DataFrame | AnnData | MuData,
    *,
    panel: str | None = None,
    key: str = "gpnsf_selection",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw what :func:`gpnsf.tl.select_n_factors` found, over the number of factors.

    The recommended point is marked.

    The first panel shows the deviance of the counts that were not fitted, per observation, above
    the lowest one, on a square-root scale with one standard error; the second how well the spatial
    factors of two seeds agree; the third how many factors showed spatial order in the counts that
    were fitted (its mark: in all of them). Where several numbers of spatial factors were asked for,
    each has a line.

    Parameters
    ----------
    table
        Table of :func:`gpnsf.tl.select_n_factors`, or the object that it annotated.
    panel
        A single panel: "excess", "stability" or "n_spatial"; None for all that there is something
        to draw in.
    key
        ``key_added`` of the selection, if an object is passed.
    {shown}

    Returns
    -------
    The axes (a list if there are several), or the figure with ``return_fig=True``; None once shown.

    Raises
    ------
    KeyError
        If the object holds no selection, or the table lacks a column.
    ValueError
        If ``panel`` is unknown, if ``ax`` is given for more than one panel, or if the table holds nothing that could be drawn.

    Notes
    -----
    Reads ``uns["gpnsf_selection"]`` if an object is passed.

    Examples
    --------
    >>> import gpnsf, pandas as pd
    >>> table = pd.DataFrame(
    ...     {
    ...         "n_factors": [2, 3],
    ...         "n_spatial": [1, 2],
    ...         "excess": [4.0, 0.0],
    ...         "excess_se": [0.5, 0.0],
    ...     }
    ... )
    >>> table = table.assign(stability=[0.9, 0.95], recommended=[False, True])
    >>> axes = gpnsf.pl.selection(table, show=False)
    >>> axes[0].get_xlabel()
    'factors'
    """
    table, n_spatial = _opened(table, key)
    if panel is not None and panel not in PANELS:
        raise ValueError(
            problem(
                f"`panel` to be one of {list(PANELS)}", repr(panel), "Pass one of these, or None"
            )
        )
    several = bool(table.n_factors.duplicated().any())  # values of n_spatial that were asked for
    drawn = [
        name
        for name in PANELS
        if table[name].notna().any() and not (several and name == "n_spatial")
    ]
    drawn = [panel] if panel else drawn
    if not drawn:
        rule, found = (
            f"a table with a number in one of {list(PANELS)}",
            f"{len(table)} rows with none",
        )
        raise ValueError(problem(rule, found, "Run `gpnsf.tl.select_n_factors` again"))
    with canvas.style():
        width = canvas.PAGE / 3
        figure, axes = canvas.grid(len(drawn), width=width, height=2.0, ncols=len(drawn), ax=ax)
        for name, place in zip(drawn, axes, strict=True):
            _curves(place, table, name, several=several)
            _mark(place, table, name, n_spatial)
        canvas.title(axes[0], axes[0].get_title(loc="left"), _note(table, n_spatial))
    return canvas.finish(figure, axes, show=show, return_fig=return_fig)


def _opened(source: Any, key: str) -> tuple[pd.DataFrame, int | None]:
    """The table and the recommended number of spatial factors, if there is one."""
    if isinstance(source, pd.DataFrame):
        table, chosen = source, source.attrs
    else:
        found = source.uns.get(key, {})
        table, chosen = found.get("table") if isinstance(found, Mapping) else None, found
        if not isinstance(table, pd.DataFrame):
            remedy = "Run `gpnsf.tl.select_n_factors` first, or pass its table"
            raise KeyError(problem(f"a selection in uns[{key!r}]", "none", remedy))
    wanted = ["n_factors", "excess_se", "recommended", *PANELS]
    choices(
        wanted,
        table.columns,
        what="the column",
        where="the table",
        remedy="Pass that of `gpnsf.tl.select_n_factors`",
    )
    return table.sort_values("n_factors"), chosen.get("n_spatial")


def _curves(ax: Axes, table: pd.DataFrame, name: str, *, several: bool) -> None:
    """A line over the numbers of factors, for each number of spatial ones that was asked for."""
    from matplotlib.ticker import MaxNLocator

    groups = list(table.groupby("n_spatial")) if several else [(None, table)]
    colors = canvas.MODALITY_COLORS if several else (COLOR,)
    for i, (n_spatial, part) in enumerate(groups):
        color = colors[i % len(colors)]
        error = part["excess_se"] if name == "excess" else None
        label = None if n_spatial is None else f"{n_spatial} spatial"
        ax.errorbar(
            part["n_factors"],
            part[name],
            error,
            color=color,
            marker="o",
            markersize=3,
            linewidth=1.2,
            capsize=2,
            label=label,
        )
    if several:
        ax.legend(handlelength=1.0, borderaxespad=0.2, labelspacing=0.3)
    if name == "excess":  # what matters happens close to zero
        canvas.square_root(ax)
    ax.set(xlabel="factors", ylim=(None if name == "stability" else 0, None))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=name == "n_spatial"))
    ax.set_title(PANELS[name], loc="left", pad=12)
    canvas.plain(ax)


def _mark(ax: Axes, table: pd.DataFrame, name: str, n_spatial: int | None) -> None:
    """A ring around the recommended point, and a line down to its number."""
    for _, line in table[table["recommended"].astype(bool)].iterrows():
        value = line[name] if name != "n_spatial" or n_spatial is None else n_spatial
        if np.isfinite(value):
            ax.scatter(
                [line["n_factors"]],
                [value],
                s=60,
                facecolors="none",
                edgecolors=MARK,
                linewidths=1.5,
                zorder=3,
                clip_on=False,
            )
        ax.axvline(line["n_factors"], color=MARK, linewidth=0.8, linestyle=":", zorder=0)


def _note(table: pd.DataFrame, n_spatial: int | None) -> str:
    """Recommendation, in words."""
    marked = table[table["recommended"].astype(bool)]
    if marked.empty:
        return "too few counts to tell"
    K = int(marked["n_factors"].iloc[0])
    T = int(marked["n_spatial"].iloc[0] if n_spatial is None else n_spatial)
    return f"recommended: {K}, of which {T} spatial"
