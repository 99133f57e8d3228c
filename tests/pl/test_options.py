from __future__ import annotations

import inspect

import fitted
import numpy as np
import pandas as pd
import pytest

import gpnsf
from gpnsf.io import fits

FIGURES = [name for name in gpnsf.pl.__all__ if name != "report"]


@pytest.fixture(scope="module")
def toy():
    return fitted.mudata(n_obs=64, n_genes=20, n_peaks=20)


def test_documentation_has_every_argument_and_no_gap(subtests):
    for name in gpnsf.pl.__all__:
        with subtests.test(name=name):
            figure = getattr(gpnsf.pl, name)
            text = inspect.getdoc(figure)
            arguments = list(inspect.signature(figure).parameters)
            described = {part for line in text.splitlines() for part in line.split(", ")}
            assert not [argument for argument in arguments if argument not in described]
            assert "{" not in text.split("Examples")[0].replace('{key_added}_colors"', "")
            assert figure.__name__ == name


def test_saving_is_told(subtests, toy):
    for name in FIGURES:
        with (
            subtests.test(name=name),
            pytest.raises(
                TypeError, match=rf"gpnsf\.pl\.{name} .*got `save`\. .*return_fig=True.*savefig"
            ),
        ):
            getattr(gpnsf.pl, name)(toy, save="figure.pdf")


def test_the_remedy_for_saving_works(toy, tmp_path):
    figure = gpnsf.pl.spatial_factors(toy, factors=0, return_fig=True)
    figure.savefig(tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").stat().st_size


def test_unknown_arguments_are_answered(subtests, toy):
    for name, option, remedy in (
        ("feature_maps", "color", "Pass `features=`"),
        ("spatial_factors", "color", "Pass `factors=`. Draw genes and peaks with gpnsf.pl.feature"),
        ("domains", "color", "Pass `key_added=`"),
        ("spatial_factors", "layer", "Draw the values of a layer with gpnsf.pl.feature_maps"),
        ("spatial_factors", "library_id", "Pass `library=`"),
        ("spatial_factors", "img_alpha", "Pass `alpha_img=`"),
        ("spatial_factors", "ncol", "Pass `ncols=`"),
        ("top_features", "n_genes", "Pass `n_features=`"),
        ("report", "titel", "Pass `title=`"),
        ("convergence", "xyz", "Leave it out"),
    ):
        with (
            subtests.test(name=name, option=option),
            pytest.raises(TypeError, match=f"got `{option}`. {remedy}"),
        ):
            getattr(gpnsf.pl, name)(toy, **{option: None})


def test_factors_are_named_or_numbered(subtests, toy):
    for factors, positions in (
        (None, [0, 1, 2, 3]),
        (2, [2]),
        ([3, 0], [3, 0]),
        (np.array([1, 2]), [1, 2]),
        (np.int64(1), [1]),
        (range(2), [0, 1]),
        (["spatial_2", 0], [1, 0]),
        ("nonspatial_1", [2]),
    ):
        with subtests.test(factors=factors):
            assert fits.find(toy).factor_indices(factors).tolist() == positions


def test_a_factor_that_is_not_there_is_told(subtests, toy):
    for factor in (4, -1):
        with (
            subtests.test(factor=factor),
            pytest.raises(KeyError, match=f"positions of factors from 0 to 3; got {factor}"),
        ):
            gpnsf.pl.spatial_factors(toy, factors=factor)


def test_every_figure_of_factors_takes_positions(subtests, toy):
    for name in (
        "factor_correlation",
        "feature_maps",
        "loadings",
        "spatial_factors",
        "top_features",
    ):
        with subtests.test(name=name):
            assert getattr(gpnsf.pl, name)(toy, factors=[1, 0], show=False) is not None


def test_tools_take_positions(toy):
    tables = [
        gpnsf.tl.rank_features(toy, factors=chosen)
        for chosen in ([1, 0], ["spatial_2", "spatial_1"])
    ]
    pd.testing.assert_frame_equal(*tables)


def test_a_mistyped_name_is_answered_with_the_nearest(toy):
    with pytest.raises(KeyError, match="did you mean 'Gene1'"):
        gpnsf.pl.feature_maps(toy, features="gene1")
    with pytest.raises(KeyError, match="did you mean 'spatial_2'"):
        gpnsf.pl.spatial_factors(toy, factors="spatail_2")
