"""The page about segmentation: its commands are commands, and its settings are complete."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml

from pcdet_ext.cli.command import COMMANDS
from pcdet_ext.data.formats import BENCHMARKS, FRAME_SOURCES
from pcdet_ext.data.semantickitti import CLASSES, LabelMap
from pcdet_ext.data.simulation.layouts import SIMULATIONS
from pcdet_ext.models.heads import HEADS


def test_the_page_agrees_with_the_library(root: Path) -> None:
    page = (root / "docs" / "segmentation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line) for language, text in blocks if language == "sh" for line in text.splitlines()]
    assert {words[1] for words in commands if words[0] == "pcdet"} <= set(COMMANDS)
    assert all((root / words[1]).is_file() for words in commands if words[0] == "python")
    assert all("semantickitti" in registry for registry in (FRAME_SOURCES, BENCHMARKS, SIMULATIONS))
    for name in re.findall(r"configs/semantickitti/\w+\.yaml", page):
        assert (root / name).is_file()
    settings = [yaml.safe_load(text.replace("…", "x: 1")) for language, text in blocks if language == "yaml"]
    data, model = settings[0]["data"], settings[1]["model"]
    label_map = LabelMap.of(data["label_ids"], data["ignored_ids"], data["things"])
    assert set(data["classes"]) < set(label_map.classes)
    listed = {number for ids in data["label_ids"].values() for number in ids} | set(data["ignored_ids"])
    assert listed == {number for ids in CLASSES.values() for number in ids} | {0, 1, 52, 99}
    assert model["head"]["name"] in HEADS
