"""LION's operators with their published parameters, against their formulas token by token in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pcdet_ext.interop import from_official

State = dict[str, Tensor]
Settings = dict[str, Any]


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def layer_norm(x: Tensor, p: State, name: str, eps: float = 1e-5, offset: float = 0.0) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"] + offset, p[f"{name}.bias"], eps)


def causal_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Rows x [L, E] with a kernel [E, 1, K] per channel whose last entry meets the current row."""
    length, taps = len(x), weight.shape[2]
    y = bias.expand(length, -1).clone()
    for t in range(length):
        for k in range(taps):
            if t - (taps - 1 - k) >= 0:
                y[t] += weight[:, 0, k] * x[t - (taps - 1 - k)]
    return y


def mamba(x: Tensor, p: State, config: Settings) -> Tensor:
    inner, states = int(config.get("expand", 2) * x.shape[1]), config.get("d_state", 16)
    rank = math.ceil(x.shape[1] / 16)
    u, gate = (x @ p["mamba.in_proj.weight"].T).split(inner, 1)

    def direction(u: Tensor, gate: Tensor, end: str) -> Tensor:
        u = F.silu(causal_convolution(u, p[f"mamba.conv1d{end}.weight"], p[f"mamba.conv1d{end}.bias"]))
        low, b, c = (u @ p[f"mamba.x_proj{end}.weight"].T).split([rank, states, states], 1)
        step = F.softplus(low @ p[f"mamba.dt_proj{end}.weight"].T + p[f"mamba.dt_proj{end}.bias"])
        a = -p[f"mamba.A{end}_log"].exp()
        h, y = torch.zeros_like(a), torch.empty_like(u)
        for t in range(len(u)):
            h = (step[t, :, None] * a).exp() * h + (step[t] * u[t])[:, None] * b[t]
            y[t] = h @ c[t] + p[f"mamba.D{end}"] * u[t]
        return y * F.silu(gate)

    mixed = direction(u, gate, "") + direction(u.flip(0), gate.flip(0), "_b").flip(0)
    return x + layer_norm(mixed @ p["mamba.out_proj.weight"].T, p, "norm")


def retnet(x: Tensor, p: State, config: Settings) -> Tensor:
    length, heads, chunk = len(x), config["n_head"], 64
    normed = layer_norm(x, p, "retention_layer_norm", 1e-6)
    q, k, v = ((normed @ p[f"multi_scale_retention.{n}_proj.weight"].T).view(length, heads, -1) for n in "qkv")
    out = torch.zeros_like(v)
    for h in range(heads):
        decay = 1 - 2.0 ** (-5 - h)
        for i in range(length):
            for j in range(length):
                same, before = i // chunk == j // chunk, j // chunk < i // chunk
                if same or before:
                    out[i, h] += decay ** abs(i - j) * (q[i, h] @ k[j, h]) * v[j, h]
    out = out.flatten(1) * q.shape[2] ** -0.5
    x = x + out @ p["multi_scale_retention.o_proj.weight"].T
    hidden = F.gelu(layer_norm(x, p, "final_layer_norm", 1e-6) @ p["ffn.fc1.weight"].T + p["ffn.fc1.bias"])
    return x + hidden @ p["ffn.fc2.weight"].T + p["ffn.fc2.bias"]


