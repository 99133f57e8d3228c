"""The optimisation: full-batch Adam on Pyro's evidence lower bound, accumulated over row blocks.

It moves parameters, draws a progress bar, writes checkpoints, and leaves torch's random state as it
was. A fit is a :class:`~gpnsf.core.inference.state.State`
and what follows from it, so it can go on from any step.
"""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TypedDict, Unpack

import numpy as np
import pyro
import scipy.sparse as sp
import torch
from torch import Tensor

from gpnsf.core import distributed
from gpnsf.core.inference import initial, moves, standing
from gpnsf.core.inference.bound import elbo, leave_surrogates, limits_reached
from gpnsf.core.inference.checkpoint import Checkpoint, fingerprint, tell_interruption
from gpnsf.core.inference.schedule import CLOSING, MOVE, WINDOW, Phase, Schedule
from gpnsf.core.inference.shapes import Shapes
from gpnsf.core.inference.state import Walk
from gpnsf.core.inference.steps import Stepper
from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.model.objective import ClosedFormELBO
from gpnsf.core.progress import Progress
from gpnsf.core.types import Dataset, History, Start

__all__ = ["Optimisation", "Options", "fit", "give_back", "memory_of_polish"]

logger = logging.getLogger("gpnsf")

STAGES = {  # in the words of users
    "main": "finding factors",
    MOVE: "merging and dividing factors",
    "tail": "settling",
    "polish": "estimating dispersions",
}
ROUNDING = 1e-6  # relative error of the bound in single precision
TRIALS, TRIAL_STEPS = 3, 10  # parts of the trial of a move, and steps of each
# a trial ends where what is missing is more than this share of the gain of its last part
HOPE = 2 / 3


class Options(TypedDict, total=False):
    """Arguments that one optimisation hands on to the next."""

    schedule: Schedule
    block_size: int | None
    seed: int
    progress: Progress


def memory_of_polish(shapes: Shapes) -> float:
    """Bytes: distinct counts of a block, under negative binomials."""
    largest = max((view.nnz for view in shapes.dispersed), default=0.0)
    return 36.0 * largest * shapes.block / shapes.n_obs


def fit(
    model: Factorization,
    dataset: Dataset,
    *,
    init: str | Iterable[Start] | None = "auto",
    checkpoint: Checkpoint | None = None,
    blocks: list[Block] | None = None,
    nested: bool = False,
    **options: Unpack[Options],
) -> History:
    """A whole optimisation, from a start to the end of the last phase."""
    run = Optimisation(
        model, dataset, checkpoint=checkpoint, blocks=blocks, nested=nested, **options
    )
    run.climb(init)
    run.settle()
    return run.history()


