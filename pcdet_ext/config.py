"""YAML configurations whose schema is the signature of the classes they build.

A component is a mapping with `name:` and the keyword arguments of its class. Files inherit with `_base_:` (a path or a
list of paths, relative to the file), a mapping is merged key by key, anything else replaces; `_replace_: true` in a
mapping drops what was inherited. Every error names the file and line, the key, and the nearest valid spelling.

Configurations come with the library, named without their ending ("kitti/demo"). `imports: [my_package.my_mixer]` at the
top level of a file names Python modules that are imported when it is loaded, so that the classes they register can be
used. That runs their code: only load configuration files that you trust. What a checkpoint stores runs nothing.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any, TextIO, TypeVar

import yaml

from pcdet_ext.files import expand_path

T = TypeVar("T")
Entry = TypeVar("Entry", bound=Callable[..., Any])


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
        source = self.sources.get(key) if key else next(iter(self.sources.values()), self.origin)
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


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; mappings become nodes, and 1e-3 is a number as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> Node:
    result = Node(origin=f"{node.start_mark.name}:{node.start_mark.line + 1}")
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        source = f"{key_node.start_mark.name}:{key_node.start_mark.line + 1}"
        if not isinstance(key, str):
            raise ConfigError(f"{source}: keys must be text, got {key!r}")
        if key in result:
            raise ConfigError(f"{source}: key {key!r} stands twice in one mapping")
        result[key] = loader.construct_object(value_node, deep=True)
        result.sources[key] = source
    return result


def _construct_date(loader: _Loader, node: yaml.ScalarNode) -> Any:
    try:
        return loader.construct_yaml_timestamp(node)
    except ValueError as error:
        source = f"{node.start_mark.name}:{node.start_mark.line + 1}"
        raise ConfigError(f"{source}: {node.value} is no date ({error}); quote it where text is meant") from error


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _construct_date)


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
    _override_all(root, overrides)
    _annotate(root, "")
    import_modules(root, found.parent)
    return root


def packaged() -> dict[str, Path]:
    """The configurations that come with the library, by name ("kitti/demo", "datasets/kitti"), sorted."""
    package = Path(__file__).resolve().parent
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
    path = Path(folder, _expanded(name, str(name)))
    if path.exists() and not path.is_dir():
        return path
    known, key = packaged(), str(name).removesuffix(".yaml")
    if key in known:
        return known[key]
    close = difflib.get_close_matches(key.removeprefix("configs/"), known, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"{path}: no such configuration file, nor does one of that name come with the library{hint}")


def import_modules(settings: Mapping[str, Any], folder: str | Path = ".") -> None:
    """Import the modules that the `imports:` of a trusted configuration names. This runs their code.

    Modules that Python finds anyway come first; then those in the folder of the file that names them, in `folder`, and
    in the working directory, which are added to the end of `sys.path`. Raises ConfigError for a module that is not
    there; an error inside a module is raised as it is.
    """
    names, where = _module_names(settings)
    if not names:
        return
    source = Path(getattr(settings, "sources", {}).get("imports", "").rpartition(":")[0])
    folders = [source.parent, Path(folder)] if source.is_file() else [Path(folder)]
    places = list(dict.fromkeys(str(place.resolve()) for place in (*folders, Path.cwd())))
    sys.path += [place for place in places if place not in sys.path]
    importlib.invalidate_caches()
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and f"{name}.".startswith(f"{error.name}."):
                raise ConfigError(f"{where}: there is no module {name!r}, neither in {', '.join(places)}") from error
            raise ConfigError(f"{where}: module {name!r} cannot be imported: {error}") from error


def require_modules(settings: Mapping[str, Any]) -> None:
    """Check that the modules which `imports:` names are imported already, and import none.

    For configurations that come from files which must not run code, as checkpoints. Raises ConfigError otherwise.
    """
    names, where = _module_names(settings)
    for name in names:
        if name not in sys.modules:
            raise ConfigError(
                f"{where}: the module {name!r} is needed and is not imported, because that would run its code. If you "
                f"trust it, import it first or say so (imports=True, or --imports on the command line)"
            )


def _module_names(settings: Mapping[str, Any]) -> tuple[list[str], str]:
    """What `imports:` lists, and where it stands."""
    names = setting(settings, "imports", list[str], [])
    where = settings.where("imports") if isinstance(settings, Node) else "imports"
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
            raise ConfigError(f"{where}: {name!r} is no name of a module; write it as in `import my_package.my_mixer`")
    return names, where


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
        return _checked(node[key], hint, node.where(key) if isinstance(node, Node) else key)
    if default is ...:
        raise ConfigError(f"{node.where() if isinstance(node, Node) else 'configuration'}: {key!r} is missing")
    return default


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
    _override_all(root, overrides)
    _annotate(root, "")
    return root


def _override_all(root: Node, overrides: Iterable[str]) -> None:
    if isinstance(overrides, str) or not isinstance(overrides, Iterable):
        raise TypeError(f"overrides must be a list of texts such as ['train.epochs=3'], got {overrides!r:.60}")
    for text in overrides:
        _override(root, text)


def _parse(stream: TextIO | str, name: str) -> Any:
    """One YAML document by the safe loader's rules; `name` is what messages call it."""
    loader = _Loader(stream)
    loader.name = name
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _read(path: Path, chain: tuple[Path, ...]) -> Node:
    if path.resolve() in chain:
        raise ConfigError(f"{path}: inherits from itself through _base_")
    try:
        with path.open(encoding="utf-8") as stream:
            node = _parse(stream, str(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error
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


def _one_line(error: Exception) -> str:
    """The message of an error that may have several lines, as those of PyYAML."""
    return " ".join(str(error).split())


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


def _override(root: Node, text: str) -> None:
    key_path, equals, value = text.partition("=")
    keys = key_path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {text!r}: write key.path=value")
    try:
        parsed = _parse(value, f"override {text!r}")
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: {_one_line(error)}") from error
    node: Any = root
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise ConfigError(f"override {text!r}: {key!r} is no position in a list of {len(node)}")
            if last:
                node[int(key)] = parsed
            node = node[int(key)]
        elif isinstance(node, Node):
            if last:
                node[key], node.sources[key] = parsed, f"override {text!r}"
            elif key not in node:
                raise ConfigError(f"override {text!r}: no key {key!r}{suggest(key, node)}")
            node = node[key]
        else:
            raise ConfigError(f"override {text!r}: {'.'.join(keys[:depth])} is no mapping")


def _annotate(value: Any, key_path: str) -> Any:
    if isinstance(value, Node):
        value.key_path = key_path
        for key in value:
            value[key] = _annotate(value[key], f"{key_path}.{key}" if key_path else key)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            value[i] = _annotate(item, f"{key_path}.{i}")
    return value


def suggest(word: str, choices: Iterable[str]) -> str:
    """ "; did you mean …?" or the list of valid words."""
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(choices)) or 'none'}"


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
        given[key] = _checked(value, hints.get(key), node.where(key))
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
        raise ConfigError(f"{node.where()}: {title}: {error}") from error
    except RuntimeError as error:
        if type(error) is not RuntimeError:  # damaged data has its own words
            raise
        keys = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise ConfigError(
            f"{node.where()}: {title} cannot be built with {keys or 'its defaults'}: {_one_line(error)}"
        ) from error


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


