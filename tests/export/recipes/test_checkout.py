"""The recipe of a checkout: what is read to the byte, and what is refused with its line."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from autovla_rt.config import AnswerFormat, Prompt, Slot, Video
from autovla_rt.errors import RecipeError
from autovla_rt.export.recipes.checkout import read_checkout

CHECKOUT = Path(__file__).parents[1] / "fixtures" / "checkout"
PROMPT, ANSWER = "models/autovla.py", "dataset_utils/sft_dataset.py"

ACTIONS, REASONING = Slot(slot="actions"), Slot(slot="reasoning")
ENDING = ("\n</think>\n<answer>\nOff we go: ", ACTIONS, "\n</answer>")

Edit = Callable[..., Path]


@pytest.fixture
def edit(tmp_path: Path) -> Edit:
    """Return a function that copies the checkout and replaces text in one of its files."""

    def apply(file: str, old: str, new: str, *, count: int = 1) -> Path:
        root = tmp_path / "checkout"
        if not root.exists():
            shutil.copytree(CHECKOUT, root)
        text = (root / file).read_text(encoding="utf-8")
        assert text.count(old) >= 1, f"{old!r} is not in the fixture"
        (root / file).write_text(text.replace(old, new, count), encoding="utf-8", newline="")
        return root

    return apply


def refusal(root: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        read_checkout(root)
    return str(caught.value)


def assert_shows(message: str, root: Path, file: str, line: str) -> None:
    """Assert that a message names the file and the number of the line, and quotes it."""
    lines = (root / file).read_text(encoding="utf-8").split("\n")
    quoted = message.splitlines()[1].strip()
    assert line in quoted
    numbers = [f"{root / file}:{i}" for i, text in enumerate(lines, 1) if text.strip() == quoted]
    assert message.splitlines()[0] in numbers
    assert "Expected" in message or "expected" in message


# What a checkout says


def test_reads_prompts_to_the_byte() -> None:
    recipe = read_checkout(CHECKOUT)
    user = (
        ("A test car looks out of three windows, each filmed.",),
        ("Window one, straight on, in four pictures.",),
        Video(camera="front"),
        ("Window two, towards the left, likewise.",),
        Video(camera="front_left"),
        ("Window three, towards the right, likewise.",),
        Video(camera="front_right"),
        (
            "It rolls at ",
            Slot(slot="velocity", format=".3f"),
            " m/s and gains ",
            Slot(slot="acceleration", format=".3f"),
            " m/s\u00b2. Somebody says: ",
            Slot(slot="instruction"),
            ". What now {in braces}? And {doubled}.",
        ),
    )
    assert recipe.prompt_cot == Prompt(
        system="Be the test car\u2019s driver. Ponder:\n\n1. **Look**: all around.\n"
        "2. **Weigh**:\tevery option.\n\nThen move.",
        user=user,
    )
    assert recipe.prompt_direct == Prompt(system="Be the test car\u2019s driver. Move.", user=user)
    assert recipe.add_vision_id is False


def test_reads_answers_to_the_byte() -> None:
    assert read_checkout(CHECKOUT).answer == AnswerFormat(
        direct=("<answer>\nOff we go: ", ACTIONS, "\n</answer>"),
        fast=("<think>\nHere is a plain road, no need to ponder." + ENDING[0], *ENDING[1:]),
        slow=("<think>\nHere is a tangle, let me sort it.\n", REASONING, *ENDING),
    )


def test_provenance_is_the_hash_of_each_file() -> None:
    assert read_checkout(CHECKOUT).provenance == {
        file: hashlib.sha256((CHECKOUT / file).read_bytes()).hexdigest()
        for file in (PROMPT, ANSWER)
    }


def test_source_is_never_executed(edit: Edit, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    side_effect = f'open({str(trace)!r}, "w").close()\nraise ImportError('
    for file in (PROMPT, ANSWER):
        assert "\nraise ImportError(" in (CHECKOUT / file).read_text(encoding="utf-8")
        root = edit(file, "raise ImportError(", side_effect)
    assert read_checkout(root).answer == read_checkout(CHECKOUT).answer
    assert not trace.exists()


def test_windows_line_ends_do_not_change_the_texts(edit: Edit) -> None:
    root = edit(PROMPT, '"Window one, straight on, in four pictures."', '"""Window\none"""')
    source = (root / PROMPT).read_bytes()
    (root / PROMPT).write_bytes(source.replace(b"\n", b"\r\n"))
    assert read_checkout(root).prompt_cot.user[1] == ("Window\none",)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        pytest.param(
            PROMPT,
            'instruction = input_features["driving_command"].lower()',
            'instruction = input_features["driving_command"]\n'
            "        instruction = instruction.lower()",
            id="lower in a second assignment",
        ),
        pytest.param(
            PROMPT,
            '"Window one, straight on, in four pictures."',
            '" ".join(("Window one, straight on,", "in four pictures."))',
            id="join",
        ),
        pytest.param(
            PROMPT,
            '"Window one, straight on, in four pictures."}',
            'f"{one}, straight on, " "in four pictures."}',
            id="local name",
        ),
        pytest.param(
            PROMPT,
            "        if self.use_cot:",
            "        if (self.use_cot):",
            id="switch in parentheses",
        ),
        pytest.param(
            PROMPT,
            'velocity = input_features["vehicle_velocity"]',
            'velocity = input_features.get("vehicle_velocity")',
            id="get",
        ),
        pytest.param(
            ANSWER,
            "gt_action_idx = target_trajectory",
            "if scene_data is None:\n            return None\n        "
            "gt_action_idx = target_trajectory",
            id="early return without messages",
        ),
        pytest.param(
            ANSWER, "        if not self.using_cot:", "        if not using_cot:", id="name"
        ),
        pytest.param(ANSWER, 'f"{gt_cot}\\n"', 'f"{gt_cot.strip()}\\n"', id="strip"),
        pytest.param(ANSWER, 'f"{gt_cot}\\n"', '"" f"{gt_cot}" "\\n"', id="empty pieces"),
        pytest.param(
            ANSWER,
            'gt_cot = scene_data["cot_output"]',
            'gt_cot: str = scene_data["cot_output"]',
            id="annotated",
        ),
    ],
)
def test_other_ways_to_write_the_same_text_read_the_same(
    edit: Edit, file: str, old: str, new: str
) -> None:
    edit(PROMPT, "        user_content = [", '        one = "Window one"\n        user_content = [')
    recipe = read_checkout(edit(file, old, new))
    expected = read_checkout(CHECKOUT)
    assert recipe.model_copy(update={"provenance": {}}) == expected.model_copy(
        update={"provenance": {}}
    )


def test_local_variables_and_plain_text_contents_are_followed(edit: Edit) -> None:
    text = (CHECKOUT / ANSWER).read_text(encoding="utf-8")
    start, end = text.index("        if not self.using_cot:"), text.index("        user_content =")
    rewritten = """
        action_text = self.action_tokenizer(gt_action_idx[0])
        answer = f"<answer>\\nOff we go: {action_text}\\n</answer>"
        if self.using_cot:
            system_content = "Ponder."
            if gt_cot:
                think = "<think>\\nHere is a tangle, let me sort it.\\n" + gt_cot + "\\n</think>"
            else:
                think = "<think>\\nHere is a plain road, no need to ponder.\\n</think>"
            assistant_content = "\\n".join([think, answer])
        else:
            system_content = "Move."
            assistant_content = answer

