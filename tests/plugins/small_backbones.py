"""Small backbones of this library, as both code bases' tests configure them."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

FLATFORMER: Config = {"name": "FlatFormer", "num_blocks": 1, "group_size": 64, "num_heads": 4}
DSVT: Config = {
    "name": "DSVT",
    "channels": [32],
    "num_blocks": [1],
    "num_heads": [4],
    "ffn_channels": [64],
    "group_sizes": [24],
    "windows": [[1, 12, 12]],
    "shifts": [[[0, 0, 0], [0, 6, 6]]],
    "hybrid_factor": [1, 2, 2],
}
SCATTERFORMER: Config = {"name": "ScatterFormer", "channels": 32, "num_layers": 1, "num_heads": 2, "pool_heads": 2}
SEQUENCE: Config = {
    "name": "SequenceBackbone",
    "layers": [
        {
            "order": {"name": "Hilbert"},
            "partition": {"name": "EqualGroups", "group_size": 64},
            "mixer": {"name": "RWKV"},
        }
    ],
}
OCTFORMER: Config = {
    "name": "OctFormer",
    "channels": [32, 64],
    "num_blocks": [2, 2],
    "num_heads": [2, 4],
    "stem_down": 1,
    "drop_path": 0.0,
    "out_channels": 32,
}
HOTFORMER: Config = {
    "name": "HOTFormer",
    "channels": [32],
    "num_blocks": [1],
    "num_levels": 2,
    "num_octformer_stages": 0,
    "stem_down": 1,
    "drop_path": 0.0,
    "out_channels": 32,
}
