"""Settings for a detector that fit a folder of one's own data, and the configuration that has them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from pcdet_ext.data.custom.clouds import Columns
from pcdet_ext.data.custom.layout import Settings
from pcdet_ext.data.custom.motion import TIME
from pcdet_ext.data.geometry import footprints
from pcdet_ext.data.index import FOLDER
from pcdet_ext.data.objects import database_path
from pcdet_ext.evaluation.rotated import LARGE_OVERLAP, usual_overlap
from pcdet_ext.files import atomic_write
from pcdet_ext.structures import Array

CONFIGURATION = "config.yaml"
BASE = "custom/pillars"
STRIDE = 8  # of the backbone in the base: the grid is a multiple of it
MOST_CELLS = 512  # on a side
PILLARS = (0.05, 0.08, 0.1, 0.16, 0.2)  # metres
PILLARS_ACROSS = 3.5  # the narrowest class, where its size alone decides
FAR_OUT, LEAST_AWAY = 10.0, 20.0  # times the usual distance from the middle; metres that are usual anyway
MARGIN = 1.0  # metres around all boxes
HEIGHT_STEP = 0.5  # metres
PASTED = 10  # objects of each class that a training scene is filled up to
BEHIND = 0.5  # share of the range in front of the sensor that must lie behind it for mirroring front and back

_CHECK = "# check "


class LabelledClass(Protocol):
    """Boxes float32 [M, 7] of a class, and the heights of their undersides float32 [M]."""

    @property
    def name(self) -> str:
        """The class."""

    @property
    def boxes(self) -> Array:
        """Its boxes."""

    @property
    def bottoms(self) -> Array:
        """Their undersides."""


@dataclass(frozen=True)
class Anchor:
    """The usual box of a class: size (dx, dy, dz), height of its underside; overlap: of a match in tests."""

    name: str
    size: tuple[float, float, float]
    bottom_height: float
    overlap: float

    def to_json(self) -> dict[str, Any]:
        """The settings of an anchor head."""
        matched, unmatched = (0.6, 0.45) if self.overlap == LARGE_OVERLAP else (0.5, 0.35)
        return {
            "class_name": self.name,
            "sizes": [list(self.size)],
            "rotations": [0, 1.57],
            "bottom_height": self.bottom_height,
            "matched": matched,
            "unmatched": unmatched,
        }


@dataclass(frozen=True)
class Suggestion:
    """Settings for a pillar detector: the range, whole pillars in it, and an anchor per class.

    left_out: boxes that lie far from all others, and outside the range.
    """

    point_cloud_range: tuple[float, ...]
    voxel_size: tuple[float, float, float]
    anchors: tuple[Anchor, ...]
    left_out: int = 0

    @property
    def grid(self) -> tuple[int, int]:
        """Pillars in x and y."""
        low, high, size = self.point_cloud_range[:2], self.point_cloud_range[3:5], self.voxel_size[:2]
        x, y = (round((b - a) / s) for a, b, s in zip(low, high, size, strict=True))
        return x, y


def suggest_settings(found: Sequence[LabelledClass], order: Sequence[str] = ()) -> Suggestion:
    """Settings that fit labelled classes.

    The range holds all boxes with `MARGIN` around them, in steps of `STRIDE` pillars; boxes `FAR_OUT` times farther
    from the middle of all than most are do not count for it. Pillars are the largest of
    `PILLARS` of which `PILLARS_ACROSS` fit across the narrowest class, and larger where more than `MOST_CELLS` would
    lie on a side. Anchors have the mean size and underside of their class.
    found: at least one class; order: of the classes, those not named follow.
    """
    every = np.concatenate([c.boxes for c in found]).astype(np.float64)
    boxes = every[_near(every)]
    corners = footprints(boxes).reshape(-1, 2)
    low, high = corners.min(axis=0) - MARGIN, corners.max(axis=0) + MARGIN
    pillar = _pillar(float((high - low).max()), min(float(c.boxes[:, 3:5].mean(axis=0).min()) for c in found))
    step = STRIDE * pillar
    x0, y0 = (round(math.floor(v / step) * step, 4) for v in low)
    x1, y1 = (round(math.ceil(v / step) * step, 4) for v in high)
    z0 = math.floor((boxes[:, 2] - boxes[:, 5] / 2).min() / HEIGHT_STEP - 1) * HEIGHT_STEP
    z1 = math.ceil((boxes[:, 2] + boxes[:, 5] / 2).max() / HEIGHT_STEP + 1) * HEIGHT_STEP
    named = [name for name in order if name in {c.name for c in found}]
    ordered = sorted(found, key=lambda c: named.index(c.name) if c.name in named else len(named))
    return Suggestion(
        (x0, y0, z0, x1, y1, z1), (pillar, pillar, z1 - z0), tuple(map(_anchor, ordered)), len(every) - len(boxes)
    )


def _near(boxes: Array) -> Array:
    """bool [M]: which boxes are not far out; see `suggest_settings`."""
    away = np.abs(boxes[:, :3] - np.median(boxes[:, :3], axis=0)).max(axis=1)
    return np.asarray(away <= FAR_OUT * max(float(np.median(away)), LEAST_AWAY))


def _pillar(longest: float, narrowest: float) -> float:
    """The size of pillars for a range of this length, and classes of which the narrowest is this wide in the mean."""
    wanted = max((size for size in PILLARS if size * PILLARS_ACROSS <= narrowest), default=PILLARS[0])
    least = longest / (MOST_CELLS - 2 * STRIDE)  # the range grows by up to two steps
    return wanted if wanted >= least else math.ceil(least * 100) / 100


def _anchor(c: LabelledClass) -> Anchor:
    dx, dy, dz = (round(float(v), 2) or 0.01 for v in c.boxes[:, 3:6].mean(axis=0))
    return Anchor(c.name, (dx, dy, dz), round(float(c.bottoms.mean()), 2), usual_overlap(c.boxes))


def write_configuration(
    root: Path, out: Path, splits: Sequence[str], settings: Settings, columns: Columns, suggestion: Suggestion
) -> str:
    """Write config.yaml, but not over one that somebody edited.

    Args:
        root: the data folder.
        out: the folder to write to.
        splits: those that were prepared.
        settings: of dataset.yaml.
        columns: of the clouds.
        suggestion: range, voxel size and anchors that fit the data.

    Returns:
        What was done, in words.
    """
    path = out / CONFIGURATION
    body = yaml.safe_dump(
        _content(root, out, splits, settings, columns, suggestion),
        sort_keys=False,
        default_flow_style=None,
        width=110,
        allow_unicode=True,
    )
    if path.exists() and not _as_written(path.read_text(encoding="utf-8")):
        return f"{path}: was edited and stays as it is; delete or rename it to have a new one written"
    head = (
        f"# Written by `pcdet prepare custom`, which writes it anew while nobody edits it.\n{_CHECK}{_checksum(body)}\n"
    )
    with atomic_write(path) as temporary:
        temporary.write_text(head + body, encoding="utf-8")
    return f"configuration: {path}; train with it: pcdet train {path}"


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _as_written(text: str) -> bool:
    """Whether a configuration is as it was written, going by the checksum in it."""
    for i, line in enumerate(lines := text.splitlines(keepends=True)):
        if line.startswith(_CHECK):
            return line[len(_CHECK) :].strip() == _checksum("".join(lines[i + 1 :]))
    return False


def _content(
    root: Path, out: Path, splits: Sequence[str], settings: Settings, columns: Columns, suggestion: Suggestion
) -> dict[str, Any]:
    names = [anchor.name for anchor in suggestion.anchors]
    train = "train" if "train" in splits else splits[0]
    test = "val" if "val" in splits else splits[-1]
    data: dict[str, Any] = {"root": str(root.resolve())}
    if out.resolve() != (root / FOLDER).resolve():
        data["index"] = str(out.resolve())
    if train != "train":
        data["split"] = train
    data |= {
        "classes": names,
        "point_cloud_range": list(suggestion.point_cloud_range),
        "point_features": [*columns.features, *([TIME] if settings.max_sweeps > 1 else [])],
        "intensity_scale": settings.intensity_scale,
        "max_sweeps": settings.max_sweeps,
        "augment": _augmentation(names, suggestion.point_cloud_range, (database_path(out, train)).is_dir()),
    }
    return {
        "_base_": BASE,
        "data": data,
        "model": {
            "voxel_size": list(suggestion.voxel_size),
            "head": {"anchors": [anchor.to_json() for anchor in suggestion.anchors]},
        },
        "test": {"split": test, "metric": {"overlap": {a.name: a.overlap for a in suggestion.anchors}}},
    }


def _augmentation(names: Sequence[str], extent: Sequence[float], database: bool) -> list[dict[str, Any]]:
    all_around = -extent[0] >= BEHIND * extent[3]
    sampling = {
        "name": "GroundTruthSampling",
        "groups": dict.fromkeys(names, PASTED),
        "min_points": 5,
        "limit_whole_scene": True,
    }
    return [
        *([sampling] if database else []),
        {"name": "RandomFlip", "axes": ["x", "y"] if all_around else ["x"]},
        {"name": "RandomRotation", "angle_range": [-0.78539816, 0.78539816]},
        {"name": "RandomScaling", "scale_range": [0.95, 1.05]},
        {"name": "PointShuffle"},
    ]