def _checked(value: Any, hint: Any, where: str) -> Any:
    """A YAML value that fits a hint, its paths expanded. Raises ConfigError, beginning with `where`, for others."""
    _require_finite(value, where)
    if hint is None:
        return value
    if _mismatch(value, hint):
        listed = f"; write [{value}] for a list of one" if isinstance(value, str) and _fits([value], hint) else ""
        raise ConfigError(f"{where}: expected {_described(hint)}, got {value!r}{listed}")
    for kind in _alternatives(hint):
        if isinstance(value, Mapping) and _is_settings_class(kind):
            return construct(kind, value)
    return _with_paths(value, hint, where)


def _described(hint: Any) -> str:
    """A hint in the words of messages."""
    classes = [kind for kind in _alternatives(hint) if _is_settings_class(kind)]
    if classes:
        return f"a mapping of {', '.join(key for kind in classes for key in inspect.signature(kind).parameters)}"
    if inspect.isclass(hint) and not typing.get_args(hint):
        return hint.__name__
    return re.sub(r"(typing|collections\.abc|pathlib)\.", "", str(hint))


def _is_settings_class(hint: Any) -> bool:
    """Whether a hint is a data class, which a mapping in a configuration is made into."""
    return inspect.isclass(hint) and is_dataclass(hint)


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


def _with_paths(value: Any, hint: Any, where: str) -> Any:
    """A value with `~` and `$NAME` replaced in each text for which the hint names `Path`."""
    options = _alternatives(hint)
    if isinstance(value, str):
        return _expanded(value, where) if Path in options else value
    if isinstance(value, (list, tuple)):
        for option in options:
            hints = _item_hints(option, len(value))
            if any(Path in _alternatives(inner) for inner in hints) and _fits(value, option):
                return [_with_paths(item, inner, where) for item, inner in zip(value, hints, strict=True)]
    return value


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint alone."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _item_hints(hint: Any, length: int) -> tuple[Any, ...]:
    """What a hint for lists says of each of `length` items; nothing where it is none, or does not say it."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and arguments[-1] is not ...:
        return arguments if len(arguments) == length else ()
    return arguments[:1] * length


def _expanded(path: str | Path, where: str) -> Path:
    try:
        return expand_path(path)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}" if where != str(path) else str(error)) from error


def _fits(value: Any, hint: Any) -> bool:
    return not _mismatch(value, hint)


def _mismatch(value: Any, hint: Any) -> bool:
    """Whether a YAML value certainly does not fit a hint; unknown hints fit everything."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return all(_mismatch(value, h) for h in arguments)
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
    if _is_settings_class(hint):
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
        return len(value) != len(arguments) or any(map(_mismatch, value, arguments))
    return bool(arguments) and any(_mismatch(item, arguments[0]) for item in value)


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


# What a configuration may have at its top level; `statistics` is what a training adds for its checkpoints.
SECTIONS = ("data", "model", "train", "test", "imports", "statistics")


def require_known_sections(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for a top-level key that nothing reads, which may be a misspelling of one that counts."""
    for key in settings:
        if key not in SECTIONS:
            where = settings.where(key) if isinstance(settings, Node) else key
            raise ConfigError(f"{where}: a configuration has no such section{suggest(key, SECTIONS)}")


def section(settings: Mapping[str, Any], name: str) -> Node:
    """A top-level section of a configuration. Raises ConfigError when it is missing."""
    value = settings.get(name)
    if not isinstance(value, Node):
        where = settings.where() if isinstance(settings, Node) else "configuration"
        raise ConfigError(f"{where}: the configuration needs a section {name!r}")
    return value
