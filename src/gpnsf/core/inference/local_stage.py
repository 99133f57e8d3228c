"""The local stage: what each spot adds to the field, and how sure we are of it.

After the optimisation W and the field are frozen and every spot gets its own deviation,

    h_ik = f_k(s_i) + e_ik,  e_ik ~ N(0, gamma_k)   spatial factors (the nugget gamma_1 of eq. 3)
    h_ik = e_ik,             e_ik ~ N(0, gamma_k)   nonspatial factors

found by Newton steps, all K factors of a spot jointly, with a Laplace covariance
``C_i = (H_i + diag(1/gamma))^-1``, H being Fisher's information, which the nonzero counts estimate
until the last round. gamma follows by EM. Training with the nugget from the start would let it
steal the signal of the field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpnsf.core import distributed
from gpnsf.core.inference.moves import Adopted
from gpnsf.core.inference.shapes import Shapes
from gpnsf.core.likelihoods.moments import MEAN_RANGE
from gpnsf.core.model.factorization import Block, Factorization

__all__ = ["LogFactors", "covariances", "local", "mean_field", "memory"]

# steps of each round: the information is refreshed before them, gamma after them
NEWTON_STEPS = (3, 2, 1, 1, 1)
LARGEST_STEP = 1.0
MATRICES = 10_000  # [K, K] that are inverted at a time, in double precision
FIRST_GAMMA = 0.05
GAMMA_FLOOR = 1e-4


def covariances(precision: Tensor) -> Tensor:
    """Inverse of precisions [n, K, K] known to single precision.

    A dominant direction may leave them singular.

    The diagonal is lifted by 1e-7 of its mean, the rounding error of what it is the sum of.
    """

    def inverse(part: Tensor) -> Tensor:
        lifted = part.double()
        diagonal = lifted.diagonal(dim1=1, dim2=2)
        diagonal += 1e-7 * diagonal.mean(1, keepdim=True)
        return torch.linalg.inv(lifted).to(part.dtype)

    return torch.cat([inverse(part) for part in precision.split(MATRICES)])


@dataclass(frozen=True)
class LogFactors:
    """Posterior of the log factors (of the factors themselves in signed models)."""

    m: Tensor  # [N, K] mean; where size factors are totals, that of h less the divisor
    v: Tensor  # [N, K] variance
    field_m: Tensor  # [N, T] mean of the field alone
    field_v: Tensor  # [N, T]
    gamma: Tensor  # [K] variance of the deviations around the field
    divisor: Tensor  # [N, 1] logarithm of what the factors of a spot were divided by (eq. 4b)


def memory(shapes: Shapes) -> float:
    """Bytes: information and covariance of the factors of a block, and temporary arrays of a chunk of nonzeros."""
    K = shapes.n_factors
    return 20.0 * shapes.n_obs * K + 15.0 * shapes.block * K**2 + 12.0 * shapes.chunk


@torch.no_grad()
def mean_field(model: Factorization, blocks: list[Block]) -> LogFactors:
    """The guide's posterior, without a local stage."""
    m, v = _marginals(model, blocks)
    divisor, T = (m - model.relative(m, v))[:, :1], model.n_spatial
    return LogFactors(m - divisor, v, m[:, :T], v[:, :T], _spread_of_guide(model), divisor)


def _marginals(model: Factorization, blocks: list[Block]) -> tuple[Tensor, Tensor]:
    """Mean and variance [N, K] of h under the guide."""
    moments = [model.marginals(block) for block in blocks]
    return torch.cat([m for m, _ in moments]), torch.cat([v for _, v in moments])


def _spread_of_guide(model: Factorization) -> Tensor:
    """Variance [K] of log factors around their field, of which training knows none."""
    gamma = torch.zeros(model.n_factors, device=model.device)
    if model.nonspatial is not None:
        gamma[model.n_spatial :] = (2 * model.nonspatial.log_sigma).exp()
    return gamma


