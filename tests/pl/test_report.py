"""The page: that it is whole, holds everything it shows, and takes nothing that it was given as markup."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import fitted
import matplotlib.image as mpimg
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

import gpnsf
from gpnsf.pl import html
from gpnsf.pl.report import SECTIONS, report

VOID = {"meta", "img", "br", "link", "input", "hr"}
EVIL = "<script>alert('x')</script>&\"$\\frac"


class Page(HTMLParser):
    """Tags, texts and attributes; complains about tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.seen = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return "".join(self.words)


def written(data, path, **options):
    assert report(data, path, **options) is None
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def fit():
    data = gpnsf.datasets.tissue(
        n_obs=150, n_genes=40, n_peaks=60, n_spatial=2, n_nonspatial=1, seed=0
    )
    gpnsf.tl.fit(data, n_factors=3, max_steps=20, init="spot", progress=False)
    gpnsf.tl.link_peaks(data)
    gpnsf.tl.domains(data, n_domains=2, factors="all")
    return data


@pytest.fixture(scope="module")
def page(fit, tmp_path_factory):
    return written(fit, tmp_path_factory.mktemp("report") / "fit.html")


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made and described but not drawn, which is most of the work; other tests look at the pictures."""
    dot = "data:image/png;base64,"

    def picture(figure, alt, caption):
        plt.close(figure)
        return f'<figure><img src="{dot}" alt="{html.escape(alt)}"><figcaption>{html.escape(caption)}</figcaption></figure>'

    monkeypatch.setattr(html, "picture", picture)


@pytest.mark.slow
def test_the_page_is_whole_and_needs_nothing_else(page):
    images = page.all("img")
    assert len(images) == 10
    assert all(
        image["src"].startswith("data:image/png;base64,") and image["alt"] for image in images
    )
    for image in images:
        pixels = mpimg.imread(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        assert np.ptp(pixels[..., :3]) > 0.5
    outside = [
        a
        for _, attributes in page.tags
        for k, a in attributes.items()
        if k in ("href", "src", "action")
    ]
    assert all(address.startswith(("#", "data:")) for address in outside)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}


@pytest.mark.slow
def test_the_contents_lead_to_every_section(page):
    links = [attributes["href"][1:] for attributes in page.all("a")]
    assert links == [attributes["id"] for attributes in page.all("section")]
    assert len(links) == len(SECTIONS)
    assert all(section.title in page.text for section in SECTIONS)
    assert len(page.all("h1")) == 1


@pytest.mark.slow
def test_the_page_says_what_the_fit_says(page, fit):
    record = fit.uns["gpnsf"]
    assert "Not complete" not in page.text
    assert "Not converged: " in page.text
    assert all(text in page.text for text in record["warnings"])
    assert record["versions"]["torch"] in page.text
    assert html.shown(record["spatial_test"]["z"][0]) in page.text
    assert all(name in page.text for name in record["factor_names"])
    assert html.shown(fit["rna"].X.nnz) in page.text


def test_sections_depend_on_what_there_is(tmp_path):
    data = fitted.anndata(n_obs=64)
    del data.obsm["spatial"]
    data.uns["gpnsf"]["is_spatial"][:] = False
    del data.uns["gpnsf"]["variance_explained"]
    page = written(data, tmp_path / "fit.html", title="mine")
    headings = [
        title
        for title in (section.title for section in SECTIONS)
        if f"\n{title}\n" in "\n".join(page.words)
    ]
    assert headings == [
        "Summary", "Factors", "Top features", "Spatial importance", "Data", "Convergence",
        "How it was run",
    ]  # fmt: skip
    assert len(page.all("img")) == 5
    assert "mine" in page.text


@pytest.mark.usefixtures("undrawn")
def test_without_counts_sections_that_need_them_are_left_out_with_one_sentence(tmp_path, caplog):
    data = fitted.mudata(n_obs=64)
    data["rna"].X = None
    page = written(data, tmp_path / "fit.html")
    assert "Not complete" not in page.text
    assert page.text.count("Left out of this page") == 1
    assert "'Observed features' and 'Data'. Expected" in page.text
    assert "in X of modality 'rna'" in page.text
    ids = [attributes["id"] for attributes in page.all("section")]
    assert len(ids) == len(page.all("a"))
    assert caplog.text.count("Left out of this page") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_what_cannot_be_made_says_why(tmp_path, caplog):
    data = fitted.mudata(n_obs=64)
    data.uns["gpnsf"]["spatial_test"] = {"z": [1.0], "p": [1.0]}
    page = written(data, tmp_path / "fit.html")
    assert page.text.count("Not complete") == 1
    assert "a number for each of" in page.text
    assert "section 'Spatial test' of the report is not complete" in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_slices_are_counted(tmp_path):
    assert (
        "2 sections by section: slice A = 60, slice B = 60."
        in written(fitted.mudata(n_obs=60, n_slices=2), tmp_path / "fit.html").text
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_names_stay_text(tmp_path):
    data = fitted.mudata(n_obs=64)
    data["rna"].var_names = [f"{EVIL}{j}" for j in range(data["rna"].n_vars)]
    data.update()
    record = data.uns["gpnsf"]
    record["warnings"], record["repairs"] = [f"</ul>{EVIL}"], np.array([EVIL])
    record["versions"] = {EVIL: EVIL}
    record["params"][f"</td>{EVIL}"] = [EVIL, {EVIL: EVIL}]
    record["factor_names"] = [f"{name}{EVIL}" for name in record["factor_names"]]
    page = written(data, tmp_path / "fit.html", title=f"</title>{EVIL}")
    assert not page.all("script")
    assert page.text.count("<script>alert") > 50
    assert f"</ul>{EVIL}" in page.text


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_surrogates_can_be_written(tmp_path):
    data = fitted.anndata(n_obs=64)
    data.uns["gpnsf"]["warnings"] = ["\udcff"]
    assert "\\udcff" in written(data, tmp_path / "fit.html").text


def test_values_as_text(subtests):
    for value, text in (
        (None, "–"),
        (True, "yes"),
        (np.bool_(False), "no"),
        (12345, "12,345"),
        (np.float32(0.5), "0.5"),
        (float("nan"), "–"),
        (1.2e9, "1.2e+09"),
        (np.array([1, 2]), "1, 2"),
        ({"a": 1, "b": None}, "a = 1, b = –"),
        ([], "–"),
        ("<b>", "<b>"),
    ):
        with subtests.test(value=value):
            assert html.shown(value) == text


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(
        IsADirectoryError,
        match=r"a file to write to; got the folder .* Add a name such as fit\.html",
    ):
        report(fitted.anndata(n_obs=64), tmp_path)
    with pytest.raises(KeyError, match="other"):
        report(fitted.anndata(n_obs=64), tmp_path / "fit.html", key="other")


@pytest.mark.slow
def test_twenty_factors_make_a_page_of_a_few_megabytes(tmp_path):
    data = fitted.mudata(n_obs=900, n_factors=20, n_spatial=12, n_genes=200, n_peaks=200)
    page = written(data, tmp_path / "fit.html")
    assert "Not complete" not in page.text
    assert (tmp_path / "fit.html").stat().st_size < 10e6


@pytest.mark.slow
def test_a_browser_shows_the_page(fit, tmp_path):
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("needs chromium: no such program in PATH")
    report(fit, tmp_path / "fit.html")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    address = (tmp_path / "fit.html").as_uri()
    done = subprocess.run(
        [browser, *options, "--dump-dom", address], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert len(re.findall("<section", done.stdout)) == len(SECTIONS)
    shot = tmp_path / "page.png"
    subprocess.run(
        [browser, *options, "--window-size=1100,6000", f"--screenshot={shot}", address],
        timeout=120,
        check=True,
    )
    assert np.ptp(mpimg.imread(shot)[..., :3]) > 0.9


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("places", ["none", "nobody", "other names"])
def test_links_without_places_have_a_table_alone(places, tmp_path):
    data = fitted.mudata(n_obs=64)
    peak = data["atac"].var_names[0]
    data.uns["gpnsf_links"] = pd.DataFrame(
        {"gene": ["Gene1"], "peak": [peak], "score": [0.5], "q": [0.1]}
    )
    if places == "nobody":
        data.uns["gpnsf_links"] = data.uns["gpnsf_links"][:0]
    if places == "other names":
        data.mod["mine"] = data.mod.pop("rna")
        data.update()
        for name in ("likelihoods", "variance_explained", "n_features"):
            data.uns["gpnsf"][name]["mine"] = data.uns["gpnsf"][name].pop("rna")
        data.uns["gpnsf"]["modalities"] = ["mine", "atac"]
    page = written(data, tmp_path / "fit.html")
    assert "Not complete" not in page.text
    assert ("Gene-peak links" in page.text) == (places != "nobody")
    assert not any("Arcs" in image["alt"] for image in page.all("img"))


def test_columns_may_share_a_name():
    frame = pd.DataFrame([["a", 1.5]], columns=["factor", "factor"])
    page = Page(html.table(frame, "Twice."))
    assert [word for word in page.words if word.strip()] == [
        "Twice.",
        "factor",
        "factor",
        "a",
        "1.5",
    ]
    assert len([cell for cell in page.all("td") if cell.get("class") == "number"]) == 1
