"""Forecasts of fits, and the refusal of those that cannot fit into memory."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import forecasted
import pytest

import gpnsf
from gpnsf.io import streaming
from gpnsf.tl import memory

SHORTEST = {"max_steps": 1, "init": "random", "progress": False}


def test_object_and_file_are_forecast_alike(mdata, tmp_path):
    path = tmp_path / "section.h5mu"
    mdata.write(path)
    before = path.read_bytes()
    inside, outside = gpnsf.tl.forecast(mdata, n_factors=3), gpnsf.tl.forecast(path, n_factors=3)
    assert inside.held == inside.parts["counts"] == outside.parts["counts"]
    assert outside.held == 0
    assert inside.parts["parameters"] == outside.parts["parameters"] > 0
    assert path.read_bytes() == before
    assert "gpnsf" not in mdata.uns


def test_it_takes_the_arguments_of_fit_and_refuses_what_fit_refuses(mdata):
    short = gpnsf.tl.forecast(
        mdata, "nsf", n_factors=3, max_steps=4, refine=False, seed=3, progress=False, copy=True
    )
    assert short.stages["local stage"] == 0
    assert short.stages["test"] == 0
    with pytest.raises(TypeError, match="'n_factor' .did you mean 'n_factors'"):
        gpnsf.tl.forecast(mdata, n_factor=3)
    with pytest.raises(ValueError, match="`n_factors` of at most"):
        gpnsf.tl.forecast(mdata, n_factors=10_000)
    with pytest.raises(KeyError, match="'protein'"):
        gpnsf.tl.forecast(mdata, modalities=["protein"])


def test_lengthscales_are_in_the_unit_of_the_coordinates(mdata):
    half = float(abs(mdata.obsm["spatial"] - mdata.obsm["spatial"].mean(0)).max())
    short, long = (
        gpnsf.tl.forecast(mdata, n_factors=3, lengthscale=half * share) for share in (0.06, 0.5)
    )
    assert short.parts["parameters"] > 2 * long.parts["parameters"]
    assert short.parts["field"] == long.parts["field"], "the first basis functions alone"


def test_a_fit_that_cannot_fit_is_refused_before_anything_is_done(mdata, monkeypatch):
    monkeypatch.setattr(streaming, "available_memory", lambda: 1e6)
    with pytest.raises(MemoryError) as caught:
        gpnsf.tl.fit(mdata, n_factors=3, max_steps=2, progress=False)
    message = str(caught.value)
    assert message.startswith(
        "Expected a fit that fits into memory; got one that needs about 0.079"
    )
    for remedy in (
        "block_size",
        "path of the file",
        "gpnsf.settings.memory_budget",
        "use_var",
        "n_factors",
    ):
        assert remedy in message
    assert "gpnsf" not in mdata.uns


def test_no_fit_is_refused_where_the_forecast_is_not_clearly_above_what_is_left(mdata, monkeypatch):
    found = gpnsf.tl.forecast(mdata, n_factors=3, **SHORTEST)
    needed = found.memory - found.held
    monkeypatch.setattr(streaming, "available_memory", lambda: needed / 1.4)
    gpnsf.tl.fit(mdata, n_factors=3, **SHORTEST)
    assert "gpnsf" in mdata.uns


@pytest.mark.parametrize(("long", "level"), [(30.0, logging.DEBUG), (0.0, logging.INFO)])
def test_a_long_fit_is_announced(mdata, monkeypatch, caplog, long, level):
    monkeypatch.setattr(memory, "LONG", long)
    with caplog.at_level(logging.DEBUG, logger="gpnsf"):
        gpnsf.tl.fit(mdata, n_factors=3, **SHORTEST)
    assert {
        record.levelno for record in caplog.records if record.message.startswith("Forecast: 0.079")
    } == {level}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells")
@pytest.mark.parametrize("shape", forecasted.SHAPES)
def test_the_peak_of_a_fit_is_near_its_forecast(shape):
    """The bound is what the documentation states; seconds depend on what else the machine does."""
    command = [sys.executable, "-W", "ignore", forecasted.__file__, shape]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    measured, expected = map(float, done.stdout.split())
    assert measured > 3e8
    assert 0.7 < expected / measured < 1.3
