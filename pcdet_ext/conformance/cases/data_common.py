"""Runners for what published data pipelines have in common; their recorded random draws go through our functions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pcdet_ext.conformance.cases.openpcdet_data import sampling_of
from pcdet_ext.conformance.golden import Case, Value, Values, every_setting, runs
from pcdet_ext.conformance.nuscenes_release import release_of
from pcdet_ext.data.augment import steps as augment
from pcdet_ext.data.augment.points import of_newest_sweeps, sampled_rows
from pcdet_ext.data.balance import balanced_frames
from pcdet_ext.data.base import collate, with_tanh
from pcdet_ext.data.geometry import boxes_in_range, points_in_range
from pcdet_ext.data.objects import Objects
from pcdet_ext.engine.fading import disabled_augmentations
from pcdet_ext.engine.settings import TrainConfig
from pcdet_ext.interop.settings import every_setting_counts, only_known, skip, skip_rest
from pcdet_ext.ops import voxelize
from pcdet_ext.structures import Array, Sample, Targets

FEATURES = ("x", "y", "z", "intensity", "elongation", "timestamp")


class RecordedDraws(np.random.Generator):
    """A generator that gives what a published program has drawn, in its order.

    Args:
        draws: of `choice` and `permutation`.
        orders: what `shuffle` made of its arrays.
        places: whether draws of `choice` are places in the sequence it draws from, not members of it.

    Raises:
        ValueError: a draw of another size or of other numbers than was recorded is asked for, or none is left.
    """

    def __init__(self, draws: Iterable[Array], orders: Iterable[Array] = (), places: bool = True) -> None:
        super().__init__(np.random.PCG64(0))
        self._draws, self._orders, self._places = deque(draws), deque(orders), places

    def choice(self, a: Any, size: Any = None, replace: bool = True, *others: Any, **options: Any) -> Any:
        """The next recorded draw.

        Args:
            a: what is drawn from; a number stands for range(a).
            size: how many are drawn, which must be what was recorded.
            replace: whether one may be drawn twice.
            others, options: as NumPy takes them; without effect on what was recorded.
        """
        members = np.arange(a) if np.ndim(a) == 0 else np.asarray(a)
        if size == 0:
            return members[:0]
        drawn = self._next(size)
        if not replace and len(np.unique(drawn)) < len(drawn):
            raise ValueError("a draw without replacement holds a number twice")
        if self._places and len(drawn) and not 0 <= drawn.min() <= drawn.max() < len(members):
            raise ValueError(f"a draw among {len(members)} has the numbers {drawn.min()} to {drawn.max()}")
        if not self._places and not np.isin(drawn, members).all():
            raise ValueError("a draw has numbers that were not to be drawn")
        return members[drawn] if self._places else drawn

    def permutation(self, x: Any, axis: int = 0) -> Any:
        """The recorded permutation of range(x)."""
        return self._next(x)

    def shuffle(self, x: Any, axis: int = 0) -> None:
        """Bring an array of integers into the recorded order."""
        order = self._orders.popleft()
        if not np.array_equal(np.sort(order), np.sort(x)):
            raise ValueError("a recorded order is of other numbers")
        x[:] = order

    def value(self) -> float:
        """A single number, as a coin or an angle."""
        if not self._draws:
            raise ValueError("a draw of a number was not recorded")
        return float(self._draws.popleft().item())

    def _next(self, size: int) -> Array:
        if not self._draws:
            raise ValueError(f"a draw of {size} numbers was not recorded")
        drawn = self._draws.popleft()
        if len(drawn) != size:
            raise ValueError(f"a draw of {size} numbers, where {len(drawn)} were recorded")
        return drawn


def draws_of(case: Case, prefix: str) -> list[Array]:
    """The arrays `<prefix>.draw.0`, `<prefix>.draw.1`, … of a case."""
    found: list[Array] = []
    while (key := f"{prefix}.draw.{len(found)}") in case.arrays:
        found.append(case.arrays[key])
    return found


class PublishedSampler:
    """OpenPCDet's sampler, which takes the objects of a class in the order of one permutation after the other.

    Args:
        settings: its `gt_sampling` section.
        classes: that are sampled, of those in the section.
        objects: the whole database by class, with names of the points' columns.
    """

    def __init__(self, settings: Mapping[str, Any], classes: Sequence[str], objects: Mapping[str, Objects]) -> None:
        self._step = sampling_of(settings, classes, objects)
        self._orders: dict[str, Array] = {}
        self._next = {name: len(pool) for name, pool in self._step.pools.items()}

    def paste(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with the objects that come next, before boxes of unused classes are left out."""
        drawn = {}
        for name, wanted in self._step.wanted(sample).items():
            pool = self._step.pools[name]
            if wanted == 0 or len(pool) == 0:
                continue
            if self._next[name] >= len(pool):
                self._orders[name], self._next[name] = rng.permutation(len(pool)), 0
            start = self._next[name]
            drawn[name] = pool[self._orders[name][start : start + wanted]]
            self._next[name] = start + wanted
        return self._step.paste(sample, drawn)


