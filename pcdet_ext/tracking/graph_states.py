"""What a graph tracker keeps of its tracks, from one frame to the next; training and tracking share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pcdet_ext.ranges import check_range
from pcdet_ext.tracking import graph_edges
from pcdet_ext.tracking.graph_matching import matches
from pcdet_ext.tracking.graph_network import Associations, GraphTrackerNetwork, association_loss

BOX, VELOCITY, ONE_HOT = slice(0, 7), slice(7, 9), slice(9, 16)


@dataclass(frozen=True, eq=False)
class FrameNodes:
    """Detections of one frame, or of one frame of each sequence of a batch.

    features: [N, 17], box, velocity, class one-hot, score; batch: int64 [N]; for training: object int64 [N], the true
    object of each, -1 for none; velocity [N, 2], true; has_next bool [N], where that is known.
    """

    features: Tensor
    batch: Tensor
    object: Tensor | None = None
    velocity: Tensor | None = None
    has_next: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def label(self) -> Tensor:
        """Class of each detection, int64 [N]."""
        return self.features[:, ONE_HOT].argmax(1)


@dataclass(frozen=True, eq=False)
class TrackNodes:
    """Tracks after a frame.

    features: [T, 17 or dim]; boxes: [T, 7]; velocity: [T, 2]; label, age, batch, object: int64 [T]; unseen: float64
    [T], seconds between the last detection of each track and the frame.
    """

    features: Tensor
    boxes: Tensor
    velocity: Tensor
    label: Tensor
    age: Tensor
    batch: Tensor
    object: Tensor
    unseen: Tensor

    def select(self, keep: Tensor) -> TrackNodes:
        """The tracks that `keep` (int64 [K]) picks."""
        return TrackNodes(**{name: column[keep] for name, column in vars(self).items()})

    @staticmethod
    def first(frame: FrameNodes) -> TrackNodes:
        """All detections of the first frame of a sequence, with their raw features."""
        none = torch.full_like(frame.batch, -1)
        return TrackNodes(
            features=frame.features,
            boxes=frame.features[:, BOX],
            velocity=frame.features[:, VELOCITY],
            label=frame.label,
            age=torch.ones_like(frame.batch),
            batch=frame.batch,
            object=none if frame.object is None else frame.object.long(),
            unseen=torch.zeros_like(frame.batch, dtype=torch.float64),
        )


@dataclass(frozen=True, eq=False)
class GraphOptions:
    """How affinities become tracks.

    threshold: affinity above which a pair may match; max_age: frames until a track that is not found ends;
    feature_weight: share of the new features in those of a matched track; optimal: see `graph_matching.matches`;
    neighbours: metres between objects that look at each other; limits: metres between a track and a detection, by
    class. Raises ValueError for values out of their ranges.
    """

    threshold: float = 0.01
    max_age: int = 3
    feature_weight: float = 1.0
    optimal: bool = False
    neighbours: float = graph_edges.NEIGHBOURS
    limits: tuple[float, ...] = graph_edges.LIMITS

    def __post_init__(self) -> None:
        check_range(0, 1, threshold=self.threshold)
        check_range(0, max_age=self.max_age)
        check_range(0, 1, feature_weight=self.feature_weight)
        check_range(0, neighbours=self.neighbours)
        if len(self.limits) != len(graph_edges.CLASSES):
            raise ValueError(f"limits must be {len(graph_edges.CLASSES)} numbers, got {len(self.limits)}")
        for name, limit in zip(graph_edges.CLASSES, self.limits, strict=True):
            check_range(0, **{f"limits: that of {name}": limit})


@dataclass(frozen=True, eq=False)
class Step:
    """One frame.

    found: of the network; edges: int64 [2, E], of its affinities; tracks: after the frame; pairs: int64 [K, 2] (track,
    detection); new, kept: rows of detections without a track, and of tracks that go on without being found.
    """

    found: Associations
    edges: Tensor
    tracks: TrackNodes
    pairs: Tensor
    new: Tensor
    kept: Tensor


def step(
    network: GraphTrackerNetwork,
    tracks: TrackNodes,
    frame: FrameNodes,
    options: GraphOptions,
    elapsed: float = graph_edges.PERIOD,
) -> Step:
    """Associate the detections of the next frame.

    Args:
        network: gives the affinities.
        tracks: as the frame before left them.
        frame: its detections.
        options: how affinities become tracks.
        elapsed: seconds since the frame before.
    """
    tracks = replace(tracks, unseen=tracks.unseen + elapsed)
    boxes, label = frame.features[:, BOX], frame.label
    places = graph_edges.moved(tracks.boxes, tracks.velocity, tracks.unseen.to(boxes.dtype))
    limits = places.new_tensor(options.limits)
    near = graph_edges.may_be(places, tracks.label, boxes, label, limits) & (tracks.batch[:, None] == frame.batch[None])
    edges = near.nonzero().T
    found = network(
        frame.features,
        tracks.features,
        graph_edges.within(boxes, label, frame.batch, options.neighbours),
        graph_edges.within(tracks.boxes, tracks.label, tracks.batch, options.neighbours),
        edges,
        graph_edges.features(edges, tracks.boxes, places, tracks.age, boxes),
    )
    affinity = torch.zeros(near.shape, dtype=boxes.dtype, device=boxes.device)
    affinity[edges[0], edges[1]] = found.affinity.detach()[:, 0].sigmoid()
    arrays = matches(affinity.cpu().numpy(), near.cpu().numpy(), options.threshold, options.optimal)
    pairs, missed, new = (torch.from_numpy(array).to(boxes.device) for array in arrays)
    kept = missed[tracks.age[missed] < options.max_age]
    return Step(found, edges, _after(tracks, frame, found, pairs, new, kept, options), pairs, new, kept)


def _after(
    tracks: TrackNodes,
    frame: FrameNodes,
    found: Associations,
    pairs: Tensor,
    new: Tensor,
    kept: Tensor,
    options: GraphOptions,
) -> TrackNodes:
    """Matched tracks, then new ones, then those that are kept."""
    seen = torch.cat([pairs[:, 1], new])
    weight = options.feature_weight
    mixed = weight * found.detections[pairs[:, 1]] + (1 - weight) * found.tracks[pairs[:, 0]]
    own = TrackNodes.first(frame).select(seen)
    own = replace(own, features=torch.cat([mixed, found.detections[new]]), velocity=found.velocity[seen])
    old = replace(tracks, features=found.tracks, age=tracks.age + 1).select(kept)
    return TrackNodes(**{name: torch.cat([column, getattr(old, name)]) for name, column in vars(own).items()})


def sequence_losses(
    network: GraphTrackerNetwork,
    frames: Sequence[FrameNodes],
    options: GraphOptions,
    gamma: float | None = 1.0,
    velocity_weight: float = 1.0,
    by_positives: bool = False,
    only_with_edges: bool = False,
) -> list[Tensor]:
    """The loss of each frame after the first; gradients flow through the features of the tracks from frame to frame.

    Args:
        network: what is trained.
        frames: of a sequence, with true objects and velocities.
        options: how affinities become tracks.
        gamma: exponent of the focal loss, None for plain cross entropy.
        velocity_weight: factor on the loss of velocities.
        by_positives: whether the loss of affinities is divided by the number of true edges instead of that of all.
        only_with_edges: leave out frames in which no detection may be a track, whose loss is NaN.

    Raises:
        ValueError: frames have no true objects or velocities.
    """
    tracks, losses = TrackNodes.first(frames[0]), []
    for frame in frames[1:]:
        if frame.object is None or frame.velocity is None or frame.has_next is None:
            raise ValueError("training needs the true object, velocity and has_next of every detection")
        done = step(network, tracks, frame, options)
        target = same_object(tracks.object, frame.object, done.edges).to(frame.features.dtype)
        weights = (gamma, velocity_weight, by_positives)
        if done.edges.shape[1] or not only_with_edges:
            losses.append(association_loss(done.found, target, frame.velocity, frame.has_next, *weights))
        tracks = done.tracks
    return losses


def same_object(tracks: Tensor, detections: Tensor, edges: Tensor) -> Tensor:
    """bool [E, 1]: edges whose two ends are the same true object.

    Args:
        tracks: int64 [T], the object of each track, below 0 for none.
        detections: int64 [N], the object of each detection.
        edges: int64 [2, E], from tracks to detections.
    """
    track, detection = tracks[edges[0]], detections[edges[1]]
    return ((track == detection) & (track >= 0))[:, None]