def rwkv(x: Tensor, p: State, config: Settings) -> Tensor:
    p = {name: value[0, 0] if value.shape[:2] == (1, 1) else value for name, value in p.items()}
    heads = config["n_head"]
    if config["layer_id"] == 0:
        x = layer_norm(x, p, "ln0")

    def change(x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x[:1]), x[:-1]]) - x

    a = layer_norm(x, p, "ln1")
    difference = change(a)
    low = torch.tanh((a + difference * p["att.time_maa_x"]) @ p["att.time_maa_w1"]).view(len(a), 5, -1)
    mixed = {}
    for i, name in enumerate("wkvrg"):
        share = p[f"att.time_maa_{name}"] + low[:, i] @ p["att.time_maa_w2"][i]
        mixed[name] = a + difference * share
    r, k, v = (
        (mixed[short] @ p[f"att.{name}.weight"].T).view(len(a), heads, -1)
        for short, name in (("r", "receptance"), ("k", "key"), ("v", "value"))
    )
    gate = F.silu(mixed["g"] @ p["att.gate.weight"].T)
    log_decay = p["att.time_decay"] + torch.tanh(mixed["w"] @ p["att.time_decay_w1"]) @ p["att.time_decay_w2"]
    decay = (-log_decay.exp()).exp().view_as(k)
    y = torch.zeros_like(v)
    for h in range(heads):
        state = torch.zeros(k.shape[2], v.shape[2], dtype=x.dtype)
        for t in reversed(range(len(a))):
            y[t, h] += r[t, h] @ state
            state = decay[t, h, :, None] * state + k[t, h, :, None] * v[t, h]
        state = torch.zeros_like(state)
        for t in range(len(a)):
            now = k[t, h, :, None] * v[t, h]
            y[t, h] += r[t, h] @ (state + p["att.time_faaaa"][h][:, None] * now)
            state = decay[t, h, :, None] * state + now
    normed = F.group_norm(y.flatten(1), heads, p["att.ln_x.weight"], p["att.ln_x.bias"], 1e-5)
    x = x + p["gamma1"] * ((normed * gate) @ p["att.output.weight"].T)
    f = layer_norm(x, p, "ln2")
    difference = change(f)
    key = f * p["ffn.spatial_mix_k"] + difference * (1 - p["ffn.spatial_mix_k"])
    receptance = f * p["ffn.spatial_mix_r"] + difference * (1 - p["ffn.spatial_mix_r"])
    value = (key @ p["ffn.key.weight"].T).relu().square() @ p["ffn.value.weight"].T
    return x + p["gamma2"] * torch.sigmoid(receptance @ p["ffn.receptance.weight"].T) * value


def xlstm(x: Tensor, p: State, config: Settings) -> Tensor:
    def half(x: Tensor, start: str) -> Tensor:
        p_half = {name.removeprefix(start): value for name, value in p.items() if name.startswith(start)}
        return x + mlstm(layer_norm(x, p_half, "norm", offset=1.0), p_half)

    return half(half(x, "rowwise_from_top_left.").flip(0), "rowwise_from_bot_right.").flip(0)


def mlstm(x: Tensor, p: State) -> Tensor:
    length, inner, heads = len(x), 2 * x.shape[1], 4
    m, z = (x @ p["layer.proj_up.weight"].T + p["layer.proj_up.bias"]).split(inner, 1)
    a = F.silu(causal_convolution(m, p["layer.conv.conv.weight"], p["layer.conv.conv.bias"]))

    def blocks(x: Tensor, name: str) -> Tensor:
        weight, bias = p[f"layer.{name}_proj.weight"], p[f"layer.{name}_proj.bias"]
        return torch.block_diag(*weight) @ x.T + bias[:, None]

    q, k, v = (blocks(source, name).T for source, name in ((a, "q"), (a, "k"), (m, "v")))
    cell = "layer.mlstm_cell."
    gates = torch.cat([q, k, v], 1)
    write = gates @ p[f"{cell}igate.weight"].T + p[f"{cell}igate.bias"]
    keep = F.logsigmoid(gates @ p[f"{cell}fgate.weight"].T + p[f"{cell}fgate.bias"])
    q, k, v = (tensor.view(length, heads, -1) for tensor in (q, k, v))
    out = torch.empty_like(v)
    for h in range(heads):
        for i in range(length):
            log = torch.stack([keep[j + 1 : i + 1, h].sum() + write[j, h] for j in range(i + 1)])
            largest = log.max()
            weights = k[: i + 1, h] @ q[i, h] / math.sqrt(q.shape[2]) * (log - largest).exp()
            normaliser = torch.maximum(weights.sum().abs(), (-largest).exp()) + 1e-6
            out[i, h] = (weights / normaliser) @ v[: i + 1, h]
    normed = F.group_norm(out.flatten(1), heads, p[f"{cell}outnorm.weight"] + 1, p[f"{cell}outnorm.bias"], 1e-5)
    hidden = (normed + p["layer.learnable_skip"] * a) * F.silu(z)
    return hidden @ p["layer.proj_down.weight"].T + p["layer.proj_down.bias"]


