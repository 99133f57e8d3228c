"""Real sections: all models on held-out spots, by number of factors, with negative binomial and Poisson counts, as in figures 2, 4, 6 and S2 of the NSF paper.

GPNSF_DATA_DIR=... gpnsf benchmark sections [--out sections-grid] [--draws 1] [--jobs 1] [--data mob_rep11 visium_crc]

Goes on where it was if it is interrupted. A folder that is complete gives tables and figures in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from anndata import AnnData
from report import FIGURES, machine, parser, write_table
from scipy.stats import nbinom, poisson

mpl.use("Agg")

from matplotlib import pyplot as plt

import gpnsf
from gpnsf.core.scores.metrics import match_factors
from gpnsf.datasets.files import load
from gpnsf.io import fits
from gpnsf.io.files import read, write
from gpnsf.pl import canvas
from gpnsf.tl.judged import judged


@dataclass(frozen=True)
class Section:
    """A file of the data folder, and how it is fitted."""

    title: str
    n_factors: tuple[int, ...] = (4, 8, 16)
    n_genes: int | None = 500  # the most deviant ones
    scale: tuple[float, float] = (1.0, 1.0)  # of axes that have units of their own
    fit: dict[str, Any] = field(default_factory=dict)
    mefisto: bool = False
    again: int = 1  # draws of the comparison that one division of few spots cannot settle


SECTIONS = {
    "mob_rep11": Section("olfactory bulb", mefisto=True, again=3),
    "visium_lymphnode_1k": Section("lymph node"),
    "visium_crc": Section("liver metastasis"),
    "bc_4sections": Section(
        "breast cancer, four sections", n_factors=(4, 8), fit={"library_key": "section"}
    ),
    "hln_protein_2sections": Section(
        "lymph node, 31 proteins of two sections",
        n_factors=(4, 8),
        n_genes=None,
        scale=(3**0.5, 1.0),  # rows of the array lie farther apart than its columns
        fit={"library_key": "library", "modalities": [["protein"]]},
    ),
}
HELD_OUT = 0.1
BOTH = ["nb", "poisson"]
MEFISTO = {"model": "mefisto", "n_factors": [4, 8], "n_inducing": 100, "max_steps": 100}
MAPPED = ("visium_crc", "mob_rep11")  # sections whose factors are drawn
K = 8  # factors of the fits that are shown
ALL = (4, 8, 16)
NAMES = {
    "fa": "FA",
    "pnmf": "PNMF",
    "mefisto": "MEFISTO",
    "rsf": "RSF",
    "nsf": "NSF",
    "nsfh": "NSFH, half",
    "gpnsf": "gpnsf",
}
NOISE = {"gaussian": "Gaussian, logs", "nb": "NB", "poisson": "Poisson"}
DRAWN = ["deviance_holdout", "sparsity", "cpu_seconds"]
HISTOGRAMS = {"gpnsf": canvas.MODALITY_COLORS[0], "nsfh": canvas.MODALITY_COLORS[1]}
BINS = np.linspace(0, 1, 26)
NOTE = (
    f"Real data, the 500 most deviant genes (all proteins). A tenth of the spots is held out. Unseen, 4 to 16: share of the null model's Poisson deviance of these spots that is explained, by the number of "
    f"factors that was asked for; the other columns with {K}. The null model is one rate a feature, and the depth of spots is given to all. Deviance: Poisson, mean over spots and features. 'NSFH, half': half of the factors spatial, and no "
    "test, as in the paper; `gpnsf`: the default, which tests what is spatial. FA, RSF, MEFISTO: log-normalised counts (`pp.normalise`); MEFISTO with 100 inducing points, 100 iterations at most. CPU seconds of the fit alone, in its own process, on a machine that others used."
)
REPEATED = f"{K} factors, negative binomial noise (RSF: logarithms). Explained share of the unseen spots, each draw with another tenth of the spots and another seed of the fit. Real data."
LEVEL = 0.9
AGAINST = (
    f"The default model with {K} factors. Inside: share of the counts of unseen spots within the central {LEVEL:.0%} of the noise around what is expected of them, which is "
    f"{LEVEL:.2f} if the noise is right and the expectation exact. r: mean correlation of matched factors of both fits."
)
IMPORTANCE = f"The negative binomial fits with {K} factors of the first draw: spatial importance of features that have loadings, and of spots, seen and unseen. z: spatial order in held-out counts (z score of Moran's I) of the factors that stayed nonspatial."


def prepared(name: str, folder: Path) -> Path:
    """A section as it is fitted, in a file; the same bytes each time."""
    section, data = SECTIONS[name], load(name)
    if section.n_genes:
        gpnsf.pp.deviance_features(data, n_top=section.n_genes)
        data = data[:, data.var["highly_deviant"]].copy()
    data.obsm["spatial"] = data.obsm["spatial"] * np.array(section.scale)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.h5ad"
    write(data, path)
    return path


def spec(name: str, path: Path, draws: int) -> dict:
    """The grid of a section."""
    section = SECTIONS[name]
    numbers = list(section.n_factors)
    again = {"n_factors": K, "seed": list(range(section.again)), "likelihoods": "nb"}
    return {
        "keep_fits": True,
        "data": {name: path},
        "fit": {**section.fit, "n_factors": numbers, "seed": list(range(draws))},
        "variant": [
            {"model": ["gpnsf", "nsf"], "likelihoods": BOTH},
            # as in the paper: half of the factors are spatial, and nothing tests them
            *(
                {"model": "nsfh", "n_factors": K, "n_spatial": K // 2, "split": "assumed", "likelihoods": BOTH}
                for K in numbers
            ),
            {"model": ["fa", "rsf", "pnmf"], "likelihoods": "nb"},
            *([MEFISTO] if section.mefisto else []),
            {**again, "model": ["gpnsf", "nsf", "rsf"]},
            {**again, "model": "nsfh", "n_spatial": K // 2, "split": "assumed"},
        ],
        "split": {"holdout": HELD_OUT},
    }  # fmt: skip


def results(folder: Path, options) -> pd.DataFrame:
    """One line for each run of the sections that are asked for, with the size of the data."""
    tables = []
    for name in options.data:
        path = prepared(name, folder / "data")
        grid = spec(name, path, options.draws)
        table = gpnsf.tl.grid(grid, folder, n_jobs=options.jobs)
        tables.append(table.assign(shape="{:,} x {:,}".format(*read(path).shape)))
    runs = pd.concat(tables, ignore_index=True)
    failed = runs[runs["error"].notna()]
    if len(failed):
        raise RuntimeError(failed[["data", "model", "error"]].to_string())
    return runs


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over draws as text, a line for each section, model and likelihood."""
    rows = []
    for (name, model, likelihood), part in runs.groupby(["data", "model", "likelihood"]):
        numbers = part.groupby("n_factors")
        own = numbers.get_group(K)
        kept = own["n_kept"].mean(), own["n_kept_spatial"].mean()
        explained = numbers["explained_holdout"].mean()
        row = {
            "data set": f"{name}, {own['shape'].iloc[0]}",
            "model": NAMES[model],
            "noise": NOISE[likelihood],
            **{f"unseen, {n}": f"{explained[n]:z.3f}" if n in explained else "" for n in ALL},
            "deviance, unseen": f"{own['deviance_holdout'].mean():.3g}",
            "seen": f"{own['explained'].mean():.3f}",
            "spatial + not": f"{kept[1]:.3g} + {kept[0] - kept[1]:.3g}",
            "zero loadings": f"{own['sparsity'].mean():.2f}",
            "CPU s": f"{own['cpu_seconds'].mean():.1f}",
        }
        rows.append((place(name, model, likelihood), row))
    return pd.DataFrame([row for _, row in sorted(rows, key=lambda pair: pair[0])])


