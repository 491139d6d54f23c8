"""A detector and a data set so small that a training takes a second; also a script to train in other processes.

The model fits the mean point of a frame to the centre of its box, without batch norm: the gradient of a batch is the
mean over its frames, so that two processes with half the batch must train as one does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pcdet_ext.data.base import collate
from pcdet_ext.engine import testing
from pcdet_ext.engine.devices import make_fabric, seed_everything
from pcdet_ext.engine.interrupts import end_process
from pcdet_ext.engine.settings import TrainConfig
from pcdet_ext.engine.trainer import Trainer, TrainingInputs
from pcdet_ext.evaluation.base import Result
from pcdet_ext.structures import Detections, PointBatch, Sample, Targets

CLASSES = ("Car",)


class ToyDataset:
    """Clouds with noise that depends on (epoch, index) alone, around a box."""

    def __init__(self, size: int = 10) -> None:
        self.size, self.epoch = size, 0
        self.read: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Sample:
        self.read.append((self.epoch, index))
        rng = np.random.default_rng((self.epoch, index))
        centre = np.random.default_rng(index).normal(size=3)
        points = np.column_stack([centre * 2 + rng.normal(size=(20, 3)), rng.random(20)]).astype(np.float32)
        box = np.array([[*centre, 4, 2, 1.5, 0]], np.float32)
        return Sample(points, ("x", "y", "z", "intensity"), f"{index:06d}", Targets.of_names(box, CLASSES))


class ToyDetector(nn.Module):
    """Two layers with dropout (which draws from torch's global generator) on the mean point of each frame."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))

    def centres(self, batch: PointBatch) -> Tensor:
        sums = torch.zeros(batch.batch_size, 4).index_add(0, batch.batch_index, batch.points)
        return self.layers(sums / torch.bincount(batch.batch_index, minlength=batch.batch_size)[:, None])

    def loss(self, batch: PointBatch) -> dict[str, Tensor]:
        wanted = torch.stack([target.boxes[0, :3] for target in batch.targets])
        error = (self.centres(batch) - wanted).square().mean()
        return {"centre": error, "total": error}

    def predict(self, batch: PointBatch) -> list[Detections]:
        boxes = torch.cat([self.centres(batch), torch.ones(batch.batch_size, 4)], dim=1)
        label = torch.zeros(1, dtype=torch.int64)
        return [Detections(b[None], torch.tensor([0.5]), label, CLASSES) for b in boxes]


def toy_collate(samples: Sequence[Sample]) -> PointBatch:
    return collate(samples, CLASSES)


def toy_inputs(size: int = 10, dropout: float = 0.2, evaluate: bool = True, delay: float = 0.0) -> TrainingInputs:
    """What a training works on, the same ones on every call. delay: seconds that each loss takes."""
    seed_everything(7)
    detector, dataset = ToyDetector(dropout), ToyDataset(size)
    if delay:
        loss = detector.loss
        detector.loss = lambda batch: (time.sleep(delay), loss(batch))[1]

    def score(model: nn.Module, should_stop: object) -> Result:
        test = toy_collate([ToyDataset(4)[i] for i in range(4)])
        value = -float(model.loss(test)["total"])
        return Result(value, {"score": value})

    return TrainingInputs(
        detector, lambda epoch: dataset, toy_collate, {"model": {"name": "Toy"}}, score if evaluate else None
    )


class FrameList:
    """An evaluator that only remembers frames."""

    def __init__(self, frame: int) -> None:
        self.frames = {frame: "rows"}

    def state(self) -> dict[int, str]:
        return self.frames

    def merge(self, state: dict[int, str]) -> None:
        self.frames |= state


def gathered(frame: int, finished: bool) -> dict[int, str] | None:
    """What every process knows after `gather`, None when one of them was stopped."""
    evaluator = FrameList(frame)
    return evaluator.frames if testing.gather(evaluator, finished) else None


def main() -> None:
    """Train in this process (or, under torchrun, in several) and leave the checkpoints in a folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = TrainConfig(
        epochs=options.epochs,
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        num_workers=options.workers,
        log_every=1,
    )
    fabric = make_fabric(device="cpu")
    fabric.launch()
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(toy_inputs(16, 0.0, delay=options.delay), settings, options.out, fabric)
    finished = trainer.fit()
    if finished and fabric.world_size > 1:
        shares = [gathered(fabric.global_rank, finished=True), gathered(fabric.global_rank, not fabric.global_rank)]
        (options.out / f"gathered_{fabric.global_rank}.json").write_text(json.dumps(shares))
    end_process(0 if finished else 130)


if __name__ == "__main__":
    main()
