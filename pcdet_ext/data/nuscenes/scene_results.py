"""Results of several tasks for frames of nuScenes: boxes, map, occupancy, futures and plans, each with its own metric.

What is measured is also written, truth and results side by side, in the files that `pcdet evaluate` reads.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pcdet_ext.data.nuscenes.poses import Pose
from pcdet_ext.data.nuscenes.results import NuScenesEvaluator
from pcdet_ext.data.nuscenes.submission import META, Rows, best, boxes_of, world_rows
from pcdet_ext.evaluation import bev_map, motion, occupancy, planning
from pcdet_ext.evaluation.base import Plot, Result
from pcdet_ext.evaluation.motion import Futures
from pcdet_ext.evaluation.nuscenes import Samples
from pcdet_ext.evaluation.occupancy_rays import FREE, LOWER, SHAPE, VOXEL_SIZE
from pcdet_ext.files import atomic_write
from pcdet_ext.scenes import NOT_COUNTED, Forecasts, MapLayers, OccupancyGrid, PlannedPath, Scope
from pcdet_ext.structures import Array, Detections, Predictions, Sample, Targets

Places = Callable[[str], tuple[Pose, Pose]]
FutureBoxes = Callable[[str], tuple[Array, Array]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SceneResult(Result):
    """The results of all tasks.

    parts: a result by the name of its task; the score is the mean of the scores of boxes, map and occupancy, which lie
    in [0, 1], as far as they were measured.
    """

    parts: Mapping[str, Any] = field(default_factory=dict)
    COUNTED: ClassVar[tuple[str, ...]] = ("detection", "bev_map", "occupancy")

    @staticmethod
    def of(parts: Mapping[str, Any]) -> SceneResult:
        """The results joined; their numbers have the names of their tasks in front."""
        counted = [float(parts[name].score) for name in SceneResult.COUNTED if name in parts]
        values = {f"{name}/{key}": float(v) for name, part in parts.items() for key, v in part.values.items()}
        return SceneResult(score=float(np.mean(counted)) if counted else 0.0, values=values, parts=parts)

    def table(self) -> str:
        """The tables of all tasks, and their scores in one line."""
        scores = ", ".join(f"{SCORES[name]} {part.score:.4f}" for name, part in self.parts.items())
        return "\n\n".join([*(f"{name}\n{part.table()}" for name, part in self.parts.items()), scores])

    def to_json(self) -> dict[str, Any]:
        """All numbers in plain types."""
        return {"score": self.score, **{name: part.to_json() for name, part in self.parts.items()}}

    def plots(self) -> Sequence[Plot]:
        """The diagrams of all tasks."""
        return [plot for part in self.parts.values() for plot in part.plots()]


SCORES = {
    "detection": "NDS",
    "bev_map": "map mIoU",
    "occupancy": "occupancy mIoU",
    "motion": "EPA",
    "planning": "minus L2",
}


@dataclass(frozen=True, eq=False)
class Packed:
    """An array that is kept compressed."""

    content: bytes
    shape: tuple[int, ...]
    dtype: str

    @staticmethod
    def of(values: Array) -> Packed:
        """The array, compressed."""
        return Packed(zlib.compress(np.ascontiguousarray(values).tobytes(), 1), values.shape, values.dtype.str)

    def array(self) -> Array:
        """The array itself."""
        return np.frombuffer(zlib.decompress(self.content), self.dtype).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class SceneFrame:
    """What one frame has for each task, truth and result; None where a task is not measured.

    layers: masks and probabilities; cells: labels of occupancy, true ones and found ones, [200, 200, 16]; paths: rows
    and paths of true objects and their lengths, rows and paths of found ones; plan: steps, mask and planned places.
    """

    layers: tuple[Packed, Packed] | None = None
    cells: tuple[Packed, Packed] | None = None
    paths: tuple[tuple[Rows, Array, Array], tuple[Rows, Array]] | None = None
    plan: tuple[Array, Array, Array] | None = None


class SceneEvaluator:
    """Measures all tasks that a detector has heads for and frames have labels for (see `Evaluator`).

    Args:
        boxes: the metric of detections.
        layers: names of the map's layers.
        places: of the frame of samples on the vehicle, and of the vehicle in the world, by sample token.
        future_boxes: of the half seconds after a frame, in its own frame: boxes float64 [K, 7] and how many each step
            has, int64 [6].
        scenes: of each frame, by its token.
    """

    takes: ClassVar[type] = Predictions

    def __init__(
        self,
        boxes: NuScenesEvaluator,
        layers: Sequence[str],
        places: Places,
        future_boxes: FutureBoxes,
        scenes: Callable[[str], str],
    ) -> None:
        self._boxes, self._layers, self._places = boxes, tuple(layers), places
        self._future_boxes, self._scene_of = future_boxes, scenes
        self._frames: dict[Hashable, SceneFrame] = {}

    def add(self, sample: Sample, predictions: Predictions) -> None:
        """Take what the heads found in one frame."""
        targets = Targets() if sample.targets is None else sample.targets
        parts = list(predictions.heads.values())
        if any(isinstance(part, Detections) for part in parts):
            self._boxes.add(sample, predictions.detections)
        found: dict[str, Any] = {}
        for part in parts:
            if isinstance(part, MapLayers) and targets.map_masks is not None:
                found["layers"] = self._map_pair(targets, part)
            elif isinstance(part, OccupancyGrid) and targets.occupancy is not None:
                found["cells"] = _cell_pair(targets, part)
            elif isinstance(part, Forecasts) and targets.futures is not None:
                found["paths"] = self._path_pair(sample.frame_id, targets, predictions, part)
            elif isinstance(part, PlannedPath) and targets.plan is not None:
                found["plan"] = _plan_pair(targets, part)
        self._frames[sample.frame_id] = SceneFrame(**found)

    def _map_pair(self, targets: Targets, found: MapLayers) -> tuple[Packed, Packed]:
        if found.names != self._layers or (found.x, found.y) != targets.map_grid:
            raise ValueError(
                f"the map head finds {', '.join(found.names)} on {found.x}, {found.y}; labelled are "
                f"{', '.join(self._layers)} on {targets.map_grid}"
            )
        return Packed.of(np.asarray(targets.map_masks, np.uint8)), Packed.of(
            np.asarray(found.probabilities, np.float16)
        )

    def _path_pair(
        self, token: str, targets: Targets, predictions: Predictions, found: Forecasts
    ) -> tuple[tuple[Rows, Array, Array], tuple[Rows, Array]] | None:
        """Objects and detections with their paths, in the frame of the sample; None for paths of another length."""
        detections = predictions.followed_by(found)
        steps = np.asarray(targets.futures)
        if steps.shape[1] != motion.STEPS or np.asarray(found.paths).shape[2] != motion.STEPS:
            return None
        places = self._places(token)
        boxes = np.asarray(targets.boxes)
        truth = Detections(boxes, np.ones(len(boxes), np.float32), np.asarray(targets.labels), targets.class_names)
        paths = boxes[:, None, :2] + steps.cumsum(axis=1)
        kept = best(replace(detections, queries=np.arange(len(detections))))
        modes = np.asarray(found.paths, np.float32)[np.asarray(kept.queries)]
        lengths = np.asarray(targets.future_mask).sum(axis=1)
        return (world_rows(truth, *places), paths, lengths), (world_rows(kept, *places), modes)

    def state(self) -> Mapping[Hashable, Any]:
        """What each frame has, and its boxes."""
        boxes = self._boxes.state()
        return {token: (frame, boxes.get(token)) for token, frame in self._frames.items()}

    def merge(self, state: Mapping[Hashable, Any]) -> None:
        """Take the frames of another process."""
        self._frames.update({token: frame for token, (frame, _) in state.items()})
        self._boxes.merge({token: rows for token, (_, rows) in state.items() if rows is not None})

    def result(self) -> SceneResult | None:
        """The metrics over the frames added, or None when nothing is labelled."""
        measured = {
            "detection": self._boxes.result() if self._boxes.state() else None,
            "bev_map": self._map_result(),
            "occupancy": self._occupancy_result(),
            "motion": self._motion_result(),
            "planning": self._planning_result(),
        }
        parts = {name: part for name, part in measured.items() if part is not None}
        return SceneResult.of(parts) if parts else None

    def _having(self, name: str) -> list[tuple[str, Any]]:
        return [
            (str(token), part) for token, frame in self._frames.items() if (part := getattr(frame, name)) is not None
        ]

    def _map_result(self) -> bev_map.BevMapResult | None:
        pairs = [(found.array(), truth.array()) for _, (truth, found) in self._having("layers")]
        return bev_map.evaluate(pairs, self._layers) if pairs else None

    def _occupancy_result(self) -> occupancy.OccupancyResult | None:
        counts, frames = occupancy.OccupancyCounts(), self._having("cells")
        for _, (truth, found) in frames:
            counts.add(occupancy.Occupancy(truth.array()), occupancy.Occupancy(found.array()))
        return counts.result() if frames else None

    def _motion_result(self) -> motion.MotionResult | None:
        frames = self._having("paths")
        if not frames:
            return None
        truth, found = zip(*(pair for _, pair in frames), strict=True)
        boxes = boxes_of([rows for rows, *_ in truth])
        ego = np.array([self._places(token)[1].translation for token, _ in frames])
        samples = Samples(tuple(token for token, _ in frames), ego, boxes.select(np.zeros(0, np.int64)))
        objects = Futures(boxes, np.concatenate([p for _, p, _ in truth]), np.concatenate([n for *_, n in truth]))
        most = max(modes.shape[1] for _, modes in found)
        modes = np.concatenate([modes.reshape(-1, most, motion.STEPS, 2) for _, modes in found])
        detections = Futures(boxes_of([rows for rows, _ in found]), modes, np.full(len(modes), motion.STEPS))
        return motion.evaluate(objects, detections, samples)

    def _planning_result(self) -> planning.PlanningResult | None:
        plans = self._plans()
        return None if plans is None or not plans.known.all(axis=1).any() else planning.evaluate(plans)

    def _plans(self) -> planning.Plans | None:
        frames = self._having("plan")
        if not frames:
            return None
        later = [self._future_boxes(token) for token, _ in frames]
        steps, mask, found = (np.stack([plan[i] for _, plan in frames]) for i in range(3))
        return planning.Plans(
            found, steps, mask, np.concatenate([boxes for boxes, _ in later]), np.stack([n for _, n in later])
        )

    def check_folder(self, folder: str | Path) -> None:
        """Nothing can mix: files of the same frames are replaced."""

    def write(self, folder: str | Path) -> list[Path]:
        """Everything in the formats of the metrics for files; the files written.

        results_nusc.json of boxes; bev_map/{gt,pred}/TOKEN.npz; occupancy/gt/SCENE/TOKEN/labels.npz and
        occupancy/pred/TOKEN.npz; motion/{gt,pred}.json; planning/{gt,pred}.npz.
        """
        out = Path(folder)
        files = self._boxes.write(out) if self._boxes.state() else []
        for token, (truth, found) in self._having("layers"):
            files.append(_write_arrays(out / "bev_map" / "gt" / f"{token}.npz", gt=truth.array()))
            files.append(_write_arrays(out / "bev_map" / "pred" / f"{token}.npz", pred=found.array()))
        for token, (truth, found) in self._having("cells"):
            path = out / "occupancy" / "gt" / self._scene_of(token) / token / "labels.npz"
            files.append(_write_arrays(path, semantics=truth.array()))
            files.append(_write_arrays(out / "occupancy" / "pred" / f"{token}.npz", pred=found.array()))
        return files + self._write_motion(out / "motion") + self._write_plans(out / "planning")

    def _write_motion(self, folder: Path) -> list[Path]:
        frames = self._having("paths")
        if not frames:
            return []
        samples, truths, results = {}, {}, {}
        for token, ((rows, paths, lengths), (found, modes)) in frames:
            samples[token] = {"ego_translation": self._places(token)[1].translation.tolist()}
            entries = zip(rows.to_json(token), paths.tolist(), lengths.tolist(), strict=True)
            truths[token] = [box | {"traj": path[:length], "num_pts": 1} for box, path, length in entries]
            pairs = zip(found.to_json(token), modes.tolist(), strict=True)
            results[token] = [box | {"trajs": paths} for box, paths in pairs]
        content = {"gt": {"samples": samples, "gt_boxes": truths}, "pred": {"meta": META, "results": results}}
        return [_write_text(folder / f"{name}.json", json.dumps(part)) for name, part in content.items()]

    def _write_plans(self, folder: Path) -> list[Path]:
        plans = self._plans()
        if plans is None:
            return []
        truth = {"gt_ego_fut_trajs": plans.offsets, "gt_ego_fut_masks": plans.known.astype(np.uint8)}
        truth |= {"fut_boxes": plans.boxes, "fut_counts": plans.counts}
        return [_write_arrays(folder / "gt.npz", **truth), _write_arrays(folder / "pred.npz", pred=plans.found)]


def _cell_pair(targets: Targets, found: OccupancyGrid) -> tuple[Packed, Packed]:
    """Labels on Occ3D's whole grid; outside of the grid that was looked at the truth does not count."""
    if (found.x, found.y) != targets.occupancy_grid:
        raise ValueError(f"the occupancy head looks at {found.x}, {found.y}; labelled is {targets.occupancy_grid}")
    for name in found.class_names:
        if name not in occupancy.CLASSES:
            raise ValueError(f"Occ3D has no class {name!r} of occupancy")
    numbers = np.array([occupancy.CLASSES.index(name) for name in found.class_names], np.uint8)
    labels = numbers[np.asarray(found.labels)]
    return (
        Packed.of(_on_whole_grid(np.asarray(targets.occupancy), found.x, found.y, NOT_COUNTED)),
        Packed.of(_on_whole_grid(labels, found.x, found.y, FREE)),
    )


