from __future__ import annotations

import fitted
import numpy as np
import pytest
from matplotlib import pyplot as plt

from gpnsf.pl.convergence import convergence


@pytest.fixture
def toy():
    return fitted.anndata(n_obs=100)


def titles(axes):
    return [ax.get_title(loc="left") for ax in axes]


def test_the_trace_has_every_step_in_the_colour_of_its_phase(toy):
    trace, end, _ = convergence(toy, show=False)
    elbo = toy.uns["gpnsf"]["history"]["elbo"] / 100
    assert [line.get_label() for line in trace.lines] == ["pick", "main", "tail", "polish"]
    assert len({line.get_color() for line in trace.lines}) == 4
    pick, main, tail, polish = (line.get_ydata() for line in trace.lines)
    np.testing.assert_allclose(np.concatenate([pick, main[1:], tail[1:], polish]), elbo)
    assert trace.lines[-1].get_xdata()[-1] == 145
    assert trace.texts[0].get_text() == "converged, 145 steps, 2.5 s"
    assert [text.get_text() for text in trace.get_legend().get_texts()] == [
        "pick",
        "main",
        "tail",
        "polish",
    ]
    assert end.lines[0].get_xdata()[0] == 73


def test_the_last_half_is_relative_to_the_end_of_each_objective(toy):
    end = convergence(toy, panel="end", show=False)
    assert end.lines[-2].get_ydata()[-1] == 0
    assert end.lines[-1].get_ydata()[-1] == 0
    low, high = end.get_ylim()
    assert high - low < 1


def test_starts_are_ordered_and_the_kept_one_stands_out(toy):
    ax = convergence(toy, panel="starts", show=False)
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "smooth_0.1",
        "smooth_0.06",
        "spot",
        "smooth_0",
    ]
    behind, _ = ax.collections[1].get_offsets().T
    np.testing.assert_allclose(behind, [0, 0.785, 2.092, 5.28], atol=1e-6)
    colors = ax.collections[1].get_facecolors()
    assert not np.allclose(colors[0], colors[1])
    np.testing.assert_array_equal(colors[1], colors[2])


def test_a_single_start_needs_no_panel(toy):
    toy.uns["gpnsf"]["starts"] = {"spot": -1.0, "best": "spot"}
    assert titles(convergence(toy, show=False)) == ["optimisation", "last half"]


def test_repairs_and_a_fit_that_was_cut_short_are_said(toy):
    toy.uns["gpnsf"] |= {"converged": False, "repairs": ["step 3: halved the learning rate"]}
    ax = convergence(toy, panel="trace", show=False)
    assert ax.texts[0].get_text() == "not converged, 145 steps, 2.5 s, 1 repair"


def test_a_first_step_far_below_leaves_the_rest_readable(toy):
    elbo = toy.uns["gpnsf"]["history"]["elbo"]
    elbo[0] = -1e9
    low, high = convergence(toy, panel="trace", show=False).get_ylim()
    assert high - low < 100


@pytest.mark.parametrize("n_steps", [1, 2])
def test_short_fits_can_be_drawn(toy, n_steps):
    history = toy.uns["gpnsf"]["history"]
    toy.uns["gpnsf"]["history"] = {name: values[:n_steps] for name, values in history.items()}
    axes = convergence(toy, show=False)
    assert len(axes[0].lines[0].get_xdata()) == n_steps
    assert axes[0].lines[0].get_marker() == "."


def test_one_panel_goes_into_the_axes_handed_in(toy):
    _, ax = plt.subplots()
    assert convergence(toy, panel="starts", ax=ax, show=False) is ax
    with pytest.raises(ValueError, match="one panel for `ax`; got 3"):
        convergence(toy, ax=ax)


def test_unknown_panels_are_refused(toy):
    with pytest.raises(ValueError, match="`panel`.*'loss'"):
        convergence(toy, panel="loss")
