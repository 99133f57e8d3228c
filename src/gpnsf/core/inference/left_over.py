"""What the factors of a start leave over of the counts, and which of them make room for it.

Growing and merging looks at the leading modality, and at the counts of all its features together. A
pattern that few counts know, or another modality alone, shows in the residuals: as a singular
vector longer than any of the same residuals with random signs (Hong et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gpnsf.core.types import TINY, View

__all__ = ["fill", "leading_pattern"]

CLEAR = 1.1  # length of a pattern over that of noise
LOW = 0.1  # of its mean, where a pattern is absent
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
    high = (vector * vector.pow(3).sum().sign()).clamp_min(0.0)  # present in the fewer bins
    return ((1 - LOW) * high / high.mean() + LOW)[:, None]


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
    """Factors [N, K] with the last of K + 1 in the place of a spatial one: the one that costs least.

    Two alike factors are joined, or a small one is dropped. None where that is the last one itself.
    Loadings [P, K + 2], background last, are those of each modality of counts. The cost is the squared change of rates over mean rates, twice what the Poisson likelihood loses.
    """
    K = factors.shape[1] - 1
    candidates = [*range(n_spatial), K]
    H = factors[:, candidates]
    mass = torch.stack([W[:, candidates].sum(0) for W in loadings.values()]).sum(0)  # [T + 1]
    cost = torch.zeros(len(candidates), len(candidates))
    for view in views:
        size, W = torch.as_tensor(view.size), loadings[view.name]
        level = torch.cat([size @ factors, size.sum()[None]])  # [K + 2]
        W, mean = W[:, candidates], W @ level + TINY
        spots = float(size.sum()) * (H * size[:, None]).T @ H
        features = (W / mean[:, None]).T @ W
        dropped = spots.diagonal() * features.diagonal()
        joined = _apart(spots) * _apart(features / torch.outer(mass, mass))
        joined *= (torch.outer(mass, mass) / (mass + mass[:, None])).square()
        cost += view.weight * torch.where(torch.eye(len(mass), dtype=torch.bool), dropped, joined)
    k, l = sorted(divmod(int(cost.argmin()), len(mass)))
    if candidates[l] == K:
        return None
    filled = factors[:, :K].clone()
    if k != l:
        filled[:, k] = (H[:, [k, l]] * mass[[k, l]]).sum(1) / mass[[k, l]].sum()
    filled[:, l] = factors[:, K]
    return filled


def _apart(products: Tensor) -> Tensor:
    """Squared distances [K, K] of vectors with these inner products."""
    squares = products.diagonal()
    return squares + squares[:, None] - 2 * products
