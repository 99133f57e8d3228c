"""Shared fixtures: small simulated sections, and files of real data where they are at hand."""

from __future__ import annotations

import os

# read when NumPy and torch are loaded: threads of one test take the processors from those beside it
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import pytest

from gpnsf.datasets.files import data_dir

mpl.use("Agg")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Of a table marked ``broad(n)``, n cases spread over it belong to the quick tests, the others are slow."""
    tables: dict[str, list[pytest.Function]] = {}
    for item in items:
        if item.get_closest_marker("broad"):
            tables.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in tables.values():
        (n_quick,) = cases[0].get_closest_marker("broad").args
        quick = {i * len(cases) // n_quick for i in range(n_quick)}
        for number, case in enumerate(cases):
            if number not in quick:
                case.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="session")
def simulated():
    """A simulated section with RNA and ATAC, drawn once; tests take copies."""
    from gpnsf.datasets import tissue

    return tissue(n_obs=150, n_genes=40, n_peaks=60, n_spatial=2, n_nonspatial=1, seed=0)


@pytest.fixture
def mdata(simulated):
    """A simulated MuData, free to be changed."""
    return simulated.copy()


@pytest.fixture
def adata(simulated):
    """The simulated RNA alone, as an AnnData with its own coordinates, free to be changed."""
    rna = simulated["rna"].copy()
    rna.obsm["spatial"] = simulated.obsm["spatial"].copy()
    return rna


@pytest.fixture(scope="session")
def data_file() -> Callable[[str], Path]:
    """Path of a file of real data; the test is skipped where the file is not at hand."""

    def find(name: str) -> Path:
        folder = data_dir()
        if folder is None:
            pytest.skip("real data: set GPNSF_DATA_DIR to the folder that holds it")
        path = folder / name
        if not path.is_file():
            pytest.skip(f"real data: {name} is not in GPNSF_DATA_DIR={folder}")
        return path

    return find
