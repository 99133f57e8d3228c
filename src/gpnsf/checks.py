"""Checks of what a user passes in. Each error has three parts: the rule, what was found, the remedy."""

from __future__ import annotations

import difflib
import math
import os
import reprlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import scipy.sparse as sp

from gpnsf.core.families import FAMILIES
from gpnsf.core.presets import PRESETS

__all__ = [
    "MODELS",
    "Rule",
    "choices",
    "column",
    "combination",
    "coordinates",
    "counts",
    "extent",
    "flags",
    "labels",
    "near",
    "nearest",
    "per_modality",
    "positive",
    "problem",
    "sizes",
    "text_of",
    "some",
]

MODELS = tuple(PRESETS)

V = TypeVar("V")

LARGEST_VALUE = 1e12  # of counts
LISTED = 20  # names in a message
# what is read of an argument that names one layer, by what messages call it
OF_ONE_LAYER = {"spots": "layer", "reference": "reference_layer"}
_TYPES: dict[type, tuple[Any, str]] = {
    int: (Integral, "an integer"),
    float: (Real, "a finite number"),
    str: (str, "a string"),
    bool: ((bool, np.bool_), "True or False"),
    os.PathLike: ((str, os.PathLike), "a path"),
}


def problem(rule: str, found: str, remedy: str) -> str:
    """Message of an error: what holds, what was found, what to do."""
    return f"Expected {rule}; got {found}. {remedy}."


def text_of(error: Exception) -> object:
    """What an error says; str() of a KeyError is the repr of it."""
    return error.args[0] if isinstance(error, KeyError) and error.args else error


def near(name: str, options: Iterable[str]) -> str:
    """A question about what was meant, to follow a name that is none of the options."""
    meant = nearest(name, options)
    return f" (did you mean {meant!r}?)" if meant else ""


@dataclass(frozen=True)
class Rule:
    """What one argument may be: a type and, within it, a list of options or a lower end."""

    kind: type
    example: Any
    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # the lower end itself is excluded
    options: tuple[str, ...] = ()
    optional: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise TypeError or ValueError unless ``value`` follows the rule."""
        if value is None and self.optional:
            return
        mistyped = isinstance(value, str) and value not in self.options
        example = (mistyped and nearest(value, self.options)) or self.example
        texts = (
            f"`{name}` to be {self.wanted}",
            reprlib.repr(value),
            f"Pass for example {name}={example!r}",
        )
        is_bool = isinstance(value, bool | np.bool_)
        if is_bool is not (self.kind is bool) or not isinstance(value, _TYPES[self.kind][0]):
            raise TypeError(
                problem(texts[0], f"{texts[1]} of type {type(value).__name__}", texts[2])
            )
        if (self.options and value not in self.options) or (
            self.kind in (int, float) and not self._inside(value)
        ):
            raise ValueError(problem(*texts))

    @property
    def wanted(self) -> str:
        """The rule in words."""
        words = (
            "one of " + ", ".join(map(repr, self.options)) if self.options else _TYPES[self.kind][1]
        )
        if self.low > -math.inf:
            words += f" {'above' if self.above else 'of at least'} {self.low:g}"
        if self.high < math.inf:
            words += f" and at most {self.high}"
        return words + (" or None" if self.optional else "")

    def _inside(self, value: float) -> bool:
        above = value > self.low if self.above else value >= self.low
        return math.isfinite(value) and above and value <= self.high


def combination(
    *,
    model: str,
    likelihoods: Mapping[str, str],
    objective: str,
    field: str,
    n_spatial: int,
    n_dims: int,
    batch_key: str | None = None,
) -> None:
    """Check that model, likelihoods, objective, field, number of coordinates and batches go together."""
    signed = not PRESETS[model].nonnegative
    if signed and batch_key is not None:
        rule = f"no batches for model={model!r}: multipliers need rates that are not negative"
        remedy = "Centre the features within each batch and leave batch_key out, or use a nonnegative model such as 'gpnsf'"
        raise ValueError(problem(rule, f"batch_key={batch_key!r}", remedy))
    counted = [f"{name}: {kind}" for name, kind in likelihoods.items() if not FAMILIES[kind].signed]
    if signed and counted:
        rule = f"gaussian likelihoods for model={model!r}, whose factors may be negative"
        remedy = "Pass likelihoods='gaussian' with normalised data in `layers`, or a nonnegative model such as 'gpnsf'"
        raise ValueError(problem(rule, "; ".join(counted), remedy))
    unbounded = [kind for kind in likelihoods.values() if not FAMILIES[kind].has_bound]
    if objective == "closed_form" and unbounded:
        rule = f"objective='monte_carlo' for the likelihood {unbounded[0]!r}, which has no closed-form bound"
        raise ValueError(
            problem(
                rule, f"objective={objective!r}", "Pass objective='monte_carlo' or use 'bernoulli'"
            )
        )
    if n_dims == 3 and field == "hilbert" and n_spatial:
        rule = "1 or 2 coordinates for field='hilbert'"
        raise ValueError(
            problem(rule, "3 coordinates", "Pass field='inducing' for data in three dimensions")
        )


def sizes(n_factors: int, *, n_obs: int, n_features: int) -> None:
    """Check that the data are at least as large as the number of factors."""
    limit = min(n_obs, n_features)
    if n_factors > limit:
        found = f"n_factors={n_factors} for {n_obs} observations and {n_features} features"
        raise ValueError(
            problem(
                f"`n_factors` of at most {limit}, no larger than the data",
                found,
                f"Pass n_factors={limit} or fewer",
            )
        )


def choices(
    found: Iterable[str], known: Iterable[str], *, what: str, where: str, remedy: str = ""
) -> None:
    """Check that all names exist."""
    options = dict.fromkeys(str(name) for name in known)
    unknown = [name for name in found if not isinstance(name, Hashable) or name not in options]
    if unknown:
        listed = ", ".join(map(repr, list(options)[:LISTED])) or "none"
        listed += f" and {len(options) - LISTED:,} more" if len(options) > LISTED else ""
        remedy = remedy or ("Use one of these names" if options else f"Add {unknown[0]!r} first")
        raise KeyError(
            problem(
                f"{what} to exist in {where} (there: {listed})",
                f"{unknown[0]!r}{near(str(unknown[0]), options)}",
                remedy,
            )
        )


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like another one, whatever its case; None if none does."""
    plain = {own.casefold(): own for own in known}
    near = difflib.get_close_matches(name.casefold(), plain, n=1)
    return plain[near[0]] if near else None


