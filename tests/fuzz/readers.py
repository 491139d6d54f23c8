"""What is fuzzed: every reader of files, with small valid files to damage.

Each `Reader` writes valid files into a folder, names those that are damaged, and reads the folder as a command would.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch

TESTS = Path(__file__).resolve().parent.parent
for _folder in (TESTS, TESTS / "data"):  # where those who make small data sets lie
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))

import argoverse2_release  # noqa: E402
import custom_folder  # noqa: E402
import nuscenes_release  # noqa: E402
import once_release  # noqa: E402
import semantickitti_folder  # noqa: E402
import waymo_folders  # noqa: E402
from fuzz.mutations import BINARY, HEADED, JSON, TEXT, YAML, Damage, change_yaml  # noqa: E402

from pcdet_ext import checkpoint, config  # noqa: E402
from pcdet_ext.data import index, kitti  # noqa: E402
from pcdet_ext.data.argoverse2.prepare import argoverse2  # noqa: E402
from pcdet_ext.data.custom.prepare import custom  # noqa: E402
from pcdet_ext.data.kitti.prepare import kitti as kitti_frames  # noqa: E402
from pcdet_ext.data.nuscenes.prepare import nuscenes  # noqa: E402
from pcdet_ext.data.objects import read_objects  # noqa: E402
from pcdet_ext.data.once import prepare as once_data  # noqa: E402
from pcdet_ext.data.once import results_by_frame  # noqa: E402
from pcdet_ext.data.points import read_point_file  # noqa: E402
from pcdet_ext.data.prepare import FrameSource, prepare  # noqa: E402
from pcdet_ext.data.semantickitti.prepare import semantickitti as semantickitti_frames  # noqa: E402
from pcdet_ext.data.waymo.prepare import waymo  # noqa: E402
from pcdet_ext.evaluation import argoverse2_files, bev_map, motion_files, occupancy_files, planning_files  # noqa: E402
from pcdet_ext.evaluation import kitti_tracking_files as tracks  # noqa: E402
from pcdet_ext.evaluation.nuscenes_files import Submission, read_track_ground_truth  # noqa: E402
from pcdet_ext.evaluation.nuscenes_tables import read_tables  # noqa: E402
from pcdet_ext.evaluation.nuscenes_truth import detection_truth  # noqa: E402
from pcdet_ext.models.detector import build_detector  # noqa: E402
from pcdet_ext.tracking import graph_training  # noqa: E402
from pcdet_ext.tracking.graph_network import GraphTrackerNetwork  # noqa: E402

GOLDEN = TESTS / "data" / "golden"
CONFIGS = TESTS.parent / "configs"


def _of(read: Callable[[Path], object], name: str) -> Callable[[Path], object]:
    """A reader of one file as one of its folder."""
    return lambda folder: read(folder / name)


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    make: writes valid files into an empty folder. victims: which of them are damaged, one at a time, as patterns.
    read: reads the folder. damages: what is done to the files.
    """

    name: str
    make: Callable[[Path], object]
    victims: tuple[str, ...]
    read: Callable[[Path], object]
    damages: tuple[Damage, ...]


def _cloud() -> np.ndarray:
    return custom_folder.make_scene(np.random.default_rng(0))[0][:60]


def _only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def _point_files(name: str, write: Callable[[Path], object], damages: tuple[Damage, ...]) -> Reader:
    suffix = name.split()[0]

    def make(folder: Path) -> None:
        write(folder / f"cloud.{suffix}")

    return Reader(
        f"points, {name}", make, ("cloud.*",), lambda folder: read_point_file(_only(folder, "cloud.*")), damages
    )


def _write_pcd(path: Path, compressed: bool) -> None:
    points = _cloud()
    body = points.astype("<f4")
    if compressed:  # literal runs of the LZF format, column after column
        flat = body.T.tobytes()
        packed = b"".join(bytes([len(part) - 1]) + part for part in (flat[i : i + 32] for i in range(0, len(flat), 32)))
        data = np.array([len(packed), len(flat)], "<u4").tobytes() + packed
    else:
        data = body.tobytes()
    kind = "binary_compressed" if compressed else "binary"
    header = (
        "VERSION 0.7\nFIELDS x y z intensity\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"
        f"WIDTH {len(points)}\nHEIGHT 1\nPOINTS {len(points)}\nDATA {kind}\n"
    )
    path.write_bytes(header.encode() + data)


