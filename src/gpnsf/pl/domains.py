"""Categories in space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gpnsf.checks import choices, column, problem
from gpnsf.io import fits
from gpnsf.io.tables import takes_tables
from gpnsf.palette import category_colors, hex_colors
from gpnsf.pl import canvas, sections
from gpnsf.pl.options import explained

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mudata import MuData

    from gpnsf.io.fits import Fit

__all__ = ["domains"]

MISSING = "#D9D9D9"


@explained
@takes_tables
def domains(
    data: AnnData | MuData,
    *,
    key_added: str = "gpnsf_domain",
    library: str | Sequence[str] | None = None,
    img_key: str | None = "auto",
    alpha_img: float = 1.0,
    crop_coord: sections.Crop = None,
    size: float = 1.0,
    alpha: float = 1.0,
    palette: Sequence[str] | None = None,
    key: str = "gpnsf",
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the domains of :func:`gpnsf.tl.domains`, or any other categories, over the section.

    The legend, beside the panel, gives the number of observations of each category that are drawn.
    Slices that overlap are set side by side.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    key_added
        Column of ``obs``: categories, strings or integers.
    {place}
    {spots}
    palette
        A colour for each category; None for those in ``uns[f"{key_added}_colors"]``, else twenty
        that are told apart with any colour vision.
    key
        Prefix of the slots, ``key_added`` of the fit.
    {shown}

    Returns
    -------
    The axes, or the figure with ``return_fig=True``; None once shown.

    Raises
    ------
    KeyError
        If the object has no such fit, column, slice or image.
    ValueError
        If the palette has fewer colours than there are categories, or the column holds real
        numbers.

    Notes
    -----
    Reads ``obs[key_added]``, ``uns[f"{key_added}_colors"]``, the coordinates and
    ``uns["spatial"]``.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, split="assumed", progress=False)
    >>> gpnsf.tl.domains(mdata, n_domains=3)
    >>> gpnsf.pl.domains(mdata, show=False).get_legend().get_title().get_text()
    'gpnsf_domain'
    """
    fit = fits.find(data, key)
    labels, stored = _categories(fit, key_added)
    where = sections.section(
        fit,
        library=library,
        img_key=img_key,
        alpha_img=alpha_img,
        crop_coord=crop_coord,
        size=size,
        alpha=alpha,
    )
    drawn = labels[where.rows]
    colors = _colors(labels, stored, palette)
    entries = _entries(drawn, colors)
    per_column = max(8, int(np.ceil(np.sqrt(8 * len(entries)))))
    columns = -(-len(entries) // per_column)
    spare = 0.1 + max(
        columns * (0.5 + 0.055 * max(len(text) for text, _ in entries)),
        0.2 + 0.065 * len(key_added),
    )
    width, height = _panel(where, spare, len(colors))
    with canvas.style():
        figure, axes = canvas.grid(1, width=width, height=height, ncols=1, ax=ax, spare=spare)
        _draw(axes[0], where, drawn, colors)
        canvas.legend(axes[0], entries, title=key_added, ncols=columns)
        sections.name_slices(axes, where)
    return canvas.hand_over(figure, axes[0], show=show, return_fig=return_fig)


def _categories(fit: Fit, name: str) -> tuple[pd.Categorical, dict[str, str]]:
    """The column [N], its categories in the order of their holder, and their stored colours."""
    mods = [*fit.modalities.values(), *getattr(fit.data, "mod", {}).values()]
    known = [*fit.data.obs, *(own for mod in mods for own in mod.obs)]
    remedy = f"Run `gpnsf.tl.domains(data, n_domains='auto', key_added={name!r})` first, or name a column of categories"
    choices([name], known, what="`key_added`", where="obs", remedy=remedy)
    inside = name in fit.data.obs  # the object then counts alone
    holders = [fit.data] if inside else [mod for mod in mods if name in mod.obs]
    texts = [_texts(holder.obs, name) for holder in holders]
    colors: dict[str, str] = {}
    for holder, own in zip(holders, texts, strict=True):
        stored = holder.uns.get(f"{name}_colors", ())
        if len(stored) >= len(own):
            colors = dict(zip(own.values(), hex_colors(stored), strict=False)) | colors
    values = pd.Series(fit.data.obs[name].to_numpy() if inside else fit.obs(name)).astype(object)
    texts_of = {value: text for own in texts for value, text in own.items()}
    return pd.Categorical(
        values.map(texts_of), categories=list(dict.fromkeys(texts_of.values()))
    ), colors


def _texts(obs: pd.DataFrame, name: str) -> dict[Any, str]:
    """The categories of a column as text, in their order; without one, in that of the alphabet."""
    values = column(obs, name, where="obs")
    rule = f"categories in obs[{name!r}]"
    if pd.api.types.is_float_dtype(values):
        remedy = "Name a column of categories, such as that of `gpnsf.tl.domains`"
        raise ValueError(problem(rule, f"dtype {values.dtype}", remedy))
    if not isinstance(values.dtype, pd.CategoricalDtype):
        return {value: str(value) for value in sorted(values.dropna().unique(), key=str)}
    texts = {value: str(value) for value in values.cat.categories}
    if len(set(texts.values())) < len(texts):
        remedy = "Convert the column with .astype(str), or rename one of the two"
        raise ValueError(problem(f"{rule} that differ as text", f"{list(texts)}", remedy))
    return texts


def _colors(
    labels: pd.Categorical, stored: dict[str, str], palette: Sequence[str] | None
) -> list[str]:
    """A colour for each category: those given, else those stored with the column, else our own."""
    number = len(labels.categories)
    if palette is not None:
        if len(palette) < number:
            raise ValueError(
                problem(
                    f"`palette` with {number} colours",
                    f"{len(palette)}",
                    "Pass one for each category, or None",
                )
            )
        return hex_colors(palette[:number])
    if set(labels.categories) <= stored.keys():
        return [stored[name] for name in labels.categories]
    return category_colors(number)


def _entries(drawn: pd.Categorical, colors: list[str]) -> list[tuple[str, str]]:
    """Text and colour of each line of the legend: categories that occur, then what is missing."""
    counts = np.bincount(drawn.codes[drawn.codes >= 0], minlength=len(colors))
    entries = [
        (f"{name} ({count:,})", color)
        for name, count, color in zip(drawn.categories, counts, colors, strict=True)
        if count
    ]
    missing = int((drawn.codes < 0).sum())
    return entries + ([(f"missing ({missing:,})", MISSING)] if missing else [])


def _panel(where: sections.Section, spare: float, n_categories: int) -> tuple[float, float]:
    """Width and height in inches of the panel, beside which the legend fits the page."""
    if where.coords.shape[1] == 1:
        return canvas.PAGE - spare, 0.2 * (n_categories + 1) + 0.5
    width = min(canvas.PAGE - spare, 4.2 / where.aspect, 4.2)
    return width, width * where.aspect + 0.15


def _draw(ax: Axes, where: sections.Section, drawn: pd.Categorical, colors: list[str]) -> None:
    """Spots in the colours of their categories; of a single coordinate, one line a category."""
    from matplotlib.colors import ListedColormap, Normalize

    cmap, norm = ListedColormap([*colors, MISSING]), Normalize(-0.5, len(colors) + 0.5)
    codes = np.where(drawn.codes < 0, len(colors), drawn.codes)
    if where.coords.shape[1] > 1:
        sections.spots(ax, where, codes, cmap=cmap, norm=norm)
        return
    ax.scatter(
        where.coords[:, 0], codes, c=codes, s=8, marker="|", linewidths=1, cmap=cmap, norm=norm
    )
    ax.set(ylim=(codes.max() + 0.5, -0.5), yticks=[], xlabel="position")
    canvas.plain(ax)
