"""The worked examples of CONTRIBUTING.md: their files are written, their kernel compiled, and their own tests run.

They run in a process of their own, since what they register stays registered.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulator.emulator import compiler

FENCE = re.compile(r"^```(\w+)\n(?:#|//) ([\w./]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS_COMPILER = "tests/test_segment_rank.py"
# In the library the kernel would be in the one native library; here it is in a second one.
CONFTEST = """
import ctypes
from pathlib import Path

from pcdet_ext.ops import _native


class Both:
    def __init__(self, built, example):
        self.built, self.example = built, example

    def __getitem__(self, name):
        try:
            return self.built[name]
        except (AttributeError, TypeError):
            return self.example[name]


if Path("libexample.so").exists():
    both = Both(_native.library("cpu"), ctypes.CDLL("./libexample.so"))
    _native.library = lambda device_type: both if device_type == "cpu" else None
"""


@pytest.fixture(scope="module")
def files(root: Path) -> dict[str, str]:
    """Files of the examples by name: the first line of their blocks says it."""
    page = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return {name: content for _, name, content in FENCE.findall(page)}


def test_every_example_has_a_test(files: dict[str, str]) -> None:
    modules = {Path(name).stem for name in files if name.startswith("additions/")}
    tests = {Path(name).stem.removeprefix("test_") for name in files if name.startswith("tests/")}
    assert modules == tests
    assert len(modules) == 6


def test_the_examples_pass_their_tests(files: dict[str, str], root: Path, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    tests = {name: content.count("\ndef test_") for name, content in files.items() if name.startswith("tests/")}
    cxx = compiler()
    if cxx is None:
        del tests[NEEDS_COMPILER]
    else:
        flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", f"-I{root / 'ops'}"]
        sources = [str(tmp_path / name) for name in files if name.endswith(".cpp")]
        subprocess.run([cxx, *flags, *sources, "-o", str(tmp_path / "libexample.so")], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:dash", "--rootdir=.", *tests],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
    )
    summary = done.stdout.strip().splitlines()[-1]
    assert re.fullmatch(rf"{sum(tests.values())} passed(, \d+ warnings?)? in .*", summary), done.stdout + done.stderr


def test_the_code_of_the_examples_is_formatted(files: dict[str, str], root: Path, tmp_path: Path) -> None:
    for name, content in files.items():
        if name.endswith(".py"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)
    settings = ["--config", str(root / "pyproject.toml"), "--no-cache"]
    for command in (["check", "--ignore", "I001"], ["format", "--diff"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *settings, str(tmp_path)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
