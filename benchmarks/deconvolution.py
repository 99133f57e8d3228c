"""Cell types of spots: the published layer, simulations of falling depth, and sections of tissue.

GPNSF_DATA_DIR=... gpnsf benchmark deconvolution [--only square depth seqfish pdac tissue figure] [--sets 4]
"""

from __future__ import annotations

import warnings
from itertools import product

import matplotlib as mpl

mpl.use("Agg")

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from PIL import Image
from report import FIGURES, machine, parser, write_table
from scipy.optimize import nnls
from scipy.spatial.distance import cdist
from scipy.special import xlogy
from sklearn.metrics import roc_auc_score

import gpnsf
from gpnsf.core.companions.deconvolution import summarised
from gpnsf.core.companions.unrolling import Network, Section, train
from gpnsf.core.scores import agreement
from gpnsf.core.scores.metrics import knn_weights, morans_i
from gpnsf.core.scores.neighbours import ties
from gpnsf.datasets.files import load

LAYERS = 150
LEARNED = {
    "l1": 27.5,
    "l2": 47.5,
    "l3": 27.5,
    "s1": 2.75,
    "s2": 2.75,
}  # as published with the four types on a square
GRID = {
    "spatial_weight": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "total_weight": (0.1, 1.0),
    "bandwidth": (0.5, 1.0, 2.0),
}
FULL = 10_000.0  # counts of a spot at full depth
TUNING, N_OTHERS, EPOCHS = (
    100,
    16,
    12,
)  # first seed and number of the sections that weights are tuned on; how often a network sees them
METHODS = ("nnls", "graph", "unrolled")
TISSUE = {
    "nnls": {"method": "nnls"},
    "graph": {},
    "graph, spatial_weight=1": {"spatial_weight": 1.0},
    "unrolled": {"method": "unrolled", "n_training": 60},
}


def shares(adata, reference, key: str = "proportions", **options) -> np.ndarray:
    """Proportions [N, C]."""
    gpnsf.tl.deconvolve(adata, reference, key_added=key, progress=False, **options)
    return adata.obsm[f"X_{key}"].astype(float)


def published(X, B, coords, regions, *, l1, l2, l3, s1, s2, eps=1e-12) -> np.ndarray:
    """The published network with equal weights of types: X [P, N] and B [P, C] as they are, everything dense."""
    n_spots, n_types = X.shape[1], B.shape[1]
    contrast = 2.0 * (regions[:, None] != regions)
    A = np.exp(-(cdist(coords, coords) ** 2) / (s1**2 + eps) - contrast**2 / (s2**2 + eps))
    D, W = A.sum(axis=1), np.full((n_spots, n_types), 1 / n_types)
    V = np.full((n_types, n_spots), 1 / n_spots)
    for _ in range(LAYERS):
        pull = B.T @ X + l1 * V @ A + l2 * n_spots
        push = B.T @ B @ V + l1 * V * D + l2 * n_spots * V.sum(axis=0) + 2 * l3 * W.T @ (W @ V)
        V = V * pull / (push + eps)
        V[V < 1e-3] = 0
        V = V / np.maximum(V.sum(axis=0), eps)
    return V.T


def _plain(X, B) -> np.ndarray:
    """Multiplicative least squares without penalties, thresholds or normalisation before the end."""
    V = np.full((B.shape[1], X.shape[1]), 1 / X.shape[1])
    for _ in range(LAYERS):
        V = V * (B.T @ X) / (B.T @ B @ V)
    return _rows(V.T)


def square() -> None:
    """The published set of four types, whose counts are exact mixtures."""
    adata = load("stl_synthetic_square")
    truth = adata.obsm["true_proportions"].to_numpy()
    profiles = adata.varm["reference_mean"]
    X, B = np.asarray(adata.to_df()).T.astype(float), profiles.to_numpy(dtype=float)
    coords = adata.obsm["spatial"].astype(float)
    regions = adata.obs["region"].astype(str).to_numpy()
    off = dict.fromkeys(("l1", "l2", "l3"), 0.0)
    found = {
        f"published layer, {LAYERS} layers, published weights": published(
            X, B, coords, regions, **LEARNED
        ),
        f"the same layer, {LAYERS} layers, weights 0": published(
            X, B, coords, regions, **{**LEARNED, **off}
        ),
        f"plain multiplicative least squares, {LAYERS} steps": _plain(X, B),
        "exact least squares, no weighting of genes": _rows([nnls(B, x)[0] for x in X.T]),
        'gpnsf, method="nnls"': shares(adata, profiles, method="nnls"),
        'gpnsf, method="graph"': shares(adata, profiles),
        'gpnsf, method="graph", spatial_weight=0.001': shares(
            adata, profiles, spatial_weight=0.001
        ),
    }
    rows = [{"method": name, **_measures(V, truth, coords)} for name, V in found.items()]
    note = (
        "The simulated set of four types on a square that is published with STL NMF: 256 spots, 500 genes, counts are exact "
        f"mixtures. The published result has a relative error of .0691. Penalties of {LEARNED['l1']:g} and {LEARNED['l2']:g} are "
        f"nothing beside profiles with squared lengths of {np.square(B).sum(axis=0).min():.1g} to "
        f"{np.square(B).sum(axis=0).max():.1g}: the error is what {LAYERS} slow steps leave, and no regulariser can be judged on "
        f"this set. {machine()}."
    )
    write_table("deconvolution_square", pd.DataFrame(rows), note)


