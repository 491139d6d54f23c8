"""Tracking with predicted hypotheses (TrajectoryFormer), which looks at the points of every frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from pcdet_ext.ranges import check_range, check_timestamp
from pcdet_ext.rigid import check_rigid
from pcdet_ext.structures import Array, Detections
from pcdet_ext.tracking.base import check_detections
from pcdet_ext.tracking.trajectory_network import TrajectoryNetwork
from pcdet_ext.tracking.trajectory_states import Found, Frame, States, StepOptions, Thresholds, first_step, step

POINT_COLUMNS = 6
KEPT = {"Vehicle": 0.7, "Pedestrian": 0.6, "Cyclist": 0.7}
BIRTH = {"Vehicle": 0.8, "Pedestrian": 0.72, "Cyclist": 0.8}
LIMITS = {"Vehicle": 2.0, "Pedestrian": 0.5, "Cyclist": 1.0}


@dataclass(frozen=True)
class TrajectoryOptions:
    """How hypotheses become tracks; by default as published for the detections of CenterPoint on Waymo.

    Args:
        kept_score: by class name, confidence above which a track without a detection goes on.
        birth_score: by class name, score above which a detection becomes a track.
        limits: by class name, metres between a track and a detection that is its own; these are the classes tracked.
        nms: overlap from above that removes the detection with the lower score.
        predictions: hypotheses of a track that are predicted, from histories that end one frame earlier each.
        history: frames that a track remembers, with the present one.
        points: of each hypothesis.
        new_overlap: 3-D IoU with a track above which a detection starts no new one.
        separate: whether each class is tracked by itself, instead of all together.
        first_class: the class whose birth score counts for all detections of a first frame; None takes their own.
        published: what the published code does where that is a mistake: a number is left out in the first frame and
            wherever tracks begin; numbers start anew when all tracks have ended, after which no detection is matched
            for a frame; a predicted track keeps its velocity in the axes of a vehicle that has turned since; a track
            may be lost to a hypothesis that is no box; and overlaps are found with a kernel that counts corners up to
            1 cm outside of a box as inside it.

    Raises:
        ValueError: an option is out of its range, or the classes of the first three differ.
    """

    kept_score: Mapping[str, float] = field(default_factory=lambda: KEPT)
    birth_score: Mapping[str, float] = field(default_factory=lambda: BIRTH)
    limits: Mapping[str, float] = field(default_factory=lambda: LIMITS)
    nms: float = 0.1
    predictions: int = 5
    history: int = 10
    points: int = 128
    new_overlap: float = 0.2
    separate: bool = False
    first_class: str | None = None
    published: bool = False

    def __post_init__(self) -> None:
        if not self.limits or {*self.kept_score} != {*self.limits} or {*self.birth_score} != {*self.limits}:
            raise ValueError("kept_score, birth_score and limits must name the same classes, one at least")
        if self.first_class is not None and self.first_class not in self.limits:
            raise ValueError(f"first_class must be one of {', '.join(self.limits)}, got {self.first_class!r}")
        for name, highest in (("kept_score", 1.0), ("birth_score", 1.0), ("limits", math.inf)):
            for label, value in getattr(self, name).items():
                check_range(0, highest, **{f"{name} of {label}": value})
        for name, least in (("predictions", 1), ("history", 2), ("points", 1)):
            check_range(least, **{name: getattr(self, name)})
        for name in ("nms", "new_overlap"):
            check_range(0, 1, **{name: getattr(self, name)})


class TrajectoryTracker:
    """Predicts each track, and lets a network choose among predictions and detections by the points around them.

    The frames are a tenth of a second apart. Tracks are numbered from 0 in each sequence. The
    boxes of a frame are those of all tracks: where the network puts them, with its confidence; those of new tracks are
    the detections.

    Args:
        network: is used as it is, in evaluation mode.
        options: how hypotheses become tracks.

    Raises:
        ValueError: the motion predictor of the network sees fewer frames ahead than hypotheses are predicted.
    """

    def __init__(self, network: TrajectoryNetwork, options: TrajectoryOptions | None = None) -> None:
        self.network, self.options = network.eval(), options or TrajectoryOptions()
        if self.options.predictions > network.frames:
            raise ValueError(
                f"predictions must be at most {network.frames}, the frames that the network sees ahead, got "
                f"{self.options.predictions}"
            )
        self._classes = tuple(self.options.limits)
        self._groups = [(name,) for name in self._classes] if self.options.separate else [self._classes]
        self._steps = [_step_options(self.options, network.token, group) for group in self._groups]
        self.reset()

    def reset(self) -> None:
        """See `Tracker.reset`."""
        self._states: list[States | None] = [None] * len(self._groups)

    def update(
        self, detections: Detections, pose: Array | None, timestamp: float, points: Array | Tensor | None = None
    ) -> Detections:
        """See `Tracker.update`.

        Args:
            detections: of the frame, in the axes of the vehicle.
            pose: of the vehicle.
            timestamp: of the frame, seconds; it counts for nothing, frames being a tenth of a second apart.
            points: [P, 3 to 6], x, y, z, intensity, elongation, seconds before the frame, in the axes of the vehicle;
                columns that are not there are zero.

        Raises:
            ValueError: there are no points, or an argument has another shape or is not finite.
        """
        check_timestamp(timestamp)
        cloud = self._cloud(points)
        pose_now = torch.eye(4, dtype=torch.float64) if pose is None else torch.from_numpy(check_rigid(pose))
        frames = [
            self._advanced(group, self._found(detections, names), cloud, pose_now.to(cloud.device))
            for group, names in enumerate(self._groups)
        ]
        return self._written(detections, frames)

    def _cloud(self, points: Array | Tensor | None) -> Tensor:
        if points is None:
            raise ValueError("the trajectory tracker needs the points of each frame: update(…, points=[P, 3 to 6])")
        cloud = torch.as_tensor(points)
        if cloud.ndim != 2 or not 3 <= cloud.shape[1] <= POINT_COLUMNS:
            raise ValueError(f"points must be [P, 3 to {POINT_COLUMNS}], got {list(cloud.shape)}")
        token = self.network.token
        cloud = torch.nn.functional.pad(cloud.to(token.device, token.dtype), (0, POINT_COLUMNS - cloud.shape[1]))
        return cloud[cloud.isfinite().all(1)]

    def _found(self, detections: Detections, names: tuple[str, ...]) -> Found:
        """The detections of some classes, labels being their places among `names`."""
        token, found = self.network.token, detections.numpy()
        check_detections(found)
        boxes = torch.from_numpy(np.array(found.boxes, np.float64)).to(token.device, token.dtype)
        number = torch.tensor([names.index(n) if n in names else -1 for n in found.class_names], device=token.device)
        labels = torch.from_numpy(np.array(found.labels, np.int64)).to(token.device)
        velocity = boxes[:, 7:9].nan_to_num(0.0) if boxes.shape[1] == 9 else torch.zeros_like(boxes[:, :2])
        scores = torch.from_numpy(np.array(found.scores, np.float32)).to(token.device, token.dtype)
        own = Found(boxes[:, :7], velocity, scores, number[labels], torch.arange(len(boxes), device=token.device))
        usable = boxes[:, :7].isfinite().all(1) & (boxes[:, 3:6] > 0).all(1) & scores.isfinite()
        return own.select(usable & (own.label >= 0))

    @torch.no_grad()
    def _advanced(self, group: int, found: Found, points: Tensor, pose: Tensor) -> Frame | None:
        """What a group of classes looks like in the frame; None where it has neither tracks nor detections."""
        states, options = self._states[group], self._steps[group]
        if states is not None and len(states):
            self._states[group], frame = step(self.network, states, found, points, pose, options)
        elif states is not None and not len(found):
            return None
        else:
            self._states[group], frame = first_step(found, pose, options, states)
        return frame

    def _written(self, detections: Detections, frames: list[Frame | None]) -> Detections:
        width, given = detections.boxes.shape[1], list(detections.class_names)
        boxes, scores = [np.zeros((0, width), np.float32)], [np.zeros(0, np.float32)]
        labels, numbers = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for group, frame in enumerate(frames):
            if frame is None:
                continue
            found = frame.found
            boxes.append(torch.cat([found.boxes, found.velocity], 1)[:, :width].cpu().numpy())
            scores.append(found.score.cpu().numpy())
            places = np.array([given.index(name) if name in given else -1 for name in self._groups[group]], np.int64)
            labels.append(places[found.label.cpu().numpy()])
            numbers.append(frame.number.cpu().numpy() * len(self._groups) + group)
        return replace(
            detections.numpy(),
            boxes=np.concatenate(boxes),
            scores=np.concatenate(scores),
            labels=np.concatenate(labels),
            track_ids=np.concatenate(numbers),
        )


def _step_options(options: TrajectoryOptions, like: Tensor, names: tuple[str, ...]) -> StepOptions:
    values = (options.kept_score, options.birth_score, options.limits)
    first = None if options.first_class is None else options.birth_score[options.first_class]
    return StepOptions(
        Thresholds(*(like.new_tensor([float(table[name]) for name in names]) for table in values)),
        nms=options.nms,
        predictions=options.predictions,
        history=options.history,
        points=options.points,
        new_overlap=options.new_overlap,
        first_birth=first,
        published=options.published,
    )
