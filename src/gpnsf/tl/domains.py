"""Spatial domains: observations that express the same composition."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from gpnsf.checks import Rule, problem
from gpnsf.core.scores import clustering, embedding
from gpnsf.core.scores.metrics import apart
from gpnsf.io import fits
from gpnsf.io.chosen import Factors
from gpnsf.io.objects import owner
from gpnsf.io.tables import takes_tables
from gpnsf.io.write import check_free
from gpnsf.keys import DOMAIN
from gpnsf.palette import category_colors

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from gpnsf.io.fits import Fit

__all__ = ["domains"]

SAME = 1e-5  # Hellinger distance that is rounding error

_log = logging.getLogger("gpnsf")


@takes_tables
def domains(
    data: AnnData | MuData,
    *,
    n_domains: int | str,
    method: str = "kmeans",
    factors: Factors = None,
    consensus: Sequence[str] | None = None,
    max_domains: int = 15,
    n_init: int = 20,
    n_neighbors: int = 15,
    smoothness: float | None = None,
    key: str = "gpnsf",
    key_added: str = DOMAIN,
    seed: int = 0,
) -> None:
    r"""Divide the section into domains by what the factors let each observation express.

    In each modality, feature j has the part :math:`p_{ij} = \sum_k H_{ik} w_{jk} / \sum_{jk} H_{ik} w_{jk}` of the expected counts of
    observation i, with H from the field alone, without bumps narrower than 1/22 of the half-width of the tissue, and k over the factors chosen. The distance of i and l is that of Hellinger,
    :math:`d_{il}^2 = \frac12 \sum_j (\sqrt{p_{ij}} - \sqrt{p_{lj}})^2` added over modalities at their weights in the fit, so factors with like loadings are
    near to each other. Clusters are sought among the first principal coordinates, at most 15, of these distances. Several
    slices are clustered together, so a domain means the same in each.

    Then domains follow the tissue: a spot may take the label of its neighbours, by a Potts model, as in BayesSpace :cite:p:`zhao2021`, here with the
    quick updates of :cite:t:`besag1986`. Of the labels :math:`l_i`, the sum over spots of :math:`|x_i - c_{l_i}|^2 / m - \beta s_i / 2` is made small, with :math:`x_i` the
    coordinates above, :math:`c` the mean of a domain, :math:`s_i` the share of the 12 nearest spots of the slice that have the same label,
    and :math:`m` the median over spots of what it takes to change to the second best domain.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    n_domains
        Number of domains, or "auto": subsamples of the observations are clustered into 2 to ``max_domains``, and of the numbers for
        which they agree best (adjusted Rand index, within 5 % of the highest mean) the largest is taken.
    method
        "kmeans", "gmm" (Gaussians of one common shape), or "leiden" (communities of the graph of nearest neighbours, at a
        resolution that gives ``n_domains`` or comes closest; needs igraph, and ``n_domains`` as a number).
    factors
        "spatial", "all", or names or positions of factors, at least two. Default: the embedding that the fit has left, of its spatial factors, or of all
        where fewer than two are spatial.
    consensus
        Keys of several fits in the object, for example of several seeds. Observations are then compared by their mean squared
        distance over the fits, so that factors need not be matched. Takes the place of ``key``.
    max_domains
        Largest number that "auto" tries.
    n_init
        Starts of "kmeans" and "gmm"; the best is kept.
    n_neighbors
        Neighbours in the graph of "leiden".
    smoothness
        Weight :math:`\beta` of the neighbours, 0 or more. At 4, a spot whose 12 neighbours are all of another domain joins them, unless it is four times
        as clearly of its own domain as spots typically are. 0 leaves the clusters as they are, which suits structures of single spots.
        Default: 4, or 0 where the data have no coordinates.
    key
        Prefix of the slots, ``key_added`` of the fit.
    key_added
        Name of the column.
    seed
        Seed of starts and subsamples.

    Raises
    ------
    ImportError
        If ``method="leiden"`` and igraph is not installed.
    KeyError
        If the object has no such fit or factor.
    TypeError, ValueError
        If ``data`` is a view, an argument is of the wrong type or out of its range, the fit has no spatial factors for ``factors="spatial"``, or
        the data no coordinates for a ``smoothness`` above 0.

    Notes
    -----
    Reads ``obsm["X_gpnsf_embedding"]``, or, with ``factors`` or where there is none (as after :func:`gpnsf.tl.scai`),
    ``obsm["X_gpnsf_smooth"]`` and ``varm["gpnsf_loadings"]``; of :func:`gpnsf.tl.factvae` the codes as they are; and the coordinates and slices of the fit. Writes ``obs["gpnsf_domain"]``, categories "1", "2", .. from
    the largest domain to the smallest, and ``uns["gpnsf_domain_colors"]``, on the object and its modalities. With "auto", also
    ``uns["gpnsf_domain_stability"]``: ``n_domains`` and the mean adjusted Rand index of each.

    Signed models expect no composition: there, distances are those of the factors in units of their signal.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, split="assumed", progress=False)
    >>> gpnsf.tl.domains(mdata, n_domains=3)
    >>> mdata.obs["gpnsf_domain"].cat.categories.tolist()
    ['1', '2', '3']
    """
    owner(data)
    found = [fits.find(data, name) for name in _keys(consensus, key)]
    _check(
        found[0],
        n_domains,
        method=method,
        max_domains=max_domains,
        n_init=n_init,
        n_neighbors=n_neighbors,
        seed=seed,
    )
    Rule(str, "gpnsf_domain").check("key_added", key_added)
    check_free(data, key_added, example="gpnsf_domain")
    weight = _smoothness(found[0], smoothness)
    points = np.hstack([_points(fit, factors) for fit in found]) / np.sqrt(
        len(found)
    )  # [N, sum of d]
    record = None
    if n_domains == "auto":
        numbers = np.arange(2, max_domains + 1)
        stable = clustering.stability(points, numbers, method=method, seed=seed)
        n_domains = clustering.stable_number(numbers, stable)
        record = {"n_domains": numbers, "adjusted_rand_index": stable}
        at_the_end = " The largest number that was tried: raise max_domains to look further."
        _log.info(
            "%d domains, stability %.2f (best %.2f).%s",
            n_domains,
            stable[numbers == n_domains][0],
            stable.max(),
            at_the_end if n_domains == max_domains else "",
        )
    labels = clustering.cluster(
        points, int(n_domains), method=method, n_init=n_init, n_neighbors=n_neighbors, seed=seed
    )
    if weight:
        labels = clustering.smoothed(labels, points, _places(found[0]), weight)
    if labels.max() + 1 != n_domains:
        _log.warning(
            "Found %d domains instead of %s: this clustering cannot give that number. Pass another n_domains or method.",
            labels.max() + 1,
            n_domains,
        )
    _write(found[0], labels, key_added, record)


def _keys(consensus: Sequence[str] | None, key: str) -> list[str]:
    """Keys of the fits to read."""
    if consensus is None:
        return [key]
    if isinstance(consensus, str) or not consensus:
        rule = "`consensus` to be a list of keys of fits"
        remedy = "Pass for example consensus=['seed0', 'seed1']"
        raise TypeError(problem(rule, repr(consensus), remedy))
    return list(consensus)


def _check(
    fit: Fit, n_domains: int | str, *, method: str, max_domains: int, seed: int, **sizes: int
) -> None:
    """Check the options."""
    Rule(str, "kmeans", options=clustering.METHODS).check("method", method)
    n_obs = len(fit.mean)
    Rule(int, 0, low=0, high=2**32 - 1).check("seed", seed)
    for name, value in sizes.items():
        Rule(int, 20, low=1).check(name, value)
    if isinstance(n_domains, str):
        Rule(str, "auto", options=("auto",)).check("n_domains", n_domains)
        largest = clustering.subsample_size(n_obs)  # each subsample has to hold as many clusters
        Rule(int, 15, low=2, high=largest).check("max_domains", max_domains)
        if method == "leiden":
            rule = "a number of domains for method='leiden', whose communities cannot be extended to other observations"
            raise ValueError(problem(rule, "n_domains='auto'", "Pass a number, or method='kmeans'"))
    else:
        Rule(int, 8, low=1, high=n_obs).check("n_domains", n_domains)
    if method == "leiden" and find_spec("igraph") is None:
        remedy = "Install it with pip install 'gpnsf[leiden]', or pass method='kmeans'"
        raise ImportError(
            problem("igraph to be installed for method='leiden'", "no such package", remedy)
        )


def _smoothness(fit: Fit, asked: float | None) -> float:
    """Weight of the neighbours."""
    if asked is None:
        return clustering.SMOOTHNESS if fit.has_coords else 0.0
    Rule(float, clustering.SMOOTHNESS, low=0, high=1e6).check("smoothness", asked)
    if asked and not fit.has_coords:
        rule = "coordinates of the observations for a `smoothness` above 0"
        raise ValueError(problem(rule, "none", "Leave smoothness out"))
    return float(asked)


def _places(fit: Fit) -> np.ndarray:
    """Coordinates [N, D], longest side 1, with slices so far apart that they share no neighbours."""
    coords = fit.coords.astype(np.float64)
    side = float(np.ptp(coords, axis=0).max()) or 1.0
    library = np.zeros(len(coords)) if fit.library is None else fit.library.codes
    return apart((coords - coords.min(axis=0)) / side, library)


def _points(fit: Fit, factors: Factors) -> np.ndarray:
    """The embedding [N, d] that the fit has left, or that of the chosen factors."""
    points = fit.embedding if factors is None else fit.embedded(_chosen(fit, factors))
    if not fit.signed and np.ptp(points, axis=0).max() < SAME:
        rule = "at least two factors with different loadings, so that the expected expression of observations differs"
        raise ValueError(
            problem(
                rule, f"{_named(fit, factors)} alone", "Pass factors='all', or fit more factors"
            )
        )
    return points.astype(np.float64)


def _named(fit: Fit, factors: Factors) -> str:
    """The factors that were used, for an error."""
    used = embedding.factors_used(fit.is_spatial) if factors is None else _chosen(fit, factors)
    return ", ".join(map(repr, fit.names[used]))


def _chosen(fit: Fit, factors: Factors) -> np.ndarray:
    """Positions of the factors."""
    if isinstance(factors, str) and factors == "all":
        return fit.factor_indices(None)
    if not isinstance(factors, str) or factors != "spatial":
        return fit.factor_indices(factors)
    if not fit.is_spatial.any():
        found = f"none among the {len(fit.names)} of fit {fit.keys.key!r}"
        raise ValueError(
            problem("spatial factors for factors='spatial'", found, "Pass factors='all'")
        )
    return np.flatnonzero(fit.is_spatial)


def _write(fit: Fit, labels: np.ndarray, name: str, record: dict[str, np.ndarray] | None) -> None:
    """The column and its colours on the object and its modalities."""
    codes = pd.Categorical.from_codes(labels, [str(i + 1) for i in range(labels.max() + 1)])
    holders = [(fit.data, np.arange(len(labels)))]
    holders += [
        (mod, fit.rows[modality]) for modality, mod in fit.modalities.items() if mod is not fit.data
    ]
    for holder, rows in holders:
        holder.obs[name] = codes[rows]
        holder.uns[f"{name}_colors"] = category_colors(len(codes.categories))
    for modality in fit.modalities:
        if (
            f"{modality}:{name}" in fit.data.obs
        ):  # a copy that MuData has pulled from an earlier column
            del fit.data.obs[f"{modality}:{name}"]
    fit.data.uns.pop(f"{name}_stability", None)
    if record is not None:
        fit.data.uns[f"{name}_stability"] = record
