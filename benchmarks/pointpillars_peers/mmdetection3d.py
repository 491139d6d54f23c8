"""mmdetection3d's PointPillars on mmcv-lite, what mmcv would compile answered by operations of this library.

Of these, PointPillars needs hard_voxelize_forward and iou3d_nms3d_forward. A compiled mmcv would not do: it has the
latter for GPUs alone.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pcdet_ext.plugins.mmdet3d import prepare

prepare()  # before anything imports mmcv.ops

import mmdet3d.models  # noqa: E402, F401
from mmdet3d.registry import MODELS  # noqa: E402
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402

from pointpillars_peers import network  # noqa: E402
from pointpillars_peers.worker import Boxes, Maps  # noqa: E402


class Peer:
    """The network with the parameters of parameters.pt."""

    def __init__(self, folder: Path, option: str) -> None:
        init_default_scope("mmdet3d")
        self.model: Any = MODELS.build(ConfigDict(network.mmdetection3d()["model"])).eval()
        self.model.load_state_dict(torch.load(folder / "parameters.pt", weights_only=True)["state_dict"])
        self.stages = {
            "pillars": self.model.data_preprocessor,
            "encoder": self.model.voxel_encoder,
            "scatter": self.model.middle_encoder,
            "2-D backbone": self.model.backbone,
            "upsampling": self.model.neck,
            "head": self.model.bbox_head,
        }
        self.versions = {name: version(name) for name in ("mmdet3d", "mmengine", "mmcv-lite")}

    @torch.inference_mode()
    def detect(self, points: np.ndarray) -> Boxes:
        found = self.model.test_step(self._batch(points))[0].pred_instances_3d
        return Boxes(found.bboxes_3d.tensor.numpy(), found.scores_3d.numpy(), found.labels_3d.numpy())

    @torch.inference_mode()
    def maps(self, points: np.ndarray) -> Maps:
        batch = self.model.data_preprocessor(self._batch(points), False)
        maps = [levels[0] for levels in self.model._forward(batch["inputs"], batch["data_samples"])]
        return Maps(maps[0][0].permute(1, 2, 0).numpy(), [each.shape[1] for each in maps])

    def _batch(self, points: np.ndarray) -> dict[str, Any]:
        sample = Det3DDataSample(metainfo={"box_type_3d": LiDARInstance3DBoxes})
        return {"inputs": {"points": [torch.from_numpy(points)]}, "data_samples": [sample]}
