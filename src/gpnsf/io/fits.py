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
from gpnsf.core import stored
from gpnsf.core.families import FAMILIES
from gpnsf.core.scores import embedding
from gpnsf.io import chosen, companions
from gpnsf.io.chosen import Factors
from gpnsf.io.companions import is_record
from gpnsf.io.objects import Opened, gather, holders, read_coords, rows_of
from gpnsf.keys import SPATIAL, Keys

__all__ = ["Fit", "find"]

# what sums of squares and products leave finite in single precision
LARGEST, LARGEST_LOADING = 1e15, 1e20


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
    std: np.ndarray | None  # [N, K]; None where nothing is known about it
    modalities: dict[str, AnnData]
    rows: dict[str, np.ndarray]  # modality -> [n] row of the object for each of its own cells
    likelihoods: dict[str, str]
    loadings: dict[str, np.ndarray]  # modality -> [P, K]
    loadings_std: dict[str, np.ndarray] | None  # the same; None where nothing is known about it

    @property
    def uns(self) -> Mapping[str, Any]:
        """Everything about the fit that is not an array over observations or features."""
        return self.data.uns[self.keys.uns]

    @property
    def params(self) -> Mapping[str, Any]:
        """Arguments of ``tl.fit``."""
        return stored.record(self.uns, "params", where=self.where)

    def param(self, name: str) -> str | None:
        """Argument of ``tl.fit`` that names a slot or column, if it was given; ``tl.scai`` has no such arguments."""
        if self.std is None and name not in self.params:
            return None
        return stored.text(self.params, name, where="the arguments of the fit")

    def needs(self, what: str, *, there: bool = False) -> None:
        """Refuse, for want of ``what``, a record of a tool other than ``tl.fit`` that does not have it."""
        if not there:
            companions.refuse(self.uns, self.keys.key, what)

    @property
    def field(self) -> Mapping[str, Any]:
        """Geometry and state of the field; what describes its process alone is checked where it is rebuilt."""
        self.needs("a field", there="field" in self.uns)
        state = stored.record(self.uns, "field", where=self.where)
        stored.check_field(state, int(self.is_spatial.sum()))
        return state

    @property
    def where(self) -> str:
        """Where the record is, in words."""
        return f"uns[{self.keys.uns!r}]"

    @property
    def signed(self) -> bool:
        """Whether factors or loadings take negative values (models ``fa`` and ``rsf``)."""
        return bool(self.mean.min() < 0 or any((W < 0).any() for W in self.loadings.values()))

    @property
    def shares(self) -> np.ndarray:
        """Share [K] of each factor in the expected signal of all modalities, background left out."""
        mass = np.sum(
            [np.abs(W).sum(axis=0, dtype=np.float64) for W in self.loadings.values()], axis=0
        )
        mass = mass * np.abs(self.mean).mean(axis=0, dtype=np.float64)
        return mass / max(mass.sum(), np.finfo(float).tiny)

    @property
    def embedding(self) -> np.ndarray:
        """Principal coordinates [N, d] of what is expressed, worked out where the record has none; codes as they are."""
        if companions.made_by(self.uns) == companions.FACTVAE:
            return self.mean
        if self.keys.embedding not in self.data.obsm:
            return self.embedded(embedding.factors_used(self.is_spatial))
        shape = (self.data.n_obs, None)
        return stored.array(
            self.data.obsm, self.keys.embedding, shape, low=-LARGEST, high=LARGEST, where="obsm"
        )

    def embedded(self, chosen: np.ndarray) -> np.ndarray:
        """The same of some factors alone."""
        loadings = {name: W[:, chosen] for name, W in self.loadings.items()}
        weights = stored.modality_weights(self.uns)
        return embedding.coordinates(self.smooth[:, chosen], loadings, weights)

    @property
    def has_coords(self) -> bool:
        """Whether there are coordinates; models without a field do without."""
        return bool(holders(self._opened(), "obsm", self.param("spatial_key") or SPATIAL))

    @property
    def coords(self) -> np.ndarray:
        """Coordinates [N, D] in the units of the data, gathered from the modalities where the object has none."""
        return read_coords(self._opened(), self.param("spatial_key") or SPATIAL)

    @property
    def axes(self) -> list[str] | None:
        """Names of the axes, where the coordinates are a table that names them."""
        key = self.param("spatial_key") or SPATIAL
        tables = (holder.obsm[key] for holder, _ in holders(self._opened(), "obsm", key).values())
        return next(
            (list(map(str, table.columns)) for table in tables if isinstance(table, pd.DataFrame)),
            None,
        )

    @property
    def library(self) -> pd.Categorical | None:
        """Slice [N] of each observation, or None if the fit knew no slices."""
        column = self.param("library_key")
        return None if column is None else pd.Categorical(self.obs(column).astype(str))

    def obs(self, column: str) -> np.ndarray:
        """Column [N] of the observations, gathered from the modalities where the object itself has none."""
        return gather(self._opened(), "obs", column, lambda values, *_: values.to_numpy())

    @property
    def importance(self) -> np.ndarray:
        """Spatial importance [N] of the observations."""
        key = self.keys.importance
        self.needs("importance of observations", there=self.std is not None)
        return gather(
            self._opened(),
            "obs",
            key,
            lambda values, where, _: stored.array({key: values}, key, (len(values),), where=where),
        )

    def _opened(self) -> Opened:
        """The object with all its modalities, any of which may hold the coordinates."""
        mods = dict(self.data.mod) if isinstance(self.data, MuData) else self.modalities
        rows = {name: rows_of(self.data, name, mod) for name, mod in mods.items()}
        return Opened(self.data, mods, rows, tuple(self.modalities))

    def batches(self, modality: str) -> tuple[np.ndarray, np.ndarray]:
        """Code of the batch [n] of each cell of a modality, and the multipliers [S, P]; one batch of ones without batches."""
        mod = self.modalities[modality]
        if self.keys.batch not in mod.varm:
            return np.zeros(mod.n_obs, dtype=np.int64), np.ones((1, mod.n_vars))
        names = stored.names(self.uns, "batches", where=self.where)
        where = f"varm of {modality!r}"
        shape = (mod.n_vars, len(names))
        multipliers = stored.array(
            mod.varm, self.keys.batch, shape, low=0.0, high=LARGEST_LOADING, where=where
        ).T
        found = self.obs(stored.text(self.params, "batch_key") or "")[self.rows[modality]].astype(
            str
        )
        choices(dict.fromkeys(found), names, what="the batch", where=f"fit {self.keys.key!r}")
        return np.array([names.index(name) for name in found]), multipliers

    def total(self, modality: str) -> np.ndarray | None:
        """Total [n] of what the fit has read of each cell of a modality; None in records without, of other methods or of earlier versions."""
        key, mod = self.keys.total, self.modalities[modality]
        if key not in mod.obs:
            return None
        low = -LARGEST if FAMILIES[self.likelihoods[modality]].signed else 0.0
        where = f"obs of {modality!r}"
        return stored.array(mod.obs, key, (mod.n_obs,), low=low, high=LARGEST, where=where)

    @property
    def is_projection(self) -> bool:
        """Whether the factors are those of another object, and in its units."""
        return "projection" in self.uns

    def mean_size(self, modality: str) -> float:
        """Mean of the size factors of a modality: 1, but in data that were projected, where the unit is that of the reference."""
        if not self.is_projection:
            return 1.0
        record = stored.record(self.uns, "projection", where=self.where)
        sizes = stored.record(record, "mean_size", where="the projection")
        return stored.number(sizes, modality, low=1e-12, high=1e12, where="the mean size factors")

    def n_features(self, modality: str) -> int:
        """Features of a modality that had a rate at the fit."""
        sizes = stored.record(self.uns, "n_features", where=self.where)
        return stored.whole(sizes, modality, low=0, high=2**31, where="the numbers of features")

    def var(self, modality: str, column: str) -> np.ndarray:
        """Column of numbers [P] of the features of one modality, which are not negative where counts are."""
        mod = self.modalities[modality]
        self.needs(f"{column!r} of features", there=column in mod.var)
        low = _lowest(self.likelihoods[modality])
        return stored.array(
            mod.var,
            column,
            (mod.n_vars,),
            low=low,
            high=LARGEST_LOADING,
            where=f"var of {modality!r}",
        )

    @property
    def normalised(self) -> Mapping[str, object] | None:
        """What a method that normalises counts itself has done to those of each modality; None for one that does not."""
        if "normalised" not in self.uns:
            return None
        return stored.record(self.uns, "normalised", where=self.where)

    def offset(self, modality: str) -> np.ndarray:
        """Constant part [P] of what is expected of one modality, in the unit of its values."""
        if self.normalised is None:
            return self.var(modality, self.keys.background)
        where = f"what {self.where} says of {modality!r}"
        own = stored.record(self.normalised, modality, where=self.where)
        unit = stored.number(own, "unit", low=1e-20, where=where)
        return self.var(modality, self.keys.centre) / unit

    def constant(self, modality: str) -> np.ndarray:
        """Constant part of the rate [P] of one modality; 0 where values have a sign, for there it is no part of a whole."""
        if self.std is None or FAMILIES[self.likelihoods[modality]].signed:
            return np.zeros(self.modalities[modality].n_vars)
        return self.var(modality, self.keys.background).astype(np.float64)

    def factor_indices(self, factors: Factors) -> np.ndarray:
        """Positions of factors by name or position, in the order asked for; all of them for None."""
        return chosen.factor_indices(self.names, factors, where=f"fit {self.keys.key!r}")

    def feature_indices(self, modality: str, features: str | Sequence[str] | None) -> np.ndarray:
        """Positions of the named features of one modality, in the order asked for; all of them for None."""
        where = f"modality {modality!r} of the fit"
        return chosen.feature_indices(self.modalities[modality].var_names, features, where=where)

    def modality_names(self, modality: str | Sequence[str] | None) -> list[str]:
        """The modalities asked for; all of them for None."""
        if modality is None:
            return list(self.modalities)
        wanted = chosen.listed(modality, "modality")
        choices(wanted, self.modalities, what="modalities", where=f"fit {self.keys.key!r}")
        return wanted


