"""Measuring exported detectors beside the one they were made from, with the data set's own metric."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from json import dumps
from pathlib import Path

import numpy as np
import torch

from pcdet_ext.checkpoint import find
from pcdet_ext.config import ConfigError, Node, require_known_sections, section
from pcdet_ext.data.formats import build_dataset, measured_kind
from pcdet_ext.engine.loader import frame_loader
from pcdet_ext.engine.testing import eval_config, skipped_frames
from pcdet_ext.evaluation.base import Evaluator, Result
from pcdet_ext.export.check import OnnxDetector
from pcdet_ext.files import DataError, atomic_write
from pcdet_ext.inference import boxes_of, check_finds, load
from pcdet_ext.structures import Array, Detections, Sample

CPU = torch.device("cpu")
PYTORCH = "PyTorch"


@dataclass(eq=False)
class Measured:
    """One form of a detector over the frames of a data set.

    path: its file; find: detections in points [P, C]; seconds: of each frame so far.
    """

    name: str
    path: Path
    find: Callable[[Array], Detections]
    evaluator: Evaluator
    seconds: list[float] = field(default_factory=list)

    def add(self, sample: Sample, points: Array, lowest: float) -> None:
        """Detect in a frame, and hand what is found to the evaluator.

        Args:
            sample: the frame.
            points: [P, C], its points as the detector takes them.
            lowest: score from which a detection counts.
        """
        start = time.perf_counter()
        found = self.find(points)
        self.seconds.append(time.perf_counter() - start)
        self.evaluator.add(sample, found.above(lowest).numpy())

    def numbers(self) -> dict[str, float]:
        """The size of the file, and the median time of a frame."""
        return {"megabytes": self.path.stat().st_size / 1e6, "seconds": float(np.median(self.seconds))}


def measure_exports(
    checkpoint: str | Path,
    models: Sequence[str | Path],
    overrides: Iterable[str] = (),
    split: str | None = None,
    json: str | Path | None = None,
    imports: bool = False,
) -> str:
    """Test a checkpoint in PyTorch, and ONNX models that were exported from it, on the same frames on the CPU.

    Args:
        checkpoint: a file that a training wrote.
        models: files that `pcdet export` wrote.
        overrides: changes "a.b=value" of the configuration.
        split: what is tested, None for the configuration's.
        json: file for all numbers, by the names of the models.
        imports: see `inference.load`.

    Returns:
        A table with a column per model: its file's size, the median time of a frame, and the numbers of the metric.

    Raises:
        ConfigError: an override does not fit, or the detector finds no boxes.
        DataError: a file is damaged, a model belongs to another detector, or the split has no labels.
    """
    detector = load(checkpoint, "cpu", overrides, imports, optimize=True)
    require_known_sections(detector.config)
    data = section(detector.config, "data")
    check_finds(detector.model, Detections)
    if measured_kind(data) is not Detections:
        raise ConfigError(f"{data.key_path}: ONNX models find boxes, which this data set does not measure")
    options = eval_config(detector.config)
    split = split or options.split
    unchanged = Node({k: v for k, v in data.items() if k != "tanh"}, data.key_path, data.sources)  # detectors do that
    dataset = build_dataset(unchanged, split, training=False)

    def form(name: str, path: str | Path, find: Callable[[Array], Detections]) -> Measured:
        return Measured(name, Path(path), find, dataset.evaluator(options.metric))

    forms = [form(PYTORCH, find(checkpoint), lambda points: boxes_of(detector.detect(points)))]
    for name, path in zip(_names(models), models, strict=True):
        forms.append(form(name, path, OnnxDetector(path, detector).detect))
    for (sample,), points in frame_loader(
        dataset, range(len(dataset)), 1, partial(_as_read, detector.intensity_scale), options.num_workers, CPU
    ):
        for each in forms:
            each.add(sample, points, options.score_threshold)
    skipped = skipped_frames([dataset])
    results = {each.name: each.evaluator.result() for each in forms}
    known = {name: result for name, result in results.items() if result is not None}
    if len(known) < len(results):
        raise DataError(f"no labels in {split}: nothing to measure")
    if json is not None:
        numbers = {each.name: each.numbers() | known[each.name].to_json() for each in forms}
        with atomic_write(json) as temporary:
            temporary.write_text(dumps(numbers), encoding="utf-8")
    lines = [f"{len(dataset)} frames of {split}", *([skipped] if skipped else [])]
    return "\n".join([*lines, *_table(forms, known)])


def _as_read(intensity_scale: float, samples: Sequence[Sample]) -> Array:
    """Points [P, C] of one frame as `Detector.detect` takes them: intensities are scaled there."""
    (sample,) = samples
    if intensity_scale == 1 or "intensity" not in sample.point_features:
        return sample.points
    factors = np.ones(len(sample.point_features), np.float32)
    factors[sample.point_features.index("intensity")] = intensity_scale
    return sample.points * factors


def _names(models: Sequence[str | Path]) -> list[str]:
    """What to call models: their files' names, or whole paths where two files have one name."""
    names = [Path(path).name for path in models]
    return names if len(set(names)) == len(names) else [str(path) for path in models]


def _table(forms: Sequence[Measured], results: Mapping[str, Result]) -> list[str]:
    """Lines of a table with a column per model."""
    rows = [["", *(each.name for each in forms)]]
    rows.append(["file, MB", *(f"{each.numbers()['megabytes']:.2f}" for each in forms)])
    rows.append(["median s per frame", *(f"{each.numbers()['seconds']:.3f}" for each in forms)])
    for name in results[PYTORCH].values:
        rows.append([name, *(f"{results[each.name].values[name]:.4g}" for each in forms)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
