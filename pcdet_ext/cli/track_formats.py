"""What `pcdet track` does with results of each kind of data."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcdet_ext.cli.errors import FailureError, UsageError, wrong_use
from pcdet_ext.cli.track_scores import HighestScore
from pcdet_ext.config import ConfigError, Node, suggest
from pcdet_ext.files import check_output_file, check_output_folder, expand_path
from pcdet_ext.tracking import graph_training, kitti_files, result_files, trajectory_fit, waymo_files
from pcdet_ext.tracking.base import TRACKERS, BoxTracker
from pcdet_ext.tracking.graph_network import GraphTrackerNetwork
from pcdet_ext.tracking.greedy import NUSCENES_LIMITS, WAYMO_LIMITS
from pcdet_ext.tracking.trajectory import LIMITS as TRAJECTORY_LIMITS
from pcdet_ext.tracking.trajectory_network import TrajectoryNetwork
from pcdet_ext.tracking.trajectory_training import TrainingOptions

if TYPE_CHECKING:
    from pcdet_ext.evaluation.kitti_tracking import KittiTrackingResult
    from pcdet_ext.evaluation.nuscenes_tracking import TrackingResult

# Metres in a tenth of a second, of objects whose velocity is not known, seen from a vehicle that drives.
KITTI_LIMITS = {"Car": 4.0, "Van": 4.0, "Truck": 4.0, "Pedestrian": 1.0, "Person": 1.0, "Cyclist": 3.0, "Tram": 4.0}
Train = Callable[[int], Iterator[str]]  # epochs; gives a line about each


def on_nuscenes(options: argparse.Namespace, node: Node) -> TrackingResult | None:
    """Track a submission to the detection benchmark; the metric where there is ground truth."""
    from pcdet_ext.evaluation.benchmarks import nuscenes_tracking
    from pcdet_ext.evaluation.nuscenes import CLASSES
    from pcdet_ext.evaluation.nuscenes_files import Submission

    _check_tracker(options, "results of nuScenes", ("greedy", "kalman", "graph"))
    node = _with_limits(options, node, NUSCENES_LIMITS, CLASSES)
    check_output_file(options.out, [options.results, options.data])
    submission = Submission.read(options.results)
    frames = result_files.read_frames(options.data, submission.samples)

    def train(epochs: int) -> Iterator[str]:
        sequences = graph_training.training_sequences(submission, options.data)
        model = GraphTrackerNetwork()
        for epoch, loss in enumerate(graph_training.fit(model, sequences, epochs), 1):
            _check_loss(loss, options.results)
            graph_training.save(_network(node), model, {})
            yield f"epoch {epoch}: loss {loss:.4f}"

    tracker = _tracker(options, node, train, lambda path: graph_training.save(path, GraphTrackerNetwork(), {}))
    tracker = HighestScore(_of_boxes(tracker))
    content = result_files.track_submission(submission, frames, tracker)
    tracker.check_thresholds(node, options.results)
    result_files.write_submission(options.out, content)
    boxes = sum(map(len, content["results"].values()))
    print(f"{boxes} boxes of tracks in {len(frames)} frames: {options.out}")
    if options.no_metric or not result_files.has_truth(options.data):
        return None
    return nuscenes_tracking(options.data, options.out)


def on_waymo(options: argparse.Namespace, node: Node) -> None:
    """Track results of Waymo data, whose prepared folder says where the vehicle was, and has the points."""
    _check_tracker(options, "Waymo data", ("greedy", "kalman", "trajectory"))
    defaults = TRAJECTORY_LIMITS if options.tracker == "trajectory" else WAYMO_LIMITS
    node = _with_limits(options, node, defaults, waymo_files.CLASSES)
    if options.json:
        raise UsageError("--json: tracks of Waymo data are not measured here, so there are no numbers to write")
    check_output_file(options.out, [options.results, options.data])
    waymo_files.check_output(options.out)
    drives = waymo_files.WaymoDrives.read(options.data, options.split, options.results)

    def train(epochs: int) -> Iterator[str]:
        frames, model = drives.training_drives(), TrajectoryNetwork()
        names = ("points", "published")
        kind = TrainingOptions(**{name: node[name] for name in names if name in node})
        stages = (
            ("motion", trajectory_fit.fit_motion(model, frames, trajectory_fit.MOTION_EPOCHS * epochs, options=kind)),
            ("hypotheses", trajectory_fit.fit(model, frames, epochs, options=kind)),
        )
        for stage, losses in stages:
            for epoch, loss in enumerate(_finite(losses, options.results), 1):
                trajectory_fit.save(_network(node), model)
                yield f"{stage}: epoch {epoch}: loss {loss:.4f}"

    tracker = _tracker(options, node, train, lambda path: trajectory_fit.save(path, TrajectoryNetwork()))
    if isinstance(tracker, BoxTracker):
        tracker = HighestScore(tracker)
    found = drives.tracked(tracker, with_points=options.tracker == "trajectory")
    if isinstance(tracker, HighestScore):
        tracker.check_thresholds(node, options.results)
    waymo_files.write(options.out, found)
    frames = sum(map(len, drives.drives))
    print(f"{len(found)} boxes of tracks in {frames} frames: {options.out}")


def on_kitti(options: argparse.Namespace, node: Node) -> KittiTrackingResult | None:
    """Track results of the frames of KITTI's tracking benchmark; the metric where there are labels."""
    from pcdet_ext.evaluation.scene_benchmarks import kitti_tracking

    _check_tracker(options, "KITTI data", ("greedy", "kalman"))
    node = _with_limits(options, node, KITTI_LIMITS, kitti_files.CLASSES)
    check_output_folder(options.out)
    if options.out.resolve() in (
        options.results.resolve(),
        options.data.resolve(),
        (options.data / "label_02").resolve(),
    ):
        raise UsageError(f"{options.out}: holds what this command reads; name another folder")
    sequences = kitti_files.read_detections(options.results, options.data)
    tracker = HighestScore(_of_boxes(_tracker(options, node)))
    found = kitti_files.tracked(sequences, tracker)
    tracker.check_thresholds(node, options.results)
    kitti_files.write(options.out, found)
    boxes, frames = (
        sum(sizes) for sizes in ((len(own) for f in found.values() for own in f), map(len, found.values()))
    )
    print(f"{boxes} boxes of tracks in {frames} frames: {options.out}")
    if options.no_metric or not (options.data / "label_02").is_dir():
        return None
    return kitti_tracking(options.data, options.out)


