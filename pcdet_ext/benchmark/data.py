"""How fast samples are made from the files of a data set, and what an index of many frames costs."""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pcdet_ext import config
from pcdet_ext.config import Node, construct, section
from pcdet_ext.data.augment.steps import GroundTruthSampling
from pcdet_ext.data.base import FrameDataset, collate
from pcdet_ext.data.formats import build_dataset
from pcdet_ext.data.index import FrameInfo, index_path, read_index, write_index
from pcdet_ext.engine.info import hardware, versions
from pcdet_ext.engine.loader import EpochBatches, training_loader
from pcdet_ext.engine.settings import TrainConfig
from pcdet_ext.files import atomic_write

STAGES = ("reading", "sweeps", "cropping", "sampling", "augmentation", "batching", "the rest")
SWEEPS = "max_sweeps"  # field of data sets: the number of scans that a sample has
FRAMES, BOXES = 160_000, 60  # of the made-up index: as many frames as Waymo has for training
SEQUENCE = 198  # frames
WARM_UP = 4  # samples that do not count
LOOK_UPS = 2000  # frames that are read from the index


@dataclass(frozen=True)
class SampleTiming:
    """What a training sample of a configuration took in one process, with or without augmentation.

    seconds: of one sample; processor: seconds of processor time of one sample, all threads together; stages: seconds of
    one sample by stage, of which `sweeps` is what it takes to read and join the scans before the frame's own; points:
    of a sample; loaded: samples per second that `workers` loader processes give, and worker_seconds: processor time of
    a worker for one sample; None without workers.
    """

    config: str
    augmented: bool
    samples: int
    points: float
    seconds: float
    processor: float
    stages: Mapping[str, float]
    workers: int = 0
    loaded: float | None = None
    worker_seconds: float | None = None

    def line(self) -> str:
        """What to print."""
        shares = ", ".join(f"{name} {self.stages[name] / self.seconds:.0%}" for name in STAGES)
        text = (
            f"{self.config} {'with' if self.augmented else 'without'} augmentation: {1 / self.seconds:.1f} samples per "
            f"second and process ({self.seconds * 1e3:.1f} ms, {self.processor * 1e3:.1f} ms of processor time, "
            f"{self.points:.0f} points): {shares}"
        )
        if self.loaded is None or self.worker_seconds is None:
            return text
        return (
            f"{text}; {self.workers} workers: {self.loaded / self.workers:.1f} samples per second and worker, "
            f"{self.worker_seconds * 1e3:.1f} ms of processor time per sample"
        )


@dataclass(frozen=True)
class IndexTiming:
    """What an index costs.

    bytes: of its file; write, open, classes, frame: seconds to write it, to open it, to find the frames of each class,
    and to look up one frame; memory: bytes that a process has for itself after all that, None where it is not known.
    """

    frames: int
    boxes: int
    bytes: int
    write: float
    open: float
    classes: float
    frame: float
    memory: int | None

    def line(self) -> str:
        """What to print."""
        memory = "unknown" if self.memory is None else f"{self.memory / 1e6:.0f} MB"
        return (
            f"index of {self.frames} frames with {self.boxes} boxes ({self.bytes / 1e6:.0f} MB): written in "
            f"{self.write:.1f} s, opened in {self.open:.3f} s, frames of each class in {self.classes:.2f} s, a random "
            f"frame in {self.frame * 1e3:.2f} ms; memory of a process: {memory}"
        )