def ttt(x: Tensor, p: State, config: Settings) -> Tensor:
    heads, width = config["n_head"], x.shape[1] // config["n_head"]
    seq = "seq_modeling_block."
    normed = rms_norm(x, p["seq_norm.weight"])
    q, k, v = ((normed @ p[f"{seq}{n}_proj.weight"].T).view(len(x), heads, width) for n in "qkv")
    mixed = torch.empty_like(v)
    for h in range(heads):
        mixed[:, h] = ttt_head(normed, rotate(q[:, h]), rotate(k[:, h]), v[:, h], {n: t[h] for n, t in {
            "rate": p[f"{seq}learnable_ttt_lr_weight"], "rate_bias": p[f"{seq}learnable_ttt_lr_bias"],
            "norm": p[f"{seq}ttt_norm_weight"], "norm_bias": p[f"{seq}ttt_norm_bias"],
            "W": p[f"{seq}W1"], "b": p[f"{seq}b1"],
        }.items()}, p[f"{seq}learnable_token_idx"])  # fmt: skip
    y = layer_norm(mixed.flatten(1), p, f"{seq}post_norm", 1e-6) @ p[f"{seq}o_proj.weight"].T
    x = x + y
    f = rms_norm(x, p["ffn_norm.weight"])
    hidden = F.silu(f @ p["mlp.gate_proj.weight"].T) * (f @ p["mlp.up_proj.weight"].T)
    return x + hidden @ p["mlp.down_proj.weight"].T


