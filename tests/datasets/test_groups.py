from __future__ import annotations

import mudata
import numpy as np
import pytest
import scipy.sparse as sp

from gpnsf.datasets import groups
from gpnsf.datasets.groups import DROPOUT, MARKERS, VARIANTS

SMALL = {"n_obs": 200, "n_genes": 300, "n_peaks": 500}


def test_every_slot_is_there(subtests):
    for variant in VARIANTS:
        with subtests.test(variant=variant):
            mdata = groups(variant, **SMALL)
            assert list(mdata.mod) == ["rna", "atac"]
            n_groups = mdata.obsm["true_factors"].shape[1]
            assert n_groups == (10 if variant == "many" else 5)
            assert "spatial" not in mdata.obsm
            for name, n_features in {"rna": 300, "atac": 500}.items():
                mod = mdata[name]
                assert mod.shape == (200, n_features)
                assert sp.isspmatrix_csr(mod.X)
                assert mod.X.dtype == np.float32
                assert mod.varm["true_loadings"].shape == (n_features, n_groups)
                assert mod.obs["true_size"].mean() == pytest.approx(1)
                assert (mod.obs["true_group"] == mdata.obs["true_group"]).all()
                assert 0 < mod.var["marker"].mean() < 0.5
            assert set(mdata["atac"].X.data) == {1}
            codes = mdata.obs["true_group"].cat.codes
            np.testing.assert_array_equal(mdata.obsm["true_factors"], np.eye(n_groups)[codes])
            assert mdata.uns["truth"]["simulated"]


def test_counts_follow_the_documented_rates(subtests):
    for variant in VARIANTS:
        with subtests.test(variant=variant):
            mdata = groups(variant, n_obs=2000, n_genes=40, n_peaks=40)
            for name, kept in (("rna", 1 - DROPOUT), ("atac", None)):
                mod = mdata[name]
                rates = mod.obs["true_size"].to_numpy()[:, None] * (
                    mdata.obsm["true_factors"] @ mod.varm["true_loadings"].T
                )
                wanted = rates * kept if kept else -np.expm1(-rates)
                assert mod.X.sum() == pytest.approx(wanted.sum(), rel=0.05)
                correlation = np.corrcoef(
                    np.asarray(mod.X.mean(axis=0)).ravel(), wanted.mean(axis=0)
                )[0, 1]
                assert correlation > 0.98


def test_groups_have_their_sizes(subtests):
    for variant, sizes in (
        ("plain", [100] * 5),
        ("unequal", [250, 125, 75, 35, 15]),
        ("many", [50] * 10),
    ):
        with subtests.test(variant=variant):
            labels = groups(variant, n_obs=500, n_genes=5, n_peaks=5).obs["true_group"]
            assert sorted(labels.value_counts(), reverse=True) == sizes


def test_a_modality_tells_only_its_kinds_of_cells_apart(subtests):
    for variant, kinds in (
        ("plain", (5, 5)),
        ("alike_in_rna", (3, 5)),
        ("alike_in_atac", (5, 3)),
        ("crossed", (3, 3)),
    ):
        with subtests.test(variant=variant):
            mdata = groups(variant, **SMALL)
            rates = [mod.varm["true_loadings"] for mod in mdata.mod.values()]
            columns = [np.unique(W / W[-1:], axis=1) for W in rates]
            assert tuple(column.shape[1] for column in columns) == kinds


def test_markers_stand_out_as_far_as_they_say(subtests):
    for variant, name, change in (
        ("weak", "rna", 2.5),
        ("weak", "atac", 2.6),
        ("closed", "atac", 5.0),
        ("plain", "rna", 4.0),
        ("plain", "atac", 4.0),
    ):
        with subtests.test(variant=variant, name=name):
            mdata = groups(variant, n_obs=50, n_genes=2000, n_peaks=2000)
            rates = mdata[name].varm["true_loadings"]
            ratio = rates.max(axis=1) / rates.min(axis=1)
            np.testing.assert_allclose(np.median(ratio[ratio > 1.5]), change, rtol=0.05)
            assert (ratio > 1.5).mean() == pytest.approx(1 - (1 - MARKERS) ** 5, rel=0.2)


@pytest.mark.parametrize(("variant", "open_share"), [("plain", 0.05), ("closed", 0.0105)])
def test_so_many_peaks_are_open(variant, open_share):
    mdata = groups(variant, n_obs=200, n_genes=5, n_peaks=5000)
    assert mdata["atac"].X.mean() == pytest.approx(open_share, rel=0.2)


def test_shallow_cells_have_a_tenth_of_the_counts():
    deep, shallow = (groups(variant, **SMALL)["rna"].X.sum() for variant in ("plain", "shallow"))
    assert shallow / deep == pytest.approx(0.1, rel=0.05)


def test_true_links_join_markers_of_the_same_groups():
    mdata = groups(n_obs=50, n_genes=500, n_peaks=2000)
    links = mdata.uns["true_links"]
    assert len(links) > 100
    W1, W2 = (
        mdata[name].varm["true_loadings"][mdata[name].var_names.get_indexer(links[kind])]
        for name, kind in (("rna", "gene"), ("atac", "peak"))
    )
    high = [W > 1.5 * W.min(axis=1, keepdims=True) for W in (W1, W2)]
    assert (high[0] == high[1]).all(axis=1).mean() > 0.95


def test_the_seed_decides_everything_and_a_file_keeps_it(tmp_path):
    first, again, other = (groups(**SMALL, seed=seed) for seed in (0, 0, 1))
    assert (first["rna"].X != again["rna"].X).nnz == 0
    assert (first["atac"].X != again["atac"].X).nnz == 0
    assert (first["rna"].X != other["rna"].X).nnz > 0
    first.write_h5mu(tmp_path / "groups.h5mu")
    read = mudata.read_h5mu(tmp_path / "groups.h5mu")
    assert read.uns["truth"]["variant"] == "plain"
    assert read.obs["true_group"].tolist() == first.obs["true_group"].tolist()


def test_wrong_arguments_are_explained(subtests):
    for wrong, error in (
        ({"variant": "odd"}, ValueError),
        ({"variant": 1}, TypeError),
        ({"n_obs": 49}, ValueError),
        ({"n_genes": 0}, ValueError),
        ({"n_peaks": 2.5}, TypeError),
        ({"seed": -1}, ValueError),
    ):
        with (
            subtests.test(wrong=wrong),
            pytest.raises(error, match=f"^Expected `{next(iter(wrong))}`"),
        ):
            groups(**wrong)
