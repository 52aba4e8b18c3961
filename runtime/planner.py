"""From a request to a plan: the stages in order."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from autovla_rt.bundle import Bundle, Manifest, load_bundle, manifest_identity
from autovla_rt.errors import BundleError, CapacityError, InputError
from autovla_rt.runtime.actions import Codebook
from autovla_rt.runtime.backends import Float, FrameEngine, LanguageEngine, VisionEngine
from autovla_rt.runtime.camera_encoder import CameraEncoder, Seen
from autovla_rt.runtime.decode import Decoded, decode, generate
from autovla_rt.runtime.decoding_options import (
    DEFAULT_THINKING_TOKEN_BUDGET,
    Decoding,
    DecodingOptions,
    Mode,
)
from autovla_rt.runtime.draft import NO_DRAFT, Draft
from autovla_rt.runtime.engines import open_engines, require_threads
from autovla_rt.runtime.frames import FramePreprocessor, for_kernel
from autovla_rt.runtime.grammar import compile_answer
from autovla_rt.runtime.motion import constant_motion, steps_of
from autovla_rt.runtime.pair_encoder import FramePairs, PatchPairs
from autovla_rt.runtime.plan import Alternatives, Plan, describe_engine
from autovla_rt.runtime.prompt import PromptEncoder
from autovla_rt.runtime.sampling import Sampler, Sampling
from autovla_rt.runtime.scene import Request
from autovla_rt.runtime.trace import Trace

GREEDY = Sampling()
SAMPLE_TEMPERATURE = 1.0
"""Draws alternatives from the model's own distribution."""

LOAD_ATTEMPTS = 3

REPEATED_POSITIONS = 2
"""Last positions of a prompt that are passed again when its keys and values are used once more.

The answer starts from the last hidden state, so one is needed. Two keep the pass off the kernels
for single rows, which round differently (docs/architecture.md, "Quantized passes"), also where an
answer opens with no forced id.
"""

log = logging.getLogger("autovla_rt")


@dataclass(frozen=True)
class Prompted:
    """A request as the language model sees it.

    Attributes:
        ids: [p].
        embeddings: [p, hidden].
        passes: How many its first part has been through.
    """

    ids: NDArray[np.int64]
    embeddings: Float
    passes: int = 0


