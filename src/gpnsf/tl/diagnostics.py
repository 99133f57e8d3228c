"""What a fit should tell its user: each check says what was seen, what it means, and what to do."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse.csgraph import connected_components

from gpnsf.arguments import Arguments
from gpnsf.core.families import FAMILIES
from gpnsf.core.fields.base import LENGTHSCALE_RANGE
from gpnsf.core.fields.hilbert import HilbertField
from gpnsf.core.fields.resolution import KEPT, retained_variance
from gpnsf.core.inference.confirmed import LEAST
from gpnsf.core.inference.finer import finest_basis
from gpnsf.core.inference.fitting import Outcome
from gpnsf.core.inference.initial import starts
from gpnsf.core.inference.order import CLEAR_Z, clear_order
from gpnsf.core.inference.subset_start import sample
from gpnsf.core.presets import PRESETS
from gpnsf.core.scores.metrics import apart, knn_weights, morans_i
from gpnsf.core.types import Dataset, History, Posterior, View, parts
from gpnsf.io.write import factor_names

__all__ = ["LOW_DEPTH", "warn"]

LOW_DEPTH = 10.0  # median counts of a spot, all modalities together
LOW_TOTAL = 50.0  # median total of a modality below which totals can hardly be technical
SMOOTH_TOTALS = 0.2  # Moran's I of log totals
MATTERS = 0.02  # share of the signal of a factor that a warning about its field is worth
DUPLICATE = 0.9  # correlation of log factors, and cosine of loadings
AT_BOUND = 1.02  # ratio of a length scale to the end of its range
SKEWED = 1.0  # skewness of values: logarithms of counts have less
BATCH_SD = 0.2  # log ratio between slices, feature by feature, beyond sampling
COMPARED = 50_000  # rows that are enough to tell whether two factors are alike
MIN_COUNTS = 20  # counts of a feature in every slice that is compared
MIXTURE_UPDATES = 300

_logger = logging.getLogger("gpnsf")


@dataclass(frozen=True)
class _Fitted:
    """What the checks look at."""

    dataset: Dataset
    outcome: Outcome
    asked: Arguments
    scale: float  # units of the coordinates per half-width

    @property
    def posterior(self) -> Posterior:
        """Factors and loadings."""
        return self.outcome.posterior

    @property
    def history(self) -> History:
        """The optimisation."""
        return self.outcome.history

    @property
    def counted(self) -> list[View]:
        """Modalities that hold counts."""
        return [view for view in self.dataset.views if not FAMILIES[view.likelihood].signed]


def warn(
    dataset: Dataset,
    outcome: Outcome,
    asked: Arguments,
    *,
    scale: float,
    projected: bool = False,
) -> list[str]:
    """Log a warning for everything about a fit that its user should know, and return the texts.

    Of a projection, what follows from the new data alone.
    """
    fitted = _Fitted(dataset, outcome, asked, scale)
    texts = [text for check in (PROJECTED if projected else CHECKS) for text in check(fitted)]
    for text in texts:
        _logger.warning(text)
    return texts


def _convergence(fitted: _Fitted) -> Iterator[str]:
    """The optimisation ended early, or had to be repaired."""
    if not fitted.history.converged:
        yield (
            f"The fit stopped at max_steps = {fitted.asked.training.max_steps} before the ELBO converged: factors may still be "
            "mixed. Fit again with a larger max_steps."
        )
    if fitted.history.repairs:
        yield (
            f"The optimisation was repaired {len(fitted.history.repairs)} time(s), first at {fitted.history.repairs[0]}. The "
            "result is usable. If this happens again, look for extreme counts, or pass a smaller learning_rate."
        )


def _unconfirmed(fitted: _Fitted) -> Iterator[str]:
    """A modality that has the least weight, since held-out counts confirm next to nothing of it."""
    if fitted.asked.reading.modality_weights is not None:
        return
    for name, weight in fitted.outcome.weights.items():
        if weight <= LEAST:
            yield (
                f"Held-out counts confirm next to nothing of what modality {name!r} says about the factors, so it has the least "
                f"weight, {weight:g}, and its loadings are mostly noise. Check that its rows belong to the same observations as those "
                "of the other modalities. If they do, do not rank its features; more counts a feature would help."
            )


def _depth(fitted: _Fitted) -> Iterator[str]:
    """So few counts that the prior decides."""
    if not fitted.counted:
        return
    total = np.sum([_totals(view) for view in fitted.counted], axis=0)
    median = float(np.median(total[np.any([view.observed for view in fitted.counted], axis=0)]))
    if median < LOW_DEPTH:
        yield (
            f"The median spot has {median:g} counts in the features that were fitted: the factors of a single spot follow the "
            "prior and its neighbours, not its own counts. Use X_gpnsf_smooth instead of X_gpnsf, fit fewer factors, or merge "
            "spots into bins or add features until the median spot has at least 10 counts."
        )


def _size_factors(fitted: _Fitted) -> Iterator[str]:
    """Small totals that vary smoothly over the tissue carry signal, which size factors take away."""
    coords, library = fitted.dataset.coords.astype(np.float64), fitted.dataset.library
    if fitted.asked.reading.size_factors != "total" or not np.ptp(coords):
        return
    found = []
    for view in fitted.counted:
        seen = view.observed
        total = _totals(view)[seen]
        logs = np.log(np.maximum(total, 0.05 * total.mean()))
        logs = (
            logs
            - (np.bincount(library[seen], logs) / np.maximum(np.bincount(library[seen]), 1))[
                library[seen]
            ]
        )
        smooth = morans_i(logs[:, None], knn_weights(apart(coords, library)[seen]))[0]
        if np.median(total) < LOW_TOTAL and smooth > SMOOTH_TOTALS:
            found.append(f"{view.name!r} (median {np.median(total):g}, Moran's I {smooth:.2f})")
    if found:
        yield (
            f"Totals are small and vary smoothly over the tissue in modality {', '.join(found)}: they seem to carry signal, "
            "which size factors from totals remove. Compare with a fit with size_factors=None."
        )


def _all_spatial(fitted: _Fitted) -> Iterator[str]:
    """No nonspatial factor, and no test that says so."""
    untested = not fitted.outcome.spatial_test and PRESETS[fitted.asked.model.model].is_hybrid
    if untested and fitted.counted and fitted.posterior.is_spatial.all():
        yield (
            f"All {len(fitted.posterior.is_spatial)} factors are spatial because they were asked to be: differences between "
            "neighbouring spots are forced into them. Pass a smaller n_spatial, or split='tested'."
        )


def _split(fitted: _Fitted) -> Iterator[str]:
    """What held-out counts say about the number of spatial factors."""
    test, is_spatial = fitted.outcome.spatial_test, fitted.posterior.is_spatial
    if not test:
        return
    z = test["z"]
    if not is_spatial.any():
        yield (
            "No factor shows spatial order in held-out counts, so all factors are nonspatial and every spatial importance is 0. "
            "If you expected spatial factors, check that the coordinates belong to these observations."
        )
    clear = clear_order(z, test["repeated"], int(is_spatial.sum())) & (z > CLEAR_Z)
    scores = zip(factor_names(is_spatial), z, clear, strict=True)
    left = [f"{name} (z = {value:.1f})" for name, value, counts in scores if counts]
    if left and fitted.asked.model.n_spatial is not None:
        yield (
            f"n_spatial = {fitted.asked.model.n_spatial} leaves no room for {len(left)} more factor(s) with clear spatial order in "
            f"held-out counts: {', '.join(left)}. They are called nonspatial only because of n_spatial. Leave n_spatial out."
        )


def _lengthscales(fitted: _Fitted) -> Iterator[str]:
    """Learnt length scales at an end of their range."""
    if fitted.asked.model.lengthscale is not None:
        return
    names, lengthscale = factor_names(fitted.posterior.is_spatial), fitted.posterior.lengthscale
    low, high = LENGTHSCALE_RANGE
    with np.errstate(invalid="ignore"):
        short, long = lengthscale <= low * AT_BOUND, lengthscale >= high / AT_BOUND
    if short.any():
        yield (
            f"The length scale of {_listed(names, short)} is at its floor, {low * fitted.scale:.3g}: the factor changes from "
            "spot to spot, and its field follows single spots. If it should be smoother, pass a longer lengthscale."
        )
    if long.any():
        yield (
            f"The length scale of {_listed(names, long)} is at its ceiling, {high * fitted.scale:.3g}: the factor is a gradient "
            "over the whole tissue, and its amplitude means nothing. If you expect no gradient, pass a smaller n_spatial."
        )


def _basis(fitted: _Fitted) -> Iterator[str]:
    """Kernels that are too rough for the basis functions of the field, where spots are closer than these."""
    process = fitted.posterior.field.get("process")
    if not isinstance(process, Mapping) or process["kind"] != HilbertField.kind:
        return
    kernel = process["kernel"]
    n_basis = process["n_basis"]
    names = factor_names(fitted.posterior.is_spatial)
    kept = retained_variance(kernel, fitted.posterior.lengthscale, process["extent"], n_basis)
    sizes = [np.abs(W) for W in fitted.posterior.loadings.values()]
    mass = np.sum([size.sum(0) / max(size.sum(), 1e-12) for size in sizes], axis=0)
    rough = (kept < KEPT) & (mass >= MATTERS * len(fitted.posterior.loadings))
    if rough.any() and n_basis < finest_basis(fitted.dataset):
        yield (
            f"The field keeps {kept[rough].min():.0%} of the prior variance of {_listed(names, rough)}: "
            f"kernel {kernel!r} at this length scale is too rough for {n_basis} basis functions per axis, "
            "and the variance that is lost counts as noise of single spots. Compare with a fit with field='inducing', which takes "
            f"longer (gpnsf.tl.forecast says how long){'' if kernel == 'rbf' else ', or with a smoother kernel'}."
        )


def _raw_counts(fitted: _Fitted) -> Iterator[str]:
    """Raw counts under a Gaussian likelihood."""
    model = fitted.asked.model.model
    remedy = {"rsf": "model='nsf'", "fa": "model='pnmf'"}.get(model, "likelihoods='nb'")
    for view in fitted.dataset.views:
        if FAMILIES[view.likelihood].signed and _are_counts(view):
            yield (
                f"Modality {view.name!r} holds raw counts: whole numbers, none below zero, most of them small. "
                "A Gaussian likelihood gives every difference the same weight, so a few abundant features and deep "
                "spots decide the fit. Normalise and take logarithms (gpnsf.pp.normalise, layers='normalised'), "
                f"or fit the counts with {remedy}."
            )


def _are_counts(view: View) -> bool:
    """Whether values [N, P] are whole numbers from 0 to more than 1, skewed to the right."""
    sums, largest, n = np.zeros(3), 0.0, int(view.observed.sum()) * view.counts.shape[1]
    for _, block in parts(view.counts):
        values = block.data.astype(np.float64)
        if (values < 0).any() or (values % 1).any():
            return False
        sums += [values.sum(), (values**2).sum(), (values**3).sum()]
        largest = max(largest, values.max(initial=0.0))
    mean, second, third = sums / n
    variance = second - mean**2
    return largest > 1 and third - 3 * mean * variance - mean**3 > SKEWED * variance**1.5


def _duplicates(fitted: _Fitted) -> Iterator[str]:
    """Factors that say the same, in groups."""
    names = factor_names(fitted.posterior.is_spatial)
    every = max(1, fitted.dataset.n_obs // COMPARED)
    mean = fitted.posterior.mean[::every].astype(np.float64)
    logs = np.log(mean + 1e-6) if mean.min() >= 0 else mean
    logs = logs - logs.mean(0)
    W = np.concatenate(
        [W / max(np.abs(W).sum(), 1e-12) for W in fitted.posterior.loadings.values()]
    )
    alike = np.minimum(_cosines(logs), _cosines(W)) > DUPLICATE
    _, group = connected_components(alike, directed=False)
    groups = [np.flatnonzero(group == code) for code in np.unique(group)]
    found = [" = ".join(names[k] for k in members) for members in groups if len(members) > 1]
    if found:
        yield (
            f"Factors with the same pattern and the same loadings: {', '.join(found)}. Each group is one factor that was split. "
            "Add its factors up, or pass a smaller n_factors."
        )


def _batches(fitted: _Fitted) -> Iterator[str]:
    """Features that differ between slices by more than a different mixture of factors explains."""
    key, n_factors = fitted.asked.reading.library_key, len(fitted.posterior.is_spatial)
    if (
        fitted.dataset.n_libraries == 1
        or fitted.asked.reading.batch_key is not None
        or not fitted.counted
    ):
        return
    found = [
        f"{name!r} (most by a factor of {np.exp(excess):.2f} or more, sd {excess:.2f} of the log ratio beyond sampling)"
        for name, excess in between_slices(fitted.dataset, n_factors).items()
        if excess > BATCH_SD
    ]
    if found:
        yield (
            f"Features differ between the sections of {key!r} in modality {', '.join(found)}, more than any mixture of the "
            "factors can explain. These look like batch effects, which the factors would have to describe. Compare with a fit "
            f"with batch_key={key!r}."
        )


def between_slices(dataset: Dataset, n_factors: int) -> dict[str, float]:
    """Robust standard deviation, sampling taken out, of log ratios of observed to expected totals of slices, by modality.

    The fit itself cannot tell: its factors may already describe the slices. Loadings are taken from a start that sees counts
    corrected for all differences between slices; a mixture of them is fitted to the totals of each slice. Twice as many factors
    as were fitted, so that a factor too few is not mistaken for a batch effect.
    """
    rows = sample(dataset, seed=0)
    dataset = dataset.loaded() if rows is None else dataset.subset(rows)
    n_factors = min(
        2 * n_factors, dataset.n_obs, min(view.counts.shape[1] for view in dataset.views)
    )
    start = next(
        starts(replace(dataset, batch=dataset.library), n_factors, n_factors, kinds=["smooth"])
    )
    factors = np.column_stack([start.factors, np.ones(dataset.n_obs)])
    member = np.eye(dataset.n_libraries)[dataset.library].T  # [S, N]
    return {
        view.name: _excess(view, member, factors, start.loadings[view.name].astype(np.float64))
        for view in dataset.views
        if not FAMILIES[view.likelihood].signed
    }


def _excess(view: View, member: np.ndarray, factors: np.ndarray, W: np.ndarray) -> float:
    """One modality; a slice without counts of it is left out."""
    member = member[member @ view.size > 0]
    observed, squares = member @ view.counts, member @ view.counts.power(2)  # [S, P]
    mixture = member @ (view.size[:, None] * factors)  # [S, K+1]
    for _ in range(MIXTURE_UPDATES):
        mixture *= (observed / np.maximum(mixture @ W.T, 1e-12)) @ W / np.maximum(W.sum(0), 1e-12)
    usable = (observed >= MIN_COUNTS).all(0)
    if len(observed) < 2 or usable.sum() < 2 * W.shape[1]:
        return 0.0
    observed, squares, expected = observed[:, usable], squares[:, usable], mixture @ W[usable].T
    logs = np.log(observed / expected)
    logs = logs - np.median(logs, axis=1, keepdims=True)
    logs = logs - logs.mean(0)
    spread = 1.4826 * np.median(np.abs(logs)) / np.sqrt(1 - 1 / len(logs))
    sampling = np.median(squares / observed**2)  # an upper bound of the variance of a log total
    return float(np.sqrt(max(spread**2 - sampling, 0.0)))


def _totals(view: View) -> np.ndarray:
    """Row sums [N]."""
    return np.concatenate(
        [np.asarray(counts.sum(1, dtype=np.float64)).ravel() for _, counts in parts(view.counts)]
    )


def _cosines(columns: np.ndarray) -> np.ndarray:
    """Cosines [K, K] between columns."""
    unit = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-12)
    return unit.T @ unit


def _listed(names: list[str], chosen: np.ndarray) -> str:
    """Names in a sentence."""
    return ", ".join(np.array(names)[chosen])


CHECKS = (
    _convergence,
    _raw_counts,
    _all_spatial,
    _split,
    _unconfirmed,
    _depth,
    _size_factors,
    _lengthscales,
    _basis,
    _duplicates,
    _batches,
)
PROJECTED = (_convergence, _depth, _basis)
