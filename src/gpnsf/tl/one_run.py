"""One run of a grid: data, fit, and how good the fit is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gpnsf.datasets
from gpnsf.arguments import Options
from gpnsf.core.counts.backends import backend
from gpnsf.io.files import read, write
from gpnsf.pp.normalise import normalise
from gpnsf.pp.split import split
from gpnsf.settings import settings
from gpnsf.tl.evaluate import evaluate
from gpnsf.tl.fit import fit
from gpnsf.tl.mefisto import mefisto
from gpnsf.tl.memory import peak_memory
from gpnsf.tl.plan import GAUSSIAN, MEFISTO, Run
from gpnsf.tl.run_records import Course, Found, Line

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

__all__ = ["work"]

KEY = "gpnsf"  # of the slots, whichever the model
HOLDOUT = "grid_holdout"  # obs column
FOR_COUNTS = ("modalities", "layers", "use_var", "size_factors", "holdout_key")


def work(run: Run, keep: Path | None = None) -> Found:
    """What a grid keeps of a run; the fitted object goes to ``keep``, which gets its suffix."""
    data, arguments = _opened(run.source), dict(run.arguments)
    if run.holdout:
        split(data, fraction=run.holdout, key_added=HOLDOUT, seed=arguments["seed"])
        arguments["holdout_key"] = HOLDOUT
    backend("cpu")  # loads compiled code before the clock starts
    with settings.override(verbosity="error", progress=False):
        wall, cpu = time.perf_counter(), time.process_time()
        _fit(data, run.model, arguments)
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        course = _course(data.uns[KEY], seconds, cpu_seconds)
        found: Found = {**course, "lines": _lines(data), "error": None}
    if keep is not None:
        _keep(data, keep)
    return found


def _opened(source: Options) -> AnnData | MuData:
    """Read or simulate."""
    if "file" in source:
        return read(Path(source["file"]))
    arguments = {name: value for name, value in source.items() if name != "simulate"}
    return getattr(gpnsf.datasets, source["simulate"])(**arguments)


def _fit(data: AnnData | MuData, model: str, arguments: Options) -> None:
    """Fit a model; those without a likelihood of counts get normalised ones."""
    if model == MEFISTO:
        mefisto(data, **arguments, key_added=KEY)
        return
    if model in GAUSSIAN:
        own = {name: arguments[name] for name in FOR_COUNTS if name in arguments}
        normalise(data, **own, layer_added="normalised")
        arguments = {**arguments, "layers": "normalised"}
    fit(data, model, **arguments, key_added=KEY)


def _course(record: Mapping[str, Any], seconds: float, cpu_seconds: float) -> Course:
    """How a fit went, and what it took."""
    return {
        "n_kept": len(record["factor_names"]),
        "n_kept_spatial": int(sum(record["is_spatial"])),
        "n_steps": int(record["history"].get("step", [0, len(record["history"]["elbo"])])[-1]),
        "converged": bool(record["converged"]),
        "n_repairs": len(record.get("repairs", ())),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_memory": peak_memory(),
    }


def _lines(data: AnnData | MuData) -> list[Line]:
    """How good a fit is, by modality."""
    tables = {metric: evaluate(data, metric=metric, key=KEY) for metric in ("poisson", "rmse")}
    sparsity = evaluate(data, metric="sparsity", key=KEY).set_index("modality")["sparsity"]
    moran = evaluate(data, metric="moran", key=KEY)
    mean = moran["moran"][moran["is_spatial"]].mean()
    lines: dict[str, Line] = {}
    for metric, columns in {"poisson": ("deviance", "explained"), "rmse": ("rmse",)}.items():
        for row in tables[metric].to_dict("records"):
            line = lines.setdefault(
                row["modality"],
                {
                    "modality": row["modality"],
                    "likelihood": row["likelihood"],
                    "sparsity": float(sparsity[row["modality"]]),
                    "morans_i": float(mean),
                },
            )
            suffix = "_holdout" if row["rows"] == "holdout" else ""
            line |= {f"{column}{suffix}": float(row[column]) for column in columns}
    return list(lines.values())


def _keep(data: AnnData | MuData, stem: Path) -> None:
    """Write the fitted object."""
    stem.parent.mkdir(exist_ok=True)
    write(data, stem.with_suffix(".h5mu" if hasattr(data, "mod") else ".h5ad"))
