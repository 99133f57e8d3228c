"""How factors stand to each other: what each is worth, and which are alike."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import scipy.sparse as sp
import torch
from scipy.optimize import nnls
from torch import Tensor

from gpnsf.core import distributed
from gpnsf.core.inference.confirmed import LEAST
from gpnsf.core.likelihoods.moments import MEAN_RANGE
from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.scores.metrics import apart, knn_weights, morans_i

__all__ = [
    "ALIVE",
    "HALF_MIXED",
    "LEAST_PART",
    "MIXED",
    "SPARE",
    "N_NEIGHBORS",
    "WORTH",
    "Standing",
    "log_factors",
    "mixture",
    "neighbours",
    "order_of",
    "overlap",
    "shares",
]

ALIVE = 1e-3  # share of the expected counts of some modality below which a factor is switched off
WORTH = 1e-2  # share up to which a factor is not worth a move
SPARE = 2e-2  # share up to which its place may go to a pattern that the fit has lost
MOST_NOISE = 0.5  # of the square of a column of loadings, that can be taken out
MIXED, HALF_MIXED = 0.1, 0.3  # share of a factor's loadings that those of others leave over
LEAST_PART = 1e-3  # of a factor that another takes over
N_NEIGHBORS = 8


@torch.no_grad()
def log_factors(model: Factorization, blocks: list[Block]) -> Tensor:
    """Means [N, K] of the log factors of all rows."""
    return distributed.by_block(blocks, lambda block: model.marginals(block)[0])


@torch.no_grad()
def shares(model: Factorization, m: Tensor) -> Tensor:
    """Share [V, K] of the expected counts of each modality that is of each factor, at its weight."""
    level = _levels(model.relative(m))
    parts = [view.loadings.mean.sum(0) * level for _, view in model.items()]
    return torch.stack(
        [
            weight * part[:-1] / part.sum().clamp_min(1e-30)
            for weight, part in zip(_weights(model), parts, strict=True)
        ]
    )


def _levels(m: Tensor) -> Tensor:
    """Mean [K+1] over spots of the factors with these log values [N, K], and of the background."""
    return torch.cat([m.clamp(*MEAN_RANGE).exp().mean(0), torch.ones(1, device=m.device)])


def _weights(model: Factorization) -> list[float]:
    """Weights of the modalities over the largest one; 0 at ``LEAST`` or less, found or asked for."""
    weights = [view.weight for _, view in model.items()]
    shares = [weight / max(weights) for weight in weights]
    return [share if share > LEAST else 0.0 for share in shares]


def neighbours(blocks: list[Block]) -> sp.csr_matrix:
    """Weights [N, N] of the neighbours of each row within its slice."""
    places = [block.located for block in blocks]
    coords = torch.cat([place.coords for place in places]).cpu().numpy()
    library = torch.cat([place.library for place in places]).cpu().numpy()
    return knn_weights(apart(coords, library), n_neighbors=N_NEIGHBORS)


@torch.no_grad()
def order_of(log_factors: Tensor, graph: sp.csr_matrix) -> np.ndarray:
    """Moran's I [k] of log factors [N, k]."""
    return morans_i(log_factors.double().cpu().numpy(), graph)


@torch.no_grad()
def overlap(model: Factorization, m: Tensor, *, centred: bool = False) -> np.ndarray:
    """Products [K, K] of the loadings of all modalities, in units of Poisson's noise.

    That noise is taken out, and modalities are at their weights. Loadings may be ``centred``: without
    the part that goes as the mean profile.

    In counts a spot a feature has ``W_jk e_k`` of a factor, with standard error
    ``sqrt(W_jk e_k / N)``; divided by the root of all its counts, each modality weighs by what it
    tells.
    """
    level = _levels(model.relative(m))
    products, noise = torch.zeros(2, model.n_factors, model.n_factors, device=m.device)
    for weight, (_, view) in zip(_weights(model), model.items(), strict=True):
        counts = view.loadings.mean * level
        total = counts.sum(1, keepdim=True) + 1e-12
        columns = counts[:, :-1] / total.sqrt()
        if centred:
            mean = total.sqrt() / total.sum().sqrt()
            columns = columns - mean @ (mean.T @ columns)
        products = products + weight * columns.T @ columns
        noise = noise + weight * torch.diag((counts[:, :-1] / total).sum(0) / model.n_obs)
    squares, noise = products.diagonal(), noise.diagonal()
    # where it is most of a column, nobody can say what is left without it
    known = noise < MOST_NOISE * squares
    products.diagonal().copy_(torch.where(known, squares - noise, squares).clamp_min(1e-30))
    return products.double().cpu().numpy()


