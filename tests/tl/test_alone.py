"""Long work in threads and processes: the bits of the work alone, and settings as they were."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import warnings
from importlib.util import find_spec

import cloudpickle
import numpy as np
import pytest
import torch
from joblib import Parallel, delayed

import gpnsf
from gpnsf.tl import alone

SHORT = {"progress": False}
TOOLS = {
    "fit": {
        "n_factors": 2,
        "max_steps": 3,
        "objective": "monte_carlo",
        "init": "spot",
        "split": "assumed",
        "refine": False,
    },
    "factvae": {"max_epochs": 1, "n_latent": 4},
    "scai": {"n_factors": 2, "max_steps": 3, "n_restarts": 2},
    "mefisto": {"n_factors": 2, "max_steps": 4},
}


def slots(tool, data, seed):
    """What a tool writes about observations and features of a copy."""
    data = data.copy()
    getattr(gpnsf.tl, tool)(data, **TOOLS[tool], **SHORT, seed=seed)
    holders = {"": data, **data.mod}
    return {
        (name, key): np.asarray(value)
        for name, holder in holders.items()
        for mapping in (holder.obsm, holder.varm)
        for key, value in mapping.items()
        if tool in key or "gpnsf" in key
    }


def together(*calls):
    """Results of calls that begin at the same moment, each in a thread of its own."""
    found, gate = [None] * len(calls), threading.Barrier(len(calls))

    def work(i):
        gate.wait()
        found[i] = calls[i]()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.broad(1)
@pytest.mark.filterwarnings("ignore::FutureWarning:mudata")
@pytest.mark.parametrize("tool", TOOLS)
def test_two_threads_have_the_bits_of_one(tool, mdata, capsys):
    if tool == "mefisto" and find_spec("mofapy2") is None:
        pytest.skip("needs mofapy2")
    apart = [slots(tool, mdata, seed) for seed in (0, 1)]
    filters, random = list(warnings.filters), torch.get_rng_state()
    for _ in range(2):
        both = together(*(lambda seed=seed: slots(tool, mdata, seed) for seed in (0, 1)))
        for one, other in zip(apart, both, strict=True):
            assert one.keys() == other.keys()
            for key, value in one.items():
                np.testing.assert_array_equal(other[key], value, err_msg=str(key))
    assert torch.equal(torch.get_rng_state(), random)
    assert list(warnings.filters) == filters
    assert "Iteration" not in capsys.readouterr().out


def test_a_tool_may_call_another():
    outer = alone.one_at_a_time(lambda: inner())
    inner = alone.one_at_a_time(lambda: threading.get_ident())
    assert set(together(outer, outer, inner)) != {None}


def test_the_name_and_the_arguments_of_a_tool_stay():
    assert gpnsf.tl.fit.__name__ == "fit"
    assert gpnsf.tl.fit.__module__ == "gpnsf.tl.fit"
    assert pickle.loads(pickle.dumps(gpnsf.tl.fit)) is gpnsf.tl.fit


@pytest.mark.parametrize("small", [True, False])
def test_threads_are_as_before_also_after_an_error(small):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyError, match="1" if small else "2"), alone.few_threads(small):
            raise KeyError(torch.get_num_threads())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("nnz", "pool", "of_torch"),
    [(alone.SMALL - 1, 1, 1), (alone.SMALL, 2, 1), (alone.LARGE, 2, 2)],
)
def test_threads_of_a_fit(nnz, pool, of_torch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with alone.fit_threads(nnz) as number:
            assert (number, torch.get_num_threads()) == (pool, of_torch)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("tool", "module", "inner"),
    [
        ("factvae", "gpnsf.core.companions.factvae_training", "train"),
        ("scai", "gpnsf.core.companions.scai", "fit"),
        ("mefisto", "gpnsf.core.companions.mefisto", "fit"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning:mudata")
def test_small_data_run_on_one_thread(tool, module, inner, mdata, monkeypatch):
    class Seen(Exception):
        pass

    def look(*_, **__):
        raise Seen(torch.get_num_threads())

    monkeypatch.setattr(f"{module}.{inner}", look)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(Seen, match="1"):
            getattr(gpnsf.tl, tool)(mdata, **TOOLS[tool], **SHORT)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_does_not_wait_for_a_thread_that_it_has_not():
    code = """
import os, threading
from gpnsf.tl import alone
held, done = threading.Event(), threading.Event()
thread = threading.Thread(target=alone.one_at_a_time(lambda: (held.set(), done.wait())))
thread.start()
held.wait()
child = os.fork()
if child == 0:
    os._exit(alone.one_at_a_time(lambda: 7)())
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
done.set()
raise SystemExit(status)
"""
    run = [sys.executable, "-W", "ignore", "-c", code]
    assert subprocess.run(run, check=False, timeout=60).returncode == 7


@pytest.mark.parametrize(
    "package", [gpnsf, gpnsf.tl, gpnsf.pl], ids=lambda package: package.__name__
)
def test_packages_go_to_other_processes_by_their_name(package):
    assert pickle.loads(pickle.dumps(package)) is package
    assert cloudpickle.loads(cloudpickle.dumps(package)) is package


def test_functions_that_mention_the_package_go_to_other_processes():
    work = lambda seed: gpnsf.datasets.groups(n_obs=60, n_genes=20, n_peaks=30, seed=seed).shape
    assert cloudpickle.loads(cloudpickle.dumps(work))(0) == (60, 50)


@pytest.mark.slow
def test_fits_in_processes_have_the_bits_of_one():
    def work(seed):
        data = gpnsf.datasets.ggblocks(n_side=12, n_genes=60, n_peaks=36, seed=0)["rna"]
        gpnsf.tl.fit(data, n_factors=2, max_steps=5, init="spot", seed=seed, progress=False)
        return data.obsm["X_gpnsf"]

    found = Parallel(n_jobs=2)(delayed(work)(seed) for seed in (0, 1))
    np.testing.assert_array_equal(found, [work(0), work(1)])
