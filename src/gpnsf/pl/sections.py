"""Where observations lie on the paper: slices side by side, spots and images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gpnsf.checks import Rule, choices, problem
from gpnsf.io.objects import spot_distance
from gpnsf.pl.canvas import BAR, GREY, PAGE, SMALL, TALL, columns, plain, square_root
from gpnsf.pl.tissue import TissueImage, images_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection, PathCollection
    from matplotlib.colors import Colormap, Normalize

    from gpnsf.io.deconvolved import Placed

__all__ = [
    "Crop",
    "Section",
    "Slice",
    "name_slices",
    "paper",
    "profile",
    "section",
    "spots",
]

# left, top, right and bottom of what is drawn, for all slices or for each
Crop: TypeAlias = Sequence[float] | Sequence[Sequence[float]] | None

DOTS = 400  # in an inch of a printed figure

_log = logging.getLogger("gpnsf")


@dataclass(frozen=True)
class Slice:
    """One slice on the paper."""

    name: str
    shift: np.ndarray  # [2] or [1], from coordinates to the paper
    frame: np.ndarray  # [2, 2] upper left and lower right corner of what is drawn
    fixed: bool  # the frame is that of an image or of `crop_coord`, not of the spots
    image: TissueImage | None  # on the paper


@dataclass(frozen=True)
class Section:
    """Where the observations of a figure lie on the paper; y grows downwards, as in images."""

    rows: np.ndarray  # [n] observations that are drawn
    coords: np.ndarray  # [n, 2] or [n, 1], slices set side by side where they overlap
    diameter: np.ndarray  # [n] of each spot, in the units of the coordinates
    slices: tuple[Slice, ...]
    alpha: float = 1.0  # of spots
    alpha_img: float = 1.0

    @property
    def frame(self) -> np.ndarray:
        """Upper left and lower right corner [2, 2] of all slices."""
        frames = np.array([each.frame for each in self.slices])
        return np.array([frames[:, 0].min(axis=0), frames[:, 1].max(axis=0)])

    @property
    def aspect(self) -> float:
        """Height of the picture over its width; profiles of one coordinate are wider than high."""
        if self.coords.shape[1] == 1:
            return 0.6
        width, height = np.diff(self.frame, axis=0)[0]
        return float(height / width)

    def panel(self, ncols: int, *, nrows: int = 1, bar: float = BAR) -> tuple[float, float]:
        """Inches of a panel among others, width by height, with bar and two lines of title.

        All of them fit a page, unless they would be smaller than can be read.
        """
        words = 0.36 + (0.2 if self.coords.shape[1] == 1 else 0.1 * (len(self.slices) > 1))
        tall = np.clip(TALL / nrows - words, 0.45, 5)
        width = min(max(PAGE / ncols - bar, 0.6), 2.4 / np.sqrt(self.aspect), tall / self.aspect)
        return max(width + bar, 1.05), width * self.aspect + words


def section(
    fit: Placed,
    *,
    library: str | Sequence[str] | None = None,
    img_key: str | None = "auto",
    alpha_img: float = 1.0,
    crop_coord: Crop = None,
    size: float = 1.0,
    alpha: float = 1.0,
    margin: float = 0.0,
) -> Section:
    """Coordinates of observations to draw: of three, the first two; the third decides the top.

    ``margin`` is room around each slice, in distances of neighbouring spots.
    """
    Rule(float, 1.0, low=0, above=True).check("size", size)
    Rule(float, 1.0, low=0, high=1).check("alpha", alpha)
    Rule(float, 0.5, low=0, high=1).check("alpha_img", alpha_img)
    rows, names = _drawn(fit, library)
    coords = fit.coords
    if coords.shape[1] == 3:
        rows = rows[np.argsort(coords[rows, 2], kind="stable")]
    coords, names = coords[rows, :2], names[rows]
    slices, flat = list(dict.fromkeys(names)), coords.shape[1] == 2
    boxes = _boxes(crop_coord, slices, flat=flat)
    known = None if fit.library is None else slices
    images = images_of(fit, known, img_key) if flat else {}
    kept = _inside(coords, names, boxes)
    rows, coords, names = rows[kept], coords[kept], names[kept]
    parts = {name: np.flatnonzero(names == name) for name in slices}
    for name, image in images.items():
        _doubt(coords[parts[name]], image, name)
    fixed = {name: image.frame for name, image in images.items()} | boxes
    room = margin * spot_distance(coords[part] for part in parts.values()) if margin else 0.0
    shifts = _apart({name: fixed.get(name, _around(coords[parts[name]], room)) for name in slices})
    coords = coords + np.array([shifts[name] for name in names])
    diameter = np.full(len(names), size * _spot_diameter(coords, names))
    placed = []
    for name, part in parts.items():
        shown = images[name].within(fixed[name], shifts[name]) if name in images else None
        if shown is not None and shown.diameter is not None:
            diameter[part] = size * shown.diameter
        frame = _around(coords[part], diameter[part][0] / 2)
        if name in fixed:
            frame = fixed[name] + shifts[name]
        placed.append(Slice(name, shifts[name], frame, name in fixed, shown))
    return Section(rows, coords, diameter, tuple(placed), alpha, alpha_img)


def _drawn(fit: Placed, library: str | Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Observations [n] of the slices that are asked for, and the name of the slice of each [N]."""
    slices = fit.library
    if slices is None:
        if library is not None:
            rule, remedy = "a fit with sections for `library`", "fit with `library_key=`"
            found = "one without `library_key`"
            raise ValueError(problem(rule, found, f"Leave `library` out, or {remedy}"))
        return np.arange(len(fit.coords)), np.full(len(fit.coords), "", dtype=object)
    names = np.asarray(slices, dtype=object)
    if library is None:
        return np.arange(len(names)), names
    wanted = [library] if isinstance(library, str) else [str(name) for name in library]
    choices(wanted, slices.categories, what="sections", where=f"obs[{fit.params['library_key']!r}]")
    return np.flatnonzero(np.isin(names, wanted)), names


