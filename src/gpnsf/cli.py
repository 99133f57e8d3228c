"""The command ``gpnsf``: what each of its commands does."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gpnsf
from gpnsf.arguments import Options
from gpnsf.checks import choices, problem, text_of
from gpnsf.io.kinds import check_input, check_output, replacing, stored_tables
from gpnsf.io.places import read_table
from gpnsf.options import parser, read_assignment

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

__all__ = ["BENCHMARKS", "RUN", "main"]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BAD_INPUT = 2
LARGE = 2**28  # bytes of a file from which a fit leaves the counts there
INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C has ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0, 2 after a message about what was wrong with the input, 1 if a run of a grid has failed, or 130 after Ctrl-C."""
    # read when torch is loaded: on a busy machine, threads that spin while they wait made a fit ten times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    arguments = vars(parser().parse_args(argv))
    command = arguments.pop("command")
    try:
        with gpnsf.settings.override(progress=sys.stderr.isatty()), warnings.catch_warnings():
            # addressed to programmers: mudata 0.3 announces a change of its own interface
            warnings.filterwarnings("ignore", category=FutureWarning, module="mudata")
            return RUN[command](**arguments) or 0
    except (ValueError, TypeError, KeyError, OSError, MemoryError, ArithmeticError) as error:
        print(f"gpnsf {command}: {text_of(error)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"gpnsf {command}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _demo(out: Path, seed: int) -> None:
    from gpnsf.demo import run

    for line in run(out, seed=seed):
        print(line)


def _fit(source: Path, target: Path, **options: Any) -> None:
    _check_target(source, target)
    start = time.perf_counter()
    if "WORLD_SIZE" in os.environ:
        if not _fit_together(source, target, options):
            return
    elif _stays_in_its_file(source):
        _fit_in_file(source, target, options)
    else:
        data = _read(source)
        gpnsf.tl.fit(data, **options)
        _write(data, target)
    print(f"fitted {source} in {time.perf_counter() - start:.1f} s: {target}")


def _check_target(source: Path, target: Path) -> None:
    """Check that the object in a file may be written to another, or to the file itself, once it has more slots."""
    if stored_tables(source) is None:
        check_input(source)
    if not (target.exists() and target.samefile(source)):
        check_output(target, source.suffix or ".zarr")


def _stays_in_its_file(source: Path) -> bool:
    """Whether a source is fitted where it lies: a large one, and what lies in the store of a SpatialData."""
    return _bytes(source) >= LARGE or not source.suffix or stored_tables(source) is not None


def _bytes(path: Path) -> int:
    """Size of a file, or of all files of a folder."""
    return sum(part.stat().st_size for part in [path, *path.rglob("*")] if part.is_file())


def _fit_in_file(source: Path, target: Path, options: Options) -> None:
    """Fit a copy that takes the place of the target once it holds the fit; or the file itself, if both are one."""
    if target.exists() and target.samefile(source):
        gpnsf.tl.fit(source, **options)
        return
    copy = shutil.copytree if source.is_dir() else shutil.copyfile
    with replacing(target) as partial:
        copy(source, partial)
        gpnsf.tl.fit(partial, **options)


def _fit_together(source: Path, target: Path, options: Options) -> bool:
    """Fit with the processes that torchrun has started; tells whether this is the one that writes."""
    from gpnsf.core import distributed

    distributed.join()
    try:
        if distributed.rank() == 0:
            _fit_in_file(source, target, options)
            return True
        with gpnsf.settings.override(verbosity="error"):
            gpnsf.tl.fit(source, **options)
        return False
    finally:
        distributed.leave()


def _forecast(source: Path, **options: Any) -> None:
    data = source if _stays_in_its_file(source) else _read(source)
    print(gpnsf.tl.forecast(data, **options))


def _select(source: Path, target: Path, **options: Any) -> None:
    _check_target(source, target)
    data = _read(source)
    table = gpnsf.tl.select_n_factors(data, **options)
    _write(data, target)
    print(table.to_string(index=False, float_format="{:.4g}".format))
    print(f"{table.attrs['reason']}\nselected for {source}: {target}")


def _grid(spec: Path, folder: Path, part: tuple[int, int], jobs: int, retry: bool) -> int:
    table = gpnsf.tl.grid(spec, folder, n_jobs=jobs, part=part, retry=retry)
    runs = table.drop_duplicates(["data", "key"])
    failed = runs[runs["error"].notna()]
    for _, run in failed.iterrows():
        print(f"{run['data']}, {run['model']}, {run['key']}: {run['error']}", file=sys.stderr)
    print(f"{len(runs)} runs, of which {len(failed)} failed: {folder / 'table.csv'}")
    return int(len(failed) > 0)


def _domains(source: Path, target: Path, **options: Any) -> None:
    _check_target(source, target)
    data = _read(source)
    gpnsf.tl.domains(data, **options)
    _write(data, target)
    labels = data.obs[options.get("key_added", "gpnsf_domain")]
    sizes = ", ".join(map(str, labels.value_counts(sort=False)))
    print(f"divided {source} into domains of {sizes} observations: {target}")


def _rank(source: Path, **options: Any) -> None:
    table = gpnsf.tl.rank_features(_read(source), **options)
    print(table.to_csv(index=False, float_format="%.6g"), end="")


def _evaluate(source: Path, **options: Any) -> None:
    table = gpnsf.tl.evaluate(_read(source), **options)
    print(table.to_csv(index=False, float_format="%.6g"), end="")


def _predict(source: Path, coords: Path, target: Path, library: str | None, key: str) -> None:
    check_output(target, ".h5ad", source=source)
    predicted = gpnsf.tl.predict(_read(source), read_table(coords), library=library, key=key)
    _write(predicted, target)
    print(f"predicted {predicted.n_vars} factors at {predicted.n_obs} places: {target}")


def _project(source: Path, reference: Path, target: Path, **options: Any) -> None:
    _check_target(source, target)
    data = _read(source)
    gpnsf.tl.project(data, _read(reference), **options)
    _write(data, target)
    print(f"projected {data.n_obs} observations on the factors of {reference}: {target}")


def _plot(source: Path, folder: Path, key: str) -> None:
    from gpnsf.demo import save_figures

    for path in save_figures(_read(source), folder, key=key):
        print(path)


def _report(source: Path, target: Path, title: str | None, key: str) -> None:
    check_output(target, ".html", source=source)
    gpnsf.pl.report(_read(source), target, title=title or f"{source.name}, fit {key!r}", key=key)
    print(f"reported {source}: {target}")


def _simulate(name: str, target: Path, seed: int, values: list[str]) -> None:
    check_output(target, ".h5mu")
    function = getattr(gpnsf.datasets, name)
    options = dict(map(read_assignment, values))
    known = inspect.signature(function).parameters.keys() - {"seed"}
    choices(options, sorted(known), what="arguments in `--set`", where=f"gpnsf.datasets.{name}")
    mdata = function(seed=seed, **options)
    _write(mdata, target)
    shapes = ", ".join(
        f"{modality} {mod.n_obs} x {mod.n_vars}" for modality, mod in mdata.mod.items()
    )
    print(f"simulated {name} ({shapes}): {target}")


def _benchmark(name: str, rest: list[str]) -> int:
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
    if not names:
        found = f"no benchmarks in {BENCHMARKS}"
        remedy = "Clone the repository and install it with pip install -e ."
        raise FileNotFoundError(problem("a source checkout, installed in place", found, remedy))
    choices([name], names, what="benchmark", where="benchmarks/")
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *rest], check=False
    ).returncode


def _read(path: Path) -> AnnData | MuData:
    """Read h5ad, h5mu or zarr."""
    from gpnsf.io.files import read

    return read(path)


def _write(data: AnnData | MuData, path: Path) -> None:
    """Write h5ad, h5mu or zarr."""
    from gpnsf.io.files import write

    write(data, path)


RUN: dict[str, Callable[..., int | None]] = {
    "demo": _demo,
    "fit": _fit,
    "forecast": _forecast,
    "select": _select,
    "grid": _grid,
    "domains": _domains,
    "rank": _rank,
    "evaluate": _evaluate,
    "predict": _predict,
    "project": _project,
    "plot": _plot,
    "report": _report,
    "simulate": _simulate,
    "benchmark": _benchmark,
}
