"""A fit that is interrupted anywhere ends like one that is not, and a file that is no checkpoint of it is refused."""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import re
import zipfile
from dataclasses import replace
from functools import cache
from itertools import groupby, product
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from objective import at_each_call
from reference import toy_dataset

from gpnsf.core.inference import checkpoint as files
from gpnsf.core.inference import initial, moves, training
from gpnsf.core.inference.checkpoint import Checkpoint, fingerprint
from gpnsf.core.inference.schedule import Schedule
from gpnsf.core.inference.state import State
from gpnsf.core.model.build import build
from gpnsf.core.model.factorization import Factorization
from gpnsf.core.types import Dataset, History

TWO = {"rna": "nb", "atac": "bernoulli"}
# calls of the objective: five starts of 4 steps, main 20 to 27, tail to 33, one look, polish 35 to 40, one look
BRIEF = Schedule(max_steps=24, pick_steps=4, kernel_steps=6, tol=1e-12)


class Killed(BaseException):
    """Nothing is done after it."""


def problem(
    likelihoods: dict[str, str] | None = None, **options: Any
) -> tuple[Factorization, Dataset]:
    dataset = toy_dataset(likelihoods or TWO, n_features=options.pop("n_features", 10))
    return build(
        "gpnsf", dataset, **{"n_factors": 3, "n_spatial": 2, "n_inducing": 20, **options}
    ), dataset


class Starts(tuple):
    """Starts that were looked for once, at all bandwidths."""

    def __str__(self) -> str:
        return "auto"


@cache
def starts_of(
    n_factors: int, n_spatial: int, n_features: int, *likelihoods: tuple[str, str]
) -> Starts:
    dataset = toy_dataset(dict(likelihoods), n_features=n_features)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initial, "OF_DEEP", initial.BANDWIDTHS)
        return Starts(initial.starts(dataset, n_factors, n_spatial, nonnegative=True))


def fitted(
    path: Path | None = None, schedule: Schedule = BRIEF, **options: Any
) -> tuple[Factorization, History]:
    model, dataset = problem(**options)
    likelihoods = options.get("likelihoods", TWO)
    n_features = dataset.views[0].counts.shape[1]
    starts = starts_of(model.n_factors, model.n_spatial, n_features, *likelihoods.items())
    store = None if path is None else Checkpoint(path)
    return model, training.fit(model, dataset, init=starts, schedule=schedule, checkpoint=store)


def stop_at(
    monkeypatch: pytest.MonkeyPatch, call: int, error: type[BaseException], broken: int = -1
) -> None:
    """Raise at one call of the objective; at another, which counts from the first fit, it is not a number."""

    def act(number: int) -> float | None:
        if number == call:
            raise error
        return math.nan if number == broken else None

    at_each_call(monkeypatch, act)


