"""What whole models do not do as torch modules, and what to use instead."""

from __future__ import annotations

import torch
from torch import nn

NO_EXPORT = (
    "torch.export cannot take a whole detector: how many voxels and groups there are depends on the points. Export "
    "parts that work on maps, such as `model.bev_backbone`, or run the detector as it is (torch.compile takes it)"
)


def check_not_exported() -> None:
    """Raises RuntimeError, with what to export instead, inside `torch.export`."""
    if torch.compiler.is_exporting():
        raise RuntimeError(NO_EXPORT)


def parameter_dtype(model: nn.Module) -> torch.dtype | None:
    """float64 where the parameters are, and None for float32, in which points come and autocast decides.

    Raises ValueError for parameters in half precision, in which metres are too coarse: at 40 m bfloat16 is good to a
    quarter of a metre.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"the parameters of this detector are {dtype}, in which positions in metres are too coarse: keep them in "
            "float32 (model.float()) and compute under torch.autocast(device, dtype), or train with "
            "train.precision=bf16 or fp16"
        )
    return dtype if dtype == torch.float64 else None
