"""Terms of the negative binomial that reach every entry, by dense row blocks in the CPU's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpnsf.core.counts.backends import saturation
from gpnsf.core.counts.sparse import SparseCounts
from gpnsf.core.types import TINY

__all__ = [
    "NegativeBinomialCounts",
    "NegativeBinomialZeros",
    "outer_products",
    "row_blocks",
    "unsaturated",
]

ROW_BLOCK_ENTRIES = 250_000  # entries of a dense row block: 1 MB of float32
# looked at for the information; rounds in which the certain ones are found
MOST_FEATURES, CERTAIN_ROUNDS = 4_000, 10


def row_blocks(n_rows: int, n_columns: int) -> list[slice]:
    """Row slices whose dense blocks stay small."""
    step = max(1, ROW_BLOCK_ENTRIES // max(n_columns, 1))
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]


def outer_products(A: Tensor, W: Tensor, weight: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``sum_j c_ij w_j w_j^T`` [n, K, K] over all entries, c being ``weight`` of rate and feature.

    The last column of W is left out.

    Of more than some thousand features, every so many counts one is taken, and stands for those
    that were expected between.
    """
    features, number = _sampled(W.sum(1))
    W = W[features]
    p, q = torch.triu_indices(W.shape[1] - 1, W.shape[1] - 1, device=W.device)
    pairs, turned = number[:, None] * W[:, p] * W[:, q], W.T.contiguous()
    result = A.new_zeros(len(A), W.shape[1] - 1, W.shape[1] - 1)
    for rows in row_blocks(len(A), len(W)):
        sums = weight(torch.add(A[rows] @ turned, TINY), features) @ pairs
        result[rows, p, q] = sums
        result[rows, q, p] = sums
    return result * (A[:, -1] > 0)[:, None, None]  # a size factor of zero: not observed


def _sampled(mass: Tensor) -> tuple[Tensor, Tensor]:
    """Features drawn in proportion to their mass, and how many each stands for.

    Those with much of the mass are drawn for certain.
    """
    if len(mass) <= MOST_FEATURES:
        return torch.arange(len(mass), device=mass.device), torch.ones_like(mass)
    chance = mass.double() / mass.sum()
    for _ in range(CERTAIN_ROUNDS):
        certain = chance >= 1
        left = chance * ~certain
        chance = torch.where(
            certain, 1.0, left * ((MOST_FEATURES - certain.sum()) / left.sum())
        ).clamp_max(1.0)
    reached = (chance.cumsum(0) + 0.5).long()
    taken = (reached.diff(prepend=reached.new_zeros(1)) > 0).nonzero()[:, 0]
    return taken, (1 / chance[taken]).to(mass.dtype)


def unsaturated(A: Tensor, W: Tensor, theta: Tensor) -> Tensor:
    """``sum_j theta / (theta + r) w_j`` [n, K+1]: the gradient of the zeros in A alone."""
    scaled = (W / theta[:, None]).T.contiguous()
    turned = W.T.contiguous()
    result = torch.empty_like(A)
    for rows in row_blocks(len(A), len(W)):
        weight = (A[rows] @ scaled).add_(1).reciprocal_()
        # three times as fast as the same product not transposed
        result[rows] = (turned @ weight.T).T
    return result


class NegativeBinomialZeros(torch.autograd.Function):
    """``sum_ij theta_j log1p(r_ij / theta_j)`` over all entries.

    It is computed by dense row blocks, with hand-written gradients.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor, W: Tensor, theta: Tensor) -> Tensor:
        """One matrix product for the rates, two for the gradients, one pass in cache between them.

        Loadings lie transposed [K, P]: products of a wide matrix with a narrow one are several
        times as slow.
        """
        scaled, turned = (W / theta[:, None]).T.contiguous(), W.T.contiguous()
        dA, dW, dtheta = torch.empty_like(A), torch.zeros_like(turned), torch.zeros_like(theta)
        value = torch.zeros((), dtype=torch.float64, device=A.device)
        for rows in row_blocks(len(A), len(W)):
            weight = A[rows] @ scaled  # [n, P] r / theta, which becomes theta / (theta + r)
            logs, shares = saturation(weight)
            dA[rows] = (turned @ weight.T).T
            dW.addmm_(A[rows].T, weight)
            value += (logs * theta).sum().double()
            dtheta += logs - shares
        dW = dW.T.contiguous()
        ctx.save_for_backward(dA, dW, dtheta)
        return value.to(A.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scale the stored gradients."""
        dA, dW, dtheta = ctx.saved_tensors
        return grad * dA, grad * dW, grad * dtheta


class NegativeBinomialCounts(torch.autograd.Function):
    """``sum_nz y log(theta_j + r_ij)`` on the nonzeros, with gradients in A, W and theta."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, W: Tensor, theta: Tensor, counts: SparseCounts) -> Tensor:
        """Augment the factors by a column of ones and the loadings by theta.

        A Poisson term in all but name.
        """
        one = torch.ones_like(A[:, :1])
        value, dA, dW = counts.terms(
            torch.cat([A, one], 1), torch.cat([W, theta[:, None]], 1), "log"
        )
        ctx.save_for_backward(dA[:, :-1], dW[:, :-1], dW[:, -1])
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Scale the stored gradients."""
        dA, dW, dtheta = ctx.saved_tensors
        return grad * dA, grad * dW, grad * dtheta, None
