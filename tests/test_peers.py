"""The race of peers: failures are results, what has run is not run again, and nothing runs beyond the limit."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FAKE = """
import json, sys, time
from pathlib import Path
import numpy as np
section, found, settings = sys.argv[1:]
options = json.loads(settings)["options"]
if options["does"] == "fail":
    raise ValueError("no such kernel")
if options["does"] == "wait":
    time.sleep(60)
truth = np.load(section)["factors"]
np.savez(found, factors=truth[:, ::-1] + 5, loadings_rna=np.eye(2))
took = {"wall": 1.0, "cpu": 0.5, "memory": 0.1, "cut": options["does"] == "cut"}
Path(found).with_suffix(".took.json").write_text(json.dumps(took))
"""


@pytest.fixture(scope="module")
def race():
    """The module ``benchmarks/race.py`` with what it imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        for name in ("report", "race_data", "race", "peers"):
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("race")
        for name in ("report", "race_data", "race", "peers"):
            sys.modules.pop(name, None)


@pytest.fixture
def fake(race, tmp_path, monkeypatch):
    """A peer of a few lines, a section of ten spots, and a function that runs one on the other."""
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "contract.py").write_text("")
    truth = np.random.default_rng(0).random((10, 2))
    np.savez(tmp_path / "aside.npz", factors=truth, n_spatial=1, size=np.ones(10))
    section = SimpleNamespace(
        title="tiny", n_factors=2, score="recovery", size_factors=True, seed=0
    )
    race_data = sys.modules["race_data"]
    monkeypatch.setattr(race, "PEERS", tmp_path)
    monkeypatch.setitem(race_data.SECTIONS, "tiny", section)
    monkeypatch.setattr(race, "written", lambda *_: (tmp_path / "aside.npz",) * 2)

    def run(does: str, limit: float = 5.0, environment=None, **more):
        method = race.Method("fake", "fake.py", "here", options={"does": does})
        environment = environment or race.Environment()
        return race.run(method, environment, "tiny", cache=tmp_path, limit=limit, **more)

    runs = []
    original = race._run
    monkeypatch.setattr(race, "_run", lambda *args: runs.append(args) or original(*args))
    return SimpleNamespace(run=run, runs=lambda: len(runs))


def test_a_run_is_judged_and_not_run_again(fake):
    first = fake.run("work")
    assert first["spatial"] == pytest.approx(1)
    assert first["nonspatial"] == pytest.approx(1)
    assert first["zeros"] == 0.5
    assert fake.run("work") == first
    assert fake.runs() == 1


def test_a_failure_is_a_result_with_its_message_until_it_is_asked_for_again(fake):
    assert fake.run("fail")["failed"] == "ValueError: no such kernel"
    assert "failed" in fake.run("fail")
    assert fake.runs() == 1
    fake.run("fail", again=True)
    assert fake.runs() == 2


def test_what_a_limit_has_ended_runs_again_only_within_a_longer_one(fake, race, monkeypatch):
    monkeypatch.setattr(race, "PATIENCE", 0.1)
    assert fake.run("wait")["failed"] == "killed after 0.5 s of wall time"
    fake.run("wait", limit=4.0)
    assert fake.runs() == 1
    fake.run("wait", limit=6.0)
    assert fake.runs() == 2
    monkeypatch.setattr(race, "PATIENCE", 20.0)
    assert fake.run("cut")["cut"]
    fake.run("cut", limit=6.0)
    assert fake.runs() == 4


def test_a_command_is_killed_with_its_children(race, tmp_path):
    note = tmp_path / "child"
    code = (
        "import subprocess, sys, pathlib, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid)); time.sleep(60)"
    )
    assert "killed after 1 s" in race.ended([sys.executable, "-S", "-c", code], 1.0)
    deadline = time.monotonic() + 5
    while _runs(int(note.read_text())) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(int(note.read_text()))


