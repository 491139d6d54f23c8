"""The rules of the house: seven floors, imports only downwards, no circles, a light `import pcdet_ext`, short files,
and arguments that are described."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FLOORS = {
    "sketch": 1,
    "structures": 1,
    "scenes": 1,
    "config": 1,
    "files": 1,
    "file_kinds": 1,
    "ranges": 1,
    "rigid": 1,
    "checkpoint": 1,
    "ops": 1,
    "grouping": 2,
    "mixers": 2,
    "data": 2,
    "evaluation": 2,
    "models": 3,
    "inference": 4,
    "streaming": 4,
    "tracking": 4,
    "places": 4,
    "registration": 4,
    "engine": 5,
    "export": 5,
    "visualization": 5,
    "interop": 5,
    "plugins": 6,
    "conformance": 6,
    "benchmark": 6,
    "cli": 7,
    "__main__": 7,
}
ELSEWHERE = re.compile(r"\barguments as (in|for|of|those of)\b", re.IGNORECASE)  # another docstring says it


def package_modules(root: Path) -> dict[str, Path]:
    """Dotted name of each module of the package, and its file."""
    modules = {}
    for path in sorted((root / "pcdet_ext").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imported_modules(name: str, path: Path, known: set[str]) -> set[str]:
    """Modules of the package that a file imports, lazily or not (imports for type checkers alone left out)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {n if n in known else base for n in names}
    return {m for m in found if m.split(".")[0] == "pcdet_ext"}


def room(module: str) -> str:
    """The room that a module belongs to: the part behind the package's name."""
    return module.split(".")[1] if "." in module else ""


def test_imports_only_go_down(root: Path) -> None:
    modules = package_modules(root)
    wrong = []
    for name, path in modules.items():
        if name == "pcdet_ext":  # the front door: opens the upper rooms on demand
            continue
        for target in imported_modules(name, path, set(modules)):
            if target != "pcdet_ext" and FLOORS[room(target)] > FLOORS[room(name)]:
                wrong.append(f"{name} imports {target}")
    assert not wrong, wrong


def test_rooms_of_one_floor_do_not_import_in_a_circle(root: Path) -> None:
    modules = package_modules(root)
    edges: dict[str, set[str]] = {}
    for name, path in modules.items():
        targets = {room(t) for t in imported_modules(name, path, set(modules))} - {room(name), ""}
        if name != "pcdet_ext":
            edges.setdefault(room(name), set()).update(targets)

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        frontier = set(edges.get(start, ()))
        while frontier:
            seen |= frontier
            frontier = {t for s in frontier for t in edges.get(s, ())} - seen
        return seen

    assert not [r for r in edges if r in reachable(r)]


def test_tools_are_thin(root: Path) -> None:
    for path in (root / "tools").glob("*.py"):
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 15, f"{path.name} has {lines} lines: logic belongs into the package"


def test_files_are_short(root: Path) -> None:
    paths = [path for folder in ("pcdet_ext", "tests") for path in (root / folder).rglob("*.py")]
    lengths = {path: path.read_text(encoding="utf-8").count("\n") for path in paths}
    long = {str(path.relative_to(root)): lines for path, lines in lengths.items() if lines > 450}
    assert not long, f"split by topic: {long}"


@pytest.mark.parametrize("heavy", ["lightning", "open3d", "matplotlib", "PIL", "spconv", "numba", "tensorboard"])
def test_import_is_light(heavy: str) -> None:
    code = f"import sys, pcdet_ext; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, f"import pcdet_ext loads {heavy}"


def undescribed(path: Path) -> Iterator[str]:
    """The public functions and classes of a file, each with the arguments of which nobody says what they are.

    A function of one or two arguments may leave the block `Args:` out; where there is one, it is complete.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    owners: list[ast.Module | ast.ClassDef] = [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef))]
    for owner in owners:
        if isinstance(owner, ast.ClassDef) and owner.name.startswith("_"):
            continue
        for node in owner.body:
            if not isinstance(node, ast.FunctionDef) or (node.name.startswith("_") and node.name != "__init__"):
                continue
            described = owner if node.name == "__init__" else node
            text = ast.get_docstring(described) or inherited_text(described)
            if ("Args:" not in text and len(arguments(node)) <= 2) or ELSEWHERE.search(text):
                continue
            missing = [argument for argument in arguments(node) if argument not in described_names(text)]
            if missing:
                yield f"{getattr(owner, 'name', path.stem)}.{node.name}({', '.join(missing)})"


def described_names(docstring: str) -> set[str]:
    """Names in front of the colons of the block `Args:`; several that share a description are `a, b: …`."""
    block = re.search(r"^( *)Args:\n((?:\1 +\S.*\n?|\n)*)", docstring, re.MULTILINE)
    if block is None:
        return set()
    indent = len(block[1]) + 4
    listed = re.findall(rf"^ {{{indent}}}(\w+(?:, \w+)*):", block[2], re.MULTILINE)
    return {name for names in listed for name in names.split(", ")}


def arguments(node: ast.FunctionDef) -> list[str]:
    """Names of the arguments that a caller gives by name or place."""
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [argument.arg for argument in given if argument.arg not in ("self", "cls")]


def inherited_text(node: ast.AST) -> str:
    """What stands for a docstring where a class builds its own from that of another class: `__doc__ = …`."""
    for inner in getattr(node, "body", ()):
        if isinstance(inner, ast.Assign) and ast.unparse(inner.targets[0]) == "__doc__":
            return "Arguments as in" if ".__doc__" in ast.unparse(inner.value) else ""
    return ""


def test_arguments_are_described(root: Path) -> None:
    package = root / "pcdet_ext"
    missing = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package).as_posix()
        if not path.name.startswith("_"):
            missing += [f"{inside}: {name}" for name in undescribed(path)]
    assert not missing, f"write `Args:`, or `Arguments as in …`: {missing}"


def test_what_counts_as_a_description(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        'def silent(a, b, c): """Something."""\n'
        'def short(a, b): """Something."""\n'
        'def elsewhere(a, b, c): """Something. Arguments as in `silent`."""\n'
        'def partly(a, b): """Something.\n\n    Args:\n        a: one.\n\n    Returns:\n        b: two.\n    """\n'
        'def together(a, b, c): """Something.\n\n    Args:\n        a, b: two.\n        c: one.\n    """\n'
        "def _private(a, b, c): pass\n"
        "class Thing:\n"
        '    """Something.\n\n    Args:\n        a: one, said\n            b: in passing.\n        c: one.\n    """\n\n'
        "    def __init__(self, a, b, c): pass\n"
        "    def method(self, a, b, *, c): pass\n",
        encoding="utf-8",
    )
    assert list(undescribed(path)) == [
        "module.silent(a, b, c)",
        "module.partly(b)",
        "Thing.__init__(b)",
        "Thing.method(a, b, c)",
    ]
