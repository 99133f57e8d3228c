"""Simulated data with known truth, and readers of published sections that the user has downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpnsf.lazy import attach

__all__ = [
    "ggblocks",
    "groups",
    "mixture",
    "quilt",
    "slideseq_hippocampus",
    "tissue",
    "visium_sagittal",
    "xyzeq_liver",
]

if TYPE_CHECKING:
    from gpnsf.datasets.blocks import ggblocks, quilt
    from gpnsf.datasets.groups import groups
    from gpnsf.datasets.mixture import mixture
    from gpnsf.datasets.published import slideseq_hippocampus, visium_sagittal, xyzeq_liver
    from gpnsf.datasets.tissue import tissue
else:
    attach(
        __name__,
        attributes={
            "ggblocks": "blocks",
            "groups": "groups",
            "mixture": "mixture",
            "quilt": "blocks",
            "slideseq_hippocampus": "published",
            "tissue": "tissue",
            "visium_sagittal": "published",
            "xyzeq_liver": "published",
        },
    )
