"""The page "Warnings and terms": it has an entry for every warning of the code, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "gpnsf"
PAGE = (ROOT / "docs" / "warnings.md").read_text(encoding="utf-8").split("\n## Terms\n")[0]
WORDS = [
    ".*".join(map(re.escape, words.split(" ... ")))
    for words in re.findall(r"^`([^`]+)`$", PAGE, re.MULTILINE)
]
YIELDED = {"tl/diagnostics.py", "io/suspicions.py", "io/modalities.py"}  # warnings that are yielded
PASSED_ON = {  # what is logged by a name: texts of the files above, of `note`, or these
    "tl/diagnostics.py": (),
    "io/read.py": (),
    "tl/spots.py": (),
    "core/inference/steps.py": (),
    "core/inference/checkpoint.py": ("could not be written",),
    "io/suspicions.py": ("Several sections seem to lie on top of each other",),
    "pl/report.py": ("Left out of this page, as the counts are not in the object",),
    "pl/sections.py": ("coordinates in pixels of the full resolution of the image",),
    "pl/tissue.py": ("one image in uns", "an image of each section in uns"),
}


def text_of(node: ast.expr | None) -> str:
    """The constant words of a text, a gap for each value; nothing if it is no literal."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[\w.]+", "...", node.value).strip(".")
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "..." for part in node.values)
    return ""


def sites(name: str, source: str) -> list[ast.expr]:
    """What a file logs as a warning, notes as a repair, or yields as a warning."""
    nodes = list(ast.walk(ast.parse(source)))
    called = [node for node in nodes if isinstance(node, ast.Call)]
    named = [node for node in called if isinstance(node.func, ast.Attribute)]
    words = ("warning", "note") if name.startswith("core/") else ("warning",)
    found = [node.args[0] for node in named if node.func.attr in words]
    yielded = [node.value for node in nodes if isinstance(node, ast.Yield) and node.value]
    return found + (yielded if name in YIELDED else [])


SOURCES = {
    path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(SOURCE.rglob("*.py"))
}
FOUND = {
    name: list(map(text_of, sites(name, source)))
    for name, source in SOURCES.items()
    if name in YIELDED or ".warning(" in source or ".note(" in source
}
TEXTS = [text for texts in FOUND.values() for text in texts if text]
TEXTS += [text for texts in PASSED_ON.values() for text in texts]


def test_every_warning_has_an_entry():
    assert len(TEXTS) > 40
    assert [text for text in TEXTS if not any(re.search(words, text) for words in WORDS)] == []


def test_every_entry_is_of_a_warning():
    assert [words for words in WORDS if not any(re.search(words, text) for text in TEXTS)] == []


def test_every_entry_says_what_to_do():
    entries = re.split(r"^`[^`]+`$", PAGE, flags=re.MULTILINE)[1:]
    assert [entry for entry in entries if entry.strip() and "**Do:**" not in entry] == []


def test_what_is_logged_by_a_name_is_known():
    assert {name for name, texts in FOUND.items() if "" in texts} == PASSED_ON.keys()
    assert all(text in SOURCES[name] for name, texts in PASSED_ON.items() for text in texts)
