"""Cell types of spots that hold several cells each, from their profiles in a reference."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from gpnsf import checks
from gpnsf.arguments import Deconvolution
from gpnsf.checks import problem
from gpnsf.core.companions import deconvolution
from gpnsf.core.companions.resemblance import resembling
from gpnsf.core.types import row_sums
from gpnsf.io.companions import DECONVOLVE, record_of
from gpnsf.io.objects import open_data, owner
from gpnsf.io.tables import takes_tables
from gpnsf.io.write import Slot, check_key, put
from gpnsf.keys import SPATIAL, ProportionKeys
from gpnsf.settings import settings
from gpnsf.tl.alone import one_at_a_time
from gpnsf.tl.proportion_std import Solve, alone, proportion_std, tied
from gpnsf.tl.reference import compared, counts_of, matched, profiles_of
from gpnsf.tl.spots import costs_of, places_of

if TYPE_CHECKING:
    from gpnsf.core.companions.deconvolution import Mixture
    from gpnsf.core.companions.pseudospots import Places

__all__ = ["deconvolve"]

SOLVERS = {"multiplicative": deconvolution.multiplicative, "fista": deconvolution.accelerated}
ARGUMENTS = [own.name for own in fields(Deconvolution)]

_log = logging.getLogger("gpnsf")


@takes_tables
@one_at_a_time
def deconvolve(
    adata: AnnData,
    reference: AnnData | pd.DataFrame,
    *,
    method: str = "graph",
    label_key: str | None = None,
    layer: str | None = None,
    reference_layer: str | None = None,
    reliable_genes: bool = False,
    min_counts: int = 1,
    spatial_weight: float = 0.1,
    total_weight: float = 0.1,
    group_weight: float = 0.0,
    group_costs: pd.DataFrame | None = None,
    n_neighbors: int = 6,
    bandwidth: float | None = None,
    region_key: str | None = None,
    region_bandwidth: float = 1.0,
    spatial_key: str = SPATIAL,
    library_key: str | None = None,
    solver: str = "multiplicative",
    max_steps: int = 5000,
    tol: float = 1e-7,
    train: bool = True,
    network: Mapping[str, object] | None = None,
    n_layers: int = 40,
    shared: bool = False,
    n_training: int = 150,
    learning_rate: float = 0.1,
    uncertainty: bool = False,
    obs_columns: bool = False,
    device: str = "auto",
    seed: int = 0,
    key_added: str = "proportions",
    progress: bool | None = None,
) -> None:
    r"""Estimate the share of each cell type in the RNA of each spot, given what the types express.

    Spots are brought to the depth of the reference, genes are weighted by their Poisson noise, and abundances
    :math:`v_i \ge 0` of the types minimise (equation D3 of the model page)

    .. math:: \tfrac12 \lVert X - V B^\top \rVert^2 + \tfrac{\lambda_1}2 \operatorname{tr} V^\top L V
        + \tfrac{\lambda_2}2 \sum_i (1^\top v_i - 1)^2 + \tfrac{\lambda_3}2 \sum_i (w_i^\top v_i)^2

    with the Laplacian L of a graph of neighbouring spots. They are divided by their sum at the end. The weights
    are in units of the mean squared length of a profile, so that they mean the same for any data.

    Methods are

    - ``"graph"``: the minimum of this, by multiplicative updates, which never go uphill, or by FISTA;
    - ``"nnls"``: nonnegative least squares of each spot by itself, all weights zero;
    - ``"unrolled"``: a fixed number of these updates as layers of a network, whose weights are learned from sections that
      are simulated with the profiles, the places and the depths of the data, and as smooth, mixed and rough as the data
      are by their least squares. No labelled spots are needed.

    Parameters
    ----------
    adata
        Spots with counts; of a MuData, its RNA.
    reference
        Cells with counts and ``label_key``, or a table of genes by types. Cells are divided by their totals and averaged, so
        that deep cells do not speak for their type; proportions are then those of RNA, in which large cells count for more. Genes are matched by name.
    method
        "graph", "nnls" or "unrolled".
    label_key
        ``obs`` column of the reference with the type of each cell.
    layer, reference_layer
        Layers with counts; None for ``X``.
    reliable_genes
        Whether to use only genes whose means in the cells of the reference vary between types by more than twice their sampling variance.
        With few cells a type and types that are alike, other genes say which type's mean was drawn by chance to fit the spots best.
    min_counts
        Spots with fewer counts of the genes in common are left out: nothing is estimated from them, and their proportions are missing (NaN).
    spatial_weight
        Weight :math:`\lambda_1` of the differences of neighbours; with "unrolled", where learning begins.
    total_weight
        Weight :math:`\lambda_2` of the sums' distance from 1; with "unrolled", where learning begins.
    group_weight
        Weight :math:`\lambda_3` of the costs of types in regions; it is not learned.
    group_costs
        Costs, regions (the values of ``region_key``) by types: high where a type is not expected. Rows are divided by their sums.
    n_neighbors
        Neighbours in the graph, which joins two spots if either is among the nearest of the other.
    bandwidth
        Distance, in the units of the coordinates, at which a tie has fallen to 1/e; None for that of neighbouring spots.
    region_key
        ``obs`` column of regions, or of an intensity, or ``obsm`` array of features such as those of an image. Ties weaken where it
        differs, by ``exp(-(z / region_bandwidth)^2)`` with the sum z of absolute differences; z = 2 between two regions, other features count in their standard deviations.
    region_bandwidth
        Difference at which a tie has fallen to 1/e; with "unrolled", where learning begins.
    spatial_key
        ``obsm`` array of coordinates. Not read by "nnls" without ``uncertainty``.
    library_key
        ``obs`` column of slices, between which there are no ties.
    solver
        "multiplicative" or "fista", for "graph": the same minimum, the latter in fewer steps.
    max_steps
        Most steps of the solver.
    tol
        The solver stops when ten steps lower the objective by less than this share of it.
    train
        With "unrolled", learn. Otherwise take ``network``, or what was stored under ``key_added`` before.
    network
        ``uns["proportions"]["network"]`` of other data, or what :func:`gpnsf.tl.train_unrolled` returned. With ``train=True`` learning goes on from there.
    n_layers
        Layers of the network.
    shared
        Whether all layers share their parameters.
    n_training
        Simulated sections to learn from, one a step. At 100 counts a spot twice as many lowered the error by 6 %, in twice the time.
    learning_rate
        Size of a step.
    uncertainty
        Whether to write standard deviations. They are learned from the errors of the same method on 40 simulated sections that
        resemble the data, so that ``mean +- 1.645 std``, cut off at 0 and 1, holds 90 % of the true proportions there. They
        know of the scatter of the counts around the fit, and not of profiles that are wrong.
    obs_columns
        Whether to write each proportion into an ``obs`` column as well.
    device
        "auto", "cpu" or "cuda", for "unrolled".
    seed
        Seed of the simulated sections.
    key_added
        Prefix of the slots.
    progress
        Whether to show a progress bar. Default: ``gpnsf.settings.progress``.

    Raises
    ------
    KeyError
        If a column, a layer, coordinates or a stored network are missing.
    TypeError, ValueError
        If ``adata`` is not an AnnData or a view, counts or profiles are negative, fewer than ten genes are shared, or an argument is out of its range.

    Notes
    -----
    Reads counts and ``obsm["spatial"]``. Writes ``obsm["X_proportions"]`` [N, types] float32, whose columns are
    ``uns["proportions"]["types"]``; with ``uncertainty`` ``obsm["X_proportions_std"]``, of the same shape; ``obs["proportions_sum"]``, the sums before
    the division; ``varm["proportions_loadings"]`` [P, types], the profiles, zeros for genes that the reference lacks; and in
    ``uns["proportions"]`` also ``params``, ``n_genes`` (that were shared) and ``seconds``; with ``uncertainty`` ``excess`` (how many times more
    the counts scatter around their least squares than Poisson counts would); for "graph" ``objective`` (its course over the
    steps) and ``converged``; for "unrolled" ``network`` (arrays that ``network=`` takes, with the ``loss`` of each step).

    With ``key="proportions"``, :func:`gpnsf.tl.domains` (niches: spots whose mixtures express alike), :func:`gpnsf.tl.rank_features` (genes of the types),
    :func:`gpnsf.tl.factor_adata`, :func:`gpnsf.tl.enrich` and the figures of factors and loadings read these slots as those of a fit. What needs a posterior or a field refuses.

    Spots that are left out, for want of counts or because none of their counts is of a gene that a type expresses, have NaN in
    ``obsm["X_proportions"]``, ``obsm["X_proportions_std"]`` and ``obs["proportions_sum"]``, and no other spot has them as neighbours. Figures of proportions show
    them in grey, :func:`gpnsf.tl.evaluate_deconvolution` leaves them out, and tools that need a value for each spot say how to go on without them.

    Objective and updates follow the regularised factorisation that STL NMF :cite:p:`konkel2025` unrolls, with a descent proof, no thresholds and penalties that are comparable
    between data.

    Examples
    --------
    >>> import gpnsf
    >>> spots, cells = gpnsf.datasets.mixture(n_obs=100, n_genes=80, seed=0)
    >>> gpnsf.tl.deconvolve(spots, cells, label_key="cell_type")
    >>> spots.obsm["X_proportions"].shape
    (100, 6)
    """
    given = {name: value for name, value in locals().items() if name in ARGUMENTS}
    begin = time.perf_counter()
    _check(adata, network)
    asked = Deconvolution(**given)
    _check_key(adata, key_added)
    profiles = matched(
        profiles_of(reference, label_key=label_key, layer=reference_layer, reliable=reliable_genes),
        adata,
        reference,
    )
    counts = counts_of(adata, layer, what="spots")[:, adata.var_names.get_indexer(profiles.index)]
    checks.some(counts, modality="spots")
    totals = row_sums(counts)
    rows = np.flatnonzero(totals >= min_counts)
    if not len(rows):
        found = f"{totals.max():g} at most, of {len(profiles)} genes in common"
        remedy = "Pass a lower min_counts"
        raise ValueError(problem(f"spots with {min_counts} counts or more", found, remedy))
    if isinstance(reference, pd.DataFrame):
        compared(profiles, np.asarray(counts.sum(axis=0)).ravel())
    table, types = profiles.to_numpy(), list(profiles.columns)
    mixture = deconvolution.summarised(counts, table).at(rows)
    record: dict[str, object] = {
        **record_of(DECONVOLVE, types, open_data(adata).names),
        "types": types,
        "n_genes": len(profiles),
        "params": vars(asked),
    }
    std, rng = None, np.random.default_rng(seed)
    solve: Solve = alone
    if method == "nnls" and not uncertainty:
        V = deconvolution.exact(mixture)
    else:
        places = places_of(adata, totals, asked).at(rows)
        arrays = network
        if method == "unrolled" and network is None and not train:
            arrays = _stored(adata, key_added)
        costs = _costs(adata, group_costs, types, arrays, asked)[rows]
        learns = method == "unrolled" and train
        like = resembling(places, table, mixture, rng) if learns or uncertainty else None
        if method == "graph":
            solve = tied(places.unit, region_bandwidth, asked.weights)
            V, course = _minimum(mixture, places, costs, asked)
            record |= course
        elif method == "unrolled":
            from gpnsf.tl.unrolling import unrolled

            shown = settings.shows(progress)
            examples = () if like is None else like.sections(n_training, rng)
            solve, record["network"] = unrolled(places, asked, arrays, examples, shown=shown)
            V = solve(mixture, places.ties(), costs)
        else:
            V = deconvolution.exact(mixture)
        if like is not None and uncertainty:
            std = proportion_std(like, solve, V, costs, rng)
            record["excess"] = like.excess
    record["seconds"] = time.perf_counter() - begin
    _write(adata, rows, V, std, profiles, record, asked)


def _check(adata: AnnData, network: Any) -> None:
    """Check the object and the network."""
    if not isinstance(adata, AnnData):
        remedy = "Pass the modality that the reference describes, for example mdata['rna']"
        raise TypeError(problem("AnnData of spots", type(adata).__name__, remedy))
    owner(adata)
    if network is not None and not isinstance(network, Mapping):
        remedy = "Pass uns['proportions']['network'] of an object that was deconvolved by method='unrolled'"
        raise TypeError(
            problem("`network` to be a mapping of arrays", type(network).__name__, remedy)
        )


def _check_key(adata: AnnData, key: str) -> None:
    """Check the prefix of the slots."""
    check_key(key, example="proportions")
    if "types" not in adata.uns.get(key, {"types": ()}):
        rule = "`key_added` that no other tool has used"
        remedy = "Pass for example key_added='proportions'"
        raise ValueError(problem(rule, f"{key!r} in uns", remedy))


def _minimum(
    mixture: Mixture, places: Places, costs: np.ndarray, asked: Deconvolution
) -> tuple[np.ndarray, dict[str, object]]:
    """Abundances [N, C] at the minimum of the objective, and the way to it."""
    graph = places.ties().graph(places.unit, asked.region_bandwidth)
    penalties = deconvolution.Penalties(graph, costs, **asked.weights)
    solve = SOLVERS[asked.solver]
    solution = solve(mixture, penalties, max_steps=asked.max_steps, tol=asked.tol)
    steps = len(solution.trace) - 1
    if solution.converged:
        _log.info("deconvolved in %d steps", steps)
    else:
        _log.warning(
            "The deconvolution has not converged after %d steps. Pass a larger max_steps or tol, or solver='fista'.",
            steps,
        )
    return solution.V, {"objective": solution.trace, "converged": solution.converged}


def _costs(
    adata: AnnData,
    table: pd.DataFrame | None,
    types: list[str],
    arrays: Mapping[str, object] | None,
    asked: Deconvolution,
) -> np.ndarray:
    """Costs [N, C] of the types, as given or as the network has learned them."""
    if asked.method != "unrolled" or arrays is None or "costs" not in arrays:
        return costs_of(adata, table, types, asked.group_weight, asked.region_key)
    from gpnsf.tl.unrolling import learned_costs

    if table is not None:
        remedy = (
            "Leave `group_costs` and `group_weight` out, or learn a network without `region_key`"
        )
        found = "`group_costs` beside a network that has learned them"
        raise ValueError(problem("costs from one source", found, remedy))
    return costs_of(adata, learned_costs(arrays), types, 1.0, asked.region_key)


def _stored(adata: AnnData, key: str) -> Mapping[str, object]:
    """The network of an earlier deconvolution."""
    record = adata.uns.get(ProportionKeys(key).uns)
    if isinstance(record, Mapping) and isinstance(record.get("network"), Mapping):
        return record["network"]
    remedy = "Pass `network=`, or learn one with train=True"
    raise KeyError(problem(f"a network in uns[{key!r}] for train=False", "none", remedy))


def _write(
    adata: AnnData,
    rows: np.ndarray,
    V: np.ndarray,
    std: np.ndarray | None,
    profiles: pd.DataFrame,
    record: dict[str, object],
    asked: Deconvolution,
) -> None:
    """Proportions, their sums before the division, the profiles, and the record; of the rows that were used."""
    types, keys = list(profiles.columns), ProportionKeys(asked.key_added)
    share, sums = deconvolution.normalised(V)
    known = np.flatnonzero(sums > 0)
    share, sums = (_among_all(own[known], rows[known], adata) for own in (share, sums))
    left_out = adata.obs_names[np.isnan(sums)]
    if len(left_out):
        _log.warning(
            "%d of %d spots (the first is %r) have %s counts of the genes in common that a type expresses. Their "
            "proportions are missing (NaN). Remove them%s.",
            len(left_out),
            adata.n_obs,
            str(left_out[0]),
            "no" if asked.min_counts == 1 else f"fewer than {asked.min_counts}",
            "" if asked.min_counts == 1 else ", or pass a lower min_counts",
        )
    columns = [keys.of_type(name) for name in types]
    if asked.obs_columns and len({*columns, keys.sums}) <= len(columns):
        found = f"two that differ in a slash only, or one whose column would be {keys.sums!r}"
        raise ValueError(
            problem("types with names of their own for `obs_columns`", found, "Rename one of them")
        )
    before = adata.uns.get(keys.uns, {}).get("types", ())
    slots: list[Slot] = [
        (adata, "obsm", keys.proportions, share.astype(np.float32)),
        (adata, "obs", keys.sums, sums),
        (
            adata,
            "varm",
            keys.loadings,
            profiles.reindex(adata.var_names, fill_value=0).to_numpy(np.float32),
        ),
        (adata, "uns", keys.uns, record),
    ]
    if std is not None:
        std = _among_all(std[known], rows[known], adata)
        slots.append((adata, "obsm", keys.std, std.astype(np.float32)))
    if asked.obs_columns:
        slots += [
            (adata, "obs", column, values) for column, values in zip(columns, share.T, strict=True)
        ]
    put(
        adata, slots, instead_of={"obs": [*columns, *map(keys.of_type, before)], "obsm": [keys.std]}
    )


def _among_all(values: np.ndarray, rows: np.ndarray, adata: AnnData) -> np.ndarray:
    """Values of some rows among those of all spots, the others missing."""
    everywhere = np.full((adata.n_obs, *values.shape[1:]), np.nan)
    everywhere[rows] = values
    return everywhere
