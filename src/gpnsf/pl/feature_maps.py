"""Features in space, alone or beside the factor that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from gpnsf.checks import choices, problem
from gpnsf.io import fits
from gpnsf.io.chosen import Factors
from gpnsf.io.measured import compare, find_features
from gpnsf.io.ranked import ranked, shared_out
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

__all__ = ["feature_maps"]

WORDS = 1.45  # inches that a note needs
FACTOR = ""  # in place of a modality: the panel of a factor
Place = tuple[str, int]  # modality and position of a feature, or FACTOR and position of a factor


@explained
@takes_tables
def feature_maps(
    data: AnnData | MuData,
    *,
    features: str | Sequence[str] | None = None,
    factors: Factors = None,
    n_features: int = 4,
    modality: str | Sequence[str] | None = None,
    method: str = "posterior",
    layer: str | None = None,
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
    """Draw features as they were observed.

    The best of each factor in a row beside it, or named ones alone.

    Unless a layer is named, counts are drawn per size factor, open chromatin as open (1) or not
    (0), real values as they are. Observations that lack a modality are grey. The line below the
    name of a feature says how much of its expected signal comes from the factor.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    features
        Names of features to draw without factors, in this order; None for the best of each factor.
    factors
        Names of the factors, one row each; None for all, or for none where ``features`` are named.
    n_features
        Features of a factor, shared out evenly among the modalities.
    modality
        Names of the modalities that features are taken from; None for all.
    method
        How features are ranked, as in :func:`gpnsf.tl.rank_features`.
    layer
        Layer of the modalities whose values are drawn as they are, or "X" for ``X`` as it is now;
        None for the counts that the fit has read.
    scale
        How values become colours: "linear", "sqrt" or "log".
    quantiles
        Quantiles of the values that are the ends of the colours. Features with fewer nonzero values
        get their largest one.
    {place}
    {spots}
    ncols
        Panels in a row, for ``features``; rows of factors are as long as they have features.
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
        If the object has no such fit, factor, feature, modality, layer, slice or image.
    ValueError
        If an option is unknown, both ``features`` and ``factors`` are named, a feature has the name
        of another one, or ``ax`` is given for more than one panel.

    Notes
    -----
    Reads the counts that the fit has read or a layer, ``obsm["X_gpnsf"]``, what
    :func:`gpnsf.tl.rank_features` reads, the coordinates and ``uns["spatial"]``.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> axes = gpnsf.pl.feature_maps(mdata, features=list(mdata["rna"].var_names[:3]), show=False)
    >>> len(axes)
    3
    """
    fit = fits.find(data, key)
    rows = _rows(fit, features, factors, fit.modality_names(modality), n_features, method)
    if features is None and ncols is not None:
        remedy = "Leave it out, or name `features`"
        raise ValueError(
            problem("`ncols` only with `features`", f"ncols={ncols} for rows of factors", remedy)
        )
    where = sections.section(
        fit,
        library=library,
        img_key=img_key,
        alpha_img=alpha_img,
        crop_coord=crop_coord,
        size=size,
        alpha=alpha,
    )
    if features is not None:
        ncols = canvas.columns(len(rows[0]), where.panel, ncols=ncols)
        rows = [rows[0][start : start + ncols] for start in range(0, len(rows[0]), ncols)]
    panels = _panels(fit, rows, layer)
    across = max(map(len, rows))
    width, height = where.panel(across, nrows=len(rows))
    width = max(width, min(canvas.PAGE / across, WORDS))
    with canvas.style():
        whole = len(rows) * across if len(rows) > 1 else len(rows[0])
        figure, axes = canvas.grid(whole, width=width, height=height, ncols=across, ax=ax)
        axes = _filled(axes, rows, across)
        for place, panel in zip(axes, panels, strict=True):
            values, norm = panel.values[where.rows], panel.norm(where.rows, scale, quantiles)
            colors = cmap or canvas.colormap(signed=np.nanmin(panel.values) < 0)
            maps.draw(place, where, values, scale=scale, cmap=colors, norm=norm)
            maps.title(place, panel.name, panel.note, width=width)
        maps.bars(
            [place for place, panel in zip(axes, panels, strict=True) if not panel.binary], where
        )
        sections.name_slices(axes, where)
    return canvas.finish(figure, axes, show=show, return_fig=return_fig)


@dataclass(frozen=True)
class _Panel:
    """A factor or a feature."""

    name: str
    note: str
    values: np.ndarray  # [N], NaN where there is no cell
    binary: bool = False

    def norm(self, rows: np.ndarray, scale: str, quantiles: tuple[float, float]) -> Normalize:
        """Colours of the rows that are drawn."""
        values = self.values[rows]
        values = values[np.isfinite(values)]
        if self.binary or not values.size:
            return canvas.norm(scale, 0.0, 1.0)
        low, high = canvas.limits(values, quantiles=quantiles)
        rare = (
            values.min() >= 0 and np.quantile(values, quantiles[1]) <= values.min() < values.max()
        )
        return canvas.norm(scale, low, float(values.max()) if rare else high)


def _rows(
    fit: Fit,
    features: str | Sequence[str] | None,
    factors: Factors,
    modalities: list[str],
    n_features: int,
    method: str,
) -> list[list[Place]]:
    """Panels of each row: named features in a single row, or factors with their best features."""
    if features is not None:
        if factors is not None:
            remedy = "Name one of them"
            raise ValueError(
                problem(
                    "`features` or `factors`", f"features={features!r}, factors={factors!r}", remedy
                )
            )
        named = [features] if isinstance(features, str) else [str(name) for name in features]
        if not named:
            raise ValueError(
                problem("`features` to name at least one", "none", "Pass names, or None")
            )
        return [find_features(fit, named, modalities)]
    quotas = shared_out(n_features, modalities)
    rows = []
    for factor in fit.factor_indices(factors):
        row = [(FACTOR, int(factor))]
        for name, quota in quotas.items():
            table = ranked(fit, name, int(factor), n_features=quota, method=method)
            row += [(name, int(j)) for j in table.index]
        rows.append(row)
    return rows


def _panels(fit: Fit, rows: list[list[Place]], layer: str | None) -> list[_Panel]:
    """Names and values of all panels, row after row; each modality is read once."""
    measured: dict[Place, _Panel] = {}
    for name in fit.modalities:
        wanted = list(
            dict.fromkeys(
                position for row in rows for modality, position in row if modality == name
            )
        )
        if wanted:
            names = fit.modalities[name].var_names
            note, binary, columns = _measured(fit, name, wanted, layer)
            for position, values in zip(wanted, columns, strict=True):
                title = str(names[position])
                measured[name, position] = _Panel(title, _of(fit, name) + note, values, binary)
    return [_panel(fit, place, row[0], measured) for row in rows for place in row]


def _measured(
    fit: Fit, modality: str, positions: list[int], layer: str | None
) -> tuple[str, bool, np.ndarray]:
    """Unit of features, whether they are 0 or 1, and their values [F, N], NaN without a cell."""
    if layer is None:
        compared = compare(fit, modality, positions)
        unit = "open" if compared.binary else "per size factor"
        return unit, compared.binary, compared.observed.T
    mod = fit.modalities[modality]
    choices([layer], ["X", *mod.layers], what="the layer", where=f"modality {modality!r}")
    matrix = (mod.X if layer == "X" else mod.layers[layer])[:, positions]
    values = np.full((len(positions), fit.data.n_obs), np.nan)
    values[:, fit.rows[modality]] = (matrix.toarray() if sp.issparse(matrix) else matrix).T
    return layer if layer == "X" else f"layer {layer}", False, values


def _panel(fit: Fit, place: Place, first: Place, measured: dict[Place, _Panel]) -> _Panel:
    """A factor with its share, or a feature.

    In the row of a factor, the note says how much of a feature's signal comes from it.
    """
    modality, position = place
    if modality == FACTOR:
        return _Panel(
            str(fit.names[position]),
            f"{100 * fit.shares[position]:.1f} % of signal",
            fit.mean[:, position],
        )
    if first[0] != FACTOR:
        return measured[place]
    weights = np.abs(fit.loadings[modality][position]).astype(np.float64)
    share = f"{100 * weights[first[1]] / weights.sum():.0f} % of its signal"
    return replace(measured[place], note=_of(fit, modality) + share)


def _of(fit: Fit, modality: str) -> str:
    """Name of a modality before a note, where there are several."""
    return f"{modality} · " if len(fit.modalities) > 1 else ""


def _filled(axes: list[Axes], rows: list[list[Place]], across: int) -> list[Axes]:
    """The axes that are drawn on; rows that are shorter than others leave places empty."""
    kept = [i * across + j for i, row in enumerate(rows) for j in range(len(row))]
    for index in set(range(len(axes))).difference(kept):
        axes[index].remove()
    return [axes[index] for index in kept]
