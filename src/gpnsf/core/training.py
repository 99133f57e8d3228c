"""The optimisation: full-batch Adam on Pyro's evidence lower bound, accumulated over row blocks.

The only place with side effects: it moves parameters, draws a progress bar, and leaves torch's random state as it was.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from tqdm.auto import tqdm

from gpnsf.core import initial
from gpnsf.core.initial import Start
from gpnsf.core.likelihoods import NegativeBinomial
from gpnsf.core.model import Block, Factorization
from gpnsf.core.types import Dataset, History

__all__ = ["Schedule", "elbo", "few_threads", "fit"]

logger = logging.getLogger("gpnsf")

BETAS = (0.9, 0.99)
WINDOW = 10  # steps over which convergence is judged
MAX_REPAIRS = 8
SMALL = 1_000_000  # nonzeros below which threads wait for each other longer than they work


@dataclass(frozen=True)
class Schedule:
    """How long each phase lasts and how large its steps are."""

    max_steps: int = 600  # cap on the steps of the kept start, all phases together
    learning_rate: float = 0.2
    tol: float = 2e-4  # gain of the ELBO per nonzero count over ten steps below which the fit has converged
    pick_steps: int = 25
    warmup_steps: int = 5
    kernel_steps: int = 40  # steps after which the kernel parameters are frozen
    min_steps: int = 60
    tail_steps: int = 40
    polish_steps: int = 20
    polish_rate: float = 0.05

    def ending(self, wanted: int) -> int:
        """Length of a closing phase: as wanted, unless the cap leaves little room."""
        return min(wanted, self.max_steps // 4)


def fit(
    model: Factorization,
    dataset: Dataset,
    *,
    init: str = "auto",
    schedule: Schedule | None = None,
    block_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> History:
    """Try the starts, keep the one with the best bound, run it to convergence, then fit what the Poisson phase left out."""
    schedule = schedule or Schedule()
    n_spatial, n_factors = model.n_spatial, model.n_factors
    candidates = initial.starts(dataset, n_factors, n_spatial, nonnegative=model.nonnegative, kind=init, seed=seed)
    device = next(model.parameters()).device
    with (
        _quiet_randomness(seed, device),
        tqdm(total=schedule.max_steps, disable=not progress, desc="fit", unit="step") as bar,
    ):
        run = _Run(model, model.blocks(dataset, block_size), schedule, bar)
        run.pick(candidates)
        run.optimise()
        run.polish()
        return run.history()


def elbo(model: Factorization, blocks: Iterable[Block]) -> float:
    """Evidence lower bound of the whole data, without gradients."""
    objective = TraceMeanField_ELBO()
    with torch.no_grad():
        return -sum(objective.differentiable_loss(model.model, model.guide, block).item() for block in blocks)


@contextmanager
def few_threads(dataset: Dataset) -> Iterator[None]:
    """One torch thread for small data.

    On 600 spots a second thread saves a third of the time on an idle machine, and costs six times as much on a busy one.
    """
    before = torch.get_num_threads()
    if sum(view.counts.nnz for view in dataset.views) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch inside, and leave its random state and Pyro's validation settings as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        yield


class _Run:
    """The state of one optimisation."""

    def __init__(self, model: Factorization, blocks: list[Block], schedule: Schedule, bar: tqdm) -> None:
        self.model, self.blocks, self.schedule, self.bar = model, blocks, schedule, bar
        self.objective = TraceMeanField_ELBO()
        self.nnz = max(1, sum(counts.nnz for block in blocks for counts in block.counts.values()))
        self.began = time.perf_counter()
        self.elbo: list[float] = []
        self.seconds: list[float] = []
        self.phase: list[str] = []
        self.starts: dict[str, float] = {}
        self.repairs: list[str] = []
        self.converged = False
        self._before = _snapshot(model)

    def pick(self, candidates: Iterable[Start]) -> None:
        """A few steps from every start; go on from the one with the best bound."""
        blank = _snapshot(self.model)
        best: tuple[float, dict[str, Tensor], list[list]] | None = None
        room = self.schedule.max_steps - self.schedule.ending(self.schedule.tail_steps) - self._polish_length()
        n_steps = min(self.schedule.pick_steps, room)
        for start in candidates:
            self._forget()
            self.model.load_state_dict(blank)
            self.model.load(start, self.blocks)
            self._before = _snapshot(self.model)  # a repair never goes back to another start
            self.bar.set_description(f"start {start.name}")
            self._steps("pick", [self._warm(i) for i in range(n_steps)])
            self.starts[start.name] = self.elbo[-1]
            logger.debug("start %s: ELBO %.6g after %d steps", start.name, self.elbo[-1], n_steps)
            if best is None or self.elbo[-1] > best[0]:
                best = self.elbo[-1], _snapshot(self.model), [self.elbo, self.seconds, self.phase]
        if best is None:
            raise RuntimeError("no start was given")
        self.model.load_state_dict(best[1])
        self.elbo, self.seconds, self.phase = best[2]
        self.bar.reset()
        self.bar.update(len(self.elbo))

    def optimise(self) -> None:
        """Constant rate until the bound stops rising, the kernel parameters frozen on the way; then a cosine tail."""
        schedule = self.schedule
        tail = schedule.ending(schedule.tail_steps)
        limit = schedule.max_steps - tail - self._polish_length()
        self.bar.set_description("fit")
        optimizer = self._optimizer(schedule.learning_rate)
        frozen = False
        while len(self.elbo) < limit and not self.converged:
            if not frozen and len(self.elbo) >= schedule.kernel_steps:
                frozen = self._freeze_kernel()
            warm = self._warm(len(self.elbo) - schedule.pick_steps)
            self._step("main", optimizer, warm)
            self.converged = len(self.elbo) >= schedule.min_steps and self._has_converged()
        self._freeze_kernel()
        cosine = [0.05 + 0.475 * (1 + math.cos(math.pi * i / tail)) for i in range(tail)]
        self._steps("tail", cosine, optimizer)

    def polish(self) -> None:
        """Estimate theta by moments, then take a few exact negative binomial steps."""
        if not self._needs_polish():
            return
        with torch.no_grad():
            for name, view in self.model.items():
                if isinstance(view.likelihood, NegativeBinomial):
                    view.likelihood.estimate_theta(
                        [
                            (block.counts[name], self.model.moments(name, block), view.loadings_of(block.batch))
                            for block in self.blocks
                        ]
                    )
        n_steps = self._polish_length()
        optimizer = self._optimizer(self.schedule.polish_rate)
        self._steps("polish", np.linspace(1.0, 0.1, n_steps).tolist(), optimizer)

    def history(self) -> History:
        """The record of the kept start."""
        arrays = np.asarray(self.elbo), np.asarray(self.seconds), np.asarray(self.phase, dtype=str)
        return History(*arrays, self.converged, self.starts, self.repairs)

    def _needs_polish(self) -> bool:
        """Whether a modality has taken its counts as Poisson so far."""
        return any(isinstance(view.likelihood, NegativeBinomial) for _, view in self.model.items())

    def _polish_length(self) -> int:
        """Steps kept back for the polish."""
        return self.schedule.ending(self.schedule.polish_steps) if self._needs_polish() else 0

    def _forget(self) -> None:
        """Begin a new record."""
        self.elbo, self.seconds, self.phase = [], [], []

    def _optimizer(self, rate: float) -> torch.optim.Adam:
        """A fresh Adam over everything that may move."""
        moving = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return torch.optim.Adam(moving, lr=rate, betas=BETAS)

    def _warm(self, step: int) -> float:
        """Linear warm-up of the rate."""
        return min(1.0, (step + 1) / self.schedule.warmup_steps)

    def _steps(self, phase: str, factors: list[float], optimizer: torch.optim.Adam | None = None) -> None:
        """One step for each factor of the rate."""
        optimizer = optimizer or self._optimizer(self.schedule.learning_rate)
        for factor in factors:
            self._step(phase, optimizer, factor)

    def _step(self, phase: str, optimizer: torch.optim.Adam, factor: float) -> None:
        """One full-batch step: the gradient is accumulated over the blocks."""
        base = optimizer.defaults["lr"] * 0.5 ** len(self.repairs)
        for group in optimizer.param_groups:
            group["lr"] = base * factor
        optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for block in self.blocks:
            part = self.objective.differentiable_loss(self.model.model, self.model.guide, block)
            (part / self.nnz).backward()
            loss += part.item()
        if not math.isfinite(loss):
            self._repair(optimizer)
            self._step(phase, optimizer, factor)
            return
        if len(self.elbo) % WINDOW == 0:
            self._before = _snapshot(self.model)
        optimizer.step()
        if self.model.spatial is not None:
            self.model.spatial.field.clamp_()
        self._record(phase, -loss)

    def _record(self, phase: str, value: float) -> None:
        """Remember a step and show it."""
        self.elbo.append(value)
        self.seconds.append(time.perf_counter() - self.began)
        self.phase.append(phase)
        self.bar.update()
        self.bar.set_postfix(ELBO=f"{value:.6g}", refresh=False)

    def _repair(self, optimizer: torch.optim.Adam) -> None:
        """Go back to the last parameters that were good, and halve the rate."""
        if len(self.repairs) >= MAX_REPAIRS:
            raise FloatingPointError(
                f"The objective was not finite at step {len(self.elbo)} after {len(self.repairs)} repairs. Check the "
                "counts for extreme values, or pass a smaller learning_rate."
            )
        self.model.load_state_dict(self._before)
        optimizer.state.clear()
        self.repairs.append(f"step {len(self.elbo)}: objective not finite, rolled back and halved the learning rate")
        logger.warning(self.repairs[-1])

    def _has_converged(self) -> bool:
        """Whether the bound per nonzero count has stopped rising from one window of steps to the next.

        Both windows are averaged, since Adam oscillates. A Monte Carlo bound cannot be known better than its standard error.
        """
        if len(self.elbo) < 2 * WINDOW:
            return False
        before, after = np.array(self.elbo[-2 * WINDOW :]).reshape(2, WINDOW) / self.nnz
        tol = self.schedule.tol
        if self.model.n_samples is not None:
            tol = max(tol, 2 * math.sqrt((before.var() + after.var()) / WINDOW))
        return bool(after.mean() - before.mean() < tol)

    def _freeze_kernel(self) -> bool:
        """Stop learning the kernel parameters: beyond the first steps they drift with what the model cannot say."""
        if self.model.spatial is not None:
            for parameter in self.model.spatial.field.hyperparameters():
                parameter.requires_grad_(False)
                parameter.grad = None
        return True


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
