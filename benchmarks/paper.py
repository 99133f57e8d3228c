"""The simulations of the NSF paper: its models and ours on ggblocks and quilt, as in its figures 1 and S1.

gpnsf benchmark paper [--out paper-grid] [--draws 3] [--jobs 2]

Goes on where it was if it is interrupted. A folder that is complete gives tables and figures in seconds.
"""

from __future__ import annotations

from pathlib import Path

import anndata
import matplotlib as mpl
import mudata
import numpy as np
import pandas as pd
from report import FIGURES, machine, parser, write_table
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import pdist
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import normalize

mpl.use("Agg")

from matplotlib import pyplot as plt

import gpnsf
from gpnsf.pl import canvas

SIMULATIONS = {"ggblocks": 30, "quilt": 36}  # spots along one side
T, L = 4, 7  # true spatial factors, and all of the mixed draws
# names in the paper, and the order of its figures
NAMES = {
    "fa": "FA",
    "pnmf": "PNMF",
    "mefisto": "MEFISTO",
    "rsf": "RSF",
    "nsf": "NSF",
    "nsfh": "NSFH",
    "gpnsf": "gpnsf",
}
HYBRIDS = {"model": ["nsfh", "gpnsf"], "n_factors": L, "n_spatial": T}
MEFISTO = {"model": "mefisto", "n_inducing": 150, "max_steps": 100}
VARIANTS = {
    "strict": [
        {"model": ["fa", "rsf", "pnmf", "nsf"], "n_factors": T},
        HYBRIDS,
        {**MEFISTO, "n_factors": T},
    ],
    "mixed": [
        {"model": ["fa", "rsf", "pnmf", "nsf"], "n_factors": [T, L]},
        HYBRIDS,
        {**MEFISTO, "n_factors": L},
    ],
}
# totals carry signal in these simulations: there is no depth to be taken out
SHARED = {"modalities": [["rna"]], "likelihoods": "nb", "size_factors": "none", "seed": 0}
TITLES = {"strict": "spatial patterns alone", "mixed": "spatial and nonspatial patterns"}
JUDGED = (
    "r: highest correlation of each true spatial pattern with a factor, of either sign, mean over patterns; distances: correlation of the distances between "
    "spots in the true spatial factors and in those found; ARI: k-means of the loadings, with 4 clusters, beside the patterns of the genes; the three on training spots, and of hybrid models by "
    "their spatial factors. Held-out deviance: Poisson deviance of 5 % of the spots, mean over spots and genes; explained: share of the deviance of the null model (one rate per gene) that is explained. "
)
HOW = (
    "RNA, {draws} draw(s) with seeds from 0, negative binomial fits of counts (FA, RSF: log-normalised by `pp.normalise`), `size_factors=None`; MEFISTO with 150 inducing points and "
    "100 iterations at most. Runs of {when}. {machine}."
)
NOTES = {
    "strict": f"Simulated data: each gene follows one spatial pattern. {JUDGED}{HOW}",
    "mixed": "Simulated data: each gene follows one spatial pattern and one of three nonspatial ones. L1: mean absolute error of the spatial importance of genes. "
    f"Other columns as in the table of strictly spatial draws. {HOW}",
}


def spec(kind: str, draws: int) -> dict:
    """The grid of one kind of draws."""
    mixed = kind == "mixed"
    data = {
        f"{name} {draw}": {
            "simulate": name,
            "n_side": side,
            "n_peaks": 36,
            "nonspatial": mixed,
            "seed": draw,
        }
        for draw in range(draws)
        for name, side in SIMULATIONS.items()
    }
    return {
        "keep_fits": True,
        "data": data,
        "fit": SHARED,
        "variant": VARIANTS[kind],
        "split": {"holdout": 0.05},
    }


def opened(folder: Path, key: str) -> anndata.AnnData:
    """RNA of a fit that the grid has kept."""
    mudata.set_options(pull_on_update=False)
    data = mudata.read_h5mu(folder / "fits" / f"{key}.h5mu")
    rna = data["rna"]
    rna.obs["held_out"] = data.obs["grid_holdout"].to_numpy()
    rna.uns["gpnsf"] = data.uns["gpnsf"]
    return rna


