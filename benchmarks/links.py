"""Gene-peak links: planted ones in simulations, nearby ones in a mixture of cell lines and in the semi-synthetic cortex.

GPNSF_DATA_DIR=... gpnsf benchmark links [--seeds 3]
"""

from __future__ import annotations

import logging
import warnings

import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from report import machine, parser, write_table
from scipy.stats import rankdata
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD

import gpnsf
from gpnsf.core.scores.link_rankings import contact
from gpnsf.datasets.files import data_dir, load
from gpnsf.genome import gene_positions, peak_positions

CELLS = 12  # of a metacell, on average
NEAR = 2_000  # bases from the start of a gene: its promoter
N_DECOYS = 5  # for each pair
FACTORS = 12, 30  # for the cell lines
BINS = (0, 2_000, 10_000, 25_000, 50_000, 100_000, 150_000)
AREA, PRECISION = "auroc", "average_precision"
rows: list[dict] = []  # of the three tables: scores at equal distance, beside distance, bin by bin
beside: list[dict] = []
binned: list[dict] = []


def simulated(seed: int, **settings):
    """A fitted tissue with planted links."""
    mdata = gpnsf.datasets.tissue(seed=seed, **settings)
    gpnsf.tl.fit(mdata, n_factors=10, n_spatial=8, seed=seed, progress=False)
    return mdata


def metacells(mdata) -> np.ndarray:
    """Group of each cell: k-means on 20 singular vectors of log RNA."""
    counts = sp.csr_matrix(mdata["rna"].X)
    scaled = sp.diags(1e3 / np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)) @ counts
    embedding = TruncatedSVD(20, random_state=0).fit_transform(scaled.log1p())
    return KMeans(mdata.n_obs // CELLS, n_init=3, random_state=0).fit_predict(embedding)


def spearman(mdata, table: pd.DataFrame) -> np.ndarray:
    """Rank correlation [n] of the pairs over metacells, each divided by its total."""
    group = metacells(mdata)
    average = sp.csr_matrix((np.ones(len(group)), (group, np.arange(len(group)))))
    ranks = []
    for name, column in (("rna", "gene"), ("atac", "peak")):
        counts = average @ sp.csr_matrix(mdata[name].X)
        counts = sp.csc_matrix(
            sp.diags(1 / np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)) @ counts
        )
        wanted = mdata[name].var_names.get_indexer(table[column])
        unique, position = np.unique(wanted, return_inverse=True)
        ranked = rankdata(counts[:, unique].toarray(), axis=0)
        ranked -= ranked.mean(axis=0)
        ranked /= np.maximum(np.linalg.norm(ranked, axis=0), 1e-12)
        ranks.append(ranked[:, position])
    return (ranks[0] * ranks[1]).sum(axis=0)


def judge(
    data: str,
    labels: str,
    mdata,
    truth: pd.DataFrame,
    distances=BINS,
    *,
    decoys: bool = False,
    whole: bool = False,
) -> None:
    """One line for the links of the object at equal distance, rivals beside them; with ``whole``, lines of the other tables."""
    table = mdata.uns["gpnsf_links"]
    table["spearman"] = spearman(mdata, table)
    scores = ["score", "spearman"]
    if not decoys:  # which are no other peaks of the gene
        table["conditional"] = conditional(mdata, table)
        scores.insert(1, "conditional")
    judged = {
        score: gpnsf.tl.evaluate_links(mdata, truth, score=score, distances=distances)
        for score in scores
    }
    lines = {score: chosen(found, "score", "equal distance") for score, found in judged.items()}
    area, precision = lines["score"].loc[AREA], lines["score"].loc[PRECISION]
    rows.append(
        {
            "data": data,
            "links / all pairs": f"{labels}: {int(area.n_links):,} / {int(area.n_pairs):,}",
            "AUROC": _interval(area),
            "AP (base rate)": f"{_interval(precision)} ({precision.base:.2f})",
            "conditional: AUROC": "" if decoys else _interval(lines["conditional"].loc[AREA]),
            "Spearman: AUROC": _interval(lines["spearman"].loc[AREA]),
            "p <= .05": f"{(table['p'] <= 0.05).mean():.3f}",
            "q <= .1": f"{(table['q'] <= 0.1).sum()}",
        }
    )
    print(rows[-1], flush=True)
    if whole:
        compare(f"{data}, {labels}", judged)


def conditional(mdata, table: pd.DataFrame) -> np.ndarray:
    """Scores [n] of the same pairs where the other peaks of the gene are held fixed."""
    aside = mdata.copy()
    gpnsf.tl.link_peaks(aside, pairs=table[["gene", "peak", "distance"]], conditional=True)
    found = aside.uns["gpnsf_links"].set_index(["gene", "peak"])["score"]
    return found.loc[pd.MultiIndex.from_frame(table[["gene", "peak"]])].to_numpy()


