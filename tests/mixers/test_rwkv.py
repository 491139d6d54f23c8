"""The RWKV mixer: both directions, groups, initialisation, and the published channel mix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.mixers.rwkv import RWKV, previous
from pcdet_ext.structures import Groups


def lively(**options: object) -> RWKV:
    """A mixer whose weights are all away from zero."""
    torch.manual_seed(0)
    mixer = RWKV(16, **options)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def test_is_built_by_name_and_has_the_published_keys() -> None:
    mixer = MIXERS.build({"name": "RWKV", "num_heads": 4, "hidden_rate": 4, "layer_id": 1}, channels=32)
    shapes = {name: tuple(value.shape) for name, value in mixer.state_dict().items()}
    assert shapes["att.time_faaaa"] == (4, 8)
    assert shapes["att.time_maa_w1"] == (32, 160)
    assert shapes["att.time_maa_w2"] == (5, 32, 32)
    assert shapes["att.time_decay_w1"] == (32, 64)
    assert shapes["ffn.key.weight"] == (128, 32)
    assert "ln0.weight" not in shapes
    assert "ln0.weight" in RWKV(32, layer_id=0).state_dict()


def test_every_voxel_sees_its_whole_group_and_no_other() -> None:
    mixer, x = lively(), torch.randn(12, 16)
    plan = Groups(torch.arange(12).view(2, 6), torch.arange(12))
    y = mixer(x, plan)
    changed = x.clone()
    changed[2] += 1
    differs = (mixer(changed, plan) != y).any(1)
    assert differs.tolist() == [True] * 6 + [False] * 6


def test_previous_token() -> None:
    x = torch.randn(2, 4, 3)
    assert (previous(x)[:, 0] == 0).all()
    assert torch.equal(previous(x)[:, 1:], x[:, :-1])


def test_channel_mix_with_the_difference_is_another_mix() -> None:
    shifted, difference = lively(channel_mix="shifted"), lively(channel_mix="difference")
    x = torch.randn(2, 5, 16)
    share = shifted.ffn.spatial_mix_k
    for mixer, other in ((shifted, previous(x)), (difference, previous(x) - x)):
        ffn = mixer.ffn
        k = F.relu(F.linear(x * share + other * (1 - share), ffn.key.weight)).square()
        r = F.linear(x * ffn.spatial_mix_r + other * (1 - ffn.spatial_mix_r), ffn.receptance.weight)
        torch.testing.assert_close(ffn(x), torch.sigmoid(r) * F.linear(k, ffn.value.weight))


@pytest.mark.parametrize(("layer_id", "num_layers"), [(0, 1), (0, 34), (33, 34), (40, 34)])
def test_starts_with_finite_numbers_at_any_place(layer_id: int, num_layers: int) -> None:
    mixer = RWKV(16, layer_id=layer_id, num_layers=num_layers)
    assert all(parameter.isfinite().all() for parameter in mixer.parameters())


@pytest.mark.parametrize("groups", [(0, 4), (3, 1)])
def test_extreme_groups(groups: tuple[int, int]) -> None:
    mixer, x = lively(), torch.randn(*groups, 16, requires_grad=True)
    y = mixer.mix(x)
    assert y.shape == x.shape
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


def test_half_precision() -> None:
    mixer, x = lively(), torch.randn(2, 50, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer.mix(x)
    expected = mixer.mix(x)
    assert float((y - expected).detach().abs().max()) < 0.03 * float(expected.detach().abs().max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must be positive and divide channels, got 3 and 16"),
        ({"hidden_rate": 0}, "hidden_rate must be positive, got 0"),
        ({"layer_id": -1}, "layer_id must not be negative"),
        ({"channel_mix": "both"}, "channel_mix must be one of shifted, difference, got 'both'"),
    ],
)
def test_wrong_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RWKV(16, **options)
