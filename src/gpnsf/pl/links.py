"""Gene-peak links as arcs along the genome."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from gpnsf import genome
from gpnsf.checks import Rule, choices, problem
from gpnsf.io.names import named
from gpnsf.io.tables import takes_tables
from gpnsf.keys import Keys
from gpnsf.pl import canvas
from gpnsf.pl.options import explained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from mudata import MuData

__all__ = ["links"]

WIDTH, HEIGHT = 5.2, 1.9  # inches
POINTS = 41  # of an arc
TICK, STEM, GENE = 0.07, 0.13, 0.24  # below the line of the peaks, as shares of the highest arc
ARROW = 0.03  # length, as a share of the width
FAINT = "0.75"


@explained
@takes_tables
def links(
    data: MuData,
    gene: str,
    *,
    annotation: pd.DataFrame | str | os.PathLike[str] | None = None,
    max_q: float | None = None,
    min_score: float = 0.0,
    rna: str = "rna",
    atac: str = "atac",
    cmap: str | Colormap | None = None,
    key: str = "gpnsf",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the links of a gene as arcs from its start to its peaks.

    Arcs are coloured by score, and the better the score the wider; pairs above ``max_q`` or below
    ``min_score`` have a grey tick in the row of peaks and no arc. The gene lies below its peaks,
    with an arrow from its start along its strand.

    Parameters
    ----------
    data
        MuData with the table of :func:`gpnsf.tl.link_peaks`.
    gene
        Name of the gene.
    annotation
        Places of genes, as in :func:`gpnsf.tl.link_peaks`; None for the columns in ``var`` of
        ``rna``.
    max_q
        Largest q value of an arc; None for no limit.
    min_score
        Least score of an arc.
    rna, atac
        Names of the modalities.
    cmap
        Colours of scores from ``min_score`` to 1.
    key
        Prefix of the slots, ``key_added`` of the fit.
    {shown}

    Returns
    -------
    The axes, or the figure with ``return_fig=True``; None once shown.

    Raises
    ------
    KeyError
        If there are no links, none of this gene, no place for it, or a linked peak is no longer in
        the modality.
    ValueError
        If none of its pairs has peaks on its chromosome.

    Notes
    -----
    Reads ``uns["gpnsf_links"]`` and the places of genes and peaks in ``var``.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> gpnsf.tl.link_peaks(mdata)
    >>> ax = gpnsf.pl.links(mdata, mdata.uns["gpnsf_links"]["gene"][0], show=False)
    >>> ax.get_xlabel()
    'chr1 (Mb)'
    """
    Rule(float, 0.1, low=0, high=1, optional=True).check("max_q", max_q)
    Rule(float, 0.0, low=-1, high=1).check("min_score", min_score)
    place, sites, table = _read(data, gene, annotation, rna, atac, key)
    drawn = (
        (table["score"] >= min_score) & (table["q"] <= (1.0 if max_q is None else max_q))
    ).to_numpy()
    with canvas.style():
        figure, (panel,) = canvas.grid(1, width=WIDTH, height=HEIGHT, ncols=1, ax=ax)
        norm = canvas.norm("linear", min(min_score, 0.99), 1.0)
        _arcs(
            panel,
            table[drawn],
            canvas.colormap(signed=False).reversed() if cmap is None else cmap,
            norm,
        )
        _ticks(panel, table, drawn)
        low, high = _extent(table, place)
        _gene(panel, place, sites, high - low)
        _axis(panel, place, low, high)
        canvas.title(panel, gene, _note(drawn, max_q))
        figure.draw_without_rendering()  # the bar is as high as the panel
        (bar,) = canvas.colorbars([panel])
        bar.set_title("score", fontsize=canvas.SMALL, pad=3)
    return canvas.hand_over(figure, panel, show=show, return_fig=return_fig)