def interrupt(
    path: Path | None,
    call: int,
    error: type[BaseException],
    *args: Any,
    broken: int = -1,
    **options: Any,
) -> None:
    """A fit that is interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, call, error, broken)
        fitted(path, *args, **options)


def same(one: tuple[Factorization, History], other: tuple[Factorization, History]) -> None:
    """Equal to the bit in everything but time."""
    (model, history), (model_2, history_2) = one, other
    np.testing.assert_array_equal(history.elbo, history_2.elbo)
    assert history.phase.tolist() == history_2.phase.tolist()
    assert (history.converged, history.starts, history.repairs) == (
        history_2.converged,
        history_2.starts,
        history_2.repairs,
    )
    for (name, value), again in zip(
        model.state_dict().items(), model_2.state_dict().values(), strict=True
    ):
        assert torch.equal(value, again), name
    assert (np.diff(history_2.seconds) > 0).all()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit.npz"


@pytest.fixture
def log(caplog):
    """What the package logs, whether or not its log is passed on to the root."""
    logger = logging.getLogger("gpnsf")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger="gpnsf")
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope="module")
def uninterrupted():
    return fitted()


# ---- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.broad(1)
@pytest.mark.parametrize("part", range(4))
def test_an_interrupted_fit_ends_like_an_uninterrupted_one(part, subtests, path, uninterrupted):
    rows = [
        *((call, Killed) for call in (0, 1, 3, 4, 6, 8, 19, 20, 24, 27, 28, 31, 34, 35, 38, 41)),
        *((call, KeyboardInterrupt) for call in (0, 6, 24, 31, 38)),
    ]
    for call, error in rows[part::4]:
        with subtests.test(call=call, error=error.__name__):
            path.unlink(missing_ok=True)
            with pytest.raises(error):
                interrupt(path, call, error)
            assert path.exists() == (call > 0)
            same(uninterrupted, fitted(path))


@pytest.mark.slow
@pytest.mark.parametrize("patience", [0, 50, 1e9])
def test_a_fit_may_be_interrupted_again_and_again(patience, path, uninterrupted, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", patience)
    for attempt in range(100):
        # without patience every step is written, else one step or a few: each attempt must come a little further
        try:
            interrupt(path, 4 * attempt + 3, Killed)
        except Killed:
            continue
        break
    assert attempt >= 3
    same(uninterrupted, fitted(path))


@pytest.mark.broad(1)
@pytest.mark.parametrize(
    "options",
    [
        {"n_samples": 2},
        {"field": "inducing"},
        {"lengthscale": 0.3},
        {"likelihoods": {"rna": "gaussian"}},
    ],
    ids=str,
)
def test_other_models_go_on_too(options, subtests, path):
    options = {"likelihoods": TWO, **options}
    expected = fitted(**options)
    for call in (6, 30):
        with subtests.test(call=call):
            path.unlink(missing_ok=True)
            with pytest.raises(KeyboardInterrupt):
                interrupt(path, call, KeyboardInterrupt, **options)
            same(expected, fitted(path, **options))


MOVING = Schedule(max_steps=160, pick_steps=4, kernel_steps=6, min_steps=20, tol=5e-3)
FIVE = {"n_factors": 5, "n_spatial": 3, "likelihoods": {"rna": "poisson"}, "n_features": 30}


@pytest.fixture
def bold(monkeypatch):
    """Factors are merged that are hardly alike, and every step is written."""
    monkeypatch.setattr(moves, "ALIKE", 0.1)
    monkeypatch.setattr(moves, "SAME", 0.1)
    monkeypatch.setattr(files, "PATIENCE", 0)


slow = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.usefixtures("bold")
@pytest.mark.parametrize(
    ("number", "later"),
    [
        (1, 6),
        *(
            pytest.param(number, later, marks=slow)
            for number, later in ((0, 0), (0, 26), (1, 26), (2, 6))
        ),
    ],
)
def test_a_fit_goes_on_around_its_moves(number, later, path):
    """Interrupted in the first look after the first, a middle and the last move, in its trial, and afterwards."""
    expected, calls = moved()
    rounds = [name for name, _ in groupby(expected[1].phase.tolist())]
    assert rounds == ["pick", "main", "move", "main", "tail"]  # kept after one that was undone
    assert len(calls) == 3
    with pytest.raises(Killed):
        interrupt(path, calls[number] + later, Killed, MOVING, **FIVE)
    same(expected, fitted(path, MOVING, **FIVE))


@cache  # the first test asks inside of `bold`
def moved() -> tuple[tuple[Factorization, History], list[int]]:
    """A fit, and how often the objective had been called when each of its moves was made."""
    seen: list[int] = []
    made: list[int] = []
    make = moves.make
    with pytest.MonkeyPatch.context() as patch:
        at_each_call(patch, seen.append)
        patch.setattr(moves, "make", lambda *args: (made.append(len(seen)), make(*args))[1])
        return fitted(schedule=MOVING, **FIVE), made


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
def test_repairs_and_halved_rates_are_remembered(path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, -1, Killed, broken=22)
        expected = fitted()
    assert len(expected[1].repairs) == 1
    monkeypatch.setattr(files, "PATIENCE", 0)
    with pytest.raises(Killed):
        interrupt(path, 26, Killed, broken=22)
    same(expected, fitted(path))


@pytest.mark.slow
def test_convergence_is_remembered(path):
    schedule = Schedule(max_steps=200, pick_steps=4, kernel_steps=6, min_steps=20, tol=1.0)
    expected = fitted(schedule=schedule)
    assert expected[1].converged
    n_calls = 20 + len(expected[1].elbo) - 4 + 2
    for call in (n_calls - 60, n_calls - 5):
        with pytest.raises(KeyboardInterrupt):
            interrupt(path, call, KeyboardInterrupt, schedule)
        same(expected, fitted(path, schedule))
        path.unlink()


def test_a_fit_that_was_complete_takes_no_step(path, uninterrupted, monkeypatch):
    fitted(path)
    stop_at(monkeypatch, 1, Killed)  # one look at the bound after the polish
    same(uninterrupted, fitted(path))


def test_a_checkpoint_changes_nothing(path, uninterrupted):
    same(uninterrupted, fitted(path))
    assert [file.name for file in path.parent.iterdir()] == ["fit.npz"]


# ---- what is said ---------------------------------------------------------------------------------------------------


@pytest.mark.broad(2)
@pytest.mark.parametrize(("call", "where"), [(6, "step 2 (pick)"), (24, "step 8 (main)"), (30, "step 14 (tail)"), (37, "step 20 (polish)")])  # fmt: skip
def test_ctrl_c_says_where_it_stopped_and_how_to_go_on(call, where, path, log):
    with pytest.raises(KeyboardInterrupt):
        interrupt(path, call, KeyboardInterrupt)
    text = f"Interrupted after {where}; the data are untouched. The same call with checkpoint='{path}' goes on from there."
    assert text in log.text
    fitted(path)
    assert f"Going on after {where.split(' (')[0]}, as {path} says" in log.text


def test_ctrl_c_without_a_checkpoint_says_what_would_have_helped(log):
    with pytest.raises(KeyboardInterrupt):
        interrupt(None, 6, KeyboardInterrupt)
    assert (
        "Interrupted after step 2 (pick); the data are untouched. With checkpoint=PATH the same call"
        in log.text
    )


def test_ctrl_c_before_the_first_step_says_that_there_is_nothing(path, log):
    with pytest.raises(KeyboardInterrupt):
        interrupt(path, 0, KeyboardInterrupt)
    assert (
        "Interrupted after step 0 (pick); the data are untouched. No checkpoint was written."
        in log.text
    )
    assert not path.exists()


# ---- writing --------------------------------------------------------------------------------------------------------


def full_disk(monkeypatch: pytest.MonkeyPatch, first: int, error: BaseException) -> None:
    """Writing breaks off in its middle, from the given write on."""
    writes, savez = iter(range(10**6)), np.savez

    def failing(file: Any, **arrays: np.ndarray) -> None:
        if next(writes) >= first:
            file.write(b"half of it")
            raise error
        savez(file, **arrays)

    monkeypatch.setattr(np, "savez", failing)
    monkeypatch.setattr(files, "PATIENCE", 0)


@pytest.mark.parametrize("first", [0, 9])
def test_a_full_disk_is_warned_about_once_and_the_fit_goes_on(
    first, path, log, uninterrupted, monkeypatch
):
    with monkeypatch.context() as patch:
        full_disk(patch, first, OSError(errno.ENOSPC, "No space left on device"))
        same(uninterrupted, fitted(path))
    (text,) = [
        record.getMessage()
        for record in log.records
        if "could not be written" in record.getMessage()
    ]
    assert str(path) in text
    assert "No space left on device" in text
    assert len(list(path.parent.iterdir())) == (
        first > 0
    )  # the last good one stays, half a file does not
    if first:
        same(uninterrupted, fitted(path))
        assert (
            "Going on after step 1," in log.text
        )  # the ninth write: four steps of two starts, and one more


def test_death_while_writing_leaves_the_last_file(path, uninterrupted, monkeypatch):
    with monkeypatch.context() as patch:
        full_disk(patch, 22, Killed())
        with pytest.raises(Killed):
            fitted(path)
    same(uninterrupted, fitted(path))


def test_writing_waits_until_it_is_cheap(path, monkeypatch):
    store, written = Checkpoint(path), []
    monkeypatch.setattr(store, "_write", written.append)
    clock = iter([0.0, 0.0, 0.1, 4.9, 5.2, 5.2, 5.3, 10.2, 10.4, 10.4, 10.5])  # a write takes .1 s
    monkeypatch.setattr(files, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    for state in range(5):
        store.keep(state)
    assert written == [0, 2, 4]


def test_a_file_holds_numbers_and_json_only(path):
    fitted(path)
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    assert {array.dtype.kind for array in arrays.values()} == {"f", "u"}
    facts = json.loads(arrays["facts"].tobytes())
    assert len(facts["walk"]["elbo"]) == 24
    assert facts["fingerprint"]["spatial.field.kernel_name"] == "matern32"


def test_a_place_that_cannot_be_written_is_refused_at_once(subtests, tmp_path):
    (tmp_path / "file").touch()
    for name, error, found in (
        ("", IsADirectoryError, "Is a directory"),
        ("missing/fit.npz", FileNotFoundError, "No such file or directory"),
        ("file/fit.npz", NotADirectoryError, "Not a directory"),
        ("n" * 300, OSError, "File name too long"),
        ("a\0b", ValueError, "null"),
    ):
        pattern = rf"Expected `checkpoint` to be a file.*; got .*{found}.*\. Name a file in"
        with subtests.test(name=name):
            with pytest.raises(error, match=pattern):
                Checkpoint(tmp_path / name)
            assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_directory_without_permission_or_room_is_refused_at_once(subtests, path):
    for number in (errno.EACCES, errno.EROFS, errno.ENOSPC):
        with subtests.test(number=number):
            name = errno.errorcode[number]
            with (
                patch.object(Path, "write_bytes", side_effect=OSError(number, name)),
                pytest.raises(OSError, match=f"that can be written; got '.*' .{name}.") as caught,
            ):
                Checkpoint(path)
            assert isinstance(caught.value, PermissionError) == (number == errno.EACCES)


# ---- files of other fits --------------------------------------------------------------------------------------------


OTHER_FITS = {
    "n_samples (None there, 2 here)": {"n_samples": 2},
    "kernel_name (matern32 there, rbf here)": {"kernel": "rbf"},
    "class (HilbertField there, InducingField here)": {"field": "inducing"},
    "spatial.n_factors (2 there, 1 here)": {"n_spatial": 1},
    "kl_weight (1.0 there, 2.0 here)": {"kl_weight": 2.0},
    "learnt": {"lengthscale": 0.2},
    "max_steps (24 there, 25 here)": {"schedule": replace(BRIEF, max_steps=25)},
    "views.0.likelihood.class (NegativeBinomial there, Poisson here)": {
        "likelihoods": {**TWO, "rna": "poisson"}
    },
}


def test_a_file_of_another_fit_is_refused_by_name_of_the_difference(subtests, path):
    fitted(path)
    before = path.read_bytes()
    pattern = r"Expected `checkpoint` to name a file of this very fit, or none yet; got .*fit.npz', which differs in .*\. Repeat"
    for difference, change in OTHER_FITS.items():
        with subtests.test(difference):
            with pytest.raises(ValueError, match=pattern) as caught:
                fitted(path, **change)
            assert difference in str(caught.value)
            assert path.read_bytes() == before


def test_a_file_of_other_data_is_refused_by_name_of_the_difference(subtests, path):
    fitted(path)
    changes = {
        "counts of rna": lambda rna, atac, coords: np.add.at(rna.counts.data, 3, 1),
        "size factors of atac": lambda rna, atac, coords: np.add.at(atac.size, 3, 1e-6),
        "coordinates": lambda rna, atac, coords: np.add.at(coords, 3, 1e-6),
        "shape of atac": lambda rna, atac, coords: atac.counts.resize(60, 11),
    }
    for what, change in changes.items():
        with subtests.test(what):
            model, dataset = problem()
            change(*dataset.views, dataset.coords)
            facts = fingerprint(model, dataset, {})
            assert what in {
                name for name, value in fingerprint(*problem(), {}).items() if facts[name] != value
            }
            named = "" if what == "shape of atac" else what
            with pytest.raises(ValueError, match=f"differs in .*{named}"):
                training.fit(model, dataset, schedule=BRIEF, checkpoint=Checkpoint(path))


def test_the_same_places_in_other_slices_are_other_coordinates():
    model, dataset = problem()
    before = fingerprint(model, dataset, {})
    dataset.library[3] += 1
    assert fingerprint(model, dataset, {})["coordinates"] != before["coordinates"]


def test_files_of_other_versions_are_refused(path, monkeypatch):
    fitted(path)
    monkeypatch.setattr(files, "version", lambda name: "99.1")
    with pytest.raises(
        ValueError, match=r"differs in gpnsf \(0.1.0 there, 99.1 here\), torch \(.*, pyro-ppl"
    ):
        fitted(path)


# ---- files that are damaged or hostile ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The bytes of a sound checkpoint."""
    path = tmp_path_factory.mktemp("sound") / "fit.npz"
    with pytest.raises(Killed):
        interrupt(path, 10, Killed)
    return path.read_bytes()


