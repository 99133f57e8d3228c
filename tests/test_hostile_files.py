"""Files of fits that were damaged or made to harm: read as data, refused by name, and never acted upon."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import matplotlib.pyplot as plt
import mudata as md
import numpy as np
import pytest
import sections

import gpnsf
from gpnsf import cli, demo
from gpnsf.core.model.build import restore_field
from gpnsf.io import fits

THREE_PARTS = re.compile(r"Expected .*; got .*\. [A-Z][^.]*.*\.$", re.DOTALL)
PATHS = ("../../x", "a/b", "/etc/passwd", "C:\\x")

READERS: dict[str, Callable[[Any], Any]] = {
    "find": fits.find,
    "predict": gpnsf.tl.predict,
    "predict_elsewhere": lambda data: gpnsf.tl.predict(
        data, np.full((3, 2), 1e3), library="a", features="gene0"
    ),
    "rank": gpnsf.tl.rank_features,
    "factor_adata": gpnsf.tl.factor_adata,
    "importance": lambda data: gpnsf.tl.spatial_importance(data, copy=True),
    "evaluate": gpnsf.tl.evaluate,
}
FIGURES: dict[str, Callable[[Any], Any]] = {
    "spatial_factors": lambda data: gpnsf.pl.spatial_factors(data, show=False),
    "top_features": lambda data: gpnsf.pl.top_features(data, show=False),
    "draw_importance": lambda data: gpnsf.pl.importance(data, show=False),
    "convergence": lambda data: gpnsf.pl.convergence(data, show=False),
}
ALL = set(READERS)
PREDICT = {"predict", "predict_elsewhere"}


@cache
def fit_of(field: str) -> ad.AnnData:
    """A fit of a simulated section; never changed, tests take copies."""
    data = sections.section()
    gpnsf.tl.fit(
        data,
        n_factors=3,
        n_spatial=2,
        split="assumed",
        field=field,
        n_inducing=8 if field == "inducing" else None,
        library_key="slice",
        holdout_key="held",
        size_factors="depth",
        loadings="point",
        max_steps=4,
        init="random",
        progress=False,
    )
    return data


def record(data: Any) -> dict[str, Any]:
    return data.uns["gpnsf"]


def process(data: Any) -> dict[str, Any]:
    return data.uns["gpnsf"]["field"]["process"]


@dataclass(frozen=True)
class Damage:
    """One change of a fitted object, and who must refuse it; the others refuse it or do without."""

    name: str
    change: Callable[[Any], Any]
    refused_by: set[str]
    field: str = "hilbert"


def entry(
    where: Callable[[Any], Any], key: str, value: Any, refused_by: set[str], field: str = "hilbert"
) -> Damage:
    """Another value of an entry; a function makes it of the old one."""

    def change(data: Any) -> None:
        holder = where(data)
        holder[key] = value(holder[key]) if callable(value) else value

    return Damage(f"{key}={getattr(value, '__name__', value)!r:.50}", change, refused_by, field)


def missing(
    where: Callable[[Any], Any], key: str, refused_by: set[str], field: str = "hilbert"
) -> Damage:
    return Damage(f"no {key}", lambda data: where(data).pop(key), refused_by, field)


def fewer(array: Any) -> np.ndarray:
    return np.asarray(array)[:-1]


def narrow(array: Any) -> np.ndarray:
    return np.asarray(array)[..., :-1]


def flat(array: Any) -> np.ndarray:
    return np.asarray(array).ravel()


def words(array: Any) -> np.ndarray:
    return np.asarray(array).astype(str).astype(object)


def with_nan(array: Any) -> np.ndarray:
    array = np.array(array, dtype=float)
    array.flat[0] = np.nan
    return array


def with_inf(array: Any) -> np.ndarray:
    array = np.array(array, dtype=float)
    array.flat[-1] = np.inf
    return array


def negative(array: Any) -> np.ndarray:
    return -1 - np.abs(np.asarray(array))


def huge(array: Any) -> np.ndarray:
    return np.full(np.shape(array), 1e300)


def complex_(array: Any) -> np.ndarray:
    return np.asarray(array).astype(complex)


def state(data: Any) -> dict[str, Any]:
    return record(data)["field"]


def params(data: Any) -> dict[str, Any]:
    return record(data)["params"]


DAMAGES = [
    # slots of observations and features
    *(
        entry(lambda d: d.obsm, "X_gpnsf", change, ALL)
        for change in (narrow, words, with_nan, huge, complex_)
    ),
    *(
        entry(lambda d: d.obsm, "X_gpnsf_std", change, ALL)
        for change in (narrow, words, with_nan, negative)
    ),
    *(
        entry(lambda d: d.varm, "gpnsf_loadings", change, ALL)
        for change in (narrow, words, with_inf)
    ),
    *(missing(lambda d: d.obsm, key, ALL) for key in ("X_gpnsf", "X_gpnsf_smooth", "X_gpnsf_std")),
    missing(lambda d: d.varm, "gpnsf_loadings", ALL),
    *(
        entry(lambda d: d.varm, "gpnsf_loadings_std", change, ALL)
        for change in (narrow, words, with_nan, negative)
    ),
    *(entry(lambda d: d.varm, "gpnsf_loadings", change, ALL) for change in (negative, huge)),
    *(
        entry(lambda d: d.var, "gpnsf_background", change, {"evaluate", "rank"})
        for change in (words, with_nan, negative)
    ),
    *(
        entry(lambda d: d.var, "gpnsf_dispersion", change, {"evaluate"})
        for change in (words, with_inf, negative)
    ),
    entry(lambda d: d.var, "gpnsf_spatial_importance", words, {"rank"}),
    missing(lambda d: d.var, "gpnsf_spatial_importance", {"rank"}),
    entry(lambda d: d.obsm, "spatial", lambda xy: xy[:, :1], PREDICT & {"predict"}),
    entry(lambda d: d.obsm, "spatial", with_nan, {"predict", "factor_adata"}),
    entry(lambda d: d.obs, "slice", "elsewhere", {"predict"}),
    entry(lambda d: d.obs, "held", words, {"evaluate"}),
    *(
        entry(lambda d: d.obs, "gpnsf_total", change, {"evaluate"})
        for change in (words, with_nan, negative)
    ),
    missing(lambda d: d.obs, "gpnsf_total", set()),  # as in records of earlier versions
    missing(record, "n_features", {"evaluate"}),
    entry(record, "n_features", {"rna": "all"}, {"evaluate"}),
    entry(lambda d: d.obs, "depth", words, {"evaluate"}),
    entry(lambda d: d.obs, "depth", negative, {"evaluate"}),
    missing(lambda d: d.obs, "depth", {"evaluate"}),
    # the record
    *(
        missing(record, key, ALL)
        for key in ("factor_names", "is_spatial", "kernel", "likelihoods", "modalities")
    ),
    missing(record, "field", PREDICT),
    missing(record, "params", {"predict", "evaluate", "factor_adata"}),
    entry(record, "factor_names", ["a", "a", "b"], ALL),
    entry(record, "factor_names", [1, 2, 3], ALL),
    entry(record, "factor_names", [], ALL),
    entry(record, "factor_names", {"a": "b"}, ALL),
    entry(record, "factor_names", np.full((3, 2), "a", dtype=object), ALL),
    *(entry(record, "is_spatial", change, ALL) for change in (fewer, words)),
    entry(record, "is_spatial", np.array([1, 1, 0]), ALL),
    entry(record, "is_spatial", np.array([True, False, False]), PREDICT),
    entry(record, "kernel", "matern32", ALL),
    entry(lambda d: record(d)["kernel"], "lengthscale", fewer, ALL),
    entry(lambda d: record(d)["kernel"], "lengthscale", words, ALL),
    entry(lambda d: record(d)["kernel"], "lengthscale", np.array([-1.0, np.inf, np.nan]), ALL),
    entry(record, "likelihoods", {"rna": "__import__('os')"}, ALL),
    entry(record, "likelihoods", {"protein": "nb"}, ALL),
    entry(record, "likelihoods", "nb", ALL),
    entry(record, "modalities", [3], ALL),
    entry(record, "modalities", ["../../x"], ALL),
    entry(record, "field", "hilbert", PREDICT),
    entry(record, "params", "none", {"predict", "evaluate", "factor_adata"}),
    entry(params, "n_factors", 9, set()),  # asked for; the slots say how many there are
    entry(params, "n_spatial", None, set()),
    entry(params, "holdout_key", 3, {"evaluate"}),
    entry(params, "holdout_key", "../../x", {"evaluate"}),
    entry(params, "size_factors", 3.0, {"evaluate"}),
    entry(params, "size_factors", "slice", {"evaluate"}),
    entry(params, "layers", {"rna": 3}, {"evaluate"}),
    entry(params, "layers", {"rna": "../../x"}, set()),  # X has the counts
    entry(params, "library_key", "../../x", {"predict"}),
    entry(params, "library_key", np.arange(3), {"predict"}),
    entry(params, "spatial_key", 3, {"predict", "factor_adata"}),
    # geometry
    *(
        missing(state, key, PREDICT)
        for key in ("process", "centre", "scale", "libraries", "order", "nugget")
    ),
    *(entry(state, "scale", value, PREDICT) for value in (0.0, -1.0, np.nan, "1", np.arange(2.0))),
    *(entry(state, "centre", change, PREDICT) for change in (fewer, narrow, flat, words, with_nan)),
    *(entry(state, "factor_mean", change, PREDICT) for change in (fewer, words, negative, huge)),
    *(entry(state, "nugget", change, PREDICT) for change in (fewer, words, negative, with_nan)),
    *(
        entry(state, "order", np.array(value), PREDICT)
        for value in ([0], [0, 0], [1, 2], [-1, 0], [0.0, 1.0])
    ),
    entry(state, "libraries", ["a", "a"], PREDICT),
    entry(state, "libraries", ["a"], PREDICT),
    entry(state, "libraries", [f"s{i}" for i in range(5_000)], PREDICT),
    entry(state, "nonnegative", "yes", PREDICT),
    entry(state, "process", "hilbert", PREDICT),
    # the process, of either kind
    *(
        damage
        for field in ("hilbert", "inducing")
        for damage in [
            *(
                missing(process, key, PREDICT, field)
                for key in ("kind", "kernel", "n_libraries", "u_loc", "slope")
            ),
            *(
                entry(process, "kind", value, PREDICT, field)
                for value in ("__import__('os')", "../../x", 3, "")
            ),
            *(
                entry(process, "kernel", value, PREDICT, field)
                for value in ("__import__('os')", 3, "gaussian")
            ),
            *(
                entry(process, "n_libraries", value, PREDICT, field)
                for value in (10**12, -1, 0, 2.5, "2", np.inf)
            ),
            *(
                entry(process, "slope", change, PREDICT, field)
                for change in (fewer, narrow, flat, words, with_nan)
            ),
            *(
                entry(process, "u_loc", change, PREDICT, field)
                for change in (fewer, narrow, flat, words, with_inf, huge)
            ),
            *(
                entry(process, "log_lengthscale", change, PREDICT, field)
                for change in (fewer, words, with_nan, huge)
            ),
            *(
                entry(process, "log_amplitude", change, PREDICT, field)
                for change in (fewer, with_inf, huge)
            ),
        ]
    ),
    *(
        entry(process, "n_basis", value, PREDICT)
        for value in (10**9, 10**30, 0, -28, 27, 28.5, "28", np.nan)
    ),
    *(
        entry(process, "extent", change, PREDICT)
        for change in (fewer, negative, huge, words, with_nan)
    ),
    entry(process, "extent", np.array([1e-9, 1.0]), PREDICT),
    *(
        entry(process, "node_variance", change, PREDICT)
        for change in (fewer, narrow, flat, words, negative, with_nan)
    ),
    missing(process, "node_variance", PREDICT),
    missing(process, "extent", PREDICT),
    *(
        entry(process, "centres", change, PREDICT, "inducing")
        for change in (fewer, narrow, flat, words, huge)
    ),
    entry(process, "centres", np.zeros((20_000, 2)), PREDICT, "inducing"),
    *(
        entry(process, "centre_library", change, PREDICT, "inducing")
        for change in (fewer, words, negative, with_nan)
    ),
    entry(process, "centre_library", np.full(8, 10**12), PREDICT, "inducing"),
    *(
        entry(process, "u_tril", change, PREDICT, "inducing")
        for change in (fewer, narrow, flat, words, with_nan)
    ),
    *(
        entry(process, "u_log_scale", change, PREDICT, "inducing")
        for change in (fewer, words, with_inf, huge)
    ),
    *(
        entry(process, "covariance", value, PREDICT, "inducing")
        for value in ("diagonal", "half", 3)
    ),
    missing(process, "centres", PREDICT, "inducing"),
]


def history(data: Any) -> dict[str, Any]:
    return record(data)["history"]


def starts(data: Any) -> dict[str, Any]:
    return record(data)["starts"]


TRACE = {"convergence"}
FIGURE_DAMAGES = [
    *(missing(record, key, TRACE) for key in ("history", "starts", "converged", "seconds")),
    *(missing(history, key, TRACE) for key in ("elbo", "phase")),
    *(
        entry(history, "elbo", change, TRACE)
        for change in (fewer, words, with_nan, lambda elbo: elbo[:0])
    ),
    *(entry(history, "phase", value, TRACE) for value in (fewer, [], [1, 2, 3, 4], {"a": "b"})),
    entry(starts, "best", "../../x", TRACE),
    entry(starts, "random", "-100", TRACE),
    entry(starts, "random", np.nan, TRACE),
    entry(record, "starts", "random", TRACE),
    entry(record, "converged", "yes", TRACE),
    entry(record, "seconds", -1.0, TRACE),
    entry(record, "seconds", "long", TRACE),
    entry(params, "library_key", "../../x", {"spatial_factors", "draw_importance"}),
    entry(lambda d: d.obsm, "spatial", words, {"spatial_factors", "draw_importance"}),
    entry(lambda d: d.obs, "gpnsf_spatial_importance", words, {"draw_importance"}),
    entry(lambda d: d.obs, "gpnsf_spatial_importance", with_nan, {"draw_importance"}),
    entry(
        lambda d: d.var, "gpnsf_spatial_importance", with_inf, {"top_features", "draw_importance"}
    ),
    entry(lambda d: d.varm, "gpnsf_loadings", np.zeros_like, {"top_features"}),
    entry(record, "factor_names", ["a", "a", "b"], set(FIGURES)),
]


def damaged(damage: Damage) -> ad.AnnData:
    data = fit_of(damage.field).copy()
    damage.change(data)
    return data


def refusals(data: Any, readers: Mapping[str, Callable[[Any], Any]]) -> set[str]:
    """Readers that refuse the object; each does so in three parts, and none changes it."""
    refused, before = set(), sections.digest(data)
    for name, reader in readers.items():
        message = None
        try:
            reader(data)
        except (ValueError, KeyError, TypeError) as error:
            message = str(error.args[0])
            refused.add(name)
        assert message is None or THREE_PARTS.match(message), (name, message)
        assert sections.digest(data) == before, name
    return refused


@pytest.mark.parametrize("field", ["hilbert", "inducing"])
def test_an_undamaged_fit_is_refused_by_nobody(field):
    data = fit_of(field).copy()
    assert refusals(data, {**READERS, **FIGURES}) == set()


@pytest.mark.broad(1)
@pytest.mark.parametrize("part", range(4))
def test_damage_is_refused_by_those_whom_it_concerns(part, subtests):
    for damage in DAMAGES[part::4]:
        with subtests.test(damage.name, field=damage.field):
            assert refusals(damaged(damage), READERS) >= damage.refused_by


@pytest.mark.parametrize("field", ["hilbert", "inducing"])
def test_a_field_is_rebuilt_from_sound_states_only(field):
    """The core's own door, without what the object says."""
    sound = process(fit_of(field))
    assert restore_field(sound).n_factors == 2
    for key in sound:
        with pytest.raises(KeyError, match="Expected '.*; got only"):
            restore_field({name: value for name, value in sound.items() if name != key})
        with pytest.raises((ValueError, TypeError), match="Expected '.*; got "):
            restore_field({**sound, key: object()})


