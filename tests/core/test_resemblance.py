"""Simulated sections resemble what they were made after, and their products are those of counts."""

from __future__ import annotations

import numpy as np
import pytest

from gpnsf.core.companions import resemblance
from gpnsf.core.companions.deconvolution import summarised
from gpnsf.core.companions.pseudospots import Places, drawn
from gpnsf.core.companions.resemblance import Makeup, Products, Resembling, resembling
from gpnsf.core.scores.neighbours import ties

SIDE = 16
GRID = np.column_stack(np.divmod(np.arange(SIDE**2), SIDE)).astype(float)
PROFILES = np.random.default_rng(3).lognormal(0, 1, (60, 4))


def places(**changes) -> Places:
    values = {
        "coords": GRID,
        "slices": np.zeros(SIDE**2),
        "totals": np.full(SIDE**2, 400.0),
        "unit": 1.0,
    }
    return Places(**{**values, "n_neighbors": 4, **changes})


def made(makeup: Makeup, where: Places | None = None, seed: int = 0):
    """One section of a makeup."""
    like = Resembling(where or places(), Products.of(PROFILES), np.array([makeup]), np.ones(1), 1.0)
    return next(like.sections(1, np.random.default_rng(seed)))


SMOOTH = Makeup(4.0, 2.0, 0.0, 0.3, 1000.0, 0.0)
ROUGH = Makeup(1.0, 1.0, 1.5, 0.3, 5.0, 0.0)


def test_products_have_the_moments_of_counts():
    """Mean and covariance of what least squares sees, against Poisson counts of every gene."""
    rng = np.random.default_rng(0)
    V = np.tile(rng.dirichlet(np.ones(4)), (4000, 1))
    totals = np.full(4000, 300.0)
    counts = drawn(V, PROFILES, totals, rng)  # Poisson, but divided by its total in `summarised`
    genes, fast = summarised(counts, PROFILES), Products.of(PROFILES).drawn(V, totals, rng)
    np.testing.assert_allclose(fast.gram, genes.gram, rtol=1e-12)
    assert fast.cross.mean(axis=0) == pytest.approx(genes.cross.mean(axis=0), rel=0.01)
    covariance = np.cov(genes.cross.T)
    np.testing.assert_allclose(
        np.cov(fast.cross.T), covariance, atol=0.12 * np.abs(covariance).max()
    )


def test_counts_that_scatter_more_have_an_excess():
    rng = np.random.default_rng(1)
    V, totals = rng.dirichlet(np.ones(4), 256), np.full(256, 400.0)
    counts = drawn(V, PROFILES, totals, rng).toarray()
    products = Products.of(PROFILES)

    def excess(table):
        import scipy.sparse as sp

        mixture = summarised(sp.csr_matrix(table.astype(float)), PROFILES)
        return products.excess(mixture, table.sum(axis=1))

    assert excess(counts) == pytest.approx(1, abs=0.1)
    assert excess(4 * counts) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("makeup", [SMOOTH, ROUGH], ids=["smooth", "rough"])
def test_properties_of_a_section_are_found(makeup):
    """Simulations after a smooth section are smooth, and after a rough one rough."""
    section = made(makeup)
    like = resembling(places(), PROFILES, section.mixture, np.random.default_rng(0))
    lengthscale, amplitude, noise, _, cells, regional = like.weights @ like.makeups
    assert like.weights.sum() == pytest.approx(1)
    assert regional == 0
    if makeup is SMOOTH:
        assert lengthscale > 2
        assert noise < 0.5
        assert cells > 60
    else:
        assert lengthscale < 3
        assert noise > 0.6 or cells < 30
    assert 0.4 < amplitude < 7


def test_looks_tell_order_at_each_distance_and_regions():
    tied = ties(GRID, np.zeros(len(GRID)), n_neighbors=4)
    smooth, rough = made(SMOOTH).truth, made(ROUGH).truth
    of_smooth, of_rough = (resemblance.looks(V, tied, None) for V in (smooth, rough))
    assert (of_smooth[:3] > of_rough[:3] + 0.3).all()
    assert of_smooth[0] > of_smooth[2]
    labels = (GRID[:, 0] > 7).astype(str)
    marked = places(labels=labels, regions=np.eye(2)[(GRID[:, 0] > 7).astype(int)])
    regional = made(ROUGH._replace(regional=3.0), marked).truth
    shares = [resemblance.looks(V, tied, labels)[-1] for V in (regional, rough)]
    assert shares[0] > 3 * shares[1]


def test_sections_are_those_of_the_seed_on_places_and_totals_of_the_data():
    one, again, other = made(ROUGH), made(ROUGH), made(ROUGH, seed=1)
    np.testing.assert_array_equal(one.mixture.cross, again.mixture.cross)
    assert not np.array_equal(one.truth, other.truth)
    assert one.truth.sum(axis=1) == pytest.approx(1)
    assert set(one.totals) == {400.0}
    assert one.ties.n_obs == len(one.rows) == 256
