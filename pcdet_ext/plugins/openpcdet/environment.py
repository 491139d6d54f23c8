"""OpenPCDet on current versions of its dependencies, without its build and without a GPU."""

from __future__ import annotations

import importlib.util
import sys
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pcdet_ext.data.text import read_lines
from pcdet_ext.plugins.imports import after_import, is_installed, is_provided, loads, provide_module, tell
from pcdet_ext.plugins.kitti_folder import as_kitti_writes
from pcdet_ext.plugins.openpcdet.compiled import MODULES, Point2VoxelCPU3d
from pcdet_ext.plugins.rotate_iou import provide_rotate_iou
from pcdet_ext.plugins.scatter import provide_torch_scatter
from pcdet_ext.plugins.surroundings import (
    allow_numpy_numbers_in_checkpoints,
    distributed_without_cuda,
    forked_workers,
    restore_numpy_aliases,
    stand_in_for_missing,
    without_cuda,
)

# Packages that OpenPCDet imports at once and needs for parts that most do not use.
OPTIONAL = {
    "SharedArray": "pip install SharedArray, for data sets in shared memory (USE_SHARED_MEMORY)",
    "kornia": "pip install kornia, for CaDDN and Argoverse 2",
    "torchvision": "pip install torchvision, for models with images",
    "av2": "pip install av2, for Argoverse 2",
}
ROTATE_IOU = "pcdet.datasets.kitti.kitti_object_eval_python.rotate_iou"
ARGOVERSE = "pcdet.datasets.argo2.argo2_dataset"
VERSION = "0.6.0"  # which OpenPCDet's setup.py writes, with the commit, into a file that a checkout lacks


def prepare() -> None:
    """Everything that lets an OpenPCDet checkout run unbuilt: `operations`, and what its age and a missing GPU ask for.

    Each change is made only where it is needed, and told in a line on standard error. Call it before `pcdet` is
    imported; `python -m pcdet_ext.plugins.openpcdet` does.
    """
    operations()
    restore_numpy_aliases()
    without_cuda()
    distributed_without_cuda()
    forked_workers()
    after_import("pcdet.utils.common_utils", _connect_without_cuda)
    after_import("pcdet.utils.commu_utils", _gather_without_cuda)
    after_import("train_utils.train_utils", _wait_for_the_last_checkpoint)
    after_import("pcdet.utils.object3d_kitti", _read_labels_as_kitti_has_them)
    allow_numpy_numbers_in_checkpoints()
    _without_argoverse()
    stand_in_for_missing(OPTIONAL)


def operations(replace: bool = False) -> None:
    """Let this library answer what OpenPCDet compiles, on the CPU and on GPUs, and the other native code it needs.

    These are `iou3d_nms_cuda`, `points_in_boxes_*` of `roiaware_pool3d_cuda`, `ingroup_inds_cuda`, the KITTI
    evaluation's `rotate_iou_gpu_eval`, spconv's CPU voxelizer (under NumPy 2, where it ends the process) and
    `torch_scatter`. Other compiled functions raise when they are called.

    Args:
        replace: answer modules that are compiled and could be used, too.

    Raises:
        RuntimeError: OpenPCDet's operations are imported already, so that it is too late.
    """
    _answer_modules(replace)
    provide_rotate_iou(ROTATE_IOU, replace)
    if int(np.__version__.partition(".")[0]) >= 2 or replace:
        after_import("spconv.utils", _replace_voxelizer)
        after_import("pcdet.datasets.processor.data_processor", _replace_tensor_view)
    provide_torch_scatter()
    _answer_version()


def _answer_modules(replace: bool) -> None:
    """Answer compiled modules that cannot be used: not built, built for another torch, or only for a missing GPU."""
    names = [name for name in MODULES if not is_provided(name) and (replace or not _works(name))]
    late = [name for name in names if name in sys.modules or name.rpartition(".")[0] in sys.modules]
    if late:
        raise RuntimeError(f"{late[0]} is imported already: call operations() before anything imports pcdet.ops")
    for name in names:
        provide_module(name, MODULES[name])
    if names:
        tell(f"compiled modules answered by pcdet_ext: {', '.join(n.rpartition('.')[2] for n in names)}")


