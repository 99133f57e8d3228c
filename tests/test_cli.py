"""The command line: what it writes, what it prints, and how it refuses."""

from __future__ import annotations

import inspect
import io
import re
import subprocess
import sys

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest

import gpnsf
from gpnsf import cli, demo
from gpnsf.arguments import DEFAULTS, RULES
from gpnsf.core.families import FAMILIES
from gpnsf.options import COMMANDS, FIT_OPTIONS, read_assignment


@pytest.fixture
def source(mdata, tmp_path):
    """A file with a simulated section."""
    mdata.write(tmp_path / "section.h5mu")
    return str(tmp_path / "section.h5mu")


@pytest.fixture(scope="module")
def fit(simulated):
    """A fit of two factors, made once."""
    options = {"n_factors": 2, "max_steps": 3, "init": "spot", "split": "assumed"}
    return gpnsf.tl.fit(simulated, **options, progress=False, copy=True)


@pytest.fixture
def fitted(fit, tmp_path):
    """A file with that fit."""
    fit.write(tmp_path / "fitted.h5mu")
    return str(tmp_path / "fitted.h5mu")


def refused(capsys, *argv: str) -> str:
    """Message of a command that must fail on bad input; nothing else is printed."""
    assert cli.main(list(argv)) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert "Traceback" not in printed.err
    assert printed.err.startswith(f"gpnsf {argv[0]}: ")
    return printed.err


