from __future__ import annotations

import inspect
import logging
from functools import partial

import mudata
import numpy as np
import pytest
import scipy.sparse as sp
import sections
from mistakes import REMEDY, explained
from sklearn.metrics import adjusted_rand_score

import gpnsf
from gpnsf.core.companions import scai as core
from gpnsf.datasets.groups import VARIANTS
from gpnsf.io.fits import find
from gpnsf.tl.scai import RULES, scai

SMALL = {"n_obs": 250, "n_genes": 1500, "n_peaks": 3000}


@pytest.fixture(scope="module")
def simulated():
    """Five simulated groups of cells."""
    return gpnsf.datasets.groups(**SMALL, seed=0)


@pytest.fixture(scope="module")
def done(simulated):
    """The same with factors and averaged peaks; tests that change it take a copy."""
    mdata = simulated.copy()
    scai(mdata, n_factors=5, layer_added="averaged", progress=False)
    return mdata


QUICK = {"n_restarts": 1, "max_steps": 3, "progress": False}


def groups_found(mdata, key: str = "scai") -> float:
    """Agreement of the largest factor of each cell with its true group."""
    return adjusted_rand_score(mdata.obs["true_group"], mdata.obsm[f"X_{key}"].argmax(axis=1))


def test_groups_are_found_and_every_slot_is_written(done):
    assert groups_found(done) > 0.95
    factors = done.obsm["X_scai"]
    assert factors.shape == (250, 5)
    assert factors.dtype == np.float32
    assert (factors >= 0).all()
    np.testing.assert_allclose(factors.mean(axis=0), 1, rtol=1e-4)
    mass = sum(mod.varm["scai_loadings"].sum(axis=0) for mod in done.mod.values())
    assert (np.diff(mass) <= 0).all()
    for mod in done.mod.values():
        np.testing.assert_array_equal(mod.obsm["X_scai"], factors)
        assert mod.varm["scai_loadings"].shape == (mod.n_vars, 5)
        assert mod.varm["scai_loadings"].min() >= 0
    record = done.uns["scai"]
    assert record["factor_names"] == [f"factor_{k}" for k in range(1, 6)]
    assert record["converged"]
    assert np.diff(record["objective"]).max() < 1e-6
    assert len(record["redundancy"]) == 5
    assert record["params"]["lam"] == 0.01


def test_loadings_expect_the_normalised_values(done):
    for mod in done.mod.values():
        values = core.normalised(mod.X).toarray()
        expected = mod.obsm["X_scai"] @ mod.varm["scai_loadings"].T
        np.testing.assert_allclose(expected.mean(), values.mean(), rtol=0.15)
        assert np.corrcoef(expected.mean(axis=0), values.mean(axis=0))[0, 1] > 0.99


def test_averaged_peaks_tell_what_marks_the_groups(done):
    atac, truth = done["atac"], done.obsm["true_factors"] @ done["atac"].varm["true_loadings"].T
    averaged = atac.layers["averaged"]
    assert averaged.dtype == np.float32
    np.testing.assert_allclose(np.expm1(averaged).sum(axis=1), 1e4, rtol=1e-3)
    marking = atac.var["marker"].to_numpy() & (np.asarray(atac.X.sum(axis=0)).ravel() > 0)
    raw, means = (
        np.mean([np.corrcoef(X[:, j], truth[:, j])[0, 1] for j in np.flatnonzero(marking)])
        for X in (core.normalised(atac.X).toarray(), averaged)
    )
    assert means > 1.15 * raw


def test_no_layer_is_written_unless_asked_for(simulated):
    mdata = simulated.copy()
    scai(mdata, n_factors=3, **QUICK)
    assert not [name for name in mdata["atac"].layers if name is not None]


def test_it_survives_a_file(done, tmp_path):
    done.write_h5mu(tmp_path / "done.h5mu")
    read = mudata.read_h5mu(tmp_path / "done.h5mu")
    np.testing.assert_array_equal(read.obsm["X_scai"], done.obsm["X_scai"])
    np.testing.assert_array_equal(read["atac"].layers["averaged"], done["atac"].layers["averaged"])
    table = gpnsf.tl.rank_features(read, key="scai")
    assert table.equals(gpnsf.tl.rank_features(done, key="scai"))


def test_the_same_seed_gives_the_same_bits(simulated, begun):
    again = simulated.copy()
    scai(again, n_factors=5, **QUICK | {"max_steps": 12})
    np.testing.assert_array_equal(again.obsm["X_scai"], begun.obsm["X_scai"])


