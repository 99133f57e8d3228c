"""What every script of a peer has in common: it reads one file, is timed, and leaves what it found.

Runs in the environment of the peer: nothing but the standard library, numpy, scipy and mudata.

SCRIPT SECTION.h5mu FOUND.npz SETTINGS (JSON)
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import scipy.sparse as sp

SPARE = 0.1  # of the time limit, to read out a fit that was cut


@dataclass
class Job:
    """One section, and how it is to be factorised."""

    mdata: Any  # without the spots that are held out
    n_factors: int
    size_factors: bool  # False: totals carry signal, so nothing is normalised by them
    seed: int
    limit: float  # CPU seconds, after which the process is killed
    options: dict[str, Any] = field(default_factory=dict)  # of the method
    cut: bool = False  # whether the fit was ended by :meth:`in_time`

    @property
    def modalities(self) -> list[str]:
        return list(self.mdata.mod)

    @property
    def coords(self) -> np.ndarray:
        """Coordinates [N, 2]."""
        return np.asarray(self.mdata.obsm["spatial"], dtype=float)

    @property
    def new_coords(self) -> np.ndarray | None:
        """Coordinates of spots that are held out, where there are any."""
        return self.mdata.uns.get("new_coords")

    def counts(self, modality: str) -> sp.csr_matrix:
        """Counts [N, P]."""
        return sp.csr_matrix(self.mdata[modality].X).astype(np.float32)

    def size(self, modality: str) -> np.ndarray:
        """Total of each spot [N] over the mean, or ones where totals are not to be touched."""
        total = np.asarray(self.counts(modality).sum(1)).ravel()
        floor = 0.05 * total.mean()
        return np.maximum(total, floor) / total.mean() if self.size_factors else np.ones(len(total))

    def log_normalised(self, modality: str) -> np.ndarray:
        """log(1 + counts / size) [N, P], dense; size with median 1."""
        size = self.size(modality)
        scaled = sp.diags(np.median(size) / size) @ self.counts(modality)
        return np.log1p(scaled.toarray()).astype(float)

    @contextmanager
    def in_time(self):
        """End the block shortly before the limit, for a method that can be read at any step."""

        def end(*_: object) -> None:
            self.cut = True
            raise KeyboardInterrupt

        signal.signal(signal.SIGPROF, end)
        left = (1 - SPARE) * self.limit - time.process_time()
        signal.setitimer(signal.ITIMER_PROF, max(left, 1e-3))
        try:
            yield
        except KeyboardInterrupt:
            if not self.cut:
                raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def main(fit: Callable[[Job], dict[str, np.ndarray]]) -> None:
    """Run ``fit``, and write what it returns with what it took.

    ``fit`` returns ``factors`` [N, K], and where the method has them ``loadings_NAME`` [P, K] of each modality, ``scale`` [N] (what
    the spots were divided by), ``embedding`` [N, D] (of which regions are made), ``rates`` [n, P] of the spots that are held out.
    Imports are not timed.
    """
    section, found, settings = sys.argv[1:]
    warnings.simplefilter("ignore")
    with suppress(ValueError):  # older releases have no such option
        mudata.set_options(pull_on_update=False)
    job = Job(mudata.read_h5mu(section), **json.loads(settings))
    wall, cpu = time.perf_counter(), _cpu()
    arrays = fit(job)
    took = {"wall": time.perf_counter() - wall, "cpu": _cpu() - cpu, "cut": job.cut}
    status = Path("/proc/self/status").read_text()
    took["memory"] = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    took["versions"] = {d.metadata["Name"]: d.version for d in distributions()}
    np.savez(found, **arrays)
    Path(found).with_suffix(".took.json").write_text(json.dumps(took))


def nearest_mean(job: Job, values: np.ndarray, n_neighbors: int = 6) -> np.ndarray:
    """Mean [n, K] of values [N, K] over the spots nearest to each one that is held out."""
    from scipy.spatial import cKDTree

    near = cKDTree(job.coords).query(job.new_coords, n_neighbors)[1]
    return values[near].mean(axis=1)


def neighbour_mean(values: Any, coords: np.ndarray, n_neighbors: int) -> Any:
    """Values [N, P] averaged over a spot and its nearest neighbours."""
    from scipy.spatial import cKDTree

    near = cKDTree(coords).query(coords, n_neighbors + 1)[1]
    rows = np.repeat(np.arange(len(coords)), n_neighbors + 1)
    ones = np.full(near.size, 1 / (n_neighbors + 1), dtype=np.float32)
    return sp.csr_matrix((ones, (rows, near.ravel())), shape=(len(coords),) * 2) @ values


def _cpu() -> float:
    """CPU seconds of the process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
