"""Which sets of genes the factors stand for."""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from gpnsf.checks import Rule, choices, problem
from gpnsf.core.scores.enrichment import over_representation, signed_gain
from gpnsf.io import fits
from gpnsf.io.chosen import Factors
from gpnsf.io.names import named
from gpnsf.io.ranked import ranked
from gpnsf.io.tables import takes_tables

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

__all__ = ["enrich"]

METHODS = ("ora", "ulm")

USUAL = {
    "source": ("geneset", "gene_set", "set", "term", "pathway", "gs_name", "collection_name"),
    "target": ("genesymbol", "gene_symbol", "gene", "symbol", "genes", "feature", "gene_name"),
}

_log = logging.getLogger("gpnsf")


@takes_tables
def enrich(
    data: AnnData | MuData,
    gene_sets: Mapping[str, Sequence[str]] | pd.DataFrame | str | os.PathLike[str],
    *,
    modality: str = "rna",
    method: str = "ora",
    factors: Factors = None,
    n_features: int = 100,
    min_size: int = 5,
    key: str = "gpnsf",
) -> pd.DataFrame:
    r"""Test sets of features against the loadings of each factor.

    - ``"ora"``, over-representation: are there more members of the set among the ``n_features`` best of the factor, as
      :func:`gpnsf.tl.rank_features` ranks them, than among all features with signal? ``score`` is the log odds ratio, p is
      one-sided and hypergeometric.
    - ``"ulm"``, univariate linear model, by decoupler (``pip install 'gpnsf[enrich]'``): do members of the set, or features
      with larger weights in it, have larger loadings than other features? The statistic of a feature is the signed root of
      the Poisson deviance of its loading from that of a feature like any other. ``score`` is the t value of the slope, p is
      two-sided: negative scores are sets that the factor avoids.

    Parameters
    ----------
    data
        Object that :func:`gpnsf.tl.fit` annotated.
    gene_sets
        A dict from set to names of features; a table with columns ``source`` (set), ``target`` (feature) and, for "ulm",
        ``weight`` if wanted; or the path of a GMT file.
    modality
        Modality whose features the sets name.
    method
        "ora" or "ulm".
    factors
        Names of the factors, or their positions from 0; None for all.
    n_features
        Best features of a factor that "ora" takes; fewer where fewer are abundant and have more than the expected loading.
    min_size
        Least number of features with signal that a set must hold to be tested.
    key
        Prefix of the slots, ``key_added`` of the fit.

    Returns
    -------
    Tidy table, for each factor the most significant sets first: ``factor``, ``set``, ``size`` (members with signal),
    ``score``, ``p``, and ``q`` after Benjamini-Hochberg over all lines. Factors without loadings in the modality are left out.

    Raises
    ------
    KeyError
        If the object has no such fit, factor or modality, or the table lacks a column.
    ValueError
        If no set has ``min_size`` features with signal, an option is unknown, or features share a name.
    ImportError
        If ``method="ulm"`` and decoupler is not installed.

    Notes
    -----
    Reads ``varm["gpnsf_loadings"]``, ``varm["gpnsf_loadings_std"]`` and ``var["gpnsf_background"]`` of the modality. The tests take features as independent, which genes are not: small p
    values order sets, they do not prove them.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.fit(mdata, n_factors=4, max_steps=2, progress=False)
    >>> sets = {"first": mdata["rna"].var_names[:10], "last": mdata["rna"].var_names[-10:]}
    >>> gpnsf.tl.enrich(mdata, sets, n_features=8).shape
    (8, 6)
    """
    Rule(str, "ora", options=METHODS).check("method", method)
    Rule(int, 100, low=1).check("n_features", n_features)
    Rule(int, 5, low=1).check("min_size", min_size)
    fit = fits.find(data, key)
    (modality,) = fit.modality_names(named(modality, list(fit.modalities)))
    W = fit.loadings[modality]
    names = fit.modalities[modality].var_names[W.any(axis=1)].astype(str)
    if not names.is_unique:
        rule = f"unique var_names in modality {modality!r}"
        found = f"{names.duplicated().sum()} duplicate name(s)"
        raise ValueError(problem(rule, found, "Call .var_names_make_unique() on it"))
    chosen = np.array([k for k in fit.factor_indices(factors) if W[:, k].any()], dtype=np.int64)
    network = _network(gene_sets)
    network = network[network["target"].isin(names)]
    size = network.groupby("source", sort=False)["target"].size()
    size = size[size >= min_size]
    if size.empty or not chosen.size:
        found = f"{network['target'].nunique()} of {len(names)} features of {modality!r} in sets, none of which is so large"
        remedy = "Check that names are of the same kind and case, or lower `min_size`"
        raise ValueError(
            problem(f"sets of at least {min_size} features with signal", found, remedy)
        )
    network = network[network["source"].isin(size.index)]
    test = _over_representation if method == "ora" else _linear_model
    score, p_values = test(fit, modality, chosen, network, size.index, names, n_features)
    table = pd.DataFrame(
        {
            "factor": np.repeat(fit.names[chosen], len(size)),
            "set": np.tile(size.index, len(chosen)),
            "size": np.tile(size.to_numpy(), len(chosen)),
            "score": score.ravel(),
            "p": p_values.ravel(),
            "q": stats.false_discovery_control(p_values, axis=None).ravel(),
        }
    )
    order = np.lexsort((-table["score"], table["p"], np.repeat(np.arange(len(chosen)), len(size))))
    return table.iloc[order].reset_index(drop=True)


