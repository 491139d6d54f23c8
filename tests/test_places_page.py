"""The page about place recognition: its commands are commands, its table can be read, its Python runs."""

from __future__ import annotations

import argparse
import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import pcdet_ext
from pcdet_ext import config
from pcdet_ext.cli.command import COMMANDS
from pcdet_ext.data.formats import DATASETS, FRAME_SOURCES
from pcdet_ext.data.places import read_frames
from pcdet_ext.data.simulation.layouts import SIMULATIONS
from pcdet_ext.models.places import LOSSES
from pcdet_ext.models.registry import DETECTORS

SMALL = ("model.encoder.num_filters=[4]", "model.pooling.rings=4", "model.pooling.out_channels=16")


@pytest.fixture(scope="module")
def blocks(root: Path) -> dict[str, str]:
    page = (root / "docs" / "place_recognition.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))


def test_commands_and_names_are_those_of_the_library(root: Path, blocks: dict[str, str]) -> None:
    commands = [shlex.split(line) for line in blocks["sh"].splitlines()]
    assert [words[0] for words in commands] == ["pcdet"] * 5
    for _, command, *words in commands:
        assert command in COMMANDS
        module = import_module(f"pcdet_ext.cli.{command}")
        for flag in (word for word in words if word.startswith("--")):
            assert flag[2:].replace("-", "_") in _options(module), f"{command} {flag}"
    assert all("places" in registry for registry in (FRAME_SOURCES, SIMULATIONS))
    page = (root / "docs" / "place_recognition.md").read_text(encoding="utf-8")
    for name in re.findall(r"configs/place_recognition/\w+\.yaml", page):
        settings = config.load(root / name)
        assert settings["data"]["name"] in DATASETS
        assert settings["model"]["name"] in DETECTORS
        assert f"`{settings['model']['name']}`" in page
    assert all(f"`{name}`" in page for name in LOSSES.names())


def _options(module: object) -> set[str]:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)  # type: ignore[attr-defined]
    return {action.dest for action in parser._actions}


def test_the_table_of_the_page_is_read(blocks: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "frames.csv").write_text(blocks["csv"], encoding="utf-8")
    frames = read_frames(tmp_path)
    assert [(f.run, f.split, f.heading, f.view) for f in frames] == [
        ("monday", "train", 1.571, "ground"),
        ("monday", "train", 1.568, "ground"),
    ]


def test_the_python_of_the_page_runs(blocks: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = pcdet_ext.build("place_recognition/demo", SMALL, "cpu")
    monkeypatch.setattr(pcdet_ext, "load", lambda path: model, raising=False)
    monkeypatch.chdir(tmp_path)
    points = np.random.default_rng(0).uniform(-30, 30, (200, 3)).astype(np.float32)
    np.save("a.npy", points)
    header = (
        "VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 200\nHEIGHT 1\nPOINTS 200\nDATA ascii\n"
    )
    (tmp_path / "b.pcd").write_text(header + "\n".join(" ".join(map(str, row)) for row in (points[::-1] / 2).tolist()))
    names: dict[str, object] = {"points": points}
    exec(blocks["python"], names)
    found = names["found"]
    assert found.ids == (("a",),)  # type: ignore[attr-defined]
    assert len(names["index"]) == 2  # type: ignore[arg-type]