def test_what_cannot_be_installed_is_a_result_and_not_tried_again(fake, race, monkeypatch):
    environment = race.Environment(requirements=["nothing"], python="/no/such/python")
    said = fake.run("work", environment=environment)["failed"]
    assert said.startswith("not installed: ")
    assert "/no/such/python" in said
    monkeypatch.setattr(race, "_install", lambda *_: pytest.fail("installed again"))
    assert fake.run("fail", environment=environment)["failed"] == said


def test_every_peer_has_a_script_an_environment_and_known_sections(race):
    environments, methods = race.read()
    assert methods
    for method in methods.values():
        assert (race.PEERS / method.script).exists()
        assert method.environment in environments
        assert set(method.sections) <= set(sys.modules["race_data"].SECTIONS)
    pins = [pin for environment in environments.values() for pin in environment.requirements]
    assert all("==" in pin for pin in pins)


def test_tables_show_failures_cuts_and_places(race):
    peers = importlib.import_module("peers")
    methods = {
        name: race.Method(name, "run.py", "here", loadings=True)
        for name in ("gpnsf", "gpnsf_told", "other", "broken")
    }
    found = {"cpu": 1.0, "wall": 2.0, "memory": 0.1, "cut": False, "zeros": 0.25}
    results = {
        "gpnsf": {"cortex_rna": found | {"kmeans": 0.5, "gmm": 0.4}},
        "gpnsf_told": {"cortex_rna": found | {"kmeans": 0.9, "gmm": 0.4}},
        "other": {"cortex_rna": found | {"kmeans": 0.6, "gmm": -0.05, "cut": True}},
        "broken": {"cortex_rna": {"failed": "killed after 9 CPU s"}},
    }
    column = peers.SECTIONS["cortex_rna"].title
    table = peers.scores(methods, results).set_index("method")
    shown = [".500 / .400", ".900 / .400", ".600 / -.050*", "failed: killed after 9 CPU s"]
    assert table[column].tolist() == shown
    assert table["zeros"].tolist() == [".250"] * 3 + ["-"]
    assert (table.drop(columns=[column, "zeros"]) == "-").all(axis=None)
    place = peers.places(methods, results).set_index("section").loc[column]
    assert place[["first", "gpnsf", "place"]].tolist() == ["other, .600", ".500", "2 of 2"]
    assert peers.failures(methods, results).to_numpy().tolist() == [
        ["broken", column, "`killed after 9 CPU s`"]
    ]


@pytest.mark.slow
def test_cpu_seconds_are_limited(race):
    command = [sys.executable, "-S", "-c", "while True: pass"]
    assert race.ended(command, 60, cpu_limit=1) == "killed after 1 CPU s"


@pytest.mark.slow
def test_a_real_script_runs_on_a_written_section(race, tmp_path, monkeypatch):
    race_data = sys.modules["race_data"]
    section = race_data.Section("small", _small(race_data), 2, "prediction")
    monkeypatch.setitem(race_data.SECTIONS, "small", section)
    method = race.read()[1]["klnmf6"]
    found = race.run(method, race.Environment(), "small", cache=tmp_path, limit=60)
    assert 0 < found["explained"] < 1
    assert found["cpu"] > 0
    assert found["versions"]["numpy"] == np.__version__


def _small(race_data):
    """A gradient of two profiles over 300 spots, 20 of which are kept aside."""

    def make():
        rng = np.random.default_rng(0)
        coords = rng.random((300, 2))
        share = np.column_stack([coords[:, 0], 1 - coords[:, 0]])
        counts = rng.poisson(share @ rng.gamma(0.5, 8.0, (2, 30)))
        mdata = race_data.bare({"rna": counts[20:]}, coords[20:])
        mdata.uns["new_coords"] = coords[:20]
        return mdata, {"counts": counts[:20], "mean": counts[20:].mean(0)}

    return make


def _runs(pid: int) -> bool:
    """Whether there is such a process, other than one that has ended and was not waited for."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
