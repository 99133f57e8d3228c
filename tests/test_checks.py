"""The rules themselves; how `fit` answers to mistakes is in test_bad_input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from gpnsf import checks
from gpnsf.arguments import RULES, check_arguments


def test_the_example_of_a_rule_follows_it(subtests):
    for name, rule in RULES.items():
        with subtests.test(name):
            rule.check(name, rule.example)
            if rule.optional:
                rule.check(name, None)
            else:
                with pytest.raises(
                    TypeError,
                    match=rf"`{name}` to be .*; got None of type NoneType\. Pass for example {name}=",
                ):
                    rule.check(name, None)


def test_values_outside_of_a_rule_are_value_errors(subtests):
    for rule, good, bad in (
        (checks.Rule(int, 1, low=1), [1, np.int32(5)], [0, -3]),
        (checks.Rule(float, 1.0, low=0), [0, 0.5, np.float32(2), 3], [-1e-9, np.nan, np.inf]),
        (checks.Rule(float, 1.0, low=0, above=True), [1e-9, 2], [0, 0.0, -np.inf, np.nan]),
        (checks.Rule(str, "a", options=("a", "b")), ["a", "b"], ["c", "", "A"]),
    ):
        with subtests.test(rule=rule):
            for value in good:
                rule.check("x", value)
            for value in bad:
                with pytest.raises(ValueError, match="Expected `x` to be"):
                    rule.check("x", value)


def test_values_of_another_type_are_type_errors(subtests):
    for kind, wrong in (
        (int, [1.0, "1", True, np.bool_(1)]),
        (float, ["1", True, 1j, [1.0]]),
        (str, [1, b"a"]),
        (bool, [0, 1, "no"]),
    ):
        with subtests.test(kind=kind):
            for value in wrong:
                with pytest.raises(TypeError, match=f"of type {type(value).__name__}"):
                    checks.Rule(kind, None).check("x", value)


def test_long_values_are_cut_in_the_message():
    with pytest.raises(TypeError) as caught:
        check_arguments({"n_factors": list(range(10_000))})
    assert len(str(caught.value)) < 200


def test_arguments_without_a_rule_are_left_to_others():
    check_arguments({"n_factors": 3, "n_spatial": 3, "likelihoods": object()})


def test_legal_combinations(subtests):
    for changes in (
        {},
        {"model": "fa", "likelihoods": {"rna": "gaussian"}},
        {"likelihoods": {"atac": "bernoulli_clipped"}, "objective": "monte_carlo"},
        {"n_dims": 3, "field": "inducing"},
        {"n_dims": 3, "n_spatial": 0},
        {"likelihoods": {"rna": "gaussian", "atac": "bernoulli"}},
    ):
        with subtests.test(changes=changes):
            good = {"model": "gpnsf", "likelihoods": {"rna": "nb"}, "objective": "closed_form"}
            checks.combination(
                **{**good, "field": "hilbert", "n_spatial": 2, "n_dims": 2, **changes}
            )


def test_the_number_of_factors_may_equal_the_smaller_side():
    checks.sizes(8, n_obs=8, n_features=20)
    with pytest.raises(ValueError, match="at most 8"):
        checks.sizes(9, n_obs=20, n_features=8)


def test_per_modality_takes_a_string_for_all_or_a_dict_for_some():
    names, known = ["rna", "atac"], ["rna", "atac", "protein"]
    assert checks.per_modality(None, "layers", names=names, known=known) == {}
    assert checks.per_modality("counts", "layers", names=names, known=known) == {
        "rna": "counts",
        "atac": "counts",
    }
    assert checks.per_modality(
        {"atac": "a", "protein": "b"}, "layers", names=names, known=known
    ) == {"atac": "a"}
    assert checks.per_modality({"rna": 2}, "w", names=names, known=known, numeric=True) == {
        "rna": 2
    }
    with pytest.raises(TypeError):
        checks.per_modality({"rna": True}, "w", names=names, known=known, numeric=True)


def test_counts_name_what_is_wrong_with_them(subtests):
    for likelihood, values, says in (
        ("nb", [[1, 2], [0, 2.5]], "1 fractional value(s), the first in feature 'b'"),
        ("poisson", [[-1, 2], [0.5, 1]], "1 negative value(s), the first in feature 'a'"),
        (
            "bernoulli",
            [[np.nan, 2], [np.inf, 1]],
            "2 NaN or infinite value(s), the first in feature 'a'",
        ),
    ):
        with subtests.test(likelihood=likelihood, says=says):
            with pytest.raises(ValueError, match="modality 'rna'") as caught:
                checks.counts(
                    sp.csr_matrix(values, dtype=float),
                    likelihood,
                    modality="rna",
                    features=["a", "b"],
                )
            assert says in str(caught.value)


def test_counts_are_there_and_not_all_zero():
    with pytest.raises(
        ValueError, match=r"modality 'rna'; got only zeros in 2 x 2 values\. Pass layers="
    ):
        checks.some(sp.csr_matrix((2, 2)), modality="rna")
    with pytest.raises(
        ValueError, match=r"modality 'rna' not to be empty; got shape \(2, 0\)\. Pass data"
    ):
        checks.extent(2, 0, modality="rna")


def test_counts_that_a_likelihood_takes(subtests):
    for likelihood, value in (
        ("gaussian", -1.5),
        ("bernoulli", 0.5),
        ("bernoulli_clipped", 7),
        ("nb", 2.0**30),
        ("poisson", 3),
    ):
        with subtests.test(likelihood=likelihood, value=value):
            checks.counts(
                sp.csr_matrix([[0, value]]), likelihood, modality="rna", features=["a", "b"]
            )


def test_coordinates_of_any_numeric_kind(subtests):
    for values in (
        np.arange(6).reshape(3, 2),
        np.arange(6, dtype=np.float32).reshape(3, 2),
        pd.DataFrame({"x": [0, 2, 4], "y": [1.0, 3.0, 5.0]}),
        pd.DataFrame({"x": pd.array([0, 2, 4], dtype="Int64"), "y": [1, 3, 5]}),
    ):
        with subtests.test(values=values):
            coords = checks.coordinates(values, where="here", obs_names=list("abc"))
            assert coords.dtype == np.float64
            np.testing.assert_array_equal(coords, [[0, 1], [2, 3], [4, 5]])


def test_coordinates_in_one_dimension_become_a_column():
    assert checks.coordinates(np.arange(3.0), where="here", obs_names=list("abc")).shape == (3, 1)


def test_missing_coordinates_are_named(subtests):
    for values in (
        pd.DataFrame({"x": pd.array([0, None, 2], dtype="Int64")}),
        np.array([[0.0], [np.nan], [1.0]]),
    ):
        with (
            subtests.test(values=values),
            pytest.raises(ValueError, match="in 1 row.s., the first 'b'"),
        ):
            checks.coordinates(values, where="here", obs_names=list("abc"))


def test_coordinates_that_are_no_numbers(subtests):
    for values in (
        np.array([[True], [False]]),
        pd.DataFrame({"x": [True, False]}),
        np.array([[1j], [0]]),
    ):
        with subtests.test(values=values), pytest.raises(TypeError, match="numeric"):
            checks.coordinates(values, where="here", obs_names=list("ab"))


def test_numbers_as_text_are_refused_with_a_remedy_that_works(subtests):
    for values in (
        np.array([["1", "2"], ["3", "4"]]),
        np.array([["1", "2"], ["3", "4"]], dtype=object),
        pd.DataFrame({"x": ["1", "3"], "y": [2, 4]}),
    ):
        with subtests.test(values=values):
            with pytest.raises(TypeError, match=r"Convert it by \.astype\(float\)"):
                checks.coordinates(values, where="here", obs_names=list("ab"))
            coords = checks.coordinates(values.astype(float), where="here", obs_names=list("ab"))
            assert coords.tolist() == [[1, 2], [3, 4]]


def test_flags_of_any_boolean_kind(subtests):
    for column in (
        [True, False],
        pd.array([True, False], dtype="boolean"),
        np.array([True, False], dtype=object),
    ):
        with subtests.test(column=column):
            flags = checks.flags(pd.Series(column), name="x", remedy="Pass another")
            assert flags.dtype == bool
            assert flags.tolist() == [True, False]


def test_labels_become_strings(subtests):
    for column in ([3, 12], ["3", "12"], pd.Categorical([3, 12]), pd.Categorical(["3", "12"])):
        with subtests.test(column=column):
            assert checks.labels(pd.Series(column), name="x").tolist() == ["3", "12"]


def test_missing_labels_are_counted():
    with pytest.raises(ValueError, match="2 of 3 missing"):
        checks.labels(pd.Series(["a", None, None], dtype="category"), name="x")


def test_positive_numbers(subtests):
    for values in ([1, 2], pd.array([1, 2], dtype="Int32"), np.array([1, 2], dtype=np.float32)):
        with subtests.test(values=values):
            assert checks.positive(values, what="x").tolist() == [1.0, 2.0]


def test_positive_numbers_are_numbers(subtests):
    for values in ([True, False], ["a", "b"]):
        with subtests.test(values=values), pytest.raises(TypeError, match="numeric"):
            checks.positive(values, what="x")
