"""Write a miniature AutoVLA with RANDOM weights, in the layout of the official training repository.

Run `python demo/miniature.py OUT --seed 0`. The same seed gives the same bytes:

    OUT/base/                  Hugging Face folder of a small Qwen2.5-VL with action tokens
    OUT/codebook.safetensors   2,048 actions, clustered from a kinematic bicycle model
    OUT/config.yaml            training configuration; its paths are relative to OUT

It has every part of the real model at a size that builds and runs in seconds. It drives nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from autovla_rt.config import Geometry, LanguageGeometry, Preprocessing, VisionGeometry
from autovla_rt.export.k_disk import k_disk
from autovla_rt.export.tensors.model_names import EMBEDDING, expected_shapes
from autovla_rt.kernels.contour import pose_to_corners

RECIPE = Path(__file__).with_name("recipe.toml")

NUM_ACTIONS = 2048
NUM_TEXT_TOKENS = 1500
MAX_PIXELS = 32 * 28 * 28
"""Frames of 16:9 become 196x112: a grid of (2, 8, 14)."""

VISION = VisionGeometry(
    depth=4,
    hidden_size=128,
    num_heads=2,
    intermediate_size=384,
    out_hidden_size=256,
    fullatt_block_indexes=(1, 3),
)

EMBEDDING_DEVIATION = 0.12
"""The tied head sums 256 products of it: logits with a deviation near 2."""

GAINS = (
    ("model.layers", "o_proj.weight", 0.3),
    ("model.layers", "down_proj.weight", 2.0),
    ("model.layers", "q_proj.weight", 1.5),
    ("model.layers", "k_proj.weight", 1.5),
    ("visual.merger", "mlp.2.weight", 0.3),
)
"""Prefix, suffix, factor on a linear layer's 1 / sqrt(inputs). Found by trial: with 1 everywhere
the average over the prompt drowns the last token, and all ten actions come out the same."""

# The order of Qwen2.5's added tokens, which follow the text tokens.
SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
PLAIN_ADDED_TOKENS = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
QWEN_PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = """\
{%- set seen = namespace(images=0, videos=0) -%}
{%- if messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' ~ message.role ~ '\\n' }}
{%- for part in ([{'text': message.content}] if message.content is string else message.content) -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{%- set seen.images = seen.images + 1 -%}
{{ ('Picture ' ~ seen.images ~ ': ') if add_vision_id else '' }}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' or 'video' in part -%}
{%- set seen.videos = seen.videos + 1 -%}
{{ ('Video ' ~ seen.videos ~ ': ') if add_vision_id else '' }}
{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- else -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"""


NARRATION = (
    "Scene: a {surface} road near a {place} on {name} {street}, a {weather} {daytime}.",
    "A {colour} {road_user} {motion} about {metres} metres {where}.",
    "The traffic light shows {light}; the {road_user} {may} {act}.",
    "The route goes to {name} {street}: {manoeuvre}, {change} the speed to {speed:.1f} m/s.",
)
NARRATION_WORDS = {
    "surface": "wet|dry|quiet|busy|curved|straight|narrow|wide",
    "place": "crossing|junction|roundabout|bus stop|narrow bridge|parking place|school",
    "street": "Street|Road|Lane|Avenue|Square|Bridge",
    "weather": "sunny|cloudy|foggy|rainy",
    "daytime": "morning|afternoon|evening|night",
    "colour": "red|blue|white|black|grey|yellow",
    "road_user": "car|van|truck|bus|taxi|cyclist|pedestrian|motorcycle|child with a ball",
    "motion": "brakes|waits|turns|stands|merges|slows down|speeds up",
    "where": "ahead|behind the crossing|to the left|to the right",
    "light": "red|green|amber",
    "may": "will probably|may|could|should not",
    "act": "cross|stop|overtake|yield",
    "manoeuvre": "keep the lane|turn left|turn right|stop before the line|give way",
    "change": "hold|reduce|increase",
}
NAME_SYLLABLES = (
    "al|ber|cor|dun|el|far|gren|hol|ing|kar|lin|mar|nor|os|pel|ris|sten|tor|um|wen|"
    "ash|bri|chal|dow|eck|fen|gil|hart|jen|kest|low|mun|nel|prim|quil|rost|shaw|tre|val|york"
)


def write_miniature(out: Path, seed: int) -> None:
    """Write base folder, codebook and configuration under `out`; equal seeds give equal bytes."""
    rng = np.random.default_rng(seed)
    tokenizer = train_tokenizer(corpus(narrate(rng)))
    corners = k_disk(pose_to_corners(bicycle_steps(rng)), NUM_ACTIONS, tolerance=0.05, seed=seed)
    geometry = write_foundation(out, tokenizer, corners, "with RANDOM weights (demo/miniature.py)")
    write_weights(out / "base" / "model.safetensors", geometry, rng)


def write_foundation(
    out: Path, tokenizer: Tokenizer, corners: NDArray[np.float32], what: str
) -> Geometry:
    """Write base folder, codebook [2048, 4, 2] and configuration (its head says `what`)."""
    base = out / "base"
    base.mkdir(parents=True, exist_ok=True)
    geometry = Geometry(vision=VISION, language=language_geometry(tokenizer.get_vocab_size()))
    tokenizer.save(str(base / "tokenizer.json"))
    write_json(base / "tokenizer_config.json", tokenizer_config(tokenizer))
    write_json(base / "config.json", model_config(geometry, tokenizer))
    write_json(base / "generation_config.json", generation_config(tokenizer))
    write_json(base / "preprocessor_config.json", preprocessor_config())
    write_safetensors(out / "codebook.safetensors", {"corners": ("F32", corners.astype("<f4"))})
    (out / "config.yaml").write_text(training_config(tokenizer, what), encoding="utf-8")
    return geometry


def language_geometry(vocab_size: int) -> LanguageGeometry:
    """Return the language model's geometry around a vocabulary."""
    return LanguageGeometry(
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=768,
        vocab_size=vocab_size,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        mrope_section=(8, 12, 12),
        tie_word_embeddings=True,
    )


def train_tokenizer(lines: Iterable[str]) -> Tokenizer:
    """Return a byte-level BPE with Qwen2.5's pre-tokenizer and the action tokens as last ids."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = NFC()
    # Without Qwen's split a BPE of so small a corpus would swallow whole phrases.
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(QWEN_PRE_TOKENIZER), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=NUM_TEXT_TOKENS,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in PLAIN_ADDED_TOKENS])
    tokenizer.add_tokens([f"<action_{i}>" for i in range(NUM_ACTIONS)])
    return tokenizer


def corpus(narration: Iterable[str]) -> Iterator[str]:
    """Yield the recipe's texts many times, so that they merge well, and answers that narrate.

    `narration` gives the lines of reasoning, four an answer, and ends or not.
    """
    recipe = list(texts(tomllib.loads(RECIPE.read_text(encoding="utf-8"))))
    reasoning = iter(narration)
    for _ in range(200):
        yield from recipe
        yield from ("system\n", "user\n", "assistant\n")
        lines = "\n".join(itertools.islice(reasoning, 4))
        yield f"<think>\n{lines}\n</think>\n<answer>\nmotion\n</answer>"


def texts(node: Any) -> Iterator[str]:
    """Yield every text inside a TOML document."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from texts(value)


def narrate(rng: np.random.Generator) -> Iterator[str]:
    """Yield lines of reasoning about made-up scenes, without end."""

    def pick(options: str) -> str:
        return str(rng.choice(options.split("|")))

    for template in itertools.cycle(NARRATION):
        words = {slot: pick(options) for slot, options in NARRATION_WORDS.items()}
        name = "".join(pick(NAME_SYLLABLES) for _ in range(rng.integers(2, 5)))
        yield template.format(
            name=name.capitalize(),
            metres=rng.integers(3, 60),
            speed=rng.uniform(0, 15),
            **words,
        )


def bicycle_steps(rng: np.random.Generator, count: int = 60_000) -> NDArray[np.float64]:
    """Return `count` motions of 0.5 s as poses [count, 3] (m, rad), the first a standstill.

    Kinematic bicycle model about the car's centre, with town speeds and at most 3.5 m/s² of
    lateral acceleration (Rajamani, Vehicle Dynamics and Control, section 2.2).
    """
    axle, dt = 1.4, 0.1
    speed, acceleration = rng.uniform(0, 14, count), rng.uniform(-4, 2.5, count)
    curvature = rng.normal(0, 0.06, count).clip(-0.17, 0.17)
    curvature = np.sign(curvature) * np.minimum(np.abs(curvature), 3.5 / np.maximum(speed, 1) ** 2)
    slip = np.arcsin(curvature * axle)
    pose = np.zeros((count, 3))
    for _ in range(5):
        speed = np.maximum(speed + acceleration * dt, 0)
        course = pose[:, 2] + slip
        pose += dt * speed[:, None] * np.stack([np.cos(course), np.sin(course), curvature], axis=1)
    pose[0] = 0
    return pose


def write_weights(path: Path, geometry: Geometry, rng: np.random.Generator) -> None:
    """Write random tensors in bfloat16: norms near 1, linear layers by `GAINS`."""
    tensors: dict[str, tuple[str, NDArray[Any]]] = {}
    for name, shape in expected_shapes(geometry).items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if name == EMBEDDING:
            values *= EMBEDDING_DEVIATION
        elif name.endswith(".bias"):
            values *= 0.1
        elif len(shape) == 1:
            values = 1 + 0.1 * values
        else:
            values *= np.float32(gain(name) / np.sqrt(np.prod(shape[1:])))
        tensors[name] = ("BF16", bfloat16_bits(values))
    write_safetensors(path, tensors)


def gain(name: str) -> float:
    """Return the factor on the deviation of a linear layer's weights."""
    return next((g for pre, suf, g in GAINS if name.startswith(pre) and name.endswith(suf)), 1.0)


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, NDArray[Any]]]) -> None:
    """Write name -> (safetensors dtype, little-endian bits) in the given order.

    By hand, since the library needs torch for bfloat16. Format: length of the header in 8 bytes,
    header in JSON, data. The metadata is what transformers asks for.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, bits) in tensors.items():
        start, end = end, end + bits.nbytes
        header[name] = {"dtype": dtype, "shape": bits.shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    data = b"".join(bits.tobytes() for _, bits in tensors.values())
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return finite float32 values as bfloat16 bit patterns, rounded to nearest even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def model_config(geometry: Geometry, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return config.json in the flat layout of the hub, which transformers 4.49 and 4.57 read."""
    language = geometry.language.model_dump(exclude={"head_dim", "mrope_section"})
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **language,
        "rope_scaling": {"type": "mrope", "mrope_section": geometry.language.mrope_section},
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "max_position_embeddings": 4096,
        "max_window_layers": language["num_hidden_layers"],
        "sliding_window": 4096,
        "use_sliding_window": False,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "vision_token_id": tokenizer.token_to_id("<|vision_pad|>"),
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "hidden_act": "silu",
            **geometry.vision.model_dump(),
            "tokens_per_second": 2,
        },
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return generation_config.json with the values of Qwen2.5-VL-3B-Instruct."""
    end_of_text = tokenizer.token_to_id("<|endoftext|>")
    return {
        "bos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "eos_token_id": [tokenizer.token_to_id("<|im_end|>"), end_of_text],
        "do_sample": True,
        "repetition_penalty": 1.05,
        "temperature": 1e-6,
    }


def preprocessor_config() -> dict[str, Any]:
    """Return preprocessor_config.json; its pixel bounds are Qwen's, training narrows them."""
    defaults = Preprocessing()
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": VISION.patch_size,
        "temporal_patch_size": VISION.temporal_patch_size,
        "merge_size": VISION.spatial_merge_size,
        "image_mean": defaults.image_mean,
        "image_std": defaults.image_std,
    }


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return tokenizer_config.json as transformers writes it for Qwen2Tokenizer."""
    added = {
        str(index): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "additional_special_tokens": SPECIAL_TOKENS[1:],
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": 4096,
        "chat_template": CHAT_TEMPLATE,
    }


def training_config(tokenizer: Tokenizer, what: str) -> str:
    """Return the YAML that the training repository keeps beside a run; `what` goes to its head."""
    assistant = tokenizer.encode("<|im_start|>assistant").ids
    return f"""\
# Miniature AutoVLA {what}; paths are relative to this file.
model:
  use_cot: true
  pretrained_model_path: base
  codebook_cache_path: codebook.safetensors
  trajectory:
    num_poses: 10
    interval_length: 0.5
    time_horizon: 5.0
  tokens:
    action_start_id: {tokenizer.token_to_id("<action_0>")}
    assistant_id: {assistant}
  video:
    min_pixels: {MAX_PIXELS}
    max_pixels: {MAX_PIXELS}
inference:
  sample:
    max_length: 2048
    temperature: 0.8
    top_k: 20
    top_p: 0.2
"""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with its keys in the given order."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a miniature AutoVLA with random weights.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_miniature(arguments.out, arguments.seed)
    print(f"{arguments.out}: a miniature AutoVLA with RANDOM weights; its plans mean nothing.")
