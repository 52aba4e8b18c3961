import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autovla_rt.kernels import contour

quick = settings(deadline=None, max_examples=50)  # other work shares the machine
coordinate = st.floats(-100, 100)
pose = st.builds(lambda x, y, h: np.array([x, y, h]), coordinate, coordinate, st.floats(-3.1, 3.1))
poses = arrays(np.float64, (2, 3, 3), elements=st.floats(-3.1, 3.1))


def assert_same_pose(left, right):
    np.testing.assert_allclose(left[..., :2], right[..., :2], atol=1e-9)
    np.testing.assert_allclose(np.exp(1j * (left[..., 2] - right[..., 2])), 1, atol=1e-9)


def test_corners_of_a_box_at_the_origin_start_left_front_and_run_clockwise():
    np.testing.assert_allclose(
        contour.pose_to_corners(np.zeros(3)), [[2.4, 1], [2.4, -1], [-2.4, -1], [-2.4, 1]]
    )


def test_heading_is_counter_clockwise():
    corners = contour.pose_to_corners([10, 5, np.pi / 2])
    np.testing.assert_allclose(corners[0], [9, 7.4])  # left-front of a car that looks to +y


@quick
@given(poses)
def test_pose_survives_corners(poses):
    corners = contour.pose_to_corners(poses)
    assert corners.shape == (2, 3, 4, 2)
    assert_same_pose(contour.corners_to_pose(corners), poses)


@quick
@given(pose, pose)
def test_corners_move_rigidly_with_the_pose(motion, pose):
    moved = contour.pose_to_corners(contour.compose(motion, pose))
    expected = contour.transform(motion, contour.pose_to_corners(pose))
    np.testing.assert_allclose(moved, expected, atol=1e-9)


@quick
@given(pose, pose, pose)
def test_compose_is_associative(first, second, third):
    left = contour.compose(contour.compose(first, second), third)
    assert_same_pose(left, contour.compose(first, contour.compose(second, third)))


@quick
@given(pose)
def test_inverse_undoes_from_both_sides(pose):
    assert_same_pose(contour.compose(pose, contour.inverse(pose)), np.zeros(3))
    assert_same_pose(contour.compose(contour.inverse(pose), pose), np.zeros(3))


def test_compose_turns_the_second_step_into_the_frame_of_the_first():
    np.testing.assert_allclose(
        contour.compose([1, 2, np.pi / 2], [3, 0, 0.25]), [1, 5, np.pi / 2 + 0.25]
    )


@quick
@given(pose, arrays(np.float64, (5, 3), elements=st.floats(-3.1, 3.1)))
def test_one_pose_broadcasts_over_many(pose, many):
    assert_same_pose(
        contour.compose(pose, many), np.stack([contour.compose(pose, one) for one in many])
    )
    assert_same_pose(
        contour.compose(many, pose), np.stack([contour.compose(one, pose) for one in many])
    )


def test_headings_stay_within_pi():
    assert contour.compose([0, 0, 3], [0, 0, 3])[2] == pytest.approx(6 - 2 * np.pi)
    assert contour.inverse([0, 0, 4.0])[2] == pytest.approx(2 * np.pi - 4)


def test_corner_distances_are_euclidean_per_corner():
    corners = contour.pose_to_corners(np.zeros(3))
    np.testing.assert_allclose(
        contour.corner_distances(corners, corners + np.array([3, 4])), [5, 5, 5, 5]
    )


def test_roll_out_chains_from_the_origin():
    quarter_turn = contour.pose_to_corners([1, 0, np.pi / 2])
    np.testing.assert_allclose(
        contour.roll_out([quarter_turn] * 3),
        [[1, 0, np.pi / 2], [1, 1, np.pi], [0, 1, -np.pi / 2]],
        atol=1e-12,
    )


def test_follow_corrects_earlier_error_and_takes_the_first_of_equals():
    # Wanted: 0.6 m a step, available: 0 or 1 m. Rounding each step alone would go 1, 1, 1, 1.
    candidates = contour.pose_to_corners([[0, 0, 0], [1, 0, 0], [1, 0, 0]])
    wanted = [[0.6 * step, 0, 0] for step in (1, 2, 3, 4)]
    assert contour.follow(candidates, wanted).tolist() == [1, 0, 1, 0]


def test_follow_sums_corner_distances_so_that_heading_counts():
    # The second candidate's centre is exact but its nose is 1 rad off: about 2.4 m a corner.
    candidates = contour.pose_to_corners([[1, 1, 0], [1, 0, 1]])
    assert contour.follow(candidates, [[1, 0, 0]]).tolist() == [0]
