"""Checkpoints between OpenPCDet and this library.

python -m pcdet_ext.plugins.openpcdet.weights to-library CONFIG.yaml checkpoint_epoch_80.pth lion.ckpt
python -m pcdet_ext.plugins.openpcdet.weights to-openpcdet CONFIG.yaml lion.ckpt lion.pth

The configuration is OpenPCDet's, with components of either side in its sections. Files are read without running code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from pcdet_ext import checkpoint
from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.config import ConfigError, Node, from_plain, suggest
from pcdet_ext.files import atomic_write
from pcdet_ext.interop import openpcdet, openpcdet_heads
from pcdet_ext.interop.checkpoints import read_official
from pcdet_ext.interop.settings import every_setting_counts
from pcdet_ext.models.detector import build_detector
from pcdet_ext.plugins.conversion import run_conversion
from pcdet_ext.plugins.nodes import plain
from pcdet_ext.plugins.openpcdet import sections
from pcdet_ext.plugins.openpcdet.data_section import data_settings

BASE = "_BASE_CONFIG_"
INNER = "network."  # our component inside of its part in OpenPCDet
SECTIONS = {"VFE": "encoder", "BACKBONE_3D": "backbone", "BACKBONE_2D": "bev_backbone", "DENSE_HEAD": "head"}
OTHER_SECTIONS = ("NAME", "MAP_TO_BEV", "POST_PROCESSING")
SECOND_STAGE = ("PFE", "POINT_HEAD", "ROI_HEAD")
PARTS = {"VFE": "vfe", "BACKBONE_3D": "backbone_3d", "BACKBONE_2D": "backbone_2d", "DENSE_HEAD": "dense_head"}


def to_library(config: str | Path, source: str | Path, out: str | Path) -> int:
    """Write a checkpoint of this library from one that OpenPCDet wrote.

    Args:
        config: OpenPCDet's YAML file.
        source: its checkpoint.
        out: the file to write.

    Returns:
        The number of parameters and buffers.

    Raises:
        ConfigError: the configuration has components without a counterpart here.
        CheckpointError: the checkpoint is damaged or does not fit the configuration.
    """
    settings = library_settings(read_config(config))
    detector = build_detector(settings)
    try:
        openpcdet.load_official(detector, read_official(source), _our_name)
    except ValueError as error:
        raise CheckpointError(f"{source} and {config}: {error}") from error
    checkpoint.write(out, {"config": settings.plain(), "model": detector.state_dict()})
    return len(detector.state_dict())


def to_openpcdet(config: str | Path, source: str | Path, out: str | Path) -> int:
    """Write a checkpoint that OpenPCDet loads from one of this library. Arguments as for `to_library`, and errors."""
    settings = read_config(config)
    detector = build_detector(library_settings(settings))
    checkpoint.load_model(detector, checkpoint.read(source)["model"], source)
    state = {_their_name(name, settings["MODEL"]): value for name, value in detector.state_dict().items()}
    content = {
        "epoch": 0,
        "it": 0,
        "model_state": {"global_step": torch.zeros(1, dtype=torch.int64), **state},
        "optimizer_state": None,
        "version": "pcdet_ext",
    }
    with atomic_write(out) as temporary:
        torch.save(content, temporary)
    return len(state)


def _our_name(name: str) -> str:
    """Our name for a parameter of an OpenPCDet detector, whose parts are its own or ours."""
    part, _, inside = openpcdet.our_name(name).partition(".")
    return f"{part}.{inside.removeprefix(INNER)}"


def _their_name(name: str, model: Mapping[str, Any]) -> str:
    """OpenPCDet's name for a parameter of our detector."""
    part, _, inside = name.partition(".")
    section = next(section for section, ours in SECTIONS.items() if ours == part)
    return f"{PARTS[section]}.{INNER if _is_ours(section, model[section]) else ''}{inside}"


def _is_ours(section: str, settings: Mapping[str, Any]) -> bool:
    return settings["NAME"] == sections.NAME or settings["NAME"] in sections.READERS[section]


def read_config(path: str | Path) -> dict[str, Any]:
    """An OpenPCDet configuration with the files that it builds on.

    They are looked for as OpenPCDet does, in the working directory, and in the folders above the file.
    Raises ConfigError for a file that is missing, no mapping, or builds on itself.
    """
    return _read(Path(path), ())


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """A configuration that those `above` build on."""
    if path.resolve() in above:
        chain = " builds on ".join(place.name for place in (*above, path.resolve()))
        raise ConfigError(f"{above[0]}: {BASE}: {chain}, which is a circle")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: a configuration must be a mapping, got {type(found).__name__}")
    return _with_bases(found, path, (*above, path.resolve()))


