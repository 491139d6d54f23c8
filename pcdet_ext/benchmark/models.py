"""Time and memory of whole detectors on one frame, stage by stage, and what of it is grouping."""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from pcdet_ext import config
from pcdet_ext.benchmark.frames import synthetic_scan
from pcdet_ext.benchmark.memory import peak_since, start_peak
from pcdet_ext.benchmark.profiles import Operation, longest_operations
from pcdet_ext.benchmark.simulated import usual_frame
from pcdet_ext.benchmark.timing import now
from pcdet_ext.engine.allocation import keep_freed_memory
from pcdet_ext.engine.info import hardware, native_status, versions
from pcdet_ext.files import atomic_write
from pcdet_ext.inference import resolve_device
from pcdet_ext.mixers import mamba
from pcdet_ext.models.detector import VoxelDetector, build_detector
from pcdet_ext.models.heads import CenterHead
from pcdet_ext.models.heads.shortcuts import detected
from pcdet_ext.models.layers.folding import folded
from pcdet_ext.ops.selective_scan import selective_scan_reference
from pcdet_ext.structures import PointBatch, SparseVoxels

FORMAT = 2
CONFIGS = (
    "waymo/flatformer",
    "waymo/dsvt_pillar",
    "waymo/dsvt_voxel",
    "waymo/scatterformer",
    "lion/waymo_mamba",
    "lion/nuscenes_mamba",
)
SCAN_POINTS = 60_000  # of each scan that is added until there are enough voxels
MOST_SCANS = 64
DENSE_VOXELS = 60_000  # of the dense frame where no number is given and the range holds so many
SPREAD = 40.0  # metres that scans are apart, at most, along x and y
STAGES = ("encoder", "backbone", "bev_backbone")  # and "head", what the heads find in the end
FRAMES = ("usual", "dense")
PEAKS = 1000  # cells of a heatmap whose score passes, in each task


@dataclass(frozen=True)
class ModelTiming:
    """What one detector took for one frame.

    Args:
        config: name of the configuration.
        frame: what the frame is.
        points: of the frame.
        voxels: that the encoder made of it.
        parameters: of the detector.
        rounds: how often it was measured.
        seconds: median of each stage.
        parts: seconds of the backbone's plans: "grouping" (orders, partitions and what is derived from them),
            "neighbour tables" (of sparse convolutions) and "position embeddings".
        peak_mb: highest memory in MB until the end of each stage, beyond model and frame; None where unknown.
        plain: seconds of the whole pass without what inference shortens: batch norms as they are, all branches of the
            heads on the whole map.
        reference_scan: seconds of the backbone on the PyTorch definition of Mamba's scan.
        operations: those that took the most time in one more pass, where they were asked for.
    """

    config: str
    frame: str
    points: int
    voxels: int
    parameters: int
    rounds: int
    seconds: dict[str, float]
    parts: dict[str, float]
    peak_mb: dict[str, float | None]
    plain: float
    reference_scan: float | None = None
    operations: tuple[Operation, ...] = ()

    @property
    def grouping_share(self) -> float:
        """Share of the backbone's time that is grouping; 0 in a detector without one."""
        return self.parts.get("grouping", 0.0) / self.seconds["backbone"] if "backbone" in self.seconds else 0.0

    def lines(self) -> Iterator[str]:
        """What to print."""
        total = sum(self.seconds.values())
        yield (
            f"{self.config}, {self.frame}: {self.voxels} voxels of {self.points} points, "
            f"{self.parameters / 1e6:.2f} M parameters: {total:.3f} s ({self.plain:.3f} s without shortcuts)"
        )
        for name, seconds in self.seconds.items():
            peak = self.peak_mb[name]
            yield f"    {name:14s} {seconds:8.3f} s" + ("" if peak is None else f"  peak {peak:7.0f} MB")
        if "backbone" in self.seconds:
            grouping, tables = self.parts.get("grouping", 0.0), self.parts.get("neighbour tables", 0.0)
            yield f"    of the backbone: grouping {grouping:.3f} s ({self.grouping_share:.1%}), " + (
                f"neighbour tables {tables:.3f} s"
            )
        if self.reference_scan is not None:
            ratio = self.reference_scan / self.seconds["backbone"]
            yield f"    backbone on the PyTorch scan: {self.reference_scan:.3f} s, {ratio:.1f}x"
        yield from (operation.line() for operation in self.operations)


