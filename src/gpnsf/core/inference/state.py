"""Where a fit stands: everything that its next step depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

__all__ = ["NOTHING", "State", "Walk"]

NOTHING = torch.empty(0)


@dataclass
class Walk:
    """One start, and how far it has come."""

    elbo: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    phase: list[str] = field(default_factory=list)
    halvings: int = 0  # of the learning rate
    stuck: bool = False  # every rate that was tried ended in numbers that are not finite
    best_elbo: float = -math.inf  # of the present objective, looked at now and then
    best: Tensor = NOTHING  # [n] parameters where it was reached; until then those of the start
    here: Tensor = NOTHING  # [n] parameters where the walk was left

    def copy(self) -> Walk:
        """The same walk, which later steps do not make longer."""
        return replace(
            self, elbo=list(self.elbo), seconds=list(self.seconds), phase=list(self.phase)
        )


@dataclass
class State:
    """All that decides what the next step will be."""

    walk: Walk = field(default_factory=Walk)
    kept: Walk | None = None  # the best start so far, until one is picked
    starts: dict[str, float] = field(default_factory=dict)
    repairs: list[str] = field(default_factory=list)
    phase: int = -1  # of those that follow the choice of a start; -1 until then
    step: int = 0  # steps in this phase
    tried: list[str] = field(default_factory=list)  # moves
    moved: bool = False  # whether the last round of moves has kept one
    converged: bool = False
    moments: Tensor = NOTHING  # [2, n] Adam's, zero where there are none yet
    counts: Tensor = NOTHING  # [parameter tensors] Adam's steps
    random: Tensor = NOTHING
    random_cuda: Tensor = NOTHING

    def copy(self) -> State:
        """The same state, which later steps do not change."""
        return replace(
            self,
            walk=self.walk.copy(),
            starts=dict(self.starts),
            repairs=list(self.repairs),
            tried=list(self.tried),
        )
