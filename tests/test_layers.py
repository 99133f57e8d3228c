"""The architecture, read from the syntax trees: who imports whom, and how large things are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gpnsf
from gpnsf.core.families import FAMILIES

ROOT = Path(gpnsf.__file__).parent
FILES = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in ROOT.rglob("*.py")}
MODULES = {name: path for name, path in FILES.items() if not name.endswith("__init__")}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}

DATA = {"keys", "settings", "checks", "results"}  # what every layer that knows AnnData may use
NUMPY_CORE = {
    "core.agreement",
    "core.association",
    "core.calibration",
    "core.clustering",
    "core.deconvolution",
    "core.deviant",
    "core.embedding",
    "core.enrichment",
    "core.expected",
    "core.families.base",
    "core.families.bernoulli",
    "core.families.gaussian",
    "core.families.negative_binomial",
    "core.families.poisson",
    "core.families.rates",
    "core.links",
    "core.mefisto",
    "core.metrics",
    "core.neighbours",
    "core.pseudospots",
    "core.ranking",
    "core.scai",
    "core.scores",
    "core.shrinkage",
    "core.similarity",
    "core.simplex",
    "core.stored",
}
BASE = {"core.types", "core.families", *NUMPY_CORE}
TERMS = {*BASE, "core.distributed", "core.backends", "core.sparse", "core.kernels"}
PARTS = {*TERMS, "core.fields", "core.moments", "core.likelihoods"}
LIKELIHOODS = {f"core.likelihoods.{name}" for name in ("base", "bernoulli", "gaussian", "negative_binomial", "poisson")}
BACKENDS = {"core.hilbert", "core.inducing"}
BLOCKS = {*PARTS, "core.factors", "core.loadings"}
CORE = {*(name for name in MODULES if name.startswith("core.")), "core.families", "core.likelihoods"}

# What each file may import of gpnsf; a package's name stands for its files. Files of one package may share helpers.
MAY_IMPORT: dict[str, set[str]] = {
    "lazy": set(),
    "settings": set(),
    "keys": set(),
    "palette": set(),
    "checks": {"keys", "core.families"},
    "results": {"keys", "checks", "tissue", "core.embedding", "core.families", "core.ranking", "core.stored"},
    "tissue": DATA,
    "reader": {*DATA, "core.families", "core.types"},
    "bridge": {*DATA, "tissue", "reader", "core.families", "core.types"},
    "writeback": {*DATA, "tissue", "bridge", *BASE},
    "core.types": set(),
    **dict.fromkeys(NUMPY_CORE, BASE),
    "core.distributed": set(),
    "core.simd": {"core.types"},
    "core.backends": {*BASE, "core.simd"},
    "core.sparse": {*BASE, "core.backends"},
    "core.kernels": BASE,
    "core.fields": TERMS,
    **dict.fromkeys(BACKENDS, {*TERMS, "core.fields"}),
    "core.rowblocks": TERMS,
    "core.moments": set(),
    **dict.fromkeys(LIKELIHOODS, {*TERMS, *LIKELIHOODS, "core.moments", "core.rowblocks"}),
    "core.gammas": set(),
    "core.factors": PARTS,
    "core.loadings": {*PARTS, "core.gammas"},
    "core.streams": TERMS,
    "core.model": {*BLOCKS, "core.initial", "core.streams"},
    "core.build": {*BLOCKS, *BACKENDS, "core.model"},
    "core.schedule": set(),
    "core.objective": {"core.model"},
    "core.moves": {*BLOCKS, "core.model"},
    "core.regroup": {*BLOCKS, "core.model"},
    "core.batches": BASE,
    "core.initial": {*TERMS, "core.batches"},
    "core.checkpoint": {"core.types"},
    "core.stepping": {*BLOCKS, "core.model", "core.objective", "core.initial", "core.checkpoint"},
    "core.training": {
        *BLOCKS,
        "core.model",
        "core.objective",
        "core.moves",
        "core.schedule",
        "core.initial",
        "core.checkpoint",
        "core.stepping",
    },
    "core.refine": {*BLOCKS, "core.model", "core.moves"},
    "core.spatial_test": {
        *BLOCKS,
        "core.model",
        "core.initial",
        "core.moves",
        "core.schedule",
        "core.training",
        "core.refine",
    },
    "core.pilot": {*BLOCKS, "core.model", "core.initial", "core.schedule", "core.training"},
    "core.fitting": CORE,
    "core.forecast": CORE,
    "core.factvae": set(),
    "core.factvae_training": {"core.factvae"},
    "core.posterior": {*BLOCKS, "core.build", "core.model", "core.refine"},
    "core.unrolled": BASE,
    "mixtures": {*DATA, "tissue", "core.stored"},
    "pp": {*DATA, "tissue", "bridge", "pp", *BASE},
    "storage": DATA,
    "genome": DATA,
    "tl": {
        *DATA,
        "genome",
        "observed",
        "palette",
        "tissue",
        "reader",
        "bridge",
        "storage",
        "writeback",
        "mixtures",
        "tl",
        *CORE,
    },
    "pl": {*DATA, "core.families", "genome", "observed", "palette", "mixtures", "pl"},
    "pl.canvas": {*DATA, "tissue", "mixtures"},
    "pl.spatial_map": {*DATA, "pl", "pp", "tl"},
    "pl.variance": {*DATA, "pl", "tl.variance"},
    "observed": {*DATA, "bridge", "core.families"},
    "datasets": {*DATA, "datasets"},
    "datasets.mixture": {*DATA, "core.pseudospots"},
    "demo": {"", *DATA, "core.metrics", "pp", "tl", "pl", "datasets"},
    "cli": {"", *DATA, "core.distributed", "demo", "pp", "tl", "pl", "datasets"},
    "__main__": {"cli"},
}
TORCH = {"torch", "pyro"}
SCVERSE = {"anndata", "mudata", "scanpy", "squidpy", "muon"}
NEVER = {
    **dict.fromkeys(("lazy", "settings", "keys", "palette", "checks", "results", "demo", "cli"), TORCH),
    **dict.fromkeys(
        ("tissue", "reader", "bridge", "storage", "writeback"), {*TORCH, "scanpy", "squidpy", "matplotlib"}
    ),
    "core": {*SCVERSE, "matplotlib"},
    **dict.fromkeys(NUMPY_CORE | {"core.types"}, {*TORCH, *SCVERSE, "matplotlib"}),
    "pp": {*TORCH, "matplotlib"},
    "pl": TORCH,
    "datasets": {*TORCH, "matplotlib"},
}
PYRO_SITES = {"core.factors", "core.loadings", "core.model", "core.factvae"}


def rule(table: dict[str, set[str]], name: str) -> set[str] | None:
    """Find the row of a file: its own, or that of its package."""
    return table.get(name, table.get(name.split(".")[0]))


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
    found = {name for name in imports(tree) if name.startswith("gpnsf.") and name.split(".")[-1].startswith("_")}
    modules = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gpnsf")
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            if node.attr.startswith("_") and not node.attr.endswith("__"):
                found.add(f"{node.value.id}.{node.attr}")
    return found - {"gpnsf.__version__"}


def pyro_sites(tree: ast.AST) -> set[str]:
    """Statements of the probabilistic model, however pyro was imported."""
    verbs = {"sample", "plate", "factor", "deterministic"}
    called = {f"{node.value.id}.{node.attr}" for node in ast.walk(tree) if _is_attribute_of_name(node)}
    return {name for name in called | imports(tree) if name.split(".")[0] == "pyro" and name.split(".")[-1] in verbs}


def _is_attribute_of_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)


def comparisons(tree: ast.AST) -> set[str]:
    """Names of likelihoods in comparisons, their classes in ``isinstance``."""
    classes, found = {type(family).__name__ for family in FAMILIES.values()}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            found |= {leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)} & set(FAMILIES)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("startswith", "endswith", "isinstance")):
            leaves = {getattr(leaf, "id", getattr(leaf, "value", None)) for leaf in ast.walk(node)}
            found |= {leaf for leaf in leaves if isinstance(leaf, str)} & {*classes, *FAMILIES}
    return found


def prints(tree: ast.AST) -> list[int]:
    """Lines that print."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body, its docstring left out."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions, classes and methods without a docstring."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    classes = [node for node in public if isinstance(node, ast.ClassDef)]
    members = [node for owner in classes for node in owner.body if isinstance(node, kinds) and node.name[0] != "_"]
    return [node.name for node in public + members if not ast.get_docstring(node)]


