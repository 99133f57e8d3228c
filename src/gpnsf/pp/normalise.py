"""Counts made into values of a Gaussian model, so that the way back is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from anndata import AnnData
from mudata import MuData

from gpnsf import checks
from gpnsf.arguments import answering
from gpnsf.checks import Rule, problem
from gpnsf.core.scores.normalising import normalised
from gpnsf.core.types import row_sums
from gpnsf.io.normalised import METHOD, size_key, tells_of_layer
from gpnsf.io.objects import Opened, editable, modality_of, open_data
from gpnsf.io.read import features_used, held_out_rows, read_counts
from gpnsf.io.sizes import SIZE_FLOOR, in_column, size_column
from gpnsf.io.write import Slot, check_key, put

__all__ = ["normalise"]


@answering
def normalise(
    data: AnnData | MuData,
    *,
    modalities: Sequence[str] | None = None,
    layers: str | Mapping[str, str] | None = None,
    use_var: str | Mapping[str, str] | None = None,
    size_factors: str | None = "total",
    target_sum: float | None = None,
    log: bool = True,
    holdout_key: str | None = None,
    layer_added: str = "normalised",
    copy: bool = False,
) -> AnnData | MuData | None:
    """Divide counts by size factors and take logarithms, for models with Gaussian noise.

    :func:`gpnsf.tl.fit` needs no normalised counts, except for the models "fa" and "rsf" and ``likelihoods="gaussian"``. What
    is written here can be undone, so that :func:`gpnsf.tl.evaluate` judges such a fit by the counts, beside models of counts.

    Parameters
    ----------
    data
        AnnData or MuData with whole counts.
    modalities
        Modalities to normalise; those that ``gpnsf.tl.fit`` reads by default.
    layers
        Layer that holds the counts, for each modality or one name for all; ``X`` by default.
    use_var
        Boolean ``var`` column of the features whose counts make up the totals, for each modality or one name for all: the one that the fit will
        be given. All features are normalised. Features without a count in the training rows add to no total.
    size_factors
        "total" (row totals), None (all 1), or an ``obs`` column.
    target_sum
        Total of a row after division by size factors. Default: the mean total of the training rows, so that size factors have mean 1 there.
    log
        Take ``log(1 + y)`` of what was divided.
    holdout_key
        Boolean ``obs`` column of rows that train nothing, as in the fit: they have no part in any mean over rows.
    layer_added
        Name of the layer that is written, and of its record in ``uns``. An earlier one is replaced; any other entry of ``uns`` with this name is
        an error.
    copy
        Return an annotated copy, and leave ``data`` as it is.

    Returns
    -------
    None, or the annotated copy.

    Raises
    ------
    ValueError, TypeError, KeyError
        If counts are negative, fractional or not finite, if size factors are not positive, or if an argument is out of its
        range, of the wrong type or names nothing. ``data`` is untouched after any error.

    Notes
    -----
    Writes, into each modality of n cells and P features,

    * ``layers["normalised"]`` [n, P], CSR float32: zeros stay zeros
    * ``obs["normalised_size"]`` [n]: size factors, of held-out rows too, in units of the training rows. Totals below a
      twentieth of their mean count as a twentieth, as in :func:`gpnsf.tl.fit`
    * ``uns["normalised"]``: ``method``, ``layer`` (of the counts), ``size_factors``, ``log``, ``holdout_key`` and ``learned`` (whether the unit of the size
      factors is a mean over rows)

    Examples
    --------
    >>> import gpnsf
    >>> adata = gpnsf.datasets.ggblocks(n_side=12, n_genes=40, n_peaks=36)["rna"]
    >>> gpnsf.pp.normalise(adata)
    >>> gpnsf.tl.fit(adata, "rsf", layers="normalised", n_factors=3, max_steps=2, progress=False)
    >>> gpnsf.tl.evaluate(adata, metric="poisson")[["rows", "n_obs"]].values.tolist()
    [['train', 144]]
    """
    opened = open_data(data, modalities=modalities, writes=not copy)
    Rule(str, "total", optional=True).check("size_factors", size_factors)
    Rule(float, 1e4, low=0, above=True, optional=True).check("target_sum", target_sum)
    Rule(bool, True).check("log", log)
    Rule(str, "holdout", optional=True).check("holdout_key", holdout_key)
    Rule(str, "normalised").check("layer_added", layer_added)
    Rule(bool, True).check("copy", copy)
    check_key(layer_added, argument="layer_added", example="normalised")
    if target_sum is not None and size_factors != "total":
        rule = "`target_sum` only with size_factors='total'"
        remedy = "Leave one of the two out"
        raise ValueError(problem(rule, f"size_factors={size_factors!r}", remedy))
    layer = checks.per_modality(layers, "layers", names=opened.names, known=opened.mods)
    _check_sources(layer, layer_added)
    features = features_used(opened, use_var)
    trained = ~held_out_rows(opened, holdout_key)
    slots: list[Slot] = []
    data = editable(data, copy=copy)
    for name in opened.names:
        mod = modality_of(data, name)
        _check_free(mod, name, layer_added)
        counts = read_counts(mod, layer=layer.get(name), likelihood="poisson", modality=name)
        own = trained[opened.rows[name]]
        used = features[name] & (counts[own].getnnz(axis=0) > 0)
        totals = row_sums(counts[:, used])
        size = _sizes(opened, name, totals, own, size_factors, target_sum)
        record = {
            "method": METHOD,
            "layer": layer.get(name),
            "size_factors": size_factors,
            "log": log,
            "holdout_key": holdout_key,
            "learned": size_factors is not None and target_sum is None,
        }
        values = normalised(counts, size, log=log).astype(np.float32)
        slots += [
            (mod, "layers", layer_added, values),
            (mod, "obs", size_key(layer_added), size),
            (mod, "uns", layer_added, record),
        ]
    put(data, slots, instead_of={})
    return data if copy else None


def _check_sources(layer: Mapping[str, str], layer_added: str) -> None:
    """Check that no layer of counts would be overwritten."""
    if layer_added in layer.values():
        rule = "`layer_added` other than the layer that holds the counts"
        remedy = "Pass for example layer_added='normalised'"
        raise ValueError(problem(rule, repr(layer_added), remedy))


def _check_free(mod: AnnData, name: str, layer_added: str) -> None:
    """Check that no entry of ``uns`` but an earlier record would be overwritten."""
    if layer_added in mod.uns and not tells_of_layer(mod.uns[layer_added]):
        rule = "`layer_added` other than an entry of uns that tells something else"
        remedy = "Pass for example layer_added='normalised'"
        raise ValueError(problem(rule, f"uns[{layer_added!r}] in modality {name!r}", remedy))


def _sizes(
    opened: Opened,
    name: str,
    totals: np.ndarray,
    trained: np.ndarray,
    source: str | None,
    target: float | None,
) -> np.ndarray:
    """Size factors [n] of the cells of a modality, all units from those that train [n] bool."""
    if source is None:
        return np.ones(len(totals))
    if source != "total":
        column = size_column(opened, name, source).iloc[opened.rows[name]]
        values = in_column(column, what=f"size factors in column {source!r} for {name!r}")
        return np.asarray(values / values[trained].mean())
    mean = totals[trained].mean() if trained.any() else 0.0
    if not mean > 0:
        rule = f"counts in the training rows of modality {name!r}"
        remedy = "Hold out fewer rows, or leave the modality out with `modalities`"
        raise ValueError(problem(rule, "none", remedy))
    return np.maximum(totals, SIZE_FLOOR * mean) / (mean if target is None else target)