def _works(name: str) -> bool:
    """Whether a compiled module is there, loads with this torch, and finds the GPU that it was made for."""
    folder = package_folder()
    if folder is None or not torch.cuda.is_available():
        return False
    return loads(name, folder.joinpath(*name.split(".")[1:]))


def package_folder() -> Path | None:
    """The folder of OpenPCDet's package, or None where Python does not find it."""
    spec = importlib.util.find_spec("pcdet")
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def _answer_version() -> None:
    folder = package_folder()
    if folder is not None and not (folder / "version.py").is_file():
        tell(f"pcdet/version.py, which OpenPCDet's build writes, is missing: {VERSION} is assumed")
        provide_module("pcdet.version", {"__version__": VERSION})


def _connect_without_cuda(module: ModuleType) -> None:
    """Without a GPU, `init_dist_pytorch` connects its processes by gloo; it returns their number and this one's."""
    if torch.cuda.is_available():
        return

    def init_dist_pytorch(tcp_port: int, local_rank: int, backend: str = "gloo") -> tuple[int, int]:
        del tcp_port, local_rank, backend
        dist.init_process_group(backend="gloo")
        return dist.get_world_size(), dist.get_rank()

    module.__dict__["init_dist_pytorch"] = init_dist_pytorch


def _gather_without_cuda(module: ModuleType) -> None:
    """Without a GPU, `all_gather` collects the objects of all processes by way of the CPU."""
    if torch.cuda.is_available():
        return

    def all_gather(data: Any) -> list[Any]:
        found = [data] * int(module.get_world_size())
        if len(found) > 1:
            dist.all_gather_object(found, data)
        return found

    module.__dict__["all_gather"] = all_gather


def _wait_for_the_last_checkpoint(module: ModuleType) -> None:
    """After training, processes wait for the one that writes the last checkpoint, which all of them read next."""
    train_model = module.__dict__["train_model"]

    @wraps(train_model)
    def then_wait(*arguments: Any, **options: Any) -> Any:
        result = train_model(*arguments, **options)
        if dist.is_initialized():
            tell("processes wait for the last checkpoint before they evaluate it")
            dist.barrier()
        return result

    module.__dict__["train_model"] = then_wait


def _read_labels_as_kitti_has_them(module: ModuleType) -> None:
    """Label files without a row, or with rows DontCare between others, are read as if KITTI had written them."""

    def get_objects_from_label(label_file: str | Path) -> list[Any]:
        rows = read_lines(label_file)
        ordered = as_kitti_writes(rows)
        if ordered != rows:
            tell("label files without a row get one DontCare, and rows DontCare come last, as OpenPCDet needs it")
        return [module.Object3d(row) for row in ordered]

    module.__dict__["get_objects_from_label"] = get_objects_from_label


def _without_argoverse() -> None:
    """Argoverse 2 needs packages whose functions torch.jit compiles at import, so its data set as a whole stands in."""
    if not (is_installed("kornia") and is_installed("av2")):
        provide_module(ARGOVERSE, {})
        tell("the data set Argo2Dataset is left out: it needs av2 and kornia")


def _replace_voxelizer(module: ModuleType) -> None:
    module.__dict__["Point2VoxelCPU3d"] = Point2VoxelCPU3d
    tell("spconv.utils.Point2VoxelCPU3d, which ends the process under NumPy 2, is answered by pcdet_ext's voxelize")


class _TensorView:
    """The one function of `cumm.tensorview` that OpenPCDet calls, for the voxelizer in place of spconv's."""

    @staticmethod
    def from_numpy(array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))


def _replace_tensor_view(module: ModuleType) -> None:
    module.__dict__["tv"] = _TensorView
