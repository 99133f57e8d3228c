"""The numbers that memory and time of a fit depend on; what each stage makes of them stands beside its code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from gpnsf.core.counts.sparse import CHUNK
from gpnsf.core.likelihoods import LIKELIHOODS
from gpnsf.core.types import Dataset

__all__ = ["NUMBER", "Shapes", "ViewShape"]

NUMBER = 4  # bytes of a number in single precision


class ViewShape(NamedTuple):
    """A modality."""

    n_features: int
    nnz: float
    likelihood: str
    weight: float


@dataclass(frozen=True)
class Shapes:
    """A fit, or a smaller one that it begins with, in numbers."""

    n_obs: int
    views: tuple[ViewShape, ...]
    n_factors: int
    n_spatial: int
    block: int  # rows of a block
    n_samples: int  # draws of the objective
    n_batches: int

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        n_factors: int,
        n_spatial: int,
        block_size: int | None,
        n_samples: int | None,
    ) -> Shapes:
        """Shapes of the fit of a dataset."""
        views = tuple(
            ViewShape(v.counts.shape[1], v.counts.nnz, v.likelihood, v.weight)
            for v in dataset.views
        )
        block = min(block_size or dataset.block_size, dataset.n_obs)
        return cls(
            dataset.n_obs, views, n_factors, n_spatial, block, n_samples or 1, dataset.n_batches
        )

    def rows(self, n_obs: int) -> Shapes:
        """Shapes of a fit of some of the rows."""
        views = tuple(view._replace(nnz=view.nnz * n_obs / self.n_obs) for view in self.views)
        return replace(self, n_obs=n_obs, views=views, block=min(self.block, n_obs))

    @property
    def lead(self) -> ViewShape:
        """The leading modality, as far as shapes can tell."""
        return max(self.views, key=lambda view: view.weight * view.nnz / view.n_features**0.5)

    @property
    def nnz(self) -> float:
        """Nonzero counts."""
        return sum(view.nnz for view in self.views)

    @property
    def block_nnz(self) -> float:
        """Nonzero counts of a block."""
        return self.nnz * self.block / self.n_obs

    @property
    def chunk(self) -> float:
        """Nonzero counts of which temporary arrays are made at a time."""
        return min(CHUNK, max(view.nnz for view in self.views) * self.block / self.n_obs)

    @property
    def loadings(self) -> int:
        """Loadings and backgrounds of all modalities."""
        return sum(view.n_features for view in self.views) * (self.n_factors + 1)

    @property
    def dispersed(self) -> list[ViewShape]:
        """Modalities whose own bound comes last: negative binomials."""
        return [view for view in self.views if LIKELIHOODS[view.likelihood].surrogate]
