"""Trainings of the toy detector in this process, and what they leave."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from toy_detector import toy_inputs

from pcdet_ext import checkpoint
from pcdet_ext.engine.devices import make_fabric
from pcdet_ext.engine.settings import TrainConfig
from pcdet_ext.engine.trainer import Trainer, TrainingInputs


def run(
    out: Path, inputs: TrainingInputs | None = None, resume: Mapping[str, Any] | None = None, **settings: Any
) -> bool:
    """Train the toy detector in `out`; False when it was stopped."""
    options = TrainConfig(**{"epochs": 3, "num_workers": 0, "log_every": 1, "batch_size": 4} | settings)
    out.mkdir(parents=True, exist_ok=True)
    fabric = make_fabric(options.precision, "cpu")
    return Trainer(inputs or toy_inputs(), options, out, fabric, resume).fit()


def losses(out: Path) -> dict[int, float]:
    """The loss of each step from the log; a step written twice must not differ."""
    result: dict[int, float] = {}
    for line in (out / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] == "train":
            assert result.setdefault(entry["step"], entry["total"]) == entry["total"]
    return result


def same_model(a: Path, b: Path) -> bool:
    first, second = checkpoint.read(a)["model"], checkpoint.read(b)["model"]
    return all(torch.equal(first[k], second[k]) for k in first)


def stop_at(inputs: TrainingInputs, step: int) -> TrainingInputs:
    """The same inputs, with a Ctrl-C in the middle of a step (from 0)."""
    loss, count = inputs.detector.loss, iter(range(10**6))

    def interrupted(batch: Any) -> dict[str, Tensor]:
        if inputs.detector.training and next(count) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(batch)

    inputs.detector.loss = interrupted
    return inputs