def run_models(
    paths: Sequence[str | Path] = (),
    device: str = "cpu",
    voxels: int | None = None,
    rounds: int = 3,
    threads: int | None = None,
    reference_scan: bool = False,
    json_path: Path | None = None,
    frames: Sequence[str] = FRAMES,
    operations: int = 0,
    overrides: Sequence[str] = (),
) -> None:
    """Measure detectors, each in a process of its own, so that the memory of one is not that of the next.

    Args:
        paths: configurations; by default published models of each backbone.
        device: "cpu", "cuda", or "auto" for CUDA where there is one.
        voxels: at least so many in the dense frame; None stands for `DENSE_VOXELS`, or for those that `MOST_SCANS`
            scans have in a range that holds fewer.
        rounds: passes, after one that does not count.
        threads: of torch and the native kernels.
        reference_scan: whether a backbone with Mamba is timed on the PyTorch definition of its scan, too, once.
        json_path: where everything is written.
        frames: "usual", as the sensors of the data set give it (see `usual_frame`), "dense", of `frame_with_voxels`, or
            both.
        operations: how many of those that take the most time to list.
        overrides: changes of every configuration, `a.b=value`; `data.root=DIR` measures a frame of a prepared folder.

    Raises:
        ConfigError: a configuration cannot be used, or the device is not there.
        ValueError: a number is below 1, or a detector's range cannot hold the voxels that were asked for.
    """
    for name, value in {"voxels": voxels, "rounds": rounds, "threads": threads}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    wanted = Measurement(
        str(resolve_device(device)), voxels, rounds, threads, reference_scan, operations, tuple(overrides)
    )
    context = multiprocessing.get_context("spawn")
    results = []
    for path in map(config.find, paths or CONFIGS):
        for frame in frames:
            with context.Pool(1, keep_freed_memory) as pool:
                timing = pool.apply(measure_model, (path, frame, wanted))
            print("\n".join(timing.lines()), flush=True)
            results.append(timing)
    if json_path is not None:
        _write(json_path, wanted.device, results)


@dataclass(frozen=True)
class Measurement:
    """What is measured of every detector; the arguments are those of `run_models`."""

    device: str
    voxels: int | None
    rounds: int
    threads: int | None
    reference_scan: bool
    operations: int
    overrides: tuple[str, ...]


def measure_model(path: Path, frame: str, wanted: Measurement) -> ModelTiming:
    """Measure one detector, untrained, on one frame.

    Args:
        path: of its configuration.
        frame: "usual" or "dense", see `run_models`.
        wanted: what is measured.
    """
    if wanted.threads is not None:
        torch.set_num_threads(wanted.threads)
    settings = config.load(path, wanted.overrides)
    plain = build_detector(settings).to(wanted.device).eval()
    if frame == "dense":
        batch, about = dense_frame(plain, wanted.voxels, wanted.device)
    else:
        batch, about = usual_frame(settings)
        batch = batch.to(wanted.device)
    set_peaks(plain, batch)
    detector = folded(plain)
    seconds, parts, whole, place = [], [], [], torch.device(wanted.device)
    with torch.inference_mode():
        peaks = _peaks(detector, batch, wanted.device)
        for _ in range(wanted.rounds):
            found, plans = _one_pass(detector, batch, wanted.device, lambda _: None)
            seconds.append(found)
            parts.append(plans)
            whole.append(_whole_pass(plain, batch, wanted.device))
        longest = _longest(detector, batch, place, wanted.operations)
        reference = _reference_scan(detector, batch, wanted.device) if wanted.reference_scan else None
        count = len(plain.encoder(batch))
    return ModelTiming(
        f"{path.parent.name}/{path.stem}",
        about,
        len(batch.points),
        count,
        sum(p.numel() for p in plain.parameters()),
        wanted.rounds,
        _medians(seconds),
        _medians(parts),
        peaks,
        median(whole),
        reference,
        longest,
    )


