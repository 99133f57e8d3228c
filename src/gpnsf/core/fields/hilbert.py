"""Reduced-rank Gaussian processes on a regular grid: the default field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyro.distributions as dist
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from gpnsf.core import stored
from gpnsf.core.counts.sparse import TransposedProduct
from gpnsf.core.fields.base import (
    LARGEST,
    TISSUE,
    AbstractField,
    FieldSize,
    Located,
    evidence_scale,
    stored_sizes,
    to_tensors,
)
from gpnsf.core.fields.nodes import MARGIN, csr, grid_of, interpolation
from gpnsf.core.fields.resolution import INNER, outer_variance, retained_variance

__all__ = ["HilbertField", "size"]

MAX_BASIS = 256  # per axis and half-width, of a field read from a file
ROW_BYTES = 100.0  # of a row: its place on the grid
SECONDS_PER_CUBE = 1.5e-10  # of basis functions cubed: eigenvalues, and a covariance


class HilbertField(AbstractField):
    """Reduced-rank process on a box (Solin & Sarkka 2020), evaluated on a regular grid of nodes.

    ``g(s) = sum_j phi_j(s) S(omega_j)^(1/2) u_j`` with products of sines ``phi_j``. Mean and
    variance at the nodes are two small matrix products per axis; rows take them by (bi)linear
    interpolation, so a step costs O(nodes m T + 2^D n T), the kernel parameters touch diagonals
    only, and nothing is ever factorised. Rows ask for the nodes of their own slices alone.
    """

    kind = "hilbert"
    basis_0: Tensor
    frequency_sq: Tensor
    node_variance: Tensor | None

    def __init__(
        self,
        kernel: str,
        n_factors: int,
        n_libraries: int,
        extent: Sequence[float],
        *,
        lengthscale: float = 0.2,
        n_basis: int = 28,
    ) -> None:
        super().__init__(kernel, n_factors, n_libraries, len(extent), lengthscale)
        self.extent, self.n_basis = tuple(float(x) for x in extent), n_basis
        self.reach, boxes, sizes, self.shape = grid_of(extent, n_basis)
        frequencies = [
            torch.arange(1, m + 1) * math.pi / (2 * box)
            for m, box in zip(sizes, boxes, strict=True)
        ]
        for axis, (reach, box, omega) in enumerate(
            zip(self.reach, boxes, frequencies, strict=True)
        ):
            nodes = torch.linspace(-reach, reach, self.shape[axis])
            basis = torch.sin(omega * (nodes[:, None] + box)) / math.sqrt(box)  # [nodes, m]
            self.register_buffer(f"basis_{axis}", basis, persistent=False)
        squared = (
            torch.cartesian_prod(*[omega**2 for omega in frequencies])
            .reshape(-1, len(sizes))
            .sum(1)
        )
        self.register_buffer("frequency_sq", squared, persistent=False)  # [M]
        self.sizes, self.inner = sizes, grid_of(extent, min(n_basis, INNER)).sizes
        n_weights = len(squared)
        self.u_loc = nn.Parameter(torch.zeros(n_libraries, n_factors, n_weights))
        self.u_log_scale = nn.Parameter(torch.full((n_libraries, n_factors, n_weights), -1.0))
        self.register_buffer("node_variance", None, persistent=False)

    @property
    def _bases(self) -> list[Tensor]:
        """Basis functions at the nodes [nodes, m] of each axis."""
        return [getattr(self, f"basis_{axis}") for axis in range(self.n_dims)]

    @torch.no_grad()
    def take(self, factor: int, other: AbstractField, source: int) -> None:
        """The other field may have fewer basis functions of the same box.

        Weights of functions that it lacks begin at zero, as sure as what it has learnt of its own
        makes them: of ``1 / (1 + S_j lambda)`` its own tell lambda.
        """
        assert isinstance(other, HilbertField)
        if other.sizes == self.sizes:
            super().take(factor, other, source)
            return
        for name in ("log_lengthscale", "log_amplitude", "slope"):
            axis = self.factor_axis(name)
            value = getattr(other, name).select(axis, source)
            getattr(self, name).select(axis, factor).copy_(value)
        known, density = (
            field._spectral_sd()[k] ** 2 for field, k in ((other, source), (self, factor))
        )
        log_scale = other.u_log_scale[:, source]
        learnt = (torch.exp(-2 * log_scale) - 1).clamp_min(0.0) @ known / known.square().sum()
        loc = torch.zeros_like(self.u_loc[:, factor])
        scale = -0.5 * torch.log1p(learnt[:, None] * density)
        inside = (slice(None), *(slice(m) for m in other.sizes))
        for values, own in ((loc, other.u_loc[:, source]), (scale, log_scale)):
            values.view(-1, *self.sizes)[inside] = own.reshape(-1, *other.sizes)
        self.u_loc[:, factor], self.u_log_scale[:, factor] = loc, scale

    def prior(self) -> dist.Distribution:
        """Standard normal weights [slices, T, M]."""
        return dist.Normal(torch.zeros_like(self.u_loc), 1.0).to_event(3)

    def posterior(self) -> dist.Distribution:
        """Mean-field normal weights."""
        return dist.Normal(self.u_loc, self.u_log_scale.exp()).to_event(3)

    def locate(self, coords: np.ndarray, library: np.ndarray) -> Located:
        """The slices [s] of the rows, their interpolation matrix [n, s * nodes] and its transpose."""
        device = self.u_loc.device
        slices, code = np.unique(library, return_inverse=True)
        outside = np.linalg.norm(np.maximum(np.abs(coords) - np.asarray(self.reach), 0.0), axis=1)
        matrix = interpolation(coords, code, self.reach, self.shape, len(slices))
        cache: dict[str, Tensor] = {
            "slices": torch.as_tensor(slices.astype(np.int64), device=device),
            "matrix": csr(matrix, device),
            "transposed": csr(matrix.T.tocsr(), device),
        }
        if outside.any():
            cache["outside"] = torch.as_tensor(outside, dtype=torch.float32, device=device)
        return Located(*to_tensors(coords, library, device), cache)

    def conditional(self, u: Tensor, located: Located) -> tuple[Tensor, Tensor | None]:
        """Given u nothing is left to vary, but for what the process falls back to beyond the nodes."""
        mean = self._interpolate(located, self._nodes(self._own(located, u) * self._spectral_sd()))
        variance = None
        if "outside" in located.cache:
            distance = located.cache["outside"][:, None]
            mean, variance = self._extrapolate(distance, mean, torch.zeros_like(mean))
        return mean + self._trend(located), variance

    def marginals(self, located: Located) -> tuple[Tensor, Tensor]:
        """Interpolated node moments; beyond the nodes the process falls back to its prior."""
        moments = self._interpolate(located, torch.cat(self._node_moments(located), dim=1))
        mean, variance = moments.split(self.n_factors, dim=1)
        if "outside" in located.cache:
            mean, variance = self._extrapolate(located.cache["outside"][:, None], mean, variance)
        return mean + self._trend(located), variance

    def fine(self, located: Located) -> Tensor | None:
        """That of all but the inner basis functions."""
        if self.inner == self.sizes:
            return None
        u = (self._own(located, self.u_loc) * self._spectral_sd()).unflatten(-1, self.sizes).clone()
        u[(..., *(slice(m) for m in self.inner))] = 0.0
        return self._interpolate(located, self._nodes(u.flatten(-self.n_dims)))

    def _node_moments(self, located: Located | None = None) -> tuple[Tensor, Tensor]:
        """Mean and variance [s * nodes, T] of the process at the nodes, of the slices of some rows."""
        spectral_sd = self._spectral_sd()
        mean = self._nodes(spectral_sd * self._own(located, self.u_loc))
        if self.node_variance is not None:
            variance = self.node_variance.reshape(self.n_libraries, -1, self.n_factors)
            return mean, self._own(located, variance).reshape(-1, self.n_factors)
        scale = self._own(located, self.u_log_scale).exp()
        return mean, self._nodes((spectral_sd * scale) ** 2, power=2)

    def _own(self, located: Located | None, values: Tensor) -> Tensor:
        """Values [slices, ..] of the slices of some rows."""
        if located is None or len(located.cache["slices"]) == self.n_libraries:
            return values
        return values[located.cache["slices"]]

    def _extrapolate(
        self, distance: Tensor, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Moments at ``distance`` from the nearest node, conditional on that node alone."""
        correlation = self.kernel.covariance(distance, self.log_lengthscale.exp())  # [n, T]
        prior = (2 * self.log_amplitude).exp()
        return mean * correlation, variance * correlation**2 + prior * (1 - correlation**2)

    def _spectral_sd(self) -> Tensor:
        """``amplitude * S(omega)^(1/2)`` [T, M]."""
        ell = self.log_lengthscale.exp()[:, None]
        log_density = self.kernel.log_spectral_density(self.frequency_sq, ell, self.n_dims)
        return torch.exp(0.5 * log_density + self.log_amplitude[:, None])

    def _nodes(self, weights: Tensor, power: int = 1) -> Tensor:
        """``sum_j phi_j^power weights_j`` at all nodes: [s, T, M] to [s * nodes, T]."""
        values = weights.reshape(-1, *self.sizes)  # [slices * T, m_1, .., m_D]
        for basis in self._bases:
            # the next axis comes first, the nodes go last
            values = torch.tensordot(values, basis**power, dims=([1], [1]))
        values = values.reshape(len(weights), self.n_factors, -1)  # [s, T, nodes]
        return values.transpose(1, 2).reshape(-1, self.n_factors)

    def _moments(self, nodes: Tensor) -> Tensor:
        """``sum_i phi_j(s_i) nodes_i`` over all nodes: [slices, nodes, T] to [slices, T, M]."""
        sums = nodes.transpose(1, 2).reshape(-1, *self.shape)
        for basis in self._bases:
            sums = torch.tensordot(sums, basis, dims=([1], [0]))
        return sums.reshape(self.n_libraries, self.n_factors, -1)

    def normal_equations(
        self, located: Sequence[Located], targets: Sequence[Tensor]
    ) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """At the nodes, where what rows have to say is moved once."""
        spectral_sd = self._spectral_sd()
        pairs = [_pairs_of_nodes(place) for place in located]

        def square(u: Tensor) -> Tensor:
            nodes = self._nodes(u * spectral_sd).reshape(self.n_libraries, -1, self.n_factors)
            moved = [
                matrix @ self._own(place, nodes).reshape(-1, self.n_factors)
                for place, matrix in zip(located, pairs, strict=True)
            ]
            return spectral_sd * self._moments(self._together(located, moved))

        return square, spectral_sd * self._moments(self._at_nodes(located, targets))

    def _interpolate(self, located: Located, nodes: Tensor) -> Tensor:
        """Values [n, C] of node values [s * nodes, C]."""
        return TransposedProduct.apply(
            located.cache["matrix"], located.cache["transposed"], nodes.contiguous()
        )

    @torch.no_grad()
    def set_precision(self, located: Sequence[Located], information: Sequence[Tensor]) -> None:
        """Gaussian covariance of the weights, kept as its variance at the nodes.

        The information of the rows is first moved to the nodes by the transposed interpolation. The
        covariance of the inner basis functions is exact; of these, functions that the data cannot
        inform (``S_j sum information < 0.01``) keep their prior variance. Finer functions have the
        variance that the information around each node leaves them.
        """
        at_nodes = self._at_nodes(located, information).clamp_min(0.0)  # [slices, nodes, T]
        variances = torch.empty_like(at_nodes)
        grid = grid_of(self.extent, self.n_basis)
        for factor, every in enumerate(self._spectral_sd().double()):
            spectral_sd = self._inner(every)
            for library in range(self.n_libraries):
                weights = at_nodes[library, :, factor]
                informed = spectral_sd**2 * weights.sum() > 0.01
                precision = self._gram(weights, spectral_sd)[informed][:, informed]
                precision.diagonal().add_(1.0)
                covariance = torch.eye(
                    len(informed), dtype=precision.dtype, device=precision.device
                )
                inside = informed.nonzero()
                covariance[inside, inside.T] = torch.cholesky_inverse(
                    torch.linalg.cholesky(precision)
                )
                variance = self._node_variances(covariance, spectral_sd)
                if self.inner != self.sizes:
                    variance += outer_variance(
                        grid, self.inner, self._bases, weights.double(), every**2
                    )
                variances[library, :, factor] = variance
        self.node_variance = variances.reshape(-1, self.n_factors)

    @torch.no_grad()
    def rescale(
        self, located: Sequence[Located], information: Sequence[Tensor], gradient: Sequence[Tensor]
    ) -> None:
        """The inner basis functions that the data inform decide, those of all slices together."""
        weights = self._at_nodes(located, information).clamp_min(0.0)
        slopes = self._at_nodes(located, gradient) * (weights > 0)
        moments = self._inner(self._moments(slopes))  # [slices, T, M]
        for factor, spectral_sd in enumerate(self._inner(self._spectral_sd())):
            informed = spectral_sd**2 * weights[:, :, factor].sum() > 0.01
            if informed.any():
                slices = (
                    (self._gram(weight, spectral_sd), spectral_sd * moment, u)
                    for weight, moment, u in zip(
                        weights[:, :, factor],
                        moments[:, factor],
                        self._inner(self.u_loc[:, factor]),
                        strict=True,
                    )
                )
                scale = evidence_scale(
                    (B[informed][:, informed], y[informed], u[informed]) for B, y, u in slices
                )
                self._rescale(factor, scale)

    def _gram(self, weights: Tensor, spectral_sd: Tensor) -> Tensor:
        """``A^T diag(weights) A`` [M, M], A the scaled inner basis functions at the nodes, by axes."""
        sums = weights.to(spectral_sd.dtype).reshape(self.shape)
        for axis in range(self.n_dims):
            sums = torch.tensordot(sums, self._pairs(axis).to(sums.dtype), dims=([0], [0]))
        sizes = [m for m in self.inner for _ in range(2)]
        order = [*range(0, 2 * self.n_dims, 2), *range(1, 2 * self.n_dims, 2)]
        gram = sums.reshape(sizes).permute(order).reshape(len(spectral_sd), -1)
        return spectral_sd[:, None] * gram * spectral_sd

    def _node_variances(self, covariance: Tensor, spectral_sd: Tensor) -> Tensor:
        """``diag(A C A^T)`` [nodes] for a covariance C [M, M] of the inner weights."""
        order = [axis + half * self.n_dims for axis in range(self.n_dims) for half in range(2)]
        scaled = (spectral_sd[:, None] * covariance * spectral_sd).reshape(*self.inner, *self.inner)
        sums = scaled.permute(order).reshape([m**2 for m in self.inner])
        for axis in range(self.n_dims):
            sums = torch.tensordot(sums, self._pairs(axis).to(sums.dtype), dims=([0], [1]))
        return sums.reshape(-1).clamp_min(0.0)

    def _inner(self, values: Tensor) -> Tensor:
        """Of values [.., M] of all basis functions those of the inner ones."""
        inside = tuple(slice(m) for m in self.inner)
        return values.unflatten(-1, self.sizes)[(..., *inside)].flatten(-self.n_dims)

    def _pairs(self, axis: int) -> Tensor:
        """Products of any two inner basis functions of an axis at its nodes [nodes, m^2]."""
        basis = self._bases[axis][:, : self.inner[axis]]
        return (basis[:, :, None] * basis[:, None, :]).flatten(1)

    def _at_nodes(self, located: Sequence[Located], values: Sequence[Tensor]) -> Tensor:
        """Values of rows moved to the nodes by the transposed interpolation [slices, nodes, T]."""
        moved = [
            place.cache["transposed"] @ part.contiguous()
            for place, part in zip(located, values, strict=True)
        ]
        return self._together(located, moved)

    def _together(self, located: Sequence[Located], moved: Sequence[Tensor]) -> Tensor:
        """Sum [slices, nodes, T] of values [s * nodes, T] at the nodes of the slices of some rows."""
        shape = self.n_libraries, math.prod(self.shape), self.n_factors
        total = moved[0].new_zeros(shape)
        for place, part in zip(located, moved, strict=True):
            total.index_add_(0, place.cache["slices"], part.reshape(-1, *shape[1:]))
        return total

    def kept_variance(self) -> np.ndarray:
        """Share [T] of the prior variance that the basis functions keep (:func:`retained_variance`)."""
        lengthscale = self.log_lengthscale.detach().exp().cpu().numpy()
        return retained_variance(self.kernel_name, lengthscale, self.extent, self.n_basis)

    def own_state(self) -> dict[str, object]:
        """Extent, basis and the variance at the nodes."""
        with torch.no_grad():
            variance = self._node_moments()[1].cpu().numpy()
        return {
            "extent": np.asarray(self.extent),
            "n_basis": self.n_basis,
            "node_variance": variance,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, object]) -> HilbertField:
        """Same basis, variance at the nodes as it was."""
        n_libraries, n_factors, n_dims = stored_sizes(state)
        extent = stored.array(state, "extent", (n_dims,), low=1e-6, high=10)
        n_basis = stored.whole(state, "n_basis", low=1, high=MAX_BASIS)
        grid = grid_of(extent.tolist(), n_basis)
        n_nodes, n_weights = math.prod(grid.shape), math.prod(grid.sizes)
        stored.array(
            state, "u_loc", (n_libraries, n_factors, n_weights), low=-LARGEST, high=LARGEST
        )
        variance = stored.array(
            state, "node_variance", (n_libraries * n_nodes, n_factors), low=0, high=LARGEST**4
        )
        field = cls(str(state["kernel"]), n_factors, n_libraries, extent.tolist(), n_basis=n_basis)
        field.node_variance = torch.as_tensor(variance, dtype=torch.float32)
        return field


