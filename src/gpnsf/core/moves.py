"""Moves between optima that gradients do not find: merge two factors, give a nonspatial factor a field.

Each is a change of the parameters, followed by a few steps, and kept where the objective has risen (``training``). A factor that
is merged away is switched off: next to no loadings, and its posterior at the prior. Switched-off factors are what moves make
room from, so the numbers of factors stay as they were asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gpnsf.core import distributed
from gpnsf.core.metrics import knn_weights, morans_i
from gpnsf.core.model import Block, Factorization

__all__ = ["ALIVE", "Adopted", "Move", "adopt", "join", "log_factors", "make", "neighbours", "proposals", "shares"]

ALIVE = 1e-3  # share of the expected counts of some modality below which a factor is switched off
WORTH = 1e-2  # share below which a factor is not worth a move
ORDER = 0.5  # Moran's I of a nonspatial factor that may have a field
SURE, ALIKE, SAME = 0.8, 0.6, 0.9  # likeness of spatial pairs merged together or singly, and of nonspatial pairs
LEAST_SIGNAL = 0.5  # of the square of a column of loadings, whatever its noise
EQUAL = 0.95  # cosine of the loadings of factors that are one
N_NEIGHBORS = 8
USUAL_NOISE, LEAST_NOISE = 0.2, 0.05  # of the ridge that makes a field of a log factor
SPLIT = (0.05, 0.95)  # bounds of the share of a log factor's variance that is given to its field


@dataclass(frozen=True)
class Move:
    """Factors to merge, and a nonspatial factor to put into a spatial slot after that."""

    merges: tuple[tuple[int, int], ...] = ()  # (k, l): k takes over what l has
    promotion: tuple[int, int] | None = None  # a nonspatial factor, and its slot

    @property
    def name(self) -> str:
        """The move in words."""
        parts = [f"merge {l} into {k}" for k, l in self.merges]
        if self.promotion:
            parts.append("nonspatial {} to spatial {}".format(*self.promotion))
        return ", ".join(parts)


@dataclass(frozen=True)
class Adopted:
    """A factor that got a field without training: where the local stage begins with it."""

    log_factor: Tensor  # [N], centred
    nugget: float  # variance around the field


@torch.no_grad()
def log_factors(model: Factorization, blocks: list[Block]) -> Tensor:
    """Means [N, K] of the log factors of all rows."""
    return distributed.by_block(blocks, lambda block: model.marginals(block)[0])


@torch.no_grad()
def shares(model: Factorization, m: Tensor) -> Tensor:
    """Share [V, K] of the expected counts of each modality that is of each factor."""
    level = torch.cat([m.clamp(-12.0, 8.0).exp().mean(0), torch.ones(1, device=m.device)])
    parts = [view.loadings.mean.sum(0) * level for _, view in model.items()]
    return torch.stack([part[:-1] / part.sum().clamp_min(1e-30) for part in parts])


def neighbours(blocks: list[Block]) -> sp.csr_matrix:
    """Weights [N, N] of the neighbours of each row within its slice."""
    coords = torch.cat([block.located.coords + 1e3 * block.located.library[:, None] for block in blocks])
    return knn_weights(coords.double().cpu().numpy(), n_neighbors=min(N_NEIGHBORS, len(coords) - 1))


def alike(model: Factorization, m: Tensor, *, patterns: bool) -> Tensor:
    """Cosines [K, K] of the loadings of all modalities, in units of Poisson's noise and with that noise taken out.

    In counts a spot a feature has ``W_jk e_k`` of a factor, with standard error ``sqrt(W_jk e_k / N)``; divided by the root of all
    its counts, each modality weighs by what it tells. With ``patterns``, the correlation of the factors where that is higher.
    """
    level = torch.cat([m.clamp(-12.0, 8.0).exp().mean(0), torch.ones(1, device=m.device)])
    products, noise = torch.zeros(2, model.n_factors, model.n_factors, device=m.device)
    for _, view in model.items():
        counts = view.loadings.mean * level
        total = counts.sum(1, keepdim=True) + 1e-12
        columns = counts[:, :-1] / total.sqrt()
        products = products + columns.T @ columns
        noise = noise + torch.diag((counts[:, :-1] / total).sum(0) / model.n_obs)
    squares = products.diagonal()
    length = torch.maximum(squares - noise.diagonal(), LEAST_SIGNAL * squares).clamp_min(1e-30).sqrt()
    likeness = (products / (length[:, None] * length)).clamp_max(1.0)
    if patterns:
        likeness = torch.maximum(likeness, torch.corrcoef(m.clamp(-6.0, 6.0).exp().T).nan_to_num(0.0))
    return likeness.fill_diagonal_(0.0)


class _Standing:
    """Where the factors stand: how large each is, how alike two are, and how much order a nonspatial one has."""

    def __init__(self, model: Factorization, blocks: list[Block], graph: sp.csr_matrix, *, patterns: bool) -> None:
        self.model, self.blocks, self.T = model, blocks, model.n_spatial
        self.m = log_factors(model, blocks)
        share = shares(model, self.m)
        self.size, self.largest = share.sum(0), share.amax(0)
        self.likeness = alike(model, self.m, patterns=patterns)
        self.order = np.zeros(model.n_factors)
        if 0 < self.T < model.n_factors:
            self.order[self.T :] = morans_i(self.m[:, self.T :].double().cpu().numpy(), graph)

    @property
    def off(self) -> list[int]:
        """Spatial slots that are free."""
        return [k for k in range(self.T) if self.largest[k] <= ALIVE]

    def worth(self, *, spatial: bool) -> list[int]:
        """Spatial or nonspatial factors that are worth a move."""
        factors = range(self.T) if spatial else range(self.T, self.model.n_factors)
        return [k for k in factors if self.largest[k] > WORTH]

    def pairs(self, *, spatial: bool, above: float) -> list[tuple[int, int]]:
        """Pairs more alike than a bound, the most alike first; the larger factor of a pair stands first."""
        pairs = [(k, l) for k, l in combinations(self.worth(spatial=spatial), 2) if self.likeness[k, l] > above]
        pairs.sort(key=lambda pair: -float(self.likeness[pair]))
        return [(k, l) if self.size[k] >= self.size[l] else (l, k) for k, l in pairs]


@torch.no_grad()
def proposals(model: Factorization, blocks: list[Block], graph: sp.csr_matrix) -> Iterator[Move]:
    """The moves worth trying from here, best guesses first."""
    standing = _Standing(model, blocks, graph, patterns=True)
    yield from _promotions(standing)
    disjoint: list[tuple[int, int]] = []
    for pair in standing.pairs(spatial=True, above=SURE):
        if not set(pair) & {k for other in disjoint for k in other}:
            disjoint.append(pair)
    if len(disjoint) > 1:
        yield Move(tuple(disjoint))
    for spatial, above in ((True, ALIKE), (False, SAME)):
        for pair in standing.pairs(spatial=spatial, above=above):
            yield Move((pair,))


def _promotions(standing: _Standing) -> Iterator[Move]:
    """Nonspatial factors with order, each into a free spatial slot, or into that of a factor merged into another."""
    for k in sorted(standing.worth(spatial=False), key=lambda k: -standing.order[k]):
        if standing.order[k] < ORDER:
            return
        if standing.off:
            yield Move(promotion=(k, standing.off[0]))
        elif pairs := standing.pairs(spatial=True, above=-1.0):
            yield Move((pairs[0],), promotion=(k, pairs[0][1]))


@torch.no_grad()
def make(move: Move, model: Factorization, blocks: list[Block]) -> None:
    """Change the parameters as a move says."""
    m = log_factors(model, blocks)
    for k, l in move.merges:
        joint, loadings = _sum(model, m, [k, l])
        _switch_off(model, l)
        _put(model, blocks, k, joint, loadings, like=k)
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
    """Set factor k; with ``share``, its field gets that share of the variance, as a ridge with the rest as noise leaves it."""
    shift = torch.zeros((), device=log_factor.device)
    if model.spatial is not None and k < model.n_spatial:
        shift = log_factor.mean()
        located, (noise_sd, amplitude) = [block.located for block in blocks], _ridge(log_factor, share)
        model.spatial.field.put(k, log_factor - shift, located, like=like, noise_sd=noise_sd, amplitude=amplitude)
    elif model.nonspatial is not None:
        model.nonspatial.loc[:, k - model.n_spatial] = log_factor
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
def join(model: Factorization, blocks: list[Block], graph: sp.csr_matrix) -> dict[int, Adopted]:
    """Factors with the loadings of a spatial one become part of it, by slot: with deviations around its field nothing is lost."""
    standing, joined = _Standing(model, blocks, graph, patterns=False), {}
    for k, others in _equal(standing).items():
        joint, loadings = _sum(model, standing.m, [k, *others])
        for l in others:
            _switch_off(model, l)
        share = _field_share(joint, graph)
        _put(model, blocks, k, joint, loadings, like=k, share=share)
        joined[k] = Adopted(joint - joint.mean(), (1 - share) * float(joint.var()))
    return joined


def _equal(standing: _Standing) -> dict[int, list[int]]:
    """For each spatial factor the smaller ones that have its loadings."""
    owner: dict[int, int] = {}
    factors = standing.worth(spatial=True) + standing.worth(spatial=False)
    for l in sorted(factors, key=lambda k: float(standing.size[k])):
        larger = [
            k
            for k in standing.worth(spatial=True)
            if k != l
            and k not in owner
            and (l >= standing.T or standing.size[k] >= standing.size[l])
            and standing.likeness[k, l] > EQUAL
        ]
        if larger:
            owner[l] = max(larger, key=lambda k: float(standing.likeness[k, l]))
    return {k: [l for l, other in owner.items() if other == k] for k in sorted(set(owner.values()))}


@torch.no_grad()
def adopt(model: Factorization, blocks: list[Block], graph: sp.csr_matrix, log_factor: Tensor) -> dict[int, Adopted]:
    """Give the last spatial factors of a model the fields and deviations that log factors [N, n] ask for, without training."""
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
    """Moran's I of a log factor [N], which is about the share of its variance that a field can hold."""
    order = float(morans_i(log_factor[:, None].double().cpu().numpy(), graph)[0])
    return min(max(order, SPLIT[0]), SPLIT[1])
