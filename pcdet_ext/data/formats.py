"""All data formats: the data set of a configuration, and the columns of its points.

Importing a format registers what it has: its data set in `DATASETS`, its preparation in `FRAME_SOURCES`, and its
metric for result files in `BENCHMARKS`. Code above this module names no format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcdet_ext.config import ConfigError, Node, setting
from pcdet_ext.data import (  # noqa: F401  (registers the formats)
    argoverse2,
    custom,
    kitti,
    nuscenes,
    once,
    places,
    semantickitti,
    waymo,
)
from pcdet_ext.data.base import DATASETS, ConcatDataset, Dataset, FrameDataset
from pcdet_ext.data.custom import single_files as custom_files
from pcdet_ext.data.kitti import single_files as kitti_files
from pcdet_ext.data.prepare import FRAME_SOURCES
from pcdet_ext.evaluation import benchmarks, scene_benchmarks  # noqa: F401  (register metrics of result files)
from pcdet_ext.evaluation.base import BENCHMARKS
from pcdet_ext.structures import Detections, Sample

__all__ = ["BENCHMARKS", "DATASETS", "FRAME_SOURCES", "build_dataset", "point_features", "read_frame_files"]

# Columns that a detector reads when its configuration names neither columns nor a format.
USUAL_FEATURES = ("x", "y", "z", "intensity")


def point_features(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns of the points that a configuration's data section means: its own, or else all that its format has."""
    if data.get("point_features") is not None:
        return tuple(setting(data, "point_features", Sequence[str]))
    name = str(data.get("name"))
    found = DATASETS.get(name) if name in DATASETS else None
    return found.POINT_FEATURES if isinstance(found, type) and issubclass(found, FrameDataset) else USUAL_FEATURES


def measured_kind(data: Mapping[str, Any]) -> type:
    """What the metric of a configuration's data takes of a detector's results; `Detections` without a format."""
    name = str(data.get("name"))
    known: Any = DATASETS.get(name) if name in DATASETS else None
    kind: type = known.measured(data) if hasattr(known, "measured") else getattr(known, "measures", Detections)
    return kind


def build_dataset(node: Mapping[str, Any], split: str, training: bool, seed: int = 0) -> Dataset:
    """The data set that a configuration's data section describes.

    In training, `sources` (a list of mappings) joins several: each has the section's own keys with those of the source
    put over them, so `{root: …, split: …, repeat: 5}` is enough (an `index` belongs to its root and is not taken over
    with another one). Without training, the section's root and the split that is asked for count alone, and all its
    frames, whatever `interval` says.

    Args:
        node: the data section.
        split: "train", "val" or another split of the format; in training the section's own `split` precedes it.
        training: whether frames are augmented and `sources` and `interval` count.
        seed: of everything that is drawn at random.

    Raises:
        ConfigError: keys are wrong or missing, or there is no such format.
        DataError: data is missing or damaged.
    """
    node = node if isinstance(node, Node) else Node(node)
    own = ("sources",) if training else ("sources", "split", "repeat", "interval")
    section = Node({k: v for k, v in node.items() if k not in own}, node.key_path, node.sources)
    sources = node.get("sources") if training else None
    if sources is None:
        dataset: Dataset = DATASETS.build(section, split=split, training=training, seed=seed)
        return dataset
    if not isinstance(sources, list) or not sources or not all(isinstance(s, Mapping) for s in sources):
        raise ConfigError(f"{node.where('sources')}: must be a list of mappings such as {{root: DIR, repeat: 2}}")
    parts = []
    for i, source in enumerate(sources):
        lines = {**section.sources, **getattr(source, "sources", {})}
        inherited = {k: v for k, v in section.items() if k != "index" or "root" not in source}
        merged = Node({**inherited, **source}, f"{node.key_path}.sources.{i}".lstrip("."), lines)
        # Each source draws its own numbers, also where two of them are the same folder.
        parts.append(DATASETS.build(merged, split=split, training=training, seed=seed + i))
    return ConcatDataset(parts)


def read_frame_files(
    points: Path | None,
    labels: Path | None = None,
    calibration: Path | None = None,
    results: Path | None = None,
    features: Sequence[str] | None = None,
) -> tuple[Sample, Detections | None]:
    """A frame from files, prepared or not: those of a folder of one's own data, or else KITTI's or single ones.

    Args:
        points: any point file, or None for boxes alone.
        labels: a label file; where none is given, the one that the layout has for the cloud.
        calibration: KITTI's, needed for its labels and results.
        results: a result file, a label file with scores.
        features: the columns of the points, see `points.read_cloud`.

    Raises:
        ValueError: naming the file that is missing.
        DataError: naming the file that is damaged.
    """
    anchor = points or labels
    root = custom_files.data_folder(anchor) if anchor is not None and calibration is None else None
    if root is not None:
        return custom_files.read_frame_files(root, points, labels, results, features)
    return kitti_files.read_frame_files(points, labels, calibration, results, features)
