"""More than a hundred fits of random models to random, often ugly data: each one finite, in its ranges, and its input untouched."""

from __future__ import annotations

from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pytest
import scipy.sparse as sp
import sections

import gpnsf
from gpnsf.arguments import Reading
from gpnsf.io.read import read
from gpnsf.keys import Keys

N_CHUNKS, CHUNK = 8, 20
COUNTED = ("poisson", "nb", "bernoulli", "bernoulli_clipped")
READ = ("modalities", "likelihoods", "size_factors", "library_key", "holdout_key")


class Draw:
    """One object and the arguments of its fit, from a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.model = self.one_of("fa", "rsf", "pnmf", "nsf", "nsfh", "gpnsf", "gpnsf", "gpnsf")
        self.signed = self.model in ("fa", "rsf")
        self.n_obs = round(np.exp(rng.uniform(np.log(3), np.log(300))))
        self.names = ("rna", "atac") if self.chance(0.4) else ("rna",)
        self.likelihoods = {
            name: "gaussian" if self.signed else self.one_of(*COUNTED, "gaussian")
            for name in self.names
        }
        self.field = self.one_of("hilbert", "inducing")
        self.coords = self.draw_coords()
        self.data = self.draw_data()
        self.options = self.draw_options()

    def one_of(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def draw_coords(self) -> np.ndarray:
        """Coordinates [N, D] of some arrangement, in some unit."""
        rng, n = self.rng, self.n_obs
        xy = rng.random((n, 2))
        grid = np.column_stack(np.divmod(np.arange(n), int(np.ceil(np.sqrt(n))))).astype(float)
        kinds = {
            "square": xy,
            "long": xy * [1e4, 1],
            "grid": grid,
            "duplicated": xy[rng.integers(0, max(n // 4, 1), n)],
            "collinear": xy[:, :1] * [1.0, 2.0],
            "line": xy[:, :1],
            "far": xy + 50.0,
            "clumped": np.where(rng.random((n, 1)) < 0.9, 1e-3 * xy, xy),
        }
        if self.field == "inducing":
            kinds["cube"] = rng.random((n, 3))
        coords = kinds[self.one_of(*kinds)] * 10 ** rng.uniform(-6, 6)
        coords[1] += (coords[0] == coords[1]).all() * (
            1 + coords.max()
        )  # one place for all is refused
        return coords

    def draw_data(self) -> ad.AnnData | md.MuData:
        """Counts of each modality on all or some cells."""
        names = np.array([f"spot{i}" for i in self.rng.permutation(self.n_obs)])
        mods = {}
        for name in self.names:
            present = np.ones(self.n_obs, dtype=bool)
            if name == "atac" and self.chance(0.5):
                present = self.rng.random(self.n_obs) < 0.7
                present[:2] = True
            rows = np.flatnonzero(present)
            if name == "atac" and self.chance(0.5):
                rows = self.rng.permutation(rows)
            counts = self.draw_counts(len(rows), self.likelihoods[name])
            matrix = self.one_of(sp.csr_matrix, sp.csc_matrix, np.asarray)(
                counts.astype(np.float32)
            )
            mod = ad.AnnData(matrix)
            mod.obs_names, mod.var_names = (
                names[rows],
                [f"{name}{j}" for j in range(counts.shape[1])],
            )
            mod.obsm["spatial"] = self.coords[rows]
            mods[name] = mod
        data = sections.mudata(**mods) if len(mods) > 1 or self.chance(0.1) else mods["rna"]
        where = dict(zip(names, range(self.n_obs), strict=True))
        self.order = [where[name] for name in data.obs_names]
        data.obs["slice"] = [f"s{(2 * i) // self.n_obs}" for i in self.order]
        data.obs["held"] = self.rng.random(self.n_obs) < self.one_of(0.1, 0.6)
        data.obs.loc[names[:2], "held"] = False
        data.obs["depth"] = np.exp(self.rng.normal(0, self.one_of(0.1, 3.0), self.n_obs))
        return data

    def draw_counts(self, n: int, likelihood: str) -> np.ndarray:
        """Counts [n, P] of some depth and structure, with defects; the first two rows have at least one count each."""
        rng = self.rng
        P = round(np.exp(rng.uniform(np.log(2), np.log(200))))
        rank, depth = rng.integers(1, 5), np.exp(rng.uniform(np.log(0.05), np.log(1e5)))
        rates = rng.gamma(0.3, 1.0, (n, rank)) @ rng.gamma(0.3, 1.0, (rank, P)) + 1e-6
        counts = rng.poisson(np.minimum(rates / rates.sum() * n * depth, 1e6)).astype(float)
        if self.chance(0.3):
            counts[rng.random(n) < 0.3] = 0
        if self.chance(0.3):
            counts[:, rng.random(P) < 0.3] = 0
        if self.chance(0.2):
            counts[:, rng.integers(P)] = 7
        if self.chance(0.15):
            counts[rng.integers(n), rng.integers(P)] = 1e6
        counts[:2, rng.integers(P)] += 1
        if likelihood != "gaussian":
            return counts
        if self.chance(0.5):
            counts = np.log1p(counts)
        if self.signed or self.chance(0.5):
            counts = counts - counts.mean(0) + 1e-3
        return counts * 10 ** rng.uniform(-2, 2)

    def draw_options(self) -> dict[str, Any]:
        """Arguments of the fit."""
        rng = self.rng
        n_features = sum(
            mod.n_vars for mod in getattr(self.data, "mod", {"rna": self.data}).values()
        )
        K = int(rng.integers(1, min(self.n_obs, n_features, 6) + 1))
        hybrid = self.model in ("nsfh", "gpnsf")
        monte_carlo = "bernoulli_clipped" in self.likelihoods.values() or self.chance(0.15)
        return {
            "model": self.model,
            "n_factors": K,
            "n_spatial": int(rng.integers(0, K + 1)) if hybrid and self.chance(0.7) else None,
            "likelihoods": self.likelihoods,
            "modalities": list(self.names),
            "kernel": self.one_of("matern12", "matern32", "matern52", "rbf"),
            "field": self.field,
            "n_inducing": int(rng.integers(1, 60)) if self.field == "inducing" else None,
            "lengthscale": float(np.ptp(self.coords) * 10 ** rng.uniform(-1.2, 1))
            if self.chance(0.2)
            else None,
            "kl_weight": self.one_of(1.0, 1.0, 0.0, 5.0),
            "objective": "monte_carlo" if monte_carlo else "closed_form",
            "n_samples": int(rng.integers(1, 4)),
            "init": self.one_of("auto", "smooth", "spot", "random"),
            "refine": self.chance(0.7),
            "split": "tested" if self.chance(0.2) else "assumed",
            "size_factors": self.one_of("total", "total", None, "depth"),
            "library_key": "slice" if self.chance(0.15) else None,
            "holdout_key": "held" if self.chance(0.2) else None,
            "max_steps": int(np.exp(rng.uniform(np.log(5), np.log(41)))),
            "learning_rate": float(10 ** rng.uniform(-2, 0)),
            "block_size": int(rng.integers(-(-self.n_obs // 8), self.n_obs + 1))
            if self.chance(0.2)
            else None,
            "seed": int(rng.integers(1000)),
        }


def slots(data: ad.AnnData | md.MuData) -> dict[str, np.ndarray]:
    """Every number that a fit has written; the length scale, nan where a factor is not spatial, without those."""
    found: dict[str, Any] = {}
    for name, holder in {"": data, **getattr(data, "mod", {})}.items():
        for attribute, keys in Keys().slots.items():
            mapping = getattr(holder, attribute)
            found |= {f"{name}.{attribute}.{key}": mapping[key] for key in keys if key in mapping}
    record = found.pop(".uns.gpnsf")
    kernel = {
        **record["kernel"],
        "lengthscale": record["kernel"]["lengthscale"][record["is_spatial"]],
    }
    numbers = {
        name: record[name]
        for name in ("variance_explained", "starts", "seconds", "peak_memory", "is_spatial")
    }
    flat(
        numbers | {"kernel": kernel, "history": record["history"], "field": record["field"]},
        "uns",
        found,
    )
    arrays = {name: np.asarray(value) for name, value in found.items()}
    return {name: array for name, array in arrays.items() if array.dtype.kind in "biuf"}


def flat(record: dict[str, Any], prefix: str, into: dict[str, Any]) -> None:
    for name, value in record.items():
        if isinstance(value, dict):
            flat(value, f"{prefix}.{name}", into)
        else:
            into[f"{prefix}.{name}"] = value


def wrong_totals(draw: Draw) -> list[str]:
    """Modalities whose expected total over the training rows is not the observed one."""
    dataset, layout = read(
        draw.data, Reading(**{name: draw.options[name] for name in READ}), spatial=False
    )
    factors, wrong = draw.data.obsm["X_gpnsf"].astype(float), []
    for view in dataset.views:
        mod = draw.data.mod[view.name] if isinstance(draw.data, md.MuData) else draw.data
        observed = view.counts.sum(dtype=float)
        if (view.counts.data < 0).any():
            continue
        rates = factors @ mod.varm["gpnsf_loadings"].T.astype(float) + mod.var[
            "gpnsf_background"
        ].to_numpy(float)
        rates = rates * view.size[:, None]
        expected = {"bernoulli": -np.expm1(-rates), "bernoulli_clipped": np.minimum(rates, 1)}.get(
            view.likelihood, rates
        )
        if abs(expected.sum() - observed) > 0.01 * observed:
            wrong.append(
                f"{view.name} ({view.likelihood}) total {expected.sum():g} for {observed:g}"
            )
    return wrong


def failures(seed: int) -> list[str]:
    """What is wrong with the fit of one seed."""
    draw = Draw(seed)
    data, signed = draw.data, draw.signed
    before = sections.digest(data)
    result = gpnsf.tl.fit(data, **draw.options, progress=False, copy=True)
    wrong = [] if sections.digest(data) == before else ["the input has changed"]
    draw.data = result
    found = slots(result)
    predicted = gpnsf.tl.predict(result)
    found |= {"prediction": predicted.X, "std of the prediction": predicted.layers["std"]}
    wrong += [
        f"{name} is not finite" for name, array in found.items() if not np.isfinite(array).all()
    ]
    factors = result.obsm["X_gpnsf"].astype(float)
    size = np.sqrt((factors**2).mean(0)) if signed else factors.mean(0)
    size = size[
        (size > 1e-9) | (not signed)
    ]  # the data may hold fewer components than were asked for
    wrong += [f"factors of size {size}"] * (not np.allclose(size, 1, atol=1e-3))
    real = "gaussian" in result.uns["gpnsf"]["likelihoods"].values()
    for name, array in found.items():
        if "importance" in name:
            wrong += [f"{name} outside [0, 1]"] * (
                not (array.min() >= 0 and array.max() <= 1 + 1e-6)
            )
        elif name.split(".")[-1].startswith(("X_gpnsf", "gpnsf_")) and not (
            "embedding" in name
            or (signed and "std" not in name)
            or (real and name.endswith("gpnsf_total"))
        ):
            wrong += [f"{name} negative"] * bool(array.min() < 0)
    return wrong if signed else wrong + wrong_totals(draw)


def report(seeds: range) -> dict[int, list[str]]:
    """Seeds whose fit is wrong, with what is wrong."""
    found = {}
    for seed in seeds:
        try:
            wrong = failures(seed)
        except Exception as error:  # noqa: BLE001 - the other seeds of the chunk are to be heard as well
            wrong = [repr(error)]
        if wrong:
            found[seed] = wrong
    return found


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(N_CHUNKS))
def test_random_fits_hold_what_is_promised(chunk):
    assert not report(range(chunk * CHUNK, (chunk + 1) * CHUNK))


def test_the_draws_reach_every_kind_of_fit():
    draws = [Draw(seed) for seed in range(150)]
    for name in (
        "model",
        "kernel",
        "field",
        "objective",
        "init",
        "refine",
        "size_factors",
        "library_key",
        "holdout_key",
    ):
        assert len({str(draw.options[name]) for draw in draws}) >= 2, name
    assert {kind for draw in draws for kind in draw.likelihoods.values()} == {*COUNTED, "gaussian"}
    assert {len(draw.names) for draw in draws} == {1, 2}
    assert {draw.coords.shape[1] for draw in draws} == {1, 2, 3}
