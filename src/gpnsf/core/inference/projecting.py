"""Factors of new data at the loadings of a fit: its model with everything held but the factors.

Loadings, backgrounds, dispersions, length scales, amplitudes and the spread of single spots are
those of the fit. What is learnt are the weights and the trend of the fields, the nonspatial factors,
and one level a factor: new data may have more of it everywhere.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from gpnsf.core.inference import local_stage, posterior, training
from gpnsf.core.inference.fitting import LOCAL, Outcome
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.model.factorization import Factorization
from gpnsf.core.model.loadings import GivenLoadings
from gpnsf.core.progress import Progress
from gpnsf.core.types import Dataset, Given

__all__ = ["START", "project"]

START = "reference"  # name of the only start: every factor at its mean
EXPECTED = 120  # steps


def project(
    dataset: Dataset,
    model: Factorization,
    given: Given,
    *,
    refine: bool = True,
    block_size: int | None = None,
    schedule: Schedule | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Infer the factors of a dataset; the model was built for it, with the factors of the fit."""
    progress = progress or Progress("project", 1.0)
    schedule = replace(schedule or Schedule(), pick_steps=0, kernel_steps=0, moves=0)
    progress.expected = min(EXPECTED, schedule.max_steps) + (LOCAL if refine else 0)
    level = hold(model, given)
    blocks = model.blocks(dataset, block_size)
    history = training.fit(
        model,
        dataset,
        init=None,
        schedule=schedule,
        block_size=block_size,
        blocks=blocks,
        seed=seed,
        progress=progress,
    )
    progress.stage("refining observations" if refine else "summing up")
    deviations = _deviations(given, level.device)
    log_factors = (
        local_stage.local(model, blocks, gamma=deviations)
        if refine
        else replace(local_stage.mean_field(model, blocks), gamma=deviations)
    )
    progress.step(LOCAL if refine else 0)
    progress.converged = history.converged
    scale = (-level.detach()).exp() if model.nonnegative else _tensor(given.scale, level.device)
    result = posterior.summarise_at(model, dataset, blocks, log_factors, given, scale)
    history = replace(history, starts={START: float(history.elbo[-1])})
    return Outcome(result, history, {}, {view.name: view.weight for view in dataset.views})


@torch.no_grad()
def hold(model: Factorization, given: Given) -> nn.Parameter:
    """Put what is given into a model, where it stays; the levels [K] that are to be learnt."""
    device, T = model.device, model.n_spatial
    scale = _tensor(given.scale, device)
    level = nn.Parameter(-scale.log(), requires_grad=model.nonnegative)
    divisor = torch.ones_like(scale) if model.nonnegative else scale
    for name, view in model.items():
        W = _tensor(given.loadings[name], device) / divisor
        background = _tensor(given.background[name], device)
        view.loadings = GivenLoadings(
            torch.cat([W, background[:, None]], 1),
            level,
            nonnegative=model.nonnegative,
            share=1 / (len(model.names) * view.weight),  # the objective gives it that weight again
        )
        view.likelihood.hold(
            _tensor(given.dispersion[name], device) if name in given.dispersion else None
        )
    amplitude = _tensor(given.amplitude, device).log()
    if model.spatial is not None:
        field = model.spatial.field
        field.log_lengthscale.copy_(_tensor(given.lengthscale, device).log())
        field.log_amplitude.copy_(amplitude[:T])
        field.has_given_lengthscale = True
        for parameter in field.hyperparameters():
            parameter.requires_grad_(False)
    if model.nonspatial is not None:
        model.nonspatial.log_sigma.copy_(amplitude[T:])
        model.nonspatial.log_sigma.requires_grad_(False)
    return level


def _deviations(given: Given, device: torch.device) -> Tensor:
    """Variances [K] of single spots around the field, of nonspatial factors all of theirs."""
    own = _tensor(given.amplitude[len(given.nugget) :], device).square()
    return torch.cat([_tensor(given.nugget, device), own])


def _tensor(values: object, device: torch.device) -> Tensor:
    """Single precision on the device."""
    return torch.as_tensor(values, dtype=torch.float32, device=device)
