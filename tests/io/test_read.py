"""Into the core: what `read` promises."""

from __future__ import annotations

import logging
from itertools import product

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sections
from mudata import MuData
from sections import anndata, mudata

from gpnsf.arguments import Reading
from gpnsf.io.geometry import normalise_coords
from gpnsf.io.objects import gather, open_data
from gpnsf.io.read import read
from gpnsf.io.streaming import canonical


@pytest.fixture(name="adata")
def _adata() -> ad.AnnData:
    return anndata()


@pytest.fixture(name="partial")
def _partial() -> MuData:
    return sections.partial()


def test_anndata_is_one_modality(adata):
    dataset, layout = read(adata)
    (view,) = dataset.views
    assert (view.name, view.likelihood, view.weight) == ("rna", "nb", 1.0)
    assert layout.modalities == ("rna",)
    assert layout.libraries == ("",)
    assert dataset.n_obs == 20
    assert view.observed.all()
    assert dataset.library.tolist() == [0] * 20
    np.testing.assert_array_equal(view.counts.toarray(), adata.X.toarray())


def test_the_modality_of_anndata_has_a_name(subtests, adata):
    for options, name, likelihood in (
        ({"likelihoods": "poisson"}, "rna", "poisson"),
        ({"likelihoods": {"atac": "bernoulli"}}, "atac", "bernoulli"),
        ({"modalities": ["atac"]}, "atac", "bernoulli"),
        ({"modalities": "protein"}, "protein", "nb"),
        ({"default_likelihoods": {"": "gaussian"}}, "rna", "gaussian"),
    ):
        with subtests.test(options=options):
            defaults = options.pop("default_likelihoods", None)
            (view,) = read(adata, Reading(**options), default_likelihoods=defaults)[0].views
            assert (view.name, view.likelihood) == (name, likelihood)


def test_clean_counts_are_shared_not_copied(adata):
    counts = read(adata)[0].views[0].counts
    assert np.shares_memory(counts.data, adata.X.data)
    assert np.shares_memory(counts.indices, adata.X.indices)


def test_counts_of_any_kind_become_canonical(subtests):
    for convert, dtype in product(
        (sp.csc_matrix, sp.csr_array, sp.csc_array, sp.coo_matrix, lambda X: X.toarray()),
        (np.float64, np.int64, np.uint8, bool),
    ):
        with subtests.test(convert=convert.__name__, dtype=dtype.__name__):
            X = sp.random(
                8, 5, 0.4, format="csr", random_state=0, data_rvs=lambda n: np.arange(1, n + 1)
            ).astype(dtype)
            counts = canonical(convert(X), modality="rna")
            assert isinstance(counts, sp.csr_matrix)
            assert counts.dtype == np.float32
            assert counts.has_canonical_format
            np.testing.assert_array_equal(counts.toarray(), X.toarray().astype(np.float32))


def test_duplicates_add_up_and_stored_zeros_vanish_on_a_copy():
    data = np.array([1, 0, 2, 3], np.float32)
    indices = np.array([2, 1, 2, 0])
    indptr = np.array([0, 3, 4])
    before = data.copy(), indices.copy()
    counts = canonical(sp.csr_matrix((data, indices, indptr), shape=(2, 3)), modality="rna")
    np.testing.assert_array_equal(counts.toarray(), [[0, 0, 3], [3, 0, 0]])
    assert counts.nnz == 2
    np.testing.assert_array_equal(data, before[0])
    np.testing.assert_array_equal(indices, before[1])


def test_coordinates_keep_their_aspect(adata):
    dataset, layout = read(adata)
    assert dataset.coords.dtype == np.float32
    assert np.abs(dataset.coords).max() == 1
    np.testing.assert_allclose(np.ptp(dataset.coords, axis=0), [2.0, 2 / 9], rtol=1e-6)
    np.testing.assert_allclose(dataset.coords.max(0) + dataset.coords.min(0), 0, atol=1e-6)
    assert layout.scale == 22.5
    np.testing.assert_allclose(
        layout.centre + layout.scale * dataset.coords, adata.obsm["spatial"], rtol=1e-6
    )


