"""A whole fit: optimisation, test of what is spatial, second optimisation where factors change sides, local stage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpnsf.core import distributed, posterior, refine, training
from gpnsf.core.checkpoint import Checkpoint
from gpnsf.core.initial import Start
from gpnsf.core.model import Block, Factorization
from gpnsf.core.pilot import Pilot, continued, lone, sample
from gpnsf.core.refine import LogFactors
from gpnsf.core.spatial_test import passed, spatial_test
from gpnsf.core.types import Dataset, History, Posterior

__all__ = ["Outcome", "fit"]

logger = logging.getLogger("gpnsf")

Build = Callable[[Dataset, int], Factorization]  # a model of a dataset with T spatial factors


@dataclass(frozen=True)
class Outcome:
    """What a whole fit leaves behind."""

    posterior: Posterior
    history: History
    spatial_test: dict[str, np.ndarray]  # z and p [K] in the posterior's order, empty without a test


def fit(
    dataset: Dataset,
    build: Build,
    *,
    n_factors: int,
    n_spatial: int,
    tested: bool = False,
    local_stage: bool = True,
    init: str = "auto",
    block_size: int | None = None,
    schedule: training.Schedule | None = None,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    **options: Any,
) -> Outcome:
    """Fit; with ``tested``, factors that show no spatial order in counts held back become nonspatial, and the fit goes on.

    ``options`` go to :func:`gpnsf.core.training.fit`. The checkpoint keeps the first optimisation; what follows is repeated.
    """
    schedule = schedule or training.Schedule()
    run = _Fit(dataset, build, block_size, local_stage, {"seed": seed, "schedule": schedule, **options})
    model, blocks, history, log_factors = run(n_spatial, init, checkpoint=checkpoint)
    z = p = np.full(n_factors, np.nan)
    if tested and n_spatial:
        start = max(history.starts, key=lambda name: history.starts[name])
        asked = {"n_factors": n_factors, "n_spatial": n_spatial, "max_steps": schedule.max_steps}
        test = distributed.from_first(lambda: spatial_test(dataset, build, start=start, seed=seed, **asked))
        z, p = test.matched(log_factors.m.cpu().numpy())
        spatial = passed(z[:n_spatial])
        if not spatial.all():
            logger.info("%d of %d spatial factors failed the test and became nonspatial", (~spatial).sum(), n_spatial)
            order = np.concatenate([np.flatnonzero(spatial), np.flatnonzero(~spatial), np.arange(n_spatial, n_factors)])
            starts, z, p = history.starts, z[order], p[order]
            model, blocks, history, log_factors = run(int(spatial.sum()), [continued(model, log_factors.m, order)])
            history = replace(history, starts=starts)
    result = distributed.from_first(lambda: posterior.summarise(model, dataset, blocks, log_factors))
    test_record = {"z": z[result.order], "p": p[result.order]} if tested and n_spatial else {}
    return Outcome(result, history, test_record)


class _Fit:
    """One optimisation with its local stage."""

    def __init__(self, dataset: Dataset, build: Build, block_size: int | None, local: bool, options: dict) -> None:
        self.dataset, self.build, self.block_size, self.options = dataset, build, block_size, options
        self.stage = refine.local if local else refine.mean_field

    def __call__(
        self, n_spatial: int, init: str | list[Start], checkpoint: Checkpoint | None = None
    ) -> tuple[Factorization, list[Block], History, LogFactors]:
        """Fit with T spatial factors from a kind of start, or from given ones."""
        model = self.build(self.dataset, n_spatial)
        begin: str | Iterable[Start] = init
        blocks = model.blocks(self.dataset, self.block_size)
        options = {**self.options, "block_size": self.block_size, "blocks": blocks, "checkpoint": checkpoint}
        if isinstance(init, str):
            rows, ahead = sample(self.dataset, self.options["seed"]), lone(self.dataset)
            if rows is not None or ahead:
                own = {**self.options, "block_size": self.block_size}
                begin = Pilot(self.dataset, rows, ahead, self.build, n_spatial, init, own)
                options["schedule"] = begin.left
        history = training.fit(model, self.dataset, init=begin, **options)
        training.give_back()
        return model, blocks, history, self.stage(model, blocks)
