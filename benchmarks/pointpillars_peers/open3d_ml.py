"""Open3D-ML's PointPillars (open3d.ml.torch), without the objects that it wraps boxes in, and without its pipeline."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open3d
import open3d.ml.torch
import torch

from pointpillars_peers import network
from pointpillars_peers.worker import Boxes, Maps

FIRST = "voxel_encoder.pfn_layers.0.linear.weight"


def parameters(path: Path) -> dict[str, torch.Tensor]:
    """The parameters of mmdetection3d, whose names Open3D-ML has, too, without the column that it lacks.

    Its pillars tell of points how far they are from the pillar's centre in x and y, not in z. Raises ValueError unless
    the weights of that last column are 0.
    """
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    weight = found[FIRST]
    if weight[:, -1].any():
        raise ValueError(f"{FIRST}: the last column must be 0 for Open3D-ML")
    return found | {FIRST: weight[:, :-1]}


class Peer:
    """The network with the parameters of parameters.pt, whose names are mmdetection3d's as in Open3D-ML."""

    def __init__(self, folder: Path, option: str) -> None:
        self.model = open3d.ml.torch.models.PointPillars(device="cpu", **network.open3d_ml()).eval()
        self.model.load_state_dict(parameters(folder / "parameters.pt"))
        self.stages = {
            "pillars": self.model.voxel_layer,
            "encoder": self.model.voxel_encoder,
            "scatter": self.model.middle_encoder,
            "2-D backbone": self.model.backbone,
            "upsampling": self.model.neck,
            "head": self.model.bbox_head,
        }
        self.versions = {"open3d": open3d.__version__}

    @torch.inference_mode()
    def detect(self, points: np.ndarray) -> Boxes:
        (boxes,), (scores,), (labels,) = self.model.bbox_head.get_bboxes(*self._forward(points))
        return Boxes(boxes.numpy(), scores.numpy(), labels.numpy())

    @torch.inference_mode()
    def maps(self, points: np.ndarray) -> Maps:
        maps = self._forward(points)
        return Maps(maps[0][0].permute(1, 2, 0).numpy(), [each.shape[1] for each in maps])

    def _forward(self, points: np.ndarray) -> tuple[torch.Tensor, ...]:
        return self.model(SimpleNamespace(point=[torch.from_numpy(points)]))
