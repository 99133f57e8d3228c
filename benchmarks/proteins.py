"""Real proteins of two lymph-node sections: a fit of the first, the second at its loadings, and ten regions by experts.

GPNSF_DATA_DIR=... gpnsf benchmark proteins [--seeds 3]
"""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pandas as pd
from anndata import AnnData
from baselines import domains_of, klnmf, neighbour_mean
from report import machine, measured, parser, write_table
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

import gpnsf
from gpnsf.core.scores.calibration import log_moments
from gpnsf.datasets.files import load

OLD, NEW = "A1", "D1"
REGIONS, COMPONENTS = 10, 12
NEIGHBOURS = (0, 6, 18)  # over which means are taken; none: the spot alone
HELD_OUT, DRAWS, LEVEL = 0.2, 200, 0.9
VARIANCE_CAP = 0.25  # of log factors in the mean, as in the fit
OPTIONS = {
    "n_factors": COMPONENTS,
    "modalities": ["protein"],
    "likelihoods": "nb",
    "progress": False,
}


def sections() -> dict[str, AnnData]:
    """Both sections; rows of the array lie farther apart than its columns."""
    data = load("hln_protein_2sections.h5ad")
    data.obsm["spatial"] = data.obsm["spatial"] * np.array([np.sqrt(3.0), 1.0])
    return {name: data[data.obs["library"] == name].copy() for name in (OLD, NEW)}


def score(data: AnnData, labels: np.ndarray) -> float:
    """Adjusted Rand index of the regions."""
    return adjusted_rand_score(data.obs["region"], labels)


def domains(data: AnnData, seed: int) -> float:
    """The same of the domains of a fit or a projection."""
    gpnsf.tl.domains(data, n_domains=REGIONS, seed=seed)
    return score(data, data.obs["gpnsf_domain"])


def ours(seed: int) -> list[dict[str, object]]:
    """A fit of the first section, the second one projected, and a fit of the second for comparison."""
    both = sections()
    old, new, own = both[OLD], both[NEW], both[NEW].copy()
    with measured() as fitted:
        gpnsf.tl.fit(old, seed=seed, **OPTIONS)
    with measured() as projected:
        gpnsf.tl.project(new, old, progress=False)
    gpnsf.tl.fit(own, seed=seed, **OPTIONS)
    print(seed, old.uns["gpnsf"]["is_spatial"], own.uns["gpnsf"]["is_spatial"], flush=True)
    return [
        {"method": f"gpnsf, {OLD} fitted, {NEW} projected", OLD: domains(old, seed), NEW: domains(new, seed), "CPU s": f"{fitted.cpu:.0f} + {projected.cpu:.0f}"},
        {"method": "gpnsf, each section fitted", OLD: domains(old, seed), NEW: domains(own, seed), "CPU s": ""},
    ]  # fmt: skip


def others(seed: int) -> list[dict[str, object]]:
    """What needs no model of space, or none at all."""
    rows: list[dict[str, object]] = []
    found = {name: dict(_others(data, seed)) for name, data in sections().items()}
    for method in found[OLD]:
        scores = {name: values[method] for name, values in found.items()}
        rows.append({"method": method, **scores, "CPU s": ""})
    return rows


def _others(data: AnnData, seed: int):
    """Adjusted Rand index by method, of one section."""
    coords, counts = data.obsm["spatial"], data.X.toarray().astype(float)
    yield "coordinates alone", score(data, domains_of(coords, coords, REGIONS, seed))
    of_total = 1e3 * counts / np.maximum(counts.sum(1, keepdims=True), 1.0)
    logs = np.log1p(counts)
    ratios = logs - logs.mean(1, keepdims=True)
    for n in NEIGHBOURS:
        of = f", means of {n} neighbours" if n else ""
        mean = neighbour_mean(ratios, coords, n) if n else ratios
        scores = PCA(COMPONENTS, random_state=seed).fit_transform(mean)
        yield (
            f"PCA of centred log-ratios{of}",
            score(data, domains_of(scores, coords, REGIONS, seed)),
        )
        shares = klnmf(neighbour_mean(of_total, coords, n) if n else of_total, COMPONENTS, seed)
        shares = np.sqrt(shares / np.maximum(shares.sum(1, keepdims=True), 1e-12))
        yield f"KL-NMF{of}", score(data, domains_of(shares, coords, REGIONS, seed))


