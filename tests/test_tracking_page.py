"""The page about tracking: its commands are commands, and its table names the options that the trackers have."""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from pcdet_ext.cli.track import TRACKERS as NAMES
from pcdet_ext.data.formats import BENCHMARKS
from pcdet_ext.tracking import graph_training, trajectory_fit  # noqa: F401  (registers these trackers)
from pcdet_ext.tracking.base import TRACKERS


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "tracking.md").read_text(encoding="utf-8")


def test_its_commands_can_be_parsed(page: str) -> None:
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S) for line in block.splitlines()]
    assert len(lines) == 8
    for program, command, *words in map(shlex.split, lines):
        assert program == "pcdet"
        parser = argparse.ArgumentParser()
        import_module(f"pcdet_ext.cli.{command}").add_arguments(parser)
        options = parser.parse_intermixed_args(words)
        for given in options.options:
            assert given.split("=")[0] in inspect.signature(TRACKERS.get(NAMES[options.tracker])).parameters


def test_its_tables_name_all_options_and_metrics(page: str) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", page, re.M))
    assert set(rows) == set(NAMES)
    for name, options in rows.items():
        known = inspect.signature(TRACKERS.get(NAMES[name])).parameters
        assert re.findall(r"`(\w+)`", options) == list(known)
    assert set(re.findall(r"`pcdet evaluate (\w+)`", page)) <= set(BENCHMARKS.names())