def _over_representation(
    fit: fits.Fit,
    modality: str,
    chosen: np.ndarray,
    network: pd.DataFrame,
    sets: pd.Index,
    names: pd.Index,
    n_features: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Log odds ratios and p values [K, sets]."""
    best = [ranked(fit, modality, int(k), n_features=n_features)["feature"] for k in chosen]
    top = np.column_stack([names.isin(features) for features in best])  # [P, K]
    member = np.zeros((len(names), len(sets)), dtype=bool)
    member[names.get_indexer(network["target"]), sets.get_indexer(network["source"])] = True
    score, p_values = over_representation(member, top)
    return score.T, p_values.T


def _linear_model(
    fit: fits.Fit,
    modality: str,
    chosen: np.ndarray,
    network: pd.DataFrame,
    sets: pd.Index,
    names: pd.Index,
    _n_features: int,
) -> tuple[np.ndarray, np.ndarray]:
    """T values and two-sided p values [K, sets]; decoupler itself returns its p values adjusted by factor only."""
    try:
        import decoupler
    except ImportError as error:
        remedy = "Install it by `pip install 'gpnsf[enrich]'`, or pass method='ora'"
        raise ImportError(
            problem("decoupler for method='ulm'", "no such package", remedy)
        ) from error
    W = fit.loadings[modality]
    gain = signed_gain(W)[W.any(axis=1)][:, chosen].T  # [K, P]
    statistics = pd.DataFrame(gain, index=fit.names[chosen].astype(str), columns=names)
    told = ~_uniform(network, sets, len(names))  # the slope on a constant is not defined
    score = np.zeros((len(chosen), len(sets)))
    if told.any():
        network = network[network["source"].isin(sets[told])]
        found, _ = decoupler.mt.ulm(statistics, network, tmin=1, empty=False)
        score[:, told] = found.loc[statistics.index, sets[told]]
    return score, 2 * stats.t.sf(np.abs(score), len(names) - 2)


def _uniform(network: pd.DataFrame, sets: pd.Index, n_features: int) -> np.ndarray:
    """Which sets [n] hold all features with the same weight, and so tell none of them from the others."""
    groups = network.groupby("source")
    size = groups["target"].size()
    alike = groups["weight"].nunique() == 1 if "weight" in network else size > 0
    return (alike & (size == n_features)).reindex(sets).to_numpy()


def _network(
    gene_sets: Mapping[str, Sequence[str]] | pd.DataFrame | str | os.PathLike[str],
) -> pd.DataFrame:
    """Columns ``source``, ``target`` and, if given, ``weight``; each pair once."""
    if isinstance(gene_sets, pd.DataFrame):
        table = gene_sets.rename(columns=_usual_columns(gene_sets))
        choices(
            ("source", "target"),
            table.columns,
            what="columns",
            where="`gene_sets`",
            remedy=f"Rename them: {USUAL}",
        )
        table = table[[name for name in ("source", "target", "weight") if name in table]].copy()
    elif isinstance(gene_sets, str | os.PathLike):
        table = _long(_gmt(Path(gene_sets)))
    elif isinstance(gene_sets, Mapping):
        table = _long(gene_sets)
    else:
        remedy = "Pass {'set': ['gene', ..]}, a table with columns source and target, or the path of a GMT file"
        raise TypeError(
            problem(
                "`gene_sets` to be a dict, a DataFrame or a path", type(gene_sets).__name__, remedy
            )
        )
    table = _complete(table)
    again = table.duplicated(["source", "target"])
    if again.any():
        _log.info(
            "gene_sets: %d member(s) are named again, and the first line is kept", again.sum()
        )
    return table[~again]


def _complete(table: pd.DataFrame) -> pd.DataFrame:
    """The lines that name a set and a member, both as text."""
    pair = ["source", "target"]
    lacking = table[pair].isna().any(axis=1)
    if lacking.any():
        _log.warning(
            "gene_sets: %d of %d line(s) name no set or no member, and are left out. "
            "Fill them in, or remove them from the table.",
            lacking.sum(),
            len(table),
        )
    return table[~lacking].astype(dict.fromkeys(pair, str))


def _usual_columns(table: pd.DataFrame) -> dict[str, str]:
    """Names of the columns of sets and members, as databases call them, to ours."""
    found = {}
    for ours, usual in USUAL.items():
        there = [name for name in table.columns if str(name).lower() in usual]
        if ours not in table and len(there) == 1:
            found[there[0]] = ours
    return found


def _gmt(path: Path) -> dict[str, list[str]]:
    """Members of each set of a file: name, comment and members by tabs; lines of one name are one set."""
    sets: dict[str, list[str]] = {}
    lines = [line.split("\t") for line in _text(path).splitlines()]
    lines = [fields for fields in lines if len(fields) > 2]
    for name, _, *members in lines:
        sets.setdefault(name, []).extend(members)
    if len(sets) < len(lines):
        _log.info(
            "gene_sets: %d line(s) name a set again, and their members join it",
            len(lines) - len(sets),
        )
    return sets


def _text(path: Path) -> str:
    """The text of a file, which may be compressed."""
    if not path.is_file():
        rule, remedy = (
            "a file of gene sets in GMT",
            "Check the path, or pass a mapping of names to genes",
        )
        raise FileNotFoundError(problem(rule, f"{path}, which is none", remedy))
    return (
        gzip.decompress(path.read_bytes()).decode("utf-8")
        if path.suffix == ".gz"
        else path.read_text(encoding="utf-8")
    )


def _long(sets: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """One line for each set and member."""
    pairs = [(name, member) for name, members in sets.items() for member in members if member]
    return pd.DataFrame(pairs, columns=["source", "target"])
