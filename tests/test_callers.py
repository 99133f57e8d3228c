"""What a caller may have set or pass: scalars of NumPy, another state of torch, views, files behind objects."""

from __future__ import annotations

import logging
from functools import partial

import anndata as ad
import numpy as np
import pytest
import sections
import torch
from mistakes import explained

import gpnsf

QUICK = {"max_steps": 3, "split": "assumed", "progress": False}


@pytest.fixture(scope="module")
def plain():
    adata = sections.section()
    gpnsf.tl.fit(adata, n_factors=3, n_spatial=2, seed=1, **QUICK)
    return adata.obsm["X_gpnsf"]


@pytest.mark.parametrize("kind", [np.int64, np.int16, np.uint8])
def test_numbers_of_numpy_are_numbers(plain, kind):
    adata = sections.section()
    gpnsf.tl.fit(adata, n_factors=kind(3), n_spatial=kind(2), seed=kind(1), **QUICK)
    np.testing.assert_array_equal(adata.obsm["X_gpnsf"], plain)
    assert type(adata.uns["gpnsf"]["seed"]) is int
    gpnsf.pl.loadings(adata, n_features=kind(3), ncols=kind(2), show=False)
    gpnsf.datasets.ggblocks(n_side=kind(12), n_genes=40, n_peaks=36)


def test_an_array_of_numbers_of_factors_is_a_list(plain):
    adata = sections.section()
    table = gpnsf.tl.select_n_factors(
        adata, n_factors=np.arange(2, 4), n_seeds=1, max_steps=2, n_jobs=1, progress=False
    )
    assert sorted(table["n_factors"]) == [2, 3]


def test_the_state_of_torch_does_not_matter_and_stays(plain):
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            adata = sections.section()
            gpnsf.tl.fit(adata, n_factors=3, n_spatial=2, seed=1, **QUICK)
            gpnsf.tl.predict(adata, np.zeros((2, 2)))
            assert torch.is_inference_mode_enabled()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(adata.obsm["X_gpnsf"], plain)


def test_a_view_is_read_and_copied_but_not_written_to():
    view = sections.section()[:20]
    fit = partial(gpnsf.tl.fit, n_factors=2, **QUICK)
    explained(view, fit, ValueError, "a view of 20 observations")
    part = fit(view, copy=True)
    assert view.is_view
    assert part.obsm["X_gpnsf"].shape == (20, 2)
    assert gpnsf.pp.split(view, copy=True).obs["holdout"].any()
    assert gpnsf.tl.forecast(view, n_factors=2).seconds > 0
    assert len(gpnsf.pp.grid(view))


def test_an_object_that_is_backed_by_a_file_is_not_copied(tmp_path):
    sections.section().write(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    for call in (
        partial(gpnsf.pp.split, copy=True),
        partial(gpnsf.tl.fit, n_factors=2, copy=True, **QUICK),
        partial(gpnsf.tl.select_n_factors, n_factors=[2], max_steps=2, progress=False),
    ):
        with pytest.raises(ValueError, match=r"in memory.*Pass data\.to_memory\(\)"):
            call(backed)
    backed.file.close()


def test_an_override_leaves_what_it_does_not_name():
    log = logging.getLogger("gpnsf")
    before = log.level
    log.setLevel(logging.CRITICAL)  # by the application itself
    try:
        with gpnsf.settings.override(verbosity="error"):
            gpnsf.settings.device = "cpu"
        assert (log.level, gpnsf.settings.device) == (logging.CRITICAL, "cpu")
    finally:
        gpnsf.settings.device = "auto"
        log.setLevel(before)


def test_an_argument_that_is_missing_is_named():
    with pytest.raises(TypeError, match=r"Expected `n_domains` .*; got none\. Pass it"):
        gpnsf.tl.domains(sections.section())
