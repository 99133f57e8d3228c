"""What every tool and figure does with the records of every method: the table of methods and tools."""

from __future__ import annotations

import inspect
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import gpnsf
from gpnsf.io import fits

METHODS = ("scai", "factvae", "proportions", "mefisto")


@pytest.fixture(scope="module")
def section():
    """A simulated section that every method has annotated, after a few steps."""
    mdata = gpnsf.datasets.tissue(n_obs=80, n_genes=40, n_peaks=60, seed=0)
    gpnsf.tl.scai(mdata, n_factors=3, max_steps=5, progress=False)
    gpnsf.tl.factvae(mdata, n_latent=4, max_epochs=2, progress=False)
    return mdata


@pytest.fixture(scope="module")
def spots(section):
    rna = section["rna"].copy()
    profiles = rna.varm["true_loadings"][:30, :4] + 0.01
    gpnsf.tl.deconvolve(rna, pd.DataFrame(profiles, index=rna.var_names[:30], columns=list("ABCD")))
    return rna


@pytest.fixture(scope="module")
def by_mefisto(section):
    pytest.importorskip("mofapy2", reason="mofapy2 is not installed: pip install 'gpnsf[mefisto]'")
    mdata = section.copy()
    gpnsf.tl.mefisto(mdata, n_factors=3, max_steps=3, progress=False)
    return mdata


@pytest.fixture(params=METHODS)
def found(request):
    """Object, and key of the method."""
    name = {"proportions": "spots", "mefisto": "by_mefisto"}.get(request.param, "section")
    return request.getfixturevalue(name).copy(), request.param


GENES = {"some": [f"gene_{j}" for j in range(8)], "others": [f"gene_{j}" for j in range(8, 20)]}
READ = {
    "domains": lambda data, key: gpnsf.tl.domains(data, n_domains=3, key=key),
    "rank_features": lambda data, key: gpnsf.tl.rank_features(data, key=key),
    "factor_adata": lambda data, key: gpnsf.tl.factor_adata(data, key=key),
    "enrich": lambda data, key: gpnsf.tl.enrich(data, GENES, modality="rna", key=key),
    "sparsity": lambda data, key: gpnsf.tl.evaluate(data, metric="sparsity", key=key),
    "moran": lambda data, key: gpnsf.tl.evaluate(data, metric="moran", key=key),
    "spatial_factors": lambda data, key: gpnsf.pl.spatial_factors(data, key=key, show=False),
    "top_features": lambda data, key: gpnsf.pl.top_features(data, key=key, show=False),
    "loadings": lambda data, key: gpnsf.pl.loadings(data, key=key, show=False),
    "factor_correlation": lambda data, key: gpnsf.pl.factor_correlation(data, key=key, show=False),
}
NEED = {  # a model of counts, a field or a posterior, and which methods have one
    "predict": (lambda data, key: gpnsf.tl.predict(data, key=key), ()),
    "denoise": (lambda data, key: gpnsf.tl.denoise(data, key=key), ()),
    "convergence": (lambda data, key: gpnsf.pl.convergence(data, key=key, show=False), ()),
    "project": (lambda data, key: gpnsf.tl.project(data.copy(), data, key=key), ()),
    "deviance": (lambda data, key: gpnsf.tl.evaluate(data, key=key), ("mefisto",)),
    "variance_explained": (
        lambda data, key: gpnsf.tl.variance_explained(data, key=key),
        ("mefisto",),
    ),
    "importance": (
        lambda data, key: gpnsf.pl.importance(data, key=key, show=False),
        ("mefisto",),
    ),
}


def test_tools_that_need_factors_and_loadings_read_every_method(found, subtests):
    data, key = found
    for tool, call in READ.items():
        with subtests.test(tool):
            call(data.copy(), key)
            plt.close("all")


def test_what_a_method_does_not_have_is_told_in_three_parts(found, subtests):
    data, key = found
    before = set(data.obsm), set(data.uns)
    for tool, (call, having) in NEED.items():
        with subtests.test(tool):
            if key in having:
                call(data.copy(), key)
                plt.close("all")
            else:
                with pytest.raises(
                    KeyError, match=r"Expected a fit .*; got .*\. Pass .*gpnsf\.tl\.fit"
                ):
                    call(data, key)
                assert (set(data.obsm), set(data.uns)) == before


def test_links_need_two_modalities(section, spots):
    for key in ("scai", "factvae"):
        gpnsf.tl.link_peaks(section, key=key)
    with pytest.raises(ValueError, match=re.escape("['rna', 'atac']")):
        gpnsf.tl.link_peaks(spots, key="proportions")


def test_codes_and_their_loadings_give_the_log_shares(section):
    fit = fits.find(section, "factvae")
    assert fit.names.tolist() == [f"{name}_{k + 1}" for name in ("atac", "rna") for k in range(4)]
    centred = fit.mean - fit.mean.mean(axis=0)
    for name in ("rna", "atac"):
        expected = centred @ fit.loadings[name].T  # [N, P]
        stored = section[name].varm["factvae_loadings"]
        np.testing.assert_allclose(
            np.cov(expected.T, bias=True), stored @ stored.T, rtol=1e-3, atol=1e-5
        )
    assert not fit.loadings["rna"][:, :4].any()
    assert not fit.loadings["atac"][:, 4:].any()


def test_codes_of_some_cells_have_the_same_loadings(section):
    some = section[:50].copy()
    for name, W in fits.find(section, "factvae").loadings.items():
        np.testing.assert_array_equal(fits.find(some, "factvae").loadings[name], W)


def test_published_embeddings_are_the_loadings_on_the_codes(section):
    mdata = section.copy()
    gpnsf.tl.factvae(mdata, n_latent=4, max_epochs=1, variant="paper", progress=False)
    fit = fits.find(mdata, "factvae")
    np.testing.assert_array_equal(fit.loadings["rna"][:, 4:], mdata["rna"].varm["factvae_loadings"])
    mdata["rna"].varm["factvae_loadings"] = mdata["rna"].varm["factvae_loadings"][:, :3]
    with pytest.raises(ValueError, match="Expected loadings of 'rna' on 4 codes; got 3"):
        fits.find(mdata, "factvae")


def test_cells_are_compared_by_their_codes(section):
    cells = gpnsf.tl.factor_adata(section, key="factvae")
    np.testing.assert_array_equal(cells.obsm["X_factvae_embedding"], section.obsm["X_factvae"])


def test_profiles_are_the_loadings_of_the_types(spots):
    fit = fits.find(spots, "proportions")
    assert fit.names.tolist() == list("ABCD")
    truth = spots.varm["true_loadings"][:30, :4] + 0.01
    np.testing.assert_allclose(fit.loadings["rna"][:30], truth, rtol=1e-6)
    assert not fit.loadings["rna"][30:].any()
    ranked = gpnsf.tl.rank_features(spots, n_features=1, key="proportions")
    assert ranked["factor"].tolist() == list("ABCD")


def test_no_figure_with_a_key_is_left_out():
    """A new figure has to be put into one of the tables, or named here with what it reads instead."""
    other = {"domains", "links", "proportions", "selection", "report", "spatial_map"}
    counts = {"feature_maps", "observed_expected", "variance_explained"}  # as `denoise`, above
    keyed = {
        name
        for name in gpnsf.pl.__all__
        if "key" in inspect.signature(getattr(gpnsf.pl, name)).parameters
    }
    assert keyed <= set(READ) | set(NEED) | other | counts
