"""Moves between optima that gradients do not find.

Merge two factors, divide one among others, give a nonspatial one a field.

Each is a change of the parameters, followed by a few steps, and kept where the objective has risen
(``training``). A factor that is merged away is switched off: next to no loadings, and its posterior
at the prior. Switched-off factors are what moves make room from, so the numbers of factors stay as
they were asked for. ``join``, ``occupy`` and ``adopt`` change a model without a trial: ``fitting``
decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gpnsf.core.inference.standing import (
    ALIVE,
    HALF_MIXED,
    LEAST_PART,
    MIXED,
    Standing,
    log_factors,
    mixture,
    order_of,
    overlap,
)
from gpnsf.core.likelihoods.moments import MEAN_RANGE
from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.model.relative import same_total

__all__ = ["Adopted", "Move", "adopt", "join", "make", "occupy", "possible", "proposals"]

ORDER = 0.5  # Moran's I of a nonspatial factor that may have a field
# likeness of spatial pairs merged together or singly, and of nonspatial pairs
SURE, ALIKE, SAME = 0.8, 0.6, 0.9
EQUAL = 0.95  # cosine of the loadings of factors that are one
USUAL_NOISE, LEAST_NOISE = 0.2, 0.05  # of the ridge that makes a field of a log factor
SPLIT = (0.05, 0.95)  # bounds of the share of a log factor's variance that is given to its field


@dataclass(frozen=True)
class Move:
    """Factors to merge or divide, and a nonspatial factor to put into a spatial slot after that."""

    merges: tuple[tuple[int, int], ...] = ()  # (k, l): k takes over what l has
    divided: int | None = None  # a spatial factor whose loadings are a mixture of those of others
    promotion: tuple[int, int] | None = None  # a nonspatial factor, and its slot

    @property
    def name(self) -> str:
        """The move in words."""
        parts = [f"merge {l} into {k}" for k, l in self.merges]
        if self.divided is not None:
            parts.append(f"divide {self.divided}")
        if self.promotion:
            parts.append("nonspatial {} to spatial {}".format(*self.promotion))
        return ", ".join(parts)


@dataclass(frozen=True)
class Adopted:
    """A factor that got its field without training, adopted or joined: where the local stage begins."""

    log_factor: Tensor  # [N], centred
    nugget: float  # variance around the field


def possible(model: Factorization) -> bool:
    """Whether factors may come and go: loadings have a posterior, and objectives can be compared."""
    return model.has_posterior and model.n_samples is None


@torch.no_grad()
def proposals(model: Factorization, blocks: list[Block], graph: sp.csr_matrix) -> Iterator[Move]:
    """The moves worth trying from here, best guesses first."""
    standing = Standing(model, blocks, graph)
    yield from _promotions(standing)
    disjoint: list[tuple[int, int]] = []
    for pair in standing.pairs(spatial=True, above=SURE):
        if not set(pair) & {k for other in disjoint for k in other}:
            disjoint.append(pair)
    if len(disjoint) > 1:
        yield Move(tuple(disjoint))
    for k in standing.mixtures(below=MIXED):
        yield Move(divided=k)
    for spatial, above in ((True, ALIKE), (False, SAME)):
        for pair in standing.pairs(spatial=spatial, above=above):
            yield Move((pair,))


def _promotions(standing: Standing) -> Iterator[Move]:
    """Nonspatial factors with order, each into a free spatial slot.

    Where no slot is free, it goes into that of a factor that others can take over.
    """
    for k in sorted(standing.worth(spatial=False), key=lambda k: -standing.order[k]):
        if standing.order[k] < ORDER:
            return
        if standing.off:
            yield Move(promotion=(k, standing.off[0]))
        elif mixtures := standing.mixtures(below=HALF_MIXED):
            yield Move(divided=mixtures[0], promotion=(k, mixtures[0]))
        elif pairs := standing.pairs(spatial=True, above=-1.0):
            yield Move((pairs[0],), promotion=(k, pairs[0][1]))


@torch.no_grad()
def make(move: Move, model: Factorization, blocks: list[Block]) -> None:
    """Change the parameters as a move says."""
    m = log_factors(model, blocks)
    with same_total(model):
        _make(move, model, blocks, m)


def _make(move: Move, model: Factorization, blocks: list[Block], m: Tensor) -> None:
    """The same from log factors [N, K]."""
    for k, l in move.merges:
        joint, loadings = _sum(model, m, [k, l])
        _switch_off(model, l)
        _put(model, blocks, k, joint, loadings, like=k)
    if move.divided is not None:
        factors = [k for k in range(model.n_spatial) if k != move.divided]
        products = overlap(model, m)
        for k, joint in _divided(model, m, products, move.divided, factors).items():
            _put(
                model,
                blocks,
                k,
                joint,
                [view.loadings.mean[:, k].clone() for _, view in model.items()],
                like=k,
            )
        _switch_off(model, move.divided)
    if move.promotion:
        k, slot = move.promotion
        loadings = [view.loadings.mean[:, k].clone() for _, view in model.items()]
        _switch_off(model, k)
        _put(model, blocks, slot, m[:, k], loadings)


def _sum(model: Factorization, m: Tensor, members: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Log factor [N] and loadings of the sum of factors, each weighted by its loadings."""
    views = [view.loadings.mean for _, view in model.items()]
    mass = torch.stack([W[:, members].sum(0) for W in views]).sum(0).clamp_min(1e-30).log()
    joint = torch.logsumexp(m[:, members] + mass, 1) - torch.logsumexp(mass, 0)
    return joint, [W[:, members].sum(1) for W in views]