def test_version_is_printed():
    done = subprocess.run(
        [sys.executable, "-m", "gpnsf", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"gpnsf {gpnsf.__version__}\n"


def test_a_line_that_cannot_be_read_ends_in_usage_and_status_2(subtests, capsys):
    for argv in (
        [],
        ["unknown"],
        ["fit", "in.h5mu"],
        ["fit", "in.h5mu", "out.h5mu", "--n-factors", "many"],
        ["fit", "in.h5mu", "out.h5mu", "--likelihoods", "rna=,atac=nb"],
        ["fit", "in.h5mu", "out.h5mu", "--modality-weights", "rna"],
        ["fit", "in.h5mu", "out.h5mu", "--modality-weights", "rna=heavy"],
        ["simulate", "unknown", "out.h5mu"],
    ):
        with subtests.test(argv=argv):
            with pytest.raises(SystemExit, match="2"):
                cli.main(argv)
            printed = capsys.readouterr().err
            assert "usage: gpnsf" in printed
            assert printed.count("error:") == 1


def test_what_was_meant_is_asked(subtests, capsys):
    for argv, usage, meant in (
        (["ftt"], "gpnsf [-h]", "'fit'"),
        (["fit", "in.h5mu", "out.h5mu", "--nfactors", "3"], "gpnsf fit", "'--n-factors'"),
        (["fit", "in.h5mu", "out.h5mu", "--n_factors=3"], "gpnsf fit", "'--n-factors'"),
        (["rank", "in.h5mu", "--n-genes", "3"], "gpnsf rank", "'--n-features'"),
        (["simulate", "tisue", "out.h5mu"], "gpnsf simulate", "'tissue'"),
        (["demo", "--blue"], "gpnsf demo", None),
    ):
        with subtests.test(argv=argv):
            with pytest.raises(SystemExit, match="2"):
                cli.main(argv)
            printed = capsys.readouterr().err
            assert printed.startswith(f"usage: {usage}")
            assert re.findall(r"did you mean (.*)\?", printed) == ([meant] if meant else [])


def test_help_tells_the_default_of_every_option(subtests, capsys):
    for command in sorted(cli.RUN):
        with subtests.test(command=command):
            with pytest.raises(SystemExit, match="0"):
                cli.main([command, "--help"])
            _, printed = capsys.readouterr().out.split("options:")
            options = " ".join(printed.split()).split(" --")[2:]
            assert all("default: " in text for text in options if not text.endswith(","))


def test_every_command_can_be_asked_for():
    assert cli.RUN.keys() == COMMANDS.keys()


def test_help_of_fit_has_the_defaults_of_the_function():
    arguments = inspect.signature(gpnsf.tl.fit).parameters
    assert {name: arguments[name].default for name in DEFAULTS} == DEFAULTS


def test_every_argument_of_fit_has_an_option():
    arguments = inspect.signature(gpnsf.tl.fit).parameters.keys() - {"data", "copy"}
    assert FIT_OPTIONS.keys() == arguments


def test_help_of_fit_names_what_an_argument_may_be(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["fit", "--help"])
    words = set(re.findall(r"\w+", capsys.readouterr().out))
    assert words >= {option for rule in RULES.values() for option in rule.options} | set(FAMILIES)


def test_forecast_prints_what_a_fit_with_the_same_options_would_take(source, capsys):
    assert (
        cli.main(
            ["forecast", source, "--n-factors", "3", "--likelihoods", "poisson", "--no-refine"]
        )
        == 0
    )
    found = gpnsf.tl.forecast(source, n_factors=3, likelihoods="poisson", refine=False)
    assert capsys.readouterr().out == f"{found}\n"


def test_a_fit_that_cannot_fit_ends_in_a_message(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gpnsf.io.streaming.available_memory", lambda: 1e6)
    assert "Expected a fit that fits into memory; got" in refused(
        capsys, "fit", source, str(tmp_path / "out.h5mu")
    )
    assert not (tmp_path / "out.h5mu").exists()


def test_options_reach_fit_in_its_own_terms(source, tmp_path, monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(gpnsf.tl, "fit", lambda data, **options: seen.update(options))
    options = (
        "--n-factors 3 --modalities rna,atac --likelihoods rna=poisson,atac=bernoulli --layers counts --size-factors none "
        "--modality-weights rna=1,atac=0.5 --no-refine --tol 1e-3 --key-added mine"
    )
    assert cli.main(["fit", source, str(tmp_path / "out.h5mu"), *options.split()]) == 0
    assert seen == {
        "n_factors": 3,
        "modalities": ["rna", "atac"],
        "likelihoods": {"rna": "poisson", "atac": "bernoulli"},
        "layers": "counts",
        "size_factors": None,
        "modality_weights": {"rna": 1.0, "atac": 0.5},
        "refine": False,
        "tol": 1e-3,
        "key_added": "mine",
    }


def test_fit_writes_the_annotated_object(source, tmp_path, capsys):
    target = tmp_path / "out.h5mu"
    assert (
        cli.main(
            ["fit", source, str(target), "--n-factors", "2", "--max-steps", "3", "--no-progress"]
        )
        == 0
    )
    assert mudata.read_h5mu(target).obsm["X_gpnsf"].shape == (150, 2)
    assert str(target) in capsys.readouterr().out


def test_fit_reads_anndata(adata, tmp_path):
    adata.write(tmp_path / "in.h5ad")
    options = (
        "--n-factors 2 --max-steps 3 --init random --likelihoods poisson --no-progress".split()
    )
    assert cli.main(["fit", str(tmp_path / "in.h5ad"), str(tmp_path / "out.h5ad"), *options]) == 0
    assert anndata.read_h5ad(tmp_path / "out.h5ad").uns["gpnsf"]["likelihoods"]["rna"] == "poisson"


def test_rank_prints_the_table(fitted, capsys):
    assert cli.main(["rank", fitted, "--n-features", "3", "--modality", "rna"]) == 0
    printed = pd.read_csv(io.StringIO(capsys.readouterr().out))
    expected = gpnsf.tl.rank_features(mudata.read_h5mu(fitted), modality="rna", n_features=3)
    pd.testing.assert_frame_equal(printed, expected, check_dtype=False, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"metric": "poisson", "layers": "again"}])
def test_evaluate_prints_the_table(options, fit, tmp_path, capsys):
    mdata = fit.copy()
    for mod in mdata.mod.values():
        mod.layers["again"] = mod.X.copy()
    mdata.write(path := str(tmp_path / "fitted.h5mu"))
    flags = [text for name, value in options.items() for text in (f"--{name}", value)]
    assert cli.main(["evaluate", path, *flags]) == 0
    printed = pd.read_csv(io.StringIO(capsys.readouterr().out))
    pd.testing.assert_frame_equal(printed, gpnsf.tl.evaluate(mdata, **options), rtol=1e-4)


def test_domains_go_into_the_file(fitted, tmp_path, capsys):
    target = str(tmp_path / "out.h5mu")
    options = ["--n-domains", "3", "--factors", "all"]
    assert cli.main(["domains", fitted, target, *options]) == 0
    assert cli.main(["domains", target, target, "--n-domains", "2", "--key-added", "two"]) == 0
    written = mudata.read_h5mu(target).obs
    assert (written["gpnsf_domain"].nunique(), written["two"].nunique()) == (3, 2)
    sizes = ", ".join(map(str, written["two"].value_counts()))
    assert f"into domains of {sizes} observations: {target}" in capsys.readouterr().out


@pytest.mark.slow
def test_select_prints_the_table_and_its_reason_and_keeps_both(source, tmp_path, capsys):
    target = str(tmp_path / "out.h5mu")
    options = "--n-factors 2,3 --n-seeds 1 --n-jobs 1 --max-steps 3 --init spot --likelihoods nb"
    assert cli.main(["select", source, target, *options.split()]) == 0
    record = mudata.read_h5mu(target).uns["gpnsf_selection"]
    printed = capsys.readouterr().out
    assert record["reason"] in printed
    assert printed.startswith(" n_factors  n_spatial")
    assert record["table"]["n_factors"].tolist() == [2, 3]


def test_predict_gives_factors_at_the_coordinates_of_a_table(fitted, tmp_path):
    coords = mudata.read_h5mu(fitted).obsm["spatial"][:5]
    pd.DataFrame(coords, columns=["x", "y"]).to_csv(tmp_path / "coords.csv", index=False)
    assert (
        cli.main(["predict", fitted, str(tmp_path / "coords.csv"), str(tmp_path / "out.h5ad")]) == 0
    )
    predicted = anndata.read_h5ad(tmp_path / "out.h5ad")
    expected = gpnsf.tl.predict(mudata.read_h5mu(fitted), coords)
    np.testing.assert_allclose(predicted.X, expected.X, rtol=1e-5)


def test_project_writes_new_observations_at_the_factors_of_a_fit(fitted, tmp_path, capsys):
    new, target = str(tmp_path / "new.h5mu"), str(tmp_path / "out.h5mu")
    mudata.read_h5mu(fitted)[:20].copy().write(new)
    options = "--max-steps 2 --key-added again --size-factors total"
    assert cli.main(["project", new, fitted, target, *options.split()]) == 0
    written = mudata.read_h5mu(target)
    assert written.uns["again"]["projection"]["key"] == "gpnsf"
    assert written.uns["again"]["params"]["max_steps"] == 2
    assert "projected 20 observations" in capsys.readouterr().out


@pytest.mark.parametrize(("factors", "status"), [("4", 0), ("5", 1)])
def test_grid_says_where_its_table_is_and_what_failed(
    factors, status, tmp_path, capsys, monkeypatch
):
    answer = '{"lines": [{"modality": "rna", "likelihood": "nb"}], "error": null}'
    stub = f"import sys; sys.exit('bad luck') if '5' in sys.argv[1] else print({answer!r})"
    monkeypatch.setattr("gpnsf.tl.own_process.START", stub)
    path, out = tmp_path / "grid.toml", tmp_path / "out"
    path.write_text(f'[data]\na = {{simulate = "ggblocks"}}\n[fit]\nn_factors = {factors}')
    assert cli.main(["grid", str(path), str(out), "--part", "1/1", "--jobs", "2"]) == status
    printed = capsys.readouterr()
    assert printed.out == f"1 runs, of which {status} failed: {out / 'table.csv'}\n"
    assert ("bad luck" in printed.err) == bool(status)
    assert pd.read_csv(out / "table.csv")["n_factors"].tolist() == [int(factors)]


OTHERS = {
    "report",
    "links",
    "proportions",
    "domains",
    "grid",
    "selection",
    "spatial_map",
}  # a page, and figures that not every fit has


@pytest.mark.slow
def test_plot_draws_every_figure(fitted, tmp_path, capsys):
    assert cli.main(["plot", fitted, str(tmp_path / "figures")]) == 0
    written = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert written == set(demo.FIGURES) == set(gpnsf.pl.__all__) - OTHERS
    assert len(capsys.readouterr().out.splitlines()) == len(written)


@pytest.mark.slow
def test_report_writes_a_page_that_names_its_file(fitted, tmp_path, capsys):
    target = tmp_path / "fit.html"
    assert cli.main(["report", fitted, str(target)]) == 0
    assert "<h1>fitted.h5mu, fit &#x27;gpnsf&#x27;</h1>" in target.read_text(encoding="utf-8")
    assert str(target) in capsys.readouterr().out
    assert "*.html" in refused(capsys, "report", fitted, str(tmp_path / "fit.pdf"))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ggblocks", ["n_side=12"]),
        ("groups", ["n_obs=60", "variant='many'"]),
        ("quilt", ["n_side=18", "depth=0.5"]),
        ("tissue", ["n_obs=60", "lengthscales=(0.1, 0.2)"]),
    ],
)
def test_simulate_writes_what_the_function_gives(name, values, tmp_path):
    target = tmp_path / "out.h5mu"
    values = ["n_genes=20", "n_peaks=30", *values]
    assert cli.main(["simulate", name, str(target), "--seed", "3", "--set", *values]) == 0
    options = dict(map(read_assignment, values))
    expected = getattr(gpnsf.datasets, name)(seed=3, **options)
    np.testing.assert_array_equal(
        mudata.read_h5mu(target).obsm["true_factors"], expected.obsm["true_factors"]
    )


