"""What the factors of a start, or of a fit, leave over of the counts, and where it finds a place.

Growing and merging looks at the leading modality, and at the counts of all its features together. A
pattern that few counts know, or another modality alone, shows in the residuals: as a singular
vector longer than that of the same residuals with random signs (Hong et al. 2020). So does one that
a fit has lost, in the place of which it has a factor that the counts hardly ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gpnsf.core import distributed
from gpnsf.core.families.base import Family
from gpnsf.core.inference.bins import at_spots, n_bins, order_of_bins, square_bins
from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.scores.metrics import apart
from gpnsf.core.types import TINY, View

__all__ = ["LeftOver", "fill", "leading_pattern", "means_of_bins", "ordered_pattern"]

CLEAR = 1.1  # length of a pattern over that of noise
LOW = 0.1  # of its mean, where a pattern is absent
LEAST_ORDER = 0.3  # Moran's I of a pattern that is given a place
N_UPDATES = 10  # of the loadings of a pattern
# loadings of a pattern: first ones over the mean rate of the feature, and the lowest over the first
FIRST_LOADING, LOWEST = 0.1, 0.03
N_ITERATIONS = 30


def leading_pattern(counts: Tensor, rates: Tensor, seed: int) -> Tensor | None:
    """Pattern [B, 1] of mean one that rates [B, P] leave over of binned counts.

    None where nothing is left over but noise.
    """
    means = torch.outer(rates.sum(1), rates.sum(0)) / (rates.sum() + TINY) + TINY
    residuals = (counts - rates) / means.sqrt()
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, residuals.shape, generator=generator).mul_(2).sub_(1)
    _, noise = _leading(residuals * signs, generator)
    vector, length = _leading(residuals, generator)
    if length <= CLEAR * noise:
        return None
    high = (vector * vector.pow(3).sum().sign()).clamp_min(0.0)  # high in the fewer bins
    return ((1 - LOW) * high / high.mean() + LOW)[:, None]


def ordered_pattern(
    counts: Tensor, rates: Tensor, centres: np.ndarray, places: np.ndarray, seed: int
) -> Tensor | None:
    """Pattern [N, 1] at the places [N, D] of spots that rates leave over of counts [B, P] in bins.

    None where it is noise, or has no spatial order at the centres [B, D] of the bins.
    """
    pattern = leading_pattern(counts, rates, seed)
    if pattern is None or order_of_bins(centres, pattern)[0] < LEAST_ORDER:
        return None
    return at_spots(pattern, centres, places)


def means_of_bins(rates: np.ndarray, n_spots: np.ndarray, family: Family) -> np.ndarray:
    """Expected counts [B, P] of bins with these rates, which each have so many spots [B, 1]."""
    return (n_spots * family.mean(rates / n_spots)).astype(np.float32)


def _leading(matrix: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
    """Leading left singular vector [B] and its singular value, by power iteration."""
    right = torch.randn(matrix.shape[1], generator=generator)
    for _ in range(N_ITERATIONS):
        left = matrix @ right
        left = left / (left.norm() + TINY)
        right = matrix.T @ left
    return left, float(right.norm())


def fill(
    factors: Tensor, loadings: Mapping[str, Tensor], views: Sequence[View], n_spatial: int
) -> Tensor | None:
    """Factors [N, K] with the last of K + 1, a newcomer, in a spatial place.

    Two alike factors are joined, or a small one is dropped, whatever costs least. None where it is
    the newcomer that would be dropped, or joined. Loadings [P, K + 2], background last, are those
    of each modality of counts.
    """
    K = factors.shape[1] - 1
    candidates = [*range(n_spatial), K]
    cost = costs(factors, loadings, views, candidates)
    k, l = (candidates[i] for i in sorted(divmod(int(cost.argmin()), len(cost))))
    if l == K:
        return None
    filled = factors[:, :K].clone()
    if k != l:
        mass = torch.stack([W[:, [k, l]].sum(0) for W in loadings.values()]).sum(0)
        filled[:, k] = (factors[:, [k, l]] * mass).sum(1) / mass.sum()
    filled[:, l] = factors[:, K]
    return filled


def costs(
    factors: Tensor,
    loadings: Mapping[str, Tensor],
    views: Sequence[View],
    candidates: list[int],
) -> Tensor:
    """Cost [C, C] of joining two candidates among the factors [N, K], or on the diagonal of dropping one.

    It is the squared change of rates over mean rates, twice what the Poisson likelihood loses.
    Loadings [P, K + 1], background last, are those of each modality of counts.
    """
    H = factors[:, candidates]
    mass = torch.stack([W[:, candidates].sum(0) for W in loadings.values()]).sum(0)  # [C]
    cost = torch.zeros(len(candidates), len(candidates))
    for view in views:
        size, W = torch.as_tensor(view.size), loadings[view.name]
        level = torch.cat([size @ factors, size.sum()[None]])  # [K + 1]
        W, mean = W[:, candidates], W @ level + TINY
        spots = float(size.sum()) * (H * size[:, None]).T @ H
        features = (W / mean[:, None]).T @ W
        dropped = spots.diagonal() * features.diagonal()
        joined = _squared_distances(spots) * _squared_distances(features / torch.outer(mass, mass))
        joined *= (torch.outer(mass, mass) / (mass + mass[:, None])).square()
        cost += view.weight * torch.where(torch.eye(len(mass), dtype=torch.bool), dropped, joined)
    return cost


def _squared_distances(products: Tensor) -> Tensor:
    """Squared distances [K, K] of vectors with these inner products."""
    squares = products.diagonal()
    return squares + squares[:, None] - 2 * products


class LeftOver:
    """What a model leaves over of the counts of its modalities, in bins."""

    def __init__(self, model: Factorization, blocks: list[Block], seed: int) -> None:
        self.model, self.blocks, self.seed = model, blocks, seed
        self.coords = self._of_all(lambda block: block.located.coords).double().numpy()
        self.library = self._of_all(lambda block: block.located.library).numpy()
        self._seen = dict[str, tuple[Tensor, Tensor, Tensor]]()

    def pattern(self, name: str) -> Tensor | None:
        """Pattern [N] that is left over of a modality; None where there is none with spatial order."""
        codes, counts, rates = self._binned(name)
        places = apart(self.coords, self.library)
        centres = _sums(torch.as_tensor(places), codes, len(counts)) / codes.bincount()[:, None]
        pattern = ordered_pattern(counts, rates, centres.numpy(), places, self.seed)
        return None if pattern is None else self._on_device(pattern[:, 0])

    def loadings(self, name: str, pattern: Tensor) -> Tensor:
        """Loadings [P] of a pattern [N] in a modality: what it has more than the model expects."""
        codes, counts, rates = self._binned(name)
        size = self._of_all(lambda block: block.size[name][:, 0])
        A = _sums(size * pattern.cpu(), codes, len(counts))
        first = FIRST_LOADING * rates.sum(0) / A.sum()
        W = first
        for _ in range(N_UPDATES):
            W = W * (A @ (counts / (rates + torch.outer(A, W) + TINY))) / A.sum()
        return self._on_device(W.maximum(LOWEST * first))

    @torch.no_grad()
    def _binned(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Bin [N] of each spot, and counts and expected counts [B, P] of the bins."""
        if name not in self._seen:
            view = dict(self.model.items())[name]
            P = view.likelihood.n_features
            labels = square_bins(self.coords, self.library, n_bins(len(self.coords), P))
            codes, per_bin = self._on_device(torch.as_tensor(labels)), np.bincount(labels)[:, None]
            counts, rates = self._on_device(torch.zeros(2, len(per_bin), P))
            for block in distributed.mine(self.blocks):
                seen, A = block.counts[name], self.model.moments(name, block).mean
                entries = codes[block.rows].repeat_interleave(seen.per_row) * P + seen.columns
                counts.view(-1).index_add_(0, entries, seen.values)
                rates += _sums(A, codes[block.rows], len(per_bin)) @ view.loadings_of(block.batch).T
            distributed.add_up(counts, rates)
            mean = means_of_bins(rates.cpu().numpy(), per_bin, view.likelihood.family)
            self._seen[name] = codes.cpu(), counts.cpu(), torch.as_tensor(mean)
        return self._seen[name]

    def _of_all(self, of: Callable[[Block], Tensor]) -> Tensor:
        """Values [N, ..] of all rows."""
        return torch.cat([of(block) for block in self.blocks]).cpu()

    def _on_device(self, values: Tensor) -> Tensor:
        """A tensor on the device of the model."""
        return values.to(self.model.device)


def _sums(values: Tensor, codes: Tensor, n: int) -> Tensor:
    """Sums [n, ..] of values [N, ..] over the rows of each code [N]."""
    return values.new_zeros(n, *values.shape[1:]).index_add_(0, codes, values)
