"""The demonstration: a fit of a simulated tissue held against its truth; and the figures that the command line writes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import gpnsf
from gpnsf.checks import problem
from gpnsf.io import fits
from gpnsf.io.files import write
from gpnsf.io.kinds import check_output
from gpnsf.keys import DOMAIN

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mudata import MuData

    from gpnsf.pl.sections import Section

__all__ = ["FIGURES", "run", "save_figures"]

N_SPATIAL, N_NONSPATIAL = 4, 2  # factors
MAPS = ("spatial_factors", "feature_maps", "observed_expected")  # what needs coordinates
FIGURES = (
    *MAPS,
    "top_features",
    "loadings",
    "factor_correlation",
    "importance",
    "variance_explained",
    "convergence",
)


def run(folder: Path, *, seed: int = 0) -> list[str]:
    """Simulate, fit, write the object and the figures into the folder; returns what was found, line by line."""
    target = folder / "gpnsf-demo.h5mu"
    _check_folder(folder, [*FIGURES, "truth"])
    if target.exists():
        check_output(target, ".h5mu")
    folder.mkdir(exist_ok=True)
    mdata = _tissue(seed)
    start = time.perf_counter()
    n_factors = N_SPATIAL + N_NONSPATIAL
    gpnsf.tl.fit(mdata, n_factors=n_factors, n_spatial=N_SPATIAL, seed=seed)
    seconds = time.perf_counter() - start
    paths = save_figures(mdata, folder)
    paths.append(_save(_against_truth(mdata), folder / "truth.png"))
    write(mdata, target)
    paths.insert(0, target)
    shapes = ", ".join(f"{name} {mod.n_vars} features" for name, mod in mdata.mod.items())
    return [
        f"Simulated tissue: {mdata.n_obs} spots, {shapes}; {n_factors} factors, {N_SPATIAL} of them spatial.",
        f"Fitted in {seconds:.1f} s.",
        "",
        *_factor_lines(mdata),
        "",
        *_importance_lines(mdata),
        "",
        "Written:",
        *(f"  {path}" for path in paths),
    ]


def save_figures(data: AnnData | MuData, folder: Path, *, key: str = "gpnsf") -> list[Path]:
    """Draw every figure of a fit into the folder as PNG; returns their paths."""
    fit = fits.find(data, key)
    left_out: tuple[str, ...] = () if fit.has_coords else MAPS
    left_out += () if fit.names.size > 1 else ("factor_correlation",)
    names = [name for name in FIGURES if name not in left_out]
    names += ["domains"] if DOMAIN in data.obs and fit.has_coords else []
    _check_folder(folder, names)
    figures = {
        name: getattr(gpnsf.pl, name)(data, key=key, show=False, return_fig=True) for name in names
    }
    folder.mkdir(exist_ok=True)
    return [_save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def _check_folder(folder: Path, names: Iterable[str]) -> None:
    """Check that figures may be written to a folder, which is made if it is not there."""
    if folder.is_dir():
        for name in names:
            check_output(folder / f"{name}.png", ".png")
    elif folder.exists() or not folder.absolute().parent.is_dir():
        remedy = f"Write to another folder, or make it first: mkdir -p {folder}"
        raise NotADirectoryError(
            problem("a folder, or a new name in one that exists", str(folder), remedy)
        )


def _tissue(seed: int) -> MuData:
    """Small enough for well under a minute on two cores."""
    return gpnsf.datasets.tissue(
        n_obs=900,
        n_genes=300,
        n_peaks=600,
        n_spatial=N_SPATIAL,
        n_nonspatial=N_NONSPATIAL,
        atac_depth=100.0,
        lengthscales=(0.1, 0.3),
        seed=seed,
    )


def _save(figure: Figure, path: Path) -> Path:
    from matplotlib import pyplot as plt

    figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": "gpnsf"})
    plt.close(figure)
    return path


def _truth(mdata: MuData) -> np.ndarray:
    """True factors [N, K] relative to the expected RNA total of their spot: size factors from totals take the rest."""
    factors = mdata.obsm["true_factors"]
    return factors / (factors @ mdata["rna"].varm["true_loadings"].sum(axis=0))[:, None]


def _matched(mdata: MuData) -> tuple[np.ndarray, np.ndarray]:
    """Estimated factor for each true one [K], and their correlations [K]."""
    from gpnsf.core.scores.metrics import match_factors

    return match_factors(_truth(mdata), mdata.obsm["X_gpnsf"])


def _factor_lines(mdata: MuData) -> list[str]:
    """Correlation of each true factor with the estimate that it is matched with."""
    names = fits.find(mdata).names
    lines = [
        f"  {truth:<14} {names[column] if column >= 0 else 'none':<14} {r:.2f}"
        for truth, column, r in zip(_true_names(mdata), *_matched(mdata), strict=True)
    ]
    return [
        "Factors matched with the truth (both relative to the total of a spot):",
        f"  {'simulated':<14} {'found':<14} correlation",
        *lines,
    ]


def _true_names(mdata: MuData) -> list[str]:
    n_factors, n_spatial = mdata.obsm["true_factors"].shape[1], int(mdata.uns["truth"]["n_spatial"])
    return [
        f"spatial {k + 1}" if k < n_spatial else f"nonspatial {k - n_spatial + 1}"
        for k in range(n_factors)
    ]


def _importance_lines(mdata: MuData) -> list[str]:
    """Spatial importance of the features of each modality against the truth."""
    lines = []
    for name, mod in mdata.mod.items():
        truth, found = (
            mod.var[f"{kind}_spatial_importance"].to_numpy() for kind in ("true", "gpnsf")
        )
        r = np.corrcoef(truth, found)[0, 1]
        lines.append(
            f"  {name:<14} mean {found.mean():.2f} (simulated {truth.mean():.2f}), correlation {r:.2f}"
        )
    return ["Spatial importance of the features:", *lines]


def _against_truth(mdata: MuData) -> Figure:
    """Each simulated spatial factor above the estimate that it is matched with."""
    from gpnsf.pl import canvas, sections

    fit, truth = fits.find(mdata), _truth(mdata)
    columns, correlations = _matched(mdata)
    n_spatial = int(mdata.uns["truth"]["n_spatial"])
    where = sections.section(fit)
    width, height = where.panel(n_spatial, bar=0.1)
    with canvas.style():
        figure, axes = canvas.grid(2 * n_spatial, width=width, height=height, ncols=n_spatial)
        for k in range(n_spatial):
            _panel(axes[k], where, truth[:, k], f"simulated {k + 1}")
            # fewer found than simulated
            name = fit.names[columns[k]] if columns[k] >= 0 else "none"
            found = fit.mean[:, columns[k]] * (columns[k] >= 0)
            _panel(axes[n_spatial + k], where, found, f"{name}, r = {correlations[k]:.2f}")
    return figure


def _panel(ax: Axes, where: Section, values: np.ndarray, title: str) -> None:
    """One factor, coloured up to its upper half percent, square-root scale."""
    from gpnsf.pl import canvas, sections

    low, high = canvas.limits(values, quantiles=(0.005, 0.995))
    sections.spots(
        ax,
        where,
        values,
        cmap=canvas.colormap(signed=False),
        norm=canvas.norm("sqrt", max(low, 0.0), high),
    )
    ax.set_title(title, loc="left")