# What a case says of its random numbers and of the sizes it came out with: it gives the numbers themselves.
RECORDED = ("name", "np_seed", "draws", "samples_with_class", "drawn_per_class", "total", "grid_size", "num_points")
# What a case says of a frame beside its name, and of a database as it came out.
NOTED = (*RECORDED, "index", "metadata", "class_order", "entries_per_class")


def changed(options: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A data configuration with a case's changes.

    Args:
        options: the configuration.
        overrides: values for some of its keys.

    Raises:
        ValueError: naming a key that the configuration has not.
    """
    unknown = [name for name in overrides if name not in options]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not known here among the settings of a data configuration")
    return {**options, **overrides}


def active_steps(augmentor: Any) -> list[Mapping[str, Any]]:
    """The augmentations of a published section that its list of disabled ones leaves; none where there is no section.

    Those that are left out need none of their settings.
    """
    if not isinstance(augmentor, Mapping):
        return []
    disabled = augmentor["DISABLE_AUG_LIST"]
    left = [step for step in augmentor["AUG_CONFIG_LIST"] if step["NAME"] not in disabled]
    skip_rest(*(step for step in augmentor["AUG_CONFIG_LIST"] if step["NAME"] in disabled))
    return left


@runs("data", "cbgs")
@every_setting
def run_cbgs(case: Case, grads: bool) -> Values:
    """Frames drawn so that each class has its share."""
    values = {}
    skip(case.config, "infos")
    for i, call in enumerate(case.config["calls"]):
        skip(call, *RECORDED)
        tokens, pairs = _named_frames(case, call)
        place = {token: position for position, token in enumerate(tokens)}
        holding = {name: {place[token] for token, own in pairs if own == name} for name in call["class_names"]}
        rng = RecordedDraws(draws_of(case, f"mid.{i}"))
        frames = balanced_frames([np.array(sorted(found), np.int64) for found in holding.values()], rng)
        values[f"out.{i}.tokens"] = np.array(tokens)[frames]
    return values


def _named_frames(case: Case, call: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens of all frames in order, and (token, class) of every box: made up, or those of the nuScenes release."""
    if "in.token" in case.arrays:
        pairs = zip(case.arrays["in.token"].tolist(), case.arrays["in.name"].tolist(), strict=True)
        return [f"t{i:03d}" for i in range(call["num_infos"])], list(pairs)
    release = release_of(case)
    frames = [frame for own in release.splits.values() for frame in own]
    found = [(frame.token, name) for frame in frames if frame.objects for name in frame.objects.names]
    return [frame.token for frame in frames], found


@runs("data", "db_sampling")
@every_setting
def run_db_sampling(case: Case, grads: bool) -> Values:
    """Consecutive calls of samplers on scenes that may have fewer columns than their database."""
    values: dict[str, Value] = {}
    for i, run in enumerate(case.config["runs"]):
        settings, classes = run["sampler"], run["class_names"]
        skip(run, *RECORDED)
        sampler = PublishedSampler(settings, classes, _database(case, settings.get("APPLY_TANH_DIM_LIST", ())))
        for k in range(run["num_calls"]):
            points, boxes, names = (case.arrays[f"in.{i}.{k}.{name}"] for name in ("points", "gt_boxes", "gt_names"))
            scene = Sample(points, FEATURES[: points.shape[1]], "", Targets.of_names(boxes, names.tolist()))
            result = augment.keep_classes(sampler.paste(scene, RecordedDraws(draws_of(case, f"mid.{i}.{k}"))), classes)
            values[f"out.{i}.{k}.points"] = result.points
            values[f"out.{i}.{k}.gt_boxes"] = np.asarray(_targets(result).boxes)
            values[f"out.{i}.{k}.gt_names"] = np.array(_targets(result).names, dtype=str)
    return values


def _database(case: Case, tanh: Sequence[int]) -> dict[str, Objects]:
    """The case's objects by class, some of their columns through tanh."""
    points, starts, classes = (case.arrays[f"in.db_{name}"] for name in ("points", "offsets", "class"))
    features = FEATURES[: points.shape[1]]
    points = with_tanh(Sample(points, features, ""), [features[column] for column in tanh]).points
    found = {}
    for name in dict.fromkeys(classes.tolist()):
        ids = np.flatnonzero(classes == name)
        clouds = [points[starts[i] : starts[i + 1]] for i in ids]
        offsets = np.cumsum([0, *map(len, clouds)])
        boxes, difficulty = case.arrays["in.db_boxes"][ids], case.arrays["in.db_difficulty"][ids]
        found[name] = Objects(boxes, difficulty, offsets, np.concatenate(clouds), point_features=features)
    return found


def _targets(sample: Sample) -> Targets:
    if sample.targets is None:
        raise ValueError("the sample has no targets")
    return sample.targets


@runs("data", "fade")
@every_setting
def run_fade(case: Case, grads: bool) -> Values:
    """The augmentations of each epoch; the settings of a run stand beside what was active in it, and nowhere else."""
    names = case.config["AUG_CONFIG_LIST"]
    runs_given = [{k: v for k, v in run.items() if k != "active_by_epoch"} for run in case.expected()["runs"]]
    return {"expected": {"runs": [{**run, "active_by_epoch": _active(names, run)} for run in runs_given]}}


def _active(names: Sequence[str], run: Mapping[str, Any]) -> list[list[str]]:
    """What is active in each epoch of a run with these settings."""
    with every_setting_counts(run) as settings:
        hook = settings["DisableAugmentationHook"] or {"DISABLE_AUG_LIST": [], "NUM_LAST_EPOCHS": 0}
        options = TrainConfig(
            epochs=settings["total_epochs"],
            fade_epochs=hook["NUM_LAST_EPOCHS"],
            fade_augmentations=hook["DISABLE_AUG_LIST"],
            fade_restores=True,
        )
        disabled = settings["DISABLE_AUG_LIST"]
        epochs = range(settings["start_epoch"], settings["total_epochs"])
    left_out = [disabled_augmentations(disabled, options, epoch) for epoch in epochs]
    return [[name for name in names if name not in faded] for faded in left_out]


@runs("data", "processor")
@every_setting
def run_processor(case: Case, grads: bool) -> Values:
    """Crops, choices of columns, sweeps and points, voxels and batches."""
    config = case.config
    values: dict[str, Value] = {}
    for kind in ("voxel", "sample_points"):
        for options in config.get(kind, []):
            skip(options, *RECORDED, "mode")  # where points are shuffled, the order is recorded
    for i, options in enumerate(config.get("mask", [])):
        values |= _masked(case, options, f"out.mask.{i}")
    for i, options in enumerate(config.get("encode", [])):
        values[f"out.encode.{i}.points"] = _encoded(case.arrays["in.points"], config["src_feature_list"], options)
    for i, options in enumerate(config.get("voxel", [])):
        values |= _voxels(case, options, i)
    for i, options in enumerate(config.get("sample_points", [])):
        values[f"out.sample_points.{i}.points"] = _sampled(case, options["NUM_POINTS"], f"mid.sample_points.{i}")
    if "collate_batch_size" in config:
        values |= _collated(case, config["collate_batch_size"])
    return values


def _masked(case: Case, options: Mapping[str, Any], key: str) -> dict[str, Value]:
    extent, boxes = case.config["POINT_CLOUD_RANGE"], case.arrays["in.gt_boxes"]
    points = points_in_range(case.arrays["in.points"], extent, options.get("MASK_Z", False), closed=True)
    kept = np.ones(len(boxes), bool)
    skip(options, "USE_CENTER_TO_FILTER", "min_num_corners", "mode")  # of boxes that are removed at all
    if options["REMOVE_OUTSIDE_BOXES"] and options["mode"] == "train":
        corners = None if options.get("USE_CENTER_TO_FILTER", True) else options.get("min_num_corners", 1)
        kept = boxes_in_range(boxes if corners is None else boxes.astype(np.float32), extent, corners, closed=True)
    return {f"{key}.point_index": np.flatnonzero(points), f"{key}.box_index": np.flatnonzero(kept)}


def _encoded(points: Array, available: Sequence[str], options: Mapping[str, Any]) -> Array:
    skip(options, "num_point_features", "max_sweeps")
    only_known("encode", options, {"use_lead_xyz": True})
    wanted = ["x", "y", "z", *(name for name in options["used_feature_list"] if name not in ("x", "y", "z"))]
    points = points[:, [available.index(name) for name in wanted]]
    if options.get("filter_sweeps"):
        ages = points[:, available.index("timestamp")]  # the place among all columns, as published
        points = points[of_newest_sweeps(ages, options["max_sweeps"])]
    return points


def _voxels(case: Case, options: Mapping[str, Any], i: int) -> dict[str, Value]:
    extent, points = case.config["POINT_CLOUD_RANGE"], case.arrays["in.points"]
    points = points[points_in_range(points, extent, closed=True)]
    for order in draws_of(case, f"mid.voxel.{i}"):
        points = points[order]
    limits = options["MAX_POINTS_PER_VOXEL"], options["MAX_NUMBER_OF_VOXELS"]
    voxels, coords, counts = voxelize(torch.from_numpy(points), extent, options["VOXEL_SIZE"], *limits)
    named = {"voxels": voxels, "voxel_coords": coords, "voxel_num_points": counts, "points": points}
    return {f"out.voxel.{i}.{name}": value for name, value in named.items()}


def _sampled(case: Case, number: int, key: str) -> Array:
    points = case.arrays["in.far_points"]
    if number == -1:
        return points
    rng = RecordedDraws(draws_of(case, key), [case.arrays[f"{key}.order"]], places=False)
    return points[sampled_rows(points, number, rng)]


def _collated(case: Case, size: int) -> dict[str, Value]:
    items = [_arrays(case, f"in.collate.{i}.") for i in range(size)]
    columns = FEATURES[: items[0]["points"].shape[1]]
    batch = collate([Sample(item["points"], columns, str(item["frame_id"])) for item in items], ())
    most = max(len(item["gt_boxes"]) for item in items)
    boxes = [np.pad(item["gt_boxes"], ((0, most - len(item["gt_boxes"])), (0, 0))) for item in items]
    coords = [np.insert(item["voxel_coords"], 0, i, axis=1) for i, item in enumerate(items)]
    return {
        "out.collate.points": torch.cat([batch.batch_index[:, None].float(), batch.points], dim=1),
        "out.collate.voxels": np.concatenate([item["voxels"] for item in items]),
        "out.collate.voxel_coords": np.concatenate(coords),
        "out.collate.voxel_num_points": np.concatenate([item["voxel_num_points"] for item in items]),
        "out.collate.gt_boxes": np.stack(boxes),
        "out.collate.frame_id": np.array(batch.frame_ids),
        "out.collate.use_lead_xyz": np.stack([item["use_lead_xyz"] for item in items]),
    }


def _arrays(case: Case, prefix: str) -> dict[str, Array]:
    return {key.removeprefix(prefix): value for key, value in case.arrays.items() if key.startswith(prefix)}


class Draws(np.random.Generator):
    """What a published program has drawn, in its order, whoever asks next."""

    def __init__(self, draws: Sequence[Array]) -> None:
        super().__init__(np.random.PCG64(0))
        self._draws = deque(draws)

    def next(self) -> Array:
        """The next draw."""
        return self._draws.popleft()

    def permutation(self, x: Any, axis: int = 0) -> Any:
        """The next draw, which must be a permutation of range(x)."""
        drawn = self.next()
        if not np.array_equal(np.sort(drawn), np.arange(x)):
            raise ValueError(f"the next draw is no permutation of {x} numbers")
        return drawn
