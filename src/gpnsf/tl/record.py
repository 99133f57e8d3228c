"""What the record of a run holds beside what follows from the posterior."""

from __future__ import annotations

from importlib.metadata import version

import torch

from gpnsf.arguments import Arguments
from gpnsf.core import distributed
from gpnsf.core.counts.backends import backend
from gpnsf.core.inference.fitting import Outcome
from gpnsf.tl.memory import peak_memory

__all__ = ["record"]

VERSIONS = ("gpnsf", "torch", "pyro-ppl", "numpy", "scipy", "anndata", "mudata")


def record(
    asked: Arguments,
    outcome: Outcome,
    seconds: float,
    threads: int,
    warnings: list[str],
    device: torch.device,
) -> dict[str, object]:
    """Arguments, course and costs."""
    history = outcome.history
    return {
        "params": asked.record,
        "n_factors_asked": asked.model.n_factors,
        "history": {
            "elbo": history.elbo,
            "seconds": history.seconds,
            "phase": history.phase.tolist(),
        },
        "converged": history.converged,
        "repairs": history.repairs + history.notices,
        "starts": {**history.starts, "best": history.best},
        "spatial_test": outcome.spatial_test,
        "modality_weights": outcome.weights,
        "versions": {name: version(name) for name in VERSIONS},
        "seed": asked.training.seed,
        "seconds": seconds,
        "peak_memory": peak_memory(),
        "threads": threads,
        "processes": distributed.number(),
        "warnings": warnings,
        "backend": backend(device.type),
    }
