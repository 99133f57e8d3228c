"""Projections: new observations at the loadings of a fit."""

from __future__ import annotations

import logging

import mudata
import numpy as np
import pytest
import scipy.sparse as sp
import sections
from anndata import AnnData
from mudata import MuData

import gpnsf
from gpnsf.core.scores.metrics import match_factors

SHORT = {"max_steps": 60, "progress": False}


@pytest.fixture(scope="module")
def whole() -> MuData:
    """A simulated section, of which every fourth spot is new."""
    return gpnsf.datasets.ggblocks(n_side=18, n_genes=60, n_peaks=40, seed=1)


@pytest.fixture(scope="module")
def reference(whole) -> MuData:
    """Three quarters of it, fitted."""
    data = whole[np.arange(whole.n_obs) % 4 > 0].copy()
    gpnsf.tl.fit(data, n_factors=7, n_spatial=4, split="assumed", seed=0, **SHORT)
    return data


@pytest.fixture
def new(whole) -> MuData:
    """The other quarter."""
    return whole[np.arange(whole.n_obs) % 4 == 0].copy()


@pytest.fixture(scope="module")
def projected(whole, reference) -> MuData:
    """The other quarter, projected."""
    new = whole[np.arange(whole.n_obs) % 4 == 0].copy()
    return gpnsf.tl.project(new, reference, copy=True, **SHORT)


def test_factors_of_new_spots_are_those_of_the_truth(projected, reference):
    is_spatial = projected.uns["gpnsf"]["is_spatial"]
    found, truth = projected.obsm["X_gpnsf"], projected.obsm["true_factors"]
    assert match_factors(truth[:, :4], found[:, is_spatial])[1].min() > 0.9
    names = projected.uns["gpnsf"]["factor_names"]
    assert list(names) == list(reference.uns["gpnsf"]["factor_names"])


@pytest.mark.parametrize("open_peaks", [0.0, 0.3])
def test_factors_are_relative_to_totals_where_those_of_the_reference_are(whole, new, open_peaks):
    """New spots have few open peaks, those of the reference few or too many for totals."""
    data = whole[np.arange(whole.n_obs) % 4 > 0].copy()
    more = np.random.default_rng(0).random(data["atac"].shape) < open_peaks
    data["atac"].X = np.maximum(data["atac"].X.toarray(), more).astype(np.float32)
    gpnsf.tl.fit(data, n_factors=4, n_spatial=2, split="assumed", seed=0, **SHORT)
    found = gpnsf.tl.project(new, data, copy=True, **SHORT)
    for one in (data, found):
        assert ("mass" in one.uns["gpnsf"]["field"]) == (open_peaks == 0)


def test_loadings_are_those_of_the_reference_by_name(whole, reference):
    new = whole[::4].copy()
    rna = new["rna"][:, np.r_[59:9:-1]].copy()  # other order, ten genes fewer
    extra = AnnData(sp.csr_matrix(np.ones((new.n_obs, 1), np.float32)), obs=rna.obs[[]])
    extra.var_names = ["unheard_of"]
    rna = AnnData(sp.hstack([rna.X, extra.X]).tocsr(), obs=rna.obs, obsm=dict(rna.obsm),
                  var=rna.var.index.append(extra.var_names).to_frame())  # fmt: skip
    gpnsf.tl.project(rna, reference, **SHORT)
    old = reference["rna"]
    known = old.to_df().columns.get_indexer(rna.var_names)
    assert known[-1] == -1
    for slot in ("gpnsf_loadings", "gpnsf_loadings_std"):
        np.testing.assert_array_equal(rna.varm[slot][:-1], old.varm[slot][known[:-1]])
    for column in ("gpnsf_background", "gpnsf_dispersion", "gpnsf_top_factor"):
        assert rna.var[column].iloc[:-1].tolist() == old.var[column].iloc[known[:-1]].tolist()
    assert not rna.varm["gpnsf_loadings"][-1].any()
    record = rna.uns["gpnsf"]["projection"]
    assert (record["n_features"]["rna"], record["n_obs"]) == (50, reference.n_obs)