def calibration(seed: int) -> list[dict[str, object]]:
    """Counts of spots that were held out: of the section that was fitted, and of the one that was projected."""
    both = sections()
    held = {
        name: np.random.default_rng([seed, code]).random(data.n_obs) < HELD_OUT
        for code, (name, data) in enumerate(both.items())
    }
    parts = {name: data[~held[name]].copy() for name, data in both.items()}
    gpnsf.tl.fit(parts[OLD], seed=seed, **OPTIONS)
    gpnsf.tl.project(parts[NEW], parts[OLD], progress=False)
    return [
        {"section": f"{name}, {how}", **predicted(parts[name], both[name][held[name]].copy(), seed)}
        for name, how in {OLD: "fitted", NEW: "projected"}.items()
    ]


def predicted(fitted: AnnData, held: AnnData, seed: int) -> dict[str, float]:
    """Coverage of intervals of counts, with the size factors of the spots, and what the means explain."""
    at = gpnsf.tl.predict(fitted, held.obsm["spatial"])
    mean, sd = log_moments(at.X.astype(float), at.layers["std"].astype(float), VARIANCE_CAP)
    W = np.column_stack([fitted.varm["gpnsf_loadings"], fitted.var["gpnsf_background"]])
    size = _sizes(fitted, held)
    rng, theta, one = (
        np.random.default_rng(seed),
        fitted.var["gpnsf_dispersion"],
        np.ones(len(size)),
    )
    draws = np.stack([_draw(mean, sd, one, size, W, theta.to_numpy(), rng) for _ in range(DRAWS)])
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    counts = held.X.toarray()
    flat = size[:, None] * (fitted.X.sum(0).A1 / _sizes(fitted, fitted).sum())
    center = np.column_stack([at.X, one]) @ W.T * size[:, None]
    lost = [np.abs(np.log((counts + 1) / (rate + 1))).mean() for rate in (center, flat)]
    return {
        "coverage": ((counts >= low) & (counts <= high)).mean(),
        "log error": lost[0],
        "log error of the mean of each protein": lost[1],
    }


def _sizes(fitted: AnnData, data: AnnData) -> np.ndarray:
    """Size factors of other spots, in the unit of a fit."""
    unit = fitted.uns["gpnsf"].get("projection", {}).get("mean_size", {"protein": 1.0})["protein"]
    return unit * data.X.sum(1).A1 / fitted.X.sum(1).A1.mean()


def _draw(mean, sd, one, size, W, theta, rng) -> np.ndarray:
    """Counts [n, P] at drawn factors."""
    factors = np.exp(rng.normal(mean, sd))
    rates = size[:, None] * (np.column_stack([factors, one]) @ W.T)
    return rng.poisson(rates * rng.gamma(theta, 1 / theta, rates.shape))


def table(lines: list[dict[str, object]], by: str) -> pd.DataFrame:
    """Means over seeds, with the range of scores."""
    frame = pd.DataFrame(lines)
    groups = frame.groupby(by, sort=False)
    return pd.DataFrame(
        {
            name: groups[name].first()
            if frame[name].dtype == object
            else groups[name].mean().map("{:.3f}".format)
            for name in frame
        }
    )


def main() -> None:
    """Both tables."""
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=3)
    seeds = range(arguments.parse_args().seeds)
    logging.getLogger("gpnsf").setLevel("WARNING")
    warnings.simplefilter("ignore")
    lines = [line for seed in seeds for line in (*others(seed), *ours(seed))]
    note = (
        "Real data: 31 proteins, raw counts, 3,484 and 3,359 spots of two sections, ten regions by experts. Adjusted Rand index of ten "
        f"clusters, {COMPONENTS} factors or components by every method, means over {len(seeds)} seeds. Projected: `tl.project` at the loadings of the first section. {machine()}."
    )
    write_table("proteins", table(lines, "method"), note)
    lines = [line for seed in seeds for line in calibration(seed)]
    note = (
        f"Held-out spots ({HELD_OUT:.0%}), predicted from their coordinates and size factors: share of counts inside of their "
        f"{LEVEL:.0%} intervals, and mean absolute error of log counts, beside the error of the mean of each protein. Real data. {machine()}."
    )
    write_table("proteins_calibration", table(lines, "section"), note)


if __name__ == "__main__":
    main()
