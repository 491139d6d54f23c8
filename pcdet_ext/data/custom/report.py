"""What a prepared folder of one's own data holds: statistics, what is suspicious in them, and suggested settings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdet_ext.data.custom.clouds import INTENSITY, Columns
from pcdet_ext.data.custom.configuration import Suggestion, suggest_settings, write_configuration
from pcdet_ext.data.custom.layout import POINTS, Folder, Settings, frames_of_split
from pcdet_ext.data.index import FrameInfo, index_path, read_index
from pcdet_ext.structures import Array

FAR = 10_000.0  # metres, from which on float32 no longer holds centimetres well
WIDE_RANGE = 1.5  # an intensity up to more than this is not on a scale from 0 to 1
EMPTY_SHARE = 0.5  # of boxes without a point, from which on labels and clouds hardly belong together


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """The labelled boxes of one class in all splits.

    boxes: float32 [M, 7]; num_points: int64 [M] points inside each; splits: boxes per split; frames: with this class.
    """

    name: str
    boxes: Array
    num_points: Array
    splits: Mapping[str, int]
    frames: int

    @property
    def bottoms(self) -> Array:
        """float32 [M]: height of the underside of each box."""
        return np.asarray(self.boxes[:, 2] - self.boxes[:, 5] / 2)


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the indices of a folder say.

    classes: the most frequent first; extent: float64 [2, F], lowest and highest value of each column of the points, or
    None without any; labelled, bare: frames with labels, and those of them without a box.
    """

    classes: Sequence[ClassStatistics]
    extent: Array | None
    labelled: int
    bare: int


def statistics(frames: Mapping[str, Iterable[FrameInfo]]) -> Statistics:
    """Statistics of the frames of each split."""
    boxes: dict[str, list[Array]] = {}
    points: dict[str, list[Array]] = {}
    splits: dict[str, Counter[str]] = {}
    holding: Counter[str] = Counter()
    extents: list[Array] = []
    labelled = bare = 0
    for split, infos in frames.items():
        for info in infos:
            if info.extra["extent"]:
                extents.append(np.array(info.extra["extent"]))
            if info.boxes is None:
                continue
            labelled, bare = labelled + 1, bare + (not len(info.boxes))
            names = np.array(info.names, dtype=object)
            for name in dict.fromkeys(info.names):
                rows = names == name
                boxes.setdefault(name, []).append(info.boxes[rows, :7])
                points.setdefault(name, []).append(info.points_in_box[rows])
                splits.setdefault(name, Counter())[split] += int(rows.sum())
                holding[name] += 1
    found = [
        ClassStatistics(name, np.concatenate(parts), np.concatenate(points[name]), splits[name], holding[name])
        for name, parts in boxes.items()
    ]
    extent = np.stack([np.min([e[0] for e in extents], 0), np.max([e[1] for e in extents], 0)]) if extents else None
    return Statistics(sorted(found, key=lambda c: (-len(c.boxes), c.name)), extent, labelled, bare)


def conclude(
    root: Path,
    out: Path,
    splits: Sequence[str],
    settings: Settings,
    columns: Columns,
    folder: Folder,
    notes: Sequence[str] = (),
) -> str:
    """The report on a folder whose splits are prepared in `out`, where a configuration is written, too.

    Args:
        root: the data folder.
        out: the folder of what was prepared.
        splits: what was prepared.
        settings: those of the folder.
        columns: of its clouds.
        folder: its files.
        notes: what else looks as if something were wrong, in words.

    Returns:
        The report, several lines.
    """
    tables = {split: read_index(index_path(out, split)) for split in splits}
    found = statistics(tables)
    lines = ["", *_clouds(folder, columns, found), *_left(folder, splits, settings), *_boxes(found)]
    labelled = [split for split, table in tables.items() if table.labelled]
    warnings = [f"suspicious: {text}" for text in (*notes, *suspicions(found, settings, columns, labelled))]
    if not found.classes:
        return "\n".join(
            [*lines, *warnings, "no box is labelled: there is nothing to train, and no configuration written"]
        )
    suggestion = suggest_settings(found.classes, settings.classes)
    if suggestion.left_out:
        warnings.append(
            f"suspicious: {suggestion.left_out} boxes lie far from all others, and outside the suggested range"
        )
    written = write_configuration(root, out, splits, settings, columns, suggestion)
    return "\n".join([*lines, *warnings, *_suggested(suggestion), written])


def _clouds(folder: Folder, columns: Columns, found: Statistics) -> list[str]:
    kinds = Counter(path.suffix.lower() for path in folder.clouds.values())
    text = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    lines = [f"clouds in {folder.root / POINTS}: {text}; columns {', '.join(columns.features)}"]
    if folder.foreign:
        others = ", ".join(f"{count} {kind or 'without suffix'}" for kind, count in folder.foreign.items())
        lines.append(f"other files beside them, not read: {others}")
    if found.extent is not None:
        ranges = [f"{n} {low:g} to {high:g}" for n, (low, high) in zip(columns.features, found.extent.T, strict=True)]
        lines.append(f"range of the points: {', '.join(ranges)}")
    return lines


def _left(folder: Folder, splits: Sequence[str], settings: Settings) -> list[str]:
    taken = {name for split in splits for name in frames_of_split(folder, split, settings.val_share)}
    left = len(set(folder.frame_ids) - taken)
    return [f"in none of the splits {', '.join(splits)}, and not looked at: {left} frames"] if left else []


