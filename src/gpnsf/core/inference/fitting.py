"""A whole fit: optimisation, a look at what it has lost, spatial test, joining, loadings, local stage."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from gpnsf.core import distributed
from gpnsf.core.inference import posterior, training
from gpnsf.core.inference.checkpoint import Checkpoint, tell_interruption
from gpnsf.core.inference.confirmed import weighed
from gpnsf.core.inference.order import Order
from gpnsf.core.inference.run import Build, Run
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.inference.spatial_test import SpatialTest, spatial_test
from gpnsf.core.progress import Progress
from gpnsf.core.types import Dataset, History, Posterior

__all__ = ["Outcome", "fit"]

logger = logging.getLogger("gpnsf")

# steps that are expected of the climb and of the test, and how many the local stage is worth
CLIMB, TEST, LOCAL = 75, 150, 15


@dataclass(frozen=True)
class Outcome:
    """Results of a whole fit."""

    posterior: Posterior
    history: History
    # z, p and repeated [K] in the posterior's order, empty without a test
    spatial_test: dict[str, np.ndarray]
    weights: dict[str, float]  # of the modalities


def fit(
    dataset: Dataset,
    build: Build,
    *,
    n_factors: int,
    n_spatial: int,
    most_spatial: int | None = None,
    tested: bool = False,
    weigh: bool = False,
    refine: bool = True,
    init: str = "auto",
    block_size: int | None = None,
    schedule: Schedule | None = None,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Fit with T = ``n_spatial`` spatial factors.

    With ``tested``, held-out counts decide: factors without spatial order become
    nonspatial, others with clear order spatial, as long as no more than ``most_spatial`` are
    (default: ``n_spatial``). With ``weigh``, they also give several modalities their weights. Then,
    or where ``most_spatial`` is above ``n_spatial``, they are asked before the fit, and say how many
    fields it begins with. The checkpoint keeps the first optimisation; the test before it and what
    follows are repeated.
    """
    schedule, progress = schedule or Schedule(), progress or Progress("fit", 1.0)
    progress.expected = _expected_steps(schedule, tested=tested and n_spatial > 0, refine=refine)
    options = training.Options(
        schedule=schedule, block_size=block_size, seed=seed, progress=progress
    )
    asked = {"n_factors": n_factors, "max_steps": schedule.max_steps, "seed": seed}
    most = n_spatial if most_spatial is None else most_spatial

    def test(n_spatial: int, start: str | None) -> SpatialTest:
        return distributed.from_first(
            lambda: spatial_test(
                dataset,
                build,
                n_spatial=n_spatial,
                start=start,
                weigh=weigh,
                progress=progress,
                **asked,
            )
        )

    tested, found, order = tested and n_spatial > 0, None, Order.unknown(n_factors)
    weigh = weigh and tested and len(dataset.views) > 1
    if tested and (most > n_spatial or weigh):
        found = test(n_spatial, None)
        dataset = weighed(dataset, found.weights)
        for name, weight in found.weights.items():
            logger.info("weight of %s by what held-out counts confirm of it: %.2f", name, weight)
        n_spatial = found.slots  # may be more than there are places for: those of most order stay
    run = Run(dataset, build, options)
    run.begin(n_spatial, init, checkpoint)
    try:
        run.refine_field()  # first: what a field cannot follow looks like a factor of single spots
        run.restore_lost(tested=tested)
        if tested:
            found = found or test(n_spatial, run.history().best)
            run.judge(found, most)
            if run.release(found):
                run.restore_lost(tested=True)  # what had no place beside them
        run.refine_field()  # of factors that have come later
        run.settle()
        if found is not None:
            order = run.order(found, run.log_factors())
        progress.stage("refining observations" if refine else "summing up")
        log_factors = run.end(order, most, local=refine)
    except KeyboardInterrupt:
        tell_interruption("the first optimisation", checkpoint)
        raise
    progress.step(LOCAL if refine else 0)
    history = run.history()
    progress.converged = history.converged
    model, blocks = run.model, run.blocks
    result = distributed.from_first(
        lambda: posterior.summarise(model, dataset, blocks, log_factors)
    )
    numbers = run.numbers[result.order]
    tests = {"z": order.z, "p": order.p, "repeated": order.repeated} if tested else {}
    tests = {name: values[numbers] for name, values in tests.items()}
    return Outcome(result, history, tests, {view.name: view.weight for view in dataset.views})


def _expected_steps(schedule: Schedule, *, tested: bool, refine: bool) -> float:
    """Steps that a fit usually takes, and what takes as long."""
    climb = min(3 * schedule.pick_steps + CLIMB + schedule.tail_steps, 2 * schedule.max_steps)
    halves = min(TEST, 4 * schedule.max_steps)
    return climb + schedule.polish_steps + (halves if tested else 0) + (LOCAL if refine else 0)