def per_modality(
    value: Mapping[str, V] | V | None,
    argument: str,
    *,
    names: Sequence[str],
    known: Iterable[str],
    numeric: bool = False,
) -> dict[str, V]:
    """Values of an argument by modality: a mapping names the modalities, a string stands for all of ``names``."""
    if value is None:
        return {}
    if isinstance(value, str) and not numeric:
        return dict.fromkeys(names, value)
    kind: type = Real if numeric else str
    example = "2.0" if numeric else "'...'"
    wanted = f"`{argument}` to be a dict from modality to {'number' if numeric else 'string, or one string for all'}"
    remedy = f"Pass for example {argument}={{{names[0]!r}: {example}}}"
    if not isinstance(value, Mapping):
        raise TypeError(problem(wanted, f"{value!r} of type {type(value).__name__}", remedy))
    choices(value, known, what=f"modalities named in `{argument}`", where="the data")
    wrong = {
        name: item
        for name, item in value.items()
        if not isinstance(item, kind) or isinstance(item, bool)
    }
    if wrong:
        raise TypeError(problem(wanted, repr(wrong), remedy))
    return {name: value[name] for name in names if name in value}


def counts(
    matrix: sp.csr_matrix, likelihood: str, *, modality: str, features: Sequence[str]
) -> None:
    """Check the nonzeros [N, P] of a modality, or of some of its rows, against its likelihood."""
    layer = f"layers={{{modality!r}: 'counts'}}"
    if modality in OF_ONE_LAYER:
        layer = f"{OF_ONE_LAYER[modality]}='counts'"
    finite = (
        f"Set missing values to 0, leave these features out, or pass {layer} to read another layer"
    )
    _refuse(
        matrix,
        lambda x: ~np.isfinite(x),
        "finite values",
        "NaN or infinite",
        finite,
        modality,
        features,
    )
    rule = f"values of at most {LARGEST_VALUE:g} (their squares are summed in single precision)"
    rescale = "Convert them to another unit, or leave these features out"
    _refuse(
        matrix, lambda x: np.abs(x) > LARGEST_VALUE, rule, "larger", rescale, modality, features
    )
    raw = f"Pass {layer} if a layer holds raw counts, or likelihoods={{{modality!r}: 'gaussian'}} for other data"
    for illegal in FAMILIES[likelihood].illegal:
        rule = f"{illegal.wanted} for likelihood {likelihood!r}"
        _refuse(matrix, illegal.found, rule, illegal.word, raw, modality, features)


def extent(n_obs: int, n_features: int, *, modality: str) -> None:
    """Check that a modality has cells and features."""
    if not n_obs or not n_features:
        remedy = "Pass data with cells and features, or a `use_var` that is true somewhere"
        raise ValueError(
            problem(
                f"modality {modality!r} not to be empty", f"shape {(n_obs, n_features)}", remedy
            )
        )