@pytest.mark.parametrize("shift", [0.0, 1e7])
def test_far_coordinates_lose_nothing(adata, shift):
    near = read(adata)[0].coords
    adata.obsm["spatial"] = adata.obsm["spatial"] + shift
    np.testing.assert_allclose(read(adata)[0].coords, near, atol=1e-6)


def test_slices_are_centred_each_and_scaled_together(adata):
    adata.obs["slice"] = pd.Categorical(np.repeat(["b", "a"], [14, 6]), categories=["c", "b", "a"])
    dataset, layout = read(adata, Reading(library_key="slice"))
    assert layout.libraries == ("a", "b")
    assert dataset.library.tolist() == [1] * 14 + [0] * 6
    assert dataset.n_libraries == 2
    assert layout.scale == 15.0
    for code, half in [(0, 5 / 15), (1, 1.0)]:
        part = dataset.coords[dataset.library == code]
        np.testing.assert_allclose(part.max(0), [half, 2.5 / 15], rtol=1e-6)
        np.testing.assert_allclose(part.min(0), -part.max(0), rtol=1e-6)
    again = normalise_coords(adata.obsm["spatial"], dataset.library, layout.centre, layout.scale)
    np.testing.assert_array_equal(again, dataset.coords)


def test_a_slice_of_one_spot_is_legal(adata):
    adata.obs["slice"] = ["alone"] + ["rest"] * 19
    dataset, _ = read(adata, Reading(library_key="slice"))
    np.testing.assert_array_equal(dataset.coords[0], [0, 0])


def test_a_model_without_field_does_without_coordinates(adata):
    placed = read(adata, spatial=False)[0].coords
    assert placed.shape == (20, 2)
    del adata.obsm["spatial"]
    dataset, layout = read(adata, spatial=False)
    np.testing.assert_array_equal(dataset.coords, np.zeros((20, 1)))
    assert layout.scale == 1.0


def test_cells_are_matched_by_name(partial):
    dataset, layout = read(partial, Reading(size_factors=None))
    assert dataset.n_obs == partial.n_obs == 20
    for view in dataset.views:
        mod = partial[view.name]
        own = pd.DataFrame(mod.X.toarray(), index=mod.obs_names)
        found = pd.DataFrame(view.counts.toarray(), index=partial.obs_names)
        expected = own.reindex(partial.obs_names)
        assert view.observed.tolist() == expected.notna().all(axis=1).tolist()
        expected = expected.fillna(0) > 0 if view.likelihood == "bernoulli" else expected.fillna(0)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(view.size, view.observed)
        assert view.counts.has_canonical_format
        assert (partial.obs_names[layout.rows[view.name]] == mod.obs_names).all()


def test_obsmap_may_have_two_dimensions(partial, monkeypatch):
    flat, _ = read(partial)
    columns = {name: np.asarray(partial.obsmap[name]).reshape(-1, 1) for name in partial.mod}
    monkeypatch.setattr(
        MuData, "obsmap", property(lambda _: columns)
    )  # as in mudata 0.3.2 to 0.3.8
    column, _ = read(partial)
    np.testing.assert_array_equal(flat.views[1].counts.toarray(), column.views[1].counts.toarray())


def test_coordinates_of_modalities_complete_each_other(partial):
    for mod in partial.mod.values():
        mod.obsm["spatial"] /= 3
    partial["atac"].obsm["spatial"] = partial["atac"].obsm["spatial"].astype(np.float32)
    expected = pd.DataFrame(anndata().obsm["spatial"] / 3, index=anndata().obs_names).loc[
        partial.obs_names
    ]
    dataset, layout = read(partial)
    np.testing.assert_allclose(layout.centre + layout.scale * dataset.coords, expected, rtol=1e-6)


def test_coordinates_of_the_object_come_first(partial, caplog):
    partial["atac"].obsm["spatial"] += 50  # would disagree
    partial.obsm["spatial"] = np.arange(20.0)[:, None]
    with caplog.at_level(logging.DEBUG, logger="gpnsf"):
        dataset, _ = read(partial)
    np.testing.assert_allclose(dataset.coords[:, 0], np.linspace(-1, 1, 20), atol=1e-6)
    assert "obsm['spatial'] is read from the data" in caplog.text


