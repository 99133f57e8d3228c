"""The multiplicative update as layers of a network (equations D6 and D7).

Penalties are learned from simulated spots.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from gpnsf.core.companions.deconvolution import Mixture, exact, normalised
from gpnsf.core.scores.neighbours import Ties

__all__ = ["OF_GROUPS", "PARAMETERS", "Network", "Section", "solve", "train"]

# learned from any sections, and from those whose truth says what to expect in a region
PARAMETERS = ("log_spatial", "log_total", "log_bandwidth", "log_region_bandwidth", "even")
OF_GROUPS = ("log_group", "costs")

SMALLEST, LARGEST = 1e-8, 1e3  # abundances between two layers
TINY = 1e-12
CLIP = 1.0  # largest norm of a gradient


@dataclass(frozen=True)
class Section:
    """Tensors of one section: what a mixture and its ties hold, on the device of a network."""

    cross: torch.Tensor  # [N, C]
    gram: torch.Tensor  # [C, C]
    seen: torch.Tensor  # [N, 1]
    row: torch.Tensor  # [E]
    column: torch.Tensor  # [E]
    squares: torch.Tensor  # [E] squared distances of neighbours in their own unit
    contrast: torch.Tensor  # [E] squared differences of their regions
    groups: torch.Tensor  # [N, C] costs that are given
    region: torch.Tensor  # [N] number of the region, for costs that are learned
    start: torch.Tensor  # [N, C] proportions by least squares

    @classmethod
    def of(
        cls,
        mixture: Mixture,
        ties: Ties,
        *,
        unit: float,
        groups: np.ndarray | None = None,
        region: np.ndarray | None = None,
        device: str | torch.device = "cpu",
    ) -> Section:
        """Put a mixture and its ties, whose distances are measured in ``unit``, on a device."""
        groups = np.zeros_like(mixture.cross) if groups is None else groups
        region = np.zeros(len(mixture.cross), dtype=np.int64) if region is None else region
        arrays = (
            mixture.cross,
            mixture.gram,
            mixture.seen[:, None],
            ties.row,
            ties.column,
            np.square(ties.distance / unit),
            np.square(ties.contrast),
            groups,
            region,
            normalised(exact(mixture))[0],
        )
        return cls(*(torch.as_tensor(array, device=device) for array in arrays))

    def spread(self, strength: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
        """Sums [N, C] over neighbours, weighted by the strengths [E]."""
        return torch.zeros_like(V).index_add(0, self.row, strength[:, None] * V[self.column])


class Network(nn.Module):
    """Layers of the update, with penalties of their own or in common.

    Learned are ``log_spatial`` and ``log_total`` [T or 1], logarithms of the penalties;
    ``log_bandwidth`` [1] of the kernel in units of the distance of neighbours, and
    ``log_region_bandwidth`` [1] of its part that regions have; and ``even`` [1], the log odds of
    equal proportions beside those of least squares where the layers begin. Where the truth says
    what is to be expected in a region, ``log_group`` [T or 1] can be learned, and ``costs`` [R, C],
    whose softmax over the types is what they cost in each region.
    """

    def __init__(
        self,
        n_layers: int = 40,
        *,
        shared: bool = False,
        spatial: float = 0.1,
        total: float = 0.1,
        group: float = 0.0,
        bandwidth: float = 1.0,
        region_bandwidth: float = 1.0,
        costs: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.n_layers = n_layers
        shape = 1 if shared else n_layers
        self.log_spatial = _parameter(shape, math.log(spatial))
        self.log_total = _parameter(shape, math.log(total))
        self.log_bandwidth = _parameter(1, math.log(bandwidth))
        self.log_region_bandwidth = _parameter(1, math.log(region_bandwidth))
        self.even = _parameter(1, 0.0)
        self.log_group = _parameter(shape, math.log(max(group, TINY)))
        self.costs = _parameter(costs or (0, 0), 0.0)

    def forward(self, section: Section) -> torch.Tensor:
        """Abundances [N, C] after the last layer (D6)."""
        strength, degree = self._graph(section)
        spatial, total = self._each(self.log_spatial).exp(), self._each(self.log_total).exp()  # [T]
        group, even = self._each(self.log_group).exp(), torch.sigmoid(self.even)
        groups = self.costs.softmax(1)[section.region] if len(self.costs) else section.groups
        V = (1 - even) * section.start + even / len(section.gram)
        for layer in range(self.n_layers):
            pull = section.cross + spatial[layer] * section.spread(strength, V) + total[layer]
            push = (
                section.seen * (V @ section.gram)
                + spatial[layer] * degree * V
                + total[layer] * V.sum(dim=1, keepdim=True)
                + group[layer] * groups * (groups * V).sum(dim=1, keepdim=True)
            )
            change = pull.clamp(min=TINY).log() - push.clamp(min=TINY).log()
            V = (V * change.exp()).clamp(SMALLEST, LARGEST)
        return V

    def arrays(self) -> dict[str, np.ndarray]:
        """Parameters as arrays; those of groups where they were learned."""
        names = [*PARAMETERS, *(OF_GROUPS if len(self.costs) else ())]
        return {name: getattr(self, name).detach().cpu().numpy().copy() for name in names}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take parameters from arrays of the same shapes."""
        with torch.no_grad():
            for name, values in arrays.items():
                getattr(self, name).copy_(torch.as_tensor(values))

    def _graph(self, section: Section) -> tuple[torch.Tensor, torch.Tensor]:
        """Strengths [E] of neighbours and their sums [N, 1], the largest of which is 1 (D4)."""
        strength = torch.exp(
            -section.squares * torch.exp(-2 * self.log_bandwidth)
            - section.contrast * torch.exp(-2 * self.log_region_bandwidth)
        )
        degree = strength.new_zeros(len(section.cross)).index_add(0, section.row, strength)
        largest = degree.max().clamp(min=TINY)
        return strength / largest, (degree / largest)[:, None]

    def _each(self, parameter: torch.Tensor) -> torch.Tensor:
        """One value [T] a layer."""
        return parameter.expand(self.n_layers)


def _parameter(shape: int | tuple[int, int], value: float) -> nn.Parameter:
    size = (shape,) if isinstance(shape, int) else shape
    return nn.Parameter(torch.full(size, value, dtype=torch.float64))


def train(
    network: Network,
    sections: Iterable[tuple[Section, torch.Tensor]],
    *,
    names: Sequence[str] = PARAMETERS,
    learning_rate: float = 0.1,
) -> np.ndarray:
    """Fit the parameters named to sections with known proportions, one a step.

    Returns the loss (D7) of each.
    """
    learned = [getattr(network, name) for name in names]
    optimiser = torch.optim.Adam(learned, lr=learning_rate)
    losses = []
    for section, truth in sections:
        optimiser.zero_grad()
        V = network(section)
        loss = (V / V.sum(dim=1, keepdim=True) - truth).square().sum() / truth.square().sum()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, CLIP)
        optimiser.step()
        losses.append(loss.item())
    return np.array(losses)


def solve(network: Network, section: Section) -> np.ndarray:
    """Abundances [N, C] of a section."""
    with torch.no_grad():
        return network(section).cpu().numpy()
