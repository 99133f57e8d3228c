"""FactVAE: clusters of cells by its codes, and links by its loadings, in cell lines, a semi-synthetic cortex and simulated tissue.

GPNSF_DATA_DIR=... gpnsf benchmark factvae [--seeds 5] [--only cells rivals augmentation] [--jobs 4]

Parts: cells, rivals, cortex, links; augmentation; domains, sweep, scale.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable

import factvae_rivals
import mudata
import numpy as np
import pandas as pd
from factvae_augmentation import augmentation
from factvae_more import domains, scale, sweep
from factvae_rivals import agreement, inputs, paired
from joblib import Parallel, delayed
from links import BINS, spearman
from report import machine, parser, write_table

import gpnsf
from gpnsf.datasets.files import data_dir, load

AGAINST = "against PCs of RNA: ARI / NMI, p"
FEW = 2  # seeds of what is shown beside the default
RANKINGS = "score", "distance", "score x distance"
HELD_OUT = 0.2  # of the overlaps
SIMULATED = {
    "n_obs": 1000,
    "n_genes": 600,
    "n_peaks": 1500,
    "rna_depth": 2000.0,
    "atac_depth": 300.0,
}
ARMS = {
    "as it is": {},
    "alignment=False": {"alignment": False},
    "regulatory_weight=0": {"regulatory_weight": 0.0},
    'variant="paper"': {"variant": "paper"},
}


def line(
    codes: str,
    scores: list[tuple[float, ...]],
    seconds: float | None = None,
    reference: list[tuple[float, ...]] | None = None,
) -> dict[str, str]:
    """Mean and sd over seeds as a row of the table; with a reference, also the silhouette, and the test against it."""
    mean, sd = np.mean(scores, axis=0), np.std(scores, axis=0)
    spread = [f" ({value:.3f})" if len(scores) > 1 else "" for value in sd]
    row = {
        "codes": codes,
        "ARI": f"{mean[0]:.3f}{spread[0]}",
        "NMI": f"{mean[1]:.3f}{spread[1]}",
    }
    if reference is not None:
        row |= {"silhouette": f"{mean[2]:.3f}", AGAINST: paired(scores, reference)}
    row |= {"seeds": len(scores), "CPU s": "" if seconds is None else f"{seconds:.0f}"}
    print(row, flush=True)
    return row


def failed(codes: str, said: str) -> dict[str, str]:
    """The row of a rival that did not run."""
    return {"codes": codes, "ARI": f"failed: `{said}`"} | dict.fromkeys(
        ("NMI", "silhouette", AGAINST, "seeds", "CPU s"), ""
    )


def fitted(name: str, arm: str, seed: int, judge: Callable | None, options: dict) -> dict:
    """Scores of the joint codes and of those of each modality, CPU seconds, and what ``judge`` says, of one fit."""
    quiet()
    mdata, began = load(name), time.process_time()
    gpnsf.tl.factvae(mdata, seed=seed, progress=False, **ARMS[arm], **options)
    seconds, truth = time.process_time() - began, mdata.obs["cell_type"].to_numpy()
    holders = {"joint": mdata, "RNA": mdata["rna"], "ATAC": mdata["atac"]}
    scores = {
        part: agreement(holder.obsm["X_factvae"], truth, seed) for part, holder in holders.items()
    }
    print(name, arm, seed, scores, flush=True)
    return {
        "scores": scores,
        "seconds": seconds,
        "judged": judge(mdata, options) if judge else None,
    }


def clustering(
    name: str,
    table: str,
    arms: dict[str, int],
    note: str,
    n_jobs: int,
    judge=None,
    rivals: bool = False,
    **options,
) -> dict:
    """Write the table of one data set, with rivals or with what the encoders read alone, and return what was judged, by arm."""
    todo = [(arm, seed) for arm, n_seeds in arms.items() for seed in range(n_seeds)]
    results = Parallel(n_jobs, backend="multiprocessing")(
        delayed(fitted)(name, arm, seed, judge, options) for arm, seed in todo
    )
    rows, reference = others(name, max(arms.values()), rivals)
    for arm in arms:
        done = [result for result, (other, _) in zip(results, todo, strict=True) if other == arm]
        seconds = float(np.mean([result["seconds"] for result in done]))
        for part in ("joint", "RNA", "ATAC"):
            scores = [result["scores"][part] for result in done]
            took = seconds if part == "joint" else None
            rows.append(line(f"FactVAE, {arm}: {part}", scores, took, reference))
    write_table(
        table,
        pd.DataFrame(rows),
        f"{note} Mean (sd) over seeds of the fit and of k-means. {machine()}.",
    )
    return {
        arm: [
            result["judged"]
            for result, (other, _) in zip(results, todo, strict=True)
            if other == arm
        ]
        for arm in arms
    }


def others(name: str, n_seeds: int, rivals: bool) -> tuple[list[dict], list | None]:
    """Rows of what the encoders read and of rivals, and the scores that all are compared with, if there are rivals."""
    truth = load(name).obs["cell_type"].to_numpy()
    parts = inputs(load(name))
    if rivals:
        parts["no model: both side by side"] = factvae_rivals.beside(*parts.values())
    found = {
        codes: [agreement(values, truth, seed) for seed in range(n_seeds)]
        for codes, values in parts.items()
    }
    reference = next(iter(found.values())) if rivals else None
    rows = [line(codes, scores, None, reference) for codes, scores in found.items()]
    if rivals:
        for codes, (scores, told) in factvae_rivals.run(lambda: load(name), truth, n_seeds).items():
            rows.append(line(codes, scores, told, reference) if scores else failed(codes, told))
    return rows, reference


def without(table: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Links that are not among some pairs."""
    keys = (
        pd.MultiIndex.from_frame(frame[["gene", "peak"]].astype(object)) for frame in (table, pairs)
    )
    return table[~next(keys).isin(next(keys))].reset_index(drop=True)


