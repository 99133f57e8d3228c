from __future__ import annotations

import numpy as np
import pytest
import reference
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from gpnsf.datasets import ggblocks
from gpnsf.pp import deviance_features


@pytest.fixture
def counts():
    """Counts [20, 9] with an empty row and an empty column."""
    rng = np.random.default_rng(0)
    values = rng.poisson(rng.gamma(1, 2, (20, 9)))
    values[3], values[:, 5] = 0, 0
    return values


def deviance(counts, **options):
    adata = AnnData(counts if sp.issparse(counts) else np.asarray(counts, dtype=np.float32))
    deviance_features(adata, **options)
    return adata.var["deviance"].to_numpy()


@pytest.mark.parametrize("likelihood", ["poisson", "binomial"])
def test_deviances_equal_a_loop_over_all_entries(counts, likelihood):
    found = deviance(counts, likelihood=likelihood)
    np.testing.assert_allclose(
        found, reference.feature_deviance(counts, likelihood), rtol=1e-10, atol=1e-10
    )
    assert found[5] == 0


@pytest.mark.parametrize("likelihood", ["poisson", "binomial"])
def test_the_only_feature_has_nothing_to_deviate_from(likelihood):
    np.testing.assert_allclose(deviance([[1], [4], [0]], likelihood=likelihood), 0, atol=1e-12)


def test_the_format_of_the_counts_does_not_matter(counts):
    row, column = np.nonzero(np.ones_like(counts))
    with_zeros = sp.csr_matrix(
        (counts[row, column].astype(float), (row, column)), shape=counts.shape
    )
    for other in (sp.csr_matrix(counts), sp.csc_matrix(counts), sp.csr_array(counts), with_zeros):
        np.testing.assert_array_equal(deviance(other), deviance(counts))
    assert with_zeros.nnz == counts.size


def test_batches_have_their_own_rates(counts):
    batch = np.array(["a", "b"])[np.arange(20) % 2]
    adata = AnnData(counts.astype(np.float32))
    adata.obs["batch"] = batch
    deviance_features(adata, batch_key="batch")
    parts = [reference.feature_deviance(counts[batch == name], "poisson") for name in ("a", "b")]
    np.testing.assert_allclose(adata.var["deviance"], np.sum(parts, axis=0), rtol=1e-10, atol=1e-10)


def test_differences_between_batches_do_not_count():
    rng = np.random.default_rng(0)
    batch = np.repeat(["a", "b"], 200)
    mean = np.where((batch == "a")[:, None] & (np.arange(10) == 0), 20.0, 2.0)
    adata = AnnData(rng.poisson(mean).astype(np.float32))
    adata.obs["batch"] = batch
    deviance_features(adata, n_top=1)
    assert adata.var["highly_deviant"].tolist() == [True] + 9 * [False]
    apart = adata.var["deviance"].iloc[0]
    deviance_features(adata, batch_key="batch")
    assert adata.var["deviance"].iloc[0] < 0.2 * apart


@pytest.mark.parametrize("where", ["object", "modalities"])
def test_the_batch_is_read_from_the_object_or_its_modalities(mdata, where):
    batch = np.where(np.arange(mdata.n_obs) % 3, "one", "two")
    for holder in [mdata] if where == "object" else mdata.mod.values():
        holder.obs["batch"] = batch
    deviance_features(mdata, batch_key="batch")
    counts = mdata["rna"].X.toarray()
    parts = [
        reference.feature_deviance(counts[batch == name], "poisson") for name in ("one", "two")
    ]
    np.testing.assert_allclose(mdata["rna"].var["deviance"], np.sum(parts, axis=0), rtol=1e-6)


def test_each_modality_has_the_likelihood_of_its_counts(mdata):
    deviance_features(mdata, n_top=7)
    for name, kind in {"rna": "poisson", "atac": "binomial"}.items():
        expected = reference.feature_deviance(mdata[name].X.toarray(), kind)
        np.testing.assert_allclose(mdata[name].var["deviance"], expected, rtol=1e-6)
        assert mdata[name].var["highly_deviant"].dtype == bool
        top = np.argsort(-expected)[:7]
        np.testing.assert_array_equal(
            np.flatnonzero(mdata[name].var["highly_deviant"]), np.sort(top)
        )


