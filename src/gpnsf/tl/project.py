"""Factors of a new object at the loadings of a fit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from mudata import MuData

from gpnsf.arguments import Arguments, Options, check_arguments, plain
from gpnsf.checks import Rule, problem
from gpnsf.core import stored
from gpnsf.core.families import FAMILIES
from gpnsf.core.fields.base import LENGTHSCALE_RANGE
from gpnsf.core.inference.projecting import project as infer
from gpnsf.core.model.build import BASIS_RANGE
from gpnsf.core.model.factorization import Factorization
from gpnsf.core.progress import Progress
from gpnsf.core.types import Dataset, Given
from gpnsf.io import fits, write
from gpnsf.io.fits import Fit
from gpnsf.io.given import Matched, given, match, mean_size
from gpnsf.io.measured import layer_read, resized
from gpnsf.io.objects import editable, modality_of, open_data, owner, read_coords
from gpnsf.io.read import Layout, read, told_of
from gpnsf.io.suspicions import units_apart
from gpnsf.io.tables import takes_tables
from gpnsf.io.write import check_key
from gpnsf.keys import SPATIAL, Keys
from gpnsf.settings import settings
from gpnsf.tl import diagnostics
from gpnsf.tl.alone import fit_threads, one_at_a_time
from gpnsf.tl.asked import builder, schedule
from gpnsf.tl.device import resolved
from gpnsf.tl.memory import guard
from gpnsf.tl.record import record

__all__ = ["project"]

AS_REFERENCE = "reference"
# half-widths of the new data: beyond, a field is as good as constant, or has too few basis functions
LENGTHSCALES = 0.01, LENGTHSCALE_RANGE[1]
# arguments of the reference that are about its data, or that a projection has no use for
NOT_KEPT = ("layers", "use_var", "batch_key", "holdout_key", "init", "block_size")

_logger = logging.getLogger("gpnsf")


@takes_tables
@one_at_a_time
def project(
    data: AnnData | MuData,
    reference: AnnData | MuData,
    *,
    modalities: Sequence[str] | str | None = None,
    layers: Mapping[str, str] | str | None = None,
    spatial_key: str = SPATIAL,
    library_key: str | None = None,
    size_factors: str | None = AS_REFERENCE,
    key: str = "gpnsf",
    max_steps: int = 600,
    block_size: int | None = None,
    device: str = "auto",
    seed: int = 0,
    key_added: str = "gpnsf",
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Infer the factors of new observations at the loadings of a fit: of another section, or of other spots of the same one.

    Loadings, backgrounds, dispersions, length scales, amplitudes and the spread of single spots around the field are those
    of the reference, and stay. The fields of the new data begin at nothing and follow from the new counts, whatever the
    reference knows of the same place, and so do nonspatial factors; the local stage of :func:`gpnsf.tl.fit` ends it.

    Parameters
    ----------
    data
        New object with raw counts and coordinates in ``obsm[spatial_key]``, in the unit of those of the reference. Its features
        are matched with those of the reference by name, in any order.
    reference
        Object that :func:`gpnsf.tl.fit` annotated. It is not changed, and its counts are not read.
    modalities
        Names of the modalities to use. Default: those that both objects have. An AnnData is the only modality of the reference.
    layers
        Layer that holds the new counts, by modality or for all. Default: the layer of the fit, where the new data have one of this name, else
        ``X``; a model of real values needs the former.
    spatial_key
        Name of the coordinates in ``obsm`` of the new data.
    library_key
        ``obs`` column of slices of the new data: each has fields of its own. Default: one slice.
    size_factors
        "reference" (of the kind that the reference has), "total", None, or an ``obs`` column, in the unit of the reference: an
        observation with as many counts as its mean one has size factor 1. Other columns than the one that the reference was
        fitted with are relative to their mean.
    key
        Prefix of the slots of the reference.
    max_steps
        Cap on the optimisation steps.
    block_size
        Rows per block, as in :func:`gpnsf.tl.fit`.
    device
        "auto", "cpu", "cuda" or "cuda:1".
    seed
        Seed of the k-means centres of ``field="inducing"``, and of Monte Carlo draws; nothing else is random.
    key_added
        Prefix of the slots that are written.
    progress
        Whether to show a progress bar. Default: ``gpnsf.settings.progress``.
    copy
        Return an annotated copy, and leave ``data`` as it is.

    Returns
    -------
    None, or the annotated copy.

    Raises
    ------
    KeyError
        The reference holds no such fit, or the new data lack a slot, column, layer or modality that was named.
    TypeError
        An argument has the wrong type.
    ValueError
        Modalities, features or coordinates of the new data are none that the reference knows, or values are none that its
        likelihoods can use. ``data`` is untouched after any error.

    Notes
    -----
    Writes the slots of :func:`gpnsf.tl.fit`, for the features that both have (0 for others), so that all that reads a fit
    reads this one. Two things differ. ``obsm["X_gpnsf"]`` is in the unit of the reference: **its columns do not have mean 1**
    here, since a section that has twice as much of a factor has twice its values; loadings, their order and their names are those
    of the reference. And ``uns["gpnsf"]["projection"]`` says that it is a projection and of what: number of observations,
    seed and key of the reference, features by modality that were matched and that were missing, and the mean of the new size
    factors. Factors are relative to totals (eq. 4b) where those of the reference are and the new size factors, too, are totals
    to which factors can be relative; otherwise they are not.

    What new data have more of a factor everywhere goes into one level for each factor (a priori log-normal around the
    reference, with standard deviation 1). Batch multipliers of the reference count as 1. Features that are missing tell nothing;
    features that the reference does not know are left aside.

    Length scales keep their length in the unit of the coordinates, whatever the size of the new section; beyond three
    half-widths of it they count as three. Where spots are farther apart in one of the objects as if its unit were another one, that is told.

    References
    ----------
    Model: :doc:`/model`, equations 1 to 6, the loadings held fixed.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.ggblocks(n_side=18, n_genes=60, n_peaks=40, seed=1)
    >>> new, old = mdata[:100].copy(), mdata[100:].copy()
    >>> gpnsf.tl.fit(old, n_factors=7, n_spatial=4, max_steps=60, progress=False)
    >>> gpnsf.tl.project(new, old, max_steps=60, progress=False)
    >>> new.obsm["X_gpnsf"].shape == (100, old.obsm["X_gpnsf"].shape[1])
    True
    """
    own = {
        "spatial_key": spatial_key,
        "library_key": library_key,
        "size_factors": size_factors,
        "max_steps": max_steps,
        "block_size": block_size,
        "device": device,
        "seed": seed,
        "key_added": key_added,
        "progress": progress,
        "copy": copy,
    }
    check_arguments(own)
    Rule(str, "gpnsf").check("key", key)
    owner(data, writes=not copy)
    fit = _reference(reference, key)
    check_key(key_added, data.mod if isinstance(data, MuData) else ())
    put_into = _project(data, fit, match(data, fit, modalities), {**own, "layers": layers})
    data = editable(data, copy=copy)
    put_into(data)
    return data if copy else None


