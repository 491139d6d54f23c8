"""Configurations: inheritance, overrides, and errors that name file, line, key and the nearest valid spelling."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pcdet_ext import config
from pcdet_ext.config import ConfigError, Node, Registry
from pcdet_ext.models.detector import build_detector


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
        ("foo.epochs=3", "no key 'foo'; known: data, imports, model, statistics, test, train"),
        ("tst.batch_size=3", "no key 'tst'; did you mean 'test'"),
        ("data.augmnt.0.p=3", "no key 'augmnt'; did you mean 'augment'"),
        ("train.epochs.x=3", "train.epochs is no mapping"),
        ("data.augment.4.p=3", "no position in a list of 1"),
        ("train.epochs=[1", "override 'train.epochs=\\[1'"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, message: str) -> None:
    path = write(tmp_path / "a.yaml", "data: {augment: [{name: Flip}]}\ntrain: {epochs: 3}")
    with pytest.raises(ConfigError, match=message):
        config.load(path, [override])


def test_overrides_begin_sections_that_no_file_has(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "train: {epochs: 3}")
    node = config.load(path, ["train.ema.decay=0.9", "train.ema.warmup=false", "test.batch_size=2"])
    assert node.plain() == {
        "train": {"epochs": 3, "ema": {"decay": 0.9, "warmup": False}},
        "test": {"batch_size": 2},
    }
    assert node["train"]["ema"].where() == "override 'train.ema.decay=0.9': train.ema"


class Options:
    """Settings whose errors name none, one or both of them."""

    def __init__(self, low: float = 0, high: float = 1, unit: str = "m") -> None:
        if unit == "none":
            raise ValueError("there must be something to measure in")
        if low < 0:
            raise ValueError(f"low must be at least 0, got {low}")
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}")


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (["train.low=1", "train.high=0.5"], "override 'train.low=1': train.low: "),
        (["train.unit=cm", "train.high=-1"], "override 'train.high=-1': train.high: "),
        (["train.high=2", "train.low=-1"], "override 'train.low=-1': train.low: "),
        (["train.high=2", "train.unit=none"], "a.yaml:2: train: "),
    ],
)
def test_an_error_names_the_override_that_it_is_about(tmp_path: Path, overrides: list[str], place: str) -> None:
    path = write(tmp_path / "a.yaml", "train:\n  {low: 0.25}")
    with pytest.raises(ConfigError, match=f"{re.escape(place)}Options: "):
        config.construct(Options, config.load(path, overrides)["train"])


def test_errors_elsewhere_say_which_overrides_there_are() -> None:
    """The anchors of a head are wrong in no file, but for classes that an override has set."""
    overrides = ["data.classes=[Car]", "model.head.score_threshold=0.2"]
    added = re.escape("known: Car (with override 'data.classes=[Car]', override 'model.head.score_threshold=0.2')")
    with pytest.raises(ConfigError, match=rf"second\.yaml:\d+: model\.head\.anchors: .*'Pedestrian'; {added}$"):
        build_detector(config.load("kitti/second", overrides))
    with pytest.raises(ConfigError, match=r"; known: Car$"):
        build_detector(config.from_plain(config.load("kitti/second", overrides[:1]).plain(), "checkpoint"))


@pytest.mark.parametrize("value", ["[]", "3", "text"])
def test_sections_that_are_no_mappings(value: str) -> None:
    settings = config.load("kitti/second", [f"data={value}"])
    with pytest.raises(
        ConfigError, match=rf"^override {re.escape(repr(f'data={value}'))}: data: data must be a mapping"
    ):
        config.section(settings, "data")


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
        ("model: {channels: []}", "a.yaml:1: model.channels: Encoder: channels must not be empty"),
        ("model: {a: 1, a: 2}", "a.yaml:1: key 'a' stands twice"),
        ("model: {1: 2}", "keys must be text"),
        ("- 1", "a.yaml: a configuration must be a mapping"),
        ("_base_: nowhere.yaml", "nowhere.yaml: no such configuration file.*\\(a _base_ of .*a.yaml"),
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


def test_configurations_that_come_with_the_library_have_names(root: Path) -> None:
    for name in ("kitti/demo", "kitti/demo.yaml", "lion/nuscenes_mamba", "datasets/kitti"):
        path = root / "configs" / name
        assert config.find(name) == path.with_suffix(".yaml")
    names = config.list_models()
    files = {p.relative_to(root / "configs").with_suffix("").as_posix() for p in root.glob("configs/*/*.yaml")}
    assert set(names) == {name for name in files if not name.startswith("datasets/")}
    assert names == sorted(names)
    assert config.list_models("*mamba*") == [name for name in names if "mamba" in name]
    assert config.list_models("nothing*") == []


def test_a_file_wins_over_a_name_and_bases_may_be_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kitti").mkdir()
    assert config.load("kitti/demo")["model"]
    write(tmp_path / "kitti/demo.yaml", "mine: 1")
    assert config.load("kitti/demo.yaml") == {"mine": 1}
    assert config.load("kitti/demo")["model"]  # no file is called so
    node = config.load(write(tmp_path / "a.yaml", "_base_: kitti/pointpillars\ntrain: {epochs: 7}"))
    assert node["train"]["epochs"] == 7
    assert node["data"]["name"] == "KittiDataset"


@pytest.mark.parametrize(
    ("name", "near"), [("kitti/dmeo", "kitti/demo"), ("configs/lion/kitti_mamb.yaml", "lion/kitti_mamba")]
)
def test_a_misspelt_name_suggests_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"no such configuration file.*did you mean '{near}'"):
        config.load(name)


def test_a_name_belongs_to_one_class() -> None:
    entries = Registry("mixer")

    def define(module: str) -> type:
        return type("Mine", (), {"__module__": module, "__qualname__": "Mine"})

    first, again = define("one"), define("one")
    entries.register(first)
    entries.register(again)  # as when a module is reloaded: the new class counts
    assert isinstance(entries.build({"name": "Mine"}), again)
    with pytest.raises(ValueError, match=r"two mixer classes are named 'Mine': one\.Mine, two\.Mine"):
        entries.register(define("two"))
    assert isinstance(entries.build({"name": "Mine"}), again)


@pytest.fixture
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no module and no search path of a test behind."""
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setattr("sys.modules", dict(sys.modules))


