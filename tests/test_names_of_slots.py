"""A name for a new slot: one that files can hold, and under which nothing of the user's or of a fit is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import sections
from mistakes import explained
from mudata import MuData

import gpnsf
from gpnsf.io.write import check_key

QUICK = {"max_steps": 2, "split": "assumed", "progress": False}
BAD = ("", "a/b", ".", "..", "_index", "a\0b")


@pytest.fixture(scope="module")
def _fitted():
    adata = sections.section()
    adata.layers["counts"] = adata.X.copy()
    adata.X = 0.5 * adata.X
    gpnsf.tl.fit(adata, n_factors=2, layers="counts", **QUICK)
    return adata


@pytest.fixture
def adata(_fitted):
    return _fitted.copy()


NAMED: dict[str, Callable[[Any, str], object]] = {
    "fit": lambda data, name: gpnsf.tl.fit(
        data, n_factors=2, layers="counts", key_added=name, **QUICK
    ),
    "denoise": lambda data, name: gpnsf.tl.denoise(data, layer_added=name),
    "domains": lambda data, name: gpnsf.tl.domains(data, n_domains=2, key_added=name),
    "split": lambda data, name: gpnsf.pp.split(data, key_added=name),
    "thin": lambda data, name: gpnsf.pp.thin(data, layers="counts", key_added=name),
    "normalise": lambda data, name: gpnsf.pp.normalise(data, layers="counts", layer_added=name),
    "deviance_features": lambda data, name: gpnsf.pp.deviance_features(
        data, n_top=3, layer="counts", key_added=name
    ),
    "select_n_factors": lambda data, name: gpnsf.tl.select_n_factors(
        data, n_factors=[2], layers="counts", key_added=name, max_steps=2
    ),
}


def test_names_that_files_cannot_hold_are_refused(adata, subtests):
    for tool, call in NAMED.items():
        for name in BAD:
            with subtests.test(tool=tool, name=name):
                argument = "layer_added" if tool in ("denoise", "normalise") else "key_added"
                explained(
                    adata, partial(call, name=name), ValueError, f"Expected `{argument}` not empty"
                )


def test_keys_that_are_free(subtests):
    for key in ("gpnsf", "X", "rna_fit", "a:b"):
        with subtests.test(key=key):
            check_key(key, ["rna", "atac"])


def test_keys_that_shadow_a_modality(subtests):
    for key, modalities in (("rna", ["rna"]), ("fit", ["X_fit"]), ("fit", ["X_fit_std"])):
        with (
            subtests.test(key=key, modalities=modalities),
            pytest.raises(ValueError, match="reserves"),
        ):
            check_key(key, modalities)


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        ("denoise", "gpnsf"),
        ("domains", "gpnsf_total"),
        ("split", "gpnsf_total"),
        ("deviance_features", "gpnsf_background"),
        ("select_n_factors", "gpnsf"),
    ],
)
def test_slots_of_a_fit_are_not_written_over(adata, tool, name):
    explained(adata, partial(NAMED[tool], name=name), ValueError, f"got '{name}', a slot of fit")


def test_the_counts_of_a_fit_are_not_written_over(adata):
    explained(
        adata,
        partial(NAMED["denoise"], name="counts"),
        ValueError,
        "other than the layer that the fit has read",
    )


def test_an_entry_of_uns_that_tells_something_else_is_not_written_over(adata):
    adata.uns["log1p"] = {"base": None}
    explained(adata, partial(NAMED["normalise"], name="log1p"), ValueError, "uns['log1p']")
    NAMED["normalise"](adata, "log")
    NAMED["normalise"](adata, "log")  # its own record may be renewed


def test_the_key_that_is_proposed_beside_a_modality_of_that_name_can_be_used():
    mdata = MuData({"gpnsf": sections.section()})
    mdata.obsm["spatial"] = mdata["gpnsf"].obsm["spatial"]
    call = partial(gpnsf.tl.fit, n_factors=2, modalities=["gpnsf"], **QUICK)
    explained(mdata, call, ValueError, "Pass for example key_added='gpnsf_fit'")
    call(mdata, key_added="gpnsf_fit")


def test_a_type_called_like_the_column_of_sums_is_refused():
    spots, cells = gpnsf.datasets.mixture(n_obs=30, n_genes=40, n_types=2, n_cells=10, seed=0)
    cells.obs["cell_type"] = np.where(np.arange(cells.n_obs) % 2, "sum", "b")
    call = partial(
        gpnsf.tl.deconvolve,
        reference=cells,
        label_key="cell_type",
        obs_columns=True,
        progress=False,
    )
    explained(spots, call, ValueError, "one whose column would be 'proportions_sum'")