def chosen(judged: pd.DataFrame, ranking: str, pairs: str) -> pd.DataFrame:
    """The lines of one ranking of some pairs, by metric."""
    here = (judged["ranking"] == ranking) & (judged["pairs"] == pairs)
    return judged[here].set_index("metric")


def compare(data: str, judged: dict[str, pd.DataFrame]) -> None:
    """Each score, distance, and both, among all pairs and at equal distance; then the scores bin by bin."""
    names = {"score": "score", "conditional": "conditional score", "spearman": "Spearman"}
    rankings = [(name, score, "score") for score, name in names.items() if score in judged]
    if "distance" in set(judged["score"]["ranking"]):
        rankings.insert(0, ("distance", "score", "distance"))
        rankings += [
            (f"{name} x distance", score, "score x distance")
            for score, name in names.items()
            if score in judged
        ]
    for name, score, ranking in rankings:
        every, equal = (
            chosen(judged[score], ranking, pairs) for pairs in ("all", "equal distance")
        )
        line = {"data": data, "ranked by": name, "all pairs: AUROC": _interval(every.loc[AREA])}
        line["AP (base rate)"] = _with_base(every.loc[PRECISION])
        line["at equal distance: AUROC"] = _interval(equal.loc[AREA])
        beside.append(line | {"AP (base rate) ": _with_base(equal.loc[PRECISION])})
        print(beside[-1], flush=True)
    bins = judged["score"]["pairs"][~judged["score"]["pairs"].isin(["all", "equal distance"])]
    for name in bins.unique():
        area, precision = (chosen(judged["score"], "score", name).loc[m] for m in (AREA, PRECISION))
        rival = chosen(judged["spearman"], "score", name)
        line = {"data": data, "distance": name}
        line["links / pairs"] = f"{int(area.n_links):,} / {int(area.n_pairs):,}"
        line |= {"base rate": f"{precision.base:.3f}", "AP": _interval(precision)}
        line |= {"AUROC": _interval(area), "Spearman: AP": _interval(rival.loc[PRECISION])}
        binned.append(line | {"AUROC ": _interval(rival.loc[AREA])})


def _interval(line: pd.Series) -> str:
    return f"{line.estimate:.3f} [{line.low:.3f}, {line.high:.3f}]"


def _with_base(line: pd.Series) -> str:
    return f"{_interval(line)} ({line.base:.2f})"


