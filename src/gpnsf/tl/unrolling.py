"""Deconvolution by layers whose penalties were learned from simulated spots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from gpnsf.checks import problem
from gpnsf.core import stored
from gpnsf.core.companions.deconvolution import Mixture
from gpnsf.core.companions.pseudospots import Places, sections
from gpnsf.core.companions.unrolling import Network, Section, solve, train
from gpnsf.core.progress import Progress
from gpnsf.tl.alone import few_threads
from gpnsf.tl.device import resolved

__all__ = ["unrolled"]

MOST_LAYERS = 10_000
LARGEST = 700.0  # of a logarithm that can be undone


def unrolled(
    mixture: Mixture,
    places: Places,
    profiles: np.ndarray,
    costs: np.ndarray,
    params: Mapping[str, Any],
    arrays: Mapping[str, object] | None,
    *,
    shown: bool,
) -> tuple[np.ndarray, dict[str, object]]:
    """Abundances [N, C], and the network as arrays; it begins as it was stored in ``arrays``, or as the arguments say."""
    device = resolved(params["device"])
    network = (_fresh(params) if arrays is None else _restored(arrays, params)).to(device)
    placed = {"unit": places.unit, "region_bandwidth": params["region_bandwidth"], "device": device}
    losses = np.zeros(0)
    if params["train"]:
        drawn = sections(places, profiles, params["n_training"], seed=params["seed"])
        examples = (
            (Section.of(mix, ties, **placed), torch.as_tensor(truth, device=device))
            for mix, ties, truth in drawn
        )
        with few_threads(small=True), Progress("learn", params["n_training"], shown=shown) as bar:
            losses = train(network, bar.each(examples), learning_rate=params["learning_rate"])
    section = Section.of(mixture, places.ties(), groups=costs, **placed)
    with few_threads(small=True):
        solution = solve(network, section)
    return solution, {
        "n_layers": network.n_layers,
        "loss": losses,
        **network.arrays(),
    }


def _fresh(params: Mapping[str, Any]) -> Network:
    """A network that begins at the weights of the arguments."""
    for name in ("spatial_weight", "total_weight"):
        if params[name] == 0:
            rule = f"`{name}` above 0 for method='unrolled', which learns its logarithm"
            raise ValueError(problem(rule, "0", f"Pass for example {name}=0.1"))
    return Network(
        params["n_layers"],
        shared=params["shared"],
        spatial=params["spatial_weight"],
        total=params["total_weight"],
        group=params["group_weight"],
    )


def _restored(arrays: Mapping[str, object], params: Mapping[str, Any]) -> Network:
    """A network as it was stored."""
    where = "the network"
    n_layers = stored.whole(arrays, "n_layers", low=1, high=MOST_LAYERS, where=where)
    shared = np.size(stored.array(arrays, "log_spatial", (None,), where=where)) == 1
    network = Network(n_layers, shared=shared, group=params["group_weight"])
    values = {}
    for name, value in network.arrays().items():
        values[name] = stored.array(
            arrays, name, value.shape, low=-LARGEST, high=LARGEST, where=where
        )
    network.restore(values)
    return network
