"""Means and standard deviations of the factors of all spots, on a common scale.

Spots without any count have what their field and their neighbours say.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpnsf.core.inference.local_stage import LogFactors
from gpnsf.core.inference.unseen import beside, unseen
from gpnsf.core.likelihoods.moments import MEAN_RANGE
from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.model.relative import expected, sample

__all__ = ["MIXING", "VARIANCE_CAP", "moments", "others", "scaled"]

# cap on the variance of a log factor, in the mean: beyond it exp(m + v/2) speaks of the prior's
# tail, not of the data
VARIANCE_CAP = 0.25
SD_CAP = 9.0
# ratio of the variance of spatial log factors to what the counts leave open: see docs/decisions.md
MIXING = 1.44
# size of a factor of which nothing is left: signed models may be asked for more than the data hold
EMPTY = 1e-12


def scaled(
    model: Factorization,
    blocks: list[Block],
    log_factors: LogFactors,
    given: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Means, standard deviations, and means by the field alone [N, K], each divided by a scale.

    The scales of the two means [K], which may be given, come with them. Rows without any count have
    what the field alone says of them, and of nonspatial factors what the rows beside them do.
    """
    T = model.n_spatial
    mixing = torch.ones(model.n_factors, device=log_factors.m.device)
    mixing[:T] = MIXING
    wanted, v = unseen(blocks), log_factors.v
    seen = ~wanted
    spread = log_factors.field_v + log_factors.gamma[:T]
    alone, _ = moments(model.nonnegative, log_factors.field_m, spread)
    if model.by_total:
        known, added = expected(alone, others(model, log_factors, seen), model.mass())
        alone, v = known[:, :T], torch.where(wanted[:, None], v + added, v)
    mean, std = moments(model.nonnegative, log_factors.m, v, mixing)
    smooth = torch.cat([alone, mean[:, T:]], 1)
    if model.nonnegative and wanted.any():
        level = mean[seen].mean(0) / smooth[seen].mean(0).clamp_min(EMPTY)
        predicted = smooth[wanted] * level
        predicted[:, T:] = known[wanted, T:] if model.by_total else mean[seen][:, T:].mean(0)
        if 0 < T < model.n_factors:
            logs = log_factors.m + log_factors.divisor
            predicted[:, T:] *= beside(logs[:, T:], wanted, blocks)
        std[wanted] *= predicted / mean[wanted].clamp_min(EMPTY)
        mean[wanted], smooth[wanted, T:] = predicted, predicted[:, T:]
    scale, smooth_scale = (
        _scales(model.nonnegative, part) if given is None else given for part in (mean, smooth)
    )
    return mean / scale, std.div_(scale), smooth.div_(smooth_scale), scale, smooth_scale


def others(model: Factorization, log_factors: LogFactors, seen: Tensor) -> Tensor:
    """Nonspatial factors [S, K-T] of some of the spots seen [N], before they were divided."""
    logs = log_factors.m + log_factors.divisor
    return sample(logs[:, model.n_spatial :], seen)


def moments(
    nonnegative: bool, m: Tensor, v: Tensor, mixing: Tensor | float = MIXING
) -> tuple[Tensor, Tensor]:
    """Mean of exp(h), ``h ~ N(m, v)``, and standard deviation with v times ``mixing``.

    For signed models both are of h alone.
    """
    if not nonnegative:
        return m, v.sqrt()
    mean = v.clamp_max(VARIANCE_CAP).mul_(0.5).add_(m.clamp(*MEAN_RANGE)).exp_()
    return mean, (mixing * v).clamp_max_(SD_CAP).expm1_().sqrt_().mul_(mean)


def _scales(nonnegative: bool, factors: Tensor) -> Tensor:
    """Scale by which each factor is divided: its mean, or its root mean square if it has a sign.

    1 for what is zero but for rounding.
    """
    size = factors.mean(0) if nonnegative else (factors**2).mean(0).sqrt()
    return torch.where(size < EMPTY, 1.0, size)
