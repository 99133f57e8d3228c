"""Spots that lack ATAC, spots that were held out, several slices, and new spots at the loadings of a fit.

GPNSF_DATA_DIR=... gpnsf benchmark imputation [--only missing|holdout|slices|projection] [--seeds 2]
"""

from __future__ import annotations

import logging
import warnings

import mudata
import numpy as np
import pandas as pd
from mudata import MuData
from report import machine, parser, write_table

import gpnsf
from gpnsf.core.families import FAMILIES
from gpnsf.core.inference.scaled import VARIANCE_CAP
from gpnsf.core.scores import metrics
from gpnsf.core.scores.calibration import log_moments
from gpnsf.datasets.files import load

TOGETHER, ALONE = "fitted together", "each section alone"
LACKING = 0.3


def simulated(seed: int) -> tuple[MuData, dict]:
    """A section and how it is fitted."""
    return gpnsf.datasets.tissue(n_obs=1000, n_genes=500, n_peaks=2000, n_spatial=6, seed=seed), {
        "n_factors": 8,
        "n_spatial": 6,
    }


def cortex(seed: int) -> tuple[MuData, dict]:
    """The semi-synthetic section, the same for all seeds."""
    return load("semi_cortex_spots.h5mu"), {"n_factors": 12, "n_spatial": 8}


def without(data: MuData, lacking: np.ndarray) -> MuData:
    """A copy in which some spots have no ATAC."""
    part = MuData({"rna": data["rna"].copy(), "atac": data["atac"][~lacking].copy()})
    holder = data if "spatial" in data.obsm else data["rna"]
    part.obsm["spatial"] = np.asarray(holder.obsm["spatial"])
    return part


def missing(make, seed: int) -> dict[str, float]:
    """Bernoulli deviances per entry, with the size factors of the spots given to fit and mean alike."""
    data, options = make(seed)
    lacking = np.random.default_rng(seed).permutation(data.n_obs) < LACKING * data.n_obs
    part = without(data, lacking)
    gpnsf.tl.fit(part, seed=seed, progress=False, **options)
    whole = gpnsf.tl.fit(data, seed=seed, progress=False, copy=True, **options)
    counted = np.asarray((data["atac"][~lacking].X > 0).sum(axis=0)).ravel() > 0
    names = data["atac"].var_names[counted].tolist()
    counts = (data["atac"].X[:, counted] > 0).astype(float).tocsr()
    total = np.asarray((data["atac"].X > 0).sum(axis=1)).ravel()
    size = np.maximum(total / total[~lacking].mean(), 0.05)

    def deviance(rates: np.ndarray, rows: np.ndarray) -> float:
        """Of rates [N, P] at size factor 1."""
        p = -np.expm1(-size[rows, None] * rates[rows])
        y = counts[rows].toarray()
        return float(
            -2
            * (
                y * np.log(np.maximum(p, 1e-12)) + (1 - y) * np.log1p(-np.minimum(p, 1 - 1e-12))
            ).mean()
        )

    def rates(fitted: MuData, **how) -> np.ndarray:
        """What is expected, before it becomes a probability."""
        values = gpnsf.tl.impute(fitted, modality="atac", features=names, **how).X
        values = values.toarray() if hasattr(values, "toarray") else values
        return -np.log1p(-np.minimum(values.astype(float), 1 - 1e-6))

    null = np.broadcast_to(
        FAMILIES["bernoulli"].null_rates(counts, size, rows=~lacking), counts.shape
    )
    fitted, raw, alike = rates(part), rates(part, shrinkage=0.0), rates(part, method="similarity")
    return {
        "per-peak mean": deviance(null, lacking),
        "imputed": deviance(fitted, lacking),
        "no shrinkage": deviance(raw, lacking),
        "similarity": deviance(alike, lacking),
        "measured, same spots": deviance(rates(whole), lacking),
        "measured, other spots": deviance(fitted, ~lacking),
        "mean, other spots": deviance(null, ~lacking),
    }


