"""What graphs are given: embeddings of a text, and patches of the first camera."""

import numpy as np
import pytest
from random_calibration import CAMERAS


@pytest.fixture(scope="module")
def embeddings(model):
    ids = np.random.default_rng(1).integers(0, 400, 60)
    return model.weights().rows("model.embed_tokens.weight", 0, 400)[ids]


@pytest.fixture(scope="module")
def patches(model):
    rows, columns = CAMERAS[0].grid[1:]
    shape = 3, rows * columns, model.geometry.vision.patch_width
    return np.random.default_rng(2).standard_normal(shape, np.float32)
