from __future__ import annotations

import io
import logging
import re
import sys

import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from gpnsf import datasets
from gpnsf.core.progress import Progress
from gpnsf.io.parcel import pack
from gpnsf.tl.evaluate import evaluate, grouped_deviance
from gpnsf.tl.finished import Finished, facts_of
from gpnsf.tl.fit import fit
from gpnsf.tl.search import Run, Search, Tasks, n_ordered, prepare
from gpnsf.tl.select import select_n_factors

FAST = {"n_seeds": 1, "max_steps": 3, "init": "spot", "n_jobs": 1, "progress": False}
COLUMNS = [
    "n_factors",
    "n_spatial",
    "deviance",
    "explained",
    "excess",
    "excess_se",
    "stability",
    "objective",
    "n_kept",
    "seconds",
    "recommended",
]


def searched(curve, *, depth=1000.0, noise=0.0, orders=None, objectives=None):
    """A search whose deviances [K] are given, in units of a null model of 1000."""
    rng = np.random.default_rng(0)
    runs = {}
    for K, total in curve.items():
        deviance = np.full(25, total / 25) + noise * rng.standard_normal(25)
        factors = rng.uniform(size=(50, K))
        order = (orders or {}).get(K, 1)
        objective = (objectives or {}).get(K, -total)
        runs[K, None] = [
            Run(
                deviance,
                np.full(25, 1000 / 25),
                factors,
                np.arange(K) < order,
                order,
                objective,
                1.0,
            )
        ]
    groups = np.arange(50) % 25
    return Search(
        None,
        [],
        {},
        depth,
        {},
        [0],
        Tasks(1, Progress("select", 1), Finished(None, {})),
        groups,
        runs,
    )


def test_the_lowest_deviance_is_chosen_where_it_is_clear():
    found = searched({3: 700, 4: 600, 5: 500, 6: 510, 8: 530})
    assert found.chosen == (5, None)
    assert found.table().recommended.tolist() == [False, False, True, False, False]
    assert found.table().excess.tolist() == pytest.approx([4, 2, 0, 0.2, 0.6])  # per observation


def test_a_factor_that_adds_next_to_nothing_is_left_out():
    assert searched({3: 700, 4: 502, 5: 500}).chosen == (4, None)
    assert searched({3: 700, 4: 503, 5: 500}).chosen == (5, None)


def test_within_a_standard_error_the_smaller_one_wins():
    assert searched({3: 700, 4: 508, 5: 500}, noise=4).chosen == (4, None)
    assert searched({3: 700, 4: 600, 5: 500}, noise=4).chosen == (5, None)


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        ({3: 700, 4: 500, 5: 600}, None),
        (
            {3: 700, 4: 600, 5: 500},
            "5 is the largest number that was tried: a larger one may do better.",
        ),
        (
            {3: 500, 4: 600, 5: 700},
            "3 is the smallest number that was tried: a smaller one may do better.",
        ),
        ({3: 500}, None),
    ],
)
def test_a_choice_at_the_edge_is_told(monkeypatch, curve, words):
    monkeypatch.setattr(Search, "_spatial", lambda self, n_factors: (2, np.array([9.0, 8.0])))
    reason = searched(curve, objectives={3: -10.0, 4: -11.0}).verdict()["reason"]
    assert "The objective of the fits is highest with 3 factors." in reason
    assert reason.endswith(words or "with 3 factors.")


def test_shallow_counts_cannot_tell():
    found = searched({3: 700, 4: 500}, depth=20.0)
    verdict = found.verdict()
    assert verdict["n_factors"] is None
    assert verdict["n_spatial"] is None
    assert "too few to tell" in verdict["reason"]
    assert not found.table().recommended.any()


def test_nonspatial_factors_that_inherit_some_order_do_not_count():
    assert n_ordered(np.array([33.0, 30.0, 9.0, 8.0])) == 2
    assert n_ordered(np.array([8.0, 5.0, 4.5, 2.9, -1.0])) == 3
    assert n_ordered(np.array([2.0, 1.0])) == 0


def test_table_record_and_reason(adata, caplog):
    with caplog.at_level(logging.INFO, logger="gpnsf"):
        table = select_n_factors(adata, n_factors=[3, 2], **FAST)
    assert list(table.columns) == COLUMNS
    assert table.n_factors.tolist() == [2, 3]
    assert table.recommended.sum() == 1
    assert table.attrs["n_factors"] == table.n_factors[table.recommended].item()
    assert 0 <= table.attrs["n_spatial"] <= table.attrs["n_factors"]
    assert table.attrs["reason"] in caplog.text
    record = adata.uns["gpnsf_selection"]
    pd.testing.assert_frame_equal(record["table"], table, check_flags=False)
    assert record["reason"] == table.attrs["reason"]
    assert "gpnsf" not in adata.uns


