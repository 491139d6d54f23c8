"""Grids of UniLION's heads: what their published sections say beside the scopes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pcdet_ext.interop import from_official

SCOPES = {
    "input_scope": [[-6.0, 6.0, 1.0], [-6.0, 6.0, 1.0]],
    "output_scope": [[-5.0, 5.0, 0.4], [-4.0, 4.0, 0.8]],
}
MAP = {
    "type": "SegMapHead",
    "in_channels": 3,
    "hidden_channel": 4,
    "seg_encoder_channels": 4,
    "seg_encoder_blocks": [1, 1, 1],
}
OCCUPANCY = {
    "type": "BEVOCCHead",
    "in_channels": 3,
    "hidden_channel": 4,
    "Dz": 2,
    "num_classes": 2,
    "class_names": ["car", "free"],
}


@pytest.mark.parametrize(
    ("config", "section", "layers"),
    [
        (MAP, "seg_map_config", {"seg_map_classes": ["drivable_area"]}),
        (OCCUPANCY, "bev_occ_config", {}),
    ],
)
def test_maps_are_enlarged_before_they_are_read(config: dict, section: str, layers: dict) -> None:
    grids = {
        factor: from_official("unilion", config | {section: SCOPES | layers | given}).transform
        for factor, given in ((1, {}), (2, {"prescale_factor": 2}))
    }
    x = torch.randn(1, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    enlarged = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(grids[2](x), grids[1](enlarged))
    assert not torch.allclose(grids[2](x), grids[1](x))
