"""TTT-Linear as a mixer (Sun et al., "Learning to (Learn at Test Time)", 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.mixers.sequence import SequenceMixer
from pcdet_ext.structures import untraced

EPS = 1e-6


@MIXERS.register
class TTT(SequenceMixer):
    """A linear model inside each head that learns from the tokens as it reads them; see `ttt_linear`.

    Args:
        channels: C.
        num_heads: each with its own inner model.
        mini_batch: tokens whose gradients are taken at the same inner weights.

    Raises:
        ValueError: where num_heads do not divide the channels into an even width.
    """

    def __init__(self, channels: int, num_heads: int = 2, mini_batch: int = 16) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads or channels // num_heads % 2:
            raise ValueError(f"num_heads must divide the {channels} channels into an even width, got {num_heads}")
        if mini_batch < 1:
            raise ValueError(f"mini_batch must be at least 1, got {mini_batch}")
        self.num_heads, self.mini_batch = num_heads, mini_batch
        width = channels // num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(channels, channels, bias=False) for _ in range(4)
        )
        self.token_offset = nn.Parameter(torch.zeros(mini_batch))
        self.rate_weight = nn.Parameter(torch.randn(num_heads, channels) * 0.02)
        self.rate_bias = nn.Parameter(torch.zeros(num_heads))
        self.inner_norm_weight = nn.Parameter(torch.ones(num_heads, width))
        self.inner_norm_bias = nn.Parameter(torch.zeros(num_heads, width))
        self.inner_weight = nn.Parameter(torch.randn(num_heads, width, width) * 0.02)
        self.inner_bias = nn.Parameter(torch.zeros(num_heads, 1, width))
        self.norm = nn.LayerNorm(channels, eps=EPS)

    def mix(self, sequences: Tensor) -> Tensor:
        """Sequences [G, L, C] to [G, L, C]."""
        x, layers = sequences, (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)) for layer in layers)
        position = torch.arange(x.shape[1], device=x.device) % self.mini_batch
        q, k = rotate(q, position), rotate(k, position)
        count = torch.arange(1, self.mini_batch + 1, dtype=torch.float32, device=x.device)
        token = (1 / count + self.token_offset).clamp(min=0)
        rate = F.linear(x, self.rate_weight, self.rate_bias).sigmoid() / q.shape[-1]
        inner = (self.inner_weight, self.inner_bias, self.inner_norm_weight, self.inner_norm_bias)
        return self.out_proj(self.norm(ttt_linear(q, k, v, token, rate, *inner).flatten(2)))


@untraced  # compilation would write out the loop, some hundred steps
def ttt_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    token: Tensor,
    rate: Tensor,
    W: Tensor,
    b: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float = EPS,
) -> Tensor:
    """The dual form of TTT-Linear (Sun et al. 2024, section 2.5), mini-batch after mini-batch.

    With η_ij = token_i · rate_j and G_j the gradient of ½‖LN(k_j W + b) − (v_j − k_j)‖² by k_j W + b, token i of a
    mini-batch reads q_i + LN(q_i W_i + b_i), where W_i = W − Σ_{j≤i} η_ij k_jᵀ G_j and b_i = b − Σ_{j≤i} η_ij G_j. The
    next mini-batch starts from the weights of its last token. float16 and bfloat16 are computed in float32.

    Args:
        q: floating-point [G, L, H, D], queries of G sequences of L tokens in H heads.
        k: the keys, likewise.
        v: the values, likewise.
        token: [B], the coefficient of each place in a mini-batch of B tokens.
        rate: [G, L, H], the learning rate of each token.
        W: [H, D, D], the inner weights at the start.
        b: [H, 1, D], the inner bias at the start.
        norm_weight: [H, D], of the layer norm LN.
        norm_bias: [H, D], likewise.
        eps: of the layer norm.

    Returns:
        [G, L, H, D] in the dtype of q.
    """
    with torch.autocast(q.device.type, enabled=False):
        kind, length = q.dtype, q.shape[1]
        batch = len(token)
        q, k, v, rate = (_mini_batches(t, batch) for t in (q, k, v, rate.unsqueeze(-1)))
        token, W, b, weight, bias = (t.to(q.dtype) for t in (token, W, b, norm_weight[:, None], norm_bias[:, None]))
        # A constant 1 beside q and k makes the bias a row of W.
        queries, keys = F.pad(q, (0, 1), value=1.0), F.pad(k, (0, 1), value=1.0)
        eta = token[:, None] * rate.mT
        update = ((queries @ keys.mT) * eta).tril()
        last = (keys * eta[..., -1:, :].mT).mT
        offset = weight * (bias - (v - k))
        y = inner_steps(torch.cat([W, b], 1), queries, keys, update, last, offset, weight.square(), eps)
        y = q + F.layer_norm(y, y.shape[-1:], eps=eps) * weight + bias
        return y.movedim(0, 1).movedim(2, 3).flatten(1, 2)[:, :length].to(kind)


def inner_steps(
    state: Tensor,
    queries: Tensor,
    keys: Tensor,
    update: Tensor,
    last: Tensor,
    offset: Tensor,
    scale: Tensor,
    eps: float,
) -> Tensor:
    """What the tokens of n mini-batches of B tokens read from the inner model, which each mini-batch changes.

    Args:
        state: [H, D + 1, D], the inner weights at the start, the bias as the last row.
        queries: [n, G, H, B, D + 1], with a 1 for the bias.
        keys: likewise.
        update: [n, G, H, B, B], how much each token reads of the gradients of those before it.
        last: [n, G, H, D + 1, B], how the gradients change the weights for the next mini-batch.
        offset: [n, G, H, B, D], see `_norm_gradient`.
        scale: [H, 1, D], likewise.
        eps: of the layer norm.

    Returns:
        [n, G, H, B, D].
    """
    rows = []
    for query, key, reads, learns, target in zip(queries, keys, update, last, offset, strict=True):
        gradient = _norm_gradient(key @ state, scale, target, eps)
        rows.append(query @ state - reads @ gradient)
        state = state - learns @ gradient
    return torch.stack(rows) if rows else queries[..., :-1]


def _norm_gradient(z: Tensor, scale: Tensor, offset: Tensor, eps: float) -> Tensor:
    """Gradient of ½‖LN(z) − target‖² by z; scale: weight², offset: weight · (bias − target)."""
    centred = z - z.mean(-1, keepdim=True)
    inverse = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    normed = centred * inverse
    outer = scale * normed + offset
    inner = outer - outer.mean(-1, keepdim=True) - normed * (outer * normed).mean(-1, keepdim=True)
    return inner * inverse


def _mini_batches(x: Tensor, size: int) -> Tensor:
    """[G, L, H, D] to [n, G, H, size, D] in float32 at least, filled up with zeros at the end."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    x = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % size))
    return x.unflatten(1, (-1, size)).movedim(1, 0).movedim(3, 2)


def rotate(x: Tensor, position: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary embedding (Su et al., 2021): channels 2i and 2i + 1 turn together.

    Args:
        x: floating-point [G, L, H, D].
        position: [L], place of each token.
        base: the wavelengths of the pairs grow from 2π to almost 2π times this.

    Returns:
        [G, L, H, D].
    """
    half = torch.arange(0, x.shape[-1], 2, device=x.device, dtype=torch.float64) / x.shape[-1]
    angle = (position[:, None] * base**-half)[:, None].repeat_interleave(2, -1)
    turned = torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
    return x * angle.cos().to(x.dtype) + turned * angle.sin().to(x.dtype)
