"""Rigid motions and boxes seen from above, against SciPy's rotations and shapely's polygons of the same boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pcdet_ext.rigid import check_rigid, from_box_frames, is_rigid, rigid_motion, upright_rotation

ANGLES = st.floats(-10, 10)


@given(angles=st.tuples(ANGLES, ANGLES, ANGLES), place=st.tuples(*[st.floats(-1e6, 1e6)] * 3))
def test_motions_of_rotations_are_rigid(angles: tuple[float, ...], place: tuple[float, ...]) -> None:
    rotation = Rotation.from_euler("zyx", angles)
    motion = rigid_motion(rotation.as_matrix(), np.array(place))
    np.testing.assert_array_equal(check_rigid(motion.astype(np.float32)).shape, (4, 4))
    point = np.array([1.0, -2.0, 3.0])
    np.testing.assert_allclose((motion @ [*point, 1])[:3], rotation.apply(point) + place, atol=1e-6)


def test_many_motions_at_once() -> None:
    rotations = Rotation.from_rotvec(np.random.default_rng(0).normal(size=(5, 3))).as_matrix()
    motions = rigid_motion(rotations, np.arange(15.0).reshape(5, 3))
    for motion, rotation, place in zip(motions, rotations, np.arange(15.0).reshape(5, 3), strict=True):
        np.testing.assert_array_equal(motion, rigid_motion(rotation, place))
    assert rigid_motion(np.zeros((0, 3, 3)), np.zeros((0, 3))).shape == (0, 4, 4)


@given(angle=ANGLES)
def test_upright_rotations(angle: float) -> None:
    np.testing.assert_allclose(upright_rotation(angle), Rotation.from_euler("z", angle).as_matrix(), atol=1e-12)


WRONG = {
    "reflection": np.diag([1.0, -1, 1, 1]),
    "scaled": np.diag([1.1, 1.1, 1.1, 1]),
    "zeros": np.zeros((4, 4)),
    "projective": np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]),
    "infinite place": rigid_motion(np.eye(3), np.array([np.inf, 0, 0])),
    "NaN": np.full((4, 4), np.nan),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_rigid_motion(name: str) -> None:
    assert not is_rigid(WRONG[name])
    with pytest.raises(ValueError, match="pose must be a rotation and a translation"):
        check_rigid(WRONG[name])


@pytest.mark.parametrize("pose", [None, "x", [[1, 2], [3]], object(), 1j * np.eye(4), [[10**400] * 4] * 4])
def test_what_is_no_matrix(pose: object) -> None:
    with pytest.raises(ValueError, match=r"pose must be a matrix \[4, 4\]"):
        check_rigid(pose)


def test_the_last_row_is_made_exact_and_the_argument_stays() -> None:
    given_pose = np.eye(4)
    given_pose[3] = 1e-9, 0, 0, 1.000009
    assert check_rigid(given_pose)[3].tolist() == [0, 0, 0, 1]
    assert given_pose[3, 0] == 1e-9


def test_the_corners_of_boxes() -> None:
    shapely = pytest.importorskip("shapely")
    affinity = pytest.importorskip("shapely.affinity")
    boxes = np.random.default_rng(1).uniform(0.5, 6, (20, 7))
    corners = from_box_frames(np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)]), boxes)
    front = from_box_frames(np.array([(1, 0)]), boxes)[:, 0]
    for box, found, nose in zip(boxes, corners, front, strict=True):
        upright = shapely.box(box[0] - box[3] / 2, box[1] - box[4] / 2, box[0] + box[3] / 2, box[1] + box[4] / 2)
        turned = affinity.rotate(upright, box[6], origin="center", use_radians=True)
        assert shapely.Polygon(found).symmetric_difference(turned).area < 1e-9
        np.testing.assert_allclose(nose - box[:2], box[3] / 2 * np.array([np.cos(box[6]), np.sin(box[6])]))
    assert from_box_frames(np.ones((4, 2)), np.zeros((0, 7))).shape == (0, 4, 2)
