"""LION's published parameter names and values in the words of this library."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from pcdet_ext.interop import openpcdet

# Parameters of an operator with what stands around it, as regular expressions and what replaces them. The number in
# front is that of the block: the two directions of xLSTM are two blocks.
OPERATOR_NAMES: tuple[tuple[str, str], ...] = (
    # Mamba: the backward direction has the suffix "_b"
    (r"mamba\.(in_proj|out_proj)\.", r"0.mix.module.\1."),
    (r"mamba\.conv1d\.", "0.mix.module.directions.0.conv."),
    (r"mamba\.conv1d_b\.", "0.mix.module.directions.1.conv."),
    (r"mamba\.(x_proj|dt_proj)\.", r"0.mix.module.directions.0.\1."),
    (r"mamba\.(x_proj|dt_proj)_b\.", r"0.mix.module.directions.1.\1."),
    (r"mamba\.A_log$", "0.mix.module.directions.0.A_log"),
    (r"mamba\.A_b_log$", "0.mix.module.directions.1.A_log"),
    (r"mamba\.D$", "0.mix.module.directions.0.D"),
    (r"mamba\.D_b$", "0.mix.module.directions.1.D"),
    (r"norm\.", "0.mix.norm."),
    # RetNet
    (r"retention_layer_norm\.", "0.mix.norm."),
    (r"multi_scale_retention\.([qkv]_proj)\.", r"0.mix.module.\1."),
    (r"multi_scale_retention\.o_proj\.", "0.mix.module.out_proj."),
    (r"final_layer_norm\.", "0.feed.norm."),
    (r"ffn\.fc1\.", "0.feed.module.in_proj."),
    (r"ffn\.fc2\.", "0.feed.module.out_proj."),
    # RWKV
    (r"ln0\.", "0.input_norm."),
    (r"ln1\.", "0.mix.norm."),
    (r"ln2\.", "0.feed.norm."),
    (r"gamma1$", "0.mix.scale"),
    (r"gamma2$", "0.feed.scale"),
    (r"att\.time_maa_([xwkvrg])$", r"0.mix.module.shift.\1"),
    (r"att\.time_maa_w1$", "0.mix.module.shift_down"),
    (r"att\.time_maa_w2$", "0.mix.module.shift_up"),
    (r"att\.time_decay$", "0.mix.module.decay"),
    (r"att\.time_decay_w1$", "0.mix.module.decay_down"),
    (r"att\.time_decay_w2$", "0.mix.module.decay_up"),
    (r"att\.time_faaaa$", "0.mix.module.bonus"),
    (r"att\.(receptance|key|value|gate)\.", r"0.mix.module.\1."),
    (r"att\.output\.", "0.mix.module.out_proj."),
    (r"att\.ln_x\.", "0.mix.module.norm."),
    (r"ffn\.spatial_mix_k$", "0.feed.module.share_in"),
    (r"ffn\.spatial_mix_r$", "0.feed.module.share_receptance"),
    (r"ffn\.key\.", "0.feed.module.in_proj."),
    (r"ffn\.receptance\.", "0.feed.module.receptance."),
    (r"ffn\.value\.", "0.feed.module.out_proj."),
    # TTT
    (r"seq_norm\.", "0.mix.norm."),
    (r"ffn_norm\.", "0.feed.norm."),
    (r"seq_modeling_block\.([qkv]_proj)\.", r"0.mix.module.\1."),
    (r"seq_modeling_block\.o_proj\.", "0.mix.module.out_proj."),
    (r"seq_modeling_block\.learnable_token_idx$", "0.mix.module.token_offset"),
    (r"seq_modeling_block\.learnable_ttt_lr_(weight|bias)$", r"0.mix.module.rate_\1"),
    (r"seq_modeling_block\.ttt_norm_(weight|bias)$", r"0.mix.module.inner_norm_\1"),
    (r"seq_modeling_block\.W1$", "0.mix.module.inner_weight"),
    (r"seq_modeling_block\.b1$", "0.mix.module.inner_bias"),
    (r"seq_modeling_block\.post_norm\.", "0.mix.module.norm."),
    (r"mlp\.gate_proj\.", "0.feed.module.gate_proj."),
    (r"mlp\.up_proj\.", "0.feed.module.in_proj."),
    (r"mlp\.down_proj\.", "0.feed.module.out_proj."),
)
XLSTM_NAMES: tuple[tuple[str, str], ...] = (
    (r"norm\.", "mix.norm."),
    (r"layer\.proj_up\.", "mix.module.in_proj."),
    (r"layer\.proj_down\.", "mix.module.out_proj."),
    (r"layer\.conv\.conv\.", "mix.module.conv."),
    (r"layer\.([qkv]_proj)\.", r"mix.module.\1."),
    (r"layer\.mlstm_cell\.igate\.", "mix.module.memory.input_gate."),
    (r"layer\.mlstm_cell\.fgate\.", "mix.module.memory.forget_gate."),
    (r"layer\.mlstm_cell\.outnorm\.", "mix.module.memory.norm."),
    (r"layer\.learnable_skip$", "mix.module.skip"),
)
MERGE_NAMES: tuple[tuple[str, str], ...] = ((r"sub_conv\.", "describe."),)
# Parameters that are stored with axes of size one.
FLAT = re.compile(r"(att\.time_maa_[xwkvrg]|att\.time_decay|ffn\.spatial_mix_[kr])$")
SQUEEZED = re.compile(r"learnable_ttt_lr_(weight|bias)$")
# Weights of norms that are stored as their offset from 1.
OFFSETS = re.compile(r"rowwise_from_\w+\.(norm|layer\.mlstm_cell\.outnorm)\.weight$")


def published_values(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published parameters in our shapes and meaning, still under their published names."""
    return {name: our_value(name, value) for name, value in state.items()}


