"""From a fitted model to plain numpy.

Moments, scale, order, totals and the uncertainty of importance scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpnsf.core import stored
from gpnsf.core.families import FAMILIES
from gpnsf.core.fields.base import FieldSize
from gpnsf.core.inference.finer import coarse
from gpnsf.core.inference.local_stage import LogFactors, covariances
from gpnsf.core.inference.margins import (
    Margins,
    centred_multipliers,
    margins,
    scaled_loadings,
)
from gpnsf.core.inference.scaled import moments, others, scaled
from gpnsf.core.inference.shapes import Shapes
from gpnsf.core.inference.unseen import unseen
from gpnsf.core.likelihoods import AbstractLikelihood
from gpnsf.core.model.build import restore_field
from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.model.relative import expected
from gpnsf.core.scores import simplex
from gpnsf.core.types import Dataset, Given, Posterior, rows_at_a_time

__all__ = ["memory", "predict", "summarise", "summarise_at"]

LARGEST_SHIFT = 12.0  # of log loadings, to match the observed totals
MOST_STEPS = 30  # of the search for it
FEATURES = 10_000  # whose covariances [P, K, K] are made at a time
PLACES = 20_000  # where a field is predicted at a time: inducing points need arrays [n, T, M]


def memory(shapes: Shapes, field: FieldSize) -> tuple[float, float, float]:
    """Bytes of the outputs, of the covariances of loadings, and of the deviances that factors explain."""
    pairs, widest = shapes.n_factors**2, max(view.n_features for view in shapes.views)
    information = 4.0 * pairs * widest
    added = information * (shapes.block < shapes.n_obs) + 30.0 * shapes.chunk
    covariance = information + max(added, 32.0 * pairs * min(FEATURES, widest))
    dense = [view for view in shapes.views if not FAMILIES[view.likelihood].events]  # not compiled
    ranges = [rows_at_a_time(shapes.n_obs, view.n_features, int(view.nnz)) for view in dense]
    nonzeros = [view.nnz * rows / shapes.n_obs for view, rows in zip(dense, ranges, strict=True)]
    outputs = shapes.n_obs * (30.0 * shapes.n_factors + field.row) + 8.0 * shapes.loadings
    return outputs, covariance, 50.0 * max(nonzeros, default=0.0)


@torch.no_grad()
def summarise(
    model: Factorization, dataset: Dataset, blocks: list[Block], log_factors: LogFactors
) -> Posterior:
    """Posterior moments of the factors, scaled to mean one, in order of their expected signal."""
    mean, std, smooth, scale, smooth_scale = scaled(model, blocks, log_factors)
    seen = {name: margins(blocks, name) for name in model.names}
    loadings = {name: scaled_loadings(view, seen[name], scale) for name, view in model.items()}
    result = _Result(mean, loadings, centred_multipliers(model, blocks, loadings))
    result.match_totals(model, blocks, seen)
    order = result.sort(model.n_spatial)
    # each under its old name: where spots are many, copies [N, K] are what fills the memory
    mean, std = result.mean, std[:, order]
    smooth = smooth[:, order]
    deviations = result.deviations(model, blocks)
    found = _Found(result, std, smooth, smooth_scale, order, *deviations)
    return _posterior(model, dataset, blocks, log_factors, found)


@torch.no_grad()
def summarise_at(
    model: Factorization,
    dataset: Dataset,
    blocks: list[Block],
    log_factors: LogFactors,
    given: Given,
    scale: Tensor,
) -> Posterior:
    """The same at loadings that were given: they stay as they are, and so do scale and order of the factors."""
    mean, std, smooth, _, _ = scaled(model, blocks, log_factors, scale)
    every, order = torch.nn.functional.pad(scale, (0, 1), value=1.0), torch.arange(len(scale))
    loadings = {name: view.loadings.mean * every for name, view in model.items()}
    known = order.to(scale.device), given.importance_std, given.loadings_std
    found = _Found(_Result(mean, loadings, {}), std, smooth, scale, *known)
    result = _posterior(model, dataset, blocks, log_factors, found)
    return replace(result, loadings=given.loadings, background=given.background)


class _Found(NamedTuple):
    """What there is to be said about factors and loadings, in the order of both."""

    result: _Result
    std: Tensor  # [N, K]
    smooth: Tensor  # [N, K]
    smooth_scale: Tensor  # [K], in the order of the model
    order: Tensor  # [K]
    importance_std: dict[str, np.ndarray]
    loadings_std: dict[str, np.ndarray]


def _posterior(
    model: Factorization,
    dataset: Dataset,
    blocks: list[Block],
    log_factors: LogFactors,
    found: _Found,
) -> Posterior:
    """In plain numpy."""
    result, spatial_order = found.result, found.order[: model.n_spatial]
    thetas = {name: view.likelihood.dispersion() for name, view in model.items()}
    return Posterior(
        mean=_array(result.mean),
        smooth=_array(found.smooth),
        coarse=_array(coarse(model, blocks, found.smooth, spatial_order)),
        std=_array(found.std),
        loadings={name: _array(W[:, :-1]) for name, W in result.loadings.items()},
        loadings_std=found.loadings_std,
        background={name: _array(W[:, -1]) for name, W in result.loadings.items()},
        dispersion={name: _array(theta) for name, theta in thetas.items() if theta is not None},
        variance_explained=result.variance_explained(model, dataset, blocks),
        importance_std=found.importance_std,
        is_spatial=np.arange(model.n_factors) < model.n_spatial,
        order=_array(found.order).astype(np.int64),
        lengthscale=_padded(model, "log_lengthscale", spatial_order),
        amplitude=_amplitude(model, log_factors, found.order),
        multipliers={name: _array(factor.T) for name, factor in result.multipliers.items()},
        field=_field_state(model, log_factors, ~unseen(blocks), found.smooth_scale, found.order),
    )


class _Result:
    """Factors and loadings on their way to numpy."""

    def __init__(
        self, mean: Tensor, loadings: dict[str, Tensor], multipliers: dict[str, Tensor]
    ) -> None:
        self.mean, self.loadings, self.multipliers = mean, loadings, multipliers

    def loadings_of(self, name: str, block: Block) -> Tensor:
        """Loadings and background [P, K+1] as the batch of a block sees them."""
        W = self.loadings[name]
        return self.multipliers[name][block.batch][:, None] * W if name in self.multipliers else W

    def augmented(self, block: Block, name: str) -> Tensor:
        """Factors of a block with size factors and the constant column [n, K+1]."""
        size = block.size[name]
        return torch.cat([size * self.mean[block.rows], size], 1)

    def match_totals(
        self, model: Factorization, blocks: list[Block], margins: dict[str, Margins]
    ) -> None:
        """Scale each modality's loadings so that its expected total is the observed one."""
        for name, view in model.items():
            if (
                view.loadings.nonnegative and margins[name].smallest >= 0
            ):  # values around zero have no total to be matched
                self._match_total(view.likelihood, name, blocks, margins[name].total)

    def sort(self, T: int) -> Tensor:
        """Spatial factors first, each group by expected signal (factors have mean one).

        The new order [K].
        """
        mass = torch.stack([W[:, :-1].abs().sum(0) for W in self.loadings.values()]).sum(0)
        spatial = torch.argsort(mass[:T], descending=True, stable=True)
        order = torch.cat([spatial, T + torch.argsort(mass[T:], descending=True, stable=True)])
        self.mean = self.mean[:, order]
        self.loadings = {
            name: torch.cat([W[:, order], W[:, -1:]], 1) for name, W in self.loadings.items()
        }
        return order

    def _match_total(
        self,
        likelihood: AbstractLikelihood,
        name: str,
        blocks: list[Block],
        observed: float,
    ) -> None:
        """Newton steps in the log factor, halved where they leave the solution's bracket."""
        W, at, low, high = self.loadings[name], 0.0, -LARGEST_SHIFT, LARGEST_SHIFT
        for _ in range(MOST_STEPS):
            total, slope = self._totals(likelihood, name, blocks)
            # probabilities that cannot grow any more
            saturated = total < observed and slope <= 1e-4 * total
            if abs(total - observed) <= 1e-4 * observed or saturated:
                break
            low, high = (at, high) if total < observed else (low, at)
            at += float(np.clip((observed - total) / max(slope, 1e-12 * total), -1, 1))
            at = at if low < at < high else (low + high) / 2
            self.loadings[name] = W * float(np.exp(at))

    def _totals(
        self, likelihood: AbstractLikelihood, name: str, blocks: list[Block]
    ) -> tuple[float, float]:
        """Expected total over all blocks, and its derivative."""
        parts = [
            likelihood.totals(self.augmented(block, name), self.loadings_of(name, block))
            for block in blocks
        ]
        return sum(float(total) for total, _ in parts), sum(float(slope) for _, slope in parts)

    def variance_explained(
        self, model: Factorization, dataset: Dataset, blocks: list[Block]
    ) -> dict[str, np.ndarray]:
        """Share [K] of each modality's null deviance lost with one factor held at its mean.

        The likelihood that judges is the scorer of its own.
        """
        explained = {}
        for view in dataset.views:
            likelihood = dict(model.items())[view.name].likelihood.scorer()
            lost = reduce(torch.add, (self._lost(likelihood, view.name, block) for block in blocks))
            null = likelihood.flat_deviance(view, blocks)
            explained[view.name] = _array(2 * lost / max(null, 1e-12))
        return explained

    def _lost(self, likelihood: AbstractLikelihood, name: str, block: Block) -> Tensor:
        """Loss of a block's log-likelihood [K] with one factor replaced by its mean over spots."""
        A = self.augmented(block, name)
        level = torch.cat([self.mean.mean(0), torch.ones(1, device=A.device)])
        changes = block.size[name] * level - A
        return likelihood.lost(block.counts[name], A, self.loadings_of(name, block), changes)[:-1]

    def deviations(
        self, model: Factorization, blocks: list[Block]
    ) -> tuple[dict[str, np.ndarray], ...]:
        """Standard deviations of each feature's importance [P] and loadings [P, K].

        They follow from the Laplace covariance of the loadings.
        """
        is_spatial = np.arange(model.n_factors) < model.n_spatial
        importance, loadings = {}, {}
        for name, view in model.items():
            W = self.loadings[name]
            information = reduce(
                torch.add, (self._loading_information(view.likelihood, name, b) for b in blocks)
            )
            total = W[:, :-1].abs().sum(1).clamp_min(1e-12)
            information.diagonal(dim1=1, dim2=2).add_((1 / total**2)[:, None])
            found = [
                _deviations(_array(part[:, :-1]), _array(covariances(own)), is_spatial)
                for part, own in zip(W.split(FEATURES), information.split(FEATURES), strict=True)
            ]
            importance[name], loadings[name] = map(np.concatenate, zip(*found, strict=True))
        return importance, loadings

    def _loading_information(
        self, likelihood: AbstractLikelihood, name: str, block: Block
    ) -> Tensor:
        """Information [P, K, K] of a block on the loadings, through its batch multipliers."""
        A, W = self.augmented(block, name), self.loadings_of(name, block)
        information = likelihood.loading_information(block.counts[name], A, W)
        return (
            information * self.multipliers[name][block.batch][:, None, None] ** 2
            if self.multipliers
            else information
        )


