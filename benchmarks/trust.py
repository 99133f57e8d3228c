"""Whether a fit can be trusted: low depth, an honest split, importance scores and intervals, all on simulated data.

gpnsf benchmark trust [--only SECTION ...] [--seeds 3] [--split tested]
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pandas as pd
from baselines import BANDWIDTHS, klnmf, recovery, smoothed_recovery
from report import machine, measured, parser, write_table

import gpnsf
from gpnsf.core.inference.scaled import VARIANCE_CAP
from gpnsf.core.scores.calibration import log_errors, log_moments
from gpnsf.core.scores.metrics import coverage, importance_error, match_factors

T = 4  # spatial patterns of ggblocks and quilt
LEVEL = 0.9
Z = 1.6448536269514722  # of that level
COUNTS_NEEDED = 20  # of a gene whose intervals are judged
LEAST_SHARE = (
    0.02  # of a gene's mean that a factor has, where the interval of its loading is judged
)
DEFAULT_SPLIT = inspect.signature(gpnsf.tl.fit).parameters["split"].default
QUIET = {"n_peaks": 36}  # ATAC that is simulated along, as small as the recipe allows
NO_GENES = {"n_genes": 36}
N_SETS, N_PERMUTATIONS = 5, 10  # data sets of the test of permuted coordinates, whatever --seeds
CALIBRATED = {  # between which coverage is to be
    "spatial": (0.87, 0.93),
    "held out": (0.85, 1.0),
    "importance": (0.87, 0.95),
    "loadings": (0.87, 0.93),
}


def patterns_recovered(data, n_factors: int, seed: int, **arguments) -> SimpleNamespace:
    """Fit MuData or AnnData of a pattern simulation; mean correlation of spatial and nonspatial factors."""
    truth = data.obsm["true_factors"]
    with measured() as run:
        fitted = gpnsf.tl.fit(
            data,
            n_factors=n_factors,
            n_spatial=T,
            size_factors=None,
            seed=seed,
            progress=False,
            copy=True,
            **arguments,
        )
    found = fitted.obsm["X_gpnsf"]
    nonspatial = recovery(truth[:, T:], found[:, T:]) if n_factors > T else np.nan
    return SimpleNamespace(
        spatial=recovery(truth[:, :T], found[:, :T]), nonspatial=nonspatial, cpu=run.cpu
    )


def compared(draws: list, modality: str, n_factors: int, arguments: dict) -> dict:
    """One row: gpnsf beside KL-NMF, raw and smoothed with the bandwidth that turns out best."""
    runs, raw, smooth = [], [], []
    for seed, mdata in enumerate(draws):
        adata = mdata[modality]
        coords, truth = adata.obsm["spatial"].astype(float), adata.obsm["true_factors"][:, :T]
        likelihoods = {"likelihoods": {modality: "nb" if modality == "rna" else "bernoulli"}}
        runs.append(patterns_recovered(adata, n_factors, seed, **likelihoods, **arguments))
        raw.append(recovery(truth, klnmf(adata.X, n_factors, seed)))
        smooth.append(
            [smoothed_recovery(adata.X, coords, truth, K, seed) for K in sorted({T, n_factors})]
        )
    spatial = np.array([run.spatial for run in runs])
    smooth = np.mean(smooth, axis=0)  # [number of components, bandwidths]
    return {
        "spatial r": f"{spatial.mean():.3f}",
        "worst seed": f"{spatial.min():.3f}",
        "nonspatial r": f"{np.mean([run.nonspatial for run in runs]):.3f}" if n_factors > T else "",
        "KL-NMF": f"{np.mean(raw):.3f}",
        "smoothed KL-NMF": f"{smooth.max():.3f} ({BANDWIDTHS[smooth.max(0).argmax()]:g})",
        "CPU s": f"{np.mean([run.cpu for run in runs]):.1f}",
    }


def judged(value: str, bar: float) -> str:
    """The bar, and whether a printed value reaches it."""
    return f"{bar:g} ({'met' if float(value) >= bar else 'MISSED'})"


def with_bars(row: dict, bar: float) -> dict:
    """A row of :func:`compared` with its bar, and with the smoothed baseline as a second one."""
    return {
        **row,
        "bar": judged(row["spatial r"], bar),
        "bar: baseline": judged(row["spatial r"], float(row["smoothed KL-NMF"][:5])),
    }


def depth(n_seeds: int, arguments: dict) -> Iterator[dict]:
    """Recovery of ggblocks whose counts were thinned binomially. Simulated spots differ in nothing but their patterns, so size_factors=None."""
    for share, bar in {0.1: 0.985, 0.02: 0.965, 0.005: 0.93, 0.0025: 0.89}.items():
        draws = [
            gpnsf.datasets.ggblocks(depth=share, seed=seed, **QUIET) for seed in range(n_seeds)
        ]
        row = compared(draws, "rna", 7, arguments)
        total = np.mean([mdata["rna"].X.sum(1).mean() for mdata in draws])
        yield {"ggblocks": f"{share:.2%}", "counts a spot": f"{total:.0f}", **with_bars(row, bar)}


def binary(n_seeds: int, arguments: dict) -> Iterator[dict]:
    """Recovery of ggblocks from open and closed peaks, four spatial factors only; all spots are simulated with the same depth."""
    bars = {(0.15, 0.02): 0.955, (0.06, 0.01): 0.925, (0.03, 0.01): 0.87, (0.02, 0.01): 0.79}
    for is_open, bar in bars.items():
        draws = [
            gpnsf.datasets.ggblocks(atac_open=is_open, seed=seed, **NO_GENES)
            for seed in range(n_seeds)
        ]
        row = compared(draws, "atac", T, arguments)
        yield {"open inside / outside": "{} / {}".format(*is_open), **with_bars(row, bar)}


def joint(n_seeds: int, arguments: dict) -> Iterator[dict]:
    """RNA and ATAC of the same simulated spots together, and each alone. ATAC alone is fitted without nonspatial factors, because it has none."""
    for share, is_open in ((0.0025, (0.06, 0.01)), (0.005, (0.03, 0.01))):
        runs = []
        for seed in range(n_seeds):
            mdata = gpnsf.datasets.ggblocks(depth=share, atac_open=is_open, seed=seed)
            rna = patterns_recovered(mdata["rna"], 7, seed, likelihoods={"rna": "nb"}, **arguments)
            atac = patterns_recovered(
                mdata["atac"], T, seed, likelihoods={"atac": "bernoulli"}, **arguments
            )
            runs.append([rna, atac, patterns_recovered(mdata, 7, seed, **arguments)])
        r = np.array([[fit.spatial for fit in run] for run in runs])  # [seeds, 3]
        rna, atac, both = (f"{value:.3f}" for value in r.mean(0))
        yield {
            "RNA": f"{share:.2%}",
            "ATAC": "{} / {}".format(*is_open),
            "r, RNA alone": rna,
            "r, ATAC alone": atac,
            "r, both": both,
            "worst seed": f"{r[:, 2].min():.3f}",
            "bar": judged(both, round(max(float(rna), float(atac)) - 0.003, 3)),
        }


def quilt(n_seeds: int, arguments: dict) -> Iterator[dict]:
    """Recovery of patterns that overlap, at full depth. Correlations of KL-NMF are of its components that match the four spatial patterns, whatever matches the others."""
    draws = [gpnsf.datasets.quilt(seed=seed, **QUIET) for seed in range(n_seeds)]
    row = compared(draws, "rna", 7, arguments)
    yield {"quilt": "100%", **with_bars(row, 0.98)}


def null(
    n_seeds: int, arguments: dict, n_sets: int = N_SETS, n_permutations: int = N_PERMUTATIONS
) -> Iterator[dict]:
    """Which factors stay spatial when the coordinates are permuted, on ggblocks with 10 % of the counts. Bars: at most .05 of the four factors, spatial importance of genes at most .05, all four kept with true coordinates in .95 of the data sets. Added time: of the test, over a fit without it."""
    kept, scores, complete, cost = [], [], [], []
    for seed in range(n_sets):
        adata = gpnsf.datasets.ggblocks(depth=0.1, seed=seed, **QUIET)["rna"]
        common = {
            "n_factors": 7,
            "n_spatial": T,
            "size_factors": None,
            "progress": False,
            "copy": True,
        }
        with measured() as assumed:
            gpnsf.tl.fit(adata, seed=seed, **common, **{**arguments, "split": "assumed"})
        with measured() as tested:
            fitted = gpnsf.tl.fit(adata, seed=seed, **common, **arguments)
        spatial = fitted.uns["gpnsf"]["is_spatial"]
        match, r = match_factors(adata.obsm["true_factors"], fitted.obsm["X_gpnsf"])
        complete.append(bool(spatial[match[:T]].all() and (r[:T] > 0.8).all()))
        cost.append(tested.cpu / assumed.cpu - 1)
        for number in range(n_permutations):
            shuffled = adata.copy()
            rng = np.random.default_rng([seed, number])
            shuffled.obsm["spatial"] = rng.permutation(adata.obsm["spatial"])
            fitted = gpnsf.tl.fit(shuffled, seed=number, **common, **arguments)
            kept.append(fitted.uns["gpnsf"]["is_spatial"].sum() / T)
            scores.append(fitted.var["gpnsf_spatial_importance"].mean())
        done = {
            "data set": str(seed),
            "kept": np.mean(kept[-n_permutations:]),
            "score": np.mean(scores[-n_permutations:]),
        }
        yield _null_row(done, complete[-1:], cost[-1:])
    yield _null_row(
        {"data set": "all", "kept": np.mean(kept), "score": np.mean(scores)}, complete, cost
    )


def _null_row(done: dict, complete: list[bool], cost: list[float]) -> dict:
    """One data set, or all of them."""
    bars = done["kept"] <= 0.05 and done["score"] <= 0.05 and np.mean(complete) >= 0.95
    return {
        "data set": done["data set"],
        "permuted: share kept spatial": f"{done['kept']:.3f}",
        "permuted: mean importance": f"{done['score']:.3f}",
        "true coordinates: all four kept": f"{np.mean(complete):.2f}",
        "added time": f"{np.mean(cost):+.0%}",
        "bar": f".05, .05, .95 ({'met' if bars else 'MISSED'})",
    }


def importance(n_seeds: int, arguments: dict) -> Iterator[dict]:
    """Spatial importance of genes: share of their mean, background left out, that follows a spatial pattern. In "ggblocks" every gene follows a spatial and a nonspatial pattern equally, in "any proportion" in a random proportion."""
    for name, simulate in {"ggblocks": _even, "any proportion": _uneven}.items():
        for share, bar in {1.0: 0.015, 0.1: 0.035}.items():
            errors, covered, bias = [], [], []
            for seed in range(n_seeds):
                adata = simulate(share, seed)
                gpnsf.tl.fit(
                    adata,
                    n_factors=7,
                    n_spatial=T,
                    size_factors=None,
                    seed=seed,
                    progress=False,
                    **arguments,
                )
                score = _importance(adata, adata.var["true_spatial_importance"].to_numpy())
                errors.append(score.error)
                covered.append(score.covered)
                bias.append(score.bias)
            yield {
                "simulation": name,
                "depth": f"{share:.0%}",
                "mean abs. error": f"{np.mean(errors):.4f}",
                "worst seed": f"{np.max(errors):.4f}",
                "bias": f"{np.mean(bias):+.4f}",
                "coverage of the 90 % interval": f"{np.mean(covered):.3f}",
                "bar": f"{bar:g} ({'met' if np.mean(errors) <= bar else 'MISSED'})",
            }


def _even(share: float, seed: int):
    """Genes of ggblocks: as high inside of their pattern as in their nonspatial factor."""
    return gpnsf.datasets.ggblocks(depth=share, seed=seed, **QUIET)["rna"]


def _uneven(share: float, seed: int):
    """The same factors and genes, their two parts in proportions that are uniform between 0 and 1."""
    return _mixed(share, seed, np.random.default_rng([seed, 1]).random(500))


def _mixed(share: float, seed: int, proportion: np.ndarray):
    """Genes of ggblocks whose spatial part has the given proportion [P] to the nonspatial one, instead of one half."""
    adata = _even(1.0, seed)
    rng = np.random.default_rng([seed, 2])
    factors, loadings = adata.obsm["true_factors"], adata.varm["true_loadings"].copy()
    loadings[:, :T] *= 2 * proportion[:, None]
    loadings[:, T:] *= 2 * (1 - proportion[:, None])
    mean = factors @ loadings.T + adata.var["true_background"].to_numpy()
    counts = rng.binomial(rng.negative_binomial(10, 10 / (10 + mean)), share)
    adata.X = type(adata.X)(counts.astype(np.float32))
    signal = loadings * factors.mean(0)
    adata.var["true_spatial_importance"] = signal[:, :T].sum(1) / signal.sum(1)
    return adata


def _importance(adata, truth: np.ndarray) -> SimpleNamespace:
    """Error of the scores of all genes, and coverage for those with counts enough."""
    score, std = (
        adata.var[f"gpnsf_spatial_importance{suffix}"].to_numpy(np.float64)
        for suffix in ("", "_std")
    )
    deep = np.asarray(adata.X.sum(0)).ravel() > COUNTS_NEEDED
    return SimpleNamespace(
        error=importance_error(truth, score),
        bias=float((score - truth).mean()),
        covered=coverage(truth[deep], score[deep], std[deep], LEVEL),
    )


def genes(n_seeds: int, arguments: dict) -> Iterator[dict]:
    """P values of genes by permutation, on ggblocks where a third of the genes ("null genes") follows a nonspatial factor alone."""
    for share in (1.0, 0.1, 0.01):
        p_null, found, false, cpu = [], [], [], []
        for seed in range(n_seeds):
            proportion = np.where(np.random.default_rng([seed, 3]).random(500) < 1 / 3, 0.0, 0.5)
            adata = _mixed(share, seed, proportion)
            gpnsf.tl.fit(
                adata,
                n_factors=7,
                n_spatial=T,
                size_factors=None,
                seed=seed,
                progress=False,
                **arguments,
            )
            with measured() as run:
                gpnsf.tl.spatial_importance(adata, null="permutation", seed=seed)
            p, q = (adata.var[f"gpnsf_spatial_importance_{letter}"].to_numpy() for letter in "pq")
            p_null += p[proportion == 0].tolist()
            found.append((q[proportion > 0] < 0.05).mean())
            false.append((proportion[q < 0.05] == 0).mean())
            cpu.append(run.cpu)
        level = np.mean(np.array(p_null) < 0.05)
        yield {
            "depth": f"{share:.0%}",
            "null genes": len(p_null),
            "of these p < .05": f"{level:.3f}",
            "of these p < .01": f"{np.mean(np.array(p_null) < 0.01):.3f}",
            "spatial genes with q < .05": f"{np.mean(found):.3f}",
            "null among q < .05": f"{np.mean(false):.3f}",
            "CPU s": f"{np.mean(cpu):.1f}",
            "bar": f".03-.07 ({'met' if 0.03 <= level <= 0.07 else 'MISSED'})",
        }


def calibration(n_seeds: int, arguments: dict) -> Iterator[dict]:
    """Coverage of 90 % intervals of log factors, loadings and spatial importance on a simulated tissue, at training and at held-out spots."""
    cases = [
        (4000.0, "true_size"),
        (400.0, "true_size"),
        (120.0, "true_size"),
        (4000.0, "total"),
        (400.0, "total"),
    ]
    for counts, source in cases:
        runs = [_calibrated(counts, source, seed, arguments) for seed in range(n_seeds)]
        mean = pd.DataFrame(runs).mean()
        missed = [n for n, (low, high) in CALIBRATED.items() if not low <= mean[n] <= high]
        outcome = f"MISSED: {', '.join(missed)}" if missed else "met"
        yield {
            "counts a spot": f"{counts:.0f}",
            "size factors": {"true_size": "known", "total": "totals"}[source],
            **{name: f"{mean[name]:.3f}" for name in mean.index if name != "CPU s"},
            "CPU s": f"{mean['CPU s']:.0f}",
            "bar": f"spatial .87-.93, held out .85, importance .87-.95, loadings .87-.93 ({outcome})",
        }


def _calibrated(counts: float, source: str, seed: int, arguments: dict) -> dict[str, float]:
    """One tissue: 8 + 2 factors, 2,500 spots, 2,000 genes, a fifth of the spots held out."""
    adata = gpnsf.datasets.tissue(rna_depth=counts, n_peaks=10, seed=seed)["rna"].copy()
    held = np.random.default_rng([seed, 2]).random(adata.n_obs) < 0.2
    adata.obs["held_out"] = held
    with measured() as run:
        gpnsf.tl.fit(
            adata,
            n_factors=10,
            n_spatial=8,
            size_factors=source,
            holdout_key="held_out",
            seed=seed,
            progress=False,
            **arguments,
        )
    total = np.asarray(adata.X.sum(1)).ravel()
    size = adata.obs["true_size"].to_numpy()
    # what the fit calls a factor is relative to the size factors that it was given
    ratio = size / total * total.mean() if source == "total" else np.ones(len(size))
    truth = np.log(adata.obsm["true_factors"] * ratio[:, None])
    mean, std = (adata.obsm[slot].astype(np.float64) for slot in ("X_gpnsf", "X_gpnsf_std"))
    order = _matched(truth, mean, n_spatial=8)
    return {
        **_intervals(truth, mean[:, order], std[:, order], held, n_spatial=8),
        "loadings": _loadings_covered(adata, np.exp(truth).mean(0), order),
        **_importance_columns(adata),
        "CPU s": run.cpu,
    }


def _matched(truth: np.ndarray, mean: np.ndarray, n_spatial: int) -> np.ndarray:
    """The factor that each true one is, spatial and nonspatial ones apart."""
    parts = slice(0, n_spatial), slice(n_spatial, truth.shape[1])
    return np.concatenate(
        [match_factors(np.exp(truth[:, p]), mean[:, p])[0] + p.start for p in parts]
    )


def _loadings_covered(adata, size: np.ndarray, order: np.ndarray) -> float:
    """Coverage of loadings that matter to their gene; ``size`` [K] are the means of the true factors."""
    truth = adata.varm["true_loadings"] * size
    matter = truth > LEAST_SHARE * truth.sum(1, keepdims=True)
    matter &= np.asarray(adata.X.sum(0)).reshape(-1, 1) > COUNTS_NEEDED
    found, std = (
        adata.varm[slot][:, order].astype(np.float64)
        for slot in ("gpnsf_loadings", "gpnsf_loadings_std")
    )
    return coverage(truth[matter], found[matter], std[matter], LEVEL)


def _importance_columns(adata) -> dict[str, float]:
    """Importance against the truth."""
    score = _importance(adata, adata.var["true_spatial_importance"].to_numpy())
    return {"importance": score.covered, "importance error": score.error}


def _intervals(
    truth: np.ndarray, mean: np.ndarray, std: np.ndarray, held: np.ndarray, n_spatial: int
) -> dict:
    """Coverage of the 90 % intervals of log factors of mean one, and of those whose mean log error is removed."""
    centre, sd = log_moments(mean, std, VARIANCE_CAP)
    error = log_errors(np.exp(truth), centre)
    inside = np.abs(error) <= Z * sd
    centred = np.abs(error - error[~held].mean(axis=0)) <= Z * sd
    train, test = ~held[:, None] & np.ones_like(inside), held[:, None] & np.ones_like(inside)
    upper = train & (truth >= np.median(truth, axis=0))
    spatial = np.arange(truth.shape[1]) < n_spatial
    return {
        "spatial": inside[train & spatial].mean(),
        "spatial, centred": centred[train & spatial].mean(),
        "upper half": inside[upper & spatial].mean(),
        "nonspatial": inside[train & ~spatial].mean(),
        "held out": inside[test & spatial].mean(),
        "rmse": np.sqrt((error[train & spatial] ** 2).mean()),
        "rmse held out": np.sqrt((error[test & spatial] ** 2).mean()),
    }


SECTIONS = {
    run.__name__: run for run in (depth, binary, joint, null, importance, genes, calibration, quilt)
}


def main() -> None:
    """Every section, each with a table of its own."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION"
    )
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--split", default=DEFAULT_SPLIT)
    chosen = arguments.parse_args()
    logging.getLogger("gpnsf").setLevel("ERROR")
    for name in chosen.only:
        rows = []
        for row in SECTIONS[name](chosen.seeds, {"split": chosen.split}):
            rows.append(row)
            print(row, flush=True)
        draws = (
            f"{N_SETS} data sets, {N_PERMUTATIONS} permutations of each"
            if name == "null"
            else f"{chosen.seeds} draws"
        )
        note = f"Simulated data, {draws}, `split={chosen.split!r}`. {SECTIONS[name].__doc__} {machine()}."
        write_table(f"trust_{name}", pd.DataFrame(rows), note)


if __name__ == "__main__":
    main()
