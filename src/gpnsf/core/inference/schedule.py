"""Phases of an optimisation, as data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["CLOSING", "MOVE", "WINDOW", "Phase", "Schedule"]

WINDOW = 10  # steps over which convergence is judged
# entries of the dense passes of all polish steps, and the steps at least
POLISH_ENTRIES, FEWEST_POLISH = 1_000_000_000, 5
CLOSING = 2  # phases at the end that have a length of their own
MOVE, MOVE_RATE = "move", 0.5  # name of the phase, and its rate over that of the main phase


@dataclass(frozen=True)
class Phase:
    """Steps at rates that are known beforehand, or until the objective stops rising."""

    name: str
    length: int  # steps at most
    rate: Callable[[int], float]  # of each step, counted from the beginning of the phase
    least: int = 0  # steps before it may have converged
    converges: bool = False  # whether the phase ends where the objective has stopped rising
    anew: bool = False  # whether Adam forgets what came before
    learns_kernel: bool = False
    exact: bool = False  # whether likelihoods leave their surrogates
    after_move: bool = False  # whether it is only there where a move was kept


@dataclass(frozen=True)
class Schedule:
    """How long each phase lasts and how large its steps are."""

    max_steps: int = 600  # cap on the steps of the kept start, all phases together
    learning_rate: float = 0.2
    # gain of the objective per nonzero count over ten steps below which the fit has converged
    tol: float = 2e-4
    pick_steps: int = 25
    warmup_steps: int = 5
    kernel_steps: int = 40  # steps after which the kernel parameters are frozen
    min_steps: int = 60
    moves: int = 6  # tries of each of the two rounds together; 0: no moves
    tail_steps: int = 40
    polish_steps: int = 20
    polish_rate: float = 0.05

    def ending(self, wanted: int) -> int:
        """Length of a closing phase: as wanted, unless the cap leaves little room."""
        return min(wanted, self.max_steps // 4)

    def polish(self, entries: int) -> int:
        """Steps that are kept back for exact likelihoods, each a dense pass over so many entries."""
        if not entries:
            return 0
        return self.ending(min(self.polish_steps, max(FEWEST_POLISH, POLISH_ENTRIES // entries)))

    def warm(self, step: int) -> float:
        """Linear warm-up of the rate."""
        return min(1.0, (step + 1) / self.warmup_steps)

    def phases(self, polish: int) -> list[Phase]:
        """Phases after the choice of a start, with this many steps of exact likelihoods at the end.

        Two rounds of moves, each with what it takes to converge anew; then the closing ones.
        """
        rate, tail = self.learning_rate, self.ending(self.tail_steps)
        room = max(0, self.max_steps - tail - polish)
        picked = min(self.pick_steps, room)
        learning = max(0, min(self.kernel_steps, room) - picked)
        undecided = self.min_steps - picked - learning

        def constant(step: int) -> float:
            return rate * self.warm(step)

        def cosine(step: int) -> float:
            return rate * (0.05 + 0.475 * (1 + math.cos(math.pi * step / tail)))

        # few steps have no time to make good for first ones that are too large
        short = polish / max(polish, self.polish_steps, 1)
        falling = np.linspace(short, 0.1 * short, max(polish, 1))
        falling[: polish // 8] *= np.arange(1, polish // 8 + 1) / (polish // 8 + 1)
        polishing = Phase(
            "polish", polish, lambda step: self.polish_rate * falling[step], anew=True, exact=True
        )
        settling = Phase("main", room, constant, least=2 * WINDOW, converges=True, after_move=True)
        return [
            Phase("main", learning, constant, anew=True, learns_kernel=True),
            Phase(
                "main",
                room,
                lambda step: constant(step + learning),
                least=undecided,
                converges=True,
            ),
            Phase(MOVE, room, lambda step: MOVE_RATE * constant(step)),
            settling,
            Phase(MOVE, room, lambda step: MOVE_RATE * constant(step), after_move=True),
            settling,
            Phase("tail", tail, cosine),
            polishing,
        ]
