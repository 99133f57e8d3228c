"""Gaussian-process fields over space: one contract, two backends.

A field holds T independent processes ``f_t(s) = slope_t . s + amplitude_t * g_t(s)``,
``g_t ~ GP(0, k(. ; lengthscale_t))`` (the linear mean of eq. 2; its intercept is absorbed by the
loadings). Both backends are whitened: ``f = A(s) u + r(s)`` with ``u ~ N(0, I)`` and a Gaussian
``q(u)``, so that the Kullback-Leibler term never sees a covariance matrix.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor, nn

from gpnsf.core import stored
from gpnsf.core.fields.kernels import KERNELS

__all__ = [
    "TISSUE",
    "AbstractField",
    "FieldSize",
    "Located",
    "evidence_scale",
    "stored_sizes",
    "to_tensors",
]

# half-width units; outside of it the data say nothing about the length scale
LENGTHSCALE_RANGE = (0.04, 3.0)
AMPLITUDE_RANGE = (0.05, 3.0)
# bounds of parameters read from a file: beyond, single precision overflows
LARGEST, LARGEST_LOG = 1e6, 30.0
# residual and steps of the conjugate gradients that put a start into the field
RIDGE_RESIDUAL, RIDGE_STEPS = 1e-3, 100
MAX_LOG_SCALE = 1.5  # largest correction of a log amplitude
USUAL_LENGTHSCALE = 0.2  # half-width units, of a field that begins
TISSUE = 1.05  # half-width of the tissue with a margin
SHARED = ("u_loc", "log_lengthscale", "log_amplitude", "slope")


@dataclass
class Located:
    """Where some rows are: what a field has worked out about their coordinates."""

    coords: Tensor  # [n, D]
    library: Tensor  # [n]
    cache: dict[str, Tensor] = field(default_factory=dict)


class FieldSize(NamedTuple):
    """What a field takes, from shapes alone."""

    parameters: int
    row: float  # bytes of each row
    block_row: float  # bytes of each row of a block, in a step
    exact: float  # bytes, to find its exact variance
    exact_seconds: float
    row_seconds: (
        float  # of each row, in a step that learns length scales; 0 where it does not count
    )


class AbstractField(nn.Module, ABC):
    """T independent Gaussian processes with a variational posterior over whitened weights u."""

    kind: str
    u_loc: nn.Parameter
    u_log_scale: nn.Parameter
    has_given_lengthscale = False

    def __init__(
        self, kernel: str, n_factors: int, n_libraries: int, n_dims: int, lengthscale: float
    ) -> None:
        super().__init__()
        self.kernel_name = kernel
        self.kernel = KERNELS[kernel]
        self.n_factors, self.n_libraries, self.n_dims = n_factors, n_libraries, n_dims
        self.log_lengthscale = nn.Parameter(torch.full((n_factors,), math.log(lengthscale)))
        self.log_amplitude = nn.Parameter(torch.zeros(n_factors))
        self.slope = nn.Parameter(torch.zeros(n_libraries, n_factors, n_dims))

    @abstractmethod
    def locate(self, coords: np.ndarray, library: np.ndarray) -> Located:
        """Prepare rows at ``coords`` [n, D] of slices ``library`` [n]."""

    @abstractmethod
    def prior(self) -> dist.Distribution:
        """``p(u) = N(0, I)``."""

    @abstractmethod
    def posterior(self) -> dist.Distribution:
        """``q(u)``."""

    @abstractmethod
    def conditional(self, u: Tensor, located: Located) -> tuple[Tensor, Tensor | None]:
        """Mean and variance [n, T] of ``f(s) | u`` (eq. 13 and 14, diagonal).

        The variance is None where nothing is left to vary.
        """

    @abstractmethod
    def marginals(self, located: Located) -> tuple[Tensor, Tensor]:
        """Mean and variance [n, T] of f(s) under q (eq. 33 and 34)."""

    def fine(self, located: Located) -> Tensor | None:
        """What basis functions that are hardly wider than spots add to the mean [n, T]; None without such."""
        return None

    @abstractmethod
    def normal_equations(
        self, located: Sequence[Located], targets: Sequence[Tensor]
    ) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """``u -> A^T A u`` and ``A^T targets`` of rows ``f = A u``; targets are [n, T]."""

    @abstractmethod
    def set_precision(self, located: Sequence[Located], information: Sequence[Tensor]) -> None:
        """Replace the covariance of q(u) by ``(I + A^T diag(information) A)^-1``.

        The information [n, T] is that on f.
        """

    @abstractmethod
    def rescale(
        self, located: Sequence[Located], information: Sequence[Tensor], gradient: Sequence[Tensor]
    ) -> None:
        """Take the amplitude with the highest evidence, and leave the mean of f where it is.

        ``information`` and ``gradient`` [n, T] are those of the log-likelihood in f.
        """

    @abstractmethod
    def own_state(self) -> dict[str, object]:
        """What a backend adds to :meth:`state`."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, object]) -> AbstractField:
        """The field that :meth:`state` describes, up to the parameters that all fields share; nothing in it is trusted."""

    def state(self) -> dict[str, object]:
        """Plain arrays and scalars from which :func:`gpnsf.core.model.build.restore_field` rebuilds the field for prediction."""
        shared = {name: getattr(self, name).detach().cpu().numpy() for name in SHARED}
        return {
            "kind": self.kind,
            "kernel": self.kernel_name,
            "n_libraries": self.n_libraries,
            **shared,
            **self.own_state(),
        }

    def load_shared(self, state: Mapping[str, object]) -> None:
        """Take over the parameters that all fields share."""
        for name in SHARED:
            getattr(self, name).data.copy_(torch.as_tensor(state[name]))

    def load(self, log_factors: Tensor, located: Sequence[Located], noise_sd: float = 0.5) -> None:
        """Start q(u) at the ridge fit of centred ``log_factors`` [N, T].

        The amplitude at their standard deviation.
        """
        self.log_amplitude.data.copy_(log_factors.std(0).clamp(0.3, 3.0).log())
        self._ridge(log_factors, located, noise_sd)

    @torch.no_grad()
    def _ridge(self, log_factors: Tensor, located: Sequence[Located], noise_sd: float) -> None:
        """Means of q(u) that fit ``log_factors`` [N, T] best, the amplitudes as they are."""
        parts = torch.split(log_factors, [len(place.coords) for place in located])
        targets = [part - self._trend(place) for part, place in zip(parts, located, strict=True)]
        square, moment = self.normal_equations(located, targets)

        def product(u: np.ndarray) -> np.ndarray:
            weights = torch.as_tensor(u, dtype=moment.dtype, device=moment.device)
            squared = square(weights.reshape(moment.shape)).reshape(-1)
            return squared.double().cpu().numpy() + noise_sd**2 * u

        system = LinearOperator((moment.numel(),) * 2, matvec=product, dtype=np.float64)
        solution, _ = cg(
            system,
            moment.reshape(-1).double().cpu().numpy(),
            rtol=RIDGE_RESIDUAL,
            maxiter=RIDGE_STEPS,
        )
        self.u_loc.copy_(torch.as_tensor(solution).reshape(self.u_loc.shape))

    @torch.no_grad()
    def put(
        self,
        factor: int,
        log_factor: Tensor,
        located: Sequence[Located],
        *,
        like: int | None = None,
        noise_sd: float = 0.2,
        amplitude: float | None = None,
    ) -> None:
        """Make one factor the ridge fit of a centred log factor [N]; the others stay as they are.

        It takes the length scale of the factor ``like``, or a common one; ``amplitude`` in the
        place of its standard deviation.
        """
        names = ("u_loc", "log_amplitude", "slope")
        before = {name: getattr(self, name).detach().clone() for name in names}
        if like is None and not self.has_given_lengthscale:
            self.log_lengthscale[factor] = math.log(USUAL_LENGTHSCALE)
        elif like is not None:
            self.log_lengthscale[factor] = self.log_lengthscale[like].clone()
        self.slope.zero_()
        targets = torch.zeros(len(log_factor), self.n_factors, device=log_factor.device)
        targets[:, factor] = log_factor
        self.load(targets, located, noise_sd)
        if amplitude is not None:
            self.log_amplitude[factor] = math.log(max(amplitude, AMPLITUDE_RANGE[0]))
            self._ridge(targets, located, noise_sd)
        for name, values in before.items():
            axis = self.factor_axis(name)
            values.index_copy_(axis, *_one(getattr(self, name), factor, axis))
            getattr(self, name).copy_(values)
        others = [k for k in range(self.n_factors) if k != factor]
        if like is None and others:
            self.u_log_scale[..., factor, :] = self.u_log_scale[..., others, :].amin(-2)

    def factor_axis(self, name: str) -> int:
        """Axis of a parameter along which the factors stand."""
        return {"u_loc": -2, "u_log_scale": -2, "slope": -2}.get(name, 0)

    @torch.no_grad()
    def take(self, factor: int, other: AbstractField, source: int) -> None:
        """Make one factor the factor ``source`` of another field of the same kind over the same tissue."""
        for name, parameter in other.named_parameters():
            axis = other.factor_axis(name)
            getattr(self, name).select(axis, factor).copy_(parameter.select(axis, source))

    @torch.no_grad()
    def forget(self, factor: int) -> None:
        """Put one factor back to its prior."""
        for values in (self.u_loc, self.u_log_scale, self.slope):
            values[..., factor, :] = 0.0

    def hyperparameters(self) -> list[nn.Parameter]:
        """Kernel parameters, which are learnt early and then frozen."""
        return [self.log_lengthscale, self.log_amplitude]

    def _rescale(self, factor: int, log_scale: Tensor) -> None:
        """Raise the log amplitude of a factor, inside its range, and keep the mean of f."""
        low, high = map(math.log, AMPLITUDE_RANGE)
        before = self.log_amplitude[factor].clone()
        self.log_amplitude[factor] = (before + log_scale).clamp(low, high)
        self.u_loc[..., factor, :] *= (before - self.log_amplitude[factor]).exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep the kernel parameters inside the range that data can speak about."""
        if self.log_lengthscale.requires_grad:  # a length scale that was asked for stays
            self.log_lengthscale.clamp_(*map(math.log, LENGTHSCALE_RANGE))
        self.log_amplitude.clamp_(*map(math.log, AMPLITUDE_RANGE))

    def _trend(self, located: Located) -> Tensor:
        """``slope . s`` [n, T], held constant beyond the tissue.

        A line in h would be an explosion in exp(h).
        """
        coords = located.coords.clamp(-TISSUE, TISSUE)
        if self.n_libraries == 1:
            return coords @ self.slope[0].T
        return (coords[:, None, :] * self.slope[located.library]).sum(-1)


def _one(values: Tensor, factor: int, axis: int) -> tuple[Tensor, Tensor]:
    """Position of one factor along an axis, and what stands there."""
    index = torch.tensor([factor], device=values.device)
    return index, values.detach().index_select(axis, index)


def stored_sizes(state: Mapping[str, object]) -> tuple[int, int, int]:
    """Slices, factors and dimensions of a stored field.

    All parameters that fields share must agree on them.
    """
    sizes = stored.array(state, "slope", (None, None, None), low=-LARGEST, high=LARGEST).shape
    stored.whole(state, "n_libraries", low=sizes[0], high=sizes[0])
    stored.option(state, "kernel", KERNELS)
    for name in ("log_lengthscale", "log_amplitude"):
        stored.array(state, name, (sizes[1],), low=-LARGEST_LOG, high=LARGEST_LOG)
    return sizes


def evidence_scale(slices: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Logarithm of the factor s on the amplitude that has the highest evidence.

    The field is ``f = s A u``, ``u ~ N(0, I)``.

    Slices ``(B, A^T g, u)`` share the amplitude and nothing else. With information Lambda and
    gradient g of the log-likelihood at the present ``f = A u``, ``B = A^T Lambda A`` and
    ``r = A^T g + B u``, Laplace's approximation is the sum over slices of, by one
    eigendecomposition of B for all s,

        log Z(s) = s^2/2 r^T (I + s^2 B)^-1 r - 1/2 log |I + s^2 B|.
    """
    D, y = (
        torch.cat(parts) for parts in zip(*(_spectrum(*slice_) for slice_ in slices), strict=True)
    )
    log_s = torch.linspace(-MAX_LOG_SCALE, MAX_LOG_SCALE, 61, device=y.device)
    s_sq = (2 * log_s).exp()[:, None]
    return log_s[(y**2 * s_sq / (1 + s_sq * D) - torch.log1p(s_sq * D)).sum(1).argmax()]


def _spectrum(B: Tensor, slope: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of B, and r in their directions [M]."""
    D, Q = torch.linalg.eigh(B)
    return D.clamp_min(0.0), Q.T @ (slope + B @ u)


def to_tensors(
    coords: np.ndarray, library: np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Coordinates [n, D] and slice codes [n] on the device."""
    return (
        torch.as_tensor(np.asarray(coords, dtype=np.float32), device=device),
        torch.as_tensor(np.asarray(library, dtype=np.int64), device=device),
    )
