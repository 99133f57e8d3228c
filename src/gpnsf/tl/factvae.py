"""FactVAE: codes of cells, and embeddings of genes and peaks, by two variational autoencoders."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData

from gpnsf import arguments, genome
from gpnsf.arguments import Options
from gpnsf.checks import Rule, problem
from gpnsf.core.companions import factvae_training as training
from gpnsf.core.scores import projections
from gpnsf.core.scores.deviance import feature_deviance, largest
from gpnsf.core.scores.expected import expected_shares
from gpnsf.io.companions import FACTVAE, record_of
from gpnsf.io.tables import takes_tables
from gpnsf.io.write import Slot, check_key, on_all_features, put
from gpnsf.keys import Keys
from gpnsf.settings import settings
from gpnsf.tl.alone import few_threads, one_at_a_time
from gpnsf.tl.device import resolved
from gpnsf.tl.link_peaks import gene_places, unique_names
from gpnsf.tl.paired import Side, check_layer, read_pair

__all__ = ["factvae"]

UPSTREAM = 2_000  # bases before the start of a gene that count as its own
N_SCORES = 100  # that an encoder reads
FEWEST = 10  # cells
BLOCK = 2**22  # entries of the augmented layer that are made at a time

RULES = {
    "n_genes": Rule(int, 2000, low=2),
    "n_peaks": Rule(int, 5000, low=2),
    "n_latent": Rule(int, 50, low=2),
    "variant": Rule(str, "corrected", options=("corrected", "paper")),
    "alignment": Rule(bool, True),
    "regulatory_weight": Rule(float, 1.0, low=0),
    "held_out_pairs": Rule(float, 0.2, low=0, high=0.9),
    "max_epochs": Rule(int, 100, low=1),
    "batch_size": Rule(int, 128, low=2),
    "learning_rate": Rule(float, 1e-3, low=0, above=True),
    "rna": Rule(str, "rna"),
    "atac": Rule(str, "atac"),
    "layer_added": Rule(str, "factvae_augmented", optional=True),
    "device": Rule(str, "auto"),
    "seed": arguments.RULES["seed"],
    "progress": arguments.RULES["progress"],
    "key_added": Rule(str, "factvae"),
}
_VERSIONS = ("gpnsf", "torch", "numpy", "scikit-learn")

_log = logging.getLogger("gpnsf")


@takes_tables
@one_at_a_time
def factvae(
    mdata: MuData,
    *,
    annotation: pd.DataFrame | str | os.PathLike[str] | None = None,
    rna: str = "rna",
    atac: str = "atac",
    layers: str | Mapping[str, str] | None = None,
    n_genes: int = 2000,
    n_peaks: int = 5000,
    n_latent: int = 50,
    variant: str = "corrected",
    alignment: bool = True,
    regulatory_weight: float = 1.0,
    held_out_pairs: float = 0.0,
    max_epochs: int = 100,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    layer_added: str | None = None,
    key_added: str = "factvae",
    device: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
) -> None:
    r"""Find codes of cells that were measured in RNA and ATAC, and embeddings of their genes and peaks (FactVAE).

    Each modality has a variational autoencoder. The encoder reads principal components of log counts (RNA) or latent semantic
    indexing (ATAC). The decoder is a product: the share of feature j in the counts of cell i is the softmax over features of
    :math:`z_i \cdot \phi_j + b_j`, and counts are zero-inflated negative binomial around it. Genes and the peaks that overlap
    them are drawn towards like embeddings :math:`\phi`; after every step the encoder of peaks is moved so that its cells resemble
    one another as those of the encoder of genes do. No coordinates are needed, and none are used.

    Parameters
    ----------
    mdata
        MuData with raw counts of the same cells in both modalities.
    annotation
        Places of genes, as in :func:`gpnsf.tl.link_peaks`. None for such columns in ``var`` of ``rna``; without any place of
        genes or peaks nothing is known about pairs, which the log says.
    rna, atac
        Names of the modalities.
    layers
        Layers that hold the counts, by modality or one name for both; ``X`` by default.
    n_genes, n_peaks
        Features with the largest Poisson deviance (:func:`gpnsf.pp.deviance_features`) that decoders describe; all if there are fewer.
        The encoder of ATAC reads all peaks.
    n_latent
        Numbers d of a code, in each modality.
    variant
        "paper" is the model as published. "corrected" has offsets of each feature, a free dispersion of each feature, and loadings
        that do not depend on the axes of the codes, which nothing ties to one another between the modalities.
    alignment
        Let the encoder of peaks learn from that of genes.
    regulatory_weight
        Weight of the pairs of genes and peaks that overlap the body of the gene or 2 kb before its start; 0 for none. Above all with
        ``variant="paper"``, what :func:`gpnsf.tl.link_peaks` says of pairs that were trained is no evidence for them.
    held_out_pairs
        Share of these pairs, drawn at random, that training does not see, so that they can be looked for afterwards.
    max_epochs
        Passes over the cells, at most. A tenth of the cells trains nothing; training stops where their loss stops falling.
    batch_size
        Cells of a step.
    learning_rate
        Rate of the optimiser Adam; half of it aligns the encoders.
    layer_added
        Layer for augmented ATAC, what the decoder of peaks expects of each cell at its own depth; None for no such layer.
    key_added
        Prefix of the slots.
    device
        "auto" takes CUDA where there is any; "cpu", "cuda", "cuda:1".
    seed
        Seed of starts, batches, draws and cells held out.
    progress
        Show a progress bar; None for ``gpnsf.settings.progress``.

    Raises
    ------
    KeyError
        If a modality or layer does not exist.
    TypeError, ValueError
        If an argument is out of its range, counts are not whole and nonnegative, cells lack a modality, there are fewer than 10 of
        them, names of features are not unique, a given annotation has none of the genes, or the layer would take more
        than ``gpnsf.settings.memory_budget`` bytes. ``mdata`` is untouched after any error.
    FloatingPointError
        If the losses become infinite.

    Notes
    -----
    Writes, for N cells and P features of a modality, and removes what an earlier call left under the same key:

    * ``obsm["X_factvae"]`` [N, 2d] of the MuData: means of the codes of ATAC, then of RNA; of each modality its own [n, d]
    * ``varm["factvae_loadings"]`` [P, 2d] of each modality: features in one space, where the cosine of two is the correlation over
      cells of their log shares, and the length of one its standard deviation; with ``variant="paper"`` the embeddings [P, d] of the
      decoders. Zeros for features left out. :func:`gpnsf.tl.link_peaks` with ``key="factvae"`` takes the cosines
    * ``uns["factvae"]``: ``params``, ``history`` (``joint``, ``regulatory``, ``alignment`` and ``held_out`` loss by epoch),
      ``overlaps`` (table: ``gene``, ``peak``, ``trained``), ``axes`` [2d, 2d] (of the codes, in the space of the loadings), ``converged``,
      ``method``, ``factor_names`` (of the codes: "atac_1", .., "rna_1", ..), ``is_spatial`` (False), ``modalities``, ``likelihoods``, ``versions``,
      ``seed``, ``seconds``
    * with ``layer_added``, that layer of ``atac``, dense float32 [n, P], zeros for peaks left out

    With ``key="factvae"``, :func:`gpnsf.tl.domains` (clusters of cells), :func:`gpnsf.tl.rank_features`, :func:`gpnsf.tl.enrich`,
    :func:`gpnsf.tl.factor_adata` and the figures of factors and loadings read these slots, code by code: a code of one modality has loadings of its features alone,
    those of the log shares. What needs a posterior or a field refuses.

    Cells lie in the codes as far apart as both modalities say; how far is not calibrated, and nothing here is a posterior of the
    joint data.

    References
    ----------
    :doc:`/model`, equations 36 to 46, after :cite:t:`wang2025factvae`.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.factvae(mdata, n_latent=8, max_epochs=2, progress=False)
    >>> mdata.obsm["X_factvae"].shape, mdata["atac"].varm["factvae_loadings"].shape
    ((100, 16), (60, 16))
    """
    began = time.perf_counter()
    params = {name: value for name, value in locals().items() if name in RULES or name == "layers"}
    for name, rule in RULES.items():
        rule.check(name, params[name])
    del params["progress"], params["key_added"]
    place = resolved(device)
    measured = _read(mdata, rna, atac, layers)
    check_key(key_added, mdata.mod)
    if layer_added is not None:
        check_layer(layer_added, measured[1], what="augmented ATAC")
    chosen = [_chosen(side, n) for side, n in zip(measured, (n_genes, n_peaks), strict=True)]
    overlaps, pairs = _overlaps(measured, chosen, annotation, params)
    plan = training.Plan(
        as_published=variant == "paper",
        **{
            name: params[name]
            for name in ("n_latent", "alignment", "regulatory_weight", "max_epochs")
        },
        **{name: params[name] for name in ("batch_size", "learning_rate", "seed")},
    )
    shown = settings.shows(progress)
    with few_threads(small=True):  # batches are small, however many cells there are
        outcome = training.train(
            *_inputs(measured, chosen, seed), pairs, plan, device=place, progress=shown
        )
    seconds = time.perf_counter() - began
    sides = [side.name for side in measured]
    names = [f"{name}_{k + 1}" for name in sides[::-1] for k in range(outcome.codes[0].shape[1])]
    info = {
        **record_of(FACTVAE, names, sides),
        "params": params,
        "history": outcome.history,
        "overlaps": overlaps,
        "converged": outcome.converged,
        "versions": {name: version(name) for name in _VERSIONS},
        "seed": seed,
        "seconds": seconds,
    }
    loadings = outcome.embeddings
    if variant == "corrected":
        loadings = training.responses(outcome.codes, outcome.embeddings)
        info["axes"] = np.hstack(training.axes(outcome.codes)[::-1])
    slots = _slots(mdata, measured, chosen, outcome.codes, loadings, Keys(key_added), info)
    if layer_added is not None:
        slots.append(
            (measured[1].mod, "layers", layer_added, _augmented(measured[1], chosen[1], outcome))
        )
    put(mdata, slots, instead_of=Keys(key_added).slots)
    _log.info(
        "FactVAE: %d cells, %d epochs, %.1f s", mdata.n_obs, len(outcome.history["joint"]), seconds
    )


def _read(mdata: MuData, rna: str, atac: str, layers: Any) -> list[Side]:
    """Both modalities, with names and cells enough."""
    sides = read_pair(mdata, (rna, atac), ("poisson", "poisson"), layers)
    for side in sides:
        unique_names(side.mod, side.name)
    if mdata.n_obs < FEWEST:
        remedy = "Take more cells: encoders learn nothing from so few"
        raise ValueError(problem(f"at least {FEWEST} observations", str(mdata.n_obs), remedy))
    return sides


def _chosen(side: Side, n_top: int) -> np.ndarray:
    """Positions [p] of the features that deviate most from a constant share."""
    chosen = np.flatnonzero(largest(feature_deviance(side.counts, "poisson"), n_top))
    if len(chosen) < 2:
        rule = f"at least 2 features of {side.name!r} whose share of the counts varies"
        raise ValueError(
            problem(rule, str(len(chosen)), "Check that these are raw counts of many features")
        )
    return chosen


def _overlaps(
    measured: list[Side], chosen: list[np.ndarray], annotation: Any, params: Options
) -> tuple[pd.DataFrame, np.ndarray]:
    """Table of the genes and peaks that overlap, and the pairs [2, n] among the chosen features that are trained."""
    (genes, peaks) = measured
    empty = pd.DataFrame({"gene": [], "peak": [], "trained": []}).astype({"trained": bool})
    if not params["regulatory_weight"]:
        return empty, np.zeros((2, 0), dtype=np.int64)
    try:
        places = gene_places(genes.mod, genes.name, annotation)
        where = genome.peak_positions(
            peaks.mod.var.iloc[chosen[1]], where=f"modality {peaks.name!r}"
        )
    except (KeyError, ValueError) as error:
        if annotation is not None:
            raise
        _log.warning(
            "The regulatory loss is off, because places of genes or peaks are missing. %s",
            error.args[0],
        )
        return empty, np.zeros((2, 0), dtype=np.int64)
    names = genes.mod.var_names[chosen[0]]
    places = places.loc[places.index.isin(names)]
    i, j = genome.pairs_overlapping(places, where, UPSTREAM)
    held = np.zeros(len(i), dtype=bool)
    order = np.random.default_rng(params["seed"]).permutation(len(i))
    held[order[: round(params["held_out_pairs"] * len(i))]] = True
    table = pd.DataFrame({"gene": places.index[i], "peak": where.index[j], "trained": ~held})
    _log.info(
        "%d peaks overlap a gene, in %d pairs; %d are held out",
        len(np.unique(j)),
        len(i),
        held.sum(),
    )
    return table, np.stack([names.get_indexer(places.index[i]), j])[:, ~held]


def _inputs(
    measured: list[Side], chosen: list[np.ndarray], seed: int
) -> tuple[training.Measured, training.Measured]:
    """What the core reads of genes and of peaks."""
    genes, peaks = (side.counts[:, own] for side, own in zip(measured, chosen, strict=True))
    components = projections.principal_components(genes, N_SCORES, seed=seed)
    index = projections.semantic_index(measured[1].counts, N_SCORES, seed=seed)
    return training.Measured(genes, components), training.Measured(peaks, index)


def _slots(
    mdata: MuData,
    measured: list[Side],
    chosen: list[np.ndarray],
    codes: list[np.ndarray],
    loadings: list[np.ndarray],
    keys: Keys,
    info: dict[str, object],
) -> list[Slot]:
    """All that is written."""
    slots: list[Slot] = [
        (mdata, "obsm", keys.factors, np.hstack(codes[::-1])),
        (mdata, "uns", keys.uns, info),
    ]
    for side, features, own, W in zip(measured, chosen, codes, loadings, strict=True):
        used = np.isin(np.arange(side.mod.n_vars), features)
        slots.append((side.mod, "obsm", keys.factors, own[side.rows]))
        slots.append((side.mod, "varm", keys.loadings, on_all_features(W, used)))
    return slots


def _augmented(side: Side, chosen: np.ndarray, outcome: training.Outcome) -> np.ndarray:
    """Expected counts [n, P] of the cells of a modality at their own depth (45)."""
    depth = np.asarray(side.counts[:, chosen].sum(axis=1)).ravel()[side.rows]
    codes, embeddings, base = outcome.codes[1][side.rows], outcome.embeddings[1], outcome.base[1]
    values = np.zeros((len(depth), side.counts.shape[1]), dtype=np.float32)
    for part in np.array_split(np.arange(len(depth)), values.size // BLOCK + 1):
        values[np.ix_(part, chosen)] = depth[part, None] * expected_shares(
            codes[part], embeddings, base
        )
    return values
