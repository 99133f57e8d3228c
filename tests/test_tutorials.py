"""Executed tutorials: each notebook holds what its script says now, all of it run, and nothing of the machine that ran it."""

from __future__ import annotations

import json
import re
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "tutorials"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "execute")


def cells(name: str) -> list[dict]:
    """Cells of a notebook."""
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def outputs(name: str) -> list[dict]:
    """What its cells have shown."""
    return [output for cell in cells(name) for output in cell.get("outputs", [])]


def as_script(cell: dict) -> str:
    """A cell as it stands in a script."""
    text = "".join(cell["source"])
    if cell["cell_type"] == "code":
        return f"# %%\n{text}\n"
    return "# %% [markdown]\n" + "".join(f"# {line}".rstrip() + "\n" for line in text.split("\n"))


def test_every_notebook_has_a_script():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} <= set(NAMES)


def test_a_notebook_is_its_script(subtests):
    for name in NAMES:
        with subtests.test(name=name):
            script = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
            _, found = script.split("# ---\n\n", maxsplit=1)
            kept = "\n".join(map(as_script, cells(name)))
            assert kept == re.sub(r"\n{2,}# %%", "\n\n# %%", found), (
                f"write it anew: python tutorials/execute.py {name}"
            )


def test_every_cell_has_run_in_order_and_none_ended_in_an_error(subtests):
    for name in NAMES:
        with subtests.test(name=name):
            counts = [
                cell["execution_count"] for cell in cells(name) if cell["cell_type"] == "code"
            ]
            assert counts == list(range(1, len(counts) + 1))
            assert not [output for output in outputs(name) if output["output_type"] == "error"]


def test_a_notebook_is_small_has_figures_and_names_no_place_of_a_machine(subtests):
    for name in NAMES:
        with subtests.test(name=name):
            assert (FOLDER / f"{name}.ipynb").stat().st_size < 700_000
            shown = outputs(name)
            assert any("image/png" in output.get("data", {}) for output in shown)
            texts = [
                "".join(text)
                for output in shown
                for kind, text in {**output.get("data", {}), "text": output.get("text", "")}.items()
                if kind.startswith("text")
            ]
            places = r"/(?:tmp|home|root|work|mnt|Users|var)/|site-packages|ipykernel|\x1b"
            assert not [found for text in texts for found in re.findall(rf".*(?:{places}).*", text)]
