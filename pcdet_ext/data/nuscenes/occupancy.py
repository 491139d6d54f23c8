"""Occupancy of nuScenes as Occ3D labels it (Tian et al., NeurIPS 2023): SCENE/TOKEN/labels.npz."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pcdet_ext.data.raster import cell_centres
from pcdet_ext.evaluation.occupancy_rays import LOWER, SHAPE, VOXEL_SIZE
from pcdet_ext.files import DataError, MissingFileError, read_arrays
from pcdet_ext.scenes import NOT_COUNTED, Scope, cells_of
from pcdet_ext.structures import Array

FILE = "labels.npz"
LABELS = "semantics"
Mask = Literal["lidar", "camera"]


def read_labels(path: Path, mask: Mask | None = None) -> Array:
    """The labels of a frame, uint8 [200, 200, 16] in the frame of the vehicle, axes x, y, z.

    Args:
        path: the file.
        mask: of which sensor a cell must be seen to count; others become 255.

    Raises:
        DataError: the file is missing or damaged, or has other labels or shapes; the message names it.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; Occ3D has one for each key frame")
    names = [LABELS] if mask is None else [LABELS, f"mask_{mask}"]
    labels, *masks = read_arrays(path, *names)
    for name, values in zip(names, (labels, *masks), strict=True):
        if values.shape != SHAPE or values.dtype.kind not in "bui":
            raise DataError(f"{path}: {name} must be whole numbers {list(SHAPE)}, got {list(values.shape)}")
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) <= NOT_COUNTED:
        raise DataError(f"{path}: {LABELS} must lie in [0, {NOT_COUNTED}]")
    found: Array = labels.astype(np.uint8)
    return found if not masks else np.where(masks[0] != 0, found, np.uint8(NOT_COUNTED))


def resampled(labels: Array, back: Array, x: Scope, y: Scope) -> Array:
    """Labels on another grid of cells of the same height, 255 where it leaves the first one: uint8 [X, Y, 16].

    Args:
        labels: uint8 [200, 200, 16].
        back: float64 [4, 4], takes places in the frame of the new grid into that of the labels.
        x: the first axis of the new grid, metres.
        y: its second axis.
    """
    heights = (LOWER[2], LOWER[2] + SHAPE[2] * VOXEL_SIZE, VOXEL_SIZE)
    axes = [cell_centres(scope) for scope in (x, y, heights)]
    if not (back[:3, :3] - np.diag(np.diag(back[:3, :3]))).any():  # nothing is turned: each axis goes by itself
        return _by_axes(labels, back, axes)
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    index = np.floor((places @ back[:3, :3].T + back[:3, 3] - np.array(LOWER)) / VOXEL_SIZE).astype(np.int64)
    inside = ((index >= 0) & (index < np.array(SHAPE))).all(axis=-1)
    found = labels[tuple(np.moveaxis(np.where(inside[..., None], index, 0), -1, 0))]
    return np.where(inside, found, np.uint8(NOT_COUNTED))


def _by_axes(labels: Array, back: Array, axes: Sequence[Array]) -> Array:
    """As `resampled` for cells float64 [N] along each axis, of a matrix that mixes no axes."""
    index = [
        np.floor((back[i, i] * axis + back[i, 3] - LOWER[i]) / VOXEL_SIZE).astype(np.int64)
        for i, axis in enumerate(axes)
    ]
    inside = [(own >= 0) & (own < size) for own, size in zip(index, SHAPE, strict=True)]
    found = labels[np.ix_(*(np.where(good, own, 0) for good, own in zip(inside, index, strict=True)))]
    return np.where(np.logical_and.outer(np.logical_and.outer(inside[0], inside[1]), inside[2]), found, NOT_COUNTED)


def check_cells(x: Scope, y: Scope) -> None:
    """Raise ValueError for a grid whose cells are not of the size of Occ3D's, so that labels would not fit."""
    for name, scope in (("occupancy_x", x), ("occupancy_y", y)):
        cells_of(scope)
        if abs(scope[2] - VOXEL_SIZE) > 1e-6:
            raise ValueError(f"{name}: cells must be of {VOXEL_SIZE} m, as Occ3D's are, got {scope[2]:g}")
