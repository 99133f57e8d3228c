"""Kernels: the covariance and the spectral density of each entry say the same thing."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from reference import matern
from scipy.integrate import quad
from scipy.special import j0

from gpnsf.core.fields.kernels import KERNELS

SMOOTHNESS = {"matern12": 0.5, "matern32": 1.5, "matern52": 2.5, "rbf": math.inf}
LENGTHSCALE = 0.3


# One-dimensional integrals that replace those over D-dimensional space for functions of the radius alone:
# surface of the unit sphere, and the mean of exp(i omega . r) over it
SURFACE = {1: 2.0, 2: 2 * math.pi, 3: 4 * math.pi}
WAVE = {1: math.cos, 2: j0, 3: lambda x: math.sin(x) / x if x else 1.0}


def covariance(name: str, distance: float, lengthscale: float = LENGTHSCALE) -> float:
    """One covariance in double precision."""
    scale = torch.tensor(lengthscale, dtype=torch.float64)
    return float(KERNELS[name].covariance(torch.tensor(distance, dtype=torch.float64), scale))


def density(name: str, frequency: float, n_dims: int) -> float:
    """One spectral density in double precision."""
    squared = torch.tensor(frequency**2, dtype=torch.float64)
    scale = torch.tensor(LENGTHSCALE, dtype=torch.float64)
    return math.exp(KERNELS[name].log_spectral_density(squared, scale, n_dims))


def test_no_missing_kernel():
    assert KERNELS.keys() == SMOOTHNESS.keys()


def test_covariance_is_the_definition(subtests):
    for name, distance in product(KERNELS, (0.0, 0.01, 0.2, 0.9, 3.0)):
        with subtests.test(name=name, distance=distance):
            assert covariance(name, distance) == pytest.approx(
                matern(distance, LENGTHSCALE, SMOOTHNESS[name]), abs=1e-12
            )


def test_covariance_is_one_at_zero_and_falls(subtests):
    for name in KERNELS:
        with subtests.test(name=name):
            values = [covariance(name, distance) for distance in np.linspace(0, 2, 20)]
            assert values[0] == 1.0
            assert (np.diff(values) < 0).all()
            assert values[-1] > 0


def test_only_the_ratio_of_distance_and_lengthscale_counts(subtests):
    for name in KERNELS:
        with subtests.test(name=name):
            assert covariance(name, 0.7, 0.2) == pytest.approx(
                covariance(name, 7.0, 2.0), rel=1e-12
            )


def test_matrices_are_symmetric_and_positive_definite(subtests):
    for name, n_dims in product(KERNELS, (1, 2, 3)):
        with subtests.test(name=name, n_dims=n_dims):
            points = torch.as_tensor(np.random.default_rng(0).uniform(-1, 1, (40, n_dims)))
            matrix = KERNELS[name].covariance(
                torch.cdist(points, points), torch.tensor(LENGTHSCALE, dtype=torch.float64)
            )
            torch.testing.assert_close(matrix, matrix.T)
            torch.testing.assert_close(matrix.diagonal(), torch.ones(40, dtype=torch.float64))
            assert torch.linalg.eigvalsh(matrix).min() > -1e-10


def test_gradients_are_finite_at_distance_zero(subtests):
    for name in KERNELS:
        with subtests.test(name=name):
            distance = torch.zeros(1, requires_grad=True)
            scale = torch.full((1,), LENGTHSCALE, requires_grad=True)
            KERNELS[name].covariance(distance, scale).sum().backward()
            assert torch.isfinite(distance.grad).all()
            assert scale.grad.item() == 0.0


def shell(frequency: float, name: str, n_dims: int) -> float:
    """The density at all points of one frequency."""
    return SURFACE[n_dims] * frequency ** (n_dims - 1) * density(name, frequency, n_dims)


def wave(r: float, frequency: float, name: str, n_dims: int) -> float:
    """The covariance with all points at one distance, times a wave."""
    area = SURFACE[n_dims] * r ** (n_dims - 1)
    return area * covariance(name, r) * WAVE[n_dims](frequency * r)


def test_spectral_density_integrates_to_one(subtests):
    for name, n_dims in product(KERNELS, (1, 2, 3)):
        with subtests.test(name=name, n_dims=n_dims):
            total = sum(
                quad(shell, *ends, args=(name, n_dims), limit=200)[0]
                for ends in ((0, 30), (30, math.inf))
            )
            assert total / (2 * math.pi) ** n_dims == pytest.approx(1.0, rel=1e-5)


def test_spectral_density_is_the_fourier_transform_of_the_covariance(subtests):
    for name, n_dims, frequency in product(KERNELS, (1, 2, 3), (0.0, 1.0, 4.0, 12.0)):
        with subtests.test(name=name, n_dims=n_dims, frequency=frequency):
            args = frequency, name, n_dims
            transform = quad(wave, 0, 40 * LENGTHSCALE, args, limit=400, epsabs=1e-10)[0]
            assert density(name, frequency, n_dims) == pytest.approx(transform, rel=1e-5, abs=1e-9)


def test_lengthscales_broadcast_one_per_factor(subtests):
    for name in KERNELS:
        with subtests.test(name=name):
            scales = torch.tensor([0.1, 0.3, 1.0])
            together = KERNELS[name].covariance(torch.rand(5, 1), scales)
            spectrum = KERNELS[name].log_spectral_density(torch.rand(7), scales[:, None], 2)
            assert together.shape == (5, 3)
            assert spectrum.shape == (3, 7)
