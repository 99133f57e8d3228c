r"""Weights of modalities: what held-out counts confirm of what their loadings say.

Loadings of many features with few counts each follow noise, and the factors then follow the
loadings. With rates r of a fit of half of the counts, and rates r0 that differ between features
only, the loadings explain ``G = log p(y | r) - log p(y | r0)`` of the counts y that were fitted. Of
counts that were not, they explain less, and most where they are drawn towards the mean:

    G' = max_l log p(y' | l r + (1 - l) r0) - log p(y' | r0),    0 <= l <= 1

``G' / G`` is signal over signal and noise. An estimating equation, such as that of a factor in the
counts of a modality, has the least error where it is weighted by the ratio of its expected slope to
its variance (Godambe 1960), which is the same: so modalities weigh by it. Real values, whose halves
are not independent, keep their weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from gpnsf.core.likelihoods.moments import MEAN_RANGE
from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.types import TINY, Dataset

__all__ = ["LEAST", "confirmed", "weighed", "weights"]

PRIOR = 0.5  # counts that are added to each feature, at most, so that no mean is zero
LEAST = 0.03  # weight of a modality of which nothing is confirmed: its loadings are still learnt


@torch.no_grad()
def confirmed(model: Factorization, m: Tensor, fitted: Dataset, kept: Dataset) -> dict[str, float]:
    """Share, 0 to 1, of what the loadings of each modality of counts explain that held-out counts confirm.

    ``m`` [N, K] are the log factors of the fit of ``fitted``. All counts are scored as Poisson
    counts.
    """
    pairs = list(zip(model.blocks(fitted), model.blocks(kept), strict=True))
    m = model.relative(m)
    factors = torch.cat([m.clamp(*MEAN_RANGE).exp(), torch.ones_like(m[:, :1])], 1)
    shares = {}
    for name, view in model.items():
        if view.likelihood.signed:
            continue
        means = _means([block for block, _ in pairs], name)
        scores = [_Scores(name), _Scores(name)]
        for pair in pairs:
            W = view.loadings_of(pair[0].batch)
            for score, block in zip(scores, pair, strict=True):
                score.see(block, factors[block.rows], W, means[block.batch])
        own, other = scores[0].gain(1.0), scores[1].best_gain()
        shares[name] = float(np.clip(other / own, 0.0, 1.0)) if own > 0 else 0.0
    return shares


def _means(blocks: list[Block], name: str) -> dict[int, Tensor]:
    """Counts [P] of each feature per unit of size factor, in each batch."""
    sums, sizes = dict[int, Tensor](), dict[int, Tensor]()
    for block in blocks:
        sums[block.batch] = sums.get(block.batch, TINY) + block.counts[name].column_sums
        sizes[block.batch] = sizes.get(block.batch, TINY) + block.size[name].sum()
    prior = {batch: PRIOR * total.mean().clamp_max(1.0) for batch, total in sums.items()}
    return {batch: (total + prior[batch]) / sizes[batch] for batch, total in sums.items()}


class _Scores:
    """Poisson log likelihood of some counts of a modality between mean rates and those of a fit."""

    def __init__(self, name: str) -> None:
        self.name, self.total = name, np.zeros(2)  # of mean rates, and of those of the fit
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def see(self, block: Block, factors: Tensor, W: Tensor, mean: Tensor) -> None:
        """Take in the counts of a block."""
        counts, size = block.counts[self.name], block.size[self.name]
        A = size * factors
        means = counts.rates(size, mean[:, None].contiguous()).double()
        self._parts.append((counts.values, means, counts.rates(A, W).double() + TINY))
        self.total += [
            float(size.double().sum() * mean.double().sum()),
            float(A.double().sum(0) @ W.double().sum(0)),
        ]

    def gain(self, share: float) -> float:
        """Of rates drawn towards the mean but for a share, over mean rates."""
        logs = sum(
            float(values.double() @ torch.log1p(share * (rates / means - 1)))
            for values, means, rates in self._parts
        )
        return logs - share * float(self.total[1] - self.total[0])

    def best_gain(self) -> float:
        """With the share that is best, 0 to 1."""
        found = minimize_scalar(lambda share: -self.gain(share), bounds=(0, 1), method="bounded")
        return -float(found.fun)


def weights(shares: Sequence[Mapping[str, float]], growth: float) -> dict[str, float]:
    """Weights of the modalities from what is confirmed of each, that of the best one being 1.

    None where nothing is confirmed of any. ``growth``: counts of the data to be weighed over those
    of each fit that the shares are of. Signal grows with them, noise does not.
    """
    mean = {name: float(np.mean([share[name] for share in shares])) for name in shares[0]}
    grown = {name: growth * share / (1 + (growth - 1) * share) for name, share in mean.items()}
    best = max(grown.values(), default=0.0)
    return {name: max(LEAST, share / best) for name, share in grown.items()} if best else {}


def weighed(dataset: Dataset, weights: Mapping[str, float]) -> Dataset:
    """The dataset with the modalities that are named at their weights."""
    views = [replace(view, weight=weights.get(view.name, view.weight)) for view in dataset.views]
    return replace(dataset, views=tuple(views))
