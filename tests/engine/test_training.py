"""The training loop: order of frames, exact continuation, stops, failures, several processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_detector import toy_inputs
from toy_runs import losses, run, same_model, stop_at

from pcdet_ext import checkpoint
from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.config import ConfigError, Node, construct
from pcdet_ext.engine import trainer
from pcdet_ext.engine.devices import make_fabric, training_device
from pcdet_ext.engine.interrupts import StopRequest, signal_with_parent
from pcdet_ext.engine.loader import EpochBatches, _outlive_signals
from pcdet_ext.engine.resuming import check_same_order
from pcdet_ext.engine.run_folder import BEST, LAST
from pcdet_ext.engine.settings import TrainConfig
from pcdet_ext.engine.trainer import TrainingError, TrainingInputs
from pcdet_ext.evaluation.base import Result

SCRIPT = Path(__file__).with_name("toy_detector.py")


def test_an_epoch_reads_every_frame_and_fills_its_batches() -> None:
    batches = EpochBatches(size=10, batch_size=4, seed=3)
    batches.seek(5)
    epoch = list(batches)
    assert [len(b) for b in epoch] == [4, 4, 4]
    flat = [index for batch in epoch for _, index in batch]
    assert sorted(flat[:10]) == list(range(10))
    assert flat[10:] == flat[:2]
    assert {e for batch in epoch for e, _ in batch} == {5}
    batches.seek(5, start=2)
    assert list(batches) == epoch[2:]
    batches.seek(6)
    assert list(batches) != epoch


def test_processes_share_the_batch_of_one() -> None:
    one = list(EpochBatches(11, 4, seed=0))
    both = [list(EpochBatches(11, 2, 0, rank, processes=2)) for rank in range(2)]
    assert one == [a + b for a, b in zip(*both, strict=True)]


def test_training_learns_and_leaves_its_files(tmp_path: Path) -> None:
    assert run(tmp_path, epochs=20, learning_rate=0.03)
    values = list(losses(tmp_path).values())
    assert len(values) == 60
    assert sum(values[-5:]) < 0.5 * sum(values[:5])
    assert list(tmp_path.glob("events.out.tfevents.*"))
    content = checkpoint.read(tmp_path / LAST)
    assert content["progress"]["epoch"] == 20
    assert content["progress"]["best"] == checkpoint.read(tmp_path / BEST)["progress"]["best"]
    scores = [json.loads(x)["score"] for x in (tmp_path / "log.jsonl").read_text().splitlines() if '"test"' in x]
    assert content["progress"]["best"] == max(scores)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_the_right_epoch(tmp_path: Path, workers: int) -> None:
    assert run(tmp_path / "a", num_workers=workers)
    assert run(tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


@pytest.mark.parametrize("step", [0, 2, 4, 8])
def test_continuing_after_ctrl_c_repeats_the_uninterrupted_run(tmp_path: Path, step: int) -> None:
    assert run(tmp_path / "whole")
    assert not run(tmp_path / "parts", stop_at(toy_inputs(), step))
    content = checkpoint.read(tmp_path / "parts" / LAST)
    assert content["progress"]["step"] == step + 1  # the step under way is finished first
    torch.manual_seed(1234)  # a new process starts from other random states
    assert run(tmp_path / "parts", resume=content)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert same_model(tmp_path / "parts" / LAST, tmp_path / "whole" / LAST)


def test_a_continued_training_writes_the_same_best_checkpoint(tmp_path: Path) -> None:
    """Also where it stands before the evaluation that follows the last step of an epoch."""
    assert run(tmp_path / "whole", epochs=1)

    def interrupted(model: torch.nn.Module, should_stop: Any) -> Result | None:
        os.kill(os.getpid(), signal.SIGINT)
        return None

    assert not run(tmp_path / "parts", replace(toy_inputs(), evaluate=interrupted), epochs=1)
    assert run(tmp_path / "parts", resume=checkpoint.read(tmp_path / "parts" / LAST), epochs=1)
    whole, parts = (checkpoint.read(tmp_path / name / BEST) for name in ("whole", "parts"))
    assert parts["optimizer"]["param_groups"] == whole["optimizer"]["param_groups"]


def test_continuing_a_finished_training_does_nothing(tmp_path: Path) -> None:
    for settings in ({}, {"max_steps": 4}):
        out = tmp_path / str(len(settings))
        assert run(out, **settings)
        before = (out / "log.jsonl").read_text()
        assert run(out, resume=checkpoint.read(out / LAST), **settings)
        assert (out / "log.jsonl").read_text() == before


def test_another_batch_size_cannot_continue_inside_an_epoch(tmp_path: Path) -> None:
    assert not run(tmp_path, stop_at(toy_inputs(), 3))
    with pytest.raises(CheckpointError, match=r"an epoch of 3 steps, now an epoch has 5.*train\.batch_size"):
        run(tmp_path, resume=checkpoint.read(tmp_path / LAST), batch_size=2)


def test_max_steps_ends_the_cycle(tmp_path: Path) -> None:
    assert run(tmp_path, max_steps=4)
    lines = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = [x["lr"] for x in lines if x["kind"] == "train"]
    assert len(rates) == 4
    assert rates[1] == max(rates)


def test_stop_during_evaluation_evaluates_again(tmp_path: Path) -> None:
    inputs = toy_inputs()

    def interrupted(model: torch.nn.Module, should_stop: Any) -> Result | None:
        os.kill(os.getpid(), signal.SIGINT)
        return None if should_stop() else Result(0.0)

    stopped = TrainingInputs(inputs.detector, inputs.dataset, inputs.collate, inputs.config, interrupted)
    assert not run(tmp_path / "parts", stopped)
    assert run(tmp_path / "parts", resume=checkpoint.read(tmp_path / "parts" / LAST))
    assert run(tmp_path / "whole")
    assert (tmp_path / "parts" / "log.jsonl").read_text() == (tmp_path / "whole" / "log.jsonl").read_text()


def test_evaluation_leaves_the_training_alone(tmp_path: Path) -> None:
    assert run(tmp_path / "with", evaluate_every=1)
    assert run(tmp_path / "without", evaluate_every=0)
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert not (tmp_path / "without" / BEST).exists()


def test_second_ctrl_c_breaks_off() -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored, where a shell has put the tests in the background
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_full_disk_does_not_end_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real, calls = checkpoint.write, []

    def sometimes_full(path: Path, content: Any) -> None:
        calls.append(path.name)
        if len(calls) in (2, 4, 5):  # the first best one among them
            raise CheckpointError(f"{path}: cannot write the checkpoint: No space left on device")
        real(path, content)

    monkeypatch.setattr(trainer.checkpoint, "write", sometimes_full)
    assert run(tmp_path)
    assert "No space left on device. Training goes on" in capsys.readouterr().err
    assert (tmp_path / BEST).exists()
    assert checkpoint.read(tmp_path / LAST)["progress"]["epoch"] == 3


def test_full_disk_at_the_end_is_an_error_and_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, epochs=1)

    def full(path: Path, content: Any) -> None:
        raise CheckpointError(f"{path}: cannot write the checkpoint: No space left on device")

    monkeypatch.setattr(trainer.checkpoint, "write", full)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: cannot write"):
        run(tmp_path, epochs=2, resume=checkpoint.read(tmp_path / LAST))
    assert checkpoint.read(tmp_path / LAST)["progress"]["epoch"] == 1


def test_loss_that_is_not_finite_ends_the_training_before_it_is_saved(tmp_path: Path) -> None:
    inputs = toy_inputs()
    loss, count = inputs.detector.loss, iter(range(1000))
    inputs.detector.loss = lambda batch: {
        k: v * (float("nan") if next(count) == 8 else 1) for k, v in loss(batch).items()
    }
    with pytest.raises(TrainingError, match=r"centre.*not finite at or before step"):
        run(tmp_path, inputs, log_every=100)
    assert all(torch.isfinite(v).all() for v in checkpoint.read(tmp_path / LAST)["model"].values())


def test_bfloat16_keeps_coordinates_whole(tmp_path: Path) -> None:
    inputs = toy_inputs()
    seen = []
    loss = inputs.detector.loss
    inputs.detector.loss = lambda batch: (
        seen.append((batch.points.dtype, torch.is_autocast_enabled("cpu"))),
        loss(batch),
    )[1]
    assert run(tmp_path, inputs, precision="bf16", epochs=1, evaluate_every=0)
    assert set(seen) == {(torch.float32, True)}


def test_what_the_device_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.precision"):
        run(tmp_path, precision="fp16")
    with pytest.raises(ConfigError, match=r"train\.sync_batchnorm"):
        run(tmp_path, sync_batchnorm=True)


def test_devices_are_taken_by_torchs_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training_device("cpu") == training_device("cpu:0") == ("cpu", None)
    for name, message in (
        ("gpu", "device 'gpu': Expected one of cpu, cuda"),
        ("cuda:x", "device 'cuda:x'"),
        ("meta", "device 'meta': not available, or none that Lightning trains on"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_fabric(device=name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device 'cuda:1': no CUDA device is available"):
        make_fabric(device="cuda:1")
    assert training_device("auto") == ("cpu", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert training_device("auto") == training_device("cuda") == ("cuda", None)
    assert training_device("cuda:1") == ("cuda", 1)
    with pytest.raises(ConfigError, match="device 'cuda:2': torch sees 2 CUDA devices, cuda:0 to cuda:1"):
        make_fabric(device="cuda:2")
    with pytest.raises(ConfigError, match="device 'cuda:1' is one device; for several processes name their kind"):
        make_fabric(device="cuda:1", devices=2)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("epocs", 3, "did you mean 'epochs'"),
        ("batch_size", "four", "train.batch_size: expected int"),
        ("precision", "fp8", "train.precision: expected"),
        ("batch_size", 0, "batch_size must be at least 1"),
        ("momentum", [0.9], "train.momentum"),
        ("parameter_groups", "some", "train.parameter_groups"),
    ],
)
def test_wrong_settings_name_the_key(key: str, value: Any, message: str) -> None:
    node = Node({"epochs": 1, key: value}, "train", {key: "a.yaml:3"})
    with pytest.raises(ConfigError, match=message) as error:
        construct(TrainConfig, node)
    assert "a.yaml:3" in str(error.value) or "must be" in message


def launch(*arguments: str, processes: int = 1) -> subprocess.Popen:
    """The toy training in processes of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(SCRIPT), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    one = launch("--out", str(tmp_path / "one"), "--batch-size", "4")
    two = launch("--out", str(tmp_path / "two"), "--batch-size", "1", "--accumulate", "2", processes=2)
    for process in (one, two):
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    alone, together = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert together == pytest.approx(alone, rel=1e-5)
    content = checkpoint.read(tmp_path / "two" / LAST)
    expected = checkpoint.read(tmp_path / "one" / LAST)["model"]
    for name, value in content["model"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    for rank in range(2):  # what each process found is known to both; a stop of one stops both
        gathered = json.loads((tmp_path / "two" / f"gathered_{rank}.json").read_text())
        assert gathered == [{"0": "rows", "1": "rows"}, None]
    assert len(content["rng"]) == 2
    assert not torch.equal(*(state["torch"] for state in content["rng"]))


@pytest.mark.parametrize("processes", [1, 2])
def test_signals_end_whole_process_groups_with_a_checkpoint(tmp_path: Path, processes: int) -> None:
    arguments = ("--out", str(tmp_path), "--epochs", "1000", "--delay", "0.05", "--workers", "1", "--batch-size", "8")
    process = launch(*arguments, processes=processes)
    log = tmp_path / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text()):  # the first step, which all take together
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM if processes > 1 else signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "continues from here" in errors
    assert "Traceback" not in errors or processes > 1  # torchrun tells of its own end
    progress = checkpoint.read(tmp_path / LAST)["progress"]
    assert progress["epoch"] < 1000


