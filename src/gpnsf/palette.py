"""Colours of categories that are told apart with any colour vision."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpnsf.checks import problem

__all__ = ["CATEGORIES", "category_colors", "hex_colors"]

# The first seven are those of Okabe & Ito; each further one is the colour that lies farthest, in CIELAB, from all before
# it, for normal vision and for the simulated lack of either of the three cones.
CATEGORIES = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"),
    *("#D55E00", "#F0E442", "#6A00FF", "#552A00", "#00FF95"),
    *("#6A0055", "#2A2AAA", "#BFEAD4", "#6A80FF", "#D40040"),
    *("#6AEAFF", "#BFAA55", "#950040", "#6A55FF", "#00D495"),
)


def category_colors(number: int) -> list[str]:
    """A colour for each of so many categories; beyond twenty they repeat."""
    return [CATEGORIES[i % len(CATEGORIES)] for i in range(number)]


def hex_colors(colors: Iterable[Any]) -> list[str]:
    """Colours as text, from names, hexadecimal numbers, or RGB and RGBA between 0 and 1, such as a colour map has."""
    from matplotlib.colors import to_hex

    found = []
    for color in colors:
        try:
            plain: Any = str(color) if isinstance(color, str) else tuple(map(float, color))
            found.append(to_hex(plain, keep_alpha=True))
        except (TypeError, ValueError) as error:
            rule, remedy = (
                "colours as names, '#rrggbb', or RGB(A) tuples between 0 and 1",
                "Pass for example '#0072B2'",
            )
            raise ValueError(problem(rule, repr(color), remedy)) from error
    return found
