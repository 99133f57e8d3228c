"""The optimisation: full-batch Adam on Pyro's evidence lower bound, accumulated over row blocks.

The only place with side effects: it moves parameters, draws a progress bar, writes checkpoints, and leaves torch's random
state as it was. A fit is a :class:`~gpnsf.core.checkpoint.State` and what follows from it, so it can go on from any step.
"""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
from pyro.infer import TraceMeanField_ELBO
from tqdm.auto import tqdm

from gpnsf.core import distributed, initial
from gpnsf.core.checkpoint import Checkpoint, State, Walk, fingerprint
from gpnsf.core.fields import AMPLITUDE_RANGE, LENGTHSCALE_RANGE
from gpnsf.core.initial import Start
from gpnsf.core.likelihoods import NegativeBinomial
from gpnsf.core.model import Block, Factorization
from gpnsf.core.moments import MEAN_CAP, MEAN_RANGE
from gpnsf.core.stepping import Stepper
from gpnsf.core.types import Dataset, History

__all__ = ["MeanFieldELBO", "Schedule", "elbo", "few_threads", "fit", "give_back"]

logger = logging.getLogger("gpnsf")

WINDOW = 10  # steps over which convergence is judged
ROUNDING = 1e-6  # relative error of the bound in single precision
POLISH_ENTRIES, FEWEST_POLISH = 1_000_000_000, 5  # of the dense passes of all polish steps, and the steps at least
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


class MeanFieldELBO(TraceMeanField_ELBO):
    """Pyro's, without the log densities of latent variables: their divergences have a closed form that needs none.

    Pyro's validation, which wants them, has to be off.
    """

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> tuple[poutine.Trace, poutine.Trace]:
        """Traces of the guide, and of the model that follows it."""
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        model_trace.compute_log_prob(lambda name, site: site["is_observed"])
        return model_trace, guide_trace


