"""Linear attention along a sequence with a decay that is one number per head: retention and the matrix LSTM.

Both are the recurrence S ← f·S + i·k vᵀ, y = qᵀS, computed in chunks: inside a chunk as masked attention, and between
chunks through the states at their borders, all of them at once by batched matrix products. torch.compile runs them as
they are: how many chunks there are depends on the length, and traced shapes of that kind cost more than they bring.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._reference import own_precision
from pcdet_ext.structures import untraced

Within = Literal["causal", "symmetric"]


@untraced
@typed
def retention(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, scale: float = 1.0, within: Within = "causal", chunk: int = 64
) -> Tensor:
    """Retention y_i = scale Σ_{j≤i} γ^(i−j) (q_i·k_j) v_j (RetNet, Sun et al., 2023, eq. 5), in chunks (eq. 7).

    float16 and bfloat16 are computed in float32. Differentiable.

    Args:
        q: queries [G, L, H, D].
        k: keys [G, L, H, D].
        v: values [G, L, H, E].
        decay: [H], γ of each head, in (0, 1].
        scale: of the result.
        within: what a step sees inside its chunk: "causal", itself and earlier steps; "symmetric", every step j, with
            γ^|i−j|, as in the chunked kernel that LION (Liu et al., NeurIPS 2024) was trained with.
        chunk: steps that are computed at once. With "symmetric" it is part of the definition, otherwise results do not
            depend on it.

    Returns:
        [G, L, H, E].

    Raises:
        ValueError: naming the argument that is wrong.
    """
    _check(q, k, v, chunk)
    if decay.shape != q.shape[2:3]:
        raise ValueError(f"decay must be [{q.shape[2]}], one per head, got {list(decay.shape)}")
    if within not in ("causal", "symmetric"):
        raise ValueError(f"within must be causal or symmetric, got {within!r}")
    with own_precision(q):
        kind, length = q.dtype, q.shape[1]
        chunk = min(chunk, max(length, 1))
        q, k, v = (_chunks(t, chunk) for t in (q, k, v))
        log_decay = decay.to(q.dtype).log()
        place = torch.arange(chunk, device=q.device)
        distance = place[:, None] - place
        weight = (log_decay[:, None, None] * distance.abs()).exp()
        if within == "causal":
            weight = weight.tril()
        y = ((q @ k.mT) * weight[:, None]) @ v
        if q.shape[2] > 1:
            to_end = (log_decay[:, None] * (chunk - 1 - place)).exp()
            before = _carry(log_decay * chunk, k[:, :, :-1].mT @ (v[:, :, :-1] * to_end[:, None, :, None]))
            since = (log_decay[:, None] * (place + 1)).exp()
            y = torch.cat([y[:, :, :1], y[:, :, 1:] + (q[:, :, 1:] * since[:, None, :, None]) @ before], 2)
        return _sequence(y * scale, length).to(kind)


def _carry(log_decay: Tensor, states: Tensor) -> Tensor:
    """S_c = Σ_{b≤c} exp(log_decay·(c−b)) states_b; log_decay: [H], states: [G, H, n, D, E]."""
    step = torch.arange(states.shape[2], device=states.device)
    weight = (log_decay[:, None, None] * (step[:, None] - step).clamp(min=0)).exp().tril()
    return (weight @ states.flatten(3)).reshape(states.shape)


def retention_reference(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, scale: float = 1.0, within: Within = "causal", chunk: int = 64
) -> Tensor:
    """The definition token by token. Arguments as in `retention`."""
    length, rows = q.shape[1], []
    state = torch.einsum("ghd,ghe->ghde", k[:, 0], v[:, 0]) * 0 if length else q.new_zeros(())
    for i in range(length):
        state = decay[:, None, None] * state + torch.einsum("ghd,ghe->ghde", k[:, i], v[:, i])
        row = torch.einsum("ghd,ghde->ghe", q[:, i], state)
        if within == "symmetric":
            for j in range(i + 1, min(length, (i // chunk + 1) * chunk)):
                row = row + ((q[:, i] * k[:, j]).sum(-1) * decay ** (j - i)).unsqueeze(-1) * v[:, j]
        rows.append(row * scale)
    return torch.stack(rows, 1) if rows else torch.zeros_like(v)


@untraced
@typed
def mlstm(
    q: Tensor, k: Tensor, v: Tensor, input_gate: Tensor, forget_gate: Tensor, eps: float = 1e-6, chunk: int = 64
) -> Tensor:
    """The matrix LSTM of xLSTM (Beck et al., NeurIPS 2024, eq. 19-27) in its stabilised form.

    With log D_ij = Σ_{j<t≤i} log σ(f_t) + i_j for j ≤ i and its row maximum M_i:
    w_ij = (q_i·k_j / √D) exp(log D_ij − M_i), y_i = Σ_j w_ij v_j / (max(|Σ_j w_ij|, exp(−M_i)) + eps).
    float16 and bfloat16 are computed in float32. Differentiable.

    Args:
        q: queries [G, L, H, D].
        k: keys [G, L, H, D].
        v: values [G, L, H, D].
        input_gate: [G, L, H], i before its exponential.
        forget_gate: [G, L, H], f before its sigmoid.
        eps: added to the denominator.
        chunk: steps that are computed at once; results do not depend on it.

    Returns:
        [G, L, H, D].

    Raises:
        ValueError: naming the argument that is wrong.
    """
    _check(q, k, v, chunk)
    for name, gate in (("input_gate", input_gate), ("forget_gate", forget_gate)):
        if gate.shape != q.shape[:3]:
            raise ValueError(f"{name} must be {list(q.shape[:3])}, got {list(gate.shape)}")
    with own_precision(q):
        kind, length = q.dtype, q.shape[1]
        chunk = min(chunk, max(length, 1))
        q, k, v = (_chunks(t, chunk) for t in (q * q.shape[3] ** -0.5, k, v))
        gate, forget = (_chunks(t.unsqueeze(-1), chunk).squeeze(-1) for t in (input_gate, forget_gate))
        since = F.logsigmoid(forget).cumsum(-1)  # log of what is left since the chunk began, [G, H, n, chunk]
        future = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).triu(1)
        inside = (since[..., :, None] - since[..., None, :] + gate[..., None, :]).masked_fill(future, -torch.inf)
        state, total, level = _mlstm_states(k, v, gate, since)
        largest = torch.maximum(inside.amax(-1), since + level.unsqueeze(-1))
        weight = (q @ k.mT) * (inside - largest.unsqueeze(-1)).exp()
        q = q * (since + level.unsqueeze(-1) - largest).exp().unsqueeze(-1)
        above = weight @ v + q @ state
        below = weight.sum(-1) + (q @ total.unsqueeze(-1)).squeeze(-1)
        floor = (-largest).clamp(max=80).exp()  # e^89 is beyond float32
        below = torch.maximum(below.abs(), floor) + eps
        return _sequence(above / below.unsqueeze(-1), length).to(kind)


def _mlstm_states(k: Tensor, v: Tensor, gate: Tensor, since: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What each chunk finds: Σ k vᵀ [G, H, n, D, D] and Σ k [G, H, n, D] over exp(level), and level [G, H, n].

    level is the largest exponent in the sum; before the first chunk the sum is empty and the level −∞.
    """
    left = since[..., -1:]
    exponent = (left - since + gate)[:, :, :-1]  # of each token at the end of its chunk
    top = exponent.amax(-1)
    keys = k[:, :, :-1] * (exponent - top.unsqueeze(-1)).exp().unsqueeze(-1)
    passed = left[:, :, :-1, 0].cumsum(-1)
    level = passed + (top - passed).cummax(-1).values if passed.shape[-1] else passed
    share = passed.unsqueeze(-1) + (top - passed).unsqueeze(-2) - level.unsqueeze(-1)
    steps = share.shape[-1]
    later = torch.ones(steps, steps, dtype=torch.bool, device=k.device).triu(1)
    share = share.masked_fill(later, -torch.inf).exp()
    outer = keys.mT @ v[:, :, :-1]
    state, total = (share @ outer.flatten(3)).reshape(outer.shape), share @ keys.sum(-2)
    empty = level.new_full((*level.shape[:2], 1), -torch.inf)
    return F.pad(state, (0, 0, 0, 0, 1, 0)), F.pad(total, (0, 0, 1, 0)), torch.cat([empty, level], -1)