def _with_bases(settings: dict[str, Any], path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """A section over the file that its `_BASE_CONFIG_` names, and so in all its sections."""
    base: dict[str, Any] = {}
    if BASE in settings:
        base = _read(_find_base(str(settings[BASE]), path), above)
    own = {k: _with_bases(v, path, above) if isinstance(v, dict) else v for k, v in settings.items() if k != BASE}
    return _merged(base, own)


def _find_base(name: str, path: Path) -> Path:
    places = [Path.cwd(), *path.resolve().parents]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise ConfigError(f"{path}: {BASE} {name} is neither in {places[0]} nor in a folder above this file")


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings joined key by key; anything else replaces."""
    result = dict(base)
    for key, value in own.items():
        before = result.get(key)
        result[key] = _merged(before, value) if isinstance(value, dict) and isinstance(before, dict) else value
    return result


def library_settings(cfg: Mapping[str, Any]) -> Node:
    """Our configuration (sections `data` and `model`) of the detector that an OpenPCDet configuration describes.

    Raises ConfigError, with OpenPCDet's section, for what has no counterpart here.
    """
    data, model = (_needed(cfg, "", key, Mapping) for key in ("DATA_CONFIG", "MODEL"))
    classes = _needed(cfg, "", "CLASS_NAMES", list)
    for section in model:
        if section in SECOND_STAGE:
            raise ConfigError(f"MODEL.{section}: detectors of two stages have no counterpart in this library")
        if section not in (*SECTIONS, *OTHER_SECTIONS):
            hint = suggest(section, [*SECTIONS, *OTHER_SECTIONS])
            raise ConfigError(f"MODEL.{section}: has no counterpart in this library{hint}")
    voxels = _voxel_settings(data)
    found: dict[str, Any] = {
        "name": "VoxelDetector",
        "voxel_size": voxels["VOXEL_SIZE"],
        "encoder": _encoder(_needed(model, "MODEL.", "VFE", Mapping), voxels),
    }
    for section in ("BACKBONE_3D", "BACKBONE_2D"):
        if model.get(section) is not None:
            found[SECTIONS[section]] = sections.node(section, model[section]).plain()
    found["head"] = _head(model, classes)
    return from_plain({"data": plain(data_settings(data, classes)), "model": plain(found)}, "")


def _needed(settings: Mapping[str, Any], where: str, key: str, kind: type[Any]) -> Any:
    """A setting that must be there. Raises ConfigError where it is not, or is no mapping or list."""
    if key not in settings:
        raise ConfigError(f"{where}{key} is missing{suggest(key, settings) if settings else ''}")
    if not isinstance(settings[key], kind):
        wanted = "a list" if kind is list else "a mapping"
        raise ConfigError(f"{where}{key}: must be {wanted}, got {type(settings[key]).__name__}")
    return settings[key]


def _voxel_settings(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The step of DATA_PROCESSOR that says the size of voxels."""
    for step in _needed(data, "DATA_CONFIG.", "DATA_PROCESSOR", list):
        if isinstance(step, Mapping) and "VOXEL_SIZE" in step:
            return dict(step)
    raise ConfigError("DATA_CONFIG.DATA_PROCESSOR: no step says VOXEL_SIZE")


def _encoder(section: Mapping[str, Any], voxels: Mapping[str, Any]) -> dict[str, Any]:
    """Our encoder, with the limits of the data processor where it makes hard voxels."""
    points, most = voxels.get("MAX_POINTS_PER_VOXEL"), voxels.get("MAX_NUMBER_OF_VOXELS")
    limits = None if most is None else (most["train"], most["test"])
    if _is_ours("VFE", section):
        node = sections.node("VFE", section).plain()
        hard = node.get("name") in ("PillarVFE", "MeanVFE") and limits is not None
        return ({"max_points": points, "max_voxels": list(limits or ())} if hard else {}) | node
    try:
        with every_setting_counts({"MODEL": {"VFE": section}}) as view:
            return openpcdet.encoder(view["MODEL"]["VFE"], points, limits)
    except ValueError as error:
        raise ConfigError(f"MODEL.VFE: {error}") from error


def _head(model: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    section = _needed(model, "MODEL.", "DENSE_HEAD", Mapping)
    if _is_ours("DENSE_HEAD", section):
        return sections.node("DENSE_HEAD", section).plain()
    # OpenPCDet's detectors finish the boxes of anchor heads alone; other heads have settings of their own.
    post_processing = model.get("POST_PROCESSING", {}) if section["NAME"] == "AnchorHeadSingle" else {}
    parts = {"DENSE_HEAD": section, "POST_PROCESSING": post_processing}
    try:
        with every_setting_counts({"MODEL": parts}) as view:
            settings = view["MODEL"]
            openpcdet_heads.stride(settings["DENSE_HEAD"])
            return openpcdet_heads.head(settings["DENSE_HEAD"], settings["POST_PROCESSING"], classes)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"MODEL.DENSE_HEAD: {error}") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the top of the module."""
    directions = {"to-library": to_library, "to-openpcdet": to_openpcdet}
    run_conversion("pcdet_ext.plugins.openpcdet.weights", __doc__, "OpenPCDet's YAML file", directions, arguments)


if __name__ == "__main__":
    main()