def missing_table(seeds: range) -> None:
    """Imputed accessibility."""
    rows = []
    for name, make in {"simulated tissue": simulated, "semi-synthetic cortex": cortex}.items():
        runs = pd.DataFrame([missing(make, seed) for seed in seeds]).mean()
        ratio = runs["imputed"] / runs["measured, same spots"]
        relative = (
            runs["imputed"]
            / runs["per-peak mean"]
            / (runs["measured, other spots"] / runs["mean, other spots"])
        )
        rows.append(
            {
                "data": name,
                **runs.map("{:.4f}".format),
                "to same spots": f"{ratio:.3f}",
                "to other spots": f"{relative:.3f}",
            }
        )
        print(rows[-1], flush=True)
    note = (
        f"{100 * LACKING:.0f} % of the spots without ATAC. Bernoulli deviance per entry, zeros included, means over {len(seeds)} choices of the spots. "
        '"measured, same spots": a fit that has seen their ATAC; "to same spots": imputed, divided by that. "to other spots": imputed divided by the mean of each peak, '
        "over the same ratio at the spots that kept their ATAC (a ratio of ratios, because spots differ in depth). Fits have seen the ATAC that they are judged on wherever it says measured. "
        f'"similarity" predicts exact zeros, which cost much where a peak is open. {machine()}.'
    )
    write_table("imputation", pd.DataFrame(rows), note)


def holdout(n_obs: int, n_spatial: int, seed: int) -> dict[str, object]:
    """Predicted factors at spots that were held out, beside those of a fit that has them."""
    data = gpnsf.datasets.tissue(
        n_obs=n_obs, n_genes=600, n_peaks=1200, n_spatial=n_spatial, seed=seed
    )
    gpnsf.pp.split(data, fraction=0.1, seed=seed)
    options = {
        "n_factors": n_spatial + 2,
        "n_spatial": n_spatial,
        "seed": seed,
        "progress": False,
        "copy": True,
    }
    whole = gpnsf.tl.fit(data, **options)
    part = gpnsf.tl.fit(data, holdout_key="holdout", **options)
    held, spatial = data.obs["holdout"].to_numpy(), part.uns["gpnsf"]["is_spatial"]
    predicted = gpnsf.tl.predict(part, data.obsm["spatial"][held]).X[:, spatial]
    reference = whole.obsm["X_gpnsf"]
    columns, _ = metrics.match_factors(part.obsm["X_gpnsf"][~held][:, spatial], reference[~held])
    r = [
        np.corrcoef(predicted[:, k], reference[held][:, column])[0, 1]
        for k, column in enumerate(columns)
    ]
    row = {"spots": n_obs, "spatial factors": len(r), "seed": seed, "held out": int(held.sum())}
    return row | {"smallest r": f"{min(r):.3f}", "mean r": f"{np.mean(r):.3f}"}


def holdout_table(seeds: range) -> None:
    """Two sizes of sections."""
    rows = [
        holdout(n_obs, n_spatial, seed)
        for n_obs, n_spatial in ((2500, 8), (1000, 6))
        for seed in seeds
    ]
    note = (
        "Simulated tissue; correlation of the spatial factors that `tl.predict` gives at held-out spots with those of a fit that has seen these spots. In the "
        f"smaller section the shortest length scale is twice the distance of neighbouring spots. {machine()}."
    )
    write_table("holdout", pd.DataFrame(rows), note)


def turned(data: MuData) -> MuData:
    """The same with the second section turned by a right angle and the third one mirrored: nothing is aligned."""
    coords, library = data.obsm["spatial"].copy(), data.obs["library"].cat.codes.to_numpy()
    coords[library == 1] = coords[library == 1] @ np.array([[0.0, 1.0], [-1.0, 0.0]])
    coords[library == 2, 0] *= -1
    data.obsm["spatial"] = coords
    return data