def _boxes(found: Statistics) -> list[str]:
    lines = [f"labelled frames: {found.labelled}, {found.bare} of them without a box"]
    if not found.classes:
        return lines
    every = np.concatenate([c.boxes for c in found.classes])
    low, high = every[:, :3].min(axis=0), every[:, :3].max(axis=0)
    lines.append(f"range of box centres: {', '.join(_range(*v) for v in zip('xyz', low, high, strict=True))}")
    width = max([len("class"), *(len(c.name) for c in found.classes)])
    head = ("boxes", "frames", "dx", "dy", "dz", "underside z", "points per box", "without points")
    lines.append(f"{'class':<{width}}" + "".join(f"  {name:>{w}}" for name, w in zip(head, _WIDTHS, strict=True)))
    lines += [_row(c, width) for c in found.classes]
    return [*lines, "(mean, and from lowest to highest)"]


_WIDTHS = (7, 7, 18, 18, 18, 21, 20, 14)


def _row(c: ClassStatistics, width: int) -> str:
    columns = [*c.boxes[:, 3:6].T, c.bottoms]
    cells = [str(len(c.boxes)), str(c.frames), *map(_spread, columns)]
    points = c.num_points
    cells.append(f"{points.mean():.0f} ({points.min()}–{points.max()})")
    cells.append(str(int((points == 0).sum())))
    return f"{c.name:<{width}}" + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, _WIDTHS, strict=True))


def _spread(values: Array) -> str:
    return f"{values.mean():.2f} ({values.min():.2f} – {values.max():.2f})"


def _range(name: str, low: float, high: float) -> str:
    return f"{name} {low:.2f} to {high:.2f}"


def suspicions(found: Statistics, settings: Settings, columns: Columns, splits: Sequence[str]) -> list[str]:
    """What looks as if something were wrong, in words that say what.

    Args:
        found: statistics of the data.
        settings: of dataset.yaml.
        columns: of the clouds.
        splits: those that have labels.
    """
    texts = []
    if found.extent is not None:
        if np.abs(found.extent[:, :3]).max() > FAR:
            texts.append(
                f"coordinates go to {np.abs(found.extent[:, :3]).max():.0f}: are they of a map? Detectors need them in "
                "the sensor's frame, and float32 does not hold centimetres there"
            )
        if INTENSITY in columns.features:
            highest = float(found.extent[1, columns.features.index(INTENSITY)])
            if highest > WIDE_RANGE:
                texts.append(
                    f"the intensity goes to {highest:g}: `intensity_scale: {_full_scale(highest):g}` in dataset.yaml "
                    "brings it to 0 to 1"
                )
    for c in found.classes:
        texts += _class_suspicions(c)
        texts += [f"no {c.name} in split {split!r}" for split in splits if not c.splits.get(split)]
    texts += _same_letters([c.name for c in found.classes])
    unseen = [name for name in settings.classes if name not in {c.name for c in found.classes}]
    return texts + [f"class {name!r} of dataset.yaml has no box" for name in unseen]


def _same_letters(names: Sequence[str]) -> list[str]:
    """Classes whose names differ in capitals, spaces, hyphens or underscores alone."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"[\s_-]", "", name).casefold(), []).append(name)
    return [
        f"{' and '.join(map(repr, group))} are different classes: are they meant to be one?"
        for group in alike.values()
        if len(group) > 1
    ]


def _class_suspicions(c: ClassStatistics) -> list[str]:
    texts = []
    empty = float((c.num_points == 0).mean())
    if empty > EMPTY_SHARE:
        texts.append(
            f"{empty:.0%} of the boxes of {c.name} hold no point: are boxes and clouds in one frame, z at the box "
            "centre, dx along the heading?"
        )
    across = float((c.boxes[:, 4] > 1.25 * c.boxes[:, 3]).mean())
    if across > EMPTY_SHARE:
        texts.append(
            f"{across:.0%} of the boxes of {c.name} are wider (dy) than long (dx): dx must be along the heading"
        )
    smallest, largest = c.boxes[:, 3:6].min(axis=0), c.boxes[:, 3:6].max(axis=0)
    median = np.median(c.boxes[:, 3:6], axis=0)
    if (largest > 10 * median).any() or (smallest * 10 < median).any():
        texts.append(f"boxes of {c.name} differ in size more than tenfold from the usual one: are all in metres?")
    return texts


def _full_scale(highest: float) -> float:
    """What an intensity that goes this high is likely to go to: 100, 255, 4095 or 65535."""
    return next((scale for scale in (100.0, 255.0, 4095.0, 65535.0) if highest <= scale), highest)


def _suggested(suggestion: Suggestion) -> list[str]:
    lines = [
        f"suggested point_cloud_range: {list(suggestion.point_cloud_range)}",
        f"suggested pillars: {suggestion.voxel_size[0]:g} m, {suggestion.grid[0]} × {suggestion.grid[1]} of them",
    ]
    for anchor in suggestion.anchors:
        lines.append(
            f"suggested anchor of {anchor.name}: size {list(anchor.size)}, bottom_height {anchor.bottom_height:g}; "
            f"overlap of a match in tests {anchor.overlap:g}"
        )
    narrow = [a.name for a in suggestion.anchors if min(a.size[:2]) < 2 * suggestion.voxel_size[0]]
    if narrow:
        lines.append(
            f"narrower than two pillars: {', '.join(narrow)}; a smaller range or model.voxel_size shows them better"
        )
    return lines
