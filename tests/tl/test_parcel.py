from __future__ import annotations

import pickle

import anndata
import mudata
import numpy as np
import pytest
import scipy.sparse as sp

from gpnsf.io.parcel import pack
from gpnsf.tl.fit import fit


def counts_of(data, names):
    return {name: sp.csr_matrix(data[name].X) for name in names}


def through_pickle(parcel):
    return pickle.loads(pickle.dumps(parcel)).unpacked()


@pytest.mark.slow
def test_a_fit_does_not_notice(mdata):
    arguments = {
        "n_factors": 3,
        "max_steps": 3,
        "library_key": "side",
        "copy": True,
        "progress": False,
    }
    mdata.obs["side"] = np.where(mdata.obsm["spatial"][:, 0] > 100, "right", "left")
    again = through_pickle(pack(mdata, counts_of(mdata, ["rna", "atac"]), obsm="spatial"))
    np.testing.assert_array_equal(
        fit(again, **arguments).obsm["X_gpnsf"], fit(mdata, **arguments).obsm["X_gpnsf"]
    )


def test_rows_keep_their_order_where_modalities_lack_some(mdata):
    mdata.mod["rna"] = mdata["rna"][40:].copy()
    mdata.mod["atac"] = mdata["atac"][:100].copy()
    mdata.update()
    order = np.random.default_rng(0).permutation(mdata.n_obs)
    mdata = mdata[order].copy()
    again = through_pickle(pack(mdata, counts_of(mdata, ["rna", "atac"]), obsm="spatial"))
    assert again.obs_names.tolist() == mdata.obs_names.tolist()
    np.testing.assert_array_equal(again.obsm["spatial"], mdata.obsm["spatial"])
    np.testing.assert_array_equal(again["rna"].X.toarray(), sp.csr_matrix(mdata["rna"].X).toarray())


@pytest.mark.parametrize("kind", [anndata.AnnData, mudata.MuData])
def test_what_comes_out_is_independent_of_what_went_in(mdata, adata, kind):
    data = adata if kind is anndata.AnnData else mdata
    holders = {"rna": data} if kind is anndata.AnnData else data
    parcel = pack(data, counts_of(holders, ["rna"]), obsm="spatial")
    first, second = parcel.unpacked(), parcel.unpacked()
    assert isinstance(first, kind)
    first.obs["new"] = 1
    first.obsm["new"] = np.ones((first.n_obs, 1))
    assert "new" not in second.obs
    assert "new" not in data.obs
    assert "new" not in second.obsm


def test_other_modalities_bring_their_coordinates_only(mdata):
    mdata["atac"].obsm["spatial"] = mdata.obsm["spatial"]
    del mdata.obsm["spatial"]
    again = through_pickle(pack(mdata, counts_of(mdata, ["rna"]), obsm="spatial"))
    assert again["atac"].n_vars == 0
    np.testing.assert_array_equal(again["atac"].obsm["spatial"], mdata["atac"].obsm["spatial"])