def our_value(name: str, value: Tensor) -> Tensor:
    """A published parameter in our shape and meaning."""
    if FLAT.search(name):
        return value.flatten()
    if SQUEEZED.search(name):
        return value.squeeze(1)
    return value + 1 if OFFSETS.search(name) else value


def operator_name(name: str) -> str:
    """Our name, in the blocks of a pass, for a parameter of a published operator."""
    for start, rest in (("rowwise_from_top_left.", "0."), ("rowwise_from_bot_right.", "1.")):
        if name.startswith(start):
            return rest + _first(XLSTM_NAMES, name.removeprefix(start))
    return _first(OPERATOR_NAMES, name)


def layer_name(name: str) -> str:
    """Our name for a parameter "blocks.{pass}.…" of a published layer."""
    _, number, rest = name.split(".", 2)
    return f"passes.{number}.{operator_name(rest)}"


def block_name(name: str) -> str:
    """Our name for a parameter of a published encoder-decoder block."""
    part, number, rest = name.split(".", 2)
    match part:
        case "encoder" | "decoder":
            return f"{part}.{number}.layer.{layer_name(rest)}"
        case "pos_emb_list":
            return f"encoder.{number}.position.{rest.replace('position_embedding_head.', 'mlp.', 1)}"
        case "downsample_list":
            return f"encoder.{number}.merge.{merge_name(rest)}"
        case "decoder_norm":
            return f"decoder.{number}.norm.{rest}"
    return name


def merge_name(name: str) -> str:
    """Our name for a parameter of a published merge."""
    return _first(MERGE_NAMES, name)


def backbone_name(name: str) -> str:
    """Our name for a parameter of a published backbone."""
    part, _, rest = name.partition(".")
    if part == "linear_out":
        return f"out_layer.{layer_name(rest)}"
    if part == "dow_out":
        return f"bev_merge.{merge_name(rest)}"
    if found := re.fullmatch(r"linear_bev(\d+)", part):
        return f"bev_layers.{int(found[1]) - 1}.{layer_name(rest)}"
    if found := re.fullmatch(r"linear_(\d+)", part):
        return f"stages.{int(found[1]) - 1}.block.{block_name(rest)}"
    if found := re.fullmatch(r"dow(\d+)", part):
        return f"stages.{int(found[1]) - 1}.merge.{merge_name(rest)}"
    return name


def detector_name(name: str) -> str:
    """Our name for a parameter of a published detector."""
    prefix, _, rest = name.partition(".")
    return f"backbone.{backbone_name(rest)}" if prefix == "backbone_3d" else openpcdet.our_name(name)


def _first(names: tuple[tuple[str, str], ...], name: str) -> str:
    """The name with the first expression that it begins with replaced."""
    for pattern, replacement in names:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name
