"""Factors that get or lose a field after a fit, as the test of order decides.

The same factors in a model with other numbers of each kind.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.model.relative import same_total

__all__ = ["regrouped"]

FIRST_LOG_SCALE = -1.0  # of the posterior of a factor that was spatial


@torch.no_grad()
def regrouped(
    old: Factorization, new: Factorization, blocks: list[Block], m: Tensor, order: Sequence[int]
) -> Factorization:
    """Carry factors of a model over to another one, which has as many as are named.

    Parameters
    ----------
    old, new
        A fitted model, and one of the same data that was built for these factors.
    blocks
        Row blocks of the new model.
    m
        Log factors [N, K] of the old one.
    order
        For each factor of the new model its number in the old one, spatial ones first.
    """
    with same_total(new, old.mass().sum()):
        _views(old, new, order)
        for k, source in enumerate(order):
            if k < new.n_spatial and source < old.n_spatial:
                new.spatial.field.take(k, old.spatial.field, source)  # type: ignore[union-attr]
            elif k < new.n_spatial:
                shift = m[:, source].mean()
                new.spatial.field.put(k, m[:, source] - shift, [block.located for block in blocks])  # type: ignore[union-attr]
                for _, view in new.items():
                    view.loadings.raw[:, k] += shift
            else:
                _nonspatial(old, new, m, source, k)
    new.look(blocks)
    return new


def _views(old: Factorization, new: Factorization, order: Sequence[int]) -> None:
    """Loadings with what belongs to them, and likelihoods."""
    columns = torch.tensor([*order, old.n_factors], device=old.device)
    for source, target in zip(old.views, new.views, strict=True):
        state = source.state_dict()
        for name in ("loadings.raw", "loadings.log_shape", "loadings.exposure"):
            if name in state:
                state[name] = state[name].index_select(-1, columns)
        target.load_state_dict(state)


def _nonspatial(old: Factorization, new: Factorization, m: Tensor, source: int, k: int) -> None:
    """Independent factors; those that were a field begin at it."""
    factors, i = new.nonspatial, k - new.n_spatial
    assert factors is not None
    if source >= old.n_spatial:
        before, j = old.nonspatial, source - old.n_spatial
        for name in ("loc", "log_scale", "log_sigma"):
            getattr(factors, name)[..., i] = getattr(before, name)[..., j]
        return
    shift = m[:, source].mean()
    factors.loc[:, i] = m[:, source] - shift
    factors.log_scale[:, i] = FIRST_LOG_SCALE
    factors.log_sigma[i] = m[:, source].std().clamp(0.1, 3.0).log()
    for _, view in new.items():
        view.loadings.raw[:, k] += shift
