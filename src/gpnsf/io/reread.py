"""The counts of a fit, read once more from the object that carries it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpnsf.io import read

if TYPE_CHECKING:
    from gpnsf.core.types import Dataset
    from gpnsf.io.fits import Fit

__all__ = ["reread"]

ARGUMENTS = ("layers", "use_var", "spatial_key", "library_key", "size_factors", "modality_weights", "holdout_key")


def reread(fit: Fit, modality: str | None = None) -> tuple[Dataset, read.Layout]:
    """What :func:`gpnsf.tl.fit` has read, by the arguments that it left in ``uns``; of one modality alone if it is named."""
    arguments = {name: fit.params[name] for name in ARGUMENTS if name in fit.params}
    column = arguments.get("use_var")
    if isinstance(column, str):  # one name holds for the modalities that have the column
        arguments["use_var"] = {name: column for name, mod in fit.modalities.items() if column in mod.var}
    return read.read(
        fit.data,
        modalities=list(fit.modalities) if modality is None else [modality],
        likelihoods=fit.likelihoods,
        spatial=bool(fit.is_spatial.any()),
        **arguments,
    )
