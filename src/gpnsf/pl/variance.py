"""How much each factor explains of each modality."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpnsf.io import fits
from gpnsf.io.tables import takes_tables
from gpnsf.pl import canvas
from gpnsf.pl.options import explained
from gpnsf.tl.variance import variance_explained as table_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from mudata import MuData

__all__ = ["variance_explained"]

CELL, ROW = 0.36, 0.34  # inches: a factor, a modality
MARGINS = 0.9, 1.25  # inches: beside and around the cells
LETTER, LONGEST = 0.065, 30  # inches of a letter, and letters of a name
DARK = 0.55  # of the colour scale: beyond it, figures are written in dark


@explained
@takes_tables
def variance_explained(
    data: AnnData | MuData,
    *,
    private: float = 0.9,
    cmap: str | None = None,
    key: str = "gpnsf",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw how much each factor explains of each modality, as a table in colours.

    Figures are per cent of the modality's null deviance, colours are relative to the factor that
    explains most of the modality, since modalities differ in how much of them can be explained at
    all. Below a factor that is private to a modality stands its name, as
    :func:`gpnsf.tl.variance_explained` explains it.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    private
        Share from which a factor is called private to a modality.
    cmap
        Colour map; None for magma without its palest end.
    key
        Prefix of the slots, ``key_added`` of the fit.
    {shown}

    Returns
    -------
    The axes, or the figure with ``return_fig=True``; None once shown.

    Raises
    ------
    KeyError
        If the object has no such fit.
    ValueError
        If ``private`` is not between 1/2 and 1.

    Notes
    -----
    Reads ``uns["gpnsf"]["variance_explained"]``.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> ax = gpnsf.pl.variance_explained(mdata, show=False)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['rna', 'atac']
    """
    fit = fits.find(data, key)
    table = table_of(data, private=private, key=key)
    explained = table["explained"].to_numpy().reshape(len(fit.modalities), len(fit.names))
    rows, columns = [_short(name) for name in fit.modalities], _labels(table, len(fit.names))
    margins = [
        max(least, 0.4 + LETTER * max(map(len, names)))
        for least, names in zip(MARGINS, (rows, columns), strict=True)
    ]
    width, height = margins[0] + CELL * len(columns), margins[1] + ROW * len(rows)
    with canvas.style():
        figure, axes = canvas.grid(1, width=width, height=height, ncols=1, ax=ax)
        _cells(axes[0], explained, cmap or canvas.colormap(signed=False))
        axes[0].set_yticks(np.arange(len(rows)), rows)
        axes[0].set_xticks(np.arange(len(columns)), columns, rotation=90)
        canvas.plain(axes[0])
        axes[0].tick_params(length=0)
        axes[0].spines[:].set_visible(False)
        canvas.title(axes[0], "deviance explained", "per cent of each modality")
    return canvas.hand_over(figure, axes[0], show=show, return_fig=return_fig)


def _cells(ax: Axes, explained: np.ndarray, cmap: str | Colormap) -> None:
    """Colours relative to the largest value of a row, and the values in per cent."""
    top = explained.max(axis=1, keepdims=True)
    relative = np.divide(explained, top, out=np.zeros_like(explained), where=top > 0).clip(0, 1)
    ax.imshow(relative, cmap=cmap, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(100 * explained):
        text = f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
        color = "0.1" if relative[row, column] > DARK else "1.0"
        ax.text(
            column, row, text, ha="center", va="center", fontsize=canvas.SMALL - 0.5, color=color
        )


def _labels(table: pd.DataFrame, n_factors: int) -> list[str]:
    """Names of the factors, and the modality that has one for itself."""
    first = table.iloc[:n_factors]
    return [
        f"{_short(name)} ({_short(owner)})" if owner else _short(name)
        for name, owner in zip(first["factor"], first["private_to"], strict=True)
    ]


def _short(name: str) -> str:
    """A long name without its middle."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 + 1 :]}"
