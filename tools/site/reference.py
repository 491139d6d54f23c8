"""The API reference: one page for each public module, whose text mkdocstrings takes from the docstrings."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

# Programs rather than libraries: they are described by their own pages and `--help`.
LEFT_OUT = {"cli", "benchmark", "conformance", "__main__"}
FOLDER = "reference"


def pages(package: Path) -> dict[str, str]:
    """Address and content of each page, by the modules' dotted names."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not parts or parts[0] in LEFT_OUT or any(part.startswith("_") for part in parts):
            continue
        if (text := _page(path, ".".join([package.name, *parts]))) is not None:
            found[f"{FOLDER}/{'/'.join(parts)}.md"] = text
    return {f"{FOLDER}/index.md": _overview(package.name, found), **found}


def navigation(pages: set[str]) -> list[Any]:
    """The nested navigation of the pages of the reference."""
    return _level(sorted(p.removeprefix(f"{FOLDER}/") for p in pages if p.startswith(f"{FOLDER}/")), FOLDER)


def _level(uris: list[str], folder: str) -> list[Any]:
    entries: list[Any] = []
    for uri in sorted(u for u in uris if "/" not in u):
        title = "Overview" if f"{folder}/{uri}" == f"{FOLDER}/index.md" else uri.removesuffix(".md")
        entries.append({title: f"{folder}/{uri}"})
    for inner in sorted({u.partition("/")[0] for u in uris if "/" in u}):
        below = [u.partition("/")[2] for u in uris if u.startswith(f"{inner}/")]
        own = {inner: f"{folder}/{inner}.md"}
        entries = [e for e in entries if e != own]
        first = ["Package", own[inner]] if f"{inner}.md" in uris else None
        entries.append({inner: ([{first[0]: first[1]}] if first else []) + _level(below, f"{folder}/{inner}")})
    return sorted(entries, key=lambda e: (next(iter(e)) != "Overview", next(iter(e))))


def _page(path: Path, module: str) -> str | None:
    """The page of a module, None for one without a docstring.

    What a package takes from its modules stands on their pages; its own page says what it is for.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and _public(node)]
    if not documented and ast.get_docstring(tree) is None:
        return None
    options = "" if documented or path.name != "__init__.py" else "    options:\n      members: false\n"
    return f"# `{module}`\n\n::: {module}\n{options}"


def _public(node: ast.FunctionDef | ast.ClassDef) -> bool:
    return not node.name.startswith("_") and ast.get_docstring(node) is not None


def _overview(package: str, found: dict[str, str]) -> str:
    lines = [f"- [`{_module(package, uri)}`]({uri.removeprefix(f'{FOLDER}/')})" for uri in found]
    return f"# API reference\n\nEvery public module of `{package}`, from its docstrings.\n\n" + "\n".join(lines) + "\n"


def _module(package: str, uri: str) -> str:
    return ".".join([package, *uri.removeprefix(f"{FOLDER}/").removesuffix(".md").split("/")])
