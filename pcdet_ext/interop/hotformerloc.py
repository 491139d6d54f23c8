"""HOTFormerLoc (github.com/csiro-robotics/HOTFormerLoc): its configurations and checkpoints in this library."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

from pcdet_ext.data.normalize import CloudNormalization
from pcdet_ext.interop.octformer import Config, load_official
from pcdet_ext.interop.octree_names import block_name, conv_name, stages_name
from pcdet_ext.interop.parameters import first_prefix
from pcdet_ext.interop.settings import every_setting_counts, skip, skip_rest
from pcdet_ext.models.backbones.hotformer import HierarchicalStage, HOTFormerStages, RelayOptions
from pcdet_ext.models.layers.octree_block import OctreeOptions
from pcdet_ext.models.networks.hotformerloc import HOTFormerLoc
from pcdet_ext.models.networks.octree_input import OctreeInput
from pcdet_ext.models.pooling import POOLINGS

FULL_DEPTH, DROP_PATH, MLP_RATIO = 2, 0.5, 4.0  # published defaults
NORMS: dict[str, Literal["layer", "batch"]] = {"layernorm": "layer", "batchnorm": "batch"}
# Of published models: depth of the octree, and whether clouds are normalised, which stand in the data's settings.
PUBLISHED = {
    "HOTFormerLoc-CSWildPlaces": (7, True),
    "HOTFormerLoc-WildPlaces": (7, True),
    "HOTFormerLoc-CSCampus3D": (7, False),
    "HOTFormerLoc-Oxford": (9, False),
}
CHANNELS = {"N": 3, "D": 1, "L": 3, "P": 3}  # of each letter of the input feature that needs no features of points
COORDINATES = ("cartesian", "cylindrical")


def from_official(config: Config, state_dict: Mapping[str, Any] | None = None) -> nn.Module:
    """A published HOTFormerLoc with its parameters, in eval mode.

    config: of a network, `preprocess`, `octree`, `input_features`, `backbone`, `pooling` and `normalize_embeddings`, or
    the settings of a published model side by side. Of parts: `stage` and `octree_t` of a hierarchical stage; `pooling`
    alone of a pooling. state_dict: parameters, or a checkpoint with them under "model_state_dict".
    Windows straddle clouds and coordinates of +1 wrap, as published. Raises ValueError for what this library does not
    have or that does not fit.
    """
    module, rename = build(config)
    if state_dict is not None:
        load_official(module, state_dict, rename)
    return module.eval()


def build(config: Config) -> tuple[nn.Module, Callable[[str], str]]:
    """The untrained module, and how its published parameter names become ours."""
    if "stage" in config:
        return _stage(config), stage_name
    if "pooling" in config and "backbone" not in config and isinstance(config["pooling"], Mapping):
        skip(config, "octree", "depth", "octree_t", "features")
        return _pooling(config["pooling"]), lambda name: pooling_name(name.removeprefix("pooling."))
    if "backbone" in config:
        return _network(config), network_name
    with every_setting_counts(_sections(config)) as sections:
        return _network(sections), network_name


def _sections(config: Config) -> Config:
    """The settings of a published model, which stand side by side, as those of a network."""
    _need(config, ("model", "channels", "pooling"), "network")
    name = config["model"]
    if "octree" not in config and name not in PUBLISHED:
        raise ValueError(f"model: {name!r} is no published model ({', '.join(PUBLISHED)}): `octree` must say its depth")
    depth, normalized = PUBLISHED.get(name, (None, True))
    cube = {"scale_factor": None, "unit_sphere_norm": False, "zero_mean": True}
    preprocess = {"normalize": cube if normalized else None, "coordinates": config["coordinates"]}
    renamed = {key.replace("ct_", "rt_", 1) if key.startswith("ct_") else key: config[key] for key in config}
    skip_rest(config)
    if "num_input_downsamples" in renamed:
        renamed["stem_down"] = renamed.pop("num_input_downsamples")
    pooling = {
        "pool_method": renamed.pop("pooling"),
        "in_dim": renamed.pop("feature_size"),
        "output_dim": renamed.pop("output_dim"),
        "num_pyramid_levels": renamed["num_pyramid_levels"],
        "channels": _after(renamed["channels"], renamed["num_octf_levels"]),
        "k_pooled_tokens": renamed.pop("k_pooled_tokens", None),
    }
    own = {key: renamed.pop(key, None) for key in ("octree", "preprocess", "input_features", "normalize_embeddings")}
    for key in ("model", "coordinates", "param_breakdown", "num_top_down"):
        renamed.pop(key, None)
    return {
        "preprocess": own["preprocess"] or preprocess,
        "octree": own["octree"] or {"depth": depth, "full_depth": FULL_DEPTH},
        "input_features": own["input_features"],
        "normalize_embeddings": own["normalize_embeddings"],
        "backbone": renamed,
        "pooling": pooling,
    }


def _after(channels: Sequence[int], first: int) -> list[int]:
    return list(channels)[first:]


def _network(config: Config) -> HOTFormerLoc:
    _need(config, ("octree", "input_features", "backbone", "pooling"), "network")
    backbone, octree = config["backbone"], config["octree"]
    features = str(config["input_features"]).upper()
    if not features or set(features) - set(CHANNELS):
        raise ValueError(f"input_features must be letters of {''.join(CHANNELS)}, got {config['input_features']!r}")
    channels = sum(CHANNELS[letter] for letter in set(features))
    if backbone.get("in_channels", channels) != channels:
        raise ValueError(f"in_channels is {backbone['in_channels']}, but the input feature {features} has {channels}")
    return HOTFormerLoc(
        OctreeInput(octree["depth"], octree.get("full_depth", FULL_DEPTH), features, wrap=True),
        _stages(backbone, channels),
        _pooling(config["pooling"]),
        _normalization(config["preprocess"]),
        config.get("normalize_embeddings", True),
    )


def _normalization(config: Config) -> CloudNormalization:
    normalize, coordinates = config["normalize"], config["coordinates"]
    if coordinates not in COORDINATES:
        raise ValueError(f"coordinates: {coordinates!r} is not known here; known: {', '.join(COORDINATES)}")
    cylindrical = coordinates == "cylindrical"
    if normalize is None:
        return CloudNormalization(normalize=False, cylindrical=cylindrical)
    scale, sphere = normalize["scale_factor"], normalize["unit_sphere_norm"]
    return CloudNormalization(True, scale, sphere, normalize["zero_mean"], cylindrical)


def _stages(config: Config, in_channels: int) -> HOTFormerStages:
    return HOTFormerStages(
        in_channels,
        config["channels"],
        config["num_blocks"],
        config["num_heads"],
        config["num_pyramid_levels"],
        config["num_octf_levels"],
        config["stem_down"],
        config.get("downsample_input_embeddings", True),
        config.get("drop_path", DROP_PATH),
        _options(config, config),
        _relay(config),
    )


def _options(config: Config, octree: Config) -> OctreeOptions:
    """Options of a backbone or stage; octree: where the dilation that windows are filled up for stands."""
    norm = config.get("conv_norm", "batchnorm")
    if norm not in NORMS:
        raise ValueError(
            f"conv_norm: {norm!r} is not in this library; known: {', '.join(NORMS)}. "
            "Every published model has layernorm"
        )
    return OctreeOptions(
        config["patch_size"],
        octree["dilation"],
        config.get("mlp_ratio", MLP_RATIO),
        NORMS[norm],
        config.get("nempty", True),
        straddle=True,
        relative_position=not config.get("disable_RPE", False),
        position="full" if config.get("xcpe", False) else "depth-wise",
        layer_scale=config.get("layer_scale"),
    )


def _relay(config: Config) -> RelayOptions | None:
    options = (
        config.get("ADaPE_mode"),
        config.get("rt_propagation", False),
        config.get("rt_propagation_scale"),
    )
    return None if config.get("disable_rt", False) else RelayOptions(*options)


def _stage(config: Config) -> HierarchicalStage:
    stage, octree = config["stage"], config["octree_t"]
    skip(config, "octree", "depth")
    for key in ("patch_size", "dilation", "ADaPE_mode", "num_pyramid_levels"):
        if key in octree and key in stage and octree[key] != stage[key]:
            raise ValueError(f"octree_t.{key} is {octree[key]!r}, stage.{key} {stage[key]!r}")
    rates, count = stage.get("drop_path", 0.0), stage["num_blocks"]
    heads = stage.get("num_heads") or [width // 16 for width in stage["channels"]]
    return HierarchicalStage(
        stage["channels"],
        heads,
        stage["num_pyramid_levels"],
        [rates] * count if isinstance(rates, int | float) else rates,
        _options(stage, octree),
        _relay(stage),
    )


def _pooling(config: Config) -> nn.Module:
    """The pooling of a method; feature widths are one for all depths, or one per depth."""
    _need(config, ("pool_method", "in_dim", "output_dim", "num_pyramid_levels", "channels"), "pooling")
    method, width, out = config["pool_method"], config["in_dim"], config["output_dim"]
    queries, channels, levels = config.get("k_pooled_tokens"), list(config["channels"]), config["num_pyramid_levels"]
    if len(channels) not in (1, levels):
        raise ValueError(f"pooling.channels must be one number or one for each of {levels} levels, got {channels}")
    channels *= levels if len(channels) == 1 else 1
    node: dict[str, Any]
    if method == "OctGeM":
        node = {"name": "GeM"}
    elif method in ("PyramidOctGeM", "PyramidOctGeMgc"):
        node = {"name": "PyramidGeM", "out_channels": out, "gated": method.endswith("gc")}
    elif method == "PyramidAttnPoolMixer":
        node = {"name": "PyramidAttentionPooling", "num_queries": queries, "out_channels": out, "token_channels": width}
    elif method in ("AttnPoolMixer", "AttnPoolGeM"):
        aggregator = method.removeprefix("AttnPool").lower()
        node = {"name": "TokenAttentionPooling", "num_queries": queries, "out_channels": out, "aggregator": aggregator}
    else:
        raise ValueError(f"pool_method: {method!r} is not in this library")
    return POOLINGS.build(node, channels=channels)


def _need(config: Config, keys: Sequence[str], what: str) -> None:
    if missing := [key for key in keys if key not in config]:
        raise ValueError(f"the configuration of the {what} needs {', '.join(missing)}; it has {', '.join(config)}")


STAGE = {"rt_adape.mlp.fc1.": "distribution.in_proj.", "rt_adape.mlp.fc2.": "distribution.out_proj."}
PER_LEVEL = {"init_up_projections": "first_up", "rt_adape_projections": "distribution"}
POOLING = {
    "attpool.query": "pool.queries",
    "linear_bn.0.": "linear.",
    "linear_bn.1.": "norm.",
    "context_gating.gating_weights": "gate.weight",
    "context_gating.bn1.": "gate.norm.",
    "descriptor_extractor.channel_proj.": "descriptor.over_tokens.",
    "descriptor_extractor.row_proj.": "descriptor.over_channels.",
    "descriptor_extractor.p": "descriptor.power",
    "token_processor.0.": "descriptor.mix.norm.",
    "token_processor.1.fc1.": "descriptor.mix.in_proj.",
    "token_processor.1.fc2.": "descriptor.mix.out_proj.",
}
MIX = {"0": "norm", "1": "in_proj", "3": "out_proj"}


def stage_name(name: str) -> str:
    """Our name for a published parameter of a hierarchical stage with relay tokens."""
    if found := re.match(r"hosa_blocks\.(\d+)\.(\d+)\.", name):
        rest = name[found.end() :]
        inner = "propagate_scale" if rest == "rt_gamma_propagate" else block_name(rest)
        return f"levels.{found[1]}.blocks.{found[2]}.{inner}"
    if found := re.match(r"rtsa_blocks\.(\d+)\.", name):
        inner = block_name(name[found.end() :].removeprefix("rt_"))
        return f"relay_blocks.{found[1]}.{inner.removeprefix('block.')}"
    if found := re.match(r"downsamples\.(\d+)\.", name):
        return f"halve.{found[1]}.{conv_name(name[found.end() :])}"
    if found := re.match(r"relay_tokeniser\.(?:(\d+)\.)?cpe\.", name):
        return f"positions.{found[1] or 0}.{name[found.end() :]}"
    if found := re.match(r"(up|down)_projections\.(\d+)\.(\d+)\.", name):
        return f"levels.{found[2]}.{found[1]}.{found[3]}.{name[found.end() :]}"
    if found := re.match(r"(init_up_projections|rt_adape_projections)\.(\d+)\.", name):
        return f"levels.{found[2]}.{PER_LEVEL[found[1]]}.{name[found.end() :]}"
    return first_prefix(STAGE, name)


def backbone_name(name: str) -> str:
    """Our name for a published parameter of the backbone."""
    if name.startswith("hotf_stage."):
        return f"hierarchy.{stage_name(name.removeprefix('hotf_stage.'))}"
    return stages_name(name, "octf_stage", "downsample")


def pooling_name(name: str) -> str:
    """Our name for a published parameter of a pooling."""
    if found := re.match(r"attpool\.(\d+)\.query", name):
        return f"pool.{found[1]}.queries"
    if found := re.match(r"local_projections\.(\d+)\.", name):
        return f"project.{found[1]}.{name[found.end() :]}"
    if found := re.match(r"descriptor_extractor\.mix\.(\d+)\.mix\.([013])\.", name):
        return f"descriptor.mix.{found[1]}.{MIX[found[2]]}.{name[found.end() :]}"
    return "power" if name == "p" else first_prefix(POOLING, name)


def network_name(name: str) -> str:
    """Our name for a published parameter of a network."""
    if name.startswith("backbone.backbone."):
        return f"stages.{backbone_name(name.removeprefix('backbone.backbone.'))}"
    return f"pooling.{pooling_name(name.removeprefix('pooling.pooling.'))}" if name.startswith("pooling.") else name
