"""What the command ``gpnsf`` can be asked: its commands, their options, and how their text is read."""

from __future__ import annotations

import argparse
import ast
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import gpnsf
from gpnsf.arguments import DEFAULTS, RULES
from gpnsf.checks import near, problem
from gpnsf.core.families import FAMILIES

__all__ = ["COMMANDS", "FIT_OPTIONS", "parser", "read_assignment"]

DATASETS = ("ggblocks", "groups", "quilt", "tissue")


def parser() -> argparse.ArgumentParser:
    """The command line: ``command`` is the name of a command, and the rest what it was given."""
    whole = _Parser(prog="gpnsf", description="Spatial factors of count data with coordinates.")
    whole.add_argument("--version", action="version", version=f"gpnsf {gpnsf.__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (help, add) in COMMANDS.items():
        description = f"{help[0].upper()}{help[1:]}."
        add(commands.add_parser(name, help=help, description=description))
    return whole


class _Parser(argparse.ArgumentParser):
    """A parser that knows what was meant by a name that is nearly right."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is left over where it was given, beside the options that are there."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            options = re.findall(r"--[\w-]+", self.format_usage())
            self.error(f"unknown argument {left[0]}{near(left[0].partition('=')[0], options)}")
        return found, left

    def error(self, message: str) -> NoReturn:
        """End with the message, and the choice that was meant."""
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        super().error(message + (near(wrong[1], re.findall(r"\w+", wrong[2])) if wrong else ""))


# Readers of text.
def _names(text: str) -> list[str]:
    """Read ``a,b``."""
    return text.split(",")


def _one_or_more(text: str) -> str | list[str]:
    """Read ``a`` or ``a,b``."""
    return _names(text) if "," in text else text


def _integers(text: str) -> list[int]:
    """Read ``4,6,8``."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected integers such as 4,6,8; got {text!r}") from None


def _number_or_auto(text: str) -> int | str:
    """Read an integer, or ``auto``."""
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer or auto; got {text!r}") from None


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


def _part(text: str) -> tuple[int, int]:
    """Read ``3/10``."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected a part such as 3/10; got {text!r}")
    return int(found[1]), int(found[2])


def _listed(options: Iterable[str]) -> str:
    """Options in words: ``a, b or c``."""
    *others, last = options
    return f"{', '.join(others)} or {last}"


def _or_none(text: str) -> str | None:
    """Read a name, or ``none``."""
    return None if text == "none" else text


def read_assignment(text: str) -> tuple[str, Any]:
    """Read ``name=value`` with a Python literal as value."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        rule = "`--set` with NAME=VALUE, the value a number, True, False or a tuple of numbers"
        raise ValueError(problem(rule, repr(text), "Pass for example --set n_genes=200")) from None


class _Argument(NamedTuple):
    """What the help says of an argument of a fit, and how its text is read where its rule does not say."""

    help: str = ""  # "": the options of the rule
    read: Callable[[str], Any] | None = None
    metavar: str | None = None


_READERS = {int: int, float: float, os.PathLike: Path}  # by the kind of a rule
_NAMED = "A=NAME,B=NAME"
FIT_OPTIONS = {
    "model": _Argument(),
    "n_factors": _Argument("most factors that are fitted"),
    "n_spatial": _Argument("upper bound of spatial factors; default: as many as found"),
    "table": _Argument(
        "tables of a SpatialData store; default: those of RNA and ATAC", _per_modality, _NAMED
    ),
    "modalities": _Argument("modalities to fit; default: all", _names, "A,B"),
    "likelihoods": _Argument(
        f"{_listed(FAMILIES)}; default: bernoulli for ATAC, nb for others", _per_modality, _NAMED
    ),
    "layers": _Argument("layers that hold the counts; default: X", _per_modality, _NAMED),
    "use_var": _Argument(
        "boolean var column of the features to fit; default: all features", _per_modality, "NAME"
    ),
    "spatial_key": _Argument("obsm slot of the coordinates"),
    "library_key": _Argument("obs column of sections; default: one section"),
    "batch_key": _Argument("obs column of batches, whose features get multipliers; default: none"),
    "size_factors": _Argument("total, none, or an obs column", _or_none),
    "modality_weights": _Argument(
        "weights in the objective; default: by held-out counts", _weights, "A=X,B=X"
    ),
    "kernel": _Argument(),
    "field": _Argument(),
    "n_inducing": _Argument("number of inducing points; default: by the data"),
    "lengthscale": _Argument("length scale, in the units of the coordinates; default: learned"),
    "loadings": _Argument("gamma: posteriors; point: estimates without a prior"),
    "kl_weight": _Argument("weight of the priors"),
    "objective": _Argument(),
    "n_samples": _Argument("draws a step of the Monte Carlo objective"),
    "init": _Argument(),
    "split": _Argument("tested: by held-out counts; assumed: spatial factors are as asked for"),
    "refine": _Argument("refine each observation after the fit"),
    "holdout_key": _Argument("boolean obs column of held-out rows; default: all rows train"),
    "max_steps": _Argument("cap on the optimisation"),
    "learning_rate": _Argument("of the optimiser"),
    "tol": _Argument("gain per nonzero count in ten steps that counts as converged"),
    "block_size": _Argument("rows per block of the gradient; default: by the data"),
    "device": _Argument("auto, cpu, cuda or cuda:1"),
    "seed": _Argument("seed, at least 0"),
    "key_added": _Argument("prefix of the slots"),
    "progress": _Argument("progress bar; default: in a terminal"),
    "checkpoint": _Argument(
        "file that keeps an interrupted fit; repeat the command to go on; default: none",
        metavar="FILE",
    ),
}  # what is not given keeps the default that tl.fit has
SEARCHED = FIT_OPTIONS.keys() - {
    *("n_factors", "n_spatial", "split", "refine", "max_steps", "seed"),
    *("key_added", "checkpoint"),
}  # arguments of a fit that a search passes on

