"""The objective of a fit, with something that happens at some of its calls."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch

from gpnsf.core.model.objective import ClosedFormELBO

__all__ = ["at_each_call"]


def at_each_call(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], float | None]) -> None:
    """Do something before each call, which counts from 0; what is returned multiplies the loss."""
    loss_of, calls = ClosedFormELBO.differentiable_loss, count()

    def watched(self: ClosedFormELBO, *args: Any, **options: Any) -> torch.Tensor:
        factor = act(next(calls))
        loss = loss_of(self, *args, **options)
        return loss if factor is None else loss * factor

    monkeypatch.setattr(ClosedFormELBO, "differentiable_loss", watched)