def overlaps(mdata, options: dict) -> list[float]:
    """How held-out overlaps rank among pairs at the same distance, by the loadings and by Spearman's correlation."""
    known = mdata.uns["factvae"]["overlaps"]
    if known.empty:  # without the regulatory loss nothing is trained: the same pairs are looked for
        aside = load("snareseq_human_celllines")
        gpnsf.tl.factvae(
            aside, seed=int(mdata.uns["factvae"]["seed"]), max_epochs=1, progress=False, **options
        )
        known = aside.uns["factvae"]["overlaps"]
    gpnsf.tl.link_peaks(mdata, annotation=options["annotation"], key="factvae")
    table = mdata.uns["factvae_links"]
    trained = table.merge(known[known["trained"]], on=["gene", "peak"])["score"].mean()
    table = without(table, known[known["trained"]])
    table["spearman"] = spearman(mdata, table)
    mdata.uns["factvae_links"] = table
    ours, rival = (
        ranked(mdata, known[~known["trained"]], score) for score in ("score", "spearman")
    )
    equal = "score", "equal distance"
    return [
        *ours.loc[equal, "estimate"],
        ours.loc[equal, "base"].iloc[1],
        rival.loc[equal, "estimate"].iloc[0],
        trained,
        ours["n_links"].iloc[0],
        *(value for name in RANKINGS for value in ours.loc[(name, "all"), "estimate"]),
        ours.loc[("score", "all"), "base"].iloc[1],
    ]


def ranked(mdata, truth: pd.DataFrame, score: str) -> pd.DataFrame:
    """What `tl.evaluate_links` says of the links of FactVAE: AUROC, then average precision, by ranking and pairs."""
    judged = gpnsf.tl.evaluate_links(
        mdata, truth, score=score, distances=BINS, n_bootstrap=20, key="factvae"
    )
    return judged.set_index(["ranking", "pairs"]).sort_index(kind="stable")


def among_all(values: list[float]) -> dict[str, str]:
    """Columns for all pairs, whatever their distance: score, distance and both."""
    pairs = zip(RANKINGS, values[:-1:2], values[1::2], strict=True)
    return {
        f"all pairs, {name}: AUROC, AP": f"{area:.3f}, {precision:.3f}"
        for name, area, precision in pairs
    } | {"base rate": f"{values[-1]:.3f}"}


def cells(n_seeds: int, n_jobs: int) -> None:
    """Cell lines: clusters, and overlaps of genes and peaks that were held out."""
    arms = {
        "as it is": n_seeds,
        "alignment=False": n_seeds,
        "regulatory_weight=0": FEW,
        'variant="paper"': FEW,
    }
    note = "SNARE-seq mixture of four cell lines, 1,047 cells, 500 genes, the 5,000 peaks of largest deviance."
    options = {"annotation": data_dir() / "genes_hg38.csv", "held_out_pairs": HELD_OUT}
    judged = clustering(
        "snareseq_human_celllines", "factvae_cells", arms, note, n_jobs, overlaps, **options
    )
    rows = []
    for arm, values in judged.items():
        area, precision, base, rival, trained, n_links, *whole = np.mean(values, axis=0)
        rows.append(
            {
                "FactVAE": arm,
                "seeds": len(values),
                "held-out overlaps": f"{n_links:.0f}",
                "AUROC": f"{area:.3f} ({np.std(values, axis=0)[0]:.3f})",
                "AP (base rate)": f"{precision:.3f} ({base:.3f})",
                "Spearman: AUROC": f"{rival:.3f}",
                "score of the other overlaps": f"{trained:.2f}",
            }
            | among_all(whole)
        )
    note = (
        f"Overlap: a peak in the body of a gene, or up to 2 kb before it. {HELD_OUT:.0%} of the overlaps, drawn anew for each seed, are held out and ranked among other pairs at the same distance from the "
        f"gene (bins that end at {', '.join(f'{end // 1000}' for end in BINS[1:])} kb). The other overlaps are left out; FactVAE is trained on them, "
        "unless regulatory_weight=0. All pairs: by score, by distance and by both, as in the table of gene-peak links. Spearman: over metacells, as for gene-peak links. Mean (sd) over seeds."
    )
    write_table("factvae_overlaps", pd.DataFrame(rows), f"{note} {machine()}.")