def test_running_again_replaces_everything(simulated):
    mdata = simulated.copy()
    scai(mdata, n_factors=4, **QUICK)
    gpnsf.tl.link_peaks(mdata, key="scai")
    scai(mdata, n_factors=3, **QUICK)
    assert mdata.obsm["X_scai"].shape == (250, 3)
    assert mdata["rna"].varm["scai_loadings"].shape[1] == 3
    assert "scai_links" not in mdata.uns


def test_modalities_layers_and_key_may_have_other_names(simulated):
    mods = {"genes": simulated["rna"].copy(), "peaks": simulated["atac"].copy()}
    for mod in mods.values():
        mod.layers["counts"] = mod.X.copy()
        mod.X = sp.csr_matrix(mod.shape)
    mdata = sections.mudata(**mods)
    scai(mdata, n_factors=3, rna="genes", atac="peaks", layers="counts", key_added="mine", **QUICK)
    plain = simulated.copy()
    scai(plain, n_factors=3, **QUICK)
    np.testing.assert_array_equal(mdata.obsm["X_mine"], plain.obsm["X_scai"])
    assert mdata.uns["mine"]["modalities"] == ["genes", "peaks"]


def test_cells_of_a_modality_may_come_in_another_order(simulated):
    done = simulated.copy()
    mdata = sections.mudata(rna=simulated["rna"].copy(), atac=simulated["atac"][::-1].copy())
    for data in (done, mdata):
        scai(data, n_factors=5, layer_added="averaged", **QUICK)
    np.testing.assert_array_equal(mdata.obsm["X_scai"], done.obsm["X_scai"])
    for array in (lambda m: m.obsm["X_scai"], lambda m: m.layers["averaged"]):
        np.testing.assert_array_equal(array(mdata["atac"])[::-1], array(done["atac"]))


def test_counts_above_one_are_read_as_open(simulated):
    mdata, plain = simulated.copy(), simulated.copy()
    mdata["atac"].X = mdata["atac"].X * 3
    for data in (mdata, plain):
        scai(data, n_factors=3, **QUICK)
    np.testing.assert_array_equal(mdata.obsm["X_scai"], plain.obsm["X_scai"])
    assert mdata["atac"].X.max() == 3


WIRED = {
    "alpha": 3.0,
    "beta": 0.0,
    "lam": 10.0,
    "gamma": 1.0,
    "mask": 1.0,
    "max_steps": 3,
    "tol": 0.5,
    "seed": 5,
    "n_factors": 4,
}


@pytest.fixture(scope="module")
def begun(simulated):
    """A few steps with all defaults."""
    mdata = simulated.copy()
    scai(mdata, n_factors=5, **QUICK | {"max_steps": 12})
    return mdata


def test_every_number_changes_the_result(subtests, simulated, begun):
    for name, value in WIRED.items():
        with subtests.test(name=name):
            mdata = simulated.copy()
            scai(mdata, **{"n_factors": 5, **QUICK, "max_steps": 12, name: value})
            assert not np.array_equal(mdata.obsm["X_scai"], begun.obsm["X_scai"])
            assert mdata.uns["scai"]["params"][name] == value


def test_restarts_are_counted(simulated):
    mdata = simulated.copy()
    scai(mdata, n_factors=5, **QUICK | {"n_restarts": 2})
    assert len(mdata.uns["scai"]["redundancy"]) == 2


def test_a_large_weight_of_overlap_makes_factors_exclusive(simulated):
    overlaps = []
    for gamma in (0.0, 1.0):
        mdata = simulated.copy()
        scai(mdata, n_factors=5, gamma=gamma, **QUICK | {"max_steps": 40})
        unit = mdata.obsm["X_scai"] / np.linalg.norm(mdata.obsm["X_scai"], axis=0)
        overlaps.append(np.triu(unit.T @ unit, 1).sum())
    assert overlaps[1] < 0.5 * overlaps[0]


def test_the_bar_and_the_log_tell_what_happened(simulated, capfd, caplog):
    mdata = simulated.copy()
    with caplog.at_level(logging.INFO, logger="gpnsf"):
        logging.getLogger("gpnsf").addHandler(caplog.handler)
        scai(mdata, n_factors=3, **QUICK | {"progress": True})
        logging.getLogger("gpnsf").removeHandler(caplog.handler)
    assert "scai" in capfd.readouterr().err
    assert "has not converged after 3 steps" in caplog.text
    assert "250 cells, 3 steps" in caplog.text