def thinned(table: pd.DataFrame, truth: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Pairs without most of the far links: those that are left become rarer with distance as contacts do."""
    known = pd.MultiIndex.from_frame(truth[["gene", "peak"]])
    is_link = pd.MultiIndex.from_frame(table[["gene", "peak"]]).isin(known)
    kept = np.random.default_rng(seed).random(len(table)) < contact(table["distance"].to_numpy())
    return table[~is_link | kept]


def with_decoys(pairs: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Pairs and, for each, others of the same gene with peaks that lie as far from another gene."""
    rng = np.random.default_rng(seed)
    bins = np.digitize(pairs["distance"].abs().fillna(0), BINS, right=True)
    decoys = [
        pairs.assign(
            peak=pairs.groupby(bins)["peak"].transform(
                lambda column: rng.permutation(column.to_numpy())
            )
        )
        for _ in range(N_DECOYS)
    ]
    return pd.concat([pairs, *decoys], ignore_index=True).drop_duplicates(["gene", "peak"])


def simulations(n_seeds: int) -> None:
    """Planted links, then the same fits with peaks in places of other peaks."""
    fits = [simulated(seed) for seed in range(n_seeds)]
    for seed, mdata in enumerate(fits):
        gpnsf.tl.link_peaks(mdata)
        truth, first = mdata.uns["true_links"], seed == 0
        judge(f"simulated tissue, seed {seed}", "planted", mdata, truth, whole=first)
        if first:
            pairs = thinned(mdata.uns["gpnsf_links"], truth, seed)
            gpnsf.tl.link_peaks(mdata, pairs=pairs[["gene", "peak", "distance"]])
            labels = "planted, far ones thinned"
            judge(f"simulated tissue, seed {seed}", labels, mdata, truth, whole=True)
    for reads in (75.0, 300.0):
        mdata = simulated(
            0, n_obs=1000, n_genes=600, n_peaks=1500, rna_depth=2000.0, atac_depth=reads
        )
        gpnsf.tl.link_peaks(mdata)
        judge(
            f"a smaller tissue, {reads:.0f} ATAC reads a spot",
            "planted",
            mdata,
            mdata.uns["true_links"],
        )
    rng = np.random.default_rng(0)
    levels = (0.01, 0.05, 0.2)
    places = ["chrom", "chromStart", "chromEnd"]
    rates, false = [], []
    for mdata in fits:
        for _ in range(10):
            var = mdata["atac"].var
            var[places] = var[places].iloc[rng.permutation(len(var))].to_numpy()
            gpnsf.tl.link_peaks(mdata)
            table = mdata.uns["gpnsf_links"]
            rates.append([(table["p"] <= level).mean() for level in levels])
            false.append((table["q"] <= 0.1).sum())
    shares = ", ".join(f"{rate:.3f}" for rate in np.mean(rates, axis=0))
    rows.append(
        {
            "data": "simulated tissues, peaks shuffled",
            "links / all pairs": f"none; p <= .01, .05, .2 in {shares}",
            "AUROC": "",
            "AP (base rate)": "",
            "conditional: AUROC": "",
            "Spearman: AUROC": "",
            "p <= .05": f"{np.mean(rates, axis=0)[1]:.3f}",
            "q <= .1": f"{np.mean(false):.1f}",
        }
    )
    print(rows[-1], flush=True)


def cell_lines(n_factors: int) -> None:
    """Pairs near one another against decoys; gene bodies; promoters against all others."""
    mdata, annotation = load("snareseq_human_celllines"), data_dir() / "genes_hg38.csv"
    name = f"SNARE-seq cell lines, K = {n_factors}"
    gpnsf.tl.fit(mdata, model="pnmf", n_factors=n_factors, progress=False)
    gpnsf.tl.link_peaks(mdata, annotation=annotation)
    table = mdata.uns["gpnsf_links"].copy()
    near = table[table["distance"].abs() <= NEAR]
    first = n_factors == FACTORS[0]
    labels = f"within {NEAR // 1000} kb, distance not matched"
    judge(name, labels, mdata, near, None, whole=first)
    genes = gene_positions(annotation, where="the annotation").loc[table["gene"]]
    peaks = peak_positions(mdata["atac"].var, where="atac").loc[table["peak"]]
    middle = (peaks["start"] + peaks["end"]).to_numpy() / 2
    inside = (genes["start"].to_numpy() <= middle) & (middle <= genes["end"].to_numpy())
    judge(name, "in the gene's body", mdata, table[inside], whole=first)
    for label, pairs in (
        ("all near pairs against decoys", table),
        ("promoters against decoys", near),
    ):
        gpnsf.tl.link_peaks(mdata, pairs=with_decoys(pairs[["gene", "peak", "distance"]], seed=0))
        judge(name, label, mdata, pairs, decoys=True, whole=first and pairs is table)


def cortex() -> None:
    """The gene-region connections that come with the file against decoys."""
    mdata = load("semi_cortex_spots")
    pairs = mdata["atac"].uns["gene_peak_links"][["gene", "peak"]].astype(str)
    gpnsf.tl.fit(mdata, n_factors=12, n_spatial=8, progress=False)
    gpnsf.tl.link_peaks(mdata, pairs=with_decoys(pairs.assign(distance=0.0), seed=0)[list(pairs)])
    labels = "connections of the file against decoys"
    judge("semi-synthetic cortex spots", labels, mdata, pairs, decoys=True, whole=True)


def main() -> None:
    """All rows of the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=3)
    n_seeds = arguments.parse_args().seeds
    warnings.simplefilter("ignore")
    logging.getLogger("gpnsf").setLevel("WARNING")
    if hasattr(mudata, "set_options"):
        mudata.set_options(pull_on_update=False)
    simulations(n_seeds)
    for n_factors in FACTORS:
        cell_lines(n_factors)
    cortex()
    simulated_are = (
        "Simulated: 2,500 spots, 2,000 genes, 5,000 peaks, 250 ATAC reads a spot, 10 factors (smaller: 1,000, 600, 1,500); half of the "
        'peaks lie near the gene that they resemble most, at the same distances as the others ("planted").'
    )
    far = '"Far ones thinned": planted links are kept with the probability of contact at their distance, by the law of the ABC model.'
    note = (
        "95 % intervals over genes. Pairs are compared within bins of distance that end at "
        f"{', '.join(f'{end // 1000}' for end in BINS[1:])} kb, unless the row says otherwise. {simulated_are} {far} "
        f"Decoys: for each pair, the gene with {N_DECOYS} peaks that lie as far from another gene; columns p and q then include the decoys. Cell lines: 1,047 cells "
        "without coordinates (pnmf), 500 genes; strands are not known, so either end of a gene may be its start. Cortex: semi-synthetic, "
        "connections of genes and peaks as published with the cells, which are real; the genes have no genomic positions. Conditional: the score given the other peaks of the gene (not computed where there are decoys). "
        f"Spearman: over metacells of {CELLS} cells. {machine()}."
    )
    write_table("links", pd.DataFrame(rows), note)
    note = (
        "Pairs and links of the first table of gene-peak links. Distance: the closest first. Score x distance: max(score, 0) (max(d, 5 kb) / 5 kb)^-1.024, the law of contact of the ABC model. 95 % intervals over genes. "
        f"{machine()}."
    )
    write_table("links_distance", pd.DataFrame(beside), note)
    note = f"Pairs and links of the first table of gene-peak links, each bin of distances by itself; bins that lack links, or pairs without a link, are left out. 95 % intervals over genes. {machine()}."
    write_table("links_bins", pd.DataFrame(binned), note)


if __name__ == "__main__":
    main()