def depths(n_sets: int) -> None:
    """Simulated sections of falling depth; weights of the graph are tuned with the truth of other sections."""
    rows = []
    for share in (1.0, 0.05, 0.01):
        sets = [_simulated(seed, FULL * share) for seed in range(n_sets)]
        others = [_simulated(TUNING + seed, FULL * share) for seed in range(N_OTHERS)]
        best = _tuned(others)
        options = {
            "nnls": {"method": "nnls"},
            "graph": {},
            "tuned": best,
            "own": {"method": "unrolled"},
            "taught": {
                "method": "unrolled",
                "train": False,
                "network": _taught(others, shared=False),
            },
            "shared": {
                "method": "unrolled",
                "train": False,
                "network": _taught(others, shared=True),
            },
        }
        mean = {
            name: float(np.mean([_error(*pair, **chosen) for pair in sets]))
            for name, chosen in options.items()
        }
        rows.append(
            {
                "counts of a spot": f"{FULL * share:,.0f}",
                "NNLS": f"{mean['nnls']:.4f}",
                "graph, default": f"{mean['graph']:.4f}",
                "graph, tuned": f"{mean['tuned']:.4f}",
                "tuned to": ", ".join(f"{value:g}" for value in best.values()),
                "unrolled, own simulations": f"{mean['own']:.4f}",
                "unrolled, same others": f"{mean['taught']:.4f}",
                "the same, shared layers": f"{mean['shared']:.4f}",
                "tuned / NNLS": f"{mean['tuned'] / mean['nnls']:.2f}",
                "own / tuned": f"{mean['own'] / mean['tuned']:.2f}",
                "same others / tuned": f"{mean['taught'] / mean['tuned']:.2f}",
            }
        )
        print(rows[-1], flush=True)
    note = (
        f"Relative error, mean over {n_sets} simulated sections of 196 spots, 200 genes and 6 similar types "
        "(`datasets.mixture(difference=0.5)`), true profiles as the reference. Tuned: the best of "
        f"{len(list(product(*GRID.values())))} combinations of `spatial_weight`, `total_weight`, `bandwidth` on {N_OTHERS} other sections, "
        'whose truth is known. Unrolled, own simulations: `method="unrolled"` as it is, which sees no truth but that of spots which it simulates with the profiles of the section; same others: '
        f"learned from the truth of the {N_OTHERS} sections that the graph is tuned on ({EPOCHS} times each). Asked for below full depth: "
        f"unrolled / tuned of at most .95, tuned / NNLS of at most .80. {machine()}."
    )
    write_table("deconvolution_depth", pd.DataFrame(rows), note)


def _taught(pairs, *, shared: bool) -> dict:
    """A network that has learned from sections with a truth."""
    network = Network(shared=shared)
    examples = []
    for spots, profiles in pairs:
        coords = spots.obsm["spatial"]
        mixture = summarised(spots.X.astype(float), profiles.to_numpy())
        section = Section.of(mixture, ties(coords, np.zeros(len(coords)), n_neighbors=6), unit=1.0)
        examples.append((section, torch.as_tensor(spots.obsm["true_proportions"].astype(float))))
    train(network, EPOCHS * examples)
    return {"n_layers": network.n_layers, **network.arrays()}