def _reference(reference: AnnData | MuData, key: str) -> Fit:
    """The fit, which is to have a model."""
    fit = fits.find(reference, key)
    fit.needs("a model of counts")
    return fit


def _project(
    data: AnnData | MuData, fit: Fit, matched: Matched, own: Options
) -> Callable[[AnnData | MuData], None]:
    """Infer the factors, and return what writes them into the object or its copy."""
    began = time.perf_counter()
    asked = _asked(fit, matched, {**own, "layers": _layers(data, fit, matched, own["layers"])})
    dataset, layout = _read(data, fit, matched, asked)
    sizes = mean_size(fit, matched, data, layout, asked.reading.size_factors)
    dataset = replace(dataset, views=tuple(resized(v, sizes[v.name]) for v in dataset.views))
    taken = given(fit, matched, layout.scale)
    taken = replace(taken, lengthscale=taken.lengthscale.clip(*LENGTHSCALES))
    how, where = asked.training, resolved(asked.training.device)
    shown = settings.shows(asked.call.progress)
    progress = Progress("project", how.max_steps, shown=shown)
    with fit_threads(dataset.nnz) as threads, progress:
        outcome = infer(
            dataset,
            _model(dataset, fit, asked, taken, layout, where),
            taken,
            refine=how.refine,
            block_size=how.block_size,
            schedule=schedule(how),
            seed=how.seed,
            progress=progress,
        )
        warnings = diagnostics.warn(dataset, outcome, asked, scale=layout.scale, projected=True)
    seconds = time.perf_counter() - began
    info = {
        **record(asked, outcome, seconds, threads, [*layout.warnings, *warnings], where),
        "projection": _of(fit, matched, sizes),
    }
    result = replace(outcome.posterior, lengthscale=fit.lengthscale / layout.scale)
    keys = Keys(asked.call.key_added)
    _logger.info("Projected %d observations in %.1f s.", dataset.n_obs, seconds)
    return lambda holder: write.write(holder, result, layout, keys=keys, info=info)


