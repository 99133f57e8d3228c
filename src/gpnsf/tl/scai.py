"""scAI: factors of cells with RNA and sparse ATAC, without coordinates."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from gpnsf import arguments, checks
from gpnsf.checks import Rule, problem
from gpnsf.core.companions import scai as core
from gpnsf.io.companions import SCAI, record_of
from gpnsf.io.streaming import memory_budget
from gpnsf.io.tables import takes_tables
from gpnsf.io.write import Slot, check_key, put
from gpnsf.keys import Keys
from gpnsf.settings import settings
from gpnsf.tl.alone import SMALL, few_threads, one_at_a_time
from gpnsf.tl.memory import peak_memory
from gpnsf.tl.paired import Side, check_layer, read_pair

if TYPE_CHECKING:
    from mudata import MuData

__all__ = ["scai"]

RULES = {
    "n_factors": arguments.RULES["n_factors"],
    "rna": Rule(str, "rna"),
    "atac": Rule(str, "atac"),
    "alpha": Rule(float, 1.0, low=0, above=True, high=1e6),
    "beta": Rule(float, 1.0, low=0, high=1e6),
    "lam": Rule(float, 0.01, low=0, high=1e6),
    "gamma": Rule(float, 0.003, low=0, high=1e6),
    "mask": Rule(float, 0.25, low=0.001, high=1),
    "n_restarts": Rule(int, 5, low=1),
    "max_steps": Rule(int, 300, low=1),
    "tol": Rule(float, 1e-5, low=0, above=True),
    "layer_added": Rule(str, "scai_averaged", optional=True),
    "seed": arguments.RULES["seed"],
    "key_added": Rule(str, "scai"),
    "progress": arguments.RULES["progress"],
}

_log = logging.getLogger("gpnsf")


@takes_tables
@one_at_a_time
def scai(
    mdata: MuData,
    *,
    n_factors: int,
    rna: str = "rna",
    atac: str = "atac",
    layers: str | Mapping[str, str] | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    lam: float = 0.01,
    gamma: float = 0.003,
    mask: float = 0.25,
    n_restarts: int = 5,
    max_steps: int = 300,
    tol: float = 1e-5,
    layer_added: str | None = None,
    seed: int = 0,
    key_added: str = "scai",
    progress: bool | None = None,
) -> None:
    r"""Find nonnegative factors of paired RNA and ATAC while the sparse ATAC is averaged over similar cells.

    Of the normalised values :math:`X_1` (RNA) and :math:`X_2` (ATAC) it finds factors H, loadings :math:`W_1, W_2`, and weights T
    of averages over cells with similar factors, that minimise

    .. math::

        \alpha \|X_1 - H W_1^\top\|^2 + \|T X_2 / s - H W_2^\top\|^2 + \beta \|X_2 - H W_2^\top\|^2
        + \tfrac{\lambda}{K} \|T - R \circ H H^\top\|^2 + \tfrac{\gamma}{K} \|H 1\|^2

    with a random mask R that has a share s of ones, columns of H of norm 1, and both modalities scaled to norm 1. The
    third term is not in the published objective. Without it, ``beta=0``, ATAC tells next to nothing about the factors, since averages over
    similar cells can be reproduced whichever cells are called similar.

    Counts are normalised here: ATAC is read as open or closed, every cell is scaled to a total of 10,000, and the logarithm is
    taken. No coordinates are needed, and none are used.

    Parameters
    ----------
    mdata
        MuData with raw counts of the same cells in both modalities.
    n_factors
        Number K of factors.
    rna, atac
        Names of the modalities.
    layers
        Layers that hold the counts, by modality or one name for both; ``X`` by default.
    alpha
        Weight of RNA.
    beta
        Weight of ATAC as it is, relative to the averages; 0 for the published objective.
    lam
        Weight of the similarity of cells: how close weights of averages stay to those that the factors ask for.
    gamma
        Weight of what factors share: a large one makes each cell belong to one factor.
    mask
        Share s of the cells that may take part in the average of a cell.
    n_restarts
        Starts, from clusters by k-means with as many seeds; after 15 steps the one whose loadings correlate least goes on.
    max_steps
        Cap on the steps of the fit that goes on.
    tol
        Relative decrease of the objective in a step, on average over ten, below which the fit has converged.
    layer_added
        Layer for averaged ATAC; None for no such layer.
    seed
        Seed of mask and starts.
    key_added
        Prefix of the slots.
    progress
        Show a progress bar; None for ``gpnsf.settings.progress``.

    Raises
    ------
    KeyError
        If a modality or layer does not exist.
    TypeError, ValueError
        If an argument is out of its range, counts are not whole and nonnegative, cells lack a modality, there are more factors than cells or
        features, or the layer would take more than ``gpnsf.settings.memory_budget`` bytes.
    MemoryError
        If the similarities of all cells would: about 9 bytes for each pair, 0.9 GB for 10,000 cells, 8 GB for 30,000. ``mdata`` is
        untouched after any error.

    Notes
    -----
    Writes, for N cells and P features of a modality, and removes what an earlier call left under the same key:

    * ``obsm["X_scai"]`` [N, K] of the MuData and of each modality: factors with mean 1, the one with the largest loadings first
    * ``varm["scai_loadings"]`` [P, K] of each modality, nonnegative: ``X_scai @ scai_loadings.T`` is what is expected of the normalised values
    * ``uns["scai"]``: ``method``, ``params``, ``factor_names``, ``objective`` (after each step), ``redundancy`` (of the loadings of each start),
      ``converged``, ``modalities``, ``likelihoods``, ``is_spatial`` (False), ``versions``, ``seed``, ``seconds``, ``peak_memory``
    * with ``layer_added``, that layer of ``atac``, dense float32 [n, P]: open peaks of similar cells added up, normalised as above

    With ``key="scai"``, :func:`gpnsf.tl.rank_features`, :func:`gpnsf.tl.link_peaks`, :func:`gpnsf.tl.enrich`,
    :func:`gpnsf.tl.factor_adata`, :func:`gpnsf.tl.domains` (clusters of cells) and the figures of factors and
    loadings read these slots. There is no model of counts: what needs one, such as :func:`gpnsf.tl.predict`, refuses.

    The time of a step grows with the cube of the number of cells; :doc:`/benchmarks` has numbers.

    References
    ----------
    :doc:`/model`, equations S1 to S8, after :cite:t:`jin2020`.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.groups(n_obs=100, n_genes=60, n_peaks=90)
    >>> gpnsf.tl.scai(mdata, n_factors=5, max_steps=5, progress=False)
    >>> mdata.obsm["X_scai"].shape, mdata["atac"].varm["scai_loadings"].shape
    ((100, 5), (90, 5))
    """
    began = time.perf_counter()
    params = {name: value for name, value in locals().items() if name in RULES or name == "layers"}
    for name, rule in RULES.items():
        rule.check(name, params[name])
    sides = read_pair(mdata, (rna, atac), ("poisson", "bernoulli"), layers)
    check_key(key_added, mdata.mod)
    checks.sizes(
        n_factors, n_obs=mdata.n_obs, n_features=min(side.counts.shape[1] for side in sides)
    )
    _check_memory(mdata.n_obs)
    if layer_added is not None:
        check_layer(layer_added, sides[1], what="averaged ATAC")
    with few_threads(mdata.n_obs**2 < SMALL):
        found = core.fit(
            core.normalised(sides[0].counts),
            core.normalised(sides[1].counts),
            n_factors,
            weights=core.Weights(alpha=alpha, beta=beta, lam=lam, gamma=gamma, mask=mask),
            n_restarts=n_restarts,
            max_steps=max_steps,
            tol=tol,
            seed=seed,
            progress=settings.shows(progress),
        )
    layer = (
        None
        if layer_added is None
        else core.averaged(found.similarity, sides[1].counts)[sides[1].rows]
    )
    record = _record(found, params, [side.name for side in sides], time.perf_counter() - began)
    slots = _slots(mdata, sides, found, Keys(key_added), record)
    if layer_added is not None:
        slots.append((sides[1].mod, "layers", layer_added, layer))
    put(mdata, slots, instead_of=Keys(key_added).slots)
    _log.info("scAI: %d cells, %d steps, %.1f s", mdata.n_obs, len(found.trace), record["seconds"])
    if not found.converged:
        _log.warning("scAI has not converged after %d steps. Pass a larger max_steps.", max_steps)


def _check_memory(n_obs: int) -> None:
    """Refuse more cells than whose similarities fit."""
    needed, budget = core.memory(n_obs), memory_budget()
    if needed > budget:
        rule = (
            f"cells whose similarities fit into gpnsf.settings.memory_budget, {budget / 1e9:.3g} GB"
        )
        remedy = "Take a sample of the cells, raise the setting, or use gpnsf.tl.fit(mdata, model='pnmf')"
        raise MemoryError(problem(rule, f"{n_obs} cells, which need {needed / 1e9:.3g} GB", remedy))


def _record(
    found: core.Outcome, params: dict[str, object], names: list[str], seconds: float
) -> dict[str, object]:
    """The ``uns`` entry."""
    n_factors = found.factors.shape[1]
    return {
        **record_of(SCAI, [f"factor_{k + 1}" for k in range(n_factors)], names),
        "params": {name: value for name, value in params.items() if name != "progress"},
        "objective": found.trace,
        "redundancy": found.redundancy,
        "converged": found.converged,
        "versions": {name: version(name) for name in ("gpnsf", "numpy", "scipy", "scikit-learn")},
        "seed": params["seed"],
        "seconds": seconds,
        "peak_memory": peak_memory(),
    }


def _slots(
    mdata: MuData, sides: list[Side], found: core.Outcome, keys: Keys, record: dict[str, object]
) -> list[Slot]:
    """All that is written."""
    slots: list[Slot] = [
        (mdata, "obsm", keys.factors, found.factors),
        (mdata, "uns", keys.uns, record),
    ]
    for side, loadings in zip(sides, found.loadings, strict=True):
        slots.append((side.mod, "obsm", keys.factors, found.factors[side.rows]))
        slots.append((side.mod, "varm", keys.loadings, loadings))
    return slots