def _on_whole_grid(labels: Array, x: Scope, y: Scope, fill: int) -> Array:
    whole = np.full(SHAPE, fill, np.uint8)
    i, j = (round((axis[0] - low) / VOXEL_SIZE) for axis, low in zip((x, y), LOWER, strict=False))
    if i < 0 or j < 0 or i + labels.shape[0] > SHAPE[0] or j + labels.shape[1] > SHAPE[1]:
        raise ValueError(f"occupancy is measured within 40 m of the vehicle, its grid is {x}, {y}")
    if labels.shape[2] != SHAPE[2]:
        raise ValueError(f"occupancy is measured in {SHAPE[2]} cells along z, got {labels.shape[2]}")
    whole[i : i + labels.shape[0], j : j + labels.shape[1]] = labels
    return whole


def _plan_pair(targets: Targets, found: PlannedPath) -> tuple[Array, Array, Array] | None:
    """Steps, mask and planned places; None for plans of another length."""
    plan = targets.plan
    if plan is None or len(plan.steps) != planning.STEPS or len(found.path) != planning.STEPS:
        return None
    return np.asarray(plan.steps, np.float32), np.asarray(plan.mask, bool), np.asarray(found.path, np.float32)


def _write_arrays(path: Path, **arrays: Array) -> Path:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


def _write_text(path: Path, text: str) -> Path:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
