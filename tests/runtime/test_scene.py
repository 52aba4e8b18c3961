import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from autovla_rt.config import CAMERAS
from autovla_rt.errors import InputError
from autovla_rt.runtime.scene import Request, read_frames_dir, read_scene

EXPERT = [[3.9, 0.0, 0.1], [7, -0.5, -0.2]]
UNUSABLE_EXPERTS = [
    ([], ": expected a list of poses .x, y, heading., got list"),
    ("abc", ": expected a list of poses .*got str 'abc'"),
    ({"x": 1}, ": expected a list of poses .*got dict"),
    (3, ": expected a list of poses .*got int 3"),
    ([[1, 2]], r", pose 0: expected .x, y, heading., finite numbers, got list .1, 2."),
    ([[1, 2, 3], [1, 2, 3, 4]], ", pose 1: expected"),
    ([[1, 2, 3], 4], ", pose 1: expected .*got int 4"),
    (["123"], ", pose 0: expected .*got str"),
    ([[1, 2, "3"]], ", pose 0: expected"),
    ([[1, 2, None]], ", pose 0: expected"),
    ([[1, 2, True]], ", pose 0: expected"),
    ([[1, 2, float("nan")]], ", pose 0: expected"),
    ([[1, float("-inf"), 3]], ", pose 0: expected"),
    ([[10**400, 2, 3]], ", pose 0: expected"),
    ([[1e300, 2, 3]], ", pose 0: expected"),
]
VALUES = {"velocity": 5.0, "acceleration": 0.5, "instruction": "Turn Left"}


def request(**changes):
    frames = {camera: (np.zeros((28, 28, 3), np.uint8),) * 4 for camera in CAMERAS}
    return Request(**{"frames": frames, **VALUES, **changes})


@pytest.fixture
def frames_dir(tmp_path):
    folder = tmp_path / "frames"
    for camera in CAMERAS:
        (folder / camera).mkdir(parents=True)
        for name in ("t2.jpg", "t10.jpg", "t1.jpg", "t9.jpg"):
            Image.new("RGB", (28, 28)).save(folder / camera / name)
    return folder


def write_scene(path, **changes):
    path.write_text(json.dumps({k: v for k, v in {**VALUES, **changes}.items() if v != "absent"}))


def scene_keys(dataset):
    left, right = ("left", "right") if dataset == "nuplan" else ("front_left", "front_right")
    return {
        "front": "front_camera_paths",
        "front_left": f"{left}_camera_paths",
        "front_right": f"{right}_camera_paths",
    }


@pytest.fixture
def official(tmp_path, frames_dir):
    """Write an official scene and return (its path, sensor root); keyword arguments change keys."""

    def write(dataset="waymo", **changes):
        paths = {
            key: [f"{camera}/t{i}.jpg" for i in (1, 2, 9, 10)]
            for camera, key in scene_keys(dataset).items()
        }
        path = tmp_path / "sample.json"
        write_scene(path, **{"dataset_name": dataset, "token": "a1", **paths, **changes})
        return path, frames_dir

    return write


class TestRequest:
    def test_keeps_what_it_was_given(self):
        made = request(acceleration=-2)
        assert (made.velocity, made.acceleration, made.instruction) == (5.0, -2, "Turn Left")

    def test_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            request().velocity = 1.0

    def test_numpy_scalars_are_numbers(self):
        assert request(velocity=np.float32(3.5)).velocity == 3.5

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"velocity": float("nan")}, "velocity: expected a finite number, got nan"),
            ({"velocity": float("inf")}, "velocity: expected a finite number"),
            ({"velocity": -0.1}, "velocity: expected a speed of at least 0"),
            ({"velocity": True}, "velocity: expected a number, got bool"),
            ({"velocity": "5"}, "velocity: expected a number, got str"),
            ({"acceleration": float("nan")}, "acceleration: expected a finite number"),
            ({"acceleration": [1.0, 2.0]}, "acceleration: expected a number, got list"),
            ({"instruction": 3}, "instruction: expected a text, got int"),
            ({"instruction": "  "}, "instruction is empty"),
        ],
    )
    def test_unusable_values_are_refused(self, changes, message):
        with pytest.raises(InputError, match=message):
            request(**changes)

    def test_missing_camera(self):
        frames = dict(request().frames)
        del frames["front_left"]
        with pytest.raises(InputError, match="got front, front_right"):
            request(frames=frames)

    def test_unknown_camera(self):
        frames = {**request().frames, "rear": request().frames["front"]}
        with pytest.raises(InputError, match="rear"):
            request(frames=frames)

    def test_three_frames(self):
        frames = {**request().frames, "front_right": request().frames["front_right"][:3]}
        with pytest.raises(InputError, match="camera front_right: expected 4 frames, got 3"):
            request(frames=frames)

    def test_an_expert_may_be_given(self):
        assert request().expert is None
        assert request(expert=EXPERT).expert == EXPERT
        assert request(expert=np.array(EXPERT)).expert.shape == (2, 3)

    @pytest.mark.parametrize(("value", "message"), UNUSABLE_EXPERTS)
    def test_unusable_experts_are_refused(self, value, message):
        with pytest.raises(InputError, match=f"expert{message}"):
            request(expert=value)


