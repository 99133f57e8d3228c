"""Models of a dataset, put together as the members of the family ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gpnsf.core import stored
from gpnsf.core.families import FAMILIES
from gpnsf.core.fields import hilbert, inducing
from gpnsf.core.fields.base import TISSUE, AbstractField, FieldSize
from gpnsf.core.fields.hilbert import HilbertField
from gpnsf.core.fields.inducing import InducingField
from gpnsf.core.likelihoods import LIKELIHOODS, AbstractLikelihood
from gpnsf.core.model.factorization import Factorization, ViewModel
from gpnsf.core.model.factors import LARGEST_SD, FieldFactors, NormalFactors
from gpnsf.core.model.loadings import AbstractLoadings, GammaLoadings, PointLoadings
from gpnsf.core.presets import PRESETS, Preset
from gpnsf.core.types import Dataset, View

__all__ = [
    "BASIS_RANGE",
    "DEFAULT_INDUCING",
    "FIELDS",
    "build",
    "field_size",
    "restore_field",
]

FIELDS: dict[str, type[AbstractField]] = {"hilbert": HilbertField, "inducing": InducingField}
DEFAULT_INDUCING = 300
BASIS_RANGE = (28, 96)  # basis functions per axis; four per length scale and half-width are enough


def build(
    preset: str,
    dataset: Dataset,
    *,
    n_factors: int,
    n_spatial: int,
    kernel: str = "matern32",
    field: str = "hilbert",
    n_inducing: int | None = None,
    lengthscale: float | None = None,
    n_basis: int | None = None,
    kl_weight: float = 1.0,
    n_samples: int | None = None,
    loadings: str = "gamma",
    relative: bool = True,
    seed: int = 0,
) -> Factorization:
    """Assemble a model; the only place that looks at the name of a preset.

    ``lengthscale`` (half-width units) is held fixed when it is given. ``n_basis`` is the number of
    basis functions of a Hilbert field, if not that for the length scale. ``n_samples`` switches to the
    Monte Carlo objective. ``loadings`` is "gamma" (posteriors) or "point" (estimates without a
    prior). Factors are ``relative`` where size factors are totals, unless that is False.
    """
    chosen = PRESETS[preset]
    by_total = relative and chosen.nonnegative and _are_totals(dataset.views)
    spatial = nonspatial = None
    if n_spatial:
        spatial = FieldFactors(
            _build_field(
                field, dataset, kernel, n_spatial, lengthscale or 0.2, n_inducing, n_basis, seed
            )
        )
        spatial.field.log_lengthscale.requires_grad_(lengthscale is None)
        spatial.field.has_given_lengthscale = lengthscale is not None
    if n_factors > n_spatial:
        nonspatial = NormalFactors(
            dataset.n_obs, n_factors - n_spatial, LARGEST_SD if by_total else math.inf
        )
    views = {}
    for view in dataset.views:
        likelihood = LIKELIHOODS[view.likelihood](view.counts.shape[1])
        own = _build_loadings(
            likelihood, n_factors, chosen, dataset.n_batches, point=loadings == "point"
        )
        views[view.name] = ViewModel(likelihood, own, view.weight, dataset.n_batches)
    return Factorization(
        spatial,
        nonspatial,
        views,
        n_obs=dataset.n_obs,
        nonnegative=chosen.nonnegative,
        by_total=by_total,
        kl_weight=kl_weight,
        n_samples=n_samples,
    )


def _are_totals(views: Sequence[View]) -> bool:
    """Whether all size factors are totals, and some of these are what rates add up to.

    Open peaks are not: each hides how many events opened it.
    """
    return all(view.by_total for view in views) and not all(
        FAMILIES[view.likelihood].binary for view in views
    )


def _build_loadings(
    likelihood: AbstractLikelihood, n_factors: int, preset: Preset, n_batches: int, *, point: bool
) -> AbstractLoadings:
    """Gamma posteriors, or point estimates where asked for or where the bound knows no others."""
    sizes = likelihood.n_features, n_factors
    if point or not preset.nonnegative or not likelihood.uncertain_loadings:
        return PointLoadings(*sizes, background=preset.background, nonnegative=preset.nonnegative)
    return GammaLoadings(*sizes, background=preset.background, n_batches=n_batches)


def _build_field(
    kind: str,
    dataset: Dataset,
    kernel: str,
    n_factors: int,
    lengthscale: float,
    n_inducing: int | None,
    n_basis: int | None,
    seed: int,
) -> AbstractField:
    """The field over the coordinates of a dataset."""
    if kind == "hilbert":
        extent = np.clip(np.abs(dataset.coords).max(0), 1e-3, TISSUE)  # stray rows are beyond
        n_basis = n_basis or int(np.clip(np.ceil(4 / lengthscale), *BASIS_RANGE))
        return HilbertField(
            kernel, n_factors, dataset.n_libraries, extent, lengthscale=lengthscale, n_basis=n_basis
        )
    wanted = n_inducing or DEFAULT_INDUCING
    centres, library = _inducing_points(dataset, wanted, seed)
    return InducingField(
        kernel,
        n_factors,
        dataset.n_libraries,
        centres,
        library,
        lengthscale=lengthscale,
        covariance="full" if _is_full(wanted, dataset) else "diagonal",
    )


def field_size(
    kind: str, dataset: Dataset, n_factors: int, lengthscale: float | None, n_inducing: int | None
) -> FieldSize:
    """Memory and time of the field over the coordinates of a dataset."""
    if kind == "hilbert":
        n_axis = float(np.clip(4 / (lengthscale or 0.2), *BASIS_RANGE))
        return hilbert.size(dataset.coords, dataset.n_libraries, n_factors, n_axis)
    wanted = n_inducing or DEFAULT_INDUCING
    return inducing.size(dataset.n_obs, n_factors, wanted, full=_is_full(wanted, dataset))


def _is_full(n_inducing: int, dataset: Dataset) -> bool:
    """Whether the points that are asked for, or all there are, are few enough for a full covariance."""
    return min(n_inducing, dataset.n_obs) <= DEFAULT_INDUCING


def _inducing_points(dataset: Dataset, n_inducing: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means centres of the coordinates of each slice.

    All distinct coordinates are taken if they are no more than asked for.
    """
    from sklearn.cluster import KMeans

    centres, libraries = [], []
    for library in range(dataset.n_libraries):
        points = np.unique(dataset.coords[dataset.library == library], axis=0)
        wanted = (
            max(1, round(n_inducing * len(points) / dataset.n_obs))
            if dataset.n_libraries > 1
            else n_inducing
        )
        if len(points) > wanted:
            points = (
                KMeans(wanted, n_init=1, max_iter=30, random_state=seed)
                .fit(points)
                .cluster_centers_
            )
        centres.append(points)
        libraries.append(np.full(len(points), library))
    return np.concatenate(centres), np.concatenate(libraries)


def restore_field(state: Mapping[str, object]) -> AbstractField:
    """Rebuild a field from :meth:`AbstractField.state`, perhaps from a file, to predict."""
    field = FIELDS[stored.option(state, "kind", FIELDS)].from_state(state)
    field.load_shared(state)
    return field.requires_grad_(False)