def test_workers_live_through_one_signal_of_each_kind() -> None:
    def worker(alive: Any) -> None:
        _outlive_signals()
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            alive.send(number)
        os.kill(os.getpid(), signal.SIGTERM)
        alive.send("after the second SIGTERM")

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=worker, args=(theirs,))
    process.start()
    theirs.close()
    process.join()
    assert process.exitcode == -signal.SIGTERM
    assert [ours.recv() for _ in range(3)] == [signal.SIGINT, signal.SIGINT, signal.SIGTERM]
    with pytest.raises(EOFError):
        ours.recv()


def test_a_process_learns_of_the_end_of_its_parent() -> None:
    """However the parent ends, here by SIGKILL, and also where it has ended before."""
    read, write = os.pipe()
    parent = os.fork()
    if not parent:
        own = os.getpid()
        if not os.fork():
            signal.signal(signal.SIGTERM, lambda number, frame: (os.write(write, b"told"), os._exit(0)))
            signal_with_parent(own, signal.SIGTERM)
            os.write(write, b"ready ")
            while True:
                signal.pause()
        os.close(write)
        while True:
            signal.pause()
    os.close(write)
    assert os.read(read, 100) == b"ready "
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert os.read(read, 100) == b"told"
    os.close(read)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    received: list[int] = []
    signal_with_parent(os.getppid() + 1, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)
    assert received == [signal.SIGUSR1]


