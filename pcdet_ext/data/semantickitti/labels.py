"""Labels of points in SemanticKITTI's files, and which of them make the classes of a task (Behley et al., ICCV 2019).

A `.label` file has one little-endian uint32 per point: the lower 16 bits are the id of what it lies on, the upper 16
bits number the instance, the same for one object in all frames of a sequence (0: no instance).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pcdet_ext.config import ConfigError, suggest
from pcdet_ext.files import DataError, MissingFileError, atomic_write
from pcdet_ext.structures import Array

# Ids of each class of the published single-scan task, that of the class in result files first.
CLASSES: Mapping[str, tuple[int, ...]] = {
    "car": (10, 252),
    "bicycle": (11,),
    "motorcycle": (15,),
    "truck": (18, 258),
    "other-vehicle": (20, 13, 16, 256, 257, 259),
    "person": (30, 254),
    "bicyclist": (31, 253),
    "motorcyclist": (32, 255),
    "road": (40, 60),
    "parking": (44,),
    "sidewalk": (48,),
    "other-ground": (49,),
    "building": (50,),
    "fence": (51,),
    "vegetation": (70,),
    "trunk": (71,),
    "terrain": (72,),
    "pole": (80,),
    "traffic-sign": (81,),
}
IGNORED = (0, 1, 52, 99)  # unlabelled, outlier, other structure, other object
THINGS = ("car", "bicycle", "motorcycle", "truck", "other-vehicle", "person", "bicyclist", "motorcyclist")
IDS = 1 << 16  # how many ids, and how many instances of a sequence, there can be


@dataclass(frozen=True)
class LabelMap:
    """Which ids in label files make which class.

    Args:
        ids: the ids of each class; results are written with the first.
        ignored: ids of points that do not count.
        things: the classes whose instances are told apart.

    Raises:
        ConfigError: an id is out of range, is given twice, or a class has none; a thing is no class.
    """

    ids: Mapping[str, Sequence[int]]
    ignored: Sequence[int] = IGNORED
    things: Sequence[str] = THINGS

    def __post_init__(self) -> None:
        owner: dict[int, str] = dict.fromkeys(self.ignored, "ignored ids")
        for name, ids in self.ids.items():
            if not ids:
                raise ConfigError(f"label_ids: {name!r} has no id")
            for number in ids:
                if number in owner:
                    raise ConfigError(f"label_ids: {number} of {name!r} is one of {owner[number]} too")
                owner[number] = repr(name)
        for number, where in owner.items():
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < IDS:
                raise ConfigError(f"label_ids: {number!r} of {where} must be a whole number in [0, {IDS})")
        for name in self.things:
            if name not in self.ids:
                raise ConfigError(f"things: {name!r} is no class{suggest(name, self.ids)}")

    @staticmethod
    def of(
        ids: Mapping[str, Sequence[int]] | None = None,
        ignored: Sequence[int] | None = None,
        things: Sequence[str] | None = None,
    ) -> LabelMap:
        """A map of one's own, or the published one.

        Args:
            ids: label ids by class name; None for the published ones.
            ignored: ids that do not count; None for the published ones.
            things: classes that have instances; None for those of the published ones that are among `ids`.
        """
        ids = CLASSES if ids is None else ids
        named = tuple(name for name in THINGS if name in ids) if things is None else tuple(things)
        return LabelMap(ids, IGNORED if ignored is None else tuple(ignored), named)

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes, in their order."""
        return tuple(self.ids)

    @cached_property
    def _table(self) -> Array:
        """For each id the position of its class, -1 for ignored and -2 for unknown ones."""
        table = np.full(IDS, -2, np.int64)
        table[list(self.ignored)] = -1
        for position, ids in enumerate(self.ids.values()):
            table[list(ids)] = position
        return table

    def class_numbers(self, ids: Array, classes: Sequence[str], path: str | Path) -> Array:
        """Positions of label ids in a list of classes.

        Args:
            ids: integer [N].
            classes: names.
            path: the file that the ids are from, for messages.

        Returns:
            int64 [N]; -1 where the id is ignored, or of a class that is not in the list.

        Raises:
            DataError: an id is neither of a class nor ignored.
        """
        numbers = self._table[ids]
        if (numbers == -2).any():
            unknown = sorted(set(ids[numbers == -2].tolist()))
            raise DataError(
                f"{path}: unknown label id {', '.join(map(str, unknown[:5]))}: of no class, and not ignored; "
                "data.label_ids and data.ignored_ids say which there are"
            )
        position = {name: i for i, name in enumerate(classes)}
        of_class = np.array([position.get(name, -1) for name in self.ids] + [-1], np.int64)
        chosen: Array = of_class[numbers]  # -1, ignored, takes the last
        return chosen

    def result_ids(self, classes: Sequence[str]) -> Array:
        """The id that results have for each of some classes, and last 0, for points without one: int64 [C + 1]."""
        return np.array([*(self.ids[name][0] for name in classes), 0], np.int64)


def read_labels(path: str | Path, points: int | None = None) -> tuple[Array, Array]:
    """The ids and the instances of all points of a `.label` file, int64 [N] each.

    Args:
        path: the file.
        points: how many labels there must be; None for any number.

    Raises:
        DataError: the file is missing, cut, or has another number of labels.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) % 4:
        raise DataError(f"{path}: {len(content)} bytes are no whole number of labels of four bytes; cut short?")
    labels = np.frombuffer(content, "<u4")
    if points is not None and len(labels) != points:
        raise DataError(f"{path}: {len(labels)} labels for the {points} points of its frame")
    return (labels & 0xFFFF).astype(np.int64), (labels >> 16).astype(np.int64)


def write_labels(path: str | Path, ids: Array, instances: Array | None = None) -> None:
    """Write the labels of all points of a frame.

    Args:
        path: the file.
        ids: integer [N] in [0, 65536).
        instances: likewise, or None for zeros.

    Raises:
        ValueError: a number is outside of that range.
    """
    numbers = np.zeros_like(ids) if instances is None else instances
    for name, values in {"ids": ids, "instances": numbers}.items():
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < IDS:
            raise ValueError(f"{path}: {name} must lie in [0, {IDS}), they go from {values.min()} to {values.max()}")
    labels = ids.astype(np.uint32) | (numbers.astype(np.uint32) << 16)
    with atomic_write(path) as temporary:
        labels.astype("<u4").tofile(temporary)
