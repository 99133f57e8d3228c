"""Several processes at one fit find what one process finds, and stop together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import gpnsf
from gpnsf.core import distributed

SCRIPT = Path(__file__).parents[1] / "together.py"


def together(*arguments: str) -> list[tuple[int, str]]:
    """Exit status and messages of two processes that share a task."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *arguments],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    messages = [process.communicate(timeout=300)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, messages, strict=True)]


@pytest.fixture
def two(monkeypatch):
    """The second of two processes, as far as shares go."""
    monkeypatch.setattr(distributed, "number", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)


def test_one_process_does_all_of_it():
    tensor = torch.arange(3.0)
    distributed.add_up(tensor)
    assert tensor.tolist() == [0, 1, 2]
    assert distributed.mine([1, 2, 3]) == [1, 2, 3]
    assert distributed.total(0.5) == 0.5
    assert list(distributed.each_from_first([1, 2])) == [1, 2]


@pytest.mark.parametrize(("n_parts", "share"), [(2, [1]), (5, [2, 3, 4]), (6, [3, 4, 5])])
def test_shares_are_neighbours_and_of_like_size(two, n_parts, share):
    assert distributed.mine(list(range(n_parts))) == share


def test_a_process_without_a_block_is_one_too_many(two):
    with pytest.raises(
        ValueError, match=r"at least one block of rows for each of 2 processes; got 1 .*fewer"
    ):
        distributed.mine([1])


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    sys.path.insert(0, str(SCRIPT.parent))
    from together import CASES, fit_case

    results = together(str(SCRIPT), "fit", str(tmp_path / "found"))
    assert [status for status, _ in results] == [0, 0], results
    first, second = (np.load(tmp_path / f"found.{rank}.npz") for rank in (0, 1))
    for name in CASES:
        for slot, expected in fit_case(name).items():
            found = first[f"{name} {slot}"]
            np.testing.assert_array_equal(found, second[f"{name} {slot}"])
            if slot == "processes":
                assert (int(found), int(expected)) == (2, 1)
            else:
                np.testing.assert_array_equal(found, expected, err_msg=f"{name} {slot}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "first", "second"),
    [
        ("error", "ZeroDivisionError", "Stopped because the first process did: ZeroDivisionError"),
        ("differ", "Expected the same number in all 2 processes", "got [0, 1]"),
        ("die", "process 0 lost contact with another one", ""),
    ],
)
def test_processes_stop_together(task, first, second):
    (_, of_first), (_, of_second) = results = together(str(SCRIPT), task, "")
    assert all(status != 0 for status, _ in results)
    assert first in of_first
    assert second in of_second


@pytest.mark.slow
def test_the_command_line_writes_one_file(tmp_path):
    adata = gpnsf.datasets.tissue(n_obs=200, n_genes=40, n_peaks=20, n_spatial=2, seed=0)[
        "rna"
    ].copy()
    adata.write_h5ad(tmp_path / "in.h5ad")
    paths = [str(tmp_path / name) for name in ("in.h5ad", "out.h5ad")]
    options = ["--n-factors", "3", "--max-steps", "6", "--init", "spot", "--no-progress"]
    results = together("-m", "gpnsf", "fit", *paths, *options)
    assert [status for status, _ in results] == [0, 0], results
    assert ad.read_h5ad(paths[1]).uns["gpnsf"]["processes"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5ad", "out.h5ad"]


def test_a_checkpoint_is_refused(two, adata, tmp_path):
    with pytest.raises(ValueError, match="in 2 processes.*Leave checkpoint out"):
        gpnsf.tl.fit(adata, n_factors=3, checkpoint=tmp_path / "c.npz", progress=False)
    assert list(tmp_path.iterdir()) == []
