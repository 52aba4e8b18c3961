import hashlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from autovla_rt.errors import CodebookError, DependencyError, InputError, StorageError
from autovla_rt.export.codebook import (
    build_codebook,
    describe_codebook,
    draw_codebook,
    import_codebook,
)
from autovla_rt.kernels import contour
from autovla_rt.runtime.actions import Codebook

RNG = np.random.default_rng(0)


def random_contours(num_entries, num_steps):
    low, high = [-7, -4, -2], [15, 1.8, 2]
    poses = RNG.uniform(low, high, (num_entries, num_steps, 3))
    return contour.pose_to_corners(poses).astype(np.float32)


def write_pickle(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.fixture
def pickled(tmp_path):
    return tmp_path / "codebook.pkl"


@pytest.fixture
def written(tmp_path):
    return tmp_path / "codebook.safetensors"


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(("num_entries", "num_steps"), [(2048, 6), (30, 1)])
def test_import_keeps_the_last_contour_of_each_entry(
    pickled, written, num_entries, num_steps, protocol
):
    contours = random_contours(num_entries, num_steps)
    content = {"token_all": {"veh": contours, "other": [1, "x"]}, "note": "text"}
    import_codebook(write_pickle(pickled, content, protocol), written)
    np.testing.assert_array_equal(Codebook.load(written, num_entries).corners, contours[:, -1])


def test_import_writes_where_the_codebook_comes_from(pickled, written):
    write_pickle(pickled, {"token_all": {"veh": random_contours(3, 1)}})
    import_codebook(pickled, written)
    with safe_open(written, framework="numpy") as file:
        assert file.metadata() == {
            "format_version": "1",
            "source": "codebook.pkl",
            "source_sha256": hashlib.sha256(pickled.read_bytes()).hexdigest(),
        }


def test_import_twice_gives_the_same_bytes(pickled, written, tmp_path):
    write_pickle(pickled, {"token_all": {"veh": random_contours(3, 1)}})
    import_codebook(pickled, written)
    import_codebook(pickled, tmp_path / "again")
    assert written.read_bytes() == (tmp_path / "again").read_bytes()


def test_import_tells_what_the_codebook_holds(pickled, written):
    poses = [[0.003, 0.004, 0], [-7, 1.5, -2], [15, -4, 2.5]]
    contours = contour.pose_to_corners(poses).astype(np.float32)[:, None]
    info = import_codebook(write_pickle(pickled, {"token_all": {"veh": contours}}), written)
    assert info == describe_codebook(written)
    assert info.entries == 3
    assert info.dx == pytest.approx((-7, 15), abs=1e-5)
    assert info.dy == pytest.approx((-4, 1.5), abs=1e-5)
    assert info.dtheta == pytest.approx((-2, 2.5), abs=1e-5)
    assert info.standstill_offset == pytest.approx(0.005, abs=1e-6)
    assert info.sha256 == hashlib.sha256(contours.tobytes()).hexdigest()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("hide", [lambda call: call, lambda call: np.array([call], dtype=object)])
def test_import_executes_nothing(pickled, written, tmp_path, hide, protocol):
    trap = tmp_path / "executed"
    call = Call(os.system, f"touch {trap}")
    content = {"token_all": {"veh": random_contours(2, 1)}, "more": hide(call)}
    with pytest.raises(CodebookError, match=r"codebook\.pkl"):
        import_codebook(write_pickle(pickled, content, protocol), written)
    assert not trap.exists()
    assert not written.exists()
    pickle.loads(pickled.read_bytes())  # the payload is a real one
    assert trap.exists()


def wrong_order():
    return random_contours(2, 1)[:, :, [1, 0, 3, 2]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"key 'token_all'.*list"),
        ({"tokens": {}}, r"key 'token_all'.*\['tokens'\]"),
        ({"token_all": {"ped": 1}}, r"key 'veh'.*\['ped'\]"),
        ({"token_all": random_contours(2, 1)}, "key 'veh'"),
        ({"token_all": {"veh": [[1.0]]}}, "is list, expected an array"),
        ({"token_all": {"veh": random_contours(2, 1)[:, 0]}}, r"\[2, 4, 2\], expected \[N, steps"),
        ({"token_all": {"veh": random_contours(2, 1)[:, :0]}}, r"\[2, 0, 4, 2\]"),
        ({"token_all": {"veh": random_contours(2, 1)[:, :, :2]}}, r"float32 \[2, 2, 2\]"),
        ({"token_all": {"veh": random_contours(0, 1)}}, r"\[0, 4, 2\]"),
        ({"token_all": {"veh": random_contours(2, 1).astype(float)}}, "got float64"),
        ({"token_all": {"veh": random_contours(2, 1) * [np.nan, 1]}}, "got float64"),
        ({"token_all": {"veh": random_contours(2, 1) * np.float32(np.nan)}}, "entry 0 holds NaN"),
        ({"token_all": {"veh": random_contours(2, 1) * 2}}, "entry . is .* m .* off a 4.8 x 2.0 m"),
        ({"token_all": {"veh": wrong_order()}}, "left-front, right-front"),
        ({"token_all": {"veh": np.zeros((2, 1, 4, 2), np.float32)}}, "off a 4.8 x 2.0 m box"),
    ],
)
def test_import_refuses_what_is_no_vehicle_codebook(pickled, written, content, message):
    with pytest.raises(CodebookError, match=rf"(?s)codebook\.pkl: .*{message}"):
        import_codebook(write_pickle(pickled, content), written)
    assert not written.exists()


