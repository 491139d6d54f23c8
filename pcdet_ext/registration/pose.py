"""The pose between two clouds from points that correspond, by Open3D's RANSAC, and how wrong it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pcdet_ext.models.registration import RegistrationNetwork, mutual_nearest
from pcdet_ext.structures import Array, PointBatch

ITERATIONS, CONFIDENCE = 50_000, 0.999  # of RANSAC
SMALLEST_SAMPLE = 3  # points that a pose needs


class Describer(Protocol):
    """Gives points of a cloud [N, 3+], and a descriptor for each: float32 [M, 3] and [M, D]."""

    def __call__(self, points: Array) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class PoseError:
    """How far a pose is from the right one: `rotation` in degrees, `translation` in metres."""

    rotation: float
    translation: float

    def within(self, rotation: float = 5.0, translation: float = 2.0) -> bool:
        """Whether it counts as found: the limits are those of KITTI in FCGF (Choy et al., ICCV 2019)."""
        return self.rotation < rotation and self.translation < translation


@dataclass(frozen=True)
class NetworkDescriber:
    """Descriptors of a network, of the mean points of its voxels."""

    network: RegistrationNetwork

    @torch.no_grad()
    def __call__(self, points: Array) -> tuple[Tensor, Tensor]:
        """See `Describer`."""
        device = self.network.embed.weight.device
        cloud = torch.as_tensor(points[:, :3], dtype=torch.float32, device=device)
        found = self.network.eval()(PointBatch.from_points([cloud]))
        return found.points, found.descriptors


@dataclass(frozen=True)
class FPFH:
    """Fast point feature histograms (Rusu et al., ICRA 2009) by Open3D, of the mean points of voxels.

    Normals are those of the 30 nearest points within two voxels, histograms are over the 100 nearest within five, as in
    Open3D's example of global registration.
    """

    voxel_size: float = 0.5

    def __call__(self, points: Array) -> tuple[Tensor, Tensor]:
        """See `Describer`. Raises ImportError without Open3D."""
        o3d = open3d()
        cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points[:, :3].astype(np.float64)))
        cloud = cloud.voxel_down_sample(self.voxel_size)
        near = o3d.geometry.KDTreeSearchParamHybrid
        cloud.estimate_normals(near(radius=2 * self.voxel_size, max_nn=30))
        cloud.orient_normals_towards_camera_location()
        around = near(radius=5 * self.voxel_size, max_nn=100)
        found = o3d.pipelines.registration.compute_fpfh_feature(cloud, around)
        rows = torch.from_numpy(np.asarray(found.data).T.astype(np.float32))
        return torch.from_numpy(np.asarray(cloud.points).astype(np.float32)), rows


def open3d() -> ModuleType:
    """Open3D. Raises ImportError that says what to install where it cannot be loaded."""
    try:
        import open3d as library
    except (ImportError, OSError) as error:
        raise ImportError(
            f"registration finds poses with Open3D, which cannot be loaded ({error}): pip install 'pcdet_ext[vis]'"
        ) from error
    return library


def register(source: Array, target: Array, describe: Describer, distance: float) -> Array:
    """The pose float64 [4, 4] that brings a cloud into the frame of another one.

    Points whose descriptors are nearest to each other correspond, and RANSAC finds the pose that brings most of them
    together (`pose_of_matches`).

    Args:
        source: points [N, 3+] of a cloud, metres.
        target: points [M, 3+] of the other.
        describe: what gives points and descriptors.
        distance: metres that two corresponding points may be apart.

    Raises:
        ImportError: without Open3D.
    """
    here, there = describe(source), describe(target)
    rows, partners = mutual_nearest(here[1], there[1])
    return pose_of_matches(here[0][rows].cpu().numpy(), there[0][partners].cpu().numpy(), distance)


def pose_of_matches(source: Array, target: Array, distance: float, seed: int = 0) -> Array:
    """The pose that brings most points near their partners.

    RANSAC over samples of three pairs whose edges are of similar length, refined on all pairs that fit (Open3D).

    Args:
        source: [K, 3], points in metres.
        target: [K, 3], their partners.
        distance: metres within which a pair fits.
        seed: of the samples.

    Returns:
        float64 [4, 4], source to target; the identity for fewer than three pairs.

    Raises:
        ImportError: Open3D is not installed.
    """
    o3d = open3d()
    if len(source) < SMALLEST_SAMPLE:
        return np.eye(4)
    o3d.utility.random.seed(seed)
    clouds = [o3d.geometry.PointCloud(o3d.utility.Vector3dVector(p.astype(np.float64))) for p in (source, target)]
    pairs = o3d.utility.Vector2iVector(np.tile(np.arange(len(source), dtype=np.int32)[:, None], 2))
    registration = o3d.pipelines.registration
    found = registration.registration_ransac_based_on_correspondence(
        *clouds,
        pairs,
        distance,
        registration.TransformationEstimationPointToPoint(False),
        SMALLEST_SAMPLE,
        [
            registration.CorrespondenceCheckerBasedOnEdgeLength(0.9),
            registration.CorrespondenceCheckerBasedOnDistance(distance),
        ],
        registration.RANSACConvergenceCriteria(ITERATIONS, CONFIDENCE),
    )
    return np.array(found.transformation, np.float64)


def pose_error(found: Array, right: Array) -> PoseError:
    """How far a pose [4, 4] is from the right one: the angle of the turn between them, and their distance."""
    turn = found[:3, :3].T @ right[:3, :3]
    cosine = float(np.clip((np.trace(turn) - 1) / 2, -1.0, 1.0))
    return PoseError(math.degrees(math.acos(cosine)), float(np.linalg.norm(found[:3, 3] - right[:3, 3])))
