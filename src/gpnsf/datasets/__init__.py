"""Simulated data with known truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpnsf.lazy import attach

__all__ = ["ggblocks", "groups", "mixture", "quilt", "tissue"]

if TYPE_CHECKING:
    from gpnsf.datasets.blocks import ggblocks, quilt
    from gpnsf.datasets.groups import groups
    from gpnsf.datasets.mixture import mixture
    from gpnsf.datasets.tissue import tissue
else:
    attach(
        __name__,
        attributes={
            "ggblocks": "blocks",
            "groups": "groups",
            "mixture": "mixture",
            "quilt": "blocks",
            "tissue": "tissue",
        },
    )
