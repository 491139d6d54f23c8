"""OpenPCDet's section DATA_CONFIG as a data section of this library.

What decides the points that a detector gets is taken over; what concerns the files of the data set or its augmentation
changes nothing; every other setting is refused by its name, since a detector would be given other points than it was
trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pcdet_ext.config import ConfigError, suggest
from pcdet_ext.interop.settings import every_setting_counts, skip, skip_rest

View = Mapping[str, Any]
WAYMO_INTENSITY = 3  # the column of which OpenPCDet takes tanh where nothing else is said
FILES = (  # where the data lies, and how training goes through it
    "DATA_SPLIT",
    "INFO_PATH",
    "DATA_AUGMENTOR",
    "PROCESSED_DATA_TAG",
    "CLOUD_DATA_PATH",
    "VERSION",
    "USE_SHARED_MEMORY",
    "SHARED_MEMORY_FILE_LIMIT",
    "FILTER_EMPTY_BOXES_FOR_TRAIN",
    "SET_NAN_VELOCITY_TO_ZEROS",
    "MAP_CLASS_TO_KITTI",
    "EVALUATE_RANGE",
    "ROI_BOXES_PATH",
)
OFF = ("USE_PREDBOX", "INFO_WITH_FAKELIDAR", "POINT_PAINTING")  # settings that have no counterpart when they are on
LIMITS = ("MAX_POINTS_PER_VOXEL", "MAX_NUMBER_OF_VOXELS")  # of hard voxels, which the encoder has


def data_settings(data: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Our section `data` for a DATA_CONFIG.

    Args:
        data: the section, with those that it builds on.
        classes: CLASS_NAMES.

    Raises:
        ConfigError: naming the setting that is missing or has no counterpart.
    """
    try:
        with every_setting_counts({"DATA_CONFIG": data}) as view:
            return _section(view["DATA_CONFIG"], classes)
    except KeyError as error:
        raise ConfigError(f"DATA_CONFIG: {error.args[0]} is missing") from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _section(data: View, classes: Sequence[str]) -> dict[str, Any]:
    skip_rest(*(data[key] for key in FILES if isinstance(data.get(key), Mapping)))
    skip(data, *FILES)
    for key in OFF:
        if data.get(key):
            raise ConfigError(f"DATA_CONFIG.{key}: has no counterpart in this library")
    name, reader = DATASETS.get(str(data.get("DATASET")), (None, None))
    encoding = data["POINT_FEATURE_ENCODING"]
    columns = _columns(encoding)
    found: dict[str, Any] = {} if name is None else {"name": name, "root": str(data.get("DATA_PATH", ""))}
    skip(data, "DATA_PATH")
    found |= {"classes": list(classes), "point_cloud_range": data["POINT_CLOUD_RANGE"], "point_features": columns}
    found |= {} if reader is None else reader(data)
    process = [*_newest_sweeps(encoding), *_processor(data["DATA_PROCESSOR"], found)]
    return found | ({"process": process} if process else {})


def _columns(encoding: View) -> list[str]:
    kind = encoding["encoding_type"]
    if kind != "absolute_coordinates_encoding":
        raise ConfigError(
            f"DATA_CONFIG.POINT_FEATURE_ENCODING.encoding_type: {kind} has no counterpart in this library"
        )
    used, source = list(encoding["used_feature_list"]), list(encoding["src_feature_list"])
    for column in used:
        if column not in source:
            hint = suggest(column, source)
            raise ConfigError(f"DATA_CONFIG.POINT_FEATURE_ENCODING.used_feature_list: points have no {column!r}{hint}")
    return used


def _newest_sweeps(encoding: View) -> list[dict[str, Any]]:
    """The step that leaves out the points of old sweeps, where OpenPCDet is told to."""
    if not encoding.get("filter_sweeps") or "timestamp" not in encoding["src_feature_list"]:
        skip(encoding, "max_sweeps")
        return []
    return [{"name": "NewestSweeps", "count": encoding["max_sweeps"]}]


def _processor(steps: Sequence[View], found: dict[str, Any]) -> list[dict[str, Any]]:
    """Our steps for those of DATA_PROCESSOR; what is a setting of the data set here is put into `found`."""
    process = []
    for i, step in enumerate(steps):
        where = f"DATA_CONFIG.DATA_PROCESSOR.{i}"
        match step["NAME"]:
            case "mask_points_and_boxes_outside_range":
                found |= _boxes_in_range(step)
            case "shuffle_points":
                if step["SHUFFLE_ENABLED"]["test"]:  # in training alone it is no part of what a detector gets
                    process.append({"name": "PointShuffle"})
                skip_rest(step["SHUFFLE_ENABLED"])
            case "sample_points":
                process += _sampling(step, where)
            case "transform_points_to_voxels" | "transform_points_to_voxels_placeholder" | "calculate_grid_size":
                _voxels(step, where)
            case name:
                raise ConfigError(f"{where}: {name} has no counterpart in this library")
    return process


