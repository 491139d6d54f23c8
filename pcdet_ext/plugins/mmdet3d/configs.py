"""mmdetection3d's configurations as it writes them down, read without running them.

mmengine's Runner writes the whole configuration of a training, in literals only, into its checkpoints and as
work_dirs/NAME/TIME/vis_data/config.py. Configurations that compute, import or build on others are Python programs: they
are not read here.
"""

from __future__ import annotations

import ast
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.config import ConfigError
from pcdet_ext.interop.checkpoints import read_content

NUMBERS = {"inf": float("inf"), "nan": float("nan")}
TOO_DEEP = "is nested too deeply to be read"
ADVICE = (
    "only configurations in literals are read, as mmengine's Runner writes them into checkpoints and into "
    "work_dirs/NAME/TIME/vis_data/config.py: name one of these"
)


def read_config(path: str | Path) -> dict[str, Any]:
    """The configuration of a training.

    Args:
        path: a checkpoint that mmengine's Runner wrote, or a configuration in literals (.py).

    Raises:
        ConfigError: a configuration that is missing, or holds more than literals; the message names file and line.
        CheckpointError: a checkpoint that is damaged, or has no configuration in it.
    """
    path = Path(path)
    if path.suffix == ".py":
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        return parse(_decoded(content, path), str(path))
    content = read_content(path)
    meta = content.get("meta") if isinstance(content, Mapping) else None
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    if not isinstance(text, str):
        raise CheckpointError(f"{path}: holds no configuration (meta.cfg), which mmengine's Runner writes")
    return parse(text, f"{path}, meta.cfg")


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 ({error.reason})") from error


def parse(text: str, where: str) -> dict[str, Any]:
    """What a configuration in literals assigns, by name.

    Raises ConfigError, with `where` and the line, for anything else.
    """
    found: dict[str, Any] = {}
    for statement in _statements(text, where):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a comment in quotes
        if not isinstance(statement, ast.Assign):
            raise ConfigError(f"{where}:{statement.lineno}: {ADVICE}")
        try:
            for target in statement.targets:  # a = b = 1 has two
                found[_name(target, where)] = _value(statement.value, where)
        except RecursionError as error:
            raise ConfigError(f"{where}:{statement.lineno}: {TOO_DEEP}") from error
    if "_base_" in found:
        raise ConfigError(f"{where}: builds on {found['_base_']}; {ADVICE}")
    return found


def _statements(text: str, where: str) -> list[ast.stmt]:
    try:
        return ast.parse(text).body
    except SyntaxError as error:
        raise ConfigError(f"{where}:{error.lineno}: {error.msg}") from error
    except ValueError as error:  # characters that no source code has
        raise ConfigError(f"{where}: {error}") from error
    except (RecursionError, MemoryError) as error:
        raise ConfigError(f"{where}:{_deep_line(text)}: {TOO_DEEP}") from error


def _deep_line(text: str) -> int:
    """The number of the line up to which a text can no longer be parsed for its depth; Python does not tell it."""
    lines = text.splitlines(keepends=True)
    return bisect_left(range(1, len(lines)), True, key=lambda count: _is_too_deep("".join(lines[:count]))) + 1


def _is_too_deep(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:  # it ends within a statement
        return False
    except (RecursionError, MemoryError):
        return True
    return False


def _name(target: ast.expr, where: str) -> str:
    if not isinstance(target, ast.Name):
        raise ConfigError(f"{where}:{target.lineno}: {ADVICE}")
    return target.id


def _value(node: ast.expr, where: str) -> Any:
    """A literal; `dict(key=…)` is one, too."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        if all(keyword.arg for keyword in node.keywords):  # `**other` has no name
            return {keyword.arg: _value(keyword.value, where) for keyword in node.keywords}
    elif isinstance(node, ast.Dict) and all(node.keys):
        return {_key(k, where): _value(v, where) for k, v in zip(node.keys, node.values, strict=True) if k}
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(item, where) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Name) and node.id in NUMBERS:
        return NUMBERS[node.id]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}:{node.lineno}: {ADVICE}") from error


def _key(node: ast.expr, where: str) -> Any:
    key = _value(node, where)
    try:
        hash(key)
    except TypeError as error:
        raise ConfigError(f"{where}:{node.lineno}: {error}: no key of a dictionary") from error
    return key
