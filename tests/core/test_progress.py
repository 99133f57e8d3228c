"""The bar of long work: forward only, full at the end, in green where it has converged."""

from __future__ import annotations

import io
import re
import sys
from itertools import product

import pytest
from tqdm.notebook import tqdm_notebook

import gpnsf
from gpnsf.core import progress
from gpnsf.core.progress import Progress

GREEN = "\x1b[32m"


def drawn(monkeypatch, work, expected, *, converged=True):
    """What a terminal gets while steps of some sizes are done."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("fit", expected, shown=True) as bar:
        bar._bar.mininterval = bar._bar.miniters = 0
        for number, size in enumerate(work):
            bar.stage(f"stage {number // 10}")
            bar.step(size)
        bar.converged = converged
    return stream.getvalue()


def shares(text):
    return [int(value) for value in re.findall(r"(\d+)%", text)]


def test_it_only_goes_forward_and_ends_full_however_long_it_takes(subtests, monkeypatch):
    for n_steps, expected in product((1, 30, 100, 1000), (0, 100)):
        with subtests.test(n_steps=n_steps, expected=expected):
            found = shares(drawn(monkeypatch, [1.0] * n_steps, expected))
            assert found == sorted(found)
            assert found[-1] == 100
            assert set(found[:-1]) <= set(range(101))


def test_the_end_is_green_where_the_work_has_converged(monkeypatch):
    good = drawn(monkeypatch, [1.0] * 30, 600)
    assert GREEN in good.rpartition("\r")[2]
    assert GREEN not in good.rpartition("5%")[0]
    bad = drawn(monkeypatch, [1.0] * 30, 600, converged=False)
    assert GREEN not in bad
    assert shares(bad)[-1] == 100


def test_no_time_is_foretold_from_the_first_steps(monkeypatch):
    lines = drawn(monkeypatch, [1.0] * 90, 100).split("\r")
    told = {share for line in lines for share in shares(line) if "of about" in line}
    assert min(told) >= 100 * progress.EARLY
    assert "of about" not in lines[-1]


def test_stages_are_named(monkeypatch):
    text = drawn(monkeypatch, [1.0] * 30, 100)
    assert [f"fit, stage {i}" in text for i in range(4)] == [True, True, True, False]


def test_a_part_has_one_name_and_steps_of_its_own_size():
    bar = Progress("fit", 100)
    with bar.part("testing", 0.5), bar.part("half", 0.5):
        bar.stage("climbing")
        bar.step(4)
    bar.step()
    assert bar._done == 2.0
    assert bar._words == ""


def test_an_error_leaves_the_bar_where_it_was(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)

    def interrupted():
        yield from range(30)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Progress("fit", 100, shown=True) as bar:
        list(bar.each(interrupted()))
    assert shares(stream.getvalue())[-1] < 31
    assert GREEN not in stream.getvalue()


def test_nothing_is_shown_unasked(capsys):
    with Progress("fit", 3) as bar:
        assert list(bar.each("abc")) == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert not (captured.out + captured.err).strip()


def test_a_notebook_has_a_full_bar_in_green(monkeypatch, capsys):
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr(progress, "tqdm", tqdm_notebook)
    with Progress("fit", 100, shown=True) as bar:
        bar.step(30)
    shown = bar._bar.container.children[1]
    assert (shown.value, shown.max, shown.bar_style) == (100, 100, "success")
    assert shown.style.bar_color == "green"


@pytest.mark.parametrize(
    ("tool", "options", "converged"),
    [
        ("fit", {"n_factors": 2, "max_steps": 3, "init": "spot"}, False),
        ("scai", {"n_factors": 2, "max_steps": 300, "tol": 1.0, "n_restarts": 1}, True),
        ("factvae", {"max_epochs": 1, "n_latent": 4}, False),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning:mudata")
def test_the_bar_of_a_tool_goes_forward_and_ends_full(tool, options, converged, mdata, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    getattr(gpnsf.tl, tool)(mdata, progress=True, **options)
    text = stream.getvalue()
    found = shares(text)
    assert found == sorted(found)
    assert found[-1] == 100
    assert (GREEN in text) is converged
    assert not re.search("start smooth|ELBO=|it/s", text)
