"""Counts that a model draws, in place of those that it was built for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from pyro import poutine

from gpnsf.core.model.factorization import Block, Factorization
from gpnsf.core.types import Dataset

__all__ = ["prior_predictive", "without_counts"]


def without_counts(model: Factorization, dataset: Dataset) -> list[Block]:
    """Row blocks for which the model draws counts instead of scoring them."""
    return [replace(block, counts={}) for block in model.blocks(dataset)]


@torch.no_grad()
def prior_predictive(
    model: Factorization, dataset: Dataset, seed: int = 0
) -> dict[str, np.ndarray]:
    """One draw of every modality [N, P]; the blocks share what is not of a row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draws, shared = [], {}
        for block in without_counts(model, dataset):
            trace = poutine.trace(poutine.condition(model.model, data=shared)).get_trace(block)
            shared = {site: trace.nodes[site]["value"] for site in ("u",) if site in trace.nodes}
            draws.append({name: trace.nodes[name]["value"] for name in model.names})
    return {name: torch.cat([draw[name] for draw in draws]).numpy() for name in model.names}
