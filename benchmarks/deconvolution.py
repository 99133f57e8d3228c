"""Cell types of spots: the published layer, simulations of falling depth, sums of real cells and sections of tissue.

GPNSF_DATA_DIR=... gpnsf benchmark deconvolution [--only depth square pdac tissue figure scale silver lymph] [--sets 4]
GPNSF_DATA_DIR=... gpnsf benchmark deconvolution --only silver lymph --rivals [--cache DIR] [--limit 120]

Rivals run in environments of their own, as peers do: what has run is not run again.
"""

from __future__ import annotations

import warnings
from itertools import product
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from deconvolution_rivals import Rivals, table
from deconvolution_scale import scale
from deconvolution_sections import pdac, shares, simulated
from deconvolution_tissue import figure, lymph, tissues
from peers import CACHE
from report import machine, parser, write_table
from scipy.optimize import nnls
from scipy.spatial.distance import cdist

import gpnsf
from gpnsf.core.companions.deconvolution import summarised
from gpnsf.core.companions.unrolling import Network, Section, train
from gpnsf.core.scores import agreement
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
        "NNLS of SciPy, no weights": _rows([nnls(B, x)[0] for x in X.T]),
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
        f"negligible beside profiles with squared lengths of {np.square(B).sum(axis=0).min():.1g} to "
        f"{np.square(B).sum(axis=0).max():.1g}: the error is what {LAYERS} slow steps leave, so penalties cannot be judged on "
        f"this set. {machine()}."
    )
    write_table("deconvolution_square", pd.DataFrame(rows), note)


def depths(n_sets: int) -> None:
    """Simulated sections of falling depth; weights of the graph are tuned with the truth of other sections."""
    rows = []
    for share in (1.0, 0.05, 0.01):
        sets = [simulated(seed, FULL * share) for seed in range(n_sets)]
        others = [simulated(TUNING + seed, FULL * share) for seed in range(N_OTHERS)]
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
                "unrolled, trained on the 16 sections": f"{mean['taught']:.4f}",
                "the same, one set of weights": f"{mean['shared']:.4f}",
                "tuned / NNLS": f"{mean['tuned'] / mean['nnls']:.2f}",
                "own / tuned": f"{mean['own'] / mean['tuned']:.2f}",
                "16 sections / tuned": f"{mean['taught'] / mean['tuned']:.2f}",
            }
        )
        print(rows[-1], flush=True)
    note = (
        f"Relative error, mean over {n_sets} simulated sections of 196 spots, 200 genes and 6 similar types "
        "(`datasets.mixture(difference=0.5)`), true profiles as the reference. Tuned: the best of "
        f"{len(list(product(*GRID.values())))} combinations of `spatial_weight`, `total_weight`, `bandwidth` on {N_OTHERS} other sections, "
        'whose truth is known. Unrolled, own simulations: `method="unrolled"` as it is, which learns from spots that it simulates with the profiles of the section; trained on the 16 sections: '
        f"learned from the truth of the {N_OTHERS} sections that the graph is tuned on ({EPOCHS} times each); one set of weights: the same in all layers. Bars below {FULL:,.0f} counts: "
        f"own / tuned at most .95, tuned / NNLS at most .80. {machine()}."
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


def pdac_simulated() -> None:
    """Proportions by the regions of a real section, mixed from real profiles; regions and spots are joined on their names."""
    section, profiles = pdac()
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
        "Relative error, mean over two draws, after the protocol of STL NMF: proportions by the annotated regions of PDAC-A (426 spots; two more have no region), mixed from its inDrop profiles "
        "(10,431 genes). v0: constant in a region (3 types: .7 for one of them; 5: random); v1: with noise of sd .05; v2: smoothed. Exact: "
        "counts are mixtures; noisy: with noise of sd .5, cut off at zero and rounded, which adds about 1,700 counts to spots of about 2,000. Semi-synthetic. Regions lie where they are in the section; the published "
        f"generator assigns them in the order of the rows instead. Unrolled: one network for each number of types, learned with the depths of its first noisy draw. {machine()}."
    )
    write_table("deconvolution_pdac", pd.DataFrame(rows), note)


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


PARTS = {
    "square": square,
    "pdac": pdac_simulated,
    "tissue": tissues,
    "figure": figure,
    "scale": scale,
}
AGAINST = {"silver": table, "lymph": lymph}  # tables in which rivals stand


def main() -> None:
    """The tables that are asked for."""
    names = ["depth", *PARTS, *AGAINST]
    arguments = parser(__doc__)
    arguments.add_argument("--only", nargs="+", choices=names, default=names)
    arguments.add_argument("--sets", type=int, default=4, help="simulated sections of a depth")
    arguments.add_argument("--rivals", action="store_true", help="other tools in the same tables")
    arguments.add_argument(
        "--cache", type=Path, default=CACHE, help="folder of their environments and results"
    )
    arguments.add_argument("--limit", type=float, default=120.0, help="CPU seconds of one run")
    arguments.add_argument("--again", action="store_true", help="run again what failed")
    chosen = arguments.parse_args()
    warnings.simplefilter("ignore")
    gpnsf.settings.verbosity = "error"
    cache = chosen.cache.expanduser().absolute()
    rivals = Rivals(cache, chosen.limit, chosen.again) if chosen.rivals else None
    for name in chosen.only:
        if name == "depth":
            depths(chosen.sets)
        elif name in AGAINST:
            AGAINST[name](rivals)
        else:
            PARTS[name]()


if __name__ == "__main__":
    main()
