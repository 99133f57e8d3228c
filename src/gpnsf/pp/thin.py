"""Two parts of the counts: to train on, and to test on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from anndata import AnnData
from mudata import MuData

from gpnsf import checks
from gpnsf.arguments import answering
from gpnsf.checks import Rule
from gpnsf.core.families import FAMILIES
from gpnsf.io.objects import editable, modality_of, open_data
from gpnsf.io.read import read_counts
from gpnsf.io.write import check_key
from gpnsf.pp.split import proportion

__all__ = ["thin"]


@answering
def thin(
    data: AnnData | MuData,
    *,
    fraction: float = 0.5,
    modalities: Sequence[str] | None = None,
    layers: str | Mapping[str, str] | None = None,
    key_added: str = "thinned",
    seed: int = 0,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Split every count binomially into a layer to train on and a layer to test on.

    Parameters
    ----------
    data
        AnnData or MuData with whole counts.
    fraction
        Expected share of the counts that goes into the training layer, between 0 and 1.
    modalities
        Modalities to split; those that ``gpnsf.tl.fit`` reads by default, ``rna`` and ``atac`` or
        else all.
    layers
        Layer that holds the counts, for each modality or one name for all; ``X`` by default.
    key_added
        Prefix of the layers that are written.
    seed
        Seed of the split; the split of one modality does not depend on which others are split with
        it.
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
    Writes ``layers[f"{key_added}_train"]`` and ``layers[f"{key_added}_test"]`` of each modality,
    CSR float32 [N, P], which sum to the counts.

    The halves of Poisson counts are independent given their rates. Negative binomial counts keep
    the gamma noise of the rate in both halves, so that the test layer shares some noise with the
    training layer. Of 0/1 data each open peak goes to one of the halves and is closed in the other,
    which is not independent either: thin ATAC fragment counts before they are made binary.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.ggblocks(n_side=12, n_genes=40, n_peaks=60)
    >>> gpnsf.pp.thin(mdata, fraction=0.8, modalities=["rna"])
    >>> mdata["rna"].layers["thinned_train"].shape
    (144, 40)
    """
    opened = open_data(data, modalities=modalities, writes=not copy)
    proportion("fraction", fraction)
    Rule(str, "thinned").check("key_added", key_added)
    Rule(int, 0, low=0).check("seed", seed)
    check_key(key_added, example="thinned")
    layer = checks.per_modality(layers, "layers", names=opened.names, known=opened.mods)
    streams = dict(
        zip(opened.mods, np.random.default_rng(seed).spawn(len(opened.mods)), strict=True)
    )
    halves = {}
    for name in opened.names:
        counts = read_counts(
            opened.mods[name], layer=layer.get(name), likelihood="poisson", modality=name
        )
        halves[name] = FAMILIES["poisson"].split(counts, None, fraction, streams[name])
    data = editable(data, copy=copy)
    for name, (train, test) in halves.items():
        mod = modality_of(data, name)
        mod.layers[f"{key_added}_train"], mod.layers[f"{key_added}_test"] = train, test
    return data if copy else None