def test_helpers_read_the_factors(done):
    mdata = done.copy()
    table = gpnsf.tl.rank_features(mdata, key="scai", n_features=10)
    assert table.groupby(["factor", "modality"]).size().tolist() == [10] * 10
    assert not table["importance"].any()
    marker = mdata["rna"].var["marker"]
    assert marker[table.query("modality == 'rna'")["feature"]].mean() > 0.85
    factors = gpnsf.tl.factor_adata(mdata, key="scai")
    np.testing.assert_array_equal(factors.X, mdata.obsm["X_scai"])
    assert not [name for name in factors.layers if name is not None]
    assert factors.var["lengthscale"].isna().all()
    gpnsf.tl.domains(mdata, n_domains=5, factors="all", key="scai", key_added="cluster")
    assert adjusted_rand_score(mdata.obs["true_group"], mdata.obs["cluster"]) > 0.95
    sets = {"first": marker.index[marker][:15].tolist()}
    assert len(gpnsf.tl.enrich(mdata, sets, key="scai")) == 5
    for draw in (gpnsf.pl.top_features, gpnsf.pl.loadings, gpnsf.pl.factor_correlation):
        draw(mdata, key="scai", show=False)


def test_planted_links_are_ranked_high(done):
    mdata = done.copy()
    gpnsf.tl.link_peaks(mdata, key="scai")
    found = gpnsf.tl.evaluate_links(mdata, mdata.uns["true_links"], key="scai", n_bootstrap=20)
    assert found["estimate"][0] > 0.8


def test_factors_of_cells_with_places_can_be_drawn(done):
    mdata = done.copy()
    mdata.obsm["spatial"] = np.random.default_rng(0).random((250, 2))
    axes = gpnsf.pl.spatial_factors(mdata, key="scai", show=False)
    assert len(axes) == 5
    with pytest.raises(ValueError, match="'mean', 'smooth'"):
        gpnsf.pl.spatial_factors(mdata, key="scai", moment="std", show=False)


def test_what_needs_a_model_of_counts_refuses(subtests, done):
    before = sections.digest(done)
    for tool, options in (
        (gpnsf.tl.predict, {"coords": np.zeros((2, 2))}),
        (gpnsf.tl.denoise, {}),
        (gpnsf.tl.impute, {"modality": "atac"}),
        (gpnsf.tl.evaluate, {}),
        (gpnsf.tl.evaluate, {"metric": "poisson"}),
        (gpnsf.tl.variance_explained, {}),
        (gpnsf.tl.check_calibration, {"progress": False}),
        (gpnsf.pl.convergence, {"show": False}),
        (gpnsf.pl.observed_expected, {"features": ["gene_1"], "show": False}),
    ):
        with subtests.test(tool.__name__, **options):
            with pytest.raises(KeyError, match="^['\"]Expected .*; got "):
                tool(done, key="scai", **options)
            assert sections.digest(done) == before


def test_its_loadings_and_factors_can_be_described(done):
    mdata = done.copy()
    mdata.obsm["spatial"] = np.random.default_rng(0).random((250, 2))
    zeros = gpnsf.tl.evaluate(mdata, key="scai", metric="sparsity")
    assert zeros["modality"].tolist() == ["rna", "atac"]
    moran = gpnsf.tl.evaluate(mdata, key="scai", metric="moran")["moran"]
    assert moran.abs().max() < 0.2  # places at random


def test_a_record_of_another_method_needs_all_slots(done):
    mdata = done.copy()
    mdata.uns["scai"]["method"] = "other"
    with pytest.raises(KeyError, match="X_scai_smooth"):
        find(mdata, "scai")


def pair_with(change):
    """Two small modalities, changed."""
    mdata = sections.pair()
    result = change(mdata)
    return mdata if result is None else result


def lost(mdata):
    return sections.mudata(rna=mdata["rna"][3:].copy(), atac=mdata["atac"].copy())


def half(mdata):
    mdata["rna"].X = mdata["rna"].X * 0.5


def below(mdata):
    mdata["rna"].X.data[0] = -1


def nothing(mdata):
    mdata["atac"].X = sp.csr_matrix(mdata["atac"].shape)


