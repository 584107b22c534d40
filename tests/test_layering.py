"""Which module may import which, read from the source: imports inside functions count."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FILE_SIDE = (
    "surveys catalogues services preprocess prepare calibration "
    "spectra pixels quantities display wavelength flags units typing cache atomic errors progress npz"
).split()
ACCELERATED = {"jax", "flax", "chex", "optax"}
ALLOWED = {("specjax.cache", "use_compilation_cache"): {"jax"}}  # set up before the first computation


@cache
def modules() -> dict[str, Path]:
    """{dotted name: file} of every module of specjax; a package is its __init__.py."""
    found = {}
    for path in sorted((ROOT / "specjax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports_of(name: str) -> list[tuple[str, str]]:
    """(imported module, enclosing function, "TYPE_CHECKING" or "") of every import statement of a module.

    `from package import module` imports the module, `from module import name` the module that defines it.
    """
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: list[tuple[str, str]] = []

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            function = "TYPE_CHECKING"
        if isinstance(node, ast.Import):
            found.extend((alias.name, function) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                below = f"{source}.{alias.name}"
                found.append((below if below in modules() else source, function))
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(path.read_text(encoding="utf-8")), "")
    return found


def top_level(imported: str) -> str:
    return imported.partition(".")[0]


def is_file_side(name: str) -> bool:
    parts = name.split(".")
    return len(parts) > 1 and parts[1] in FILE_SIDE


def packages_above(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


def graph() -> dict[str, set[str]]:
    """{module: modules that it imports}, with the packages that importing them runs and it is not part of."""
    edges = {}
    for name in modules():
        imported = {to for to, _ in imports_of(name)} & set(modules()) - {name}
        above = {package for to in imported for package in packages_above(to)}
        edges[name] = imported | (above - packages_above(name) - {name})
    return edges


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other (strongly connected components of more than one module)."""
    reach = {}
    for start in edges:
        seen, todo = set(), [start]
        while todo:
            new = edges[todo.pop()] - seen
            seen |= new
            todo += new
        reach[start] = seen
    groups = {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in edges
        if name in reach[name]
    }
    return sorted(sorted(group) for group in groups)


def test_only_commands_import_the_converter():
    wrong = [
        name
        for name in modules()
        if not name.startswith("specjax.commands.")
        and any(top_level(to) == "checkpoints_convert" for to, _ in imports_of(name))
    ]
    assert wrong == []


def test_the_simulator_knows_nothing_of_models_and_adaptation():
    built_on_it = {"models", "foundation", "train", "adapt", "pretrain", "lora", "config"}
    loaded = {to for name in modules() if name.startswith("specjax.simulate") for to in loaded_with(name)}
    assert {to for to in loaded if to.startswith("specjax.") and to.split(".")[1] in built_on_it} == set()


@pytest.mark.parametrize("outside", ["experiments", "benchmarks", "tests"])
def test_the_package_imports_nothing_that_is_built_on_it(outside):
    assert [name for name in modules() if any(top_level(to) == outside for to, _ in imports_of(name))] == []


def test_the_file_side_imports_no_jax():
    wrong = [
        f"{name} imports {to}" + (f" in {function}" if function else "")
        for name in modules()
        if is_file_side(name)
        for to, function in imports_of(name)
        if top_level(to) in ACCELERATED - ALLOWED.get((name, function), set())
    ]
    assert wrong == []


def loaded_with(name: str) -> set[str]:
    """Modules that importing a module of specjax loads, packages above them included."""
    seen, todo = set(), [name]
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += packages_above(module)
            todo += [to for to, function in imports_of(module) if not function] if module in modules() else []
    return seen


def test_the_file_side_loads_no_jax():
    assert {
        name: found for name in modules() if is_file_side(name) and (found := loaded_with(name) & ACCELERATED)
    } == {}


def test_every_name_of_the_file_side_exists():
    assert {name.split(".")[1] for name in modules() if is_file_side(name)} == set(FILE_SIDE)


def test_no_modules_import_each_other():
    found = cycles(graph())
    assert found == [], "import cycles: " + "; ".join(" <-> ".join(group) for group in found)


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ({"a": {"b"}, "b": set()}, []),
        ({"a": {"b"}, "b": {"a"}, "c": {"a"}}, [["a", "b"]]),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"e"}, "e": {"d"}}, [["a", "b", "c"], ["d", "e"]]),
    ],
)
def test_cycles_are_found(edges, expected):
    assert cycles(edges) == expected
