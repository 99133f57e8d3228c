from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import sections
from anndata import AnnData

from gpnsf.datasets import tissue
from gpnsf.pp import thin


@pytest.mark.parametrize("fraction", [0.5, 0.8])
def test_the_halves_are_whole_counts_that_sum_to_the_data(mdata, fraction):
    thin(mdata, fraction=fraction)
    for mod in mdata.mod.values():
        train, test = mod.layers["thinned_train"], mod.layers["thinned_test"]
        for half in (train, test):
            assert sp.isspmatrix_csr(half)
            assert half.dtype == np.float32
            assert half.data.min() >= 1
            np.testing.assert_array_equal(half.data, np.round(half.data))
        assert (train + test != mod.X).nnz == 0
        total = mod.X.sum()
        assert abs(train.sum() - fraction * total) < 5 * np.sqrt(total * fraction * (1 - fraction))


def test_each_count_is_split_binomially():
    adata = AnnData(np.full((200, 100), 6, dtype=np.float32))
    thin(adata, fraction=0.3)
    values, times = np.unique(adata.layers["thinned_train"].toarray(), return_counts=True)
    np.testing.assert_array_equal(values, np.arange(7))
    expected = [1, 6, 15, 20, 15, 6, 1] * 0.3 ** np.arange(7) * 0.7 ** np.arange(6, -1, -1)
    np.testing.assert_allclose(times / 20_000, expected, atol=5 * np.sqrt(0.25 / 20_000))


def test_halves_of_poisson_counts_are_independent_and_of_overdispersed_ones_are_not():
    def correlation(dispersion):
        mdata = tissue(n_obs=400, n_genes=50, n_peaks=1, rna_depth=250.0, dispersion=dispersion)
        thin(mdata)
        signal = mdata.obsm["true_factors"] @ mdata["rna"].varm["true_loadings"].T
        mean = 0.5 * mdata.obs["true_size_rna"].to_numpy()[:, None] * signal
        halves = [mdata["rna"].layers[f"thinned_{half}"].toarray() for half in ("train", "test")]
        return np.mean((halves[0] - mean) * (halves[1] - mean) / mean)

    assert abs(correlation(None)) < 5 / np.sqrt(400 * 50)
    assert correlation(1.0) > 0.5


def test_each_open_peak_goes_to_one_half(mdata):
    thin(mdata, modalities=["atac"])
    train, test = (mdata["atac"].layers[f"thinned_{half}"] for half in ("train", "test"))
    assert train.multiply(test).nnz == 0
    assert train.nnz + test.nnz == mdata["atac"].X.nnz


def test_modalities_of_the_same_counts_are_split_each_for_itself(adata):
    mdata = sections.mudata(rna=adata.copy(), again=adata.copy())
    thin(mdata, modalities=["rna", "again"])
    assert (
        mdata["rna"].layers["thinned_train"] != mdata["again"].layers["thinned_train"]
    ).nnz > 100


def test_a_modality_is_split_alike_whether_others_are_or_not(mdata):
    alone = thin(mdata, modalities="atac", copy=True)
    assert not alone["rna"].layers
    thin(mdata)
    assert (alone["atac"].layers["thinned_train"] != mdata["atac"].layers["thinned_train"]).nnz == 0


def test_the_seed_decides(adata):
    train = [thin(adata, seed=seed, copy=True).layers["thinned_train"] for seed in (0, 0, 1)]
    assert (train[0] != train[1]).nnz == 0
    assert (train[0] != train[2]).nnz > 0


@pytest.mark.parametrize("layers", ["counts", {"rna": "counts"}])
def test_counts_may_be_in_a_layer_and_of_any_format(adata, layers):
    expected = thin(adata, copy=True).layers["thinned_train"]
    adata.layers["counts"] = adata.X.astype(np.int64).tocsc()
    adata.X = adata.X.log1p()
    thin(adata, layers=layers)
    assert (adata.layers["thinned_train"] != expected).nnz == 0


@pytest.mark.parametrize("copy", [False, True])
def test_only_the_documented_slots_are_written(mdata, slots, copy):
    before = slots(mdata)
    result = thin(mdata, key_added="half", copy=copy)
    after = slots(result if copy else mdata)
    assert after.keys() - before.keys() == {
        f"{name}/layers/half_{end}" for name in mdata.mod for end in ("train", "test")
    }
    assert {key: after[key] for key in before} == before
    if copy:
        assert slots(mdata) == before
    else:
        assert result is None


def test_bad_arguments_leave_the_object_as_it_is(subtests, mdata, slots):
    for wrong, error, message in (
        ({"fraction": 0}, ValueError, r"`fraction` .*above 0; got 0"),
        ({"fraction": 1.0}, ValueError, r"`fraction` below 1; got 1\.0"),
        ({"modalities": ["protein"]}, KeyError, r"modalities to exist.*got 'protein'"),
        ({"layers": {"rna": "raw"}}, KeyError, r"layer.*got 'raw'"),
        ({"layers": 3}, TypeError, r"`layers` .*got 3"),
        ({"key_added": "a/b"}, ValueError, r"without '/'.*got 'a/b'"),
        ({"seed": 0.5}, TypeError, r"`seed` .*integer.*got 0\.5"),
    ):
        with subtests.test(wrong=wrong):
            before = slots(mdata)
            with pytest.raises(error, match=message):
                thin(mdata, **wrong)
            assert slots(mdata) == before


@pytest.mark.parametrize(
    ("value", "word"), [(0.5, "fractional"), (-1.0, "negative"), (np.inf, "infinite")]
)
def test_only_whole_counts_can_be_split(mdata, value, word):
    mdata["atac"].X.data[0] = value
    with pytest.raises(ValueError, match=rf"'atac'.*{word}"):
        thin(mdata)
    assert not mdata["rna"].layers
