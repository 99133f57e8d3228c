"""One full-batch step that never breaks, from a state that can be put away and taken up again."""

from __future__ import annotations

import logging
import math
import time

import torch
from torch import Tensor
from torch.nn import Parameter

from gpnsf.core import distributed
from gpnsf.core.families import FAMILIES
from gpnsf.core.fields.base import FieldSize
from gpnsf.core.inference.checkpoint import Checkpoint
from gpnsf.core.inference.shapes import NUMBER, Shapes
from gpnsf.core.inference.state import State, Walk
from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.model.objective import ClosedFormELBO
from gpnsf.core.progress import Progress
from gpnsf.core.types import Start

__all__ = ["Adam", "Stepper", "memory", "parameters"]

logger = logging.getLogger("gpnsf")

BETAS = (0.9, 0.99)
EPSILON = 1e-8
WINDOW = 10  # steps after which parameters are remembered
MAX_REPAIRS = 8  # of one start


COPIES = 8  # of parameters: gradient, two of Adam, where the fit began, where the bound was best, those of two starts


def parameters(shapes: Shapes, field: FieldSize) -> float:
    """Bytes of the parameters and of what goes with each."""
    nonspatial = 2 * shapes.n_obs * (shapes.n_factors - shapes.n_spatial)
    n_features = sum(view.n_features for view in shapes.views)
    multipliers = shapes.n_batches * n_features if shapes.n_batches > 1 else 0
    return float(COPIES * NUMBER * (shapes.loadings + multipliers + nonspatial + field.parameters))


def memory(shapes: Shapes, field: FieldSize) -> float:
    """Bytes of a step: moments of the factors of a block, dense entries without a bound, loadings, all with gradients."""
    row = 80.0 * shapes.n_factors * len(shapes.views) * shapes.n_samples + field.block_row
    dense = sum(view.n_features for view in shapes.views if not FAMILIES[view.likelihood].has_bound)
    return shapes.block * (row + 16.0 * dense * shapes.n_samples) + 24.0 * shapes.loadings


