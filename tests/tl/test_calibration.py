from __future__ import annotations

import sys

import fitted
import numpy as np
import pandas as pd
import pytest
from mudata import MuData

import gpnsf
from gpnsf.tl.calibration import check_calibration

QUICK = {"max_steps": 5, "init": "spot", "split": "assumed", "progress": False}
COLUMNS = [
    "simulation",
    "kind",
    "name",
    "is_spatial",
    "kept_spatial",
    "recovery",
    "error",
    "coverage",
    "n",
]


@pytest.fixture(scope="module")
def adata():
    data = gpnsf.datasets.ggblocks(n_side=12, n_genes=80, n_peaks=36, seed=0)["rna"]
    gpnsf.tl.fit(data, n_factors=5, n_spatial=4, size_factors=None, **QUICK)
    return data


@pytest.fixture(scope="module")
def table(adata):
    return check_calibration(adata, n_simulations=2, seed=1, progress=False)


@pytest.mark.slow
def test_a_line_for_each_factor_and_for_the_features_of_each_modality(adata, table):
    assert list(table) == COLUMNS
    assert table.simulation.tolist() == [0] * 6 + [1] * 6
    assert table.name.tolist() == 2 * [*adata.uns["gpnsf"]["factor_names"], "rna"]
    factors = table[table.kind == "factor"]
    assert (factors.is_spatial == factors.name.str.startswith("spatial")).all()
    assert (factors.n == 144).all()
    assert table.is_spatial.isna().tolist() == (table.kind == "importance").tolist()
    assert table[["recovery", "error", "coverage"]].notna().all(axis=None)
    assert table.coverage.between(0, 1).all()


def test_a_fit_that_finds_fewer_factors_has_lost_some(adata, monkeypatch):
    module = sys.modules[check_calibration.__module__]
    monkeypatch.setattr(
        module,
        "refit",
        lambda data, **given: gpnsf.tl.fit(data, **{**given, "n_factors": 3, "n_spatial": 2}),
    )
    found = check_calibration(adata, progress=False)
    lost = found[(found.kind == "factor") & (found.recovery == 0)]
    assert len(lost) == 2
    assert not lost.kept_spatial.any()
    assert lost[["error", "coverage"]].isna().all(axis=None)


@pytest.mark.slow
def test_data_are_not_changed_and_the_seed_decides(adata, table):
    before = adata.copy()
    again = check_calibration(adata, seed=1, progress=False)
    pd.testing.assert_frame_equal(again, table[:6])
    assert not again.recovery.equals(check_calibration(adata, seed=2, progress=False).recovery)
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    np.testing.assert_array_equal(adata.obsm["X_gpnsf"], before.obsm["X_gpnsf"])
    assert adata.uns["gpnsf"]["seconds"] == before.uns["gpnsf"]["seconds"]


@pytest.mark.slow
def test_the_new_fit_gets_counts_of_the_old_one_where_it_reads_them(monkeypatch):
    data = gpnsf.datasets.ggblocks(n_side=12, n_genes=60, n_peaks=50, seed=0)
    data["rna"].layers["raw"], data["rna"].X = data["rna"].X, data["rna"].X / 2
    data["atac"].var["used"] = np.arange(50) < 40
    data.obs["out"] = np.arange(144) < 10
    data.obs["slice"] = np.repeat(["a", "b"], 72)
    where = {
        "layers": {"rna": "raw"},
        "use_var": {"atac": "used"},
        "holdout_key": "out",
        "library_key": "slice",
    }
    gpnsf.tl.fit(data, n_factors=4, key_added="mine", **where, **QUICK)
    seen = []

    def watched(simulated, **arguments):
        seen.append((simulated.copy(), arguments))
        gpnsf.tl.fit(simulated, **arguments)

    monkeypatch.setattr("gpnsf.tl.calibration.refit", watched)
    table = check_calibration(data, key="mine", progress=False)
    simulated, arguments = seen[0]
    assert isinstance(simulated, MuData)
    assert arguments["key_added"] == "mine"
    assert {name: arguments[name] for name in where} == where
    raw, counts = data["rna"].layers["raw"], simulated["rna"].layers["raw"]
    assert counts[10:].sum() == pytest.approx(raw[10:].sum(), rel=0.1)
    assert (counts != raw).nnz
    np.testing.assert_array_equal(simulated["rna"].X.toarray(), data["rna"].X.toarray())
    peaks = simulated["atac"].X
    assert set(peaks.data) == {1.0}
    assert peaks[:, 40:].nnz == peaks[:10].nnz == 0
    assert peaks.sum() == pytest.approx(data["atac"].X[10:, :40].sum(), rel=0.15)
    assert (table[table.kind == "factor"].n == 134).all()


