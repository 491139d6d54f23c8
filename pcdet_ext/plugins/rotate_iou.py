"""The overlap of turned rectangles that published KITTI evaluations compute with numba on a GPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pcdet_ext.ops import shared_area_bev
from pcdet_ext.plugins.imports import provide_module, tell


def provide_rotate_iou(module: str, replace: bool) -> None:
    """Let a module `rotate_iou` of another code base give ours, where there is no GPU for theirs."""
    if replace or not torch.cuda.is_available():
        tell(f"{module} (numba for CUDA) is answered by the overlaps of pcdet_ext")
        provide_module(module, {"rotate_iou_gpu_eval": rotate_iou_gpu_eval})


def rotate_iou_gpu_eval(
    boxes: NDArray[np.floating], query_boxes: NDArray[np.floating], criterion: int = -1, device_id: int = 0
) -> NDArray[np.floating]:
    """Overlaps [N, K] of turned rectangles [N, 5] and [K, 5], as published KITTI evaluations ask for.

    Args:
        boxes: x, z, length, width and rotation_y of the camera (clockwise), metres and radians.
        query_boxes: the same.
        criterion: what the shared area is divided by: -1 the union, 0 the query's area, 1 the box's; else nothing.
        device_id: of the published function; not used.
    """
    a, b = _standing(boxes), _standing(query_boxes)
    shared = shared_area_bev(a, b)
    area_a, area_b = (a[:, 3] * a[:, 4])[:, None], b[:, 3] * b[:, 4]
    size = {-1: area_a + area_b - shared, 0: area_b.expand_as(shared), 1: area_a.expand_as(shared)}
    found = shared / size[criterion] if criterion in size else shared
    return torch.where(shared > 0, found, 0.0).numpy().astype(boxes.dtype)


def _standing(rectangles: NDArray[np.floating]) -> Tensor:
    """Rectangles [N, 5] of the camera's ground as boxes float64 [N, 7]."""
    x, z, length, width, angle = torch.as_tensor(rectangles, dtype=torch.float64).reshape(-1, 5).unbind(1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return torch.stack([x, z, zero, length, width, one, -angle], 1)
