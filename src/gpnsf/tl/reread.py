"""The counts of a fit, read once more from the object that carries it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpnsf import bridge

if TYPE_CHECKING:
    from gpnsf.core.types import Dataset
    from gpnsf.results import Fit

__all__ = ["reread"]

ARGUMENTS = ("layers", "use_var", "spatial_key", "library_key", "size_factors", "modality_weights", "holdout_key")


def reread(fit: Fit) -> tuple[Dataset, bridge.Layout]:
    """What :func:`gpnsf.tl.fit` has read, by the arguments that it left in ``uns``."""
    return bridge.read(
        fit.data,
        modalities=list(fit.modalities),
        likelihoods=fit.likelihoods,
        spatial=bool(fit.is_spatial.any()),
        **{name: fit.params[name] for name in ARGUMENTS if name in fit.params},
    )
