"""The way of the user's object through a call: how many files a reader has to follow it to."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType

import pytest
from anndata import AnnData
from mudata import MuData

import gpnsf

ROOT = Path(gpnsf.__file__).parent
LEVELS = {"core": 1, "io": 2, "pp": 3, "tl": 3, "pl": 3}  # of folders; files beside them serve all
OFTEN = 5  # entries of a function after which it is known whether it gets the object
ANONYMOUS = ("<lambda>", "<listcomp>", "<dictcomp>", "<genexpr>", "<module>")


@dataclass(frozen=True)
class Call:
    """A function of the package that was entered."""

    file: str
    function: str
    caller: str  # its file; empty where nobody in the package has called
    holds_object: bool  # whether an argument is the object, a modality of it, or has one inside


class Tracer:
    """The calls within the package, in their order, the first few of each function."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._entries = Counter[object]()

    def __enter__(self) -> Tracer:
        sys.setprofile(self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _seen(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or self._entries[frame.f_code] == OFTEN:
            return
        self._entries[frame.f_code] += 1
        file, name = _file(frame), frame.f_code.co_name
        if file and name not in ANONYMOUS:
            above = frame.f_back
            while above is not None and not _file(above):
                above = above.f_back
            caller = "" if above is None else _file(above)
            holds = any(_holds(value) for value in frame.f_locals.values())
            self.calls.append(Call(file, name, caller, holds))

    def stays(self) -> list[str]:
        """Files in which the object is, in the order of the functions that get it, each read once."""
        once = dict.fromkeys((call.file, call.function) for call in self.calls if call.holds_object)
        files = [file for file, _ in once]
        return [file for file, before in zip(files, ["", *files], strict=False) if file != before]

    def climbs(self) -> set[tuple[str, str]]:
        """Calls from a layer into one above it, as callers and functions."""
        return {
            (call.caller, call.function)
            for call in self.calls
            if call.caller and _level(call.file) > _level(call.caller) > 0
        }


def _file(frame: FrameType) -> str:
    return _relative(frame.f_code.co_filename)


@cache
def _relative(name: str) -> str:
    path = Path(name)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""


def _level(file: str) -> int:
    return LEVELS.get(file.split("/")[0], 0)


def _holds(value: object, depth: int = 2) -> bool:
    if isinstance(value, AnnData | MuData):
        return True
    if not depth:
        return False
    if isinstance(value, dict):
        return any(_holds(part, depth - 1) for part in value.values())
    own = type(value).__module__.startswith("gpnsf") and hasattr(value, "__dict__")
    return own and any(_holds(part, depth - 1) for part in vars(value).values())


@pytest.fixture(scope="module")
def fitted() -> tuple[MuData, Tracer]:
    mdata = gpnsf.datasets.tissue(n_obs=200, n_genes=40, n_peaks=50, n_spatial=3, seed=0)
    with Tracer() as tracer:
        gpnsf.tl.fit(mdata, n_factors=4, max_steps=6, progress=False)
    return mdata, tracer


def test_a_fit_can_be_followed(fitted):
    _, tracer = fitted
    assert len(tracer.stays()) <= 35, tracer.stays()
    assert "io/read.py" in tracer.stays()
    assert "io/write.py" in tracer.stays()
    assert not any(file.startswith("core/") for file in tracer.stays())
    assert len(tracer.climbs()) <= 6, tracer.climbs()


@pytest.mark.parametrize(
    ("call", "stays"),
    [
        (lambda data: gpnsf.tl.denoise(data, modality="rna"), 35),
        (gpnsf.tl.predict, 15),
        (gpnsf.tl.evaluate, 25),
        (lambda data: gpnsf.tl.domains(data, n_domains=3), 20),
    ],
    ids=["denoise", "predict", "evaluate", "domains"],
)
def test_what_follows_a_fit_can_be_followed(fitted, call, stays):
    data, _ = fitted
    with Tracer() as tracer:
        call(data)
    assert 0 < len(tracer.stays()) <= stays, tracer.stays()
    assert len(tracer.climbs()) <= 3, tracer.climbs()


def test_the_tracer_sees_what_it_looks_for(fitted):
    data, _ = fitted
    with Tracer() as tracer:
        gpnsf.tl.factor_adata(data)
    assert any(call.function == "factor_adata" and call.holds_object for call in tracer.calls)
    assert ("io/tables.py", "factor_adata") in tracer.climbs()
