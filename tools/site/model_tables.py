"""Tables of configurations, made from the files themselves: a page says which with `<!-- configurations: kitti/* -->`.

The line after such a marker is for those who read the page without the site; the table takes its place.
The comment at the head of a configuration says what it is and what was published with it; this is where both come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import pcdet_ext
from pcdet_ext import config

MARKER = re.compile(r"^<!-- (configurations|details): (.+?) -->$(?:\n(\*.+\*)$)?", re.MULTILINE)
NOTES = {
    "configurations": "A table of {} is filled in here on the site, which `make docs` builds in a checkout.",
    "details": "What {} say at their heads, and their settings, are filled in here on the site.",
}
HEAD = "| configuration | published | parameters | data | encoder | backbone | on the map | head |"
RULE = "|" + "---|" * 8


@dataclass(frozen=True)
class Model:
    """What a table says of a configuration.

    name: as `build` takes it; file: relative to the project; about: the comment at its head; data, encoder, backbone,
    bev, head: names of the parts, empty where there is none; settings: what the page lists beside; parameters: their
    number.
    """

    name: str
    file: str
    about: str
    data: str
    encoder: str
    backbone: str
    bev: str
    head: str
    settings: Mapping[str, str]
    parameters: int

    @property
    def published(self) -> str:
        """What the head of the file says was published; empty where nothing was."""
        found = re.findall(r"Published(?: on the validation frames)?(?:, ([^:]*))?: ((?:[^.]|\.\d)+)\.", self.about)
        return "; ".join(f"{result} ({how})" if how else result for how, result in found)


def fill(text: str, folder: str) -> str:
    """The text of a page with its tables filled in; folder: from the page to the project's root, as "../.."."""

    def table(match: re.Match[str]) -> str:
        models = [model(name) for name in named(match[2].split())]
        return rows(models, folder) if match[1] == "configurations" else details(models, folder)

    return MARKER.sub(table, text)


def note(kind: str, patterns: Sequence[str]) -> str:
    """The line that stands in a page beside its marker: which files the table is made from."""
    files = [f"`configs/{pattern}.yaml`" for pattern in patterns]
    return f"*{NOTES[kind].format(' and '.join(filter(None, (', '.join(files[:-1]), files[-1]))))}*"


def named(patterns: Iterable[str]) -> list[str]:
    """Configurations that come with the library and fit one of the patterns, pattern after pattern.

    Raises ValueError for a pattern that fits none.
    """
    found: list[str] = []
    for pattern in patterns:
        fitting = [name for name in pcdet_ext.list_models() if fnmatchcase(name, pattern)]
        if not fitting:
            raise ValueError(f"no configuration is named {pattern}")
        found += [name for name in fitting if name not in found]
    return found


@cache
def model(name: str) -> Model:
    """Read a configuration and build its model to count the parameters."""
    path = config.find(name)
    node = config.load(name)
    parts = node["model"]
    return Model(
        name,
        f"configs/{name}.yaml",
        about(path.read_text(encoding="utf-8")),
        str(node["data"].get("name", "")).removesuffix("Dataset"),
        _name(parts.get("encoder")),
        _backbone(parts),
        _name(parts.get("bev_backbone")),
        ", ".join(_name(head) for head in (parts.get("heads") or {"": parts.get("head")}).values()),
        dict(_settings(node)),
        sum(p.numel() for p in pcdet_ext.build(name, device="cpu").model.parameters()),
    )


def about(text: str) -> str:
    """The comment at the head of a configuration, as one paragraph."""
    head = re.match(r"(?:#[^\n]*\n)*", text)
    return " ".join(line.lstrip("# ") for line in (head[0] if head else "").splitlines())


def rows(models: Iterable[Model], folder: str) -> str:
    """A table with a row for each model."""
    lines = [
        f"| [{m.name}]({folder}/{m.file}) | {m.published or '–'} | {m.parameters / 1e6:.2f} M | {m.data} "
        f"| {_code(m.encoder)} | {_code(m.backbone)} | {_code(m.bev)} | {_code(m.head)} |"
        for m in models
    ]
    return "\n".join([HEAD, RULE, *lines])


def details(models: Iterable[Model], folder: str) -> str:
    """A section for each model: what the head of its file says, and its settings."""
    parts = []
    for m in models:
        settings = "\n".join(f"| {key} | {value} |" for key, value in m.settings.items())
        parts.append(f"### {m.name}\n\n{m.about}\n\n| setting | |\n|---|---|\n{settings}\n")
    return "\n".join(parts)


def _settings(node: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    data, parts, train = node["data"], node["model"], node.get("train", {})
    if data.get("classes"):
        yield "classes", ", ".join(map(str, data["classes"]))
    if data.get("point_cloud_range"):
        yield "range (m)", f"`{list(data['point_cloud_range'])}`"
    if parts.get("voxel_size"):
        yield "voxel size x, y, z (m)", f"`{list(parts['voxel_size'])}`"
    backbone = parts.get("backbone")
    if isinstance(backbone, Mapping):
        yield "backbone", f"`{config.from_plain(backbone, 'page').plain()}`"
    for key, title in (("epochs", "epochs"), ("batch_size", "frames per process and step"), ("learning_rate", "rate")):
        if key in train:
            yield title, str(train[key])


def _name(part: Any) -> str:
    return str(part.get("name", "")) if isinstance(part, Mapping) else ""


def _backbone(parts: Mapping[str, Any]) -> str:
    """The backbone's name, with its mixer where one is chosen; a model without parts of its own is one itself."""
    backbone = parts.get("backbone")
    if not isinstance(backbone, Mapping):
        return "" if "encoder" in parts else _name(parts)
    mixer = _name(backbone.get("mixer"))
    return _name(backbone) + (f", {mixer}" if mixer else "")


def _code(text: str) -> str:
    return ", ".join(f"`{part}`" for part in text.split(", ") if part)
