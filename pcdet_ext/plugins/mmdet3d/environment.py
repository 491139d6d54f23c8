"""mmdetection3d on `mmcv-lite`: what mmcv compiles, answered by this library, and what its age asks for."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pcdet_ext.interop.checkpoints import harmless_logs
from pcdet_ext.plugins.imports import after_import, is_installed, is_provided, loads, provide_module, tell
from pcdet_ext.plugins.mmdet3d.compiled import CONTENT, SPARSE, points_in_boxes_all, points_in_boxes_part
from pcdet_ext.plugins.rotate_iou import provide_rotate_iou
from pcdet_ext.plugins.surroundings import (
    allow_numpy_numbers_in_checkpoints,
    are_distributed,
    restore_numpy_aliases,
    sparse_convolutions_without_cuda,
    stand_in_for_missing,
)

EXTENSION = "mmcv._ext"
ROTATE_IOU = "mmdet3d.evaluation.functional.kitti_utils.rotate_iou"
# Packages that mmdetection3d imports at once and needs for parts that most do not use.
OPTIONAL = {
    "lyft_dataset_sdk": "pip install lyft_dataset_sdk, for the Lyft data set",
    "pyquaternion": "pip install pyquaternion, for the nuScenes and Lyft data sets",
    "nuscenes": "pip install nuscenes-devkit, for the nuScenes data set",
    "pycocotools": "pip install pycocotools, for masks and boxes in images",
    "open3d": "pip install open3d, for its windows",
    "trimesh": "pip install trimesh, for indoor data",
    "plyfile": "pip install plyfile, for ScanNet",
    "terminaltables": "pip install terminaltables, for tables of scores",
    "shapely": "pip install shapely, for mmdetection's data sets of images",
    "skimage": "pip install scikit-image, for some data sets",
    "tensorboard": "pip install tensorboard, for its logs",
}


def prepare() -> None:
    """Everything that lets mmdetection3d run with `mmcv-lite`: `operations`, and what its age asks for.

    Each change is made only where it is needed, and told in a line on standard error. Call it before anything imports
    `mmcv.ops`; `python -m pcdet_ext.plugins.mmdet3d` does.
    """
    operations()
    restore_numpy_aliases()
    _processes_without_cuda()
    allow_numpy_numbers_in_checkpoints()
    after_import("mmengine.logging.history_buffer", _allow_logs_in_checkpoints)
    stand_in_for_missing(OPTIONAL)


def operations(replace: bool = False) -> None:
    """Let this library answer what `mmcv.ops` compiles, on the CPU and on GPUs, so that `mmcv-lite` is enough.

    These are Voxelization, DynamicScatter, nms, nms_rotated, box_iou_rotated, boxes_iou3d, boxes_overlap_bev, nms3d,
    nms3d_normal and points_in_boxes_part, _all and _cpu; sparse convolutions are spconv's. Other compiled functions
    raise when they are called.

    Args:
        replace: answer a compiled mmcv that could be used, too.

    Raises:
        RuntimeError: `mmcv.ops` is imported already, so that it is too late.
    """
    if not is_provided(EXTENSION) and (replace or not _works()):
        if EXTENSION in sys.modules or "mmcv.ops" in sys.modules:
            raise RuntimeError("mmcv.ops is imported already: call operations() before anything imports it")
        provide_module(EXTENSION, CONTENT)
        tell(f"{EXTENSION}, which mmcv-lite lacks, is answered by pcdet_ext")
        after_import("mmcv.ops", _take_spconv)
    if not torch.cuda.is_available():
        after_import("mmcv.ops.points_in_boxes", _without_current_device)
    sparse_convolutions_without_cuda()
    provide_rotate_iou(ROTATE_IOU, replace)


def _works() -> bool:
    """Whether mmcv's extension is there and loads with this torch."""
    spec = importlib.util.find_spec("mmcv")
    folders = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    return any(loads(EXTENSION, folder / "_ext") for folder in folders)


def _without_current_device(module: ModuleType) -> None:
    """mmcv's own ask for the current CUDA device before they call what is compiled."""
    module.__dict__.update(points_in_boxes_part=points_in_boxes_part, points_in_boxes_all=points_in_boxes_all)


def _take_spconv(module: ModuleType) -> None:
    if not is_installed("spconv"):
        return
    import spconv.pytorch

    module.__dict__.update({name: getattr(spconv.pytorch, name) for name in SPARSE if hasattr(spconv.pytorch, name)})


def _processes_without_cuda() -> None:
    """Where torchrun started processes without a GPU: they need no current device, and train on the CPU.

    The configuration says how they are connected: `env_cfg = dict(dist_cfg=dict(backend="gloo"))`.
    """
    if torch.cuda.is_available() or not are_distributed():
        return
    torch.cuda.set_device = lambda device: None
    after_import("mmengine.model.wrappers.distributed", _distributed_on_cpu)
    tell("there is no GPU: torch.cuda.set_device does nothing, and MMDistributedDataParallel trains on the CPU")


def _distributed_on_cpu(module: ModuleType) -> None:
    """Leave out the devices that mmengine's Runner tells its wrapper of."""
    wrapper: Any = module.__dict__["MMDistributedDataParallel"]
    build = wrapper.__init__

    @functools.wraps(build)
    def build_on_cpu(self: Any, module: Any, device_ids: Any = None, output_device: Any = None, **more: Any) -> None:
        build(self, module, **more)

    wrapper.__init__ = build_on_cpu


def _allow_logs_in_checkpoints(module: ModuleType) -> None:
    """Let `torch.load` read the log that mmengine's checkpoints hold."""
    torch.serialization.add_safe_globals(harmless_logs(module.__dict__["HistoryBuffer"]))
    tell("torch.load reads mmengine's log of numbers in checkpoints")
