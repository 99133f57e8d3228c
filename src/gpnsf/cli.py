"""The command ``gpnsf``: demo, fit, forecast, predict, plot, report, simulate, benchmark."""

from __future__ import annotations

import argparse
import ast
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
from gpnsf.checks import choices, problem
from gpnsf.io.kinds import check_input, check_output, replacing
from gpnsf.io.places import read_table

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

__all__ = ["BENCHMARKS", "FIT_OPTIONS", "main", "read_assignment"]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BAD_INPUT = 2
LARGE = 2**28  # bytes of a file from which a fit leaves the counts there
INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C has ended
DATASETS = ("ggblocks", "groups", "quilt", "tissue")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0, 2 after a message about what was wrong with the input, or 130 after Ctrl-C."""
    # read when torch is loaded: on a busy machine, threads that spin while they wait made a fit ten times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    arguments = vars(_parser().parse_args(argv))
    run, command = arguments.pop("run"), arguments.pop("command")
    try:
        with gpnsf.settings.override(progress=sys.stderr.isatty()), warnings.catch_warnings():
            # addressed to programmers: mudata 0.3 announces a change of its own interface
            warnings.filterwarnings("ignore", category=FutureWarning, module="mudata")
            return run(**arguments) or 0
    except (ValueError, TypeError, KeyError, OSError, MemoryError, ArithmeticError) as error:
        # str() of a KeyError is the repr of its message
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"gpnsf {command}: {message}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"gpnsf {command}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpnsf", description="Spatial factors of count data with coordinates."
    )
    parser.add_argument("--version", action="version", version=f"gpnsf {gpnsf.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    adders = (
        _add_demo,
        _add_fit,
        _add_forecast,
        _add_predict,
        _add_plot,
        _add_report,
        _add_simulate,
        _add_benchmark,
    )
    for add in adders:
        add(commands)
    return parser


def _command(commands: Any, run: Callable[..., int | None], help: str) -> argparse.ArgumentParser:
    """Add a command named after its function."""
    command = commands.add_parser(
        run.__name__.lstrip("_"), help=help, description=f"{help[0].upper()}{help[1:]}."
    )
    command.set_defaults(run=run)
    return command


def _add_demo(commands: Any) -> None:
    demo = _command(commands, _demo, "simulate a small tissue, fit it, and compare with the truth")
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("gpnsf-demo"),
        metavar="DIR",
        help="where results go (%(default)s)",
    )
    demo.add_argument(
        "--seed", type=int, default=0, help="seed of simulation and fit (%(default)s)"
    )


def _demo(out: Path, seed: int) -> None:
    from gpnsf.demo import run

    for line in run(out, seed=seed):
        print(line)


# Arguments of tl.fit; what is not given keeps the default that tl.fit has.
def _names(text: str) -> list[str]:
    """Read ``a,b``."""
    return text.split(",")


def _per_modality(text: str) -> str | dict[str, str]:
    """Read ``name`` for all modalities, or ``rna=name,atac=other``."""
    if "=" not in text:
        return text
    parts = [part.partition("=") for part in text.split(",")]
    if not all(name and sign and value for name, sign, value in parts):
        raise argparse.ArgumentTypeError(
            f"expected NAME or MODALITY=NAME,MODALITY=NAME; got {text!r}"
        )
    return {name: value for name, _, value in parts}


def _weights(text: str) -> dict[str, float]:
    """Read ``rna=1,atac=0.5``."""
    wanted = f"expected MODALITY=NUMBER,MODALITY=NUMBER; got {text!r}"
    parts = _per_modality(text)
    if isinstance(parts, str):
        raise argparse.ArgumentTypeError(wanted)
    try:
        return {name: float(value) for name, value in parts.items()}
    except ValueError:
        raise argparse.ArgumentTypeError(wanted) from None


def _or_none(text: str) -> str | None:
    """Read a name, or ``none``."""
    return None if text == "none" else text


FIT_OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"help": "gpnsf, nsfh, nsf, pnmf, rsf or fa"},
    "n_factors": {"type": int, "help": "most factors that are fitted"},
    "n_spatial": {
        "type": int,
        "help": "most factors that are spatial; default: as many as are found",
    },
    "modalities": {"type": _names, "metavar": "A,B", "help": "modalities to fit"},
    "likelihoods": {
        "type": _per_modality,
        "metavar": "A=NAME,B=NAME",
        "help": "nb, poisson, bernoulli, gaussian",
    },
    "layers": {
        "type": _per_modality,
        "metavar": "A=NAME,B=NAME",
        "help": "layers that hold the counts",
    },
    "use_var": {
        "type": _per_modality,
        "metavar": "NAME",
        "help": "boolean var column of the features to fit",
    },
    "spatial_key": {"help": "obsm slot of the coordinates"},
    "library_key": {"help": "obs column of sections"},
    "batch_key": {"help": "obs column of batches, whose features get multipliers"},
    "size_factors": {"type": _or_none, "help": "total, none, or an obs column"},
    "modality_weights": {
        "type": _weights,
        "metavar": "A=X,B=X",
        "help": "weights in the objective",
    },
    "kernel": {"help": "matern12, matern32, matern52 or rbf"},
    "field": {"help": "hilbert or inducing"},
    "n_inducing": {"type": int, "help": "number of inducing points"},
    "lengthscale": {"type": float, "help": "length scale, in the units of the coordinates"},
    "loadings": {"help": "gamma (default): posteriors; point: estimates without a prior"},
    "kl_weight": {"type": float, "help": "weight of the priors"},
    "objective": {"help": "closed_form or monte_carlo"},
    "n_samples": {"type": int, "help": "draws a step of the Monte Carlo objective"},
    "init": {"help": "auto, smooth, spot or random"},
    "split": {
        "help": "tested (default): by counts held back; assumed: spatial factors are as asked for"
    },
    "refine": {
        "action": argparse.BooleanOptionalAction,
        "help": "refine each observation after the fit",
    },
    "holdout_key": {"help": "boolean obs column of rows that train nothing"},
    "max_steps": {"type": int, "help": "cap on the optimisation"},
    "learning_rate": {"type": float, "help": "of the optimiser"},
    "tol": {"type": float, "help": "gain per nonzero count in ten steps that counts as converged"},
    "block_size": {"type": int, "help": "rows per block of the gradient"},
    "device": {"help": "auto, cpu, cuda or cuda:1"},
    "seed": {"type": int, "help": "seed, at least 0"},
    "key_added": {"help": "prefix of the slots"},
    "progress": {"action": argparse.BooleanOptionalAction, "help": "progress bar"},
    "checkpoint": {
        "type": Path,
        "metavar": "FILE",
        "help": "keeps the state of an interrupted fit; repeat to go on",
    },
}


def _add_fit(commands: Any) -> None:
    fit = _command(commands, _fit, "fit a model to a file and write the annotated object")
    fit.add_argument(
        "source",
        type=Path,
        metavar="IN",
        help="h5mu, h5ad or zarr; a large one is read block by block",
    )
    fit.add_argument("target", type=Path, metavar="OUT", help="same format as IN")
    _add_fit_options(fit)


def _add_fit_options(command: argparse.ArgumentParser) -> None:
    for name, option in FIT_OPTIONS.items():
        command.add_argument(
            f"--{name.replace('_', '-')}", dest=name, default=argparse.SUPPRESS, **option
        )


def _fit(source: Path, target: Path, **options: Any) -> None:
    check_input(source)
    own = target.exists() and target.samefile(source)
    if not own:
        check_output(target, source.suffix or ".zarr")
    start = time.perf_counter()
    if "WORLD_SIZE" in os.environ:
        if not _fit_together(source, target, options):
            return
    elif _bytes(source) >= LARGE or not source.suffix:
        _fit_in_file(source, target, options)
    else:
        data = _read(source)
        gpnsf.tl.fit(data, **options)
        _write(data, target)
    print(f"fitted {source} in {time.perf_counter() - start:.1f} s: {target}")


def _bytes(path: Path) -> int:
    """Size of a file, or of all files of a folder."""
    return sum(part.stat().st_size for part in [path, *path.rglob("*")] if part.is_file())


def _fit_in_file(source: Path, target: Path, options: dict[str, Any]) -> None:
    """Fit a copy that takes the place of the target once it holds the fit; or the file itself, if both are one."""
    if target.exists() and target.samefile(source):
        gpnsf.tl.fit(source, **options)
        return
    copy = shutil.copytree if source.is_dir() else shutil.copyfile
    with replacing(target) as partial:
        copy(source, partial)
        gpnsf.tl.fit(partial, **options)


def _fit_together(source: Path, target: Path, options: dict[str, Any]) -> bool:
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


def _add_forecast(commands: Any) -> None:
    forecast = _command(commands, _forecast, "say how much memory and time a fit will take")
    forecast.add_argument("source", type=Path, metavar="IN", help="h5mu, h5ad or zarr")
    _add_fit_options(forecast)


def _forecast(source: Path, **options: Any) -> None:
    print(gpnsf.tl.forecast(source if _bytes(source) >= LARGE else _read(source), **options))


def _add_predict(commands: Any) -> None:
    predict = _command(commands, _predict, "predict the factors at new coordinates")
    predict.add_argument("source", type=Path, metavar="IN", help="h5mu or h5ad with a fit")
    predict.add_argument(
        "coords",
        type=Path,
        metavar="COORDS.csv",
        help="columns x and y (and z), or columns in the order of the axes without a header; a first column of names is kept",
    )
    predict.add_argument("target", type=Path, metavar="OUT.h5ad", help="observations x factors")
    predict.add_argument("--library", help="section that the coordinates belong to")
    predict.add_argument("--key", default="gpnsf", help="prefix of the slots (%(default)s)")


def _predict(source: Path, coords: Path, target: Path, library: str | None, key: str) -> None:
    check_output(target, ".h5ad", source=source)
    predicted = gpnsf.tl.predict(_read(source), read_table(coords), library=library, key=key)
    _write(predicted, target)
    print(f"predicted {predicted.n_vars} factors at {predicted.n_obs} places: {target}")


def _add_plot(commands: Any) -> None:
    plot = _command(commands, _plot, "draw the figures of a fit as PNG")
    plot.add_argument("source", type=Path, metavar="IN", help="h5mu or h5ad with a fit")
    plot.add_argument("folder", type=Path, metavar="OUTDIR", help="folder for the figures")
    plot.add_argument("--key", default="gpnsf", help="prefix of the slots (%(default)s)")


def _plot(source: Path, folder: Path, key: str) -> None:
    from gpnsf.demo import save_figures

    for path in save_figures(_read(source), folder, key=key):
        print(path)


def _add_report(commands: Any) -> None:
    report = _command(commands, _report, "write a fit to one HTML page")
    report.add_argument("source", type=Path, metavar="IN", help="h5mu, h5ad or zarr with a fit")
    report.add_argument(
        "target", type=Path, metavar="OUT.html", help="a page that needs no other file"
    )
    report.add_argument("--title", help="title of the page")
    report.add_argument("--key", default="gpnsf", help="prefix of the slots (%(default)s)")


def _report(source: Path, target: Path, title: str | None, key: str) -> None:
    check_output(target, ".html", source=source)
    gpnsf.pl.report(_read(source), target, title=title or f"{source.name}, fit {key!r}", key=key)
    print(f"reported {source}: {target}")


def _add_simulate(commands: Any) -> None:
    simulate = _command(commands, _simulate, "write simulated data with its truth")
    simulate.add_argument("name", choices=DATASETS, help="which simulation")
    simulate.add_argument("target", type=Path, metavar="OUT.h5mu")
    simulate.add_argument("--seed", type=int, default=0, help="seed (%(default)s)")
    simulate.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        dest="values",
        help="other arguments of gpnsf.datasets.NAME",
    )


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


def read_assignment(text: str) -> tuple[str, Any]:
    """Read ``name=value`` with a Python literal as value."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        rule = "`--set` with NAME=VALUE, the value a number, True, False or a tuple of numbers"
        raise ValueError(problem(rule, repr(text), "Pass for example --set n_genes=200")) from None


def _add_benchmark(commands: Any) -> None:
    benchmark = _command(commands, _benchmark, "run a benchmark of a source checkout")
    benchmark.add_argument("name", metavar="NAME", help="file in benchmarks/, without .py")
    benchmark.add_argument(
        "rest", nargs=argparse.REMAINDER, metavar="...", help="arguments of the benchmark"
    )


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
    import anndata
    import mudata

    check_input(path)
    readers = {
        ".h5ad": anndata.read_h5ad,
        ".h5mu": mudata.read_h5mu,
        ".zarr": mudata.read_zarr,
        "": anndata.read_zarr,
    }
    try:
        return readers[path.suffix](path)
    except Exception as error:  # what a reader raises on a damaged file is not documented
        raise ValueError(
            problem(f"a readable {path.suffix[1:]} file", f"{path}: {error}", "Write it again")
        ) from error


def _write(data: AnnData | MuData, path: Path) -> None:
    """Write a result whole or not at all."""
    with replacing(path) as partial:
        data.write_zarr(partial) if path.suffix == ".zarr" else data.write(partial)
