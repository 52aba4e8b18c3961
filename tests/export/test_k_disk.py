import numpy as np
import pytest

from autovla_rt.errors import CodebookError
from autovla_rt.export.k_disk import disk_means, disk_members, k_disk
from autovla_rt.kernels import contour


def driving_segments(count, seed=0):
    """Draw urban-like steps: speeds with a peak at standstill, turns that grow with speed."""
    rng = np.random.default_rng(seed)
    forward = np.abs(rng.normal(0, 4, count)) * (rng.random(count) > 0.2)
    turn = rng.normal(0, 0.03, count) * forward
    steps = np.stack([forward, forward * turn / 2, turn], axis=-1)
    return contour.pose_to_corners(np.concatenate([np.zeros((1, 3)), steps]))


SEGMENTS = driving_segments(3000)


def plain_k_disk(segments, num_disks, tolerance, seed):
    """The definition, every distance computed."""
    draws = np.random.default_rng(seed).permutation(len(segments) - 1) + 1
    remaining = np.ones(len(segments), bool)
    means = []
    for drawn in [0, *draws]:
        if remaining[drawn] and len(means) < num_disks:
            distance = np.linalg.norm(segments - segments[drawn], axis=-1).mean(axis=-1)
            taken = remaining & (distance <= tolerance)
            means.append(segments[taken].mean(axis=0))
            remaining &= ~taken
    return np.array(means)


@pytest.mark.parametrize("tolerance", [0.05, 0.2])
def test_looking_only_at_close_x_changes_nothing(tolerance):
    np.testing.assert_allclose(
        k_disk(SEGMENTS, 60, tolerance, 3), plain_k_disk(SEGMENTS, 60, tolerance, 3), atol=1e-6
    )


def test_disks_are_disjoint_and_within_tolerance_of_their_draw():
    members = disk_members(SEGMENTS, 100, 0.1, 0)
    taken = np.concatenate(members)
    assert len(set(taken.tolist())) == len(taken)
    for disk in members:
        to_each = contour.corner_distances(SEGMENTS[disk, None], SEGMENTS[disk]).mean(axis=-1)
        assert (to_each <= 0.1 + 1e-9).all(axis=1).any()  # some member is the draw


def test_a_disk_takes_every_remaining_sample_in_reach():
    first = disk_members(SEGMENTS, 100, 0.1, 0)[0]
    in_reach = contour.corner_distances(SEGMENTS, SEGMENTS[0]).mean(axis=-1) <= 0.1
    np.testing.assert_array_equal(first, np.flatnonzero(in_reach))


def test_the_first_disk_is_the_mean_around_sample_zero():
    disks = k_disk(SEGMENTS, 5, 0.05, 11)
    near = contour.corner_distances(SEGMENTS, SEGMENTS[0]).mean(axis=-1) <= 0.05
    assert near.sum() > 1
    np.testing.assert_allclose(disks[0], SEGMENTS[near].mean(axis=0), atol=1e-6)


def test_a_sample_exactly_at_the_tolerance_belongs_to_the_disk():
    segments = contour.pose_to_corners([[0, 0, 0], [0.25, 0, 0], [0, -0.25, 0], [0.26, 0, 0]])
    assert [disk.tolist() for disk in disk_members(segments, 2, 0.25, 0)] == [[0, 1, 2], [3]]


def test_means_are_float32_contours_in_the_order_drawn():
    members = disk_members(SEGMENTS, 20, 0.05, 0)
    disks = k_disk(SEGMENTS, 20, 0.05, 0)
    assert disks.dtype == np.float32
    assert disks.shape == (20, 4, 2)
    np.testing.assert_array_equal(disks, disk_means(SEGMENTS, members))


def test_the_seed_decides_the_draws_and_nothing_else_does():
    first = k_disk(SEGMENTS, 100, 0.05, 5)
    np.testing.assert_array_equal(first, k_disk(SEGMENTS.copy(), 100, 0.05, 5))
    assert not np.array_equal(first, k_disk(SEGMENTS, 100, 0.05, 6))


def test_dense_driving_is_drawn_more_often():
    """Draws are uniform over samples, so the second draw falls mostly where most samples are."""
    dense, sparse = np.zeros((90, 3)), np.zeros((10, 3))
    dense[:, 0], sparse[:, 0] = 5, 10
    segments = contour.pose_to_corners(np.concatenate([np.zeros((1, 3)), sparse, dense]))
    second = [k_disk(segments, 2, 0.05, seed)[1].mean(axis=0)[0] for seed in range(100)]
    assert 80 <= np.isclose(second, 5).sum() <= 98


@pytest.mark.parametrize("count", [1, 4])
def test_running_out_of_samples_tells_how_far_it_came(count):
    segments = contour.pose_to_corners([[step, 0, 0] for step in range(count)])
    assert len(k_disk(segments, count, 0.05, 0)) == count
    with pytest.raises(CodebookError, match=rf"(?s)after {count} disks.*2048.*more scenes"):
        k_disk(segments, 2048, 0.05, 0)


def test_no_samples_give_no_disk():
    with pytest.raises(CodebookError, match="after 0 disks"):
        k_disk(np.zeros((0, 4, 2)), 1, 0.05, 0)


@pytest.mark.parametrize(("num_disks", "tolerance"), [(0, 0.05), (5, 0), (5, -1), (5, np.nan)])
def test_senseless_settings_are_refused(num_disks, tolerance):
    with pytest.raises(CodebookError, match="at least 1 disk"):
        k_disk(SEGMENTS, num_disks, tolerance, 0)
