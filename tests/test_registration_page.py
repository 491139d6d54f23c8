"""The page about registration: its commands are commands, its Python runs."""

from __future__ import annotations

import argparse
import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from pcdet_ext import registration
from pcdet_ext.models.registration import RegistrationNetwork


@pytest.fixture(scope="module")
def blocks(root: Path) -> dict[str, str]:
    page = (root / "docs" / "registration.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))


def test_commands_are_those_of_the_library(root: Path) -> None:
    page = (root / "docs" / "registration.md").read_text(encoding="utf-8")
    lines = "".join(re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)).splitlines()
    commands = [shlex.split(line) for line in lines]
    names = ("simulate", "prepare", "benchmark", "benchmark", "register", "register")
    assert [words[:2] for words in commands] == [["pcdet", name] for name in names]
    for _, command, *words in commands:
        parser = argparse.ArgumentParser()
        import_module(f"pcdet_ext.cli.{command}").add_arguments(parser)
        parser.parse_args(words)  # ends the program where a command or an option is not there


def test_the_python_of_the_page_runs(blocks: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open3d")
    torch.manual_seed(0)
    small = RegistrationNetwork((-8, -8, -2, 8, 8, 2), 1.0, 8, 2, 8, [(4.0, 0.0)], 8).eval()
    monkeypatch.setattr(registration, "load_network", lambda path: small)
    source = np.random.default_rng(0).uniform(-6, 6, (500, 3)).astype(np.float32)
    names: dict[str, object] = {"source": source, "target": source}
    exec(blocks["python"], names)
    assert names["found"].matches > 0  # type: ignore[attr-defined]
    np.testing.assert_allclose(names["without"].pose, np.eye(4), atol=1e-3)  # type: ignore[attr-defined]
