"""What a fit is expected to take, said before it begins, and what it has taken; one that cannot fit is refused."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

from gpnsf.arguments import Arguments
from gpnsf.checks import problem
from gpnsf.core.inference.forecast import Forecast, forecast
from gpnsf.core.presets import PRESETS
from gpnsf.core.types import Dataset
from gpnsf.io import streaming

__all__ = ["expected", "guard", "peak_memory"]

MARGIN = 1.5  # of the forecast over the memory that there is: a fit that would have succeeded is not refused
LONG, LARGE = 30.0, 1e9  # seconds, and bytes, that are worth a line

_logger = logging.getLogger("gpnsf")


def expected(dataset: Dataset, asked: Arguments, n_spatial: int, scale: float) -> Forecast:
    """The forecast for arguments of a fit; ``scale`` is the half-width in the unit of the coordinates."""
    model, how = asked.model, asked.training
    return forecast(
        dataset,
        model=model.model,
        n_factors=model.n_factors,
        n_spatial=n_spatial,
        field=model.field,
        n_inducing=model.n_inducing,
        lengthscale=None if model.lengthscale is None else model.lengthscale / scale,
        n_samples=model.draws,
        init=how.init,
        block_size=how.block_size,
        max_steps=how.max_steps,
        tested=how.split == "tested" and PRESETS[model.model].is_hybrid,
        refine=how.refine,
    )


def guard(dataset: Dataset, asked: Arguments, n_spatial: int, scale: float, device: str) -> None:
    """Log what a fit will take, and refuse it where that is clearly more than there is."""
    found = expected(dataset, asked, n_spatial, scale)
    level = logging.INFO if found.seconds > LONG or found.memory > LARGE else logging.DEBUG
    needed, free = found.memory - found.held, streaming.available_memory()
    _logger.log(
        level,
        "Forecast: %.2g GB beside the data in memory, %.2g s on one thread.",
        needed / 1e9,
        found.seconds,
    )
    if device == "cpu" and needed > MARGIN * free:
        largest = sorted(found.parts, key=lambda name: -found.parts[name])[:3]
        named = ", ".join(f"{name} {found.parts[name] / 1e9:.3g} GB" for name in largest)
        text = f"one that needs about {needed / 1e9:.3g} GB more where {max(free, 0.0) / 1e9:.3g} GB are left ({named})"
        remedy = (
            "Pass a smaller block_size, fewer features by use_var, fewer n_factors, or the path of the file instead of the "
            "object; of a file, lower gpnsf.settings.memory_budget"
        )
        raise MemoryError(problem("a fit that fits into memory", text, remedy))


def peak_memory() -> float:
    """Peak resident memory of the process in bytes; nan where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # of Linux; its getrusage begins at what the parent of the process held
        held = re.search(r"VmHWM:\s*(\d+)", status.read_text())
        return float(held[1]) * 1024 if held else float("nan")
    try:
        import resource
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) if sys.platform == "darwin" else float(peak) * 1024