def mixture(products: np.ndarray, k: int, others: list[int]) -> tuple[float, np.ndarray]:
    """Nonnegative weights with which other loadings make up those of factor k.

    The share that is left over comes with them.
    """
    values, vectors = np.linalg.eigh(products[np.ix_(others, others)])
    root = np.sqrt(np.maximum(values, 1e-9 * values[-1]))
    weights, _ = nnls(root[:, None] * vectors.T, vectors.T @ products[others, k] / root)
    explained = (
        2 * weights @ products[others, k] - weights @ products[np.ix_(others, others)] @ weights
    )
    return 1 - explained / products[k, k], weights


class Standing:
    """Where the factors stand.

    How large each is, how alike two are, and how much order a nonspatial one has.

    Where log factors ``m`` [N, K] are given, likeness is that of loadings alone. That of relative
    factors is then without the mean profile, which is what a spot has less of where it has more of
    any factor.
    """

    def __init__(
        self,
        model: Factorization,
        blocks: list[Block],
        graph: sp.csr_matrix,
        m: Tensor | None = None,
    ) -> None:
        self.model, self.T = model, model.n_spatial
        self.m = log_factors(model, blocks) if m is None else m
        share = shares(model, self.m)
        self.size, self.largest = share.sum(0), share.amax(0)
        self.products = overlap(model, self.m, centred=m is not None and model.by_total)
        length = np.sqrt(self.products.diagonal())
        self.likeness = np.minimum(self.products / np.outer(length, length), 1.0)
        if m is None:
            correlation = torch.corrcoef(self.m.clamp(-6.0, 6.0).exp().T).nan_to_num(0.0)
            self.likeness = np.maximum(self.likeness, correlation.cpu().numpy())
        self.order = np.zeros(model.n_factors)
        if 0 < self.T < model.n_factors:
            self.order[self.T :] = order_of(self.m[:, self.T :], graph)

    @property
    def off(self) -> list[int]:
        """Spatial slots that are free."""
        return [k for k in range(self.T) if self.largest[k] <= ALIVE]

    def worth(self, *, spatial: bool) -> list[int]:
        """Spatial or nonspatial factors that are worth a move."""
        factors = range(self.T) if spatial else range(self.T, self.model.n_factors)
        return [k for k in factors if self.largest[k] > WORTH]

    def pairs(self, *, spatial: bool, above: float) -> list[tuple[int, int]]:
        """Pairs more alike than a bound, the most alike first.

        The larger factor of a pair stands first.
        """
        pairs = [
            (k, l)
            for k, l in combinations(self.worth(spatial=spatial), 2)
            if self.likeness[k, l] > above
        ]
        pairs.sort(key=lambda pair: -float(self.likeness[pair]))
        return [(k, l) if self.size[k] >= self.size[l] else (l, k) for k, l in pairs]

    def mixtures(self, below: float, among: list[int] | None = None) -> list[int]:
        """Of some factors those whose loadings are a mixture of those of others, but for a part.

        The best explained ones come first. Default: spatial factors that are worth a move.
        """
        among, left = self.worth(spatial=True) if among is None else among, {}
        for k in among:
            parts = self.parts(among, k)
            left[k] = mixture(self.products, k, parts)[0] if parts else 1.0
        return [k for k in sorted(left, key=lambda k: left[k]) if left[k] < below]

    def parts(self, among: list[int], k: int) -> list[int]:
        """Of some factors those, worth a move, that factor k may be a mixture of."""
        return [l for l in among if l != k and self.largest[l] > WORTH]
