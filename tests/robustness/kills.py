"""Trainings that are killed at random moments: what they leave, and whether a continued one is the uninterrupted one.

    python tests/robustness/kills.py --kills 50

One training runs to its end. The same training is then started in another folder, killed (SIGKILL) at a random moment
or while a file is being written, continued with `--resume`, killed again, and so on; each time with two loader
processes or with none. After each kill

- every checkpoint that is there can be read,
- no process of the training is left,

and when a training has come to its end

- its checkpoints, `last.ckpt` and `best.ckpt`, hold what those of the uninterrupted one hold, bit by bit,
- its log gives each step the same numbers, as often as the step was taken,
- no temporary file is left.

Each training is a process of its own, forked before anything is computed, so that the libraries are imported once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lightning.fabric.plugins  # noqa: F401 - what a training imports is imported before the forks
import torch.utils.tensorboard
from custom_folder import make_folder

from pcdet_ext import checkpoint
from pcdet_ext.cli.command import main as command
from pcdet_ext.engine import training  # noqa: F401

SMALL = (
    "data.point_cloud_range=[-6.4, -6.4, -3, 6.4, 6.4, 2]",
    "model.voxel_size=[0.4, 0.4, 5]",
    "model.bev_backbone.layer_nums=[1, 1, 1]",
    "model.bev_backbone.num_filters=[16, 16, 32]",
    "model.bev_backbone.num_upsample_filters=[16, 16, 16]",
    "train={epochs: 4, batch_size: 2, log_every: 1, ema: {decay: 0.9}, early_stop: {patience: 9}}",
    "test.num_workers=0",
)
ENDED = 60.0  # seconds within which the processes of a killed training must be gone, on however busy a machine


@dataclass
class Campaign:
    """What was tried. kills: those of a running training; before: those before its first checkpoint; ends: trainings
    that came to their end; writing: kills while a file was being written."""

    kills: int = 0
    before: int = 0
    writing: int = 0
    ends: int = 0
    failures: list[str] = field(default_factory=list)


def start(work: Callable[[], int], log: Path) -> int:
    """Run `work` in a process, in a session of its own, with its output in a file. Returns its number."""
    number = os.fork()
    if number:
        return number
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        code = work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        code = 1
    os._exit(code)


def members(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(its_session) == session and state not in "ZX":
                found.append(int(entry.name))
    return found


def training_of(config: Path, out: Path, workers: int) -> Callable[[], int]:
    """The command that trains, or continues, in a folder."""
    arguments = ["train", str(config), *SMALL, f"train.num_workers={workers}", "--device", "cpu"]

    def work() -> int:
        torch.set_num_threads(1)
        return command([*arguments, "--out", str(out), "--resume"])

    return work


def differences(expected: Any, found: Any, where: str = "") -> Iterator[str]:
    """Where two contents of checkpoints differ in any bit."""
    if isinstance(expected, torch.Tensor):
        if not isinstance(found, torch.Tensor) or not torch.equal(expected, found):
            yield where
    elif isinstance(expected, dict):
        if not isinstance(found, dict) or set(expected) != set(found):
            yield where
        else:
            for key in expected:
                yield from differences(expected[key], found[key], f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        if len(expected) != len(found):
            yield where
        else:
            for i, (a, b) in enumerate(zip(expected, found, strict=True)):
                yield from differences(a, b, f"{where}[{i}]")
    elif expected != found and not (isinstance(expected, float) and math.isnan(expected) and math.isnan(found)):
        yield where


def logged(out: Path) -> dict[tuple[str, int], Any]:
    """What the log says of each step; raises ValueError where it says two things, or a line is not whole."""
    result: dict[tuple[str, int], Any] = {}
    for line in (out / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if result.setdefault((entry["kind"], entry["step"]), entry) != entry:
            raise ValueError(f"the log has two versions of step {entry['step']}")
    return result


def check_end(out: Path, whole: Path) -> Iterator[str]:
    """What is wrong with a training that was killed and continued, beside one that was not."""
    for name in ("last.ckpt", "best.ckpt"):
        contents = [checkpoint.read(folder / name) for folder in (whole, out)]
        for content in contents:
            content["config"]["train"].pop("num_workers")
        yield from (f"{name} differs in {where}" for where in differences(*contents))
    try:
        if logged(out) != logged(whole):
            yield "the logs differ"
    except ValueError as error:
        yield str(error)
    left = [path.name for path in out.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    if left:
        yield f"temporary files are left: {left}"


def check_kill(out: Path) -> Iterator[str]:
    """What is wrong with the files that a killed training leaves."""
    for name in ("last.ckpt", "best.ckpt"):
        if (out / name).exists():
            try:
                checkpoint.require_training(checkpoint.read(out / name), out / name)
            except checkpoint.CheckpointError as error:
                yield str(error)


def wait_for_moment(out: Path, rng: random.Random, longest: float, number: int) -> str:
    """Wait for the moment of a kill: "ended" where the training ended before, else "random" or "writing"."""
    writing = rng.random() < 0.4
    until = time.monotonic() + rng.uniform(0, longest) * (4 if writing else 1)
    while time.monotonic() < until:
        if os.waitpid(number, os.WNOHANG)[0]:
            return "ended"
        if writing and any(path.name.startswith(".") and path.name != ".lock" for path in files(out)):
            return "writing"
        time.sleep(0.001)
    return "random"


def files(folder: Path) -> Sequence[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def kill(number: int) -> list[int]:
    """Kill a process, and give those of its session that do not end by themselves."""
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    until = time.monotonic() + ENDED
    while (left := members(number)) and time.monotonic() < until:
        time.sleep(0.01)
    return left


def prepare(folder: Path) -> Path:
    """Ten small frames, prepared; the configuration to train with."""
    make_folder(folder / "data", 10, ".bin", "intensity_scale: 255\npoint_features: [x, y, z, intensity]\n")
    number = start(lambda: command(["prepare", "custom", "--root", str(folder / "data")]), folder / "prepare.txt")
    if os.waitpid(number, 0)[1]:
        raise RuntimeError((folder / "prepare.txt").read_text())
    return folder / "data" / "pcdet_ext" / "config.yaml"


def uninterrupted(config: Path, out: Path) -> float:
    """Train to the end; the seconds that it took."""
    began = time.monotonic()
    number = start(training_of(config, out, 0), out.with_suffix(".txt"))
    if os.waitpid(number, 0)[1]:
        raise RuntimeError(out.with_suffix(".txt").read_text())
    return time.monotonic() - began


def campaign(folder: Path, kills: int, seed: int) -> Campaign:
    """Kill `kills` trainings; see the head of this file."""
    rng, result = random.Random(seed), Campaign()
    config = prepare(folder)
    longest = uninterrupted(config, folder / "whole") / 2  # so that some trainings get past their next checkpoint
    run = 0
    while result.kills < kills or run > result.ends:
        if run == result.ends:
            run += 1
        out = folder / f"run_{run}"
        number = start(training_of(config, out, workers=rng.choice((0, 2))), folder / f"run_{run}.txt")
        moment = "ended"
        if result.kills < kills:
            moment = wait_for_moment(out, rng, longest, number)
        elif os.waitpid(number, 0)[1]:
            result.failures.append(f"run {run}: {(folder / f'run_{run}.txt').read_text()[-2000:]}")
        if moment == "ended":
            result.ends += 1
            result.failures += [f"run {run}: {wrong}" for wrong in check_end(out, folder / "whole")]
            continue
        left = kill(number)
        result.kills += 1
        result.before += not (out / "last.ckpt").exists()
        result.writing += moment == "writing"
        result.failures += [f"run {run}: processes {left} live on"] if left else []
        result.failures += [f"run {run}, kill {result.kills}: {wrong}" for wrong in check_kill(out)]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = campaign(Path(folder), options.kills, options.seed)
    for failure in result.failures:
        print(failure)
    print(
        f"{result.kills} kills, {result.writing} of them while a file was written, {result.before} before the first "
        f"checkpoint; {result.ends} trainings came to their end; {len(result.failures)} failures; "
        f"{time.monotonic() - began:.0f} s"
    )
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
