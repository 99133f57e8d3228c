"""All models by the Poisson deviance of counts, seen and unseen, and three ways from the values of a Gaussian model to counts.

gpnsf benchmark yardsticks [--steps 300] [--data mob_rep11 visium_lymphnode_1k visium_crc ggblocks]

Needs the real sections of GPNSF_DATA_DIR.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
from report import machine, measured, parser, write_table

import gpnsf
from gpnsf.core.scores import yardsticks
from gpnsf.datasets.files import load
from gpnsf.io import fits
from gpnsf.tl.judged import Judged, as_counts, judged

N_GENES = {"mob_rep11": 300, "visium_lymphnode_1k": 300, "visium_crc": 500}
MODELS = ("gpnsf", "nsfh", "nsf", "pnmf", "rsf", "fa", "mefisto")
SMALL = 500  # spots, for MEFISTO
SIGNED = ("rsf", "fa", "mefisto")
K = 10


def section(name: str) -> anndata.AnnData:
    """The most deviant genes of a section, a twentieth of its spots held out, and normalised counts beside the raw ones."""
    if name in N_GENES:
        data = load(name)
        gpnsf.pp.deviance_features(data, n_top=N_GENES[name])
        data = data[:, data.var["highly_deviant"]].copy()
    else:
        data = gpnsf.datasets.ggblocks(seed=0)["rna"]
    gpnsf.pp.split(data, fraction=0.05, seed=0)
    gpnsf.pp.normalise(data, holdout_key="holdout")
    return data


def fit(data: anndata.AnnData, model: str, steps: int) -> None:
    """One fit, with the name of the model as its key."""
    options = {"n_factors": K, "holdout_key": "holdout", "key_added": model, "progress": False}
    if model == "mefisto":
        gpnsf.tl.mefisto(data, max_steps=min(steps, 100), **options)
    else:
        layers = "normalised" if model in SIGNED else None
        gpnsf.tl.fit(data, model, max_steps=steps, layers=layers, **options)


def other_ways(data: anndata.AnnData, model: str) -> dict[str, str]:
    """What a signed model explains of unseen spots if its values go back by their median, or by that times the ratio of totals."""
    found = fits.find(data, model)
    own = as_counts(found, judged(found, "rna"), only=True)
    median = replace(own, back=replace(own.back, noise=np.zeros_like(own.dispersion)))
    train, unseen = (np.flatnonzero(own.select(rows)) for rows in ("train", "holdout"))
    ratio = np.asarray(own.counts[train].sum(axis=0)).ravel()
    ratio = ratio / median.expected(train, own.size).sum(axis=0)
    ways = {"median": 1.0, "median x ratio": ratio}
    return {name: f"{_explained(median, unseen, times):.3f}" for name, times in ways.items()}


def _explained(own: Judged, rows: np.ndarray, times: np.ndarray | float) -> float:
    """Share of the null deviance."""
    null, size = own.null_rates(), own.size
    pair = [
        yardsticks.distance("poisson", own.counts, expected, rows)
        for expected in (
            lambda at: own.expected(at, size) * times,
            lambda at: size[at, None] * null,
        )
    ]
    return 1 - pair[0] / pair[1]


def row(data: anndata.AnnData, name: str, model: str, seconds: float) -> dict[str, str]:
    """One line of the table."""
    table = gpnsf.tl.evaluate(data, metric="poisson", key=model).set_index("rows")
    squares = gpnsf.tl.evaluate(data, metric="rmse", key=model).set_index("rows")
    zeros = gpnsf.tl.evaluate(data, metric="sparsity", key=model)["sparsity"][0]
    kept = data.uns[model]["is_spatial"]
    return {
        "data set": f"{name}, {data.n_obs} x {data.n_vars}",
        "model": model,
        "T + (K - T)": f"{kept.sum()} + {(~kept).sum()}",
        "seen": f"{table.explained['train']:.3f}",
        "unseen": f"{table.explained['holdout']:.3f}",
        **{"median": "", "median x ratio": ""},
        **(other_ways(data, model) if model in SIGNED else {}),
        "squares, unseen": f"{squares.explained['holdout']:.3f}",
        "zero loadings": f"{zeros:.2f}",
        "s": f"{seconds:.0f}",
    }


def main() -> None:
    """A row for each section and model."""
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=300, help="cap on the steps of each fit")
    arguments.add_argument("--data", nargs="+", default=[*N_GENES, "ggblocks"])
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("gpnsf").setLevel("ERROR")
    rows = []
    for name in options.data:
        data = section(name)
        for model in MODELS if data.n_obs <= SMALL else MODELS[:-1]:
            with measured() as run:
                fit(data, model, options.steps)
            rows.append(row(data, name, model, run.wall))
            print(rows[-1], flush=True)
    note = (
        f"Real sections, their most deviant genes, and simulated ggblocks; one random twentieth of the spots held out; K = {K} as asked, at most {options.steps} steps (MEFISTO 100; "
        f"on sections up to {SMALL} spots). Explained share of the null model's Poisson deviance (of its squared error in the column of squares), "
        'depth given to all. Signed models were fitted to log-normalised counts; `unseen` turns predictions back into counts by their mean, "median" and "median x ratio" '
        f"are two other ways. s: wall seconds on a shared machine. {machine()}."
    )
    write_table("yardsticks", pd.DataFrame(rows), note)


if __name__ == "__main__":
    main()