class Planner:
    """A loaded engine. One request at a time."""

    def __init__(self, bundle: Bundle, vision: VisionEngine, language: LanguageEngine) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self._language = language
        self._prompt = bundle.prompt()
        self._tokenizer = load_tokenizer(bundle)
        self._prompt_encoder = PromptEncoder(self._prompt, self._tokenizer)
        self._grammar = compile_answer(
            self._tokenizer,
            bundle.recipe().answer,
            use_cot=manifest.use_cot,
            actions=manifest.actions,
            end_token_id=manifest.end_token_ids[0],
        )
        self._cameras = _camera_encoder(manifest, vision)
        self._codebook = Codebook.load(
            bundle.path("codebook.safetensors"), manifest.actions.num_actions
        )

    @classmethod
    def load(
        cls, folder: Path | str, *, threads: int | None = None, verify: bool = False
    ) -> Planner:
        """Open a bundle, verify it and load its engines.

        `threads` is ONNX Runtime's number of threads (default: every core); NumPy gets one thread,
        in the whole process (see `keep_blas_to_one_thread`). `verify` checks the
        sha256 of every file even where it was checked before. A bundle that is replaced meanwhile
        is loaded again, so that files of two builds never run together.

        Raises:
            BundleError: the bundle is missing, damaged, of another version or does not load.
            InputError: `threads` is not from 1 to the number of cores.
        """
        folder = Path(folder)
        require_threads(threads)
        for _ in range(LOAD_ATTEMPTS):
            before = manifest_identity(folder)
            try:
                bundle = load_bundle(folder, verify=verify)
                planner = cls(bundle, *open_engines(bundle, threads))
            except (BundleError, OSError):
                if manifest_identity(folder) == before:
                    raise
            else:
                if manifest_identity(folder) == planner.bundle.identity:
                    return planner
        raise BundleError(
            f"{folder}: expected a bundle at rest, but it was replaced {LOAD_ATTEMPTS} times while "
            "loading. Load it when the builds are done."
        )

    def plan(
        self,
        request: Request,
        *,
        sampling: Sampling = GREEDY,
        trace: Trace | None = None,
        **options: Unpack[DecodingOptions],
    ) -> Plan:
        """Plan one request.

        Args:
            request: The request.
            sampling: How tokens are chosen.
            trace: Receives the spans of the request's stages.
            options: See `Decoding`.

        Raises:
            InputError: a frame or value is unusable or does not fit the engine.
            CapacityError: prompt and answer do not fit the KV cache.
        """
        self.require_possible(**options)
        trace = trace or Trace()
        prompted = self.encode(request, trace)
        with trace.span("draft"):
            draft = self.draft(request)
        return self._plan(prompted, sampling, draft=draft, trace=trace, **options)

    def encode(
        self, request: Request, trace: Trace | None = None, seen: Seen | None = None
    ) -> Prompted:
        """Encode a request for `answer`, which may be called several times.

        `trace` receives the spans image_decode, preprocess, vision and prompt. Frames that were
        `seen` are not resized and encoded again. On an engine that works ahead, what stands before
        a camera in the prompt is passed while that camera is encoded, span prefill.

        Raises:
            InputError: a frame or value is unusable or does not fit the engine.
            CapacityError: the prompt does not fit the KV cache.
        """
        trace, language = trace or Trace(), self._language
        features = self._cameras.start(request.frames, trace, seen or Seen(0))
        with trace.span("prompt"):
            ids = self._prompt_encoder.ids(request)
            embeddings = language.embed(ids)
        language.truncate(language.prefix_length)
        passes = 0
        for index, video in enumerate(self._prompt.videos):
            if index and language.works_ahead:  # while this camera's features are computed
                with trace.span("prefill"):
                    language.extend(embeddings[language.length : video.start], 0)
                passes += 1
            with trace.span("vision"):
                embeddings[video.start : video.start + video.count] = features[video.camera]()
        return Prompted(ids, embeddings, passes)

    def answer(
        self,
        prompted: Prompted,
        *,
        sampler: Sampler,
        trace: Trace | None = None,
        draft: Draft = NO_DRAFT,
        **options: Unpack[DecodingOptions],
    ) -> Decoded:
        """Decode an answer to the request that was encoded last; its prompt is passed once.

        Args:
            prompted: What `encode` returned last, on this planner.
            sampler: Chooses among the legal candidates.
            trace: Receives the spans of the decoding.
            draft: What the answer may be; it saves passes and changes nothing else.
            options: See `Decoding`.

        Raises:
            InputError: The mode, the budget or the refinement cannot be served.
            CapacityError: prompt and answer do not fit the KV cache.
        """
        kept = min(self._language.length, len(prompted.ids) - REPEATED_POSITIONS)
        self._language.truncate(kept)
        decoded = decode(
            self._language,
            self._grammar,
            prompted.ids,
            prompted.embeddings[kept:],
            sampler=sampler,
            trace=trace or Trace(),
            draft=draft,
            codebook=self._codebook,
            **options,
        )
        return replace(decoded, forward_passes=decoded.forward_passes + prompted.passes)

    def states_before(self, prompted: Prompted, output_ids: Sequence[int]) -> Float:
        """Return the states [n, hidden] that the ids of a given answer [n] would be chosen from.

        One pass over the whole answer (teacher forcing), behind the prompt that was encoded last.

        Raises:
            CapacityError: prompt and answer do not fit the KV cache.
        """
        kept = min(self._language.length, len(prompted.ids) - REPEATED_POSITIONS)
        self._language.truncate(kept)
        before = self._language.embed(np.array(output_ids[:-1], np.int64))
        passed = np.concatenate([prompted.embeddings[kept:], before])
        return self._language.extend(passed, len(output_ids))

    def action_logits(self, states: Float) -> Float:
        """Return the logits [m, num_actions] of states [m, hidden]."""
        return self._language.action_logits(states)

    def logits(self, states: Float) -> Float:
        """Return the logits [m, vocabulary] of states [m, hidden]."""
        return self._language.logits(states)

    def require_possible(self, **options: Unpack[DecodingOptions]) -> None:
        """Refuse what this engine cannot answer; cheap, so call it before any work.

        Raises:
            InputError: the mode is unknown or needs a chain of thought, or the budget is negative.
        """
        Decoding(**options).require_possible(self._grammar)

    @property
    def reused_tokens(self) -> int:
        """Positions at the front of every prompt that were computed when the engine was built."""
        return self._language.prefix_length

    def draft(self, request: Request) -> Draft:
        """Guess the plan of a request by itself: straight on at its speed.

        The sign of the request's acceleration is not known (it is a norm in most datasets).
        """
        actions = self.bundle.manifest.actions
        steps, dt = actions.num_poses, actions.dt
        ahead = constant_motion(request.velocity, 0.0, 0.0, steps=steps, dt=dt)
        return Draft(self.actions_of(ahead))

    def actions_of(self, trajectory: NDArray[np.float64]) -> tuple[int, ...]:
        """Return the rows of the codebook [num_poses] whose steps a trajectory [num_poses, 3] has.

        A draft: each step by itself, where `Codebook.encode` follows the trajectory.
        """
        return tuple(self._codebook.nearest(steps_of(trajectory)).tolist())

    def trajectory(self, decoded: Decoded) -> NDArray[np.float64]:
        """Return an answer's poses [num_poses, 3], as `Plan.trajectory`."""
        return self._codebook.decode(np.array(decoded.action_indices, np.int64))

    def alternatives(
        self,
        request: Request,
        plan: Plan,
        *,
        count: int,
        sampling: Sampling = GREEDY,
        thinking_token_budget: int = DEFAULT_THINKING_TOKEN_BUDGET,
    ) -> Alternatives:
        """Plan the same request otherwise: in the other mode, and `count` times by chance.

        Each is what `plan` gives with that mode forced: the other mode under `sampling`, the
        samples at temperature 1 with the seeds `sampling.seed`, `sampling.seed` + 1, ... The prompt
        is encoded and passed once for all of them, so their `stages_ms` start at the prefill.

        Args:
            request: What was planned.
            plan: Its plan, whose mode is kept (samples) and left (other mode).
            count: Samples.
            sampling: How the plan was chosen.
            thinking_token_budget: Most tokens of reasoning of each alternative.

        Raises:
            InputError: `count` is negative, or as for `plan`.
            CapacityError: prompt and answer do not fit the KV cache.
        """
        if count < 0:
            raise InputError(f"count must be >= 0, got {count}.")
        mode, other = _modes(plan)
        self.require_possible(mode=mode, thinking_token_budget=thinking_token_budget)
        prompted = self.encode(request)
        first = self.bundle.manifest.actions.action_start_id
        draft = Draft(tuple(token - first for token in plan.action_tokens))
        plan_again = partial(
            self._plan, prompted, draft=draft, thinking_token_budget=thinking_token_budget
        )
        other_mode = None
        if other is not None:
            try:
                other_mode = plan_again(sampling, mode=other)
            except CapacityError as error:
                log.warning("no alternative in the %s mode: %s", other, error)
        seeds = range(sampling.seed, sampling.seed + count)
        samplings = [replace(sampling, temperature=SAMPLE_TEMPERATURE, seed=seed) for seed in seeds]
        return Alternatives(other_mode, tuple(plan_again(one, mode=mode) for one in samplings))

    def _plan(
        self,
        prompted: Prompted,
        sampling: Sampling,
        *,
        draft: Draft,
        trace: Trace | None = None,
        **options: Unpack[DecodingOptions],
    ) -> Plan:
        trace = trace or Trace()
        sampler = Sampler(sampling)
        decoded = self.answer(prompted, sampler=sampler, trace=trace, draft=draft, **options)
        with trace.span("trajectory"):
            trajectory = self.trajectory(decoded)
        return self.assemble(decoded, trajectory, trace)

    def generate(
        self, request: Request, *, max_new_tokens: int, sampling: Sampling = GREEDY
    ) -> Iterator[int]:
        """Yield the model's answer without the grammar, token by token up to an end token."""
        prompted = self.encode(request)
        return generate(
            self._language,
            prompted.embeddings[self._language.length :],
            prompted.ids,
            sampler=Sampler(sampling),
            max_new_tokens=max_new_tokens,
            end_token_ids=self.bundle.manifest.end_token_ids,
        )

    def assemble(self, decoded: Decoded, trajectory: NDArray[np.float64], trace: Trace) -> Plan:
        """Return the plan of an answer with its trajectory and the times of its trace."""
        return Plan(
            trajectory=trajectory.tolist(),
            mode=decoded.mode,
            p_slow=decoded.p_slow,
            action_tokens=list(decoded.action_ids),
            reasoning=decoded.reasoning,
            finish_reason=decoded.finish_reason,
            status="ok",
            forward_passes=decoded.forward_passes,
            thinking_tokens=decoded.thinking_tokens,
            drafted=decoded.drafted,
            accepted=decoded.accepted,
            stages_ms=trace.stages_ms(),
            engine=describe_engine(self.bundle.manifest, self.bundle.identity),
        )


def _camera_encoder(manifest: Manifest, engine: VisionEngine) -> CameraEncoder:
    """Return what encodes frames with an engine that takes them, or patches."""
    preprocessing, vision = manifest.preprocessing, manifest.geometry.vision
    if isinstance(engine, FrameEngine):
        frames = FramePreprocessor(preprocessing, vision, for_kernel)
        return CameraEncoder(manifest.cameras, frames, FramePairs(engine))
    frames = FramePreprocessor(preprocessing, vision)
    return CameraEncoder(manifest.cameras, frames, PatchPairs(frames, engine))


def _modes(plan: Plan) -> tuple[Mode, Mode | None]:
    """Return the mode that forces a plan's answer, and the other one if there is one."""
    modes: dict[str, tuple[Mode, Mode | None]] = {
        "fast": ("fast", "slow"),
        "slow": ("slow", "fast"),
        "direct": ("auto", None),
    }
    return modes[plan.mode]


def load_tokenizer(bundle: Bundle) -> Tokenizer:
    """The bundle's tokenizer."""
    return Tokenizer.from_file(str(bundle.path("tokenizer.json")))
