"""The device that a fit runs on, and the processes that share it."""

from __future__ import annotations

import numpy as np
import torch

from gpnsf import checks
from gpnsf.arguments import Arguments
from gpnsf.core import distributed
from gpnsf.core.inference.checkpoint import Checkpoint
from gpnsf.core.types import Dataset
from gpnsf.settings import settings

__all__ = ["check_processes", "resolved"]


def resolved(name: str) -> torch.device:
    """The device asked for, "auto" being the session's default and then CUDA where there is one."""
    name = settings.device if name == "auto" else name
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if name == "cuda" and distributed.number() > 1:
            device = torch.device(
                "cuda", torch.cuda.current_device()
            )  # each process has one of its own
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("no such kind of device is supported")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        found = f"device={name!r} ({str(error).splitlines()[0]})"
        rule = "`device` to be 'auto' or one of " + ", ".join(there)
        raise ValueError(
            checks.problem(rule, found, "Pass device='auto' to take what there is")
        ) from error
    return device


def check_processes(dataset: Dataset, asked: Arguments, store: Checkpoint | None) -> None:
    """What several processes at one fit must agree on."""
    if distributed.number() == 1:
        return
    if store is not None:
        found = f"checkpoint={str(store.path)!r} in {distributed.number()} processes"
        remedy = "Leave checkpoint out"
        raise ValueError(
            checks.problem("no checkpoint where several processes share a fit", found, remedy)
        )
    counts = {
        view.name: (*view.counts.shape, view.counts.nnz, _rounded(view.size))
        for view in dataset.views
    }
    distributed.agree((counts, _rounded(dataset.coords.ravel()), repr(asked)), "data and arguments")


def _rounded(values: np.ndarray) -> float:
    """A number that tells arrays and their orders apart, and not the last digits that two machines compute."""
    return round(float(values.astype(np.float64) @ np.cos(np.arange(len(values)))), 3)
