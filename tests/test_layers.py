"""The architecture, read from the syntax trees: who imports whom, and how large things are."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from pathlib import Path

import gpnsf
from gpnsf.core.families import FAMILIES

ROOT = Path(gpnsf.__file__).parent
FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
    for path in ROOT.rglob("*.py")
}
MODULES = {name: path for name, path in FILES.items() if not name.endswith("__init__")}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}

DATA = {
    "keys",
    "settings",
    "checks",
    "arguments",
    "io.fits",
}  # what every layer that knows AnnData may use

# The rooms of the core: each imports itself and those before it. Those of numpy know no torch.
FIRST = {"core.types", "core.presets", "core.stored", "core.distributed", "core.progress"}
NUMPY = {"core.types", "core.presets", "core.stored", "core.families", "core.scores"}
NUMPY |= {"core.torch_state"}  # which asks whether torch is there
ROOMS = {
    "core.types": set(),
    "core.presets": set(),
    "core.stored": set(),
    "core.distributed": set(),
    "core.progress": set(),
    "core.torch_state": set(),
    "core.families": {"core.types"},
    "core.scores": {"core.types", "core.families"},
    "core.counts": {"core.types", "core.families"},
    "core.fields": {*FIRST, "core.counts"},
    "core.likelihoods": {*FIRST, "core.families", "core.counts"},
    "core.model": {*FIRST, "core.families", "core.counts", "core.fields", "core.likelihoods"},
    "core.inference": {"core"},
    "core.companions": {"core.types", "core.progress", "core.scores"},
}

# What each file may import of gpnsf; a package's name stands for its files. Files of one package may share helpers.
MAY_IMPORT: dict[str, set[str]] = {
    "lazy": set(),
    "settings": set(),
    "keys": set(),
    "palette": {"checks"},
    "checks": {"keys", "core.families", "core.presets"},
    "arguments": {"keys", "checks"},
    "core.__init__": set(),
    **{room: {room, *others} for room, others in ROOMS.items()},
    "io": {*DATA, "io", *NUMPY},
    "genome": DATA,
    "pp": {*DATA, "io", "pp", *NUMPY},
    "tl": {*DATA, "genome", "palette", "io", "tl", "core"},
    "tl.plan": {*DATA, "core.families", "core.presets", "io.kinds", "pp.split", "datasets", "tl"},
    "tl.one_run": {*DATA, "io", "pp", "datasets", "tl", "core.counts"},
    "pl": {*DATA, "core.families", "genome", "palette", "io", "pl"},
    "pl.spatial_map": {*DATA, "io", "pl", "pp", "tl"},
    "pl.variance": {*DATA, "io", "pl", "tl.variance"},
    "datasets": {*DATA, "io.objects", "datasets"},
    "datasets.mixture": {*DATA, "core.companions"},
    "options": {"", "arguments", "checks", "core.families"},
    "demo": {"", *DATA, "io", "core.scores", "pp", "tl", "pl", "datasets"},
    "cli": {"", *DATA, "io", "core.distributed", "demo", "options", "pp", "tl", "pl", "datasets"},
    "__main__": {"cli"},
}
TORCH = {"torch", "pyro"}
SCVERSE = {"anndata", "mudata", "scanpy", "squidpy", "muon"}
NEVER = {
    **dict.fromkeys(
        ("lazy", "settings", "keys", "palette", "checks", "arguments", "options", "demo", "cli"),
        TORCH,
    ),
    "io": {*TORCH, "scanpy", "squidpy", "matplotlib"},
    "core": {*SCVERSE, "matplotlib"},
    **dict.fromkeys(NUMPY, {*TORCH, *SCVERSE, "matplotlib"}),
    "pp": {*TORCH, "matplotlib"},
    "pl": TORCH,
    "datasets": {*TORCH, "matplotlib"},
}
PYRO_SITES = {
    "core.model.factors",
    "core.model.loadings",
    "core.model.factorization",
    "core.companions.factvae",
}


def offenders(found: Mapping[str, Collection]) -> dict[str, Collection]:
    """Files in which something was found, and what."""
    return {name: what for name, what in found.items() if what}


def left_in_cycles(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Find what is left once everything that needs nothing more has been taken away, again and again."""
    while leaves := {name for name, needs in graph.items() if not needs}:
        graph = {name: needs - leaves for name, needs in graph.items() if name not in leaves}
    return graph