def rivals(n_seeds: int, n_jobs: int) -> None:
    """Cell lines: clusters by FactVAE and by its rivals, with a test over seeds."""
    note = (
        "The same cells; the 5,000 peaks of largest deviance (LSI: all peaks). FactVAE with all overlaps. Silhouette: of the true lines in the codes; "
        "it cannot be compared between codes of different kinds and dimensions. p: paired t test over seeds, where there are three or more; seeds vary fit and k-means, "
        "not the cells. tl.fit and scAI: clusters of the embedding by expected expression. MOFA and MultiVI: clusters of factors or latent variables; each runs in a process of its own."
    )
    options = {"annotation": data_dir() / "genes_hg38.csv", "rivals": True}
    arms = {"as it is": n_seeds}
    clustering("snareseq_human_celllines", "factvae_rivals", arms, note, n_jobs, **options)


def cortex(n_seeds: int, n_jobs: int) -> None:
    """The semi-synthetic cortex: clusters of single cells."""
    note = (
        "Semi-synthetic: real SNARE-seq cells of the mouse cortex, 2,984 of 11 types, 1,176 genes, the 5,000 peaks of largest "
        "deviance. The genes have no genomic positions, so FactVAE is not trained on overlaps."
    )
    clustering(
        "semi_cortex_cells",
        "factvae_cortex",
        {"as it is": n_seeds, "alignment=False": FEW},
        note,
        n_jobs,
    )


def links(n_seeds: int, _: int) -> None:
    """Planted links of the simulated tissue."""
    rows = []
    for arm in ARMS:
        found = []
        for seed in range(min(n_seeds, FEW)):
            mdata = gpnsf.datasets.tissue(seed=seed, **SIMULATED)
            gpnsf.tl.factvae(mdata, seed=seed, progress=False, **ARMS[arm])
            gpnsf.tl.link_peaks(mdata, key="factvae")
            table, truth = mdata.uns["factvae_links"], mdata.uns["true_links"]
            table["spearman"] = spearman(mdata, table)
            judged, rival = (ranked(mdata, truth, score) for score in ("score", "spearman"))
            equal = "score", "equal distance"
            scores = [
                *judged.loc[equal, "estimate"],
                judged.loc[equal, "base"].iloc[1],
                rival.loc[equal, "estimate"].iloc[0],
                (table["q"] <= 0.1).sum(),
                *(value for name in RANKINGS for value in judged.loc[(name, "all"), "estimate"]),
                judged.loc[("score", "all"), "base"].iloc[1],
            ]
            found.append(scores)
        area, precision, base, spearmans, sure, *whole = np.mean(found, axis=0)
        rows.append(
            {
                "FactVAE": arm,
                "seeds": len(found),
                "AUROC": f"{area:.3f}",
                "AP (base rate)": f"{precision:.3f} ({base:.3f})",
                "Spearman: AUROC": f"{spearmans:.3f}",
                "q <= .1": f"{sure:.0f}",
            }
            | among_all(whole)
        )
        print(rows[-1], flush=True)
    note = (
        "Simulated tissue, 1,000 spots, 600 genes, 1,500 peaks, 300 ATAC reads a spot, planted links ranked among other pairs at the same "
        "distance, as in the table of gene-peak links; then among all pairs, by score, by distance and by both."
    )
    write_table("factvae_links", pd.DataFrame(rows), f"{note} Means over seeds. {machine()}.")


def main() -> None:
    """All tables, or those that are named."""
    parts = {"cells": cells, "rivals": rivals, "cortex": cortex, "links": links}
    parts |= {"augmentation": augmentation, "domains": domains, "sweep": sweep, "scale": scale}
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--only", nargs="*", choices=parts, default=list(parts))
    arguments.add_argument("--jobs", type=int, default=1, help="processes side by side")
    chosen = arguments.parse_args()
    quiet()
    for name in chosen.only:
        parts[name](chosen.seeds, chosen.jobs)


def quiet() -> None:
    """Leave out what the log and mudata have to say."""
    warnings.simplefilter("ignore")
    logging.getLogger("gpnsf").setLevel("ERROR")
    if hasattr(mudata, "set_options"):
        mudata.set_options(pull_on_update=False)


if __name__ == "__main__":
    main()
