"""FactVAE: two variational autoencoders, of genes and of peaks.

Their decoders multiply codes with feature embeddings.

After Wang et al. (2025); equations 36 to 44 of docs/model.md. Letters: n cells of a batch, P
features of a modality, d numbers of a code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "Autoencoder",
    "Counts",
    "Decoder",
    "Encoder",
    "alignment_loss",
    "regulatory_loss",
    "zinb",
]

DROPOUT = 0.2  # of the encoders
LOG_VAR_RANGE = (-10.0, 10.0)  # of codes
SMALLEST = 1e-8  # dispersion
THETA, ZERO_LOGIT = 1.0, -2.0  # where free dispersions and zero-inflation begin


@dataclass(frozen=True)
class Counts:
    """Counts [n, P] of some cells by their nonzeros."""

    row: Tensor  # [nnz]
    column: Tensor  # [nnz]
    value: Tensor  # [nnz]
    depth: Tensor  # [n] totals


class Encoder(nn.Module):
    """Mean and log variance [n, d] of codes from scores [n, C] (37).

    Linear layers with ELU and dropout, and two heads.
    """

    def __init__(self, n_inputs: int, hidden: Sequence[int], n_latent: int) -> None:
        super().__init__()
        widths = [n_inputs, *hidden]
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [_linear(before, after), nn.ELU(), nn.Dropout(DROPOUT)]
        self.body = nn.Sequential(*layers)
        self.loc, self.log_var = _linear(widths[-1], n_latent), _linear(widths[-1], n_latent)

    def forward(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance [n, d]."""
        hidden = self.body(scores)  # [n, width of the last layer]
        return self.loc(hidden), self.log_var(hidden).clamp(*LOG_VAR_RANGE)

    def draw(self, scores: Tensor) -> Tensor:
        """Codes [n, d] drawn from their posterior (37)."""
        return drawn(*self(scores))


class Decoder(nn.Module):
    """Parameters of counts from codes.

    Products with embeddings of the features, and offsets that the published form lacks.
    """

    def __init__(self, share: np.ndarray, n_latent: int, *, as_published: bool) -> None:
        super().__init__()
        self.as_published, n_features = as_published, len(share)
        self.features, self.zeros = (_embeddings(n_features, n_latent) for _ in range(2))  # [P, d]
        if as_published:
            self.dispersion = _embeddings(n_features, n_latent)
        else:
            self.offset = nn.Parameter(torch.as_tensor(np.log(share), dtype=torch.float32))
            self.zeros_offset = nn.Parameter(torch.full((n_features,), ZERO_LOGIT))
            self.raw_theta = nn.Parameter(torch.full((n_features,), math.log(math.expm1(THETA))))

    @property
    def compared(self) -> Tensor:
        """Embeddings [P, d] whose cosines count.

        Their mean, on which shares (38) do not depend, is taken off, unless as published.
        """
        return self.features if self.as_published else self.features - self.features.mean(dim=0)

    def log_shares(self, codes: Tensor) -> Tensor:
        """Logarithms [n, P] of the shares of the features in the counts of a cell (38)."""
        logits = codes @ self.features.T
        return functional.log_softmax(logits if self.as_published else logits + self.offset, dim=1)

    def theta(self, codes: Tensor) -> Tensor:
        """Dispersions (39): [n, P] as published, [1, P] where they are free."""
        if self.as_published:
            return torch.softmax(codes @ self.dispersion.T, dim=1).exp()
        return functional.softplus(self.raw_theta)[None] + SMALLEST

    def zero_logits(self, codes: Tensor) -> Tensor:
        """Log odds [n, P] of a zero beyond those of the negative binomial (40)."""
        logits = codes @ self.zeros.T
        return logits if self.as_published else logits + self.zeros_offset

    def log_prob(self, codes: Tensor, counts: Counts) -> Tensor:
        """Log-likelihood of a cell, mean over the cells."""
        # [n, P]
        log_mean = self.log_shares(codes) + counts.depth.clamp(min=SMALLEST).log()[:, None]
        return zinb(counts, log_mean, self.theta(codes), self.zero_logits(codes)) / len(codes)


class Autoencoder(nn.Module):
    """Encoder and decoder of one modality, and the weights of the two parts of its loss."""

    def __init__(
        self, encoder: Encoder, decoder: Decoder, *, fit_weight: float, kl_weight: float
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.fit_weight, self.kl_weight = fit_weight, kl_weight

    def loss(self, scores: Tensor, counts: Counts, *, draw: bool = True) -> Tensor:
        """Weighted negative bound of a cell (36), at codes that are drawn or at their means."""
        loc, log_var = self.encoder(scores)
        divergence = 0.5 * (loc.square() + log_var.exp() - 1 - log_var).sum(dim=1).mean()
        codes = drawn(loc, log_var) if draw else loc
        return self.kl_weight * divergence - self.fit_weight * self.decoder.log_prob(codes, counts)


def drawn(loc: Tensor, log_var: Tensor) -> Tensor:
    """A draw [n, d] from normal distributions."""
    return loc + torch.randn_like(loc) * (0.5 * log_var).exp()


def zinb(counts: Counts, log_mean: Tensor, theta: Tensor, logits: Tensor) -> Tensor:
    """Sum of the log-likelihoods (41) of all entries [n, P]; ``theta`` may be [1, P].

    With t = theta log(theta / (theta + mean)) and l the logits, a zero has softplus(t - l) -
    softplus(-l), where softplus(-l) belongs to every entry; it is summed over all of them, and what
    nonzero counts have instead is added.
    """
    t = -theta * torch.log1p(log_mean.exp() / theta)  # [n, P]
    zero = functional.softplus(t - logits) - functional.softplus(-logits)  # [n, P]
    at = counts.row, counts.column
    x, log_m, size = counts.value, log_mean[at], theta.expand_as(log_mean)[at]  # [nnz]
    # log of the weight of the negative binomial, times its zero
    instead = -functional.softplus(logits[at] - t[at])
    beyond = x * (log_m - torch.logaddexp(log_m, size.log()))
    beyond = beyond + torch.lgamma(x + size) - torch.lgamma(size) - torch.lgamma(x + 1)
    return zero.sum() + (instead + beyond).sum()


def regulatory_loss(genes: Tensor, peaks: Tensor, pairs: Tensor) -> Tensor:
    """Mean squared distance from 1 of the cosines of pairs [2, n] of embeddings [P, d] (43)."""
    cosine = functional.cosine_similarity(genes[pairs[0]], peaks[pairs[1]], dim=1)  # [n]
    return (cosine - 1).square().mean()


def alignment_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """How much a cell's cosines to all others differ between two sets of codes [n, d] (44)."""
    first, second = (
        unit @ unit.T
        for unit in (functional.normalize(codes, dim=1) for codes in (teacher, student))
    )
    return (1 - functional.cosine_similarity(first, second, dim=1)).mean()


def _linear(n_in: int, n_out: int) -> nn.Linear:
    """A linear layer that begins as the authors' layers do."""
    layer = nn.Linear(n_in, n_out)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _embeddings(n_features: int, n_latent: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_normal_(torch.empty(n_features, n_latent)))
