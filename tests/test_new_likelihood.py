"""What a new likelihood takes: two classes and two rows of tables, after which every tool knows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import gpnsf
from gpnsf.core import families, likelihoods
from gpnsf.core.families.negative_binomial import NegativeBinomial
from gpnsf.core.likelihoods.negative_binomial import NegativeBinomial as NegativeBinomialBound

FIT = {"n_factors": 5, "n_spatial": 3, "max_steps": 20, "init": "spot", "progress": False}


class Geometric(NegativeBinomial):
    """Negative binomial counts of theta 1, without a parameter of their own."""

    has_dispersion = False

    def draw(self, rate: np.ndarray, dispersion: Any, rng: np.random.Generator) -> np.ndarray:
        return super().draw(rate, 1.0, rng)

    def split(
        self,
        counts: sp.csr_matrix,
        dispersion: Any,
        share: float,
        rng: np.random.Generator,
        **options,
    ):
        return super().split(counts, np.ones(counts.shape[1]), share, rng, **options)

    def deviance(
        self,
        counts: sp.csr_matrix,
        A: np.ndarray,
        W: np.ndarray,
        dispersion: Any = None,
        *,
        rows=None,
    ):
        return super().deviance(counts, A, W, np.ones(counts.shape[1]), rows=rows)


class GeometricBound(NegativeBinomialBound):
    family, surrogate = Geometric(), None

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features)
        self.log_theta.requires_grad_(False).zero_()

    def dispersion(self) -> None:
        return None

    def log_prior(self) -> float:
        return 0.0


@pytest.fixture
def mdata(monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "geometric", GeometricBound.family)
    monkeypatch.setitem(likelihoods.LIKELIHOODS, "geometric", GeometricBound)
    mdata = gpnsf.datasets.ggblocks(n_side=12, n_genes=40, n_peaks=36, seed=1)
    gpnsf.pp.thin(mdata)
    gpnsf.tl.fit(mdata, layers="thinned_train", likelihoods={"rna": "geometric"}, **FIT)
    return mdata


def test_a_new_likelihood_is_known_to_every_tool(mdata):
    table = gpnsf.tl.evaluate(mdata, layers="thinned_test").set_index(["modality", "rows"])
    assert table.loc["rna", "likelihood"].tolist() == ["geometric"] * 2
    assert (table.loc["rna", "explained"] > 0.3).all()
    assert "gpnsf_dispersion" not in mdata["rna"].var
    gpnsf.tl.denoise(mdata)
    gpnsf.tl.spatial_importance(mdata, null="permutation", n_permutations=20)
    assert gpnsf.tl.forecast(mdata, n_factors=5, likelihoods={"rna": "geometric"}).seconds > 0
    mdata["rna"].layers["thinned_train"].data += 0.5
    with pytest.raises(ValueError, match="whole counts for likelihood 'geometric'"):
        gpnsf.tl.fit(mdata, layers="thinned_train", likelihoods={"rna": "geometric"}, **FIT)
