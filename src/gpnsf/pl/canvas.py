"""Parts that all figures share: grids of panels, titles, colours and bars, and show or return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from gpnsf.checks import problem
from gpnsf.io.names import kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

__all__ = [
    "BAR",
    "GREY",
    "MODALITY_COLORS",
    "PAGE",
    "SMALL",
    "TALL",
    "TEXT",
    "colorbars",
    "colormap",
    "columns",
    "finish",
    "font_style",
    "grid",
    "hand_over",
    "legend",
    "limits",
    "norm",
    "opaque",
    "plain",
    "square_root",
    "style",
    "tidy_bar",
    "title",
]

T = TypeVar("T")

PAGE, TALL = 7.2, 9.5  # inches: width and height of a journal page
TEXT, SMALL = 8.0, 7.0  # points
GREY = "0.35"
BAR = 0.38  # inches: a colour bar and its labels
# Okabe & Ito: told apart with any colour vision
MODALITY_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@contextmanager
def style() -> Iterator[None]:
    """Fonts and lines of a printed figure; the user's own settings hold again afterwards.

    All but one: the first figure of a notebook loads its backend, which from then on shows the figures that cells leave.
    """
    import matplotlib as mpl

    with mpl.rc_context(
        {
            "font.size": TEXT,
            "axes.titlesize": TEXT,
            "axes.labelsize": TEXT,
            "axes.linewidth": 0.6,
            "legend.fontsize": SMALL,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "text.parse_math": False,  # a dollar sign in the name of a feature is one
        }
    ):
        yield
        shows = mpl.is_interactive()
    mpl.interactive(shows)


def plain(ax: Axes) -> None:
    """Small thin ticks, set on the axes: later ones would follow the global settings."""
    ax.tick_params(which="both", labelsize=SMALL, width=0.6, length=2.5, pad=2)


def square_root(ax: Axes) -> None:
    """A y axis on which what is near zero can be told apart, and which says so."""
    ax.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    ax.set_ylabel("square-root scale", fontsize=SMALL - 0.5, color=GREY)


def columns(
    n_panels: int,
    size: Callable[[int], tuple[float, float]],
    *,
    ncols: int | None = None,
    target: float = 1.4,
    most: int = 8,
) -> int:
    """The columns asked for, or those near the shape ``target`` (width by height) with few gaps.

    ``size(ncols)`` is the width and height in inches of a panel among that many columns.
    """
    if ncols is not None:
        if ncols < 1:
            raise ValueError(
                problem("`ncols` of at least 1", str(ncols), "Pass a positive integer or None")
            )
        return min(ncols, n_panels)
    options = np.arange(1, min(n_panels, max(most, 1)) + 1)
    rows = -(-n_panels // options)
    width, height = np.array([size(int(ncols)) for ncols in options]).T
    empty = (options * rows - n_panels) / n_panels
    cost = np.abs(np.log(options * width / (rows * height) / target)) + 1.5 * empty
    return int(options[np.argmin(cost)])


def grid(
    n_panels: int,
    *,
    width: float,
    height: float,
    ncols: int,
    ax: Axes | None = None,
    spare: float = 0.0,
    gap: float = 0.03,
) -> tuple[Figure, list[Axes]]:
    """A figure of ``n_panels`` axes of a size in inches, or the axes handed in; none left empty.

    ``spare`` inches are added on the right, for a legend or a shared colour bar, and ``gap`` on both sides of a panel.
    """
    from matplotlib import pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if ax is not None:
        if n_panels != 1:
            remedy = "Name a single one, or leave `ax` out"
            raise ValueError(problem("one panel for `ax`", f"{n_panels} panels", remedy))
        return ax.figure.canvas.figure, [ax]  # the whole figure, also of axes in a subfigure
    nrows = -(-n_panels // ncols)
    layout = ConstrainedLayoutEngine(w_pad=gap, h_pad=0.03, wspace=0.02, hspace=0.02)
    size = (ncols * width + spare, nrows * height)
    figure, axes = plt.subplots(nrows, ncols, figsize=size, squeeze=False, layout=layout)
    for unused in axes.flat[n_panels:]:
        unused.remove()
    return figure, list(axes.flat[:n_panels])


def finish(
    figure: Figure, axes: Sequence[Axes], *, show: bool | None, return_fig: bool
) -> Axes | list[Axes] | Figure | None:
    """Show the figure or hand it over, a single panel without a list around it."""
    return hand_over(
        figure, axes[0] if len(axes) == 1 else list(axes), show=show, return_fig=return_fig
    )


def hand_over(
    figure: Figure, drawn: T, *, show: bool | None, return_fig: bool
) -> T | Figure | None:
    """Show the figure or hand it over; None shows it in a window or a notebook, and hands it over elsewhere."""
    from matplotlib import pyplot as plt
    from matplotlib.backends.registry import BackendFilter, backend_registry

    # a layout settles only once all titles and bars have been drawn
    figure.draw_without_rendering()
    if show is None:
        headless = plt.get_backend().lower() in backend_registry.list_builtin(
            BackendFilter.NON_INTERACTIVE
        )
        show = not headless and not return_fig
    if show:
        plt.show()
    return figure if return_fig else None if show else drawn


def limits(
    values: np.ndarray,
    *,
    ends: tuple[float | None, float | None] = (None, None),
    quantiles: tuple[float, float],
) -> tuple[float, float]:
    """Colour limits: given ends or quantiles, around zero if there are negative values."""
    _check_limits(ends, quantiles)
    low, high = np.nanquantile(values, quantiles)
    if np.nanmin(values) < 0:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    low, high = (
        default if end is None else end for default, end in zip((low, high), ends, strict=True)
    )
    return float(low), float(high if high > low else low + max(abs(low), 1.0) * 1e-3)


def _check_limits(ends: tuple[float | None, float | None], quantiles: object) -> None:
    """Check that the ends of the colours that a user gives are a lower and an upper one."""
    known = [end for end in ends if end is not None]
    checked = (
        ("`vmin` and `vmax`", known, len(known), (-np.inf, np.inf), "vmin=0, vmax=1"),
        ("`quantiles`", quantiles, 2, (0, 1), "quantiles=(0.005, 0.995)"),
    )
    for what, values, size, (low, high), example in checked:
        numbers = np.asarray(values)
        is_sound = bool(numbers.shape == (size,) and (size == 0 or numbers.dtype.kind in "iuf"))
        is_sound = is_sound and bool(np.isfinite(numbers).all() and (np.diff(numbers) > 0).all())
        if not (is_sound and (low <= numbers).all() and (numbers <= high).all()):
            rule = f"{what} to be finite and rising" + (", from 0 to 1" if high == 1 else "")
            raise ValueError(problem(rule, repr(values), f"Pass for example {example}"))


def norm(scale: str, low: float, high: float) -> Normalize:
    """Map from values to colours; bars stay labelled in the values themselves."""
    from matplotlib.colors import LogNorm, Normalize, PowerNorm

    if scale == "linear":
        return Normalize(low, high)
    if scale not in ("sqrt", "log"):
        raise ValueError(
            problem("`scale` to be 'linear', 'sqrt' or 'log'", repr(scale), "Pass one of the three")
        )
    if low < 0:
        rule = f"nonnegative values for scale={scale!r}"
        raise ValueError(
            problem(rule, f"lower colour limit {low:.3g}", "Pass scale='linear' or vmin=0")
        )
    # four decades are what the eye tells apart
    return PowerNorm(0.5, low, high) if scale == "sqrt" else LogNorm(max(low, high * 1e-4), high)


def colormap(signed: bool) -> Colormap:
    """Magma without its palest end, lost on paper; red and blue around zero for signed values."""
    import matplotlib as mpl
    from matplotlib.colors import ListedColormap

    return (
        mpl.colormaps["RdBu_r"]
        if signed
        else ListedColormap(mpl.colormaps["magma"](np.linspace(0.03, 0.93, 256)))
    )


def font_style(modality: str, italic: str | Sequence[str]) -> Literal["italic", "normal"]:
    """Style of the names of features: italic in modalities of these names or kinds."""
    wanted = [italic] if isinstance(italic, str) else list(italic)
    return "italic" if modality in wanted or kind(modality) in wanted else "normal"


def title(ax: Axes, name: str, note: str = "") -> None:
    """A name above a panel, a note in small print below it."""
    ax.set_title(name, loc="left", pad=12 if note else 4)
    text = ax.annotate(note, (0, 1), (0, 2.5), xycoords="axes fraction", textcoords="offset points")
    text.set(va="bottom", fontsize=SMALL - 0.5, color=GREY)


def legend(
    ax: Axes, entries: Iterable[tuple[str, str]], *, title: str | None = None, ncols: int = 1
) -> None:
    """Names and colours of categories, beside the panel."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=5, color=color, label=text)
        for text, color in entries
    ]
    ax.legend(
        handles=handles,
        title=title,
        title_fontsize=TEXT,
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0,
        ncols=ncols,
        handletextpad=0.2,
        columnspacing=0.8,
        labelspacing=0.35,
    )


