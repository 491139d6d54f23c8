"""The page about training: its commands run, and its tables list all settings with their defaults."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from custom_folder import make_folder

from pcdet_ext import checkpoint
from pcdet_ext.cli.command import main
from pcdet_ext.config import Node, construct
from pcdet_ext.data.base import FrameDataset
from pcdet_ext.engine.settings import TrainConfig

SMALL = (
    "model.bev_backbone.layer_nums=[1, 1, 1]",
    "model.bev_backbone.num_filters=[16, 16, 32]",
    "model.bev_backbone.num_upsample_filters=[16, 16, 16]",
    "train.num_workers=0",
    "test.num_workers=0",
)


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "training.md").read_text(encoding="utf-8")


def rows(page: str, heading: str) -> dict[str, str]:
    """Keys of the table after a heading, with their defaults."""
    found = re.findall(r"^\| `(\w+)` \| (.*?) ?\|", page[page.index(heading) :].split("\n\n")[2], re.MULTILINE)
    return dict(found)


def written(value: Any) -> str:
    """A default as the page writes it."""
    if value is dataclasses.MISSING:
        return ""
    if value is None:
        return "none"
    return str(list(value) if isinstance(value, tuple) else value).replace("False", "false")


def test_all_settings_are_on_the_page_with_their_defaults(page: str) -> None:
    assert rows(page, "## All settings") == {f.name: written(f.default) for f in dataclasses.fields(TrainConfig)}
    data = {f.name: f for f in dataclasses.fields(FrameDataset)}
    for key, default in rows(page, "Which frames are drawn").items():
        own = data[key]
        assert default == written(own.default if own.default_factory is dataclasses.MISSING else own.default_factory())


def test_settings_on_the_page_can_be_read(page: str) -> None:
    for text in re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        for content in yaml.safe_load_all(text):
            if "train" in content:
                nested = {key: Node(value, f"train.{key}") for key, value in content["train"].items()}
                construct(TrainConfig, Node({"epochs": 1, **nested}, "train"))


def test_the_commands_on_the_page_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those for one process on the folder of one's own clouds; with a smaller model."""
    make_folder(tmp_path / "my_data", 6, ".bin", "intensity_scale: 255\npoint_features: [x, y, z, intensity]\n")
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "custom", "--root", "my_data"]) == 0
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("pcdet ")]
    assert [words[1] for words in lines] == ["train", "train", "test", "train", "train", "train", "train"]
    for _, command, *rest in lines:
        assert main([command, *rest, *(SMALL if command == "train" else SMALL[-1:]), "--device", "cpu"]) == 0
    shown = capsys.readouterr().err
    assert "best score" in shown
    assert "parameters and buffers taken" in shown
    assert "train.freeze: " in shown
    assert "ema" in checkpoint.read("runs/averaged/best.ckpt")
    assert {path.name for path in Path("runs/first").iterdir()} >= {"last.ckpt", "train.csv", "test.csv", "log.jsonl"}