"""
    root = edit(ANSWER, text[start:end], rewritten)
    assert read_checkout(root).answer == read_checkout(CHECKOUT).answer


def test_the_switch_is_the_same_wherever_it_is_asked(edit: Edit) -> None:
    before = "        if not self.use_cot:\n            end = 'Move.'\n        else:\n"
    edit(PROMPT, SWITCH, f"{before}            end = 'Then move.'\n{SWITCH}")
    edit(PROMPT, '"Then move."', 'f"{end}"')
    root = edit(PROMPT, "driver. Move.", 'driver. " + end + "')
    recipe, expected = read_checkout(root), read_checkout(CHECKOUT)
    assert recipe.prompt_cot == expected.prompt_cot
    assert recipe.prompt_direct == expected.prompt_direct


def test_conditions_on_other_variables_do_not_count_as_ways(edit: Edit) -> None:
    splits = "".join(f"        if a{i}:\n            b{i} = compute({i})\n" for i in range(12))
    recipe = read_checkout(edit(PROMPT, SWITCH, splits + SWITCH))
    assert recipe.prompt_cot == read_checkout(CHECKOUT).prompt_cot


# What it refuses

LOWER = 'instruction = input_features["driving_command"].lower()'
ONE = '{"type": "text", "text": "Window one, straight on, in four pictures."}'
THREE = '"Window three, towards the right, likewise."'
SPEED = 'f"It rolls at {velocity:.3f} m/s'
SWITCH = "        if self.use_cot:"
AFTER = "        _, video_inputs"
VIDEO = '{"type": "video", "video": [left_camera_1, left_camera_2, left_camera_3, left_camera_4]},'
NORM = "np.sqrt(velocity_x**2 + velocity_y**2)"

PROMPT_SHAPES = {
    # name: (text of the fixture, what takes its place, part of the line that must be shown)
    "call": (ONE, '{"type": "text", "text": describe()}', "describe()"),
    "call in an f-string": (SPEED, 'f"It rolls at {round(velocity, 3)} m/s', "{round("),
    "percent format": (THREE, '"Window %s." % "three"', '% "three"'),
    "str.format": (THREE, '"Window {}.".format(3)', ".format(3)"),
    "unknown variable": (SPEED, 'f"It rolls at {pace:.3f} m/s', "{pace"),
    "conversion": (SPEED, 'f"It rolls at {velocity!r} m/s', "{velocity!r}"),
    "variable format": (SPEED, 'f"It rolls at {velocity:{width}} m/s', "{velocity:{width}}"),
    "no format": (SPEED, 'f"It rolls at {velocity} m/s', "user_content = ["),
    "bad format": (SPEED, 'f"It rolls at {velocity:.3q} m/s', "user_content = ["),
    "slot twice": (SPEED, 'f"{velocity:.1f} rolls at {velocity:.3f} m/s', "user_content = ["),
    "slot of the answer": (SPEED, 'f"It rolls at {gt_cot} m/s', "user_content = ["),
    "camera in a text": (SPEED, 'f"It {front_camera_1} {velocity:.3f} m/s', "It {front_camera_1}"),
    "variable in system": ('"Then move."', 'f"Then {velocity:.3f}."', '"Be the test car'),
    "parts built by a loop": (
        SWITCH,
        "        user_content = []\n"
        f"        for p in x:\n            user_content.append(p)\n{SWITCH}",
        "for p in x",
    ),
    "parts changed by a loop": (
        SWITCH,
        f"        for part in user_content:\n            part['text'] += '!'\n{SWITCH}",
        "for part in user_content",
    ),
    "part appended": (
        SWITCH,
        f"        user_content.append(more)\n{SWITCH}",
        "user_content.append(more)",
    ),
    "parts extended": (SWITCH, f"        user_content += more\n{SWITCH}", "user_content += more"),
    "changed in a branch": (
        SWITCH,
        f"        if mode:\n            user_content = user_content[1:]\n{SWITCH}",
        "user_content = user_content[1:]",
    ),
    "changed afterwards": (
        AFTER,
        f"        messages[0]['content'] = 'other'\n{AFTER}",
        "messages[0]['content'] = 'other'",
    ),
    "handed to a helper": (AFTER, f"        decorate(messages)\n{AFTER}", "decorate(messages)"),
    "inside try": (
        SWITCH,
        "        try:\n            user_content = []\n"
        f"        finally:\n            pass\n{SWITCH}",
        "try:",
    ),
    "messages by a helper": (
        "            messages = [",
        "            messages = self.build() or [",
        "messages = self.build()",
    ),
    "content by a helper": (
        '"content": user_content',
        '"content": self.parts',
        "self.parts",
    ),
    "another role": ('"role": "system"', '"role": "tool"', "messages = ["),
    "one branch only": (
        "        else:\n            messages =",
        "        else:\n            others =",
        "def get_prompt",
    ),
    "another condition": (SWITCH, "        if self.mode:", "messages = ["),
    "mixed frames": ("{front_camera_1}", "{right_camera_1}", '"video": ['),
    "newest frame first": ("{front_camera_2}", "{front_camera_1}", '"video": ['),
    "frame by a helper": ('f"file://{front_camera_2}"', "self.path(2)", "self.path(2)"),
    "videos out of order": (ONE + ",", VIDEO, VIDEO),
    "image": ('"type": "video"', '"type": "image"', "{"),
    "unknown key of a part": (ONE, ONE[:-1] + ', "weight": 1}', "Window one"),
    "not lower-cased": (LOWER, LOWER[:-8], "Somebody says"),
    "not lower-cased in a sum": (THREE, '"Now " + driving_command', "+ driving_command"),
    "upper-cased": (LOWER, LOWER[:-8] + ".upper()", ".upper()"),
    "instruction rewritten": (
        LOWER,
        LOWER[:-8] + '.replace("_", " ").lower()',
        '.replace("_", " ")',
    ),
    "another unit": (f"velocity = {NORM}", f"velocity = 3.6 * {NORM}", "velocity = 3.6 *"),
    "another unit inside the norm": (NORM, "np.sqrt(3.6 * velocity_x**2)", "np.sqrt(3.6"),
}

ACTION = 'self.action_tokenizer(gt_action_idx[0]) + "\\n"'

ANSWER_SHAPES = {
    "unknown suffix": ('f"{gt_cot}\\n"', 'f"{gt_cot}" + suffix + "\\n"', "+ suffix"),
    "unknown renderer": (ACTION, 'self.render(gt_action_idx[0]) + "\\n"', "self.render"),
    "reasoning by key": ('f"{gt_cot}\\n"', "f'{gt_cot[\"text\"]}\\n'", '{gt_cot["text"]}'),
    "no actions": (ACTION, '"nowhere\\n"', "<think>"),
    "two fast answers": ("no need to ponder.", "no need at all.", "<think>"),
    "no slow answer": ('f"{gt_cot}\\n"', '"..."', "<think>"),
    "reasoning rewritten by walrus": (
        "if len(gt_cot) == 5:",
        "if len(gt_cot) == 5 and (gt_cot := []):",
        "gt_cot :=",
    ),
    "reasoning in pieces, another ending": (
        'f"# What to do\\n{gt_cot[4]}\\n"',
        'f"# What to do\\n{gt_cot[4]}"',
        "<think>",
    ),
    "reasoning in pieces, another opening": (
        'sort it.\\n"\n                            f"#',
        'cut it.\\n"\n                            f"#',
        "<think>",
    ),
    "no assistant": (
        '{"role": "assistant", "content": assistant_content},',
        "",
        "messages = [",
    ),
    "a way without an answer": ("sys.exit()", "pass", '"content": assistant_content'),
    "another condition": ("if not self.using_cot:", "if not self.fast:", "messages = ["),
}

SHAPES = {
    **{f"prompt: {name}": (PROMPT, *shape) for name, shape in PROMPT_SHAPES.items()},
    **{f"answer: {name}": (ANSWER, *shape) for name, shape in ANSWER_SHAPES.items()},
}


@pytest.mark.parametrize(("file", "old", "new", "line"), SHAPES.values(), ids=SHAPES)
def test_unknown_shapes_are_refused_with_their_line(
    edit: Edit, file: str, old: str, new: str, line: str
) -> None:
    root = edit(file, old, new)
    assert_shows(refusal(root), root, file, line)


@pytest.mark.parametrize(
    "norm",
    [
        "float(velocity_x * KMH)",
        "float(velocity_x / 2)",
        "float(velocity_x - bias)",
        "float(velocity_x + velocity_y)",
        "float(velocity_x**2)",
        "float(-velocity_x)",
        "float(to_kmh(velocity_x))",
        "float((velocity * KMH)[0])",
        "np.sqrt(velocity_x)",
        "np.sqrt(velocity_x**2 - velocity_y**2)",
        "np.sqrt(velocity_x**2 + velocity_y)",
        "np.sqrt(velocity_x**2 * 2)",
        "np.sqrt(velocity_x**1)",
        "np.sqrt((velocity_x * KMH) ** 2 + velocity_y**2)",
        "np.hypot(velocity_x * KMH, velocity_y)",
        "np.linalg.norm(velocity, 1)",
        "np.linalg.norm(velocity, ord=1)",
        "np.linalg.norm([velocity_x * KMH, velocity_y])",
    ],
)
def test_arithmetic_that_changes_the_unit_is_no_norm(edit: Edit, norm: str) -> None:
    root = edit(PROMPT, NORM, norm)
    assert_shows(refusal(root), root, PROMPT, f"velocity = {norm}")


@pytest.mark.parametrize(
    "norm",
    [
        "float(velocity_x)",
        "float(velocity[0])",
        'float(input_features["velocity"][0])',
        'float(input_features.get("velocity"))',
        "float(self.velocity)",
        "math.sqrt(velocity[0] ** 2 + velocity[1] ** 2 + velocity[2] ** 2)",
        "float(np.sqrt(velocity_x**2 + velocity_y**2))",
        "np.hypot(velocity_x, velocity_y)",
        "np.linalg.norm(velocity)",
        "float(np.linalg.norm(velocity[:2]))",
        "np.linalg.norm([velocity_x, velocity_y])",
    ],
)
def test_norms_and_numbers_as_they_are_read_are_the_velocity(edit: Edit, norm: str) -> None:
    assert read_checkout(edit(PROMPT, NORM, norm)).prompt_cot == read_checkout(CHECKOUT).prompt_cot


def test_a_fourth_video_is_refused_with_its_line(edit: Edit) -> None:
    text = '            {\n                "type": "text",\n                "text": (\n'
    root = edit(PROMPT, text + '                    f"It', f"            {VIDEO}\n{text}" + ' f"It')
    message = refusal(root)
    assert_shows(message, root, PROMPT, VIDEO)
    assert "no further video" in message


def test_a_prompt_that_depends_on_another_condition_is_refused(edit: Edit) -> None:
    edit(
        PROMPT,
        SWITCH,
        f"        order = 'Go.'\n        if tired:\n            order = ''\n{SWITCH}",
    )
    message = refusal(edit(PROMPT, '"Then move."', "f'Then move.{order}'"))
    assert "the same text on every way with use_cot = True, found 2" in message


def test_a_slot_that_one_way_assigns_otherwise_is_refused(edit: Edit) -> None:
    edit(
        PROMPT,
        "        user_content = [",
        "        if metric:\n            pass\n        else:\n            speed = miles()\n"
        "        user_content = [",
    )
    root = edit(PROMPT, SPEED, SPEED.replace("velocity", "speed"))
    assert_shows(refusal(root), root, PROMPT, "speed = miles()")


def test_two_videos_are_refused(edit: Edit) -> None:
    source = (CHECKOUT / PROMPT).read_text(encoding="utf-8")
    start = source.rindex('            {\n                "type": "video"')
    end = source.index("            },\n", start) + len("            },\n")
    message = refusal(edit(PROMPT, source[start:end], ""))
    assert "got front, front_left." in message


def test_too_many_ways_are_refused(edit: Edit) -> None:
    splits = "".join(
        f"        if a{i}:\n            t{i} = '0'\n        else:\n            t{i} = '1'\n"
        for i in range(12)
    )
    root = edit(PROMPT, SWITCH, splits + SWITCH)
    message = refusal(root)
    assert "different ways" in message
    assert f"{root / PROMPT}:" in message


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        (PROMPT, "class AutoVLA(", "class Other(", "class AutoVLA with one method get_prompt"),
        (PROMPT, "class SFTAutoVLA(", "class AutoVLA(", "found line"),
        (PROMPT, "    def get_prompt(self, input", "    def build(self, input", "found none"),
        (ANSWER, "def __getitem__", "def item", "one method __getitem__, found none"),
    ],
)
def test_missing_or_double_class_and_method_are_refused(
    edit: Edit, file: str, old: str, new: str, expected: str
) -> None:
    root = edit(file, old, new)
    message = refusal(root)
    assert str(root / file) in message
    assert expected in message


@pytest.mark.parametrize("file", [PROMPT, ANSWER])
def test_a_missing_file_is_named(edit: Edit, file: str) -> None:
    root = edit(file, "raise ImportError(", "raise ImportError(")
    (root / file).unlink()
    assert str(root / file) in refusal(root)


def test_a_syntax_error_shows_its_line(edit: Edit) -> None:
    root = edit(PROMPT, "min_pixels = self", "min_pixels = = self")
    assert_shows(refusal(root), root, PROMPT, "min_pixels = =")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"text = '\xe4'\n", "UTF-8"),
        (b"# -*- coding: latin-1 -*-\ntext = 'a'\n", "iso-8859-1"),
        (b"text = '\x00'\n", "null bytes"),
        (b"x = " + b"(" * 5000 + b"\n", "nested"),
        (b"x = " + b"-" * 100_000 + b"1\n", "gave up"),
    ],
    ids=["latin-1 bytes", "declared latin-1", "null byte", "deep parentheses", "deep tree"],
)
def test_a_file_that_is_no_utf_8_python_is_refused(edit: Edit, data: bytes, expected: str) -> None:
    root = edit(PROMPT, "raise ImportError(", "raise ImportError(")
    (root / PROMPT).write_bytes(data)
    message = refusal(root)
    assert str(root / PROMPT) in message
    assert expected in message


def test_a_text_of_endless_sums_is_refused(edit: Edit) -> None:
    root = edit(PROMPT, THREE, " + ".join(['"a"'] * 900))
    assert "too deep" in refusal(root)


def test_an_invalid_escape_in_the_source_is_no_warning(edit: Edit) -> None:
    root = edit(PROMPT, THREE, r'"Window \d"')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_checkout(root).prompt_cot.user[5] == ("Window \\d",)
    assert not caught
