"""What augmented ATAC of FactVAE does to fold changes of peaks between types of cells: of peaks that mark types, and of peaks that mark nothing.

GPNSF_DATA_DIR=... gpnsf benchmark factvae --only augmentation
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from report import machine, write_table
from sklearn.neighbors import NearestNeighbors

import gpnsf
from gpnsf.core.scores.projections import principal_components
from gpnsf.datasets.files import data_dir, load
from gpnsf.genome import genes_of, pairs_overlapping, peak_positions

PSEUDO = 0.1  # of the mean value of a peak in a cell, added to the means of types
VARIANTS = {"plain": 2, "weak": 2, "closed": 2}  # seeds of each simulation
NEIGHBOURS = 15  # cells whose raw counts are averaged, for comparison
UPSTREAM = 2_000  # bases before a gene
FOLD, SURE, NOTHING = 1.0, 0.05, 0.2  # log2 fold change and q of a marker; least q of no marker
LAYER = "factvae_augmented"


def per_depth(values: np.ndarray) -> np.ndarray:
    """Values [n, P] of cells at the same total."""
    return values / np.maximum(values.sum(axis=1, keepdims=True), 1e-12)


def tf_idf(counts: np.ndarray) -> np.ndarray:
    """Log tf-idf weights [n, P] of counts."""
    idf = len(counts) / np.maximum(counts.sum(axis=0), 1.0)
    return np.log1p(1e4 * per_depth(per_depth(counts) * idf))


def neighbour_means(counts: np.ndarray, scores: np.ndarray, n_neighbours: int) -> np.ndarray:
    """Mean of the counts [n, P] of a cell and those nearest to it in the scores [n, C]."""
    near = NearestNeighbors(n_neighbors=n_neighbours).fit(scores).kneighbors_graph(scores)
    return (near @ counts) / n_neighbours


def fold_changes(values: np.ndarray, types: np.ndarray, pseudo: float = PSEUDO) -> np.ndarray:
    """Log2 fold change [types, P] of the mean of each type's cells over that of all others.

    ``pseudo`` times the mean of all values is added to both.
    """
    floor = pseudo * values.mean()
    inside = [types == name for name in np.unique(types)]
    return np.array(
        [
            np.log2((values[own].mean(axis=0) + floor) / (values[~own].mean(axis=0) + floor))
            for own in inside
        ]
    )


def welch(values: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Welch's t [types, P] of each type's cells against all others."""
    rows = []
    for name in np.unique(types):
        own, rest = values[types == name], values[types != name]
        spread = own.var(axis=0, ddof=1) / len(own) + rest.var(axis=0, ddof=1) / len(rest)
        rows.append((own.mean(axis=0) - rest.mean(axis=0)) / np.sqrt(np.maximum(spread, 1e-20)))
    return np.array(rows)


def found(ranked: np.ndarray, markers: np.ndarray) -> float:
    """Share of the markers [types, P] among as many peaks of the highest rank, mean over the types that have any."""
    shares = []
    for score, own in zip(ranked, markers, strict=True):
        if own.any():
            shares.append(own[np.argsort(-score, kind="stable")[: own.sum()]].mean())
    return float(np.mean(shares))


def judged(
    tables: dict[str, np.ndarray], types: np.ndarray, markers: np.ndarray, nothing: np.ndarray
) -> dict[str, dict[str, float]]:
    """What each table of values [n, P] says of markers [types, P] and of peaks [P] that mark nothing.

    The first table is the one that the others are compared with; "truth", if it is there, is the one they should be.
    """
    folds = {name: fold_changes(values, types) for name, values in tables.items()}
    first, truth = next(iter(folds.values())), folds.pop("truth", None)
    rows = {}
    for name, fold in folds.items():
        rows[name] = {
            "marker": float(fold[markers].mean()),
            "marker rises": float((fold[markers] > first[markers]).mean()),
            "null": float(np.abs(fold[:, nothing]).mean()),
            "null rises": float((np.abs(fold) > np.abs(first))[:, nothing].mean()),
            "top": found(fold, markers),
            "top, t": found(welch(tables[name], types), markers),
        }
        if truth is not None:
            rows[name]["error"] = float(np.sqrt(np.mean((fold - truth)[markers] ** 2)))
            rows[name]["null error"] = float(np.sqrt(np.mean((fold - truth)[:, nothing] ** 2)))
    if truth is not None:
        rows["truth"] = {
            "marker": float(truth[markers].mean()),
            "marker rises": float((truth[markers] > first[markers]).mean()),
            "null": float(np.abs(truth[:, nothing]).mean()),
        }
    return rows


