"""Learn the layers of a deconvolution from sections whose proportions are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from gpnsf.arguments import Deconvolution, answering
from gpnsf.checks import Rule, problem
from gpnsf.core.companions.deconvolution import Mixture, summarised
from gpnsf.core.companions.pseudospots import Places
from gpnsf.core.types import row_sums
from gpnsf.keys import SPATIAL
from gpnsf.settings import settings
from gpnsf.tl.alone import few_threads, one_at_a_time
from gpnsf.tl.evaluate_deconvolution import true_amounts
from gpnsf.tl.reference import counts_of, matched, profiles_of
from gpnsf.tl.spots import places_of

__all__ = ["train_unrolled"]

GROUP = 0.1  # weight of costs where their learning begins

Truth: TypeAlias = str | pd.DataFrame | np.ndarray


@dataclass(frozen=True)
class _Known:
    """One section and its truth."""

    mixture: Mixture
    places: Places
    rows: np.ndarray  # [n] spots whose truth is known
    truth: np.ndarray  # [n, C]


@answering
@one_at_a_time
def train_unrolled(
    sections: AnnData | Sequence[AnnData],
    reference: AnnData | pd.DataFrame,
    truth: Truth | Sequence[Truth],
    *,
    label_key: str | None = None,
    layer: str | None = None,
    reference_layer: str | None = None,
    reliable_genes: bool = False,
    region_key: str | None = None,
    region_bandwidth: float = 1.0,
    n_neighbors: int = 6,
    bandwidth: float | None = None,
    spatial_key: str = SPATIAL,
    library_key: str | None = None,
    n_layers: int = 40,
    shared: bool = False,
    n_passes: int = 12,
    learning_rate: float = 0.1,
    device: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, object]:
    """Learn the network of ``gpnsf.tl.deconvolve(method="unrolled")`` from sections whose proportions are known.

    Learned are the weights of neighbours and of the sum, the bandwidths of places and of regions, and the mixture that the
    layers begin at; where ``region_key`` names regions, the costs of the types in each region and their weight, too
    (equations D3 to D7 of the model page). :func:`gpnsf.tl.deconvolve` takes the network for other sections.

    Parameters
    ----------
    sections
        Section with counts, or several.
    reference
        As for :func:`gpnsf.tl.deconvolve`.
    truth
        Of each section the name of an ``obsm`` array, one for all, or proportions or numbers of cells, spots by types: a table whose
        columns are the types, or an array with the types in their order. Rows are divided by their sums; spots whose sum is zero do not count.
    label_key, layer, reference_layer, reliable_genes
        As for :func:`gpnsf.tl.deconvolve`.
    region_key
        ``obs`` column of regions, of which costs are learned; or an intensity, or an ``obsm`` array of features of an image, of which the bandwidth is.
    region_bandwidth, n_neighbors, bandwidth, spatial_key, library_key
        As for :func:`gpnsf.tl.deconvolve`.
    n_layers
        Layers of the network.
    shared
        Whether all layers share their parameters.
    n_passes
        How often each section is seen, one a step.
    learning_rate
        Size of a step.
    device
        "auto", "cpu" or "cuda".
    seed
        Seed of the order of the sections.
    progress
        Whether to show a progress bar. Default: ``gpnsf.settings.progress``.

    Returns
    -------
    Plain arrays by name: ``log_spatial`` and ``log_total`` [layers or 1], ``log_bandwidth``, ``log_region_bandwidth`` and ``even`` [1], the
    ``loss`` of each step, and with regions ``log_group`` [layers or 1], ``costs`` [regions, types] before their softmax, ``regions`` and ``types``.

    Raises
    ------
    KeyError
        A column, a layer, coordinates or a truth are missing.
    TypeError, ValueError
        An argument, a section or its truth is none that can be used. Nothing is written in any case.

    Notes
    -----
    Reads what :func:`gpnsf.tl.deconvolve` reads, and writes nothing. Sections of few hundred spots teach as well as large ones, and faster.

    References
    ----------
    Unrolled layers: :cite:t:`gregor2010`; that weights, graph and regional vectors are learned from labelled sections: :cite:t:`konkel2025`.

    Examples
    --------
    >>> import gpnsf
    >>> known, cells = gpnsf.datasets.mixture(n_obs=100, n_genes=80, seed=0)
    >>> new, _ = gpnsf.datasets.mixture(n_obs=100, n_genes=80, seed=1)
    >>> network = gpnsf.tl.train_unrolled(
    ...     known, cells, "true_proportions", label_key="cell_type", n_layers=5, progress=False
    ... )
    >>> gpnsf.tl.deconvolve(
    ...     new, cells, label_key="cell_type", method="unrolled", train=False, network=network
    ... )
    """
    asked = Deconvolution(
        method="unrolled",
        label_key=label_key,
        layer=layer,
        reference_layer=reference_layer,
        reliable_genes=reliable_genes,
        region_key=region_key,
        region_bandwidth=region_bandwidth,
        n_neighbors=n_neighbors,
        bandwidth=bandwidth,
        spatial_key=spatial_key,
        library_key=library_key,
        n_layers=n_layers,
        shared=shared,
        learning_rate=learning_rate,
        device=device,
        seed=seed,
        progress=progress,
        group_weight=GROUP,
    )
    Rule(int, 12, low=1).check("n_passes", n_passes)
    table = profiles_of(
        reference, label_key=label_key, layer=reference_layer, reliable=reliable_genes
    )
    pairs = _pairs(sections, truth)
    known = [_known(one, table, reference, of, asked) for one, of in pairs]
    types = [str(name) for name in table.columns]
    return _learned(known, types, n_passes, asked)


def _pairs(
    sections: AnnData | Sequence[AnnData], truth: Truth | Sequence[Truth]
) -> list[tuple[AnnData, Truth]]:
    """Each section with its truth."""
    several = [sections] if isinstance(sections, AnnData) else list(sections)
    for one in several:
        if not isinstance(one, AnnData):
            remedy = "Pass the modality that the reference describes, for example mdata['rna']"
            raise TypeError(problem("AnnData of spots in each section", type(one).__name__, remedy))
    single = isinstance(truth, str | pd.DataFrame | np.ndarray)
    truths = [truth] * (len(several) if isinstance(truth, str) else 1) if single else list(truth)
    if not several or len(truths) != len(several):
        found = f"{len(several)} and {len(truths)}"
        remedy = (
            "Pass a list with a truth for each section, or the name of an obsm array that all have"
        )
        raise ValueError(problem("as many truths as sections, at least one", found, remedy))
    return list(zip(several, truths, strict=True))


def _known(
    adata: AnnData,
    table: pd.DataFrame,
    reference: AnnData | pd.DataFrame,
    truth: Truth,
    asked: Deconvolution,
) -> _Known:
    """What one section says, and its truth."""
    profiles = matched(table, adata, reference)
    at = adata.var_names.get_indexer(profiles.index)
    counts = counts_of(adata, asked.layer, what="spots")[:, at]
    totals = row_sums(counts)
    amounts, names = true_amounts(adata, list(profiles.columns), truth)
    amounts = amounts[:, [names.index(name) for name in profiles.columns]]
    rows = np.flatnonzero((amounts.sum(axis=1) > 0) & (totals > 0))
    if not len(rows):
        remedy = "Check the order of the rows, and the types of the truth"
        rule = "spots with counts and a truth for the types of the reference"
        raise ValueError(problem(rule, "none in a section", remedy))
    share = amounts[rows] / amounts[rows].sum(axis=1, keepdims=True)
    mixture = summarised(counts, profiles.to_numpy()).at(rows)
    return _Known(mixture, places_of(adata, totals, asked), rows, share)


def _learned(
    known: list[_Known], types: list[str], n_passes: int, asked: Deconvolution
) -> dict[str, object]:
    """The network as arrays."""
    import torch

    from gpnsf.core.companions.unrolling import OF_GROUPS, PARAMETERS, Section, train
    from gpnsf.core.progress import Progress
    from gpnsf.tl.device import resolved
    from gpnsf.tl.unrolling import fresh

    labels = [one.places.labels[one.rows] for one in known if one.places.labels is not None]
    regions = sorted(set(np.concatenate(labels))) if len(labels) == len(known) else []
    device, code = resolved(asked.device), {name: k for k, name in enumerate(regions)}
    network = fresh(asked, (len(regions), len(types)) if regions else None).to(device)
    examples = []
    for one in known:
        region = (
            np.array([code[name] for name in one.places.labels[one.rows]])
            if one.places.labels is not None
            else None
        )
        ties = one.places.at(one.rows).ties()
        section = Section.of(one.mixture, ties, unit=one.places.unit, region=region, device=device)
        examples.append((section, torch.as_tensor(one.truth, device=device)))
    rng = np.random.default_rng(asked.seed)
    order = [k for _ in range(n_passes) for k in rng.permutation(len(examples))]
    names = [*PARAMETERS, *(OF_GROUPS if regions else ())]
    shown = settings.shows(asked.progress)
    with few_threads(small=True), Progress("learn", len(order), shown=shown) as bar:
        steps = bar.each(examples[k] for k in order)
        losses = train(network, steps, names=names, learning_rate=asked.learning_rate)
    arrays = {"n_layers": asked.n_layers, "loss": losses, **network.arrays()}
    return {**arrays, "regions": regions, "types": types} if regions else arrays