def seqfish() -> None:
    """Real cells summed over squares; profiles are those of the same cells, then with noise, then at low depth."""
    adata = load("seqfish_gridded_deconv")
    cells = adata.obsm["true_cell_counts"]
    X, number = adata.to_df().to_numpy(dtype=float), cells.to_numpy(dtype=float)
    own = pd.DataFrame(
        [nnls(number, gene)[0] for gene in X.T], index=adata.var_names, columns=cells.columns
    )
    own = own / own.sum() * 1e4
    noise = np.random.default_rng(0).lognormal(0, 0.5, own.shape)
    rows = []
    for (name, reference), share in product(
        {"own": own, "own, noisy": own * noise}.items(), (1.0, 0.01)
    ):
        thin = adata.copy()
        thin.X = sp.csr_matrix(
            np.random.default_rng(1).binomial(X.astype(int), share).astype(np.float32)
        )
        for method in METHODS:
            shares(thin, reference, method, method=method)
        table = gpnsf.tl.evaluate_deconvolution(thin, cells, key=METHODS)
        for line in table.itertuples():
            rows.append(
                {
                    "profiles": name,
                    "counts of a spot": f"{thin.X.sum() / 72:,.0f}",
                    "method": line.method,
                }
                | _line(line)
            )
        print(table.round(3).to_string(), flush=True)
    note = (
        "seqFISH+ cells of mouse cortex, summed over 72 squares of 1 to 17 cells, as published as a benchmark of deconvolution; real counts, 9,684 genes, 13 "
        "types. The truth is numbers of cells, what is estimated are shares of RNA. Profiles: least squares of the spots on the true numbers of cells, so they "
        "flatter every method; noisy: each value times a log-normal with sd .5. Low depth: binomial thinning to 1 %. "
        f"{machine()}."
    )
    write_table("deconvolution_seqfish", pd.DataFrame(rows), note)


def pdac_simulated() -> None:
    """Proportions by the regions of a real section, mixed from real profiles; regions and spots are joined on their names."""
    section, profiles = _pdac()
    section = section[section.obs["region"] != "unlabelled"].copy()
    chosen = {
        "3": ["Cancer clone A", "Ductal - CRISP3 high/centroacinar like", "Fibroblasts"],
        "5": [
            "Cancer clone A",
            "Ductal - CRISP3 high/centroacinar like",
            "Fibroblasts",
            "Acinar cells",
            "Endothelial cells",
        ],
    }
    options = {
        "NNLS": {"method": "nnls"},
        "graph": {},
        "graph, regions": {"region_key": "region"},
        "unrolled, regions": {"method": "unrolled", "region_key": "region", "n_training": 60},
    }
    rows, networks = [], {}
    for (number, types), kind, noisy in product(chosen.items(), ("v0", "v1", "v2"), (True, False)):
        B, errors = profiles[types], {name: [] for name in options}
        for seed in range(2):
            rng = np.random.default_rng(seed)
            truth = _regional(section, number, kind, rng)
            X = truth @ B.to_numpy().T
            X = np.round(np.maximum(X + rng.normal(0, 0.5, X.shape), 0)) if noisy else X
            spots = anndata.AnnData(
                X.astype(np.float32), obs=section.obs, var=pd.DataFrame(index=B.index)
            )
            spots.obsm["spatial"] = section.obsm["spatial"]
            for name, option in options.items():
                if "unrolled" in name and number in networks:
                    option = {**option, "train": False, "network": networks[number]}
                errors[name].append(agreement.relative_error(shares(spots, B, **option), truth))
            networks.setdefault(number, spots.uns["proportions"]["network"])
        cells = {name: f"{np.mean(values):.4f}" for name, values in errors.items()}
        rows.append(
            {"types": number, "proportions": kind, "counts": "noisy" if noisy else "exact", **cells}
        )
        print(rows[-1], flush=True)
    note = (
        "Relative error, mean over two draws, after the protocol of STL NMF: proportions by the annotated regions of PDAC-A (426 spots), mixed from its inDrop profiles "
        "(10,431 genes). v0: constant in a region (3 types: .7 for one of them; 5: random); v1: with noise of sd .05; v2: smoothed. Exact: "
        "counts are mixtures; noisy: with noise of sd .5, cut off at zero and rounded, which adds some 1,700 counts to spots of about 2,000. Semi-synthetic. Our regions lie where the section has them: the published "
        f"generator takes them in the order of the rows. Unrolled: one network for each number of types, learned with the depths of its first noisy draw. {machine()}."
    )
    write_table("deconvolution_pdac", pd.DataFrame(rows), note)


def tissues() -> None:
    """Real sections without a truth: counts that were not seen, spatial order, and agreement with annotated regions."""
    lymph, cells = load("visium_lymphnode_1k"), load("scref_lymphnode")
    pdac, profiles = _pdac()
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
        "PDAC-A": (pdac, profiles, {}, "region", known),
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
        "Real sections, whose proportions nobody knows. Deviance: counts are split in halves, proportions come from one, and the Poisson deviance of the other, as a "
        "share of that under one composition for all spots, says how well they fit (below 1 is better). Moran's I: mean over types. AUROC: how well the share of the types named tells "
        "the region from the rest. The sections of the bulb share the profiles of one reference; only replicate 11 has layers. Unrolled with 60 simulated sections. "
        f"{machine()}."
    )
    write_table("deconvolution_tissue", pd.DataFrame(rows), note)


