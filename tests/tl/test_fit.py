"""`tl.fit` from objects to objects: every slot, every option, whatever the form of the data."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sections
from anndata import AnnData
from mudata import MuData
from objective import at_each_call

import gpnsf
from gpnsf.core.fields.kernels import KERNELS
from gpnsf.core.inference.order import Order
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.likelihoods import LIKELIHOODS
from gpnsf.core.model import factorization as core_model
from gpnsf.core.model.build import FIELDS, restore_field
from gpnsf.core.presets import PRESETS
from gpnsf.core.scores.metrics import match_factors
from gpnsf.io.read import read
from gpnsf.keys import Keys

K = 4
SIGNED = [name for name, preset in PRESETS.items() if not preset.nonnegative]
COUNTED = [name for name in PRESETS if name not in SIGNED]
SPATIAL = {name: round(4 * preset.spatial) for name, preset in PRESETS.items()}
each_model = pytest.mark.parametrize("model", PRESETS)


def fit(data: MuData | AnnData, model: str = "gpnsf", **options: Any) -> Any:
    """A fit of a few steps from one start."""
    short = {
        "n_factors": K,
        "max_steps": 6,
        "init": "random",
        "split": "assumed",
        "progress": False,
    }
    return gpnsf.tl.fit(data, model, **{**short, **options})


def normalised(data: MuData | AnnData) -> MuData | AnnData:
    """Logarithms with mean zero, for the signed models."""
    for mod in data.mod.values() if isinstance(data, MuData) else [data]:
        logs = np.log1p(mod.X.toarray())
        mod.X = (logs - logs.mean(0)).astype(np.float32)
    return data


def modalities(data: MuData | AnnData) -> dict[str, AnnData]:
    return (
        dict(data.mod) if isinstance(data, MuData) else {data.uns["gpnsf"]["modalities"][0]: data}
    )


def check_slots(
    data: MuData | AnnData, *, n_spatial: int, key: str = "gpnsf", signed: bool = False
) -> None:
    """Everything that a fit promises, by kind, shape and range."""
    keys, info = Keys(key), data.uns[key]
    n_factors, found = data.obsm[keys.factors].shape[1], int(info["is_spatial"].sum())
    assert (
        n_factors == K if signed else 1 <= n_factors <= K
    )  # factors that are not in use are dropped
    assert found == n_spatial or (found < n_spatial and n_factors < K)
    n_spatial = found
    mods = dict(data.mod) if isinstance(data, MuData) else {info["modalities"][0]: data}
    for holder in {id(item): item for item in (data, *mods.values())}.values():
        for slot in (keys.factors, keys.smooth, keys.std):
            assert type(holder.obsm[slot]) is np.ndarray
            assert holder.obsm[slot].dtype == np.float32
            assert holder.obsm[slot].shape == (holder.n_obs, n_factors)
            assert np.isfinite(holder.obsm[slot]).all()
        points = holder.obsm[keys.embedding]
        assert points.dtype == np.float32
        assert points.shape == (holder.n_obs, n_spatial if n_spatial > 1 else n_factors)
        assert np.isfinite(points).all()
        importance = holder.obs[keys.importance]
        assert importance.between(0, 1 + 1e-6).all()
        assert (importance == 0).all() or n_spatial > 0
    if not signed:
        np.testing.assert_allclose(data.obsm[keys.factors].mean(0), 1, rtol=1e-4)
        np.testing.assert_allclose(data.obsm[keys.smooth].mean(0), 1, rtol=1e-4)
    names = [f"spatial_{i + 1}" for i in range(n_spatial)]
    names += [f"nonspatial_{i + 1}" for i in range(n_factors - n_spatial)]
    for name, mod in mods.items():
        kind = info["likelihoods"][name]
        loadings, var = mod.varm[keys.loadings], mod.var
        assert loadings.dtype == np.float32
        assert loadings.shape == (mod.n_vars, n_factors)
        assert np.isfinite(loadings).all()
        assert (loadings >= 0).all() or signed
        std = mod.varm[keys.loadings_std]
        assert std.dtype == np.float32
        assert std.shape == (mod.n_vars, n_factors)
        assert np.isfinite(std).all()
        assert (std[loadings.any(axis=1)] > 0).all()
        assert var[keys.background].dtype == np.float32
        assert (var[keys.background] >= 0).all() or signed
        assert var[keys.importance].between(0, 1 + 1e-6).all()
        assert (var[keys.importance] == 0).all() or n_spatial > 0
        assert var[keys.importance_std].between(0, 0.5).all()
        assert set(var[keys.top_factor]) <= {*names, ""}
        assert (keys.dispersion in var) == (kind in ("nb", "gaussian"))
        assert keys.dispersion not in var or (var[keys.dispersion] > 0).all()
    check_record(info, list(mods), names, n_spatial)


def check_record(info: dict[str, Any], mods: list[str], names: list[str], n_spatial: int) -> None:
    """The ``uns`` entry."""
    assert list(info["factor_names"]) == names
    assert info["is_spatial"].dtype == bool
    assert info["is_spatial"].tolist() == [True] * n_spatial + [False] * (len(names) - n_spatial)
    assert list(info["modalities"]) == mods
    assert np.isfinite(info["kernel"]["lengthscale"][:n_spatial]).all()
    assert np.isnan(info["kernel"]["lengthscale"][n_spatial:]).all()
    assert (info["kernel"]["amplitude"] > 0).all()
    history = info["history"]
    assert (
        len(history["elbo"])
        == len(history["seconds"])
        == len(history["phase"])
        == info["params"]["max_steps"]
    )
    assert np.isfinite(history["elbo"]).all()
    assert info["starts"]["best"] in info["starts"]
    assert info["converged"] is False
    assert not [
        text for text in info["repairs"] if "not finite" in text
    ]  # six steps may end below their start
    assert info["spatial_test"] == {}
    assert info["variance_explained"].keys() == set(mods)
    assert all(share.shape == (len(names),) for share in info["variance_explained"].values())
    assert {"gpnsf", "torch", "pyro-ppl"} <= info["versions"].keys()
    assert info["seconds"] > 0
    assert info["peak_memory"] > 1e6
    given = inspect.signature(gpnsf.tl.fit).parameters.keys() - {
        "data",
        "copy",
        "progress",
        "checkpoint",
        "table",
    }
    assert info["params"].keys() == given
    assert info["params"]["n_spatial"] is None or info["params"]["n_spatial"] >= n_spatial
    assert info["n_factors_asked"] == info["params"]["n_factors"] == K


def expected(data: MuData | AnnData, name: str, key: str = "gpnsf") -> np.ndarray:
    """Expected values [N, P] of a modality at its size factors, "total" or none."""
    keys, mod = Keys(key), modalities(data)[name]
    kind, params = data.uns[key]["likelihoods"][name], data.uns[key]["params"]
    counts = mod.X > 0 if kind.startswith("bernoulli") else mod.X
    total = np.asarray(counts.sum(1), dtype=np.float64).ravel()
    sized = params["size_factors"] == "total" and kind != "gaussian"
    size = np.maximum(total / total.mean(), 0.05) if sized else np.ones(mod.n_obs)
    rate = mod.obsm[keys.factors] @ mod.varm[keys.loadings].T + mod.var[keys.background].to_numpy()
    rate = size[:, None] * rate
    return (
        -np.expm1(-rate)
        if kind == "bernoulli"
        else np.minimum(rate, 0.999)
        if kind == "bernoulli_clipped"
        else rate
    )


# ---- every model, likelihood and field ------------------------------------------------------------------------------


@pytest.mark.broad(8)
@each_model
@pytest.mark.parametrize("field", FIELDS)
def test_every_model_fills_every_slot_of_mudata(mdata, model, field):
    data = normalised(mdata) if model in SIGNED else mdata
    assert fit(data, model, field=field, n_inducing=30) is None
    check_slots(data, n_spatial=SPATIAL[model], signed=model in SIGNED)
    default = "gaussian" if model in SIGNED else None
    assert data.uns["gpnsf"]["likelihoods"] == {
        "rna": default or "nb",
        "atac": default or "bernoulli",
    }


@each_model
def test_every_model_fills_every_slot_of_anndata(adata, model):
    data = normalised(adata) if model in SIGNED else adata
    fit(data, model)
    check_slots(data, n_spatial=SPATIAL[model], signed=model in SIGNED)
    assert data.uns["gpnsf"]["modalities"] == ["rna"]


@pytest.mark.broad(6)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("objective", ["closed_form", "monte_carlo"])
def test_every_likelihood_with_every_field(adata, likelihood, field, objective):
    if likelihood == "bernoulli_clipped" and objective == "closed_form":
        pytest.skip("has no closed form")
    fit(adata, likelihoods=likelihood, field=field, objective=objective, n_inducing=30)
    check_slots(adata, n_spatial=2)
    assert expected(adata, "rna").sum() == pytest.approx(_observed(adata, likelihood), rel=0.01)


def _observed(adata: AnnData, likelihood: str) -> float:
    return adata.X.nnz if likelihood.startswith("bernoulli") else float(adata.X.sum())


@pytest.mark.parametrize("model", COUNTED)
def test_expected_totals_are_the_observed_ones(mdata, model):
    fit(mdata, model, max_steps=20)
    for name, mod in mdata.mod.items():
        assert expected(mdata, name).sum() == pytest.approx(mod.X.sum(), rel=0.01)


@pytest.mark.broad(8)
@pytest.mark.parametrize(("name", "value"), [
    *(("kernel", name) for name in KERNELS),
    *(("init", name) for name in ("auto", "smooth", "spot", "random")),
    *(("max_steps", steps) for steps in (1, 2, 3, 7)),
    ("n_spatial", 0), ("n_spatial", 1), ("n_spatial", 4), ("n_samples", 1), ("size_factors", None), ("refine", False),
    ("kl_weight", 0.0), ("kl_weight", 5.0), ("block_size", 31), ("loadings", "point"), ("learning_rate", 0.01), ("tol", 1.0), ("seed", 12345),
    ("modality_weights", {"atac": 0.1}), ("device", "cpu"), ("split", "assumed"), ("modalities", ["rna", "atac"]),
])  # fmt: skip
def test_every_option_is_legal_and_written_down(mdata, name, value):
    fit(mdata, **{name: value})
    check_slots(mdata, n_spatial=value if name == "n_spatial" else 2)
    assert mdata.uns["gpnsf"]["params"][name] == value


@pytest.mark.broad(6)
@pytest.mark.parametrize(("name", "one", "other", "also"), [
    ("kernel", "matern12", "rbf", {}), ("init", "spot", "smooth", {}), ("kl_weight", 1.0, 3.0, {}), ("seed", 0, 1, {}),
    ("learning_rate", 0.2, 0.05, {}), ("objective", "closed_form", "monte_carlo", {}), ("n_spatial", 1, 2, {}),
    ("field", "hilbert", "inducing", {}), ("refine", True, False, {}), ("lengthscale", 200.0, 900.0, {}),
    ("modality_weights", None, {"rna": 0.01}, {}), ("max_steps", 4, 5, {}), ("size_factors", "total", None, {}),
    ("n_inducing", 10, 40, {"field": "inducing"}), ("n_samples", 1, 4, {"objective": "monte_carlo"}),
    ("batch_key", None, "run", {}), ("loadings", "gamma", "point", {}),
])  # fmt: skip
def test_every_option_matters(mdata, name, one, other, also):
    mdata.obs["run"] = ["a", "b"] * 75
    found = []
    for value in (one, other):
        fit(mdata, **{name: value}, **also)
        found.append(mdata.obsm["X_gpnsf"])
    assert found[0].shape != found[1].shape or np.abs(found[0] - found[1]).max() > 1e-3


def test_no_missing_option():
    """Every argument of `fit` is tried in this file."""
    source = inspect.getsource(inspect.getmodule(test_no_missing_option))
    for name in inspect.signature(gpnsf.tl.fit).parameters.keys() - {
        "data",
        "model",
        "checkpoint",  # see test_interruption
        "table",  # see io/test_tables
    }:
        assert f"{name}=" in source or f'("{name}", ' in source, name


@pytest.mark.parametrize("model", ["nsf", "pnmf", "rsf", "fa"])
def test_only_hybrids_leave_a_choice_of_spatial_factors(mdata, model):
    with pytest.raises(
        ValueError,
        match=rf"Expected n_spatial={SPATIAL[model]} for model='{model}'; got n_spatial=2",
    ):
        fit(mdata, model, n_spatial=2)
    fit(normalised(mdata) if model in SIGNED else mdata, model, n_spatial=SPATIAL[model])


def test_without_spatial_factors_importance_is_exactly_zero(mdata):
    fit(mdata, n_spatial=0)
    assert not mdata.uns["gpnsf"]["is_spatial"].any()
    for holder in (mdata, *mdata.mod.values()):
        assert (holder.obs["gpnsf_spatial_importance"] == 0).all()
    for mod in mdata.mod.values():
        assert (mod.var["gpnsf_spatial_importance"] == 0).all()
        assert (mod.var["gpnsf_spatial_importance_std"] == 0).all()


def test_importance_is_the_share_of_spatial_factors(mdata):
    fit(mdata, max_steps=20)
    H = mdata.obsm["X_gpnsf"]
    mass = sum(mod.varm["gpnsf_loadings"].sum(0) for mod in mdata.mod.values())
    signal, spatial = H * mass, mdata.uns["gpnsf"]["is_spatial"]
    assert 0 < spatial.sum() < len(spatial)
    share = signal[:, spatial].sum(1) / signal.sum(1)
    np.testing.assert_allclose(mdata.obs["gpnsf_spatial_importance"], share, rtol=1e-4)
    W = mdata["atac"].varm["gpnsf_loadings"]
    seen = W.sum(1) > 0
    np.testing.assert_allclose(
        mdata["atac"].var["gpnsf_spatial_importance"][seen],
        W[seen][:, spatial].sum(1) / W[seen].sum(1),
        rtol=1e-4,
    )


# ---- forms of the data ----------------------------------------------------------------------------------------------


def clean(mdata: MuData, name: str = "rna") -> dict[str, np.ndarray]:
    """What a fit of the object found."""
    return {"X": mdata.obsm["X_gpnsf"].copy(), "W": mdata[name].varm["gpnsf_loadings"].copy()}


def untidy(X: sp.csr_matrix) -> sp.csr_matrix:
    """The same counts with duplicate, unsorted and zero entries."""
    coo = X.tocoo()
    ones = np.minimum(coo.data, 1)
    data = np.concatenate([ones, coo.data - ones, np.zeros(5, X.dtype)])
    rows, columns = (
        np.concatenate([index, index, np.arange(5)])[::-1] for index in (coo.row, coo.col)
    )
    order = np.argsort(rows, kind="stable")
    indptr = np.concatenate([[0], np.bincount(rows, minlength=X.shape[0]).cumsum()])
    return sp.csr_matrix((data[::-1][order], columns[order], indptr), shape=X.shape)


@pytest.mark.parametrize(
    "convert",
    [sp.csc_matrix, sp.csr_array, lambda X: X.toarray(), lambda X: X.astype(np.int64), lambda X: X.toarray().astype(np.uint16), untidy],
    ids=["csc", "array", "dense", "integers", "dense integers", "untidy"],
)  # fmt: skip
def test_the_form_of_the_counts_does_not_matter_and_stays(adata, convert):
    other = adata.copy()
    other.X = convert(adata.X)
    before = other.X.copy()
    fit(adata)
    fit(other)
    np.testing.assert_array_equal(other.obsm["X_gpnsf"], adata.obsm["X_gpnsf"])
    assert type(other.X) is type(before)
    assert other.X.dtype == before.dtype
    assert (other.X != before).sum() == 0
    if sp.issparse(before):
        np.testing.assert_array_equal(other.X.data, before.data)


@pytest.mark.parametrize(
    "convert",
    [list, pd.DataFrame, lambda xy: xy.astype(np.float32), lambda xy: 1e-4 * xy + 3],
    ids=range(4),
)
def test_the_form_and_unit_of_coordinates_do_not_matter(adata, convert):
    other, xy = adata.copy(), adata.obsm["spatial"]
    moved = convert(xy)
    other.obsm["spatial"] = (
        moved.set_axis(adata.obs_names) if isinstance(moved, pd.DataFrame) else np.asarray(moved)
    )
    fit(adata)
    fit(other)
    np.testing.assert_allclose(other.obsm["X_gpnsf"], adata.obsm["X_gpnsf"], rtol=5e-3)
    factor = np.ptp(np.asarray(other.obsm["spatial"])) / np.ptp(xy)
    np.testing.assert_allclose(
        other.uns["gpnsf"]["kernel"]["lengthscale"],
        factor * adata.uns["gpnsf"]["kernel"]["lengthscale"],
        rtol=1e-3,
    )


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("n_dims", [1, 2, 3])
def test_coordinates_have_one_to_three_dimensions(adata, field, n_dims):
    adata.obsm["spatial"] = np.random.default_rng(0).uniform(0, 500, (adata.n_obs, n_dims))
    if (field, n_dims) == ("hilbert", 3):
        with pytest.raises(ValueError, match="Pass field='inducing'"):
            fit(adata, field=field)
        return
    fit(adata, field=field, n_inducing=25)
    check_slots(adata, n_spatial=2)
    assert (adata.uns["gpnsf"]["kernel"]["lengthscale"][:2] < 1000).all()


def test_coordinates_on_a_line_are_legal(adata):
    adata.obsm["spatial"] = np.column_stack([np.arange(adata.n_obs), np.full(adata.n_obs, 7.0)])
    fit(adata)
    check_slots(adata, n_spatial=2)


def test_a_modality_may_hold_the_coordinates(mdata):
    other = mdata.copy()
    del other.obsm["spatial"]
    other["rna"].obsm["place"] = mdata.obsm["spatial"]
    other["atac"].obsm["place"] = mdata.obsm["spatial"]
    for mod in other.mod.values():
        del mod.obsm["spatial"]
    fit(mdata)
    fit(other, spatial_key="place")
    np.testing.assert_array_equal(other.obsm["X_gpnsf"], mdata.obsm["X_gpnsf"])


def test_models_without_field_need_no_coordinates(adata):
    del adata.obsm["spatial"]
    fit(adata, "pnmf")
    check_slots(adata, n_spatial=0)


def test_empty_spots_and_features_are_handled(mdata):
    for mod in mdata.mod.values():
        X = mod.X.tolil()
        X[:4], X[:, :3] = 0, 0
        mod.X = X.tocsr()
    fit(mdata, max_steps=30)
    check_slots(mdata, n_spatial=2)
    for mod in mdata.mod.values():
        assert expected(mdata, "rna")[:, :3].max() < 0.05
        assert mod.obsm["X_gpnsf"][:4].max() < 50


def test_cells_without_a_modality_contribute_what_they_have(simulated):
    rna, atac = simulated["rna"][:120].copy(), simulated["atac"][:29:-1].copy()
    data = MuData({"rna": rna, "atac": atac})
    places = pd.DataFrame(simulated.obsm["spatial"], index=simulated.obs_names)
    data.obsm["spatial"] = places.loc[data.obs_names].to_numpy()
    fit(data, max_steps=20)
    check_slots(data, n_spatial=2)
    assert data.n_obs == 150
    everywhere = pd.DataFrame(data.obsm["X_gpnsf"], index=data.obs_names)
    for mod in data.mod.values():
        np.testing.assert_array_equal(mod.obsm["X_gpnsf"], everywhere.loc[mod.obs_names])
        total = np.asarray(mod.X.sum(1)).ravel()
        size = np.maximum(total / total.mean(), 0.05)
        rate = size[:, None] * (
            mod.obsm["X_gpnsf"] @ mod.varm["gpnsf_loadings"].T
            + mod.var["gpnsf_background"].to_numpy()
        )
        value = rate if mod is data["rna"] else -np.expm1(-rate)
        assert value.sum() == pytest.approx(mod.X.sum(), rel=0.01)


def test_the_order_of_cells_in_a_modality_does_not_matter(simulated):
    shuffled = MuData({"rna": simulated["rna"].copy(), "atac": simulated["atac"][::-1].copy()})
    shuffled.obsm["spatial"] = simulated.obsm["spatial"]
    straight = simulated.copy()
    fit(straight)
    fit(shuffled)
    np.testing.assert_array_equal(shuffled.obsm["X_gpnsf"], straight.obsm["X_gpnsf"])
    np.testing.assert_array_equal(
        shuffled["atac"].obsm["X_gpnsf"][::-1], straight["atac"].obsm["X_gpnsf"]
    )


@pytest.mark.parametrize("field", FIELDS)
def test_slices_share_loadings_and_have_fields_of_their_own(mdata, field):
    mdata.obs["slice"] = np.where(np.arange(150) < 90, "b", "a")
    mdata.obsm["spatial"][:60] = mdata.obsm["spatial"][90:]  # slices may lie on top of each other
    fit(mdata, library_key="slice", field=field, n_inducing=30, max_steps=20)
    check_slots(mdata, n_spatial=2)
    info = mdata.uns["gpnsf"]
    assert list(info["field"]["libraries"]) == ["a", "b"]
    assert info["field"]["centre"].shape == (2, 2)
    smooth = mdata.obsm["X_gpnsf_smooth"][:, info["is_spatial"]]
    assert np.abs(smooth[:60] - smooth[90:]).max() > 1e-3


# ---- options that choose ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gpnsf", "nsf", "pnmf"])
def test_counts_of_held_out_rows_train_nothing(mdata, model):
    mdata.obs["held"] = np.arange(150) % 5 == 0
    other = mdata.copy()
    X = other["rna"].X.toarray()
    X[mdata.obs["held"]] = X[mdata.obs["held"]][::-1] * 3
    other["rna"].X = sp.csr_matrix(X)
    for data in (mdata, other):
        fit(data, model, holdout_key="held", max_steps=15)
        check_slots(data, n_spatial=SPATIAL[model])
    np.testing.assert_array_equal(mdata.obsm["X_gpnsf"], other.obsm["X_gpnsf"])
    np.testing.assert_array_equal(
        mdata["rna"].varm["gpnsf_loadings"], other["rna"].varm["gpnsf_loadings"]
    )


@pytest.mark.parametrize("refine", [True, False])
def test_held_out_rows_get_the_prediction_of_the_field(mdata, refine):
    held = np.arange(150) % 5 == 0
    mdata.obs["held"] = held
    fit(mdata, "nsf", holdout_key="held", max_steps=20, refine=refine)
    ratio = mdata.obsm["X_gpnsf"][held] / mdata.obsm["X_gpnsf_smooth"][held]
    np.testing.assert_allclose(
        ratio, np.broadcast_to(ratio[0], ratio.shape), rtol=3e-2
    )  # each is scaled to mean one


def test_features_are_chosen_never_removed(mdata):
    rng = np.random.default_rng(0)
    for mod in mdata.mod.values():
        mod.var["chosen"] = rng.random(mod.n_vars) < 0.6
    small = mdata.copy()
    for name in ("rna", "atac"):
        small.mod[name] = small[name][:, small[name].var["chosen"]].copy()
    small.update()
    fit(mdata, use_var="chosen")
    fit(small)
    np.testing.assert_allclose(mdata.obsm["X_gpnsf"], small.obsm["X_gpnsf"], rtol=1e-4)
    for name, mod in mdata.mod.items():
        left = ~mod.var["chosen"].to_numpy()
        assert (mod.varm["gpnsf_loadings"][left] == 0).all()
        assert (mod.var["gpnsf_background"][left] == 0).all()
        assert (mod.var["gpnsf_top_factor"][left] == "").all()
        np.testing.assert_allclose(
            mod.varm["gpnsf_loadings"][~left], small[name].varm["gpnsf_loadings"], rtol=1e-4
        )


@pytest.mark.parametrize("layers", ["counts", {"rna": "counts", "atac": "counts"}])
def test_counts_may_be_in_a_layer(mdata, layers):
    other = mdata.copy()
    for mod in other.mod.values():
        mod.layers["counts"], mod.X = mod.X, np.full(mod.shape, np.nan)
    fit(mdata)
    fit(other, layers=layers)
    np.testing.assert_array_equal(other.obsm["X_gpnsf"], mdata.obsm["X_gpnsf"])


def test_one_modality_of_several_may_be_fitted(mdata, adata):
    fit(mdata, modalities=["rna"])
    fit(adata)
    np.testing.assert_array_equal(mdata.obsm["X_gpnsf"], adata.obsm["X_gpnsf"])
    assert "gpnsf_loadings" not in mdata["atac"].varm
    assert "X_gpnsf" not in mdata["atac"].obsm


def test_size_factors_may_be_given(mdata):
    total = np.asarray(mdata["rna"].X.sum(1), dtype=np.float64).ravel()
    mdata.obs["depth"] = np.maximum(total, 0.05 * total.mean())
    mdata.obs["scaled"] = 17 * mdata.obs["depth"]
    found = []
    for size_factors in ("total", "depth", "scaled"):
        fit(mdata, modalities=["rna"], size_factors=size_factors)
        found.append(mdata.obsm["X_gpnsf"])
    np.testing.assert_allclose(found[1], found[0], rtol=0.02)
    np.testing.assert_allclose(found[2], found[1], rtol=1e-3)


def test_depth_is_signal_without_size_factors(adata):
    deep = np.arange(150) < 75
    adata.X = sp.diags(np.where(deep, 5, 1).astype(np.float32)) @ adata.X
    adata.X = sp.csr_matrix(adata.X)
    ratios = []
    for size_factors in ("total", None):
        fit(adata, "pnmf", n_factors=4, size_factors=size_factors, max_steps=60, init="spot")
        signal = adata.obsm["X_gpnsf"] @ adata.varm["gpnsf_loadings"].sum(0)
        ratios.append(signal[deep].mean() / signal[~deep].mean())
    total = np.asarray(adata.X.sum(1)).ravel()
    assert ratios[0] == pytest.approx(1, abs=0.3)
    assert ratios[1] == pytest.approx(total[deep].mean() / total[~deep].mean(), rel=0.2)


def test_a_heavy_modality_decides(mdata):
    """With its weight nearly zero, the other modality hardly changes the factors of one alone."""
    alone, together = mdata.copy(), mdata.copy()
    fit(alone, modalities=["rna"], max_steps=40, init="spot")
    fit(together, modality_weights={"atac": 1e-6}, max_steps=40, init="spot")
    assert match_factors(alone.obsm["X_gpnsf"], together.obsm["X_gpnsf"])[1].min() > 0.99


@pytest.mark.parametrize("share", [0.05, 0.3, 12.0])
@pytest.mark.parametrize("field", FIELDS)
def test_a_given_lengthscale_is_kept_in_the_unit_of_the_coordinates(mdata, share, field):
    lengthscale = share * np.ptp(mdata.obsm["spatial"], axis=0).max()
    fit(mdata, lengthscale=lengthscale, field=field, n_inducing=25)
    info = mdata.uns["gpnsf"]
    assert info["is_spatial"].any()
    np.testing.assert_allclose(
        info["kernel"]["lengthscale"][info["is_spatial"]], lengthscale, rtol=1e-4
    )


def test_learnt_lengthscales_tell_fine_from_coarse_patterns():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, (400, 2))
    coarse, fine = np.exp(1.5 * np.sin(xy[:, 0] / 200)), np.exp(1.5 * np.sin(xy[:, 1] / 40))
    counts = rng.poisson(np.column_stack([coarse, fine]).repeat(8, axis=1) + 0.1)
    adata = AnnData(sp.csr_matrix(counts.astype(np.float32)), obsm={"spatial": xy})
    gpnsf.tl.fit(
        adata,
        "nsf",
        n_factors=2,
        likelihoods="poisson",
        size_factors=None,
        max_steps=80,
        init="spot",
        split="assumed",
        progress=False,
    )
    order, correlation = match_factors(np.column_stack([coarse, fine]), adata.obsm["X_gpnsf"])
    lengthscale = adata.uns["gpnsf"]["kernel"]["lengthscale"][order]
    assert correlation.min() > 0.9
    assert lengthscale[0] > 2 * lengthscale[1]


def test_the_local_stage_adds_what_spots_know(mdata):
    rough, smooth = mdata.copy(), mdata.copy()
    fit(rough, "nsf", max_steps=40, init="spot")
    fit(smooth, "nsf", max_steps=40, init="spot", refine=False)
    np.testing.assert_allclose(smooth.obsm["X_gpnsf"], smooth.obsm["X_gpnsf_smooth"], rtol=1e-4)
    assert np.abs(rough.obsm["X_gpnsf"] - rough.obsm["X_gpnsf_smooth"]).mean() > 0.01


def test_blocks_give_the_same_fit(mdata, monkeypatch):
    other, asked = mdata.copy(), []
    make = core_model.Factorization.blocks

    def blocks(
        model: Any, dataset: Any, block_size: int | None = None, **options: Any
    ) -> list[core_model.Block]:
        asked.append(block_size)
        return make(model, dataset, block_size, **options)

    fit(mdata, max_steps=10)
    monkeypatch.setattr(core_model.Factorization, "blocks", blocks)
    fit(other, max_steps=10, block_size=40)
    assert set(asked) == {40}
    np.testing.assert_allclose(other.obsm["X_gpnsf"], mdata.obsm["X_gpnsf"], rtol=0.02)


# ---- manners --------------------------------------------------------------------------------------------------------


def test_a_copy_leaves_the_original_alone(mdata):
    before = mdata.copy()
    result = fit(mdata, copy=True)
    check_slots(result, n_spatial=2)
    assert mdata.uns.keys() == before.uns.keys()
    assert mdata.obsm.keys() == before.obsm.keys()
    assert list(mdata["rna"].var) == list(before["rna"].var)
    fit(mdata)
    np.testing.assert_array_equal(result.obsm["X_gpnsf"], mdata.obsm["X_gpnsf"])


def test_fits_under_different_keys_stand_side_by_side(mdata):
    fit(mdata)
    first = clean(mdata)
    fit(mdata, key_added="other", seed=1)
    check_slots(mdata, n_spatial=2)
    check_slots(mdata, n_spatial=2, key="other")
    np.testing.assert_array_equal(mdata.obsm["X_gpnsf"], first["X"])
    assert not np.array_equal(mdata.obsm["X_other"], first["X"])


def test_a_new_fit_replaces_the_old_one(mdata):
    fit(mdata, key_added="other", n_spatial=1)
    fit(mdata, key_added="other", likelihoods={"rna": "poisson"}, modalities=["rna"])
    assert mdata.uns["other"]["modalities"] == ["rna"]
    assert "other_dispersion" not in mdata["rna"].var
    assert "other_loadings" not in mdata["atac"].varm
    assert "X_other" not in mdata["atac"].obsm
    assert mdata.uns["other"]["is_spatial"].tolist() == [True, True, False, False]


def test_counts_coordinates_and_names_are_not_touched(mdata):
    before = mdata.copy()
    fit(mdata)
    np.testing.assert_array_equal(mdata.obsm["spatial"], before.obsm["spatial"])
    assert mdata.obs_names.equals(before.obs_names)
    for name, mod in mdata.mod.items():
        assert (mod.X != before[name].X).nnz == 0
        assert mod.var_names.equals(before[name].var_names)
        assert set(before[name].var) <= set(mod.var)


@pytest.mark.broad(2)
@pytest.mark.parametrize(
    "options",
    [{}, {"objective": "monte_carlo"}, {"field": "inducing", "n_inducing": 20}, {"init": "auto"}],
    ids=str,
)
def test_the_same_seed_gives_the_same_bits(mdata, options):
    other = mdata.copy()
    for data in (mdata, other):
        fit(data, seed=7, max_steps=10, **options)
    for slot in ("X_gpnsf", "X_gpnsf_smooth", "X_gpnsf_std"):
        np.testing.assert_array_equal(mdata.obsm[slot], other.obsm[slot])
    for name in ("rna", "atac"):
        np.testing.assert_array_equal(
            mdata[name].varm["gpnsf_loadings"], other[name].varm["gpnsf_loadings"]
        )
    np.testing.assert_array_equal(
        mdata.uns["gpnsf"]["history"]["elbo"], other.uns["gpnsf"]["history"]["elbo"]
    )


def test_progress_is_shown_on_request(mdata, capsys):
    fit(mdata, progress=True)
    assert "trying starts" in capsys.readouterr().err
    with gpnsf.settings.override(progress=False):
        fit(mdata, progress=None)
    assert "trying starts" not in capsys.readouterr().err


@pytest.fixture
def log(caplog):
    """What the package logs, whether or not its log is passed on to the root."""
    logger = logging.getLogger("gpnsf")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize(
    ("model", "options", "name"),
    [
        ("gpnsf", {"n_inducing": 20}, "n_inducing"),
        ("pnmf", {"lengthscale": 2.0}, "lengthscale"),
        ("fa", {"init": "random", "likelihoods": "gaussian"}, "init"),
    ],
)
def test_arguments_without_effect_are_named(model, options, name, mdata, log):
    fit(normalised(mdata) if model == "fa" else mdata, model, **options)
    assert f"{name}={options[name]!r} has no effect" in log.text


@pytest.mark.slow
def test_a_hybrid_without_nonspatial_factors_is_warned_about(mdata, log):
    fit(mdata, n_spatial=4)
    assert "All 4 factors are spatial because they were asked to be" in log.text
    log.clear()
    fit(mdata, "nsf")  # the model says so
    assert "because they were asked to be" not in log.text
    log.clear()
    fit(mdata, "gpnsf")
    fit(normalised(mdata), "rsf")
    assert "factors are spatial" not in log.text


def test_a_fit_that_was_cut_short_says_so(mdata, log):
    fit(mdata)
    assert "stopped at max_steps = 6" in log.text
    assert mdata.uns["gpnsf"]["converged"] is False
    assert "Fitted rna 150 x 40, atac 150 x 60 in 6 steps" in log.text


def test_a_fit_that_converged_says_so(mdata, log):
    fit(mdata, tol=1.0, max_steps=200, init="spot")
    assert mdata.uns["gpnsf"]["converged"] is True
    phases = list(mdata.uns["gpnsf"]["history"]["phase"])
    assert phases.count("pick") + phases.count("main") == Schedule().min_steps
    assert "stopped at" not in log.text


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
def test_a_repair_is_logged_and_written_down(mdata, log, monkeypatch):
    at_each_call(monkeypatch, lambda call: np.nan if call == 4 else None)
    fit(mdata, max_steps=12)
    (repair,) = mdata.uns["gpnsf"]["repairs"]
    assert repair.startswith("step 4: objective not finite, rolled back")
    assert repair in log.text
    assert np.isfinite(mdata.obsm["X_gpnsf"]).all()


def test_the_start_is_one_of_those_tried(mdata):
    fit(mdata, init="auto")
    starts = mdata.uns["gpnsf"]["starts"]
    best = starts.pop("best")
    assert set(starts) == {"smooth_0", "smooth_0.1", "spot"}
    assert starts[best] == max(starts.values())


@pytest.mark.parametrize("field", FIELDS)
def test_the_fitted_field_describes_the_spots(mdata, field):
    """What is written is what the core makes of the data that were read."""
    fit(mdata, field=field, n_inducing=30, refine=False)
    dataset, layout = read(mdata)
    state = mdata.uns["gpnsf"]["field"]
    assert state["scale"] == layout.scale
    process = restore_field(state["process"])
    m, v = process.marginals(process.locate(dataset.coords, dataset.library))
    field, mass = (m + 0.5 * v.clamp_max(0.25)).exp().numpy(), state["mass"]
    # over what all factors of a spot have together, for nonspatial ones as they are in other spots
    together = (field @ mass[:2])[:, None] + state["others"] @ mass[2:]
    smooth = field[:, state["order"]] * (1 / together).mean(1, keepdims=True)
    np.testing.assert_allclose(
        smooth / smooth.mean(0), mdata.obsm["X_gpnsf_smooth"][:, :2], rtol=1e-3
    )


# ---- recovery of a simulated truth ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "bar", "likelihood", "seed"),
    [
        ("ggblocks", 0.98, "poisson", 0),
        ("ggblocks", 0.98, "nb", 1),
        ("quilt", 0.94, "poisson", 1),
        ("quilt", 0.94, "nb", 0),
    ],
)
def test_simulated_patterns_are_recovered(recipe, bar, likelihood, seed):
    mdata = getattr(gpnsf.datasets, recipe)(seed=seed)
    rna = mdata["rna"].copy()
    gpnsf.tl.fit(
        rna,
        n_factors=7,
        n_spatial=4,
        likelihoods=likelihood,
        size_factors=None,
        seed=seed,
        progress=False,
    )
    found = match_factors(rna.obsm["true_factors"][:, :4], rna.obsm["X_gpnsf"][:, :4])[1]
    assert found.mean() >= bar
    assert rna.uns["gpnsf"]["converged"]


@pytest.mark.slow
def test_two_modalities_are_better_than_one_where_counts_are_few():
    mdata = gpnsf.datasets.ggblocks(depth=0.003, seed=0)
    options = {
        "n_factors": 7,
        "n_spatial": 4,
        "size_factors": None,
        "split": "assumed",
        "progress": False,
    }
    found = []
    for modalities in (["rna"], ["rna", "atac"]):
        gpnsf.tl.fit(mdata, modalities=modalities, **options)
        truth = mdata.obsm["true_factors"][:, :4]
        found.append(match_factors(truth, mdata.obsm["X_gpnsf_smooth"][:, :4])[1].mean())
    assert found[1] > found[0]
    assert found[1] > 0.8


SPLIT = {
    "n_factors": 5,
    "n_spatial": 3,
    "likelihoods": "poisson",
    "size_factors": None,
    "init": "spot",
    "progress": False,
}


@pytest.fixture(scope="module")
def patterned() -> AnnData:
    return gpnsf.datasets.ggblocks(n_side=18, n_genes=60, n_peaks=10, seed=2)["rna"]


@pytest.mark.slow
def test_a_fit_whose_factors_all_pass_is_the_fit_that_was_assumed(patterned):
    true = SPLIT | {
        "n_factors": 7,
        "n_spatial": 4,
    }  # with fewer, fields mix what is spatial with what is not
    tested = gpnsf.tl.fit(patterned, **true, copy=True)
    assumed = gpnsf.tl.fit(patterned, **true, split="assumed", copy=True)
    np.testing.assert_array_equal(tested.obsm["X_gpnsf"], assumed.obsm["X_gpnsf"])
    record = tested.uns["gpnsf"]["spatial_test"]
    assert record["z"].shape == record["p"].shape == (7,)
    assert record["z"][:4].min() > 3
    assert assumed.uns["gpnsf"]["spatial_test"] == {}


@pytest.mark.slow
def test_without_spatial_order_nothing_is_called_spatial(patterned):
    shuffled = patterned.copy()
    shuffled.obsm["spatial"] = np.random.default_rng(0).permutation(patterned.obsm["spatial"])
    gpnsf.tl.fit(shuffled, **SPLIT)
    record = shuffled.uns["gpnsf"]
    assert not record["is_spatial"].any()
    assert record["factor_names"] == [f"nonspatial_{k}" for k in range(1, 6)]
    assert record["starts"]["best"] != "tested"
    for scores in (
        shuffled.obs["gpnsf_spatial_importance"],
        shuffled.var["gpnsf_spatial_importance"],
    ):
        assert (scores == 0).all()
    np.testing.assert_allclose(shuffled.obsm["X_gpnsf"].mean(0), 1, rtol=1e-3)


@pytest.mark.slow
def test_what_fails_goes_behind_what_passes(patterned):
    mixed = gpnsf.tl.fit(patterned, **{**SPLIT, "n_factors": 7, "n_spatial": 7}, copy=True)
    record = mixed.uns["gpnsf"]
    n_spatial = record["is_spatial"].sum()
    assert 3 <= n_spatial < 7
    assert record["is_spatial"].tolist() == [True] * n_spatial + [False] * (7 - n_spatial)
    assert (
        record["spatial_test"]["z"][:n_spatial].min()
        > 3
        >= record["spatial_test"]["z"][n_spatial:].max()
    )


@pytest.mark.slow
@pytest.mark.parametrize("n_noise", [2, 7])
def test_factors_that_held_out_counts_do_not_show_are_dropped(patterned, monkeypatch, n_noise):
    """Nonspatial ones; where nothing is left, the largest stays."""
    noise = np.arange(7) >= 7 - n_noise
    monkeypatch.setattr(Order, "noise", noise)
    monkeypatch.setattr("gpnsf.core.inference.run.passed", lambda z: np.full(len(z), n_noise < 7))
    monkeypatch.setattr("gpnsf.core.inference.run.TRAINED", 2.0)
    options = {**SPLIT, "n_factors": 7, "n_spatial": 3, "max_steps": 60}
    fitted = gpnsf.tl.fit(patterned, **options, copy=True)
    record = fitted.uns["gpnsf"]
    assert (
        fitted.obsm["X_gpnsf"].shape[1] == len(record["spatial_test"]["z"]) == max(7 - n_noise, 1)
    )
    assert record["n_factors_asked"] == 7


@pytest.mark.slow
def test_places_for_spatial_factors_go_to_those_with_most_order():
    """Four spatial patterns and three factors too many, of which one may hold a place at first."""
    data = gpnsf.datasets.quilt(n_side=36, n_peaks=36, nonspatial=False, seed=13)["rna"]
    options = {"n_factors": 7, "n_spatial": 4, "size_factors": None, "progress": False}
    gpnsf.tl.fit(data, "nsfh", **options)
    spatial = data.obsm["X_gpnsf"][:, data.uns["gpnsf"]["is_spatial"]]
    assert match_factors(data.obsm["true_factors"][:, :4], spatial)[1].min() > 0.95


@pytest.mark.slow
def test_a_rest_does_not_take_the_place_of_the_pattern_that_it_is_of(data_file):
    """The section simulated by the authors of NSF: of 4 + 3 factors, all four patterns are spatial."""
    adata = anndata.read_h5ad(data_file("nsf_sim_S1.h5ad"))
    options = {"model": "nsfh", "n_factors": 7, "n_spatial": 4, "size_factors": None, "seed": 102}
    gpnsf.tl.fit(adata, likelihoods="nb", progress=False, **options)
    spatial = adata.obsm["X_gpnsf"][:, adata.uns["gpnsf"]["is_spatial"]]
    assert match_factors(adata.obsm["true_factors"][:, :4], spatial)[1].min() > 0.98


def test_one_factor_has_a_field():
    adata = sections.section()
    gpnsf.tl.fit(adata, n_factors=1, max_steps=2, split="assumed", progress=False)
    assert adata.uns["gpnsf"]["is_spatial"].tolist() == [True]


@pytest.mark.parametrize("model", ["rsf", "fa"])
def test_a_single_feature_has_a_factor(model):
    adata = sections.section()[:, :1].copy()
    gpnsf.tl.fit(adata, model, n_factors=1, likelihoods="gaussian", max_steps=2, progress=False)
    assert np.isfinite(adata.obsm["X_gpnsf"]).all()


def test_size_factors_far_from_most_are_refused():
    adata = sections.section()
    for value in (1e-8, 1e30):
        adata.obs["size"] = np.where(np.arange(adata.n_obs) == 3, value, 1.0)
        with pytest.raises(ValueError, match=r"within 1e\+06 times their median; got 1 of"):
            gpnsf.tl.fit(adata, n_factors=2, size_factors="size", progress=False)


def test_what_was_made_from_an_earlier_fit_is_named(caplog):
    adata = sections.section()
    quick = {"n_factors": 2, "max_steps": 2, "split": "assumed", "progress": False}
    gpnsf.tl.fit(adata, **quick)
    gpnsf.tl.domains(adata, n_domains=2)
    gpnsf.tl.denoise(adata)
    for key, told in (("other", 0), ("gpnsf", 1)):
        caplog.clear()
        gpnsf.tl.fit(adata, key_added=key, **quick)
        texts = [text for text in caplog.messages if "takes the place of" in text]
        assert len(texts) == told
    assert "obs['gpnsf_domain'] and layers['gpnsf_denoised']" in texts[0]


def test_batches_of_single_observations_are_told(caplog):
    adata = sections.section()
    adata.obs["cell"] = adata.obs_names
    quick = {"n_factors": 2, "max_steps": 2, "split": "assumed", "progress": False}
    gpnsf.tl.fit(adata, batch_key="cell", **quick)
    limit = 5 * adata.n_obs**0.5
    assert any("names" in text and "batches" in text for text in caplog.messages) is (
        adata.n_obs > limit
    )