class Stepper:
    """A model, the optimiser that moves it, and the state that both have reached."""

    def __init__(
        self,
        model: Factorization,
        blocks: list[Block],
        objective: ClosedFormELBO,
        progress: Progress,
        nnz: int,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.model, self.blocks, self.progress = model, blocks, progress
        self.checkpoint = checkpoint
        self.nnz = max(1, nnz)
        self.devices = [device for device in [model.device] if device.type == "cuda"]
        self.state = State()
        self.on_trial = False  # whether steps may be undone: they are not written down
        self._objective = objective
        self._began = time.perf_counter()
        self._parameters = list(model.parameters())
        self._rows = model.row_parameters()
        own = {id(parameter) for parameter in self._rows}
        self._shared = [parameter for parameter in self._parameters if id(parameter) not in own]
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self._blank = self.here()
        self._adam = Adam(self._parameters)
        self.state.walk.best = self._blank

    def begin(self, start: Start) -> None:
        """Put a start into the model; numbers that are not finite become zero."""
        self.go_to(self._blank)
        self.model.load(start, self.blocks)
        here = distributed.as_first(self.here())
        self.go_to(here)
        n_lost = int((~here.isfinite()).sum())
        if n_lost:
            self.go_to(here.nan_to_num(0.0, 0.0, 0.0))
            self.note(f"{n_lost} parameters of start {start.name} not finite, set to 0")
        self.state.walk = Walk()
        self.set_out()

    def set_out(self) -> None:
        """Begin to climb an objective from where the parameters are."""
        walk = self.state.walk
        walk.stuck, walk.best_elbo, walk.best = False, -math.inf, self.here()
        self.forget()

    def forget(self) -> None:
        """Take the memory from Adam."""
        self._adam.moments.zero_()
        self._adam.counts.zero_()

    def resume(self, state: State) -> None:
        """Go on from a state of an interrupted fit.

        What it does not hold follows from the counts.
        """
        self.model.prepare(self.blocks)
        self.restore(state)
        self._began -= state.walk.seconds[-1]
        self.progress.step(len(state.walk.elbo))

    def restore(self, state: State) -> None:
        """Be where a state was captured."""
        self.state = state.copy()
        self.go_to(state.walk.here)
        self._adam.moments.copy_(state.moments)
        self._adam.counts.copy_(state.counts)
        torch.set_rng_state(state.random)
        for device in self.devices:
            torch.cuda.set_rng_state(state.random_cuda, device)

    def captured(self) -> State:
        """A copy of the state, with what the model, Adam and the random generators hold."""
        state = self.state.copy()
        state.walk.here = self.here()
        state.moments, state.counts = self._adam.moments.clone(), self._adam.counts.clone()
        state.random = torch.get_rng_state()
        for device in self.devices:
            state.random_cuda = torch.cuda.get_rng_state(device)
        return state

    def step(self, phase: str, rate: float) -> None:
        """One full-batch step.

        Where it ends in numbers that are not finite, a repair and the step again.
        """
        walk = self.state.walk
        while not walk.stuck:
            loss, trouble = self._gradient()
            if not trouble:
                if len(walk.elbo) % WINDOW == 0 or walk.best_elbo == -math.inf:
                    self._remember(-loss)
                self._move(rate * 0.5**walk.halvings)
                if self._is_finite():
                    self._record(phase, -loss)
                    return
                trouble = "gradient or parameters not finite"
            self._repair(phase, trouble)

    def here(self) -> Tensor:
        """A copy of all parameters [n]."""
        return torch.cat([parameter.detach().reshape(-1) for parameter in self._parameters])

    @torch.no_grad()
    def gather_rows(self) -> None:
        """Take over from other processes the results for the rows of their blocks."""
        for parameter in self._rows:
            parameter.copy_(distributed.gathered(parameter, self.blocks))

    @torch.no_grad()
    def go_to(self, place: Tensor) -> None:
        """Set all parameters [n]."""
        for parameter, part in zip(self._parameters, place.split(self._sizes), strict=True):
            parameter.copy_(part.reshape(parameter.shape))

    def note(self, text: str) -> None:
        """Write down what was done about trouble."""
        self.state.repairs.append(f"step {len(self.state.walk.elbo)}: {text}")
        logger.warning(self.state.repairs[-1])

    def _gradient(self) -> tuple[float, str]:
        """The negative bound, gradients accumulated over the blocks, and what is wrong with it."""
        for parameter in self._parameters:
            parameter.grad = None
        parts, sums, trouble = [], dict[int, Tensor](), "objective not finite"
        try:
            for block in distributed.mine(self.blocks):
                part = self._objective.differentiable_loss(self.model, self.model.guide, block)
                (part / self.nnz).backward()
                # sums that no order of blocks rounds differently
                parts.append(part.detach().float().double())
                if len(self.blocks) > 1:
                    self._put_away(sums)
            loss = float(sum(parts))  # where a GPU works ahead, it is waited for once a step
        except ArithmeticError as error:  # a covariance that cannot be factorised
            loss, trouble = math.nan, str(error).rstrip(".")
        self.model.end_pass()
        loss = distributed.total(loss)
        if not math.isfinite(loss):
            return loss, trouble
        if sums:
            distributed.add_up(*sums.values())
            for index, gradient in sums.items():
                self._shared[index].grad = gradient.to(self._shared[index].dtype)
        return loss, ""

    def _put_away(self, sums: dict[int, Tensor]) -> None:
        """Add the gradients of a block in double precision.

        Whose block it was, and in which order they come, then leaves no trace.
        """
        for index, parameter in enumerate(self._shared):
            if parameter.grad is not None:
                gradient = parameter.grad.double()
                sums[index] = sums[index].add_(gradient) if index in sums else gradient
                parameter.grad = None

    def _move(self, rate: float) -> None:
        """One step of Adam."""
        self._adam.step(rate)
        for _, view in self.model.items():
            view.loadings.clamp_()
        for part in self.model.parts:
            part.clamp_()

    def _is_finite(self) -> bool:
        """Whether gradients, their squares, and the parameters that they led to are finite."""
        tensors = [
            tensor
            for parameter in self._parameters
            for tensor in (parameter.grad, parameter)
            if tensor is not None
        ]
        norms = torch.stack([torch.linalg.vector_norm(tensor.detach()) for tensor in tensors])
        return distributed.total(float(not norms.isfinite().all())) == 0

    def _remember(self, value: float) -> None:
        """Remember the parameters if nowhere else the bound was higher."""
        walk = self.state.walk
        if value > walk.best_elbo:
            walk.best_elbo, walk.best = value, self.here()

    def _record(self, phase: str, value: float) -> None:
        """Write a step down and show it."""
        walk = self.state.walk
        walk.elbo.append(value)
        walk.seconds.append(time.perf_counter() - self._began)
        walk.phase.append(phase)
        self.progress.step()
        self.state.step += 1
        if self.checkpoint is not None and not self.on_trial:
            self.checkpoint.keep(self.captured())

    def _repair(self, phase: str, trouble: str) -> None:
        """Go back to the best parameters and halve the rate; after too many times, stay there."""
        walk = self.state.walk
        self.go_to(walk.best)
        self.forget()
        if walk.halvings < MAX_REPAIRS:
            walk.halvings += 1
            self.note(f"{trouble}, rolled back and halved the learning rate")
            return
        walk.stuck = True
        if walk.best_elbo == -math.inf:
            self.note(f"{trouble} after {MAX_REPAIRS} repairs, given up")
            return
        self.note(f"{trouble} after {MAX_REPAIRS} repairs, stayed at the best parameters so far")
        self._record(phase, walk.best_elbo)


class Adam:
    """Adam with its memory in two tensors that can be put away.

    Torch's own takes a second to import its compiler.
    """

    def __init__(self, parameters: list[Parameter]) -> None:
        self.parameters = parameters
        sizes = [parameter.numel() for parameter in parameters]
        self.moments = torch.zeros(
            2, sum(sizes), device=parameters[0].device
        )  # averages of gradients and of their squares
        self.counts = torch.zeros(len(parameters))  # steps of each parameter
        self._parts = [
            [part.view(parameter.shape) for part in pair]
            for parameter, *pair in zip(
                parameters, *(row.split(sizes) for row in self.moments), strict=True
            )
        ]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every parameter that has a gradient."""
        for index, (parameter, (mean, square)) in enumerate(
            zip(self.parameters, self._parts, strict=True)
        ):
            if parameter.grad is None:
                continue
            self.counts[index] += 1
            unbiased = [1 - beta ** float(self.counts[index]) for beta in BETAS]
            mean.lerp_(parameter.grad, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(parameter.grad, parameter.grad, value=1 - BETAS[1])
            spread = square.sqrt().div_(math.sqrt(unbiased[1])).add_(EPSILON)
            parameter.addcdiv_(mean, spread, value=-rate / unbiased[0])
