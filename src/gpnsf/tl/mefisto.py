"""MEFISTO beside the models of gpnsf: the same data in, the same slots out."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
from anndata import AnnData
from mudata import MuData

from gpnsf import checks
from gpnsf.arguments import Reading, check_arguments
from gpnsf.checks import Rule, problem
from gpnsf.core.companions import mefisto as core
from gpnsf.core.scores.simplex import feature_importance, observation_importance
from gpnsf.io import read
from gpnsf.io.companions import MEFISTO
from gpnsf.io.objects import editable, modality_of, owner
from gpnsf.io.streaming import available_memory
from gpnsf.io.tables import takes_tables
from gpnsf.io.write import Slot, check_key, on_all_features, put
from gpnsf.keys import SPATIAL, Keys
from gpnsf.settings import settings
from gpnsf.tl.alone import SMALL, few_threads, one_at_a_time

__all__ = ["mefisto"]

FEWEST = 100  # inducing points: mofapy2 takes no fewer
MARGIN = 1.5  # of the memory that is expected over what there is

_UNRECORDED = ("data", "copy", "progress")
_VERSIONS = ("gpnsf", "mofapy2", "numpy", "scipy")

_log = logging.getLogger("gpnsf")


@takes_tables
@one_at_a_time
def mefisto(
    data: AnnData | MuData,
    *,
    n_factors: int = 10,
    modalities: Sequence[str] | None = None,
    layers: Mapping[str, str] | str | None = None,
    use_var: Mapping[str, str] | str | None = None,
    spatial_key: str = SPATIAL,
    library_key: str | None = None,
    size_factors: str | None = "total",
    holdout_key: str | None = None,
    n_inducing: int = 200,
    max_steps: int = 1000,
    seed: int = 0,
    progress: bool | None = None,
    key_added: str = "mefisto",
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Fit MEFISTO, the signed factor model with Gaussian processes of mofapy2, to compare with (``pip install 'gpnsf[mefisto]'``).

    The model is Gaussian: with inducing points mofapy2 knows no likelihood of counts. So counts are normalised first, peaks like
    genes: divided by size factors with median 1, log1p, centred by feature, and each modality scaled to variance 1, without
    which simulated sparse peaks lost all their fields. Everything else is as in :func:`gpnsf.tl.fit`, so that one call beside the
    other compares them. Factors and loadings have both signs: a factor is a direction of variation, not a part of the tissue.

    Parameters
    ----------
    data
        Object with raw counts and coordinates in ``obsm[spatial_key]``. Cells that lack a modality contribute what they have. The
        normalised tables are dense: select features by ``use_var``.
    n_factors
        Number of factors K, at most the number of observations and of features. MEFISTO shrinks those that it has no use for.
    modalities
        Names of the modalities to use. Default: those whose names say RNA or ATAC, else all.
    layers
        Layer that holds the counts, by modality or for all. Default: ``X``.
    use_var
        Boolean ``var`` column that selects features, by modality or for all. Default: every feature is used.
    spatial_key
        Name of the coordinates [N, 1 to 3] in ``obsm``, in any unit.
    library_key
        ``obs`` column of slices. They are placed three half-widths apart, so that they share loadings and length scales, and a field
        of one does not reach into the other. MEFISTO's own groups need places that correspond between slices.
    size_factors
        "total" (row totals), None (all 1: where totals carry signal), or an ``obs`` column.
    holdout_key
        Boolean ``obs`` column of rows that train nothing, neither factors nor means and size factors. They get the factors that the fields
        predict, as mofapy2's ``predict_factor`` does, and 0 of factors without a field.
    n_inducing
        Number of inducing points, at least 100, which mofapy2 chooses among the observations. With no more observations than this
        the Gaussian processes are exact. Time grows with its square, memory with the square of the number of observations.
    max_steps
        Cap on the iterations. Fields come in at the 20th; with fewer there are none.
    seed
        Seed of everything random; the same seed gives the same bits on the same machine.
    progress
        Whether to show a progress bar. Default: ``gpnsf.settings.progress``. What mofapy2 prints is never shown.
    key_added
        Prefix of all slots written.
    copy
        Whether to return an annotated copy and leave ``data`` as it is.

    Returns
    -------
    None, or the annotated copy.

    Raises
    ------
    ImportError
        mofapy2 is not installed.
    KeyError
        A named slot, column, layer or modality does not exist.
    TypeError, ValueError
        An argument or array is of the wrong type or out of its range, ``data`` is a view, a modality has fewer than two features that
        vary, or the fit ended in numbers that are not finite.
    MemoryError
        The fit would take far more memory than this process may have. ``data`` is untouched after any error, and after Ctrl-C.

    Notes
    -----
    Writes, with K factors ``factor_1``, .. in order of the variance they explain, and removes what an earlier call left:

    * ``obsm["X_mefisto"]``, ``["X_mefisto_smooth"]``, ``["X_mefisto_std"]`` [N, K], signed: posterior means, means of the
      field alone, and posterior standard deviations; on the object and on its modalities
    * ``varm["mefisto_loadings"]`` [P, K] of each modality, signed, in the unit of the normalised values; zeros for features that
      were left out or do not vary
    * ``obs`` and ``var`` ``["mefisto_spatial_importance"]``: share of the magnitude that is in spatial factors, as for the
      signed models of :func:`gpnsf.tl.fit`
    * ``var["mefisto_centre"]`` [P]: means of the logarithms, and ``["mefisto_dispersion"]``: noise, in the unit of the normalised values
    * ``obs["mefisto_total"]`` of each modality: totals of the counts, by which these are found again
    * ``uns["mefisto"]``: ``params``, ``normalised`` (by modality: ``log`` and ``unit``, what centred logarithms were divided by), ``factor_names``, ``kernel`` (``lengthscale`` in the unit of the coordinates, NaN without a
      field; ``scale`` in [0, 1], how spatial a factor is), ``is_spatial`` (scale above .05), ``variance_explained`` (modality x
      factor), ``history`` (``elbo`` and its ``step``), ``converged``, ``modalities``, ``likelihoods``, ``versions``, ``seed``, ``seconds``

    :func:`gpnsf.tl.rank_features`, :func:`gpnsf.tl.factor_adata`, :func:`gpnsf.tl.domains` and :func:`gpnsf.pl.spatial_factors` read
    these with ``key="mefisto"``. :func:`gpnsf.tl.evaluate` takes expected values back to counts. There is no background, so tools that
    need one (``denoise``, ``predict``) refuse.

    References
    ----------
    Model: :doc:`/model`, equations M1 to M6, after :cite:t:`velten2022`.

    Examples
    --------
    >>> import gpnsf
    >>> mdata = gpnsf.datasets.tissue(n_obs=100, n_genes=40, n_peaks=60, seed=0)
    >>> gpnsf.tl.mefisto(mdata, n_factors=3, max_steps=21, progress=False)
    >>> mdata.obsm["X_mefisto"].shape, mdata["atac"].varm["mefisto_loadings"].shape
    ((100, 3), (60, 3))
    """
    params = {name: value for name, value in locals().items() if name not in _UNRECORDED}
    began = time.perf_counter()
    check_arguments({**params, "progress": progress, "copy": copy})
    owner(data, writes=not copy)
    Rule(int, 200, low=FEWEST).check("n_inducing", n_inducing)
    check_key(key_added, data.mod if isinstance(data, MuData) else ())
    if find_spec("mofapy2") is None:
        remedy = "Install it by `pip install 'gpnsf[mefisto]'`"
        raise ImportError(problem("mofapy2 for tl.mefisto", "no such package", remedy))
    names = ("modalities", "layers", "use_var", "spatial_key", "library_key", "size_factors")
    reading = Reading(**{name: params[name] for name in (*names, "holdout_key")})
    dataset, layout = read.read(data, reading)
    n_trained = int(np.any([view.observed for view in dataset.views], axis=0).sum())
    n_features = sum(view.counts.shape[1] for view in dataset.views)
    _guard(n_trained, n_features, n_factors, n_inducing)
    made = {view.name: core.log_normalised(view) for view in dataset.views}
    tables = {name: table.values for name, table in made.items()}
    _check_features(tables, n_factors, n_trained)
    if max_steps < core.FIRST_FIELD:
        _log.warning(
            "max_steps=%d is too few: MEFISTO fits the fields from step %d on. Pass a larger max_steps.",
            max_steps,
            core.FIRST_FIELD,
        )
    with few_threads(n_trained**2 < SMALL):
        found = core.fit(
            tables,
            core.apart(dataset.coords, dataset.library),
            n_factors=n_factors,
            n_inducing=n_inducing,
            max_steps=max_steps,
            seed=seed,
            progress=settings.shows(progress),
        )
    _check_finite(found)
    params = {**params, "model": "mefisto", "modalities": list(layout.modalities)}
    info = {"params": params, "seed": seed, "seconds": time.perf_counter() - began}
    info["normalised"] = {name: {"log": True, "unit": table.unit} for name, table in made.items()}
    centres = {name: table.centre for name, table in made.items()}
    data = editable(data, copy=copy)
    slots = _slots(data, found, centres, layout, Keys(key_added), info)
    put(data, slots, instead_of=Keys(key_added).slots)
    _log.info("MEFISTO: %d factors, %d steps, %.1f s", n_factors, found.step[-1], info["seconds"])
    return data if copy else None


