"""A fitted object, resolved once: the slots of ``tl.fit`` as named arrays, checked against the object that carries them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from gpnsf.checks import choices, problem
from gpnsf.keys import SPATIAL, Keys
from gpnsf.tissue import Tissue, gather, holders, read_coords, rows_of

__all__ = ["RANKINGS", "Fit", "find", "ranked"]

RANKINGS = ("lift", "loading", "share")


@dataclass(frozen=True)
class Fit:
    """What ``tl.fit`` left in an AnnData or MuData: N observations, K factors, P features in each modality."""

    data: AnnData | MuData
    keys: Keys
    names: np.ndarray  # [K] str
    is_spatial: np.ndarray  # [K] bool
    lengthscale: np.ndarray  # [K] in the units of the coordinates, nan for nonspatial factors
    mean: np.ndarray  # [N, K]
    smooth: np.ndarray  # [N, K]
    std: np.ndarray  # [N, K]
    modalities: dict[str, AnnData]
    rows: dict[str, np.ndarray]  # modality -> [n] row of the object for each cell of the modality, in its own order
    likelihoods: dict[str, str]
    loadings: dict[str, np.ndarray]  # modality -> [P, K]

    @property
    def uns(self) -> Mapping[str, Any]:
        """Everything about the fit that is not an array over observations or features."""
        return self.data.uns[self.keys.uns]

    @property
    def params(self) -> Mapping[str, Any]:
        """Arguments of ``tl.fit``."""
        return self.uns["params"]

    @property
    def signed(self) -> bool:
        """Whether factors or loadings take negative values (models ``fa`` and ``rsf``)."""
        return bool(self.mean.min() < 0 or any((W < 0).any() for W in self.loadings.values()))

    @property
    def shares(self) -> np.ndarray:
        """Share [K] of each factor in the expected signal of all modalities, background left out."""
        mass = np.sum([np.abs(W).sum(axis=0, dtype=np.float64) for W in self.loadings.values()], axis=0)
        mass = mass * np.abs(self.mean).mean(axis=0, dtype=np.float64)
        return mass / max(mass.sum(), np.finfo(float).tiny)

    @property
    def has_coords(self) -> bool:
        """Whether there are coordinates; models without a field do without."""
        return bool(holders(self._tissue(), "obsm", self.params.get("spatial_key") or SPATIAL))

    @property
    def coords(self) -> np.ndarray:
        """Coordinates [N, D] in the units of the data, gathered from the modalities where the object has none."""
        return read_coords(self._tissue(), self.params.get("spatial_key") or SPATIAL)

    @property
    def library(self) -> pd.Categorical | None:
        """Slice [N] of each observation, or None if the fit knew no slices."""
        column = self.params.get("library_key")
        return None if column is None else pd.Categorical(self.obs(column).astype(str))

    def obs(self, column: str) -> np.ndarray:
        """Column [N] of the observations, gathered from the modalities where the object itself has none."""
        return gather(self._tissue(), "obs", column, lambda values, *_: values.to_numpy())

    def _tissue(self) -> Tissue:
        """The object with all its modalities, fitted or not: any of them may hold the coordinates."""
        mods = dict(self.data.mod) if isinstance(self.data, MuData) else self.modalities
        rows = {name: rows_of(self.data, name, mod) for name, mod in mods.items()}
        return Tissue(self.data, mods, rows, tuple(self.modalities))

    def batches(self, modality: str) -> tuple[np.ndarray, np.ndarray]:
        """Code of the batch [n] of each cell of a modality, and the multipliers [S, P]; one batch of ones without batches."""
        mod = self.modalities[modality]
        if self.keys.batch not in mod.varm:
            return np.zeros(mod.n_obs, dtype=np.int64), np.ones((1, mod.n_vars))
        multipliers = _slot(mod.varm, self.keys.batch, f"varm of {modality!r}").T
        names = [str(name) for name in np.atleast_1d(self.uns["batches"])]
        found = self.obs(self.params["batch_key"])[self.rows[modality]].astype(str)
        choices(dict.fromkeys(found), names, what="the batch", where=f"fit {self.keys.key!r}")
        return np.array([names.index(name) for name in found]), multipliers

    def var(self, modality: str, column: str) -> np.ndarray:
        """Column [P] of the features of one modality."""
        mod = self.modalities[modality]
        if column not in mod.var:
            rule = f"the var column {column!r} in modality {modality!r}"
            raise KeyError(problem(rule, f"{mod.n_vars} features without it", "Run `gpnsf.tl.fit` again"))
        return mod.var[column].to_numpy()

    def factor_indices(self, factors: str | Sequence[str] | None) -> np.ndarray:
        """Positions of the named factors, in the order asked for; all of them for None."""
        if factors is None:
            return np.arange(self.names.size)
        wanted = _listed(factors, "factors")
        choices(wanted, self.names, what="factors", where=f"fit {self.keys.key!r}")
        return np.array([int(np.flatnonzero(self.names == name)[0]) for name in wanted])

    def modality_names(self, modality: str | Sequence[str] | None) -> list[str]:
        """The modalities asked for; all of them for None."""
        if modality is None:
            return list(self.modalities)
        wanted = _listed(modality, "modality")
        choices(wanted, self.modalities, what="modalities", where=f"fit {self.keys.key!r}")
        return wanted


def find(data: AnnData | MuData, key: str = "gpnsf") -> Fit:
    """Resolve the fit that ``tl.fit(data, key_added=key)`` left in the object.

    Raises
    ------
    TypeError
        If ``data`` is neither AnnData nor MuData.
    KeyError
        If the fit, or one of its slots, is absent.
    ValueError
        If the slots no longer agree with one another or with the object.
    """
    if not isinstance(data, AnnData | MuData):
        raise TypeError(
            problem("AnnData or MuData", type(data).__name__, "Pass the object that `gpnsf.tl.fit` annotated")
        )
    keys = Keys(key)
    record = _record(data, keys)
    names = np.array([str(name) for name in record["factor_names"]], dtype=object)
    modalities = _modalities(data, record, keys)
    fit = Fit(
        data=data,
        keys=keys,
        names=names,
        is_spatial=np.asarray(record["is_spatial"], dtype=bool).ravel(),
        lengthscale=np.asarray(record["kernel"]["lengthscale"], dtype=float).ravel(),
        mean=_slot(data.obsm, keys.factors, "obsm"),
        smooth=_slot(data.obsm, keys.smooth, "obsm"),
        std=_slot(data.obsm, keys.std, "obsm"),
        modalities=modalities,
        rows={name: rows_of(data, name, mod) for name, mod in modalities.items()},
        likelihoods={name: str(record["likelihoods"][name]) for name in modalities},
        loadings={name: _slot(mod.varm, keys.loadings, f"varm of {name!r}") for name, mod in modalities.items()},
    )
    _check_shapes(fit)
    return fit


def ranked(fit: Fit, modality: str, factor: int, *, n_features: int, method: str) -> pd.DataFrame:
    """Best features of one factor in one modality, as :func:`gpnsf.tl.rank_features` explains it."""
    if method not in RANKINGS:
        raise ValueError(problem(f"`method` to be one of {RANKINGS}", repr(method), "Pass one of these"))
    if n_features < 1:
        raise ValueError(problem("`n_features` of at least 1", str(n_features), "Pass a positive integer"))
    weights = np.abs(fit.loadings[modality]).astype(np.float64)  # [P, K]
    weight, total = weights[:, factor], weights.sum(axis=1)
    share = np.divide(weight, total, out=np.zeros_like(total), where=total > 0)
    expected = total * (weight.sum() / total.sum() if weight.any() else 1.0)
    lift = np.divide(weight, expected, out=np.zeros_like(total), where=total > 0)
    gain = weight * np.log(np.maximum(lift, 1.0)) - (weight - expected)
    score = {"lift": np.where(lift >= 1, np.maximum(gain, 0.0), -1.0), "loading": weight, "share": share}[method]
    allowed = np.flatnonzero((weight > 0) & (score >= 0))
    best = allowed[np.lexsort((-weight[allowed], -score[allowed]))][:n_features]
    return pd.DataFrame(
        {
            "factor": fit.names[factor],
            "modality": modality,
            "feature": fit.modalities[modality].var_names.to_numpy()[best],
            "rank": np.arange(1, best.size + 1),
            "score": score[best],
            "loading": fit.loadings[modality][best, factor],
            "share": share[best],
            "lift": lift[best],
            "importance": fit.var(modality, fit.keys.importance)[best],
        }
    )


def _record(data: AnnData | MuData, keys: Keys) -> Mapping[str, Any]:
    """``uns`` entry of the fit."""
    record = data.uns.get(keys.uns)
    if isinstance(record, Mapping) and "factor_names" in record:
        return record
    fits = [name for name, value in data.uns.items() if isinstance(value, Mapping) and "factor_names" in value]
    remedy = f"Run `gpnsf.tl.fit(data, key_added={keys.key!r})` first"
    if fits:
        remedy = f"Pass `key=` one of {fits}"
    elif keys.factors in data.obsm:
        remedy = "This looks like one modality of a fitted MuData: pass the MuData itself"
    raise KeyError(problem(f"a fit in uns[{keys.uns!r}]", f"{type(data).__name__} with fits {fits}", remedy))


def _modalities(data: AnnData | MuData, record: Mapping[str, Any], keys: Keys) -> dict[str, AnnData]:
    """The fitted modalities by name; an AnnData is its own only one."""
    names = [str(name) for name in np.atleast_1d(record["modalities"])]
    if isinstance(data, AnnData):
        return {names[0]: data}
    missing = [name for name in names if name not in data.mod]
    if missing:
        found = f"an object without {missing}"
        raise KeyError(problem(f"the fitted modalities {names}", found, "Restore them or run `gpnsf.tl.fit` again"))
    return {name: data.mod[name] for name in names}


def _slot(mapping: Mapping[str, Any], name: str, where: str) -> np.ndarray:
    """One two-dimensional array of the fit."""
    if name not in mapping:
        raise KeyError(problem(f"{name!r} in {where}", f"only {list(mapping)}", "Run `gpnsf.tl.fit` again"))
    return np.asarray(mapping[name])


def _check_shapes(fit: Fit) -> None:
    """All slots have K columns, as many as there are factor names."""
    n_obs, n_factors = fit.data.n_obs, fit.names.size
    found = {
        f"obsm[{fit.keys.factors!r}]": (fit.mean.shape, (n_obs, n_factors)),
        f"obsm[{fit.keys.smooth!r}]": (fit.smooth.shape, (n_obs, n_factors)),
        f"obsm[{fit.keys.std!r}]": (fit.std.shape, (n_obs, n_factors)),
        f"uns[{fit.keys.uns!r}]['is_spatial']": (fit.is_spatial.shape, (n_factors,)),
        f"uns[{fit.keys.uns!r}]['kernel']['lengthscale']": (fit.lengthscale.shape, (n_factors,)),
    }
    for name, W in fit.loadings.items():
        found[f"{name}.varm[{fit.keys.loadings!r}]"] = (W.shape, (fit.modalities[name].n_vars, n_factors))
    for slot, (shape, expected) in found.items():
        if shape != expected:
            remedy = "Subset every slot of the fit alike, or run `gpnsf.tl.fit` again"
            raise ValueError(problem(f"{slot} of shape {expected}, by {n_factors} factor names", str(shape), remedy))


def _listed(names: str | Sequence[str], argument: str) -> list[str]:
    """One name or several as a list."""
    listed = [names] if isinstance(names, str) else [str(name) for name in names]
    if not listed:
        raise ValueError(problem(f"`{argument}` to name at least one", "none", "Pass names, or None for all"))
    return listed