BAD = {
    "AnnData": (lambda m: m["rna"], {}, TypeError, "MuData with RNA and ATAC"),
    "a path": (lambda _: "data.h5mu", {}, TypeError, "MuData"),
    "a view": (lambda m: m[:20], {}, ValueError, ".copy()"),
    "cells without RNA": (lost, {}, ValueError, "3 of 24 observation(s) without 'rna'"),
    "fractions": (half, {}, ValueError, "whole counts"),
    "negative counts": (below, {}, ValueError, "negative"),
    "no peaks open": (nothing, {}, ValueError, "only zeros"),
    "unknown modality": (lambda _: None, {"atac": "peaks"}, KeyError, "'peaks'"),
    "one modality twice": (lambda _: None, {"atac": "rna"}, ValueError, "each once"),
    "unknown layer": (lambda _: None, {"layers": {"rna": "raw"}}, KeyError, "'raw'"),
    "too many factors": (lambda _: None, {"n_factors": 9}, ValueError, "24 observations and 8 features"),
    "no factors": (lambda _: None, {"n_factors": 0}, ValueError, "`n_factors`"),
    "a share of a factor": (lambda _: None, {"n_factors": 2.5}, TypeError, "`n_factors`"),
    "alpha 0": (lambda _: None, {"alpha": 0.0}, ValueError, "`alpha`"),
    "beta below 0": (lambda _: None, {"beta": -1.0}, ValueError, "`beta`"),
    "lam not finite": (lambda _: None, {"lam": np.inf}, ValueError, "`lam`"),
    "gamma as text": (lambda _: None, {"gamma": "much"}, TypeError, "`gamma`"),
    "an empty mask": (lambda _: None, {"mask": 0.0}, ValueError, "`mask`"),
    "a mask above 1": (lambda _: None, {"mask": 1.5}, ValueError, "`mask`"),
    "no restarts": (lambda _: None, {"n_restarts": 0}, ValueError, "`n_restarts`"),
    "no steps": (lambda _: None, {"max_steps": 0}, ValueError, "`max_steps`"),
    "tol 0": (lambda _: None, {"tol": 0.0}, ValueError, "`tol`"),
    "seed below 0": (lambda _: None, {"seed": -1}, ValueError, "`seed`"),
    "progress as text": (lambda _: None, {"progress": "yes"}, TypeError, "`progress`"),
    "key of a modality": (lambda _: None, {"key_added": "rna"}, ValueError, "names of the modalities"),
    "key with a slash": (lambda _: None, {"key_added": "a/b"}, ValueError, "without '/'"),
    "layer with a slash": (lambda _: None, {"layer_added": "a/b"}, ValueError, "without '/'"),
    "layer of the counts": (
        lambda m: m["atac"].layers.__setitem__("counts", m["atac"].X.copy()),
        {"layers": "counts", "layer_added": "counts"}, ValueError, "other than the layer of the counts",
    ),
}  # fmt: skip


def test_a_mistake_is_explained_and_changes_nothing(subtests):
    for name, (change, options, error, says) in BAD.items():
        with subtests.test(name):
            options = {"n_factors": 3, "max_steps": 2, "progress": False, **options}
            explained(pair_with(change), partial(scai, **options), error, says)


def test_every_argument_is_checked():
    assert set(inspect.signature(scai).parameters) == {"mdata", "layers", *RULES}


def test_more_cells_than_fit_into_memory_are_refused(simulated):
    mdata = simulated.copy()
    before = sections.digest(mdata)
    with gpnsf.settings.override(memory_budget=100_000), pytest.raises(MemoryError) as caught:
        scai(mdata, n_factors=3, progress=False)
    message = str(caught.value)
    assert "250 cells, which need 0.00206 GB" in message
    assert REMEDY.search(message)
    assert sections.digest(mdata) == before


def test_a_layer_that_is_too_large_is_refused_before_any_work(simulated, monkeypatch):
    wide = simulated.copy()
    monkeypatch.setattr(core, "fit", lambda *_, **__: pytest.fail("the fit began"))
    monkeypatch.setattr(core, "memory", lambda _: 0)
    with (
        gpnsf.settings.override(memory_budget=1e5),
        pytest.raises(ValueError, match="250 x 3000, 0.003 GB"),
    ):
        scai(wide, n_factors=3, layer_added="averaged", progress=False)


@pytest.mark.slow
def test_simulated_groups_of_the_published_kind_are_found_and_most_harder_ones():
    found = {}
    for variant in VARIANTS:
        mdata = gpnsf.datasets.groups(variant)
        scai(mdata, n_factors=mdata.obsm["true_factors"].shape[1], n_restarts=2, progress=False)
        found[variant] = groups_found(mdata)
    assert found.pop("plain") == 1
    assert sum(value >= 0.9 for value in found.values()) >= 6, found


@pytest.mark.slow
def test_without_its_direct_term_what_atac_tells_is_lost():
    agreement = []
    for beta in (0.0, 1.0):
        mdata = gpnsf.datasets.groups("shallow")  # RNA alone tells little
        scai(mdata, n_factors=5, beta=beta, progress=False)
        agreement.append(groups_found(mdata))
    assert agreement[0] < agreement[1] - 0.2


@pytest.mark.slow
def test_real_cells_run(data_file):
    mdata = mudata.read_h5mu(data_file("snareseq_human_celllines.h5mu"))
    scai(mdata, n_factors=4, max_steps=50, progress=False)
    found = adjusted_rand_score(mdata.obs["cell_type"], mdata.obsm["X_scai"].argmax(axis=1))
    assert found > 0.8