def mlstm_reference(
    q: Tensor, k: Tensor, v: Tensor, input_gate: Tensor, forget_gate: Tensor, eps: float = 1e-6, chunk: int = 64
) -> Tensor:
    """The recurrence token by token (xLSTM, eq. 19-27). Arguments as in `mlstm`; `chunk` is not used."""
    rows: list[Tensor] = []
    state = torch.einsum("ghd,ghe->ghde", k[:, :1].sum(1), v[:, :1].sum(1)) * 0
    total, level = k[:, :1].sum(1) * 0, input_gate[:, :1].sum(1) * 0 - torch.inf
    for t in range(q.shape[1]):
        kept = level + F.logsigmoid(forget_gate[:, t])
        level = torch.maximum(kept, input_gate[:, t])
        old, new = (kept - level).exp().unsqueeze(-1), (input_gate[:, t] - level).exp().unsqueeze(-1)
        total = old * total + new * k[:, t]
        state = old.unsqueeze(-1) * state + torch.einsum("ghd,ghe->ghde", new * k[:, t], v[:, t])
        query = q[:, t] * q.shape[3] ** -0.5
        below = torch.maximum((query * total).sum(-1).abs(), (-level).exp()) + eps
        rows.append(torch.einsum("ghd,ghde->ghe", query, state) / below.unsqueeze(-1))
    return torch.stack(rows, 1) if rows else torch.zeros_like(v)


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """[G, L, H, D] to [G, H, n, chunk, D] in float32 at least; the last chunk is filled up with zeros."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    x = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % chunk))
    return x.unflatten(1, (-1, chunk)).movedim(3, 1).contiguous()


def _sequence(x: Tensor, length: int) -> Tensor:
    """[G, H, n, chunk, D] to [G, length, H, D]."""
    return x.movedim(1, 3).flatten(1, 2)[:, :length]


def _check(q: Tensor, k: Tensor, v: Tensor, chunk: int) -> None:
    if q.ndim != 4 or q.shape != k.shape:
        raise ValueError(f"q and k must be [G, L, H, D] of one shape, got {list(q.shape)} and {list(k.shape)}")
    if v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(f"v must be [{', '.join(map(str, q.shape[:3]))}, E], got {list(v.shape)}")
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(f"q, k and v must be of one floating type, got {q.dtype}, {k.dtype}, {v.dtype}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
