"""MEFISTO, signed Gaussian factors with fields, as mofapy2 fits it.

Arrays in, arrays out, and nothing else left behind.
"""

from __future__ import annotations

import io
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.spatial.distance import cdist

from gpnsf.core.progress import Progress
from gpnsf.core.types import View

__all__ = ["FIRST_FIELD", "Mefisto", "apart", "fit", "log_normalised", "memory", "varying"]

FIRST_FIELD = 20  # step at which mofapy2 begins to look for fields
GAP = 3.0  # half-widths between slices: fields of one do not reach into the other
NOISE = 1e-8  # of sums that should be zero
LEAST_SCALE = 0.05  # of a factor that counts as spatial


@dataclass(frozen=True)
class Mefisto:
    """A fitted model, factors in order of the variance they explain."""

    mean: np.ndarray  # [N, K] float32 posterior mean of the factors, signed
    smooth: np.ndarray  # [N, K] float32 mean of the field alone (without a field, as in mean)
    std: np.ndarray  # [N, K] float32 posterior standard deviation of the factors
    # modality -> [P, K] float32, signed; zeros for features that do not vary
    loadings: dict[str, np.ndarray]
    variance_explained: dict[str, np.ndarray]  # modality -> [K]
    lengthscale: np.ndarray  # [K] in the unit of the coordinates, nan without a field
    scale: np.ndarray  # [K] share of the field in the prior variance of the factor
    step: np.ndarray  # [n] steps at which the bound was computed
    elbo: np.ndarray  # [n]
    converged: bool

    @property
    def is_spatial(self) -> np.ndarray:
        """Which factors [K] have a field worth the name."""
        return self.scale > LEAST_SCALE


def log_normalised(view: View) -> np.ndarray:
    """Log1p of counts per size factor [N, P], features centred, the table scaled to variance 1.

    NaN where not observed (M1).
    """
    rows = np.flatnonzero(view.observed)
    counts = view.counts[rows]
    size = view.size[rows] / np.median(view.size[rows])
    table = np.full(view.counts.shape, np.nan)
    table[rows] = np.log1p(counts.multiply(1 / size[:, None]).toarray())
    table -= np.nanmean(table, axis=0)
    spread = np.nanstd(table)
    return table / spread if spread > NOISE else table


def varying(table: np.ndarray) -> np.ndarray:
    """Which features [P] of a table differ between observations."""
    return np.nanstd(table, axis=0) > NOISE


def apart(coords: np.ndarray, library: np.ndarray) -> np.ndarray:
    """Coordinates [N, D] in half-widths, slices in a row, three half-widths between them."""
    places = coords.astype(np.float64)
    places[:, 0] += (2 + GAP) * library
    return places


def memory(n_obs: int, n_features: int, n_factors: int, n_inducing: int) -> float:
    """Bytes that mofapy2 takes at its peak.

    A matrix [N, N] for each factor, one [M, M] for each length scale, copies of tables.
    """
    n_points = min(n_inducing, n_obs)
    pairs = n_obs * n_obs * (n_factors + 4) + n_points * (25 * n_points + n_factors * n_obs)
    return 8.0 * (pairs + 5 * n_obs * n_features)


def fit(
    tables: Mapping[str, np.ndarray],
    coords: np.ndarray,
    *,
    n_factors: int,
    n_inducing: int,
    max_steps: int,
    seed: int,
    progress: bool = False,
) -> Mefisto:
    """Fit centred tables [N, P], NaN where nothing is observed, at places [N, D] (M2, M3).

    Up to ``n_inducing`` observations the Gaussian processes are exact. Everything else is what
    mofapy2 does by default.
    """
    used = {name: varying(table) for name, table in tables.items()}
    with _contained(seed), Progress("MEFISTO", max_steps, shown=progress) as bar:
        with redirect_stdout(_Steps(bar)):
            entry = _entry([table[:, used[name]] for name, table in tables.items()], coords)
            _set_options(
                entry, n_factors=n_factors, n_inducing=n_inducing, max_steps=max_steps, seed=seed
            )
            entry.build()
            entry.model.setTrainOptions(entry.train_opts)
            entry.model.iterate()
        if not entry.model.trained:  # mofapy2 has taken Ctrl-C for the end of the work
            raise KeyboardInterrupt
        explained = entry.model.calculate_variance_explained()[0]  # [modalities, K]
        bar.converged = len(entry.model.train_stats["elbo"]) <= max_steps
    return _read(entry, coords, used, explained, max_steps)