def test_coordinates_may_lie_in_a_modality_that_is_not_read(adata, caplog):
    image = anndata(n_vars=2)
    del adata.obsm["spatial"]
    with caplog.at_level(logging.DEBUG, logger="gpnsf"):
        dataset, layout = read(mudata(rna=adata, image=image))
    assert layout.modalities == ("rna",)
    assert dataset.coords.shape == (20, 2)
    assert "modality 'image'" in caplog.text


def test_which_modalities_are_read(subtests):
    for names, asked, read_names in (
        (["protein", "atac", "rna"], None, ("rna", "atac")),
        (["protein", "atac"], None, ("atac",)),
        (["left", "right"], None, ("left", "right")),
        (["rna", "atac"], ["atac", "rna"], ("atac", "rna")),
        (["rna", "atac"], "atac", ("atac",)),
        (["rna", "protein"], ("protein",), ("protein",)),
    ):
        with subtests.test(names=names, asked=asked):
            data = mudata(**{name: anndata(prefix=name) for name in names})
            dataset, layout = read(data, Reading(modalities=asked))
            assert layout.modalities == read_names
            assert tuple(view.name for view in dataset.views) == read_names


def test_likelihoods_have_defaults_by_name(partial):
    assert read(partial)[1].likelihoods == {"rna": "nb", "atac": "bernoulli"}
    assert read(partial, Reading(likelihoods="poisson"))[1].likelihoods == {
        "rna": "poisson",
        "atac": "poisson",
    }
    assert read(partial, Reading(likelihoods={"rna": "gaussian"}))[1].likelihoods == {
        "rna": "gaussian",
        "atac": "bernoulli",
    }


def test_bernoulli_reads_presence_and_says_so_once(adata, caplog):
    with caplog.at_level(logging.DEBUG, logger="gpnsf"):
        counts = read(adata, Reading(likelihoods="bernoulli"))[0].views[0].counts
    np.testing.assert_array_equal(counts.toarray(), adata.X.toarray() > 0)
    assert adata.X.max() > 1
    assert sum("reads x > 0" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("layers", ["counts", {"rna": "counts"}])
def test_layers_replace_x(adata, layers):
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X.toarray())
    counts = read(adata, Reading(layers=layers))[0].views[0].counts
    np.testing.assert_array_equal(counts.toarray(), adata.layers["counts"].toarray())


def test_use_var_selects_and_is_remembered(partial):
    partial["rna"].var["chosen"] = [True, False, True, True, False, False]
    dataset, layout = read(partial, Reading(use_var="chosen"))
    assert [view.counts.shape[1] for view in dataset.views] == [3, 9]
    assert layout.features["rna"].tolist() == partial["rna"].var["chosen"].tolist()
    assert layout.features["atac"].all()
    both, _ = read(partial, Reading(use_var={"rna": "chosen"}))
    np.testing.assert_array_equal(both.views[0].counts.toarray(), dataset.views[0].counts.toarray())


def test_totals_are_size_factors(adata):
    X = adata.X.toarray()
    X[4] = 0
    adata.X = X
    size = read(adata)[0].views[0].size
    expected = X.sum(1) / X.sum(1).mean()
    assert size.dtype == np.float32
    assert size[4] == np.float32(0.05)
    np.testing.assert_allclose(np.delete(size, 4), np.delete(expected, 4), rtol=1e-6)


def test_totals_count_used_features_of_observed_rows(partial):
    partial.obs["held"] = np.arange(20) < 4
    partial["rna"].var["chosen"] = [True, False, True, True, False, False]
    view = read(partial, Reading(use_var="chosen", holdout_key="held"))[0].views[0]
    assert (view.size[~view.observed] == 0).all()
    assert view.size[view.observed].mean() == pytest.approx(1)
    totals = view.counts.toarray().sum(1)
    np.testing.assert_allclose(view.size, totals / totals[view.observed].mean(), rtol=1e-6)


