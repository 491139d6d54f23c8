"""The runner for the whole of UniLION over time: points of several frames to the results and losses of all tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from pcdet_ext.conformance.cases.unilion import context_of
from pcdet_ext.conformance.cases.unilion_detection import (
    LOSSES,
    published_detections,
    standing,
)
from pcdet_ext.conformance.cases.unilion_heads import MOTION_LOSSES, OCCUPANCY_LOSSES, PLANNING_LOSSES
from pcdet_ext.conformance.golden import Case, Values, every_input, runs
from pcdet_ext.conformance.gradients import loss_gradients
from pcdet_ext.interop import from_official, unilion_model
from pcdet_ext.models.temporal import VoxelMemory
from pcdet_ext.scenes import EgoPlan
from pcdet_ext.structures import PointBatch, Predictions, Targets

NAMES = {
    "detection": {"heatmap": "det_loss_heatmap", **{ours: f"det_layer_-1_{name}" for ours, name in LOSSES.items()}},
    "occupancy": OCCUPANCY_LOSSES,
    "motion": MOTION_LOSSES,
    "planning": PLANNING_LOSSES,
}


@runs("unilion", "pipeline")
@every_input
def run_pipeline(case: Case, grads: bool) -> Values:
    """Results of each frame, and where it has ground truth, losses; gradients are those of the last total."""
    config = {key: value for key, value in case.config.items() if key != "frames"}
    detector: Any = from_official("unilion", config, case.tensors("param"))
    values: dict[str, Any] = {}
    memory: VoxelMemory | None = None
    total: Tensor | None = None
    for number, frames in enumerate(case.config["frames"]):
        batch = _batch(case.inputs(f"in.{number}"), frames)
        before = memory
        found, memory = detector.predict_and_memory(batch, before)
        values |= {f"out.{number}.{name}": value for name, value in _results(found).items()}
        if batch.targets is not None:
            losses, _ = detector.loss_and_memory(batch, before)
            total = losses["total"]
            values |= {f"out.{number}.loss.{_published(name)}": value for name, value in losses.items()}
    if grads and total is not None:
        values |= loss_gradients(case, total, detector, {}, unilion_model.detector_name)
    return values


def _batch(given: Mapping[str, Tensor], frames: Sequence[tuple[str, float]]) -> PointBatch:
    """The frames of one step, (sequence, time) each, with ground truth where the case has their boxes."""
    batch = PointBatch.from_points([given[f"points.{frame}"] for frame in range(len(frames))])
    commands = given["gt_ego_fut_cmd"].argmax(1) if "gt_ego_fut_cmd" in given else None
    plans = _plans(given, len(frames))
    targets = None
    if all(f"gt_boxes.{frame}" in given for frame in range(len(frames))):
        targets = tuple(_targets(given, frame, plan) for frame, plan in enumerate(plans))
    return replace(batch, context=context_of(given, frames), commands=commands, targets=targets)


def _plans(given: Mapping[str, Tensor], frames: int) -> list[EgoPlan | None]:
    """What the vehicle did; cases have it of frames without other ground truth, too."""
    if "gt_ego_fut_trajs" not in given:
        return [None] * frames
    parts = [given[name] for name in ("gt_ego_fut_trajs", "gt_ego_fut_masks", "ego_status")]
    return [EgoPlan(*(part[frame] for part in parts)) for frame in range(frames)]


def _targets(given: Mapping[str, Tensor], frame: int, plan: EgoPlan | None) -> Targets:
    masks = given.get(f"gt_agent_fut_masks.{frame}")
    return Targets(
        standing(given[f"gt_boxes.{frame}"]),
        given[f"gt_labels.{frame}"],
        futures=given.get(f"gt_agent_fut_trajs.{frame}"),
        future_mask=None if masks is None else masks.bool(),
        map_masks=given["gt_bev_masks"][frame] if "gt_bev_masks" in given else None,
        occupancy=given["gt_occ"][frame] if "gt_occ" in given else None,
        plan=plan,
    )


def _results(found: list[Predictions]) -> dict[str, Tensor]:
    """What a step found under the published names; the published decoding is for one frame."""
    (frame,) = found
    values: dict[str, Any] = {}
    for name, part in frame.heads.items():
        own: Any = part
        match name:
            case "detection":
                values |= {f"det.{key}": value for key, value in published_detections(own).items()}
            case "occupancy":
                values["occ"] = own.labels
            case "map":
                values["seg"] = own.probabilities
            case "motion":
                values |= {"trajs": own.paths, "trajs_cls": own.scores}
            case "planning":
                values["plan"] = own.path
    return values


def _published(name: str) -> str:
    head, _, loss = name.partition("/")
    if head == "map":
        return f"map_loss_seg_{loss}"
    return name if head == "total" else NAMES[head][loss]
