"""Features that deviate most from a constant rate."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from mudata import MuData

from gpnsf import checks
from gpnsf.arguments import answering
from gpnsf.checks import Rule
from gpnsf.core.scores.deviance import feature_deviance, largest
from gpnsf.io.objects import editable, modality_of, open_data, read_labels
from gpnsf.io.read import read_counts
from gpnsf.io.write import check_free

__all__ = ["deviance_features"]

FLAG = "highly_deviant"


@answering
def deviance_features(
    data: AnnData | MuData,
    *,
    n_top: int = 2000,
    modality: str | None = None,
    layer: str | None = None,
    batch_key: str | None = None,
    likelihood: str | None = None,
    key_added: str = "deviance",
    copy: bool = False,
) -> AnnData | MuData | None:
    """Rank features by their deviance from a constant rate but for each observation's total.

    Parameters
    ----------
    data
        AnnData or MuData with whole counts.
    n_top
        Number of features to flag in each modality; those with deviance 0 are never flagged.
    modality
        Modality of a MuData; by default those that ``gpnsf.tl.fit`` reads, ``rna`` and ``atac`` or
        else all.
    layer
        Layer that holds the counts; ``X`` by default.
    batch_key
        Column of ``obs``, of the MuData or of its modalities: each batch has its own constant
        rates, and the deviances of the batches are summed, so that differences between batches do
        not count.
    likelihood
        "poisson" or "binomial"; by default "binomial" for 0/1 data and "poisson" for counts.
    key_added
        Name of the column of deviances.
    copy
        Return an annotated copy, and leave ``data`` as it is.

    Returns
    -------
    None, or the annotated copy.

    Raises
    ------
    ValueError, TypeError, KeyError
        If counts are negative, fractional or not finite, or if an argument is out of its range, of
        the wrong type or names nothing.

    Notes
    -----
    Writes ``var[key_added]``, float64, and ``var["highly_deviant"]``, bool, of each modality; the
    latter suits ``gpnsf.tl.fit(..., use_var="highly_deviant")``.

    After Townes et al. (2019), *Genome Biology* 20:295. It costs one pass over the nonzero counts.
    The deviance of 0/1 data depends for the most part on how many observations a feature is open
    in.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.ggblocks(n_side=12, n_genes=40, n_peaks=60)
    >>> gpnsf.pp.deviance_features(mdata, n_top=10)
    >>> int(mdata["atac"].var["highly_deviant"].sum())
    10
    """
    opened = open_data(data, modalities=None if modality is None else [modality], writes=not copy)
    Rule(int, 2000, low=1).check("n_top", n_top)
    Rule(str, "deviance").check("key_added", key_added)
    Rule(str, "sample", optional=True).check("batch_key", batch_key)
    Rule(str, "poisson", options=("poisson", "binomial"), optional=True).check(
        "likelihood", likelihood
    )
    check_free(data, key_added, example="deviance")
    if key_added == FLAG:
        rule = f"`key_added` other than {FLAG!r}, the column of flags"
        raise ValueError(
            checks.problem(rule, repr(key_added), "Pass for example key_added='deviance'")
        )
    layers = checks.per_modality(layer, "layer", names=opened.names, known=opened.mods)
    batches = read_labels(opened, batch_key, argument="batch_key")
    deviances = {}
    for name in opened.names:
        counts = read_counts(
            opened.mods[name], layer=layers.get(name), likelihood="poisson", modality=name
        )
        kind = likelihood or ("binomial" if counts.data.max() == 1 else "poisson")
        batch = batches[opened.rows[name]]
        deviances[name] = np.sum(
            [feature_deviance(counts[batch == label], kind) for label in np.unique(batch)], axis=0
        )
    data = editable(data, copy=copy)
    for name, deviance in deviances.items():
        mod = modality_of(data, name)
        mod.var[key_added], mod.var[FLAG] = deviance, largest(deviance, n_top)
    return data if copy else None
