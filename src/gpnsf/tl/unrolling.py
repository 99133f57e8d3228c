"""Deconvolution by layers whose penalties were learned from simulated spots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from gpnsf.arguments import Deconvolution
from gpnsf.checks import problem
from gpnsf.core import stored
from gpnsf.core.companions.deconvolution import Mixture
from gpnsf.core.companions.pseudospots import Places
from gpnsf.core.companions.resemblance import Simulated
from gpnsf.core.companions.unrolling import PARAMETERS, Network, Section, solve, train
from gpnsf.core.progress import Progress
from gpnsf.core.scores.neighbours import Ties
from gpnsf.tl.alone import few_threads
from gpnsf.tl.device import resolved
from gpnsf.tl.proportion_std import Solve

__all__ = ["fresh", "learned_costs", "unrolled"]

WHERE = "the network"
REMEDY = (
    "Pass as `network` what gpnsf.tl.train_unrolled returned, "
    "or learn one with train=True and without `network`"
)
OF_REGIONS = ("log_group", "costs", "regions", "types")  # of a network that has learned costs
MOST_LAYERS = 10_000
LARGEST = 700.0  # of a logarithm that can be undone


def unrolled(
    places: Places,
    asked: Deconvolution,
    arrays: Mapping[str, object] | None,
    simulated: Iterable[Simulated],
    *,
    shown: bool,
) -> tuple[Solve, dict[str, object]]:
    """What finds abundances by the network, and the network as arrays.

    It begins as it was stored in ``arrays``, or as the arguments say, and learns from simulated sections.
    """
    device = resolved(asked.device)
    network = (fresh(asked) if arrays is None else _restored(arrays, asked)).to(device)
    section_of = partial(Section.of, unit=places.unit, device=device)
    losses = np.zeros(0)
    if asked.train:
        examples = (
            (section_of(one.mixture, one.ties), torch.as_tensor(one.truth, device=device))
            for one in simulated
        )
        with few_threads(small=True), Progress("learn", asked.n_training, shown=shown) as bar:
            losses = train(network, bar.each(examples), learning_rate=asked.learning_rate)

    def found(mixture: Mixture, ties: Ties, costs: np.ndarray) -> np.ndarray:
        """Abundances after the last layer."""
        with few_threads(small=True):
            return solve(network, section_of(mixture, ties, groups=costs))

    # costs that were learned before stay with the network
    kept = {name: value for name, value in (arrays or {}).items() if name in OF_REGIONS}
    return found, {"n_layers": network.n_layers, "loss": losses, **network.arrays(), **kept}


def fresh(asked: Deconvolution, costs: tuple[int, int] | None = None) -> Network:
    """A network that begins at the weights of the arguments."""
    for name in ("spatial_weight", "total_weight"):
        if getattr(asked, name) == 0:
            rule = f"`{name}` above 0 for method='unrolled', which learns its logarithm"
            raise ValueError(problem(rule, "0", f"Pass for example {name}=0.1"))
    return Network(
        asked.n_layers,
        shared=asked.shared,
        spatial=asked.spatial_weight,
        total=asked.total_weight,
        group=asked.group_weight,
        region_bandwidth=asked.region_bandwidth,
        costs=costs,
    )


@stored.remedied(REMEDY)
def learned_costs(arrays: Mapping[str, object]) -> pd.DataFrame:
    """Costs, regions by types, that a network has learned."""
    regions, types = (stored.names(arrays, name, where=WHERE) for name in ("regions", "types"))
    shape = len(regions), len(types)
    logits = stored.array(arrays, "costs", shape, low=-LARGEST, high=LARGEST, where=WHERE)
    return pd.DataFrame(softmax(logits, axis=1), index=regions, columns=types)


@stored.remedied(REMEDY)
def _restored(arrays: Mapping[str, object], asked: Deconvolution) -> Network:
    """A network as it was stored; costs that it has learned are given to it as others are."""
    n_layers = stored.whole(arrays, "n_layers", low=1, high=MOST_LAYERS, where=WHERE)
    shared = np.size(stored.array(arrays, "log_spatial", (None,), where=WHERE)) == 1
    network = Network(n_layers, shared=shared, group=asked.group_weight)
    values = {name: getattr(network, name) for name in PARAMETERS}
    if "costs" in arrays:
        values["log_group"] = network.log_group
    network.restore(
        {
            name: stored.array(
                arrays, name, tuple(value.shape), low=-LARGEST, high=LARGEST, where=WHERE
            )
            for name, value in values.items()
        }
    )
    return network
