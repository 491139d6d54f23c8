"""Time of a training step: forward, backward and update, on batches of a data set that are there already."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import torch

from pcdet_ext import config
from pcdet_ext.benchmark.timing import now
from pcdet_ext.config import construct, section, setting
from pcdet_ext.data.base import collate
from pcdet_ext.data.formats import build_dataset
from pcdet_ext.engine.allocation import keep_freed_memory
from pcdet_ext.engine.devices import seed_everything
from pcdet_ext.engine.optimizer import build_optimizer, clip_gradients
from pcdet_ext.engine.settings import TrainConfig
from pcdet_ext.inference import resolve_device
from pcdet_ext.models.detector import build_detector
from pcdet_ext.structures import PointBatch

WARM_UP = 2  # steps that do not count


@dataclass(frozen=True)
class StepTiming:
    """Seconds of a training step of a configuration in float32: median and fastest of `steps` ones."""

    config: str
    frames: int
    steps: int
    median: float
    fastest: float

    def line(self) -> str:
        """What to print."""
        return (
            f"{self.config}: {self.median:.3f} s per step of {self.frames} frames "
            f"(median of {self.steps}, fastest {self.fastest:.3f} s)"
        )


def run_steps(
    paths: Sequence[str | Path],
    overrides: Sequence[str],
    device: str = "cpu",
    steps: int = 6,
    threads: int | None = None,
) -> None:
    """Measure training steps of each configuration, in a process of its own, and print one line for each.

    Args:
        paths: the configurations.
        overrides: changes of every one, `a.b=value`.
        device: "cpu", "cuda", or "auto" for CUDA where there is one.
        steps: how many count.
        threads: of torch and the native kernels.

    Raises:
        ConfigError: a configuration cannot be used, or the device is not there.
        DataError: training frames cannot be read.
        ValueError: there is no configuration, or a number is below 1.
    """
    if not paths:
        raise ValueError("name a configuration, and its data as data.root=DIR")
    for name, value in {"steps": steps, "threads": 1 if threads is None else threads}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    place = str(resolve_device(device))
    context = multiprocessing.get_context("spawn")
    for path in map(config.find, paths):
        with context.Pool(1, keep_freed_memory) as pool:
            print(pool.apply(measure_steps, (path, overrides, place, steps, threads)).line(), flush=True)


def measure_steps(
    path: Path, overrides: Sequence[str], device: str, steps: int, threads: int | None = None
) -> StepTiming:
    """Measure the training steps of one configuration.

    Args:
        path: of the configuration.
        overrides: changes of it, `a.b=value`.
        device: "cpu" or "cuda".
        steps: how many count, after those that warm up.
        threads: of torch and the native kernels, None for torch's choice.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    settings = config.load(path, overrides)
    options = construct(TrainConfig, section(settings, "train"))
    seed_everything(options.seed)
    batches = [batch.to(device) for batch in _batches(settings, options, WARM_UP + steps)]
    detector = build_detector(settings).to(device).train()
    optimizer = build_optimizer(detector, options)
    seconds = []
    for batch in batches:
        begun = now(device)
        optimizer.zero_grad()
        detector.loss(batch)["total"].backward()
        clip_gradients(detector.parameters(), options.grad_norm_clip)
        optimizer.step()
        seconds.append(now(device) - begun)
    counted = seconds[WARM_UP:]
    return StepTiming(f"{path.parent.name}/{path.stem}", options.batch_size, steps, median(counted), min(counted))


def _batches(settings: config.Node, options: TrainConfig, count: int) -> list[PointBatch]:
    """The first batches of the training set, from its start again where it is small."""
    data = section(settings, "data")
    dataset = build_dataset(data, "train", training=True, seed=options.seed)
    classes = tuple(setting(data, "classes", Sequence[str], ()))
    wanted = [i % len(dataset) for i in range(count * options.batch_size)]
    samples = (dataset[i] for i in wanted)
    return [collate(list(islice(samples, options.batch_size)), classes) for _ in range(count)]
