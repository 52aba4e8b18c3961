"""The compiled prompt against the chat template that training rendered it with."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from autovla_rt.config import Camera, CompiledPrompt, Prompt, Slot, Video
from autovla_rt.errors import RecipeError
from autovla_rt.export.prompt import compile_prompt

CAMERAS = (Camera(name="front", grid=(2, 4, 6)), Camera(name="front_left", grid=(2, 2, 4)))
SLOT = Slot(slot="velocity", format=".3f")
PROMPT = Prompt(
    system="You drive.",
    user=(
        ("Look",),
        ("ahead:",),
        Video(camera="front"),
        (" left: ",),
        Video(camera="front_left"),
        ("Speed ", SLOT, "."),
    ),
)


@pytest.fixture(scope="module")
def tokenizer(qwen_folder):
    return Tokenizer.from_file(str(qwen_folder / "tokenizer.json"))


def rendered(videos: tuple[str, str]) -> str:
    first, second = videos
    return (
        "<|im_start|>system\nYou drive.<|im_end|>\n<|im_start|>user\nLookahead:"
        f"{first}<|vision_start|>{'<|video_pad|>' * 12}<|vision_end|> left: "
        f"{second}<|vision_start|>{'<|video_pad|>' * 4}<|vision_end|>"
    )


@pytest.mark.parametrize("labelled", [False, True])
def test_the_prefix_is_the_rendered_template(tokenizer, tiny_geometry, labelled):
    compiled = compile_prompt(tokenizer, PROMPT, CAMERAS, tiny_geometry, add_vision_id=labelled)
    labels = ("Video 1: ", "Video 2: ") if labelled else ("", "")
    text = rendered(labels)
    assert list(compiled.prefix_ids) == tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(compiled.prefix_ids, skip_special_tokens=False) == text


def test_the_prefix_is_what_transformers_renders(tokenizer, tiny_geometry, qwen_folder):
    transformers = pytest.importorskip("transformers")
    fast = transformers.AutoTokenizer.from_pretrained(qwen_folder)
    if fast.chat_template is None:
        pytest.skip("the processor files have no chat template beside the tokenizer")
    video = {"type": "video", "video": "x"}
    parts = ["Look", "ahead:", video, " left: ", video, "Speed 1.000."]
    user = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    system = [{"type": "text", "text": "You drive."}]
    text = fast.apply_chat_template(
        [{"role": "system", "content": system}, {"role": "user", "content": user}],
        tokenize=False,
        add_generation_prompt=True,
    )
    pad = "<|video_pad|>"
    head, middle, tail = text.split(pad)
    compiled = compile_prompt(tokenizer, PROMPT, CAMERAS, tiny_geometry, add_vision_id=False)
    ours = tokenizer.decode(compiled.prefix_ids, skip_special_tokens=False)
    ours += "".join("1.000" if isinstance(part, Slot) else part for part in compiled.tail)
    assert ours == head + pad * 12 + middle + pad * 4 + tail


def test_videos_stand_where_their_placeholders_are(tokenizer, tiny_geometry):
    compiled = compile_prompt(tokenizer, PROMPT, CAMERAS, tiny_geometry, add_vision_id=False)
    pad = tokenizer.token_to_id("<|video_pad|>")
    assert [(video.camera, video.count) for video in compiled.videos] == [
        ("front", 12),
        ("front_left", 4),
    ]
    taken = [i for v in compiled.videos for i in range(v.start, v.start + v.count)]
    assert taken == [i for i, token in enumerate(compiled.prefix_ids) if token == pad]


def test_the_tail_keeps_its_slot_and_opens_the_answer(tokenizer, tiny_geometry):
    compiled = compile_prompt(tokenizer, PROMPT, CAMERAS, tiny_geometry, add_vision_id=False)
    assert compiled.tail == ("Speed ", SLOT, ".", "<|im_end|>\n<|im_start|>assistant\n")
    assert CompiledPrompt.model_validate_json(compiled.model_dump_json()) == compiled


def spoiled(*user) -> Prompt:
    return Prompt(system="s", user=user)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (spoiled(Video(camera="rear"), ("x",)), "the camera 'rear', expected one of front,"),
        (spoiled((SLOT,), Video(camera="front")), "slot {velocity} stands before the last"),
    ],
)
def test_prompts_that_cannot_be_compiled(tokenizer, tiny_geometry, prompt, message):
    with pytest.raises(RecipeError) as caught:
        compile_prompt(tokenizer, prompt, CAMERAS, tiny_geometry, add_vision_id=False)
    assert message in str(caught.value)
