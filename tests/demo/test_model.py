"""The miniature in torch computes what transformers computes, and packs answers without loss."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from autovla_rt.config import Geometry, LanguageGeometry, Preprocessing, VisionGeometry
from autovla_rt.demo.batch import Batch
from autovla_rt.demo.loss import soft_targets
from autovla_rt.demo.model import GRID, Miniature
from autovla_rt.demo.model_weights import initialise, load_folder, save_weights, to_hub
from autovla_rt.errors import CheckpointError
from autovla_rt.export.passes.static_mrope import VideoSpan, mrope_positions
from autovla_rt.export.tensors.model_names import expected_shapes
from autovla_rt.kernels.contour import pose_to_corners

VIDEO, VISION_START, VISION_END, IMAGE = 5, 6, 7, 8
ACTIONS, ACTION_START = 40, 60
STARTS = (4, 66, 128)
PROMPT = 190
TOLERANCE = 1e-4

GEOMETRIES = {
    "planned": ((4, 128, 2, 384, (1, 3)), (256, 5, 4, 2, 64, 768, (8, 12, 12))),
    "other": ((3, 64, 4, 96, (0,)), (192, 2, 6, 2, 32, 256, (4, 6, 6))),
}


def geometry(name="other"):
    vision, language = GEOMETRIES[name]
    return Geometry(
        vision=VisionGeometry(
            depth=vision[0],
            hidden_size=vision[1],
            num_heads=vision[2],
            intermediate_size=vision[3],
            out_hidden_size=language[0],
            fullatt_block_indexes=vision[4],
        ),
        language=LanguageGeometry(
            hidden_size=language[0],
            num_hidden_layers=language[1],
            num_attention_heads=language[2],
            num_key_value_heads=language[3],
            head_dim=language[4],
            intermediate_size=language[5],
            vocab_size=ACTION_START + ACTIONS,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            mrope_section=language[6],
            tie_word_embeddings=True,
        ),
    )


def miniature(shape, seed=0):
    """A model in float32 whose every weight, norms and biases too, is random."""
    model = Miniature(shape, video_token_id=VIDEO, auxiliary_width=3, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name or "ln_q" in name:
                weight.copy_(1 + 0.1 * noise)
            else:
                weight.copy_(noise * (0.1 if weight.ndim == 1 else weight.shape[-1] ** -0.5))
    return model.eval()


def reference(model, folder):
    """The same weights in transformers, through a folder of the hub's layout in float32."""
    vision, language = model.geometry.vision, model.geometry.language
    config = Qwen2_5_VLConfig(
        text_config={
            **language.model_dump(exclude={"mrope_section"}),
            "rope_scaling": {"type": "mrope", "mrope_section": list(language.mrope_section)},
            "max_position_embeddings": 4096,
        },
        vision_config={
            **vision.model_dump(),
            "fullatt_block_indexes": list(vision.fullatt_block_indexes),
            "tokens_per_second": 2,
        },
        tie_word_embeddings=True,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        image_token_id=IMAGE,
    )
    config.save_pretrained(folder)
    tensors = to_hub(model, named_weights(model))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def named_weights(model):
    return {n: p for n, p in model.named_parameters() if not n.startswith("auxiliary.")}


def scene(rng, count=2):
    patches = rng.integers(0, 256, (count, 6, 112, 1176), np.uint8)
    prompts = rng.integers(9, ACTION_START, (count, PROMPT))
    for start in STARTS:
        prompts[:, start - 1], prompts[:, start + 56] = VISION_START, VISION_END
        prompts[:, start : start + 56] = VIDEO
    return patches, prompts


def batch_of(shape, patches, token_ids, segments, starts_of_answers=()):
    """A batch without predictions; each answer's positions start right behind the prompt."""
    length = token_ids.shape[1]
    spans = [VideoSpan(start, GRID) for start in STARTS]
    line = mrope_positions(shape, spans, length)
    for start in starts_of_answers:
        line[:, start:] = line[:, PROMPT : PROMPT + length - start]
    count = len(token_ids)
    empty = np.zeros(0, np.int64)
    auxiliary = np.zeros((count, 168, 3), np.float32)
    return Batch(
        patches=patches,
        token_ids=token_ids,
        positions=np.repeat(line[:, None], count, 1),
        segments=np.broadcast_to(np.asarray(segments, np.int8), token_ids.shape),
        predict_from=empty,
        targets=empty,
        weights=empty.astype(np.float32),
        auxiliary=auxiliary,
        auxiliary_weights=auxiliary,
    )