def _read(
    data: MuData,
    gene: str,
    annotation: pd.DataFrame | str | os.PathLike[str] | None,
    rna: str,
    atac: str,
    key: str,
) -> tuple[pd.Series, np.ndarray, pd.DataFrame]:
    """Place of the gene, its start or both its ends, and its pairs.

    Pairs come with the middle of each peak and the start of the gene that the peak is nearer to.
    """
    found = Keys(key).links
    choices([found], data.uns, what="links", where="uns", remedy="Run `gpnsf.tl.link_peaks` first")
    choices(
        [gene], data.uns[found]["gene"].unique(), what="links of the gene", where=f"uns[{found!r}]"
    )
    rna, atac = named(rna, list(data.mod)), named(atac, list(data.mod))
    choices([rna, atac], data.mod, what="modalities", where="the data")
    genes = genome.genes_of(annotation, data.mod[rna].var, where=f"var of {rna!r}")
    choices([gene], genes.index, what="the place of the gene", where="the annotation")
    place, table, (_, sites) = genes.loc[gene], data.uns[found], genome.starts(genes.loc[[gene]])
    table = table[table["gene"] == gene]
    remedy = "Run `gpnsf.tl.link_peaks` again"
    choices(
        table["peak"],
        data.mod[atac].var_names,
        what="linked peaks",
        where=f"modality {atac!r}",
        remedy=remedy,
    )
    peaks = genome.peak_positions(data.mod[atac].var.loc[table["peak"]], where=f"modality {atac!r}")
    here = (peaks["chrom"] == place["chrom"]).to_numpy()
    if not here.any():
        remedy = "Check that the annotation is of the genome of the peaks"
        raise ValueError(
            problem(f"peaks of {gene!r} on {place['chrom']}", f"none of {len(table)}", remedy)
        )
    middle = genome.middle(peaks)[here]
    nearer = np.abs(middle[:, None] - sites).argmin(axis=1)
    return place, sites, table[here].assign(middle=middle, site=sites[nearer])


def _arcs(ax: Axes, table: pd.DataFrame, cmap: str | Colormap, norm: Normalize) -> None:
    """Half ellipses, best on top; far peaks have higher ones."""
    from matplotlib.collections import LineCollection

    table = table.sort_values("score")
    site, reach = table["site"].to_numpy(), (table["middle"] - table["site"]).to_numpy()
    height = np.sqrt(np.abs(reach) / max(np.abs(reach).max(initial=0.0), 1.0))
    angle = np.linspace(0, np.pi, POINTS)
    x = site[:, None] + reach[:, None] * (1 - np.cos(angle)) / 2  # [n, POINTS]
    arcs = LineCollection(
        list(np.stack([x, height[:, None] * np.sin(angle)], axis=2)),
        cmap=cmap,
        norm=norm,
        linewidths=0.5 + 1.5 * np.clip(norm(table["score"].to_numpy()), 0, 1),
        capstyle="round",
    )
    arcs.set_array(table["score"].to_numpy())
    ax.add_collection(arcs, autolim=False)


def _ticks(ax: Axes, table: pd.DataFrame, drawn: np.ndarray) -> None:
    """A tick for each peak, dark under an arc."""
    middle = table["middle"].to_numpy()
    ax.axhline(0, color=FAINT, linewidth=0.6, zorder=0)
    ax.vlines(middle[~drawn], -TICK, 0, colors=FAINT, linewidth=1.2)
    ax.vlines(middle[drawn], -TICK, 0, colors="black", linewidth=1.2)


def _gene(ax: Axes, place: pd.Series, sites: np.ndarray, span: float) -> None:
    """The body of the gene, and a bent arrow from its start along its strand.

    Bare stems where the strand is not known.
    """
    color = canvas.MODALITY_COLORS[0]
    ax.hlines(-GENE, place["start"], place["end"], colors=color, linewidth=3)
    ax.vlines(sites, -GENE, -STEM, colors=color, linewidth=1)
    if place["strand"]:
        ahead = sites[0] + (span if place["strand"] == "+" else -span) * ARROW
        style = {
            "arrowstyle": "-|>",
            "color": color,
            "linewidth": 1,
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 7,
        }
        ax.annotate("", (ahead, -STEM), (sites[0], -STEM), arrowprops=style)


def _extent(table: pd.DataFrame, place: pd.Series) -> tuple[float, float]:
    """Ends of the axis: the peaks and the gene, with a margin."""
    low, high = min(table["middle"].min(), place["start"]), max(table["middle"].max(), place["end"])
    margin = 0.04 * max(high - low, 1000.0)
    return low - margin, high + margin


def _axis(ax: Axes, place: pd.Series, low: float, high: float) -> None:
    """Positions in Mb or, over less than 100 kb, in kb."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    unit, name = (1e6, "Mb") if high - low >= 1e5 else (1e3, "kb")
    ax.set(
        xlim=(low, high), ylim=(-1.35 * GENE, 1.05), yticks=[], xlabel=f"{place['chrom']} ({name})"
    )
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:,.6g}"))
    ax.spines["left"].set_visible(False)
    canvas.plain(ax)


def _note(drawn: np.ndarray, max_q: float | None) -> str:
    """How many peaks have an arc, and why the others have none."""
    return f"{drawn.sum()} of {drawn.size} peaks" + (
        "" if max_q is None else f" with q up to {max_q:g}"
    )
