"""The device that a fit runs on."""

from __future__ import annotations

import torch

from gpnsf import checks
from gpnsf.core import distributed
from gpnsf.settings import settings

__all__ = ["resolved"]


def resolved(name: str) -> torch.device:
    """The device asked for, "auto" being the session's default and then CUDA where there is one."""
    name = settings.device if name == "auto" else name
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None and distributed.number() > 1:
            device = torch.device("cuda", torch.cuda.current_device())  # each process has one of its own
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("no such kind of device is supported")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        found = f"device={name!r} ({str(error).splitlines()[0]})"
        rule = "`device` to be 'auto' or one of " + ", ".join(there)
        raise ValueError(checks.problem(rule, found, "Pass device='auto' to take what there is")) from error
    return device
