"""Training the graph tracker on result files: what a detector found, and the annotations of the same frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pcdet_ext.evaluation.nuscenes import CLASSES as DETECTED
from pcdet_ext.evaluation.nuscenes_files import Submission, read_track_ground_truth
from pcdet_ext.evaluation.nuscenes_tables import is_tables, read_tables
from pcdet_ext.evaluation.nuscenes_tracking import Tracks
from pcdet_ext.evaluation.nuscenes_truth import tokens_of_scenes, tracking_truth
from pcdet_ext.structures import Array
from pcdet_ext.tracking import saved_networks
from pcdet_ext.tracking.base import TRACKERS
from pcdet_ext.tracking.graph import GraphTracker
from pcdet_ext.tracking.graph_data import Annotations, node_features, objects_of, prepared, windows
from pcdet_ext.tracking.graph_edges import PERIOD
from pcdet_ext.tracking.graph_network import GraphTrackerNetwork
from pcdet_ext.tracking.graph_states import FrameNodes, GraphOptions, sequence_losses
from pcdet_ext.tracking.result_files import read_frames, still_boxes

KIND = "graph tracker"
AnnotatedFrames = Sequence[tuple[FrameNodes, bool]]  # and whether the frame has annotations


def training_sequences(submission: Submission, data: Path, nms: float | None = 0.1) -> list[AnnotatedFrames]:
    """The frames of each scene, and whether they have annotations.

    Args:
        submission: detections.
        data: the released tables, or a JSON file with `samples` and `gt_boxes` of the tracking benchmark.
        nms: see `graph_data.prepared`.

    Raises:
        DataError: as `Submission.detections` and the readers of ground truth.
    """
    frames = read_frames(data, submission.samples)
    boxes, tokens = submission.detections([frame.token for frame in frames])
    detected = _rows_by_sample(boxes.sample, len(tokens))
    truth = _truth(data, submission, tokens)
    following, has_next = _next_places(truth)
    annotated = _rows_by_sample(truth.boxes.sample, len(tokens))
    _, objects = np.unique(truth.track, return_inverse=True)
    sequences: list[AnnotatedFrames] = []
    place = 0
    for _, scene in groupby(frames, key=lambda frame: frame.scene):
        sequence = []
        for _ in scene:
            own = prepared(still_boxes(boxes.select(detected[place])), DETECTED, nms)
            rows = annotated[place]
            still = prepared(still_boxes(truth.boxes.select(rows)), DETECTED)
            annotations = Annotations(still, objects.reshape(-1)[rows], following[rows], has_next[rows])
            sequence.append((_nodes(node_features(own), annotations), len(rows) > 0))
            place += 1
        sequences.append(sequence)
    return sequences


def _rows_by_sample(sample: Array, count: int) -> list[Array]:
    """The rows of each of `count` samples, in their order, out of the sample int64 [N] of each row."""
    order = np.argsort(sample, kind="stable")
    return np.split(order, np.searchsorted(sample[order], np.arange(1, count)))


def _truth(data: Path, submission: Submission, tokens: Sequence[str]) -> Tracks:
    """Annotations, numbered by the samples of the frames in their order."""
    if is_tables(data):
        tables = read_tables(data)
        known = tokens_of_scenes(tables, None, list(submission.samples))
        truth, _ = tracking_truth(tables, known)
    else:
        truth, sequences = read_track_ground_truth(data)
        known = sequences.samples.tokens
    number = {token: i for i, token in enumerate(tokens)}
    sample = np.array([number[known[i]] for i in truth.boxes.sample.tolist()], np.int64)
    boxes = type(truth.boxes)(**{**vars(truth.boxes), "sample": sample})
    return Tracks(boxes, truth.track)


def _next_places(truth: Tracks) -> tuple[Array, Array]:
    """Where each annotated object is in the next frame that has it, float64 [N, 2], and whether there is one."""
    order = np.lexsort((truth.boxes.sample, truth.track))
    following, has_next = np.zeros((len(order), 2)), np.zeros(len(order), bool)
    same = truth.track[order[1:]] == truth.track[order[:-1]]
    first, second = order[:-1][same], order[1:][same]
    following[first], has_next[first] = truth.boxes.translation[second, :2], True
    return following, has_next


def _nodes(features: Array, annotations: Annotations) -> FrameNodes:
    found, velocity, has_next = objects_of(features, annotations)
    batch = torch.zeros(len(features), dtype=torch.int64)
    true = (torch.from_numpy(array) for array in (found, velocity, has_next))
    return FrameNodes(torch.from_numpy(features), batch, *true)


def fit(
    network: GraphTrackerNetwork,
    sequences: Sequence[AnnotatedFrames],
    epochs: int = 12,
    length: int = 6,
    batch_size: int = 8,
    rate: float = 1e-3,
    seed: int = 0,
    options: GraphOptions | None = None,
) -> Iterator[float]:
    """Train a network in place, by default with the published settings (AdamW, no schedule).

    The last windows of an epoch are left out where they are fewer than a batch, as published; where all windows are
    fewer, they are one batch.

    Args:
        network: on any device.
        sequences: see `training_sequences`.
        epochs: how often every window is seen.
        length: frames of a window, all of which have annotations.
        batch_size: windows of a step.
        rate: learning rate.
        seed: of the order of windows.
        options: of the tracks between frames.

    Yields:
        The mean loss of each epoch, NaN where there was no edge to learn from.

    Raises:
        ValueError: no scene has a window of that length, or `epochs` is below 1.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    starts = [
        (sequence, start)
        for sequence in sequences
        for start in windows(np.array([there for _, there in sequence], bool), length).tolist()
    ]
    if not starts:
        raise ValueError(f"no scene has {length} frames in a row with annotations")
    return _epochs(network, starts, epochs, length, min(batch_size, len(starts)), rate, seed, options or GraphOptions())


