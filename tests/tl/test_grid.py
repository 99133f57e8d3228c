"""`tl.grid`: what it refuses, what it makes once, and that it goes on whatever has ended it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config

import gpnsf
from gpnsf import cli
from gpnsf.tl import own_process
from gpnsf.tl.one_run import work
from gpnsf.tl.plan import Run, read_plan
from gpnsf.tl.run_records import Records

BLOCKS = {"simulate": "ggblocks", "n_side": 12, "n_genes": 40, "n_peaks": 36}
SPEC = """
[data]
blocks = {simulate = "ggblocks", n_side = 12, n_genes = 40, n_peaks = 36}

[fit]
model = "pnmf"
modalities = [["rna"]]
likelihoods = "poisson"
n_factors = 3
max_steps = 2
seed = [0, 1]

[split]
holdout = 0.1
"""
STUB = """
import json, os, sys
run = json.loads(sys.argv[1])
line = {"modality": "rna", "likelihood": "nb", "deviance": 1.0 + run["arguments"]["seed"]}
if run["arguments"]["n_factors"] == 5:
    sys.exit("no such luck")
print("something else"); print(json.dumps({"lines": [line], "error": None, "seconds": os.getpid()}))
"""


@pytest.fixture
def stub(monkeypatch):
    """Runs that fit nothing: their processes answer at once, and fail with five factors."""
    monkeypatch.setattr(own_process, "START", STUB)


def spec(**fit: Any) -> dict[str, Any]:
    return {"data": {"blocks": BLOCKS}, "fit": fit}


def grid(*args: Any, **options: Any) -> pd.DataFrame:
    return gpnsf.tl.grid(*args, progress=False, **options)


# ---- what is asked for ----------------------------------------------------------------------------------------------


def test_lists_are_combined_and_variants_replace_what_they_name():
    runs = read_plan(spec(model=["nsf", "pnmf"], n_factors=[4, 6], seed=[0, 1]))
    asked = [(run.model, run.arguments["n_factors"], run.arguments["seed"]) for run in runs]
    assert asked == [(m, K, s) for m in ("nsf", "pnmf") for K in (4, 6) for s in (0, 1)]
    variants = [{"model": "nsfh", "n_factors": 7, "n_spatial": 4}, {"model": ["nsf", "pnmf"]}]
    runs = read_plan({**spec(n_factors=4), "variant": variants})
    assert [(run.model, run.arguments["n_factors"]) for run in runs] == [
        ("nsfh", 7),
        ("nsf", 4),
        ("pnmf", 4),
    ]
    assert runs[0].arguments["n_spatial"] == 4


def test_a_list_of_modalities_is_one_value_and_none_stands_for_none():
    (run,) = read_plan(spec(modalities=["rna", "atac"], size_factors="none"))
    assert run.arguments["modalities"] == ["rna", "atac"]
    assert run.arguments["size_factors"] is None
    one, other = read_plan(spec(modalities=[["rna"], ["rna", "atac"]]))
    assert (one.arguments["modalities"], other.arguments["modalities"]) == (
        ["rna"],
        ["rna", "atac"],
    )


def test_a_model_without_likelihood_of_counts_is_fitted_once():
    fit = {"likelihoods": ["poisson", "nb"], "kernel": "rbf", "max_steps": 9}
    runs = read_plan(spec(model=["nsf", "rsf", "mefisto"], **fit))
    assert [run.model for run in runs] == ["nsf", "nsf", "rsf", "mefisto"]
    assert runs[-1].arguments == {"n_factors": 12, "seed": 0, "max_steps": 9}


def test_the_key_follows_content_and_arguments_and_not_the_name(tmp_path, adata):
    adata.write(tmp_path / "a.h5ad")
    for name in ("b", "c"):
        (tmp_path / f"{name}.h5ad").write_bytes((tmp_path / "a.h5ad").read_bytes())
    (tmp_path / "grid.toml").write_text('[data]\na = "a.h5ad"\nb = "b.h5ad"\nc = "c.h5ad"')
    one, same, other = read_plan(tmp_path / "grid.toml")
    assert one.key == same.key == other.key
    adata.X[0, 0] += 1
    adata.write(tmp_path / "b.h5ad")
    before, after = one.key, read_plan(tmp_path / "grid.toml")[1].key
    assert after != before
    keys = {run.key for run in read_plan(spec(n_factors=[2, 3], tol=[1e-3, 1e-4]))}
    assert len(keys) == 4


def test_a_wrong_grid_is_refused_before_anything_is_made(subtests, tmp_path):
    for found, message in (
        ({"fits": {}}, "'fits' .did you mean 'fit'.*Leave it out"),
        ({"data": {}}, "a grid with data; got none. Name data"),
        ({"data": {"a": 3}}, "'a' in .data. to be a path or a simulation.*got 3 of type int"),
        ({"data": {"a": {"simulate": "gblocks"}}}, "'gblocks' .did you mean 'ggblocks'"),
        ({"data": {"a": {**BLOCKS, "n_gene": 3}}}, "'n_gene' .did you mean 'n_genes'"),
        ({"data": {"a": "nothing.h5ad"}}, "a file that exists"),
        ({"fit": {"n_factor": 3}}, "'n_factor' .did you mean 'n_factors'"),
        ({"fit": {"model": ["nsf", "nsff"]}}, "'nsff'. Pass for example model='nsf'"),
        ({"fit": {"likelihoods": "poison"}}, "'poison'. Pass for example likelihoods='poisson'"),
        ({"fit": {"likelihoods": {"rna": "bn"}}}, "likelihoods.*'bn'"),
        ({"fit": {"n_factors": [3, 0]}}, "`n_factors`.*at least 1; got 0"),
        ({"fit": {"n_factors": []}}, "at least one value of each argument; got none"),
        ({"fit": {"model": "nsf", "n_factors": 4, "n_spatial": 3}}, "n_spatial=4 for model='nsf'"),
        ({"fit": {"model": "mefisto", "n_inducing": 10}}, "`n_inducing`.*at least 100"),
        ({"fit": {"copy": True}}, "does not set; got 'copy'. Leave copy out"),
        ({"fit": {"holdout_key": "a"}, "split": {"holdout": 0.1}}, "Leave holdout_key out or .spl"),
        ({"split": {"hold_out": 0.1}}, "'hold_out' .did you mean 'holdout'"),
        ({"split": {"holdout": 1.0}}, "`holdout` below 1"),
        ({"variant": {"model": "nsf"}}, "Write ..variant.. with two brackets"),
        ({"keep_fits": "yes"}, "`keep_fits` to be True or False"),
    ):
        with subtests.test(found=found):
            with pytest.raises((ValueError, TypeError, KeyError, OSError), match=message):
                grid({"data": {"blocks": BLOCKS}, **found}, tmp_path / "out")
            assert not (tmp_path / "out").exists()


def test_a_wrong_part_is_refused(subtests, tmp_path):
    for part in ((0, 2), (3, 2), (1,), "1/2", (1.0, 2)):
        with subtests.test(part=part), pytest.raises(ValueError, match="`part` to be .i, n."):
            grid(spec(), tmp_path, part=part)


def test_a_file_that_is_no_toml_is_told_with_its_line(tmp_path, capsys):
    path = tmp_path / "grid.toml"
    path.write_text("[data\n")
    assert cli.main(["grid", str(path), str(tmp_path / "out")]) == 2
    assert "a file in TOML" in (error := capsys.readouterr().err)
    assert "line 1" in error


# ---- what is made ---------------------------------------------------------------------------------------------------


def test_runs_are_made_once_and_failures_again_if_asked(stub, tmp_path):
    asked = spec(n_factors=[4, 5], seed=[0, 1], tol=[1e-3])
    table = grid(asked, tmp_path, n_jobs=2)
    assert table["n_factors"].tolist() == [4, 4, 5, 5]
    assert table["deviance"].tolist()[:2] == [1.0, 2.0]
    assert table["modality"].isna().tolist() == [False, False, True, True]
    assert table["error"][2] == "the process ended with code 1: no such luck"
    again = grid(asked, tmp_path)
    pd.testing.assert_frame_equal(table, again)
    retried = grid(asked, tmp_path, retry=True)
    assert retried["seconds"].tolist()[:2] == table["seconds"].tolist()[:2]
    longer = grid(spec(n_factors=[4, 5, 6], seed=[0, 1], tol=[1e-3]), tmp_path)
    assert longer["seconds"][:2].tolist() == table["seconds"][:2].tolist()
    stored = pd.read_csv(tmp_path / "table.csv")
    assert stored["key"].tolist() == longer["key"].tolist()


def test_parts_share_a_folder_and_make_the_whole(stub, tmp_path):
    asked = spec(seed=[0, 1, 2, 3, 4])
    numbers = [len(grid(asked, tmp_path, part=(i, 3))) for i in (1, 2, 3)]
    assert numbers == [2, 4, 5]
    assert len(list((tmp_path / "runs").glob("*.json"))) == 5


def test_a_run_is_made_by_one_process_at_a_time(tmp_path):
    (run,) = read_plan(spec())
    calls: list[bool] = []

    def other(_: Run) -> dict[str, Any]:
        calls.append(Records(tmp_path).make(run, refused, retry=False, wait=False))
        return {"lines": [], "error": None}

    def refused(_: Run) -> dict[str, Any]:
        raise AssertionError("made twice")

    assert Records(tmp_path).make(run, other, retry=False, wait=False)
    assert calls == [False]
    assert Records(tmp_path).make(run, refused, retry=False, wait=True)


def test_a_record_that_is_damaged_is_named(stub, tmp_path):
    grid(spec(), tmp_path)
    (path,) = (tmp_path / "runs").glob("*.json")
    path.write_text("{")
    with pytest.raises(
        ValueError, match=f"a record of gpnsf.tl.grid; got .*{path.name}.*Delete it"
    ):
        grid(spec(), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_runs_go_through_dask_where_it_is_installed(stub, tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.Client(processes=False, n_workers=1, dashboard_address=None),
        parallel_config("dask"),
    ):
        assert len(grid(spec(seed=[0, 1]), tmp_path)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("model", ["pnmf", "rsf"])
def test_a_run_is_the_fit_that_one_would_make(model, simulated, tmp_path):
    arguments = {"n_factors": 3, "max_steps": 3, "seed": 1}
    simulated.write(tmp_path / "a.h5mu")
    source = {"file": str(tmp_path / "a.h5mu")}
    run = Run("a", source, "", model, arguments, holdout=0.1, keep_fit=True)
    found = work(run, tmp_path / "fits" / "key")
    data = simulated.copy()
    gpnsf.pp.split(data, fraction=0.1, seed=1)
    if model == "rsf":
        gpnsf.pp.normalise(data, holdout_key="holdout")
        arguments["layers"] = "normalised"
    gpnsf.tl.fit(data, model, **arguments, holdout_key="holdout", progress=False)
    judged = gpnsf.tl.evaluate(data, metric="poisson")
    lines = {line["modality"]: line for line in found["lines"]}
    for line in judged.to_dict("records"):
        suffix = "_holdout" if line["rows"] == "holdout" else ""
        assert lines[line["modality"]][f"deviance{suffix}"] == line["deviance"]
        assert lines[line["modality"]][f"explained{suffix}"] == line["explained"]
    assert found["n_kept"] == data.obsm["X_gpnsf"].shape[1]
    assert found["n_steps"] == len(data.uns["gpnsf"]["history"]["elbo"])
    kept = gpnsf.io.files.read(tmp_path / "fits" / "key.h5mu")
    np.testing.assert_array_equal(kept.obsm["X_gpnsf"], data.obsm["X_gpnsf"])


def test_what_only_the_data_can_tell_is_the_error_of_a_run():
    (run,) = read_plan(spec(n_factors=500))
    found = own_process.answer(run)
    assert found["error"].startswith("ValueError: Expected `n_factors` of at most 76")


# ---- interrupted ----------------------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in tasks for child in path.read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_killed_it_goes_on_where_it_was_and_fits_nothing_twice(tmp_path):
    path, out = tmp_path / "grid.toml", tmp_path / "out"
    path.write_text(SPEC)
    process = subprocess.Popen(
        [sys.executable, "-m", "gpnsf", "grid", str(path), str(out)], stdout=subprocess.DEVNULL
    )
    while not list(out.glob("runs/*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    while not (started := children(process.pid)):  # the second run
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (first,) = out.glob("runs/*.json")
    before = first.stat().st_mtime_ns
    table = grid(path, out)
    assert first.stat().st_mtime_ns == before
    assert not any(Path(f"/proc/{child}").exists() for child in started)
    assert table["error"].isna().all()
    stamps = [file.stat().st_mtime_ns for file in sorted(out.glob("runs/*.json"))]
    pd.testing.assert_frame_equal(grid(path, out), table)
    assert [file.stat().st_mtime_ns for file in sorted(out.glob("runs/*.json"))] == stamps
    runs = read_plan(path)
    for run, line in zip(runs, table.to_dict("records"), strict=True):
        found = work(Run(**json.loads(json.dumps(asdict(run)))))["lines"][0]
        assert line["deviance_holdout"] == pytest.approx(found["deviance_holdout"], rel=1e-6)