def test_size_factors_from_columns(partial):
    partial["atac"].obs["depth"] = 1.0 + np.arange(17)
    partial["rna"].obs["depth"] = 4
    rna, atac = read(partial, Reading(size_factors="depth"))[0].views
    np.testing.assert_array_equal(rna.size, rna.observed)
    depth = (
        pd.Series(1.0 + np.arange(17), index=partial["atac"].obs_names)
        .reindex(partial.obs_names)
        .fillna(0)
    )
    np.testing.assert_allclose(atac.size, depth / 9, rtol=1e-6)
    partial.obs["depth"] = np.where(rna.observed, 2.0, np.nan)  # unknown where RNA is absent
    (rna,) = read(partial, Reading(modalities=["rna"], size_factors="depth"))[0].views
    np.testing.assert_array_equal(rna.size, rna.observed)


def test_gaussian_data_have_no_size_factors(adata):
    assert (
        read(adata, Reading(likelihoods="gaussian", size_factors="total"))[0].views[0].size == 1
    ).all()


def test_held_out_rows_train_nothing(partial):
    partial.obs["held"] = np.arange(20) % 3 == 0
    full, held = read(partial)[0], read(partial, Reading(holdout_key="held"))[0]
    out = partial.obs["held"].to_numpy()
    np.testing.assert_array_equal(full.coords, held.coords)
    for before, after in zip(full.views, held.views, strict=True):
        assert not after.observed[out].any()
        np.testing.assert_array_equal(after.observed[~out], before.observed[~out])
        assert after.counts[out].nnz == 0
        np.testing.assert_array_equal(after.counts[~out].toarray(), before.counts[~out].toarray())
        assert (after.size[out] == 0).all()


def test_columns_of_modalities_are_gathered(partial):
    for mod in partial.mod.values():
        mod.obs["held"] = mod.obs_names.isin(["spot7", "spot0"])
        mod.obs["slice"] = ["x" if name < "spot3" else "y" for name in mod.obs_names]
    dataset, layout = read(partial, Reading(holdout_key="held", library_key="slice"))
    out = partial.obs_names.isin(["spot7", "spot0"])
    assert not any(view.observed[out].any() for view in dataset.views)
    assert layout.libraries == ("x", "y")
    assert dataset.library.tolist() == [int(name >= "spot3") for name in partial.obs_names]
    partial["atac"].obs["slice"] = "y"
    with pytest.raises(ValueError, match="agree on obs"):
        read(partial, Reading(library_key="slice"))


def test_numbers_of_modalities_are_gathered(partial):
    for mod in partial.mod.values():
        mod.obs["depth"] = mod.obs_names.str[4:].astype(float)
    opened = open_data(partial)
    numbers = lambda column, *_: column.to_numpy()
    depth = partial.obs_names.str[4:].astype(float)
    np.testing.assert_array_equal(gather(opened, "obs", "depth", numbers), depth)
    partial["atac"].obs["depth"] += np.arange(partial["atac"].n_obs)
    with pytest.raises(ValueError, match=r"agree on obs\['depth'\]; got 15 of 15 .* by up to"):
        gather(opened, "obs", "depth", numbers)


def test_a_modality_that_is_wholly_held_out_is_an_error(partial):
    partial.obs["held"] = partial.obs_names.isin(partial["atac"].obs_names)
    with pytest.raises(ValueError, match="training rows of modality 'atac'; got none in 0 row"):
        read(partial, Reading(holdout_key="held"))


def test_weights_of_modalities(partial):
    rna, atac = read(partial, Reading(modality_weights={"atac": 3}))[0].views
    assert (rna.weight, atac.weight) == (1.0, 3.0)


def test_rows_of_a_batch_are_neighbours(adata):
    adata.obs["run"] = np.array(["b", "a", "c"])[np.arange(adata.n_obs) % 3]
    plain, _ = read(adata)
    dataset, layout = read(adata, Reading(batch_key="run"))
    assert plain.batch is None
    assert layout.batches == ("a", "b", "c")
    assert (np.diff(dataset.batch) >= 0).all()
    assert [layout.batches[code] for code in dataset.batch[layout.position]] == adata.obs[
        "run"
    ].tolist()
    np.testing.assert_array_equal(dataset.coords[layout.position], plain.coords)
    np.testing.assert_array_equal(dataset.views[0].size[layout.position], plain.views[0].size)
    assert (dataset.views[0].counts[layout.position] != plain.views[0].counts).nnz == 0
