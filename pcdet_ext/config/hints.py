"""Whether values from YAML fit the type hints of a signature."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from pcdet_ext.config.nodes import ConfigError
from pcdet_ext.files import expand_path


def described(hint: Any) -> str:
    """A hint in the words of messages."""
    classes = [kind for kind in alternatives(hint) if is_settings_class(kind)]
    if classes:
        return f"a mapping of {', '.join(key for kind in classes for key in inspect.signature(kind).parameters)}"
    if inspect.isclass(hint) and not typing.get_args(hint):
        return hint.__name__
    return re.sub(r"(typing|collections\.abc|pathlib)\.", "", str(hint))


def is_settings_class(hint: Any) -> bool:
    """Whether a hint is a data class, which a mapping in a configuration is made into."""
    return inspect.isclass(hint) and is_dataclass(hint)


def with_paths(value: Any, hint: Any, where: str) -> Any:
    """A value with `~` and `$NAME` replaced in each text for which the hint names `Path`.

    Args:
        value: a YAML value that fits the hint.
        hint: the type hint.
        where: what messages begin with.

    Raises:
        ConfigError: a name is not set.
    """
    options = alternatives(hint)
    if isinstance(value, str):
        return expanded(value, where) if Path in options else value
    if isinstance(value, (list, tuple)):
        for option in options:
            hints = _item_hints(option, len(value))
            if any(Path in alternatives(inner) for inner in hints) and fits(value, option):
                return [with_paths(item, inner, where) for item, inner in zip(value, hints, strict=True)]
    return value


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint alone."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _item_hints(hint: Any, length: int) -> tuple[Any, ...]:
    """What a hint for lists says of each of `length` items; nothing where it is none, or does not say it."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and arguments[-1] is not ...:
        return arguments if len(arguments) == length else ()
    return arguments[:1] * length


def expanded(path: str | Path, where: str) -> Path:
    """A path with `~` and `$NAME` replaced. Raises ConfigError, beginning with `where`, for names that are not set."""
    try:
        return expand_path(path)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}" if where != str(path) else str(error)) from error


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value may be what a hint asks for."""
    return not mismatch(value, hint)


def mismatch(value: Any, hint: Any) -> bool:
    """Whether a YAML value certainly does not fit a hint; unknown hints fit everything."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return all(mismatch(value, h) for h in arguments)
    if origin is typing.Literal:
        return value not in arguments
    if hint is type(None):
        return value is not None
    if hint is float:
        return isinstance(value, bool) or not isinstance(value, (int, float))
    if hint is int:
        return isinstance(value, bool) or not isinstance(value, int)
    if hint in (bool, str):
        return not isinstance(value, hint)
    if hint is Path:
        return not isinstance(value, (str, Path))
    if is_settings_class(hint):
        return not isinstance(value, (Mapping, hint))
    kind = origin if inspect.isclass(origin) else hint if inspect.isclass(hint) else object
    if issubclass(kind, Mapping):
        return not isinstance(value, Mapping)
    if issubclass(kind, Iterable) and kind.__module__ in ("builtins", "collections.abc"):
        return _mismatch_of_list(value, kind, arguments)
    return False


def _mismatch_of_list(value: Any, kind: type, arguments: tuple[Any, ...]) -> bool:
    """The same for hints of collections; a text is none, though Python would take it for a list of its letters."""
    if not isinstance(value, (list, tuple)):
        return True
    if kind is tuple and arguments and arguments[-1] is not ...:
        return len(value) != len(arguments) or any(map(mismatch, value, arguments))
    return bool(arguments) and any(mismatch(item, arguments[0]) for item in value)
