"""Memory that tensors give back stays with a process that asked for it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

ROUNDS = """
import resource, sys
from pcdet_ext.engine.allocation import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import torch
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(1 << 26, dtype=torch.uint8).fill_(1)  # 16,384 pages of 4 KiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_the_pages_of_a_freed_tensor_are_those_of_the_next() -> None:
    faults = {}
    # Commands that other tests call in this process have set it for all that it starts.
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    for how in ("keep", "leave"):
        command = [sys.executable, "-c", ROUNDS, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        faults[how] = int(done.stdout)
    assert faults["keep"] < 2000 < 10_000 < faults["leave"]  # the system may take some pages back where memory is short
