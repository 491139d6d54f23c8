"""Voxelisation of OpenPCDet."""

from __future__ import annotations

from pcdet_ext.conformance.golden import Case, Values, runs
from pcdet_ext.ops import voxelize


@runs("openpcdet", "voxelize_hard")
def hard_voxels(case: Case, grads: bool) -> Values:
    """Voxels with caps on points and on voxels, in order of first appearance."""
    names = ("point_cloud_range", "voxel_size", "max_num_points_per_voxel", "max_num_voxels")
    voxels, coords, counts = voxelize(case.tensor("in.points"), *(case.config[name] for name in names))
    return {"out.voxels": voxels, "out.voxel_coords": coords, "out.voxel_num_points": counts}
