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
from pcdet_ext.registration.checks import check_cloud, check_count, check_length
from pcdet_ext.registration.ground import GROUND, above_ground
from pcdet_ext.structures import Array, PointBatch

ITERATIONS, CONFIDENCE = (
    100_000,
    1.0,
)  # of RANSAC, which does not stop early: of repeated houses the first fit may be wrong
ROTATION, TRANSLATION = 5.0, 2.0  # degrees and metres within which a pose is right, as on KITTI in FCGF
MATCH_DISTANCE = 2.0  # voxels that corresponding points may be apart, where nothing else is said
FPFH_SIZE = 33  # three histograms of 11 bins
VOXELS_ALONG = 2**31 - 1  # voxels along an axis that Open3D can number
SMALLEST_SAMPLE = 3  # points that a pose needs
FEWEST_INLIERS = 30  # of a pose that counts as found, where nothing else is said


class Describer(Protocol):
    """Gives points of a cloud [N, 3+], and a descriptor for each: float32 [M, 3] and [M, D]."""

    def __call__(self, points: Array) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class PoseError:
    """How far a pose is from the right one: `rotation` in degrees, `translation` in metres."""

    rotation: float
    translation: float

    def within(self, rotation: float = ROTATION, translation: float = TRANSLATION) -> bool:
        """Whether it counts as found: the limits are those of KITTI in FCGF (Choy et al., ICCV 2019)."""
        return self.rotation < rotation and self.translation < translation


@dataclass(frozen=True, eq=False)
class Registration:
    """How one cloud lies in the frame of another one.

    pose: float64 [4, 4], source to target, None where too few correspondences agree on one; inliers: how many of them
    that pose (or the best one, where it has too few) brings together; matches: how many correspondences there were.
    """

    pose: Array | None
    inliers: int
    matches: int

    def error(self, right: Array) -> PoseError:
        """How far the pose is from the right one [4, 4]; infinitely far where none was found."""
        return PoseError(math.inf, math.inf) if self.pose is None else pose_error(self.pose, right)


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

    Args:
        voxel_size: edge of the voxels in metres.

    Raises:
        TypeError: the edge is no number.
        ValueError: it is not finite and above 0.
    """

    voxel_size: float = 0.5

    def __post_init__(self) -> None:
        check_length(self.voxel_size, "voxel_size")

    def __call__(self, points: Array) -> tuple[Tensor, Tensor]:
        """See `Describer`. Raises ImportError without Open3D, ValueError for voxels too small for the extent."""
        o3d = open3d()
        if not len(points):
            return torch.zeros(0, 3), torch.zeros(0, FPFH_SIZE)
        extent = float(np.ptp(points[:, :3].astype(np.float64), axis=0).max())
        if not extent / self.voxel_size < VOXELS_ALONG:
            raise ValueError(f"voxel_size: a cloud {extent:g} m wide has too many voxels of {self.voxel_size:g} m")
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


def register(
    source: Array,
    target: Array,
    describe: Describer,
    distance: float,
    ground: float | None = GROUND,
    min_inliers: int = FEWEST_INLIERS,
) -> Registration:
    """The pose that brings a cloud into the frame of another one, where one is found.

    Points whose descriptors are nearest to each other correspond, and RANSAC finds the pose that brings most of them
    together (`pose_of_matches`). Points on the ground are left out: they look alike everywhere, and a pose that slides
    one cloud along the street over the other brings them together as well as the right one.

    Args:
        source: array [N, 3+], the points of a cloud in metres, z upwards. In a cloud without points nothing is found.
        target: [M, 3+], the points of the other.
        describe: what gives points and descriptors.
        distance: metres that two corresponding points may be apart.
        ground: metres above the lowest points around up to which a point is on the ground; None keeps all points.
        min_inliers: how many correspondences a pose has to bring together to count as found.

    Raises:
        ImportError: without Open3D.
        TypeError: a cloud is no NumPy array of real numbers, `describe` cannot be called, `distance` or `ground` is no
            number, `min_inliers` no whole number.
        ValueError: a cloud is not [N, 3+], has NaN or infinite points, or some over 10,000 km from the origin;
            `distance` is not above 0 or not finite, `ground` is below 0 or not finite, `min_inliers` is below three.
    """
    check_cloud(source, "source")
    check_cloud(target, "target")
    if not callable(describe):
        raise TypeError(f"describe must be called with points, as FPFH() can be, got {describe!r}")
    if ground is not None:
        check_length(ground, "ground", zero=True)
    _check_limits(distance, min_inliers)
    (here, near), (there, far) = (_standing(cloud, describe, ground) for cloud in (source, target))
    rows, partners = mutual_nearest(near, far)
    ends = here[rows].cpu().numpy(), there[partners].cpu().numpy()
    return pose_of_matches(*ends, distance, min_inliers=min_inliers)


def _check_limits(distance: float, min_inliers: int) -> None:
    check_length(distance, "distance")
    check_count(min_inliers, "min_inliers", SMALLEST_SAMPLE)


def _standing(cloud: Array, describe: Describer, ground: float | None) -> tuple[Tensor, Tensor]:
    """Points and descriptors of what stands above the ground, or of everything."""
    points, descriptors = describe(cloud)
    if ground is None:
        return points, descriptors
    kept = torch.from_numpy(above_ground(points.cpu().numpy(), cloud, ground)).to(points.device)
    return points[kept], descriptors[kept]


def pose_of_matches(
    source: Array, target: Array, distance: float, seed: int = 0, min_inliers: int = FEWEST_INLIERS
) -> Registration:
    """The pose that brings most points near their partners.

    RANSAC over samples of three pairs whose edges are of similar length, refined on all pairs that fit (Open3D). Three
    pairs nearly always fit some pose, so that one which brings only a few together says nothing.

    Args:
        source: [K, 3], points in metres.
        target: [K, 3], their partners.
        distance: metres within which a pair fits.
        seed: of the samples.
        min_inliers: how many pairs have to fit for a pose to count as found.

    Raises:
        ImportError: Open3D is not installed.
        TypeError: for what is no array of real numbers, a distance that is no number, inliers that are no whole number.
        ValueError: for other shapes, points that are not finite, source and target of different lengths, a distance
            that is not above 0 and finite, and fewer than three inliers.
    """
    check_cloud(source, "source")
    check_cloud(target, "target")
    if len(source) != len(target):
        raise ValueError(f"source and target must have as many points, got {len(source)} and {len(target)}")
    _check_limits(distance, min_inliers)
    o3d = open3d()
    if len(source) < SMALLEST_SAMPLE:
        return Registration(None, 0, len(source))
    o3d.utility.random.seed(seed)
    clouds = [
        o3d.geometry.PointCloud(o3d.utility.Vector3dVector(p[:, :3].astype(np.float64))) for p in (source, target)
    ]
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
    inliers = len(found.correspondence_set)
    pose = np.array(found.transformation, np.float64) if inliers >= min_inliers else None
    return Registration(pose, inliers, len(source))


def pose_error(found: Array, right: Array) -> PoseError:
    """How far a pose [4, 4] is from the right one: the angle of the turn between them, and their distance."""
    turn = found[:3, :3].T @ right[:3, :3]
    cosine = float(np.clip((np.trace(turn) - 1) / 2, -1.0, 1.0))
    return PoseError(math.degrees(math.acos(cosine)), float(np.linalg.norm(found[:3, 3] - right[:3, 3])))
