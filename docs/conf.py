"""Sphinx configuration. ``GPNSF_DOCS_OFFLINE=1`` builds without any network."""

from __future__ import annotations

import os
import re
import shutil
from importlib.metadata import version as distribution_version
from inspect import getdoc
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from gpnsf.keys import Keys, ProportionKeys

HERE = Path(__file__).parent

project = "gpnsf"
author = "gpnsf developers"
copyright = f"2026, {author}"
version = release = distribution_version("gpnsf")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "benchmark_tables", "**.ipynb_checkpoints"]

autosummary_generate = True
autodoc_typehints = "none"  # the numpydoc sections say types and shapes
napoleon_google_docstring = False
napoleon_use_rtype = False
bibtex_bibfiles = ["references.bib"]
copybutton_prompt_text = ">>> "

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tutorials/execute.py runs them

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "pandas": ("https://pandas.pydata.org/docs/", None),
    "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
    "mudata": ("https://mudata.readthedocs.io/stable/", None),
    "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
    "squidpy": ("https://squidpy.readthedocs.io/en/stable/", None),
}
if os.environ.get("GPNSF_DOCS_OFFLINE"):
    intersphinx_mapping = {}

html_theme = "sphinx_book_theme"
html_title = f"gpnsf {release}"
html_static_path = ["_static"]


class Slots(SphinxDirective):
    """Write the table of slots from the docstrings of ``gpnsf.keys``."""

    def run(self) -> list[nodes.Node]:
        """Parse the table as part of the page."""
        rows = [
            "| where | slot | content |",
            "|---|---|---|",
            *(
                _slot_row(keys, name)
                for keys in (Keys(), ProportionKeys())
                for name in _slot_names(keys)
            ),
        ]
        return self.parse_text_to_nodes("\n".join(rows))


def _slot_names(keys: object) -> list[str]:
    """Properties of the registry that name one slot, in the order of its file."""
    properties = [name for name, value in vars(type(keys)).items() if isinstance(value, property)]
    return [name for name in properties if isinstance(getattr(keys, name), str)]


def _slot_row(keys: object, name: str) -> str:
    """Split "``where``: content." into the cells of a row."""
    where, content = re.split(r":\s+", getdoc(getattr(type(keys), name)), maxsplit=1)
    where, content = (
        re.sub(r"\s+", " ", text).replace("``", "`").rstrip(".") for text in (where, content)
    )
    return f"| {where} | `{getattr(keys, name)}` | {content} |"


def _place_tutorials(app: Sphinx) -> None:
    """Place the executed tutorials among the sources."""
    folder = HERE / "tutorials"
    folder.mkdir(exist_ok=True)
    for notebook in (HERE.parent / "tutorials").glob("*.ipynb"):
        shutil.copy(notebook, folder)


def setup(app: Sphinx) -> None:
    """Register the directive, and fetch the tutorials."""
    app.add_directive("slots", Slots)
    app.connect("builder-inited", _place_tutorials)