def find(data: AnnData | MuData, key: str = "gpnsf") -> Fit:
    """Resolve the fit that ``tl.fit(data, key_added=key)`` left in the object, or what ``tl.scai`` did.

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
        remedy = "Pass the object that `gpnsf.tl.fit` annotated"
        raise TypeError(problem("AnnData or MuData", type(data).__name__, remedy))
    keys = Keys(key)
    record, where = _record(data, keys), f"uns[{keys.uns!r}]"
    names = stored.names(record, "factor_names", where=where)
    modalities = _modalities(data, record, keys)
    kinds = stored.record(record, "likelihoods", where=where)
    likelihoods = {
        name: stored.option(kinds, name, tuple(FAMILIES), where="the likelihoods")
        for name in modalities
    }
    shape, alone = (data.n_obs, len(names)), str(record.get("method")) in companions.METHODS

    def factors(slot: str, low: float = -LARGEST) -> np.ndarray:
        found = stored.array(data.obsm, slot, shape, low=low, high=LARGEST, nan=alone, where="obsm")
        return companions.complete(found, slot)

    mean = factors(keys.factors)
    return Fit(
        data=data,
        keys=keys,
        names=np.array(names, dtype=object),
        mean=mean,
        smooth=mean if alone else factors(keys.smooth),
        std=None if alone else factors(keys.std, 0),
        is_spatial=stored.array(record, "is_spatial", (len(names),), kinds="b", where=where),
        lengthscale=_lengthscale({} if alone else record, len(names), where),
        modalities=modalities,
        rows={name: rows_of(data, name, mod) for name, mod in modalities.items()},
        likelihoods=likelihoods,
        loadings={
            name: _loadings(mod, name, record, likelihoods[name], len(names), keys)
            for name, mod in modalities.items()
        },
        loadings_std=_loadings_std(modalities, len(names), keys),
    )


def _record(data: AnnData | MuData, keys: Keys) -> Mapping[str, object]:
    """``uns`` entry of the fit."""
    record = data.uns.get(keys.uns)
    if is_record(record):
        return record
    fits = [name for name, value in data.uns.items() if is_record(value)]
    remedy = f"Run `gpnsf.tl.fit(data, key_added={keys.key!r})` first"
    if fits:
        remedy = f"Pass `key=` one of {fits}"
    elif keys.factors in data.obsm:
        remedy = "This looks like one modality of a fitted MuData: pass the MuData itself"
    raise KeyError(
        problem(f"a fit in uns[{keys.uns!r}]", f"{type(data).__name__} with fits {fits}", remedy)
    )


def _modalities(
    data: AnnData | MuData, record: Mapping[str, object], keys: Keys
) -> dict[str, AnnData]:
    """The fitted modalities by name; an AnnData is its own only one."""
    names = stored.names(record, "modalities", where=f"uns[{keys.uns!r}]")
    if isinstance(data, AnnData):
        return {names[0]: data}
    missing = [name for name in names if name not in data.mod]
    if missing:
        found = f"an object without {missing}"
        raise KeyError(
            problem(
                f"the fitted modalities {names}", found, "Restore them or run `gpnsf.tl.fit` again"
            )
        )
    return {name: data.mod[name] for name in names}


def _lowest(likelihood: str) -> float:
    """Lower end of rates, and so of loadings."""
    return -LARGEST_LOADING if FAMILIES[likelihood].signed else 0.0


def _loadings(
    mod: AnnData,
    name: str,
    record: Mapping[str, object],
    likelihood: str,
    n_factors: int,
    keys: Keys,
) -> np.ndarray:
    """Loadings [P, K] of one modality."""
    codes = record.get("method") == companions.FACTVAE
    shape = mod.n_vars, None if codes else n_factors
    low, where = _lowest(likelihood), f"varm of {name!r}"
    values = stored.array(
        mod.varm, keys.loadings, shape, low=low, high=LARGEST_LOADING, where=where
    )
    return companions.code_loadings(record, values, name) if codes else values


def _loadings_std(
    modalities: Mapping[str, AnnData], n_factors: int, keys: Keys
) -> dict[str, np.ndarray] | None:
    """Standard deviations [P, K] of the loadings; None for records without, of other methods or of earlier versions."""
    slot = keys.loadings_std
    if not any(slot in mod.varm for mod in modalities.values()):
        return None
    return {
        name: stored.array(
            mod.varm,
            slot,
            (mod.n_vars, n_factors),
            low=0,
            high=LARGEST_LOADING,
            where=f"varm of {name!r}",
        )
        for name, mod in modalities.items()
    }


def _lengthscale(record: Mapping[str, object], n_factors: int, where: str) -> np.ndarray:
    """Length scales [K] in the units of the coordinates, nan for nonspatial factors and without a record."""
    if not record:
        return np.full(n_factors, np.nan)
    kernel = stored.record(record, "kernel", where=where)
    values = stored.array(
        kernel, "lengthscale", (n_factors,), low=0, nan=True, where="the kernel of the fit"
    )
    return values.astype(float)