@pytest.mark.broad(1)
@pytest.mark.parametrize("part", range(6))
def test_figures_refuse_what_they_cannot_draw(part, subtests):
    for damage in FIGURE_DAMAGES[part::6]:
        with subtests.test(damage.name):
            assert refusals(damaged(damage), FIGURES) >= damage.refused_by
            plt.close("all")


@pytest.mark.slow
def test_no_figure_breaks_on_damage_that_is_not_for_everybody(subtests):
    for damage in [one for one in DAMAGES if one.refused_by not in (ALL, PREDICT)][::3]:
        with subtests.test(damage.name):
            refusals(damaged(damage), FIGURES)
            plt.close("all")


# ---- names ----------------------------------------------------------------------------------------------------------


def renamed(data: ad.AnnData) -> None:
    """Names that would do harm if they were taken for paths, code or mathematics."""
    names = ["../../x", "__import__('os').system('true')", "$\\frac{"]
    record(data)["factor_names"] = names
    record(data)["kernel"] |= {name: name for name in PATHS}
    record(data)["starts"] = {**starts(data), "../../y": -1.0}
    data.var_names = [*names, "/etc/passwd", "$a$", "a/b", "", "{}"]
    data.obs_names = [f"../{name}" for name in data.obs_names]
    data.uns |= {name: {"factor_names": [name]} for name in PATHS}
    data.obsm["../../x"] = data.obsm["spatial"].copy()


