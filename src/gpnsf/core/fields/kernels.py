"""Stationary kernels: covariance and spectral density side by side.

All kernels have unit variance; the amplitude belongs to the field. Distances and length scales
share their unit. Spectral densities are those of the Fourier convention
``k(r) = (2 pi)^-D int S(omega) exp(i omega r) d omega`` (Rasmussen & Williams 2006, eq. 4.15).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["KERNELS", "RBF", "AbstractKernel", "Matern"]


class AbstractKernel(ABC):
    """A unit-variance isotropic kernel."""

    @abstractmethod
    def covariance(self, distance: Tensor, lengthscale: Tensor) -> Tensor:
        """Covariance at the given distances (broadcast against ``lengthscale``)."""

    @abstractmethod
    def log_spectral_density(
        self, frequency_sq: Tensor, lengthscale: Tensor, n_dims: int
    ) -> Tensor:
        """Log of ``S(omega)`` at squared angular frequencies (broadcast with ``lengthscale``)."""


class Matern(AbstractKernel):
    """Matern kernel with half-integer smoothness nu = 1/2, 3/2 or 5/2.

    nu = 1/2 is the exponential kernel.
    """

    def __init__(self, nu: float) -> None:
        self.nu = nu

    def covariance(self, distance: Tensor, lengthscale: Tensor) -> Tensor:
        """``k(r)`` with ``z = sqrt(2 nu) r / l``.

        exp(-z), (1 + z) exp(-z) or (1 + z + z^2 / 3) exp(-z).
        """
        z = math.sqrt(2 * self.nu) * distance / lengthscale
        polynomial = {0.5: lambda z: 1.0, 1.5: lambda z: 1 + z, 2.5: lambda z: 1 + z + z * z / 3}[
            self.nu
        ](z)
        return polynomial * torch.exp(-z)

    def log_spectral_density(
        self, frequency_sq: Tensor, lengthscale: Tensor, n_dims: int
    ) -> Tensor:
        """Log spectral density of the Matern kernel, kappa = 2 nu / l^2.

        ``S = 2^D pi^(D/2) Gamma(nu + D/2) / Gamma(nu) * kappa^nu (kappa + omega^2)^-(nu + D/2)``
        """
        nu, half = self.nu, n_dims / 2
        kappa = 2 * nu / lengthscale**2
        constant = (
            n_dims * math.log(2)
            + half * math.log(math.pi)
            + math.lgamma(nu + half)
            - math.lgamma(nu)
        )
        return constant + nu * torch.log(kappa) - (nu + half) * torch.log(kappa + frequency_sq)


class RBF(AbstractKernel):
    """Squared exponential kernel."""

    def covariance(self, distance: Tensor, lengthscale: Tensor) -> Tensor:
        """``k(r) = exp(-r^2 / (2 l^2))``."""
        return torch.exp(-0.5 * (distance / lengthscale) ** 2)

    def log_spectral_density(
        self, frequency_sq: Tensor, lengthscale: Tensor, n_dims: int
    ) -> Tensor:
        """``S = (2 pi l^2)^(D/2) exp(-l^2 omega^2 / 2)``."""
        return (
            0.5 * n_dims * torch.log(2 * math.pi * lengthscale**2)
            - 0.5 * lengthscale**2 * frequency_sq
        )


KERNELS: dict[str, AbstractKernel] = {
    "matern12": Matern(0.5),
    "matern32": Matern(1.5),
    "matern52": Matern(2.5),
    "rbf": RBF(),
}