def values(mdata) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tables [n, p] of the peaks that FactVAE describes, and their positions [p]."""
    augmented = mdata["atac"].layers[LAYER]
    chosen = np.flatnonzero(augmented.any(axis=0))
    counts = sp.csr_matrix(mdata["atac"].X)[:, chosen].toarray().astype(np.float64)
    scores = principal_components(sp.csr_matrix(mdata["rna"].X), 20, seed=0)
    tables = {
        "raw counts": per_depth(counts),
        "TF-IDF": tf_idf(counts),
        f"mean of {NEIGHBOURS} cells alike in RNA": per_depth(
            neighbour_means(counts, scores, NEIGHBOURS)
        ),
        "augmented": per_depth(augmented[:, chosen].astype(np.float64)),
    }
    return tables, chosen


def planted(variant: str, seed: int) -> dict[str, dict[str, float]]:
    """Simulated groups, whose true rates are known."""
    mdata = gpnsf.datasets.groups(variant, seed=seed)
    gpnsf.tl.factvae(mdata, layer_added=LAYER, seed=seed, progress=False)
    tables, chosen = values(mdata)
    group = mdata.obsm["true_factors"].argmax(axis=1)
    rates = mdata["atac"].varm["true_loadings"][chosen].T.astype(np.float64)
    size = mdata["atac"].obs["true_size"].to_numpy()[:, None]
    tables["truth"] = per_depth(-np.expm1(-size * rates[group]))
    markers = rates > 1.5 * rates.min(axis=0)
    return judged(tables, group, markers, ~mdata["atac"].var["marker"].to_numpy()[chosen])


def different(adata, types: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Features [types, P] that a type has more of by a t test, and those [P] in which no type differs."""
    aside = sc.AnnData(sp.csr_matrix(adata.X), obs={"type": types.to_numpy()}, var=adata.var[[]])
    aside.obs["type"] = aside.obs["type"].astype("category")
    sc.pp.normalize_total(aside)
    sc.pp.log1p(aside)
    sc.tl.rank_genes_groups(aside, "type", method="t-test")
    marks, least = [], np.ones(aside.n_vars)
    for name in aside.obs["type"].cat.categories:
        table = sc.get.rank_genes_groups_df(aside, name).set_index("names").loc[aside.var_names]
        q, fold = table["pvals_adj"].to_numpy(), table["logfoldchanges"].to_numpy()
        marks.append((q < SURE) & (fold > FOLD))
        least = np.minimum(least, q)
    return np.array(marks), least > NOTHING


def cell_lines(seed: int) -> Iterator[tuple[str, int, dict[str, dict[str, float]]]]:
    """One half of the cells says what marks a line; FactVAE sees the other half alone."""
    mdata = load("snareseq_human_celllines")
    half = np.random.default_rng(seed).permutation(mdata.n_obs) % 2 == 0
    asked, used = mdata[half].copy(), mdata[~half].copy()
    annotation = data_dir() / "genes_hg38.csv"
    gpnsf.tl.factvae(used, annotation=annotation, layer_added=LAYER, seed=seed, progress=False)
    tables, chosen = values(used)
    types = asked.obs["cell_type"].astype(str)
    genes = different(asked["rna"], types)[0]
    open_peaks, nothing = different(asked["atac"][:, chosen], types)
    near = near_markers(asked, genes, annotation)[:, chosen]
    nothing &= ~near.any(axis=0)
    seen = used.obs["cell_type"].astype(str).to_numpy()
    kinds = {
        "peaks of marker genes": near,
        "peaks that differ in the other half": open_peaks,
    }
    for kind, markers in kinds.items():
        yield kind, int(markers.sum()), judged(tables, seen, markers, nothing)


