"""Public functions and classes of more than two arguments say what each of them is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

# Rooms where it does not hold yet; a room that is missing here must stay complete.
NOT_YET = ("benchmark", "conformance", "export", "interop", "plugins")
ELSEWHERE = re.compile(r"\barguments as (in|for|of|those of)\b", re.IGNORECASE)  # another docstring says it


def undescribed(path: Path) -> Iterator[str]:
    """The public functions and classes of a file of which nobody says what their arguments are."""
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
            if len(arguments(node)) > 2 and "Args:" not in text and not ELSEWHERE.search(text):
                yield f"{getattr(owner, 'name', path.stem)}.{node.name}"


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
        if not inside.startswith(NOT_YET) and not path.name.startswith("_"):
            missing += [f"{inside}: {name}" for name in undescribed(path)]
    assert not missing, f"write `Args:`, or `Arguments as in …`: {missing}"


def test_what_counts_as_a_description(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        'def silent(a, b, c): """Something."""\n'
        'def short(a, b): """Something."""\n'
        'def elsewhere(a, b, c): """Something. Arguments as in `silent`."""\n'
        "def _private(a, b, c): pass\n"
        "class Thing:\n"
        '    """Something.\n\n    Args:\n        a: one.\n    """\n\n'
        "    def __init__(self, a, b, c): pass\n"
        "    def method(self, a, b, *, c): pass\n",
        encoding="utf-8",
    )
    assert list(undescribed(path)) == ["module.silent", "Thing.method"]
