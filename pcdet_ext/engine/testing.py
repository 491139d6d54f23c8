"""Running a detector over a data set and measuring it with the data set's own metric."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from json import dumps
from pathlib import Path

import numpy as np
import torch.distributed
from tqdm import tqdm

from pcdet_ext.config import ConfigError, Node, construct, section
from pcdet_ext.data.dataset import KittiDataset, build_dataset, collate
from pcdet_ext.data.kitti.files import Labels, boxes_to_labels, write_labels
from pcdet_ext.engine.loader import frame_loader
from pcdet_ext.evaluation.kitti import CLASSES, KittiResult, evaluate
from pcdet_ext.files import atomic_write
from pcdet_ext.inference import Detector, load
from pcdet_ext.structures import Detections, Sample


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The optional `test:` section of a configuration.

    split: what is tested; batch_size: frames at a time; num_workers: loader processes; score_threshold: detections
    with a lower score are left out.
    """

    split: str = "val"
    batch_size: int = 4
    num_workers: int = 2
    score_threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError("batch_size must be at least 1 and num_workers at least 0")


def eval_config(settings: Node) -> EvalConfig:
    """The `test:` section, or the defaults without one."""
    return construct(EvalConfig, settings.get("test") or Node(key_path="test"))


def predict(
    detector: Detector,
    dataset: KittiDataset,
    options: EvalConfig,
    indices: Sequence[int] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    silent: bool = False,
) -> dict[int, Labels] | None:
    """KITTI result rows of the frames `indices` (None: all) of a data set, by index; None when stopped."""
    indices = range(len(dataset)) if indices is None else indices
    join = partial(collate, classes=detector.classes)
    loader = frame_loader(dataset, indices, options.batch_size, join, options.num_workers, detector.device)
    results: dict[int, Labels] = {}
    order = iter(indices)
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=len(indices), unit="frame", desc="test", leave=False, disable=silent, mininterval=interval) as bar:
        for samples, batch in loader:
            if should_stop():
                return None
            for sample, found in zip(samples, detector.predict(batch), strict=True):
                results[next(order)] = to_labels(found.above(options.score_threshold).numpy(), sample)
            bar.update(len(samples))
    return results


def to_labels(detections: Detections, sample: Sample) -> Labels:
    """Detections (NumPy) as rows of a KITTI result file: those of which the camera sees a part."""
    if sample.calibration is None:  # a damaged frame that the data set was told to leave out
        return _no_rows()
    names, scores = detections.names, np.asarray(detections.scores, np.float64)
    rows = boxes_to_labels(detections.boxes, names, sample.calibration, sample.image_size, scores)
    seen = (rows.bbox[:, 2] > rows.bbox[:, 0]) & (rows.bbox[:, 3] > rows.bbox[:, 1])
    return rows.select(seen)


def measure(
    checkpoint: str | Path,
    overrides: Iterable[str] = (),
    split: str | None = None,
    out: str | Path | None = None,
    json: str | Path | None = None,
    device: str = "auto",
) -> str:
    """Test a checkpoint on a split (None: the configuration's) and tell the result, as a text with the AP table.

    out: folder for result files; json: file for all numbers. Frames without labels are only detected in.
    Raises ConfigError, and DataError (CheckpointError among them) that names the file.
    """
    detector = load(checkpoint, device, overrides)
    options = eval_config(detector.config)
    split = split or options.split
    dataset = build_dataset(section(detector.config, "data"), split, training=False)
    started = time.perf_counter()
    results = predict(detector, dataset, options)
    seconds = time.perf_counter() - started
    lines = [f"{len(dataset)} frames of {split} in {seconds:.1f} s ({len(dataset) / seconds:.1f} frames/s)"]
    if out is not None:
        write_results(out, dataset, results)
        lines.append(f"result files: {out}")
    if all(frame.boxes is not None for frame in dataset.frames):
        result = metric(dataset, results)
        lines.append(result.table())
        if json is not None:
            with atomic_write(json) as temporary:
                temporary.write_text(dumps(result.to_json()), encoding="utf-8")
    else:
        lines.append(f"no labels in {split}: nothing to measure")
    return "\n".join(lines)


def metric(dataset: KittiDataset, results: Mapping[int, Labels]) -> KittiResult:
    """The official metric over the frames of `results`, for those of the data set's classes that KITTI measures."""
    known = [name for name in dataset.classes if name in CLASSES]
    if not known:
        raise ConfigError(
            f"data.classes: KITTI measures none of {', '.join(dataset.classes)}, only {', '.join(CLASSES)}"
        )
    indices = sorted(results)
    return evaluate([dataset.labels(i) for i in indices], [results[i] for i in indices], known)


def gather(results: dict[int, Labels] | None) -> dict[int, Labels] | None:
    """The results of all processes together, in every one; None when one of them was stopped."""
    shares: list[dict[int, Labels] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, results)
    if any(share is None for share in shares):
        return None
    return {index: rows for share in shares for index, rows in share.items()}


def write_results(folder: str | Path, dataset: KittiDataset, results: Mapping[int, Labels]) -> None:
    """One result file a frame, `<frame id>.txt`, as the KITTI server and devkit take them."""
    for index, rows in sorted(results.items()):
        write_labels(Path(folder) / f"{dataset.frame(index).frame_id}.txt", rows)


def _no_rows() -> Labels:
    none = np.zeros(0)
    return Labels(
        (), none, none.astype(np.int64), none, np.zeros((0, 4)), np.zeros((0, 3)), np.zeros((0, 3)), none, none
    )