def repeated(runs: pd.DataFrame) -> pd.DataFrame:
    """Explained share of unseen spots by draw, of sections with several draws."""
    own = runs[(runs["n_factors"] == K) & runs["likelihood"].isin(["nb", "gaussian"])]
    rows = []
    for (name, model), part in own.groupby(["data", "model"]):
        draws = part.sort_values("seed")["explained_holdout"]
        if len(draws) > 1:
            row = {f"draw {i}": f"{value:.3f}" for i, value in enumerate(draws)}
            row = {"data set": name, "model": NAMES[model], **row, "mean": f"{draws.mean():.3f}"}
            rows.append((place(name, model, "nb"), row))
    return pd.DataFrame([row for _, row in sorted(rows, key=lambda pair: pair[0])])


def place(name: str, model: str, likelihood: str) -> tuple[int, int, int]:
    """Where a line stands."""
    return list(SECTIONS).index(name), list(NAMES).index(model), list(NOISE).index(likelihood)


def fitted(runs: pd.DataFrame, folder: Path, name: str, model: str, noise: str = "nb") -> AnnData:
    """The kept fit of a section with K factors, first draw."""
    own = runs[(runs["data"] == name) & (runs["model"] == model) & (runs["n_factors"] == K)]
    own = own[(own["likelihood"] == noise) & (own["seed"] == 0)]
    return read(folder / "fits" / f"{own['key'].iloc[0]}.h5ad")


