"""The Mamba mixer: both directions, groups, and its parts written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pcdet_ext.mixers import mamba
from pcdet_ext.mixers.mamba import Mamba
from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.structures import Groups


def test_is_built_by_name_with_parameters_for_each_direction() -> None:
    mixer = MIXERS.build({"name": "Mamba", "d_state": 8, "expand": 2}, channels=20)
    shapes = {name: tuple(value.shape) for name, value in mixer.state_dict().items()}
    assert shapes.pop("in_proj.weight") == (80, 20)
    assert shapes.pop("out_proj.weight") == (20, 40)
    for way in ("directions.0", "directions.1"):
        assert shapes.pop(f"{way}.A_log") == (40, 8)
        assert shapes.pop(f"{way}.D") == (40,)
        assert shapes.pop(f"{way}.conv.weight") == (40, 1, 4)
        assert shapes.pop(f"{way}.conv.bias") == (40,)
        assert shapes.pop(f"{way}.x_proj.weight") == (2 + 16, 40)
        assert shapes.pop(f"{way}.dt_proj.weight") == (40, 2)
        assert shapes.pop(f"{way}.dt_proj.bias") == (40,)
    assert not shapes


def test_steps_start_in_their_range() -> None:
    steps = F.softplus(Mamba(64).directions[0].dt_proj.bias.detach())
    assert 1e-3 <= float(steps.min()) < 1e-2 < float(steps.max()) <= 0.1 + 1e-6


def test_directions_mirror_each_other() -> None:
    """With the two directions' parameters exchanged, a flipped sequence gives the flipped result."""
    torch.manual_seed(0)
    mixer, mirrored = Mamba(16), Mamba(16)
    other = {"directions.0": "directions.1", "directions.1": "directions.0"}
    state = {other.get(name[:12], name[:12]) + name[12:]: value for name, value in mixer.state_dict().items()}
    mirrored.load_state_dict(state)
    x = torch.randn(3, 21, 16)
    torch.testing.assert_close(mixer.mix(x).flip(1), mirrored.mix(x.flip(1)))


def test_groups_are_independent_and_every_voxel_sees_its_whole_group() -> None:
    torch.manual_seed(1)
    mixer, x = Mamba(8), torch.randn(12, 8)
    plan = Groups(torch.arange(12).view(2, 6), torch.arange(12))
    y = mixer(x, plan)
    changed = x.clone()
    changed[2] += 1
    differs = (mixer(changed, plan) != y).any(1)
    assert differs.tolist() == [True] * 6 + [False] * 6


def test_inference_takes_some_groups_at_a_time_unless_hooks_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    mixer, x = Mamba(8), torch.randn(5, 6, 8)
    whole = mixer.mix(x)
    monkeypatch.setattr(mamba, "NUMBERS_AT_ONCE", 2 * 6 * 16)  # two groups of six tokens with 16 inner channels
    taken: list[int] = []

    def mix(part: Tensor) -> Tensor:
        taken.append(len(part))
        return Mamba._mix(mixer, part)

    monkeypatch.setattr(mixer, "_mix", mix)
    with torch.no_grad():
        torch.testing.assert_close(mixer.mix(x), whole)
        assert taken == [2, 2, 1]
        assert mixer.mix(x[:0]).shape == (0, 6, 8)
        taken.clear()
        with mixer.in_proj.register_forward_hook(lambda *_: None):
            torch.testing.assert_close(mixer.mix(x), whole)
    mixer.mix(x)
    assert taken == [5, 5]


@pytest.mark.parametrize("groups", [(0, 4), (3, 1)])
def test_extreme_groups(groups: tuple[int, int]) -> None:
    mixer, x = Mamba(8), torch.randn(*groups, 8, requires_grad=True)
    y = mixer.mix(x)
    assert y.shape == x.shape
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


def test_half_precision() -> None:
    torch.manual_seed(2)
    mixer, x = Mamba(16), torch.randn(2, 50, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer.mix(x)
    torch.testing.assert_close(y.float(), mixer.mix(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("wrong", ["d_state", "d_conv", "expand"])
def test_wrong_sizes_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=f"{wrong} must be positive, got 0"):
        Mamba(16, **{wrong: 0})
