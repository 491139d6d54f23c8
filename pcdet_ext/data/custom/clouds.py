"""The columns of the clouds of a folder, found once for all of them, and reading a cloud with these columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdet_ext.data.custom.layout import SETTINGS, Settings
from pcdet_ext.data.points import HEADLESS, XYZ, PointFile, find_column, is_headless_bin, read_point_file
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array

INTENSITY = "intensity"
WIDTHS = range(3, 9)  # columns that a headless file may have
NAMED_WIDTHS = (3, 4)  # of which everybody has the same names
EXAMPLE = "`point_features: [x, y, z, intensity]`"


@dataclass(frozen=True)
class Columns:
    """The columns of all clouds of a folder.

    features: those that frames have, x, y, z first; headless: those of files that do not name theirs, in their order,
    empty where there are no such files; scale: what the intensity is divided by.
    """

    features: tuple[str, ...]
    headless: tuple[str, ...] = ()
    scale: float = 1.0

    def read(self, path: Path) -> Array:
        """Points float32 [N, F] of a cloud. Raises DataError where it is damaged or has other columns."""
        bare = is_headless_bin(path)
        content = read_point_file(path, len(self.headless) if bare else None)
        if not content.named:
            content = self._named(content)
        points = content.select(self.features)
        if self.scale != 1 and INTENSITY in self.features:
            points[:, self.features.index(INTENSITY)] /= self.scale
        return points

    def _named(self, content: PointFile) -> PointFile:
        width = content.points.shape[1]
        if width != len(self.headless):
            raise DataError(
                f"{content.path}: has {width} columns, where the clouds of this folder have {len(self.headless)} "
                f"({', '.join(self.headless)})"
            )
        return PointFile(content.points, self.headless, content.path)

    def to_json(self) -> dict[str, object]:
        """In plain types, for an index."""
        return {"features": list(self.features), "headless": list(self.headless), "scale": self.scale}

    @staticmethod
    def of_json(content: Mapping[str, list[str] | float]) -> Columns:
        """The inverse of `to_json`."""
        features, headless, scale = content["features"], content["headless"], content["scale"]
        return Columns(tuple(features), tuple(headless), float(scale))  # type: ignore[arg-type]


def find_columns(clouds: Iterable[Path], settings: Settings) -> Columns:
    """The columns of clouds: those that the settings state, or else x, y, z, and intensity where the files have it.

    The columns of .bin files are then found by the size of all of them, those of other kinds in one file of each.
    Raises DataError where that is not clear, with what to state.
    """
    clouds = list(clouds)
    if settings.point_features is not None:
        stated = tuple(settings.point_features)
        return Columns(stated, stated, settings.intensity_scale)
    found: dict[Path, tuple[str, ...]] = {}  # an example of each kind, and its columns
    bare = [path for path in clouds if is_headless_bin(path)]
    headless: tuple[str, ...] = ()
    if bare:
        headless = found[bare[0]] = _columns_by_size(bare)
    for suffix in sorted({path.suffix.lower() for path in clouds} - {".bin"}):
        first = next(path for path in clouds if path.suffix.lower() == suffix)
        content = read_point_file(first)
        if not content.named:
            headless = _agreed(headless, _usual(content), first)
        found[first] = content.columns
    for path in [path for path in clouds if path.suffix.lower() == ".bin" and not is_headless_bin(path)][:1]:
        found[path] = read_point_file(path).columns
    return Columns(_common(found), headless, settings.intensity_scale)


def _usual(content: PointFile) -> tuple[str, ...]:
    width = content.points.shape[1]
    if width not in NAMED_WIDTHS:
        raise DataError(
            f"{content.path}: has {width} columns without names; say in {SETTINGS} what they are, as in {EXAMPLE}"
        )
    return HEADLESS[:width]


def _agreed(headless: tuple[str, ...], other: tuple[str, ...], path: Path) -> tuple[str, ...]:
    if headless and headless != other:
        raise DataError(f"{path}: has {len(other)} columns, but the .bin files beside it have {len(headless)}")
    return other


def _columns_by_size(paths: Sequence[Path]) -> tuple[str, ...]:
    sizes = np.array([path.stat().st_size for path in paths], np.int64)
    fitting = [width for width in WIDTHS if not (sizes % (4 * width)).any()]
    if not sizes.any():
        return HEADLESS[:4]  # all are empty
    if len(fitting) == 1 and fitting[0] in NAMED_WIDTHS:
        return HEADLESS[: fitting[0]]
    if not fitting:
        odd = next((path for path, size in zip(paths, sizes, strict=True) if size % 4), None)
        which = f"{odd}: {odd.stat().st_size} bytes are no whole number of float32" if odd else str(paths[0].parent)
        raise DataError(
            f"{which}: no number of columns from {WIDTHS[0]} to {WIDTHS[-1]} fits the size of all .bin files: is one "
            f"cut short? {SETTINGS} can say what the columns are, for instance {EXAMPLE}"
        )
    may = " or ".join(map(str, fitting))
    raise DataError(
        f"{paths[0].parent}: which columns of float32 do the .bin files have? Going by their size there may be {may}; "
        f"name them in {SETTINGS}, for instance {EXAMPLE}"
    )


def _common(found: Mapping[Path, Sequence[str]]) -> tuple[str, ...]:
    having = {path for path, columns in found.items() if find_column(INTENSITY, columns) is not None}
    lacking = [path for path in found if path not in having]
    if having and lacking:
        raise DataError(
            f"{lacking[0]}: has no intensity, but {min(having).name} has; say in {SETTINGS} which columns to read, for "
            "instance `point_features: [x, y, z]`"
        )
    return (*XYZ, INTENSITY) if having else XYZ
