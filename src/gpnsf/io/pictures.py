"""Images of a SpatialData, as Space Ranger, scanpy and squidpy keep them in ``uns["spatial"]``."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["pictures", "system_of"]

PREFERRED = ("hires", "lowres", "")  # parts of names of images
PIXELS = 1_000  # of the longer side
CHANNELS = (1, 3, 4)  # of pictures that can be drawn

_log = logging.getLogger("gpnsf")


def pictures(sdata: Any, regions: Iterable[str]) -> dict[str, dict[str, dict[str, object]]]:
    """An entry of ``uns["spatial"]`` for each region that has an image in its coordinate system."""
    return {
        region: {
            "images": {"hires": image},
            "scalefactors": {"tissue_hires_scalef": scale, **_diameter(sdata, region)},
        }
        for region in regions
        for image, scale in _picture(sdata, system_of(sdata[region]))
    }


def system_of(element: Any) -> str:
    """The coordinate system in which an element is drawn: the one that all share, else its first."""
    from spatialdata.transformations import get_transformation

    systems = list(get_transformation(element, get_all=True))
    return "global" if "global" in systems else systems[0]


def _picture(sdata: Any, system: str) -> list[tuple[np.ndarray, float]]:
    """Pixels [height, width, channels] of an image from the origin on, and pixels a unit; none without an image."""
    from spatialdata import get_extent, rasterize

    names = [name for name in sdata.images if _is_drawn(sdata.images[name], system)]
    if not names:
        return []
    name = next(name for part in PREFERRED for name in names if part in name)
    extent = get_extent(sdata.images[name], coordinate_system=system)
    last = [extent[axis][1] for axis in ("x", "y")]
    if min(last) <= 0:
        _log.info("The image %r is not drawn: it ends before the origin.", name)
        return []
    scale = PIXELS / max(last)
    image = rasterize(
        sdata.images[name],
        axes=("x", "y"),
        min_coordinate=[0, 0],
        max_coordinate=last,
        target_coordinate_system=system,
        target_unit_to_pixels=scale,
    )
    return [(np.moveaxis(np.asarray(image.data), 0, -1), scale)]


def _is_drawn(image: Any, system: str) -> bool:
    """Whether an image has a place in a coordinate system and looks like a picture."""
    from spatialdata.models import get_channel_names
    from spatialdata.transformations import get_transformation

    there = get_transformation(image, get_all=True)
    return system in there and len(get_channel_names(image)) in CHANNELS


def _diameter(sdata: Any, region: str) -> dict[str, float]:
    """Diameter of the spots of a region in the units of its coordinates, where they are circles."""
    from spatialdata.transformations import get_transformation

    element = sdata[region]
    if "radius" not in getattr(element, "columns", ()):
        return {}
    place = get_transformation(element, to_coordinate_system=system_of(element))
    affine = place.to_affine_matrix(("x", "y"), ("x", "y"))[:2, :2]
    size = 2 * np.median(element["radius"]) * np.sqrt(abs(np.linalg.det(affine)))
    return {"spot_diameter_fullres": float(size)}
