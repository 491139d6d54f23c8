"""Configurations that mmengine's Runner writes, read without running them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.config import ConfigError
from pcdet_ext.plugins.mmdet3d.configs import parse, read_config

TEXT = """'''A comment.'''
model = dict(type='VoxelNet', sizes=[1, -2.5, (3, )], limits=dict(high=inf), names={'pts-x': None})
seed = 'a'
"""
CONTENT = {
    "model": {"type": "VoxelNet", "sizes": [1, -2.5, (3,)], "limits": {"high": math.inf}, "names": {"pts-x": None}},
    "seed": "a",
}


def test_literals_are_read() -> None:
    assert parse(TEXT, "c.py") == CONTENT


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "x = open('f').read()",
        "x = dict(**y)",
        "x = {**y}",
        "x = [i for i in range(3)]",
        "x = y",
        "x.y = 1",
        "x = __import__('os').system('true')",
        "x = dict([('a', 1)])",
    ],
)
def test_whatever_would_have_to_run_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.py:2: only configurations in literals"):
        parse(f"a = 1\n{line}\n", "c.py")


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    for text, message in (("a = (", r"c\.py:1"), ("_base_ = ['x.py']", r"builds on \['x\.py'\]")):
        with pytest.raises(ConfigError, match=message):
            parse(text, "c.py")
    with pytest.raises(ConfigError, match=r"missing\.py"):
        read_config(tmp_path / "missing.py")
    torch.save({"state_dict": {}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: holds no configuration \(meta\.cfg\)"):
        read_config(tmp_path / "x.pth")


def test_every_name_of_a_chained_assignment_is_read() -> None:
    assert parse("model = other = dict(a=1)", "c.py") == {"model": {"a": 1}, "other": {"a": 1}}
    with pytest.raises(ConfigError, match=r"c\.py:1: only configurations in literals"):
        parse("model = other.x = dict(a=1)", "c.py")


@pytest.mark.parametrize("key", ["[1]", "dict(b=1)", "([1], 2)"])
def test_keys_that_no_dictionary_takes_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.py:3: unhashable type"):
        parse(f"a = 1\nb = {{\n    {key}: 2}}\n", "c.py")


@pytest.mark.parametrize("value", ["-" * 3000 + "1", "+".join(["1"] * 20000), "-" * 50000 + "1"])
def test_what_is_nested_too_deeply_is_refused_with_its_line(value: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.py:3: "):
        parse(f"a = 1\nb = 2\nc = {value}\nd = [\n  1,\n]\n", "c.py")


def test_files_in_other_encodings_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.py"
    path.write_bytes("a = 1\nb = 'é'\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.py:2: is not UTF-8"):
        read_config(path)


def test_checkpoints_hold_their_configuration(tmp_path: Path) -> None:
    content: dict[str, Any] = {"meta": {"cfg": TEXT, "epoch": 2}, "state_dict": {}}
    torch.save(content, tmp_path / "x.pth")
    assert read_config(tmp_path / "x.pth") == CONTENT