def test_import_names_an_unreadable_or_far_too_large_source(pickled, written):
    with pytest.raises(CodebookError, match=r"codebook\.pkl.*No such file"):
        import_codebook(pickled, written)
    with pickled.open("wb") as file:
        file.truncate(1 << 33)  # sparse
    with pytest.raises(CodebookError, match="8589934592 bytes are too many"):
        import_codebook(pickled, written)


def test_failed_write_leaves_the_old_file_and_nothing_beside_it(pickled, written, monkeypatch):
    written.write_bytes(b"old")
    write_pickle(pickled, {"token_all": {"veh": random_contours(2, 1)}})

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError, match=r"codebook\.safetensors.*No space left"):
        import_codebook(pickled, written)
    assert written.read_bytes() == b"old"
    assert {path.name for path in written.parent.iterdir()} == {written.name, pickled.name}


def test_write_into_a_missing_folder_is_a_storage_error(pickled, tmp_path):
    write_pickle(pickled, {"token_all": {"veh": random_contours(2, 1)}})
    with pytest.raises(StorageError, match="existing folder"):
        import_codebook(pickled, tmp_path / "absent" / "codebook.safetensors")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(4)
    for index in range(80):
        speed, turn = abs(rng.normal(3, 3)), rng.normal(0, 0.05)
        steps = rng.normal(0, [0.05, 0.01, 0.005], (10, 3)) + np.array([speed, 0, turn])
        trajectory = contour.roll_out(contour.pose_to_corners(steps))
        (folder / f"{index:03}.json").write_text(json.dumps({"gt_trajectory": trajectory.tolist()}))
    return folder


def test_build_clusters_the_steps_of_the_scenes_with_the_standstill_first(scenes, written):
    build = build_codebook(scenes, written, num_disks=80, tolerance=0.1)
    assert build.info == describe_codebook(written)
    assert (build.info.entries, build.scenes, build.segments) == (80, 80, 801)
    assert build.info.standstill_offset < 0.1
    entry = contour.corners_to_pose(Codebook.load(written, 80).corners[0])
    np.testing.assert_allclose(entry, 0, atol=0.05)


def test_build_reports_coverage_and_how_close_encoding_comes(scenes, written):
    coarse = build_codebook(scenes, written, num_disks=25, tolerance=0.3)
    fine = build_codebook(scenes, written, num_disks=80, tolerance=0.1)
    codebook = Codebook.load(written, 80)
    errors = []
    for path in scenes.iterdir():
        trajectory = np.array(json.loads(path.read_text())["gt_trajectory"])
        errors.append(codebook.decode(codebook.encode(trajectory)) - trajectory)
    expected = np.linalg.norm(np.array(errors)[..., :2], axis=-1).mean()
    assert fine.reconstruction_floor == pytest.approx(expected)
    assert fine.reconstruction_floor < coarse.reconstruction_floor
    assert 0.5 < fine.coverage < 1


def test_build_of_everything_covers_everything(written, tmp_path):
    scene = tmp_path / "scene.json"
    scene.write_text(json.dumps({"gt_trajectory": [[1, 0, 0], [3, 0, 0], [4, 0, 0]]}))
    build = build_codebook([scene], written, num_disks=3)
    assert build.coverage == 1  # standstill, 1 m twice, 2 m
    assert build.reconstruction_floor < 1e-6
    entries = contour.corners_to_pose(Codebook.load(written, 3).corners)
    np.testing.assert_allclose(np.sort(entries[:, 0]), [0, 1, 2], atol=1e-6)


