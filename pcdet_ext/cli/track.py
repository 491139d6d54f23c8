"""Associate the detections of result files over time, and measure the tracks.

    pcdet track results.json --data /data/nuscenes --tracker greedy --out tracks.json
    pcdet track results.json --data /data/nuscenes --tracker kalman --out tracks.json measure=iou
    pcdet track train.json --data /data/nuscenes --tracker graph --fit 12 network=graph.ckpt --out tracks.json
    pcdet track val.json --data /data/nuscenes --tracker graph network=graph.ckpt --out tracks.json
    pcdet track results.json --data gt.json --tracker greedy --out tracks.json max_age=5 assignment=optimal
    pcdet track results --data /data/waymo --split val --tracker kalman --out tracks.bin
    pcdet track results --data /data/waymo --split train --tracker trajectory --fit 6 network=t.ckpt --out tracks.bin
    pcdet track results --data /data/kitti_tracking/training --tracker kalman --out tracks

nuScenes: the results are a submission in JSON, --out is one to the tracking benchmark. Waymo: --data is a prepared
folder, the results are a Parquet file or an Objects message (or the folder that pcdet test wrote), --out is one of
them. KITTI: --data is a folder of the tracking benchmark (evaluate_tracking.seqmap*, label_02), the results are a
folder with SEQUENCE.txt, SEQUENCE/FRAME.txt or SEQUENCE_FRAME.txt, --out is a folder. Where --data has ground truth of
nuScenes or KITTI, the official tracking metrics are printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from pcdet_ext.cli.arguments import path
from pcdet_ext.cli.errors import UsageError

TRACKERS = {
    "greedy": "GreedyTracker",
    "kalman": "KalmanTracker",
    "graph": "graph_tracker",
    "trajectory": "trajectory_tracker",
}
HOW = "how (default: greedy); graph is for nuScenes, trajectory for prepared Waymo data, whose points it reads"
DATA = """when the frames were: a folder with the released tables of nuScenes, a JSON file with samples (scene,
timestamp) and maybe gt_boxes, or one with frames (token, timestamp, first); a prepared folder of Waymo data; a folder
of KITTI's tracking benchmark"""
FIT = "graph, trajectory: train a network on these results first, and write it to network=FILE after every epoch"

OPTIONS = {
    "greedy": "limits, max_age, assignment, birth_score, published",
    "kalman": "measure, farthest, score_threshold, max_age, min_hits, two_stage, low_score, redundant, nms, "
    "only_alive, published",
    "graph": "network, threshold, max_age, feature_weight, optimal, nms, score_threshold, period, max_outputs",
    "trajectory": "network, kept_score, birth_score, limits, nms, predictions, history, points, new_overlap, separate, "
    "first_class, published",
}
BY_CLASS = {"greedy": ("limits",), "kalman": (), "graph": (), "trajectory": ("kept_score", "birth_score", "limits")}
LISTED = "; ".join(f"{tracker}: {names}" for tracker, names in OPTIONS.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=path, help="detections, a file or a folder (see above)")
    parser.add_argument("--data", type=path, required=True, help=DATA)
    parser.add_argument("--split", default="val", help="Waymo: whose frames these are (default: val)")
    parser.add_argument("--tracker", choices=sorted(TRACKERS), default="greedy", help=HOW)
    parser.add_argument("--out", type=path, required=True, help="file (KITTI: folder) of tracks to write")
    parser.add_argument("--fit", type=int, metavar="EPOCHS", help=FIT)
    parser.add_argument("--no-metric", action="store_true", help="do not measure the tracks")
    parser.add_argument("--json", type=path, help="write all numbers of the metric here")
    parser.add_argument("options", nargs="*", metavar="key=value", help=f"options of the tracker. {LISTED}")


def run(options: argparse.Namespace) -> int:
    from pcdet_ext.config import from_plain
    from pcdet_ext.files import MissingFileError, atomic_write, check_output_file

    for given in (options.results, options.data):
        if not given.exists():
            raise MissingFileError(f"{given}: no such file or folder")
    if options.json:
        check_output_file(options.json, [options.results, options.data, options.out])
    by_class: dict[str, dict[str, float]] = {name: {} for name in BY_CLASS[options.tracker]}
    node = from_plain({"name": TRACKERS[options.tracker], **by_class}, "command line", options.options)
    result = _on_data(options)(options, node)
    if result is None:
        return 0
    if options.json:
        with atomic_write(options.json) as temporary:
            temporary.write_text(json.dumps(result.to_json()), encoding="utf-8")
    print(result.table())
    return 0


def _on_data(options: argparse.Namespace) -> Callable[..., Any]:
    """What tracks results of this kind of data."""
    from pcdet_ext.cli import track_formats
    from pcdet_ext.evaluation.nuscenes_tables import is_tables
    from pcdet_ext.tracking import kitti_files, waymo_files

    data = options.data
    if kitti_files.is_tracking_folder(data):
        return track_formats.on_kitti
    if not data.is_dir() or is_tables(data):
        return track_formats.on_nuscenes
    if waymo_files.is_prepared(data, options.split):
        return track_formats.on_waymo
    raise UsageError(
        f"{data}: has neither the released tables of nuScenes, nor evaluate_tracking.seqmap* of KITTI, nor Waymo data "
        f"that were prepared with the split {options.split!r}"
    )
