"""Fit a factor model to spatial multi-omic counts."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anndata import AnnData
from mudata import MuData

from gpnsf import checks
from gpnsf.arguments import Arguments, answering
from gpnsf.core import distributed
from gpnsf.core.inference import fitting
from gpnsf.core.inference.checkpoint import Checkpoint
from gpnsf.core.presets import PRESETS
from gpnsf.core.progress import Progress
from gpnsf.core.types import Dataset, History
from gpnsf.io import files, tables, write
from gpnsf.io.companions import is_record
from gpnsf.io.objects import editable, in_memory, owner
from gpnsf.io.write import check_key
from gpnsf.keys import DENOISED, DOMAIN, SPATIAL, Keys
from gpnsf.settings import settings
from gpnsf.tl import diagnostics
from gpnsf.tl.alone import fit_threads, one_at_a_time
from gpnsf.tl.asked import builder, number_spatial, read_for, schedule
from gpnsf.tl.device import check_processes, resolved
from gpnsf.tl.memory import guard
from gpnsf.tl.record import record

if TYPE_CHECKING:
    from spatialdata import SpatialData

__all__ = ["fit"]

_logger = logging.getLogger("gpnsf")


@answering
@one_at_a_time
def fit(
    data: AnnData | MuData | SpatialData | dict[str, AnnData] | str | os.PathLike[str],
    model: str = "gpnsf",
    *,
    n_factors: int = 12,
    n_spatial: int | None = None,
    table: str | Mapping[str, str] | None = None,
    modalities: Sequence[str] | None = None,
    likelihoods: Mapping[str, str] | str | None = None,
    layers: Mapping[str, str] | str | None = None,
    use_var: Mapping[str, str] | str | None = None,
    spatial_key: str = SPATIAL,
    library_key: str | None = None,
    batch_key: str | None = None,
    size_factors: str | None = "total",
    modality_weights: Mapping[str, float] | None = None,
    kernel: str = "matern32",
    field: str = "hilbert",
    n_inducing: int | None = None,
    lengthscale: float | None = None,
    loadings: str = "gamma",
    kl_weight: float = 1.0,
    objective: str = "closed_form",
    n_samples: int = 3,
    init: str = "auto",
    split: str = "tested",
    refine: bool = True,
    holdout_key: str | None = None,
    max_steps: int = 600,
    learning_rate: float = 0.2,
    tol: float = 2e-4,
    block_size: int | None = None,
    device: str = "auto",
    seed: int = 0,
    key_added: str = "gpnsf",
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    copy: bool = False,
) -> MuData | AnnData | None:
    r"""Fit nonnegative spatial and nonspatial factors that all modalities share.

    The rate of feature :math:`j` in spot :math:`i` is :math:`\nu_i (\sum_k H_{ik} W_{jk} + b_j)` with size factor
    :math:`\nu_i`, factors :math:`H = \exp(h)`, nonnegative loadings :math:`W` and a constant background :math:`b`. The
    first T log factors are Gaussian processes over the coordinates, the others independent normals. Approximate posteriors
    come from a closed-form evidence lower bound, then from a local stage that adds what each spot knows beyond the field.

    Parameters
    ----------
    data
        Object with raw counts and coordinates in ``obsm[spatial_key]`` (of the MuData, else of a modality). Cells that lack
        a modality contribute what they have. An AnnData is one modality, named after its only likelihood entry. Counts of an
        object that is backed by a file are read block by block; its slots are added in memory. The path of a ``.h5ad``,
        ``.h5mu`` or ``.zarr`` does the same and adds the slots to the file.

        AnnData by name of modality, ``{"rna": adata, "atac": adata}``, are joined by their obs names. Of a SpatialData, or
        the path of its zarr store, the tables of ``table`` are; observations without coordinates in ``obsm`` lie at the
        centroids of the shapes or labels that their table annotates. Slots of features go into their AnnData, those of
        observations and ``uns`` into every one.
    model
        "gpnsf" (hybrid, with background), "nsfh" (hybrid), "nsf" (all factors spatial), "pnmf" (none), or the signed
        Gaussian models "rsf" (spatial) and "fa" (not) for normalised data.
    n_factors
        Upper bound of the number of factors K, at most the number of observations and of features. Factors that the data do
        not support are dropped from all slots: K is the number of columns of ``obsm["X_gpnsf"]``.
    n_spatial
        Upper bound of the number of spatial factors T of "gpnsf" and "nsfh"; the other models allow no choice. Default: all
        factors with spatial order in held-out counts are spatial. With ``split="assumed"`` their number, half of K by default.
    table
        Table of a SpatialData, or tables by modality such as ``{"rna": "genes", "atac": "peaks"}``. Default: the only one,
        else those whose names say RNA and ATAC.
    modalities
        Names of the modalities to use. Default: those whose names say RNA or ATAC, in any case ("gex", "Peaks"), else all.
    likelihoods
        By modality, or one for all: "nb", "poisson", "bernoulli" (open or closed, ``P(x > 0) = 1 - exp(-rate)``),
        "gaussian", or "bernoulli_clipped" (probability ``min(rate, 1)``, with ``objective="monte_carlo"`` only).
        Default: "nb" for rna and unknown names, "bernoulli" for atac, "gaussian" for "fa" and "rsf".
    layers
        Layer that holds the counts, by modality or for all. Default: ``X``.
    use_var
        Boolean ``var`` column that selects features, by modality or for all. Default: every feature is used.
    spatial_key
        Name of the coordinates [N, 1 to 3] in ``obsm``, in any unit; three dimensions need ``field="inducing"``.
    library_key
        ``obs`` column of slices: they share the loadings, and each has fields of its own.
    batch_key
        ``obs`` column of batches, the one of the slices or another: each batch gets a multiplier for every feature, shrunken
        towards 1, so that factors need not explain what differs between batches gene by gene. Not for "fa" and "rsf".
    size_factors
        "total" (row totals with mean 1 per modality), None (all 1: where totals carry signal), or an ``obs`` column. Where they are
        totals in all modalities, factors are relative: a spot that has more of one has less of all others (eq. 4b). Not with one
        factor, peaks alone, or more than a tenth of the peaks open.
    modality_weights
        Weight of each modality: of its counts and its loadings in the objective, so that it moves the factors more or less.
        Default: with ``split="tested"`` found by held-out counts. A modality weighs by the share of what its loadings explain that
        held-out counts confirm, between .03 and 1; the best confirmed one has weight 1. Else, and for real values, 1.
    kernel
        "matern12", "matern32", "matern52" or "rbf".
    field
        "hilbert" (a basis on a grid: fast; finer where length scales end short) or "inducing" (inducing points: the approximation of the papers).
    n_inducing
        Number of inducing points, k-means centres of the coordinates. Default 300; at most the distinct coordinates. More
        than 300 get a diagonal covariance. Without effect for ``field="hilbert"``.
    lengthscale
        Length scale in the unit of the coordinates, held fixed. Default: learnt for each spatial factor.
    loadings
        "gamma" (posteriors under a prior that switches off factors which the counts do not ask for) or "point" (estimates without
        a prior, as in the papers; all factors stay).
    kl_weight
        Weight eta of the Kullback-Leibler divergences, of factors and loadings alike.
    objective
        "closed_form" or "monte_carlo" (mean over ``n_samples`` draws of each row of h).
    n_samples
        Draws of the Monte Carlo objective per step.
    init
        "auto" (several starts, the best bound after 25 steps is kept), "smooth", "spot" or "random". The signed models
        always start at the singular value decomposition.
    split
        "tested" (hybrid models only): held-out counts decide. Factors without spatial order there are nonspatial, factors with
        clear order (z above a third of the median z of the spatial ones, 3 to 6, and beside ``repeated`` more than a third of
        what it is for the spatial ones) spatial, as far as ``n_spatial`` allows;
        factors of which they show nothing, neither order nor the same in both halves of a spot, are dropped. "assumed": T factors
        are spatial because they were asked to be.
    refine
        Whether to run the local stage. Without it factors are as smooth as their field.
    holdout_key
        Boolean ``obs`` column; rows where it is true train nothing. They get the prediction of the fields, and of nonspatial
        factors what the nearest training rows tell.
    max_steps
        Cap on the optimisation steps, also of the short fits of the test; a large fit begins with a smaller one, which has as many.
    learning_rate
        Rate of Adam.
    tol
        The fit has converged when the bound gains less than this per nonzero count in ten steps (with the Monte Carlo
        objective: less than this or than twice its standard error).
    block_size
        Rows per block; the gradient over blocks is the full-batch gradient. Default: blocks of at most 40,000 rows and 16
        million nonzero counts, four where counts are read from a file (more for many features), so that most data are one block. Blocks change the order of
        sums: after equal numbers of steps, factors agree to a thousandth of their maximum; where the rule for convergence
        then falls on another step, to about two hundredths.
    device
        "auto", "cpu", "cuda" or "cuda:1".
    seed
        Seed of everything random; the same seed gives the same bits on the same machine.
    key_added
        Prefix of all slots written.
    progress
        Whether to show a progress bar. Default: ``gpnsf.settings.progress``.
    checkpoint
        File (``.npz``) that takes the state of the fit every now and then, at two per cent of the time or less. If the fit is
        interrupted, the same call goes on from there, to the same bits on the same machine. Removed when the fit is complete.
    copy
        Whether to return an annotated copy and leave ``data`` as it is. Not for files.

    Returns
    -------
    None, or the annotated copy.

    Raises
    ------
    KeyError
        A named slot, column, layer or modality does not exist.
    TypeError
        An argument or array has the wrong type.
    ValueError
        An argument or array has values that the model cannot use, or ``checkpoint`` names a file of another fit.
    MemoryError
        The fit would take far more memory than this process may have (see :func:`gpnsf.tl.forecast`).
    OSError
        ``checkpoint`` cannot be written. ``data`` is untouched after any error, and after Ctrl-C.

    Notes
    -----
    Writes, with K factors in order of their expected signal, spatial ones first:

    * ``obsm["X_gpnsf"]``, ``["X_gpnsf_smooth"]``, ``["X_gpnsf_std"]`` [N, K]: posterior means (each factor with mean 1), means
      of the field alone, and posterior standard deviations; on the object and on its modalities
    * ``obsm["X_gpnsf_embedding"]`` [N, at most 15], there too: coordinates whose Euclidean distances are those of Hellinger between
      what the spatial factors (all, where fewer than two are spatial) let observations express; factors with equal loadings do
      not count as different. For neighbours, UMAP and :func:`gpnsf.tl.domains`
    * ``varm["gpnsf_loadings"]``, ``varm["gpnsf_loadings_std"]`` [P, K]: posterior means and standard deviations; and
      ``var["gpnsf_background"]`` [P] of each modality
    * with ``batch_key``, ``varm["gpnsf_batch"]`` [P, S] of each modality: multipliers of the batches ``uns["gpnsf"]["batches"]``
    * ``obs["gpnsf_spatial_importance"]`` and each modality's ``var["gpnsf_spatial_importance"]`` (and ``_std``), in [0, 1]
    * ``var["gpnsf_top_factor"]``, ``var["gpnsf_dispersion"]`` (NB size, or Gaussian sd)
    * ``uns["gpnsf"]``: parameters, ``n_factors_asked``, ``modality_weights``, names, kernel, history, ``warnings`` (also in the log), and what :func:`gpnsf.tl.predict`
      needs

    References
    ----------
    Model: :doc:`/model`, equations 1 to 6 and 22 to 35; nonnegative spatial factorization after
    :cite:t:`townes2023nonnegative`.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.ggblocks(n_side=18, n_genes=60, n_peaks=40, seed=1)
    >>> gpnsf.tl.fit(mdata, n_factors=7, n_spatial=4, max_steps=60, progress=False)
    >>> mdata.obsm["X_gpnsf"].shape, mdata["atac"].varm["gpnsf_loadings"].shape
    ((324, 7), (40, 7))
    """
    asked = Arguments.of(locals())
    store = None if checkpoint is None else Checkpoint(checkpoint)
    if isinstance(data, str | os.PathLike):
        _fit_file(data, asked, store)
        return None
    if copy:
        in_memory(data, "a copy")
    with tables.lent(data, table, key=key_added) as one:
        owner(one, writes=not copy)
        put_into = _fit(one, asked, store)
        one = editable(one, copy=copy)
        _tell_of_earlier(one, key_added)
        put_into(one)
    if store is not None:
        store.remove()
    return one if copy else None


def _tell_of_earlier(data: AnnData | MuData, key: str) -> None:
    """Name what was made from a fit that is replaced now, and stays."""
    if not is_record(data.uns.get(key)):
        return
    mods = data.mod.values() if isinstance(data, MuData) else [data]
    found = [f"obs[{DOMAIN!r}]"] if DOMAIN in data.obs else []
    found += [f"layers[{DENOISED!r}]"] if any(DENOISED in mod.layers for mod in mods) else []
    if found:
        _logger.warning(
            "A new fit takes the place of %r, and %s may be of the earlier one. Make them again, or remove them.",
            key,
            " and ".join(found),
        )


def _fit_file(path: str | os.PathLike[str], asked: Arguments, store: Checkpoint | None) -> None:
    """Fit what a file holds, and write the slots into it."""
    if asked.call.copy:
        remedy = "Copy the file and pass the path of the copy, or pass the object in memory"
        raise ValueError(
            checks.problem("copy=False where `data` is a path", f"copy=True for {path}", remedy)
        )
    writes = distributed.rank() == 0
    with files.opened_tables(
        Path(path), asked.call.table, spatial_key=asked.reading.spatial_key, writable=writes
    ) as (data, parts):
        _fit(data, asked, store)(data)
    for part, holder in parts.items() if writes else ():
        files.save(part, holder, Keys(asked.call.key_added))
    if store is not None:
        store.remove()


def _fit(
    data: MuData | AnnData, asked: Arguments, store: Checkpoint | None
) -> Callable[[MuData | AnnData], None]:
    """Fit an object, and return what writes the result into it or its copy."""
    began = time.perf_counter()
    keys, model, how = Keys(asked.call.key_added), asked.model, asked.training
    check_key(keys.key, data.mod if isinstance(data, MuData) else ())
    n_spatial = number_spatial(model)
    tested = how.split == "tested" and PRESETS[model.model].is_hybrid
    dataset, layout = read_for(data, asked, n_spatial)
    check_processes(dataset, asked, store)
    device = resolved(how.device)
    guard(dataset, asked, n_spatial, layout.scale, device.type)
    _warn_of_idle(asked, n_spatial)
    shown = settings.shows(asked.call.progress)
    progress = Progress("fit", how.max_steps, shown=shown and distributed.rank() == 0)
    with fit_threads(dataset.nnz) as threads, progress:
        outcome = fitting.fit(
            dataset,
            builder(asked, n_spatial, layout.scale, device),
            n_factors=model.n_factors,
            n_spatial=n_spatial,
            most_spatial=model.n_factors if tested and model.n_spatial is None else n_spatial,
            tested=tested,
            weigh=asked.reading.modality_weights is None,
            refine=how.refine,
            init=how.init,
            block_size=how.block_size,
            schedule=schedule(how),
            seed=how.seed,
            progress=progress,
            checkpoint=store,
        )
        warnings = distributed.from_first(
            lambda: diagnostics.warn(dataset, outcome, asked, scale=layout.scale)
        )
    seconds = time.perf_counter() - began
    told = [*layout.warnings, *warnings]
    info = record(asked, outcome, seconds, threads, told, device)
    _report(dataset, outcome.history, seconds)
    return lambda holder: write.write(holder, outcome.posterior, layout, keys=keys, info=info)


def _warn_of_idle(asked: Arguments, n_spatial: int) -> None:
    """Name arguments that this model has no use for."""
    model, init = asked.model, asked.training.init
    idle = {
        "n_inducing": (
            model.n_inducing,
            model.n_inducing is not None and model.field != "inducing",
        ),
        "lengthscale": (model.lengthscale, model.lengthscale is not None and not n_spatial),
        "init": (init, init != "auto" and not PRESETS[model.model].nonnegative),
    }
    for name, (value, is_idle) in idle.items():
        if is_idle:
            _logger.warning(
                "%s=%r has no effect on this model and field. Leave it out.", name, value
            )


def _report(dataset: Dataset, history: History, seconds: float) -> None:
    """One line about the fit."""
    shapes = ", ".join(
        f"{view.name} {view.counts.shape[0]} x {view.counts.shape[1]}" for view in dataset.views
    )
    _logger.info("Fitted %s in %d steps and %.1f s.", shapes, len(history.elbo), seconds)