WORKERS = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
from toy_detector import toy_inputs
from toy_runs import losses, run, same_model, stop_at
from pcdet_ext.engine.devices import make_fabric
from pcdet_ext.engine.loader import EpochBatches, training_loader
from pcdet_ext.engine.run_folder import BEST, LAST
from pcdet_ext.engine.settings import TrainConfig
from pcdet_ext.engine.trainer import Trainer
inputs = toy_inputs(size=100)
"""
AN_ERROR_IN_A_STEP = """
def fail(batch):
    raise ValueError("no such loss")
inputs.detector.loss = fail
Trainer(inputs, TrainConfig(epochs=1, num_workers=2), Path(sys.argv[2]), make_fabric(device="cpu")).fit()
"""
AN_ITERATOR_UNTIL_THE_END = """
held = iter(training_loader(inputs.dataset(0), EpochBatches(100, 4, 0), inputs.collate, 2, torch.device("cpu")))
next(held)
raise ValueError("no such loss")
"""


@pytest.mark.parametrize("code", [AN_ERROR_IN_A_STEP, AN_ITERATOR_UNTIL_THE_END], ids=["step", "iterator"])
def test_an_error_ends_the_workers(tmp_path: Path, code: str) -> None:
    """Workers hold the pipes that this test reads to their end, so it ends only when they have ended too."""
    command = [sys.executable, "-c", WORKERS + code, str(SCRIPT.parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: no such loss\n")


def test_another_seed_is_refused_inside_an_epoch_only() -> None:
    def content(batch: int) -> dict[str, Any]:
        return {"config": {"train": {"seed": 3}}, "progress": {"batch": batch}}

    check_same_order(content(1), 3, "last.ckpt")
    check_same_order(content(0), 9, "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last.ckpt: stands inside an epoch .* train.seed=3, now it is 9"):
        check_same_order(content(1), 9, "last.ckpt")
