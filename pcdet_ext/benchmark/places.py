"""Place recognition by a trained model beside scan context, on the same frames in one run."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.config import ConfigError, section
from pcdet_ext.data.formats import build_dataset
from pcdet_ext.data.places import PlacesDataset
from pcdet_ext.engine.testing import eval_config, predict
from pcdet_ext.evaluation.places import PlaceEvaluator, PlaceResult, evaluate
from pcdet_ext.files import atomic_write
from pcdet_ext.inference import load
from pcdet_ext.places.scan_context import ScanContext

PEER = "scan context"


def run_places(
    checkpoint: str | Path,
    overrides: Sequence[str] = (),
    split: str | None = None,
    json_file: str | Path | None = None,
    device: str = "auto",
) -> None:
    """Print the recall of a checkpoint and of scan context, and what each took per frame.

    Args:
        checkpoint: of a model that describes places.
        overrides: changes "a.b=value" of its configuration.
        split: of its data, None for the configuration's.
        json_file: file for all numbers.
        device: see `inference.load`.

    Raises:
        ConfigError: the data are not for place recognition.
        DataError: a file is damaged.
    """
    detector = load(checkpoint, device, overrides)
    options = eval_config(detector.config)
    dataset = build_dataset(section(detector.config, "data"), split or options.split, training=False)
    if not isinstance(dataset, PlacesDataset):
        raise ConfigError(f"data: a {type(dataset).__name__} has no places to recognise")
    evaluator = dataset.evaluator(options.metric)
    begun = time.perf_counter()
    predict(detector, dataset, evaluator, options)
    ours = evaluator.result()
    seconds = {"ours": time.perf_counter() - begun}
    begun = time.perf_counter()
    theirs = scan_context_recall(dataset, evaluator)
    seconds[PEER] = time.perf_counter() - begun
    if ours is None or theirs is None:
        raise ConfigError("test.metric.radius: no frame of a run is near one of another run")
    print("\n".join(_lines({"ours": ours, PEER: theirs}, seconds, len(dataset))))
    if json_file is not None:
        found: dict[str, Any] = {"ours": ours.to_json(), PEER: theirs.to_json(), "seconds": seconds}
        with atomic_write(json_file) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")


def scan_context_recall(
    dataset: PlacesDataset, evaluator: PlaceEvaluator, method: ScanContext | None = None
) -> PlaceResult | None:
    """Recall of scan context (Kim and Kim, IROS 2018) on all points of a data set's frames.

    Args:
        dataset: whose frames are described.
        evaluator: of the data set; its radius and candidates count.
        method: None for scan context with its usual settings.

    Returns:
        None where no frame of a run is near one of another run.
    """
    method = method or ScanContext()
    contexts = [method.describe(dataset.read(info).points) for info in dataset.frames]
    visits = [evaluator.visits[info.frame_id] for info in dataset.frames]
    flat = np.stack(contexts).reshape(len(contexts), -1)
    return evaluate(visits, flat, evaluator.radius, evaluator.candidates, method.distances)


def _lines(results: dict[str, PlaceResult], seconds: dict[str, float], frames: int) -> list[str]:
    """A line for each mean and method."""
    width = max(len(name) for result in results.values() for name in result.groups)
    lines = [f"{'recall (percent)':{width}}  {'method':12} {'@1':>7} {'@5':>7} {'@1%':>7}"]
    for group in results["ours"].groups:
        for name, result in results.items():
            recall = result.groups[group]
            fifth = recall.at[min(5, len(recall.at)) - 1]
            numbers = "".join(f"{100 * value:8.2f}" for value in (recall.at[0], fifth, recall.one_percent))
            lines.append(f"{group:{width}}  {name:12}{numbers}")
    return [*lines, *(f"{name}: {1000 * s / frames:.1f} ms per frame, search included" for name, s in seconds.items())]
