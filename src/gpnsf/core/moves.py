"""Moves between optima that gradients do not find: merge two factors, give a nonspatial factor a field.

Each is a change of the parameters, followed by a few steps, and kept where the objective has risen (``training``). A factor that
is merged away is switched off: next to no loadings, and its posterior at the prior. Switched-off factors are what moves make
room from, so the numbers of factors stay as they were asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gpnsf.core import distributed
from gpnsf.core.metrics import knn_weights, morans_i
from gpnsf.core.model import Block, Factorization

__all__ = ["ALIVE", "Adopted", "Move", "adopt", "join", "log_factors", "neighbours", "proposals", "shares"]

ALIVE = 1e-3  # share of the expected counts of some modality below which a factor is switched off
WORTH = 1e-2  # share below which a factor is not worth a move
ORDER = 0.5  # Moran's I of a nonspatial factor that may have a field
SURE, ALIKE, SAME = 0.8, 0.6, 0.9  # likeness of spatial pairs merged together or singly, and of nonspatial pairs
LEAST_SIGNAL = 0.5  # of the square of a column of loadings, whatever its noise
EQUAL = 0.95  # cosine of the loadings of factors that are one
N_NEIGHBORS = 8
SPLIT = (0.05, 0.95)  # bounds of the share of a log factor's variance that is given to its field


@dataclass(frozen=True)
class Move:
    """A change of the parameters."""

    name: str
    make: Callable[[], None]


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
        yield Move(f"merge {_listed(disjoint)}", lambda: [_merge(standing, *pair) for pair in disjoint])
    for spatial, above in ((True, ALIKE), (False, SAME)):
        for pair in standing.pairs(spatial=spatial, above=above):
            yield Move(f"merge {_listed([pair])}", lambda pair=pair: _merge(standing, *pair))


def _promotions(standing: _Standing) -> Iterator[Move]:
    """Nonspatial factors with order, each into a free spatial slot, or into that of a factor merged into another."""
    for k in sorted(standing.worth(spatial=False), key=lambda k: -standing.order[k]):
        if standing.order[k] < ORDER:
            return
        if standing.off:
            slot = standing.off[0]
            yield Move(f"nonspatial {k} to spatial {slot}", lambda k=k, slot=slot: _promote(standing, k, slot))
        elif pairs := standing.pairs(spatial=True, above=-1.0):
            pair = pairs[0]
            name = f"merge {_listed([pair])}, nonspatial {k} to spatial {pair[1]}"
            yield Move(name, lambda k=k, pair=pair: (_merge(standing, *pair), _promote(standing, k, pair[1])))


def _listed(pairs: list[tuple[int, int]]) -> str:
    """Pairs in a name."""
    return " and ".join(f"{l} into {k}" for k, l in pairs)


def _merge(standing: _Standing, k: int, l: int) -> None:
    """Factor k takes over what l has."""
    joint, loadings = _sum(standing, [k, l])
    _switch_off(standing.model, l)
    _put(standing, k, joint, loadings, like=k)


def _sum(standing: _Standing, members: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Log factor [N] and loadings of the sum of factors, each weighted by its loadings."""
    views = [view.loadings.mean for _, view in standing.model.items()]
    mass = torch.stack([sum(W[:, k].sum() for W in views) for k in members]).clamp_min(1e-30).log()  # type: ignore[misc]
    joint = torch.logsumexp(standing.m[:, members] + mass, 1) - torch.logsumexp(mass, 0)
    return joint, [W[:, members].sum(1) for W in views]


def _promote(standing: _Standing, k: int, slot: int) -> None:
    """The nonspatial factor k becomes the spatial factor in a slot."""
    loadings = [view.loadings.mean[:, k].clone() for _, view in standing.model.items()]
    _switch_off(standing.model, k)
    _put(standing, slot, standing.m[:, k], loadings)


def _put(
    standing: _Standing,
    k: int,
    log_factor: Tensor,
    loadings: list[Tensor],
    *,
    like: int | None = None,
    share: float | None = None,
) -> None:
    """Set factor k; with ``share``, its field gets that share of the variance, as a ridge with the rest as noise leaves it."""
    model, shift = standing.model, torch.zeros((), device=log_factor.device)
    if k >= standing.T:
        model.nonspatial.loc.data[:, k - standing.T] = log_factor  # type: ignore[union-attr]
    else:
        shift, std = log_factor.mean(), float(log_factor.std())
        noise = {"noise_sd": max(std * (1 - share) ** 0.5, 0.05), "amplitude": std * share**0.5} if share else {}
        located = [block.located for block in standing.blocks]
        model.spatial.field.put(k, log_factor - shift, located, like=like, **noise)  # type: ignore[union-attr]
    for (_, view), W in zip(model.items(), loadings, strict=True):
        view.loadings.put(k, W * shift.exp(), like)


def _switch_off(model: Factorization, k: int) -> None:
    """Factor k at its prior, with next to no loadings."""
    for _, view in model.items():
        view.loadings.switch_off(k)
    if k < model.n_spatial:
        model.spatial.field.forget(k)  # type: ignore[union-attr]
        return
    factors, i = model.nonspatial, k - model.n_spatial
    factors.loc.data[:, i] = 0.0  # type: ignore[union-attr]
    factors.log_scale.data[:, i] = factors.log_sigma.data[i]  # type: ignore[union-attr]


@torch.no_grad()
def join(model: Factorization, blocks: list[Block], graph: sp.csr_matrix) -> dict[int, Adopted]:
    """Factors with the loadings of a spatial one become part of it, by slot: with deviations around its field nothing is lost."""
    standing, joined = _Standing(model, blocks, graph, patterns=False), {}
    for k, others in _equal(standing).items():
        joint, loadings = _sum(standing, [k, *others])
        for l in others:
            _switch_off(model, l)
        share = _field_share(joint, graph)
        _put(standing, k, joint, loadings, like=k, share=share)
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
    located, adopted = [block.located for block in blocks], {}
    for i, own in enumerate(torch.as_tensor(log_factor, device=blocks[0].located.coords.device).T):
        share, std = _field_share(own, graph), float(own.std())
        slot, centred = model.n_spatial - log_factor.shape[1] + i, own - own.mean()
        ridge = {"noise_sd": max(std * (1 - share) ** 0.5, 0.05), "amplitude": std * share**0.5}
        model.spatial.field.put(slot, centred, located, **ridge)  # type: ignore[union-attr]
        adopted[slot] = Adopted(centred, (1 - share) * std**2)
    return adopted


def _field_share(log_factor: Tensor, graph: sp.csr_matrix) -> float:
    """Moran's I of a log factor [N], which is about the share of its variance that a field can hold."""
    order = float(morans_i(log_factor[:, None].double().cpu().numpy(), graph)[0])
    return min(max(order, SPLIT[0]), SPLIT[1])