@pytest.mark.slow
def test_names_are_labels_and_nothing_else(tmp_path, monkeypatch):
    inside = tmp_path / "a" / "b" / "c"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    data = fit_of("hilbert").copy()
    renamed(data)
    readers = {**READERS, "predict_elsewhere": gpnsf.tl.predict, **FIGURES}
    assert refusals(data, readers) == set()
    demo.save_figures(data, inside / "figures")
    written = {
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    }
    assert written == {f"a/b/c/figures/{name}.png" for name in demo.FIGURES}


# ---- files ----------------------------------------------------------------------------------------------------------


def write(data: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata, on keys with slashes and formats to come
        data.write_zarr(path) if path.suffix == ".zarr" else data.write(path)
    return path


def read(path: Path) -> Any:
    readers = {".h5ad": ad.read_h5ad, ".h5mu": md.read_h5mu, ".zarr": ad.read_zarr}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return readers[path.suffix](path)


@pytest.mark.broad(2)
@pytest.mark.parametrize("suffix", [".h5ad", ".h5mu", ".zarr"])
@pytest.mark.parametrize("field", ["hilbert", "inducing"])
def test_a_file_that_was_not_touched_is_refused_by_nobody(field, suffix, tmp_path):
    data = fit_of(field).copy()
    expected = gpnsf.tl.predict(data)
    if suffix == ".h5mu":
        keys = ("uns", "obsm", "obs")
        data = sections.mudata(rna=data)
        uns, obsm, obs = (getattr(data["rna"], key) for key in keys)
        data.uns, data.obs = dict(uns), obs.copy()
        for key in obsm:
            data.obsm[key] = obsm[key]
    restored = read(write(data, tmp_path / f"fit{suffix}"))
    assert refusals(restored, READERS) == set()
    np.testing.assert_array_equal(gpnsf.tl.predict(restored).X, expected.X)


@pytest.mark.slow
def test_damage_in_a_file_is_refused_as_it_is_in_memory(tmp_path):
    """Types change on the way through a file; what cannot be written cannot arrive in one."""
    n_read = 0
    damages = DAMAGES[::5]
    for i, damage in enumerate(damages):
        try:
            path = write(damaged(damage), tmp_path / f"{i}.h5ad")
        except (TypeError, ValueError, NotImplementedError, OverflowError):
            continue
        assert refusals(read(path), READERS) >= damage.refused_by, damage.name
        n_read += 1
    assert n_read > 0.8 * len(damages)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[200 : len(content) : 97] = b"\xff" * len(content[200 : len(content) : 97])
    path.write_bytes(content)


def in_h5(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    damage.__name__ = change.__name__
    return damage


def unknown_encoding(file: h5py.File) -> None:
    file["uns/gpnsf"].attrs["encoding-type"] = "pickle"


def dangling_link(file: h5py.File) -> None:
    del file["obsm/X_gpnsf"]
    file["obsm/X_gpnsf"] = h5py.SoftLink("/nowhere")


def link_to_another_file(file: h5py.File) -> None:
    del file["obsm/X_gpnsf"]
    file["obsm/X_gpnsf"] = h5py.ExternalLink("/etc/passwd", "/x")


def wrong_length(file: h5py.File) -> None:
    del file["obsm/X_gpnsf"]
    file["obsm/X_gpnsf"] = np.zeros((3, 3), np.float32)


def absurd_length(file: h5py.File) -> None:
    """Twenty terabytes on paper, nothing on disk."""
    del file["uns/gpnsf/field/process/u_loc"]
    process = file["uns/gpnsf/field/process"]
    dataset = process.create_dataset("u_loc", shape=(10**12, 5), dtype="f4", chunks=(10**4, 5))
    dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def no_columns(file: h5py.File) -> None:
    del file["obs"]


def words_for_counts(file: h5py.File) -> None:
    del file["X/data"]
    file["X/data"] = np.array([b"a"] * len(file["X/indices"]))


def stray_indices(file: h5py.File) -> None:
    file["X/indices"][:] = 10**6


FILES = [truncated, emptied, overwritten, *map(in_h5, (unknown_encoding, dangling_link, link_to_another_file,
         wrong_length, absurd_length, no_columns))]  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A file with a fit."""
    return write(fit_of("hilbert").copy(), tmp_path_factory.mktemp("fits") / "fit.h5ad")


def test_the_command_line_says_that_a_file_is_damaged(subtests, sound, tmp_path, capsys):
    path, coords = tmp_path / "fit.h5ad", tmp_path / "coords.csv"
    coords.write_text("x,y\n1,1\n")
    for damage in FILES:
        path.write_bytes(sound.read_bytes())
        damage(path)
        for arguments in (
            ["predict", path, coords, tmp_path / "out.h5ad", "--library", "a"],
            ["plot", path, tmp_path / "figures"],
        ):
            with subtests.test(damage.__name__, command=arguments[0]):
                assert cli.main([str(argument) for argument in arguments]) == 2
                printed = capsys.readouterr()
                assert not printed.out
                begin = f"gpnsf {arguments[0]}: Expected a readable h5ad file; got "
                assert printed.err.startswith(begin)
                assert "Traceback" not in printed.err
                assert sorted(tmp_path.rglob("*")) == [coords, path]


def test_damaged_counts_are_refused_before_compiled_code_sees_them(
    subtests, sound, tmp_path, capsys
):
    path = tmp_path / "fit.h5ad"
    for damage in (in_h5(words_for_counts), in_h5(stray_indices)):
        with subtests.test(damage.__name__):
            path.write_bytes(sound.read_bytes())
            damage(path)
            assert cli.main(["fit", str(path), str(tmp_path / "out.h5ad"), "--n-factors", "2"]) == 2
            assert re.match(r"gpnsf fit: Expected .*; got ", capsys.readouterr().err, re.DOTALL)
            assert not (tmp_path / "out.h5ad").exists()


# ---- nothing in a file is run ---------------------------------------------------------------------------------------

FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "yaml.load",
    "joblib.load",
    "pd.read_pickle",
}
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml"}
# of joblib: between processes of our own
PARALLEL = {"Parallel", "delayed", "effective_n_jobs", "parallel_config"}


def runs(tree: ast.AST) -> set[str]:
    """Calls and imports by which data could become code."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in MODULES}
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if (node.module or "").split(".")[0] in MODULES and not (
                node.module == "joblib" and names <= PARALLEL
            ):
                found.add(node.module)
            found |= {
                alias.name for alias in node.names if f"{node.module}.{alias.name}" in FORBIDDEN
            }
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found |= (
                {name}
                if name in FORBIDDEN or name.endswith(("read_pickle", "to_pickle", "torch.load"))
                else set()
            )
            found |= {"allow_pickle" for keyword in node.keywords if keyword.arg == "allow_pickle"}
    return found


def test_nothing_in_the_package_turns_data_into_code():
    root = Path(gpnsf.__file__).parent
    found = {
        path.name: runs(ast.parse(path.read_text(encoding="utf-8"))) for path in root.rglob("*.py")
    }
    assert len(found) > 40
    assert not {name: calls for name, calls in found.items() if calls}


def test_the_search_sees_what_it_looks_for(subtests):
    for source in (
        "import pickle",
        "def f():\n    from joblib import load",
        "from torch import load",
        "x = eval('1')",
        "exec(text)",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=True)",
        "__import__(name)",
        "yaml.load(text)",
        "pandas.read_pickle(path)",
        "import marshal, shelve",
    ):
        with subtests.test(source):
            assert runs(ast.parse(source))
            assert not runs(ast.parse(f"# {source!r}\ntext = {source!r}"))
