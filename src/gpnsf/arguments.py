"""Arguments as data: each with its default and its rule, sorted by what they are about, and checked once."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np

from gpnsf.checks import MODELS, Rule, near, problem
from gpnsf.keys import SPATIAL

__all__ = [
    "DEFAULTS",
    "RULES",
    "Arguments",
    "Call",
    "Deconvolution",
    "Model",
    "Options",
    "Reading",
    "Training",
    "all_plain",
    "answering",
    "check_arguments",
    "check_given",
    "check_names",
    "known_arguments",
    "plain",
]


def _ruled(default: Any, rule: Rule) -> Any:
    """A field with a default and a rule; fields without a rule are judged beside the data."""
    return field(default=default, metadata={"rule": rule})


def _name(example: str) -> Any:
    """The name of a column, which may be left out."""
    return _ruled(None, Rule(str, example, optional=True))


def _one_of(*options: str) -> Any:
    """One of some options, the first by default."""
    return _ruled(options[0], Rule(str, options[0], options=options))


Options: TypeAlias = Mapping[str, Any]  # arguments by name, as a user has passed them

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a fit reads of an object."""

    modalities: Sequence[str] | None = None
    likelihoods: Mapping[str, str] | str | None = None
    layers: Mapping[str, str] | str | None = None
    use_var: Mapping[str, str] | str | None = None
    spatial_key: str = _ruled(SPATIAL, Rule(str, SPATIAL))
    library_key: str | None = _name("sample")
    batch_key: str | None = _name("sample")
    size_factors: str | None = _ruled("total", Rule(str, "total", optional=True))
    modality_weights: Mapping[str, float] | None = None
    holdout_key: str | None = _name("held_out")


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a fit builds."""

    model: str = _ruled("gpnsf", Rule(str, "gpnsf", options=MODELS))
    n_factors: int = _ruled(12, Rule(int, 12, low=1))
    n_spatial: int | None = _ruled(None, Rule(int, 6, low=0, optional=True))
    kernel: str = _ruled(
        "matern32", Rule(str, "matern32", options=("matern12", "matern32", "matern52", "rbf"))
    )
    field: str = _one_of("hilbert", "inducing")
    n_inducing: int | None = _ruled(None, Rule(int, 200, low=1, optional=True))
    lengthscale: float | None = _ruled(None, Rule(float, 0.2, low=0, above=True, optional=True))
    loadings: str = _one_of("gamma", "point")
    kl_weight: float = _ruled(1.0, Rule(float, 1.0, low=0))
    objective: str = _one_of("closed_form", "monte_carlo")
    n_samples: int = _ruled(3, Rule(int, 3, low=1))

    @property
    def draws(self) -> int | None:
        """Monte Carlo draws of the objective; None for the closed form."""
        return self.n_samples if self.objective == "monte_carlo" else None


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a fit goes about it."""

    init: str = _one_of("auto", "smooth", "spot", "random")
    split: str = _one_of("tested", "assumed")
    refine: bool = _ruled(True, Rule(bool, True))
    max_steps: int = _ruled(600, Rule(int, 600, low=1))
    learning_rate: float = _ruled(0.2, Rule(float, 0.2, low=0, above=True))
    tol: float = _ruled(2e-4, Rule(float, 1e-4, low=0, above=True))
    block_size: int | None = _ruled(None, Rule(int, 50_000, low=1, optional=True))
    device: str = _ruled("auto", Rule(str, "auto"))
    seed: int = _ruled(0, Rule(int, 0, low=0, high=2**32 - 1))


@dataclass(frozen=True, kw_only=True)
class Call:
    """What does not matter to the result of a fit, but for where it goes."""

    table: str | Mapping[str, str] | None = None
    key_added: str = _ruled("gpnsf", Rule(str, "gpnsf"))
    progress: bool | None = _ruled(None, Rule(bool, False, optional=True))
    checkpoint: str | os.PathLike[str] | None = _ruled(
        None, Rule(os.PathLike, "fit.npz", optional=True)
    )
    copy: bool = _ruled(False, Rule(bool, False))