def judged(rna: anndata.AnnData) -> dict[str, float]:
    """Factors and loadings beside the truth."""
    seen, truth = ~rna.obs["held_out"].to_numpy(), rna.obsm["true_factors"]
    spatial = np.asarray(rna.uns["gpnsf"]["is_spatial"]) if hybrid(rna) else slice(None)
    found = rna.obsm["X_gpnsf"][seen][:, spatial]
    loadings = normalize(rna.varm["gpnsf_loadings"][:, spatial])
    clusters = KMeans(T, n_init=10, random_state=0).fit_predict(loadings)
    nonspatial = [
        np.abs(correlations(truth[seen, k : k + 1], rna.obsm["X_gpnsf"][seen])).max()
        for k in range(T, truth.shape[1])
    ]
    importance = rna.var["gpnsf_spatial_importance"] - rna.var["true_spatial_importance"]
    return {
        "r": np.abs(correlations(truth[seen, :T], found)).max(axis=1).mean(),
        "r, nonspatial": np.mean(nonspatial) if nonspatial else np.nan,
        "distances": np.corrcoef(distances(truth[seen, :T]), distances(found))[0, 1],
        "ARI": adjusted_rand_score(rna.var["pattern"], clusters),
        "L1": importance.abs().mean(),
    }


def distances(factors: np.ndarray) -> np.ndarray:
    """Distances between all pairs of spots, every factor with variance 1; constant ones tell nothing."""
    scale = factors.std(axis=0)
    return pdist(factors[:, scale > 0] / scale[scale > 0])


def hybrid(rna: anndata.AnnData) -> bool:
    """Whether a fit has both kinds of factors."""
    return rna.uns["gpnsf"]["params"]["model"] in ("nsfh", "gpnsf")


