"""Cell types of real sections, whose composition nobody knows: unseen counts, regions, zones of a lymph node."""

from __future__ import annotations

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import pandas as pd
import scipy.sparse as sp
from deconvolution_rivals import Rivals
from deconvolution_sections import Mixture, means, pdac, shares
from PIL import Image
from report import FIGURES, machine, write_table
from scipy.special import xlogy
from sklearn.metrics import roc_auc_score

import gpnsf
from gpnsf.core.scores.metrics import knn_weights, morans_i
from gpnsf.datasets.files import load

TISSUE = {
    "nnls": {"method": "nnls"},
    "graph": {},
    "graph, spatial_weight=1": {"spatial_weight": 1.0},
    "unrolled": {"method": "unrolled", "n_training": 60},
}
SIDES = {"T": ("T_CD4", "T_CD8"), "B": ("B",)}
LYMPHOID = {"T": ("T_CD4", "T_CD8"), "NK + ILC": ("NK", "ILC"), "B": ("B",)}
N_MARKERS = 20
LYMPH_NOTE = (
    "1,000 real spots, 11 types of 30 cells. None of CD3E, CD3D, CCR7, IL7R, MS4A1, CD79A, CXCR5 is among the 1,224 genes of these spots, so markers are the "
    f"{N_MARKERS} genes of the 541 in common that tell T from B cells best in the reference (t of logarithms). T zone: the third of the spots ({{n_zone}}) with the highest score T minus B, against the "
    "third with the lowest. AUROC: how well the summed share of the named types tells the two apart; last three columns: means of these shares over the T zone. Left out: markers are not among the genes that are deconvolved, so that the zones "
    "do not come from the same counts; used: they are. T: {T}. B: {B}. Moran's I of the score: {moran:.2f}. {machine}."
)


def tissues() -> None:
    """Real sections without a truth: counts that were not seen, spatial order, and agreement with annotated regions."""
    lymph, cells = load("visium_lymphnode_1k"), load("scref_lymphnode")
    tumour, profiles = pdac()
    bulb, layers = load("mob_rep12_deconv"), load("mob_rep11")
    known = {
        "Cancer": ["Cancer clone A", "Cancer clone B"],
        "Duct Epithelium": [name for name in profiles if name.startswith("Ductal")],
        "Pancreatic": ["Acinar cells"],
        "Stroma": ["Fibroblasts", "Endothelial cells"],
    }
    named = {
        "Granular Cell": ["GC"], "Mitral Cell": ["M_TC"], "Outer Plexiform": ["EPL-IN"], "Glomerular": ["PGC"],
        "Nerve Layer": ["OSs"],
    }  # fmt: skip
    sections = {
        "human lymph node (Visium)": (lymph, cells, {"label_key": "cell_type"}, None, {}),
        "PDAC-A": (tumour, profiles, {}, "region", known),
        "olfactory bulb, replicate 12": (bulb, bulb.varm["reference_mean"], {}, None, {}),
        "olfactory bulb, replicate 11": (layers, bulb.varm["reference_mean"], {}, "layer", named),
    }
    rows = []
    for name, (adata, reference, options, key, groups) in sections.items():
        for method, chosen in TISSUE.items():
            option = {**options, **chosen}
            unseen = _unseen(adata, reference, option)
            V = shares(adata, reference, **option)
            weights = knn_weights(adata.obsm["spatial"].astype(float))
            rows.append(
                {
                    "section": name,
                    "method": method,
                    "genes": f"{adata.uns['proportions']['n_genes']:,}",
                    "deviance of unseen counts": f"{unseen:.4f}",
                    "Moran's I": f"{np.mean(morans_i(V, weights)):.2f}",
                    "regions (AUROC)": _auroc(adata, key, groups),
                }
            )
            print(rows[-1], flush=True)
    note = (
        "Real sections, whose proportions nobody knows. Deviance: counts are split in halves. Proportions come from one half; the deviance is the Poisson deviance of the other half, "
        "divided by that of one composition for all spots (below 1 is better). Moran's I: mean over types. AUROC: how well the summed share of the types that belong to a region tells "
        "it from the rest. The sections of the bulb share the profiles of one reference; only replicate 11 has layers. Unrolled with 60 simulated sections. "
        f"{machine()}."
    )
    write_table("deconvolution_tissue", pd.DataFrame(rows), note)


