"""What can be said about GPUs without one: that tensors are made where the model is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

import gpnsf
from gpnsf.core.counts.backends import backend

FACTORIES = {
    getattr(torch, name)
    for name in ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn")
}
FACTORIES |= {torch.as_tensor, torch.from_numpy, torch.tensor, torch.zeros}
ON_THE_CPU = {
    "bins.py",
    "initial.py",
    "klnmf.py",
    "left_over.py",
    "checkpoint.py",
    "state.py",
}  # starts are searched for there
# into parameters at once, or from one array to another
COPIED = {("base.py", name) for name in ("_ridge", "load_shared")} | {
    ("resolution.py", "retained_variance")
}
OPTIONS = {
    "default": {},
    "slices": {"library_key": "slice", "batch_key": "slice"},
    "inducing": {"field": "inducing", "n_inducing": 20},
    "signed": {"model": "rsf", "n_spatial": None},
    "clipped": {"likelihoods": "bernoulli_clipped", "objective": "monte_carlo"},
}


class Watch(TorchFunctionMode):
    """Remember who makes tensors without saying where."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()
        super().__init__()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in FACTORIES and "device" not in (kwargs or {}) and result.dim():
            frame = sys._getframe(1)
            while frame.f_code.co_name.startswith("<"):
                frame = frame.f_back
            file, name = Path(frame.f_code.co_filename), frame.f_code.co_name
            # a model is built on the CPU and moved
            if (
                "gpnsf/core/" in file.as_posix()
                and name != "__init__"
                and file.name not in ON_THE_CPU
            ):
                self.seen.add((file.name, name))
        return result


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Counts are summed by torch."""
    monkeypatch.setenv("GPNSF_KERNEL", "torch")
    backend.cache_clear()
    yield
    backend.cache_clear()


@pytest.mark.broad(2)
@pytest.mark.parametrize("name", OPTIONS)
def test_tensors_of_a_fit_are_made_where_the_model_is(name, as_on_a_gpu):
    mdata = gpnsf.datasets.tissue(n_obs=90, n_genes=20, n_peaks=20, n_spatial=2, seed=0)
    mdata.obs["slice"] = ["a", "b"] * 45
    options = {
        "n_factors": 4,
        "n_spatial": 2,
        "max_steps": 8,
        "init": "spot",
        "progress": False,
        **OPTIONS[name],
    }
    with Watch() as watch:
        gpnsf.tl.fit(mdata, **options)
    assert watch.seen <= COPIED


def test_tensors_of_factvae_are_made_where_the_model_is():
    mdata = gpnsf.datasets.tissue(n_obs=60, n_genes=20, n_peaks=20, n_spatial=2, seed=0)
    with Watch() as watch:
        gpnsf.tl.factvae(mdata, n_latent=4, max_epochs=2, progress=False)
    assert watch.seen <= {("factvae.py", "_embeddings")}  # built on the CPU, and moved
