"""Checkpoints of other code bases, read without running code and turned into those of this library."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pcdet_ext import checkpoint, config
from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.interop import (
    dsvt,
    flatformer,
    from_official,
    lion,
    octformer_detection,
    openpcdet,
    scatterformer,
    unilion,
)
from pcdet_ext.models.backbones import DSVT, LION, ScatterFormer
from pcdet_ext.models.detector import VoxelDetector, build_detector

# Where code bases keep the parameters in their files: OpenPCDet, mmdetection3d, Lightning and others.
STATE_KEYS = ("model_state", "state_dict", "model_state_dict", "model")
# Code bases built on OpenPCDet, by the backbone: our names for the parameters of their detectors.
RENAMES: dict[type, Callable[[str], str]] = {DSVT: dsvt.detector_name, ScatterFormer: scatterformer.detector_name}
# How each names its parameters: by the name of its encoder, or where that has no parameters of its head.
LOADERS: dict[str, Callable[[VoxelDetector, Mapping[str, Tensor]], None]] = {
    "vfe.": lambda detector, state: _load_openpcdet(detector, state),
    "dense_head.": lambda detector, state: _load_openpcdet(detector, state),
    "backbone.patch_embed.": octformer_detection.load_official,
    "pts_voxel_encoder.": unilion.load,
    "voxel_encoder.": lambda detector, state: flatformer.load_official(detector, state, flatformer.detector_name),
}


def _load_openpcdet(detector: VoxelDetector, state: Mapping[str, Tensor]) -> None:
    if isinstance(detector.backbone, LION):
        lion.load(detector, state)
    else:
        openpcdet.load_official(detector, state, RENAMES.get(type(detector.backbone)))


# Numbers of NumPy, which training logs in checkpoints hold; the first by the name that NumPy 1 wrote, too. They cannot
# run anything.
_SCALAR = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(t)) for t in ("f4", "f8", "i4", "i8", "bool")},
]
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_BUFFER = "mmengine.logging.history_buffer.HistoryBuffer"


class LoggedNumbers:
    """Stands for mmengine's `HistoryBuffer`, the numbers of a training's log, where mmengine is not installed."""

    def current(self) -> None:
        """A way to sum them up, which checkpoints refer to by name; so are the others."""

    max = mean = min = current


def harmless_logs(buffer: type = LoggedNumbers) -> list[Any]:
    """What `torch.load` may meet in the logs that mmengine's checkpoints hold, besides `HARMLESS`.

    A log names methods of its class through `getattr`; a function takes its place that gives these and nothing else.

    Args:
        buffer: mmengine's class `HistoryBuffer`, or what takes its place.
    """

    def method(owner: Any, name: str) -> Any:
        if owner is not buffer or name.startswith("_"):
            raise pickle.UnpicklingError(f"GLOBAL builtins.getattr of {owner!r} and {name!r}")
        return getattr(buffer, name)

    arrays = [np.ndarray, *((_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core"))]
    return [(buffer, _BUFFER), *arrays, (method, "builtins.getattr"), (method, "__builtin__.getattr")]


def read_official(path: str | Path) -> dict[str, Tensor]:
    """The parameters in a checkpoint file of another code base, on the CPU.

    Only tensors and plain values are read. Raises CheckpointError for a file that is missing, damaged, or holds
    anything else.
    """
    content = read_content(path)
    state = _parameters(content)
    if not state:
        raise CheckpointError(f"{path}: holds no parameters (looked for {', '.join(STATE_KEYS)})")
    return {name.removeprefix("module."): value for name, value in state.items()}


def read_content(path: str | Path) -> Any:
    """All that a checkpoint file of another code base holds; errors as for `read_official`."""
    with torch.serialization.safe_globals([*HARMLESS, *harmless_logs()]):
        return checkpoint.load_safely(path, "holds more than tensors and plain values")


def _parameters(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    for key in STATE_KEYS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def load_official(detector: VoxelDetector, state: Mapping[str, Tensor]) -> None:
    """Give a detector the parameters of a published one, every one of them.

    Raises ValueError for parameters of an unknown code base, and one that lists what does not fit.
    """
    for prefix, load in LOADERS.items():
        if any(name.startswith(prefix) for name in state):
            load(detector, state)
            return
    raise ValueError(
        f"no parameter starts with {' or '.join(LOADERS)}, so these are no parameters of a whole detector; "
        f"they are {', '.join(list(state)[:3])}, …"
    )


def convert(official: str | Path, path: str | Path, out: str | Path, overrides: Iterable[str] = ()) -> int:
    """Write a checkpoint of this library from an official one and the configuration of the same model.

    Args:
        official: the file of the other code base.
        path: our YAML file. One with the keys `system` and `config` (see `from_official`) is the configuration of a
            published network that is no detector; `load_network` reads what is written for it.
        out: the file to write.
        overrides: changes of the configuration, `a.b=value`.

    Returns:
        How many parameters and buffers were taken over.

    Raises:
        CheckpointError: the official file is damaged or does not fit; the message names it.
        ConfigError: the configuration cannot be used; the message names its file.
    """
    state = read_official(official)
    settings = config.load(path, overrides)
    if "system" in settings:
        return _convert_network(state, settings, official, path, out)
    detector = build_detector(settings)
    try:
        load_official(detector, state)
    except ValueError as error:
        raise CheckpointError(f"{official} and {path}: {error}") from error
    checkpoint.write(out, {"config": settings.plain(), "model": detector.state_dict()})
    return len(detector.state_dict())


def _convert_network(
    state: Mapping[str, Tensor], settings: config.Node, official: str | Path, path: str | Path, out: str | Path
) -> int:
    """Write the parameters of a published network, with its own configuration. Returns how many."""
    plain = settings.plain()
    if not isinstance(plain.get("config"), Mapping):
        raise config.ConfigError(f"{settings.where()}: beside 'system' there must be a mapping 'config'")
    try:
        network = from_official(plain["system"], plain["config"], state)
    except ValueError as error:
        raise CheckpointError(f"{official} and {path}: {error}") from error
    own = network.state_dict()
    checkpoint.write(out, {"system": plain["system"], "config": dict(plain["config"]), "model": own})
    return len(own)


def load_network(path: str | Path) -> nn.Module:
    """A network, in eval mode, from the file that `convert` wrote for a published one that is no detector.

    Raises CheckpointError for a file that is missing, damaged, or of something else.
    """
    content = checkpoint.load_safely(path, "holds more than tensors and plain values")
    if not isinstance(content, Mapping) or not {"system", "config", "model"} <= content.keys():
        raise CheckpointError(f"{path}: is no converted network, which has a system, a config and a model")
    try:
        network = from_official(content["system"], content["config"])
        network.load_state_dict(content["model"])
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return network
