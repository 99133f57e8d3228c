"""Whether the number of factors is an upper bound: fits asked for too many beside others.

gpnsf benchmark upper_bound [--only GROUP ...] [--seeds 3] [--first 0] [--cases TEXT] [--about TEXT]

Groups: patterns, tissue, waves, layers, worse, cortex, real, holdout, and figure (the layered sections).
GPNSF_DATA_DIR must name the data folder, except for tissue and waves. --cases runs only the rows whose name
contains the text; such a run, and one with --no-table, leaves no table.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
import scipy.sparse as sp
from baselines import domains_of
from fits import loaded
from layers import LAYOUTS, layers, waves
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from mudata import MuData
from report import FIGURES, machine, measured, parser, write_table
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

import gpnsf
from gpnsf.core.scores.metrics import knn_weights, match_factors
from gpnsf.datasets.files import load
from gpnsf.palette import category_colors

BOTH = ["rna", "atac"]
DEPTHS = ("deep", "shallow")
N_COMPONENTS = 15  # of the references
N_GENES = 2000  # of real sections, the most deviant ones
CLEAR_Z = 6.0
SECTIONS = {
    "visium_crc": {},
    "mob_rep11": {},
    "pdac_a": {},
    "bc_4sections": {"library_key": "section"},
    "visium_lymphnode_1k": {},
}


class Cases:
    """Fits of one run of this benchmark, and the text that names of rows must contain."""

    def __init__(self, text: str = "") -> None:
        self.text = text

    def wanted(self, name: str) -> bool:
        """Whether a row is to be run."""
        return self.text in name

    def fit(self, name: str, data, asked: tuple[int, int | None], seed: int, score, **arguments):
        """The row of the fit of a copy, if it is wanted; ``score`` maps the copy to columns."""
        if not self.wanted(name):
            return []
        (n_factors, n_spatial), data = asked, data.copy()
        with measured() as run:
            gpnsf.tl.fit(
                data,
                n_factors=n_factors,
                n_spatial=n_spatial,
                seed=seed,
                progress=False,
                **arguments,
            )
        spatial = is_spatial(data)
        return [
            {
                "case": name,
                "K": n_factors,
                "T": "default" if n_spatial is None else n_spatial,
                "seed": seed,
                **score(data),
                "CPU s": run.cpu,
                "kept": f"{spatial.sum()}+{(~spatial).sum()}",
            }
        ]


def recovered(data, truth: np.ndarray) -> dict:
    """Correlation of true patterns with the spatial factors matched to them, at least 0; and the
    smallest when any factor may match, so that a pattern lost is told from one called nonspatial.
    """
    factors = data.obsm["X_gpnsf"]
    r = match_factors(truth, factors[:, is_spatial(data)])[1].clip(0)
    either = match_factors(truth, factors)[1].clip(0)
    return {"r, mean": r.mean(), "r, worst": r.min(), "worst, either kind": either.min()}


def is_spatial(data) -> np.ndarray:
    """Which factors [K] of a fit are spatial."""
    return np.asarray(data.uns["gpnsf"]["is_spatial"])


def pattern_rows(seeds: range, cases: Cases) -> Iterator[dict]:
    """Simulated data, RNA only, `size_factors=None`: four spatial patterns, three nonspatial
    ones in ggblocks and quilt, none in nsf_sim_S1 (one draw, simulated by the authors of NSF;
    `model="nsfh"`). r: correlation of true patterns with the factors of their kind that match
    them; "either kind": correlation of spatial patterns with any factor, spatial or not."""

    def score(data) -> dict:
        truth, spatial = data.obsm["true_factors"], is_spatial(data)
        other = data.obsm["X_gpnsf"][:, ~spatial]
        nonspatial = match_factors(truth[:, 4:], other)[1].mean() if truth.shape[1] > 4 else ""
        return {**recovered(data, truth[:, :4]), "nonspatial r": nonspatial}

    def simulated(name: str, seed: int):
        return getattr(gpnsf.datasets, name)(n_peaks=36, seed=seed)["rna"].copy()

    options = {"likelihoods": {"rna": "nb"}, "size_factors": None}
    for name in ("ggblocks", "quilt"):
        for asked in ((7, 4), (14, 8)):
            for seed in seeds:
                yield from cases.fit(name, simulated(name, seed), asked, seed, score, **options)
    for asked in ((7, 4), (14, 8)) if cases.wanted("nsf_sim_S1") else ():
        for seed in seeds:
            data = load("nsf_sim_S1.h5ad")
            yield from cases.fit("nsf_sim_S1", data, asked, seed, score, model="nsfh", **options)


def tissue_rows(seeds: range, cases: Cases) -> Iterator[dict]:
    """Simulated tissue, RNA alone, eight spatial and two nonspatial factors. Case: spots x genes,
    counts a spot. r: correlation of true spatial factors with the factors called spatial that
    match them; nonspatial r: of the other two with the factors called nonspatial, 0 where there
    are too few; "either kind": of spatial factors with any factor, spatial or not."""

    def score(data) -> dict:
        truth, other = data.obsm["true_factors"], data.obsm["X_gpnsf"][:, ~is_spatial(data)]
        nonspatial = match_factors(truth[:, 8:], other)[1].mean() if other.size else 0.0
        return {**recovered(data, truth[:, :8]), "nonspatial r": nonspatial}

    for n_obs, depth in ((2_500, 120), (2_500, 400), (2_500, 4_000), (12_000, 75)):
        for n_factors in (10, 14, 20):
            for seed in seeds:
                name = f"{n_obs:,} x 1,000, {depth:,}"
                shape = {"n_obs": n_obs, "n_genes": 1_000, "n_peaks": 10, "rna_depth": float(depth)}
                data = gpnsf.datasets.tissue(**shape, seed=seed)["rna"].copy()
                yield from cases.fit(name, data, (n_factors, None), seed, score)


def wave_rows(seeds: range, cases: Cases) -> Iterator[dict]:
    """Ten simulated smooth factors, 3,000 spots, 600 genes and 800 peaks, no nonspatial
    factor in truth. r: correlation of true factors with the spatial factors that match them;
    "either kind": with any factor, spatial or not."""
    score = lambda data: recovered(data, data.obsm["true_factors"])
    for asked in ((10, None), (12, None), (12, 10), (20, None), (20, 12)):
        for seed in seeds:
            yield from cases.fit("waves, RNA + ATAC", waves(seed), asked, seed, score)


def domain_score(data, truth) -> float:
    """Adjusted Rand index of the domains, 0 where no factor is spatial."""
    if not is_spatial(data).any():
        return 0.0
    gpnsf.tl.domains(data, n_domains=len(np.unique(truth)))
    return adjusted_rand_score(truth, data.obs["gpnsf_domain"])


def smoothed_pca(name: str, data, truth, n_neighbors: int, seed: int, cases: Cases) -> list[dict]:
    """The row of domains by principal components of log-normalised RNA, averaged over
    neighbours."""
    name = f"{name}, RNA: PCA of {n_neighbors}-neighbour means"
    if not cases.wanted(name):
        return []
    with measured() as run:
        counts = data["rna"].X
        total = np.asarray(counts.sum(1))
        logs = np.log1p(counts.toarray() / np.maximum(total, 1) * np.median(total))
        coords = np.asarray(data.obsm["spatial"])
        weights = knn_weights(coords, n_neighbors)
        logs = (logs + n_neighbors * (weights @ logs)) / (n_neighbors + 1)
        points = PCA(N_COMPONENTS, random_state=seed).fit_transform(logs)
        labels = domains_of(points, coords, len(np.unique(truth)))
    score = {"ARI": adjusted_rand_score(truth, labels), "CPU s": run.cpu, "kept": ""}
    return [{"case": name, "K": "", "T": "", "seed": seed, **score}]


def layer_rows(seeds: range, cases: Cases) -> Iterator[dict]:
    """Semi-synthetic data: real SNARE-seq cells summed into the spots of simulated layers and
    thinned to a measured depth; "deep": 3,000 spots, four layers, 500 RNA and 140 ATAC counts
    a spot; "shallow": 2,000 spots, five bands, 160 and 35; "faint": as deep, with mixtures
    that differ less. ARI of `tl.domains` at the true number."""
    for name in LAYOUTS:
        drawn = {seed: layers(name, seed) for seed in seeds}
        for asked in ((6, None), (12, None), (12, 8), (20, None)):
            for label, modalities in {"RNA": ["rna"], "RNA + ATAC": BOTH}.items():
                for seed, data in drawn.items():
                    truth = data.obs["layer"].to_numpy()
                    score = lambda fitted, truth=truth: {"ARI": domain_score(fitted, truth)}
                    case = f"layers {name}, {label}"
                    yield from cases.fit(case, data, asked, seed, score, modalities=modalities)
        for n_neighbors in (6, 18):
            for seed, data in drawn.items():
                truth = data.obs["layer"].to_numpy()
                yield from smoothed_pca(f"layers {name}", data, truth, n_neighbors, seed, cases)


def with_atac(data: MuData, how: str, seed: int) -> MuData:
    """The same RNA beside ATAC that knows nothing: "empty" but for twenty entries, or
    "permuted"."""
    rng, atac = np.random.default_rng(seed), data["atac"].copy()
    if how == "permuted":
        atac.X = atac.X[rng.permutation(data.n_obs)]
    else:
        entries = rng.integers(data.n_obs, size=20), rng.integers(atac.n_vars, size=20)
        shape = atac.shape
        atac.X = sp.csr_matrix((np.ones(20, np.float32), entries), shape=shape).minimum(1.0)
    result = MuData({"rna": data["rna"].copy(), "atac": atac})
    result.obs["layer"], result.obsm["spatial"] = data.obs["layer"], data.obsm["spatial"]
    return result


def worse_rows(seeds: range, cases: Cases) -> Iterator[dict]:
    """The semi-synthetic layers of the table before, K = 12, default T: each modality alone,
    both, and RNA with ATAC that should change nothing: "empty" but for 20 entries, or taken from
    other spots ("permuted"). "mixed": shallow RNA (160 counts a spot) with deep ATAC (140). ARI of
    `tl.domains` at the true number."""
    for seed in seeds:
        sections = {name: layers(name, seed) for name in DEPTHS}
        sections["mixed"] = layers("shallow", seed, atac_depth=LAYOUTS["deep"].atac_depth)
        for name, data in sections.items():
            runs = {"RNA": (data, ["rna"]), "ATAC": (data, ["atac"]), "RNA + ATAC": (data, BOTH)}
            if name != "mixed":
                for how in ("empty", "permuted"):
                    runs[f"RNA + {how} ATAC"] = with_atac(data, how, seed), BOTH
            truth = data.obs["layer"].to_numpy()
            for label, (given, modalities) in runs.items():
                score = lambda fitted, truth=truth: {"ARI": domain_score(fitted, truth)}
                case = f"{name}, {label}"
                yield from cases.fit(case, given, (12, None), seed, score, modalities=modalities)


def cortex_rows(seeds: range, cases: Cases) -> Iterator[dict]:
    """Semi-synthetic data: real SNARE-seq cells at osmFISH cortex positions, 602 spots, 8
    regions; the seeds are those of the fit. ARI of `tl.domains` at the true number."""
    data = load("semi_cortex_spots.h5mu")
    regions = data["rna"].obs["region"].astype(str).to_numpy()
    score = lambda fitted: {"ARI": domain_score(fitted, regions)}
    for asked in ((12, None), (20, None)):
        for label, modalities in {"RNA": ["rna"], "RNA + ATAC": BOTH}.items():
            for seed in seeds:
                case = f"cortex, {label}"
                yield from cases.fit(case, data, asked, seed, score, modalities=modalities)


def real_section(name: str):
    """A real section with its most deviant genes."""
    data = load(f"{name}.h5ad")
    gpnsf.pp.deviance_features(data, n_top=N_GENES)
    return data[:, data.var["highly_deviant"].to_numpy()].copy()


def real_rows(seeds: range, cases: Cases) -> Iterator[dict]:
    """Real sections, the 2,000 most deviant genes (of fewer, all). No truth is known; a
    factor that is called nonspatial should not show clear spatial order in held-out counts
    (z > 6), and the median spatial importance of genes should not follow T. Warnings: how many
    the fit gave. The seeds are those of the fit."""

    def score(data) -> dict:
        info, spatial = data.uns["gpnsf"], is_spatial(data)
        z = np.asarray(info["spatial_test"].get("z", np.full(len(spatial), np.nan)))
        for text in info["warnings"]:
            print("   ", text)
        return {
            "nonspatial, z > 6": int((z[~spatial] > CLEAR_Z).sum()),
            "median importance": float(data.var["gpnsf_spatial_importance"].median()),
            "warnings": len(info["warnings"]),
        }

    for name, options in SECTIONS.items():
        data = real_section(name) if cases.wanted(name) else None
        for n_spatial in (None, 2, 6, 10, 12):
            for seed in seeds:
                yield from cases.fit(name, data, (12, n_spatial), seed, score, **options)


def holdout_rows(seeds: range, cases: Cases) -> Iterator[dict]:
    """Real sections, the 2,000 most deviant genes (of fewer, all), a random fifth of the
    spots held out. Explained: explained deviance by `tl.evaluate` (null model: one rate for each
    gene); the depth of unseen spots is given to model and null model. Each seed is that of the
    choice of spots and of the fit."""

    def score(data) -> dict:
        lines = gpnsf.tl.evaluate(data).set_index("rows")["explained"]
        return {
            "explained, unseen": float(lines["holdout"]),
            "explained, seen": float(lines["train"]),
        }

    for name in ("visium_crc", "pdac_a", "mob_rep11"):
        for model in ("gpnsf", "nsf"):
            for seed in seeds:
                case = f"{name}, {model}"
                data = real_section(name) if cases.wanted(case) else None
                if data is not None:
                    gpnsf.pp.split(data, fraction=0.2, seed=seed)
                options = {"model": model, "holdout_key": "holdout"}
                yield from cases.fit(case, data, (12, None), seed, score, **options)


def figure_rows(seeds: range, cases: Cases) -> Iterator[dict]:
    """Draw the layers and the depth of the deep and the shallow section; no rows."""
    figure, axes = plt.subplots(2, 3, figsize=(9.5, 5.2), layout="constrained")
    for line, name in zip(axes, DEPTHS, strict=True):
        data, shape = layers(name, seeds[0]), LAYOUTS[name].shape
        codes = data.obs["layer"].cat.codes.to_numpy()
        colors = ListedColormap(category_colors(codes.max() + 1))
        panels = {f"{name}: true layers": (codes, {"cmap": colors})}
        for modality in BOTH:
            total = np.asarray(data[modality].X.sum(1)).ravel()
            panels[f"{modality.upper()} counts a spot"] = total, {"vmax": np.quantile(total, 0.95)}
        for ax, (title, (values, shown)) in zip(line, panels.items(), strict=True):
            image = ax.imshow(values.reshape(shape).T, **shown)
            ax.set(title=title, xticks=[], yticks=[])
            if "vmax" in shown:
                figure.colorbar(image, ax=ax, shrink=0.7, extend="max")
    figure.suptitle("Semi-synthetic sections: sums of real cells, thinned to a measured depth")
    figure.savefig(FIGURES / "upper_bound_layers.png", dpi=100)
    plt.close(figure)
    yield from ()


GROUPS = {
    "patterns": pattern_rows,
    "tissue": tissue_rows,
    "waves": wave_rows,
    "layers": layer_rows,
    "worse": worse_rows,
    "cortex": cortex_rows,
    "real": real_rows,
    "holdout": holdout_rows,
    "figure": figure_rows,
}


def joined(values: pd.Series) -> str:
    """Numbers or words of all seeds, in their order."""
    decimals = 1 if values.name == "CPU s" else 3
    return " ".join(f"{v:.{decimals}f}" if isinstance(v, float) else str(v) for v in values)


def table(rows: list[dict]) -> pd.DataFrame:
    """One row for each case and number of factors, with the scores of all seeds."""
    frame = pd.DataFrame(rows)
    groups = frame.groupby(["case", "K", "T"], sort=False)
    result = groups.agg(joined).drop(columns="seed")
    result["CPU s"] = groups["CPU s"].mean().map("{:.0f}".format)
    return result.reset_index()


def rounded(row: dict) -> dict:
    """A row to be printed."""
    return {k: round(float(v), 3) if isinstance(v, float) else v for k, v in row.items()}


def write(name: str, rows: list[dict], *, above: str) -> None:
    """The table of a group, with what it shows below it and what is said of the code above it."""
    seeds = sorted({row["seed"] for row in rows})
    note = (
        f"{GROUPS[name].__doc__} Seeds in this order: {', '.join(map(str, seeds))}. "
        f"K and T: numbers of factors, and of spatial ones, as asked; kept: spatial + nonspatial factors of the result. {machine()}."
    )
    write_table(f"upper_bound_{name}", table(rows), " ".join(note.split()), above=above)


def main() -> None:
    """The groups asked for, each with a table of its own."""
    arguments = parser(__doc__)
    every = {"choices": GROUPS, "default": list(GROUPS)}
    arguments.add_argument("--only", nargs="+", metavar="GROUP", **every)
    arguments.add_argument("--seeds", type=int, default=3, help="how many (%(default)s)")
    arguments.add_argument("--first", type=int, default=0, help="the first seed (%(default)s)")
    arguments.add_argument("--cases", default="", help="only rows whose name contains this text")
    arguments.add_argument("--about", default="", help="a sentence about the code, above the table")
    arguments.add_argument("--no-table", action="store_true", help="print rows and write nothing")
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("gpnsf").setLevel("ERROR")
    loaded()
    seeds = range(options.first, options.first + options.seeds)
    for name in options.only:
        rows = []
        for row in GROUPS[name](seeds, Cases(options.cases)):
            rows.append(row)
            print(rounded(row), flush=True)
        if rows and not (options.cases or options.no_table):
            write(name, rows, above=options.about)


if __name__ == "__main__":
    main()
