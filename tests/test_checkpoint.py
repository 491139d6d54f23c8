"""Checkpoints: round trip, damage, foreign files, full disks; and that reading one runs no code."""

from __future__ import annotations

import os
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pcdet_ext import checkpoint
from pcdet_ext.checkpoint import CheckpointError

CONTENT = {"config": {"model": {"name": "Toy", "sizes": [1, 2.5, None, True]}}, "model": {"w": torch.arange(6.0)}}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a.ckpt"
    checkpoint.write(path, CONTENT)
    read = checkpoint.read(path)
    assert read["config"] == CONTENT["config"]
    assert torch.equal(read["model"]["w"], CONTENT["model"]["w"])
    assert os.listdir(path.parent) == ["a.ckpt"]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.ckpt: no such checkpoint"):
        checkpoint.read(tmp_path / "nowhere.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_cut_file_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.ckpt"
    checkpoint.write(path, CONTENT)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.ckpt"):
        checkpoint.read(path)


@pytest.mark.parametrize("data", [b"hello", b"PK\x03\x04 no zip", b"\x80\x02not a pickle", bytes(100), b"abc" * 100])
def test_other_files_are_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other.ckpt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"other\.ckpt"):
        checkpoint.read(path)


@pytest.mark.parametrize("content", [[1, 2], {"model_state": {}}, {"format": 99, "config": {}, "model": {}}])
def test_other_programs_checkpoints_are_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "foreign.ckpt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"foreign\.ckpt"):
        checkpoint.read(path)


class _Trap:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return (open, (str(self.witness), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_reading_runs_no_code(tmp_path: Path, zipped: bool) -> None:
    path, witness = tmp_path / "trap.ckpt", tmp_path / "executed"
    content = {"format": 1, "config": _Trap(witness), "model": {}}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"trap\.ckpt"):
        checkpoint.read(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (np.zeros(3), r"numpy\S*multiarray\._reconstruct"),
        (Path("a"), r"pathlib\.\w+"),
        (random.Random(0), "random.Random"),
    ],
)
def test_foreign_objects_are_named(tmp_path: Path, content: object, found: str) -> None:
    torch.save({"format": 1, "config": {}, "model": {}, "more": content}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(tmp_path / "a.ckpt")
    assert re.search(rf"a\.ckpt: not a checkpoint that is safe to load \(it holds a {found}\)", str(caught.value))
    assert "\x1b" not in str(caught.value)


def test_a_damaged_pickle_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(b"\x80\x02not a pickle")
    with pytest.raises(CheckpointError, match=r"damaged\.ckpt: damaged or no checkpoint: [^\n]*$"):
        checkpoint.read(path)


def test_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files makes the write fail half way, as a full disk does."""
    path = tmp_path / "last.ckpt"
    checkpoint.write(path, CONTENT)
    before = path.read_bytes()
    code = f"""
import resource, signal, sys, torch
from pcdet_ext import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.write({str(path)!r}, {{"config": {{}}, "model": {{"w": torch.zeros(1_000_000)}}}})
except checkpoint.CheckpointError as error:
    print(error)
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "last.ckpt: cannot write the checkpoint: File too large; the one written before is intact" in done.stdout
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_parameters_that_do_not_fit_are_listed() -> None:
    state = {"weight": torch.zeros(2, 3), "scale": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*missing: bias.*unknown: scale.*weight is \(2, 3\)"):
        checkpoint.load_model(nn.Linear(2, 2), state, "a.ckpt")


def test_random_states_continue(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [random.random(), np.random.random(), np.random.normal(), torch.rand(()).item()]  # noqa: NPY002

    draw()
    checkpoint.write(tmp_path / "rng.ckpt", {"config": {}, "model": {}, "rng": checkpoint.random_state()})
    expected = [draw() for _ in range(3)]
    checkpoint.restore_random_state(checkpoint.read(tmp_path / "rng.ckpt")["rng"])
    assert [draw() for _ in range(3)] == expected


def test_a_transfer_takes_what_fits_and_lists_the_rest() -> None:
    source = nn.ModuleDict({"body": nn.Linear(3, 4), "head": nn.Linear(4, 3), "old": nn.Linear(1, 1)})
    target = nn.ModuleDict({"body": nn.Linear(3, 4), "head": nn.Linear(4, 2), "extra": nn.Linear(2, 2)})
    before = target["head"].weight.clone()
    found = checkpoint.transfer(target, source.state_dict(), "a.ckpt")
    assert found.taken == ("body.weight", "body.bias")
    assert found.reshaped == ("head.weight: (3, 4) there, (2, 4) here", "head.bias: (3,) there, (2,) here")
    assert found.new == ("extra.weight", "extra.bias")
    assert found.unused == ("old.weight", "old.bias")
    assert torch.equal(target["body"].weight, source["body"].weight)
    assert torch.equal(target["head"].weight, before)
    assert "2 parameters and buffers taken" in str(found)
    with pytest.raises(CheckpointError, match=r"a\.ckpt: not one of its parameters fits"):
        checkpoint.transfer(target, {"other": torch.zeros(1)}, "a.ckpt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_parameters_that_are_not_finite_are_named(value: float) -> None:
    state = nn.Linear(2, 2).state_dict()
    state["bias"][1] = value
    for use in (checkpoint.load_model, checkpoint.transfer):
        model = nn.Linear(2, 2)
        before = model.bias.detach().clone()
        with pytest.raises(CheckpointError, match=r"a\.ckpt: .*NaN or infinite values: bias$"):
            use(model, state, "a.ckpt")
        assert torch.equal(model.bias, before)
