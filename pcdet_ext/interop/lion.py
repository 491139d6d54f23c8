"""Settings and checkpoints of LION (happinesslz/LION) in the words of this library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_ext.config import construct, suggest
from pcdet_ext.interop import lion_names, openpcdet, openpcdet_backbones, openpcdet_heads
from pcdet_ext.interop.openpcdet_settings import Config
from pcdet_ext.interop.settings import skip, skip_rest
from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.backbones.lion import LION, LayerSettings, LIONBlock, LIONLayer, operator_blocks
from pcdet_ext.models.detector import VoxelDetector
from pcdet_ext.models.layers.mixer_block import MixerBlock, run_on_slots
from pcdet_ext.models.layers.voxel_merging import VoxelMerging
from pcdet_ext.ops import grid_size
from pcdet_ext.structures import Groups


def from_official(config: Config, state_dict: Mapping[str, Any] | None = None) -> nn.Module:
    """A module of LION with its parameters, in eval mode.

    config: of a detector, MODEL, CLASS_NAMES, POINT_CLOUD_RANGE, VOXEL_SIZE and NUM_POINT_FEATURES (or the encoder's
    parameters, which tell it), or the same in small letters, with `model_cfg` for the first; of a backbone,
    BACKBONE_3D, `input_channels` and `grid_size_xyz`; of a block, `dim`, `down_scales` and what goes with them; of a
    merge, `dim` and `down_scale`; of an operator, OPERATOR with `d_model` in its CFG. state_dict: parameters, or a
    checkpoint with them under "model_state". Where a detector's are those of its 3-D backbone alone
    ("backbone_3d.…"), the backbone alone is made.
    Raises ValueError for what this library does not have or that does not fit.
    """
    state_dict = None if state_dict is None else state_dict.get("model_state", state_dict)
    try:
        return (_whole if any(name in config for name in MODEL) else _part)(config, state_dict).eval()
    except KeyError as error:
        raise ValueError(f"the configuration has no {error}") from error


MODEL = ("MODEL", "model", "model_cfg")  # the section of a detector, as configurations and numeric cases name it


def _of(config: Config, name: str) -> Any:
    """A setting of a whole detector by its name in capitals, which may be written in small letters."""
    return openpcdet.one_of(config, *(MODEL if name == "MODEL" else (name, name.lower())))


def _part(config: Config, state_dict: Mapping[str, Tensor] | None) -> nn.Module:
    """The part that the configuration is of."""
    found = next((found for key, found in MODULES.items() if key in config), None)
    if found is None:
        known = ", ".join(["MODEL", *MODULES])
        raise ValueError(f"the configuration needs one of {known}, it has {', '.join(map(str, config))}")
    make, rename = found
    module = make(config)
    if state_dict is not None:
        load(module, state_dict, rename)
    return module


def _whole(config: Config, state_dict: Mapping[str, Tensor] | None) -> nn.Module:
    """The detector, or its backbone where the parameters are those of the backbone alone."""
    start = "backbone_3d."
    if state_dict and all(name.startswith(start) for name in state_dict):
        backbone_3d = _of(config, "MODEL")["BACKBONE_3D"]
        grid = grid_size(_of(config, "POINT_CLOUD_RANGE"), _of(config, "VOXEL_SIZE"))
        skip_rest(config, _of(config, "MODEL"))
        parts = {"BACKBONE_3D": backbone_3d, "input_channels": backbone_3d["FEATURE_DIM"], "grid_size_xyz": grid}
        return _part(parts, {name.removeprefix(start): value for name, value in state_dict.items()})
    detector = detector_of(config, state_dict or {})
    if state_dict is not None:
        load(detector, state_dict)
    return detector


def detector_of(config: Config, state_dict: Mapping[str, Tensor]) -> VoxelDetector:
    """The untrained detector for MODEL, CLASS_NAMES, POINT_CLOUD_RANGE and VOXEL_SIZE.

    Raises ValueError that names every section this library cannot build.
    """
    model, classes = _of(config, "MODEL"), _of(config, "CLASS_NAMES")
    makers: dict[str, Callable[[], Any]] = {
        "encoder": lambda: openpcdet.encoder(model["VFE"], None, None) | {"x_major": True},
        "backbone": lambda: backbone(model["BACKBONE_3D"]),
        "bev_backbone": lambda: openpcdet_backbones.bev_backbone(model["BACKBONE_2D"]),
        "head": lambda: openpcdet_heads.head(
            model["DENSE_HEAD"], model.get("POST_PROCESSING", {}), classes, windows=True
        ),
    }
    if "BACKBONE_2D" not in model:  # as in the sparse form
        del makers["bev_backbone"]
    nodes, wrong = {}, []
    for name, make in makers.items():
        try:
            nodes[name] = make()
        except KeyError as error:
            wrong.append(f"the configuration has no {error}")
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError(f"this detector cannot be built here: {'; '.join(wrong)}")
    columns = _point_features(config, state_dict)
    detector = VoxelDetector(classes, _of(config, "POINT_CLOUD_RANGE"), columns, _of(config, "VOXEL_SIZE"), **nodes)
    _check_map(config, detector)
    return detector


def _point_features(config: Config, state_dict: Mapping[str, Tensor]) -> int:
    """Columns of the points: as the configuration says, or as the encoder's first layer tells."""
    for key in ("NUM_POINT_FEATURES", "num_point_features"):
        if key in config:
            return config[key]
    first = state_dict.get("vfe.pfn_layers.0.linear.weight")
    if first is None:
        raise ValueError("a detector needs NUM_POINT_FEATURES, the columns of its points")
    vfe = _of(config, "MODEL")["VFE"]
    return first.shape[1] - (6 if vfe["USE_ABSLOTE_XYZ"] else 3) - int(vfe.get("WITH_DISTANCE", False))