def test_build_depends_on_the_seed_alone(scenes, written, tmp_path):
    build_codebook(scenes, written, num_disks=50, seed=1)
    build_codebook(sorted(scenes.iterdir()), tmp_path / "again", num_disks=50, seed=1)
    build_codebook(scenes, tmp_path / "other", num_disks=50, seed=2)
    assert written.read_bytes() == (tmp_path / "again").read_bytes()
    assert describe_codebook(written).sha256 != describe_codebook(tmp_path / "other").sha256


def test_build_uses_no_more_than_max_segments(scenes, written):
    build = build_codebook(scenes, written, num_disks=5, max_segments=25)
    assert (build.scenes, build.segments) == (3, 25)


def test_build_says_how_many_disks_it_found(scenes, written):
    with pytest.raises(CodebookError, match=r"(?s)after \d+ disks.*2048.*more scenes"):
        build_codebook(scenes, written)
    assert not written.exists()


def test_build_names_a_bad_scene(scenes, written, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text('{"token": "x"}')
    with pytest.raises(InputError, match=r"bad\.json.*gt_trajectory"):
        build_codebook([*scenes.iterdir(), bad], written)


def test_200000_segments_are_clustered_in_seconds():
    """Measured: 0.5 s on a 2.4 GHz Zen 3 core; comparing every pair takes far longer."""
    script = """
import time, numpy as np
from autovla_rt.export.k_disk import k_disk
from autovla_rt.kernels import contour
steps = np.random.default_rng(0).uniform([0, -.5, -.3], [12, .5, .3], (200_000, 3))
start = time.process_time()
k_disk(contour.pose_to_corners(steps), 2048, 0.05, 0)
print(time.process_time() - start)
"""
    one_core = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=one_core, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 10


@pytest.mark.parametrize(
    "tensors",
    [
        {"corners": np.zeros((2, 4, 2))},
        {"corners": np.zeros((2, 2, 4), np.float32)},
        {"corners": np.zeros((), np.float32)},
        {"corners": np.full((2, 4, 2), np.nan, np.float32)},
        {"other": np.zeros((2, 4, 2), np.float32)},
    ],
)
def test_describe_refuses_other_files(written, tensors):
    save_file(tensors, written)
    with pytest.raises(CodebookError, match=r"codebook\.safetensors"):
        describe_codebook(written)


def test_describe_refuses_a_type_that_numpy_lacks(written):
    header = b'{"corners":{"dtype":"BF16","shape":[1,4,2],"data_offsets":[0,16]}}  '
    written.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(CodebookError, match=r"codebook\.safetensors"):
        describe_codebook(written)


def test_describe_refuses_missing_and_truncated_files(pickled, written):
    with pytest.raises(CodebookError, match=r"codebook\.safetensors"):
        describe_codebook(written)
    import_codebook(write_pickle(pickled, {"token_all": {"veh": random_contours(3, 1)}}), written)
    written.write_bytes(written.read_bytes()[:-1])
    with pytest.raises(CodebookError, match=r"codebook\.safetensors"):
        describe_codebook(written)


def test_draw_paints_where_the_actions_go_and_their_headings(written, tmp_path):
    pytest.importorskip("matplotlib", reason="drawing needs the extra: plot")
    poses = np.array([[step, step % 3, 0.1 * step] for step in range(10)])
    pictures = []
    for factors in ([1, 1, 1], [1, -1, 1], [1, 1, -1]):
        corners = contour.pose_to_corners(poses * factors).astype(np.float32)
        save_file({"corners": corners}, written)
        draw_codebook(written, tmp_path / "codebook.png")
        with Image.open(tmp_path / "codebook.png") as picture:
            assert picture.format == "PNG"
            assert min(picture.size) >= 400
            pictures.append(np.asarray(picture.convert("RGB")))
    original, mirrored_places, mirrored_headings = pictures
    assert (original != mirrored_places).any()
    assert (original != mirrored_headings).any()


def test_draw_leaves_pyplot_alone(written, tmp_path):
    pytest.importorskip("matplotlib", reason="drawing needs the extra: plot")
    save_file({"corners": random_contours(5, 1)[:, 0]}, written)
    script = f"""
import sys
from pathlib import Path
from autovla_rt.export.codebook import draw_codebook
assert "matplotlib" not in sys.modules
draw_codebook(Path({str(written)!r}), Path({str(tmp_path / "codebook.png")!r}))
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_draw_without_matplotlib_names_the_pip_line(written, tmp_path, monkeypatch):
    save_file({"corners": random_contours(5, 1)[:, 0]}, written)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(DependencyError, match=r"pip install 'autovla-rt\[plot\]'"):
        draw_codebook(written, tmp_path / "codebook.png")
