"""The counts of a fit, read once more from the object that carries it."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from gpnsf.arguments import Reading
from gpnsf.io import read

if TYPE_CHECKING:
    from gpnsf.core.types import Dataset
    from gpnsf.io.fits import Fit

__all__ = ["reread"]


def reread(fit: Fit, modality: str | None = None) -> tuple[Dataset, read.Layout]:
    """What :func:`gpnsf.tl.fit` has read, in the order of the rows of the object; of one modality alone if it is named."""
    kept = {own.name: fit.params[own.name] for own in fields(Reading) if own.name in fit.params}
    column = kept.get("use_var")
    if isinstance(column, str):  # one name holds for the modalities that have the column
        kept["use_var"] = {name: column for name, mod in fit.modalities.items() if column in mod.var}
    own = {"modalities": list(fit.modalities) if modality is None else [modality], "likelihoods": fit.likelihoods}
    reading = Reading(**{**kept, **own, "batch_key": None})
    return read.read(fit.data, reading, spatial=bool(fit.is_spatial.any()))