def _check_map(config: Config, detector: VoxelDetector) -> None:
    """The backbone must be set to the voxels it gets, and what follows to the map it makes."""
    _check_width(_of(config, "MODEL")["BACKBONE_3D"], detector.encoder.out_channels)
    if detector.backbone is None:
        raise ValueError("a detector of LION needs its 3-D backbone")
    channels = detector.backbone.out_grid[0] * detector.backbone.out_channels
    expected = _of(config, "MODEL").get("MAP_TO_BEV", {}).get("NUM_BEV_FEATURES", channels)
    if expected != channels:
        raise ValueError(f"NUM_BEV_FEATURES is {expected}, but the backbone's map has {channels} channels")
    stride = openpcdet_heads.stride(_of(config, "MODEL")["DENSE_HEAD"])
    if detector.stride != stride:
        raise ValueError(f"the head is set to a stride of {stride}, but its map has {detector.stride}")


def load(
    module: nn.Module, state_dict: Mapping[str, Tensor], rename: Callable[[str], str] = lion_names.detector_name
) -> None:
    """Load a published state dict, every entry of it.

    Args:
        module: which gets the parameters.
        state_dict: published tensors by name.
        rename: our name for a published one.

    Raises:
        ValueError: entries are missing, have no place or another shape; the message names them.
    """
    module.load_state_dict(official_state(module, state_dict, rename))


def official_state(
    module: nn.Module, state_dict: Mapping[str, Tensor], rename: Callable[[str], str] = lion_names.detector_name
) -> dict[str, Tensor]:
    """A published state dict in the names and shapes of a module; differentiable. Errors are those of `load`.

    Args:
        module: that the state is for.
        state_dict: published parameters by name.
        rename: gives our name for a published one.
    """
    return openpcdet.official_state(module, lion_names.published_values(state_dict), rename)


def backbone_of(config: Config) -> LION:
    """The backbone for BACKBONE_3D, `input_channels` and `grid_size_xyz`."""
    section, channels = config["BACKBONE_3D"], config["input_channels"]
    _check_width(section, channels)
    return BACKBONES.build(backbone(section), in_channels=channels, grid=tuple(reversed(config["grid_size_xyz"])))


def _check_width(section: Config, channels: int) -> None:
    """The backbone takes the width of its input, which it must be set to."""
    if section["FEATURE_DIM"] != channels:
        raise ValueError(f"FEATURE_DIM is {section['FEATURE_DIM']}, but the voxels have {channels} channels")


