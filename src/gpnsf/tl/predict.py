"""Predict the factors of a fit where nothing was measured."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from gpnsf import checks
from gpnsf.core.inference import posterior
from gpnsf.core.scores.expected import expected
from gpnsf.io import fits
from gpnsf.io.geometry import normalise_coords
from gpnsf.io.places import in_order
from gpnsf.io.tables import takes_tables
from gpnsf.keys import SPATIAL

__all__ = ["predict"]

OUTSIDE = 0.5  # half-widths from the edge of the tissue
SEVERAL = 0.1  # of the places

_log = logging.getLogger("gpnsf")


@takes_tables
def predict(
    data: MuData | AnnData,
    coords: np.ndarray | pd.DataFrame | None = None,
    *,
    library: str | Sequence[str] | None = None,
    features: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    key: str = "gpnsf",
) -> AnnData:
    """Predict factors, and on request expected counts, at any coordinates.

    Spatial factors come from the field alone, with the spread of single spots around it in their standard deviation. Far
    from all data the field returns to its prior, its linear trend held at the edge of the tissue. Nonspatial factors
    cannot be predicted: they get their mean, 1 (0 in signed models; that over the data after :func:`gpnsf.tl.project`), and their standard deviation over the fitted spots.
    Where factors are relative to totals, the mean is lower where there is more of spatial factors (eq. 4b).

    Parameters
    ----------
    data
        Object annotated by :func:`gpnsf.tl.fit`.
    coords
        Coordinates [n, D] in the unit of the data, such as the spots of another section or the lattice of
        :func:`gpnsf.pp.grid`. Columns of a DataFrame are taken by name (those of the coordinates of the data if they are a DataFrame,
        else ``x``, ``y``, ``z``), and its index names the rows. Default: those of the data.
    library
        Slice of the coordinates, one name or one per row; needed where the fit knew several slices and ``coords`` is given.
    features
        Features whose expected counts at size factor 1 (probability of being open, for "bernoulli") are wanted: names, or
        names by modality, where a name exists in several.
    key
        Prefix under which the fit was written.

    Returns
    -------
    AnnData [n, K]: ``X`` holds the factor means on the scale of ``obsm["X_gpnsf_smooth"]``, ``layers["std"]`` standard
    deviations, ``var_names`` the names of the factors, ``obsm["spatial"]`` the coordinates if there are any, and ``obsm["expected"]`` a DataFrame [n, features] if features were named (columns
    ``"rna:name"`` if they were named by modality). The slices are in ``obs`` under the ``library_key`` of the fit. ``squidpy.pl.extract(predicted, "expected")`` makes columns of ``obs`` of it.

    Raises
    ------
    KeyError
        The object holds no such fit, or a feature or slice is unknown.
    ValueError
        The coordinates have the wrong number of columns or are not finite, the slice is missing, or ``library`` is named without ``coords``.

    Notes
    -----
    Reads ``uns["gpnsf"]["field"]``, ``varm["gpnsf_loadings"]`` and ``var["gpnsf_background"]``. Equations 33 to 35.

    Examples
    --------
    >>> import gpnsf, numpy as np
    >>> mdata = gpnsf.datasets.ggblocks(n_side=18, n_genes=60, n_peaks=40, seed=1)
    >>> gpnsf.tl.fit(mdata, n_factors=7, n_spatial=4, max_steps=60, progress=False)
    >>> gpnsf.tl.predict(mdata, np.array([[3.5, 4.5], [10.0, 2.0]])).X.shape
    (2, 7)
    """
    fit = fits.find(data, key)
    if isinstance(coords, AnnData):
        rule, remedy = (
            "`coords` to be an array [n, D]",
            "Pass coords.obsm['spatial'], or use gpnsf.tl.project for new counts",
        )
        raise TypeError(checks.problem(rule, "AnnData", remedy))
    state = fit.field
    libraries = [str(name) for name in state["libraries"]]
    n_dims = np.asarray(state["centre"]).shape[1]
    if isinstance(coords, pd.DataFrame):
        coords = in_order(coords, n_dims, fit.axes)
    points, codes, obs = _places(fit, coords, library, libraries)
    if fit.is_spatial.any() and points.shape[1] != n_dims:
        rule = f"`coords` with {n_dims} column(s), as in the fit"
        raise ValueError(
            checks.problem(rule, f"shape {points.shape}", f"Pass an array [n, {n_dims}]")
        )
    usual = fit.mean.mean(0) if fit.is_projection else float(bool(state["nonnegative"]))
    mean = np.empty((len(points), len(fit.names)), dtype=np.float32)
    mean[:] = usual
    assert fit.std is not None  # there is a field
    std = np.broadcast_to(np.sqrt(fit.mean.var(0) + (fit.std**2).mean(0)), mean.shape).astype(
        np.float32
    )
    if fit.is_spatial.any():
        own = normalise_coords(points, codes, np.asarray(state["centre"]), float(state["scale"]))
        own_mean, own_std, others = posterior.predict(state, own, codes)
        mean[:, fit.is_spatial], std[:, fit.is_spatial] = own_mean, own_std
        if others is not None:
            mean[:, ~fit.is_spatial] = others
        _warn_outside(own, state["process"])
    var = pd.DataFrame(
        {"is_spatial": fit.is_spatial, "lengthscale": fit.lengthscale}, index=pd.Index(fit.names)
    )
    obsm = {SPATIAL: points} if coords is not None or fit.has_coords else {}
    predicted = AnnData(mean, obs=obs, var=var, layers={"std": std}, obsm=obsm)
    if (library_key := fit.param("library_key")) is not None:
        predicted.obs[library_key] = pd.Categorical.from_codes(codes, libraries)
    if features is not None:
        predicted.obsm["expected"] = _expected(fit, mean, features, obs)
    return predicted


def _warn_outside(own: np.ndarray, process: Mapping[str, Any]) -> None:
    """Say how many places [n, D], in half-widths, lie so far outside of the tissue that the fit knows nothing of them.

    The tissue is a box, as long along each axis as the field of the fit.
    """
    reach = process["extent"] if "extent" in process else np.abs(process["centres"]).max(axis=0)
    outside = int((np.abs(own) > np.minimum(reach, 1.0) + OUTSIDE).any(axis=1).sum())
    if outside > SEVERAL * len(own):
        _log.warning(
            "%d of %d places lie outside of the fitted tissue, where factors return to their trend at its edge. Check that the coordinates are in "
            "the unit of the fitted data, with the axes in the same order and direction.",
            outside,
            len(own),
        )


def _places(
    fit: fits.Fit, coords: Any, library: Any, libraries: list[str]
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Coordinates [n, D] in the unit of the data, slice codes [n], and the obs table to start from."""
    if coords is None:
        if library is not None:
            rule, remedy = (
                "`coords` together with `library`",
                "Pass coordinates, or leave `library` out",
            )
            raise ValueError(checks.problem(rule, f"library={library!r} alone", remedy))
        names = fit.library
        codes = (
            np.zeros(len(fit.mean), dtype=np.int64)
            if names is None
            else _codes(list(map(str, names)), libraries)
        )
        points = (
            fit.coords if fit.has_coords or fit.is_spatial.any() else np.zeros((len(fit.mean), 1))
        )
        return points, codes, pd.DataFrame(index=fit.data.obs_names.copy())
    numbers = pd.RangeIndex(len(coords) if hasattr(coords, "__len__") else 0)
    index = coords.index if isinstance(coords, pd.DataFrame) else numbers
    points = checks.coordinates(coords, where="`coords`", obs_names=[f"row {i}" for i in index])
    if not len(points):
        raise ValueError(
            checks.problem("`coords` with at least one place", "none", "Pass an array [n, D]")
        )
    if library is None and len(libraries) > 1:
        rule = f"`library` to name one of the sections {libraries}"
        raise ValueError(checks.problem(rule, "None", f"Pass for example library={libraries[0]!r}"))
    names = (
        libraries[:1]
        if library is None
        else [library]
        if isinstance(library, str)
        else list(map(str, library))
    )
    codes = _codes(names, libraries)
    if len(codes) not in (1, len(points)):
        rule = f"one section, or one for each of the {len(points)} rows of `coords`"
        raise ValueError(checks.problem(rule, f"{len(codes)} names", "Pass one name per row"))
    obs = pd.DataFrame(index=index.astype(str))
    return points, np.broadcast_to(codes, len(points)).astype(np.int64), obs