@dataclass(frozen=True, kw_only=True)
class Deconvolution:
    """What :func:`gpnsf.tl.deconvolve` is asked for, but for tables and arrays."""

    method: str = _ruled("graph", Rule(str, "graph", options=("graph", "nnls", "unrolled")))
    label_key: str | None = _ruled(None, Rule(str, "cell_type", optional=True))
    layer: str | None = _ruled(None, Rule(str, "counts", optional=True))
    reference_layer: str | None = _ruled(None, Rule(str, "counts", optional=True))
    reliable_genes: bool = _ruled(False, Rule(bool, True))
    min_counts: int = _ruled(1, Rule(int, 100, low=1))
    spatial_weight: float = _ruled(0.1, Rule(float, 0.1, low=0))
    total_weight: float = _ruled(0.1, Rule(float, 0.1, low=0))
    group_weight: float = _ruled(0.0, Rule(float, 0.1, low=0))
    n_neighbors: int = _ruled(6, Rule(int, 6, low=1))
    bandwidth: float | None = _ruled(None, Rule(float, 100.0, low=0, above=True, optional=True))
    region_key: str | None = _ruled(None, Rule(str, "region", optional=True))
    region_bandwidth: float = _ruled(1.0, Rule(float, 1.0, low=0, above=True))
    spatial_key: str = _ruled(SPATIAL, Rule(str, SPATIAL))
    library_key: str | None = _ruled(None, Rule(str, "sample", optional=True))
    solver: str = _ruled(
        "multiplicative", Rule(str, "multiplicative", options=("multiplicative", "fista"))
    )
    max_steps: int = _ruled(5000, Rule(int, 5000, low=1))
    tol: float = _ruled(1e-07, Rule(float, 1e-7, low=0, above=True))
    train: bool = _ruled(True, Rule(bool, True))
    n_layers: int = _ruled(40, Rule(int, 40, low=1))
    shared: bool = _ruled(False, Rule(bool, False))
    n_training: int = _ruled(150, Rule(int, 150, low=1))
    learning_rate: float = _ruled(0.1, Rule(float, 0.1, low=0, above=True))
    uncertainty: bool = _ruled(False, Rule(bool, True))
    obs_columns: bool = _ruled(False, Rule(bool, False))
    device: str = _ruled("auto", Rule(str, "auto"))
    seed: int = _ruled(0, Rule(int, 0, low=0, high=2**32 - 1))
    key_added: str = _ruled("proportions", Rule(str, "proportions"))
    progress: bool | None = _ruled(None, Rule(bool, False, optional=True))

    def __post_init__(self) -> None:
        """Check every argument."""
        for own in fields(self):
            own.metadata["rule"].check(own.name, getattr(self, own.name))

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the penalties."""
        return {
            "spatial": self.spatial_weight,
            "total": self.total_weight,
            "group": self.group_weight,
        }


_FIELDS = [own for part in (Reading, Model, Training, Call) for own in fields(part)]
DEFAULTS: Options = {own.name: own.default for own in _FIELDS}
RULES: dict[str, Rule] = {
    own.name: own.metadata["rule"] for own in _FIELDS if "rule" in own.metadata
}


def known_arguments(function: Callable[..., Any], options: Iterable[str]) -> None:
    """Check that a public function has the arguments that are passed to it by name."""
    known = inspect.signature(function).parameters
    unknown = next((name for name in options if name not in known), None)
    if unknown is None or any(each.kind is each.VAR_KEYWORD for each in known.values()):
        return
    package = function.__module__.rpartition(".")[0]
    rule = f"arguments of {package}.{function.__name__} ({', '.join(known)})"
    found = f"{unknown!r}{near(unknown, known)}"
    raise TypeError(problem(rule, found, "Pass one of these, or leave it out"))


def check_given(function: Callable[..., Any], given: Sequence[Any], options: Iterable[str]) -> None:
    """Check that a public function gets what it cannot do without."""
    known = inspect.signature(function).parameters
    needed = [name for name, own in known.items() if own.default is own.empty]
    named = {*options, *list(known)[: len(given)]}
    missing = [name for name in needed if name not in named]
    if missing and not any(known[name].kind is known[name].VAR_KEYWORD for name in missing):
        package = function.__module__.rpartition(".")[0]
        rule = f"`{missing[0]}` among the arguments of {package}.{function.__name__}"
        remedy = f"Pass it; help({package}.{function.__name__}) says what it may be"
        raise TypeError(problem(rule, "none", remedy))


def answering(function: Callable[P, T]) -> Callable[P, T]:
    """Answer arguments that a public function does not have by what was meant, and let it see no scalar of NumPy."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        known_arguments(function, kwargs)
        check_given(function, args, kwargs)
        args, kwargs = all_plain(args, kwargs)
        return function(*args, **kwargs)

    return called


def plain(value: Any) -> Any:
    """A scalar of NumPy as the number of Python that it is; torch and others refuse some, or compute in its type."""
    return value.item() if isinstance(value, np.generic) else value


def all_plain(args: Any, options: Any) -> tuple[Any, Any]:
    """The arguments of a call without scalars of NumPy."""
    return tuple(map(plain, args)), {name: plain(value) for name, value in options.items()}


def check_names(names: Iterable[str], function: str) -> None:
    """Check that these are arguments of a fit, which ``function`` passes on."""
    unknown = next((name for name in names if name not in DEFAULTS), None)
    if unknown is not None:
        rule = f"arguments of {function} or of gpnsf.tl.fit"
        remedy = f"Leave it out, or pass one of {', '.join(DEFAULTS)}"
        raise TypeError(problem(rule, f"{unknown!r}{near(unknown, DEFAULTS)}", remedy))


def check_arguments(values: Options) -> None:
    """Check every argument that has a rule, then what two of them say together."""
    for name in RULES.keys() & values.keys():
        RULES[name].check(name, values[name])
    n_factors, n_spatial = values.get("n_factors"), values.get("n_spatial")
    if n_factors is not None and n_spatial is not None and n_spatial > n_factors:
        found = f"n_spatial={n_spatial} with n_factors={n_factors}"
        raise ValueError(
            problem(
                "`n_spatial` of at most `n_factors`", found, "Lower n_spatial or raise n_factors"
            )
        )


@dataclass(frozen=True)
class Arguments:
    """All arguments of a fit."""

    reading: Reading
    model: Model
    training: Training
    call: Call

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Arguments:
        """Arguments by name, checked; those left out keep their default, and other names are left aside."""
        check_arguments(values)
        return cls(
            _of(Reading, values), _of(Model, values), _of(Training, values), _of(Call, values)
        )

    @property
    def record(self) -> dict[str, object]:
        """What ``uns`` keeps: arguments that decide the result, and where it went."""
        return {
            **vars(self.reading),
            **vars(self.model),
            **vars(self.training),
            "key_added": self.call.key_added,
        }


def _of(part: type[T], values: Mapping[str, object]) -> T:
    """A part of the arguments."""
    names = [own.name for own in fields(part)]  # type: ignore[arg-type] # all parts are dataclasses
    return part(**{name: values[name] for name in names if name in values})