def test_genes_with_a_pattern_come_before_genes_without():
    mdata = ggblocks(n_side=12, n_genes=40, n_peaks=5)
    flat = np.random.default_rng(0).poisson(mdata["rna"].X.mean(), (144, 40))
    adata = AnnData(sp.hstack([flat, mdata["rna"].X]).tocsr())
    deviance_features(adata, n_top=40)
    assert adata.var["highly_deviant"].tolist() == 40 * [False] + 40 * [True]


def test_features_without_counts_are_never_flagged(counts):
    adata = AnnData(counts.astype(np.float32))
    deviance_features(adata, n_top=100, key_added="score")
    assert adata.var["highly_deviant"].tolist() == [j != 5 for j in range(9)]
    assert list(adata.var) == ["score", "highly_deviant"]


def test_one_modality_and_one_layer_can_be_chosen(mdata):
    mdata["rna"].layers["counts"] = mdata["rna"].X.copy()
    mdata["rna"].X = mdata["rna"].X.log1p()
    deviance_features(mdata, modality="rna", layer="counts")
    expected = reference.feature_deviance(mdata["rna"].layers["counts"].toarray(), "poisson")
    np.testing.assert_allclose(mdata["rna"].var["deviance"], expected, rtol=1e-6)
    assert "deviance" not in mdata["atac"].var


@pytest.mark.parametrize("copy", [False, True])
def test_only_the_documented_slots_are_written(mdata, slots, copy):
    before = slots(mdata)
    result = deviance_features(mdata, copy=copy)
    after = slots(result if copy else mdata)
    new = {
        f"{name}/var/{column}" for name in mdata.mod for column in ("deviance", "highly_deviant")
    }
    assert after.keys() - before.keys() == new
    assert {key: after[key] for key in before} == before
    if copy:
        assert slots(mdata) == before
    else:
        assert result is None


def test_bad_arguments_leave_the_object_as_it_is(subtests, mdata, slots):
    for wrong, error, message in (
        ({"n_top": 0}, ValueError, r"`n_top` .*at least 1; got 0"),
        ({"modality": "protein"}, KeyError, r"modalities to exist.*'rna', 'atac'.*got 'protein'"),
        ({"layer": "raw"}, KeyError, r"layer.*got 'raw'"),
        ({"batch_key": "batch"}, KeyError, r"`batch_key`.*got 'batch'"),
        (
            {"likelihood": "gaussian"},
            ValueError,
            r"`likelihood` .*'poisson', 'binomial'.*got 'gaussian'",
        ),
        ({"key_added": "a/b"}, ValueError, r"without '/'.*got 'a/b'"),
        ({"key_added": "highly_deviant"}, ValueError, r"other than 'highly_deviant'"),
        ({"key_added": 3}, TypeError, r"`key_added` .*string.*got 3"),
    ):
        with subtests.test(wrong=wrong):
            before = slots(mdata)
            with pytest.raises(error, match=message):
                deviance_features(mdata, **wrong)
            assert slots(mdata) == before


@pytest.mark.parametrize(
    ("value", "word"), [(-1.0, "negative"), (0.5, "fractional"), (np.nan, "NaN")]
)
def test_counts_must_be_counts_and_a_later_modality_spoils_no_earlier_one(mdata, value, word):
    mdata["atac"].X.data[0] = value
    with pytest.raises(ValueError, match=rf"'atac'.*{word}"):
        deviance_features(mdata)
    assert "deviance" not in mdata["rna"].var


def test_missing_batches_are_refused(adata):
    adata.obs["batch"] = ["a", None] * (adata.n_obs // 2)
    with pytest.raises(ValueError, match=r"'batch' without missing values; got 75 of 150"):
        deviance_features(adata, batch_key="batch")


def test_cells_are_matched_where_modalities_hold_different_ones(mdata):
    batch = np.where(np.arange(mdata.n_obs) % 3, "one", "two")
    part = MuData({"rna": mdata["rna"], "atac": mdata["atac"][120:30:-1].copy()})
    part.obs["batch"] = batch
    deviance_features(part, batch_key="batch")
    counts = part["atac"].X.toarray()
    parts = [
        reference.feature_deviance(counts[batch[120:30:-1] == name], "binomial")
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(part["atac"].var["deviance"], np.sum(parts, axis=0), rtol=1e-6)