class TestFramesDir:
    def test_natural_order_and_given_values(self, frames_dir):
        made = read_frames_dir(frames_dir, **VALUES)
        assert list(made.frames) == list(CAMERAS)
        for camera in CAMERAS:
            assert [f.name for f in made.frames[camera]] == [
                "t1.jpg",
                "t2.jpg",
                "t9.jpg",
                "t10.jpg",
            ]
            assert {f.parent.name for f in made.frames[camera]} == {camera}

    def test_order_is_independent_of_other_text(self, frames_dir):
        for old, new in (("t1", "a9_1"), ("t2", "a10_0"), ("t9", "a10_2"), ("t10", "b0")):
            (frames_dir / "front" / f"{old}.jpg").rename(frames_dir / "front" / f"{new}.jpg")
        names = [f.stem for f in read_frames_dir(frames_dir, **VALUES).frames["front"]]
        assert names == ["a9_1", "a10_0", "a10_2", "b0"]

    def test_values_from_scene_json(self, frames_dir):
        write_scene(frames_dir / "scene.json", velocity=[3.0, 4.0, 100.0], acceleration=[-6, 8])
        made = read_frames_dir(frames_dir)
        assert (made.velocity, made.acceleration, made.instruction) == (5.0, 10.0, "Turn Left")

    def test_given_values_win(self, frames_dir):
        write_scene(frames_dir / "scene.json", velocity="unused")
        made = read_frames_dir(frames_dir, velocity=0.0, instruction="keep forward")
        assert (made.velocity, made.acceleration, made.instruction) == (0.0, 0.5, "keep forward")

    @pytest.mark.parametrize("given", [{}, VALUES])
    def test_the_expert_of_scene_json(self, frames_dir, given):
        write_scene(frames_dir / "scene.json", gt_trajectory=EXPERT)
        expert = read_frames_dir(frames_dir, **given).expert
        assert expert == ((3.9, 0.0, 0.1), (7.0, -0.5, -0.2))
        assert isinstance(expert[1][0], float)

    @pytest.mark.parametrize("nobody", ["absent", None])
    def test_no_expert(self, frames_dir, nobody):
        write_scene(frames_dir / "scene.json", gt_trajectory=nobody)
        assert read_frames_dir(frames_dir).expert is None
        (frames_dir / "scene.json").unlink()
        assert read_frames_dir(frames_dir, **VALUES).expert is None

    @pytest.mark.parametrize(("value", "message"), UNUSABLE_EXPERTS)
    def test_an_unusable_expert_is_named(self, frames_dir, value, message):
        write_scene(frames_dir / "scene.json", gt_trajectory=value)
        with pytest.raises(InputError, match=rf"scene\.json: gt_trajectory{message}"):
            read_frames_dir(frames_dir, **VALUES)

    def test_missing_values_without_scene_json(self, frames_dir):
        with pytest.raises(InputError, match=r"acceleration, instruction: not given.*scene\.json"):
            read_frames_dir(frames_dir, velocity=1.0)

    def test_missing_folder(self, frames_dir):
        shutil.rmtree(frames_dir / "front_left")
        with pytest.raises(InputError, match="front_left: the folder does not exist"):
            read_frames_dir(frames_dir, **VALUES)

    @pytest.mark.parametrize("count", [3, 5])
    def test_four_images_exactly(self, frames_dir, count):
        (frames_dir / "front" / "t10.jpg").unlink()
        for i in range(count - 3):
            Image.new("RGB", (28, 28)).save(frames_dir / "front" / f"extra{i}.PNG")
        with pytest.raises(InputError, match=f"front: expected 4 frames, got {count}"):
            read_frames_dir(frames_dir, **VALUES)

    def test_other_files_are_not_frames(self, frames_dir):
        (frames_dir / "front" / ".DS_Store").touch()
        (frames_dir / "front" / "times.csv").touch()
        assert len(read_frames_dir(frames_dir, **VALUES).frames["front"]) == 4


