"""The compiled fp32 engine against transformers: features, logits and free greedy answers."""

import numpy as np
import pytest
import torch

from autovla_rt.runtime.camera_encoder import Seen
from autovla_rt.runtime.decode import generate
from autovla_rt.runtime.sampling import Sampler, Sampling
from autovla_rt.runtime.trace import Trace

pytestmark = pytest.mark.slow

TOLERANCE = 2e-4


def report(what, actual, expected):
    """Print the figure of bench/README.md (shown by pytest -rP)."""
    error = np.abs(actual - expected).max()
    print(f"{what}: largest error {error:.1e}, std of the reference {expected.std():.2f}")


def reference_features(pair, inputs):
    with torch.no_grad():
        features = pair.reference.model.get_video_features(
            inputs["pixel_values_videos"], inputs["video_grid_thw"]
        )
    return torch.cat(features).numpy()


def engine_features(pair, request):
    planner = pair.planner
    features = planner._cameras.start(request.frames, Trace(), Seen(0))
    return np.concatenate([features[c.name]() for c in planner.bundle.manifest.cameras])


def test_vision_features_equal_transformers(pair, driving_request, reference_inputs):
    expected = reference_features(pair, reference_inputs(pair, driving_request))
    assert expected.std() > 1
    actual = engine_features(pair, driving_request)
    report("features", actual, expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


def test_prompt_ids_equal_the_chat_template(pair, driving_request, reference_inputs):
    expected = reference_inputs(pair, driving_request)["input_ids"][0].numpy()
    prompted = pair.planner.encode(driving_request)
    np.testing.assert_array_equal(prompted.ids, expected)


def test_last_logits_equal_transformers(pair, driving_request, reference_inputs):
    inputs = reference_inputs(pair, driving_request)
    with torch.no_grad():
        expected = pair.reference(**inputs).logits[0, -1].numpy()
    assert expected.std() >= 1.5
    planner = pair.planner
    embeddings = planner.encode(driving_request).embeddings
    hidden = planner._language.extend(embeddings[planner._language.length :])
    actual = planner._language.logits(hidden[-1:])[0]
    report("logits", actual, expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


def test_64_greedy_tokens_equal_transformers(pair, driving_request, reference_inputs):
    inputs = reference_inputs(pair, driving_request)
    with torch.no_grad():
        answer = pair.reference.generate(
            **inputs, max_new_tokens=64, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
    expected = answer[0, inputs["input_ids"].shape[1] :].tolist()
    planner = pair.planner
    prompted = planner.encode(driving_request)
    actual = generate(
        planner._language,
        prompted.embeddings[planner._language.length :],
        prompted.ids,
        sampler=Sampler(Sampling()),
        max_new_tokens=64,
        end_token_ids=(),
    )
    assert len(expected) == 64
    assert list(actual) == expected
