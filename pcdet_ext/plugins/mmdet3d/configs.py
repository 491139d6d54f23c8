"""mmdetection3d's configurations as it writes them down, read without running them.

mmengine's Runner writes the whole configuration of a training, in literals only, into its checkpoints and as
work_dirs/NAME/TIME/vis_data/config.py. Configurations that compute, import or build on others are Python programs: they
are not read here.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.config import ConfigError
from pcdet_ext.interop.checkpoints import read_content

NUMBERS = {"inf": float("inf"), "nan": float("nan")}
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
            return parse(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
    content = read_content(path)
    meta = content.get("meta") if isinstance(content, Mapping) else None
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    if not isinstance(text, str):
        raise CheckpointError(f"{path}: holds no configuration (meta.cfg), which mmengine's Runner writes")
    return parse(text, f"{path}, meta.cfg")


def parse(text: str, where: str) -> dict[str, Any]:
    """What a configuration in literals assigns, by name.

    Raises ConfigError, with `where` and the line, for anything else.
    """
    try:
        statements = ast.parse(text).body
    except SyntaxError as error:
        raise ConfigError(f"{where}:{error.lineno}: {error.msg}") from error
    found: dict[str, Any] = {}
    for statement in statements:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a comment in quotes
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            raise ConfigError(f"{where}:{statement.lineno}: {ADVICE}")
        found[statement.targets[0].id] = _value(statement.value, where)
    if "_base_" in found:
        raise ConfigError(f"{where}: builds on {found['_base_']}; {ADVICE}")
    return found


def _value(node: ast.expr, where: str) -> Any:
    """A literal; `dict(key=…)` is one, too."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        if all(keyword.arg for keyword in node.keywords):  # `**other` has no name
            return {keyword.arg: _value(keyword.value, where) for keyword in node.keywords}
    elif isinstance(node, ast.Dict) and all(node.keys):
        return {_value(k, where): _value(v, where) for k, v in zip(node.keys, node.values, strict=True) if k}
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(item, where) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Name) and node.id in NUMBERS:
        return NUMBERS[node.id]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}:{node.lineno}: {ADVICE}") from error