def _check_tracker(options: argparse.Namespace, data: str, trackers: Sequence[str]) -> None:
    """Raises UsageError where a tracker does not work on a kind of data, or cannot be trained."""
    if options.tracker not in trackers:
        points = "; it needs the points of every frame, which a prepared Waymo folder has"
        more = points if options.tracker == "trajectory" else ""
        raise UsageError(f"--tracker {options.tracker} does not work on {data}, only {', '.join(trackers)} do{more}")
    if options.fit is not None and options.tracker not in ("graph", "trajectory"):
        raise UsageError(f"--fit: the {options.tracker} tracker has no network to train; graph and trajectory have")


def _with_limits(
    options: argparse.Namespace, node: Node, defaults: Mapping[str, float], classes: Sequence[str]
) -> Node:
    """The options with limits for the classes of the data. Raises ConfigError for limits of other classes."""
    if options.tracker not in ("greedy", "trajectory"):
        return node
    given: Any = node.get("limits", {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"{node.where('limits')}: must be set by class, as limits.{classes[0]}=2, got {given!r}")
    for name in given:
        if name not in classes:
            raise ConfigError(f"{node.where('limits')}: no class is named {name!r}{suggest(str(name), classes)}")
    return Node({**node, "limits": Node({**defaults, **given})}, node.key_path, node.sources)


def _tracker(
    options: argparse.Namespace, node: Node, train: Train | None = None, untrained: Callable[[Path], None] | None = None
) -> Any:
    """The tracker; its network is trained first where that is asked for, after all options have been checked."""
    if options.fit is None or train is None or untrained is None:
        return TRACKERS.build(node)
    network = node.get("network")
    if not isinstance(network, str) or options.fit < 1:
        raise UsageError("--fit EPOCHS (1 or more) goes with network=FILE, which is written")
    check_output_file(_network(node), [options.results, options.data, options.out])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "untrained.ckpt"
        untrained(path)
        TRACKERS.build(Node({**node, "network": str(path)}, node.key_path, node.sources))
    with wrong_use():
        for line in train(options.fit):
            print(line, flush=True)
    return TRACKERS.build(node)


def _network(node: Node) -> Path:
    return expand_path(str(node["network"]))


def _finite(losses: Iterator[float], results: Path) -> Iterator[float]:
    """Losses of epochs. Raises FailureError where there was nothing to learn from, or training became unusable."""
    try:
        for loss in losses:
            _check_loss(loss, results)
            yield loss
    except FloatingPointError as error:
        raise FailureError(f"{results}: {error}") from error


def _check_loss(loss: float, results: Path) -> None:
    if not math.isfinite(loss):
        raise FailureError(f"{results}: no detection to learn from was found")


def _of_boxes(tracker: Any) -> BoxTracker:
    if not isinstance(tracker, BoxTracker):
        raise UsageError(f"{type(tracker).__name__} does not work on boxes alone")
    return tracker
