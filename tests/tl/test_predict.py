"""`tl.predict`, and what becomes of a fit on its way through files and other people's tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData

import gpnsf
from gpnsf.core.model.build import FIELDS

CASES: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "inducing": {"field": "inducing", "n_inducing": 30},
    "smooth": {"refine": False},
    "all spatial": {"model": "nsf"},
    "none spatial": {"model": "pnmf"},
    "slices": {"library_key": "slice"},
    "held out": {"holdout_key": "held"},
    "fixed": {"lengthscale": 500.0, "kernel": "rbf"},
}
each_case = pytest.mark.parametrize("case", CASES)


def prepared(data: MuData) -> MuData:
    data = data.copy()
    data.obs["slice"] = np.where(np.arange(data.n_obs) < 90, "first", "second")
    data.obs["held"] = np.arange(data.n_obs) % 6 == 0
    return data


@pytest.fixture(scope="module")
def fits(simulated) -> Callable[[str], MuData]:
    """Fitted objects by case, made when they are first asked for; tests take copies."""
    made: dict[str, MuData] = {}

    def find(case: str) -> MuData:
        if case not in made:
            made[case] = prepared(simulated)
            short = {
                "n_factors": 4,
                "max_steps": 20,
                "init": "spot",
                "split": "assumed",
                "progress": False,
            }
            gpnsf.tl.fit(made[case], **short, **CASES[case])
        return made[case].copy()

    return find


@pytest.fixture
def fitted(fits) -> MuData:
    return fits("hybrid")


def as_anndata(data: MuData) -> AnnData:
    """An AnnData fit of the same RNA."""
    adata = data["rna"].copy()
    adata.obsm["spatial"] = data.obsm["spatial"]
    gpnsf.tl.fit(adata, n_factors=4, max_steps=6, init="random", split="assumed", progress=False)
    return adata


def spatial(data: MuData | AnnData) -> np.ndarray:
    return np.asarray(data.uns["gpnsf"]["is_spatial"], bool)


def counts_of_factors(data: MuData | AnnData) -> np.ndarray:
    """Expected counts [K] of factors of size one, over modalities at their weights."""
    weights = data.uns["gpnsf"]["modality_weights"]
    tables = data.mod if isinstance(data, MuData) else dict.fromkeys(weights, data)
    return sum(
        weight * tables[name].varm["gpnsf_loadings"].sum(0) for name, weight in weights.items()
    )


# ---- at the data ----------------------------------------------------------------------------------------------------


@pytest.mark.broad(3)
@each_case
def test_without_coordinates_the_smooth_part_comes_back(fits, case):
    data = fits(case)
    predicted, where = gpnsf.tl.predict(data), spatial(data)
    np.testing.assert_allclose(
        predicted.X[:, where], data.obsm["X_gpnsf_smooth"][:, where], rtol=2e-3, atol=1e-6
    )
    if "mass" in data.uns["gpnsf"]["field"]:  # relative to totals: what spatial ones leave
        counts, alone = counts_of_factors(data), np.where(where, predicted.X, 1)
        if where.any() and not where.all():
            assert np.std(predicted.X @ counts) < 0.7 * np.std(alone @ counts)
        np.testing.assert_allclose(predicted.X[:, ~where].mean(0), 1, atol=0.2)
    else:
        np.testing.assert_array_equal(predicted.X[:, ~where], 1)
    assert predicted.obs_names.equals(data.obs_names)
    assert predicted.var_names.tolist() == list(data.uns["gpnsf"]["factor_names"])
    assert predicted.var["is_spatial"].tolist() == where.tolist()
    assert predicted.layers["std"].shape == predicted.shape == (150, 4)
    assert (predicted.layers["std"] > 0).all()
    assert predicted.X.dtype == predicted.layers["std"].dtype == np.float32
    usual = np.sqrt(data.obsm["X_gpnsf"].var(0) + (data.obsm["X_gpnsf_std"] ** 2).mean(0))
    np.testing.assert_allclose(predicted.layers["std"][0, ~where], usual[~where], rtol=1e-4)
    np.testing.assert_array_equal(
        predicted.var["lengthscale"], data.uns["gpnsf"]["kernel"]["lengthscale"]
    )


@each_case
def test_own_coordinates_are_like_any_others(fits, case):
    data = fits(case)
    if not spatial(data).any():
        pytest.skip("has no field")
    library = data.obs["slice"].tolist() if case == "slices" else None
    there = gpnsf.tl.predict(data, data.obsm["spatial"], library=library)
    np.testing.assert_allclose(there.X, gpnsf.tl.predict(data).X, rtol=1e-5)
    np.testing.assert_array_equal(there.obsm["spatial"], data.obsm["spatial"])


def test_signed_factors_have_mean_zero(simulated):
    for model, mean in (("fa", 0.0), ("rsf", None)):
        adata = simulated["rna"].copy()
        adata.obsm["spatial"] = simulated.obsm["spatial"]
        adata.X = np.log1p(adata.X.toarray())
        gpnsf.tl.fit(adata, model, n_factors=3, max_steps=6, progress=False)
        predicted = gpnsf.tl.predict(adata)
        if mean is None:
            np.testing.assert_allclose(
                predicted.X, adata.obsm["X_gpnsf_smooth"], rtol=2e-3, atol=1e-4
            )
        else:
            np.testing.assert_array_equal(predicted.X, mean)
        assert (predicted.layers["std"] > 0).all()


def test_anndata_predicts_too(simulated):
    adata = as_anndata(simulated)
    where = spatial(adata)
    np.testing.assert_allclose(
        gpnsf.tl.predict(adata).X[:, where],
        adata.obsm["X_gpnsf_smooth"][:, where],
        rtol=2e-3,
        atol=1e-6,
    )


def test_the_object_is_not_touched(fitted):
    before = fitted.copy()
    gpnsf.tl.predict(fitted)
    gpnsf.tl.predict(fitted, fitted.obsm["spatial"][:4], features=["gene_1"])
    assert fitted.obsm.keys() == before.obsm.keys()
    assert fitted.uns.keys() == before.uns.keys()
    np.testing.assert_array_equal(fitted.obsm["X_gpnsf"], before.obsm["X_gpnsf"])


def test_fits_are_told_apart_by_key(fitted):
    expected = gpnsf.tl.predict(fitted).X
    gpnsf.tl.fit(
        fitted,
        n_factors=2,
        n_spatial=2,
        max_steps=3,
        init="random",
        key_added="other",
        progress=False,
    )
    assert gpnsf.tl.predict(fitted, key="other").shape == (150, 2)
    np.testing.assert_array_equal(gpnsf.tl.predict(fitted).X, expected)
    with pytest.raises(KeyError, match="third"):
        gpnsf.tl.predict(fitted, key="third")


# ---- elsewhere ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["hybrid", "inducing"])
def test_each_row_is_predicted_by_itself(fits, case):
    data = fits(case)
    coords = np.random.default_rng(0).uniform(-500, 2500, (40, 2))
    together = gpnsf.tl.predict(data, coords)
    order = np.random.default_rng(1).permutation(40)
    np.testing.assert_allclose(
        gpnsf.tl.predict(data, coords[order]).X, together.X[order], rtol=1e-4
    )
    np.testing.assert_allclose(gpnsf.tl.predict(data, coords[:1]).X, together.X[:1], rtol=1e-4)
    frame = pd.DataFrame(coords, columns=["x", "y"])
    np.testing.assert_array_equal(gpnsf.tl.predict(data, frame).X, together.X)
    assert np.isfinite(together.X).all()
    assert np.isfinite(together.layers["std"]).all()


@pytest.mark.parametrize("case", ["hybrid", "inducing", "fixed"])
def test_predictions_are_continuous(fits, case):
    data = fits(case)
    xy = data.obsm["spatial"]
    line = np.linspace(xy.min(0) - 200, xy.max(0) + 200, 2000)
    logs = np.log(gpnsf.tl.predict(data, line).X[:, spatial(data)])
    assert np.abs(np.diff(logs, axis=0)).max() < 0.15


@pytest.mark.parametrize("case", ["hybrid", "inducing"])
def test_spread_grows_away_from_the_spots(fits, case):
    data = fits(case)
    centre, far = data.obsm["spatial"].mean(0), data.obsm["spatial"].max(0) + 3000.0
    predicted = gpnsf.tl.predict(data, np.stack([centre, far]))
    where = spatial(data)
    relative = predicted.layers["std"][:, where] / predicted.X[:, where]
    assert (relative[1] > relative[0]).all()


def test_slices_are_predicted_each_by_its_field(fits):
    data = fits("slices")
    coords = data.obsm["spatial"][:5]
    first, second = (gpnsf.tl.predict(data, coords, library=name) for name in ("first", "second"))
    assert (first.X[:, :2] != second.X[:, :2]).all()
    mixed = gpnsf.tl.predict(data, coords, library=["first", "second", "first", "first", "second"])
    np.testing.assert_allclose(mixed.X[[0, 2, 3]], first.X[[0, 2, 3]], rtol=1e-5)
    np.testing.assert_allclose(mixed.X[[1, 4]], second.X[[1, 4]], rtol=1e-5)


@pytest.mark.parametrize("n_dims", [1, 3])
def test_coordinates_may_have_one_or_three_dimensions(simulated, n_dims):
    adata = simulated["rna"].copy()
    adata.obsm["spatial"] = np.random.default_rng(0).uniform(0, 9, (150, n_dims))
    field = "hilbert" if n_dims == 1 else "inducing"
    gpnsf.tl.fit(
        adata,
        n_factors=4,
        field=field,
        n_inducing=25,
        max_steps=6,
        init="random",
        split="assumed",
        progress=False,
    )
    predicted = gpnsf.tl.predict(adata, adata.obsm["spatial"][:7])
    np.testing.assert_allclose(predicted.X, gpnsf.tl.predict(adata)[:7].X, rtol=1e-4)
    with pytest.raises(ValueError, match=f"`coords` with {n_dims} column"):
        gpnsf.tl.predict(adata, np.zeros((3, 2)))


def test_expected_counts_are_rates_of_the_prediction(fitted):
    coords = fitted.obsm["spatial"][:6]
    peak = fitted["atac"].var_names[fitted["atac"].varm["gpnsf_loadings"].sum(1).argmax()]
    names = [peak, "gene_2", "gene_40"]
    predicted = gpnsf.tl.predict(fitted, coords, features=names)
    found = predicted.obsm["expected"]
    assert list(found) == names
    for name in names:
        mod = fitted["rna" if name.startswith("gene") else "atac"]
        j = mod.var_names.get_loc(name)
        rate = predicted.X @ mod.varm["gpnsf_loadings"][j] + mod.var["gpnsf_background"].iloc[j]
        expected = rate if name.startswith("gene") else -np.expm1(-rate)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4)
    assert found[peak].between(0.01, 1).all()
    assert "expected" not in gpnsf.tl.predict(fitted, coords).obsm
    assert list(gpnsf.tl.predict(fitted, features="gene_1").obsm["expected"]) == ["gene_1"]


@pytest.mark.parametrize("twin", ["gene_2", "peak_2"])
def test_a_feature_name_with_two_meanings_is_refused(fitted, twin):
    data = fitted.copy()
    mod = data["rna" if twin == "gene_2" else "atac"]
    mod.var_names = [{twin: "gene_1"}.get(name, name) for name in mod.var_names]
    with pytest.raises(ValueError, match="'gene_1' more than once"):
        gpnsf.tl.predict(data, features="gene_1")


def test_modalities_of_features_can_be_named(fitted):
    data = fitted.copy()
    data["atac"].var_names = ["gene_1", *data["atac"].var_names[1:]]
    found = gpnsf.tl.predict(data, features={"atac": "gene_1", "rna": ["gene_3", "gene_1"]}).obsm[
        "expected"
    ]
    assert list(found) == ["atac:gene_1", "rna:gene_3", "rna:gene_1"]
    before = gpnsf.tl.predict(fitted, features=["peak_1", "gene_3", "gene_1"]).obsm["expected"]
    np.testing.assert_array_equal(found, before)


def test_many_places_are_predicted_in_parts(fits, monkeypatch):
    data = fits("slices")
    whole = gpnsf.tl.predict(data)
    assert whole.obs["slice"].tolist() == data.obs["slice"].tolist()
    monkeypatch.setattr("gpnsf.core.inference.posterior.PLACES", 40)
    np.testing.assert_allclose(gpnsf.tl.predict(data).X, whole.X, rtol=1e-5)


def test_mistakes_are_explained(subtests, fitted):
    for options, error, message in (
        ({"coords": np.zeros((3, 3))}, ValueError, "`coords` with 2 column"),
        ({"coords": np.array([[0.0, np.nan]])}, ValueError, "finite coordinates in `coords`"),
        ({"coords": np.array([["a", "b"]])}, TypeError, "numeric array"),
        ({"features": ["gene_1", "nothing"]}, KeyError, "'nothing'"),
        ({"features": {"atac": "gene_1"}}, KeyError, "'gene_1'"),
        ({"features": {"protein": "gene_1"}}, KeyError, "'protein'"),
        ({"key": "absent"}, KeyError, "absent"),
        ({"coords": np.zeros((2, 2)), "library": "elsewhere"}, KeyError, "elsewhere"),
    ):
        with subtests.test(options=options), pytest.raises(error, match=message):
            gpnsf.tl.predict(fitted, **options)


@pytest.mark.parametrize(
    ("library", "error", "message"),
    [
        (None, ValueError, "`library` to name one of the sections"),
        (["first", "second"], ValueError, "each of the 3 rows"),
    ],
)
def test_slices_have_to_be_named(fits, library, error, message):
    with pytest.raises(error, match=message):
        gpnsf.tl.predict(fits("slices"), np.zeros((3, 2)), library=library)


def test_an_object_without_a_fit_is_refused(simulated):
    with pytest.raises(KeyError, match="fit"):
        gpnsf.tl.predict(simulated)


# ---- through files --------------------------------------------------------------------------------------------------

MUDATA_FILES: dict[str, tuple[Callable[[MuData, Any], None], Callable[[Any], MuData]]] = {
    "h5mu": (lambda data, path: data.write_h5mu(path), mudata.read_h5mu),
    "write": (
        lambda data, path: data.write(path.with_suffix(".h5mu")),
        lambda path: mudata.read(path.with_suffix(".h5mu")),
    ),
    "zarr": (lambda data, path: data.write_zarr(path), mudata.read_zarr),
}
ANNDATA_FILES: dict[str, tuple[Callable[[AnnData, Any], None], Callable[[Any], AnnData]]] = {
    "h5ad": (lambda data, path: data.write_h5ad(path), anndata.read_h5ad),
    "zarr": (lambda data, path: data.write_zarr(path), anndata.read_zarr),
}
zarr_says = pytest.mark.filterwarnings("ignore:Writing zarr v2", "ignore:.*[Zz]arr.*")


def same(found: AnnData, expected: AnnData) -> None:
    np.testing.assert_array_equal(found.X, expected.X)
    np.testing.assert_array_equal(found.layers["std"], expected.layers["std"])
    assert found.var_names.tolist() == expected.var_names.tolist()


@pytest.mark.broad(3)
@zarr_says
@pytest.mark.parametrize(
    ("kind", "case"),
    [
        *(("h5mu", case) for case in CASES),
        ("write", "hybrid"),
        pytest.param("zarr", "hybrid", marks=pytest.mark.slow),
        pytest.param("zarr", "slices", marks=pytest.mark.slow),
    ],
)
def test_predictions_survive_mudata_files(fits, case, kind, tmp_path):
    data = fits(case)
    coords = data.obsm["spatial"][:9] + 3.0
    library = "second" if case == "slices" else None
    before = (
        gpnsf.tl.predict(data),
        gpnsf.tl.predict(data, coords, library=library) if spatial(data).any() else None,
    )
    write, read = MUDATA_FILES[kind]
    write(data, tmp_path / "fit")
    again = read(tmp_path / "fit")
    same(gpnsf.tl.predict(again), before[0])
    if before[1] is not None:
        same(gpnsf.tl.predict(again, coords, library=library), before[1])
    np.testing.assert_array_equal(again.obsm["X_gpnsf"], data.obsm["X_gpnsf"])
    np.testing.assert_array_equal(
        again["atac"].varm["gpnsf_loadings"], data["atac"].varm["gpnsf_loadings"]
    )
    np.testing.assert_array_equal(
        again["rna"].obs["gpnsf_spatial_importance"], data["rna"].obs["gpnsf_spatial_importance"]
    )


@pytest.mark.broad(1)
@zarr_says
@pytest.mark.parametrize("kind", ANNDATA_FILES)
def test_predictions_survive_anndata_files(simulated, kind, tmp_path):
    data = as_anndata(simulated)
    before = gpnsf.tl.predict(data)
    write, read = ANNDATA_FILES[kind]
    write(data, tmp_path / "fit")
    same(gpnsf.tl.predict(read(tmp_path / "fit")), before)


def test_the_record_survives_a_file(fitted, tmp_path):
    fitted.write(tmp_path / "fit.h5mu")
    before, after = fitted.uns["gpnsf"], mudata.read(tmp_path / "fit.h5mu").uns["gpnsf"]
    assert set(after) == set(before)
    assert set(after["params"]) == set(before["params"])
    assert after["params"]["library_key"] is None
    assert after["params"]["kernel"] == "matern32"
    assert list(after["factor_names"]) == before["factor_names"]
    np.testing.assert_array_equal(after["history"]["elbo"], before["history"]["elbo"])
    assert list(after["history"]["phase"]) == before["history"]["phase"]
    assert dict(after["starts"]) == before["starts"]
    np.testing.assert_array_equal(after["kernel"]["lengthscale"], before["kernel"]["lengthscale"])


@pytest.mark.parametrize("field", FIELDS)
def test_a_fit_that_was_read_can_be_fitted_again(fits, field, tmp_path):
    data = fits("hybrid")
    data.write(tmp_path / "fit.h5mu")
    again = mudata.read(tmp_path / "fit.h5mu")
    gpnsf.tl.fit(
        again,
        n_factors=2,
        n_spatial=1,
        field=field,
        n_inducing=20,
        max_steps=3,
        init="random",
        split="assumed",
        progress=False,
    )
    assert gpnsf.tl.predict(again).shape == (150, 2)
    again.write(tmp_path / "again.h5mu")


# ---- in the hands of others -----------------------------------------------------------------------------------------

others_warn = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::PendingDeprecationWarning",
    "ignore::FutureWarning",
    "ignore::UserWarning",
)


@pytest.mark.slow
@others_warn
def test_scanpy_takes_neighbours_from_the_factors(fitted, tmp_path):
    scanpy = pytest.importorskip("scanpy")
    scanpy.pp.neighbors(fitted, use_rep="X_gpnsf", n_neighbors=6)
    assert fitted.obsp["connectivities"].shape == (150, 150)
    scanpy.pp.neighbors(fitted["rna"], use_rep="X_gpnsf_smooth", n_neighbors=6)
    fitted.write(tmp_path / "fit.h5mu")


@pytest.mark.slow
@others_warn
@zarr_says
def test_scanpy_embeds_the_factors_and_files_hold_the_result(fitted, tmp_path):
    scanpy = pytest.importorskip("scanpy")
    scanpy.pp.neighbors(fitted, use_rep="X_gpnsf", n_neighbors=6)
    scanpy.tl.umap(fitted)
    assert np.isfinite(fitted.obsm["X_umap"]).all()
    fitted.write(tmp_path / "fit.h5mu")
    fitted.write_zarr(tmp_path / "fit.zarr")
    np.testing.assert_array_equal(
        mudata.read(tmp_path / "fit.h5mu").obsm["X_umap"], fitted.obsm["X_umap"]
    )
    np.testing.assert_array_equal(
        mudata.read_zarr(tmp_path / "fit.zarr").obsm["X_gpnsf"], fitted.obsm["X_gpnsf"]
    )


@pytest.mark.slow
@others_warn
def test_squidpy_takes_the_factors(fitted):
    squidpy = pytest.importorskip("squidpy")
    factors = gpnsf.tl.factor_adata(fitted)
    squidpy.gr.spatial_neighbors_knn(factors, n_neighs=6)
    squidpy.gr.spatial_autocorr(
        factors, mode="moran", genes=factors.var_names.tolist(), show_progress_bar=False
    )
    moran = factors.uns["moranI"]["I"][factors.var_names]
    assert moran[factors.var["is_spatial"]].max() > max(
        0.3, moran[~factors.var["is_spatial"]].max()
    )
    squidpy.pl.spatial_scatter(
        factors, color=list(factors.var_names[:2]), shape=None, library_id=None
    )


def test_one_slice_keeps_its_column_and_no_coordinates_are_invented(adata):
    adata.obs["slice"] = "only"
    gpnsf.tl.fit(adata, "pnmf", n_factors=2, max_steps=2, library_key="slice", progress=False)
    del adata.obsm["spatial"]
    predicted = gpnsf.tl.predict(adata)
    assert predicted.obs["slice"].tolist() == ["only"] * adata.n_obs
    assert not predicted.obsm
    with pytest.raises(ValueError, match="`coords` together with `library`"):
        gpnsf.tl.predict(adata, library="only")