BEV_LAYERS = {"bev_windows": [[1, 25, 25], [1, 37, 37], [1, 51, 51]], "bev_group_sizes": [512, 1024, 2048]}
LAST_ORDERS = ["x", "y"]  # of the layers behind the stages, whatever DIRECTION says
FORMS = {"LION3DBackboneOneStride": {}, "LION3DBackboneOneStride_Sparse": BEV_LAYERS}


def backbone(config: Config) -> dict[str, Any]:
    """The configuration of a `LION` for a BACKBONE_3D section.

    Raises ValueError for settings that this library does not have.
    """
    if config["NAME"] not in FORMS:
        raise ValueError(f"BACKBONE_3D: {config['NAME']!r} is not in this library{suggest(config['NAME'], FORMS)}")
    widths = {config["FEATURE_DIM"], *config["LAYER_DIM"]}
    if len(widths) > 1:
        raise ValueError(f"FEATURE_DIM and LAYER_DIM must be one width, got {sorted(widths)}")
    depths = [len(scales) for scales in config["LAYER_DOWN_SCALES"]]
    if depths != list(config["DEPTHS"]) or len(depths) != config.get("NUM_LAYERS", len(depths)):
        raise ValueError(f"DEPTHS {config['DEPTHS']} and NUM_LAYERS do not fit LAYER_DOWN_SCALES with {depths} entries")
    last = {} if list(config["DIRECTION"]) == LAST_ORDERS else {"out_orders": LAST_ORDERS}
    return {
        "name": "LION",
        **operator(config["OPERATOR"], config["FEATURE_DIM"]),
        "windows": [list(reversed(window)) for window in config["WINDOW_SHAPE"]],
        "group_sizes": config["GROUP_SIZE"],
        "scales": [[list(reversed(scale)) for scale in scales] for scales in config["LAYER_DOWN_SCALES"]],
        "generation": config["DIFF_SCALE"] if config["DIFFUSION"] else 0.0,
        "shift": config["SHIFT"],
        "orders": config["DIRECTION"],
        "recompute": config["OPERATOR"]["CFG"].get("with_cp", False),
        "floor_keys": True,
        **last,
        **FORMS[config["NAME"]],
    }


def block_of(config: Config) -> LIONBlock:
    """The encoder-decoder block for `dim`, `depth`, `down_scales`, `window_shape`, `group_size` and so on."""
    if config["depth"] != len(config["down_scales"]):
        raise ValueError(f"depth {config['depth']} does not fit {len(config['down_scales'])} down_scales")
    orders = config["direction"]
    settings = LayerSettings(
        channels=config["dim"],
        num_layers=config["n_layer"],
        orders=orders,
        partition={"name": "EqualGroups"},
        recompute=False,
        **operator(config["OPERATOR"], config["dim"]),
    )
    window, number = tuple(reversed(config["window_shape"])), count(config["layer_id"], len(orders))
    scales = [tuple(reversed(scale)) for scale in config["down_scales"]]

    def layer(shifted: bool) -> LIONLayer:
        return settings.layer(window, config["group_size"], shifted, next(number))

    return LIONBlock(config["dim"], layer, scales, config["shift"], floor_keys=True)


def merging_of(config: Config) -> VoxelMerging:
    """The merge for `dim`, `down_scale`, `diffusion` and `diff_scale`."""
    if config.get("diffusion", False):
        generation = config.get("diff_scale", 0.2)
    else:
        generation = 0.0
        skip(config, "diff_scale")
    return VoxelMerging(config["dim"], tuple(reversed(config["down_scale"])), generation, floor_keys=True)


