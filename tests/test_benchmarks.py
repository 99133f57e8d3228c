"""Benchmarks: the page has every table, and sections made for them are what they say."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from gpnsf.datasets.files import data_dir

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def layers():
    """The module ``benchmarks/layers.py``, which is not part of the package."""
    spec = importlib.util.spec_from_file_location("layers", ROOT / "benchmarks/layers.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "layers", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


def test_every_table_is_shown_and_every_table_shown_is_there():
    shown = re.findall(r"\{include\} benchmark_tables/(\w+)\.md", PAGE)
    there = (ROOT / "docs/benchmark_tables").glob("*.md")
    assert sorted(shown) == sorted(path.stem for path in there)


def test_every_benchmark_named_on_the_page_is_there():
    names = set(re.findall(r"gpnsf benchmark (\w+)", PAGE))
    assert names <= {path.stem for path in (ROOT / "benchmarks").glob("*.py")}


def test_waves_have_the_depth_asked_for_and_follow_the_seed(layers):
    arguments = {"n_obs": 300, "n_genes": 60, "n_peaks": 200}
    one, same, other = (layers.waves(seed, **arguments) for seed in (1, 1, 2))
    assert (one["rna"].X != same["rna"].X).nnz == 0
    assert one.obsm["true_factors"].shape == (300, 10)
    assert not np.allclose(one.obsm["true_factors"], other.obsm["true_factors"])
    assert 200 < one["rna"].X.sum(1).mean() < 450
    assert one["atac"].X.max() == 1


@pytest.mark.broad(1)
@pytest.mark.skipif(data_dir() is None, reason="GPNSF_DATA_DIR does not name the data folder")
@pytest.mark.parametrize("name", ["deep", "shallow", "faint"])
def test_layered_sections_have_the_layers_and_the_depth_that_they_say(layers, name):
    layout, data = layers.LAYOUTS[name], layers.layers(name, seed=3)
    shares = data.obs["layer"].value_counts(normalize=True, sort=False)
    np.testing.assert_allclose(shares, layout.sizes, atol=1e-3)
    for modality, depth in {"rna": layout.rna_depth, "atac": layout.atac_depth}.items():
        assert 0.9 * depth < data[modality].X.sum(1).mean() < 1.05 * depth
    logs = [np.log1p(np.asarray(data[modality].X.sum(1)).ravel()) for modality in ("rna", "atac")]
    assert np.corrcoef(logs)[0, 1] > 0.7  # .84 in the measured section
    assert (layers.layers(name, seed=3)["atac"].X != data["atac"].X).nnz == 0