@pytest.mark.usefixtures("clean_imports")
@pytest.mark.parametrize("place", ["configuration", "working directory", "base"])
def test_imports_load_user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    code, other = tmp_path / "code", tmp_path / "other"
    other.mkdir()
    write(code / "user_mixers/wide.py", "VALUE = 3")
    listing = "imports: [user_mixers.wide]\n"
    if place == "configuration":
        path = write(code / "a.yaml", listing)
    elif place == "base":
        write(code / "base.yaml", listing)
        path = write(other / "a.yaml", f"_base_: {code}/base.yaml\n")
    else:
        monkeypatch.chdir(code)
        path = write(other / "a.yaml", listing)
    config.load(path)
    assert sys.modules["user_mixers.wide"].VALUE == 3


@pytest.mark.usefixtures("clean_imports")
@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("[no_such_module]", r"a\.yaml:2: imports: there is no module 'no_such_module'"),
        ("[needs_another]", r"a\.yaml:2: imports: module 'needs_another' cannot be imported: .*'no_such_module'"),
        ("needs_another", r"a\.yaml:2: imports: expected .*write \[needs_another\]"),
        ("[needs_another.py]", r"a\.yaml:2: imports: 'needs_another\.py' is no name of a module"),
        ("[../up]", r"a\.yaml:2: imports: '\.\./up' is no name of a module"),
        ("[.up]", r"is no name of a module"),
    ],
)
def test_imports_that_fail_name_file_and_key(tmp_path: Path, listed: str, message: str) -> None:
    write(tmp_path / "needs_another.py", "import no_such_module")
    with pytest.raises(ConfigError, match=message):
        config.load(write(tmp_path / "a.yaml", f"model: {{}}\nimports: {listed}"))


@pytest.mark.usefixtures("clean_imports")
def test_an_error_in_user_code_is_raised_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "broken_user_code.py", "1 / 0")
    with pytest.raises(ZeroDivisionError):
        config.load(write(tmp_path / "a.yaml", "imports: [broken_user_code]"))