def inside(data: AnnData) -> float:
    """Share of the counts of unseen spots within the central part of the noise around what is expected."""
    fit = fits.find(data, "gpnsf")
    own = judged(fit, next(iter(fit.modalities)))
    rows = np.flatnonzero(own.held_out)
    return float(
        central(own.counts[rows].toarray(), own.expected(rows, own.size), own.dispersion).mean()
    )


def central(counts: np.ndarray, rate: np.ndarray, theta: np.ndarray | None) -> np.ndarray:
    """How much of each count is within the central part of its noise.

    A count on the edge is inside by the share of its probability that is, so that the right noise has just ``LEVEL``.
    """
    noise = poisson(rate) if theta is None else nbinom(theta, theta / (theta + rate))
    ends = np.stack([noise.cdf(counts - 1), noise.cdf(counts)])
    within = np.diff(np.clip(ends, (1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)[0]
    mass = np.diff(ends, axis=0)[0]
    return np.divide(within, mass, out=np.zeros_like(mass), where=mass > 0)


def against(runs: pd.DataFrame, folder: Path, names: list[str]) -> pd.DataFrame:
    """Negative binomial and Poisson noise of the default, side by side."""
    rows = []
    own = runs[(runs["model"] == "gpnsf") & (runs["n_factors"] == K) & (runs["seed"] == 0)]
    for name in names:
        lines = own[own["data"] == name].set_index("likelihood").loc[BOTH]
        pair = [fitted(runs, folder, name, "gpnsf", noise) for noise in BOTH]
        factors = [data.obsm["X_gpnsf"] for data in pair]
        row = {
            "data set": name,
            "median count of a spot": f"{np.median(pair[0].X.sum(axis=1).A1):,.0f}",
            "r of factors": f"{match_factors(*factors)[1].mean():.3f}",
        }
        for title, column in {"seen": "explained", "unseen": "explained_holdout"}.items():
            row[f"{title}: NB, Poisson"] = ", ".join(f"{value:.3f}" for value in lines[column])
        row["inside: NB, Poisson"] = ", ".join(f"{inside(data):.2f}" for data in pair)
        row["CPU s: NB, Poisson"] = ", ".join(f"{value:.1f}" for value in lines["cpu_seconds"])
        rows.append(row)
    return pd.DataFrame(rows)


def scores(data: AnnData) -> dict[str, np.ndarray]:
    """Spatial importance of the features that have loadings, and of the observations."""
    key = "gpnsf_spatial_importance"
    used = data.varm["gpnsf_loadings"].any(axis=1)
    return {"features": data.var[key].to_numpy()[used], "spots": data.obs[key].to_numpy()}


def importance(kept: dict[tuple[str, str], AnnData]) -> pd.DataFrame:
    """Spatial importance in numbers, and the spatial order that tested fits found in factors that stayed nonspatial."""
    rows = []
    for (name, model), data in kept.items():
        genes, spots = scores(data).values()
        record = data.uns["gpnsf"]
        z = record["spatial_test"].get("z", np.array([]))[: len(record["is_spatial"])]
        quartiles = np.quantile(genes, [0.25, 0.5, 0.75])
        rows.append(
            {
                "data set": name,
                "model": NAMES[model],
                "features": len(genes),
                "quartiles of features": ", ".join(f"{q:.2f}" for q in quartiles),
                "features below .5": f"{(genes < 0.5).mean():.2f}",
                "median of spots": f"{np.median(spots):.2f}",
                "spots below .5": f"{(spots < 0.5).mean():.2f}",
                "z of nonspatial factors": ", ".join(
                    f"{value:.1f}" for value in z[~record["is_spatial"][: len(z)]]
                ),
            }
        )
    return pd.DataFrame(rows)


def curves(runs: pd.DataFrame) -> plt.Figure:
    """Deviance of unseen spots, zero loadings and time over the number of factors."""
    titles = {name: section.title for name, section in SECTIONS.items()}
    columns = ["data", "model", "n_factors", "seed", "modality", "likelihood", *DRAWN]
    table = runs[columns].assign(data=runs["data"].map(titles))
    figure = gpnsf.pl.grid(table, y=DRAWN, show=False, return_fig=True)
    for ax in figure.axes:
        low, high = ax.get_xlim()
        ax.set_xticks([n for n in ALL if low < n < high])
    return figure


def histograms(found: dict[tuple[str, str], dict[str, np.ndarray]]) -> plt.Figure:
    """Spatial importance of features and of spots, of a fit with the default and of one as in the paper."""
    names = list(dict.fromkeys(name for name, _ in found))
    with canvas.style():
        figure, axes = plt.subplots(
            2, len(names), figsize=(1.75 * len(names), 3.1), layout="constrained", squeeze=False
        )
        for column, name in zip(axes.T, names, strict=True):
            for ax, what in zip(column, ("features", "spots"), strict=True):
                for model, color in HISTOGRAMS.items():
                    values = found[name, model][what]
                    options = {"weights": np.full(len(values), 1 / len(values)), "alpha": 0.6}
                    ax.hist(values, BINS, color=color, label=NAMES[model], **options)
                ax.set(xlim=(0, 1), xticks=[0, 0.5, 1])
                canvas.plain(ax)
            column[0].set_title(SECTIONS[name].title.replace(", ", "\n"))
            column[1].set_xlabel("spatial importance")
        axes[0, 0].set_ylabel("share of features")
        axes[1, 0].set_ylabel("share of spots")
        axes[0, 0].legend()
    return figure


def saved(figure: plt.Figure, name: str) -> None:
    """Leave a figure where the documentation takes it."""
    path = FIGURES / f"sections_{name}.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(path)


def main() -> None:
    """All runs, two tables, and the figures."""
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=Path("sections-grid"), help="folder of the runs")  # fmt: skip
    arguments.add_argument("--draws", type=int, default=1, help="divisions of the spots, and seeds")
    arguments.add_argument("--jobs", type=int, default=1, help="fits at the same time")
    arguments.add_argument("--data", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    options = arguments.parse_args()
    runs = results(options.out, options)
    when = " to ".join(sorted({runs["finished"].min()[:10], runs["finished"].max()[:10]}))
    how = f"{options.draws} draw(s). Runs of {when}. {machine()}."
    if len(again := repeated(runs)):
        write_table("sections_draws", again, f"{REPEATED} Runs of {when}. {machine()}.")
    runs = runs[runs["seed"] < options.draws]
    write_table("sections", summary(runs), f"{NOTE} {how}")
    kept = {
        (name, model): fitted(runs, options.out, name, model)
        for name in options.data
        for model in HISTOGRAMS
    }
    found = {key: scores(data) for key, data in kept.items()}
    write_table("sections_importance", importance(kept), f"{IMPORTANCE} {how}")
    write_table("sections_noise", against(runs, options.out, options.data), f"{AGAINST} {how}")
    saved(curves(runs), "deviance")
    saved(histograms(found), "importance")
    for name in [name for name in MAPPED if name in options.data]:
        maps = gpnsf.pl.spatial_factors(
            kept[name, "gpnsf"], scale="sqrt", ncols=4, show=False, return_fig=True
        )
        saved(maps, name)


if __name__ == "__main__":
    main()
