"""What a fit will take: how the numbers grow, and what they are made of. The slow test of `tests/tl` holds them against a fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from gpnsf.core.inference.forecast import forecast
from gpnsf.core.types import Dataset, View


class Remote:
    """Counts of a shape, which nobody may read."""

    def __init__(self, n_obs: int, n_features: int, nnz: int) -> None:
        self.shape, self.nnz = (n_obs, n_features), nnz


def dataset(
    n_obs=20_000,
    n_features=2_000,
    nnz=2_000_000,
    likelihood="poisson",
    memory=np.inf,
    n_libraries=1,
) -> Dataset:
    coords = np.random.default_rng(0).uniform(-1, 1, (n_obs, 2)).astype(np.float32)
    ones = np.ones(n_obs)
    view = View("rna", likelihood, Remote(n_obs, n_features, nnz), ones, ones > 0)
    return Dataset(coords, np.arange(n_obs) % n_libraries, (view,), memory=memory)


def expect(data: Dataset, n_factors: int = 10, n_spatial: int = 5, **options):
    return forecast(data, n_factors=n_factors, n_spatial=n_spatial, **options)


def test_counts_in_a_file_are_needed_and_those_in_memory_are_held():
    counts = sp.random(300, 40, 0.2, "csr", np.float32, random_state=0)
    ones = np.ones(300)
    inside = Dataset(
        np.zeros((300, 2)), np.zeros(300, int), (View("rna", "poisson", counts, ones, ones > 0),)
    )
    outside = replace(inside, views=(replace(inside.views[0], counts=Remote(300, 40, counts.nnz)),))
    held, read = expect(inside), expect(outside)
    assert held.held == held.parts["counts"] == read.parts["counts"] == 8 * counts.nnz
    assert read.held == 0


def test_what_does_not_fit_into_the_budget_is_read_again_at_every_step():
    kept = expect(dataset(nnz=40_000_000))
    read = expect(dataset(nnz=40_000_000, memory=0), block_size=1_000)
    assert kept.parts["counts"] == 3.2e8
    assert read.parts["counts"] == 8 * 2_000_000
    assert read.stages["optimisation"] > 1.5 * kept.stages["optimisation"]


def test_parts_grow_with_what_they_are_made_of(subtests):
    for part, more, options, times in (
        ("parameters", {"n_obs": 40_000}, {}, 1.65),
        ("gradient", {"n_obs": 40_000, "nnz": 4_000_000}, {}, 1.9),
        ("gradient", {}, {"block_size": 10_000}, 0.52),
        ("gradient", {}, {"n_samples": 3}, 2.9),
        ("local stage", {}, {"n_factors": 20}, 2.6),
        ("covariance", {"n_features": 80_000}, {}, 1.5),
        ("parameters", {}, {"lengthscale": 0.05}, 1.02),
        ("starts", {"n_features": 20_000}, {}, 1.2),
    ):
        with subtests.test(part=part, more=more):
            before, after = (
                expect(dataset()).parts[part],
                expect(dataset(**more), **options).parts[part],
            )
            assert (
                after / before == pytest.approx(times, rel=0.1)
                if times < 1
                else after / before >= times
            )


def test_the_peak_is_less_than_all_parts_and_no_less_than_what_lasts():
    found = expect(dataset())
    lasting = sum(found.parts[name] for name in ("counts", "parameters", "gradient"))
    assert lasting + max(found.parts.values()) <= found.memory < lasting + sum(found.parts.values())
    assert found.seconds == pytest.approx(sum(found.stages.values()))


def test_time_grows_with_counts_dispersion_and_the_test():
    base, deeper = expect(dataset()), expect(dataset(nnz=16_000_000))
    assert 4 < deeper.stages["optimisation"] / base.stages["optimisation"] < 8
    assert expect(dataset(likelihood="nb")).stages["dispersion"] > 1
    assert expect(dataset()).stages["dispersion"] == 0
    assert expect(dataset(), tested=True).stages["test"] > 0
    assert expect(dataset(), tested=False, refine=False).seconds < base.seconds
    assert expect(dataset(), max_steps=10).seconds < base.seconds


def test_a_large_fit_begins_with_a_part_of_the_rows_or_with_the_modality_that_tells_most():
    few, many = expect(dataset(n_obs=50_000)), expect(dataset(n_obs=100_000, nnz=4_000_000))
    assert many.stages["starts"] < 1.5 * few.stages["starts"]
    one = dataset(nnz=12_000_000)
    both = replace(
        one,
        views=(
            *one.views,
            replace(one.views[0], name="atac", counts=Remote(20_000, 90_000, 30_000_000)),
        ),
    )
    assert expect(both).stages["starts"] < 2 * expect(one).stages["starts"]


def test_points_cost_what_rows_times_points_cost():
    found = expect(dataset(), field="inducing", n_inducing=100)
    assert found.parts["outputs"] > 4 * 20_000 * 100 * 5
    assert (
        expect(dataset(), field="inducing", n_inducing=200).parts["gradient"]
        > 1.8 * found.parts["gradient"]
    )


def test_signed_models_begin_at_dense_arrays():
    data = dataset(likelihood="gaussian")
    assert forecast(data, "rsf", n_factors=5, n_spatial=5).parts["starts"] == 12 * 20_000 * 2_000


def test_it_prints_both_numbers_and_every_part():
    found = expect(dataset(likelihood="nb", nnz=200_000_000))
    text = str(found)
    assert text == repr(found)
    assert text.startswith(f"memory: about {found.memory / 1e9:.2f} GB")
    assert f"time: about {found.seconds:.2g} s" in text
    assert all(name in text for name in (*found.parts, *found.stages))