def normalised(patches):
    """Patches [rows, 1176] as the processor gives them."""
    mean, deviation = (
        np.repeat(values, 1176 // 3)
        for values in (Preprocessing().image_mean, Preprocessing().image_std)
    )
    return torch.from_numpy(((patches.reshape(-1, 1176) / 255 - mean) / deviation).astype("f4"))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_features_and_logits_equal_transformers(name, tmp_path):
    model = miniature(geometry(name))
    oracle = reference(model, tmp_path)
    patches, prompts = scene(np.random.default_rng(1), count=1)
    grid = torch.tensor([GRID] * 3)
    batch = batch_of(model.geometry, patches, prompts, [0] * PROMPT)
    with torch.no_grad():
        pixels = normalised(patches)
        features = torch.cat(oracle.model.get_video_features(pixels, grid))
        logits = oracle(
            input_ids=torch.from_numpy(prompts),
            attention_mask=torch.ones(prompts.shape, dtype=torch.int64),
            pixel_values_videos=pixels,
            video_grid_thw=grid,
            second_per_grid_ts=torch.ones(3),
        ).logits
        ours = model.encode(torch.from_numpy(patches))
        hidden = model(batch)
    assert features.std() > 0.3
    assert logits.std() > 0.5
    torch.testing.assert_close(ours[0], features, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(model.logits(hidden), logits, rtol=0, atol=TOLERANCE)


def test_packed_answers_equal_separate_ones():
    model = miniature(geometry())
    rng = np.random.default_rng(2)
    patches, prompts = scene(rng)
    first, second = rng.integers(9, 90, (2, 7)), rng.integers(9, 90, (2, 11))
    packed = np.concatenate([prompts, first, second, np.zeros((2, 3), np.int64)], 1)
    segments = [0] * PROMPT + [1] * 7 + [2] * 11 + [-1] * 3
    shape = model.geometry
    with torch.no_grad():
        together = model(batch_of(shape, patches, packed, segments, [PROMPT + 7]))
        alone = [
            model(
                batch_of(
                    shape,
                    patches,
                    np.concatenate([prompts, answer], 1),
                    [0] * PROMPT + [1] * answer.shape[1],
                )
            )
            for answer in (first, second)
        ]
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(together[:, : PROMPT + 7], alone[0], **close)
    torch.testing.assert_close(together[:, PROMPT + 7 : -3], alone[1][:, PROMPT:], **close)


def test_last_rows_alone_equal_the_whole():
    model = miniature(geometry())
    patches, prompts = scene(np.random.default_rng(3))
    batch = batch_of(model.geometry, patches, prompts, [0] * PROMPT)
    with torch.no_grad():
        whole = model(batch)
        tail = model.decode(model.encode(torch.from_numpy(patches)), batch, first=150)
    torch.testing.assert_close(tail, whole[:, 150:], rtol=0, atol=1e-5)


def test_bfloat16_stays_near_float32():
    exact, patches = miniature(geometry()), scene(np.random.default_rng(4))[0]
    rounded = Miniature(exact.geometry, video_token_id=VIDEO, auxiliary_width=3)
    rounded.load_state_dict(exact.state_dict())
    with torch.no_grad():
        expected = exact.encode(torch.from_numpy(patches))
        actual = rounded.encode(torch.from_numpy(patches)).float()
    assert (actual - expected).square().mean().sqrt() < 0.02 * expected.std()


def test_gradients_reach_the_patch_weights():
    model = miniature(geometry())
    patches = torch.from_numpy(scene(np.random.default_rng(5), 1)[0])
    model.encode(patches).square().mean().backward()
    assert model.visual.patch_embed.proj.weight.grad.abs().sum() > 0


def test_a_missing_placeholder_is_an_error():
    model = miniature(geometry())
    patches, prompts = scene(np.random.default_rng(6), 1)
    prompts[0, STARTS[0]] = IMAGE
    with pytest.raises(ValueError, match="167 video placeholders in a prompt, 168 features"):
        model(batch_of(model.geometry, patches, prompts, [0] * PROMPT))


def test_saved_weights_have_the_hubs_names_and_come_back(tmp_path):
    model = miniature(geometry())
    save_weights(model, tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    assert {n: tuple(t.shape) for n, t in stored.items()} == expected_shapes(model.geometry)
    assert {t.dtype for t in stored.values()} == {torch.float16}
    again = miniature(geometry(), seed=1)
    load_folder(again, tmp_path)
    for name, weight in named_weights(model).items():
        torch.testing.assert_close(again.get_parameter(name), weight.half().float())


def test_weights_of_another_geometry_are_refused(tmp_path):
    save_weights(miniature(geometry("other")), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="do not fit the geometry"):
        load_folder(miniature(geometry("planned")), tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load_folder(miniature(geometry()), tmp_path)


def steps():
    """Forty straight steps 5 cm apart."""
    return pose_to_corners(np.linspace([0, 0, 0], [1.95, 0, 0], ACTIONS))


def test_close_actions_start_close():
    model = miniature(geometry())
    initialise(model, steps(), ACTION_START, seed=0)
    rows = model.model.embed_tokens.weight[ACTION_START:].detach()
    gaps = torch.cdist(rows, rows)[0]
    assert gaps[1] < 0.5 * gaps[8] < 0.5 * gaps[-1] * 1.2
    assert rows.square().mean().sqrt() == pytest.approx(0.02, rel=0.05)


def test_soft_targets_spread_over_near_actions_only():
    targets = soft_targets(steps(), ACTION_START)
    assert targets.ids.shape == (ACTION_START + ACTIONS, 16)
    torch.testing.assert_close(targets.probabilities.sum(-1), torch.ones(ACTION_START + ACTIONS))
    assert targets.ids[:, 0].tolist() == list(range(ACTION_START + ACTIONS))
    assert targets.probabilities[3].tolist() == [1.0] + [0.0] * 15
    row = ACTION_START + 20
    ratio = targets.probabilities[row, 1] / targets.probabilities[row, 0]
    assert ratio == pytest.approx(np.exp(-0.5 * (0.05 / 0.06) ** 2), rel=1e-4)
    assert sorted(targets.ids[row, 1:3].tolist()) == [row - 1, row + 1]
