"""What the arguments of a fit ask for: the data, the number of spatial factors, the models."""

from __future__ import annotations

from functools import partial

import torch
from anndata import AnnData
from mudata import MuData

from gpnsf import checks
from gpnsf.arguments import Arguments, Model, Training
from gpnsf.core.inference.run import Build
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.model import build as models
from gpnsf.core.model.factorization import Factorization
from gpnsf.core.presets import PRESETS
from gpnsf.core.types import Dataset
from gpnsf.io import read

__all__ = ["builder", "number_spatial", "read_for", "schedule"]


def builder(asked: Arguments, n_spatial: int, scale: float, device: torch.device) -> Build:
    """Makes the models that the arguments describe; ``scale`` is the half-width in the unit of the coordinates."""
    model = asked.model
    build = partial(
        models.build,
        model.model,
        kernel=model.kernel,
        field=model.field,
        n_inducing=model.n_inducing,
        lengthscale=_lengthscale(model.lengthscale, n_spatial, scale),
        loadings=model.loadings,
        kl_weight=model.kl_weight,
        n_samples=model.draws,
        relative=model.n_factors > 1,  # one factor alone has nothing to be relative to
        seed=asked.training.seed,
    )

    def built(
        dataset: Dataset,
        n_spatial: int,
        n_factors: int = model.n_factors,
        n_basis: int | None = None,
    ) -> Factorization:
        """A model of a dataset, on the device of the fit."""
        made = build(dataset, n_factors=n_factors, n_spatial=n_spatial, n_basis=n_basis)
        return made.to(device)

    return built


def _lengthscale(asked: float | None, n_spatial: int, scale: float) -> float | None:
    """The length scale asked for, in half-width units."""
    if asked is None:
        return None
    if n_spatial and not 1e-3 <= asked / scale <= 1e3:
        rule = f"`lengthscale` between {scale / 1e3:g} and {scale * 1e3:g}: the half-width of the tissue is {scale:g}"
        raise ValueError(
            checks.problem(rule, f"{asked:g}", "Pass it in the unit of the coordinates")
        )
    return asked / scale


def number_spatial(model: Model) -> int:
    """Spatial factors that a fit begins with; only the hybrid models leave a choice."""
    preset = PRESETS[model.model]
    default = max(int(model.n_factors * preset.spatial), int(preset.spatial > 0))
    if model.n_spatial is None:
        return default
    if not preset.is_hybrid and model.n_spatial != default:
        rule, remedy = f"n_spatial={default} for model={model.model!r}", "Leave n_spatial out"
        remedy += ", or pass model='nsfh' or 'gpnsf' to choose it"
        raise ValueError(checks.problem(rule, f"n_spatial={model.n_spatial}", remedy))
    return model.n_spatial


def read_for(
    data: MuData | AnnData, asked: Arguments, n_spatial: int, *, tell: bool = True
) -> tuple[Dataset, read.Layout]:
    """Read the object and check what only the data can tell; with ``tell``, say what may mislead a fit."""
    model = asked.model
    default = PRESETS[model.model].likelihood
    defaults = {"": default} if default else None
    dataset, layout = read.read(
        data, asked.reading, default_likelihoods=defaults, spatial=n_spatial > 0, tell=tell
    )
    checks.combination(
        model=model.model,
        likelihoods=layout.likelihoods,
        objective=model.objective,
        field=model.field,
        n_spatial=n_spatial,
        n_dims=dataset.coords.shape[1],
        batch_key=asked.reading.batch_key,
    )
    n_features = sum(view.counts.shape[1] for view in dataset.views)
    checks.sizes(model.n_factors, n_obs=dataset.n_obs, n_features=n_features)
    return dataset, layout


def schedule(how: Training) -> Schedule:
    """The course of the optimisation that the arguments ask for."""
    return Schedule(
        max_steps=how.max_steps,
        learning_rate=how.learning_rate,
        polish_rate=how.learning_rate / 4,
        tol=how.tol,
    )
