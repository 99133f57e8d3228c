"""What crosses the borders of the core: frozen records, and the glossary of letters.

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

from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import numpy as np
import scipy.sparse as sp

__all__ = ["TINY", "Dataset", "History", "Posterior", "View"]

TINY = 1e-20  # added to rates, so that a factor that vanished leaves a finite logarithm


@dataclass(frozen=True)
class View:
    """One modality on the rows of the dataset.

    A row that was not measured in this modality, or that is held out, has ``observed`` false, no nonzero count and size
    factor 0: it then adds nothing to any sparse likelihood.
    """

    name: str
    likelihood: str
    counts: sp.csr_matrix  # [N, P] float32, canonical: sorted, no duplicates, no stored zeros
    size: np.ndarray  # [N] float32, mean 1 over observed rows, 0 elsewhere
    observed: np.ndarray  # [N] bool
    weight: float = 1.0  # weight of this modality in the objective


@dataclass(frozen=True)
class Dataset:
    """Everything that the core needs of a tissue section."""

    coords: np.ndarray  # [N, D] float32: each slice centred, one factor for all axes, largest half-width 1
    library: np.ndarray  # [N] int64: code of the slice, 0 .. n_libraries - 1
    views: tuple[View, ...]
    batch: np.ndarray | None = None  # [N] int64: code of the batch, in rising order; None: no batch effects

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


@dataclass(frozen=True)
class History:
    """What happened during the optimisation."""

    elbo: np.ndarray  # [steps] evidence lower bound at each step of the kept start
    seconds: np.ndarray  # [steps] wall seconds since the fit began
    phase: np.ndarray  # [steps] str: "pick", "main", "tail", "polish"
    converged: bool
    starts: dict[str, float]  # name of a start -> its ELBO when the best one was picked
    repairs: list[str] = dataclass_field(default_factory=list)
    notices: list[str] = dataclass_field(default_factory=list)  # bounds that hold the result


@dataclass(frozen=True)
class Posterior:
    """A fitted model in plain numpy, factors in their final order and scale."""

    mean: np.ndarray  # [N, K] float32 posterior mean of H, each column with mean 1 (signed models: of h)
    smooth: np.ndarray  # [N, K] float32 mean of the field alone (nonspatial columns as in mean)
    std: np.ndarray  # [N, K] float32 posterior standard deviation of H
    loadings: dict[str, np.ndarray]  # modality -> [P, K] float32
    background: dict[str, np.ndarray]  # modality -> [P] float32
    dispersion: dict[str, np.ndarray]  # modality -> [P]: theta (NB) or noise sd (Gaussian); absent otherwise
    variance_explained: dict[
        str, np.ndarray
    ]  # modality -> [K] share of the null deviance lost when H_k is made constant
    importance_std: dict[str, np.ndarray]  # modality -> [P] standard deviation of the features' spatial importance
    is_spatial: np.ndarray  # [K] bool, spatial factors first
    order: np.ndarray  # [K] place that each factor had in the model
    lengthscale: np.ndarray  # [K] in half-width units, nan for nonspatial factors
    amplitude: np.ndarray  # [K] standard deviation of the field (nonspatial: of the log factor)
    field: dict[str, Any]  # arrays that rebuild the field for prediction, see core.fields
    multipliers: dict[str, np.ndarray] = dataclass_field(default_factory=dict)  # modality -> [P, S] of batches, if any