def colorbars(axes: Sequence[Axes]) -> list[Axes]:
    """A slim bar beside each panel, inside its place in the grid: panels keep their shape."""
    from matplotlib.transforms import BboxTransformTo, ScaledTranslation

    figure, bars = axes[0].figure, []
    for ax in axes:
        height = ax.get_window_extent().height / figure.dpi
        length = min(max(0.75 * height, 0.3), 1.1)
        corner = ScaledTranslation(
            1, 0.5, BboxTransformTo(ax.bbox)
        )  # in inches from the middle right
        bar = ax.inset_axes(
            (0.04, -length / 2, 0.06, length), transform=figure.dpi_scale_trans + corner
        )
        figure.colorbar(opaque(ax.collections[0]), cax=bar)
        tidy_bar(bar, short=length < 0.5)
        bars.append(bar)
    return bars


def opaque(drawn: ScalarMappable) -> ScalarMappable:
    """The colours of what is drawn, for a bar beside spots that an image shines through."""
    from matplotlib.cm import ScalarMappable

    return ScalarMappable(drawn.norm, drawn.cmap)


def tidy_bar(bar: Axes, *, short: bool = False) -> None:
    """Two or three ticks in plain numbers and no frame; a short bar is labelled at its ends."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    low, high = bar.get_ylim()
    if _plain_number(low) == _plain_number(high):
        bar.yaxis.set_major_locator(FixedLocator([(low + high) / 2]))
    elif short:
        bar.yaxis.set_major_locator(FixedLocator([low, high]))
    elif bar.get_yscale() == "log":
        bar.yaxis.set_major_locator(FixedLocator(np.geomspace(low, high, 3).tolist()))
    else:
        bar.yaxis.set_major_locator(MaxNLocator(3))
    if bar.get_yscale() not in ("linear", "log"):
        bar.set_title("√ scale", loc="left", fontsize=SMALL - 1.5, color=GREY, pad=2)
    bar.yaxis.set_minor_locator(NullLocator())
    bar.yaxis.set_major_formatter(
        lambda value, _: _plain_number(0.0 if abs(value) < 1e-3 * high else value)
    )
    bar.tick_params(labelsize=SMALL - 1, width=0.5, length=1.5, pad=1.5)
    bar.spines[:].set_visible(False)


def _plain_number(value: float) -> str:
    """Two digits, or all of them in front of the point, without an exponent where that is short."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e5 else f"{value:.2g}"
