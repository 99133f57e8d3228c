"""What all figures share, where no figure shows it."""

from __future__ import annotations

import matplotlib as mpl
import pytest

from gpnsf.pl import canvas


@pytest.mark.parametrize("before", [False, True])
def test_style_is_taken_back_and_what_a_backend_turned_on_is_not(before):
    with mpl.rc_context({"interactive": before, "font.size": 13.0}):
        with canvas.style():
            assert mpl.rcParams["font.size"] == canvas.TEXT
            mpl.interactive(True)  # as the backend of notebooks does when it is loaded
        assert mpl.rcParams["font.size"] == 13.0
        assert mpl.is_interactive()


def test_style_is_taken_back_after_an_error():
    with mpl.rc_context({"interactive": False, "font.size": 13.0}):
        with pytest.raises(ValueError, match="no"), canvas.style():
            raise ValueError("no")
        assert mpl.rcParams["font.size"] == 13.0
        assert not mpl.is_interactive()
