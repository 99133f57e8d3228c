"""Whether a factor is spatial: thin the counts, fit one part, and look for spatial order in the other part.

A field follows noise as readily as signal, so neither its amplitude, nor the bound, nor Moran's I of the fitted factors can
tell. Counts that took no part in the fit can: their factors are estimated spot by spot, without any field, from the loadings
of the fit, and Moran's I is compared with its values under permutation of the spots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch

from gpnsf.core import initial, refine, training
from gpnsf.core.metrics import knn_weights, morans_i
from gpnsf.core.model import Factorization
from gpnsf.core.types import Dataset, View

__all__ = ["MIN_Z", "SpatialTest", "halves", "spatial_test"]

MIN_Z = 3.0  # of Moran's I above which a factor counts as spatial; over many null fits its standard deviation is 1.2
MAX_SPOTS = 5_000
MAX_NONZEROS = 2_000_000
SCHEDULE = training.Schedule(max_steps=100)
N_NEIGHBORS = (6, 60)
FIT_AS = {"nb": "poisson", "bernoulli_clipped": "bernoulli"}  # any likelihood makes a valid score; these are fast


@dataclass(frozen=True)
class SpatialTest:
    """Moran's I of factors in the part of the counts that was not fitted."""

    rows: np.ndarray  # [n] rows of the dataset that took part
    factors: np.ndarray  # [n, K] log factors of the fitted part
    z: np.ndarray  # [K]
    p: np.ndarray  # [K] one-sided

    def matched(self, log_factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Z and p [K] of the factors of another fit with log factors [N, K], by the test's factor that is most like each."""
        nearest = (_standard(self.factors).T @ _standard(log_factors[self.rows])).argmax(0)
        return self.z[nearest], self.p[nearest]


def _standard(values: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and length 1; constant ones are 0."""
    centred = values - values.mean(0)
    return centred / np.maximum(np.linalg.norm(centred, axis=0), 1e-12)


def spatial_test(
    dataset: Dataset,
    build: Callable[[Dataset, int], Factorization],
    *,
    n_factors: int,
    n_spatial: int,
    start: str,
    n_permutations: int = 200,
    seed: int = 0,
) -> SpatialTest:
    """Test all factors of a model that ``build(dataset, n_spatial)`` makes.

    The fit begins at the named start, or at the widest smoothing, which half of shallow counts may need.
    """
    rng = np.random.default_rng(seed)
    rows = _sample(dataset, rng)
    fitted, kept = halves(_subset(dataset, rows), rng)
    model = build(fitted, n_spatial)
    names = dict.fromkeys([start, f"smooth_{initial.BANDWIDTHS[-1]:g}"])
    candidates = [
        candidate
        for name in names
        for candidate in initial.starts(
            fitted, n_factors, n_spatial, nonnegative=model.nonnegative, kind=name, seed=seed
        )
    ]
    training.fit(model, fitted, init=candidates, schedule=SCHEDULE, seed=seed)
    log_factors, scores = _project(model, build(kept, 0), fitted, kept)
    z, p = _permutation_test(scores, kept, n_permutations, rng)
    return SpatialTest(rows, log_factors, z, p)


def halves(dataset: Dataset, rng: np.random.Generator) -> tuple[Dataset, Dataset]:
    """Two datasets whose counts are independent given their rates."""
    pairs = [_thin(view, rng) for view in dataset.views]
    first, second = (tuple(pair[i] for pair in pairs) for i in (0, 1))
    return replace(dataset, views=first), replace(dataset, views=second)


def _sample(dataset: Dataset, rng: np.random.Generator) -> np.ndarray:
    """Rows that were observed, no more than fit into the limits of the test."""
    rows = np.flatnonzero(np.any([view.observed for view in dataset.views], axis=0))
    nonzeros = sum(view.counts.nnz for view in dataset.views)
    limit = min(MAX_SPOTS, int(len(rows) * MAX_NONZEROS / max(nonzeros, 1)))
    return rows if len(rows) <= limit else np.sort(rng.choice(rows, limit, replace=False))


def _subset(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """Some rows of a dataset, under the likelihoods of the test."""
    library = np.unique(dataset.library[rows], return_inverse=True)[1]
    views = tuple(
        replace(
            view,
            counts=view.counts[rows],
            size=view.size[rows],
            observed=view.observed[rows],
            likelihood=FIT_AS.get(view.likelihood, view.likelihood),
        )
        for view in dataset.views
    )
    batch = None if dataset.batch is None else np.unique(dataset.batch[rows], return_inverse=True)[1]
    return replace(dataset, coords=dataset.coords[rows], library=library, views=views, batch=batch)


def _thin(view: View, rng: np.random.Generator) -> tuple[View, View]:
    """Binomial halves of counts; open peaks are first given the number of events behind them; real values get noise.

    ``y + e`` and ``y - e`` are independent if e varies as much as the noise of y; with the whole variance of a feature they
    lean to opposite sides, which errs on the safe side.
    """
    counts = view.counts
    if view.likelihood == "gaussian":
        dense = counts.toarray()
        noise = rng.standard_normal(dense.shape, dtype=np.float32) * dense[view.observed].std(0)
        noise[~view.observed] = 0
        return replace(view, counts=sp.csr_matrix(dense + noise)), replace(view, counts=sp.csr_matrix(dense - noise))
    events = counts.data.astype(np.int64)
    if view.likelihood == "bernoulli":
        events = _events(counts, int(view.observed.sum()), rng)
    first = rng.binomial(events, 0.5)
    return tuple(replace(view, counts=_with_values(counts, part, view)) for part in (first, events - first))  # type: ignore[return-value]


def _events(counts: sp.csr_matrix, n_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers of events [nnz] behind open peaks: Poisson draws above zero at the mean rate of their feature."""
    closed = 1 - np.bincount(counts.indices, minlength=counts.shape[1]) / max(n_rows, 1)
    rate = -np.log(np.clip(closed, 1e-3, 1 - 1e-9))[counts.indices]
    # the first event happens at a time that is exponential, cut off at 1; the others fall into what is left
    first = -np.log1p(rng.random(len(rate)) * np.expm1(-rate)) / rate
    return 1 + rng.poisson(rate * (1 - first))


def _with_values(counts: sp.csr_matrix, values: np.ndarray, view: View) -> sp.csr_matrix:
    """Another matrix on the pattern of the counts, its zeros removed; 0 and 1 for open and closed."""
    values = values > 0 if view.likelihood == "bernoulli" else values
    matrix = sp.csr_matrix((values.astype(np.float32), counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
    matrix.eliminate_zeros()
    return matrix


@torch.no_grad()
def _project(
    model: Factorization, without_field: Factorization, fitted: Dataset, kept: Dataset
) -> tuple[np.ndarray, np.ndarray]:
    """Log factors [n, K] of the fitted part, and of the kept part spot by spot at the same loadings."""
    m = refine.mean_field(model, model.blocks(fitted)).m
    centre = m.mean(0)
    for (_, source), (_, target) in zip(model.items(), without_field.items(), strict=True):
        target.load_state_dict(source.state_dict())
        if model.nonnegative:
            target.raw[:, :-1] += centre
    scores = refine.local(without_field, without_field.blocks(kept)).m
    return m.cpu().numpy(), scores.cpu().numpy()


def _permutation_test(
    scores: np.ndarray, dataset: Dataset, n_permutations: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Standardised Moran's I and one-sided p [K] of scores [n, K]; spots are permuted within their slice.

    Of near and of wide neighbourhoods the one counts in which a factor stands out more, in the permutations as in the data: in
    shallow data only wide ones average enough noise away.
    """
    n, K = scores.shape
    if n <= N_NEIGHBORS[0]:
        return np.zeros(K), np.ones(K)
    coords = dataset.coords.astype(np.float64) + 1e3 * dataset.library[:, None]
    graphs = [knn_weights(coords, n_neighbors=min(number, n - 1)) for number in N_NEIGHBORS]
    by_library = np.argsort(dataset.library, kind="stable")
    values = np.empty((n_permutations + 1, len(graphs), K))  # the data come first
    order = np.arange(n)
    for value in values:
        value[:] = [morans_i(scores[order], graph) for graph in graphs]
        order[by_library] = np.lexsort(np.stack([rng.random(n), dataset.library]))
    spread = values[1:].std(0)
    standard = np.divide(values - values[1:].mean(0), spread, out=np.zeros_like(values), where=spread > 0).max(1)
    observed, draws = standard[0], standard[1:]
    spread = draws.std(0)
    z = np.divide(observed - draws.mean(0), spread, out=np.zeros(K), where=spread > 0)
    p = (1 + (draws >= observed).sum(0)) / (1 + n_permutations)
    return z, p
