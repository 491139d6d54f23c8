"""The tables of a nuScenes release, found and read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from pcdet_ext.evaluation.nuscenes_columns import NONE, Kind, Row, Table, read_table, stream
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array

LIDAR, CAMERA = "LIDAR_TOP", "CAM_FRONT"  # the camera's only for those who want its place and calibration
RELEASES = "v1.0-*"
_SAMPLE_DATA_TEXTS = ("sample_token", "ego_pose_token", "calibrated_sensor_token", "filename", "prev")


class Tables:
    """The tables of a release, each read when it is first asked for.

    folder: where they lie. Raises DataError, at that moment, for a table that is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _read(
        self,
        name: str,
        columns: Mapping[str, Kind],
        keep: Callable[[Row], bool] | None = None,
        needed: Sequence[str] | None = None,
    ) -> Table:
        return read_table(self.folder / f"{name}.json", columns, keep, needed)

    @cached_property
    def scene(self) -> Table:
        """Scenes: name, first_sample_token."""
        return self._read("scene", {"name": str, "first_sample_token": str})

    @cached_property
    def sample(self) -> Table:
        """Key frames: scene_token, timestamp in µs."""
        return self._read("sample", {"scene_token": str, "timestamp": 0})

    @cached_property
    def annotation(self) -> Table:
        """Labelled boxes in the global frame, with the tokens of what they belong to.

        A wrong row does harm to its sample alone, if that is known: it is among the table's `problems`.
        """
        texts: dict[str, Kind] = dict.fromkeys(("sample_token", "instance_token", "prev", "next"), str)
        numbers = {"translation": 3, "size": 3, "rotation": 4, "num_lidar_pts": 0, "num_radar_pts": 0}
        columns = {**texts, **numbers, "attribute_tokens": tuple[str, ...]}
        return self._read("sample_annotation", columns, needed=("sample_token",))

    @cached_property
    def instance(self) -> Table:
        """Objects over time: category_token."""
        return self._read("instance", {"category_token": str})

    @cached_property
    def category(self) -> Table:
        """Categories: name."""
        return self._read("category", {"name": str})

    @cached_property
    def attribute(self) -> Table:
        """Attributes: name."""
        return self._read("attribute", {"name": str})

    @cached_property
    def calibration(self) -> Table:
        """Calibrated sensors: sensor_token, translation, rotation; without the camera matrix, see `camera_matrices`."""
        return self._read("calibrated_sensor", {"sensor_token": str, "translation": 3, "rotation": 4})

    @cached_property
    def lidar(self) -> Table:
        """Files of the lidar, key frames and sweeps; is_key_frame is 1 or 0, timestamp in µs."""
        texts: dict[str, Kind] = dict.fromkeys(_SAMPLE_DATA_TEXTS, str)
        wanted = self.calibrations(LIDAR)
        numbers = {"timestamp": 0, "is_key_frame": 0}
        return self._read("sample_data", texts | numbers, lambda row: row["calibrated_sensor_token"] in wanted)

    @cached_property
    def ego_pose(self) -> Table:
        """Where the vehicle was at the files of the lidar: translation, rotation; a wrong row is among `problems`."""
        wanted = set(self.lidar.texts["ego_pose_token"])
        return self._read("ego_pose", {"translation": 3, "rotation": 4}, lambda row: row["token"] in wanted, needed=())

    @cached_property
    def key_frame(self) -> Array:
        """int64 [S]: the row of `lidar` of each sample. Raises DataError for a sample without one, or with several."""
        found = np.full(len(self.sample), NONE)
        keys = np.flatnonzero(self.lidar.whole("is_key_frame") != 0)
        samples = self.sample.rows(self.lidar, "sample_token", keys)
        found[samples] = keys
        for i in np.flatnonzero(found[samples] != keys).tolist():
            token = self.sample.tokens[samples[i]]
            raise DataError(f"{self.lidar.path}: several key frames of {LIDAR} for the sample {token}")
        for i in np.flatnonzero(found == NONE).tolist():
            raise DataError(f"{self.lidar.path}: no key frame of {LIDAR} for the sample {self.sample.tokens[i]}")
        return found

    @cached_property
    def scene_names(self) -> Sequence[str]:
        """Scene of each sample, by name."""
        names = self.scene.texts["name"]
        return [names[i] for i in self.scene.rows(self.sample, "scene_token").tolist()]

    def categories(self, rows: Array) -> Array:
        """Name of the category of some annotations, an array of str objects."""
        instances = self.instance.rows(self.annotation, "instance_token", rows)
        return np.asarray(self._instance_categories[instances])

    @property
    def known_categories(self) -> Sequence[str]:
        """Name of the category of every annotation whose instance is there."""
        instances = self.instance.find(self.annotation.texts["instance_token"])
        names: list[str] = self._instance_categories[instances[instances >= 0]].tolist()
        return names

    @cached_property
    def _instance_categories(self) -> Array:
        names = np.array(self.category.texts["name"], object)
        return np.asarray(names[self.category.rows(self.instance, "category_token")])

    def cameras(self) -> dict[str, tuple[str, list[list[float]]]]:
        """File and 3 × 3 matrix (rows) of the front camera by sample token, of the samples that have one."""
        wanted = self.calibrations(CAMERA)
        if not wanted:
            return {}
        matrices = {row["token"]: row["camera_intrinsic"] for row in stream(self.calibration.path)}
        files = self._read(
            "sample_data",
            dict.fromkeys(_SAMPLE_DATA_TEXTS, str),
            lambda row: row["is_key_frame"] and row["calibrated_sensor_token"] in wanted,
        )
        columns = (files.texts[name] for name in ("sample_token", "filename", "calibrated_sensor_token"))
        return {token: (file, matrices[calibration]) for token, file, calibration in zip(*columns, strict=True)}

    def calibrations(self, channel: str) -> set[str]:
        """Tokens of the calibrations of a channel: each vehicle and day has its own."""
        sensors = self._read("sensor", {"channel": str})
        channels = sensors.texts["channel"]
        of_calibration = sensors.rows(self.calibration, "sensor_token").tolist()
        return {t for t, i in zip(self.calibration.tokens, of_calibration, strict=True) if channels[i] == channel}