def give_back() -> None:
    """Return freed memory to the system: glibc keeps some 200 MB after a million spots."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


class Optimisation:
    """The optimisation of a model, which an interrupted fit enters again at any step.

    First it climbs: the starts, the one with the best objective, and what follows until that no
    longer rises. Then it settles: smaller and smaller steps, and those of the exact likelihoods.
    Between the two the factors can be looked at, and another model may be what goes on.

    ``blocks`` are those of the dataset at this ``block_size``, where the caller goes on with them
    and what they have kept. Of the interruption of a ``nested`` one the outer one tells. With a
    ``checkpoint`` that holds a state of this optimisation, it goes on from there. The file is left
    for the caller to remove.
    """

    def __init__(
        self,
        model: Factorization,
        dataset: Dataset,
        *,
        schedule: Schedule | None = None,
        block_size: int | None = None,
        blocks: list[Block] | None = None,
        nested: bool = False,
        seed: int = 0,
        progress: Progress | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.model, self.dataset = model, dataset
        self.schedule = schedule or Schedule()
        self.block_size, self.seed, self.nested = block_size, seed, nested
        self.blocks = model.blocks(dataset, block_size) if blocks is None else blocks
        progress = progress or Progress("fit", self.schedule.max_steps)
        self.stepper = Stepper(
            model, self.blocks, ClosedFormELBO(), progress, dataset.nnz, checkpoint
        )
        late = [v.likelihood for _, v in model.items() if v.likelihood.surrogate is not None]
        entries = model.n_obs * sum(likelihood.n_features for likelihood in late)
        self.n_polish = self.schedule.polish(entries)
        self.phases = self.schedule.phases(self.n_polish)
        self._random: tuple[Tensor, ...] = ()
        self._notices: list[str] = []  # of what holds the result, once it has settled

    def climb(self, init: str | Iterable[Start] | None) -> None:
        """From a kind of start, from starts, or from the model as it stands (None), until the objective no longer rises."""
        with self._on_its_own():
            if (checkpoint := self.stepper.checkpoint) is not None:
                arguments = {
                    "init": str(init),
                    "seed": self.seed,
                    "block_size": self.block_size,
                    "device": self.model.device.type,
                    **asdict(self.schedule),
                }
                known = fingerprint(self.model, self.dataset, arguments)
                if (state := checkpoint.open(known, like=self.stepper.captured())) is not None:
                    self.stepper.resume(state)
            if init is not None:
                self._pick(self._starts(init) if isinstance(init, str) else init)
            self._go(0, len(self.phases) - CLOSING)
            if checkpoint is not None:
                checkpoint.keep(self.stepper.captured())

    def settle(self) -> None:
        """The phases of a length that is known, from where the optimisation has climbed to."""
        with self._on_its_own():
            self._go(len(self.phases) - CLOSING, len(self.phases))
        self._notices = limits_reached(self.model, self.blocks)
        for notice in self._notices:
            logger.info(notice)

    def leave_checkpoint(self) -> None:
        """Write no more steps down, and leave it to the caller to tell of interruptions."""
        self.stepper.checkpoint, self.nested = None, True

    @contextmanager
    def _on_its_own(self) -> Iterator[None]:
        """Random numbers of its own; what is to be told, written and gathered at the end."""
        devices, checkpoint = self.stepper.devices, self.stepper.checkpoint
        with torch.random.fork_rng(devices=devices), pyro.validation_enabled(False):
            if self._random:
                torch.set_rng_state(self._random[0])
                for device, state in zip(devices, self._random[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            else:
                torch.manual_seed(self.seed + distributed.rank())
            try:
                yield
            except KeyboardInterrupt:
                if not self.nested:
                    walk = self.stepper.state.walk
                    phase = walk.phase[-1] if walk.phase else "pick"
                    tell_interruption(f"step {len(walk.elbo)} ({phase})", checkpoint)
                raise
            if checkpoint is not None:
                checkpoint.flush()
            self.stepper.gather_rows()
            self._random = (
                torch.get_rng_state(),
                *(torch.cuda.get_rng_state(device) for device in devices),
            )

    def _starts(self, kind: str) -> Iterable[Start]:
        """Starts of a kind, from the first process."""
        return distributed.each_from_first(
            initial.starts(
                self.dataset,
                self.model.n_factors,
                self.model.n_spatial,
                nonnegative=self.model.nonnegative,
                kinds=(kind,),
                seed=self.seed,
            )
        )

    def _pick(self, candidates: Iterable[Start]) -> None:
        """A few steps from every start; go on from the one with the best objective."""
        state, schedule = self.stepper.state, self.schedule
        if state.phase >= 0:
            return
        room = schedule.max_steps - schedule.ending(schedule.tail_steps) - self.n_polish
        n_steps = min(schedule.pick_steps, room)
        for index, start in enumerate(candidates):
            if index < len(state.starts):
                continue  # tried before an interruption
            self.stepper.progress.stage("trying starts")
            if not state.walk.elbo:
                self.stepper.begin(start)
            for step in range(len(state.walk.elbo), n_steps):
                self.stepper.step("pick", schedule.learning_rate * self.schedule.warm(step))
            self._judge(start.name)
        if state.kept is None:
            raise FloatingPointError(
                f"Expected a finite objective where the fit begins; got none from {len(state.starts)} start(s), the "
                f"last of them at {state.repairs[-1]}. Check the counts for extreme values."
            )
        state.walk, state.kept = state.kept.copy(), None
        self.stepper.go_to(state.walk.here)
        self._enter(0)

    def _go(self, first: int, end: int) -> None:
        """Go through some phases, from wherever an interrupted fit has come to."""
        for number in range(first, end):
            state, phase = self.stepper.state, self.phases[number]
            if number < state.phase or (
                number > state.phase and phase.after_move and not state.moved
            ):
                continue
            if number > state.phase:
                self._enter(number)
            self._configure(phase)
            self.stepper.progress.stage(STAGES[phase.name])
            if phase.name == MOVE:
                self._move(phase)
            else:
                self._run(phase)

    def _enter(self, number: int) -> None:
        """Begin a phase; the objective of the one before ends here, if another takes over."""
        state, phase = self.stepper.state, self.phases[number]
        if phase.exact:
            self._settle(since=0)
            leave_surrogates(self.model, self.blocks)
        if phase.anew:
            self.stepper.set_out() if phase.exact else self.stepper.forget()
        state.phase, state.step, state.moved = number, 0, state.moved and phase.name != MOVE

    def _configure(self, phase: Phase) -> None:
        """Let a phase learn its part: later, kernels drift with what the model cannot say."""
        for _, view in self.model.items():
            view.likelihood.in_surrogate = view.likelihood.surrogate is not None and not phase.exact
        if self.model.spatial is not None and not phase.learns_kernel:
            for parameter in self.model.spatial.field.hyperparameters():
                parameter.requires_grad_(False)
                parameter.grad = None

    def _run(self, phase: Phase) -> None:
        """The steps of a phase that have not been taken yet."""
        state = self.stepper.state
        first = len(self.stepper.state.walk.elbo) - self.stepper.state.step
        while state.step < phase.length and not state.walk.stuck:
            if phase.converges and self._has_ended(phase):
                break
            self.stepper.step(phase.name, phase.rate(state.step))
        if phase.exact and phase.length:
            self._settle(since=first)

    def _has_ended(self, phase: Phase) -> bool:
        """Whether the objective has stopped rising, or there is no room for another step."""
        state = self.stepper.state
        state.converged = state.step >= max(phase.least, 1) and self._has_converged()
        return state.converged or len(state.walk.elbo) >= self._room()

    def _room(self) -> int:
        """Steps that the closing phases leave."""
        return self.schedule.max_steps - sum(phase.length for phase in self.phases[-CLOSING:])

    def _move(self, phase: Phase) -> None:
        """Try moves, most promising first; keep those that raise the objective; then again."""
        if not self.schedule.moves or not moves.possible(self.model):
            return
        graph = standing.neighbours(self.blocks)
        while (move := self._next_move(graph)) is not None:
            state = self.stepper.state
            state.moved |= self._try(move, phase)
        if self.stepper.state.moved:
            self.stepper.set_out()

    def _next_move(self, graph: sp.csr_matrix) -> moves.Move | None:
        """The first one that was not tried, if there is room for it."""
        state = self.stepper.state
        n_left = self.schedule.moves - len(state.tried)
        if n_left <= 0 or state.walk.stuck or len(state.walk.elbo) + TRIAL_STEPS > self._room():
            return None
        found = (
            move
            for move in moves.proposals(self.model, self.blocks, graph)
            if move.name not in state.tried
        )
        return next(found, None)

    def _try(self, move: moves.Move, phase: Phase) -> bool:
        """Make a move, with a few steps if needed, and undo it if the objective stays below."""
        stepper, room = self.stepper, self._room()
        snapshot = stepper.captured()
        before = elbo(self.model, self.blocks)
        moves.make(move, self.model, self.blocks)
        stepper.set_out()
        last = after = elbo(self.model, self.blocks)
        least = self.schedule.tol * stepper.nnz
        kept, stepper.on_trial = after > before + least, True
        for part in range(0 if kept else TRIALS):
            if len(stepper.state.walk.elbo) + TRIAL_STEPS > room or stepper.state.walk.stuck:
                break
            for step in range(TRIAL_STEPS):
                stepper.step(MOVE, phase.rate(step + part * TRIAL_STEPS))
            after = elbo(self.model, self.blocks)
            kept = after > before + least * (2 + part)
            if kept or before - after > HOPE * (after - last):
                break
            last = after
        stepper.on_trial = False
        logger.debug(
            "%s: objective %+.0f, %s", move.name, after - before, "kept" if kept else "undone"
        )
        if not kept:
            stepper.restore(snapshot)
        stepper.state.tried.append(move.name)
        return kept

    def history(self) -> History:
        """The record of the kept start."""
        state, walk = self.stepper.state, self.stepper.state.walk
        arrays = np.asarray(walk.elbo), np.asarray(walk.seconds), np.asarray(walk.phase, dtype=str)
        starts = {name: score for name, score in state.starts.items() if math.isfinite(score)}
        return History(*arrays, state.converged, starts, state.repairs, self._notices)

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

    def _settle(self, since: int) -> None:
        """Go back to the best parameters if the objective ended below where it was at ``since``."""
        walk = self.stepper.state.walk
        if walk.stuck or not walk.elbo:
            return  # at the best parameters already
        last = elbo(self.model, self.blocks)
        first = walk.elbo[since]
        if not last >= first - ROUNDING * abs(first):
            self.stepper.go_to(walk.best)
            self.stepper.note(
                f"the ELBO ended at {last:.6g}, below its start at {first:.6g}: went back to its best"
            )

    def _has_converged(self) -> bool:
        """Whether the bound per nonzero count no longer rises from one window of steps to the next.

        Both windows are averaged, since Adam oscillates. A Monte Carlo bound cannot be known better
        than its standard error.
        """
        elbo = self.stepper.state.walk.elbo
        if len(elbo) < 2 * WINDOW:
            return False
        before, after = np.array(elbo[-2 * WINDOW :]).reshape(2, WINDOW) / self.stepper.nnz
        tol = self.schedule.tol
        if self.model.n_samples is not None:
            tol = max(tol, 2 * math.sqrt((before.var() + after.var()) / WINDOW))
        return bool(after.mean() - before.mean() < tol)
