import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from autovla_rt.errors import CodebookError, InputError
from autovla_rt.kernels import contour
from autovla_rt.runtime.actions import Codebook

RNG = np.random.default_rng(7)
quick = settings(deadline=None, max_examples=40)  # other work shares the machine


def steps_on_a_grid():
    """Steps within the official ranges, at least 0.4 m or 0.25 rad apart."""
    dx, dy, turn = np.meshgrid(
        np.arange(-7, 15.7, 0.75), np.arange(-4.7, 1.8, 0.8), np.arange(-1, 1.1, 0.5)
    )
    return np.stack([dx.ravel(), dy.ravel(), turn.ravel()], axis=-1)


STEPS = RNG.permutation(steps_on_a_grid())
CODEBOOK = Codebook(contour.pose_to_corners(STEPS).astype(np.float32))
indices = st.lists(st.integers(0, len(STEPS) - 1), max_size=10).map(lambda i: np.array(i, int))


@quick
@given(indices)
def test_decoded_actions_encode_to_themselves(actions):
    assert CODEBOOK.encode(CODEBOOK.decode(actions)).tolist() == actions.tolist()


@quick
@given(indices)
def test_decode_composes_the_steps(actions):
    pose = np.zeros(3)
    for index, reached in zip(actions, CODEBOOK.decode(actions), strict=True):
        pose = contour.compose(pose, STEPS[index])
        assert np.hypot(*(reached - pose)[:2]) < 2e-5
        assert abs(np.angle(np.exp(1j * (reached - pose)[2]))) < 2e-5


@quick
@given(indices, indices)
def test_decode_goes_on_where_the_first_part_ended(first, second):
    """Moving the start moves the whole trajectory rigidly."""
    whole = CODEBOOK.decode(np.concatenate([first, second]))
    start = whole[len(first) - 1] if len(first) else np.zeros(3)
    expected = contour.compose(start, CODEBOOK.decode(second))
    np.testing.assert_allclose(
        contour.pose_to_corners(whole[len(first) :]), contour.pose_to_corners(expected), atol=1e-9
    )


def drive(speed, turn, seed):
    noise = np.random.default_rng(seed).normal(0, 0.1, (10, 3))
    return contour.roll_out(contour.pose_to_corners(noise + np.array([speed, 0, turn])))


smooth_driving = st.builds(drive, st.floats(0, 15), st.floats(-0.3, 0.3), st.integers(0, 2**32))


@quick
@given(smooth_driving, st.integers(1, 9))
def test_encoding_the_rest_from_where_the_actions_led_gives_the_rest(trajectory, cut):
    """Encode sees the wanted poses relative to its own state alone: rigid motion invariance."""
    actions = CODEBOOK.encode(trajectory)
    reached = CODEBOOK.decode(actions[:cut])[-1]
    seen_from_there = contour.compose(contour.inverse(reached), trajectory[cut:])
    assert CODEBOOK.encode(seen_from_there).tolist() == actions[cut:].tolist()


@quick
@given(smooth_driving)
def test_encode_is_the_greedy_argmin_of_summed_corner_distances(trajectory):
    """The definition, written out in the world frame."""
    state, expected = np.zeros(3), []
    for wanted in contour.pose_to_corners(trajectory):
        reached = contour.transform(state, CODEBOOK.corners.reshape(-1, 2)).reshape(-1, 4, 2)
        costs = np.linalg.norm(reached - wanted, axis=-1).sum(axis=-1)
        expected.append(int(np.argmin(costs)))
        state = contour.corners_to_pose(reached[expected[-1]])
    assert CODEBOOK.encode(trajectory).tolist() == expected


def test_encode_takes_the_first_of_equal_entries():
    twice = Codebook(np.concatenate([CODEBOOK.corners[:3], CODEBOOK.corners[:3]]))
    assert twice.encode(twice.decode(np.array([5, 3, 4]))).tolist() == [2, 0, 1]


def test_no_actions_make_an_empty_trajectory():
    trajectory = CODEBOOK.decode(np.array([], np.int64))
    assert trajectory.shape == (0, 3)
    assert CODEBOOK.encode(trajectory).shape == (0,)


@pytest.mark.parametrize("index", [-1, len(STEPS), 151665])
def test_index_outside_the_codebook_is_refused_not_clamped(index):
    with pytest.raises(CodebookError, match=f"index {index} at step 1 .*0..{len(STEPS) - 1}"):
        CODEBOOK.decode(np.array([0, index]))


