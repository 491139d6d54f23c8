"""The columns of the components that simulated drives in Waymo's Parquet layout have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pcdet_ext.structures import Array


def image_columns(component: str, number: int, image: Array) -> dict[str, Any]:
    """A range image as the columns of a row.

    Args:
        component: whose columns these are, as "LiDARComponent".
        number: of the return, from 1.
        image: float32 [H, W, C].
    """
    name = f"[{component}].range_image_return{number}"
    return {f"{name}.values": image.ravel(), f"{name}.shape": list(image.shape)}


def table_of(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows with arrays as a table; much quicker than from Python lists."""
    columns = []
    for field in schema:
        values = [row[field.name] for row in rows]
        if pa.types.is_list(field.type):
            offsets = np.concatenate([[0], np.cumsum([len(v) for v in values])]).astype(np.int32)
            columns.append(pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(values)), type=field.type))
        else:
            columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _schemas() -> dict[str, pa.Schema]:
    """The official columns and types of each component."""
    frame = [("key.segment_context_name", pa.string()), ("key.frame_timestamp_micros", pa.int64())]
    laser = ("key.laser_name", pa.int8())
    box = [(c, pa.float64()) for c in ("center.x", "center.y", "center.z", "size.x", "size.y", "size.z", "heading")]
    vector = [(c, pa.float64()) for c in "xyz"]

    def element(kind: pa.DataType) -> pa.DataType:
        return pa.list_(pa.field("element", kind))

    def fixed(kind: pa.DataType, size: int) -> pa.DataType:
        return pa.list_(pa.field("element", kind), size)

    def image(number: int) -> list[tuple[str, pa.DataType]]:
        name = f"range_image_return{number}"
        return [(f"{name}.values", element(pa.float32())), (f"{name}.shape", fixed(pa.int32(), 3))]

    columns: dict[str, tuple[str, list[Any], list[Any]]] = {
        "lidar": ("LiDARComponent", [*frame, laser], [*image(1), *image(2)]),
        "lidar_pose": ("LiDARPoseComponent", [*frame, laser], image(1)),
        "lidar_calibration": (
            "LiDARCalibrationComponent",
            [frame[0], laser],
            [
                ("extrinsic.transform", fixed(pa.float64(), 16)),
                ("beam_inclination.min", pa.float64()),
                ("beam_inclination.max", pa.float64()),
                ("beam_inclination.values", element(pa.float64())),
            ],
        ),
        "vehicle_pose": ("VehiclePoseComponent", frame, [("world_from_vehicle.transform", fixed(pa.float64(), 16))]),
        "lidar_box": (
            "LiDARBoxComponent",
            [*frame, ("key.laser_object_id", pa.string())],
            [
                *((f"box.{c}", t) for c, t in box),
                ("type", pa.int8()),
                ("num_lidar_points_in_box", pa.int64()),
                ("num_top_lidar_points_in_box", pa.int64()),
                *((f"speed.{c}", t) for c, t in vector),
                *((f"acceleration.{c}", t) for c, t in vector),
                ("difficulty_level.detection", pa.int8()),
                ("difficulty_level.tracking", pa.int8()),
            ],
        ),
        "lidar_camera_synced_box": (
            "LiDARCameraSyncedBoxComponent",
            [*frame, ("key.laser_object_id", pa.string())],
            [("most_visible_camera_name", pa.int8()), *((f"camera_synced_box.{c}", t) for c, t in box)],
        ),
        "stats": (
            "StatsComponent",
            frame,
            [
                *((c, pa.string()) for c in ("time_of_day", "location", "weather")),
                ("lidar_object_counts.types", element(pa.int8())),
                ("lidar_object_counts.counts", element(pa.int32())),
                ("camera_object_counts.types", element(pa.int8())),
                ("camera_object_counts.counts", element(pa.int32())),
            ],
        ),
    }
    return {
        name: pa.schema([*keys, *((f"[{component}].{c}", t) for c, t in values)])
        for name, (component, keys, values) in columns.items()
    }


SCHEMAS = _schemas()
