"""Runners for the augmentation cases of OpenPCDet: its recorded random draws go through our deterministic cores."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from pcdet_ext.conformance.golden import Case, Values, every_setting, runs
from pcdet_ext.data.augment import steps as augment
from pcdet_ext.data.objects import Objects
from pcdet_ext.interop.settings import only_known, skip
from pcdet_ext.structures import Array, Sample, Targets

CPU_MARGIN = 0.01  # metres that OpenPCDet's CPU box functions add around a box

# What random numbers were drawn from; a case gives the numbers themselves.
DRAWN_FROM = ("np_seed", "scale_range", "WORLD_ROT_ANGLE", "WORLD_SCALE_RANGE", "NOISE_TRANSLATE_STD")
# Where the published sampler's database lies; a case gives its content.
FILES = ("NAME", "DB_INFO_PATH", "DB_DATA_PATH", "USE_SHARED_MEMORY", "NUM_POINT_FEATURES", "DATABASE_WITH_FAKELIDAR")


@runs("openpcdet", "augment")
@every_setting
def run_augment(case: Case, grads: bool) -> Values:
    """Each transform alone, then the chain of `config.aug_list` with the draws in `mid.pipeline.*`."""
    skip(case.config, *DRAWN_FROM)
    boxes = case.arrays["in.boxes"]
    sample = _sample(case.arrays["in.points"], Targets.of_names(boxes, ("object",) * len(boxes)))
    results = {
        "flip_x": augment.flip(sample, "x"),
        "flip_y": augment.flip(sample, "y"),
        "rotate": augment.rotate(sample, case.config["angle"]),
        "scale": augment.scale(sample, float(case.arrays["mid.scale"])),
        "pipeline": _chain(sample, case),
    }
    values = {f"out.{name}.points": result.points for name, result in results.items()}
    return values | {f"out.{name}.boxes": np.asarray(_targets(result).boxes) for name, result in results.items()}


@runs("openpcdet", "gt_sampling")
@every_setting
def run_gt_sampling(case: Case, grads: bool) -> Values:
    """Consecutive calls on one scene; the published sampler walks through permutations, which the case records."""
    arrays, config = case.arrays, case.config
    names, classes = config["all_names"], config["class_names"]
    objects = {name: _class_objects(arrays, i) for i, name in enumerate(names) if i in arrays["in.db_class"]}
    skip(config, "np_seed")
    sampling = sampling_of(config, classes, {name: found for name, (found, _) in objects.items()})
    scene = Targets.of_names(arrays["in.gt_boxes"], [names[i] for i in arrays["in.gt_class"]])
    sample = _sample(arrays["in.points"], scene)
    values: dict[str, Array] = {}
    for call in range(config["n_calls"]):
        drawn = {}
        for name, wanted in sampling.wanted(sample).items():
            ids = _recorded_draw(arrays, f"mid.{call}.{name}", wanted)
            drawn[name] = np.searchsorted(objects[name][1], ids)
        result = augment.keep_classes(sampling.paste(sample, drawn), classes)
        values[f"out.{call}.gt_boxes"] = np.asarray(_targets(result).boxes)
        values[f"out.{call}.gt_class"] = np.array([names.index(name) for name in _targets(result).names], np.int64)
        values[f"out.{call}.points"] = result.points
    return values


def sampling_of(
    settings: Mapping[str, Any], classes: Collection[str], objects: Mapping[str, Objects]
) -> augment.GroundTruthSampling:
    """The deterministic part of the published sampler.

    Args:
        settings: its section.
        classes: of the data set; others in the section are left out.
        objects: the whole database by class.

    Raises:
        ValueError: boxes are to be moved onto a road plane, which cases have none of.
    """
    only_known("gt_sampling", settings, {"USE_ROAD_PLANE": False})
    skip(settings, *FILES)
    prepare = settings.get("PREPARE", {})
    by_time = settings.get("FILTER_OBJ_POINTS_BY_TIMESTAMP", False)
    if not by_time:
        skip(settings, "TIME_RANGE")
    groups = numbers(settings["SAMPLE_GROUPS"])
    return augment.GroundTruthSampling(
        groups={name: number for name, number in groups.items() if name in classes and name in objects},
        database=objects,
        classes=list(classes),
        min_points=numbers(prepare.get("filter_by_min_points", [])),
        skip_difficulty=prepare.get("filter_by_difficulty", []),
        limit_whole_scene=settings.get("LIMIT_WHOLE_SCENE", False),
        extra_width=settings.get("REMOVE_EXTRA_WIDTH", (0.0, 0.0, 0.0)),
        margin=CPU_MARGIN,
        time_range=settings["TIME_RANGE"] if by_time else None,
    )


def _targets(sample: Sample) -> Targets:
    if sample.targets is None:
        raise ValueError("the sample has no targets")
    return sample.targets


def _columns(points: Array) -> tuple[str, ...]:
    return ("x", "y", "z", *(f"feature {i}" for i in range(3, points.shape[1])))


def _sample(points: Array, targets: Targets) -> Sample:
    return Sample(points, _columns(points), "", targets)


def _chain(sample: Sample, case: Case) -> Sample:
    drawn = {k.removeprefix("mid.pipeline."): v for k, v in case.arrays.items() if k.startswith("mid.pipeline.")}
    for step in case.config["aug_list"]:
        skip(step, *DRAWN_FROM)
        match step["NAME"]:
            case "random_world_flip":
                for axis in step["ALONG_AXIS_LIST"]:
                    sample = augment.flip(sample, axis) if drawn[f"flip_{axis}"] else sample
            case "random_world_rotation":
                sample = augment.rotate(sample, float(drawn["noise_rot"]))
            case "random_world_scaling":
                sample = augment.scale(sample, float(drawn["noise_scale"]))
            case "random_world_translation":
                sample = augment.translate(sample, drawn["noise_translate"].reshape(3))
            case name:
                raise ValueError(f"no augmentation is named {name!r}")
    return augment.wrap_headings(sample)


def _class_objects(arrays: Mapping[str, Array], label: int) -> tuple[Objects, Array]:
    """Objects of one class, and their positions in the case's database."""
    ids = np.flatnonzero(arrays["in.db_class"] == label)
    starts = arrays["in.db_offsets"]
    clouds = [arrays["in.db_points"][starts[i] : starts[i + 1]] for i in ids]
    offsets = np.cumsum([0, *map(len, clouds)])
    points = np.concatenate(clouds)
    boxes, difficulty = arrays["in.db_boxes"][ids], arrays["in.db_difficulty"][ids]
    return Objects(boxes, difficulty, offsets, points, point_features=_columns(points)), ids


def _recorded_draw(arrays: Mapping[str, Array], key: str, wanted: int) -> Array:
    if not wanted:
        return np.zeros(0, np.int64)
    end = int(arrays[f"{key}.pointer_after"])
    return arrays[f"{key}.permutation"][end - wanted : end]


def numbers(pairs: Collection[str]) -> dict[str, int]:
    """["Car:5", …] as a mapping."""
    return {name: int(number) for name, _, number in (pair.partition(":") for pair in pairs)}
