from __future__ import annotations

from functools import partial

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import sections
from mistakes import explained

import gpnsf
from gpnsf.pp import normalise


def dense(adata, layer="normalised"):
    return adata.layers[layer].toarray()


def test_counts_are_divided_by_size_factors_before_the_logarithm(subtests):
    for options, size in (
        ({}, lambda y, d: y.sum(1) / y.sum(1).mean()),
        ({"target_sum": 50}, lambda y, d: y.sum(1) / 50),
        ({"size_factors": None}, lambda y, d: np.ones(len(y))),
        ({"size_factors": "depth"}, lambda y, d: d / d.mean()),
        ({"use_var": "chosen"}, lambda y, d: y[:, :5].sum(1) / y[:, :5].sum(1).mean()),
        ({"log": False}, lambda y, d: y.sum(1) / y.sum(1).mean()),
        (
            {"holdout_key": "held"},
            lambda y, d: y.sum(1) / y[3:].sum(1).mean(),
        ),
    ):
        with subtests.test(options=options):
            adata = sections.section()
            y = adata.X.toarray().astype(float)
            expected = size(y, adata.obs["depth"].to_numpy())
            normalise(adata, **options)
            scaled = y / expected[:, None]
            wanted = scaled if options.get("log") is False else np.log1p(scaled)
            assert sp.isspmatrix_csr(adata.layers["normalised"])
            assert adata.layers["normalised"].dtype == np.float32
            np.testing.assert_allclose(dense(adata), wanted, rtol=1e-6)
            np.testing.assert_allclose(adata.obs["normalised_size"], expected, rtol=1e-9)
            np.testing.assert_array_equal(adata.X.toarray(), y)


@pytest.mark.parametrize("size_factors", ["total", "depth"])
def test_held_out_rows_have_no_part_in_the_values_of_others(size_factors):
    one, other = sections.section(), sections.section()
    held = one.obs["held"].to_numpy()
    counts = other.X.toarray()
    counts[held] *= 7
    other.X = sp.csr_matrix(counts)
    other.obs["depth"] = np.where(held, 9.0, other.obs["depth"])
    for adata in (one, other):
        normalise(adata, holdout_key="held", size_factors=size_factors)
    np.testing.assert_array_equal(dense(one)[~held], dense(other)[~held])
    assert (dense(one)[held] != dense(other)[held]).any() or size_factors == "total"
    assert (one.obs["normalised_size"] != other.obs["normalised_size"])[held].all()


def test_an_empty_row_stays_empty():
    adata = sections.section()
    counts = adata.X.toarray()
    counts[3] = 0
    adata.X = sp.csr_matrix(counts)
    normalise(adata)
    assert adata.obs["normalised_size"].iloc[3] == pytest.approx(0.05)
    assert not dense(adata)[3].any()


def test_modalities_have_their_own_size_factors_and_layers():
    mdata = sections.pair()
    copied = normalise(
        mdata, modalities=["rna", "atac"], layers={"rna": "counts"}, layer_added="logs", copy=True
    )
    assert "logs" not in mdata["rna"].layers
    for mod in copied.mod.values():
        y = mod.X.toarray()
        size = y.sum(1) / y.sum(1).mean()
        np.testing.assert_allclose(dense(mod, "logs"), np.log1p(y / size[:, None]), rtol=1e-6)
    assert copied["rna"].uns["logs"]["layer"] == "counts"
    assert copied["atac"].uns["logs"]["layer"] is None


def test_what_is_kept_survives_a_file(tmp_path):
    adata = sections.section()
    normalise(adata, layers="counts", holdout_key="held", target_sum=100)
    adata.write(tmp_path / "section.h5ad")
    again = anndata.read_h5ad(tmp_path / "section.h5ad")
    kept = again.uns["normalised"]
    assert {name: kept[name] for name in ("layer", "holdout_key", "size_factors")} == {
        "layer": "counts",
        "holdout_key": "held",
        "size_factors": "total",
    }
    assert (bool(kept["log"]), bool(kept["learned"])) == (True, False)


def test_a_mistake_is_explained_and_changes_nothing(subtests):
    for options, error, says in (
        ({"layer_added": "counts", "layers": "counts"}, ValueError, "`layer_added` other than"),
        ({"layer_added": "a/b"}, ValueError, "'a/b'"),
        ({"layer_added": 3}, TypeError, "`layer_added`"),
        ({"layers": "none"}, KeyError, "'none'"),
        ({"use_var": "none"}, KeyError, "'none'"),
        ({"modalities": ["atac", "rna"]}, ValueError, "one modality"),
        ({"size_factors": "none"}, KeyError, "'none'"),
        ({"size_factors": 1}, TypeError, "`size_factors`"),
        ({"size_factors": "slice"}, TypeError, "numeric"),
        ({"target_sum": 0}, ValueError, "`target_sum`"),
        ({"target_sum": 9.0, "size_factors": None}, ValueError, "size_factors='total'"),
        ({"log": 1}, TypeError, "`log`"),
        ({"holdout_key": "none"}, KeyError, "'none'"),
        ({"copy": 1}, TypeError, "`copy`"),
    ):
        with subtests.test(options=options):
            call = partial(normalise, **options)
            explained(sections.section(), call, error, says)


def test_values_that_are_no_counts_are_refused():
    adata = sections.section()
    adata.X = adata.X * 0.5
    with pytest.raises(ValueError, match="whole counts"):
        normalise(adata)
    adata.X = sp.csr_matrix(np.eye(24, 8, dtype=np.float32))
    adata.obs["held"] = adata.X.toarray().any(axis=1)
    with pytest.raises(ValueError, match="counts in the training rows of modality 'rna'; got none"):
        gpnsf.pp.normalise(adata, holdout_key="held")
