"""`tl.fit` that is interrupted, killed, repeated in other blocks: the object, the file, the random states, the bits."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from interrupted import fit_and_save, slots
from mudata import MuData
from objective import at_each_call

import gpnsf
from gpnsf import cli
from gpnsf.core.inference import local_stage, training


def fit(data: MuData | AnnData, **options: Any) -> Any:
    short = {"n_factors": 4, "n_spatial": 2, "max_steps": 20, "init": "spot", "progress": False}
    return gpnsf.tl.fit(data, **{**short, **options})


@pytest.fixture
def ctrl_c(monkeypatch):
    """Ctrl-C at a call of the objective, once: during the fit itself, after the spatial test."""

    def stop(call: int) -> None:
        if call == 83:
            raise KeyboardInterrupt

    at_each_call(monkeypatch, stop)


def held(data: MuData) -> dict[Any, Any]:
    """What an object and its modalities hold, by identity."""
    found: dict[Any, Any] = {}
    for name, holder in (("", data), *data.mod.items()):
        for attribute in ("obsm", "varm", "uns"):
            mapping = getattr(holder, attribute)
            found |= {(name, attribute, key): id(mapping[key]) for key in mapping}
        found[name, "columns"] = [*holder.obs, *holder.var]
    return found


# ---- interruption ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_leaves_the_object_and_the_same_call_goes_on(mdata, tmp_path, ctrl_c):
    path, other = tmp_path / "fit.npz", mdata.copy()
    before = held(mdata)
    with pytest.raises(KeyboardInterrupt):
        fit(mdata, checkpoint=path)
    assert held(mdata) == before
    assert path.exists()
    fit(mdata, checkpoint=path)
    assert list(tmp_path.iterdir()) == []
    fit(other)
    for name, value in slots(other).items():
        np.testing.assert_array_equal(slots(mdata)[name], value, err_msg=name)


def test_an_interrupted_local_stage_needs_no_step_of_the_climb_again(
    mdata, tmp_path, monkeypatch, caplog
):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    path, other, step = tmp_path / "fit.npz", mdata.copy(), training.Stepper.step

    def only_settle(self: training.Stepper, phase: str, rate: float) -> None:
        assert phase in {"tail", "polish"}
        step(self, phase, rate)

    monkeypatch.setattr(local_stage, "local", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(mdata, split="assumed", checkpoint=path)
    text = f"Interrupted after the first optimisation; the data are untouched. The same call with checkpoint='{path}'"
    assert text in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(training.Stepper, "step", only_settle)
    fit(mdata, split="assumed", checkpoint=path)
    monkeypatch.undo()
    fit(other, split="assumed")
    for name, value in slots(other).items():
        np.testing.assert_array_equal(slots(mdata)[name], value, err_msg=name)


@pytest.mark.broad(1)
@pytest.mark.parametrize("kind", [str, Path])
def test_the_file_of_a_complete_fit_is_removed(kind, mdata, tmp_path):
    path = kind(tmp_path / "fit.npz")
    annotated = fit(mdata, checkpoint=path, max_steps=6, split="assumed", copy=True)
    assert list(tmp_path.iterdir()) == []
    assert "checkpoint" not in annotated.uns["gpnsf"]["params"]


@pytest.mark.parametrize(
    ("value", "error"), [("missing/fit.npz", FileNotFoundError), ("", IsADirectoryError)]
)
def test_a_file_that_cannot_be_written_is_refused_before_the_fit(
    value, error, mdata, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "fit", None)
    with pytest.raises(error, match="Expected `checkpoint` to be a file"):
        fit(mdata, checkpoint=tmp_path / value)
    with pytest.raises(TypeError, match="Expected `checkpoint` to be a path or None; got 3"):
        fit(mdata, checkpoint=3)


def test_a_file_of_other_data_is_refused(mdata, adata, tmp_path, ctrl_c):
    path = tmp_path / "fit.npz"
    with pytest.raises(KeyboardInterrupt):
        fit(mdata, checkpoint=path)
    mdata["rna"].X.data[0] += 1
    with pytest.raises(
        ValueError, match=r"fit.npz', which differs in counts of rna .*Repeat the call"
    ):
        fit(mdata, checkpoint=path)
    assert path.exists()


@pytest.mark.slow
def test_the_command_ends_with_130_and_goes_on(mdata, tmp_path, ctrl_c, capsys):
    source, target, path = (str(tmp_path / name) for name in ("in.h5mu", "out.h5mu", "fit.npz"))
    mdata.write(source)
    line = [
        "fit",
        source,
        target,
        "--max-steps",
        "20",
        "--init",
        "spot",
        "--no-progress",
        "--checkpoint",
        path,
    ]
    assert cli.main(line) == 130
    printed = capsys.readouterr().err
    assert "gpnsf fit: interrupted" in printed
    assert "Traceback" not in printed
    assert not Path(target).exists()
    assert cli.main(line) == 0
    assert not Path(path).exists()


# ---- death ----------------------------------------------------------------------------------------------------------


def start(context: Any, *arguments: Any) -> Any:
    process = context.Process(target=fit_and_save, args=arguments)
    process.start()
    return process


@pytest.mark.slow
def test_four_deaths_leave_no_trace(tmp_path):
    """SIGKILL at a random moment, in every other fit while every step is written; then a fresh process goes on."""
    context, generator = multiprocessing.get_context("forkserver"), random.Random(0)
    context.set_forkserver_preload(["gpnsf.tl.fit", "gpnsf.datasets.tissue", "interrupted"])
    expected, seconds = {}, {}
    for case, (patience, options) in enumerate(
        [(50.0, {}), (0.0, {"objective": "monte_carlo", "n_samples": 1})] * 2
    ):
        began, target = time.perf_counter(), str(tmp_path / f"expected_{case % 2}.npz")
        start(
            context, target, str(tmp_path / "whole"), patience, options
        ).join()  # the second time without the imports
        seconds[patience], expected[patience] = (
            time.perf_counter() - began,
            (options, dict(np.load(target))),
        )
    deaths = went_on = 0
    while deaths < 4:
        patience = (50.0, 0.0)[deaths % 2]
        options, whole = expected[patience]
        path, target = tmp_path / f"fit_{deaths}", str(tmp_path / f"result_{deaths}.npz")
        process = start(context, target, str(path), patience, options)
        process.join(generator.uniform(0.1, 0.9) * seconds[patience])
        process.kill()
        process.join()
        deaths += process.exitcode == -signal.SIGKILL
        went_on += process.exitcode == -signal.SIGKILL and path.exists()
        start(context, target, str(path), patience, options).join()
        result = dict(np.load(target))
        assert result.keys() == whole.keys()
        for name, value in whole.items():
            np.testing.assert_array_equal(result[name], value, err_msg=name)
        assert not path.exists()
    assert went_on >= 2


# ---- the same bits --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_random_states_are_as_before(mdata):
    def states() -> list[Any]:
        return [
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            random.getstate(),
        ]

    import sklearn.cluster  # draws from Python's generator when it is first imported

    assert sklearn.cluster
    before = states()
    fit(mdata, init="auto", objective="monte_carlo")
    fit(mdata, field="inducing", n_inducing=20)
    assert states() == before


def test_threads_and_backend_are_written_down(mdata):
    threads = torch.get_num_threads()
    fit(mdata, max_steps=6, split="assumed")
    assert mdata.uns["gpnsf"]["backend"] == "numba"
    assert mdata.uns["gpnsf"]["threads"] == 1  # what small data run on
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_blocks_change_rounding_only(mdata):
    results = []
    for block_size in (None, 22):  # 1 and 7 blocks of 150 rows
        fit(mdata, block_size=block_size, max_steps=16, init="auto", tol=1e-12, split="assumed")
        results.append(slots(mdata))
    for other in results[1:]:
        np.testing.assert_allclose(other["elbo"], results[0]["elbo"], rtol=1e-3)
        for name in ("X_gpnsf", "X_gpnsf_smooth", "rna gpnsf_loadings"):
            assert (
                np.abs(other[name] - results[0][name]).max() < 2e-2 * np.abs(results[0][name]).max()
            )
