"""Associate the detections of a result file over time, and measure the tracks.

    pcdet track results.json --data /data/nuscenes --tracker greedy --out tracks.json
    pcdet track results.json --data /data/nuscenes --tracker kalman --out tracks.json measure=iou
    pcdet track train.json --data /data/nuscenes --tracker graph --fit 12 network=graph.ckpt --out tracks.json
    pcdet track val.json --data /data/nuscenes --tracker graph network=graph.ckpt --out tracks.json
    pcdet track results.json --data gt.json --tracker greedy --out tracks.json max_age=5 assignment=optimal

The results are a nuScenes detection submission, --out is one to its tracking benchmark. Where --data has ground truth,
the official tracking metrics are printed.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from pcdet_ext.cli.arguments import path
from pcdet_ext.cli.errors import FailureError, UsageError, wrong_use

if TYPE_CHECKING:
    from pcdet_ext.evaluation.nuscenes_files import Submission

TRACKERS = {"greedy": "GreedyTracker", "kalman": "KalmanTracker", "graph": "graph_tracker"}
HOW = "how (default: greedy); TrajectoryFormer is not available"
DATA = """when the frames were: a folder with the released tables, a JSON file with samples (scene, timestamp) and maybe
gt_boxes, or one with frames (token, timestamp, first)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=path, help="detections, a submission in JSON (.json, .json.gz)")
    parser.add_argument("--data", type=path, required=True, help=DATA)
    parser.add_argument("--tracker", choices=sorted(TRACKERS), default="greedy", help=HOW)
    parser.add_argument("--out", type=path, required=True, help="file of tracks to write")
    parser.add_argument("--fit", type=int, metavar="EPOCHS", help="graph: train a network on these results first")
    parser.add_argument("--no-metric", action="store_true", help="do not measure the tracks")
    parser.add_argument("--json", type=path, help="write all numbers of the metric here")
    parser.add_argument("options", nargs="*", metavar="key=value", help="options of the tracker")


def run(options: argparse.Namespace) -> int:
    from pcdet_ext.config import from_plain
    from pcdet_ext.evaluation.benchmarks import nuscenes_tracking
    from pcdet_ext.evaluation.nuscenes_files import Submission
    from pcdet_ext.files import atomic_write, check_output_file
    from pcdet_ext.tracking import graph_training, result_files  # noqa: F401  (registers the graph tracker)
    from pcdet_ext.tracking.base import TRACKERS as KNOWN

    check_output_file(options.out, [options.results, options.data])
    if options.json:
        check_output_file(options.json, [options.results, options.data, options.out])
    node = from_plain({"name": TRACKERS[options.tracker]}, "command line", options.options)
    submission = Submission.read(options.results)
    frames = result_files.read_frames(options.data, submission.samples)
    if options.fit is not None:
        _fit(options, submission, node.get("network"))
    tracker = KNOWN.build(node)
    content = result_files.track_submission(submission, frames, tracker)
    result_files.write_submission(options.out, content)
    boxes = sum(map(len, content["results"].values()))
    print(f"{boxes} boxes of tracks in {len(frames)} frames: {options.out}")
    if options.no_metric or not result_files.has_truth(options.data):
        return 0
    result = nuscenes_tracking(options.data, options.out)
    if options.json:
        with atomic_write(options.json) as temporary:
            temporary.write_text(json.dumps(result.to_json()), encoding="utf-8")
    print(result.table())
    return 0


def _fit(options: argparse.Namespace, submission: Submission, network: object) -> None:
    """Train a network of the published size, and write it where the tracker is told to read it."""
    from pcdet_ext.files import check_output_file
    from pcdet_ext.tracking import graph_training
    from pcdet_ext.tracking.graph_network import GraphTrackerNetwork

    if options.tracker != "graph" or not isinstance(network, str) or options.fit < 1:
        raise UsageError("--fit EPOCHS (1 or more) goes with --tracker graph and network=FILE, which is written")
    check_output_file(network, [options.results, options.data, options.out])
    sequences = graph_training.training_sequences(submission, options.data)
    model = GraphTrackerNetwork()
    with wrong_use():
        losses = graph_training.fit(model, sequences, options.fit)
    for epoch, loss in enumerate(losses, 1):
        print(f"epoch {epoch}: loss {loss:.4f}")
    if not math.isfinite(losses[-1]):
        raise FailureError(f"{options.results}: no detection to learn from was found; {network} is not written")
    graph_training.save(Path(network), model, {})