def reopened(path: Path) -> State | None:
    """What a fit would read, without the fit."""
    return Checkpoint(path).open(*asked())


@cache
def asked() -> list[Any]:
    """With which a fit opens its file."""
    model, dataset = problem()
    stepper_like: list[Any] = []
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr(
            Checkpoint,
            "open",
            lambda store, facts, like: stepper_like.extend([facts, like]) or _stop(),
        )
        with pytest.raises(Killed):
            training.fit(model, dataset, schedule=BRIEF, checkpoint=Checkpoint(f"{folder}/fit.npz"))
    return stepper_like


def _stop() -> None:
    raise Killed


def refused(path: Path) -> str:
    before = path.read_bytes()
    with pytest.raises(
        ValueError,
        match=r"Expected `checkpoint` to name a .*fit.npz', which .*\. .*delete this one",
    ) as caught:
        reopened(path)
    assert path.read_bytes() == before
    return str(caught.value)


def test_a_sound_file_is_read(path, content):
    path.write_bytes(content)
    state = reopened(path)
    assert 0 < len(state.walk.elbo) <= 4
    assert state.starts.keys() <= {"smooth_0", "smooth_0.06", "smooth_0.1"}


def test_a_truncated_file_is_refused(subtests, path, content):
    for share in (0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.9999):
        with subtests.test(share=share):
            path.write_bytes(content[: int(share * len(content))])
            assert "is not one or is damaged" in refused(path)


