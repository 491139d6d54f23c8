"""What TrajectoryFormer keeps of its tracks, and how one frame changes it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pcdet_ext.ops.boxes import nms
from pcdet_ext.tracking.trajectory_data import present, with_hypotheses, with_time
from pcdet_ext.tracking.trajectory_geometry import PERIOD, from_local, iou_3d, is_empty, to_global, to_vehicle
from pcdet_ext.tracking.trajectory_losses import corrected
from pcdet_ext.tracking.trajectory_motion import predicted
from pcdet_ext.tracking.trajectory_network import TrajectoryNetwork
from pcdet_ext.tracking.trajectory_points import sampled_points


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Of each class, by its number: float32 [C].

    kept: confidence above which a track without a detection goes on; birth: score above which a detection becomes a
    track; distance: metres between a track and a detection that is its own.
    """

    kept: Tensor
    birth: Tensor
    distance: Tensor


@dataclass(frozen=True, eq=False)
class StepOptions:
    """How one frame changes the tracks; see `trajectory.TrajectoryTracker` for the meaning of each."""

    thresholds: Thresholds
    nms: float = 0.7
    predictions: int = 1
    history: int = 10
    points: int = 128
    new_overlap: float = 0.2
    first_birth: float | None = None
    published: bool = False


@dataclass(frozen=True, eq=False)
class Found:
    """Boxes of one frame in the axes of its vehicle.

    boxes: float32 [N, 7]; velocity: float32 [N, 2]; score: float32 [N]; label: int64 [N]; row: int64 [N], of the
    detection that a box is, -1 for none.
    """

    boxes: Tensor
    velocity: Tensor
    score: Tensor
    label: Tensor
    row: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, keep: Tensor) -> Found:
        """The boxes that `keep` (bool [N] or int64 [K]) picks."""
        return Found(**{name: column[keep] for name, column in vars(self).items()})

    def joined(self, other: Found) -> Found:
        """These boxes, then others."""
        return Found(**{name: torch.cat([column, getattr(other, name)]) for name, column in vars(self).items()})


@dataclass(frozen=True, eq=False)
class States:
    """Tracks after a frame.

    number: int64 [T]; label: int64 [T]; boxes: float32 [T, R, 7], where each was, the newest first, in axes that stand
    still, empty before it was there; velocity: float32 [T, R, 2], likewise; last_velocity: float32 [T, 2], the newest
    one, in the axes that the vehicle had then; length: int64 [T], frames since each was new; next: number of the next
    new track; frames: since the first one; associated: whether detections are matched with the tracks in the next
    frame, which the published code leaves out once (see `first_step`).
    """

    number: Tensor
    label: Tensor
    boxes: Tensor
    velocity: Tensor
    last_velocity: Tensor
    length: Tensor
    next: int
    frames: int
    associated: bool = True

    def __len__(self) -> int:
        return len(self.number)


@dataclass(frozen=True, eq=False)
class Frame:
    """What the tracks look like in a frame: written boxes and their numbers int64 [N]."""

    found: Found
    number: Tensor


def suppressed(found: Found, threshold: float, published: bool) -> Found:
    """Detections, best first, without those that a better one overlaps.

    Args:
        found: detections of a frame.
        threshold: overlap in bird's-eye view above which the worse one goes.
        published: see `nms`.
    """
    return found.select(nms(found.boxes, found.score, threshold, pre_max=4096, post_max=500, published=published))


def first_step(found: Found, pose: Tensor, options: StepOptions, before: States | None = None) -> tuple[States, Frame]:
    """Tracks of the detections of a first frame.

    Args:
        found: all detections.
        pose: float64 [4, 4], of the vehicle.
        options: where it asks for the published behaviour, a number is left out; where there were tracks before, too,
            numbers start anew, and no detection is matched in the next frame.
        before: the tracks of the sequence, where all of them have ended.
    """
    birth = options.thresholds.birth[found.label] if options.first_birth is None else options.first_birth
    own = suppressed(found.select(found.score >= birth), options.nms, options.published)
    first = 0 if before is None or options.published else before.next
    number = first + torch.arange(len(own), device=own.label.device)
    boxes, velocity = to_global(own.boxes, own.velocity, pose)
    states = States(
        number=number,
        label=own.label,
        boxes=boxes[:, None],
        velocity=velocity[:, None],
        last_velocity=own.velocity,
        length=torch.ones_like(number),
        next=first + len(own) + int(options.published),
        frames=1,
        associated=before is None or not options.published,
    )
    return states, Frame(own, number)


def step(
    network: TrajectoryNetwork, states: States, found: Found, points: Tensor, pose: Tensor, options: StepOptions
) -> tuple[States, Frame]:
    """Take the next frame.

    Args:
        network: in evaluation mode.
        states: of the frame before, one track at least.
        found: detections.
        points: float32 [P, 6], see `trajectory_points.sampled_points`.
        pose: float64 [4, 4], of the vehicle.
        options: see there.
    """
    found = suppressed(found, options.nms, options.published)
    own = _associated(states, found, pose, options) if states.associated else torch.full_like(states.number, -1)
    kept, stored, written = _chosen(network, states, found, own, points, pose, options)
    born = _born(stored, found, options)
    every = stored.joined(born)
    boxes, velocity = to_global(every.boxes, every.velocity, pose)
    count = len(born)
    left_out = int(options.published and count > 0)
    number = states.next + torch.arange(count, device=own.device)
    new = States(
        number=torch.cat([states.number[kept], number]),
        label=every.label,
        boxes=_longer(boxes, states.boxes[kept], options),
        velocity=_longer(velocity, states.velocity[kept], options),
        last_velocity=every.velocity,
        length=torch.cat([states.length[kept] + 1, torch.ones_like(number)]),
        next=states.next + count + left_out,
        frames=states.frames + 1,
    )
    return new, Frame(written.joined(born), new.number)


