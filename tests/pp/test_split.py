from __future__ import annotations

import numpy as np
import pytest

from gpnsf.pp import split


@pytest.mark.parametrize(("fraction", "counts"), [(0.05, {7, 8}), (0.1, {15}), (0.8, {120})])
def test_the_share_is_exact_up_to_rounding(adata, fraction, counts):
    found = set()
    for seed in range(8):
        split(adata, fraction=fraction, seed=seed)
        assert adata.obs["holdout"].dtype == bool
        found.add(int(adata.obs["holdout"].sum()))
    assert found == counts


def test_the_seed_decides(adata):
    held = []
    for seed in (0, 0, 1):
        split(adata, fraction=0.3, seed=seed)
        held.append(adata.obs["holdout"].to_numpy())
    np.testing.assert_array_equal(held[0], held[1])
    assert (held[0] != held[2]).any()


@pytest.mark.parametrize("by", [None, "group"])
def test_every_observation_is_as_likely_as_any_other(adata, by):
    """Neither the order of the rows nor the size of a group matters."""
    adata = adata[:12].copy()
    adata.obs["group"] = 7 * ["a"] + 3 * ["b"] + ["c", None]
    n_draws, times = 600, np.zeros(12)
    for seed in range(n_draws):
        split(adata, fraction=0.25, by=by, seed=seed)
        times += adata.obs["holdout"]
    assert np.abs(times / n_draws - 0.25).max() < 4.5 * np.sqrt(0.25 * 0.75 / n_draws)


def test_every_group_loses_its_share(adata):
    group = np.repeat(["big", "small", "tiny"], [100, 40, 10])
    adata.obs["group"] = np.random.default_rng(0).permutation(group)
    for seed in range(5):
        split(adata, fraction=0.25, by="group", seed=seed)
        lost = adata.obs.groupby("group")["holdout"].sum()
        assert abs(lost["big"] - 25) <= 1
        assert abs(lost["small"] - 10) <= 1
        assert lost["tiny"] in (2, 3)


@pytest.mark.parametrize("copy", [False, True])
def test_only_the_documented_slot_is_written(mdata, slots, copy):
    before = slots(mdata)
    result = split(mdata, key_added="test", copy=copy)
    after = slots(result if copy else mdata)
    assert after.keys() - before.keys() == {"obs/test"}
    assert {key: after[key] for key in before} == before
    if copy:
        assert slots(mdata) == before
    else:
        assert result is None


def test_bad_arguments_leave_the_object_as_it_is(subtests, mdata, slots):
    for wrong, error, message in (
        ({"fraction": 0.0}, ValueError, r"`fraction` .*above 0; got 0\.0"),
        ({"fraction": 1}, ValueError, r"`fraction` below 1; got 1"),
        ({"fraction": "half"}, TypeError, r"`fraction` .*got 'half'"),
        (
            {"fraction": 1e-6},
            ValueError,
            r"either side of the split; got 0 of 150 held out with fraction=1e-06",
        ),
        ({"fraction": 1 - 1e-6}, ValueError, r"either side of the split; got 150 of 150"),
        ({"by": "region"}, KeyError, r"`by`.*got 'region'"),
        ({"by": 3}, TypeError, r"`by` .*string.*got 3"),
        ({"seed": -1}, ValueError, r"`seed` .*got -1"),
        ({"key_added": ""}, ValueError, r"not empty.*got ''"),
    ):
        with subtests.test(wrong=wrong):
            before = slots(mdata)
            with pytest.raises(error, match=message):
                split(mdata, **wrong)
            assert slots(mdata) == before


def test_views_and_other_objects_are_refused(mdata):
    with pytest.raises(ValueError, match=r"view of 50 observations.*\.copy\(\)"):
        split(mdata["rna"][:50])
    with pytest.raises(TypeError, match=r"AnnData or MuData; got DataFrame"):
        split(mdata.obs)
