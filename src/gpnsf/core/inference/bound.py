"""The bound without gradients, and the limits that parameters have come to."""

from __future__ import annotations

import math
from copy import deepcopy

import pyro
import torch

from gpnsf.core import distributed
from gpnsf.core.fields.base import AMPLITUDE_RANGE, LENGTHSCALE_RANGE
from gpnsf.core.likelihoods.moments import MEAN_CAP, MEAN_RANGE
from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.model.objective import ClosedFormELBO

__all__ = ["elbo", "exact_elbo", "leave_surrogates", "limits_reached"]


@torch.no_grad()
def elbo(model: Factorization, blocks: list[Block]) -> float:
    """The objective on the whole data, without gradients; nan where it cannot be computed.

    Draws of a Monte Carlo objective leave the random state as it was.
    """
    objective, loss = ClosedFormELBO(), 0.0
    devices = [model.device] if model.device.type == "cuda" else []
    draws = model.n_samples is not None
    model.look(blocks)
    try:
        with pyro.validation_enabled(False), torch.random.fork_rng(devices, enabled=draws):
            for block in distributed.mine(blocks):
                loss += objective.differentiable_loss(model, model.guide, block).item()
    except ArithmeticError:  # a covariance that cannot be factorised
        loss = math.nan
    model.end_pass()
    return -distributed.total(loss)


@torch.no_grad()
def leave_surrogates(model: Factorization, blocks: list[Block]) -> None:
    """Go on with the likelihoods themselves, and estimate what surrogates have not looked at."""
    for name, view in model.items():
        view.likelihood.leave_surrogate(
            (block.counts[name], model.moments(name, block), view.loadings_of(block.batch))
            for block in distributed.mine(blocks)
        )


@torch.no_grad()
def exact_elbo(model: Factorization, blocks: list[Block]) -> float:
    """The objective with the likelihoods themselves in the place of surrogates, which come back."""
    likelihoods = [view.likelihood for _, view in model.items() if view.likelihood.in_surrogate]
    known = [deepcopy(likelihood.state_dict()) for likelihood in likelihoods]
    if likelihoods:
        leave_surrogates(model, blocks)
    value = elbo(model, blocks)
    for likelihood, state in zip(likelihoods, known, strict=True):
        likelihood.load_state_dict(state)
        likelihood.in_surrogate = True
    return value


@torch.no_grad()
def limits_reached(model: Factorization, blocks: list[Block]) -> list[str]:
    """Bounds that the parameters lie on or beyond, in words."""
    notices = []
    if model.nonnegative:
        marginals = (model.marginals(block) for block in blocks)
        beyond = [
            int(((m < MEAN_RANGE[0]) | (m > MEAN_RANGE[1]) | (m + 0.5 * v > MEAN_CAP)).sum())
            for m, v in marginals
        ]
        if any(beyond):
            n_all = model.n_obs * model.n_factors
            notices.append(
                f"log factors at an end of their range for {sum(beyond)} of {n_all} values"
            )
    if model.spatial is None:
        return notices
    field = model.spatial.field
    bounded = {"amplitude": (field.log_amplitude, AMPLITUDE_RANGE)}
    if not field.has_given_lengthscale:
        bounded["length scale (half-widths)"] = field.log_lengthscale, LENGTHSCALE_RANGE
    for name, (values, ends) in bounded.items():
        for word, end in zip(("floor", "ceiling"), ends, strict=True):
            n_there = int(torch.isclose(values, torch.full_like(values, math.log(end))).sum())
            if n_there:
                notices.append(
                    f"{name} at its {word} of {end:g} for {n_there} of {model.n_spatial} spatial factors"
                )
    return notices
