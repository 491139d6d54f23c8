"""A map on another grid: each cell of the new one reads the old one at its centre."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BEVGridTransform(nn.Module):
    """Reads a map at the cell centres of another grid by bilinear interpolation, 0 outside (UniLION; BEVFusion).

    Args:
        input_scope: (minimum, maximum, cell size) of the rows and of the columns of the map that comes, in metres.
        output_scope: the same of the map that is wanted.
        prescale_factor: by which the map is enlarged (bilinearly) before it is read.

    Raises:
        ValueError: a scope is empty.
    """

    def __init__(
        self,
        input_scope: Sequence[Sequence[float]],
        output_scope: Sequence[Sequence[float]],
        prescale_factor: float = 1.0,
    ) -> None:
        super().__init__()
        if len(input_scope) != 2 or len(output_scope) != 2:
            raise ValueError("input_scope and output_scope need two axes each, rows and columns")
        for read, wanted in zip(input_scope, output_scope, strict=True):
            _check_scope(read, wanted)
        self.scopes = list(zip(input_scope, output_scope, strict=True))
        self.prescale_factor = prescale_factor

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, rows, columns] to [B, C, new rows, new columns]."""
        if self.prescale_factor != 1:
            x = F.interpolate(x, scale_factor=self.prescale_factor, mode="bilinear", align_corners=False)
        dtype = torch.promote_types(x.dtype, torch.float32)  # places in half precision are too coarse
        rows, columns = (_normalised(*scopes).to(x.device, dtype) for scopes in self.scopes)
        row, column = torch.meshgrid(rows, columns, indexing="ij")
        grid = torch.stack([column, row], -1).expand(len(x), -1, -1, -1)
        found = F.grid_sample(x.to(dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return found.to(x.dtype)


def _normalised(read: Sequence[float], wanted: Sequence[float]) -> Tensor:
    """Centres of the wanted cells along one axis, -1 and 1 being the ends of the map that is read."""
    low, high, step = wanted
    centres = torch.arange(low + step / 2, high, step, dtype=torch.float32, device="cpu")
    return (centres - read[0]) / (read[1] - read[0]) * 2 - 1


def _check_scope(read: Sequence[float], wanted: Sequence[float]) -> None:
    if len(wanted) != 3 or len(read) < 2 or not (wanted[2] > 0 and wanted[1] > wanted[0] and read[1] > read[0]):
        raise ValueError(
            "a scope needs a minimum below its maximum, and a wanted one a positive step, got "
            f"{list(read)} and {list(wanted)}"
        )
