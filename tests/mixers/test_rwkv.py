"""The RWKV mixer: both directions, groups, initialisation; and the channel mix that goes with it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.mixers.rwkv import RWKV, previous_token
from pcdet_ext.models.layers.feed_forward import ChannelMix
from pcdet_ext.structures import Groups, Segments


def lively(module: type = RWKV, **options: object) -> torch.nn.Module:
    """A mixer, or a channel mix, whose weights are all away from zero."""
    torch.manual_seed(0)
    mixer = module(16, **options)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def test_is_built_by_name_with_a_state_for_each_head() -> None:
    mixer = MIXERS.build({"name": "RWKV", "num_heads": 4, "layer_id": 1, "num_layers": 2}, channels=32)
    shapes = {name: tuple(value.shape) for name, value in mixer.state_dict().items()}
    assert shapes["bonus"] == (4, 8)
    assert shapes["shift_down"] == (32, 160)
    assert shapes["shift_up"] == (5, 32, 32)
    assert shapes["decay_down"] == (32, 64)
    assert {name for name in shapes if name.startswith("shift.")} == {f"shift.{x}" for x in "xwkvrg"}


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
    assert (previous_token(x)[:, 0] == 0).all()
    assert torch.equal(previous_token(x)[:, 1:], x[:, :-1])


def test_channel_mix_with_the_difference_is_another_mix() -> None:
    x, plan = torch.randn(10, 16), Groups(torch.arange(10).view(2, 5), torch.arange(10))
    tokens = x.view(2, 5, 16)
    for mix, other in (("shifted", previous_token(tokens)), ("difference", previous_token(tokens) - tokens)):
        part = lively(ChannelMix, mix=mix)
        share, share_r = part.share_in, part.share_receptance
        k = F.relu(F.linear(tokens * share + other * (1 - share), part.in_proj.weight)).square()
        r = F.linear(tokens * share_r + other * (1 - share_r), part.receptance.weight)
        expected = torch.sigmoid(r) * F.linear(k, part.out_proj.weight)
        torch.testing.assert_close(part(x, plan), expected.view(10, 16))


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
        ({"layer_id": -1}, "layer_id must not be negative"),
    ],
)
def test_wrong_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RWKV(16, **options)


def test_a_channel_mix_takes_groups_of_a_positive_width() -> None:
    with pytest.raises(ValueError, match="ffn_channels must be positive, got 0"):
        ChannelMix(16, ffn_channels=0)
    place = torch.arange(3)
    with pytest.raises(ValueError, match="ChannelMix takes equal-size Groups, got Segments"):
        ChannelMix(16)(torch.zeros(3, 16), Segments(place, place, torch.tensor([0, 3])))
