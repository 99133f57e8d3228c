"""What a fit makes of cells far off the tissue, and what a second thread costs where operations are short.

GPNSF_DATA_DIR=... gpnsf benchmark robustness [--only far threads] [--fields hilbert inducing] [--beside 4]

far: some cells are put at forty times the width of their section, and the fit is held against that of the section as it was;
on simulated data also where these cells have a say in the scale, as extremes had before.
threads: five epochs of `tl.factvae` with one thread and with two, each in a process of its own, beside processes that keep the machine busy.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import numpy as np
import pandas as pd
from report import in_fresh_process, machine, measured, parser, write_table

import gpnsf
from gpnsf.core.scores.metrics import match_factors
from gpnsf.datasets.files import load

N_FACTORS, N_INDUCING = 6, 150
SLOTS = {"loadings": "gpnsf_loadings", "factors": "X_gpnsf", "smooth factors": "X_gpnsf_smooth"}
CELLS, EPOCHS = 500, 5
LET_IN = patch("gpnsf.io.geometry.stray", lambda coords, _: np.zeros(len(coords), dtype=bool))
RULES = {"set apart": nullcontext(), "let in": LET_IN}
SPIN = {"OMP_WAIT_POLICY": "active"}  # as torch waits unless it is told otherwise


def sections() -> dict[str, tuple]:
    """Name of each section, its counts, and the number of cells to put far off."""
    tissue = gpnsf.datasets.tissue(n_obs=800, n_genes=120, n_peaks=60, seed=0)
    simulated = tissue["rna"].copy()
    simulated.obsm["spatial"] = np.asarray(tissue.obsm["spatial"], dtype=float)
    measured_ = load("osmfish_cortex")
    measured_.obsm["spatial"] = np.asarray(measured_.obsm["spatial"], dtype=float)
    return {"simulated tissue": (simulated, 6), "osmFISH cortex": (measured_, 10)}


def displaced(adata, n_far: int):
    """The same counts, some of them at forty times the width of the section."""
    away, rng = adata.copy(), np.random.default_rng(0)
    coords = away.obsm["spatial"]
    chosen = rng.choice(away.n_obs, n_far, replace=False)
    coords[chosen] = coords.max(axis=0) * [40, 25] + rng.normal(size=(n_far, 2)) * np.ptp(coords)
    return away


def fitted(adata, field: str):
    """A fit of a copy."""
    own = adata.copy()
    n_inducing = N_INDUCING if field == "inducing" else None
    options = {"field": field, "n_inducing": n_inducing, "progress": False}
    gpnsf.tl.fit(own, n_factors=N_FACTORS, **options)
    return own


def alike(one, other) -> dict[str, str]:
    """Correlations of matched columns of each slot, the least and the mean."""
    row = {}
    for name, slot in SLOTS.items():
        place = "varm" if slot in one.varm else "obsm"
        r = match_factors(*(getattr(data, place)[slot] for data in (one, other)))[1]
        row[name] = f"{r.min():.3f} ({r.mean():.3f})"
    return row


def far(fields: list[str]) -> None:
    """Cells far off the tissue."""
    rows = []
    for name, (adata, n_far) in sections().items():
        for field in fields:
            one = fitted(adata, field)
            for rule in RULES if name.startswith("simulated") else ["set apart"]:
                with RULES[rule]:
                    other = fitted(displaced(adata, n_far), field)
                row = {"section": f"{name}, {adata.n_obs:,} x {adata.n_vars}", "field": field}
                rows.append(row | {"outlying cells": f"{n_far}, {rule}"} | alike(one, other))
                print(rows[-1], flush=True)
    note = (
        f"Lowest (mean) correlation over matched factors with the fit of the same section without outlying cells; 0 for a factor without a match. K = {N_FACTORS}, defaults otherwise"
        f"{f', {N_INDUCING} inducing points' if 'inducing' in fields else ''}. {machine()}."
    )
    write_table("robustness_far", pd.DataFrame(rows), note)


def short_work(n_threads: int) -> dict[str, float]:
    """Epochs of FactVAE in this process, with so many threads in the place of the one that it takes."""
    mdata = load("snareseq_human_celllines")[:CELLS].copy()
    alone = nullcontext() if n_threads == 1 else patch("gpnsf.tl.factvae.few_threads", _as_set)
    with alone, measured() as seen:
        gpnsf.tl.factvae(mdata, max_epochs=EPOCHS, seed=0, progress=False)
    return {"wall": seen.wall, "cpu": seen.cpu}


def _as_set(small: bool):
    """No limit."""
    return nullcontext()


@contextmanager
def busy(n_processes: int) -> Iterator[None]:
    """Keep the machine busy."""
    workers = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(n_processes)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()


def _spin() -> None:
    while True:
        pass


def threads(beside: int) -> None:
    """What a second thread costs."""
    rows, before = [], os.getloadavg()[0]
    for n_processes in dict.fromkeys([0, beside]):
        for n_threads in (1, 2):
            with busy(n_processes), patch.dict(os.environ, SPIN):
                seen = json.loads(
                    in_fresh_process(__file__, "--work", str(n_threads), threads=n_threads)
                )
            row = {"threads of torch": n_threads, "busy processes added": n_processes}
            row |= {"wall s": f"{seen['wall']:.0f}", "CPU s": f"{seen['cpu']:.0f}"}
            rows.append(row)
            print(row, flush=True)
    note = (
        f"`tl.factvae`, {CELLS} cells of cell lines x (500 genes + 27,399 peaks), {EPOCHS} epochs; {os.cpu_count()} cores, load {before:.0f} by other programs "
        f"at the start. `tl.factvae` takes one thread, whatever is set; for the rows with two, this limit is lifted. {machine()}."
    )
    write_table("robustness_threads", pd.DataFrame(rows), note)


def main() -> None:
    """The tables that are asked for."""
    arguments = parser(__doc__)
    groups = ["far", "threads"]
    arguments.add_argument("--only", nargs="+", choices=groups, default=groups)
    arguments.add_argument("--fields", nargs="+", default=["hilbert"])
    arguments.add_argument("--beside", type=int, default=4)
    arguments.add_argument("--work", type=int, help="threads; for the processes of this command")
    chosen = arguments.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("gpnsf").setLevel("ERROR")
    if chosen.work:
        print(json.dumps(short_work(chosen.work)))
        return
    if "far" in chosen.only:
        far(chosen.fields)
    if "threads" in chosen.only:
        threads(chosen.beside)


if __name__ == "__main__":
    main()
