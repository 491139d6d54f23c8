"""mmdetection3d's SparseEncoder, the 3-D backbone of its SECOND and CenterPoint, as one of this library.

It comes in two forms, which here are two classes: of plain convolutions (VoxelBackBone8x), in whose stages the strided
convolution stands first, and of residual blocks (VoxelResBackBone8x), where it stands last, so that what is the end
of a stage there is the beginning of the next one here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

PLAIN, RESIDUAL = "conv_module", "basicblock"
CLASSES = {PLAIN: "VoxelBackBone8x", RESIDUAL: "VoxelResBackBone8x"}
# Defaults of mmdetection3d 1.4.
CHANNELS = ((16,), (32, 32, 32), (64, 64, 64), (64, 64, 64))
PADDINGS = ((1,), (1, 1, 1), (1, 1, 1), ((0, 1, 1), 1, 1))
STRIDED_PADDINGS = ((1, 1, 1), (1, 1, 1), (0, 1, 1))  # z, y, x, of the three strided convolutions
RESIDUAL_BLOCKS = 2  # per stage, and in front of the strided convolution
NORM = {"type": "BN1d", "eps": 1e-3, "momentum": 0.01}


def sparse_encoder(config: Mapping[str, Any], grid: Sequence[int]) -> dict[str, Any]:
    """Our backbone for a section middle_encoder of type SparseEncoder.

    Args:
        config: the section.
        grid: cells (z, y, x) of the detector's range.

    Raises:
        ValueError: the shape does not belong to the grid, or the layers are not those of a backbone of this library.
    """
    kind = config.get("block_type", PLAIN)
    if kind not in CLASSES:
        raise ValueError(f"block_type: {kind!r} is not known here; known: {', '.join(CLASSES)}")
    expected = [grid[0] + 1, *grid[1:]]
    if list(config["sparse_shape"]) != expected:
        raise ValueError(
            f"sparse_shape: {list(config['sparse_shape'])} must be {expected}, the cells of the range in z, y and x "
            "with one more in z"
        )
    if list(config.get("order", ("conv", "norm", "act"))) != ["conv", "norm", "act"]:
        raise ValueError(f"order: {config['order']!r} is not known here; known: ('conv', 'norm', 'act')")
    norm = config.get("norm_cfg", NORM)
    if (norm["type"], norm.get("eps"), norm.get("momentum")) != tuple(NORM.values()):
        raise ValueError(f"norm_cfg: {dict(norm)} is not known here; known: {NORM}")
    if config.get("return_middle_feats", False):
        raise ValueError("return_middle_feats: True is for detectors of two stages, which are not known here")
    _check_paddings(config.get("encoder_paddings", PADDINGS), kind)
    channels = _channels(config, kind)
    return {"name": CLASSES[kind], "channels": channels} | ({"use_bias": False} if kind == RESIDUAL else {})


def _channels(config: Mapping[str, Any], kind: str) -> list[int]:
    """Widths of the four stages and of the output, where the layers are as many as ours and as wide."""
    layers = [list(stage) for stage in config.get("encoder_channels", CHANNELS)]
    widths = [stage[0] for stage in layers if stage]
    if kind == PLAIN:
        ours = [widths[:1], *([width] * 3 for width in widths[1:])]
    else:
        ours = [[width] * RESIDUAL_BLOCKS + widths[i + 1 : i + 2] for i, width in enumerate(widths)]
    if len(layers) != 4 or layers != ours:
        like = CHANNELS if kind == PLAIN else ((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128))
        raise ValueError(f"encoder_channels: {layers} is not known here; what is known for {kind} is like {like}")
    if config.get("base_channels", 16) != widths[0]:
        raise ValueError(
            f"base_channels: {config.get('base_channels', 16)} must be that of the first stage, {widths[0]}"
        )
    return [*widths, config.get("output_channels", 128)]


def _check_paddings(paddings: Sequence[Sequence[Any]], kind: str) -> None:
    """Those of the strided convolutions are given; submanifold ones do not read theirs."""
    if kind == PLAIN:
        strided = [stage[0] for stage in paddings[1:] if stage]
    else:
        strided = [stage[-1] for stage in paddings[:-1] if stage]
    found = tuple((own,) * 3 if isinstance(own, int) else tuple(own) for own in strided)
    if found != STRIDED_PADDINGS:
        raise ValueError(
            f"encoder_paddings: strided convolutions padded by {found} are not known here; known: {STRIDED_PADDINGS}"
        )


def sparse_name(name: str, kind: str, back: bool = False) -> str:
    """Our name for a parameter inside of a SparseEncoder.

    Args:
        name: theirs, or ours with `back`.
        kind: the block_type.
        back: whether theirs is wanted for ours.
    """
    if back:
        return _their_name(name, kind)
    found = re.fullmatch(r"encoder_layers\.encoder_layer(\d+)\.(\d+)\.(.+)", name)
    if found is None:
        return name
    stage, place = int(found[1]), int(found[2])
    if kind == RESIDUAL:
        is_strided = place == RESIDUAL_BLOCKS
        stage, place = (stage + 1, 0) if is_strided else (stage, place + (stage > 1))
    return f"conv{stage}.{place}.{found[3]}"


def _their_name(name: str, kind: str) -> str:
    found = re.fullmatch(r"conv(\d+)\.(\d+)\.(.+)", name)
    if found is None:
        return name
    stage, place = int(found[1]), int(found[2])
    if kind == RESIDUAL and stage > 1:
        stage, place = (stage - 1, RESIDUAL_BLOCKS) if place == 0 else (stage, place - 1)
    return f"encoder_layers.encoder_layer{stage}.{place}.{found[3]}"
