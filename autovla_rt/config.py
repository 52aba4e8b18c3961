"""The data that export and runtime agree on: geometry, cameras, prompt and answer format.

Everything here is written into the engine bundle as JSON, so every model forbids unknown keys.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

CAMERAS = ("front", "front_left", "front_right")
"""Cameras in the order of the prompt."""

FRAMES_PER_CAMERA = 4

INSTRUCTIONS_HINT = "any non-empty text, e.g. 'keep forward', 'turn left', 'turn right'"


class Model(BaseModel):
    """Immutable, strict base of every schema in the bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class VisionGeometry(Model):
    """Qwen2.5-VL vision tower (transformers `Qwen2_5_VLVisionConfig`)."""

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    out_hidden_size: int
    fullatt_block_indexes: tuple[int, ...]
    in_channels: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    tokens_per_second: float = 2.0

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_width(self) -> int:
        """Values in one flattened patch: channels x temporal x height x width (1176 at 14 px)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


class LanguageGeometry(Model):
    """Qwen2.5-VL language model (transformers `Qwen2_5_VLTextConfig`)."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    tie_word_embeddings: bool

    @property
    def kept_numbers(self) -> int:
        """Numbers in the keys and values of one position, of all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim


class Geometry(Model):
    """Shapes of the whole model."""

    vision: VisionGeometry
    language: LanguageGeometry


class Preprocessing(Model):
    """How a frame becomes numbers: qwen-vl-utils' resize, then the processor's normalisation."""

    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 140 * 28 * 28


class Camera(Model):
    """One camera of the compiled layout.

    `grid` is (temporal patches, patch rows, patch columns) as the Qwen2.5-VL processor reports it.
    """

    name: str
    grid: tuple[int, int, int]

    def num_visual_tokens(self, spatial_merge_size: int) -> int:
        """Tokens that this camera takes in the prompt (patches / merge²)."""
        frames, rows, columns = self.grid
        return frames * rows * columns // spatial_merge_size**2


class Slot(Model):
    """A hole in a template that the request or the answer fills.

    `format` is a Python format specification applied to the value ("" for text, ".3f" for numbers).
    """

    slot: Literal["velocity", "acceleration", "instruction", "reasoning", "actions"]
    format: str = ""


class Video(Model):
    """The place of one camera's video in the user message."""

    camera: str


Template = tuple[str | Slot, ...]
"""Literal text and slots, in order, joined without separators."""


class Prompt(Model):
    """System text and the user message's parts (texts and videos) in order."""

    system: str
    user: tuple[Template | Video, ...]


class AnswerFormat(Model):
    """The three answers that a checkpoint can give, as whole assistant texts.

    `direct` is the answer without chain of thought ({actions} only). `fast` and `slow` are the two
    answers of a chain-of-thought checkpoint: `fast` closes the think block at once ({actions}
    only), `slow` holds {reasoning} before {actions}.
    """

    direct: Template
    fast: Template
    slow: Template


class Recipe(Model):
    """Prompt and answer format, with where they were read from (path -> sha256)."""

    prompt_cot: Prompt
    prompt_direct: Prompt
    answer: AnswerFormat
    add_vision_id: bool = False
    provenance: dict[str, str] = Field(default_factory=dict)


class ActionSpace(Model):
    """The action vocabulary: the last `num_actions` ids; a plan has `num_poses`, `dt` s apart."""

    action_start_id: int
    num_actions: int
    num_poses: int = 10
    dt: float = 0.5


class VideoTokens(Model):
    """Where a camera's visual tokens stand in the prompt."""

    camera: str
    start: int
    count: int


class CompiledPrompt(Model):
    """The prompt of one engine: constant token ids up to the last video, then a text with slots.

    `prefix_ids` holds `<|video_pad|>` at every visual token. `tail` starts right after the last
    `<|vision_end|>`, a token border, and ends where the assistant's answer begins.
    """

    prefix_ids: tuple[int, ...]
    videos: tuple[VideoTokens, ...]
    tail: Template


LATENCY_FOLDER = "latency"
"""In a bundle's folder, outside its manifest: what was measured with it, by machine."""

TENSORRT_SINCE = {"plain": (10, 3), "standard": (10, 15)}
"""Dialect of a GPU's graphs -> the oldest TensorRT, (major, minor), that they are for.

10.3 is that of JetPack 6; RotaryEmbedding and the cache's layer came with 10.15.
"""

KV_COPIES = {"plain": 2, "standard": 1}
"""The same -> how often keys and values are kept: a plain pass reads one copy and writes the other.
"""

PLANS_FOLDER = "plans"
"""Likewise: its graphs, compiled for GPUs."""

SPARE_POSITIONS = 4
"""Rotary rows and KV positions behind an engine's capacity, for padded passes of the runtime."""


KV_TYPES = {"auto": "float32", "int8": "int8"}
"""Number format of keys and values that are kept -> NumPy's name of it in the `ort` backend."""


class Precision(Model):
    """Number formats of an engine.

    Attributes:
        vision: Of the vision tower's weights.
        language: Of the language model's and the text head's.
        overrides: Part or beginning of a layer's name -> another format; a later one counts.
        kv: Of the keys and values that are kept; "auto" is what is computed in.
        int4_block: Inputs that share a scale in int4 and int8_wo.
        activations: Of what is computed between products, "fp32", "fp16" or "bf16"; a CPU without
            bfloat16 computes in float32 instead.
    """

    vision: str
    language: str
    overrides: dict[str, str] = Field(default_factory=dict)
    kv: str = "auto"
    int4_block: int = 128
    activations: str = "fp32"

    @property
    def vision_formats(self) -> set[str]:
        """Formats of the vision tower."""
        return {self.vision, *(of for part, of in self.overrides.items() if is_vision(part))}

    @property
    def language_formats(self) -> set[str]:
        """Formats of the language model and the text head."""
        return {self.language, *(of for part, of in self.overrides.items() if not is_vision(part))}

    def __str__(self) -> str:
        """Return it as `build --precision` takes it, but for calibration."""
        others = {**self.overrides, **({} if self.kv == "auto" else {"kv": self.kv})}
        changed = "".join(f",{part}={of}" for part, of in others.items())
        return f"{self.vision}/{self.language}{changed}"


def is_vision(part: str) -> bool:
    """Whether a part, or the beginning of a layer's name, is of the vision tower."""
    return part.startswith("vis")
