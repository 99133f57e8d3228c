"""Whether the number of factors is an upper bound: fits that are asked for too many beside fits that are not.

gpnsf benchmark upper_bound [--only GROUP ...] [--seeds 3] [--first 0] [--cases TEXT] [--stamp TEXT]

GPNSF_DATA_DIR must name the data folder, except for --only waves. --cases runs only the rows whose
name contains the text; such a run, and one with --no-table, leaves no table.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
from fits import loaded
from layers import LAYOUTS, layers, waves
from report import machine, measured, parser, write_table
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

import gpnsf
from gpnsf.core.clustering import cluster
from gpnsf.core.metrics import knn_weights, match_factors

BOTH = ["rna", "atac"]
N_COMPONENTS = 15  # of the references


class Cases:
    """Fits of one run of this benchmark, and the text that names of rows must contain."""

    def __init__(self, text: str = "") -> None:
        self.text = text

    def wanted(self, name: str) -> bool:
        """Whether a row is to be run."""
        return self.text in name

    def fit(self, name: str, data, asked: tuple[int, int | None], seed: int, score, **arguments):
        """The row of one fit of a copy, as a list of none or one; ``score`` maps the copy to columns."""
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
        is_spatial = np.asarray(data.uns["gpnsf"]["is_spatial"])
        return [
            {
                "case": name,
                "K": n_factors,
                "T": "default" if n_spatial is None else n_spatial,
                "seed": seed,
                **score(data),
                "CPU s": run.cpu,
                "kept": f"{is_spatial.sum()}+{(~is_spatial).sum()}",
            }
        ]


def recovered(data, truth: np.ndarray) -> np.ndarray:
    """Correlation of each true pattern with the spatial factor that matches it, 0 where there is none."""
    return match_factors(truth, data.obsm["X_gpnsf"][:, is_spatial(data)])[1]


def is_spatial(data) -> np.ndarray:
    """Which factors [K] of a fit are spatial."""
    return np.asarray(data.uns["gpnsf"]["is_spatial"])


def wave_rows(seeds: range, cases: Cases) -> Iterator[dict]:
    """Ten simulated smooth factors, 3,000 spots, 600 genes and 800 peaks, no nonspatial factor in truth.
    r: correlation of true factors with spatial factors matched to them."""

    def score(data) -> dict:
        r = recovered(data, data.obsm["true_factors"])
        return {"r, mean": r.mean(), "r, worst": r.min()}

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
    """The row of k-means of principal components of log-normalised RNA, averaged over neighbours."""
    name = f"{name}, RNA: PCA of {n_neighbors}-neighbour means"
    if not cases.wanted(name):
        return []
    with measured() as run:
        counts = data["rna"].X
        total = np.asarray(counts.sum(1))
        logs = np.log1p(counts.toarray() / np.maximum(total, 1) * np.median(total))
        weights = knn_weights(np.asarray(data.obsm["spatial"]), n_neighbors)
        logs = (logs + n_neighbors * (weights @ logs)) / (n_neighbors + 1)
        points = PCA(N_COMPONENTS, random_state=seed).fit_transform(logs)
        labels = cluster(points, len(np.unique(truth)))
    score = {"ARI": adjusted_rand_score(truth, labels), "CPU s": run.cpu, "kept": ""}
    return [{"case": name, "K": "", "T": "", "seed": seed, **score}]


def layer_rows(seeds: range, cases: Cases) -> Iterator[dict]:
    """Semi-synthetic data: real SNARE-seq cells summed into the spots of simulated layers and thinned
    to a measured depth; "deep": 3,000 spots, four layers, 500 RNA and 140 ATAC counts a spot;
    "shallow": 2,000 spots, five bands, 160 and 35. ARI of `tl.domains` at the true number."""
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


GROUPS = {"waves": wave_rows, "layers": layer_rows}


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


def main() -> None:
    """The groups asked for, each with a table of its own."""
    arguments = parser(__doc__)
    arguments.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP")
    arguments.add_argument("--seeds", type=int, default=3, help="how many (%(default)s)")
    arguments.add_argument("--first", type=int, default=0, help="the first seed (%(default)s)")
    arguments.add_argument("--cases", default="", help="only rows whose name contains this text")
    arguments.add_argument("--stamp", default="", help="a sentence about the code, for the table")
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
            print({k: round(float(v), 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        if options.cases or options.no_table or not rows:
            continue
        about = " ".join(GROUPS[name].__doc__.split())
        note = (
            f"{about} Seeds {seeds[0]} to {seeds[-1]} of data and fit, in this order. K and T: as asked; "
            f"kept: spatial + nonspatial factors of the result. {options.stamp} {machine()}."
        )
        write_table(f"upper_bound_{name}", table(rows), " ".join(note.split()))


if __name__ == "__main__":
    main()
