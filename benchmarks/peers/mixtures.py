"""What the scripts have in common that find cell types of spots: they read one file, are timed, and leave proportions.

Runs in the environment of the peer: nothing but the standard library and numpy.

SCRIPT SECTION.npz FOUND.npz OPTIONS (JSON)
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Job:
    """Spots and what the types express."""

    counts: np.ndarray  # [N, P]
    profiles: np.ndarray  # mean counts of each type [P, C]
    numbers: np.ndarray  # cells of each type in the reference [C]
    coords: np.ndarray  # [N, 2]
    options: dict[str, Any]


def main(fit: Callable[[Job], np.ndarray]) -> None:
    """Run ``fit``, which returns abundances [N, C], and write their shares with what it took. Imports are not timed."""
    section, found, options = sys.argv[1:]
    warnings.simplefilter("ignore")
    with np.load(section) as arrays:
        job = Job(**arrays, options=json.loads(options))
    begin = _cpu()
    abundances = np.asarray(fit(job), dtype=float)
    took = {"cpu": _cpu() - begin}
    took["versions"] = {d.metadata["Name"]: d.version for d in distributions()}
    total = abundances.sum(axis=1, keepdims=True)
    even = np.full_like(abundances, 1 / abundances.shape[1])
    np.savez(found, proportions=np.divide(abundances, total, out=even, where=total > 0))
    Path(found).with_suffix(".took.json").write_text(json.dumps(took))


def _cpu() -> float:
    """CPU seconds of the process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
