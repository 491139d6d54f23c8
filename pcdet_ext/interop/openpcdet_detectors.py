"""Detectors of OpenPCDet, those with a backbone of another code base among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pcdet_ext.interop import dsvt, openpcdet
from pcdet_ext.interop.openpcdet_settings import Config

GEOMETRY = ("class_names", "point_cloud_range", "voxel_size", "num_point_features")


def from_official(config: Config, state_dict: Mapping[str, Any] | None = None) -> nn.Module:
    """An OpenPCDet detector with its parameters, in eval mode; arguments and errors are those of `openpcdet`."""
    model = openpcdet.one_of(config, "model", "model_cfg")
    if (model.get("BACKBONE_3D") or {}).get("NAME") != "DSVT":
        return openpcdet.from_official(config, state_dict)
    sections = {name: model[name] for name in model if name != "NAME"}
    return dsvt.from_official({**{name.upper(): config[name] for name in GEOMETRY}, **sections}, state_dict)