class _Steps(io.TextIOBase):
    """Takes the place of the standard output.

    Every line about a step moves the bar, and nothing is shown. Other threads print as before.
    """

    def __init__(self, bar: Progress) -> None:
        self._bar, self._thread, self._before = bar, threading.get_ident(), sys.stdout

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            return self._before.write(text)
        if text.startswith("Iteration "):
            self._bar.step()
        return len(text)


@contextmanager
def _contained(seed: int) -> Iterator[None]:
    """Give mofapy2 NumPy's global generator at a seed.

    Generator and filters of warnings are left as they were.
    """
    before = np.random.get_state()  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _entry(tables: list[np.ndarray], coords: np.ndarray) -> Any:
    """mofapy2 with the data in it."""
    from mofapy2.run.entry_point import entry_point

    entry = entry_point()
    entry.set_data_options()
    entry.set_data_matrix(
        [[table] for table in tables],
        likelihoods=["gaussian"] * len(tables),
        views_names=[f"view{m}" for m in range(len(tables))],
        groups_names=["all"],
        samples_names=[[f"obs{i}" for i in range(len(coords))]],
        features_names=[
            [f"view{m}_{j}" for j in range(table.shape[1])] for m, table in enumerate(tables)
        ],
    )
    entry.set_covariates([coords])
    return entry


def _set_options(entry: Any, *, n_factors: int, n_inducing: int, max_steps: int, seed: int) -> None:
    """Options in the order in which mofapy2 wants them.

    It takes inducing points as a share of the observations.
    """
    entry.set_model_options(factors=n_factors)
    entry.set_train_options(iter=max_steps + 1, seed=seed)
    if n_inducing < len(entry.sample_cov):
        share = (n_inducing + 0.5) / len(entry.sample_cov)
        entry.set_smooth_options(start_opt=FIRST_FIELD, sparseGP=True, frac_inducing=share)
    else:
        entry.set_smooth_options(start_opt=FIRST_FIELD)


def _read(
    entry: Any,
    coords: np.ndarray,
    used: Mapping[str, np.ndarray],
    explained: np.ndarray,
    max_steps: int,
) -> Mefisto:
    """The factors in order of the variance they explain, strong loadings made positive."""
    nodes, stats = entry.model.nodes, entry.model.train_stats
    order = np.argsort(-explained.sum(axis=0), kind="stable")
    Z, weights = nodes["Z"].getExpectations(), nodes["W"].getExpectation()  # [N, K], each [P, K]
    sign = np.where(np.sum([(W**3).sum(axis=0) for W in weights], axis=0) < 0, -1.0, 1.0)[order]
    scale = stats["scales"][order]
    lengthscale = np.where(scale > LEAST_SCALE, stats["length_scales"][order], np.nan)
    inducing, values = np.arange(len(coords)), Z["E"]
    if "U" in nodes:
        inducing, values = entry.smooth_opts["idx_inducing"], nodes["U"].getExpectation()
    mean = Z["E"][:, order]
    smooth = [
        _field(coords, inducing, values[:, k], ell, share) if share > LEAST_SCALE else Z["E"][:, k]
        for k, ell, share in zip(order, lengthscale, scale, strict=True)
    ]
    loadings = {name: np.zeros((len(use), len(order)), np.float32) for name, use in used.items()}
    for (name, use), W in zip(used.items(), weights, strict=True):
        loadings[name][use] = W[:, order] * sign
    step = np.flatnonzero(np.isfinite(stats["elbo"]))
    return Mefisto(
        mean=(mean * sign).astype(np.float32),
        smooth=(np.column_stack(smooth) * sign).astype(np.float32),
        std=np.sqrt(np.maximum(Z["E2"] - Z["E"] ** 2, 0))[:, order].astype(np.float32),
        loadings=loadings,
        variance_explained=dict(zip(used, explained[:, order], strict=True)),
        lengthscale=lengthscale,
        scale=scale,
        step=step,
        elbo=stats["elbo"][step],
        converged=len(stats["elbo"]) <= max_steps,
    )


def _field(
    coords: np.ndarray, inducing: np.ndarray, values: np.ndarray, lengthscale: float, scale: float
) -> np.ndarray:
    """Mean [N] of a field, given the values [M] of its factor at the inducing points (M4)."""
    squared = cdist(coords, coords[inducing], "sqeuclidean")
    K = np.exp(-squared / (2 * lengthscale**2))  # [N, M]
    spectrum, basis = eigh(K[inducing])
    weights = basis @ ((basis.T @ values) / (scale * np.maximum(spectrum, 0) + 1 - scale))
    return scale * (K @ weights)