def _divided(
    model: Factorization, m: Tensor, products: np.ndarray, l: int, others: list[int]
) -> dict[int, Tensor]:
    """Log factors [N] of others once they have taken over factor l.

    They take it over as the mixture says that its loadings are, by their products [K, K].
    """
    level = model.relative(m).clamp(*MEAN_RANGE).exp().mean(0)
    weights = mixture(products, l, others)[1]
    part = {
        k: float(weight * level[k] / level[l]) for k, weight in zip(others, weights, strict=True)
    }
    return {
        k: torch.logaddexp(m[:, k], m[:, l] + math.log(c))
        for k, c in part.items()
        if c > LEAST_PART
    }


def _put(
    model: Factorization,
    blocks: list[Block],
    k: int,
    log_factor: Tensor,
    loadings: list[Tensor],
    *,
    like: int | None = None,
    share: float | None = None,
) -> None:
    """Set factor k, whose mean the loadings take; with ``share``, its field gets that share of the variance.

    The field is the ridge fit with the rest as noise.
    """
    shift = log_factor.mean()
    if model.spatial is not None and k < model.n_spatial:
        located = [block.located for block in blocks]
        noise_sd, amplitude = _ridge(log_factor, share)
        model.spatial.field.put(
            k, log_factor - shift, located, like=like, noise_sd=noise_sd, amplitude=amplitude
        )
    elif model.nonspatial is not None:
        model.nonspatial.loc[:, k - model.n_spatial] = log_factor - shift
    for (_, view), W in zip(model.items(), loadings, strict=True):
        view.loadings.put(k, W * shift.exp(), like)


def _ridge(log_factor: Tensor, share: float | None) -> tuple[float, float | None]:
    """Noise and amplitude with which a field takes up a share of the variance."""
    if share is None:
        return USUAL_NOISE, None
    std = float(log_factor.std())
    return max(std * (1 - share) ** 0.5, LEAST_NOISE), std * share**0.5


def _switch_off(model: Factorization, k: int) -> None:
    """Factor k at its prior, with next to no loadings."""
    for _, view in model.items():
        view.loadings.switch_off(k)
    if model.spatial is not None and k < model.n_spatial:
        model.spatial.field.forget(k)
    elif model.nonspatial is not None:
        i = k - model.n_spatial
        model.nonspatial.loc[:, i] = 0.0
        model.nonspatial.log_scale[:, i] = model.nonspatial.log_sigma[i]


@torch.no_grad()
def join(
    model: Factorization,
    blocks: list[Block],
    graph: sp.csr_matrix,
    ordered: Sequence[int] = (),
    z: np.ndarray | None = None,
) -> dict[int, Adopted]:
    """Factors with the loadings of another one become part of it.

    With deviations of single spots nothing is lost. Of nonspatial ones, that with the highest order
    ``z`` [K] takes over the others.

    Spatial factors and those nonspatial ones that are ``ordered`` may also have loadings that are a
    mixture of several. Where each factor that has taken over another begins is returned.
    """
    with same_total(model):
        return _join(model, blocks, graph, ordered, z)