def test_the_part_that_judges_has_its_share_of_the_dispersion(adata):
    arguments = {"max_steps": 3, "init": "spot", "progress": False}
    found = prepare(adata, arguments, [0], 2, 1, Progress("select", 1))
    fit(adata, n_factors=2, seed=0, split="assumed", refine=False, **arguments)
    theta = adata.var["gpnsf_dispersion"].to_numpy(dtype=float)
    np.testing.assert_allclose(found.dispersion["rna"], 0.2 * theta, rtol=1e-6)


@pytest.mark.slow
def test_the_record_can_be_written(mdata, tmp_path):
    table = select_n_factors(mdata, n_factors=[2], **FAST)
    mdata.write_h5mu(tmp_path / "data.h5mu")
    record = mudata.read_h5mu(tmp_path / "data.h5mu").uns["gpnsf_selection"]
    assert record["n_factors"] == table.attrs["n_factors"]
    np.testing.assert_allclose(record["table"]["deviance"], table["deviance"])


@pytest.mark.slow
def test_a_grid_of_both_numbers(adata):
    table = select_n_factors(adata, n_factors=[2, 3], n_spatial=[1, 3], **FAST)
    assert table[["n_factors", "n_spatial"]].to_numpy().tolist() == [[2, 1], [3, 1], [3, 3]]
    chosen = table[table.recommended].iloc[0]
    assert (table.attrs["n_factors"], table.attrs["n_spatial"]) == (
        chosen.n_factors,
        chosen.n_spatial,
    )


@pytest.mark.slow
def test_processes_do_not_change_the_result(adata):
    arguments = {**FAST, "n_seeds": 2}
    one = select_n_factors(adata, n_factors=[2], **arguments)
    two = select_n_factors(adata, n_factors=[2], **{**arguments, "n_jobs": 2})
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"))
    assert one.stability.notna().all()


@pytest.mark.slow
def test_layers_features_and_columns_are_those_of_a_fit(mdata):
    mdata["rna"].layers["counts"] = mdata["rna"].X.copy()
    mdata["rna"].X = mdata["rna"].X * 0.5
    mdata["rna"].var["chosen"] = np.arange(mdata["rna"].n_vars) < 30
    mdata.obs["side"] = np.where(mdata.obsm["spatial"][:, 0] > 100, "right", "left")
    table = select_n_factors(
        mdata,
        n_factors=[2],
        layers={"rna": "counts"},
        use_var="chosen",
        library_key="side",
        batch_key="side",
        **FAST,
    )
    assert np.isfinite(table.deviance).all()


def test_without_numbers_it_looks_between_and_beyond(adata, monkeypatch):
    deviance = lambda K: 500 + abs(K - 10) * 20.0
    calls = []

    def run(self, candidates):
        calls.append([K for K, _ in candidates])
        found = searched({K: deviance(K) for K, _ in candidates})
        self.runs.update(found.runs)

    monkeypatch.setattr(Search, "run", run)
    monkeypatch.setattr(
        Search, "verdict", lambda self: {"n_factors": self.chosen[0], "n_spatial": 1, "reason": ""}
    )
    table = select_n_factors(adata, **FAST)
    assert table.attrs["n_factors"] == 10
    assert calls[0] == [3, 5, 8, 12, 18]
    assert len(table) <= 9
    deviance = lambda K: 900 - K
    assert (
        select_n_factors(adata, **FAST).n_factors.max() == adata.n_vars
    )  # as many as there are features


def test_deviance_by_groups_adds_up_to_that_of_all(adata):
    adata.layers["other"] = adata.X.copy()
    fit(adata, n_factors=2, max_steps=3, progress=False)
    groups = np.arange(adata.n_obs) % 4
    total, null = grouped_deviance(adata, groups, layer="other")
    line = evaluate(adata, layers="other").set_index("rows").loc["thinned"]
    entries = line.n_obs * line.n_features
    assert total.shape == (4,)
    assert total.sum() == pytest.approx(line.deviance * entries)
    assert null.sum() == pytest.approx(line.null_deviance * entries)


@pytest.mark.slow
def test_an_interrupted_search_goes_on_with_what_is_missing(adata, tmp_path, monkeypatch, caplog):
    arguments = {**FAST, "n_factors": [2, 3], "checkpoint": tmp_path / "search.npz"}
    names, keep = [], Finished.keep

    def keep_two(self, name, arrays):
        if len(names) == 2:
            names.append("Ctrl-C")
            raise KeyboardInterrupt
        names.append(name)
        keep(self, name, arrays)

    monkeypatch.setattr(Finished, "keep", keep_two)
    with pytest.raises(KeyboardInterrupt):
        select_n_factors(adata, **arguments)
    assert "gpnsf_selection" not in adata.uns
    assert "Interrupted after 2 fits. The same call with checkpoint=" in caplog.text
    resumed = select_n_factors(adata, **arguments)
    assert [name.partition("=")[0] for name in names] == ["K", "K", "Ctrl-C", "z of K"]
    whole = select_n_factors(adata, **{**arguments, "checkpoint": None})
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), whole.drop(columns="seconds"))
    assert resumed.attrs == whole.attrs
    assert not list(tmp_path.iterdir())