def rule(table: dict[str, set[str]], name: str) -> set[str] | None:
    """Find the row of a file: its own, or that of the innermost package that has one."""
    parts = name.split(".")
    rows = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((table[row] for row in rows if row in table), None)


def covered(name: str, allowed: set[str]) -> bool:
    """Whether a file or a package around it is among the allowed ones."""
    return any(name == other or (other and name.startswith(f"{other}.")) for other in allowed)


def imports(tree: ast.AST) -> set[str]:
    """Absolute names of everything imported; ``from a import b`` gives ``a.b``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return found


def own_imports(tree: ast.AST) -> set[str]:
    """Files and packages of gpnsf that a file imports, without the prefix."""
    found = set()
    for name in imports(tree):
        if name.split(".")[0] == "gpnsf":
            parts = name.split(".")[1:]
            while parts and ".".join(parts) not in MODULES and not (ROOT / Path(*parts)).is_dir():
                parts.pop()
            found.add(".".join(parts))
    return found


def private_uses(tree: ast.AST) -> set[str]:
    """Private names that a file takes from another file of gpnsf."""
    found = {
        name
        for name in imports(tree)
        if name.startswith("gpnsf.") and name.split(".")[-1].startswith("_")
    }
    modules = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gpnsf")
        for alias in node.names
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
        ):
            if node.attr.startswith("_") and not node.attr.endswith("__"):
                found.add(f"{node.value.id}.{node.attr}")
    return found - {"gpnsf.__version__"}


def pyro_sites(tree: ast.AST) -> set[str]:
    """Statements of the probabilistic model, however pyro was imported."""
    verbs = {"sample", "plate", "factor", "deterministic"}
    called = {
        f"{node.value.id}.{node.attr}" for node in ast.walk(tree) if _is_attribute_of_name(node)
    }
    return {
        name
        for name in called | imports(tree)
        if name.split(".")[0] == "pyro" and name.split(".")[-1] in verbs
    }


def _is_attribute_of_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)


def comparisons(tree: ast.AST) -> set[str]:
    """Names of likelihoods in comparisons, their classes in ``isinstance``."""
    classes, found = {type(family).__name__ for family in FAMILIES.values()}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            found |= {
                leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)
            } & set(FAMILIES)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("startswith", "endswith", "isinstance")
        ):
            leaves = {getattr(leaf, "id", getattr(leaf, "value", None)) for leaf in ast.walk(node)}
            found |= {leaf for leaf in leaves if isinstance(leaf, str)} & {*classes, *FAMILIES}
    return found


def prints(tree: ast.AST) -> list[int]:
    """Lines that print."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [
        node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method."""
    return [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body, its docstring left out."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions, classes and methods without a docstring."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    public = [
        node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")
    ]
    classes = [node for node in public if isinstance(node, ast.ClassDef)]
    members = [
        node
        for owner in classes
        for node in owner.body
        if isinstance(node, kinds) and node.name[0] != "_"
    ]
    return [node.name for node in public + members if not ast.get_docstring(node)]


def test_a_file_imports_only_what_its_layer_may():
    rows = {name: rule(MAY_IMPORT, name) for name in MODULES}
    assert [name for name, allowed in rows.items() if allowed is None] == []
    wrong = {
        name: {other for other in own_imports(TREES[name]) if not covered(other, allowed)}
        for name, allowed in rows.items()
    }
    assert offenders(wrong) == {}


def test_every_row_stands_for_a_file_or_a_package():
    assert not [
        name
        for name in MAY_IMPORT
        if name not in FILES and not (ROOT / name.replace(".", "/")).is_dir()
    ]


def test_a_file_leaves_foreign_libraries_to_their_layer():
    never = {name: rule(NEVER, name) or set() for name in MODULES}
    tops = {name: {other.split(".")[0] for other in imports(TREES[name])} for name in MODULES}
    assert offenders({name: tops[name] & never[name] for name in MODULES}) == {}


def test_no_private_name_crosses_a_file():
    assert offenders({name: private_uses(tree) for name, tree in TREES.items()}) == {}


def test_nobody_compares_the_name_or_the_class_of_a_likelihood():
    own = {"core.families", "core.likelihoods"}
    assert (
        offenders(
            {name: comparisons(tree) for name, tree in TREES.items() if not covered(name, own)}
        )
        == {}
    )


def test_the_probabilistic_model_is_written_in_one_place():
    assert (
        offenders(
            {name: pyro_sites(tree) for name, tree in TREES.items() if name not in PYRO_SITES}
        )
        == {}
    )


def test_imports_have_no_cycle():
    assert not left_in_cycles(
        {name: own_imports(TREES[name]) & MODULES.keys() - {name} for name in MODULES}
    )


def test_rooms_of_the_core_have_no_cycle():
    graph: dict[str, set[str]] = {room: set() for room in ROOMS}
    for name in MODULES:
        for room in (room for room in ROOMS if covered(name, {room})):
            used = own_imports(TREES[name])
            graph[room] |= {
                other for other in ROOMS if any(covered(each, {other}) for each in used)
            }
    assert not left_in_cycles({room: others - {room} for room, others in graph.items()})


def test_few_files_of_the_core_are_outside_of_its_rooms():
    assert len([name for name in MODULES if name.startswith("core.") and name.count(".") == 1]) <= 8


def test_a_file_is_short_says_what_it_is_and_lists_what_it_offers():
    lines = {name: path.read_text(encoding="utf-8").count("\n") for name, path in FILES.items()}
    assert {name: n for name, n in lines.items() if n > 400} == {}
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []
    full = {name: tree for name, tree in TREES.items() if len(tree.body) > 1}
    lists = {
        name
        for name, tree in full.items()
        if any(ast.unparse(n).startswith("__all__ =") for n in tree.body)
    }
    assert full.keys() - lists == {"__main__"}


def test_files_have_public_names():
    ends = {name: name.split(".")[-1] for name in MODULES}
    assert [name for name, end in ends.items() if end.strip("_") != end] == ["__main__"]


def test_functions_are_short_and_the_public_ones_documented():
    assert (
        offenders(
            {
                name: {f.name for f in functions(tree) if length(f) > 60}
                for name, tree in TREES.items()
            }
        )
        == {}
    )
    assert offenders({name: undocumented(tree) for name, tree in TREES.items()}) == {}


def test_only_the_command_line_prints():
    assert offenders({name: prints(tree) for name, tree in TREES.items() if name != "cli"}) == {}


def test_the_checks_see_what_they_look_for(subtests):
    for check, source, found in (
        (imports, "def f():\n    import torch.nn", {"torch.nn"}),
        (imports, "from pyro import sample", {"pyro.sample"}),
        (own_imports, "from gpnsf.keys import Keys", {"keys"}),
        (own_imports, "from gpnsf.core import types", {"core.types"}),
        (own_imports, "from gpnsf.tl import fit", {"tl.fit"} & MODULES.keys() or {"tl"}),
        (own_imports, "import gpnsf", {""}),
        (private_uses, "from gpnsf.keys import _slot", {"gpnsf.keys._slot"}),
        (private_uses, "from gpnsf.core import types\ntypes._x", {"types._x"}),
        (pyro_sites, "import pyro\npyro.sample('x', d)", {"pyro.sample"}),
        (pyro_sites, "from pyro import plate", {"pyro.plate"}),
        (prints, "def f():\n    print(1)", [2]),
        (
            comparisons,
            "a = 'nb'\nif b in ('gaussian', 'c') or d == 'poisson': pass",
            {"gaussian", "poisson"},
        ),
        (
            comparisons,
            "isinstance(a, Poisson) or b.startswith('bernoulli')",
            {"Poisson", "bernoulli"},
        ),
        (undocumented, "class A:\n    'a'\n    def b(self): pass\ndef c(): pass", ["c", "b"]),
    ):
        with subtests.test(check=check.__name__, source=source):
            assert check(ast.parse(source)) == found


def test_length_counts_the_body_without_its_docstring():
    source = 'def f(\n    a,\n):\n    """One.\n\n    Two.\n    """\n    b = a\n\n    return b'
    assert length(functions(ast.parse(source))[0]) == 3
