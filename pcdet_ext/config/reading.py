"""Configurations from files with their bases, from the library by name, and from what a checkpoint stores."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from pcdet_ext.config.hints import expanded
from pcdet_ext.config.modules import import_modules
from pcdet_ext.config.nodes import ConfigError, Node, annotate
from pcdet_ext.config.text import apply_overrides, one_line, parse


def load(path: str | Path, overrides: Iterable[str] = ()) -> Node:
    """Read a YAML file with its bases, apply overrides "a.b=value" (values are YAML), and import what `imports:` names.

    Args:
        path: a file, or the name of a configuration that comes with the library, as "kitti/demo"; a file wins.
        overrides: changes of single keys.

    Raises:
        ConfigError: a file is missing or no mapping, an override is malformed, or a module cannot be imported.
    """
    found = find(path)
    root = _read(found, ())
    apply_overrides(root, overrides)
    annotate(root, "")
    import_modules(root, found.parent)
    return root


def packaged() -> dict[str, Path]:
    """The configurations that come with the library, by name ("kitti/demo", "datasets/kitti"), sorted."""
    package = Path(__file__).resolve().parent.parent
    installed, checkout = package / "configs", package.parent / "configs"
    folder = installed if installed.is_dir() else checkout
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that come with the library, as `build` and `pcdet train` take them, sorted.

    pattern: which ones, with the wildcards `*`, `?` and `[…]` ("*mamba*", "kitti/*").
    """
    return [name for name in packaged() if not name.startswith("datasets/") and fnmatchcase(name, pattern)]


def require_path(path: object) -> None:
    """Raises TypeError for what is no text or path."""
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"path must be a text or a path, got {path!r:.60}")


def find(name: str | Path, folder: str | Path = "") -> Path:
    """The file of a configuration: a path (relative to `folder`), or the name of one that comes with the library.

    The ending ".yaml" of a name can be left out, and a file that exists wins over a name. Raises ConfigError, with the
    nearest name, when there is neither, and TypeError for what is no text or path.
    """
    require_path(name)
    path = Path(folder, expanded(name, str(name)))
    if path.exists() and not path.is_dir():
        return path
    known, key = packaged(), str(name).removesuffix(".yaml")
    if key in known:
        return known[key]
    close = difflib.get_close_matches(key.removeprefix("configs/"), known, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"{path}: no such configuration file, nor does one of that name come with the library{hint}")


def from_plain(items: Mapping[str, Any], source: str, overrides: Iterable[str] = ()) -> Node:
    """A tree of nodes from built-in types, such as the configuration that a checkpoint holds.

    Args:
        items: the configuration, mappings and lists inside it included.
        source: what messages name as the place where its keys were written.
        overrides: changes in the form `a.b=value`, which are made afterwards.

    Raises:
        ConfigError: an override is malformed or names a key that cannot be set.
    """

    def convert(value: Any) -> Any:
        if isinstance(value, Mapping):
            return Node({k: convert(v) for k, v in value.items()}, sources=dict.fromkeys(value, source))
        return [convert(v) for v in value] if isinstance(value, (list, tuple)) else value

    root: Node = convert(items)
    apply_overrides(root, overrides)
    annotate(root, "")
    return root


def _read(path: Path, chain: tuple[Path, ...]) -> Node:
    if path.resolve() in chain:
        raise ConfigError(f"{path}: inherits from itself through _base_")
    try:
        with path.open(encoding="utf-8") as stream:
            node = parse(stream, str(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {one_line(error)}") from error
    if not isinstance(node, Node):
        raise ConfigError(f"{path}: a configuration must be a mapping, got {type(node).__name__}")
    bases = node.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: _base_ must be a file or a list of files, got {bases!r}")
    result = Node()
    for base in bases:
        result = _merge(result, _read(_find_base(base, path), (*chain, path.resolve())))
    return _merge(result, node)


def _find_base(base: str, path: Path) -> Path:
    try:
        return find(base, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{error} (a _base_ of {path})") from None


def _merge(old: Node, new: Node) -> Node:
    result = Node(old, sources=old.sources, origin=new.origin)
    if new.pop("_replace_", False):
        result = Node(origin=new.origin)
    for key, value in new.items():
        result[key] = _merge(_inherited(result.get(key), value), value) if isinstance(value, Node) else value
        result.sources[key] = new.sources[key]
    return result


def _inherited(before: Any, value: Node) -> Node:
    """What a mapping inherits from the one before it: nothing where it names another class, or where there is none."""
    if not isinstance(before, Node) or value.get("name") not in (None, before.get("name", value.get("name"))):
        return Node()
    return before