def near_markers(mdata, genes: np.ndarray, annotation) -> np.ndarray:
    """Peaks [types, P] in the body of a gene that marks the type, or shortly before it."""
    rna, atac = mdata["rna"], mdata["atac"]
    places = genes_of(annotation, rna.var, where="the annotation")
    places = places[places.index.isin(rna.var_names)]
    peaks = peak_positions(atac.var, where="atac")
    gene, peak = pairs_overlapping(places, peaks, UPSTREAM)
    marks = np.zeros((len(genes), atac.n_vars), dtype=bool)
    own = rna.var_names.get_indexer(places.index)[gene]
    for line, marked in zip(marks, genes, strict=True):
        line[atac.var_names.get_indexer(peaks.index[peak[marked[own]]])] = True
    return marks


def rows(data: str, n_markers: str, runs: list[dict[str, dict[str, float]]]) -> list[dict]:
    """Lines of the table: means over runs."""
    lines = []
    for name in runs[0]:
        mean = pd.DataFrame([run[name] for run in runs]).mean()
        text = lambda key, mean=mean: f"{mean[key]:.2f}" if key in mean else ""
        first = name == next(iter(runs[0]))
        lines.append(
            {
                "data": data,
                "marker peaks": n_markers,
                "accessibility": name,
                "log2 FC of markers": text("marker"),
                "rises in": "" if first else text("marker rises"),
                "abs. log2 FC of others": text("null"),
                "others: rises in": "" if first else text("null rises"),
                "error of log2 FC: markers / others": (
                    f"{mean['error']:.2f} / {mean['null error']:.2f}" if "error" in mean else ""
                ),
                "top n by FC / by t": (
                    f"{mean['top']:.2f} / {mean['top, t']:.2f}" if "top" in mean else ""
                ),
            }
        )
        print(lines[-1], flush=True)
    return lines


def augmentation(n_seeds: int, _: int) -> None:
    """Both tables."""
    lines = []
    for variant, number in VARIANTS.items():
        runs = [planted(variant, seed) for seed in range(min(n_seeds, number))]
        lines += rows(f"simulated groups, {variant}", "planted", runs)
    judgements: dict[str, list] = {}
    for seed in range(min(n_seeds, 2)):
        for kind, number, found_here in cell_lines(seed):
            judgements.setdefault(kind, []).append((number, found_here))
    for kind, several in judgements.items():
        count = f"{kind}, {np.mean([number for number, _ in several]):.0f}"
        lines += rows("cell lines", count, [found_here for _, found_here in several])
    note = (
        "Log2 fold changes of the mean share of the reads of a type's cells over that of all others, by the true types. "
        f"A pseudocount of {PSEUDO:g} times the mean over all peaks is added to both means; it is the same for raw and augmented values, whose totals are the same. Rises: share of the marker peaks whose fold change, and "
        "of the other peaks (in each type) whose absolute fold change, is above the raw one. Error: root mean square of the difference from the log2 fold change of the true rates, with the same pseudocount. Top n: share of the n marker peaks of a type among "
        "the n of highest fold change, or of highest Welch's t. Simulated: 500 cells, 5,000 peaks, 5 groups; 2 seeds. Cell lines: SNARE-seq, the 5,000 peaks of largest deviance. One random half of the cells tells which genes and "
        f"peaks mark a line (t test of log counts, q < {SURE:g}, log2 fold change > {FOLD:g}; others: q > {NOTHING:g} in all lines, in no marker gene); FactVAE is trained on the other half "
        f"and everything is measured there; 2 divisions. {machine()}."
    )
    write_table("factvae_augmentation", pd.DataFrame(lines), note)