def _codes(names: list[str], libraries: list[str]) -> np.ndarray:
    """Positions of slice names."""
    checks.choices(names, libraries, what="the section", where="the fit")
    return np.array([libraries.index(name) for name in names], dtype=np.int64)


def _expected(fit: fits.Fit, factors: np.ndarray, features: Any, obs: pd.DataFrame) -> pd.DataFrame:
    """Expected counts [n, features] at size factor 1."""
    prefixed = isinstance(features, Mapping)
    wanted = dict(features) if prefixed else _modalities_of(fit, features)
    columns: dict[str, np.ndarray] = {}
    for modality, names in wanted.items():
        fit.modality_names(modality)
        chosen = fit.feature_indices(modality, names)
        background = fit.var(modality, fit.keys.background)[chosen]
        values = expected(
            fit.likelihoods[modality], factors, fit.loadings[modality][chosen], background
        )
        labels = fit.modalities[modality].var_names[chosen]
        columns.update(
            zip(
                (f"{modality}:{name}" if prefixed else name for name in labels),
                values.T,
                strict=True,
            )
        )
    order = columns if prefixed else [features] if isinstance(features, str) else features
    return pd.DataFrame({name: columns[name] for name in order}, index=obs.index)


def _modalities_of(fit: fits.Fit, features: str | Sequence[str]) -> dict[str, list[str]]:
    """Each name under the only modality that has it."""
    names = dict.fromkeys([features] if isinstance(features, str) else map(str, features))
    found = {
        name: [label for label in names if label in mod.var_names]
        for name, mod in fit.modalities.items()
    }
    times = Counter(label for labels in found.values() for label in labels)
    absent = [label for label in names if label not in times]
    checks.choices(
        absent,
        times,
        what="the feature",
        where="the modalities of the fit",
        remedy="Correct `features`",
    )
    twice = [label for label in names if times[label] > 1]
    if twice:
        example = f"features={{{next(iter(fit.modalities))!r}: [{twice[0]!r}]}}"
        rule = "names in `features` that each mean one feature"
        remedy = f"Name the modality: {example}"
        raise ValueError(checks.problem(rule, f"{twice[0]!r} more than once", remedy))
    return {name: labels for name, labels in found.items() if labels}
