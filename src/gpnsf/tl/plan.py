"""What a grid of fits asks for: its data and arguments, all checked before anything is fitted, and its runs."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import os
import reprlib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gpnsf.datasets
from gpnsf.arguments import (
    DEFAULTS,
    Arguments,
    Options,
    check_arguments,
    check_names,
    known_arguments,
)
from gpnsf.checks import Rule, near, problem
from gpnsf.core.families import FAMILIES
from gpnsf.core.presets import PRESETS
from gpnsf.io.kinds import check_input
from gpnsf.pp.split import proportion
from gpnsf.tl.mefisto import FEWEST, mefisto

__all__ = ["GAUSSIAN", "MEFISTO", "Run", "read_plan"]

MEFISTO = "mefisto"
SIGNED = [name for name, preset in PRESETS.items() if not preset.nonnegative]
GAUSSIAN = (*SIGNED, MEFISTO)  # models without a likelihood of counts
SIMULATED = ("ggblocks", "groups", "quilt", "tissue")
SECTIONS = ("data", "fit", "split", "variant", "keep_fits")
SET_HERE = {"copy", "progress", "checkpoint", "key_added", "table"}  # arguments of a fit
DATA = 'Name data, such as [data] section = "section.h5mu" or section = {simulate = "ggblocks"}'


@dataclass(frozen=True)
class Run:
    """One fit: what is fitted, and how."""

    data: str  # its name in the grid
    source: Options  # {"file": path} or {"simulate": name, argument: value}
    content: str  # hash of what the file holds
    model: str
    arguments: Options  # of the fit, but for the model
    holdout: float | None  # share of the observations that are held out
    keep_fit: bool

    @cached_property
    def key(self) -> str:
        """The same for runs that have the same result: content of the data, arguments, version."""
        source = self.content or self.source  # a file is the same wherever it lies
        facts = (source, self.model, self.arguments, self.holdout, version("gpnsf"))
        text = json.dumps(facts, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def read_plan(spec: Options | str | os.PathLike[str]) -> list[Run]:
    """Runs of a grid, each once, in the order of data, arguments and values."""
    table, folder = _opened(spec)
    unknown = next((name for name in table if name not in SECTIONS), None)
    if unknown is not None:
        rule = f"a grid of {', '.join(SECTIONS)}"
        remedy = "Leave it out, or write arguments of a fit under [fit]"
        raise ValueError(problem(rule, f"{unknown!r}{near(str(unknown), SECTIONS)}", remedy))
    holdout, keep_fit = _holdout(table), table.get("keep_fits", False)
    Rule(bool, True).check("keep_fits", keep_fit)
    fits = list(_fits(table, holdout))
    sources = {name: _source(name, value, folder) for name, value in _data(table).items()}
    runs = [
        Run(name, source, content, model, arguments, holdout, keep_fit)
        for name, (source, content) in sources.items()
        for model, arguments in fits
    ]
    return list({(run.data, run.key): run for run in runs}.values())


def _opened(spec: Any) -> tuple[Options, Path]:
    """The tables of a grid, and the folder that paths are relative to."""
    if isinstance(spec, Mapping):
        return spec, Path()
    if not isinstance(spec, str | os.PathLike):
        remedy = "Pass for example 'grid.toml'"
        found = type(spec).__name__
        raise TypeError(problem("`spec` to be a mapping or the path of a TOML file", found, remedy))
    path = Path(spec)
    if not path.is_file():
        raise FileNotFoundError(problem("a TOML file that exists", str(path), "Check the path"))
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), path.parent
    except ValueError as error:  # of tomllib, or no text at all
        raise ValueError(
            problem("a file in TOML", f"{path}: {error}", "Correct this line")
        ) from error


def _table(value: Any, name: str, remedy: str) -> dict[str, Any]:
    """A part of the grid that has names."""
    if not isinstance(value, Mapping):
        found = f"{reprlib.repr(value)} of type {type(value).__name__}"
        raise TypeError(problem(f"{name} to be a table", found, remedy))
    return dict(value)


def _data(table: Options) -> dict[str, object]:
    """Data by name, as they are written in the grid."""
    named = _table(table.get("data", {}), "[data]", DATA)
    if not named:
        raise ValueError(problem("a grid with data", "none", DATA))
    return named


def _source(name: str, value: Any, folder: Path) -> tuple[Options, str]:
    """What is to be read, or simulated, and a hash of the content of a file."""
    if isinstance(value, str | os.PathLike):
        path = folder / value
        check_input(path)
        return {"file": str(path.resolve())}, _content(path)
    source = _table(value, f"{name!r} in [data] to be a path or a simulation, and the latter", DATA)
    which = source.get("simulate")
    if which not in SIMULATED:
        rule = f"`simulate` of {name!r} to be one of {', '.join(map(repr, SIMULATED))}"
        found = f"{which!r}{near(str(which), SIMULATED)}"
        raise ValueError(problem(rule, found, "Name one of these"))
    known_arguments(getattr(gpnsf.datasets, which), source.keys() - {"simulate"})
    return source, ""


def _content(path: Path) -> str:
    """Hash of the bytes of a file, or of all files of a store."""
    digest = hashlib.blake2b(digest_size=16)
    for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if part.is_file():
            digest.update(os.fsencode(part.relative_to(path)))
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _holdout(table: Options) -> float | None:
    """Share of the observations that are held out."""
    remedy = "Write [split] holdout = 0.05"
    split = _table(table.get("split", {}), "[split]", remedy)
    unknown = next((name for name in split if name != "holdout"), None)
    if unknown is not None:
        found = f"{unknown!r}{near(str(unknown), ['holdout'])}"
        raise ValueError(problem("`holdout` alone in [split]", found, remedy))
    if "holdout" in split:
        proportion("holdout", split["holdout"])
    return split.get("holdout")


def _fits(table: Options, holdout: float | None) -> Iterator[tuple[str, Options]]:
    """Model and arguments of each fit of any data, checked."""
    shared = _table(
        table.get("fit", {}), "[fit]", 'Write for example [fit] model = ["nsf", "pnmf"]'
    )
    variants = table.get("variant", [{}])
    if not isinstance(variants, list | tuple) or not variants:
        remedy = 'Write [[variant]] with two brackets, and below it for example model = "nsfh"'
        raise TypeError(problem("`variant` to be a list of tables", repr(variants), remedy))
    for number, variant in enumerate(variants, 1):
        own = _table(variant, f"[[variant]] {number}", "Write arguments of a fit below it")
        for values in _product({**shared, **own}):
            yield _checked(values, holdout)


def _product(arguments: Options) -> Iterator[Options]:
    """All combinations of what is listed; the text "none" is None, which TOML has not."""
    listed = [_values(name, value) for name, value in arguments.items()]
    for values in itertools.product(*listed):
        named = zip(arguments, values, strict=True)
        yield {name: None if value == "none" else value for name, value in named}


def _values(name: str, value: Any) -> list[Any]:
    """The values of an argument; a list of modalities is one value."""
    single = name == "modalities" and all(isinstance(one, str) for one in _listed(value))
    if single or not isinstance(value, list | tuple):
        return [value]
    if not value:
        found, remedy = f"none for {name!r}", "Name some, or leave it out"
        raise ValueError(problem("at least one value of each argument", found, remedy))
    return list(value)


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _checked(asked: Options, holdout: float | None) -> tuple[str, Options]:
    """A combination, without what its model has no use for, if its arguments are legal."""
    check_names(asked, "[fit]")
    _check_free(asked, holdout)
    values = {name: DEFAULTS[name] for name in ("model", "n_factors", "seed")} | dict(asked)
    model = values.pop("model")
    Rule(str, "nsf", options=(*PRESETS, MEFISTO)).check("model", model)
    check_arguments(values)
    if model in GAUSSIAN:
        values.pop("likelihoods", None)
    if model == MEFISTO:
        known = inspect.signature(mefisto).parameters
        values = {name: value for name, value in values.items() if name in known}
        Rule(int, 200, low=FEWEST).check("n_inducing", values.get("n_inducing", FEWEST))
    else:
        _check_model(model, values)
    return model, values


def _check_free(values: Options, holdout: float | None) -> None:
    """Check that a grid leaves alone what belongs to it."""
    taken = SET_HERE | ({"holdout_key"} if holdout else set())
    own = next((name for name in values if name in taken), None)
    if own is not None:
        remedy = f"Leave {own} out" + " or [split]" * (own == "holdout_key")
        raise ValueError(
            problem("arguments of a fit that the grid does not set", repr(own), remedy)
        )


def _check_model(model: str, values: Options) -> None:
    """Check the names of likelihoods, and the number of spatial factors of a model."""
    likelihoods = values.get("likelihoods")
    kinds = likelihoods.values() if isinstance(likelihoods, Mapping) else [likelihoods]
    for kind in kinds if likelihoods is not None else ():
        Rule(str, "nb", options=tuple(FAMILIES)).check("likelihoods", kind)
    if values.get("n_spatial") is not None:
        from gpnsf.tl.asked import number_spatial  # brings torch

        number_spatial(Arguments.of({**values, "model": model}).model)