def _asked(fit: Fit, matched: Matched, own: Options) -> Arguments:
    """How the reference was fitted, with what is read here."""
    names = list(matched.use)
    kept = {name: plain(value) for name, value in fit.params.items() if name not in NOT_KEPT}
    weights = stored.modality_weights(fit.uns)
    same = own["size_factors"] == AS_REFERENCE
    return Arguments.of(
        {
            **kept,
            **own,
            "split": "assumed",
            "modalities": names,
            "likelihoods": {name: fit.likelihoods[name] for name in names},
            "modality_weights": {n: w for n, w in weights.items() if n in names} or None,
            "size_factors": fit.param("size_factors") if same else own["size_factors"],
        }
    )


def _layers(data: AnnData | MuData, fit: Fit, matched: Matched, asked: Any) -> Any:
    """The layers to read: those asked for, else those of the fit, as far as the new data have them.

    Counts may be elsewhere in new data, in X for example. Values with a sign were made of counts, and are where the fit had them.
    """
    if asked is not None:
        return asked
    layers = {}
    for name in matched.use:
        layer, mod = layer_read(fit, name), modality_of(data, name)
        if layer is None:
            continue
        if layer in mod.layers:
            layers[name] = layer
        elif FAMILIES[fit.likelihoods[name]].signed:
            rule = f"layer {layer!r} in modality {name!r}, which the fit has read"
            remedy = "Make it as in the data of the fit, for example with gpnsf.pp.normalise, or name another with `layers`"
            raise ValueError(problem(rule, f"{list(mod.layers)}", remedy))
    return layers or None


def _read(
    data: AnnData | MuData, fit: Fit, matched: Matched, asked: Arguments
) -> tuple[Dataset, Layout]:
    """Read the new data, and check that they lie where the fields of the reference can follow."""
    spatial, reading = bool(fit.is_spatial.any()), asked.reading
    dataset, layout = read(data, reading, spatial=spatial, features=matched.use)
    if "mass" not in fit.field:  # not relative to totals, so the new ones are not either
        views = tuple(replace(view, by_total=False) for view in dataset.views)
        dataset = replace(dataset, views=views)
    n_dims = np.asarray(fit.field["centre"]).shape[1]
    if spatial and dataset.coords.shape[1] != n_dims:
        rule = f"coordinates with {n_dims} column(s), as in the reference"
        remedy = "Store them under another name, and pass it as `spatial_key`"
        raise ValueError(problem(rule, f"{dataset.coords.shape[1]}", remedy))
    if spatial and fit.has_coords:
        coords = read_coords(
            open_data(data, modalities=list(layout.modalities)), reading.spatial_key
        )
        told = told_of(units_apart(coords, fit.coords, layout.scale, float(fit.field["scale"])))
        layout = replace(layout, warnings=layout.warnings + told)
    return dataset, layout


def _model(
    dataset: Dataset,
    fit: Fit,
    asked: Arguments,
    taken: Given,
    layout: Layout,
    device: torch.device,
) -> Factorization:
    """A model of the new data with the factors of the reference."""
    n_factors, n_spatial = len(taken.amplitude), len(taken.lengthscale)
    resolution = _resolution(fit, layout.scale) if n_spatial else None
    model = replace(asked.model, lengthscale=resolution, loadings="point", n_factors=n_factors)
    asked = replace(asked, model=model)
    guard(dataset, asked, n_spatial, layout.scale, device.type)
    return builder(asked, n_spatial, layout.scale, device)(dataset, n_spatial)


def _resolution(fit: Fit, scale: float) -> float:
    """Length scale, in the unit of the coordinates, for which the new field gets as many basis functions a length as the old."""
    process = stored.record(fit.field, "process", where="the field")
    fewest, most = BASIS_RANGE
    number = stored.whole(process, "n_basis", low=1, high=256) if "n_basis" in process else fewest
    return 4 * scale / float(np.clip(number * scale / float(fit.field["scale"]), fewest, most))


def _of(fit: Fit, matched: Matched, sizes: dict[str, float]) -> dict[str, object]:
    """What ``uns`` says about the reference."""
    return {
        "key": fit.keys.key,
        "n_obs": len(fit.mean),
        "seed": fit.uns.get("seed"),
        "n_features": {name: len(at) for name, at in matched.source.items()},
        "n_missing": {name: len(lost) for name, lost in matched.missing.items()},
        "mean_size": sizes,
    }
