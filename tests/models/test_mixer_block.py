"""What stands around a mixer: every placement written out, stochastic depth, and blocks on slots."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import layer_norm

from pcdet_ext.config import ConfigError
from pcdet_ext.mixers.rwkv import RWKV
from pcdet_ext.models.layers.mixer_block import DropPath, MixerBlock, run_on_slots
from pcdet_ext.structures import Groups, Segments

MIXER = {"name": "SoftmaxAttention", "num_heads": 2}


def groups(voxels: int = 12, size: int = 6) -> Groups:
    slots = torch.arange(voxels)
    return Groups(slots.view(-1, size), slots)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("norm", ["pre", "post", "branch", "none"])
def test_placements_written_out(norm: str, scale: float | None, residual: bool) -> None:
    torch.manual_seed(0)
    feed = {"name": "MLP", "ffn_channels": 5}
    block = MixerBlock(8, MIXER, feed, norm=norm, layer_scale=scale, residual=residual).double()
    x, plan = torch.randn(12, 8, dtype=torch.float64), groups()
    normed = lambda v: layer_norm(v, (8,))  # noqa: E731 - fresh norms have weight 1 and bias 0
    y = x
    for part in (block.mix, block.feed):
        branch = part.module(normed(y) if norm == "pre" else y, plan)
        branch = (normed(branch) if norm == "branch" else branch) * (1 if scale is None else scale)
        y = y + branch if residual else branch
        y = normed(y) if norm == "post" else y
    torch.testing.assert_close(block(x, plan), y)


def test_the_position_reaches_the_mixer_alone() -> None:
    torch.manual_seed(0)
    block = MixerBlock(8, {"name": "RetNet"}, norm="none").double()
    x, position = torch.randn(2, 12, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x, groups(), position), x + block.mix.module(x, groups(), position))
    with torch.no_grad():
        block.mix.module.out_proj.weight.zero_()
    assert torch.equal(block(x, groups(), position), x)


def test_stochastic_depth_drops_whole_groups_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    plan, x = groups(12000, 3), torch.ones(12000, 2)
    y = drop(x, plan)
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert bool((y.view(-1, 3, 2) == y.view(-1, 3, 2)[:, :1, :1]).all())
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert drop.eval()(x, plan) is x
    with pytest.raises(ValueError, match="drop_path must be in"):
        DropPath(1.0)


def test_stochastic_depth_of_segments() -> None:
    torch.manual_seed(0)
    place = torch.randperm(10)
    plan = Segments(torch.argsort(place), place, torch.tensor([0, 4, 4, 10]))
    assert plan.group_of_voxel().tolist() == [0 if p < 4 else 2 for p in place.tolist()]
    y = plan.gather(DropPath(0.5)(torch.ones(10, 1), plan))
    assert len(y[:4].unique()) == len(y[4:].unique()) == 1


def test_blocks_on_slots_see_copies_as_the_first_block_left_them() -> None:
    torch.manual_seed(0)
    blocks = [MixerBlock(8, MIXER).double() for _ in range(2)]
    x = torch.randn(5, 8, dtype=torch.float64)
    plan = Groups(torch.tensor([[0, 1, 2], [3, 4, 1]]), torch.tensor([0, 1, 2, 3, 4]))  # voxel 1 fills the second group
    rows = x[plan.index]
    for block in blocks:
        rows = torch.stack([block(group, groups(3, 3)) for group in rows])
    torch.testing.assert_close(run_on_slots(blocks, x, plan), rows.flatten(0, 1)[plan.inverse])


def test_the_first_layer_alone_norms_its_input() -> None:
    block = MixerBlock(8, {"name": "RWKV"}, input_norm=True, layer_id=0, num_layers=3)
    assert block.input_norm is not None
    assert isinstance(block.mix.module, RWKV)
    assert MixerBlock(8, {"name": "RWKV"}, layer_id=2, num_layers=3).input_norm is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_id": 3, "num_layers": 3}, "layer_id must be from 0 to num_layers - 1 = 2, got 3"),
        ({"drop_path": -0.1}, "drop_path must be in"),
        ({"mixer": {"name": "Attention"}}, "no mixer is named 'Attention'"),
        ({"feed_forward": {"name": "MLP", "ffn_chanels": 3}}, "did you mean 'ffn_channels'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=message):
        MixerBlock(8, **{"mixer": MIXER, **settings})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"norm": "Pre"}, "norm must be one of pre, post, branch, none, got 'Pre'"),
        ({"norm_eps": -1.0}, "norm_eps must be positive and finite, got -1.0"),
        ({"layer_scale": float("nan")}, "layer_scale must be finite, got nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixerBlock(8, {"name": "SoftmaxAttention", "num_heads": 2}, **setting)
