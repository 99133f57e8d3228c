"""Records that cross the borders of the core, frozen, and the glossary of letters.

=====  ==================================================================
N      spots (observations)
P      features of one modality
K      factors, of which the first T are spatial
M      basis functions or inducing points of one field
D      coordinates (1 to 3)
S      Monte Carlo draws
h      log factors [N, K], with posterior mean ``m`` and variance ``v``
H      factors ``exp(h)`` [N, K]
W      loadings [P, K], nonnegative (signed for ``fa`` and ``rsf``)
u      whitened weights of a field
size   size factors [N]
eta    weight of the Kullback-Leibler terms
theta  negative binomial size: variance = mean + mean**2 / theta
=====  ==================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

__all__ = [
    "TINY",
    "Dataset",
    "Given",
    "History",
    "Posterior",
    "RowReader",
    "Start",
    "View",
    "parts",
    "row_sums",
    "rows_at_a_time",
]

TINY = 1e-20  # added to rates, so that a factor that vanished leaves a finite logarithm
BLOCK_ROWS = 40_000  # rows of a block: they bound arrays [n, K, K]
# nonzeros of a row block, and for each feature: they bound arrays [nnz], and make up for what a
# block costs beside its counts, and for arrays [P, K] of its own
READ_NONZEROS, READ_PER_FEATURE = 4_000_000, 200
HELD_NONZEROS, HELD_PER_FEATURE = 16_000_000, 500  # where the counts are in memory


def rows_at_a_time(n_rows: int, n_features: int, nnz: int, *, held: bool = False) -> int:
    """Rows whose counts are worth a block and no more than that; all rows where they are few."""
    least, per_feature = (
        (HELD_NONZEROS, HELD_PER_FEATURE) if held else (READ_NONZEROS, READ_PER_FEATURE)
    )
    wanted = max(least, per_feature * n_features)
    return max(1, min(n_rows, BLOCK_ROWS, n_rows * wanted // max(nnz, 1)))


class RowReader(Protocol):
    """Counts [N, P] that are read from somewhere when rows are asked for."""

    @property
    def shape(self) -> tuple[int, int]:
        """N and P."""

    @property
    def nnz(self) -> int:
        """Number of nonzero counts."""

    def __getitem__(self, rows: slice | np.ndarray, /) -> sp.csr_matrix:
        """Some rows as canonical CSR, float32."""


def parts(counts: sp.csr_matrix | RowReader) -> Iterator[tuple[slice, sp.csr_matrix]]:
    """Ranges of rows with their counts, so that arrays [nnz] made of them stay small."""
    n_rows, n_features = counts.shape
    step = rows_at_a_time(n_rows, n_features, counts.nnz)
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        yield rows, counts[rows]


def row_sums(counts: sp.csr_matrix) -> np.ndarray:
    """Totals [N] of the rows, in double precision."""
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()


@dataclass(frozen=True)
class View:
    """One modality on the rows of the dataset.

    A row that was not measured in this modality, or that is held out, has ``observed`` false, no
    nonzero count and size factor 0: it then adds nothing to any sparse likelihood.
    """

    name: str
    likelihood: str
    # [N, P] float32 csr_matrix, canonical: sorted, no duplicates, no stored zeros; or a RowReader
    # of such
    counts: Any
    size: np.ndarray  # [N] float32, mean 1 over observed rows, 0 elsewhere
    observed: np.ndarray  # [N] bool
    weight: float = 1.0  # weight of this modality in the objective
    by_total: bool = False  # whether size factors are what the rates of a row add up to: its total


@dataclass(frozen=True)
class Dataset:
    """Everything that the core needs of a tissue section."""

    # [N, D] float32: each slice centred, one factor for all axes, largest half-width 1; beyond, a
    # few rows that are far outside of the tissue
    coords: np.ndarray
    library: np.ndarray  # [N] int64: code of the slice, 0 .. n_libraries - 1
    views: tuple[View, ...]
    # [N] int64: code of the batch, in rising order; None: no batch effects
    batch: np.ndarray | None = None
    memory: float = math.inf  # bytes of counts that are kept once they have been read

    @property
    def n_obs(self) -> int:
        """Number of rows N."""
        return self.coords.shape[0]

    @property
    def n_libraries(self) -> int:
        """Number of slices."""
        return int(self.library.max()) + 1

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return 1 if self.batch is None else int(self.batch.max()) + 1

    @property
    def nnz(self) -> int:
        """Number of nonzero counts of all modalities."""
        return sum(view.counts.nnz for view in self.views)

    @property
    def block_size(self) -> int:
        """Rows of a block where nobody asks for another number."""
        n_features = sum(view.counts.shape[1] for view in self.views)
        return rows_at_a_time(self.n_obs, n_features, self.nnz, held=self.held)

    @property
    def held(self) -> bool:
        """Whether all counts are in memory."""
        return all(sp.issparse(view.counts) for view in self.views)

    def subset(self, rows: np.ndarray) -> Dataset:
        """Some rows, in rising order, their counts in memory.

        Codes of slices and batches stay what they are.
        """
        views = tuple(
            replace(
                view, counts=view.counts[rows], size=view.size[rows], observed=view.observed[rows]
            )
            for view in self.views
        )
        batch = None if self.batch is None else self.batch[rows]
        return Dataset(self.coords[rows], self.library[rows], views, batch)

    def loaded(self) -> Dataset:
        """The same with all counts in memory."""
        if self.held:
            return self
        return self.subset(np.arange(self.n_obs))


@dataclass(frozen=True)
class Start:
    """One starting point, factors with mean one."""

    name: str
    factors: np.ndarray  # [N, K] spatial ones first
    loadings: dict[str, np.ndarray]  # modality -> [P, K+1], background last


@dataclass(frozen=True)
class History:
    """Course of the optimisation."""

    elbo: np.ndarray  # [steps] objective at each step of the kept start; where it is no bound: core/model/objective.py
    seconds: np.ndarray  # [steps] wall seconds since the fit began
    phase: np.ndarray  # [steps] str: "pick", "main", "tail", "polish"
    converged: bool
    starts: dict[str, float]  # name of a start -> its ELBO when the best one was picked
    repairs: list[str] = dataclass_field(default_factory=list)
    notices: list[str] = dataclass_field(default_factory=list)  # bounds that hold the result

    @property
    def best(self) -> str:
        """Name of the start with the best ELBO."""
        return max(self.starts, key=lambda name: self.starts[name])


@dataclass(frozen=True)
class Posterior:
    """A fitted model in plain numpy, factors in their final order and scale."""

    # [N, K] float32 posterior mean of H, each column with mean 1 (signed models: of h)
    mean: np.ndarray
    smooth: np.ndarray  # [N, K] float32 mean of the field alone (nonspatial columns as in mean)
    coarse: np.ndarray  # the same, without what the field says of single spots
    std: np.ndarray  # [N, K] float32 posterior standard deviation of H
    loadings: dict[str, np.ndarray]  # modality -> [P, K] float32
    loadings_std: dict[str, np.ndarray]  # modality -> [P, K] float32 posterior standard deviation
    background: dict[str, np.ndarray]  # modality -> [P] float32
    # modality -> [P]: theta (NB) or noise sd (Gaussian); absent otherwise
    dispersion: dict[str, np.ndarray]
    # modality -> [K] share of the null deviance lost when H_k is made constant
    variance_explained: dict[str, np.ndarray]
    # modality -> [P] standard deviation of the features' spatial importance
    importance_std: dict[str, np.ndarray]
    is_spatial: np.ndarray  # [K] bool, spatial factors first
    order: np.ndarray  # [K] place that each factor had in the model
    lengthscale: np.ndarray  # [K] in half-width units, nan for nonspatial factors
    amplitude: np.ndarray  # [K] standard deviation of the field (nonspatial: of the log factor)
    field: dict[str, object]  # arrays that rebuild the field for prediction, see core.fields
    multipliers: dict[str, np.ndarray] = dataclass_field(
        default_factory=dict
    )  # modality -> [P, S], if any


@dataclass(frozen=True)
class Given:
    """What a projection takes from a fit, in its units: factors in the order of the fit, features in that of the new data."""

    loadings: dict[str, np.ndarray]  # modality -> [P, K]
    loadings_std: dict[str, np.ndarray]  # modality -> [P, K]
    background: dict[str, np.ndarray]  # modality -> [P]
    dispersion: dict[str, np.ndarray]  # modality -> [P]; absent where there is none
    importance_std: dict[str, np.ndarray]  # modality -> [P]
    lengthscale: np.ndarray  # [T] in half-widths of the new data
    amplitude: np.ndarray  # [K] standard deviation of the field; of the log factor, if nonspatial
    nugget: np.ndarray  # [T] variance of single spots around the field
    scale: np.ndarray  # [K] by which the fit has divided the factors of its model
