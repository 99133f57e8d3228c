"""Tools find RNA and ATAC under the names that people give them."""

from __future__ import annotations

import pandas as pd
import pytest
from mudata import MuData

import gpnsf


def renamed(data):
    """The same object whose modalities have the names of a 10x file."""
    other = MuData({"GEX": data["rna"].copy(), "Peaks": data["atac"].copy()})
    other.obsm["spatial"] = data.obsm["spatial"].copy()
    return other


def linked(data):
    gpnsf.tl.link_peaks(data, n_permutations=20, key="factvae")
    return data.uns["factvae_links"]


def nearest(data):
    gpnsf.tl.nearest_genes(data)
    return next(mod for mod in data.mod.values() if "nearest_gene" in mod.var).var["nearest_gene"]


@pytest.fixture(scope="module")
def both():
    """A fit by other names, and the same fit by ours."""
    data = gpnsf.datasets.tissue(n_obs=60, n_genes=30, n_peaks=40, seed=0)
    pair = data, renamed(data)
    for each in pair:
        gpnsf.tl.factvae(each, max_epochs=1, n_latent=4, progress=False)
    return pair


@pytest.mark.filterwarnings("ignore::FutureWarning:mudata")
@pytest.mark.parametrize("tool", [linked, nearest])
def test_pairs_of_modalities(both, tool):
    one, other = map(tool, both)
    (
        pd.testing.assert_frame_equal
        if isinstance(one, pd.DataFrame)
        else pd.testing.assert_series_equal
    )(one, other)


@pytest.mark.filterwarnings("ignore::FutureWarning:mudata")
def test_the_record_has_the_names_of_the_data(both):
    assert [list(each.uns["factvae"]["modalities"]) for each in both] == [
        ["rna", "atac"],
        ["GEX", "Peaks"],
    ]


@pytest.mark.filterwarnings("ignore::FutureWarning:mudata")
def test_sets_of_genes():
    data = gpnsf.datasets.tissue(n_obs=60, n_genes=30, n_peaks=40, seed=0)
    tables = []
    for each in (data, renamed(data)):
        gpnsf.tl.fit(each, n_factors=2, max_steps=2, init="spot", split="assumed", progress=False)
        sets = {"some": list(data["rna"].var_names[:10])}
        tables.append(gpnsf.tl.enrich(each, sets, n_features=10))
    pd.testing.assert_frame_equal(*tables)
