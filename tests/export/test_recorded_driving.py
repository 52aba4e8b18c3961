import json

import numpy as np
import pytest

from autovla_rt.errors import InputError
from autovla_rt.export.recorded_driving import read_trajectories, relative_steps
from autovla_rt.kernels import contour


def write_scene(path, trajectory, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"token": path.stem, "gt_trajectory": trajectory, **more}))
    return path


def test_first_step_starts_at_the_ego_and_each_next_at_the_pose_before():
    trajectory = np.array([[2, 0, 0], [4, 0, np.pi / 2], [4, 3, np.pi / 2]])
    steps = [[2, 0, 0], [2, 0, np.pi / 2], [3, 0, 0]]
    np.testing.assert_allclose(relative_steps(trajectory), steps, atol=1e-12)


def test_steps_put_together_again_give_the_trajectory():
    trajectory = np.random.default_rng(0).uniform(-3, 3, (10, 3))
    steps = relative_steps(trajectory)
    np.testing.assert_allclose(contour.roll_out(contour.pose_to_corners(steps)), trajectory)


def test_folder_is_searched_below_and_other_files_are_left_alone(tmp_path):
    write_scene(tmp_path / "a.json", [[1, 0, 0]])
    write_scene(tmp_path / "deep" / "b.json", [[2, 0, 0]])
    (tmp_path / "notes.txt").write_text("not a scene")
    found = read_trajectories(tmp_path, 0, 100)
    assert sorted(trajectory[0, 0] for trajectory in found) == [1, 2]


def test_one_file_and_a_list_of_files(tmp_path):
    path = write_scene(tmp_path / "a.json", [[1, 0, 0.5]])
    for given in (path, [path]):
        (trajectory,) = read_trajectories(given, 0, 100)
        assert trajectory.dtype == np.float64
        assert trajectory.tolist() == [[1, 0, 0.5]]


def test_reading_stops_with_enough_steps_at_scenes_that_the_seed_picks(tmp_path):
    for index in range(30):
        write_scene(tmp_path / f"{index:02}.json", [[index, 0, 0]] * 3)

    def scenes(seed):
        return [int(trajectory[0, 0]) for trajectory in read_trajectories(tmp_path, seed, 10)]

    assert len(scenes(0)) == 4
    assert scenes(0) == scenes(0)
    assert scenes(0) != scenes(1)
    assert scenes(0) != sorted(scenes(0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a readable scene JSON"),
        ("\xff", "not a readable scene JSON"),
        ("[" * 100_000, "not a readable scene JSON"),
        ("[]", "'gt_trajectory'"),
        ('{"token": "x"}', "'gt_trajectory'"),
        ('{"gt_trajectory": []}', r"gt_trajectory is .* \[0\], expected"),
        ('{"gt_trajectory": [[1, 2]]}', r"gt_trajectory is .* \[1, 2\]"),
        ('{"gt_trajectory": [1, 2, 3]}', r"gt_trajectory is .* \[3\]"),
        ('{"gt_trajectory": [[1, 2, 3], [1]]}', "gt_trajectory has rows of different lengths"),
        ('{"gt_trajectory": [[1, 2, NaN]]}', "gt_trajectory holds NaN"),
        ('{"gt_trajectory": [[1, 2, Infinity]]}', "gt_trajectory holds NaN or infinity"),
        ('{"gt_trajectory": [["1", "2", "3"]]}', "gt_trajectory is <U1"),
        ('{"gt_trajectory": [[1, 2, null]]}', "gt_trajectory is object"),
        ('{"gt_trajectory": null}', "gt_trajectory is object"),
        ('{"gt_trajectory": {"x": 1}}', "gt_trajectory is object"),
        ('{"gt_trajectory": [[true, true, true]]}', "gt_trajectory is bool"),
    ],
)
def test_unusable_scene_names_file_and_key(tmp_path, text, message):
    path = tmp_path / "scene.json"
    path.write_text(text, encoding="latin1")
    with pytest.raises(InputError, match=message) as error:
        read_trajectories([path], 0, 100)
    assert str(path) in str(error.value)


def test_missing_scenes_are_an_error(tmp_path):
    with pytest.raises(InputError, match="found no scene JSON"):
        read_trajectories(tmp_path, 0, 100)
    with pytest.raises(InputError, match=r"absent\.json"):
        read_trajectories(tmp_path / "absent.json", 0, 100)