def _boxes(crop_coord: Crop, slices: Sequence[str], *, flat: bool) -> dict[str, np.ndarray]:
    """Upper left and lower right corner [2, 2] of what is drawn of each slice, if given."""
    if crop_coord is None:
        return {}
    rule = "`crop_coord` as (left, top, right, bottom), in the units of the coordinates"
    remedy = f"Pass one such tuple, or a list of {len(slices)}, one for each section that is drawn"
    try:
        boxes = np.asarray(crop_coord, dtype=np.float64)
    except (TypeError, ValueError):
        boxes = np.zeros(0)
    boxes = np.tile(boxes, (len(slices), 1)) if boxes.shape == (4,) else boxes
    if not flat or boxes.shape != (len(slices), 4):
        raise ValueError(problem(rule, repr(crop_coord) + " for profiles" * (not flat), remedy))
    boxes = boxes.reshape(-1, 2, 2)
    if not (boxes[:, 0] < boxes[:, 1]).all():
        remedy = "Pass left below right and top below bottom: y grows downwards"
        raise ValueError(problem(rule, repr(crop_coord), remedy))
    return dict(zip(slices, boxes, strict=True))


def _inside(coords: np.ndarray, names: np.ndarray, boxes: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether each observation [n] lies in the box of its slice."""
    kept = np.ones(len(coords), dtype=bool)
    for name, (low, high) in boxes.items():
        part = coords[names == name]
        inside = ((part >= low) & (part <= high)).all(axis=1)
        if not inside.any():
            (left, top), (right, bottom) = part.min(axis=0), part.max(axis=0)
            found = f"none of {len(part)} within {(*low.tolist(), *high.tolist())}"
            remedy = f"Choose from x {left:g} to {right:g} and y {top:g} to {bottom:g}"
            raise ValueError(problem(f"spots inside `crop_coord` {name}".rstrip(), found, remedy))
        kept[names == name] = inside
    return kept


def _doubt(coords: np.ndarray, image: TissueImage, name: str) -> None:
    """Warn of spots [n, 2] that do not seem to belong to their image."""
    low, high = image.frame
    outside = int((~((coords >= low) & (coords <= high)).all(axis=1)).sum())
    spacing = spot_distance([coords])
    wide = image.diameter is not None and 0 < 2 * spacing < image.diameter
    if outside > 0.05 * len(coords) or wide:
        found = (
            f"{outside} of {len(coords)} spots outside of the image, and spots {spacing:g} apart"
        )
        found += "" if image.diameter is None else f" that are {image.diameter:g} wide"
        rule = f"coordinates in pixels of the full resolution of the image {name}".rstrip()
        remedy = "Name such coordinates in the `spatial_key` of the fit, or pass img_key=None"
        _log.warning("%s", problem(rule, found, remedy))


def _around(coords: np.ndarray, room: float) -> np.ndarray:
    """Upper left and lower right corner [2, D] of observations [n, D], with room on all sides."""
    return np.array([coords.min(axis=0) - room, coords.max(axis=0) + room])


def _spot_diameter(coords: np.ndarray, library: np.ndarray) -> float:
    """Diameter of a spot, in coordinate units, at which neighbouring spots just touch."""
    diameter = spot_distance(coords[library == name] for name in set(library))
    span = float(np.ptp(coords, axis=0).max())
    if not diameter:
        return span / 20 or 1.0
    # small discs overlap a little and have a least size: else paper shines through and colours fade
    return max(diameter if span < 40 * diameter else 1.2 * diameter, span / 250)


def spots(
    ax: Axes, where: Section, values: np.ndarray, *, cmap: str | Colormap, norm: Normalize
) -> EllipseCollection:
    """Discs of a diameter in data units: they touch at any panel size; rasterized above 2,000."""
    from matplotlib.collections import EllipseCollection

    coords, diameter = where.coords, where.diameter
    discs = EllipseCollection(
        diameter,
        diameter,
        0.0,
        units="xy",
        offsets=coords,
        offset_transform=ax.transData,
        linewidths=0,
        rasterized=len(coords) > 2000,
        cmap=cmap,
        norm=norm,
        alpha=where.alpha,
    )
    discs.set_array(values)
    ax.add_collection(discs, autolim=False)
    paper(ax, where, where.frame)
    return discs


def paper(ax: Axes, where: Section, frame: np.ndarray) -> None:
    """Images behind what is drawn, and axes between corners [2, 2], upper left and lower right."""
    for image in (each.image for each in where.slices):
        if image is not None:
            # finer pixels than can be printed would only cost time
            size = ax.get_window_extent().width / ax.figure.dpi * DOTS
            share = np.ptp(image.frame[:, 0]) / np.ptp(frame[:, 0])
            image = image.coarser(int(image.pixels.shape[1] / (size * share)))
            (left, top), (right, bottom) = image.frame
            extent = (left, right, bottom, top)
            ax.imshow(image.pixels, extent=extent, alpha=where.alpha_img, zorder=0)
    ax.set(xlim=frame[:, 0], ylim=frame[::-1, 1], xticks=[], yticks=[], aspect="equal", anchor="NW")
    ax.spines[:].set_visible(False)


def profile(
    ax: Axes,
    where: Section,
    values: np.ndarray,
    *,
    scale: str,
    cmap: str | Colormap,
    norm: Normalize,
) -> PathCollection:
    """Values along a single coordinate, on an axis of the scale of the colours."""
    low, high = norm.vmin, norm.vmax
    marks = ax.scatter(
        where.coords[:, 0],
        np.clip(values, low, high),
        c=values,
        s=5,
        linewidths=0,
        rasterized=len(values) > 2000,
        cmap=cmap,
        norm=norm,
        clip_on=False,
    )
    if scale == "log":
        ax.set_yscale("log")
    elif scale == "sqrt":
        square_root(ax)
    ax.set(ylim=(low, high), xlabel="position")
    plain(ax)
    return marks


def name_slices(axes: Sequence[Axes], where: Section) -> None:
    """Names of the slices below each of them, or at the top of profiles, in every panel."""
    if len(where.slices) < 2:
        return
    profile = where.coords.shape[1] == 1
    for ax, each in product(axes, where.slices):
        place = (each.frame[:, 0].mean(), 1.0 if profile else each.frame[1, 1])
        label = ax.annotate(
            each.name,
            place,
            (0, -2),
            xycoords=ax.get_xaxis_transform() if profile else "data",
            textcoords="offset points",
            annotation_clip=False,
        )
        label.set(ha="center", va="top", fontsize=SMALL - 1.5, color=GREY)


def _apart(frames: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Shift [D] of each slice, by which frames [2, D] that overlap get apart."""
    low, high = np.array(list(frames.values())).swapaxes(0, 1)  # [slices, D] each
    shift = np.zeros_like(low)
    if _overlapping(low, high):
        # below a slice there is room for its name
        cell = (high - low).max(axis=0) * [1.15, 1.35][: low.shape[1]]
        place, across = np.arange(len(low)), len(low)
        if len(cell) > 1:
            across = columns(len(low), lambda _: (cell[0], cell[1]), target=1.5)
        middle = np.column_stack([place % across, place // across])[:, : len(cell)] * cell
        shift = middle - (low + high) / 2
    return dict(zip(frames, shift, strict=True))


def _overlapping(low: np.ndarray, high: np.ndarray) -> bool:
    """Whether any two of the frames [slices, D] share more than an edge."""
    apart = (low[:, None] >= high[None]) | (high[:, None] <= low[None])  # [slices, slices, D]
    together = ~np.any(apart, axis=2)
    np.fill_diagonal(together, False)
    return bool(together.any())
