from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from gpnsf.palette import CATEGORIES, category_colors, hex_colors

# What is left of linear RGB without the long, middle and short cones (Machado et al. 2009, full severity)
DEFICIENCIES = (
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
)
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def lab(linear):
    """CIELAB of linear RGB [n, 3]."""
    f = np.cbrt(np.maximum(linear @ np.transpose(TO_XYZ) / [0.9505, 1, 1.089], 1e-4))
    return np.column_stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])]
    )


def smallest_distance(linear):
    """Distance of the two colours that are most alike."""
    points = lab(np.clip(linear, 0, 1))
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    return distance[~np.eye(len(points), dtype=bool)].min()


def test_twenty_colours_are_told_apart_with_any_colour_vision():
    assert len(set(CATEGORIES)) == 20
    rgb = np.array([to_rgb(color) for color in CATEGORIES])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    assert smallest_distance(linear) > 20
    assert min(smallest_distance(linear @ np.transpose(matrix)) for matrix in DEFICIENCIES) > 10


def test_more_categories_repeat_colours():
    assert category_colors(22) == [*CATEGORIES, *CATEGORIES[:2]]


def test_colours_may_be_names_numbers_or_tuples():
    colors = ["red", "#00ff00", (0.0, 0.0, 1.0), np.array([0.0, 0.0, 0.0, 0.5])]
    assert hex_colors(colors) == ["#ff0000ff", "#00ff00ff", "#0000ffff", "#00000080"]
    with pytest.raises(ValueError, match=r"Expected colours as names.*; got \(300, 0, 0\)\. Pass"):
        hex_colors([(300, 0, 0)])