class TestScene:
    @pytest.mark.parametrize("dataset", ["nuplan", "nuscenes", "waymo"])
    def test_paths_of_each_dataset(self, official, dataset):
        path, root = official(dataset)
        made = read_scene(path, root)
        assert (made.velocity, made.acceleration, made.instruction) == (5.0, 0.5, "Turn Left")
        assert made.frames == {
            camera: tuple(root / camera / f"t{i}.jpg" for i in (1, 2, 9, 10)) for camera in CAMERAS
        }

    def test_vectors_give_the_norm_of_x_and_y(self, official):
        made = read_scene(*official(velocity=[3, 4, 12], acceleration=[0.6, -0.8]))
        assert made.velocity == pytest.approx(5.0)
        assert made.acceleration == pytest.approx(1.0)

    def test_the_expert(self, official):
        expert = ((3.9, 0.0, 0.1), (7.0, -0.5, -0.2))
        assert read_scene(*official(gt_trajectory=EXPERT)).expert == expert
        assert read_scene(*official()).expert is None
        assert read_scene(*official(gt_trajectory=None)).expert is None

    @pytest.mark.parametrize(("value", "message"), UNUSABLE_EXPERTS)
    def test_an_unusable_expert_is_named(self, official, value, message):
        with pytest.raises(InputError, match=rf"sample\.json: gt_trajectory{message}"):
            read_scene(*official(gt_trajectory=value))

    @pytest.mark.parametrize(
        "key",
        ["dataset_name", "velocity", "acceleration", "instruction", "front_left_camera_paths"],
    )
    def test_missing_key_is_named(self, official, key):
        with pytest.raises(InputError, match=rf"sample\.json: the key {key} is missing"):
            read_scene(*official(**{key: "absent"}))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"velocity": float("nan")}, "velocity: expected a finite number"),
            ({"velocity": [1.0, float("inf")]}, "velocity: expected a finite number"),
            ({"velocity": [1.0]}, "velocity: expected a number or a vector"),
            ({"velocity": None}, "velocity: expected a number, got NoneType"),
            ({"velocity": -1}, "velocity: expected a speed of at least 0"),
            ({"acceleration": ["1", 2]}, "acceleration: expected a number, got str"),
            ({"instruction": 3}, "instruction: expected a text, got int"),
            ({"instruction": ["go"]}, "instruction: expected a text, got list"),
            ({"instruction": ""}, "instruction: the instruction is empty"),
            ({"front_camera_paths": "a.jpg"}, "front_camera_paths: expected a list"),
            ({"front_camera_paths": [1, 2, 3, 4]}, "front_camera_paths: expected a list"),
            ({"front_camera_paths": ["a.jpg"] * 3}, "front_camera_paths: expected 4 frames, got 3"),
            (
                {"front_camera_paths": ["front/t1.jpg"] * 3 + ["front/t3.jpg"]},
                r"front_camera_paths: there is no file .*t3\.jpg",
            ),
        ],
    )
    def test_unusable_values_name_file_and_key(self, official, changes, message):
        with pytest.raises(InputError, match=rf"sample\.json: {message}"):
            read_scene(*official(**changes))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"{", "cannot be read"),
            (b"\xff\xfe", "cannot be read"),
            (b"[{}]", "expected one JSON object, got list"),
            (None, "cannot be read"),
        ],
    )
    def test_unreadable_file(self, tmp_path, content, message):
        path = tmp_path / "bad.json"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=rf"bad\.json: .*{message}"):
            read_scene(path, tmp_path)