def figure() -> None:
    """The maps of the docs: the lymph node by a learned network."""
    lymph, cells = load("visium_lymphnode_1k"), load("scref_lymphnode")
    shares(lymph, cells, label_key="cell_type", **TISSUE["unrolled"])
    path = FIGURES / "deconvolution_lymphnode.png"
    gpnsf.pl.proportions(lymph, return_fig=True, show=False).savefig(
        path, dpi=110, bbox_inches="tight"
    )
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # a third as large


def _rows(V) -> np.ndarray:
    V = np.asarray(V)
    return V / V.sum(axis=1, keepdims=True)


def _measures(V, truth, coords) -> dict[str, str]:
    cells = agreement.lattice(coords)
    similar = np.mean(
        [agreement.ssim(one, other, cells) for one, other in zip(V.T, truth.T, strict=True)]
    )
    return {
        "relative error": f"{agreement.relative_error(V, truth):.4f}",
        "RMSE": f"{agreement.rmse(V, truth):.4f}",
        "JSD": f"{agreement.divergence(V, truth):.4f}",
        "PCC": f"{agreement.correlation(V, truth):.4f}",
        "SSIM": f"{similar:.4f}",
    }


def _line(line) -> dict[str, str]:
    """The measures of one line of `tl.evaluate_deconvolution`."""
    names = {
        "relative_error": "relative error",
        "rmse": "RMSE",
        "jsd": "JSD",
        "pcc": "PCC",
        "ssim": "SSIM",
    }
    return {title: f"{getattr(line, name):.3f}" for name, title in names.items()}


def _simulated(seed: int, depth: float):
    """Simulated spots and their true profiles."""
    spots, _ = gpnsf.datasets.mixture(
        n_obs=196, n_genes=200, n_types=6, depth=depth, difference=0.5, seed=seed
    )
    profiles = pd.DataFrame(
        spots.varm["true_profiles"], index=spots.var_names, columns=spots.uns["truth"]["types"]
    )
    return spots, profiles


def _error(spots, profiles, **options) -> float:
    return agreement.relative_error(
        shares(spots, profiles, **options), spots.obsm["true_proportions"]
    )


def _tuned(pairs) -> dict[str, float]:
    """Weights and bandwidth with the smallest mean error."""
    choices = [dict(zip(GRID, values, strict=True)) for values in product(*GRID.values())]
    return min(
        choices, key=lambda c: np.mean([_error(*pair, solver="fista", **c) for pair in pairs])
    )


def _pdac():
    """The section and the profiles that come with it."""
    adata = load("pdac_a")
    names = {
        "index": adata.uns["reference_mean_genes"],
        "columns": adata.uns["reference_mean_types"],
    }
    return adata, pd.DataFrame(adata.uns["reference_mean"], **names)


def _regional(section, number: str, kind: str, rng) -> np.ndarray:
    """Proportions [N, C] of the protocol."""
    regions = ["Cancer", "Duct Epithelium", "Stroma", "Pancreatic"]
    if number == "3":
        table = np.vstack([0.55 * np.eye(3) + 0.15, np.full(3, 1 / 3)])
    else:
        table = np.exp(rng.standard_normal((4, 5)))
    V = (table / table.sum(axis=1, keepdims=True))[
        [regions.index(name) for name in section.obs["region"]]
    ]
    if kind == "v1":
        V = np.maximum(V + rng.normal(0, 0.05, V.shape), 0)
    elif kind == "v2":
        kernel = np.exp(
            -(cdist(section.obsm["spatial"], section.obsm["spatial"]) ** 2) / (2 * 0.5**2)
        )
        V = kernel @ V
    return V / V.sum(axis=1, keepdims=True)


def _unseen(adata, reference, options) -> float:
    """Poisson deviance of one half of the counts, given proportions from the other, over that of one composition for all."""
    from gpnsf.tl.reference import matched, profiles_of

    X = adata.to_df().to_numpy().astype(int)
    half = np.random.default_rng(0).binomial(X, 0.5)
    seen = adata.copy()
    seen.X = sp.csr_matrix(half.astype(np.float32))
    V = shares(seen, reference, **options)
    table = matched(
        profiles_of(reference, label_key=options.get("label_key"), layer=None), adata.var_names
    )
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


PARTS = {
    "square": square,
    "seqfish": seqfish,
    "pdac": pdac_simulated,
    "tissue": tissues,
    "figure": figure,
}


def main() -> None:
    """The tables that are asked for."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--only", nargs="+", choices=["depth", *PARTS], default=["depth", *PARTS]
    )
    arguments.add_argument("--sets", type=int, default=4, help="simulated sections of a depth")
    chosen = arguments.parse_args()
    warnings.simplefilter("ignore")
    gpnsf.settings.verbosity = "error"
    for name, part in PARTS.items():
        if name in chosen.only:
            part()
    if "depth" in chosen.only:
        depths(chosen.sets)


if __name__ == "__main__":
    main()
