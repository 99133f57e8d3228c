"""The state of torch that the code counts on, whatever the caller has set."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["usual_torch"]


@contextmanager
def usual_torch() -> Iterator[None]:
    """Single precision by default and gradients wherever they are asked for, inside the block."""
    torch = sys.modules.get("torch")
    if torch is None:  # it is imported in this state
        yield
        return
    before = torch.get_default_dtype()
    with torch.inference_mode(False), torch.enable_grad():
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