@dataclass
class Place:
    """A component with paths and lists."""

    root: Path
    index: str | Path | None = None
    more: Sequence[Path] | None = ()
    pair: tuple[str, Path] = ("", Path())
    names: Sequence[str] = ()
    either: str | list[str] = ()
    sizes: tuple[float, ...] = ()
    ways: Iterable[str] | None = None


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="$~/"), min_size=1))
def test_paths_are_expanded_wherever_a_path_is_expected(name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", "/home/me")
        patch.setenv("PLACE", "/data")
        for given_path, expected in (
            (f"~/{name}", f"/home/me/{name}"),
            (f"$PLACE/{name}", f"/data/{name}"),
            (f"${{PLACE}}x/{name}", f"/datax/{name}"),
            (f"/a/{name}", f"/a/{name}"),
        ):
            paths = {"root": given_path, "index": given_path, "more": [given_path] * 2, "pair": [given_path] * 2}
            names = {"names": [given_path], "either": given_path}
            place, path = config.construct(Place, Node(paths | names)), Path(expected)
            assert place == Place(path, path, [path] * 2, [given_path, path], [given_path], given_path)


def test_unknown_users_and_variables_name_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, what in (("$NO_SUCH_VARIABLE/a", "NO_SUCH_VARIABLE"), ("~no_such_user/a", "no_such_user")):
        node = Node({"root": wrong}, "data", {"root": "a.yaml:1"})
        with pytest.raises(ConfigError, match=rf"a\.yaml:1: data\.root: .*{what}"):
            config.construct(Place, node)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$NO_SUCH_VARIABLE").mkdir()  # a folder that is really called so
    assert config.construct(Place, Node({"root": "$NO_SUCH_VARIABLE"})).root == Path("$NO_SUCH_VARIABLE")


@given(st.text(max_size=8), st.sampled_from(["names", "more", "sizes", "ways"]))
def test_a_text_is_no_list(text: str, key: str) -> None:
    """Python takes a text for the list of its letters; a configuration must not."""
    with pytest.raises(ConfigError, match=f"data.{key}: expected"):
        config.construct(Place, Node({"root": "a", key: text}, "data", {key: "override"}))
    assert config.construct(Place, Node({"root": "a", "either": text})).either == text
    with pytest.raises(ConfigError, match="classes: expected"):
        config.setting(Node({"classes": text}), "classes", Sequence[str])


def test_a_text_for_a_list_says_how_to_write_it() -> None:
    node = config.from_plain({"data": {}}, "a.ckpt", ["data.classes=Car"])["data"]
    with pytest.raises(ConfigError, match=r"data\.classes: expected Sequence\[str\], got 'Car'; write \[Car\]"):
        config.setting(node, "classes", Sequence[str])
    with pytest.raises(ConfigError, match="configuration: 'split' is missing"):
        config.setting({}, "split", str)
    assert config.setting({}, "split", str, "val") == "val"


def test_values_that_are_arrays_already_are_no_lists() -> None:
    @dataclass
    class Weights:
        values: np.ndarray

    given_values = np.ones(3)
    assert config.construct(Weights, {"values": given_values}).values is given_values


@given(st.sampled_from([float("nan"), float("inf"), float("-inf")]), st.integers(0, 2))
def test_numbers_are_finite(wrong: float, place: int) -> None:
    """Not a number is below no limit, so a check `x <= 0` alone would let it pass."""
    size = [1.0, 1.0, 1.0]
    size[place] = wrong
    for key, value, path in (("rate", wrong, "rate"), ("size", size, f"size.{place}")):
        node = Node(
            {"channels": [1], "in_channels": 1, key: value}, "model", dict.fromkeys(["rate", "size"], "a.yaml:3")
        )
        with pytest.raises(ConfigError, match=rf"a\.yaml:3: model\.{path}: must be a finite number"):
            config.construct(Encoder, node)
    nested = config.from_plain({"a": {"b": [{"c": wrong}]}}, "a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml: a\.b\.0\.c: must be a finite number"):
        config.setting(nested, "a", dict)


@pytest.mark.parametrize("base", ["5", "[a.yaml, 3]", "{a: 1}"])
def test_a_base_that_is_no_file_is_refused_with_the_file(tmp_path: Path, base: str) -> None:
    path = tmp_path / "child.yaml"
    (tmp_path / "a.yaml").write_text("x: 1\n")
    path.write_text(f"_base_: {base}\n")
    with pytest.raises(ConfigError, match=r"child\.yaml: _base_ must be a file or a list of files"):
        config.load(path)


def test_an_impossible_date_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "dates.yaml"
    path.write_text("y: 2020-12-31\nx: 2020-13-45\n")
    with pytest.raises(ConfigError, match=r"dates\.yaml:2: 2020-13-45 is no date"):
        config.load(path)
    path.write_text("y: 1\n")
    with pytest.raises(ConfigError, match="2020-13-45 is no date"):
        config.load(path, ["x=2020-13-45"])


@pytest.mark.parametrize("name", [[1], {"a": 1}])
def test_a_name_of_a_component_must_be_text(name: object) -> None:
    with pytest.raises(ConfigError, match="encoder: the name must be text"):
        Registry("encoder").build({"name": name})


def test_a_mapping_without_keys_says_where_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model:\n  head:\n    anchors:\n    - {}\n")
    settings = config.load(tmp_path / "a.yaml")
    assert settings["model"]["head"]["anchors"][0].where() == f"{tmp_path}/a.yaml:4: model.head.anchors.0"
