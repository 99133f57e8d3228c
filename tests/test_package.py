"""The package as a whole: what it imports and when, its settings, and the examples of its documentation."""

from __future__ import annotations

import ast
import doctest
import inspect
import json
import logging
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

import gpnsf
from gpnsf.keys import Keys
from gpnsf.settings import Settings

ROOT = Path(__file__).parents[1]
PACKAGES = ("pp", "tl", "pl", "datasets")
PUBLIC = [f"{package}.{name}" for package in PACKAGES for name in getattr(gpnsf, package).__all__]
HEAVY = {
    "torch",
    "pyro",
    "scanpy",
    "squidpy",
    "muon",
    "matplotlib.pyplot",
    "sklearn",
    "numba",
    "anndata",
    "mudata",
}


def run(code: str) -> str:
    """Run code in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def loaded_by(code: str) -> set[str]:
    """Names of all modules that a fresh interpreter holds after some code."""
    return set(json.loads(run(f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))")))


def public(name: str) -> Callable[..., Any]:
    """The function of a name such as ``tl.fit``."""
    package, function = name.split(".")
    return getattr(getattr(gpnsf, package), function)


def readme_example(number: int) -> str:
    """The n-th Python block of the README."""
    return re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )[number]


def test_import_loads_nothing_heavy():
    assert not loaded_by("import gpnsf; gpnsf.__version__; gpnsf.settings; dir(gpnsf.tl)") & HEAVY


@pytest.mark.broad(1)
@pytest.mark.parametrize("package", ["pp", "pl", "datasets"])
def test_torch_stays_out_of_what_does_not_fit(package):
    code = f"import gpnsf\nfor name in gpnsf.{package}.__all__: getattr(gpnsf.{package}, name)"
    assert not loaded_by(code) & {"torch", "pyro", "scanpy", "squidpy"}


@pytest.mark.slow
def test_a_saved_fit_is_read_without_torch():
    names = ("factor_adata", "rank_features", "spatial_importance")
    assert not loaded_by(f"from gpnsf.tl import {', '.join(names)}") & {
        "torch",
        "pyro",
        "scanpy",
        "squidpy",
    }


def test_what_is_imported_is_declared_and_the_other_way_round():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = [
        *project["dependencies"],
        *extras["enrich"],
        *extras["leiden"],
        *extras["mefisto"],
        *extras["spatialdata"],
    ]
    declared = {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}
    modules = {{"pyro-ppl": "pyro", "scikit-learn": "sklearn"}.get(name, name) for name in declared}
    trees = (
        ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for path in (ROOT / "src").rglob("*.py")
    )
    nodes = [node for tree in trees for node in tree]
    imported = {
        alias.name.split(".")[0]
        for node in nodes
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported - set(sys.stdlib_module_names) - {"gpnsf"} == modules


def test_version_is_that_of_the_distribution():
    assert gpnsf.__version__ == version("gpnsf")
    assert f"## [{gpnsf.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {gpnsf.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_public_name_is_a_function_even_where_its_file_was_imported_first():
    homes = [
        getattr(getattr(gpnsf, package), name).__module__
        for package, name in (p.split(".") for p in PUBLIC)
    ]
    code = f"import importlib, gpnsf\nfor home in {homes}: importlib.import_module(home)\n"
    assert (
        run(
            f"{code}print(all(callable(f) for f in [{', '.join(f'gpnsf.{name}' for name in PUBLIC)}]))"
        )
        == "True\n"
    )


def test_arguments_after_the_data_are_named(subtests):
    named = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD
    more = {
        "pl.links": ["gene"],
        "pl.report": ["path"],
        "tl.deconvolve": ["reference"],
        "tl.enrich": ["gene_sets"],
        "tl.evaluate_deconvolution": ["truth"],
        "tl.evaluate_links": ["truth"],
        "tl.fit": ["model"],
        "tl.forecast": ["model"],
        "tl.grid": ["folder"],
        "tl.predict": ["coords"],
        "tl.project": ["reference"],
        "tl.train_unrolled": ["reference", "truth"],
    }
    for name in PUBLIC:
        with subtests.test(name=name):
            arguments = inspect.signature(public(name)).parameters.values()
            unnamed = [argument.name for argument in arguments if argument.kind not in named]
            assert unnamed == [*unnamed[:1], *more.get(name, [])]


def test_docstrings_describe_all_arguments_in_their_order(subtests):
    for name in PUBLIC:
        with subtests.test(name=name):
            assert _described(public(name)) == list(inspect.signature(public(name)).parameters)


def _described(function: Callable[..., Any]) -> list[str]:
    """Names of arguments in the docstring, of which a line may have several."""
    section = r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-+$|\Z)"
    found = re.search(section, inspect.getdoc(function), re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^[\w*].*$", found[1], re.MULTILINE) if found else []
    return [name.strip(" *") for line in lines for name in line.split(",")]


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"gpnsf\.tl.*'nothing'.*rank_features"):
        gpnsf.tl.nothing  # noqa: B018


def test_every_public_function_is_in_the_documentation():
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert not [name for name in PUBLIC if f"\n   {name}\n" not in text.replace("    ", "   ")]


@pytest.mark.broad(1)
@pytest.mark.parametrize("part", range(9))
@pytest.mark.filterwarnings("default")
def test_the_examples_of_public_functions_run(part, subtests, tmp_path, monkeypatch):
    for name in PUBLIC[part::9]:
        with subtests.test(name=name):
            (tmp_path / name).mkdir()
            monkeypatch.chdir(tmp_path / name)
            example = doctest.DocTestFinder(recurse=False).find(public(name), globs={})[0]
            assert example.examples
            assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0
            plt.close("all")


def test_the_example_of_the_settings_runs():
    example = doctest.DocTestFinder(recurse=False).find(Settings, globs={})[0]
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.slow
def test_the_examples_of_the_readme_run(tmp_path, monkeypatch):
    pytest.importorskip("squidpy", reason="the README's last example goes on with squidpy")
    monkeypatch.chdir(tmp_path)
    short = {"fit": {"max_steps": 20}, "factvae": {"max_epochs": 3}, "scai": {"max_steps": 10}}
    for tool, options in short.items():
        monkeypatch.setattr(gpnsf.tl, tool, partial(getattr(gpnsf.tl, tool), **options))
    names: dict[str, object] = {}
    exec(readme_example(0), names)
    assert (tmp_path / "tissue.h5mu").is_file()
    for number in (2, 3, 4):
        exec(readme_example(number), names)
    assert "moranI" in names["factors"].uns
    assert (tmp_path / "tissue.html").is_file()
    assert {"X_factvae", "X_scai", "X_mefisto"} <= set(names["mdata"].obsm)


def test_the_readme_names_every_slot():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    slots = [slot for names in Keys().slots.values() for slot in names]
    assert slots
    assert not [slot for slot in slots if f"`{slot}`" not in text]


def test_a_wrong_setting_is_refused_and_changes_nothing(subtests):
    for name, value in (
        ("verbosity", "loud"),
        ("verbosity", 1),
        ("progress", 1),
        ("device", "gpu"),
        ("device", "cuda:x"),
        ("device", None),
        ("memory_budget", -1),
        ("memory_budget", "1 GB"),
    ):
        with subtests.test(name=name, value=value):
            settings = Settings()
            with pytest.raises(ValueError, match=rf"`{name}` must be .*; got {value!r}\. "):
                setattr(settings, name, value)
            assert settings == Settings()


def test_an_unknown_setting_is_refused():
    with pytest.raises(AttributeError, match="Settings are verbosity, .*; got 'verbose'"):
        Settings().verbose = True


def test_override_sets_and_restores_even_after_an_error():
    log = logging.getLogger("gpnsf")
    before = log.level
    with (
        suppress(RuntimeError),
        gpnsf.settings.override(verbosity="error", progress=False) as inside,
    ):
        assert (inside.verbosity, inside.progress, log.level) == ("error", False, logging.ERROR)
        raise RuntimeError
    assert (gpnsf.settings.verbosity, gpnsf.settings.progress, log.level) == ("info", True, before)


def test_the_log_has_one_handler_of_its_own_unless_the_application_logs():
    count = "print(len(logging.getLogger('gpnsf').handlers), logging.getLogger('gpnsf').propagate)"
    alone = (
        "import logging, importlib, sys, gpnsf; gpnsf.settings\ndel sys.modules['gpnsf.settings']\n"
    )
    assert run(f"{alone}importlib.import_module('gpnsf.settings'); {count}").split() == [
        "1",
        "False",
    ]
    assert run(
        f"import logging; logging.basicConfig(); import gpnsf; gpnsf.settings; {count}"
    ).split() == ["0", "True"]
