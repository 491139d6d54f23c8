"""YAML text to nodes: the safe loader's rules, with files and lines, and the overrides "a.b=value"."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, TextIO

import yaml

from pcdet_ext.config.nodes import SECTIONS, ConfigError, Node, suggest

OVERRIDE = "override "  # how the source of a key begins that an override has set


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


def apply_overrides(root: Node, overrides: Iterable[str]) -> None:
    """Change a tree by texts `a.b=value`, one after the other. Raises ConfigError for one that cannot be followed.

    Raises TypeError for anything but texts.
    """
    if isinstance(overrides, str) or not isinstance(overrides, Iterable):
        raise TypeError(f"overrides must be a list of texts such as ['train.epochs=3'], got {overrides!r:.60}")
    for text in overrides:
        if not isinstance(text, str):
            raise TypeError(f"overrides must be texts such as 'train.epochs=3', got {text!r:.60} among them")
        _override(root, text)


def parse(stream: TextIO | str, name: str) -> Any:
    """One YAML document by the safe loader's rules; `name` is what messages call it."""
    loader = _Loader(stream)
    loader.name = name
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def one_line(error: Exception) -> str:
    """The message of an error that may have several lines, as those of PyYAML."""
    return " ".join(str(error).split())


def _override(root: Node, text: str) -> None:
    key_path, equals, value = text.partition("=")
    keys = key_path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{OVERRIDE}{text!r}: write key.path=value")
    try:
        parsed = parse(value, f"{OVERRIDE}{text!r}")
    except yaml.YAMLError as error:
        raise ConfigError(f"{OVERRIDE}{text!r}: {one_line(error)}") from error
    node: Any = root
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise ConfigError(f"{OVERRIDE}{text!r}: {key!r} is no position in a list of {len(node)}")
            if last:
                node[int(key)] = parsed
            node = node[int(key)]
        elif isinstance(node, Node):
            if last:
                node[key], node.sources[key] = parsed, f"{OVERRIDE}{text!r}"
            elif key not in node:
                _begin_mapping(node, key, text, is_root=depth == 0)
            node = node[key]
        else:
            raise ConfigError(f"{OVERRIDE}{text!r}: {'.'.join(keys[:depth])} is no mapping")


def _begin_mapping(node: Node, key: str, text: str, is_root: bool) -> None:
    """A mapping that no file has, for the override that sets its first key. Raises ConfigError for a misspelt one.

    Whether its owner takes such a mapping, and which keys it needs, is found when the owner is built.
    """
    sections = SECTIONS if is_root and any(name in node for name in SECTIONS) else ()
    misspelt = difflib.get_close_matches(key, node, n=1, cutoff=0.6)
    if key not in sections and (sections or misspelt):
        raise ConfigError(f"{OVERRIDE}{text!r}: no key {key!r}{suggest(key, {*node, *sections})}")
    node[key], node.sources[key] = Node(origin=f"{OVERRIDE}{text!r}"), f"{OVERRIDE}{text!r}"
