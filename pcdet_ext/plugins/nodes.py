"""Parts of another code base's configuration as nodes of ours, whose messages say where they stand there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pcdet_ext.config import Node, from_plain


def plain(value: Any) -> Any:
    """A section in built-in types only; other code bases hand over dictionaries of their own kinds."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def node_at(where: str, content: Mapping[str, Any]) -> Node:
    """Content as a node whose messages begin with where it stands."""
    nested: dict[str, Any] = dict(content)
    keys = where.split(".")
    for key in reversed(keys):
        nested = {key: nested}
    found: Any = from_plain(nested, "")
    for key in keys:
        found = found[key]
    return found
