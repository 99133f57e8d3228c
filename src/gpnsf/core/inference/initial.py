"""Starts: nonnegative matrix factorisations of the counts, smoothed over space or by spot.

The likelihood has many optima and the start decides which one is found, more than the optimiser
does. Each start is a cheap KL-NMF; the training keeps the one whose bound is best after a few
steps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gpnsf.core.counts.sparse import SparseCounts
from gpnsf.core.families import FAMILIES
from gpnsf.core.inference.batch_free import corrected
from gpnsf.core.inference.bins import (
    LARGE,
    MAX_DENSE,
    at_spots,
    gaussian_smoother,
    n_bins,
    neighbour_mean,
    order_of_bins,
    rows_to_one,
    square_bins,
)
from gpnsf.core.inference.klnmf import (
    FLOOR,
    poisson_fit,
    powers,
    random_factors,
    relaxed,
    search,
    step,
)
from gpnsf.core.inference.left_over import fill, means_of_bins, ordered_pattern
from gpnsf.core.inference.shapes import NUMBER, Shapes
from gpnsf.core.scores.metrics import apart, knn_weights, morans_i
from gpnsf.core.types import Dataset, Start, View

__all__ = ["bandwidths", "lead", "loadings_at", "memory", "starts"]

# of the smoothing kernel, half-width units; and where counts are deep
BANDWIDTHS, OF_DEEP = (0.0, 0.06, 0.1, 0.16), (0.0, 0.1)
MAX_FEATURES = 4_000  # features that a start looks at
MANY = 5_000_000  # nonzero counts above which two starts must do, as above LARGE spots
OF_SPOTS, OF_LOADINGS = 12, 7  # updates of single spots beside fixed factors, and of loadings
BACKGROUND_SHARE = 0.3  # share of the signal that the constant column starts with
DEEP = 50  # counts a spot from which bins tell patterns, nonspatial ones too, from noise


def memory(shapes: Shapes, *, signed: bool) -> float:
    """Bytes: features of the leading modality, binned counts, and factors; of signed models everything, densely."""
    lead = shapes.lead
    if signed:
        return 3.0 * NUMBER * shapes.n_obs * lead.n_features
    features = 8.0 * lead.nnz if lead.n_features > MAX_FEATURES else 0.0
    return (
        features
        + 6.0 * NUMBER * (MAX_DENSE + shapes.loadings)
        + 60.0 * shapes.n_obs * shapes.n_factors
    )


def starts(
    dataset: Dataset,
    n_factors: int,
    n_spatial: int,
    *,
    nonnegative: bool = True,
    kinds: Collection[str] = ("auto",),
    seed: int = 0,
) -> Iterator[Start]:
    """Yield the starts of some kinds ("smooth", "spot", "random"), of all ("auto"), or of a name.

    The "wide" one has the most smoothing. Signed models have one start, the singular value decomposition.
    """
    problem = _Problem(corrected(dataset.loaded()), n_factors, n_spatial, seed)
    wanted = set(kinds)
    if not nonnegative:
        yield problem.svd()
        return
    if n_spatial:
        smoothed = bandwidths(dataset.n_obs, problem.n_counts, deep=problem.deep)
        for bandwidth in BANDWIDTHS:
            name = f"smooth_{bandwidth:g}"
            own = {name}  # a start that is asked for by name is made of any counts
            own |= {"auto", "smooth"} if bandwidth in smoothed else set()
            own |= {"wide"} if bandwidth == smoothed[-1] else set()
            if wanted & own:
                yield problem.finish(name, *problem.smooth(bandwidth))
    if wanted & {"auto", "spot"} or ("smooth" in wanted and not n_spatial):
        yield problem.finish("spot", problem.spot())
    if "random" in wanted:
        yield problem.finish("random", problem.random(), filled=False)


def bandwidths(n_obs: int, n_counts: float, *, deep: bool) -> tuple[float, ...]:
    """Bandwidths worth trying: fewer for deep counts, unsmoothed bins alone for many spots or nonzero counts."""
    many = n_obs > LARGE or n_counts > MANY
    return BANDWIDTHS[:1] if many else OF_DEEP if deep else BANDWIDTHS


def lead(dataset: Dataset) -> View:
    """The leading modality: the one that tells most about the factors."""
    return max(dataset.views, key=_strength)


class _Problem:
    """Counts that the starts look at.

    Searches see the most over-dispersed features P' of the leading modality; what they leave over
    is looked for in all modalities.
    """

    def __init__(self, dataset: Dataset, n_factors: int, n_spatial: int, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.n_factors, self.n_spatial = n_factors, n_spatial
        self.views = {view.name: SparseCounts(view.counts) for view in dataset.views}
        main = lead(dataset)
        self.n_counts = main.counts.nnz
        self.observed, self.size = main.observed, main.size * main.observed
        self.features = _overdispersed(main.counts, MAX_FEATURES)
        self.counts = (
            main.counts[:, self.features]
            if len(self.features) < main.counts.shape[1]
            else main.counts
        )
        signed = FAMILIES[main.likelihood].signed
        if signed:
            self.signed, self.counts = self.counts, self.counts.maximum(0).tocsr()
        self.coords = apart(dataset.coords, dataset.library)
        self.depth = float(self.counts.sum()) / len(self.coords)  # counts of a spot
        self.deep = self.depth >= DEEP
        whole = len(self.features) == main.counts.shape[1] and not signed
        self.sparse = self.views[main.name] if whole else SparseCounts(self.counts)
        self.sparse_size = torch.as_tensor(self.size)[:, None]
        self._seen = dict[str, tuple[sp.csr_matrix, np.ndarray, Tensor]]()

    def smooth(self, bandwidth: float) -> tuple[Tensor, Tensor]:
        """Spatial factors [N, T] by KL-NMF of pseudobulk counts.

        Loadings [P', T or K] are those of the features looked at.

        Unsmoothed bins of deep data still show the nonspatial factors: there all K are looked for,
        and the T with the highest Moran's I come first.
        """
        bins = self._bins(bandwidth, self.counts.shape[1])  # [B, N]
        centres = rows_to_one(bins) @ self.coords
        smoother = gaussian_smoother(centres, bandwidth) @ bins
        dense = torch.as_tensor((smoother @ self.counts).toarray())
        size = torch.as_tensor(smoother @ self.size)[:, None].clamp_min(1e-3)
        wanted = self.n_factors if self.deep and bandwidth == 0 else self.n_spatial
        binned, W = search(dense, size, wanted, self.seed)
        if binned.shape[1] > self.n_spatial:
            order = np.argsort(-order_of_bins(centres, binned), kind="stable")
            binned = binned[:, torch.as_tensor(order[: self.n_spatial])]
            W = W[:, torch.as_tensor(order)]
        return at_spots(binned, centres, self.coords), W

    def spot(self) -> Tensor:
        """Factors [N, K] of spots by KL-NMF, by Moran's I, spatial ones as means of neighbours."""
        counts, size = self.sparse, self.sparse_size
        n_updates, n_tries = (35, 3) if self.counts.nnz < 500_000 else (20, 1)
        best: tuple[float, Tensor] | None = None
        for attempt in range(n_tries):
            H, W = random_factors(counts, self.n_factors, self.seed * 1009 + attempt)
            for power in powers(n_updates):
                H, W = step(counts, size, H, W, power)
            fit = poisson_fit(counts, size, H, W)
            if best is None or fit > best[0]:
                best = fit, H
        H = best[1]  # type: ignore[index]
        if not self.n_spatial:
            return H
        graph = knn_weights(self.coords, n_neighbors=8)
        order = np.argsort(-morans_i(H.numpy(), graph), kind="stable")
        H = H[:, torch.as_tensor(order)]
        H[:, : self.n_spatial] = torch.as_tensor(
            neighbour_mean(graph, H[:, : self.n_spatial].numpy())
        )
        return H

    def random(self) -> Tensor:
        """Factors [N, K] that know nothing."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(len(self.size), self.n_factors, generator=generator) + 0.5

    def svd(self) -> Start:
        """Scores [N, K] of the centred data in order of Moran's I, loadings by least squares."""
        from sklearn.decomposition import TruncatedSVD

        dense = self.signed.toarray()
        dense[self.observed] -= dense[self.observed].mean(0)
        n_components = min(self.n_factors, max(1, min(dense.shape) - 1))
        # constant data have no variance that sklearn could share out
        with np.errstate(invalid="ignore"):
            scores = (
                TruncatedSVD(n_components, random_state=self.seed).fit_transform(dense)
                if dense.shape[1] > 1
                else dense
            )
        scores = np.pad(
            scores / (scores.std(0) + 1e-6), ((0, 0), (0, self.n_factors - n_components))
        )
        if self.n_spatial:
            graph = knn_weights(self.coords, n_neighbors=min(6, len(scores) - 1))
            scores = scores[:, np.argsort(-morans_i(scores, graph), kind="stable")]
        factors = torch.as_tensor(np.ascontiguousarray(scores), dtype=torch.float32)
        return Start(
            "svd",
            factors.numpy(),
            {view.name: _least_squares(view, factors) for view in self.dataset.views},
        )

    def finish(
        self, name: str, factors: Tensor, W: Tensor | None = None, *, filled: bool = True
    ) -> Start:
        """Add what a start lacks: nonspatial factors, patterns that it has left over, and loadings."""
        missing = self.n_factors - factors.shape[1]
        if missing:
            factors = self._add_nonspatial(factors, missing, W)
        factors = factors.clamp_min(FLOOR)
        factors = factors / factors.mean(0)
        loadings = self._loadings(factors, self.dataset.views)
        for view in self._counted() if filled else ():
            for _ in range(self.n_spatial):
                more = self._with_left_over(view, factors, loadings[view.name])
                if more is None:
                    break
                factors, loadings = more, self._loadings(more, self.dataset.views)
        return Start(name, factors.numpy(), {name: W.numpy() for name, W in loadings.items()})

    def _loadings(self, factors: Tensor, views: Iterable[View]) -> dict[str, Tensor]:
        """Loadings [P, K+1] of modalities at fixed factors."""
        found = {view.name: loadings_at(view, self.views[view.name], factors) for view in views}
        return {name: torch.as_tensor(W) for name, W in found.items()}

    def _with_left_over(self, view: View, factors: Tensor, W: Tensor) -> Tensor | None:
        """Factors [N, K] with the clearest pattern that they leave over of a modality.

        None where there is none, or none that is worth a place.
        """
        bins, features, counts = self._binned(view.name)
        size = torch.as_tensor(view.size)[:, None]
        A = size * torch.cat([factors, torch.ones(len(factors), 1)], 1)
        rates = (bins @ A.numpy()) @ W.numpy()[features].T
        rates = torch.as_tensor(
            means_of_bins(rates, np.asarray(bins.sum(1)), FAMILIES[view.likelihood])
        )
        centres = rows_to_one(bins) @ self.coords
        new = ordered_pattern(counts, rates, centres, self.coords, self.seed)
        if new is None:
            return None
        more = torch.cat([factors, new / new.mean(0)], 1)
        counted = self._counted()
        return fill(more, self._loadings(more, counted), counted, self.n_spatial)

    def _counted(self) -> list[View]:
        """Modalities that are counts."""
        return [v for v in self.dataset.views if not FAMILIES[v.likelihood].signed]

    def _binned(self, name: str) -> tuple[sp.csr_matrix, np.ndarray, Tensor]:
        """Unsmoothed bins [B, N], features [P'], and counts [B, P'] of a modality."""
        if name not in self._seen:
            counts = next(v.counts for v in self.dataset.views if v.name == name)
            features = _overdispersed(counts, MAX_FEATURES)
            bins = self._bins(0.0, len(features))
            binned = torch.as_tensor((bins @ counts[:, features]).toarray())
            self._seen[name] = bins, features, binned
        return self._seen[name]

    def _add_nonspatial(self, spatial: Tensor, n_nonspatial: int, W: Tensor | None) -> Tensor:
        """Nonspatial factors [N, K-T] by updates of single spots, beside fixed spatial factors.

        ``W`` [P', K] are loadings to begin with, if they are known.
        """
        counts, size = self.sparse, self.sparse_size
        generator = torch.Generator().manual_seed(self.seed + 9)
        T = spatial.shape[1]
        H = torch.cat(
            [
                spatial / spatial.mean(0),
                0.2 + torch.rand(len(spatial), n_nonspatial, generator=generator),
            ],
            1,
        )
        H = H / H.mean(0)
        if W is None or W.shape[1] < self.n_factors:
            share = torch.tensor([0.6 / T] * T + [0.4 / n_nonspatial] * n_nonspatial)
            noise = 0.2 + torch.rand(counts.shape[1], len(share), generator=generator)
            W = (
                torch.as_tensor(_mean_counts(self.counts, self.size))[:, None] * share * noise
                + 1e-8
            )
        for power in powers(OF_SPOTS):
            updated, W = step(counts, size, H, W, power)
            H = torch.cat([H[:, :T], updated[:, T:]], 1)
        return H

    def _bins(self, bandwidth: float, n_features: int) -> sp.csr_matrix:
        """Membership [B, N] of spots in square bins."""
        n_obs = len(self.coords)
        wanted = n_bins(n_obs, n_features, bandwidth, depth=self.depth)
        if wanted >= n_obs:
            return sp.identity(n_obs, dtype=np.float32, format="csr")
        labels = square_bins(self.dataset.coords, self.dataset.library, wanted)
        ones = np.ones(n_obs, dtype=np.float32)
        return sp.csr_matrix((ones, (labels, np.arange(n_obs))), shape=(labels.max() + 1, n_obs))


def _overdispersed(counts: sp.csr_matrix, limit: int) -> np.ndarray:
    """Features with counts whose variance exceeds Poisson's the most, in their order."""
    total = np.asarray(counts.sum(0)).ravel()
    usable = np.flatnonzero(total != 0)
    if len(usable) <= limit:
        return usable if len(usable) else np.arange(counts.shape[1])
    mean = total / counts.shape[0]
    square = np.asarray(counts.multiply(counts).sum(0)).ravel() / counts.shape[0]
    score = (
        (square - mean**2 - mean) * np.minimum(1.0, 1 / np.maximum(mean, 1e-12))
        if counts.data.max() > 1
        else mean
    )
    return np.sort(usable[np.argsort(-score[usable], kind="stable")[:limit]])


def _mean_counts(counts: sp.csr_matrix, size: np.ndarray) -> np.ndarray:
    """Mean counts [P] per unit of size factor."""
    return (np.asarray(counts.sum(0)).ravel() / max(float(size.sum()), 1e-12)).astype(np.float32)


def _strength(view: View) -> float:
    """Weight of a modality in a start: weighted counts, the more the fewer features share them.

    Real values come last.
    """
    if FAMILIES[view.likelihood].signed:
        return -1.0
    return view.weight * float(view.counts.sum()) / view.counts.shape[1] ** 0.5


def loadings_at(view: View, counts: SparseCounts, factors: Tensor) -> np.ndarray:
    """Loadings [P, K+1] at fixed factors and constant column, by multiplicative updates."""
    family = FAMILIES[view.likelihood]
    if family.signed:
        return np.maximum(_least_squares(view, factors), 0.0)
    A = torch.cat([factors, torch.ones(len(factors), 1)], 1) * torch.as_tensor(view.size)[:, None]
    K = factors.shape[1]
    share = torch.tensor([(1 - BACKGROUND_SHARE) / K] * K + [BACKGROUND_SHARE])
    W = torch.as_tensor(_mean_counts(view.counts, view.size))[:, None] * share + 1e-9
    for power in powers(OF_LOADINGS):
        W = W * relaxed(counts.half_loadings(A, W, family.link) / A.sum(0), power) + 1e-12
    return W.numpy()


def _least_squares(view: View, factors: Tensor) -> np.ndarray:
    """Ridge loadings [P, K+1] of a real-valued modality at fixed factors, intercept last."""
    A = (
        torch.cat([factors, torch.ones(len(factors), 1)], 1)
        * torch.as_tensor(view.observed)[:, None]
    )
    gram = (A.T @ A).double() + 1e-3 * torch.eye(A.shape[1], dtype=torch.float64)
    moments = torch.as_tensor(view.counts.T @ A.numpy()).double()  # [P, K+1]
    return torch.linalg.solve(gram, moments.T).T.float().numpy()
