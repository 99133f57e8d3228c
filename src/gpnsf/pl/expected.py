"""Observed values beside those that the fit expects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpnsf.checks import choices, problem
from gpnsf.core.families import FAMILIES
from gpnsf.io import fits
from gpnsf.io.measured import compare, find_features
from gpnsf.io.ranked import ranked
from gpnsf.io.tables import takes_tables
from gpnsf.pl import canvas, maps, sections
from gpnsf.pl.options import explained

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from mudata import MuData

    from gpnsf.io.fits import Fit

__all__ = ["observed_expected"]

PANELS = ("observed", "expected", "calibration")
BINS, LEAST = 8, 5  # groups of a calibration, and observations in one of them


@explained
@takes_tables
def observed_expected(
    data: AnnData | MuData,
    *,
    features: str | Sequence[str] | None = None,
    modality: str | Sequence[str] | None = None,
    panels: str | Sequence[str] | None = None,
    scale: str = "linear",
    quantiles: tuple[float, float] = (0.005, 0.99),
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
    """Draw observed features beside what the fit expects, and whether the two agree on average.

    Counts are drawn per size factor, beside rates; open chromatin as 0 and 1, beside its
    probability at the size factor of the cell. Both maps have the same colours, except for open
    chromatin, whose probabilities would all look alike. The third panel divides the observations
    into up to eight groups of equal expected value: bars are two standard errors of the observed
    mean. The fit has seen these values, so agreement says that it can describe them, not that it
    would predict new ones.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    features
        Names of the features, in this order; None for the best one of each factor in the first
        modality.
    modality
        Names of the modalities that features are taken from; None for all.
    panels
        "observed", "expected", "calibration", or several of them; None for all.
    scale
        How values become colours: "linear", "sqrt" or "log".
    quantiles
        Quantiles of the values that are the ends of the colours.
    {place}
    {spots}
    ncols
        Panels in a row; None for one or two features a row.
    cmap
        Colour map; None for magma without its palest end, or "RdBu_r" around zero for signed
        values.
    key
        Prefix of the slots, ``key_added`` of the fit.
    {shown}

    Returns
    -------
    The axes (a list if there are several), or the figure with ``return_fig=True``; None once shown.

    Raises
    ------
    KeyError
        If the object has no such fit, feature, modality, panel, slice or image.
    ValueError
        If an option is unknown, a feature has the name of another one, or ``ax`` is given for more
        than one panel.

    Notes
    -----
    Reads the counts that the fit has read, ``obsm["X_gpnsf"]``, ``varm["gpnsf_loadings"]``,
    ``var["gpnsf_background"]``, after a fit with ``batch_key`` also ``varm["gpnsf_batch"]``,
    the coordinates and ``uns["spatial"]``.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> axes = gpnsf.pl.observed_expected(mdata, features=mdata["rna"].var_names[0], show=False)
    >>> [ax.get_xlabel() for ax in axes]
    ['', '', 'expected']
    """
    fit = fits.find(data, key)
    places = _places(fit, features, fit.modality_names(modality))
    chosen = _chosen(panels)
    where = sections.section(
        fit,
        library=library,
        img_key=img_key,
        alpha_img=alpha_img,
        crop_coord=crop_coord,
        size=size,
        alpha=alpha,
    )
    ncols = _columns(len(places), len(chosen), where, ncols)
    nrows = -(-len(places) * len(chosen) // ncols)
    width, height = where.panel(ncols, nrows=nrows)
    wide = max(width, 1.3) if "calibration" in chosen else width
    with canvas.style():
        n_panels = len(places) * len(chosen)
        figure, axes = canvas.grid(
            n_panels, width=wide, height=max(height, 1.35), ncols=ncols, ax=ax
        )
        drawn, mapped, barred = iter(axes), [], []
        for values in _compared(fit, places, where.rows):
            for panel in chosen:
                place = next(drawn)
                if panel == "calibration":
                    _calibration(place, values)
                else:
                    norm, signed = values.norm(panel, scale, quantiles)
                    colors = cmap or canvas.colormap(signed=signed)
                    maps.draw(
                        place, where, getattr(values, panel), scale=scale, cmap=colors, norm=norm
                    )
                    mapped.append(place)
                    barred += [place] if panel == "expected" or "expected" not in chosen else []
                maps.title(place, values.name, values.unit(panel), width=wide - 0.2)
        maps.bars(barred, where)
        sections.name_slices(mapped, where)
    return canvas.finish(figure, axes, show=show, return_fig=return_fig)


@dataclass(frozen=True)
class _Feature:
    """One feature on the observations that are drawn."""

    name: str
    modality: str  # empty where there is only one
    likelihood: str
    observed: np.ndarray  # [n], NaN where there is no cell
    expected: np.ndarray  # [n]
    weight: np.ndarray  # [n]

    @property
    def binary(self) -> bool:
        """Whether what was observed is 0 or 1."""
        return FAMILIES[self.likelihood].binary

    def norm(
        self, panel: str, scale: str, quantiles: tuple[float, float]
    ) -> tuple[Normalize, bool]:
        """Colours of a map, and whether they have two signs.

        Those of both maps are the same unless values are 0 and 1.
        """
        shown = [self.expected] if self.binary else [self.observed, self.expected]
        known = [values[np.isfinite(values)] for values in shown]
        if (self.binary and panel == "observed") or not known[0].size:
            return canvas.norm(scale, 0.0, 1.0), False
        low, high = np.array([canvas.limits(values, quantiles=quantiles) for values in known]).T
        return canvas.norm(scale, float(low.min()), float(high.max())), bool(low.min() < 0)

    def unit(self, panel: str) -> str:
        """What a panel shows; the first of a feature names its modality."""
        if panel == "calibration":
            return "calibration ± 2 s.e."
        unit = "value" if FAMILIES[self.likelihood].signed else "per size factor"
        if panel == "expected":
            return f"expected {'probability' if self.binary else unit}"
        unit = "open or not" if self.binary else unit
        return f"{self.modality} · {unit}" if self.modality else unit


def _places(
    fit: Fit, features: str | Sequence[str] | None, modalities: list[str]
) -> list[tuple[str, int]]:
    """Modality and position of the features.

    Those named, or the best one of each factor that has any.
    """
    if features is None:
        name = modalities[0]
        tables = [ranked(fit, name, k, n_features=1) for k in range(len(fit.names))]
        places = [(name, int(j)) for j in dict.fromkeys(j for table in tables for j in table.index)]
    else:
        places = find_features(
            fit, [features] if isinstance(features, str) else list(map(str, features)), modalities
        )
    if not places:
        raise ValueError(problem("at least one feature", "none", "Pass names in `features`"))
    return places


def _chosen(panels: str | Sequence[str] | None) -> list[str]:
    """Names of the panels."""
    wanted = (
        list(PANELS) if panels is None else [panels] if isinstance(panels, str) else list(panels)
    )
    choices(wanted, PANELS, what="panels", where="the figure")
    if not wanted:
        raise ValueError(
            problem("`panels` to name at least one", "none", "Pass names, or None for all")
        )
    return wanted


def _columns(n_features: int, n_panels: int, where: sections.Section, ncols: int | None) -> int:
    """Panels in a row: those asked for, or one or two features."""
    if ncols is not None:
        return canvas.columns(n_features * n_panels, where.panel, ncols=ncols)
    return n_panels * (2 if n_features > 1 and n_panels < 4 else 1)


def _compared(fit: Fit, places: list[tuple[str, int]], rows: np.ndarray) -> Iterator[_Feature]:
    """The features; each modality is read once."""
    wanted = {name: [j for modality, j in places if modality == name] for name, _ in places}
    compared = {name: compare(fit, name, positions) for name, positions in wanted.items()}
    for name, position in places:
        found, column = compared[name], wanted[name].index(position)
        values = (found.observed[rows, column], found.expected[rows, column], found.weight[rows])
        title = str(fit.modalities[name].var_names[position])
        modality = name if len(fit.modalities) > 1 else ""
        yield _Feature(title, modality, found.likelihood, *values)


def _calibration(ax: Axes, feature: _Feature) -> None:
    """Means of groups of equal expected value, weighted by size factors."""
    known = np.isfinite(feature.observed)
    observed = feature.observed[known]
    expected = feature.expected[known]
    weight = feature.weight[known]
    ax.set(box_aspect=1, anchor="NW")
    ax.set_xlabel("expected", fontsize=canvas.SMALL, labelpad=1)
    ax.set_ylabel("observed", fontsize=canvas.SMALL, labelpad=1)
    canvas.plain(ax)
    ax.locator_params(nbins=3)
    if not observed.size:
        return
    groups = np.array_split(
        np.argsort(expected, kind="stable"), min(BINS, max(observed.size // LEAST, 1))
    )
    mean = np.array(
        [
            [np.average(values[g], weights=weight[g]) for g in groups]
            for values in (expected, observed)
        ]
    )
    spread = [
        np.average((observed[g] - m) ** 2, weights=weight[g])
        for g, m in zip(groups, mean[1], strict=True)
    ]
    error = np.sqrt(np.array(spread) / [g.size for g in groups])
    ends = np.array([min(1.08 * mean.min(), 0.0), max(1.08 * mean.max(), 1e-9)])
    ax.plot(ends, ends, color="0.7", linewidth=0.8, zorder=1)
    color = canvas.MODALITY_COLORS[0]
    ax.errorbar(
        mean[0], mean[1], yerr=2 * error, color=color, fmt="o", markersize=2.5, linewidth=0.8
    )
    ax.set(xlim=ends, ylim=(min(ends[0], (mean[1] - 2 * error).min()) if ends[0] < 0 else 0, None))
