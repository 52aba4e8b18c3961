"""The bundle on disk: what loads, what is refused, and what a broken build leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

from autovla_rt import bundle_writer as writer
from autovla_rt.bundle import FORMAT_VERSION, MANIFEST, load_bundle, manifest_seal
from autovla_rt.bundle import Manifest as BundleManifest
from autovla_rt.bundle_writer import folder_writer, seal
from autovla_rt.config import (
    ActionSpace,
    Camera,
    Geometry,
    LanguageGeometry,
    Precision,
    Preprocessing,
    VisionGeometry,
)
from autovla_rt.errors import BundleError, StorageError

FILES = {"weights.bin": b"\1" * 5000, "recipe.json": b"{}"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "autovla-rt" / "verified"


def manifest(name: str = "test") -> BundleManifest:
    vision = VisionGeometry(
        depth=1,
        hidden_size=8,
        num_heads=1,
        intermediate_size=8,
        out_hidden_size=8,
        fullatt_block_indexes=(0,),
    )
    language = LanguageGeometry(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=8,
        vocab_size=20,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        mrope_section=(1, 1, 2),
        tie_word_embeddings=True,
    )
    return BundleManifest(
        name=name,
        target="cpu",
        backend="ort",
        dialect="ort",
        precision=Precision(vision="int8", language="int8"),
        geometry=Geometry(vision=vision, language=language),
        cameras=(Camera(name="front", grid=(2, 4, 4)),),
        preprocessing=Preprocessing(),
        actions=ActionSpace(action_start_id=10, num_actions=10),
        use_cot=True,
        end_token_ids=(1,),
        kv_capacity=64,
        checkpoint={"path": "x", "sha256": "0"},
        library_versions={},
    )


def write_bundle(folder: Path, name: str = "test", files: dict[str, bytes] = FILES) -> None:
    with writer.bundle_writer(folder) as building:
        for file, content in files.items():
            (building / file).write_bytes(content)
        seal(building, manifest(name))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "engines" / "a"
    write_bundle(path, "first")
    return path


def beside(folder: Path) -> set[str]:
    return {path.name for path in folder.parent.iterdir()} - {folder.name}


def flip(path: Path, *, keep_mtime: bool) -> None:
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    if keep_mtime:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def edit(folder: Path, **changes: object) -> None:
    """Change a manifest and seal it again, as a forger would."""
    path = folder / MANIFEST
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({**content, "seal": manifest_seal(content)}))


# --- loading -------------------------------------------------------------------------------------


def test_a_sealed_bundle_loads_with_its_files(folder):
    bundle = load_bundle(folder)
    assert bundle.manifest.name == "first"
    assert set(bundle.manifest.files) == set(FILES)
    assert bundle.path("weights.bin").read_bytes() == FILES["weights.bin"]
    with pytest.raises(BundleError, match=r"expected the file absent\.bin"):
        bundle.path("absent.bin")


def test_an_altered_file_is_refused_and_both_hashes_are_named(folder):
    load_bundle(folder)
    flip(folder / "weights.bin", keep_mtime=False)
    with pytest.raises(BundleError, match=r"weights\.bin: expected sha256 \w{64}, got \w{64}"):
        load_bundle(folder)


def test_a_flip_that_keeps_size_and_time_is_found_by_verify(folder):
    load_bundle(folder)
    flip(folder / "weights.bin", keep_mtime=True)
    load_bundle(folder)  # the promise of remembered hashes: no second reading
    with pytest.raises(BundleError, match="expected sha256"):
        load_bundle(folder, verify=True)


def test_the_first_load_reads_every_byte(folder):
    flip(folder / "weights.bin", keep_mtime=True)
    with pytest.raises(BundleError, match="expected sha256"):
        load_bundle(folder)


def test_a_refused_bundle_is_not_remembered(folder, cache):
    flip(folder / "weights.bin", keep_mtime=True)
    for _ in range(2):
        with pytest.raises(BundleError, match="expected sha256"):
            load_bundle(folder)
    assert not cache.exists()


def test_a_copy_is_verified_on_its_own(folder, tmp_path, cache):
    load_bundle(folder)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    load_bundle(copy)
    load_bundle(folder)
    assert len(list(cache.iterdir())) == 2


def test_truncated_and_missing_files_are_refused_by_size(folder):
    load_bundle(folder)
    os.truncate(folder / "weights.bin", 4999)
    with pytest.raises(BundleError, match=r"weights\.bin: expected 5000 bytes, got 4999"):
        load_bundle(folder)
    (folder / "weights.bin").unlink()
    with pytest.raises(BundleError, match=r"weights\.bin: expected 5000 bytes, got: No such file"):
        load_bundle(folder)


def test_a_folder_in_a_files_place_is_refused(folder):
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").mkdir()
    edit(
        folder,
        files={"weights.bin": {"size": (folder / "weights.bin").stat().st_size, "sha256": "0"}},
    )
    with pytest.raises(BundleError, match="expected a readable file, got: Is a directory"):
        load_bundle(folder)


def test_the_cache_of_hashes_is_replaced_not_rewritten(folder, cache):
    load_bundle(folder)
    (memory,) = cache.iterdir()
    with memory.open() as reader:
        before = memory.stat().st_ino
        load_bundle(folder, verify=True)
        assert json.loads(reader.read())  # a reader in the middle keeps a whole file
    assert memory.stat().st_ino != before
    assert list(cache.iterdir()) == [memory]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"weights.bin": 3}'])
def test_a_damaged_cache_of_hashes_only_costs_time(folder, cache, content):
    load_bundle(folder)
    (memory,) = cache.iterdir()
    memory.write_text(content)
    load_bundle(folder)
    assert json.loads(memory.read_text()).keys() == FILES.keys()


def test_an_unwritable_cache_only_costs_time(folder, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert load_bundle(folder).manifest.name == "first"


def test_many_loads_at_once_agree(folder):
    failures = []

    def load():
        try:
            for _ in range(20):
                load_bundle(folder, verify=True)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_newer_manifest_names_both_versions(folder):
    edit(folder, format_version=FORMAT_VERSION + 1, autovla_rt_version="9.9", new_key=1)
    both = rf"expected format version {FORMAT_VERSION} .*, got {FORMAT_VERSION + 1} .*9\.9"
    with pytest.raises(BundleError, match=both) as caught:
        load_bundle(folder)
    assert "Install that version" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not json", "expected a manifest in JSON"),
        (b"", "expected a manifest in JSON"),
        (b"\xff\xfe\x00", "expected a manifest in JSON"),
        (b"[" * 100_000, "expected a manifest in JSON"),
        (b"[]", "expected a JSON object with a format_version"),
        (b'{"model": 3}', "expected a JSON object with a format_version"),
        (b'{"format_version": "1"}', "expected a JSON object with a format_version"),
        (
            b'{"format_version": %d}' % FORMAT_VERSION,
            "does not fit its schema:\nname: Field required",
        ),
    ],
)
def test_a_manifest_that_is_none_is_refused(folder, content, message):
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    assert message in str(caught.value)
    assert "copy or build the bundle again" in str(caught.value)
    assert "pydantic.dev" not in str(caught.value)


def test_a_flip_of_any_bit_of_the_manifest_changes_nothing_or_is_refused(folder):
    path = folder / MANIFEST
    raw, original = path.read_bytes(), load_bundle(folder).manifest
    for index in range(0, len(raw), 3):
        flipped = bytearray(raw)
        flipped[index] ^= 1 << index % 8
        path.write_bytes(flipped)
        try:
            assert load_bundle(folder).manifest == original
        except BundleError:
            continue


def test_unknown_keys_of_a_manifest_are_refused(folder):
    edit(folder, surprise=1)
    with pytest.raises(BundleError, match="surprise: Extra inputs"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/hostname", "a/b", "", ".", "..", MANIFEST, "a\0b", "../a/weights.bin"]
)
def test_a_file_name_that_leaves_the_folder_is_refused_unread(folder, name):
    (folder.parent / "x").write_bytes(b"12")
    edit(folder, files={name: {"size": 2, "sha256": "0"}})
    with pytest.raises(BundleError, match=r"expected names of files beside engine\.json"):
        load_bundle(folder)


@pytest.mark.parametrize("missing", ["folder", "manifest", "file"])
def test_what_is_no_bundle_says_where_bundles_come_from(tmp_path, missing):
    path = tmp_path / "x"
    if missing == "manifest":
        path.mkdir()
    if missing == "file":
        path.touch()
    with pytest.raises(BundleError, match=r"expected an engine bundle[\s\S]*autovla-rt build"):
        load_bundle(path)


# --- writing -------------------------------------------------------------------------------------


def test_a_bundle_is_replaced_whole(folder):
    write_bundle(folder, "second", {"other.bin": b"2"})
    assert load_bundle(folder).manifest.name == "second"
    assert {path.name for path in folder.iterdir()} == {"other.bin", MANIFEST}
    assert beside(folder) == set()


def test_replacing_works_where_names_cannot_be_exchanged(folder, monkeypatch):
    monkeypatch.setattr(writer, "_exchange", lambda *_: False)
    write_bundle(folder, "second")
    assert load_bundle(folder).manifest.name == "second"
    assert beside(folder) == set()


def test_a_bundle_retired_by_a_killed_build_comes_back(folder):
    folder.rename(folder.with_name(".a.building-1-ff.retired"))
    with pytest.raises(RuntimeError), writer.bundle_writer(folder):
        raise RuntimeError
    assert load_bundle(folder).manifest.name == "first"


@pytest.mark.parametrize("error", [RuntimeError("x"), OSError(28, "No space left on device")])
def test_a_failing_build_leaves_the_old_bundle_and_nothing_else(folder, error):
    expected = StorageError if isinstance(error, OSError) else RuntimeError

    def fail():
        with writer.bundle_writer(folder) as building:
            (building / "weights.bin").write_bytes(b"half")
            raise error

    with pytest.raises(expected):
        fail()
    assert load_bundle(folder, verify=True).manifest.name == "first"
    assert beside(folder) == set()


@pytest.mark.parametrize("write", [writer.bundle_writer, folder_writer])
def test_user_files_are_never_replaced(tmp_path, write):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="was not touched: choose another --out"), write(folder):
        pytest.fail("the work began")
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert beside(folder) == set()


@pytest.mark.parametrize("write", [writer.bundle_writer, folder_writer])
def test_a_file_in_the_folders_place_is_kept(tmp_path, write):
    path = tmp_path / "x"
    path.write_text("mine")
    with pytest.raises(StorageError, match="expected a folder, got a file"), write(path):
        pytest.fail("the work began")
    assert path.read_text() == "mine"


def test_user_files_beside_a_bundle_are_named_and_kept(folder):
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"got notes\.txt beside it"):
        write_bundle(folder, "second")
    assert (folder / "notes.txt").read_text() == "mine"
    assert load_bundle(folder).manifest.name == "first"


@pytest.mark.parametrize("content", ["{}", "[]", "not json", '{"files": 3}'])
def test_another_programs_engine_json_is_kept(tmp_path, content):
    folder = tmp_path / "game"
    folder.mkdir()
    (folder / MANIFEST).write_text(content)
    with pytest.raises(StorageError, match=r"got engine\.json beside it"):
        write_bundle(folder)
    assert (folder / MANIFEST).read_text() == content


def test_a_bundle_of_another_version_may_be_replaced(folder):
    edit(folder, format_version=99)
    write_bundle(folder, "second")
    assert load_bundle(folder).manifest.name == "second"


def test_user_files_that_appear_during_the_build_are_kept(folder):
    def build():
        with writer.bundle_writer(folder) as building:
            seal(building, manifest("second"))
            (folder / "late.txt").write_text("mine")

    with pytest.raises(StorageError, match=r"late\.txt"):
        build()
    assert (folder / "late.txt").read_text() == "mine"
    assert load_bundle(folder).manifest.name == "first"


def test_a_link_stays_a_link(folder, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(folder)
    write_bundle(link, "second")
    assert link.is_symlink()
    assert load_bundle(folder).manifest.name == "second"
    assert beside(folder) == set()


def test_names_with_pattern_characters_are_cleaned_up(tmp_path):
    folder, other = tmp_path / "a[b]*", tmp_path / ".ab.building-1-ff"
    abandoned = tmp_path / ".a[b]*.building-1-ff"
    for path in (other, abandoned):
        path.mkdir()
    write_bundle(folder)
    assert not abandoned.exists()
    assert other.exists()


def test_a_build_in_progress_is_not_taken_for_an_abandoned_one(folder):
    with writer.bundle_writer(folder) as slow:
        (slow / "weights.bin").write_bytes(b"slow")
        write_bundle(folder, "fast")
        assert (slow / "weights.bin").exists()
        seal(slow, manifest("slow"))
    assert load_bundle(folder).manifest.name == "slow"
    assert beside(folder) == set()


def test_builds_at_the_same_time_leave_one_whole_bundle(tmp_path):
    folder = tmp_path / "engines" / "a"
    children = []
    for number in range(4):
        if (pid := os.fork()) == 0:
            try:
                for round_ in range(10):
                    write_bundle(folder, f"{number}-{round_}", {f"{number}.bin": bytes(1000)})
            except BaseException as error:
                sys.stderr.write(repr(error))
                os._exit(1)
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert load_bundle(folder, verify=True).manifest.name.endswith("-9")
    assert beside(folder) == set()


FILE_SYSTEM_EVENTS = ("open", "os.", "shutil.", "fcntl.", "ctypes.dlsym")


def killed_at(number: int, folder: Path) -> bool:
    """Write a bundle in a child that dies at its file system event `number`; true if it died."""
    if (pid := os.fork()) == 0:
        seen = 0

        def die(event, arguments):
            nonlocal seen
            if event.startswith(FILE_SYSTEM_EVENTS):
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        write_bundle(folder, "second")
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def require_whole_or_refused(path: Path) -> None:
    try:
        load_bundle(path, verify=True)
    except BundleError:
        return
    assert {name: (path / name).read_bytes() for name in FILES} == FILES


def test_a_kill_at_any_moment_leaves_a_whole_bundle_and_the_next_build_cleans_up(tmp_path):
    folder = tmp_path / "engines" / "a"
    write_bundle(folder, "first")
    names, left, number = [], 0, 1
    while killed_at(number, folder):
        names.append(load_bundle(folder, verify=True).manifest.name)
        for path in folder.parent.glob(".*"):
            left += 1
            require_whole_or_refused(path)
        write_bundle(folder, "first")
        assert beside(folder) == set()
        number += 1
    assert names[0] == "first"
    assert names[-1] == "second"
    assert sorted(names) == names  # one moment of change
    assert left > 5