def size(coords: np.ndarray, n_libraries: int, n_factors: int, n_axis: float) -> FieldSize:
    """Memory and time of a field whose basis functions per axis and half-width are ``n_axis``."""
    boxes = (np.abs(coords).max(0).clip(max=TISSUE) + MARGIN) / (1 + MARGIN)
    n_weights, inner = (float(np.prod(n * boxes)) for n in (n_axis, min(n_axis, INNER)))
    exact = 48.0 * inner**2 * (n_factors > 0)  # twice six matrices of single precision
    seconds = SECONDS_PER_CUBE * n_factors * inner**3 * n_libraries
    return FieldSize(
        int(2 * n_libraries * n_factors * n_weights), ROW_BYTES, 0.0, exact, seconds, 0.0
    )


def _pairs_of_nodes(located: Located) -> Tensor:
    """Interpolation transposed times interpolation [s * nodes, s * nodes]; kept."""
    if "pairs" not in located.cache:
        matrix = located.cache["matrix"]
        parts = matrix.values(), matrix.col_indices(), matrix.crow_indices()
        rows = sp.csr_matrix(tuple(part.cpu().numpy() for part in parts), matrix.shape)
        located.cache["pairs"] = csr((rows.T @ rows).tocsr(), matrix.device)
    return located.cache["pairs"]
