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
from gpnsf.core.scores.normalising import normalised
from gpnsf.core.types import View

__all__ = ["FIRST_FIELD", "Mefisto", "Table", "apart", "fit", "log_normalised", "memory", "varying"]

FIRST_FIELD = 20  # step at which mofapy2 begins to look for fields
GAP = 3.0  # half-widths between slices: fields of one do not reach into the other
NOISE = 1e-8  # of sums that should be zero
LEAST_SCALE = 0.05  # of a factor that counts as spatial


@dataclass(frozen=True)
class Table:
    """Values of one modality, and what was taken out of them (M1)."""

    values: np.ndarray  # [N, P] NaN where not observed
    centre: np.ndarray  # [P] means of the logarithms
    unit: float  # what the centred logarithms were divided by


@dataclass(frozen=True)
class Mefisto:
    """A fitted model, factors in order of the variance they explain."""

    mean: np.ndarray  # [N, K] float32 posterior mean of the factors, signed
    smooth: np.ndarray  # [N, K] float32 mean of the field alone (without a field, as in mean)
    std: np.ndarray  # [N, K] float32 posterior standard deviation of the factors
    # modality -> [P, K] float32, signed; zeros for features that do not vary
    loadings: dict[str, np.ndarray]
    noise: dict[str, np.ndarray]  # modality -> [P] float32 standard deviation; zeros likewise
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


def log_normalised(view: View) -> Table:
    """Log1p of counts per size factor [N, P], features centred, the table scaled to variance 1.

    NaN where not observed (M1).
    """
    rows = np.flatnonzero(view.observed)
    size = view.size[rows] / np.median(view.size[rows])
    values = np.full(view.counts.shape, np.nan)
    values[rows] = normalised(view.counts[rows], size, log=True).toarray()
    centre = np.nanmean(values, axis=0)
    values -= centre
    spread = float(np.nanstd(values))
    unit = spread if spread > NOISE else 1.0
    return Table(values / unit, centre, unit)


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

    Rows of which nothing is observed train nothing, and get what the fields predict. Up to
    ``n_inducing`` observations the Gaussian processes are exact. Everything else is what mofapy2
    does by default.
    """
    seen = np.any([~np.isnan(table).all(axis=1) for table in tables.values()], axis=0)  # [N]
    used = {name: varying(table) for name, table in tables.items()}
    with _contained(seed), Progress("MEFISTO", max_steps, shown=progress) as bar:
        with redirect_stdout(_Steps(bar)):
            entry = _entry(
                [table[seen][:, used[name]] for name, table in tables.items()], coords[seen]
            )
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
    return _read(entry, coords, seen, used, explained, max_steps)


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
    seen: np.ndarray,
    used: Mapping[str, np.ndarray],
    explained: np.ndarray,
    max_steps: int,
) -> Mefisto:
    """The factors in order of the variance they explain, strong loadings made positive."""
    nodes, stats = entry.model.nodes, entry.model.train_stats
    order = np.argsort(-explained.sum(axis=0), kind="stable")
    weights = nodes["W"].getExpectation()  # each [P, K]
    sign = np.where(np.sum([(W**3).sum(axis=0) for W in weights], axis=0) < 0, -1.0, 1.0)[order]
    scale = stats["scales"][order]
    lengthscale = np.where(scale > LEAST_SCALE, stats["length_scales"][order], np.nan)
    mean, smooth, std = _factors(entry, coords, seen, order, lengthscale, scale)
    loadings = {
        name: _on_all(use, W[:, order] * sign)
        for (name, use), W in zip(used.items(), weights, strict=True)
    }
    precision = [tau["E"].mean(axis=0) for tau in nodes["Tau"].getExpectations()]  # each [P]
    step = np.flatnonzero(np.isfinite(stats["elbo"]))
    return Mefisto(
        mean=(mean * sign).astype(np.float32),
        smooth=(smooth * sign).astype(np.float32),
        std=std.astype(np.float32),
        loadings=loadings,
        noise={
            name: _on_all(use, tau**-0.5)
            for (name, use), tau in zip(used.items(), precision, strict=True)
        },
        variance_explained=dict(zip(used, explained[:, order], strict=True)),
        lengthscale=lengthscale,
        scale=scale,
        step=step,
        elbo=stats["elbo"][step],
        converged=len(stats["elbo"]) <= max_steps,
    )


def _on_all(used: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Scatter [p, ...] to all features [P, ...]; zeros for the others."""
    full = np.zeros((len(used), *values.shape[1:]), np.float32)
    full[used] = values
    return full


def _factors(
    entry: Any,
    coords: np.ndarray,
    seen: np.ndarray,
    order: np.ndarray,
    lengthscale: np.ndarray,
    scale: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, mean of the field alone, and standard deviation [N, K] of the factors in order.

    Rows that were not ``seen`` [N] get what mofapy2's ``predict_factor`` would give them.
    """
    nodes = entry.model.nodes
    Z = nodes["Z"].getExpectations()  # [n, K]
    inducing, at_points = np.arange(int(seen.sum())), Z
    if "U" in nodes:
        inducing, at_points = entry.smooth_opts["idx_inducing"], nodes["U"].getExpectations()
    mean, smooth, variance = (np.zeros((len(coords), len(order))) for _ in range(3))
    mean[seen] = smooth[seen] = Z["E"][:, order]
    variance[seen] = np.maximum(Z["E2"] - Z["E"] ** 2, 0)[:, order]
    variance[~seen] = 1.0  # of the prior
    for place, k in enumerate(order):
        if scale[place] > LEAST_SCALE:
            field, spread = _field(
                coords,
                coords[seen][inducing],
                at_points["E"][:, k],
                at_points["cov"][k],
                lengthscale[place],
                scale[place],
            )
            smooth[:, place] = field
            mean[~seen, place], variance[~seen, place] = field[~seen], spread[~seen]
    return mean, smooth, np.sqrt(variance)


def _field(
    coords: np.ndarray,
    points: np.ndarray,
    values: np.ndarray,
    covariance: np.ndarray,
    lengthscale: float,
    scale: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean [N] of a field, and variance [N] of a new observation (M4, M5).

    At the inducing ``points`` [M, D] the factor has means [M] and a covariance [M, M].
    """
    K, own = _covariance(coords, points, lengthscale), _covariance(points, points, lengthscale)
    spectrum, basis = eigh(own)
    inverse = (basis / (scale * np.maximum(spectrum, 0) + 1 - scale)) @ basis.T
    weights = scale * (K @ inverse)  # [N, M]
    variance = 1 - (weights * (scale * K)).sum(axis=1) + ((weights @ covariance) * weights).sum(1)
    return weights @ values, np.maximum(variance, 0)


def _covariance(one: np.ndarray, other: np.ndarray, lengthscale: float) -> np.ndarray:
    """Squared exponential [n, m]."""
    return np.exp(-cdist(one, other, "sqeuclidean") / (2 * lengthscale**2))
