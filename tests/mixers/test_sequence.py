"""What mixers of sequences share: plans, padding."""

from __future__ import annotations

import pytest
import torch

from pcdet_ext.grouping.orders import Hilbert, WindowX
from pcdet_ext.grouping.partitions import EqualGroups, OctreeWindows
from pcdet_ext.mixers import MIXERS
from pcdet_ext.mixers.sequence import SequenceMixer
from pcdet_ext.structures import Segments, SparseVoxels


class Sums(SequenceMixer):
    """Running sums from both ends: every slot sees every other."""

    def mix(self, sequences: torch.Tensor) -> torch.Tensor:
        return sequences.cumsum(1) + sequences.flip(1).cumsum(1).flip(1) - sequences


def voxels(counts: tuple[int, ...] = (5, 9)) -> SparseVoxels:
    cells = torch.arange(64).view(-1, 1) // torch.tensor([16, 4, 1]) % 4
    coords = torch.cat([torch.cat([torch.full((n, 1), b), cells[:n]], 1) for b, n in enumerate(counts)]).int()
    features = torch.arange(1, len(coords) + 1).view(-1, 1).double()
    return SparseVoxels(features, coords, (4, 4, 4), len(counts))


def test_masked_slots_hold_zeros_and_others_their_copies() -> None:
    data = voxels((5,))
    order = WindowX((4, 4, 4))
    total = data.features.sum()
    masked = Sums()(data.features, EqualGroups(8, masked=True)(data, order))
    torch.testing.assert_close(masked, total.expand(5, 1))
    copies = Sums()(data.features, EqualGroups(8)(data, order))
    first = data.features[order(data).order[:3]].sum()  # a single group is filled up from its start
    torch.testing.assert_close(copies, (total + first).expand(5, 1))


def test_position_is_added_before_mixing() -> None:
    data = voxels()
    plan = EqualGroups(4)(data, Hilbert())
    position = torch.randn(len(data), 1, dtype=torch.float64)
    torch.testing.assert_close(Sums()(data.features, plan, position), Sums()(data.features + position, plan))


def test_frames_of_padded_octree_windows_stay_apart_and_straddling_ones_are_refused() -> None:
    data = voxels((5, 9))
    mixed = Sums()(data.features, OctreeWindows(16)(data, Hilbert()))
    torch.testing.assert_close(mixed[:5], data.features[:5].sum().expand(5, 1))
    torch.testing.assert_close(mixed[5:], data.features[5:].sum().expand(9, 1))
    with pytest.raises(ValueError, match="different owners"):
        Sums()(data.features, OctreeWindows(16, straddle=True)(data, Hilbert()))


def test_segments_are_refused() -> None:
    place = torch.arange(3)
    with pytest.raises(ValueError, match="Sums takes equal-size Groups, got Segments"):
        Sums()(torch.zeros(3, 1), Segments(place, place, torch.tensor([0, 3])))


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["RetNet", "XLSTM", "TTT"])
def test_mixers_can_be_compiled(mixer: str) -> None:
    module = MIXERS.build({"name": mixer}, channels=8)
    compiled = torch.compile(module.mix, backend="eager", dynamic=True)
    for length in (20, 70):
        x = torch.randn(2, length, 8)
        torch.testing.assert_close(compiled(x), module.mix(x), rtol=1e-4, atol=1e-5)
    compiled(x).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters())