@pytest.mark.parametrize("actions", [np.array([0.0]), np.array([True]), np.array([[0]])])
def test_only_a_row_of_integers_is_decoded(actions):
    with pytest.raises(CodebookError, match="Expected action indices"):
        CODEBOOK.decode(actions)


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (np.zeros((10, 2)), r"\[10, 2\]"),
        (np.zeros(3), r"\[3\]"),
        (np.array([[0, 0, 0], [0, np.nan, 0]]), "step 1"),
        (np.array([[np.inf, 0, 0]]), "step 0"),
    ],
)
def test_unusable_trajectory_is_refused(trajectory, message):
    with pytest.raises(InputError, match=message):
        CODEBOOK.encode(trajectory)


def test_codebook_cannot_be_changed():
    source = CODEBOOK.corners.copy()
    codebook = Codebook(source)
    source[:] = 0
    assert codebook.corners.any()
    with pytest.raises(ValueError, match="read-only"):
        codebook.corners[0] = 0


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "codebook.safetensors"
    save_file({"corners": CODEBOOK.corners}, path, {"format_version": "1"})
    return path


def test_load_reads_what_was_saved(path):
    codebook = Codebook.load(path, len(STEPS))
    assert codebook.num_actions == len(STEPS)
    np.testing.assert_array_equal(codebook.corners, CODEBOOK.corners)


def test_load_refuses_another_length_and_names_both(path):
    for num_actions in (2048, len(STEPS) - 1, 1):
        message = rf"codebook\.safetensors.*has {num_actions} action.*has {len(STEPS)} entries"
        with pytest.raises(CodebookError, match=message):
            Codebook.load(path, num_actions)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"corners": np.zeros((2, 4, 2))}, r"float32 \[N, 4, 2\], got F64 \[2, 4, 2\]"),
        ({"corners": np.zeros((2, 4, 2), np.float16)}, "F16"),
        ({"corners": np.zeros((2, 2, 4), np.float32)}, r"got float32 \[2, 2, 4\]"),
        ({"corners": np.zeros((2, 1, 4, 2), np.float32)}, r"\[2, 1, 4, 2\]"),
        ({"corners": np.zeros((0, 4, 2), np.float32)}, r"\[0, 4, 2\]"),
        ({"corners": np.full((2, 4, 2), np.nan, np.float32)}, "NaN"),
        ({"corners": np.full((2, 4, 2), np.inf, np.float32)}, "infinity"),
        ({"veh": np.zeros((2, 4, 2), np.float32)}, "'corners', got veh"),
        (
            {"corners": np.zeros((2, 4, 2), np.float32), "more": np.zeros(1, np.float32)},
            "got corners, more",
        ),
        ({}, "got none"),
    ],
)
def test_load_refuses_other_tensors(path, tensors, message):
    save_file(tensors, path)
    with pytest.raises(CodebookError, match=message) as error:
        Codebook.load(path, 2)
    assert str(path) in str(error.value)


def test_load_refuses_every_truncation(path):
    whole = path.read_bytes()
    assert len(load_file(path)["corners"]) == len(STEPS)
    for length in (0, 1, 7, 8, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CodebookError, match=path.stem):
            Codebook.load(path, len(STEPS))


def test_load_names_a_missing_file(tmp_path):
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(CodebookError, match=str(path)):
            Codebook.load(path, 2048)


@quick
@given(indices)
def test_the_nearest_action_to_an_actions_pose_is_itself(actions):
    np.testing.assert_allclose(CODEBOOK.poses[actions], STEPS[actions], rtol=0, atol=1e-5)
    assert CODEBOOK.nearest(STEPS[actions]).tolist() == actions.tolist()


@quick
@given(indices.filter(len), st.integers(0, 2**32 - 1))
def test_the_deviation_is_that_of_drawn_actions(actions, seed):
    poses = STEPS[actions]
    book = Codebook(contour.pose_to_corners(poses).astype(np.float32))
    logits = np.random.default_rng(seed).normal(0, 3, (1, len(poses)))
    weights = np.exp(logits[0]) / np.exp(logits[0]).sum()
    scaled = book.poses * [1, 1, contour.CORNER_RADIUS]
    expected = np.sqrt((weights @ (scaled - weights @ scaled) ** 2).sum())
    assert book.deviation(logits) == pytest.approx([expected], abs=1e-4)
    assert book.deviation(np.array([[0.0] + [-900.0] * (len(poses) - 1)])) == pytest.approx([0])


def test_a_radian_of_heading_counts_as_what_it_moves_the_corners():
    poses = [[1.0, 0.0, 0.0], [1.2, 0.0, 0.0], [1.0, 0.0, 0.1]]
    book = Codebook(contour.pose_to_corners(poses).astype(np.float32))
    wanted = np.array([[1.09, 0, 0], [1.11, 0, 0], [1.0, 0, 0.04], [1.0, 0, 0.06]])
    assert book.nearest(wanted).tolist() == [0, 1, 0, 2]
    assert book.nearest(np.array([[1.12, 0, 0.06]])).tolist() == [2]  # 0.16 m against 0.18 m
