"""Small folders with Waymo data to test on: a segment as it is released, changed by hand, or processed."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pcdet_ext.data.waymo import Layout, ParquetLayout

SEGMENT = "10000000000000003000_000_000_020_000"
SMALL = Path(__file__).parent / "golden" / "waymo_v2"  # three frames, written with the official component classes
CLASSES = ("Vehicle", "Pedestrian", "Cyclist")
RANGE = (-75.2, -75.2, -2, 75.2, 75.2, 4)
PROCESSED = "waymo_processed_data_v0_5_0"


def component(root: Path, name: str, folder: str = "training") -> Path:
    """The file of a component."""
    return root / folder / name / f"{SEGMENT}.parquet"


def copy_release(root: Path) -> Path:
    """The small segment in a folder of its own."""
    shutil.copytree(SMALL / "training", root / "training")
    return root


def change(path: Path, edit: Callable[[pa.Table], pa.Table], row_group_size: int | None = None) -> None:
    """Write a Parquet file anew with other content."""
    table = edit(pq.read_table(path))
    path.unlink()
    pq.write_table(table, path, row_group_size=row_group_size)


def set_value(name: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    """An edit that gives one row of a column another value."""

    def edit(table: pa.Table) -> pa.Table:
        column = next(c for c in table.column_names if c.endswith(name))
        values = table[column].to_pylist()
        values[row] = value
        field = table.schema.field(column)
        return table.set_column(table.column_names.index(column), field, pa.array(values, field.type))

    return edit


def write_processed(root: Path, protocol: int = 4) -> Path:
    """The small segment in the layout that OpenPCDet converts to."""
    release = ParquetLayout(SMALL)
    sequence = f"segment-{SEGMENT}_with_camera_labels"
    folder = root / PROCESSED / sequence
    folder.mkdir(parents=True)
    infos = []
    for frame in release.find("train"):
        np.save(folder / f"{frame.number:04d}.npy", release.points(frame))
        labels = release.labels(frame)
        assert labels is not None
        infos.append(
            {
                "point_cloud": {"num_features": 5, "lidar_sequence": sequence, "sample_idx": frame.number},
                "frame_id": f"{sequence}_{frame.number:03d}",
                "metadata": {"context_name": SEGMENT, "timestamp_micros": frame.timestamp_micros},
                "pose": release.pose(frame).astype(np.float32),
                "annos": {
                    "name": np.array(labels.names),
                    "difficulty": labels.difficulty,
                    "gt_boxes_lidar": labels.boxes,
                    "num_points_in_gt": labels.num_points,
                    "obj_ids": np.array(labels.object_ids),
                },
            }
        )
    (folder / f"{sequence}.pkl").write_bytes(pickle.dumps(infos, protocol))
    (root / "ImageSets").mkdir()
    for split in ("train", "val"):
        (root / "ImageSets" / f"{split}.txt").write_text(f"{sequence}.tfrecord\n")
    return root


def read_first(layout: Layout) -> None:
    """Everything of the first frame."""
    frame = layout.find("train")[0]
    layout.points(frame)
    layout.pose(frame)
    layout.labels(frame)