def _peaks(detector: VoxelDetector, batch: PointBatch, device: str) -> dict[str, float | None]:
    """Highest memory in MB until the end of each stage of a first pass, which warms up, too."""
    place = torch.device(device)
    peaks: dict[str, float | None] = {}
    before = start_peak(place)
    _one_pass(detector, batch, device, lambda name: peaks.update({name: peak_since(before, place)}))
    return {name: None if peak is None else peak / 1e6 for name, peak in peaks.items()}


def _longest(detector: VoxelDetector, batch: PointBatch, place: torch.device, count: int) -> tuple[Operation, ...]:
    if not count:
        return ()
    return tuple(longest_operations(lambda: _one_pass(detector, batch, str(place), lambda _: None), place, count))


def _reference_scan(detector: VoxelDetector, batch: PointBatch, device: str) -> float | None:
    """Seconds of the backbone on the PyTorch definition of Mamba's scan; None without Mamba."""
    if not any(isinstance(module, mamba.Mamba) for module in detector.modules()):
        return None
    with mock.patch.object(mamba, "selective_scan", selective_scan_reference):
        return _one_pass(detector, batch, device, lambda _: None)[0]["backbone"]


@torch.no_grad()
def set_peaks(detector: VoxelDetector, batch: PointBatch) -> None:
    """Let untrained center heads score as many cells above their threshold as trained ones, `PEAKS` in each task.

    The heatmap of untrained parameters is about the same everywhere, and all of it passes or nothing.
    """
    heads = [head for head in detector.named_heads().values() if isinstance(head, CenterHead)]
    maps = detector.features(batch).bev if heads else None
    for head in heads:
        bar = math.log(head.score_threshold / (1 - head.score_threshold)) if 0 < head.score_threshold < 1 else 0.0
        for task, output in zip(head.heads_list, head(maps).tasks, strict=True):
            best = output.heatmap.amax(1).flatten()
            *_, last = (layer for layer in task.get_submodule("hm").modules() if isinstance(layer, nn.Conv2d))
            last.bias += bar - best.topk(min(PEAKS, len(best))).values[-1]


def _whole_pass(detector: VoxelDetector, batch: PointBatch, device: str) -> float:
    """Seconds of a pass whose heads compute everything on the whole map."""
    start = now(device)
    output = detector(batch)
    for name, head in detector.named_heads().items():
        head.decode(output if detector.head is not None else output[name])
    return now(device) - start


def dense_frame(detector: VoxelDetector, voxels: int | None, device: str) -> tuple[PointBatch, str]:
    """A frame of joined synthetic scans, and what to call it.

    Args:
        detector: whose encoder is asked for the voxels.
        voxels: at least so many; None takes `DENSE_VOXELS`, or those that `MOST_SCANS` scans have where they are fewer.
        device: where the frame is put.

    Raises:
        ValueError: the range is too small for `voxels`.
    """
    if voxels is not None:
        return frame_with_voxels(detector, voxels, device)[0], "a dense frame"
    batch, count, scans = _join_scans(detector, DENSE_VOXELS, device)
    if count >= DENSE_VOXELS:
        return batch, "a dense frame"
    return batch, f"a dense frame ({scans} scans have no {DENSE_VOXELS} voxels in this range)"


def frame_with_voxels(detector: VoxelDetector, voxels: int, device: str) -> tuple[PointBatch, int]:
    """A frame of synthetic scans in which the detector's encoder finds enough voxels.

    Scans from places some metres apart stand for the sensors and sweeps of one frame; their number is doubled until
    there are enough.

    Args:
        detector: whose encoder is asked.
        voxels: how many are enough.
        device: where the frame is put.

    Returns:
        The frame, and how many voxels the encoder finds.

    Raises:
        ValueError: the range is too small for so many.
    """
    batch, count, number = _join_scans(detector, voxels, device)
    if count < voxels:
        raise ValueError(f"{number} scans have {count} voxels in the detector's range, {voxels} were asked for")
    return batch, count