def some(counts: Any, *, modality: str) -> None:
    """Check that canonical counts [N, P] are not all zero."""
    if not counts.nnz:
        layer = f"layers={{{modality!r}: 'counts'}}"
        rule = f"at least one nonzero value in modality {modality!r}"
        remedy = (
            f"Pass {layer} if a layer holds the counts, or leave the modality out with `modalities`"
        )
        raise ValueError(
            problem(rule, f"only zeros in {counts.shape[0]} x {counts.shape[1]} values", remedy)
        )


def _refuse(
    matrix: sp.csr_matrix,
    bad: Callable[[np.ndarray], np.ndarray],
    rule: str,
    word: str,
    remedy: str,
    modality: str,
    features: Sequence[str],
) -> None:
    where = np.flatnonzero(bad(matrix.data))
    if where.size:
        first = features[matrix.indices[where[0]]]
        found = f"{where.size} {word} value(s), the first in feature {str(first)!r}"
        raise ValueError(problem(f"{rule} in modality {modality!r}", found, remedy))


def coordinates(values: Any, *, where: str, obs_names: Sequence[str]) -> np.ndarray:
    """Coordinates [N, D] in float64 from an array or a DataFrame with one to three finite numeric columns."""
    rule = f"{where} to be a numeric array or DataFrame with 1 to 3 columns"
    remedy = (
        "Store coordinates there as an [n_obs, 2] array, or name another slot with `spatial_key`"
    )
    if isinstance(values, pd.DataFrame):
        numeric = len(values.columns) == len(values.select_dtypes("number").columns)
        array = (
            values.to_numpy(dtype=np.float64, na_value=np.nan)
            if numeric
            else values.to_numpy(dtype=object)
        )
    else:
        array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        if array.ndim and array.dtype.kind in "OSU":
            remedy = "Convert it by .astype(float), which reads numbers that are stored as text"
        raise TypeError(problem(rule, f"{type(values).__name__} of dtype {array.dtype}", remedy))
    array = array.astype(np.float64)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or not 1 <= array.shape[1] <= 3:
        raise ValueError(problem(rule, f"shape {array.shape}", remedy))
    lost = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if lost.size:
        found = f"NaN or infinite coordinates in {lost.size} row(s), the first {str(obs_names[lost[0]])!r}"
        raise ValueError(
            problem(
                f"finite coordinates in {where}", found, "Remove these observations or repair them"
            )
        )
    return array


def column(table: pd.DataFrame, name: str, *, where: str) -> pd.Series:
    """The one column of that name."""
    found = table[name]
    if isinstance(found, pd.DataFrame):
        remedy = "Rename the others, or remove them"
        raise ValueError(
            problem(f"one column {name!r} in {where}", f"{found.shape[1]} of that name", remedy)
        )
    return found


def flags(column: pd.Series, *, name: str, remedy: str) -> np.ndarray:
    """A boolean column without missing values as bool array."""
    _complete(column, name)
    if pd.api.types.infer_dtype(column) != "boolean":
        raise TypeError(problem(f"column {name!r} to be boolean", f"dtype {column.dtype}", remedy))
    return column.to_numpy(dtype=bool)


def labels(column: pd.Series, *, name: str) -> np.ndarray:
    """A categorical, string or integer column without missing values as array of strings."""
    _complete(column, name)
    if pd.api.types.is_float_dtype(column):
        rule = f"column {name!r} to hold categories, strings or integers"
        raise TypeError(problem(rule, f"dtype {column.dtype}", "Convert it with .astype(str)"))
    return column.astype(str).to_numpy(dtype=object)


def positive(values: Any, *, what: str) -> np.ndarray:
    """Positive finite numbers as float64."""
    series = pd.Series(values)
    remedy = "Replace these values, or remove the argument that names them"
    if not pd.api.types.is_numeric_dtype(series) or pd.api.types.is_bool_dtype(series):
        raise TypeError(problem(f"{what} to be numeric", f"dtype {series.dtype}", remedy))
    array = series.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = ~(np.isfinite(array) & (array > 0))
    if bad.any():
        found = f"{bad.sum()} of {bad.size} value(s) that are not, the first {array[bad][0]:g}"
        raise ValueError(problem(f"{what} to be positive and finite", found, remedy))
    return array


def _complete(column: pd.Series, name: str) -> None:
    missing = int(column.isna().sum())
    if missing:
        found = f"{missing} of {len(column)} missing"
        filled = (
            ".astype(object).fillna('unknown')" if column.dtype == "category" else ".fillna(...)"
        )
        remedy = f"Fill them in, for example by obs[{name!r}] = obs[{name!r}]{filled}, or leave these rows out"
        raise ValueError(problem(f"column {name!r} without missing values", found, remedy))