def rotate(x: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs with positions modulo 16."""
    width = x.shape[1]
    y = torch.empty_like(x)
    for t in range(len(x)):
        for i in range(width // 2):
            angle = (t % 16) * 10000.0 ** (-2 * i / width)
            a, b = x[t, 2 * i], x[t, 2 * i + 1]
            y[t, 2 * i] = a * math.cos(angle) - b * math.sin(angle)
            y[t, 2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return y


def ttt_head(x: Tensor, q: Tensor, k: Tensor, v: Tensor, p: State, token: Tensor) -> Tensor:
    """Gradient steps of the inner model, the gradient of its loss by automatic differentiation."""
    width = q.shape[1]

    def norm(z: Tensor) -> Tensor:
        return F.layer_norm(z, (width,), p["norm"], p["norm_bias"], 1e-6)

    weight, bias, out = p["W"], p["b"][0], []
    for start in range(0, len(q), 16):
        rows = range(start, min(start + 16, len(q)))
        coefficient = [max(0.0, 1 / (i + 1) + float(token[i])) for i in range(len(rows))]
        rate = torch.stack([torch.sigmoid(p["rate"][0] @ x[j] + p["rate_bias"][0]) / width for j in rows])
        z = (k[list(rows)] @ weight + bias).detach().requires_grad_()
        loss = 0.5 * (norm(z) - (v - k)[list(rows)]).square().sum()
        (g,) = torch.autograd.grad(loss, z)
        for i, row in enumerate(rows):
            steps = [coefficient[i] * rate[j] for j in range(i + 1)]
            here_w = weight - sum(steps[j] * torch.outer(k[rows[j]], g[j]) for j in range(i + 1))
            here_b = bias - sum(steps[j] * g[j] for j in range(i + 1))
            out.append(q[row] + norm(q[row] @ here_w + here_b))
        weight, bias = here_w, here_b
    return torch.stack(out)


FORMULAS: dict[str, Callable[[Tensor, State, Settings], Tensor]] = {
    "Mamba": mamba,
    "RetNet": retnet,
    "RWKV": rwkv,
    "xLSTM": xlstm,
    "TTT": ttt,
}


def shapes(name: str, c: int, config: Settings) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an operator's published parameters."""
    if name == "Mamba":
        inner, states, taps = int(config["expand"] * c), config["d_state"], config["d_conv"]
        rank = math.ceil(c / 16)
        found = {"mamba.in_proj.weight": (2 * inner, c), "mamba.out_proj.weight": (c, inner)}
        for end in ("", "_b"):
            found |= {f"mamba.A{end}_log": (inner, states), f"mamba.D{end}": (inner,)}
            found |= {f"mamba.conv1d{end}.weight": (inner, 1, taps), f"mamba.conv1d{end}.bias": (inner,)}
            found |= {f"mamba.x_proj{end}.weight": (rank + 2 * states, inner)}
            found |= {f"mamba.dt_proj{end}.weight": (inner, rank), f"mamba.dt_proj{end}.bias": (inner,)}
        return found | norms(c, "norm")
    if name == "RetNet":
        keys, values, hidden = c * config["expand_k"], c * config["expand_v"], int(c * config["hidden_rate"])
        at = "multi_scale_retention."
        found = {f"{at}q_proj.weight": (keys, c), f"{at}k_proj.weight": (keys, c), f"{at}v_proj.weight": (values, c)}
        found |= {f"{at}o_proj.weight": (c, values), "ffn.fc1.weight": (hidden, c), "ffn.fc1.bias": (hidden,)}
        found |= {"ffn.fc2.weight": (c, hidden), "ffn.fc2.bias": (c,)}
        return found | norms(c, "retention_layer_norm", "final_layer_norm")
    if name == "RWKV":
        heads, hidden = config["n_head"], int(c * config["hidden_rate"])
        found = {f"att.time_maa_{n}": (1, 1, c) for n in "xwkvrg"} | {"gamma1": (c,), "gamma2": (c,)}
        found |= {"att.time_maa_w1": (c, 160), "att.time_maa_w2": (5, 32, c), "att.time_faaaa": (heads, c // heads)}
        found |= {"att.time_decay": (1, 1, c), "att.time_decay_w1": (c, 64), "att.time_decay_w2": (64, c)}
        found |= {f"att.{n}.weight": (c, c) for n in ("key", "value", "receptance", "gate", "output")}
        found |= {"ffn.spatial_mix_k": (1, 1, c), "ffn.spatial_mix_r": (1, 1, c), "ffn.key.weight": (hidden, c)}
        found |= {"ffn.receptance.weight": (c, c), "ffn.value.weight": (c, hidden)}
        return found | norms(c, "ln1", "ln2", "att.ln_x", *(["ln0"] if config["layer_id"] == 0 else []))
    if name == "xLSTM":
        inner, found = 2 * c, {}
        for half in ("rowwise_from_top_left", "rowwise_from_bot_right"):
            layer = f"{half}.layer."
            found |= norms(c, f"{half}.norm") | norms(inner, f"{layer}mlstm_cell.outnorm")
            found |= {f"{layer}learnable_skip": (inner,), f"{layer}proj_up.weight": (2 * inner, c)}
            found |= {f"{layer}proj_up.bias": (2 * inner,), f"{layer}proj_down.weight": (c, inner)}
            found |= {f"{layer}proj_down.bias": (c,), f"{layer}conv.conv.weight": (inner, 1, 4)}
            found |= {f"{layer}conv.conv.bias": (inner,)}
            for n in "qkv":
                found |= {f"{layer}{n}_proj.weight": (inner // 4, 4, 4), f"{layer}{n}_proj.bias": (inner,)}
            for n in ("igate", "fgate"):
                found |= {f"{layer}mlstm_cell.{n}.weight": (4, 3 * inner), f"{layer}mlstm_cell.{n}.bias": (4,)}
        return found
    heads = config["n_head"]
    width, at = c // heads, "seq_modeling_block."
    found = {f"{at}{n}_proj.weight": (c, c) for n in "qkvo"} | norms(c, f"{at}post_norm")
    found |= {f"{at}learnable_token_idx": (16,), f"{at}learnable_ttt_lr_weight": (heads, 1, c)}
    found |= {f"{at}learnable_ttt_lr_bias": (heads, 1), f"{at}W1": (heads, width, width), f"{at}b1": (heads, 1, width)}
    found |= {f"{at}ttt_norm_weight": (heads, width), f"{at}ttt_norm_bias": (heads, width)}
    found |= {"mlp.gate_proj.weight": (2 * c, c), "mlp.up_proj.weight": (2 * c, c), "mlp.down_proj.weight": (c, 2 * c)}
    return found | {"seq_norm.weight": (c,), "ffn_norm.weight": (c,)}


def norms(width: int, *names: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (width,) for name in names for part in ("weight", "bias")}


def parameters(name: str, channels: int, config: Settings) -> State:
    """Random parameters of a size at which every part of the operator matters."""
    state = {}
    for key, shape in shapes(name, channels, config).items():
        fan_in = shape[-1] if len(shape) > 1 and shape[:2] != (1, 1) else 1
        state[key] = torch.randn(shape, dtype=torch.float64) * (0.7 if fan_in == 1 else fan_in**-0.5)
    return state


RETNET: Settings = {"mode": "chunk", "used_MLP": True, "expand_k": 1, "expand_v": 1, "hidden_rate": 4}
RWKV: Settings = {"shift_mode": "time_shift", "shift_pixel": 1, "init_mode": "fancy", "init_values": 1e-5}


@pytest.mark.parametrize("length", [1, 2, 37, 70])
@pytest.mark.parametrize(
    ("name", "channels", "config"),
    [
        ("Mamba", 16, {"d_state": 16, "d_conv": 4, "expand": 2}),
        ("Mamba", 24, {"d_state": 5, "d_conv": 3, "expand": 1}),
        ("Mamba", 40, {"d_state": 8, "d_conv": 2, "expand": 3}),
        ("RetNet", 16, {**RETNET, "n_head": 2}),
        ("RetNet", 24, {**RETNET, "n_head": 3, "expand_k": 2, "expand_v": 3, "hidden_rate": 1}),
        ("RetNet", 12, {**RETNET, "n_head": 1, "hidden_rate": 1.5}),
        ("RWKV", 16, {**RWKV, "n_head": 2, "hidden_rate": 4, "layer_id": 3, "n_layer": 34}),
        ("RWKV", 24, {**RWKV, "n_head": 3, "hidden_rate": 1, "layer_id": 0, "n_layer": 34}),
        ("RWKV", 16, {**RWKV, "n_head": 1, "hidden_rate": 0.5, "layer_id": 12, "n_layer": 10}),
        ("xLSTM", 8, {}),
        ("xLSTM", 24, {}),
        ("TTT", 16, {"n_head": 2, "use_gate": False}),
        ("TTT", 24, {"n_head": 1}),
        ("TTT", 24, {"n_head": 6}),
    ],
)
def test_operators_follow_their_formulas(name: str, channels: int, config: Settings, length: int) -> None:
    torch.manual_seed(length)
    state = parameters(name, channels, config)
    x = torch.randn(2, length, channels, dtype=torch.float64)
    settings = {"OPERATOR": {"NAME": name, "CFG": {**config, "d_model": channels, "drop_path": 0.2}}}
    found = from_official("lion", settings, state).double()(x)
    expected = torch.stack([FORMULAS[name](rows, state, config) for rows in x])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