PROJECTED = (
    *("layers", "spatial_key", "library_key", "max_steps", "block_size"),
    *("device", "seed", "key_added", "progress"),
)  # those of a projection


def _add_fit_options(
    command: argparse.ArgumentParser, names: Iterable[str] = FIT_OPTIONS.keys()
) -> None:
    for name in (name for name in FIT_OPTIONS if name in names):
        told, default = FIT_OPTIONS[name], DEFAULTS[name]
        words = told.help or _listed(RULES[name].options)
        words += "" if default is None else f"; default: {default}"
        kind = RULES[name].kind if name in RULES else str
        if kind is bool:
            _option(command, name, help=words, action=argparse.BooleanOptionalAction)
        else:
            read = told.read or _READERS.get(kind, str)
            _option(command, name, help=words, type=read, metavar=told.metavar)


def _option(command: argparse.ArgumentParser, name: str, **option: Any) -> None:
    """An option that, if it is not given, leaves the default to the function."""
    command.add_argument(
        f"--{name.replace('_', '-')}", dest=name, default=argparse.SUPPRESS, **option
    )


# The commands.
def _demo(command: argparse.ArgumentParser) -> None:
    help = "where results go; default: %(default)s"
    command.add_argument("--out", type=Path, default="gpnsf-demo", metavar="DIR", help=help)
    _seed(command, "seed of simulation and fit")


def _seed(command: argparse.ArgumentParser, help: str) -> None:
    command.add_argument("--seed", type=int, default=0, help=f"{help}; default: %(default)s")


def _source(command: argparse.ArgumentParser, help: str = "h5mu, h5ad or zarr with a fit") -> None:
    command.add_argument("source", type=Path, metavar="IN", help=help)


def _target(command: argparse.ArgumentParser) -> None:
    command.add_argument("target", type=Path, metavar="OUT", help="same format as IN, or IN itself")


def _key(command: argparse.ArgumentParser) -> None:
    help = "prefix of the slots; default: %(default)s"
    command.add_argument("--key", default="gpnsf", help=help)


def _fit(command: argparse.ArgumentParser) -> None:
    _source(command, "h5mu, h5ad or zarr; a large one is read block by block")
    _target(command)
    _add_fit_options(command)


def _forecast(command: argparse.ArgumentParser) -> None:
    _source(command, "h5mu, h5ad or zarr")
    _add_fit_options(command)


def _select(command: argparse.ArgumentParser) -> None:
    _source(command, "h5mu, h5ad or zarr")
    _target(command)
    lists = {"type": _integers, "metavar": "A,B,C"}
    words = "numbers of factors to try; default: 3,5,8,12,18, then near the best"
    _option(command, "n_factors", **lists, help=words)
    words = "numbers of spatial factors to try with each; default: decided by a test"
    _option(command, "n_spatial", **lists, help=words)
    _option(command, "n_seeds", type=int, help="divisions of the counts; default: 2")
    _option(command, "max_steps", type=int, help="cap on the steps of each fit; default: 60")
    _option(command, "n_jobs", type=int, help="fits at the same time; default: as many as cores")
    _option(command, "seed", type=int, help="seed of divisions and fits; default: 0")
    _option(command, "key_added", help="where the result goes in uns; default: gpnsf_selection")
    words = "file that keeps finished fits; repeat the command to go on; default: none"
    _option(command, "checkpoint", type=Path, metavar="FILE", help=words)
    _add_fit_options(command, SEARCHED)


def _grid(command: argparse.ArgumentParser) -> None:
    help = "TOML file of data and arguments: gpnsf.tl.grid"
    command.add_argument("spec", type=Path, metavar="SPEC.toml", help=help)
    help = "folder of records and table; repeat the command to go on"
    command.add_argument("folder", type=Path, metavar="DIR", help=help)
    help = "runs at the same time; default: %(default)s"
    command.add_argument("--jobs", type=int, default=1, metavar="N", help=help)
    help = "one part of several, say of a job array: 3/10; default: all"
    command.add_argument("--part", type=_part, default=(1, 1), metavar="I/N", help=help)
    help = "make runs that failed again; default: they stay in the table"
    command.add_argument("--retry", action="store_true", help=help)


