"""Objects from nodes: the keys of a mapping are the arguments of a class, checked against its signature."""

from __future__ import annotations

import inspect
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any, TypeVar

from pcdet_ext.config.hints import alternatives, described, fits, is_settings_class, mismatch, with_paths
from pcdet_ext.config.nodes import ConfigError, Node, suggest
from pcdet_ext.config.text import OVERRIDE, one_line

T = TypeVar("T")


def setting(node: Mapping[str, Any], key: str, hint: Any, default: Any = ...) -> Any:
    """One setting that no class takes as an argument, checked against a type hint as an argument would be.

    Args:
        node: the mapping that holds it.
        key: its name there.
        hint: what it must be, for example `Sequence[str]`.
        default: what it is where it is missing; without one it must be there.

    Raises:
        ConfigError: it is missing, or does not fit the hint.
    """
    if key in node:
        return checked(node[key], hint, node.where(key) if isinstance(node, Node) else key)
    if default is ...:
        raise ConfigError(f"{node.where() if isinstance(node, Node) else 'configuration'}: {key!r} is missing")
    return default


def construct(factory: Callable[..., T], node: Mapping[str, Any], **context: Any) -> T:
    """Call `factory` with the node's keys (but `name`) as keyword arguments.

    `context` holds what the caller knows (channels, grid, …): passed where the signature takes it and the node does
    not say otherwise.
    Raises ConfigError for unknown, missing or ill-typed keys, and for a ValueError or TypeError of the factory, or a
    RuntimeError, with which torch refuses sizes that no tensor can have. What the factory built from settings of its
    own, which stand in no file, is refused as a part of this node.
    """
    node = node if isinstance(node, Node) else Node(node)
    parameters = inspect.signature(factory).parameters
    hints = _hints(factory)
    title = node.get("name", getattr(factory, "__name__", "component"))
    given = {}
    for key, value in node.items():
        if key == "name":
            continue
        if key not in parameters:
            open_keys = [p for p in parameters if p not in context]
            raise ConfigError(f"{node.where(key)}: {title} has no such key{suggest(key, open_keys)}")
        given[key] = checked(value, hints.get(key), node.where(key))
    arguments = {k: v for k, v in context.items() if k in parameters} | given
    missing = [k for k, p in parameters.items() if _required(p) and k not in arguments]
    if missing:
        raise ConfigError(f"{node.where()}: {title} needs {', '.join(map(repr, missing))}")
    try:
        return factory(**arguments)
    except ConfigError as error:
        nowhere, inner = Node({}).where(), str(error)
        if not inner.startswith(f"{nowhere}: ") or node.where() == nowhere:
            raise
        raise ConfigError(f"{node.where()}: {title}: {inner.removeprefix(f'{nowhere}: ')}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{node.where(_key_at_fault(node, str(error)))}: {title}: {error}") from error
    except RuntimeError as error:
        if type(error) is not RuntimeError:  # damaged data has its own words
            raise
        keys = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise ConfigError(
            f"{node.where()}: {title} cannot be built with {keys or 'its defaults'}: {one_line(error)}"
        ) from error


@contextmanager
def errors_name_overrides(settings: Node) -> Iterator[None]:
    """Let errors say which overrides the settings were read with, where they are not about one of them.

    What an override sets is often found wrong elsewhere: classes that it leaves out are named by the anchors of a head.
    """
    try:
        yield
    except ConfigError as error:
        made = list(dict.fromkeys(_overrides(settings)))
        if not made or any(override in str(error) for override in made):
            raise
        raise ConfigError(f"{error} (with {', '.join(made)})") from error


def _overrides(value: Any) -> Iterator[str]:
    """The overrides that set something in a tree, as its sources name them."""
    if isinstance(value, Node):
        yield from (source for source in value.sources.values() if source.startswith(OVERRIDE))
        yield from (found for inner in value.values() for found in _overrides(inner))


def _key_at_fault(node: Node, message: str) -> str | None:
    """The key that an error of a class is about: of those it names, one that an override has set, or the first."""
    named = {key: re.search(rf"\b{re.escape(key)}\b", message) for key in node if key != "name"}
    places = {key: found.start() for key, found in named.items() if found}
    changed = [key for key in places if node.sources.get(key, "").startswith(OVERRIDE)]
    return min(changed or places, key=places.__getitem__, default=None)


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_KEYWORD,
        parameter.VAR_POSITIONAL,
    )


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    # A dataclass inherits fields whose hints need names of other modules; asked as a class, it knows these.
    target = factory.__init__ if inspect.isclass(factory) and not is_dataclass(factory) else factory
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError):  # a hint that only a type checker can resolve: no check
        return {}


def checked(value: Any, hint: Any, where: str) -> Any:
    """A YAML value that fits a hint, its paths expanded.

    Args:
        value: what was read.
        hint: the type hint; None fits everything.
        where: what messages begin with, as "file:line: a.b.key".

    Raises:
        ConfigError: the value does not fit, or is not finite.
    """
    _require_finite(value, where)
    if hint is None:
        return value
    if mismatch(value, hint):
        listed = f"; write [{value}] for a list of one" if isinstance(value, str) and fits([value], hint) else ""
        raise ConfigError(f"{where}: expected {described(hint)}, got {value!r}{listed}")
    for kind in alternatives(hint):
        if isinstance(value, Mapping) and is_settings_class(kind):
            return construct(kind, value)
    return with_paths(value, hint, where)


def _require_finite(value: Any, where: str) -> None:
    """Refuse NaN and infinity in a value, however deep: comparisons with NaN are false, so range checks miss it."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _require_finite(item, value.where(key) if isinstance(value, Node) else f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _require_finite(item, f"{where}.{i}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: must be a finite number, got {value}")
