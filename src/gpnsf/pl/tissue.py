"""Images of the tissue, as Space Ranger, scanpy and squidpy keep them in ``uns["spatial"]``."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpnsf.checks import choices, problem
from gpnsf.keys import SPATIAL

if TYPE_CHECKING:
    from gpnsf.io.deconvolved import Placed

__all__ = ["TissueImage", "images_of"]

AUTO = "auto"
PREFERRED = ("hires", "lowres")
PLAIN = "pass img_key=None to draw no image"

Entry: TypeAlias = Mapping[str, Mapping[str, object]]  # images and scale factors of a slice

_log = logging.getLogger("gpnsf")


@dataclass(frozen=True)
class TissueImage:
    """Pixels and where they lie, in the units of the coordinates: pixels of the full resolution."""

    pixels: np.ndarray  # [height, width, 3]
    frame: np.ndarray  # [2, 2] its upper left and lower right corner, (x, y)
    diameter: float | None  # of a spot; None where it is not known

    def within(self, box: np.ndarray, shift: np.ndarray) -> TissueImage | None:
        """The pixels that a box [2, 2] of the same units meets, moved; None if there are none."""
        size = np.array(self.pixels.shape[1::-1])
        step = (self.frame[1] - self.frame[0]) / size
        # a hundredth of a pixel is an error of rounding
        first = np.floor((box[0] - self.frame[0]) / step + 0.01).clip(0, size).astype(int)
        last = np.ceil((box[1] - self.frame[0]) / step - 0.01).clip(0, size).astype(int)
        if (last <= first).any():
            return None
        part = self.pixels[first[1] : last[1], first[0] : last[0]]
        frame = self.frame[0] + step * np.array([first, last]) + shift
        return replace(self, pixels=part, frame=frame)

    def coarser(self, step: int) -> TissueImage:
        """Means of squares of ``step`` times ``step`` pixels; those left over at two sides go."""
        if not 1 < step <= min(self.pixels.shape[:2]):
            return self
        height, width = (n // step for n in self.pixels.shape[:2])
        kept = self.pixels[: height * step, : width * step]
        squares = kept.reshape(height, step, width, step, 3)
        means = squares.mean(axis=(1, 3), dtype=np.float32).astype(self.pixels.dtype)
        share = np.array([width, height]) * step / self.pixels.shape[1::-1]
        corner = self.frame[0] + share * (self.frame[1] - self.frame[0])
        return replace(self, pixels=means, frame=np.array([self.frame[0], corner]))


def images_of(
    fit: Placed, slices: Sequence[str] | None, img_key: str | None
) -> dict[str, TissueImage]:
    """The image of each slice that has one; without slices, the only image, under an empty name."""
    if img_key is None:
        return {}
    entries = _entries(fit)
    alone = slices is None and len(entries) == 1
    names = {"": next(iter(entries))} if alone else {name: name for name in slices or ()}
    trouble = None if alone else _trouble(entries, slices, img_key)
    if trouble and img_key != AUTO:
        raise KeyError(problem(*trouble))
    if trouble and entries:
        _log.warning("%s", problem(*trouble))
    return {
        own: _image(entries[name], img_key, where=f"uns[{SPATIAL!r}][{name!r}]")
        for own, name in names.items()
        if entries.get(name, {}).get("images")
    }


def _entries(fit: Placed) -> dict[str, Entry]:
    """What ``uns`` of the object, or else of a modality, says of each slice."""
    holders = [fit.data, *fit.modalities.values(), *getattr(fit.data, "mod", {}).values()]
    found: dict[str, Entry] = {}
    for holder in holders:
        own = holder.uns.get(SPATIAL)
        for name, entry in (own if isinstance(own, Mapping) else {}).items():
            if isinstance(entry, Mapping) and isinstance(entry.get("images"), Mapping):
                found.setdefault(str(name), entry)
    return found


def _trouble(
    entries: Collection[str], slices: Sequence[str] | None, img_key: str
) -> tuple[str, str, str] | None:
    """Rule, finding and remedy where there is no image of what is drawn."""
    if not entries:
        rule = f"an image {img_key!r} in uns[{SPATIAL!r}] of the object or of a modality"
        return rule, "none", "Leave `img_key` out, or put in what `scanpy.read_visium` reads"
    known = list(entries)
    if slices is None:
        remedy = f"Fit with `library_key=`, delete other entries of uns[{SPATIAL!r}], or {PLAIN}"
        return f"one image in uns[{SPATIAL!r}] for a fit without sections", f"{known}", remedy
    absent = [name for name in slices if name not in entries]
    if absent:
        rule = f"an image of each section in uns[{SPATIAL!r}] (there: {known})"
        remedy = f"Rename the entries or the sections, or {PLAIN}"
        return rule, f"none for {len(absent)} section(s), the first is {absent[0]!r}", remedy
    return None


def _image(entry: Entry, img_key: str, *, where: str) -> TissueImage:
    """Pixels, place and size of spots that an entry holds."""
    pictures, factors = entry["images"], entry.get("scalefactors", {})
    preferred = next((name for name in PREFERRED if name in pictures), next(iter(pictures)))
    name = preferred if img_key == AUTO else img_key
    remedy = f"Name one of these in `img_key`, or {PLAIN}"
    choices([name], pictures, what="the image", where=f"{where}['images']", remedy=remedy)
    key = f"tissue_{name}_scalef"
    key = key if key in factors else next((other for other in factors if name in other), key)
    remedy = f"Add it: pixels of the image in one unit of the coordinates; or {PLAIN}"
    choices(
        [key], factors, what="the scale factor", where=f"{where}['scalefactors']", remedy=remedy
    )
    scale = _positive(factors[key], f"{where}['scalefactors'][{key!r}]")
    pixels = _pixels(pictures[name], f"{where}['images'][{name!r}]")
    # the middle of a pixel is a whole number
    frame = (np.array([[0, 0], pixels.shape[1::-1]]) - 0.5) / scale
    known = factors.get("spot_diameter_fullres")
    where = f"{where}['scalefactors']['spot_diameter_fullres']"
    return TissueImage(pixels, frame, None if known is None else _positive(known, where))


def _positive(value: Any, where: str) -> float:
    """A number of the record, above 0."""
    number = np.asarray(value)
    if number.size != 1 or number.dtype.kind not in "iuf" or not 0 < number.item() < np.inf:
        raise ValueError(
            problem(f"a number above 0 in {where}", repr(value), f"Correct it, or {PLAIN}")
        )
    return float(number.item())


def _pixels(values: Any, where: str) -> np.ndarray:
    """An image as [height, width, 3], from one in grey or in colours, transparent or not."""
    pixels = np.asarray(values)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    remedy = f"Replace it by such an image, or {PLAIN}"
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not pixels.size:
        rule = f"an image of shape (height, width) or (height, width, 3 or 4) in {where}"
        raise ValueError(problem(rule, f"shape {np.shape(values)}", remedy))
    top = 255 if pixels.dtype.kind in "iu" else 1
    if pixels.dtype.kind not in "iuf" or not (pixels.min() >= 0 and pixels.max() <= top):
        rule = f"integers from 0 to 255, or real numbers from 0 to 1, in {where}"
        found = f"{pixels.dtype}"
        if pixels.dtype.kind in "iuf":
            found += f" from {pixels.min():g} to {pixels.max():g}"
        raise ValueError(problem(rule, found, remedy))
    pixels = pixels.astype(np.uint8) if pixels.dtype.kind in "iu" else pixels
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]