def correlations(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Correlations [T, K] of true and found factors; those of constant ones are 0."""
    own, other = (
        normalize(values - values.mean(axis=0), axis=0)
        for values in (truth.astype(np.float64), found.astype(np.float64))
    )
    return own.T @ other


def results(folder: Path, kind: str, options) -> pd.DataFrame:
    """One line for each run: what the grid says of it, and how it compares with the truth."""
    table = gpnsf.tl.grid(spec(kind, options.draws), folder / kind, n_jobs=options.jobs)
    failed = table[table["error"].notna()]
    if len(failed):
        raise RuntimeError(failed[["data", "model", "error"]].to_string())
    truths = pd.DataFrame([judged(opened(folder / kind, key)) for key in table["key"]])
    named = table["data"].str.extract(r"(?P<simulation>\w+) (?P<draw>\d+)").astype({"draw": int})
    return pd.concat([table, truths, named], axis=1)


def summary(runs: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Means over draws as text."""
    rows = []
    groups = runs.groupby(["simulation", "model", "n_factors"], sort=False)
    for (simulation, model, K), part in sorted(groups, key=lambda group: place(*group[0])):
        asked = f"{T} + {L - T}" if model in ("nsfh", "gpnsf") else str(K)
        row = {
            "simulated data": simulation,
            "model": NAMES[model],
            "factors": asked,
            "r": f"{part['r'].mean():.3f}",
            "r, worst draw": f"{part['r'].min():.3f}",
        }
        if kind == "mixed":
            row["r, nonspatial"] = f"{part['r, nonspatial'].mean():.3f}"
        row |= {name: f"{part[name].mean():.3f}" for name in ("distances", "ARI")}
        if kind == "mixed":
            row["L1 per gene"] = f"{part['L1'].mean():.3f}"
        row |= {
            "zero loadings": f"{part['sparsity'].mean():.2f}",
            "held-out deviance": f"{part['deviance_holdout'].mean():.2f}",
            "explained": f"{part['explained_holdout'].mean():.2f}",
            "CPU s": f"{part['cpu_seconds'].mean():.1f}",
        }
        rows.append(row)
    return pd.DataFrame(rows)


def place(simulation: str, model: str, n_factors: int) -> tuple[int, int, int]:
    """Where a line stands."""
    return list(SIMULATIONS).index(simulation), list(NAMES).index(model), n_factors


def picture(runs: dict[str, pd.DataFrame], folder: Path, simulation: str) -> plt.Figure:
    """Truth, counts of genes and the factors of every model: strictly spatial draws left, mixed ones right."""
    ratios, size, lines = [1.0] * T + [0.3] + [1.0] * L, 0.68, len(NAMES) + 2
    with canvas.style():
        figure, axes = plt.subplots(
            lines,
            len(ratios),
            figsize=(size * sum(ratios) + 0.7, size * 1.14 * lines + 0.3),
            width_ratios=ratios,
            layout="constrained",
        )
        figure.get_layout_engine().set(
            h_pad=0.01, w_pad=0.01, hspace=0, rect=(0.005, 0, 0.995, 0.97)
        )
        for ax in axes.flat:
            ax.set_axis_off()
        for line, name in enumerate(["truth", "counts", *NAMES.values()]):
            at = {"transform": axes[line, 0].transAxes, "ha": "right", "va": "center"}
            axes[line, 0].text(-0.12, 0.5, name, **at)
        for kind, block in {"strict": axes[:, :T], "mixed": axes[:, T + 1 :]}.items():
            table = runs[kind]
            own = table[(table["simulation"] == simulation) & (table["draw"] == 0)]
            fill(block, own.sort_values("n_factors"), folder / kind)
            above = block[0, 0].text(0, 1.1, TITLES[kind], transform=block[0, 0].transAxes)
            above.set_in_layout(False)
    return figure


def fill(block: np.ndarray, table: pd.DataFrame, folder: Path) -> None:
    """One kind of draws: a row for each model, its factors in the order of the truth."""
    for line, model in enumerate(NAMES, 2):
        key = table.loc[table["model"] == model, "key"].iloc[-1]  # with most factors
        rna = opened(folder, key)
        for ax, (values, r) in zip(block[line], matched(rna), strict=False):
            image(ax, rna, values, f"{r:.2f}")
    genes = [np.flatnonzero(rna.var["pattern"] == f"spatial_{k + 1}")[0] for k in range(T)]
    for ax, pattern in zip(block[0], rna.obsm["true_factors"].T, strict=True):
        image(ax, rna, pattern)
    for ax, gene in zip(block[1], genes, strict=False):
        image(ax, rna, rna.X[:, gene].toarray().ravel())


def matched(rna: anndata.AnnData) -> list[tuple[np.ndarray, float]]:
    """The factor that goes with each true one, signed ones turned the way that fits, and its correlation."""
    truth, found = rna.obsm["true_factors"], rna.obsm["X_gpnsf"]
    seen = ~rna.obs["held_out"].to_numpy()
    r = correlations(truth[seen], found[seen])
    signed = (found < 0).any()
    own, columns = linear_sum_assignment(-np.abs(r) if signed else -r)
    pairs = [(np.full(len(truth), np.nan), 0.0)] * truth.shape[1]
    for k, column in zip(own, columns, strict=True):
        turned = np.sign(r[k, column]) if signed else 1.0
        pairs[k] = turned * found[:, column], turned * r[k, column]
    return pairs


def image(ax: plt.Axes, rna: anndata.AnnData, values: np.ndarray, note: str = "") -> None:
    """Values on the grid of the simulation, dark where they are low; red and blue around zero if there are negative ones."""
    x, y = rna.obsm["spatial"].astype(int).T
    pixels = np.full((y.max() + 1, x.max() + 1), np.nan)
    pixels[y, x] = values
    if not np.isfinite(values).all():
        ax.text(0.5, 0.5, "none", ha="center", va="center", transform=ax.transAxes, color="0.5")
        return
    low, high = canvas.limits(values, quantiles=(0.0, 0.99))
    cmap = canvas.colormap(bool((values < 0).any()))
    ax.imshow(pixels, origin="lower", cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
    ax.text(
        0.5, -0.02, note, ha="center", va="top", transform=ax.transAxes, fontsize=5.5, color="0.4"
    )


def main() -> None:
    """Both kinds of draws, their tables, and a figure for each simulation."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--out", type=Path, default=Path("paper-grid"), help="folder of the runs"
    )
    arguments.add_argument("--draws", type=int, default=3)
    arguments.add_argument("--jobs", type=int, default=2, help="fits at the same time")
    options = arguments.parse_args()
    runs = {kind: results(options.out, kind, options) for kind in VARIANTS}
    for kind, table in runs.items():
        finished = " to ".join(sorted({table["finished"].min()[:10], table["finished"].max()[:10]}))
        note = NOTES[kind].format(draws=options.draws, T=T, L=L, machine=machine(), when=finished)
        write_table(f"paper_{kind}", summary(table, kind), note)
    for simulation in SIMULATIONS:
        path = FIGURES / f"paper_{simulation}.png"
        picture(runs, options.out, simulation).savefig(path, dpi=130)
        print(path)


if __name__ == "__main__":
    main()