def facts(adata, **arguments):
    counts = {"rna": sp.csr_matrix(adata.X)}
    return facts_of(pack(adata, counts, obsm="spatial"), {"library_key": "side", **arguments})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda adata, path: {"max_steps": 4}, "differs in max_steps"),
        (lambda adata, path: adata.X.data.__setitem__(0, 9), "differs in counts of rna"),
        (lambda adata, path: adata.obsm["spatial"].__imul__(2) is None, "and coordinates of rna"),
        (lambda adata, path: adata.obs.insert(0, "side", "left"), "differs in columns"),
        (
            lambda adata, path: path.write_bytes(b"PK") * 0,
            "no checkpoint of a search, or is damaged",
        ),
    ],
)
def test_a_file_of_another_search_is_refused(adata, tmp_path, change, message):
    path = tmp_path / "search.npz"
    found = {"deviance": np.arange(3.0), "order": np.asarray(2)}
    Finished(path, facts(adata)).keep("K=2", found)
    again = Finished(path, facts(adata)).found["K=2"]
    assert again.keys() == found.keys()
    np.testing.assert_array_equal(again["deviance"], found["deviance"])
    arguments = change(adata, path) or {}
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        Finished(path, facts(adata, **arguments))
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_written_is_refused(adata, tmp_path):
    with pytest.raises(OSError, match="Expected `checkpoint` to be a file that can be written"):
        Finished(tmp_path / "no" / "search.npz", facts(adata))


@pytest.mark.slow
def test_the_time_is_told_before_the_first_fit_and_there_is_one_bar(
    adata, capsys, caplog, monkeypatch
):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with caplog.at_level(logging.INFO, logger="gpnsf"):
        select_n_factors(adata, n_factors=[3, 2], **{**FAST, "progress": True})
    assert re.match(r"3 fits of 2 to 3 factors, 1 at a time: about \d+ s\.", caplog.messages[0])
    shares = [int(share) for share in re.findall(r"(\d+)%\|", stream.getvalue())]
    assert shares == sorted(shares)
    assert shares.count(100) <= 2
    assert shares[-1] == 100
    assert "select, fits of 2, 3 factors" in stream.getvalue()
    assert "fit, " not in stream.getvalue()


def test_wrong_arguments(subtests, adata):
    for arguments, error, message in (
        ({"n_factors": "many"}, TypeError, "`n_factors`"),
        ({"n_factors": []}, TypeError, "`n_factors`"),
        ({"n_factors": 5}, TypeError, "`n_factors`"),
        ({"n_factors": [0]}, ValueError, "`n_factors`"),
        ({"n_spatial": [-1]}, ValueError, "`n_spatial`"),
        ({"n_factors": [2], "n_spatial": [3]}, ValueError, "`n_spatial`"),
        ({"n_seeds": 0}, ValueError, "`n_seeds`"),
        ({"n_jobs": 0}, ValueError, "`n_jobs`"),
        ({"key_added": "a/b"}, ValueError, "key_added"),
        ({"model": "fa"}, ValueError, "`model`"),
        ({"split": "assumed"}, TypeError, "'split'"),
        ({"objective": "exact"}, ValueError, "`objective`"),
        ({"layer": "counts"}, TypeError, "'layer' .did you mean 'layers'"),
        ({"layers": "nowhere"}, KeyError, "nowhere"),
    ):
        with subtests.test(arguments=arguments):
            with pytest.raises(error, match=message):
                select_n_factors(adata, **{**FAST, **arguments})
            assert "gpnsf_selection" not in adata.uns


@pytest.mark.slow
def test_numbers_are_found():
    data = datasets.ggblocks(n_side=18, n_genes=200, n_peaks=36, depth=0.3, seed=0)["rna"]
    table = select_n_factors(
        data, n_factors=[5, 7, 9], n_seeds=1, n_jobs=1, size_factors=None, progress=False
    )
    assert abs(table.attrs["n_factors"] - 7) <= 1
    assert abs(table.attrs["n_spatial"] - 4) <= 1


def test_a_disk_that_fills_up_ends_no_search(tmp_path, monkeypatch, caplog):
    finished = Finished(tmp_path / "search.npz", {"what": "search"})
    before = (tmp_path / "search.npz").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    for name in ("one", "two"):
        finished.keep(name, {"deviance": np.ones(2)})
    assert [text for text in caplog.messages if "could not be written (No space left" in text]
    assert len(caplog.messages) == 1
    assert list(finished.found) == ["one", "two"]
    assert (tmp_path / "search.npz").read_bytes() == before
