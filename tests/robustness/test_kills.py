"""A few of the kills of `make kills`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

KILLS = Path(__file__).with_name("kills.py")


def test_killed_trainings_continue_bit_by_bit() -> None:
    """In a process of its own, since it forks: the threads of this one would not be there after that."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(KILLS.parents[2])}
    command = [sys.executable, str(KILLS), "--kills", "12", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("12 kills, ")