def _join(
    model: Factorization,
    blocks: list[Block],
    graph: sp.csr_matrix,
    ordered: Sequence[int],
    z: np.ndarray | None,
) -> dict[int, Adopted]:
    """The same, without regard to the total."""
    m, joined = log_factors(model, blocks), {}

    def put(k: int, joint: Tensor, loadings: list[Tensor]) -> None:
        share = _field_share(joint, graph)
        _put(model, blocks, k, joint, loadings, like=k, share=share)
        joined[k] = Adopted(joint - joint.mean(), (1 - share) * float(joint.var()))
        m[:, k] = joint - joint.mean()  # the loadings have taken the mean

    for k, others in _equal(Standing(model, blocks, graph, m=m), z).items():
        joint, loadings = _sum(model, m, [k, *others])
        for l in others:
            _switch_off(model, l)
        put(k, joint, loadings)
    while True:
        standing = Standing(model, blocks, graph, m=m)
        used = [k for k in [*range(model.n_spatial), *ordered] if standing.largest[k] > ALIVE]
        mixtures = standing.mixtures(below=MIXED, among=used)
        if not mixtures:
            return joined
        l = min(mixtures, key=lambda k: float(standing.size[k]))
        parts = standing.parts(used, l)
        for k, joint in _divided(model, m, standing.products, l, parts).items():
            put(k, joint, [view.loadings.mean[:, k].clone() for _, view in model.items()])
        _switch_off(model, l)
        m[:, l] = 0.0
        joined.pop(l, None)


def _equal(standing: Standing, z: np.ndarray | None) -> dict[int, list[int]]:
    """For each factor those that have its loadings: smaller spatial ones, nonspatial ones of less order.

    Spatial ones take over nonspatial ones of any size.
    """
    T, size = standing.T, standing.size
    order = np.zeros(len(size)) if z is None else np.nan_to_num(z)
    # who takes over stands behind: by kind, by order among nonspatial ones, by size
    place = {k: (k < T, 0.0 if k < T else order[k], float(size[k])) for k in range(len(size))}
    owner: dict[int, int] = {}
    factors = standing.worth(spatial=True) + standing.worth(spatial=False)
    for l in sorted(factors, key=lambda k: place[k]):
        above = [k for k in factors if place[k] > place[l] and standing.likeness[k, l] > EQUAL]
        if above:  # a spatial one first
            owner[l] = max(above, key=lambda k: (k < T, float(standing.likeness[k, l])))
    for l in owner:
        while owner[l] in owner:  # taken over itself
            owner[l] = owner[owner[l]]
    return {k: [l for l, other in owner.items() if other == k] for k in sorted(set(owner.values()))}


@torch.no_grad()
def occupy(
    model: Factorization, blocks: list[Block], k: int, log_factor: Tensor, loadings: list[Tensor]
) -> None:
    """Put a new factor with log values [N] and loadings [P] of each modality in the place of k."""
    with same_total(model):
        _switch_off(model, k)
        _put(model, blocks, k, log_factor, loadings)


@torch.no_grad()
def adopt(
    model: Factorization, blocks: list[Block], graph: sp.csr_matrix, log_factor: Tensor
) -> dict[int, Adopted]:
    """Give the last spatial factors fields and deviations, without training.

    Both are those that the log factors [N, n] ask for.
    """
    if model.spatial is None:
        return {}
    located, adopted, field = [block.located for block in blocks], {}, model.spatial.field
    first = model.n_spatial - log_factor.shape[1]
    for slot, own in enumerate(log_factor.T, start=first):
        share, centred = _field_share(own, graph), own - own.mean()
        noise_sd, amplitude = _ridge(own, share)
        field.put(slot, centred, located, noise_sd=noise_sd, amplitude=amplitude)
        adopted[slot] = Adopted(centred, (1 - share) * float(own.var()))
    return adopted


def _field_share(log_factor: Tensor, graph: sp.csr_matrix) -> float:
    """Moran's I of a log factor [N], about the share of its variance that a field can hold."""
    return min(max(float(order_of(log_factor[:, None], graph)[0]), SPLIT[0]), SPLIT[1])