def recovery(fitted: MuData, rows: np.ndarray) -> float:
    """Mean correlation of the true spatial factors with those matched to them, on some rows."""
    n_spatial = fitted.uns["truth"]["n_spatial"]
    truth, estimate = fitted.obsm["true_factors"], fitted.obsm["X_gpnsf"]
    columns, _ = metrics.match_factors(truth, estimate)
    pairs = [(truth[rows, k], estimate[rows, columns[k]]) for k in range(n_spatial)]
    return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]))


def simulated_slices(seed: int) -> dict[str, str]:
    """Three sections together, and each alone."""
    data = gpnsf.datasets.tissue(
        n_obs=1200, n_genes=400, n_peaks=800, n_spatial=5, n_libraries=3, rna_depth=600.0, seed=seed
    )
    data, options = turned(data), {"n_factors": 7, "n_spatial": 5, "seed": seed, "progress": False}
    names = data.obs["library"].astype(str).to_numpy()
    joint = gpnsf.tl.fit(data, library_key="library", copy=True, **options)
    together, alone = [], []
    for name in np.unique(names):
        single = data[names == name].copy()
        gpnsf.tl.fit(single, **options)
        together.append(recovery(joint, names == name))
        alone.append(recovery(single, np.ones(single.n_obs, bool)))
    row = {"data": f"simulated, seed {seed}", "figure": "r of spatial factors, by section"}
    return row | {
        name: " / ".join(f"{r:.3f}" for r in values)
        for name, values in {TOGETHER: together, ALONE: alone}.items()
    }


def tumour_slices() -> dict[str, str]:
    """Four real sections: deviance of counts that were held back by thinning."""
    data = load("bc_4sections.h5ad")
    gpnsf.pp.deviance_features(data, n_top=600)
    data = data[:, data.var["highly_deviant"].to_numpy()].copy()
    gpnsf.pp.thin(data, fraction=0.8, seed=0)
    options = {"n_factors": 8, "n_spatial": 5, "layers": "thinned_train", "progress": False}
    names = data.obs["section"].astype(str).to_numpy()

    def total(fitted) -> tuple[float, float]:
        """Deviance of the counts held back, and number of entries."""
        line = gpnsf.tl.evaluate(fitted, layers="thinned_test").query("rows == 'thinned'").iloc[0]
        return line["deviance"] * line["n_obs"] * line["n_features"], line["n_obs"]

    joint = total(gpnsf.tl.fit(data, library_key="section", copy=True, **options))
    batched = total(
        gpnsf.tl.fit(data, library_key="section", batch_key="section", copy=True, **options)
    )
    alone = np.sum(
        [
            total(gpnsf.tl.fit(data[names == name].copy(), copy=True, **options))
            for name in np.unique(names)
        ],
        axis=0,
    )
    per_entry = {
        name: f"{deviance / rows / data.n_vars:.4f}"
        for name, (deviance, rows) in {"joint": joint, "batched": batched, "alone": alone}.items()
    }
    together = f"{per_entry['joint']}; with `batch_key` {per_entry['batched']}"
    return {
        "data": "breast cancer, 4 sections",
        "figure": "deviance of held-out counts",
        TOGETHER: together,
        ALONE: per_entry["alone"],
    }


def slices_table(seeds: range) -> None:
    """One fit of several sections beside a fit of each."""
    rows = [simulated_slices(seed) for seed in seeds]
    rows.append(tumour_slices())
    note = (
        "Simulated: three sections of 400 spots, 600 RNA counts and 40 ATAC reads a spot, the second section turned by a right angle, the third mirrored. "
        f"Breast cancer: 1,031 spots, 600 genes, a fifth of the counts held out (thinning); smaller is better. {machine()}."
    )
    write_table("slices", pd.DataFrame(rows), note)