def lymph(rivals: Rivals | None) -> None:
    """Whether T cells are where T cells belong, by genes that the proportions have not seen."""
    spots, cells = load("visium_lymphnode_1k"), load("scref_lymphnode")
    genes = spots.var_names.intersection(cells.var_names)
    markers = lymph_markers(cells[:, genes])
    score = _score(spots, markers["T"]) - _score(spots, markers["B"])
    low, high = np.quantile(score, [1 / 3, 2 / 3])
    zone, kept = score >= high, (score >= high) | (score <= low)
    others = genes.difference([*markers["T"], *markers["B"]], sort=False)
    rows = []
    for hidden, chosen in (("left out", others), ("used", genes)):
        section = spots[:, chosen].copy()
        cells_of = cells[:, chosen].copy()
        found = {
            name: shares(section, cells_of, label_key="cell_type", **option)
            for name, option in TISSUE.items()
        }
        types = section.uns["proportions"]["types"]
        if rivals:
            profiles, numbers = means(cells_of)
            mixture = Mixture("lymph node", "cells", section, profiles, numbers)
            found |= {n: one["V"] for n, one in rivals.run(mixture).items() if "V" in one}
        for name, V in found.items():
            V = pd.DataFrame(V, columns=types)
            share = {part: V[list(names)].sum(axis=1) for part, names in LYMPHOID.items()}
            rows.append(
                {"markers": hidden, "method": name}
                | {
                    f"AUROC, {p}": f"{roc_auc_score(zone[kept], s[kept]):.2f}"
                    for p, s in share.items()
                }
                | {f"{p}, T zone": f"{s[zone].mean():.3f}" for p, s in share.items()}
            )
            print(rows[-1], flush=True)
    weights = knn_weights(spots.obsm["spatial"].astype(float))
    note = LYMPH_NOTE.format(
        n_zone=zone.sum(),
        T=", ".join(markers["T"]),
        B=", ".join(markers["B"]),
        moran=morans_i(score[:, None], weights)[0],
        machine=machine(),
    )
    write_table("deconvolution_lymph", pd.DataFrame(rows), note)


def lymph_markers(cells) -> dict[str, list[str]]:
    """The genes that tell T from B cells best in the reference, by t of logarithms of counts per 10,000."""
    counts = cells.to_df()
    logs = np.log1p(1e4 * counts.div(counts.sum(axis=1), axis=0))
    group = {side: logs[cells.obs["cell_type"].isin(SIDES[side]).to_numpy()] for side in SIDES}
    spread = np.sqrt(sum(table.var() / len(table) for table in group.values()))
    t = ((group["T"].mean() - group["B"].mean()) / spread).fillna(0).sort_values()
    return {"B": list(t.index[:N_MARKERS]), "T": list(t.index[: -N_MARKERS - 1 : -1])}


def _score(spots, genes: list[str]) -> np.ndarray:
    """Mean of standardised logarithms of normalised counts [N]."""
    counts = spots.to_df()
    logs = np.log1p(1e3 * counts[genes].div(counts.sum(axis=1), axis=0))
    return ((logs - logs.mean()) / logs.std()).mean(axis=1).to_numpy()


def figure() -> None:
    """The maps of the docs: the lymph node by a learned network."""
    lymph, cells = load("visium_lymphnode_1k"), load("scref_lymphnode")
    shares(lymph, cells, label_key="cell_type", **TISSUE["unrolled"])
    path = FIGURES / "deconvolution_lymphnode.png"
    gpnsf.pl.proportions(lymph, return_fig=True, show=False).savefig(
        path, dpi=110, bbox_inches="tight"
    )
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # a third as large


def _unseen(adata, reference, options) -> float:
    """Poisson deviance of one half of the counts, given proportions from the other, over that of one composition for all."""
    from gpnsf.tl.reference import matched, profiles_of

    X = adata.to_df().to_numpy().astype(int)
    half = np.random.default_rng(0).binomial(X, 0.5)
    seen = adata.copy()
    seen.X = sp.csr_matrix(half.astype(np.float32))
    V = shares(seen, reference, **options)
    profiles = profiles_of(reference, label_key=options.get("label_key"), layer=None)
    table = matched(profiles, adata, reference)
    rest = (X - half)[:, adata.var_names.get_indexer(table.index)]
    B = table.to_numpy()
    deviances = []
    for share in (V, np.broadcast_to(V.mean(axis=0), V.shape)):
        rate = share @ B.T
        rate *= rest.sum(axis=1, keepdims=True) / rate.sum(axis=1, keepdims=True)
        rate = np.maximum(rate, 1e-6)
        deviances.append(2 * (xlogy(rest, np.maximum(rest, 1e-9) / rate) - rest + rate).sum())
    return deviances[0] / deviances[1]


def _auroc(adata, region_key: str | None, groups) -> str:
    """How well shares of types tell their regions from the rest."""
    if region_key is None:
        return ""
    V = pd.DataFrame(adata.obsm["X_proportions"], columns=adata.uns["proportions"]["types"])
    labels = adata.obs[region_key].astype(object).fillna("unlabelled").astype(str)
    kept = ~labels.isin(["unlabelled", "nan"]).to_numpy()
    texts = []
    for region, types in groups.items():
        inside = labels.str.contains(region).to_numpy()[kept]
        texts.append(f"{region} {roc_auc_score(inside, V.loc[kept, types].sum(axis=1)):.2f}")
    return ", ".join(texts)
