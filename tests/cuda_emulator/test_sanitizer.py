"""The kernels under the address sanitizer: none reads or writes beyond the end of an array or of shared memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulator import emulator

HERE = Path(__file__).parent


def libraries() -> str | None:
    """The libraries of the sanitizer, which must come first in a process, and of C++; None where there are none."""
    if emulator.compiler() is None:
        return None
    paths = []
    for name in ("libasan.so", "libstdc++.so"):
        command = [str(emulator.compiler()), f"-print-file-name={name}"]
        paths.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    return ":".join(paths) if all(Path(path).is_absolute() for path in paths) else None


def sanitized(*arguments: str) -> subprocess.CompletedProcess:
    """A run of sanitized.py."""
    preload = libraries()
    if preload is None:
        pytest.skip("no address sanitizer")
    settings = {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(emulator.ROOT)}
    command = [sys.executable, str(HERE / "sanitized.py"), *arguments]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("memory", "found"), [("global", "heap-buffer-overflow"), ("shared", "global-buffer-overflow")]
)
def test_writes_beyond_the_end_are_found(memory: str, found: str) -> None:
    run = sanitized("--probe", memory, "64")
    assert run.returncode != 0
    assert f"AddressSanitizer: {found}" in run.stderr
    assert "in write_beyond" in run.stderr


def test_no_kernel_leaves_its_arrays() -> None:
    run = sanitized()
    assert run.returncode == 0, run.stderr
    exported = set()
    for path in emulator.kernels():
        text = re.sub(r"\s*\\\n", "\n", path.read_text())
        for name in re.findall(r"PCDET_API int (pcdet_[\w#]+)\(", text):
            exported |= {re.sub("##.+##", dtype, name) for dtype in ("float32", "float64")}
    assert set(run.stdout.split()) == exported