def same_section(seed: int) -> dict[str, object]:
    """A fifth of the spots projected, beside a fit that has them all."""
    whole = gpnsf.datasets.tissue(n_genes=1000, n_peaks=10, seed=seed)["rna"].copy()
    new = np.random.default_rng([seed, 2]).random(whole.n_obs) < 0.2
    old, fresh = whole[~new].copy(), whole[new].copy()
    fit_known(old, seed)
    fit_known(whole, seed)
    gpnsf.tl.project(fresh, old, progress=False)
    row = {"data": f"a fifth of the spots, seed {seed}", "spots": fresh.n_obs}
    return row | judged(fresh, old) | judged(whole[new].copy(), whole, " of a fit of all")


def other_section(seed: int) -> dict[str, object]:
    """Half of another section, with its coordinates far from those of the fit, beside a fit of both."""
    both = gpnsf.datasets.tissue(n_obs=3000, n_libraries=2, n_genes=1000, n_peaks=10, seed=seed)
    both = both["rna"].copy()
    first = (both.obs["library"] == both.obs["library"].iloc[0]).to_numpy()
    half = both.obsm["spatial"][:, 0] < np.median(both.obsm["spatial"][~first, 0])
    old, fresh = both[first].copy(), both[~first & half].copy()
    fit_known(old, seed)
    fit_known(both, seed, library_key="library")
    fresh.obsm["spatial"] = fresh.obsm["spatial"] + 1e5
    gpnsf.tl.project(fresh, old, progress=False)
    row = {"data": f"half of another section, seed {seed}", "spots": fresh.n_obs}
    return row | judged(fresh, old) | judged(both[~first & half].copy(), both, " of a fit of all")


def fit_known(data, seed: int, **options) -> None:
    """Fit with known size factors, for which intervals can be judged."""
    kinds = {"n_factors": 10, "n_spatial": 8, "size_factors": "true_size"}
    gpnsf.tl.fit(data, seed=seed, progress=False, **kinds, **options)


def judged(data, unit, name: str = "") -> dict[str, str]:
    """Correlation of spatial factors with the truth, and coverage of their 90 % intervals in the unit of a fit."""
    spatial = data.uns["gpnsf"]["is_spatial"]
    truth = data.obsm["true_factors"][:, :8]
    mean, std = (data.obsm[f"X_gpnsf{end}"][:, spatial].astype(float) for end in ("", "_std"))
    columns, r = metrics.match_factors(truth, mean)
    centre, sd = log_moments(mean[:, columns], std[:, columns], VARIANCE_CAP)
    error = centre - np.log(truth / unit.obsm["true_factors"][:, :8].mean(0))
    covered = metrics.coverage(0.0, error, sd, 0.9)
    return {f"mean r{name}": f"{r.mean():.3f}", f"coverage{name}": f"{covered:.3f}"}


def projection_table(seeds: range) -> None:
    """New spots of the same section, and of another one."""
    rows = [make(seed) for make in (same_section, other_section) for seed in seeds]
    note = (
        "Simulated tissue, RNA of 1,000 genes with known size factors. The other spots are fitted, and `tl.project` finds the spatial factors of the spots in the table with the "
        "loadings of this fit; last two columns: the factors of the same spots in a fit of all. r: correlation with the true factors; coverage: of 90 % intervals of log "
        f"factors. {machine()}."
    )
    write_table("projection", pd.DataFrame(rows), note)


def main() -> None:
    """The tables asked for."""
    tables = {
        "missing": missing_table,
        "holdout": holdout_table,
        "slices": slices_table,
        "projection": projection_table,
    }
    arguments = parser(__doc__)
    arguments.add_argument("--only", choices=tables)
    arguments.add_argument("--seeds", type=int, default=2)
    given = arguments.parse_args()
    logging.getLogger("gpnsf").setLevel("WARNING")
    warnings.simplefilter("ignore")
    if hasattr(mudata, "set_options"):
        mudata.set_options(pull_on_update=False)
    for name, table in tables.items():
        if given.only in (None, name):
            table(range(given.seeds))


if __name__ == "__main__":
    main()