def test_missing_features_are_told_with_number_and_names(new, reference, caplog):
    rna = new["rna"][:, 5:].copy()
    with caplog.at_level(logging.WARNING, logger="gpnsf"):
        gpnsf.tl.project(rna, reference, **{**SHORT, "max_steps": 2})
    told = [r.getMessage() for r in caplog.records if "missing in the new data" in r.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("5 of the 60 features of modality 'rna'")
    assert repr(reference["rna"].var_names[0]) in told[0]


def test_values_do_not_depend_on_depth_or_place(new, reference, projected):
    new["rna"].X = 2 * new["rna"].X
    new.obsm["spatial"] = new.obsm["spatial"] + 1e5
    gpnsf.tl.project(new, reference, **SHORT)
    ratio = new.obsm["X_gpnsf"] / projected.obsm["X_gpnsf"]
    assert 0.8 < np.median(ratio) < 1.25
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(new.obsm["X_gpnsf"].T, projected.obsm["X_gpnsf"].T,
                                                 strict=True)]  # fmt: skip
    assert min(r) > 0.95
    sizes = [d.uns["gpnsf"]["projection"]["mean_size"]["rna"] for d in (new, projected)]
    assert sizes[0] == pytest.approx(2 * sizes[1], rel=1e-5)


def test_a_part_that_is_rich_in_a_factor_keeps_its_values(whole, reference):
    rich = np.argsort(-whole.obsm["true_factors"][:, 0])[:60]
    new = gpnsf.tl.project(whole[np.sort(rich)].copy(), reference, copy=True, **SHORT)
    column = match_factors(whole.obsm["true_factors"], _both(whole, reference))[0][0]
    assert new.obsm["X_gpnsf"][:, column].mean() > 1.5
    assert new.obsm["X_gpnsf"].mean(0)[column] == new.obsm["X_gpnsf"].mean(0).max()


def _both(whole: MuData, reference: MuData) -> np.ndarray:
    """Factors [N, K] of the whole section, nan where the reference has none."""
    factors = np.zeros((whole.n_obs, reference.obsm["X_gpnsf"].shape[1]))
    factors[np.arange(whole.n_obs) % 4 > 0] = reference.obsm["X_gpnsf"]
    return factors


def test_length_scales_keep_their_length_in_a_smaller_section(whole, reference):
    corner = (whole.obsm["spatial"] < np.median(whole.obsm["spatial"], axis=0)).all(axis=1)
    new = gpnsf.tl.project(whole[corner].copy(), reference, copy=True, **SHORT)
    old, found = (data.uns["gpnsf"] for data in (reference, new))
    np.testing.assert_allclose(found["kernel"]["lengthscale"], old["kernel"]["lengthscale"])
    np.testing.assert_allclose(found["kernel"]["amplitude"], old["kernel"]["amplitude"], rtol=1e-5)
    assert found["field"]["scale"] < 0.6 * old["field"]["scale"]
    process = [np.asarray(each["field"]["process"]["log_lengthscale"]) for each in (old, found)]
    order = np.asarray(old["field"]["order"])
    ratio = old["field"]["scale"] / found["field"]["scale"]
    expected = np.minimum(process[0][order] + np.log(ratio), np.log(3.0))
    np.testing.assert_allclose(process[1], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("part", "factor", "told"), [(4, 0.02, True), (4, 1.0, False), (12, 1.0, False)]
)
def test_other_units_are_told_and_fewer_spots_are_none(
    whole, reference, part, factor, told, caplog
):
    new = whole[::part].copy()
    new.obsm["spatial"] = factor * new.obsm["spatial"]
    with caplog.at_level(logging.WARNING, logger="gpnsf"):
        gpnsf.tl.project(new, reference, **{**SHORT, "max_steps": 2})
    found = [r for r in caplog.records if "different units" in r.getMessage()]
    assert len(found) == told


def test_whatever_reads_a_fit_reads_a_projection(projected, tmp_path):
    projected.write(tmp_path / "projected.h5mu")
    data = mudata.read_h5mu(tmp_path / "projected.h5mu")
    n_obs, K = data.obsm["X_gpnsf"].shape
    assert gpnsf.tl.predict(data, data.obsm["spatial"][:5]).shape == (5, K)
    assert gpnsf.tl.factor_adata(data).shape == (n_obs, K)
    assert set(gpnsf.tl.rank_features(data).factor) == set(data.uns["gpnsf"]["factor_names"])
    gpnsf.tl.domains(data, n_domains=3)
    gpnsf.tl.denoise(data, depth="own", shrinkage=0.0)
    table = gpnsf.tl.evaluate(data)
    assert table.explained[0] > 0.7
    assert table.explained[1] > 0
    expected = np.asarray(data["rna"].layers["gpnsf_denoised"]).sum()
    assert expected == pytest.approx(data["rna"].X.sum(), rel=0.05)