def _deviations(
    W: np.ndarray, covariance: np.ndarray, is_spatial: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations [P] of the importance and [P, K] of loadings with covariances [P, K, K].

    0 without signal.
    """
    importance = simplex.importance_std(W, covariance, is_spatial)
    loadings = np.sqrt(np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 0.0)) * W.any(
        axis=1, keepdims=True
    )
    return importance.astype(np.float32), loadings.astype(np.float32)


def _padded(model: Factorization, name: str, order: Tensor) -> np.ndarray:
    """Exp of a field parameter for the spatial factors, nan for the others [K]."""
    values = np.full(model.n_factors, np.nan, dtype=np.float32)
    if model.spatial is not None:
        values[: model.n_spatial] = _array(getattr(model.spatial.field, name)[order].exp())
    return values


def _amplitude(model: Factorization, log_factors: LogFactors, order: Tensor) -> np.ndarray:
    """Standard deviation of the log factors a priori [K]."""
    values = _padded(model, "log_amplitude", order[: model.n_spatial])
    values[model.n_spatial :] = _array(log_factors.gamma[order][model.n_spatial :].sqrt())
    return values


def _field_state(
    model: Factorization, log_factors: LogFactors, seen: Tensor, scale: Tensor, order: Tensor
) -> dict[str, object]:
    """State for prediction: the field, its factors' order and scale, and the spread of spots around it."""
    T = model.n_spatial
    state: dict[str, object] = {
        "nonnegative": model.nonnegative,
        "order": _array(order[:T]).astype(np.int64),
        "factor_mean": _array(scale[:T]),
        "nugget": _array(log_factors.gamma[:T]),
    }
    if model.spatial is not None:
        state["process"] = model.spatial.field.state()
    if model.by_total:
        mass = model.mass()
        nonspatial = order[T:]  # as they are reported; spatial ones as the process has them
        state["mass"] = _array(torch.cat([mass[:T], mass[nonspatial]]))
        state["others"] = _array(others(model, log_factors, seen)[:, nonspatial - T])
        state["others_mean"] = _array(scale[nonspatial])
    return state


def _array(tensor: Tensor) -> np.ndarray:
    """Detached float32 numpy."""
    return tensor.detach().cpu().numpy().astype(np.float32)


@torch.no_grad()
def predict(
    state: Mapping[str, object], coords: np.ndarray, library: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Mean and standard deviation [n, T] of the spatial factors at ``coords`` (half-width units), from a field's state.

    The counterpart of what :func:`summarise` stores: the field alone, with the spread of single
    spots around it. The means [n, K-T] of nonspatial factors come with them where factors are
    relative: the more there is of spatial ones, the less of these.
    """
    field = restore_field(stored.record(state, "process"))
    rows = [slice(start, start + PLACES) for start in range(0, max(len(coords), 1), PLACES)]
    parts = [field.marginals(field.locate(coords[part], library[part])) for part in rows]
    m, v = (torch.cat(moments) for moments in zip(*parts, strict=True))
    order = torch.as_tensor(np.asarray(state["order"]))
    nugget, scale = (torch.as_tensor(np.asarray(state[name])) for name in ("nugget", "factor_mean"))
    v = v + nugget
    mean, std = moments(bool(state["nonnegative"]), m, v)
    nonspatial = None
    if "mass" in state:  # relative to totals
        mass, beside, level = (
            torch.as_tensor(np.asarray(state[name])) for name in ("mass", "others", "others_mean")
        )
        known, added = expected(mean, beside, mass)
        centre, spread = moments(True, m, v + added)
        mean = known[:, : m.shape[1]]
        std = mean * spread / centre
        nonspatial = _array(known[:, m.shape[1] :] / level)
    return _array((mean / scale)[:, order]), _array((std / scale)[:, order]), nonspatial