@torch.no_grad()
def local(
    model: Factorization,
    blocks: list[Block],
    adopted: Mapping[int, Adopted] | None = None,
    gamma: Tensor | None = None,
) -> LogFactors:
    """Run the local stage, then give the field its exact variance.

    The information is that which the spots carry.

    ``adopted`` tells of spatial factors, by number, that do not begin at their field. ``gamma`` [K]
    is held, and the amplitudes with it, where both are known.
    """
    adopted = adopted or {}
    stage = _LocalStage(model, blocks, {k: own.log_factor for k, own in adopted.items()})
    stage.gamma = stage.gamma if gamma is None else gamma.clamp_min(GAMMA_FLOOR)
    for k, own in adopted.items():
        stage.gamma[k] = max(own.nugget, GAMMA_FLOOR)
    for number, n_steps in enumerate(NEWTON_STEPS, start=1):
        for block in distributed.mine(blocks):
            stage.sweep(block, n_steps, last=number == len(NEWTON_STEPS))
        if gamma is None:
            stage.update_gamma()
    return stage.result(rescale=gamma is None)


class _LocalStage:
    """Deviations e of all spots; blocks are visited one by one."""

    def __init__(
        self, model: Factorization, blocks: list[Block], adopted: Mapping[int, Tensor]
    ) -> None:
        self.model, self.blocks, self.T = model, blocks, model.n_spatial
        m, v = _marginals(model, blocks)
        field = m.clone()
        field[:, self.T :] = 0.0  # nonspatial factors are all deviation
        for k, log_factor in adopted.items():
            m[:, k] = log_factor
        self.e = m - field
        self.divisor = (m - model.relative(m, v))[:, :1]  # stays as it is
        self.base = field - self.divisor
        self.gamma = _spread_of_guide(model)
        self.gamma[: self.T] = FIRST_GAMMA
        self.variance = torch.zeros_like(self.e)
        # on the field, per spot and factor
        self.information = torch.zeros_like(self.base[:, : self.T])
        sizes = [torch.cat(list(block.size.values()), dim=1) for block in blocks]  # [n, modalities]
        self.observed = torch.cat([(size > 0).any(1) for size in sizes])

    def sweep(self, block: Block, n_steps: int, *, last: bool) -> None:
        """Newton steps for the spots of one block, with their information held fixed.

        Where exp(h) says that more of a factor is there than the counts show, the curvature in h
        exceeds Fisher's information by minus the gradient. Without that, the steps of a factor that
        is all but absent go to and fro for ever.
        """
        rows = block.rows
        gradient, precision = self._curvature(block, last=last)
        if last:
            self.information[rows] = self._field_information(precision)
        diagonal = precision.diagonal(dim1=1, dim2=2)
        diagonal += 1 / self.gamma
        covariance = covariances(precision)
        variance = covariance.diagonal(dim1=1, dim2=2).clamp_min(0.0)
        for step in range(n_steps):
            if step:
                gradient = self._gradient(block)
            change = torch.einsum("nkl,nl->nk", covariance, gradient - self.e[rows] / self.gamma)
            if self.model.nonnegative:
                change /= 1 - variance * gradient.clamp_max(0.0)
            self.e[rows] += change.clamp(-LARGEST_STEP, LARGEST_STEP)
        self.variance[rows] = variance

    def update_gamma(self) -> None:
        """EM: the mean posterior second moment of the deviations of observed spots."""
        n_observed = int(self.observed.sum())
        if n_observed:
            parts = [
                (self.e[block.rows] ** 2 + self.variance[block.rows])[
                    self.observed[block.rows]
                ].sum(0)
                for block in distributed.mine(self.blocks)
            ]
            squares = torch.stack(parts).double().sum(0)
            distributed.add_up(squares)
            self.gamma = (squares / n_observed).clamp_min(GAMMA_FLOOR).to(self.gamma.dtype)
            if self.model.nonspatial is not None:
                self.gamma[self.T :].clamp_(max=self.model.nonspatial.largest_sd**2)

    def _gradient(self, block: Block) -> Tensor:
        """Gradient [n, K] of the log-likelihood in h, summed over modalities."""
        return sum(score for score, _, _ in self._scores(block))  # type: ignore[return-value]

    def _curvature(self, block: Block, *, last: bool) -> tuple[Tensor, Tensor]:
        """The gradient, and the information [n, K, K]."""
        gradient = torch.zeros_like(self.e[block.rows])
        information = gradient.new_zeros(*gradient.shape, gradient.shape[1])
        for score, slope, fisher in self._scores(block, "expected" if last else "nonzeros"):
            gradient += score
            if fisher is not None:
                information += fisher.mul(slope[:, :, None]).mul_(slope[:, None, :])
        return gradient, information

    def _scores(
        self, block: Block, information: str = ""
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """For each modality its gradient in h, and the slope ``size dH / dh`` [n, K].

        The weighted information on the factors comes with them.
        """
        h = self.base[block.rows] + self.e[block.rows]
        factors = h.clamp(*MEAN_RANGE).exp() if self.model.nonnegative else h
        for name, view in self.model.items():
            counts, size, W = block.counts[name], block.size[name], view.loadings_of(block.batch)
            slope = size * factors if self.model.nonnegative else size.expand_as(h)
            A = torch.cat([size * factors, size], 1)
            score, fisher = view.likelihood.curvature(counts, A, W, information == "nonzeros")
            if information == "expected":
                fisher = view.likelihood.expected_information(counts, A, W)
            weight = view.weight / self.model.kl_weight
            yield weight * slope * score, slope, None if fisher is None else weight * fisher

    def _field_information(self, information: Tensor) -> Tensor:
        """``1 / (gamma_k + [H_i^-1]_kk)``.

        What a spot says about its field once all else is integrated out [n, T].

        The nonspatial factors of the spot keep their prior precision ``1 / gamma``; the other
        fields are taken as unknown.
        """
        spread = torch.cat([self._spread(part) for part in information.split(MATRICES)])
        return 1 / (self.gamma[: self.T] + spread.to(information.dtype))

    def _spread(self, information: Tensor) -> Tensor:
        """``[H_i^-1]_kk`` [n, T] for some spots."""
        # single precision finds a spot with fewer counts than factors singular
        precision = information.double()
        diagonal = precision.diagonal(dim1=1, dim2=2)
        diagonal += 1e-6
        diagonal[:, self.T :] += 1 / self.gamma[self.T :]
        return torch.linalg.inv(precision).diagonal(dim1=1, dim2=2)[:, : self.T].clamp_min(1e-8)

    def result(self, *, rescale: bool) -> LogFactors:
        """Deviation variance plus the share of the field's variance that the data leave in h."""
        self.e, self.variance, self.information = (
            distributed.gathered(values, self.blocks)
            for values in (self.e, self.variance, self.information)
        )
        m, v = self.base + self.e, self.variance.clone()
        field_m, field_v = self.base[:, : self.T] + self.divisor, v[:, : self.T]
        if self.model.spatial is not None:
            field = self.model.spatial.field
            located = [block.located for block in self.blocks]
            information = [self.information[block.rows] for block in self.blocks]
            # where the deviations have settled, e / gamma is the gradient of the log-likelihood in
            # the field
            gradient = (self.e / self.gamma)[:, : self.T]
            if rescale:
                field.rescale(located, information, [gradient[block.rows] for block in self.blocks])
            field.set_precision(located, information)
            field_v = torch.cat([field.marginals(place)[1] for place in located])
            shrink = self.variance[:, : self.T] / self.gamma[: self.T]
            v[:, : self.T] += shrink**2 * field_v
        return LogFactors(m, v, field_m, field_v, self.gamma, self.divisor)