def test_a_projection_can_be_projected_upon(projected, new):
    again = gpnsf.tl.project(new, projected, copy=True, **SHORT)
    one, two = (data.obsm["X_gpnsf"] for data in (again, projected))
    assert min(np.corrcoef(one[:, k], two[:, k])[0, 1] for k in range(one.shape[1])) > 0.98
    np.testing.assert_allclose(one.mean(0), two.mean(0), rtol=0.15)


def renamed(data: MuData) -> None:
    data["rna"].var_names = [f"other{j}" for j in range(60)]
    data["atac"].var_names = [f"place{j}" for j in range(40)]


def no_places(data: MuData) -> None:
    for holder in (data, *data.mod.values()):
        holder.obsm.pop("spatial", None)


def three(data: MuData) -> None:
    data.obsm["spatial"] = np.column_stack([data.obsm["spatial"], np.zeros(data.n_obs)])


def twice(data: MuData) -> None:
    names = data["rna"].var_names.tolist()
    data["rna"].var_names = [names[1], *names[1:]]


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (renamed, {}, ValueError, "in common with the fit.*'other0'.*Rename the features"),
        (no_places, {}, KeyError, "spatial_key"),
        (three, {}, ValueError, r"coordinates with 2 column\(s\), as in the reference; got 3"),
        (twice, {}, ValueError, "unique names of features .* in the new data"),
        (None, {"key": "absent"}, KeyError, "a fit in uns"),
        (None, {"modalities": ["protein"]}, KeyError, "modalities"),
        (None, {"size_factors": "depth"}, KeyError, "size_factors"),
        (None, {"max_steps": 0}, ValueError, "max_steps"),
    ],
)
def test_what_cannot_be_projected_is_refused(new, reference, change, options, error, message):
    if change is not None:
        change(new)
    before = sections.digest(new)
    with pytest.raises(error, match=f"(?s){message}"):
        gpnsf.tl.project(new, reference, **{**SHORT, **options})
    assert sections.digest(new) == before


def test_the_reference_is_not_changed(new, reference):
    before = sections.digest(reference)
    gpnsf.tl.project(new, reference, **{**SHORT, "max_steps": 2})
    assert sections.digest(reference) == before


@pytest.mark.parametrize("model", ["pnmf", "fa", "rsf"])
def test_other_models_are_projected_too(whole, model):
    data = whole["rna"].copy()
    data.obsm["spatial"] = whole.obsm["spatial"].copy()
    if model != "pnmf":
        data.X = sp.csr_matrix(np.log1p(data.X.toarray()))
    gpnsf.tl.fit(data, model=model, n_factors=3, split="assumed", **SHORT)
    new = data[::2].copy()
    if model != "rsf":
        del new.obsm["spatial"]
    gpnsf.tl.project(new, data, **SHORT)
    one, two = new.obsm["X_gpnsf"], data.obsm["X_gpnsf"][::2]
    assert min(np.corrcoef(one[:, k], two[:, k])[0, 1] for k in range(3)) > 0.9
    np.testing.assert_allclose((one**2).mean(0), (two**2).mean(0), rtol=0.3)


@pytest.mark.slow
def test_the_training_object_gets_its_own_factors_back():
    data = gpnsf.datasets.ggblocks(n_side=18, n_genes=60, n_peaks=40, seed=1)
    gpnsf.tl.fit(data, n_factors=7, progress=False)
    again = gpnsf.tl.project(data, data, copy=True, progress=False)
    one, two = (each.obsm["X_gpnsf"] for each in (again, data))
    assert min(np.corrcoef(one[:, k], two[:, k])[0, 1] for k in range(one.shape[1])) > 0.995
    np.testing.assert_allclose(one.mean(0), 1.0, atol=0.06)
    old, new = (gpnsf.tl.evaluate(each).set_index("modality").deviance for each in (data, again))
    np.testing.assert_allclose(new, old, rtol=0.05)


def test_the_layer_of_the_fit_is_read_by_default():
    old = sections.section()
    gpnsf.pp.normalise(old)
    gpnsf.tl.fit(old, "rsf", n_factors=2, layers="normalised", max_steps=5, progress=False)
    new = sections.section()
    with pytest.raises(ValueError, match=r"Expected layer 'normalised'.*gpnsf\.pp\.normalise"):
        gpnsf.tl.project(new, old, progress=False)
    gpnsf.pp.normalise(new)
    for layers in (None, "normalised"):
        found = gpnsf.tl.project(new, old, layers=layers, max_steps=3, copy=True, progress=False)
        if layers is None:
            first = found.obsm["X_gpnsf"]
    np.testing.assert_array_equal(found.obsm["X_gpnsf"], first)