def _boxes_in_range(step: View) -> dict[str, Any]:
    skip(step, "REMOVE_OUTSIDE_BOXES")  # in training alone
    corners = step.get("min_num_corners", 1)
    return {} if step.get("USE_CENTER_TO_FILTER", True) else {"min_box_corners": corners}


def _sampling(step: View, where: str) -> list[dict[str, Any]]:
    number, in_training = step["NUM_POINTS"]["test"], step["NUM_POINTS"]["train"]
    if number != in_training:
        raise ConfigError(
            f"{where}.NUM_POINTS: must be the same in training and testing, got {in_training} and {number}"
        )
    return [] if number == -1 else [{"name": "PointSampling", "number": number}]


def _voxels(step: View, where: str) -> None:
    if step.get("DOUBLE_FLIP"):
        raise ConfigError(f"{where}.DOUBLE_FLIP: detecting in flipped copies has no counterpart in this library")
    skip(step, "VOXEL_SIZE")
    skip_rest(*(step[key] for key in LIMITS if isinstance(step.get(key), Mapping)))
    skip(step, *LIMITS)


def _kitti(data: View) -> dict[str, Any]:
    items = list(data.get("GET_ITEM_LIST", ["points"]))
    if items != ["points"]:
        raise ConfigError(f"DATA_CONFIG.GET_ITEM_LIST: detectors of this library read points alone, got {items}")
    return {"fov_only": bool(data["FOV_POINTS_ONLY"])} if "FOV_POINTS_ONLY" in data else {}


def _nuscenes(data: View) -> dict[str, Any]:
    camera = data.get("CAMERA_CONFIG") or {}
    if camera.get("USE_CAMERA"):
        raise ConfigError("DATA_CONFIG.CAMERA_CONFIG.USE_CAMERA: detectors of this library read points alone")
    skip_rest(camera)
    return {
        "max_sweeps": data["MAX_SWEEPS"],
        "min_points": int(data.get("FILTER_MIN_POINTS_IN_GT") or 0),
        "velocity": bool(data["PRED_VELOCITY"]),
        "balanced": bool(data.get("BALANCED_RESAMPLING", False)),
    }


def _waymo(data: View) -> dict[str, Any]:
    encoding = data["POINT_FEATURE_ENCODING"]
    source, used = encoding["src_feature_list"], encoding["used_feature_list"]
    dimensions = data.get("POINTS_TANH_DIM")
    dimensions = [WAYMO_INTENSITY] if dimensions is None else dimensions
    if not all(isinstance(d, int) and 3 <= d < len(source) for d in dimensions):
        raise ConfigError(
            f"DATA_CONFIG.POINTS_TANH_DIM: must be columns from 3 to {len(source) - 1}, got {list(dimensions)}"
        )
    interval = data.get("SAMPLED_INTERVAL")
    return {
        "tanh": [source[d] for d in dimensions if source[d] in used],
        "no_label_zones": bool(data.get("DISABLE_NLZ_FLAG_ON_POINTS", False)),
        "max_sweeps": _waymo_frames(data),
        "velocity": bool(data.get("TRAIN_WITH_SPEED", False)),
        **({} if interval is None else {"interval": interval["train"]}),
    }


def _waymo_frames(data: View) -> int:
    """How many frames are joined, the labelled one included."""
    sequence = data.get("SEQUENCE_CONFIG")
    if sequence is None or not sequence["ENABLED"]:
        skip_rest(*([] if sequence is None else [sequence]))
        return 1
    first, last = sequence["SAMPLE_OFFSET"]
    if last != 0 or first > 0:
        raise ConfigError(
            f"DATA_CONFIG.SEQUENCE_CONFIG.SAMPLE_OFFSET: frames up to the labelled one can be joined, as [-3, 0], got "
            f"{[first, last]}"
        )
    if sequence.get("ONEHOT_TIMESTAMP"):
        raise ConfigError("DATA_CONFIG.SEQUENCE_CONFIG.ONEHOT_TIMESTAMP: has no counterpart in this library")
    return 1 - int(first)


# Data sets of OpenPCDet: ours, and what reads the settings that they alone have.
DATASETS: dict[str, tuple[str, Callable[[View], dict[str, Any]] | None]] = {
    "KittiDataset": ("KittiDataset", _kitti),
    "NuScenesDataset": ("NuScenesDataset", _nuscenes),
    "WaymoDataset": ("WaymoDataset", _waymo),
    "CustomDataset": ("CustomDataset", None),
    "ONCEDataset": ("OnceDataset", None),
    "Argo2Dataset": ("Argoverse2Dataset", _kitti),
}