def fit(
    model: Factorization,
    dataset: Dataset,
    *,
    init: str | Iterable[Start] = "auto",
    schedule: Schedule | None = None,
    block_size: int | None = None,
    blocks: list[Block] | None = None,
    nested: bool = False,
    seed: int = 0,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> History:
    """Try the starts, keep the one with the best bound, run it to convergence, then fit what the Poisson phase left out.

    ``blocks`` are those of the dataset at this ``block_size``, where the caller goes on with them and what they have kept. Of the
    interruption of a ``nested`` fit the outer one tells.
    With a ``checkpoint`` that holds a state of this fit, go on from there. The file is left for the caller to remove.
    """
    schedule = schedule or Schedule()
    n_spatial, n_factors = model.n_spatial, model.n_factors
    candidates: Iterable[Start] = (
        distributed.each_from_first(
            initial.starts(dataset, n_factors, n_spatial, nonnegative=model.nonnegative, kinds=(init,), seed=seed)
        )
        if isinstance(init, str)
        else init
    )
    device = next(model.parameters()).device
    with (
        _quiet_randomness(seed, device),
        tqdm(total=schedule.max_steps, disable=not progress or distributed.rank() > 0, desc="fit", unit="step") as bar,
    ):
        blocks = model.blocks(dataset, block_size) if blocks is None else blocks
        stepper = Stepper(model, blocks, MeanFieldELBO(), bar, dataset.nnz, checkpoint)
        run = _Run(stepper, schedule)
        if checkpoint is not None:
            arguments = {
                "init": str(init),
                "seed": seed,
                "block_size": block_size,
                "device": device.type,
                **asdict(schedule),
            }
            state = checkpoint.open(fingerprint(model, dataset, arguments), like=stepper.captured())
            if state is not None:
                stepper.resume(state)
        try:
            run.pick(candidates)
            run.optimise()
            run.polish()
        except KeyboardInterrupt:
            if not nested:
                _report_interruption(stepper.state, checkpoint)
            raise
        if checkpoint is not None:
            checkpoint.flush()
        stepper.gather_rows()
        return run.history()


@torch.no_grad()
def elbo(model: Factorization, blocks: list[Block]) -> float:
    """Evidence lower bound of the whole data, without gradients; nan where it cannot be computed."""
    objective, loss = MeanFieldELBO(), 0.0
    try:
        with pyro.validation_enabled(False):
            for block in distributed.mine(blocks):
                loss += objective.differentiable_loss(model.model, model.guide, block).item()
    except ArithmeticError:  # a covariance that cannot be factorised
        loss = math.nan
    return -distributed.total(loss)


def give_back() -> None:
    """Return to the system what the allocator has kept of freed memory: glibc sits on some 200 MB after a million spots."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def few_threads(dataset: Dataset) -> Iterator[None]:
    """One torch thread for small data.

    On 600 spots a second thread saves a third of the time on an idle machine, and costs six times as much on a busy one.
    """
    before = torch.get_num_threads()
    if dataset.nnz < SMALL:
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
        torch.manual_seed(seed + distributed.rank())
        yield


def _report_interruption(state: State, checkpoint: Checkpoint | None) -> None:
    """Tell where Ctrl-C has stopped the fit, and how to go on."""
    if checkpoint is None:
        how = "With checkpoint=PATH the same call could go on from there."
    elif checkpoint.flush():
        how = f"The same call with checkpoint={str(checkpoint.path)!r} goes on from there."
    else:
        how = "No checkpoint was written."
    phase = state.walk.phase[-1] if state.walk.phase else "pick"
    logger.warning("Interrupted after step %d (%s); the data are untouched. %s", len(state.walk.elbo), phase, how)


class _Run:
    """The phases of one optimisation, each of which can be entered in its middle."""

    def __init__(self, stepper: Stepper, schedule: Schedule) -> None:
        self.stepper, self.schedule = stepper, schedule
        self.model, self.blocks, self.bar = stepper.model, stepper.blocks, stepper.bar
        self.given_lengthscale = (
            self.model.spatial is not None and not self.model.spatial.field.log_lengthscale.requires_grad
        )

    def pick(self, candidates: Iterable[Start]) -> None:
        """A few steps from every start; go on from the one with the best bound."""
        state, schedule = self.stepper.state, self.schedule
        if state.picked:
            return
        room = schedule.max_steps - schedule.ending(schedule.tail_steps) - self._polish_length()
        n_steps = min(schedule.pick_steps, room)
        for index, start in enumerate(candidates):
            if index < len(state.starts):
                continue  # tried before an interruption
            self.bar.set_description(f"start {start.name}")
            if not state.walk.elbo:
                self.stepper.begin(start)
            self._steps("pick", [self._warm(i) for i in range(n_steps)])
            self._judge(start.name)
        if state.kept is None:
            raise FloatingPointError(
                f"Expected a finite objective where the fit begins; got none from {len(state.starts)} start(s), the "
                f"last of them at {state.repairs[-1]}. Check the counts for extreme values."
            )
        state.walk, state.kept, state.picked = state.kept.copy(), None, True
        self.stepper.go_to(state.walk.here)
        self.bar.reset()
        self.bar.update(len(state.walk.elbo))

    def optimise(self) -> None:
        """Constant rate until the bound stops rising, the kernel parameters frozen on the way; then a cosine tail."""
        walk, schedule = self.stepper.state.walk, self.schedule
        tail = schedule.ending(schedule.tail_steps)
        limit = schedule.max_steps - tail - self._polish_length()
        self.bar.set_description("fit")
        if walk.phase[-1] == "pick":
            self.stepper.forget()
        while self._goes_on(limit):
            if len(walk.elbo) >= schedule.kernel_steps:
                self._freeze_kernel()
            warm = self._warm(len(walk.elbo) - schedule.pick_steps)
            self.stepper.step("main", schedule.learning_rate * warm)
        self._freeze_kernel()
        self._steps("tail", [0.05 + 0.475 * (1 + math.cos(math.pi * i / tail)) for i in range(tail)])
        if "polish" not in walk.phase:
            self._settle(since=0)

    def polish(self) -> None:
        """Estimate theta by moments, then take a few exact negative binomial steps."""
        walk, n_steps = self.stepper.state.walk, self._polish_length()
        if not self._negative_binomials():
            return
        if "polish" not in walk.phase:
            with torch.no_grad():
                for name, view in self.model.items():
                    if isinstance(view.likelihood, NegativeBinomial):
                        view.likelihood.estimate_theta(
                            (block.counts[name], self.model.moments(name, block), view.loadings_of(block.batch))
                            for block in distributed.mine(self.blocks)
                        )
            if not n_steps:
                return
            self.stepper.set_out()
        # few steps have no time to make good for first ones that are too large
        short = n_steps / max(n_steps, self.schedule.polish_steps)
        self._steps("polish", np.linspace(short, 0.1 * short, n_steps).tolist())
        if "polish" in walk.phase:
            self._settle(since=walk.phase.index("polish"))

    def history(self) -> History:
        """The record of the kept start."""
        state, walk = self.stepper.state, self.stepper.state.walk
        notices = _binding(self.model, self.blocks, self.given_lengthscale)
        for notice in notices:
            logger.info(notice)
        arrays = np.asarray(walk.elbo), np.asarray(walk.seconds), np.asarray(walk.phase, dtype=str)
        starts = {name: score for name, score in state.starts.items() if math.isfinite(score)}
        return History(*arrays, state.converged, starts, state.repairs, notices)

    def _judge(self, name: str) -> None:
        """Keep the walk if it has come higher than those before."""
        state, walk = self.stepper.state, self.stepper.state.walk
        walk.here = self.stepper.here()
        score = walk.elbo[-1] if walk.elbo else -math.inf
        state.starts[name] = score
        logger.debug("start %s: ELBO %.6g after %d steps", name, score, len(walk.elbo))
        if walk.elbo and (state.kept is None or score > state.kept.elbo[-1]):
            state.kept = walk
        state.walk = Walk()

    def _goes_on(self, limit: int) -> bool:
        """Whether another step at the constant rate is due."""
        state, walk = self.stepper.state, self.stepper.state.walk
        if walk.phase[-1] == "main" and not walk.stuck:
            state.converged = len(walk.elbo) >= self.schedule.min_steps and self._has_converged()
        return not state.converged and not walk.stuck and len(walk.elbo) < limit

    def _negative_binomials(self) -> list[NegativeBinomial]:
        """Likelihoods that take their counts as Poisson until the polish."""
        return [view.likelihood for _, view in self.model.items() if isinstance(view.likelihood, NegativeBinomial)]

    def _polish_length(self) -> int:
        """Steps kept back for the polish."""
        entries = self.model.n_obs * sum(likelihood.n_features for likelihood in self._negative_binomials())
        if not entries:
            return 0
        return self.schedule.ending(min(self.schedule.polish_steps, max(FEWEST_POLISH, POLISH_ENTRIES // entries)))

    def _warm(self, step: int) -> float:
        """Linear warm-up of the rate."""
        return min(1.0, (step + 1) / self.schedule.warmup_steps)

    def _steps(self, phase: str, factors: list[float]) -> None:
        """One step for each factor of the rate that has not had its step yet."""
        rate = self.schedule.polish_rate if phase == "polish" else self.schedule.learning_rate
        for factor in factors[self.stepper.state.walk.phase.count(phase) :]:
            self.stepper.step(phase, rate * factor)

    def _settle(self, since: int) -> None:
        """Go back to the best parameters where the objective that began at step ``since`` has ended below its start."""
        walk = self.stepper.state.walk
        if walk.stuck:
            return  # at the best parameters already
        with torch.random.fork_rng(devices=self.stepper.devices):
            last = elbo(self.model, self.blocks)
        first = walk.elbo[since]
        if not last >= first - ROUNDING * abs(first):
            self.stepper.go_to(walk.best)
            self.stepper.note(f"the ELBO ended at {last:.6g}, below its start at {first:.6g}: went back to its best")

    def _has_converged(self) -> bool:
        """Whether the bound per nonzero count has stopped rising from one window of steps to the next.

        Both windows are averaged, since Adam oscillates. A Monte Carlo bound cannot be known better than its standard error.
        """
        elbo = self.stepper.state.walk.elbo
        if len(elbo) < 2 * WINDOW:
            return False
        before, after = np.array(elbo[-2 * WINDOW :]).reshape(2, WINDOW) / self.stepper.nnz
        tol = self.schedule.tol
        if self.model.n_samples is not None:
            tol = max(tol, 2 * math.sqrt((before.var() + after.var()) / WINDOW))
        return bool(after.mean() - before.mean() < tol)

    def _freeze_kernel(self) -> None:
        """Stop learning the kernel parameters: beyond the first steps they drift with what the model cannot say."""
        if self.model.spatial is not None:
            for parameter in self.model.spatial.field.hyperparameters():
                parameter.requires_grad_(False)
                parameter.grad = None


@torch.no_grad()
def _binding(model: Factorization, blocks: list[Block], given_lengthscale: bool) -> list[str]:
    """Bounds that the parameters lie on or beyond, in words."""
    notices = []
    if model.nonnegative:
        marginals = (model.marginals(block) for block in blocks)
        beyond = [
            int(((m < MEAN_RANGE[0]) | (m > MEAN_RANGE[1]) | (m + 0.5 * v > MEAN_CAP)).sum()) for m, v in marginals
        ]
        if any(beyond):
            n_all = model.n_obs * model.n_factors
            notices.append(f"exponent clamp binds for {sum(beyond)} of {n_all} log factors")
    if model.spatial is None:
        return notices
    field = model.spatial.field
    bounded = {"amplitude": (field.log_amplitude, AMPLITUDE_RANGE)}
    if not given_lengthscale:
        bounded["length scale (half-widths)"] = field.log_lengthscale, LENGTHSCALE_RANGE
    for name, (values, ends) in bounded.items():
        for word, end in zip(("floor", "ceiling"), ends, strict=True):
            n_there = int(torch.isclose(values, torch.full_like(values, math.log(end))).sum())
            if n_there:
                notices.append(f"{name} at its {word} of {end:g} for {n_there} of {model.n_spatial} spatial factors")
    return notices
