import json
import shutil

import numpy as np
import pytest
from PIL import Image

from autovla_rt.demo.dataset import write_frames_folder, write_scenes
from autovla_rt.demo.scenes import record_scene
from autovla_rt.errors import InputError
from autovla_rt.export.codebook import build_codebook
from autovla_rt.runtime.frame_source import read_image
from autovla_rt.runtime.scene import read_frames_dir, read_scene


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes")
    write_scenes(out, range(40, 44))
    return out


def test_scenes_are_in_the_official_layout(written):
    files = sorted((written / "scenes").iterdir())
    assert [file.name for file in files] == [f"miniature-00000000{n}.json" for n in range(40, 44)]
    for seed, file in zip(range(40, 44), files, strict=True):
        request = read_scene(file, written / "sensors")
        scene = record_scene(seed)
        assert request.velocity == pytest.approx(scene.now.ego[3], abs=1e-6)
        assert np.allclose(request.expert, scene.trajectory, atol=1e-5)
        content = json.loads(file.read_text())
        assert bool(content["cot_output"]) == content["complex"] == scene.complex
        with Image.open(request.frames["front"][0]) as image:
            assert image.size == (392, 224)


def test_the_set_can_become_a_codebook(written, tmp_path):
    built = build_codebook(
        written / "scenes", tmp_path / "c.safetensors", num_disks=5, tolerance=0.05, seed=0
    )
    assert built.segments == 41  # a standstill comes first


def test_equal_seeds_give_equal_bytes(written, tmp_path):
    write_scenes(tmp_path, range(40, 44))
    assert contents(tmp_path) == contents(written)


def test_a_run_that_was_killed_goes_on(written, tmp_path):
    shutil.copytree(written, tmp_path / "half")
    whole = contents(written)
    (tmp_path / "half" / "scenes" / "miniature-0000000042.json").unlink()
    shutil.rmtree(tmp_path / "half" / "sensors" / "miniature-0000000042" / "front")
    write_scenes(tmp_path / "half", range(40, 44))
    assert contents(tmp_path / "half") == whole


def test_a_damaged_scene_is_named(written, tmp_path):
    shutil.copytree(written, tmp_path / "copy")
    broken = tmp_path / "copy" / "scenes" / "miniature-0000000041.json"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(InputError, match=r"miniature-0000000041\.json"):
        write_scenes(tmp_path / "copy", range(40, 44))
    frame = tmp_path / "copy" / "sensors" / "miniature-0000000040" / "front" / "2.jpg"
    frame.write_bytes(frame.read_bytes()[:500])
    with pytest.raises(InputError, match=r"frame 2.*front/2\.jpg"):
        read_image(frame, f"camera front, frame 2 ({frame})")


def test_a_frames_folder_is_a_request(tmp_path):
    scene = record_scene(7, "construction")
    write_frames_folder(tmp_path / "one", scene)
    request = read_frames_dir(tmp_path / "one")
    assert request.instruction == scene.now.instruction
    assert np.allclose(request.expert, scene.trajectory, atol=1e-5)