def is_tables(path: Path) -> bool:
    """Whether a folder holds the tables of a release, directly or in a folder v1.0-*."""
    return path.is_dir() and bool(_folders(path))


def _folders(path: Path) -> list[Path]:
    """Folders with tables: this one, or those below it as released, or with the version's name twice (OpenPCDet)."""
    candidates = (path, *sorted(path.glob(RELEASES)), *sorted(path.glob(f"{RELEASES}/{RELEASES}")))
    found = [folder for folder in candidates if (folder / "sample.json").is_file()]
    return found[:1] if found[:1] == [path] else found


def find_tables(path: str | Path, version: str | None = None) -> Path:
    """The folder of the tables below a data folder: itself, `v1.0-*`, or `v1.0-*/v1.0-*` as OpenPCDet has it.

    Raises DataError where there are none, none of the version, or several versions of which none is named.
    """
    found = _folders(Path(path))
    if not found:
        raise DataError(f"{path}: no tables of nuScenes (sample.json and the others, or one folder v1.0-* with them)")
    chosen = [folder for folder in found if version in (None, folder.name)]
    names = ", ".join(folder.name for folder in found)
    if not chosen:
        raise DataError(f"{path}: no tables of {version}; it has {names}")
    if len(chosen) > 1:
        raise DataError(f"{path}: holds several releases ({names}); name one of them")
    return chosen[0]


def read_tables(path: str | Path, version: str | None = None) -> Tables:
    """Tables of a release; see `find_tables`. A damaged one is found when it is asked for."""
    return Tables(find_tables(path, version))
