"""After a fit the object goes on through scanpy: what reads counts finds those of the fit, or says where to put them."""

from __future__ import annotations

import re
from collections.abc import Callable

import anndata as ad
import fitted
import matplotlib.pyplot as plt
import numpy as np
import pytest
import sections
from mudata import MuData

import gpnsf
from gpnsf.arguments import Reading
from gpnsf.io import fits
from gpnsf.io.measured import layer_of, reread
from gpnsf.io.read import read


def panels(figure: Callable, data: MuData, features: list[str]) -> np.ndarray:
    """The numbers behind the points of a figure."""
    figure(data, features=features, modality="rna", show=False)
    points = [c.get_array() for ax in plt.gcf().axes for c in ax.collections]
    plt.close("all")
    return np.concatenate(
        [np.ma.filled(values, 0).ravel() for values in points if values is not None]
    )


def p_values(data: MuData) -> np.ndarray:
    """P values of the genes."""
    done = gpnsf.tl.spatial_importance(data, null="permutation", n_permutations=20, copy=True)
    return done["rna"].var["gpnsf_spatial_importance_p"].to_numpy()


READERS: dict[str, Callable[[MuData], object]] = {
    "denoise": lambda data: gpnsf.tl.impute(data, modality="rna").X,
    "evaluate": lambda data: gpnsf.tl.evaluate(data)["deviance"].to_numpy(),
    "calibration": lambda data: reread(fits.find(data))[0].views[0].counts.toarray(),
    "p values": p_values,
    "feature maps": lambda data: panels(gpnsf.pl.feature_maps, data, ["Gene3"]),
}


def normalised(mod: ad.AnnData, *, median: bool, logs: bool) -> None:
    """As scanpy does it, in place."""
    totals = np.asarray(mod.X.sum(axis=1))
    mod.X = mod.X.multiply((np.median(totals) if median else 1e4) / totals).tocsr()
    if logs:
        mod.X = mod.X.log1p()


@pytest.fixture(scope="module")
def wanted() -> dict[str, object]:
    """What readers find while X holds the counts."""
    data = fitted.mudata(n_obs=64)
    return {name: reader(data) for name, reader in READERS.items()}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("median", "logs"), [(True, False), (False, True)])
def test_a_layer_with_the_counts_is_found(reader, median, logs, wanted):
    data = fitted.mudata(n_obs=64)
    data["rna"].layers["scaled"] = data["rna"].X * 0.5
    data["rna"].layers["raw_counts"] = data["rna"].X.copy()
    normalised(data["rna"], median=median, logs=logs)
    np.testing.assert_array_equal(READERS[reader](data), wanted[reader])


@pytest.mark.parametrize("reader", READERS)
def test_without_one_it_is_said_where_to_put_them(reader, wanted):
    data = fitted.mudata(n_obs=64)
    kept = data["rna"].X.copy()
    normalised(data["rna"], median=False, logs=True)
    message = r"values that the fit has read in X of modality 'rna'; got other values there"
    with pytest.raises(ValueError, match=message) as caught:
        READERS[reader](data)
    place = re.search(r"for example (\S+) = counts", str(caught.value)).group(1)
    exec(f"{place} = counts", {"mdata": data, "counts": kept})
    np.testing.assert_array_equal(READERS[reader](data), wanted[reader])


def test_what_needs_no_counts_goes_on():
    data, fresh = fitted.mudata(n_obs=64), fitted.mudata(n_obs=64)
    normalised(data["rna"], median=False, logs=True)
    one, other = (gpnsf.tl.rank_features(part) for part in (data, fresh))
    assert one.equals(other)


def test_open_peaks_are_the_same_after_normalisation():
    data = fitted.mudata(n_obs=64)
    expected = reread(fits.find(data), "atac")[0].views[0].counts.toarray()
    data["atac"].X = data["atac"].X * 2.5
    assert layer_of(fits.find(data), "atac") is None
    np.testing.assert_array_equal(
        reread(fits.find(data), "atac")[0].views[0].counts.toarray(), expected
    )


@pytest.mark.parametrize("change", ["scaled", "same"])
def test_real_values_are_known_again(change):
    data = fitted.anndata(n_obs=64, likelihood="gaussian")
    if change == "same":
        assert layer_of(fits.find(data), "rna") is None
        return
    data.X = (data.X.toarray() - data.X.mean(axis=0).A1) / 3
    with pytest.raises(ValueError, match=r"adata.layers\['counts'\]"):
        layer_of(fits.find(data), "rna")


def test_a_layer_that_was_fitted_may_go_back_to_x():
    data = fitted.mudata(n_obs=64)
    data.uns["gpnsf"]["params"]["layers"] = "counts"
    assert layer_of(fits.find(data), "rna") is None
    data["rna"].layers["counts"] = data["rna"].X.copy()
    assert layer_of(fits.find(data), "rna") == "counts"


def test_parts_of_the_object_are_known_again():
    data = fitted.anndata(n_obs=64)
    for part in (data[10:40].copy(), data[:, ::2].copy(), data[5:, 1:].copy()):
        assert layer_of(fits.find(part), "rna") is None
        normalised(part, median=True, logs=False)
        with pytest.raises(ValueError, match="median total"):
            layer_of(fits.find(part), "rna")


def test_records_of_earlier_versions_are_read_as_they_are():
    data = fitted.mudata(n_obs=64)
    for mod in data.mod.values():
        del mod.obs["gpnsf_total"]
    normalised(data["rna"], median=True, logs=False)
    assert layer_of(fits.find(data), "rna") is None


def test_a_fit_records_the_totals_of_the_features_that_it_used():
    partial = sections.partial()
    rna = partial["rna"]
    rna.var["chosen"] = np.arange(rna.n_vars) % 2 == 0
    partial.obs["held"] = np.arange(partial.n_obs) % 4 == 0
    gpnsf.tl.fit(
        partial,
        n_factors=2,
        n_spatial=1,
        split="assumed",
        max_steps=2,
        use_var="chosen",
        holdout_key="held",
        progress=False,
    )
    np.testing.assert_allclose(rna.obs["gpnsf_total"], rna.X[:, ::2].sum(axis=1).A1, rtol=1e-6)
    before = reread(fits.find(partial), "rna")
    rna.var["chosen"] = ~rna.var["chosen"]  # say, highly variable genes were chosen anew
    after = reread(fits.find(partial), "rna")
    np.testing.assert_array_equal(
        before[0].views[0].counts.toarray(), after[0].views[0].counts.toarray()
    )
    seen = read(partial, Reading(holdout_key="held"))[1].totals["rna"]
    np.testing.assert_allclose(seen, rna.X.sum(axis=1).A1)