class Operator(nn.Module):
    """A published operator on sequences [G, L, C], with the norms and what else stands around it.

    blocks: of one pass, as in a layer.
    """

    def __init__(self, blocks: Sequence[MixerBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, sequences: Tensor) -> Tensor:
        """Sequences [G, L, C] to [G, L, C]."""
        groups, length, _ = sequences.shape
        slots = torch.arange(groups * length, device=sequences.device)
        plan = Groups(slots.view(groups, length), slots)
        return run_on_slots(self.blocks, sequences.flatten(0, 1), plan).view_as(sequences)


def operator_of(config: Config) -> Operator:
    """The operator for an OPERATOR whose CFG says `d_model` (and `layer_id`, `n_layer`, where they matter)."""
    settings = config["OPERATOR"]["CFG"]
    channels, layer_id, layers = settings["d_model"], settings.get("layer_id", 0), settings.get("n_layer", 1)
    node = operator(config["OPERATOR"], channels)
    place = {"channels": channels, "layer_id": min(layer_id, layers - 1), "num_layers": layers}
    published = operator_blocks(node["mixer"], channels, first=layer_id == 0)
    return Operator([construct(MixerBlock, node["block"], **place, **each) for each in published])


# What can be built and how its parameters are renamed, by the key that only its configuration has; a block has an
# OPERATOR too.
MODULES: dict[str, tuple[Callable[[Config], nn.Module], Callable[[str], str]]] = {
    "BACKBONE_3D": (backbone_of, lion_names.backbone_name),
    "down_scales": (block_of, lion_names.block_name),
    "down_scale": (merging_of, lion_names.merge_name),
    "OPERATOR": (operator_of, lambda name: f"blocks.{lion_names.operator_name(name)}"),
}


def operator(config: Config, channels: int) -> dict[str, Any]:
    """The configurations `mixer` and `block` for an OPERATOR section (NAME and CFG) on so many channels.

    Raises ValueError for operators and settings that this library does not have.
    """
    name, settings = config["NAME"], dict(config["CFG"])
    if name not in OPERATORS:
        raise ValueError(f"OPERATOR: {name!r} is not in this library{suggest(name, OPERATORS)}")
    for key in GIVEN_BY_THE_BACKBONE:
        settings.pop(key, None)
    mixer, block = OPERATORS[name](settings, channels)
    if "drop_path" in settings:
        block["drop_path"] = settings.pop("drop_path")
    if settings:
        raise ValueError(f"OPERATOR {name}: settings that are not known here: {', '.join(sorted(settings))}")
    return {"mixer": mixer, "block": block}


GIVEN_BY_THE_BACKBONE = ("d_model", "layer_id", "n_layer", "with_cp")  # with_cp: see `backbone`


Settings = dict[str, Any]


def _mamba(settings: Settings, channels: int) -> tuple[Settings, Settings]:
    known = ("d_state", "d_conv", "expand")
    return {"name": "Mamba"} | {key: settings.pop(key) for key in known if key in settings}, {}


def _retnet(settings: Settings, channels: int) -> tuple[Settings, Settings]:
    _must_be("RetNet", settings, mode="chunk", used_MLP=True)
    mixer = {
        "name": "RetNet",
        "num_heads": settings.pop("n_head"),
        "expand_k": settings.pop("expand_k", 1),
        "expand_v": settings.pop("expand_v", 2),
        "within": "symmetric",
    }
    width = int(channels * settings.pop("hidden_rate", 4))
    return mixer, {"feed_forward": {"name": "MLP", "ffn_channels": width}}


def _rwkv(settings: Settings, channels: int) -> tuple[Settings, Settings]:
    _must_be("RWKV", settings, shift_mode="time_shift", shift_pixel=1, init_mode="fancy")
    feed_forward: Settings = {"name": "ChannelMix", "mix": "difference"}
    if "hidden_rate" in settings:
        feed_forward["ffn_channels"] = int(channels * settings.pop("hidden_rate"))
    block: Settings = {"feed_forward": feed_forward}
    if "init_values" in settings:
        block["layer_scale"] = settings.pop("init_values")
    return {"name": "RWKV", "num_heads": settings.pop("n_head")}, block


def _xlstm(settings: Settings, channels: int) -> tuple[Settings, Settings]:
    return {"name": "XLSTM"}, {}


def _ttt(settings: Settings, channels: int) -> tuple[Settings, Settings]:
    _must_be("TTT", settings, use_gate=False)
    return {"name": "TTT", "num_heads": settings.pop("n_head")}, {}


OPERATORS: dict[str, Callable[[Settings, int], tuple[Settings, Settings]]] = {
    "Mamba": _mamba,
    "RetNet": _retnet,
    "RWKV": _rwkv,
    "xLSTM": _xlstm,
    "TTT": _ttt,
}


def _must_be(name: str, settings: dict[str, Any], **only: Any) -> None:
    """Take out settings of which this library has one value only."""
    for key, value in only.items():
        if settings.pop(key, value) != value:
            raise ValueError(f"OPERATOR {name}: {key} must be {value!r}")