@pytest.mark.parametrize("name", MODULES)
def test_a_file_imports_only_what_its_layer_may(name):
    allowed = rule(MAY_IMPORT, name)
    assert allowed is not None, f"{name} has no row in MAY_IMPORT: say which layer it belongs to"
    wrong = {other for other in own_imports(TREES[name]) if other not in allowed and other.split(".")[0] not in allowed}
    assert not wrong


def test_every_row_stands_for_a_file_or_a_package():
    assert not [name for name in MAY_IMPORT if name not in MODULES and not (ROOT / name).is_dir()]


@pytest.mark.parametrize("name", MODULES)
def test_a_file_leaves_foreign_libraries_to_their_layer(name):
    tops = {other.split(".")[0] for other in imports(TREES[name])}
    never = (NEVER.get(name) or set()) | (NEVER.get(name.split(".")[0]) or set())
    assert not tops & never


@pytest.mark.parametrize("name", MODULES)
def test_no_private_name_crosses_a_file(name):
    assert not private_uses(TREES[name])


def test_nobody_compares_the_name_or_the_class_of_a_likelihood():
    own = ("core.families", "core.likelihoods")
    others = {name: tree for name, tree in TREES.items() if not name.startswith(own)}
    found = {name: comparisons(tree) for name, tree in others.items()}
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize("name", sorted(MODULES.keys() - PYRO_SITES))
def test_the_probabilistic_model_is_written_in_one_place(name):
    assert not pyro_sites(TREES[name])


