"""How far proportions are from the truth."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter

__all__ = ["correlation", "divergence", "lattice", "relative_error", "rmse", "ssim"]

WINDOW = 7  # cells along one side of a window of the structural similarity
CONTRAST = (0.01**2, 0.03**2)  # its constants, for values in [0, 1]
# share of the cells of a lattice that have a spot; every second one of a hexagonal section has
FILLED = 0.4


def relative_error(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Frobenius norm of the difference over that of the truth."""
    return float(np.linalg.norm(estimate - truth) / np.linalg.norm(truth))


def rmse(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Root mean squared error over all entries."""
    return float(np.sqrt(np.mean(np.square(estimate - truth))))


def divergence(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Mean over spots of the Jensen-Shannon distance, the root of the divergence in nats."""
    middle = (estimate + truth) / 2
    nats = (_relative_entropy(estimate, middle) + _relative_entropy(truth, middle)) / 2
    return float(np.sqrt(np.maximum(nats, 0)).mean())


def correlation(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Pearson correlation over all entries; NaN where one of the two is constant."""
    one, other = estimate.ravel() - estimate.mean(), truth.ravel() - truth.mean()
    length = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / length) if length > 0 else float("nan")


def lattice(coords: np.ndarray) -> np.ndarray | None:
    """Cell [N, 2] of each spot, if the spots lie on a lattice that is filled well enough.

    None if they do not.
    """
    if coords.shape[1] != 2:
        return None
    cells = np.empty(coords.shape, dtype=np.int64)
    for axis, values in enumerate(coords.T):
        steps = np.diff(np.unique(values))
        tolerance = 1e-3 * np.ptp(values)
        steps = steps[steps > tolerance]
        place = (values - values.min()) / (steps.min() if len(steps) else 1.0)
        if np.abs(place - np.round(place)).max() > 0.1:
            return None
        cells[:, axis] = np.round(place)
    shape = cells.max(axis=0) + 1
    distinct = len(np.unique(cells, axis=0))
    return cells if distinct == len(cells) and len(cells) >= FILLED * np.prod(shape) else None


def ssim(estimate: np.ndarray, truth: np.ndarray, cells: np.ndarray) -> float:
    """Mean structural similarity of maps [N] of values in [0, 1].

    It is taken over windows around the spots in their cells [N, 2].
    """
    maps = np.zeros((3, *(cells.max(axis=0) + 1)))
    maps[:, cells[:, 0], cells[:, 1]] = np.ones(len(cells)), estimate, truth
    filled, one, other = maps
    mean = lambda values: _window(values * filled) / np.maximum(_window(filled), 1e-12)
    mean_one, mean_other = mean(one), mean(other)
    var_one, var_other = mean(one**2) - mean_one**2, mean(other**2) - mean_other**2
    covariance = mean(one * other) - mean_one * mean_other
    level = (2 * mean_one * mean_other + CONTRAST[0]) / (mean_one**2 + mean_other**2 + CONTRAST[0])
    shape = (2 * covariance + CONTRAST[1]) / (var_one + var_other + CONTRAST[1])
    return float((level * shape)[cells[:, 0], cells[:, 1]].mean())


def _window(values: np.ndarray) -> np.ndarray:
    """Means over windows, with nothing beyond the edge."""
    return uniform_filter(values, WINDOW, mode="constant")


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Nats [N] by which p differs from q."""
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return (p * np.log(ratio)).sum(axis=1)