def test_benchmark_runs_a_file_with_its_arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "BENCHMARKS", tmp_path)
    (tmp_path / "echo.py").write_text("import sys\nsys.exit(len(sys.argv) - 1)\n")
    assert cli.main(["benchmark", "echo", "--deep", "3", "-x"]) == 3


def test_bad_input_is_refused_in_one_message(subtests, source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coords.csv").write_text("x,y\n1,2\n")
    (tmp_path / "broken.h5mu").write_text("not a file of this kind")
    (tmp_path / "page.html").write_text("<p>not a report</p>")
    with h5py.File(tmp_path / "mine.h5ad", "w") as file:
        file["years"] = np.arange(3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    for argv, message in (
        (["fit", "absent.h5mu", "out.h5mu"], "a file that exists; got absent.h5mu"),
        (["fit", "in.csv", "out.csv"], r"a file .h5ad, .h5mu, .zarr; got in.csv"),
        (["fit", "broken.h5mu", "out.h5mu"], "broken.h5mu"),
        (["fit", "{source}", "out.h5ad"], r"a result named \*.h5mu; got out.h5ad"),
        (["fit", "{source}", "out.h5mu", "--n-factors", "0"], "n_factors"),
        (["fit", "{source}", "out.h5mu", "--likelihoods", "rna=normal"], "normal"),
        (["fit", "{source}", "out.h5mu", "--spatial-key", "xy"], "xy"),
        (["plot", "{source}", "figures"], "fit"),
        (["predict", "{source}", "coords.csv", "out.h5mu"], r"a result named \*.h5ad"),
        (["predict", "{source}", "absent.csv", "out.h5ad"], "absent.csv"),
        (["simulate", "tissue", "out.h5ad"], r"a result named \*.h5mu"),
        (["simulate", "tissue", "out.h5mu", "--set", "n_spots=3"], "n_genes.*got 'n_spots'"),
        (["simulate", "tissue", "out.h5mu", "--set", "n_obs=many"], "NAME=VALUE.*got 'n_obs=many'"),
        (["simulate", "tissue", "out.h5mu", "--set", "n_obs=-3"], "n_obs"),
        (["simulate", "tissue", "out.h5mu", "--seed", "-1"], "seed"),
        (["demo", "--out", "{source}"], "section.h5mu"),
        (["rank", "{source}"], "a fit in uns"),
        (["evaluate", "{source}", "--metric", "posson"], "metric='poisson'"),
        (["select", "{source}", "out.h5mu", "--n-factors", "0"], "n_factors"),
        (["domains", "{source}", "page.html"], r"named \*.h5mu"),
        (["demo", "--out", "new/demo"], "mkdir -p new/demo"),
        (["fit", "{source}", "new/out.h5mu"], "mkdir -p new"),
        (["report", "{source}", "page.html"], "got page.html, which is a file of another kind"),
        (["simulate", "tissue", "broken.h5mu"], "got broken.h5mu, which is a file of another kind"),
        (
            ["predict", "{source}", "coords.csv", "mine.h5ad"],
            "got mine.h5ad, which is HDF5 of another kind",
        ),
    ):
        with subtests.test(argv=argv):
            text = refused(capsys, *(part.format(source=source) for part in argv))
            assert re.search(message, text)
            assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_benchmark_needs_a_checkout_and_a_name_that_exists(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "BENCHMARKS", tmp_path)
    assert "source checkout" in refused(capsys, "benchmark", "speed")
    (tmp_path / "recovery.py").touch()
    assert "'recovery'" in refused(capsys, "benchmark", "speed")


@pytest.mark.slow
def test_demo_finds_the_truth_and_writes_a_file_and_figures(tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 0
    written = {path.name for path in (tmp_path / "demo").iterdir()}
    assert written == {"gpnsf-demo.h5mu", "truth.png", *(f"{name}.png" for name in demo.FIGURES)}
    printed = capsys.readouterr().out
    assert all(name in printed for name in written)
    correlations = [
        float(line.split()[-1]) for line in printed.splitlines() if line.startswith("  spatial ")
    ]
    assert len(correlations) == 4
    assert min(correlations) > 0.95


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:Writing zarr v2", "ignore:zarr v3 autosharding", "ignore:Consolidated metadata"
)
@pytest.mark.parametrize("suffix", [".h5ad", pytest.param(".zarr", marks=pytest.mark.slow)])
def test_a_large_file_is_copied_and_its_counts_stay_there(adata, tmp_path, monkeypatch, suffix):
    source, target, small = (tmp_path / f"{name}{suffix}" for name in ("in", "out", "small"))
    cli._write(adata, source)
    options = [
        "--n-factors",
        "2",
        "--max-steps",
        "3",
        "--init",
        "spot",
        "--split",
        "assumed",
        "--no-progress",
    ]
    assert cli.main(["fit", str(source), str(small), *options]) == 0
    monkeypatch.setattr(cli, "LARGE", 0)
    monkeypatch.setattr(cli, "_read", None)
    for _ in range(2):  # the second replaces the first
        assert cli.main(["fit", str(source), str(target), *options]) == 0
    monkeypatch.undo()
    found, expected = cli._read(target), cli._read(small)
    np.testing.assert_array_equal(found.obsm["X_gpnsf"], expected.obsm["X_gpnsf"])
    assert "X_gpnsf" not in cli._read(source).obsm
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [source.name, target.name, small.name]
    )


def test_a_large_file_may_be_its_own_target_and_is_left_alone_after_an_error(
    adata, tmp_path, monkeypatch, capsys
):
    path, other = tmp_path / "in.h5ad", tmp_path / "out.h5ad"
    adata.X[-1, -1] = -1
    adata.write(path)
    before = path.read_bytes()
    monkeypatch.setattr(cli, "LARGE", 0)
    options = "--n-factors 2 --max-steps 3 --init random --split assumed --no-progress".split()
    for target in (path, other):
        assert "Expected nonnegative counts" in refused(
            capsys, "fit", str(path), str(target), *options
        )
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["in.h5ad"]
    adata.X[-1, -1] = 1
    adata.write(path)
    assert cli.main(["fit", str(path), str(path), *options]) == 0
    assert anndata.read_h5ad(path).obsm["X_gpnsf"].shape == (150, 2)
