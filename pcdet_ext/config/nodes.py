"""Mappings that know in which file and line they were written, and the words of messages about them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file, line and key."""


class Node(dict[str, Any]):
    """A mapping that remembers where it was written.

    Args:
        items: what it holds.
        key_path: dotted path from the root.
        sources: "file:line" of each key.
        origin: "file:line" of the mapping itself, which tells where one without keys was written.
    """

    def __init__(
        self,
        items: Mapping[str, Any] | None = None,
        key_path: str = "",
        sources: Mapping[str, str] | None = None,
        origin: str | None = None,
    ) -> None:
        super().__init__(items or {})
        self.key_path = key_path
        self.sources = dict(sources or {})
        self.origin = origin

    def where(self, key: str | None = None) -> str:
        """ "file:line: a.b.key" for messages; without `key`, of the mapping itself."""
        source = self.sources.get(key) if key else self.origin or next(iter(self.sources.values()), None)
        path = ".".join(p for p in (self.key_path, key) if p)
        return ": ".join(p for p in (source, path) if p) or "configuration"

    def plain(self) -> dict[str, Any]:
        """Nested built-in types only, as stored in a checkpoint."""
        return {key: _plain(value) for key, value in self.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def annotate(value: Any, key_path: str) -> Any:
    """Tell every node inside a value its dotted path from the root, in place."""
    if isinstance(value, Node):
        value.key_path = key_path
        for key in value:
            value[key] = annotate(value[key], f"{key_path}.{key}" if key_path else key)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            value[i] = annotate(item, f"{key_path}.{i}")
    return value


def suggest(word: str, choices: Iterable[str]) -> str:
    """ "; did you mean …?" or the list of valid words."""
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(choices)) or 'none'}"


# What a configuration may have at its top level; `statistics` is what a training adds for its checkpoints.
SECTIONS = ("data", "model", "train", "test", "imports", "statistics")


def require_known_sections(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for a top-level key that nothing reads, which may be a misspelling of one that counts."""
    for key in settings:
        if key not in SECTIONS:
            where = settings.where(key) if isinstance(settings, Node) else key
            raise ConfigError(f"{where}: a configuration has no such section{suggest(key, SECTIONS)}")


def section(settings: Mapping[str, Any], name: str) -> Node:
    """A top-level section of a configuration. Raises ConfigError when it is missing, or no mapping."""
    value = settings.get(name)
    if value is not None and not isinstance(value, Mapping):
        where = settings.where(name) if isinstance(settings, Node) else name
        raise ConfigError(f"{where}: {name} must be a mapping, got {value!r:.60}")
    if not isinstance(value, Node):
        where = settings.where() if isinstance(settings, Node) else "configuration"
        raise ConfigError(f"{where}: the configuration needs a section {name!r}")
    return value