def _domains(command: argparse.ArgumentParser) -> None:
    _source(command)
    _target(command)
    words = "number of domains, or auto; default: %(default)s"
    command.add_argument("--n-domains", type=_number_or_auto, default="auto", help=words)
    _option(command, "method", help="kmeans, gmm or leiden; default: kmeans")
    words = "spatial, all, or names of factors; default: those of the embedding of the fit"
    _option(command, "factors", type=_one_or_more, metavar="A,B", help=words)
    _option(command, "max_domains", type=int, help="largest number that auto tries; default: 15")
    words = "weight of neighbours; default: 4, or 0 without coordinates"
    _option(command, "smoothness", type=float, help=words)
    _option(command, "key_added", help="name of the column; default: gpnsf_domain")
    _seed(command, "seed of starts and subsamples")
    _key(command)


def _rank(command: argparse.ArgumentParser) -> None:
    _source(command)
    _option(command, "modality", type=_names, metavar="A,B", help="modalities; default: all")
    _option(command, "factors", type=_names, metavar="A,B", help="names of factors; default: all")
    _option(command, "n_features", type=int, help="features of each factor; default: 20")
    words = "posterior, lift, loading, share or specificity; default: posterior"
    _option(command, "method", help=words)
    words = "weight of the prior of posterior, in counts; default: 50"
    _option(command, "prior_counts", type=float, help=words)
    _key(command)


def _evaluate(command: argparse.ArgumentParser) -> None:
    _source(command)
    words = "deviance, poisson, rmse, sparsity or moran; default: deviance"
    _option(command, "metric", help=words)
    words = "layers with other counts of the same rows; default: none"
    _option(command, "layers", type=_per_modality, metavar=_NAMED, help=words)
    _key(command)


def _predict(command: argparse.ArgumentParser) -> None:
    _source(command)
    command.add_argument(
        "coords",
        type=Path,
        metavar="COORDS.csv",
        help="columns x and y (and z), or columns in the order of the axes without a header; "
        "a first column of names is kept",
    )
    command.add_argument("target", type=Path, metavar="OUT.h5ad", help="observations x factors")
    command.add_argument("--library", help="section that the coordinates belong to; default: none")
    _key(command)


def _project(command: argparse.ArgumentParser) -> None:
    _source(command, "h5mu, h5ad or zarr with new observations")
    words = "h5mu, h5ad or zarr with a fit"
    command.add_argument("reference", type=Path, metavar="REFERENCE", help=words)
    _target(command)
    words = "total, none, or an obs column; default: as in the reference"
    _option(command, "size_factors", type=_or_none, help=words)
    words = "modalities to use; default: those that both have"
    _option(command, "modalities", type=_names, metavar="A,B", help=words)
    _add_fit_options(command, PROJECTED)
    _key(command)


def _plot(command: argparse.ArgumentParser) -> None:
    _source(command)
    command.add_argument("folder", type=Path, metavar="OUTDIR", help="folder for the figures")
    _key(command)


def _report(command: argparse.ArgumentParser) -> None:
    _source(command)
    command.add_argument("target", type=Path, metavar="OUT.html", help="a page of its own")
    command.add_argument("--title", help="title of the page; default: names of file and fit")
    _key(command)


def _simulate(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", choices=DATASETS, help="which simulation")
    command.add_argument("target", type=Path, metavar="OUT.h5mu")
    _seed(command, "seed")
    words = "other arguments of gpnsf.datasets.NAME; default: those of the function"
    command.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", dest="values", help=words
    )


def _benchmark(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="NAME", help="file in benchmarks/, without .py")
    words = "arguments of the benchmark"
    command.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help=words)


COMMANDS = {
    "demo": ("simulate a small tissue, fit it, and compare with the truth", _demo),
    "fit": ("fit a model to a file and write the annotated object", _fit),
    "forecast": ("say how much memory and time a fit will take", _forecast),
    "select": ("find the number of factors and write the object with the result", _select),
    "grid": ("fit combinations of data, models and arguments, and write one table", _grid),
    "domains": ("divide a fitted section into domains and write the annotated object", _domains),
    "rank": ("print the best features of each factor as CSV", _rank),
    "evaluate": ("print how well a fit explains training and held-out counts, as CSV", _evaluate),
    "predict": ("predict the factors at new coordinates", _predict),
    "project": ("find the factors of a fit in new observations", _project),
    "plot": ("draw the figures of a fit as PNG", _plot),
    "report": ("write a fit to one HTML page", _report),
    "simulate": ("write simulated data with its truth", _simulate),
    "benchmark": ("run a benchmark of a source checkout", _benchmark),
}
