"""Running a detector over a data set and measuring it with the data set's own metric."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from json import dumps
from pathlib import Path
from typing import Any

import torch.distributed
from tqdm import tqdm

from pcdet_ext.config import Node, construct, require_known_sections, section
from pcdet_ext.data.base import ConcatDataset, Dataset, collate
from pcdet_ext.data.formats import build_dataset, measured_kind
from pcdet_ext.engine.loader import frame_loader
from pcdet_ext.engine.loss_step import warn_without_places
from pcdet_ext.evaluation.base import Evaluator, Result
from pcdet_ext.files import DataError, atomic_write, check_output_folder
from pcdet_ext.inference import Detector, boxes_of, check_finds, load, part_of
from pcdet_ext.ranges import check_range
from pcdet_ext.structures import Detections, Predictions
from pcdet_ext.visualization.plots import write_plots


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The optional `test:` section of a configuration.

    Args:
        split: what is tested.
        batch_size: frames per batch.
        num_workers: loader processes.
        score_threshold: detections with a lower score are left out.
        metric: options of the data set's metric, such as `{overlap: {Forklift: 0.5}}`.

    Raises:
        ValueError: a number is outside its range.
    """

    split: str = "val"
    batch_size: int = 4
    num_workers: int = 2
    score_threshold: float = 0.0
    metric: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_range(1, batch_size=self.batch_size)
        check_range(0, num_workers=self.num_workers)
        check_range(0, 1, score_threshold=self.score_threshold)


def eval_config(settings: Node) -> EvalConfig:
    """The `test:` section, or the defaults without one."""
    return construct(
        EvalConfig, section(settings, "test") if settings.get("test") is not None else Node(key_path="test")
    )


def predict(
    detector: Detector,
    dataset: Dataset,
    evaluator: Evaluator,
    options: EvalConfig,
    indices: Sequence[int] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    silent: bool = False,
) -> bool:
    """Add the detections in frames of a data set to an evaluator.

    Args:
        detector: finds the objects.
        dataset: where the frames come from.
        evaluator: takes each frame and its detections.
        options: batch size, loader processes and lowest score.
        indices: the frames, None for all; a detector over time gets them one after the other, in this order, and
            forgets the frames before where some are left out in between. A damaged frame that is skipped changes
            nothing in what it remembers.
        should_stop: asked before each batch.
        silent: without a progress bar.

    Returns:
        False when stopped.
    """
    indices = range(len(dataset)) if indices is None else indices
    kind = getattr(evaluator, "takes", getattr(dataset, "measures", Detections))
    join = partial(collate, classes=detector.classes)
    batch_size = 1 if detector.remembers else options.batch_size
    loader = frame_loader(dataset, indices, batch_size, join, options.num_workers, detector.device)
    memory = None
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=len(indices), unit="frame", desc="test", leave=False, disable=silent, mininterval=interval) as bar:
        for number, (samples, batch) in enumerate(loader):
            if should_stop():
                return False
            if detector.remembers:
                warn_without_places(batch)
                memory = memory if not number or indices[number] == indices[number - 1] + 1 else None
            results, memory = detector.predict_and_memory(batch, memory)
            for sample, found in zip(samples, results, strict=True):
                evaluator.add(sample, _measured_part(found, kind, options.score_threshold))
            bar.update(len(samples))
    return True


def _measured_part(found: Any, kind: type, score_threshold: float) -> Any:
    """What an evaluator is given of a detector's result, with arrays: boxes of a score, or results of another kind."""
    if kind is Detections:
        return boxes_of(found).above(score_threshold).numpy()
    if kind is Predictions:
        whole = found if isinstance(found, Predictions) else Predictions({"head": found})
        return whole.above(score_threshold).numpy()
    return part_of(found, kind).numpy()


def measure(
    checkpoint: str | Path,
    overrides: Iterable[str] = (),
    split: str | None = None,
    out: str | Path | None = None,
    json: str | Path | None = None,
    device: str = "auto",
    imports: bool = False,
    plots: str | Path | None = None,
    optimize: bool = True,
) -> str:
    """Test a checkpoint on a split, and return the result as a text with a table of the metric.

    Args:
        checkpoint: a file that a training wrote.
        overrides: changes "a.b=value" of its configuration.
        split: what is tested, None for the configuration's; frames without labels are only detected in.
        out: folder for result files in the benchmark's own format.
        json: file for all numbers.
        device: see `inference.load`.
        imports: see `inference.load`.
        plots: folder for diagrams.
        optimize: see `inference.load`.

    Raises:
        ConfigError: an override does not fit, or no head of the detector finds what the data set measures.
        DataError: a file is damaged (CheckpointError for the checkpoint), or `out` holds other results.
        OSError: `out` cannot be a folder of results.
    """
    if out is not None:
        check_output_folder(out)
    detector = load(checkpoint, device, overrides, imports, optimize)
    require_known_sections(detector.config)
    check_finds(detector.model, measured_kind(section(detector.config, "data")))
    options = eval_config(detector.config)
    split = split or options.split
    dataset = build_dataset(section(detector.config, "data"), split, training=False)
    evaluator = dataset.evaluator(options.metric)
    if out is not None:
        evaluator.check_folder(out)
    started = time.perf_counter()
    predict(detector, dataset, evaluator, options)
    seconds = time.perf_counter() - started
    lines = [f"{len(dataset)} frames of {split} in {seconds:.1f} s ({len(dataset) / seconds:.1f} frames/s)"]
    if skipped := skipped_frames([dataset]):
        if len(dataset.skipped) == len(dataset.frames):
            raise DataError(f"{split}: {skipped}, so that nothing is left to measure")
        lines.append(skipped)
    if out is not None:
        evaluator.write(out)
        lines.append(f"result files: {out}")
    lines.append(_written(evaluator.result(), split, json, plots))
    return "\n".join(lines)


def _written(result: Result | None, split: str, json: str | Path | None, plots: str | Path | None) -> str:
    """The table of a result whose numbers and diagrams are written. Raises DataError where there is none to write."""
    if result is None:
        if json is not None or plots is not None:
            raise DataError(f"no labels in {split}: nothing to measure, and nothing to write to {json or plots}")
        return f"no labels in {split}: nothing to measure"
    if plots is not None:
        write_plots(result, plots)
    if json is not None:
        with atomic_write(json) as temporary:
            temporary.write_text(dumps(result.to_json()), encoding="utf-8")
    return result.table()


def skipped_frames(datasets: Iterable[Dataset]) -> str:
    """How many frames of data sets of the same frames were damaged and left out, in words; empty for none.

    Of several processes each knows its own frames; all must call this.
    """
    datasets = list(datasets)
    skipped = {frame_id for dataset in datasets for frame_id in dataset.skipped}
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        shares: list[set[str]] = [set()] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(shares, skipped)
        skipped = set().union(*shares)
    if not skipped:
        return ""
    total = max(map(_different_frames, datasets))
    return f"{len(skipped)} of {total} frames are damaged and were skipped"


def _different_frames(dataset: Dataset) -> int:
    """How many frames a data set has, each counted once however often it is drawn."""
    if isinstance(dataset, ConcatDataset):
        return sum(map(_different_frames, dataset.parts))
    return len({info.frame_id for info in dataset.frames})


def gather(evaluator: Evaluator, finished: bool) -> bool:
    """Merge what the evaluators of all processes have, in every process; False when one process did not finish."""
    shares: list[Mapping[Any, Any] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, evaluator.state() if finished else None)
    for share in shares:
        if share is None:
            return False
        evaluator.merge(share)
    return True
