"""Warnings that teach: each has data that trigger it, and data that do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from reference import toy_dataset

import gpnsf
from gpnsf.arguments import Arguments, Reading
from gpnsf.core.fields.hilbert import HilbertField
from gpnsf.core.fields.inducing import InducingField
from gpnsf.core.inference.fitting import Outcome
from gpnsf.core.types import Dataset, History, Posterior
from gpnsf.datasets import tissue
from gpnsf.io.read import read
from gpnsf.tl.diagnostics import LOW_DEPTH, between_slices, warn

K, P = 4, 10


def dataset(mean: float = 30.0, kind: str = "poisson", n_obs: int = 200) -> Dataset:
    """Counts without any pattern."""
    rng = np.random.default_rng(0)
    data = toy_dataset({"rna": kind}, n_obs=n_obs, n_features=P)
    counts = rng.poisson(mean, (n_obs, P)).astype(np.float32)
    coords = rng.uniform(-1, 1, (n_obs, 2)).astype(np.float32)
    view = replace(
        data.views[0],
        counts=sp.csr_matrix(counts),
        size=np.ones(n_obs, np.float32),
        observed=np.ones(n_obs, bool),
    )
    return replace(data, coords=coords, library=np.zeros(n_obs, np.int64), views=(view,))


def posterior(data: Dataset, **changes) -> Posterior:
    rng = np.random.default_rng(1)
    n_features = {view.name: view.counts.shape[1] for view in data.views}
    mean = rng.lognormal(0, 1, (data.n_obs, K)).astype(np.float32)
    plain = Posterior(
        mean=mean,
        smooth=mean,
        coarse=mean,
        std=mean,
        loadings={
            name: rng.gamma(0.3, 1, (n, K)).astype(np.float32) for name, n in n_features.items()
        },
        loadings_std={},
        background={name: np.zeros(n, np.float32) for name, n in n_features.items()},
        dispersion={},
        variance_explained={},
        importance_std={},
        is_spatial=np.arange(K) < 2,
        lengthscale=np.array([0.1, 0.3, np.nan, np.nan]),
        amplitude=np.ones(K),
        order=np.arange(K),
        field={},
    )
    return replace(plain, **changes)


def history(**changes) -> History:
    return replace(
        History(np.zeros(3), np.zeros(3), np.array(["main"] * 3), True, {"spot": 0.0}), **changes
    )


def texts(
    data: Dataset,
    result: Posterior | None = None,
    record: History | None = None,
    z: list[float] | None = None,
    weights: dict[str, float] | None = None,
    **params,
) -> list[str]:
    test = {} if z is None else {"z": np.array(z), "repeated": np.zeros(len(z))}
    outcome = Outcome(result or posterior(data), record or history(), test, weights or {})
    return warn(data, outcome, Arguments.of(params), scale=100.0)


def only(found: list[str], *words: str) -> None:
    """One warning, with these words in it."""
    (text,) = found
    assert not [word for word in words if word not in text]


def test_a_good_fit_has_no_warning(caplog):
    assert texts(dataset()) == []
    assert not caplog.records


def test_what_the_test_says_about_the_split():
    data = dataset()
    assert texts(data, z=[9.0, 5.0, 2.0, 4.0]) == []
    assert texts(data, z=[9.0, 5.0, 12.0, 0.0]) == []  # who asks for no number is not told of one
    found = texts(data, z=[9.0, 5.0, 12.0, 0.0], n_spatial=2)
    only(
        found,
        "n_spatial = 2 leaves no room for 1 more factor(s)",
        "nonspatial_1 (z = 12.0)",
        "Leave n_spatial out",
    )
    none = posterior(data, is_spatial=np.zeros(K, bool), lengthscale=np.full(K, np.nan))
    only(
        texts(data, none, z=[0.0] * K, n_spatial=2), "No factor shows spatial order", "coordinates"
    )


def test_every_warning_is_logged_once_and_returned(caplog):
    found = texts(
        dataset(), record=history(converged=False, repairs=["step 4: objective not finite"])
    )
    assert [record.getMessage() for record in caplog.records] == found
    assert "max_steps = 600" in found[0]
    assert "repaired 1 time(s), first at step 4" in found[1]


@pytest.mark.parametrize(("mean", "fires"), [(0.5, True), (LOW_DEPTH / P * 1.5, False)])
@pytest.mark.parametrize("kind", ["poisson", "nb", "bernoulli"])
def test_shallow_data_follow_the_prior(mean, fires, kind):
    found = texts(dataset(mean, kind), size_factors=None)
    assert len(found) == fires
    assert not fires or "The median spot has 5 counts" in found[0]


def test_modalities_are_deep_together():
    data, other = dataset(0.6), dataset(0.9)
    both = replace(data, views=(data.views[0], replace(other.views[0], name="atac")))
    assert texts(data, size_factors=None)
    assert not texts(both, size_factors=None)


def smooth_totals(mean: float) -> Dataset:
    data = dataset()
    level = mean * np.exp(np.sin(3 * data.coords[:, 0]))
    counts = np.random.default_rng(0).poisson(level[:, None] * np.ones(P)).astype(np.float32)
    return replace(data, views=(replace(data.views[0], counts=sp.csr_matrix(counts)),))


def test_small_smooth_totals_are_no_size_factors():
    only(texts(smooth_totals(3)), "'rna'", "Moran's I", "size_factors=None")
    assert not texts(smooth_totals(3), size_factors=None)
    assert not texts(smooth_totals(30))
    assert not texts(dataset(3))
    flat = replace(smooth_totals(3), coords=np.zeros((200, 1), np.float32))
    assert not texts(flat)


def test_depths_of_slices_are_no_pattern():
    data = dataset(3)
    second = data.coords[:, 0] > 0
    counts = (
        np.random.default_rng(0)
        .poisson(np.where(second, 1.5, 4.0)[:, None] * np.ones(P))
        .astype(np.float32)
    )
    data = replace(data, views=(replace(data.views[0], counts=sp.csr_matrix(counts)),))
    assert texts(data)
    assert not texts(
        replace(data, library=second.astype(np.int64)), library_key="slice", batch_key="slice"
    )


def test_counts_without_nonspatial_factors():
    everything = {"is_spatial": np.ones(K, bool), "lengthscale": np.full(K, 0.2)}
    only(texts(dataset(), posterior(dataset(), **everything)), "All 4 factors are spatial")
    assert not texts(dataset(kind="gaussian"), posterior(dataset(), **everything))


@pytest.mark.parametrize(
    ("lengthscale", "words"),
    [(0.04, ("spatial_2", "floor, 4:")), (3.0, ("spatial_2", "ceiling, 300:")), (2.5, ())],
)
def test_length_scales_at_an_end_of_their_range(lengthscale, words):
    result = posterior(dataset(), lengthscale=np.array([0.1, lengthscale, np.nan, np.nan]))
    found = texts(dataset(), result)
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)
    assert not texts(dataset(), result, lengthscale=4.0)


def test_identical_factors_are_named_in_groups_by_one_warning():
    data = dataset()
    result = posterior(data)
    mean, W = result.mean[:, [0, 1, 0, 1]], result.loadings["rna"][:, [0, 1, 0, 1]]
    found = texts(data, replace(result, mean=mean, loadings={"rna": W}))
    only(found, "spatial_1 = nonspatial_1, spatial_2 = nonspatial_2")
    found = texts(
        data, replace(result, mean=mean[:, [0, 0, 0, 0]], loadings={"rna": W[:, [0, 0, 0, 0]]})
    )
    only(found, "spatial_1 = spatial_2 = nonspatial_1 = nonspatial_2")


def hilbert(kernel: str, lengthscale: float) -> Posterior:
    state = HilbertField(kernel, 2, 1, (1.0, 0.8)).state()
    return posterior(
        dataset(),
        lengthscale=np.array([lengthscale, 0.5, np.nan, np.nan]),
        field={"process": state},
    )


@pytest.mark.parametrize(
    ("kernel", "lengthscale", "n_obs", "fires"),
    [
        ("matern12", 0.1, 2000, True),
        ("matern32", 0.06, 2000, True),
        ("matern32", 0.06, 200, False),  # spots tell no more than the basis
        ("matern32", 0.1, 2000, False),
        ("rbf", 0.1, 2000, False),
    ],
)
def test_kernels_too_rough_for_the_basis_of_the_field(kernel, lengthscale, n_obs, fires):
    found = texts(dataset(n_obs=n_obs), hilbert(kernel, lengthscale))
    if fires:
        only(
            found,
            "% of the prior variance of spatial_1",
            f"kernel '{kernel}'",
            "28 basis",
            "field='inducing'",
        )
    else:
        assert not found


def test_long_length_scales_are_not_too_rough_and_inducing_points_leave_nothing_out():
    assert not texts(dataset(), hilbert("matern32", 2.5))
    field = InducingField(
        "matern12", 2, 1, np.zeros((5, 2)), np.zeros(5, np.int64), lengthscale=0.1
    )
    lengthscale = np.array([0.1, 0.1, np.nan, np.nan])
    assert not texts(
        dataset(), posterior(dataset(), lengthscale=lengthscale, field={"process": field.state()})
    )


def values(transform) -> Dataset:
    """Genes whose means differ, as values that are no longer counts."""
    data = dataset(kind="gaussian")
    mean = np.random.default_rng(0).lognormal(0, 1, P)
    counts = np.random.default_rng(1).poisson(mean, (200, P)).astype(np.float32)
    return replace(data, views=(replace(data.views[0], counts=sp.csr_matrix(transform(counts))),))


@pytest.mark.parametrize(
    ("model", "remedy"), [("rsf", "'nsf'"), ("fa", "'pnmf'"), ("gpnsf", "likelihoods='nb'")]
)
def test_raw_counts_under_a_gaussian_likelihood(model, remedy):
    only(
        texts(values(lambda counts: counts), model=model),
        "'rna' holds raw counts",
        "logarithms",
        remedy,
    )


@pytest.mark.parametrize(
    "transform",
    [
        np.log1p,
        lambda counts: counts - counts.mean(0).round(),
        lambda counts: counts / 2,
        lambda counts: np.log1p(counts).round(),
        lambda counts: counts > 0,
        lambda counts: 50 - counts.clip(0, 50),
    ],
    ids=["logarithms", "centred", "halves", "rounded", "binary", "skewed to the left"],
)
def test_values_that_are_no_raw_counts(transform):
    assert not texts(values(lambda counts: transform(counts).astype(np.float32)), model="rsf")


def test_a_fit_of_raw_counts_by_a_gaussian_model_says_so_once(adata):
    gpnsf.tl.fit(adata, "fa", n_factors=3, max_steps=4, progress=False)
    assert sum("raw counts" in text for text in adata.uns["gpnsf"]["warnings"]) == 1


def test_factors_that_say_the_same():
    data = dataset()
    result = posterior(data)
    same = result.mean.copy()
    same[:, 2] = same[:, 0] ** 1.1 * np.random.default_rng(0).lognormal(0, 0.1, len(same))
    W = result.loadings["rna"].copy()
    W[:, 2] = 2 * W[:, 0]
    only(
        texts(data, replace(result, mean=same, loadings={"rna": W})),
        "spatial_1 = nonspatial_1",
        "smaller n_factors",
    )
    assert not texts(data, replace(result, mean=same))
    assert not texts(data, replace(result, loadings={"rna": W}))


@pytest.mark.parametrize("effect", [0.0, 0.5])
def test_batch_effects_between_slices(effect):
    mdata = tissue(
        n_obs=400,
        n_genes=80,
        n_peaks=80,
        n_spatial=3,
        n_nonspatial=1,
        n_libraries=2,
        batch_effect=effect,
        rna_depth=2000,
    )
    rna = mdata["rna"].copy()
    rna.X = sp.csr_matrix(rna.X.multiply(np.arange(80) > 0))
    data = read(rna, Reading(library_key="library"))[0]
    found = texts(data, library_key="library")
    assert len(found) == (effect > 0)
    assert not found or "batch_key='library'" in found[0]
    assert not texts(data, library_key="library", batch_key="library")
    assert between_slices(data, K)["rna"] == pytest.approx(effect, abs=0.15)


def test_a_slice_without_a_modality_is_left_out():
    mdata = tissue(
        n_obs=400,
        n_genes=80,
        n_peaks=80,
        n_spatial=3,
        n_nonspatial=1,
        n_libraries=2,
        rna_depth=2000,
    )
    data = read(mdata["rna"], Reading(library_key="library"))[0]
    view, first = data.views[0], data.library == 0
    emptied = replace(
        view, counts=sp.csr_matrix(view.counts.multiply(first[:, None])), size=view.size * first
    )
    assert between_slices(replace(data, views=(emptied,)), K) == {"rna": 0.0}


def test_a_fit_keeps_its_warnings(adata, tmp_path):
    options = {
        "n_factors": 3,
        "n_spatial": 3,
        "split": "assumed",
        "init": "random",
        "progress": False,
    }
    gpnsf.tl.fit(adata, max_steps=4, **options)
    found = list(adata.uns["gpnsf"]["warnings"])
    n_factors = adata.obsm["X_gpnsf"].shape[1]
    assert sum(f"All {n_factors} factors are spatial" in text for text in found) == 1
    assert sum("stopped at max_steps = 4" in text for text in found) == 1
    adata.write(tmp_path / "a.h5ad")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ggblocks", "quilt", "tissue"])
def test_simulated_data_raise_no_false_alarm(recipe):
    options = {"n_obs": 1000, "n_genes": 500, "n_peaks": 2000} if recipe == "tissue" else {}
    mdata = getattr(gpnsf.datasets, recipe)(**options)
    gpnsf.tl.fit(mdata, progress=False)
    found = mdata.uns["gpnsf"]["warnings"]
    if (
        recipe != "ggblocks"
    ):  # the edges of quilt, and one divisor for both modalities: a little rough
        found = [text for text in found if "The field keeps" not in text]
    # in the two designs of blocks the totals of peaks carry the pattern
    assert ["Totals are small" in text and "modality 'atac'" in text for text in found] == [
        True
    ] * (recipe != "tissue")