def _write_binary_ply(path: Path) -> None:
    points = _cloud()
    fields = "".join(f"property float {name}\n" for name in ("x", "y", "z", "intensity"))
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{fields}end_header\n"
    path.write_bytes(header.encode() + points.astype("<f4").tobytes())


def _plain(path: Path) -> None:
    custom_folder.write_cloud(path, _cloud())


POINTS = (
    _point_files("bin", _plain, BINARY),
    _point_files("npy", _plain, HEADED),
    _point_files("pcd of text", _plain, TEXT),
    _point_files("pcd binary", lambda path: _write_pcd(path, False), HEADED),
    _point_files("pcd compressed", lambda path: _write_pcd(path, True), HEADED),
    _point_files("ply of text", _plain, TEXT),
    _point_files("ply binary", _write_binary_ply, HEADED),
    _point_files("las", _plain, BINARY),
)


LABEL_ROWS = (
    "Car 0.00 0 1.55 614.24 181.78 727.31 284.77 1.57 1.73 4.15 1.00 1.75 13.22 1.62\n"
    "Pedestrian 0.10 1 -0.20 712.40 143.00 810.73 307.92 1.89 0.48 1.20 1.84 1.47 8.41 0.01\n"
    "DontCare -1 -1 -10 5.00 229.89 214.12 367.61 -1 -1 -1 -1000 -1000 -1000 -10\n"
)
PIXEL = base64.b64decode(  # an image of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def _make_kitti(folder: Path) -> None:
    training = folder / "training"
    for name in ("velodyne", "label_2", "calib", "image_2"):
        (training / name).mkdir(parents=True)
    _cloud().astype("<f4").tofile(training / "velodyne" / "000000.bin")
    (training / "label_2" / "000000.txt").write_text(LABEL_ROWS)
    (training / "image_2" / "000000.png").write_bytes(PIXEL)
    kitti.Calibration(
        p2=np.array([[721.5, 0, 609.6, 44.9], [0, 721.5, 172.9, 0.2], [0, 0, 1, 0.003]]),
        r0_rect=np.eye(3),
        velo_to_cam=np.array([[0, -1, 0, 0.0], [0, 0, -1, -0.08], [1, 0, 0, -0.27]]),
    ).write(training / "calib" / "000000.txt")
    (folder / "ImageSets").mkdir()
    (folder / "ImageSets" / "train.txt").write_text("000000\n")


def _read_frames(open_source: Callable[[str], FrameSource], folder: Path, split: str = "train") -> None:
    """What `pcdet prepare` reads of each frame."""
    source = open_source(str(folder))
    for frame in source.find(split):
        source.read(frame)


def _make_nuscenes(folder: Path) -> None:
    nuscenes_release.make_release(scenes=("scene-0061",), keys=2, between=1).write(folder)


def _read_truth(folder: Path) -> None:
    tables = read_tables(folder / "tables")
    detection_truth(tables, tables.sample.tokens)


def _make_semantickitti(folder: Path) -> None:
    semantickitti_folder.write_sequence(folder, "00", 2, points=40)


def _make_custom(folder: Path) -> None:
    custom_folder.make_folder(folder, frames=2, suffix=".npy")
    boxes = [{"class": "Person", "box": [1, 2, 0, 1, 1, 2, 0.5], "velocity": [0, 1], "track_id": 3}]
    (folder / "labels" / "001.txt").unlink()
    (folder / "labels" / "001.json").write_text(json.dumps({"objects": boxes}))
    (folder / "poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0\n1 0 0 1 0 1 0 0 0 0 1 0\n")
    (folder / "timestamps.txt").write_text("0.0\n0.1\n")
    (folder / "ImageSets").mkdir()
    (folder / "ImageSets" / "train.txt").write_text("000\n001\n")


def _copy(*parts: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(GOLDEN.joinpath(*parts), folder, dirs_exist_ok=True)


DATA_SETS = (
    Reader(
        "KITTI, labels, calibration, images, lists",
        _make_kitti,
        ("training/label_2/*", "training/calib/*", "training/image_2/*", "ImageSets/*"),
        partial(_read_frames, kitti_frames),
        TEXT,
    ),
    Reader("nuScenes, tables", _make_nuscenes, ("v1.0-*/*.json",), partial(_read_frames, nuscenes), JSON),
    Reader("nuScenes, scans", _make_nuscenes, ("samples/*/*", "sweeps/*/*"), partial(_read_frames, nuscenes), BINARY),
    Reader("nuScenes, truth", _copy("eval_nuscenes", "edge_rules"), ("tables/*/*.json",), _read_truth, JSON),
    Reader("Waymo, Parquet", _copy("waymo_v2"), ("training/*/*",), partial(_read_frames, waymo), BINARY),
    Reader(
        "Waymo, processed",
        waymo_folders.write_processed,
        (f"{waymo_folders.PROCESSED}/*/*",),
        partial(_read_frames, waymo),
        BINARY,
    ),
    Reader(
        "SemanticKITTI, labels and clouds",
        _make_semantickitti,
        ("sequences/00/labels/*", "sequences/00/velodyne/*"),
        partial(_read_frames, semantickitti_frames),
        BINARY,
    ),
    Reader(
        "SemanticKITTI, poses",
        _make_semantickitti,
        ("sequences/00/*.txt",),
        partial(_read_frames, semantickitti_frames),
        TEXT,
    ),
    Reader(
        "own data, texts",
        _make_custom,
        ("labels/*.txt", "*.txt", "ImageSets/*"),
        partial(_read_frames, custom),
        TEXT,
    ),
    Reader("own data, labels in JSON", _make_custom, ("labels/*.json",), partial(_read_frames, custom), JSON),
    Reader("own data, dataset.yaml", _make_custom, ("dataset.yaml",), partial(_read_frames, custom), YAML),
    Reader(
        "Argoverse 2",
        lambda folder: argoverse2_release.make_log(folder / "train" / "log", sweeps=2),
        ("train/log/**/*.feather",),
        partial(_read_frames, argoverse2),
        BINARY,
    ),
    Reader(
        "Argoverse 2, maps",
        lambda folder: argoverse2_release.make_log(folder / "log", sweeps=1),
        ("log/map/*",),
        _of(argoverse2_files.read_region, "log"),
        JSON,
    ),
    Reader(
        "ONCE",
        once_release.make_release,
        ("data/00000*/*.json",),
        partial(_read_frames, partial(once_data.once, unlabelled=True)),
        JSON,
    ),
    Reader(
        "ONCE, points and lists",
        once_release.make_release,
        ("data/00000*/lidar_roof/*", "ImageSets/train.txt"),
        partial(_read_frames, partial(once_data.once, unlabelled=True)),
        (*BINARY, *TEXT),
    ),
)


def _plans(folder: Path) -> object:
    inputs = folder / "inputs.npz"
    return planning_files.read_plans(inputs, inputs)


def _maps(folder: Path) -> object:
    return bev_map.evaluate(bev_map.read_pairs(folder / "inputs.npz", folder / "inputs.npz"))


def _submission(folder: Path) -> None:
    submission = Submission.read(folder / "results.json")
    submission.tracks() if submission.is_tracking else submission.detections()
    read_track_ground_truth(folder / "gt.json")


def _motion(folder: Path) -> None:
    _, samples = motion_files.read_ground_truth(folder / "gt.json")
    motion_files.read_results(folder / "results.json", samples.tokens)


def _kitti_tracks(folder: Path) -> None:
    for name, frames in tracks.read_sequence_map(tracks.find_sequence_map(folder / "gt")).items():
        tracks.read_rows(tracks.sequence_file(folder / "gt", name), frames)


def _argoverse2(folder: Path) -> None:
    argoverse2_files.read_detections(folder / "detections.feather")
    argoverse2_files.read_annotations(folder / "annotations.feather")


def _make_once_results(folder: Path) -> None:
    once_release.make_release(folder)
    rows = np.array(list(once_release.BOXES.values()))
    entries = [
        {
            "frame_id": frame.name,
            "name": list(once_release.BOXES),
            "score": [0.5] * len(rows),
            "boxes_3d": rows.tolist(),
        }
        for frame in once_data.OnceFrames(folder, unlabelled=True).find("train")
    ]
    (folder / "results.json").write_text(json.dumps(entries))
    (folder / "results.pkl").write_bytes(pickle.dumps([entry | {"boxes_3d": rows} for entry in entries]))


def _once(folder: Path) -> None:
    frames = once_data.OnceFrames(folder, unlabelled=True).find("train")
    for name in ("results.json", "results.pkl"):
        results_by_frame(folder / name, ("Car",), frames)


RESULTS = (
    Reader("results of ONCE", _make_once_results, ("results.json",), _once, JSON),
    Reader(
        "results of nuScenes tracking",
        _copy("eval_nuscenes_tracking", "constant_score"),
        ("results.json", "gt.json"),
        _submission,
        JSON,
    ),
    Reader("results of motion", _copy("eval_motion", "no_match"), ("results.json", "gt.json"), _motion, JSON),
    Reader(
        "results of KITTI tracking",
        _copy("eval_kitti_tracking", "edge_rules"),
        ("gt/*", "gt/label_02/*"),
        _kitti_tracks,
        TEXT,
    ),
    Reader("results of Argoverse 2", _copy("eval_argoverse2", "edge_rules"), ("*.feather",), _argoverse2, BINARY),
    Reader("results of planning", _copy("eval_planning", "edge_rules"), ("inputs.npz",), _plans, BINARY),
    Reader("results of maps", _copy("eval_bev_map", "edge_rules"), ("inputs.npz",), _maps, BINARY),
    Reader(
        "poses of occupancy",
        _copy("eval_occupancy", "flow"),
        ("poses.json",),
        _of(occupancy_files.read_poses, "poses.json"),
        JSON,
    ),
)


def _make_checkpoint(folder: Path) -> None:
    settings = config.load(CONFIGS / "kitti" / "demo.yaml")
    model = build_detector(settings)
    content = {"config": settings.plain(), "model": {k: v[:2].clone() for k, v in model.state_dict().items() if v.ndim}}
    checkpoint.write(folder / "model.ckpt", content)


class Intruder:
    """What a hostile pickle holds: reading it makes a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.folder,)


def hostile(data: bytes, rng: Random) -> bytes:
    """A pickle that makes the folder `intruder` where it is read, alone or within what a reader expects."""
    intruder = Intruder("intruder")
    content = rng.choice((intruder, [intruder], {"model": intruder}, {"config": {}, "model": {"a": intruder}}))
    if rng.random() < 0.5:
        return pickle.dumps(content, rng.randrange(5))
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _make_index(folder: Path) -> None:
    _make_kitti(folder)
    prepare(kitti_frames(str(folder)), ["train"], [], folder, progress=False)


def _make_database(folder: Path) -> None:
    custom_folder.make_folder(folder, frames=2, suffix=".npy")
    prepare(custom(str(folder)), ["all"], ["all"], folder, progress=False)


def _make_tracker(folder: Path) -> None:
    settings = {"dim": 8, "heads": 2, "decoders": 1}
    graph_training.save(folder / "tracker.pt", GraphTrackerNetwork(**settings), settings)


def _all_frames(path: Path) -> object:
    return list(index.read_index(path))


def _build(path: Path) -> object:
    return build_detector(config.load(path))


def _make_configuration(folder: Path) -> None:
    for name in ("demo", "pointpillars", "second"):
        shutil.copy(CONFIGS / "kitti" / f"{name}.yaml", folder)
    shutil.copytree(CONFIGS / "datasets", folder.parent / "datasets", dirs_exist_ok=True)


OTHERS = (
    Reader("results of ONCE, pickles", _make_once_results, ("results.pkl",), _once, (*BINARY, hostile)),
    Reader("checkpoints", _make_checkpoint, ("model.ckpt",), _of(checkpoint.read, "model.ckpt"), (*BINARY, hostile)),
    Reader(
        "Waymo, hostile pickles",
        waymo_folders.write_processed,
        (f"{waymo_folders.PROCESSED}/*/*.pkl",),
        partial(_read_frames, waymo),
        (hostile,),
    ),
    Reader("index", _make_index, ("index_train.parquet",), _of(_all_frames, "index_train.parquet"), BINARY),
    Reader("database of objects", _make_database, ("database_all/*",), _of(read_objects, "database_all"), BINARY),
    Reader(
        "networks of trackers",
        _make_tracker,
        ("tracker.pt",),
        _of(graph_training.load, "tracker.pt"),
        (*BINARY, hostile),
    ),
    Reader(
        "detectors of configurations", _make_configuration, ("demo.yaml",), _of(_build, "demo.yaml"), (change_yaml,)
    ),
    Reader("configurations", _make_configuration, ("*.yaml",), _of(config.load, "demo.yaml"), YAML),
)

READERS = (*POINTS, *DATA_SETS, *RESULTS, *OTHERS)
