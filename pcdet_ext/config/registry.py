"""Classes that a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pcdet_ext.config.construction import construct
from pcdet_ext.config.nodes import ConfigError, Node, suggest

Entry = TypeVar("Entry", bound=Callable[..., Any])


class Registry:
    """Classes of one kind (encoder, head, …) by name.

    A name belongs to one class. A class of the same module and qualified name takes the place of the earlier one, so
    that a module can be reloaded.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Callable[..., Any]] = {}

    def register(self, entry: Entry) -> Entry:
        """Decorator: make a class buildable under its own name. Raises ValueError when another class has the name."""
        name = _names(entry)[0]
        before = self._entries.get(name)
        if before is not None and _names(before) != _names(entry):
            raise ValueError(f"two {self.kind} classes are named {name!r}: {_names(before)[1]}, {_names(entry)[1]}")
        self._entries[name] = entry
        return entry

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def get(self, name: str) -> Callable[..., Any]:
        """The class registered under a name. Raises ConfigError, with the nearest one, when there is none."""
        if name not in self._entries:
            raise ConfigError(f"no {self.kind} is named {name!r}{suggest(str(name), self._entries)}")
        return self._entries[name]

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._entries)

    def build(self, node: Any, **context: Any) -> Any:
        """Build the component that `node` names; see `construct`."""
        if not isinstance(node, Mapping):
            raise ConfigError(f"{self.kind}: expected a mapping with name: and arguments, got {node!r}")
        node = node if isinstance(node, Node) else Node(node)
        name = node.get("name")
        if name is None:
            raise ConfigError(f"{node.where()}: {self.kind} needs a name: {', '.join(self.names())}")
        if not isinstance(name, str):
            raise ConfigError(f"{node.where('name')}: {self.kind}: the name must be text, got {name!r}")
        if name not in self._entries:
            raise ConfigError(
                f"{node.where('name')}: no {self.kind} is named {name!r}{suggest(str(name), self._entries)}"
            )
        return construct(self._entries[name], node, **context)


def _names(entry: Callable[..., Any]) -> tuple[str, str]:
    """The name of a class or function, and the one that says where it is defined."""
    short, qualified = (str(getattr(entry, key, entry)) for key in ("__name__", "__qualname__"))
    return short, f"{entry.__module__}.{qualified}"