@pytest.mark.slow
def test_batches_are_simulated_with_their_multipliers_and_fitted_again(monkeypatch):
    mdata = gpnsf.datasets.tissue(
        n_obs=200,
        n_genes=60,
        n_peaks=10,
        n_spatial=2,
        rna_depth=2000.0,
        n_libraries=2,
        batch_effect=0.7,
    )
    adata = mdata["rna"][np.random.default_rng(0).permutation(200)].copy()
    adata.var["used"] = np.arange(60) >= 10
    gpnsf.tl.fit(
        adata,
        n_factors=3,
        n_spatial=2,
        batch_key="library",
        use_var="used",
        **{**QUICK, "init": "random"},
    )
    seen = []

    def watched(simulated, **arguments):
        seen.append((simulated.X.toarray(), arguments["batch_key"]))
        gpnsf.tl.fit(simulated, **arguments)

    monkeypatch.setattr("gpnsf.tl.calibration.refit", watched)
    check_calibration(adata, progress=False)
    counts, batch_key = seen[0]
    assert batch_key == "library"
    first = (adata.obs["library"] == "section_1").to_numpy()
    drawn = np.log(counts[first].sum(0) + 1) - np.log(counts[~first].sum(0) + 1)
    fitted_to = np.log(adata.varm["gpnsf_batch"])[:, 0] - np.log(adata.varm["gpnsf_batch"])[:, 1]
    assert np.corrcoef(drawn[10:], fitted_to[10:])[0, 1] > 0.9


@pytest.mark.slow
def test_cells_that_lack_a_modality():
    data = gpnsf.datasets.ggblocks(n_side=12, n_genes=60, n_peaks=50, seed=0)
    data = MuData({"rna": data["rna"][20:].copy(), "atac": data["atac"][::-1].copy()})
    gpnsf.tl.fit(data, n_factors=4, **QUICK)
    assert (check_calibration(data, progress=False)["n"][:4] == 144).all()


@pytest.mark.slow
def test_what_was_simulated_is_recovered_and_covered():
    adata = gpnsf.datasets.tissue(
        n_obs=600, n_genes=300, n_peaks=10, n_spatial=4, rna_depth=1000.0
    )["rna"]
    gpnsf.tl.fit(adata, n_factors=5, n_spatial=4, progress=False)
    table = check_calibration(adata, progress=False)
    factors, importance = table[table.kind == "factor"], table[table.kind == "importance"]
    assert (factors.recovery > 0.9).all()
    assert factors.coverage.mean() > 0.75
    assert importance.error.item() < 0.05
    assert importance.coverage.item() > 0.75


def test_bad_arguments_are_refused(subtests):
    for arguments, error, message in (
        ({"n_simulations": 0}, ValueError, r"`n_simulations`.*at least 1.*got 0"),
        ({"n_simulations": 1.5}, TypeError, r"`n_simulations`.*1\.5"),
        ({"seed": -1}, ValueError, "`seed`"),
        ({"progress": "yes"}, TypeError, "`progress`"),
        ({"key": "other"}, KeyError, r"a fit in uns\['other'\]"),
    ):
        with subtests.test(arguments=arguments), pytest.raises(error, match=message):
            check_calibration(fitted.anndata(n_obs=36), **arguments)


def test_signed_models_are_refused():
    data = gpnsf.datasets.ggblocks(n_side=12, n_genes=40, n_peaks=36, seed=0)["rna"]
    gpnsf.tl.fit(data, "fa", n_factors=3, **QUICK)
    with pytest.raises(ValueError, match=r"a nonnegative model.*model='fa'.*'nsfh'"):
        check_calibration(data, progress=False)