def _chosen(
    network: TrajectoryNetwork,
    states: States,
    found: Found,
    own: Tensor,
    points: Tensor,
    pose: Tensor,
    options: StepOptions,
) -> tuple[Tensor, Found, Found]:
    """Which tracks go on, bool [T]; their best hypotheses; and those as the network corrects them."""
    candidates, velocity, history = _candidates(network, states, found, own, pose, options)
    flat = candidates.flatten(0, 1)
    hypotheses = with_hypotheses(candidates[None], history[None].transpose(1, 2))
    judged = network(hypotheses, sampled_points(points, flat, options.points))
    confidence = judged.point_logits[-1].sigmoid().view(candidates.shape[:2])
    joint = judged.joint_logits[-1].sigmoid()
    if not options.published:
        joint = joint.masked_fill(is_empty(candidates), -1.0)
    kept = (own >= 0) | (confidence[:, 0] > options.thresholds.kept[states.label])
    best = torch.arange(len(states), device=own.device), joint.argmax(1)
    right = corrected(flat, judged.corrections[-1]).view(candidates.shape)
    row = torch.where(own >= 0, found.row[own.clamp_min(0)], -1) if len(found) else own
    stored = Found(candidates[best], velocity[best], confidence[best], states.label, row)
    return kept, stored.select(kept), replace(stored, boxes=right[best]).select(kept)


def _longer(newest: Tensor, before: Tensor, options: StepOptions) -> Tensor:
    """Histories [T, R, C] out of the newest rows [T, C] and those of the tracks that are not new, which come first."""
    born = len(newest) - len(before)
    old = torch.cat([before, before.new_zeros(born, *before.shape[1:])])
    return torch.cat([newest[:, None], old], 1)[:, : options.predictions + options.history]


def _associated(states: States, found: Found, pose: Tensor, options: StepOptions) -> Tensor:
    """The detection of each track, int64 [T], -1 for none: each in turn takes the nearest free track of its class."""
    boxes, velocity = to_global(found.boxes, found.velocity, pose)
    search = boxes[:, :2] - PERIOD * velocity
    gaps = (states.boxes[None, :, 0, :2] - search[:, None]).norm(dim=2).double()
    limit = options.thresholds.distance[found.label]
    other = (found.label[:, None] != states.label[None]) | (gaps > limit[:, None])
    gaps = gaps.masked_fill(other, torch.inf).cpu().numpy()
    own = np.full(len(states), -1)
    for i, row in enumerate(gaps if len(states) else []):
        place = int(row.argmin())
        if np.isfinite(row[place]):
            own[place] = i
            gaps[:, place] = np.inf
    return torch.from_numpy(own).to(found.label.device)


def _candidates(
    network: TrajectoryNetwork, states: States, found: Found, own: Tensor, pose: Tensor, options: StepOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Hypotheses of each track: boxes [T, P + 1, 7], velocities [T, P + 1, 2], and the history [T, R, 8]."""
    frames = min(states.frames, options.predictions + options.history, options.history - 1)
    boxes, velocity = to_vehicle(states.boxes[:, :frames], states.velocity[:, :frames], pose)
    there = (torch.arange(frames, device=boxes.device) < states.length[:, None])[..., None]
    boxes, velocity = torch.where(there, boxes, 0.0), torch.where(there, velocity, 0.0)
    count = max(1, min(options.predictions, frames - 1))
    ahead = [_predicted(network, boxes[:, p:], velocity[:, p], p) for p in range(count)]
    detected = own[:, None] >= 0
    chosen = found.select(own.clamp_min(0)) if len(found) else None
    detection = torch.zeros_like(boxes[:, 0]) if chosen is None else torch.where(detected, chosen.boxes, 0.0)
    speed = torch.zeros_like(velocity[:, 0]) if chosen is None else torch.where(detected, chosen.velocity, 0.0)
    last = states.last_velocity if options.published else velocity[:, 0]
    time = PERIOD * torch.arange(1, frames + 1, device=boxes.device, dtype=boxes.dtype)
    return (
        torch.stack([*ahead, detection], 1),
        torch.stack([last] * count + [speed], 1),
        with_time(boxes, time.expand(len(boxes), frames)),
    )


def _predicted(network: TrajectoryNetwork, boxes: Tensor, velocity: Tensor, place: int) -> Tensor:
    """Boxes [T, 7] of the frame, predicted from a history [T, R, 7] that ends `place` frames before the last one."""
    time = PERIOD * torch.arange(boxes.shape[1], device=boxes.device, dtype=boxes.dtype)
    rows = with_time(boxes, time.expand(boxes.shape[:2])).transpose(0, 1)[None, :, :, None]
    speed = velocity[None, :, None]
    future = predicted(network.velboxembed, rows, speed, speed)[:, place]
    return present(torch.where(is_empty(rows[:, 0])[..., None], 0.0, from_local(future, rows[:, 0])))[0, :, 0, :7]


def _born(stored: Found, found: Found, options: StepOptions) -> Found:
    """Detections that become tracks: good ones that no track is at."""
    score = found.score
    if len(stored) and len(found):
        taken = iou_3d(found.boxes, stored.boxes, options.published).amax(1) > options.new_overlap
        score = score.masked_fill(taken, 0.0)
    return found.select(score > options.thresholds.birth[found.label])