def _epochs(
    network: GraphTrackerNetwork,
    starts: Sequence[tuple[AnnotatedFrames, int]],
    epochs: int,
    length: int,
    batch_size: int,
    rate: float,
    seed: int,
    options: GraphOptions,
) -> Iterator[float]:
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    order = np.random.default_rng(seed)
    for _ in range(epochs):
        network.train()
        losses = []
        shuffled = order.permutation(len(starts)).tolist()
        for first in range(0, len(shuffled) - batch_size + 1, batch_size):
            chosen = [starts[i] for i in shuffled[first : first + batch_size]]
            frames = [_joined([s[start + t][0] for s, start in chosen]) for t in range(length)]
            found = sequence_losses(network, frames, options, only_with_edges=True)
            if not found:
                continue
            total = torch.stack(found).sum()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(float(total.detach()) / len(found))
        network.eval()
        yield float(np.mean(losses)) if losses else float("nan")


def _joined(frames: Sequence[FrameNodes]) -> FrameNodes:
    """The detections of several windows at one time, told apart by their batch."""
    batch = torch.repeat_interleave(torch.arange(len(frames)), torch.tensor([len(frame) for frame in frames]))
    # Objects of different windows are never compared, because no edge joins them.
    columns = {
        name: torch.cat([getattr(frame, name) for frame in frames])
        for name in ("features", "object", "velocity", "has_next")
    }
    return FrameNodes(batch=batch, **columns)


def save(path: Path, network: GraphTrackerNetwork, settings: Mapping[str, Any]) -> None:
    """Write a network with the arguments that it was made with.

    Args:
        path: of the file.
        network: what is written.
        settings: its arguments by name.
    """
    saved_networks.save(path, KIND, network, settings)


def load(path: Path) -> GraphTrackerNetwork:
    """Read a network. Raises DataError where the file is missing, damaged, or of something else."""
    return saved_networks.load(path, KIND, GraphTrackerNetwork)


@TRACKERS.register
def graph_tracker(
    network: Path,
    threshold: float = 0.01,
    max_age: int = 3,
    feature_weight: float = 1.0,
    optimal: bool = False,
    nms: float | None = 0.1,
    score_threshold: float = 0.0,
    period: float | None = PERIOD,
    max_outputs: int = 500,
) -> GraphTracker:
    """A graph tracker with a network that `save` wrote, by default with the published settings.

    The detections are suppressed as those of `training_sequences` are. Arguments as in `GraphOptions` and
    `GraphTracker`, but for `network`, which is the path of the file.
    """
    options = GraphOptions(threshold, max_age, feature_weight, optimal)
    return GraphTracker(load(network), options, nms, score_threshold, period, max_outputs)
