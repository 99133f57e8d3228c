"""Gaussian processes through inducing points: the field of the papers, kept exact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from gpnsf.core import stored
from gpnsf.core.fields.base import (
    LARGEST,
    LARGEST_LOG,
    AbstractField,
    FieldSize,
    Located,
    evidence_scale,
    stored_sizes,
    to_tensors,
)

__all__ = ["InducingField", "size"]

MAX_INDUCING = 10_000  # of a field read from a file: its covariance matrix is made anew

BLOCK_ROW_BYTES = 100.0  # of a row of a block, an inducing point and a factor, in a step
SECONDS_PER_PRODUCT = 1e-10
SECONDS_PER_PAIR = (
    1.8e-10  # of a row, a factor, and a pair of inducing points, while length scales are learnt
)


class InducingField(AbstractField):
    """Inducing points at k-means centres of the coordinates, whitened, one kernel per factor.

    They follow equations 7 to 21.

    ``A(s) = L^-1 k(Z, s)`` with ``L L^T = K(Z, Z)``; ``m = amplitude A^T u``,
    ``v = amplitude^2 (1 - |A|^2 + A^T Omega A)``. With all distinct coordinates as inducing points
    this is the exact process. Slices are kept apart as points that are infinitely distant from each
    other.
    """

    kind = "inducing"
    centres: Tensor
    centre_library: Tensor

    def __init__(
        self,
        kernel: str,
        n_factors: int,
        n_libraries: int,
        centres: np.ndarray,
        centre_library: np.ndarray,
        *,
        lengthscale: float = 0.2,
        covariance: str = "full",
    ) -> None:
        super().__init__(kernel, n_factors, n_libraries, centres.shape[1], lengthscale)
        n_inducing = len(centres)
        centres_, library_ = to_tensors(centres, centre_library, torch.device("cpu"))
        self.register_buffer("centres", centres_)
        self.register_buffer("centre_library", library_)
        self.covariance = covariance
        self.u_loc = nn.Parameter(torch.zeros(n_factors, n_inducing))
        shape = (
            (n_factors, n_inducing, n_inducing) if covariance == "full" else (n_factors, n_inducing)
        )
        # below the diagonal as it is, diagonal as a log scale
        self.u_tril = nn.Parameter(torch.zeros(shape))
        self.u_log_scale = nn.Parameter(torch.full((n_factors, n_inducing), -1.0))

    def prior(self) -> dist.Distribution:
        """Standard normal weights [T, M]."""
        if self.covariance == "diagonal":
            return dist.Normal(torch.zeros_like(self.u_loc), 1.0).to_event(2)
        identity = torch.eye(self.u_loc.shape[1], device=self.u_loc.device).expand(
            self.u_tril.shape
        )
        return dist.MultivariateNormal(torch.zeros_like(self.u_loc), scale_tril=identity).to_event(
            1
        )

    def posterior(self) -> dist.Distribution:
        """``N(delta, Omega)`` of eq. 17 in whitened coordinates."""
        if self.covariance == "diagonal":
            return dist.Normal(self.u_loc, self.u_log_scale.exp()).to_event(2)
        return dist.MultivariateNormal(self.u_loc, scale_tril=self._scale_tril()).to_event(1)

    def _scale_tril(self) -> Tensor:
        """Cholesky factor [T, M, M] of the covariance of q(u)."""
        if self.covariance == "diagonal":
            return torch.diag_embed(self.u_log_scale.exp())
        return torch.tril(self.u_tril, -1) + torch.diag_embed(self.u_log_scale.exp())

    @torch.no_grad()
    def forget(self, factor: int) -> None:
        """Without what ties the weights."""
        super().forget(factor)
        self.u_tril[factor] = 0.0

    def locate(self, coords: np.ndarray, library: np.ndarray) -> Located:
        """Distances to the inducing points are made when they are needed."""
        return Located(*to_tensors(coords, library, self.u_loc.device))

    def conditional(self, u: Tensor, located: Located) -> tuple[Tensor, Tensor]:
        """Mean ``amplitude A^T u``, variance ``amplitude^2 (1 - |A|^2)``."""
        A, amplitude = self._weights(located), self.log_amplitude.exp()
        mean = torch.einsum("tmn,tm->nt", A, u) * amplitude + self._trend(located)
        return mean, (1 - (A**2).sum(1)).clamp_min(0.0).T * amplitude**2

    def marginals(self, located: Located) -> tuple[Tensor, Tensor]:
        """The conditional with the covariance of q(u) added."""
        A = self._weights(located)
        mean, variance = self.conditional(self.u_loc, located)
        half = torch.einsum("tmk,tmn->tkn", self._scale_tril(), A)  # [T, M, n]
        return mean, variance + (half**2).sum(1).T * (2 * self.log_amplitude).exp()

    def normal_equations(
        self, located: Sequence[Located], targets: Sequence[Tensor]
    ) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """By the weights of all rows."""
        amplitude = self.log_amplitude.exp()[:, None]
        parts = [self._weights(place) for place in located]  # [T, M, n]

        def transposed(rows: Iterable[Tensor]) -> Tensor:
            pairs = zip(parts, rows, strict=True)
            return amplitude * sum(torch.einsum("tmn,nt->tm", A, own) for A, own in pairs)

        def square(u: Tensor) -> Tensor:
            return transposed(torch.einsum("tmn,tm->nt", A, amplitude * u) for A in parts)

        return square, transposed(targets)

    def _weights(self, located: Located) -> Tensor:
        """``A = L^-1 k(Z, s)`` [T, M, n]; kept while the length scales are frozen."""
        kept, frozen = located.cache, not self.log_lengthscale.requires_grad
        if frozen and kept and torch.equal(kept["log_lengthscale"], self.log_lengthscale):
            return kept["weights"]
        ell = self.log_lengthscale.exp()[:, None, None]
        Kzz = self._covariance(self.centres, self.centre_library, ell)
        Kzs = self._covariance(located.coords, located.library, ell)
        A = torch.linalg.solve_triangular(_cholesky(Kzz), Kzs, upper=False)
        if frozen:
            kept |= {"log_lengthscale": self.log_lengthscale.clone(), "weights": A.detach()}
        return A

    def _covariance(self, coords: Tensor, library: Tensor, ell: Tensor) -> Tensor:
        """``k(Z, s)`` [T, M, n], zero between slices."""
        distance = _distances(self.centres, coords)
        same = (self.centre_library[:, None] == library[None, :]).to(distance.dtype)
        return self.kernel.covariance(distance, ell) * same

    @torch.no_grad()
    def set_precision(self, located: Sequence[Located], information: Sequence[Tensor]) -> None:
        """Exact Gaussian covariance of the weights."""
        amplitude_sq = (2 * self.log_amplitude).exp()[:, None, None]
        precision = torch.eye(self.u_loc.shape[1], device=self.u_loc.device).repeat(
            self.n_factors, 1, 1
        )
        for place, info in zip(located, information, strict=True):
            A = self._weights(place)
            precision += amplitude_sq * (A * info.T[:, None, :]) @ A.transpose(1, 2)
        tril = _cholesky(torch.cholesky_inverse(torch.linalg.cholesky(precision)), jitter=1e-7)
        self.covariance = "full"
        self.u_tril = nn.Parameter(torch.tril(tril, -1))
        self.u_log_scale.data.copy_(tril.diagonal(dim1=1, dim2=2).log())

    @torch.no_grad()
    def rescale(
        self, located: Sequence[Located], information: Sequence[Tensor], gradient: Sequence[Tensor]
    ) -> None:
        """All inducing points of a factor decide together."""
        # [N, T]
        weights, slopes = torch.cat(list(information)).clamp_min(0.0), torch.cat(list(gradient))
        A = torch.cat([self._weights(place) for place in located], dim=2)  # [T, M, N]
        for factor, amplitude in enumerate(self.log_amplitude.exp()):
            rows = amplitude * A[factor]  # [M, N]
            gram, slope = (rows * weights[:, factor]) @ rows.T, rows @ slopes[:, factor]
            self._rescale(factor, evidence_scale([(gram, slope, self.u_loc[factor])]))

    def own_state(self) -> dict[str, object]:
        """Inducing points and the covariance of q(u)."""
        names = ["centres", "centre_library", "u_tril", "u_log_scale"]
        return {
            "covariance": self.covariance,
            **{name: getattr(self, name).detach().cpu().numpy() for name in names},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, object]) -> InducingField:
        """Same inducing points, same q(u)."""
        n_libraries, n_factors, n_dims = stored_sizes(state)
        centres = stored.array(state, "centres", (None, n_dims), low=-LARGEST, high=LARGEST)
        n_inducing = len(centres)
        if n_inducing > MAX_INDUCING:
            raise ValueError(
                stored.problem(f"at most {MAX_INDUCING} inducing points", str(n_inducing))
            )
        library = stored.array(
            state, "centre_library", (n_inducing,), low=0, high=n_libraries - 1, kinds="iu"
        )
        covariance = stored.option(state, "covariance", ("full", "diagonal"))
        shape = (n_factors, n_inducing)
        stored.array(state, "u_loc", shape, low=-LARGEST, high=LARGEST)
        stored.array(state, "u_log_scale", shape, low=-100, high=LARGEST_LOG)
        tril = (*shape, n_inducing) if covariance == "full" else shape
        stored.array(state, "u_tril", tril, low=-LARGEST, high=LARGEST)
        field = cls(
            str(state["kernel"]), n_factors, n_libraries, centres, library, covariance=covariance
        )
        for name in ("u_tril", "u_log_scale"):
            getattr(field, name).data.copy_(torch.as_tensor(state[name]))
        return field


def size(n_obs: int, n_factors: int, n_inducing: int, *, full: bool) -> FieldSize:
    """Memory and time: the weights of all rows on all inducing points are kept once the length scales are frozen."""
    M = min(n_inducing, n_obs)
    each = M * n_factors
    exact = 8.0 * each * n_obs  # twice, in single precision
    row, block_row = 4.0 * each, BLOCK_ROW_BYTES * each
    return FieldSize(
        each * (2 + M * full),
        row,
        block_row,
        exact,
        SECONDS_PER_PRODUCT * exact * M,
        SECONDS_PER_PAIR * each * M,
    )


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances with a finite gradient at zero."""
    return (((a[:, None, :] - b[None, :, :]) ** 2).sum(-1) + 1e-12).sqrt()


def _cholesky(matrix: Tensor, jitter: float = 1e-5) -> Tensor:
    """Cholesky factor with the smallest of jitter, 10 jitter, .. 1000 jitter that works."""
    eye = torch.eye(matrix.shape[-1], device=matrix.device)
    for power in range(4):
        tril, info = torch.linalg.cholesky_ex(matrix + jitter * 10.0**power * eye)
        if not info.any():
            return tril
    raise ArithmeticError(
        f"A covariance matrix of {matrix.shape[-1]} inducing points could not be factorised with jitter up to "
        f"{jitter * 1e3:g}. Use fewer inducing points or kernel='matern32'."
    )
