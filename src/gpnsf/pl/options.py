"""Arguments that figures share: described once, and unknown ones answered with what to pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from gpnsf.arguments import all_plain
from gpnsf.checks import nearest, problem

__all__ = ["explained"]

P = ParamSpec("P")
T = TypeVar("T")

# what stands in a docstring for the arguments that several figures have
SHARED = {
    "place": """\
library
    Names of the slices to draw; None for all.
img_key
    Image of the tissue behind the spots, one of ``uns["spatial"][slice]["images"]`` of the object
    or of a modality: "hires", "lowres" or another name; "auto" for the finest of these two that
    there is, if any; None for no image. Each slice has its own. With an image, the whole of it is
    drawn.
alpha_img
    Opacity of the image, from 0 to 1.
crop_coord
    ``(left, top, right, bottom)`` of what is drawn, in the units of the coordinates: one for all
    slices, or a list with one for each slice that is drawn. Spots outside are left out.""",
    "spots": """\
size
    Diameter of a spot, relative to its own: that of ``spot_diameter_fullres`` of the scale factors
    where an image is drawn, else one at which neighbouring spots just touch.
alpha
    Opacity of the spots, from 0 to 1.""",
    "shown": """\
ax
    Axes for a single panel.
show
    Show the figure; None does so where there is a window or a notebook.
return_fig
    Return the figure.""",
}
# arguments of scanpy and squidpy: those that say the same here
MEANT = {
    "color": ("features", "factors", "types", "key_added"),
    "genes": ("features",),
    "var_names": ("features",),
    "n_genes": ("n_features",),
    "color_map": ("cmap",),
    "library_id": ("library",),
    "img": ("img_key",),
    "img_res_key": ("img_key",),
    "img_alpha": ("alpha_img",),
    "spot_size": ("size",),
}
ELSEWHERE = {
    "save": "Pass return_fig=True and call .savefig('figure.pdf') on what comes back",
    "layer": "Draw the values of a layer with gpnsf.pl.feature_maps",
    "color": "Draw genes and peaks with gpnsf.pl.feature_maps, obs columns with gpnsf.pl.domains",
}


def explained(draw: Callable[P, T]) -> Callable[P, T]:
    """Describe the shared arguments of a public figure, and answer those that it does not have."""
    known = inspect.signature(draw).parameters
    text = inspect.cleandoc(draw.__doc__ or "")
    for name, shared in SHARED.items():
        text = text.replace(f"{{{name}}}", shared)

    @wraps(draw)
    def answering(*args: P.args, **kwargs: P.kwargs) -> T:
        """The figure, if it has all arguments."""
        unknown = next((name for name in kwargs if name not in known), None)
        if unknown is not None:
            raise TypeError(_answer(draw.__name__, unknown, list(known)))
        args, kwargs = all_plain(args, kwargs)
        return draw(*args, **kwargs)

    answering.__doc__ = text
    return answering


def _answer(figure: str, unknown: str, known: list[str]) -> str:
    """What to pass instead of an argument that a figure does not have."""
    meant = next((name for name in MEANT.get(unknown, ()) if name in known), None)
    elsewhere = ELSEWHERE.get(unknown) if meant != "features" else None
    if not meant and not elsewhere:
        meant = nearest(unknown, known)
    remedies = [*([f"Pass `{meant}=`"] if meant else []), *([elsewhere] if elsewhere else [])]
    rule = f"arguments of gpnsf.pl.{figure} ({', '.join(known)})"
    return problem(rule, f"`{unknown}`", ". ".join(remedies) or "Leave it out")
