"""The benchmark of FactVAE: fold changes, what is found among the highest, and the test over seeds."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = (
    *("report", "race_data", "race", "peers"),
    *("factvae_rivals", "factvae_augmentation", "factvae_more"),
)


@pytest.fixture(scope="module")
def modules():
    """``factvae_rivals``, ``factvae_augmentation`` and ``factvae_more``, which are not part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        for name in NAMES:
            patch.delitem(sys.modules, name, raising=False)
        yield [importlib.import_module(name) for name in NAMES[-3:]]
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def augmentation(modules):
    return modules[1]


@pytest.fixture(scope="module")
def rivals(modules):
    return modules[0]


TYPES = np.repeat(["a", "b"], 4)


def test_fold_changes_are_log_ratios_with_the_same_addition_on_both_sides(augmentation):
    values = np.where(TYPES[:, None] == "a", [3.0, 1.0, 0.0], [1.0, 1.0, 0.0])
    floor = 0.1 * values.mean()
    expected = np.log2([(3 + floor) / (1 + floor), 1.0, 1.0])
    np.testing.assert_allclose(augmentation.fold_changes(values, TYPES), [expected, -expected])
    # no unit of the values matters, so raw counts and augmented ones are floored alike
    scaled = augmentation.fold_changes(7 * values, TYPES)
    np.testing.assert_allclose(scaled, [expected, -expected])


def test_markers_are_counted_among_as_many_peaks_of_the_highest_rank(augmentation):
    ranked = np.array([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    markers = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=bool)
    assert augmentation.found(ranked, markers) == (0.5 + 1.0) / 2


def test_shrunken_values_raise_no_marker_and_larger_ones_raise_all(augmentation):
    rng = np.random.default_rng(0)
    markers = np.zeros((2, 6), dtype=bool)
    markers[0, :2] = markers[1, 2:4] = True
    truth = 0.1 + 0.4 * markers[(TYPES == "b").astype(int)]
    raw = np.abs(truth + rng.normal(0, 0.02, truth.shape))
    mean = truth.mean(axis=0)
    tables = {
        "raw": raw,
        "shrunken": mean + 0.3 * (truth - mean),
        "larger": truth**3,
        "truth": truth,
    }
    nothing = ~markers.any(axis=0)
    lines = augmentation.judged(tables, TYPES, markers, nothing)
    assert lines["shrunken"]["marker rises"] == 0 < lines["larger"]["marker rises"] == 1
    assert lines["raw"]["marker rises"] == lines["raw"]["null rises"] == 0
    assert lines["truth"]["null"] < 1e-12 < lines["raw"]["null"]
    assert lines["raw"]["error"] < lines["shrunken"]["error"]
    assert lines["larger"]["top"] == lines["raw"]["top, t"] == 1


def test_neighbour_means_keep_the_cell_itself_and_average_over_those_alike(augmentation):
    counts = np.eye(4)
    scores = np.array([[0.0], [0.1], [5.0], [5.1]])
    means = augmentation.neighbour_means(counts, scores, 2)
    np.testing.assert_allclose(means, [[0.5, 0.5, 0, 0]] * 2 + [[0, 0, 0.5, 0.5]] * 2)
    np.testing.assert_allclose(
        augmentation.per_depth(np.array([[1.0, 3.0], [0, 0]])).sum(1), [1, 0]
    )


def test_codes_that_separate_the_truth_agree_with_it(rivals):
    truth = np.repeat([0, 1, 2], 20)
    codes = np.eye(3)[truth] + np.random.default_rng(0).normal(0, 0.01, (60, 3))
    ari, nmi, silhouette = rivals.agreement(codes, truth, 0)
    assert ari == nmi == pytest.approx(1)
    assert silhouette > 0.9
    both = rivals.beside(codes, 100 * codes)
    np.testing.assert_allclose(both[:, :3], both[:, 3:])


def test_the_test_over_seeds_is_paired_and_silent_where_there_is_nothing_to_test(rivals):
    base = np.array([[0.90, 0.8, 0], [0.80, 0.7, 0], [0.85, 0.75, 0]])
    gain = np.array([[0.01, -0.01, 0], [0.011, -0.009, 0], [0.009, -0.011, 0]])
    said = rivals.paired(base + gain, base)
    ari, nmi = said.split(" / ")
    assert ari.startswith("higher")
    assert nmi.startswith("lower")
    assert float(ari.split()[1]) < 0.01  # though the seeds differ by ten times as much
    assert rivals.paired(base[:2] + gain[:2], base) == rivals.paired(base, base) == ""


def test_a_peer_that_fails_is_a_row_with_its_message(rivals, monkeypatch):
    def fails(mdata, seed):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(rivals, "RIVALS", {"peer": (fails, 2)})
    monkeypatch.setattr(rivals, "fewer_peaks", lambda mdata: mdata)
    assert rivals.run(lambda: None, TYPES, 2) == {"peer": ([], "no such kernel")}


def test_more_cells_lie_on_the_line_through_the_two_largest(modules):
    seen = pd.DataFrame({"n_obs": [10_000, 1_000, 3_000], "epoch": [20.0, 9.0, 6.0]})
    assert modules[2].beyond(seen, 35_000)["epoch"] == pytest.approx(70)
    assert modules[2].beyond(seen, 10_000)["epoch"] == 20


def test_the_settings_that_are_swept_begin_at_the_defaults(modules):
    more = modules[2]
    assert more.SWEPT.keys() == more.DEFAULTS.keys() == more.TITLES.keys()
    assert all(more.DEFAULTS[name] in values for name, values in more.SWEPT.items())
    assert more.DEFAULTS["alignment"] == more.factvae_training.ALIGNMENT_RATE
    public = inspect.signature(more.gpnsf.tl.factvae).parameters
    for name in ("n_latent", "regulatory_weight"):
        assert more.DEFAULTS[name] == public[name].default