def _join_scans(detector: VoxelDetector, voxels: int, device: str) -> tuple[PointBatch, int, int]:
    """A frame of so many scans that it has `voxels`, at most `MOST_SCANS`; its voxels, and the number of scans."""
    number = 1
    while True:
        points = np.concatenate([_scan(seed, detector.num_point_features) for seed in range(number)])
        batch = PointBatch.from_points([torch.from_numpy(points)]).to(device)
        with torch.inference_mode():
            count = len(detector.encoder(batch))
        if count >= voxels or number >= MOST_SCANS:
            return batch, count, number
        number *= 2


def _scan(seed: int, columns: int) -> np.ndarray:
    """A synthetic scan float32 [SCAN_POINTS, columns] from a place of its own, further columns 0."""
    scan = synthetic_scan(SCAN_POINTS, seed)
    scan[:, :2] += np.random.default_rng(seed).uniform(-SPREAD, SPREAD, 2) * (seed > 0)
    more = np.zeros((len(scan), max(columns - scan.shape[1], 0)), np.float32)
    return np.concatenate([scan, more], 1)[:, :columns].astype(np.float32)


def _one_pass(
    detector: VoxelDetector, batch: PointBatch, device: str, after: Callable[[str], None]
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each stage, and of the plans made in the backbone."""
    seconds: dict[str, float] = {}
    with _timed_stages(detector, device, seconds, after), _timed_plans(device) as parts:
        features = detector.features(batch)
        start = now(device)
        for head in detector.named_heads().values():
            detected(head, features.of(head.reads))
    seconds["head"] = now(device) - start
    after("head")
    return seconds, dict(parts)


@contextmanager
def _timed_stages(
    detector: VoxelDetector, device: str, seconds: dict[str, float], after: Callable[[str], None]
) -> Iterator[None]:
    begun: dict[str, float] = {}
    handles = []

    def before(name: str) -> Callable[..., None]:
        return lambda *_: begun.update({name: now(device)})

    def behind(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            seconds[name] = now(device) - begun[name]
            after(name)

        return hook

    for name in STAGES:
        stage: nn.Module | None = getattr(detector, name)
        if stage is not None:
            handles += [stage.register_forward_pre_hook(before(name)), stage.register_forward_hook(behind(name))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _timed_plans(device: str) -> Iterator[dict[str, float]]:
    """Seconds that making plans took, those of a plan inside another one counted once."""
    parts: dict[str, float] = defaultdict(float)
    original, depth = SparseVoxels.plan, [0]

    @wraps(original)
    def plan(self: SparseVoxels, key: Any, make: Callable[[SparseVoxels], Any]) -> Any:
        if key in self.plans:
            return self.plans[key]
        start, depth[0] = now(device), depth[0] + 1
        try:
            return original(self, key, make)
        finally:
            depth[0] -= 1
            if depth[0] == 0:
                parts[_part(key)] += now(device) - start

    with mock.patch.object(SparseVoxels, "plan", plan):
        yield parts


def _part(key: Any) -> str:
    """What the plan under a key of `SparseVoxels.plan` is for."""
    first = key[0] if isinstance(key, tuple) else key
    if isinstance(first, type):
        return "position embeddings"
    is_table = isinstance(first, str) and any(word in first for word in ("conv", "table"))
    return "neighbour tables" if is_table else "grouping"


def _medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: median(row.get(name, 0.0) for row in rows) for name in rows[0]}


def _write(path: Path, device: str, results: Sequence[ModelTiming]) -> None:
    content = {
        "format": FORMAT,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": device,
        "hardware": hardware(),
        "versions": versions(),
        "native": native_status(device),
        "results": [asdict(result) | {"grouping_share": result.grouping_share} for result in results],
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
