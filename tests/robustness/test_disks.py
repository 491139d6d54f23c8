"""Trainings on a disk that is full, and in a folder that cannot be written to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ENGINE = Path(__file__).resolve().parents[1] / "engine"
FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from toy_runs import losses, run, same_model
from pcdet_ext import checkpoint

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

whole, out = Path(sys.argv[2]) / "whole", Path(sys.argv[2]) / "out"
assert run(whole, epochs=4)
assert run(out, epochs=4, max_steps=3)
kept = (out / "last.ckpt").read_bytes()
limit(900)  # less than a checkpoint has, and than the log will have
try:
    run(out, epochs=4, resume=checkpoint.read(out / "last.ckpt"))
except checkpoint.CheckpointError as error:
    print("CheckpointError:", error)
assert (out / "last.ckpt").read_bytes() == kept
limit(resource.RLIM_INFINITY)
print([path.name for path in out.iterdir() if path.name.startswith(".")])
"""


def test_a_full_disk_costs_logs_but_no_checkpoint(tmp_path: Path) -> None:
    """The system refuses to let a file grow beyond a limit, as it does when a disk is full."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ENGINE.parents[1])}
    command = [sys.executable, "-c", FULL, str(ENGINE), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "CheckpointError: " in done.stdout
    assert "cannot write the checkpoint: File too large; the one written before is intact" in done.stdout
    assert done.stdout.endswith("[]\n")  # no temporary file is left
    assert "cannot write a log, going on without it" in done.stderr
    assert "Training goes on and tries again after a later epoch" in done.stderr
    lines = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    whole = (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    assert len(whole) > len(lines) > 1


READ_ONLY = """
import sys
from pcdet_ext.cli.command import main
for extra in ([], ["--resume"], ["--overwrite"]):
    print(main(["train", sys.argv[1], "--out", sys.argv[2] + "/run", "--device", "cpu", *extra]))
"""
MOUNT = 'mount -t tmpfs -o ro tmpfs "$0" && exec "$@"'


def test_a_folder_that_cannot_be_written_to_is_refused(root: Path, tmp_path: Path) -> None:
    """Before the data is looked at; as a file system of its own, since the superuser may write to any other folder."""
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c", MOUNT, str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    command = [sys.executable, "-c", READ_ONLY, str(root / "configs" / "kitti" / "demo.yaml"), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run([*unshare, *command], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["1", "1", "1"], done.stderr
    assert done.stderr.splitlines() == [f"pcdet train: {tmp_path}/run: no permission to write in {tmp_path}"] * 3