def test_imports_have_no_cycle():
    graph = {name: own_imports(TREES[name]) & MODULES.keys() - {name} for name in MODULES}
    while leaves := {name for name, needs in graph.items() if not needs}:
        graph = {name: needs - leaves for name, needs in graph.items() if name not in leaves}
    assert not graph


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_short_says_what_it_is_and_lists_what_it_offers(name):
    text, tree = FILES[name].read_text(encoding="utf-8"), TREES[name]
    assert text.count("\n") <= 400
    assert ast.get_docstring(tree)
    assert name.split(".")[-1].strip("_") == name.split(".")[-1] or name.endswith(("__init__", "__main__"))
    assert any(ast.unparse(node).startswith("__all__ =") for node in tree.body) or name in {"__main__", "core.__init__"}


@pytest.mark.parametrize("name", FILES)
def test_functions_are_short_and_the_public_ones_documented(name):
    assert not [function.name for function in functions(TREES[name]) if length(function) > 60]
    assert not undocumented(TREES[name])


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"cli"}))
def test_only_the_command_line_prints(name):
    assert not prints(TREES[name])


@pytest.mark.parametrize(
    ("check", "source", "found"),
    [
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
        (comparisons, "a = 'nb'\nif b in ('gaussian', 'c') or d == 'poisson': pass", {"gaussian", "poisson"}),
        (comparisons, "isinstance(a, Poisson) or b.startswith('bernoulli')", {"Poisson", "bernoulli"}),
        (undocumented, "class A:\n    'a'\n    def b(self): pass\ndef c(): pass", ["c", "b"]),
    ],
)
def test_the_checks_see_what_they_look_for(check, source, found):
    assert check(ast.parse(source)) == found


def test_length_counts_the_body_without_its_docstring():
    source = 'def f(\n    a,\n):\n    """One.\n\n    Two.\n    """\n    b = a\n\n    return b'
    assert length(functions(ast.parse(source))[0]) == 3