def run_data(
    paths: Sequence[str],
    overrides: Sequence[str] = (),
    samples: int = 100,
    workers: int = 1,
    frames: int = FRAMES,
    boxes: int = BOXES,
    json_path: Path | None = None,
) -> None:
    """Measure the making of samples for each configuration, then a made-up index, printing one line for each.

    Args:
        paths: configurations whose training frames are read.
        overrides: changes of every configuration (`data.root=…`).
        samples: how many count.
        workers: loader processes that are measured too; 0 for none.
        frames, boxes: size of the made-up index, which is written to a temporary folder; 0 frames leave it out.
        json_path: where everything is written.

    Raises:
        ConfigError: a configuration cannot be used.
        DataError: its training frames cannot be read.
        ValueError: a number is too small, or there is nothing to measure.
    """
    for name, value, least in (("samples", samples, 1), ("workers", workers, 0), ("frames", frames, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not paths and not frames:
        raise ValueError("name a configuration, and its data as data.root=DIR, or a number of frames for an index")
    timings: list[SampleTiming] = []
    context = multiprocessing.get_context("spawn")
    for path in map(config.find, paths):
        for augmented in (False, True):
            with context.Pool(1) as pool:  # a process of its own, as nothing is to be left from the one before
                timing = pool.apply(measure_samples, (path, overrides, augmented, samples))
            if workers:
                loaded, seconds = measure_loader(path, overrides, augmented, samples, workers)
                timing = replace(timing, workers=workers, loaded=loaded, worker_seconds=seconds)
            timings.append(timing)
            print(timing.line(), flush=True)
    index = measure_index(frames, boxes) if frames else None
    if index is not None:
        print(index.line(), flush=True)
    if json_path is not None:
        _write(json_path, timings, index)


def _write(path: Path, timings: Sequence[SampleTiming], index: IndexTiming | None) -> None:
    content = {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "hardware": hardware(),
        "versions": versions(),
        "samples": [asdict(timing) for timing in timings],
        "index": None if index is None else asdict(index),
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def measure_samples(path: Path, overrides: Sequence[str], augmented: bool, samples: int) -> SampleTiming:
    """Measure the samples of one configuration in this process; see `run_data`.

    Args:
        path: of the configuration.
        overrides: changes of it, `a.b=value`.
        augmented: whether frames are augmented as in training.
        samples: how many to measure.
    """
    torch.set_num_threads(1)  # as in a loader worker
    dataset = _dataset(path, overrides, augmented, samples + WARM_UP)
    watch = _Stopwatch()
    watch.observe(dataset)
    batched = watch.timed("batching", partial(collate, classes=dataset.classes))
    for number in range(WARM_UP):
        batched([dataset[number]])
    watch.seconds.clear()
    points = 0
    begun, used = time.perf_counter(), time.process_time()
    for number in range(WARM_UP, WARM_UP + samples):
        sample = dataset[number]
        batched([sample])
        points += len(sample.points)
    seconds, processor = time.perf_counter() - begun, time.process_time() - used
    stages = {name: watch.seconds[name] / samples for name in STAGES}
    stages["the rest"] = seconds / samples - sum(stages.values())
    stages["sweeps"] = max(0.0, stages["reading"] - _reading_of_one_scan(dataset, samples))
    stages["reading"] -= stages["sweeps"]
    name = f"{path.parent.name}/{path.stem}"
    return SampleTiming(name, augmented, samples, points / samples, seconds / samples, processor / samples, stages)


def _dataset(path: Path, overrides: Sequence[str], augmented: bool, samples: int) -> FrameDataset:
    """The training frames of a configuration, repeated until there are as many as are asked for."""
    settings = config.load(path, overrides)
    data = section(settings, "data")
    if not augmented:
        data = Node({**data, "augment": []}, data.key_path, data.sources)
    dataset = build_dataset(data, "train", training=True)
    if not isinstance(dataset, FrameDataset):
        raise ValueError(f"{path}: the samples of several sources cannot be measured; name one as data.root")
    return replace(dataset, repeat=-(-samples // len(dataset.frames)))


def _reading_of_one_scan(dataset: FrameDataset, samples: int) -> float:
    """Seconds that reading a frame takes without the scans before its own."""
    if SWEEPS not in {field.name for field in fields(dataset)}:
        return np.inf
    changes: dict[str, Any] = {"augment": (), "disable_augmentations": (), SWEEPS: 1}
    single = replace(dataset, **changes)
    watch = _Stopwatch()
    watch.observe(single)
    for number in range(samples):
        _ = single[number]
    return watch.seconds["reading"] / samples


class _Stopwatch:
    """Adds up the seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time counted."""

        def counted(*args: Any) -> Any:
            begun = time.perf_counter()
            result = call(*args)
            self.seconds[stage] += time.perf_counter() - begun
            return result

        return counted

    def observe(self, dataset: FrameDataset) -> None:
        """Count what a data set does for its samples from now on."""
        for stage, name in (("reading", "read"), ("cropping", "crop")):
            object.__setattr__(dataset, name, self.timed(stage, getattr(dataset, name)))
        dataset.augmentations = [
            self.timed("sampling" if isinstance(step, GroundTruthSampling) else "augmentation", step)
            for step in dataset.augmentations
        ]


def measure_loader(
    path: Path, overrides: Sequence[str], augmented: bool, samples: int, workers: int
) -> tuple[float, float]:
    """Measure a loader with workers; see `run_data`.

    Args:
        path: of the configuration.
        overrides: changes of it, `a.b=value`.
        augmented: whether frames are augmented as in training.
        samples: how many to measure.
        workers: processes.

    Returns:
        Samples per second of all workers together, and the processor time of the workers for one sample, in seconds.
    """
    options = construct(TrainConfig, section(config.load(path, overrides), "train"))
    size = options.batch_size
    count = -(-samples // size) + workers * 2  # as many batches are begun before the first one is there
    dataset = _dataset(path, overrides, augmented, count * size)
    batches = EpochBatches(len(dataset), size, seed=0)
    batches.seek(0, batches.steps - count)
    before = _processor_time_of_children()
    loader = training_loader(dataset, batches, partial(collate, classes=dataset.classes), workers, torch.device("cpu"))
    times = [time.perf_counter() for _ in loader]
    del loader  # ends the workers
    used = _processor_time_of_children() - before
    return size * (len(times) - 1) / (times[-1] - times[0]), used / (size * len(times))


def _processor_time_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure_index(frames: int, boxes: int) -> IndexTiming:
    """Measure a made-up index, in a temporary folder; see `run_data`."""
    with tempfile.TemporaryDirectory() as folder:
        path, small = index_path(folder, "train"), index_path(folder, "small")
        write_index(small, made_up_frames(2, 2))
        begun = time.perf_counter()
        write_index(path, made_up_frames(frames, boxes))
        write, size = time.perf_counter() - begun, path.stat().st_size
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            opened, classes, frame, memory = pool.apply(_use_index, (path, small))
    return IndexTiming(frames, boxes, size, write, opened, classes, frame, memory)


def made_up_frames(frames: int, boxes: int) -> Iterator[FrameInfo]:
    """Index entries as of driving recordings."""
    rng = np.random.default_rng(0)
    names = np.array(["Vehicle", "Pedestrian", "Cyclist"])
    for i in range(frames):
        sequence = f"segment-{i // SEQUENCE:020d}_with_camera_labels"
        yield FrameInfo(
            f"{sequence}_{i % SEQUENCE:03d}",
            150_000,
            0,
            sequence,
            rng.normal(0, 30, (boxes, 9)).astype(np.float32),
            tuple(names[rng.integers(len(names), size=boxes)].tolist()),
            rng.integers(1, 3, boxes),
            rng.integers(0, 500, boxes),
            np.arange(boxes),
            i / 10,
            np.eye(4),
            {"context": sequence, "timestamp_micros": 100_000 * i},
        )


def _use_index(path: Path, small: Path) -> tuple[float, float, float, int | None]:
    """(seconds to open it, to find the frames of each class, to look up a frame; bytes of own memory for that)."""
    read_index(small)[0].targets()  # the libraries themselves take memory when they are first used
    read_index(small).frames_by_class()
    before = _own_memory()
    begun = time.perf_counter()
    table = read_index(path)
    opened = time.perf_counter() - begun
    begun = time.perf_counter()
    table.frames_by_class()
    classes = time.perf_counter() - begun
    positions = np.random.default_rng(0).integers(len(table), size=LOOK_UPS)
    begun = time.perf_counter()
    for position in positions.tolist():
        table[position].targets()
    frame = (time.perf_counter() - begun) / LOOK_UPS
    after = _own_memory()
    return opened, classes, frame, None if before is None or after is None else after - before


def _own_memory() -> int | None:
    """Bytes that this process alone has in memory, files mapped into it aside; None where the system does not tell."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    return 1024 * int(sizes["Anonymous"])