def _guard(*sizes: int) -> None:
    """Refuse a fit that needs clearly more memory than there is."""
    needed, free = core.memory(*sizes), available_memory()
    if needed > MARGIN * free:
        found = f"one that needs about {needed / 1e9:.3g} GB where {max(free, 0.0) / 1e9:.3g} GB are left"
        remedy = "Pass fewer features by `use_var`, fewer n_factors, or fewer observations: there is an N x N matrix a factor"
        raise MemoryError(problem("a fit that fits into memory", found, remedy))


def _check_features(tables: Mapping[str, np.ndarray], n_factors: int, n_obs: int) -> None:
    """Check that the features that vary are at least two in each modality, and as many as factors."""
    counts = {name: int(core.varying(table).sum()) for name, table in tables.items()}
    for name, number in counts.items():
        if number < 2:
            rule = f"at least 2 features of {name!r} that vary"
            remedy = "Leave the modality out with `modalities`"
            raise ValueError(problem(rule, str(number), remedy))
    checks.sizes(n_factors, n_obs=n_obs, n_features=sum(counts.values()))


def _check_finite(found: core.Mefisto) -> None:
    """Check that the fit has not diverged."""
    arrays = (found.mean, found.std, *found.loadings.values(), found.elbo[-1:])
    if not all(np.isfinite(values).all() for values in arrays):
        remedy = "Pass fewer n_factors, or leave rare features out by `use_var`"
        raise ValueError(
            problem("a fit of finite numbers", "NaN or infinite ones from mofapy2", remedy)
        )


