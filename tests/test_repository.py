"""What lies around the package: its metadata, workflows and record say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from faults import FAULTS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCE = ROOT / "src" / "gpnsf"
PLACE = r"`([\w/.-]+(?:\.py|/))`(?:: `(\w+)`)?"  # a file or folder, and what is to be found in it
WORKFLOWS = {
    path.name: path.read_text(encoding="utf-8")
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
}


def test_faults_can_still_be_put_in():
    sources = {fault.path: (SOURCE / fault.path).read_text(encoding="utf-8") for fault in FAULTS}
    assert not [fault.old for fault in FAULTS if sources[fault.path].count(fault.old) != 1]
    tests = {name for fault in FAULTS for name in fault.tests}
    assert not [name for name in tests if not (ROOT / "tests" / name).exists()]


def test_actions_are_named_by_commit_and_workflows_may_only_read():
    used = re.findall(r"uses: (\S+)(.*)", "\n".join(WORKFLOWS.values()))
    loose = [
        name for name, tag in used if not re.search(r"@[0-9a-f]{40}$", name) or "# v" not in tag
    ]
    assert used
    assert not loose
    assert all("\npermissions:\n  contents: read\n" in text for text in WORKFLOWS.values())


def test_each_python_that_the_metadata_name_is_tested_and_no_other():
    named = {
        text.split(" :: ")[-1]
        for text in PROJECT["project"]["classifiers"]
        if re.search(r"Python :: 3\.\d+$", text)
    }
    lines = re.findall(r"^ +python: (.*)$", WORKFLOWS["test.yaml"], re.MULTILINE)
    assert named == set(re.findall(r"3\.\d+", " ".join(lines)))
    oldest = min(named, key=lambda version: int(version.split(".")[1]))
    assert PROJECT["project"]["requires-python"] == f">={oldest}"


def test_the_groups_are_the_extras():
    extras = PROJECT["project"]["optional-dependencies"]
    for group in PROJECT["dependency-groups"].values():
        ((names,),) = [re.findall(r"^gpnsf\[(.+)\]$", text) for text in group]
        assert set(names.split(",")) <= extras.keys()


def test_the_record_of_the_registry_says_what_the_metadata_say():
    text = (ROOT / "docs" / "registry" / "meta.yaml").read_text(encoding="utf-8")
    record = dict(re.findall(r"^(\w+):[ \n]+(\S.*)?$", text, re.MULTILINE))
    project = PROJECT["project"]
    assert (record["name"], record["license"]) == (project["name"], project["license"])
    assert record["install"] == f"pypi: {project['name']}"
    assert (record["language"], record["category"]) == ("Python", "ecosystem")
    assert {"primary_category", "tags", "contact", "project_home", "documentation_home"} <= set(
        re.findall(r"^(\w+):", text, re.MULTILINE)
    )


def test_types_are_announced():
    assert (ROOT / "src" / "gpnsf" / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]


def test_no_data_lie_beside_the_metadata():
    kinds = ("*.h5ad", "*.h5mu", "*.h5", "*.zarr", "*.mtx*", "*.csv*")
    assert not [path.name for kind in kinds for path in ROOT.glob(kind)]


def test_the_map_for_contributors_names_what_there_is():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = [
        (row, *found)
        for row in re.findall(r"^\| .*", text, re.MULTILINE)
        for found in re.findall(PLACE, row)
        if "NAME" not in found[0]
    ]
    assert len(named) > 100
    for row, path, name in named:
        folders = ["", *re.findall(r"`([\w/]+)/[\w.]*`", row)]  # of the row: `state.py` there
        places = [top / folder / path for top in (ROOT, SOURCE) for folder in folders]
        (place, *_) = [place for place in places if place.exists()] or [None]
        assert place, f"no {path}: {row}"
        assert not name or re.search(rf"\b{name}\b", place.read_text(encoding="utf-8")), row
