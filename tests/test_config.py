"""Configurations: inheritance, overrides, and errors that name file, line, key and the nearest valid spelling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pcdet_ext import config
from pcdet_ext.config import ConfigError, Node, Registry


@dataclass
class Encoder:
    """A component with the kinds of arguments that components have."""

    channels: list[int]
    in_channels: int
    rate: float = 0.5
    mode: Literal["mean", "max"] = "mean"
    size: tuple[float, float, float] = (1.0, 1.0, 1.0)
    norm: bool = True
    limit: int | None = None

    def __post_init__(self) -> None:
        if not self.channels:
            raise ValueError("channels must not be empty")


@pytest.fixture
def registry() -> Registry:
    entries = Registry("encoder")
    entries.register(Encoder)
    return entries


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_values_are_read_as_yaml_1_2_numbers(tmp_path: Path) -> None:
    node = config.load(write(tmp_path / "a.yaml", "train: {rate: 1e-3, decay: 5E+2, name: 1e, n: 3}"))
    assert node["train"] == {"rate": 1e-3, "decay": 500.0, "name": "1e", "n": 3}


def test_bases_merge_key_by_key_and_lists_replace(tmp_path: Path) -> None:
    write(tmp_path / "base/data.yaml", "data: {root: a, classes: [Car, Van]}\nmodel: {voxel_size: [1, 1, 1]}")
    write(tmp_path / "base/more.yaml", "train: {epochs: 3}")
    text = "_base_: [base/data.yaml, base/more.yaml]\ndata: {classes: [Car]}\n"
    node = config.load(write(tmp_path / "a.yaml", text))
    assert node.plain() == {
        "data": {"root": "a", "classes": ["Car"]},
        "model": {"voxel_size": [1, 1, 1]},
        "train": {"epochs": 3},
    }


def test_another_component_does_not_inherit_the_arguments_of_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "encoder: {name: A, channels: 3}\nhead: {name: H, size: 1}\nbox: {a: 1}")
    text = "_base_: base.yaml\nencoder: {name: B, depth: 2}\nhead: {size: 2}\nbox: {_replace_: true, b: 2}"
    node = config.load(write(tmp_path / "a.yaml", text))
    assert node == {"encoder": {"name": "B", "depth": 2}, "head": {"name": "H", "size": 2}, "box": {"b": 2}}


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "data: {augment: [{name: Flip, p: 1}]}\ntrain: {epochs: 3}")
    node = config.load(path, ["train.epochs=5", "data.augment.0.p=0.25", "train.tags=[a, b]", "data.root=/x=y"])
    assert node.plain() == {
        "data": {"augment": [{"name": "Flip", "p": 0.25}], "root": "/x=y"},
        "train": {"epochs": 5, "tags": ["a", "b"]},
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "write key.path=value"),
        ("trian.epochs=3", "no key 'trian'; did you mean 'train'"),
        ("train.epochs.x=3", "train.epochs is no mapping"),
        ("data.augment.4.p=3", "no position in a list of 1"),
        ("train.epochs=[1", "override 'train.epochs=\\[1'"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, message: str) -> None:
    path = write(tmp_path / "a.yaml", "data: {augment: [{name: Flip}]}\ntrain: {epochs: 3}")
    with pytest.raises(ConfigError, match=message):
        config.load(path, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {channels: [1], chanels: [2]}", r"a.yaml:1: model.chanels: .*did you mean 'channels'"),
        ("model:\n  name: Encodr\n", r"a.yaml:2: model.name: no encoder is named 'Encodr'; did you mean 'Encoder'"),
        ("model:\n  channels: 8", r"a.yaml:2: model.channels: expected list\[int\], got 8"),
        ("model: {channels: [1, x]}", r"model.channels: expected list\[int\]"),
        ("model: {channels: [1], rate: fast}", "model.rate: expected float, got 'fast'"),
        ("model: {channels: [1], norm: 1}", "model.norm: expected bool, got 1"),
        ("model: {channels: [1], mode: sum}", "model.mode: expected .*mean.*max.*, got 'sum'"),
        ("model: {channels: [1], size: [1, 2]}", "model.size: expected .*, got \\[1, 2\\]"),
        ("model: {channels: [1], limit: 1.5}", "model.limit: expected .*, got 1.5"),
        ("model: {rate: 0.5}", r"a.yaml:1: model: Encoder needs 'channels'"),
        ("model: {channels: []}", "a.yaml:1: model: Encoder: channels must not be empty"),
        ("model: {a: 1, a: 2}", "a.yaml:1: key 'a' stands twice"),
        ("model: {1: 2}", "keys must be text"),
        ("- 1", "a.yaml: a configuration must be a mapping"),
        ("_base_: nowhere.yaml", "nowhere.yaml: no such configuration file \\(a _base_ of .*a.yaml"),
        ("_base_: a.yaml", "inherits from itself"),
        ("model: [", "a.yaml"),
        ("model: !!python/object/apply:os.system [echo]", "a.yaml"),
    ],
)
def test_errors_name_file_line_and_key(tmp_path: Path, registry: Registry, text: str, message: str) -> None:
    path = write(tmp_path / "a.yaml", text)

    def build() -> None:
        node = config.load(path)["model"]
        node.setdefault("name", "Encoder")
        registry.build(node, in_channels=4)

    with pytest.raises(ConfigError, match=message):
        build()


def test_context_fills_what_the_signature_takes(registry: Registry) -> None:
    node = Node({"name": "Encoder", "channels": [8], "rate": 1, "limit": None})
    built = registry.build(node, in_channels=4, grid=(1, 2, 3))
    assert built == Encoder([8], in_channels=4, rate=1)


def test_a_component_must_be_a_named_mapping(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="encoder needs a name: Encoder"):
        registry.build(Node({"channels": [1]}))
    with pytest.raises(ConfigError, match="expected a mapping"):
        registry.build("Encoder")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("abc xyz0_.:-", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=4), PLAIN, max_size=4))
def test_what_is_dumped_is_loaded(tmp_path_factory: pytest.TempPathFactory, items: dict) -> None:
    path = tmp_path_factory.mktemp("yaml") / "a.yaml"
    path.write_text(yaml.safe_dump(items))
    assert config.load(path).plain() == items
    assert config.from_plain(items, "checkpoint").plain() == items