def _slots(
    data: AnnData | MuData,
    found: core.Mefisto,
    centres: Mapping[str, np.ndarray],
    layout: read.Layout,
    keys: Keys,
    info: Mapping[str, object],
) -> list[Slot]:
    """All that is written; features that do not vary have no mean: nothing is said of them."""
    mods = {name: modality_of(data, name) for name in layout.modalities}
    loadings = {
        name: on_all_features(found.loadings[name], use) for name, use in layout.features.items()
    }
    slots: list[Slot] = [(data, "uns", keys.uns, _record(found, layout, info))]
    slots += _rows(data, layout.position, loadings, found, keys)
    for name, mod in mods.items():
        if mod is not data:
            slots += _rows(mod, layout.rows[name], {name: loadings[name]}, found, keys)
        importance = feature_importance(loadings[name], found.is_spatial).astype(np.float32)
        noise, use = found.noise[name], layout.features[name]
        slots += [
            (mod, "obs", keys.total, layout.totals[name].astype(np.float32)),
            (mod, "varm", keys.loadings, loadings[name]),
            (mod, "var", keys.importance, importance),
            (mod, "var", keys.centre, on_all_features(centres[name] * (noise > 0), use)),
            (mod, "var", keys.dispersion, on_all_features(noise, use)),
        ]
    return slots


def _rows(
    holder: AnnData | MuData,
    rows: np.ndarray,
    loadings: Mapping[str, np.ndarray],
    found: core.Mefisto,
    keys: Keys,
) -> list[Slot]:
    """Factors and importance of the rows [n] that a holder has."""
    importance = observation_importance(found.mean[rows], loadings, found.is_spatial)
    arrays = ((keys.factors, found.mean), (keys.smooth, found.smooth), (keys.std, found.std))
    return [
        *((holder, "obsm", key, values[rows]) for key, values in arrays),
        (holder, "obs", keys.importance, importance.astype(np.float32)),
    ]


def _record(
    found: core.Mefisto, layout: read.Layout, info: Mapping[str, object]
) -> dict[str, object]:
    """The ``uns`` entry."""
    return {
        **info,
        "method": MEFISTO,
        "factor_names": [f"factor_{k + 1}" for k in range(len(found.scale))],
        "is_spatial": found.is_spatial,
        "kernel": {
            "name": "rbf",
            "lengthscale": found.lengthscale * layout.scale,
            "scale": found.scale,
        },
        "variance_explained": found.variance_explained,
        "history": {"step": found.step, "elbo": found.elbo},
        "converged": found.converged,
        "modalities": list(layout.modalities),
        "likelihoods": dict.fromkeys(layout.modalities, "gaussian"),
        "n_features": {name: int((sd > 0).sum()) for name, sd in found.noise.items()},
        "versions": {name: version(name) for name in _VERSIONS},
    }
