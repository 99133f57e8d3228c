"""Pages of the documentation that say what they show: the gallery has every figure, and the recipes run."""

from __future__ import annotations

import ast
import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import gpnsf
from gpnsf.core.fields import base
from gpnsf.core.inference import bins, order, scaled, standing, subset_start

DOCS = Path(__file__).parents[1] / "docs"
GALLERY = (DOCS / "gallery.md").read_text(encoding="utf-8")
PICTURES = re.findall(
    r"!\[(.+?)\]\((_static/gallery/\w+\.png)\)\n+```python\n(.*?)```", GALLERY, re.DOTALL
)

SECTIONS = dict(
    re.findall(
        r"\n## (\w[\w ]+)\n(.*?)(?=\n## |\Z)",
        (DOCS / "chain.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
)
RECIPES = {
    name: "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    for name, text in SECTIONS.items()
}


def calls(code: str) -> list[tuple[str, set[str]]]:
    """Functions of ``gpnsf.pl`` that a block calls, with the names of their arguments."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    named = [(ast.unparse(node.func), {keyword.arg for keyword in node.keywords}) for node in nodes]
    return [
        (name.removeprefix("gpnsf.pl."), arguments)
        for name, arguments in named
        if name.startswith("gpnsf.pl.")
    ]


@pytest.mark.parametrize(
    ("sentence", "number"),
    [
        ("$\\kappa = {:g}$ for spatial factors", scaled.MIXING),
        ("$e^{{m + \\min(v, {:g})/2}}$", scaled.VARIANCE_CAP),
        ("Factors with $z \\le {:g}$ become", order.MIN_Z),
        ("\\lvert a\\rvert \\le {:g},$", base.MAX_LOG_SCALE),
        ("Above {:,} spots or five million nonzero counts there are two starts", bins.LARGE),
        ("$\\min({:,}, \\max(", subset_start.ROWS),
        ("\\max({:,}, n))$", subset_start.FEWEST),
        ("from {:g} half-widths on", base.TISSUE),
        ("more than {:g} times as much as in most spatial factors", order.MANY_TIMES),
        ("or more than {:g} in any case", order.MOSTLY),
        ("hardly ask for (less than {:g} % of them", 100 * standing.SPARE),
    ],
)
def test_the_model_page_has_the_numbers_of_the_code(sentence, number):
    page = (DOCS / "model.md").read_text(encoding="utf-8").replace("{,}", ",")
    written = sentence.format(number).replace("0.", ".") if number < 1 else sentence.format(number)
    assert written in page


@pytest.mark.parametrize("name", gpnsf.pl.__all__)
def test_every_figure_is_in_the_gallery(name):
    assert f"\n### {name}\n" in GALLERY
    if name != "report":
        assert any(name == called for _, _, code in PICTURES for called, _ in calls(code))


@pytest.mark.parametrize(("path", "code"), [(path, code) for _, path, code in PICTURES])
def test_a_picture_is_there_and_small_and_its_code_fits_the_function(path, code):
    assert 1_000 < (DOCS / path).stat().st_size < 150_000
    ((name, arguments),) = calls(code)
    assert arguments <= inspect.signature(getattr(gpnsf.pl, name)).parameters.keys()


def test_no_picture_is_left_over():
    assert {path.name for path in (DOCS / "_static/gallery").iterdir()} == {
        Path(path).name for _, path, _ in PICTURES
    }
    assert GALLERY.count("_static/gallery/") == len(PICTURES)


def missing(code: str) -> list[str]:
    """Packages that a block imports and that are not installed."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return sorted({top for name in names if find_spec(top := name.split(".")[0]) is None})


@pytest.fixture(scope="module")
def fitted_section():
    """What the first block of the recipes leaves behind."""
    names: dict[str, object] = {}
    exec(RECIPES["The fit"], names)
    return names


@pytest.mark.slow
def test_the_label_of_the_recipes_is_the_factor_with_the_largest_share(fitted_section):
    factors = fitted_section["factors"]
    spatial = factors.var["is_spatial"].to_numpy()
    expected = (factors.layers["smooth"] * factors.var["importance"].to_numpy())[:, spatial].argmax(
        axis=1
    )
    assert (factors.obs["top_factor"] == factors.var_names[spatial][expected]).all()
    assert factors.obs["top_factor"].nunique() > 1


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "The fit"])
def test_a_recipe_runs(name, fitted_section, tmp_path, monkeypatch):
    if lacking := missing(RECIPES[name]):
        pytest.skip(f"the recipe for {name} needs {', '.join(lacking)}, which is not installed")
    monkeypatch.chdir(tmp_path)
    held = {key: fitted_section[key].copy() for key in ("mdata", "factors")}
    names = {**fitted_section, **held}
    exec(RECIPES[name], names)
    check = {
        "scanpy": lambda: (
            names["factors"].obsm["X_umap"].shape[0] == 400 and len(names["genes"]) >= 10
        ),
        "squidpy": lambda: names["moran"]["spatial_1"] > 0.3 and names["enrichment"].shape[0] > 1,
        "muon": lambda: (
            "X_umap" in names["mdata"].obsm and "X_gpnsf_embedding" in names["mdata"]["rna"].obsm
        ),
        "spatialdata": lambda: (
            (tmp_path / "factors.zarr").is_dir() and names["sdata"].tables["factors"].n_vars == 4
        ),
    }[name]
    assert check()