def test_another_kind_of_file_is_refused(subtests, path):
    for other in (
        b"hello",
        b"PK\x03\x04" + bytes(100),
        b"\x89HDF\r\n\x1a\n" + bytes(1000),
        bytes(10**5),
    ):
        with subtests.test(other=other):
            path.write_bytes(other)
            refused(path)


def test_flipped_bits_never_crash(path, content):
    generator, n_refused = np.random.default_rng(0), 0
    for position in generator.integers(len(content), size=60).tolist() + list(
        range(len(content) - 60, len(content))
    ):
        spoilt = bytearray(content)
        spoilt[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(spoilt)
        try:
            reopened(path)
        except ValueError as error:
            assert "Expected `checkpoint`" in str(error)  # noqa: PT017
            n_refused += 1
    assert n_refused > 60


def rewritten(
    content: bytes, name: str, replacement: bytes | None, method: int = zipfile.ZIP_STORED
) -> bytes:
    """The archive with another member in place of one, or without it."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w", method) as new:
        for member in old.namelist():
            data = replacement if member == f"{name}.npy" else old.read(member)
            if data is not None:
                new.writestr(member, data)
    return target.getvalue()


def npy(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def header(text: str) -> bytes:
    """An array file that says anything of itself, with four bytes of content."""
    padded = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode() + bytes(4)


def test_a_hostile_array_is_refused(subtests, path, content):
    names = "facts", "walk.here", "walk.best", "moments", "counts", "random", "random_cuda"
    replacements = (
        None,
        b"",
        b"not an array",
        npy(np.zeros(3, dtype=np.float32)),
        npy(np.zeros((0, 5), dtype=np.float32)),
        npy(np.array(["text"])),
        npy(np.array([{"a": 1}], dtype=object), allow_pickle=True),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"),
        header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({'9' * 26},), }}"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1), }"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
        header("__import__('os').system('false')"),
        header("(" * 100),
    )
    for name, replacement in product(names, replacements):
        with subtests.test(name=name, replacement=replacement):
            path.write_bytes(rewritten(content, name, replacement))
            refused(path)


def test_a_compressed_file_is_refused_before_it_is_unpacked(path, content):
    bomb = npy(np.zeros(10**7, dtype=np.float32))
    path.write_bytes(rewritten(content, "walk.here", bomb, zipfile.ZIP_DEFLATED))
    assert "is compressed" in refused(path)


def test_numbers_that_are_not_finite_are_refused(subtests, path, content):
    for name in ("walk.here", "moments"):
        with subtests.test(name=name):
            with np.load(io.BytesIO(content)) as archive:
                array = archive[name]
            array.flat[5] = np.nan
            path.write_bytes(rewritten(content, name, npy(array)))
            assert f"{name} is not finite" in refused(path)


def test_facts_of_the_wrong_kind_are_refused(subtests, path, content):
    changes = (
        lambda facts: facts.pop("walk"),
        lambda facts: facts.pop("fingerprint"),
        lambda facts: facts.update(fingerprint=[1]),
        lambda facts: facts.update(walk=None),
        lambda facts: facts.update(kept=7),
        lambda facts: facts.update(phase=0, starts={}),
        lambda facts: facts.update(phase=-2),
        lambda facts: facts.update(phase=True),
        lambda facts: facts.update(step=-1),
        lambda facts: facts.update(moved=1),
        lambda facts: facts.update(tried=[1]),
        lambda facts: facts.pop("tried"),
        lambda facts: facts.update(starts={"spot": "high"}),
        lambda facts: facts.update(repairs="none"),
        lambda facts: facts["walk"].update(elbo=[]),
        lambda facts: facts["walk"].update(elbo=[1.0] * 10**5),
        lambda facts: facts["walk"].update(elbo=None),
        lambda facts: facts["walk"].update(phase=[1]),
        lambda facts: facts["walk"].update(halvings=-5000),
        lambda facts: facts["walk"].update(halvings=0.5),
        lambda facts: facts["walk"].update(more=1),
    )
    for number, change in enumerate(changes):
        with subtests.test(number=number):
            with np.load(io.BytesIO(content)) as archive:
                facts = json.loads(archive["facts"].tobytes())
            change(facts)
            text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
            path.write_bytes(rewritten(content, "facts", npy(text)))
            refused(path)


def test_text_of_the_wrong_kind_is_refused(subtests, path, content):
    for text in (b"", b"[]", b"7", b"{", b"[" * 10**5, b"\xff", b'{"fingerprint": {"format": 1}}'):
        with subtests.test(text=text):
            path.write_bytes(rewritten(content, "facts", npy(np.frombuffer(text, dtype=np.uint8))))
            assert len(re.sub(r"'.*fit.npz'", "", refused(path))) < 800


def test_other_batches_are_another_fit():
    model, dataset = problem()
    one, other = (
        fingerprint(model, replace(dataset, batch=np.arange(dataset.n_obs) // size), {})["batches"]
        for size in (30, 20)
    )
    assert one != other
