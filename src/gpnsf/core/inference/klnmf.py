"""Nonnegative matrix factorisation of counts under the Kullback-Leibler divergence (Lee & Seung 2001)."""

from __future__ import annotations

import torch
from torch import Tensor

from gpnsf.core.counts.sparse import SparseCounts

__all__ = [
    "FLOOR",
    "poisson_fit",
    "powers",
    "random_factors",
    "relaxed",
    "search",
    "step",
]

FLOOR = 1e-4
N_ROUNDS = 9  # of growing and merging, at most
# share of all that was gained below which a round has gained little, and such rounds that end it
LITTLE, N_LITTLE = 0.05, 2
# power of an update's factors: above one it goes further, below two it still converges
RELAXATION = 1.8
N_PLAIN = 3  # updates that begin without it


def powers(n_updates: int) -> list[float]:
    """Powers of the factors of so many updates: over-relaxed, but for the first ones and the last."""
    plain = min(N_PLAIN, n_updates)
    return [1.0] * plain + [RELAXATION] * (n_updates - plain - 1) + [1.0] * (n_updates > plain)


def relaxed(factor: Tensor, power: float) -> Tensor:
    """A power of the factors of an update, within bounds."""
    return factor if power == 1.0 else factor.clamp(1e-2, 20.0).pow_(power)


def search(Y: Tensor, size: Tensor, K: int, seed: int) -> tuple[Tensor, Tensor]:
    """KL-NMF (Lee & Seung 2001) of a small dense matrix by growing and merging.

    Factors [B, K] with mean one, loadings [P, K].

    Random components are added to the best solution so far, and the most redundant ones merged
    until K are left; what fits better is kept. Restarts alone lose factors once K is above ten.
    Where rounds gain little, they only converge, which the steps of the fit do as well.
    """
    generator = torch.Generator().manual_seed(seed)
    mean = (Y.sum(0) / size.sum())[:, None]
    H = 0.2 + torch.rand(len(Y), K, generator=generator)
    W = 0.2 + torch.rand(Y.shape[1], K, generator=generator)
    H, W, best = _klnmf_dense(Y, size, H, mean / K * W + 1e-8, 40)
    first, n_little, extra = best, 0, max(2, K // 3)
    for _ in range(N_ROUNDS):
        new = 0.2 + 1.6 * torch.rand(len(Y), extra, generator=generator)
        thin = 0.2 * mean / extra * (0.2 + torch.rand(Y.shape[1], extra, generator=generator))
        H_new, W_new, _ = _klnmf_dense(
            Y, size, torch.cat([H, new], 1), torch.cat([0.8 * W, thin], 1), 20
        )
        while H_new.shape[1] > K:
            H_new, W_new, _ = _klnmf_dense(Y, size, *_merge(H_new, W_new), 3)
        H_new, W_new, fit = _klnmf_dense(Y, size, H_new, W_new, 20)
        n_little += fit - best < LITTLE * (max(fit, best) - first)
        if fit > best:
            H, W, best = H_new, W_new, fit
        if n_little == N_LITTLE:
            break
    return H, W


def _klnmf_dense(
    Y: Tensor, size: Tensor, H: Tensor, W: Tensor, n_updates: int
) -> tuple[Tensor, Tensor, float]:
    """Multiplicative updates of factors and loadings, and the Poisson log-likelihood reached."""
    ratio = torch.empty_like(Y)
    for power in powers(n_updates):
        A = H * size
        slope = _wide_product(_ratio(Y, A, W, ratio), A) / A.sum(0)
        W = W * relaxed(slope, power) + 1e-12
        slope = _wide_product(_ratio(Y, A, W, ratio).T, W) / W.sum(0)
        H = (H * relaxed(slope, power)).clamp_min(FLOOR)
        scale = H.mean(0)
        H, W = H / scale, W * scale
    rate = (H * size) @ W.T
    return H, W, float((Y * torch.log(rate + 1e-12) - rate).sum())


def _ratio(Y: Tensor, A: Tensor, W: Tensor, out: Tensor) -> Tensor:
    """Counts over rates [B, P]."""
    torch.mm(A, W.T, out=out).add_(1e-12)
    return torch.div(Y, out, out=out)


def _wide_product(wide: Tensor, narrow: Tensor) -> Tensor:
    """``wide^T narrow``, three times as fast with the narrow matrix in front."""
    return (narrow.T.contiguous() @ wide).T


def _merge(H: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    """One component less: that of least own mass joins an alike nearest one, or is dropped."""
    mass = W.sum(0)
    similarity = _alike(H) * _alike(W)
    similarity.fill_diagonal_(0)
    least = int((mass * (1 - similarity.amax(1))).argmin())
    near = int(similarity[least].argmax())
    H, W = H.clone(), W.clone()
    if similarity[least, near] > 0.5:
        H[:, near] = (H[:, near] * mass[near] + H[:, least] * mass[least]) / (
            mass[near] + mass[least]
        )
        W[:, near] += W[:, least]
    kept = torch.arange(H.shape[1]) != least
    return H[:, kept], W[:, kept]


def _alike(columns: Tensor) -> Tensor:
    """Correlation [K, K] of columns, 0 where it is negative or a column is constant."""
    centred = columns - columns.mean(0)
    centred = centred / centred.norm(dim=0).clamp_min(1e-12)
    return (centred.T @ centred).clamp_min(0.0)


def random_factors(counts: SparseCounts, K: int, seed: int) -> tuple[Tensor, Tensor]:
    """Factors and loadings around the mean."""
    generator = torch.Generator().manual_seed(seed)
    H = 0.5 + torch.rand(counts.shape[0], K, generator=generator)
    mean = counts.column_sums[:, None] / counts.shape[0]
    return H, mean / K * (0.5 + torch.rand(counts.shape[1], K, generator=generator)) + 1e-9


def step(
    counts: SparseCounts, size: Tensor, H: Tensor, W: Tensor, power: float
) -> tuple[Tensor, Tensor]:
    """One multiplicative update of loadings and factors on the nonzeros; factors keep mean one."""
    A = H * size
    W = W * relaxed(counts.half_loadings(A, W, "log") / A.sum(0), power) + 1e-12
    H = (H * relaxed(counts.half(A, W, "log") / W.sum(0), power)).clamp_min(FLOOR)
    scale = H.mean(0)
    return H / scale, W * scale


def poisson_fit(counts: SparseCounts, size: Tensor, H: Tensor, W: Tensor) -> float:
    """Poisson log-likelihood up to a constant."""
    A = H * size
    return float(counts.values @ torch.log(counts.rates(A, W) + 1e-20) - A.sum(0) @ W.sum(0))
