import numpy as np
import pytest

from autovla_rt.errors import CheckpointError
from autovla_rt.export.weight_source import (
    CHUNK_ELEMENTS,
    ModelWeights,
    matrix_chunks,
    matrix_shape,
)


class Reader:
    """A checkpoint in memory."""

    def __init__(self, **tensors):
        self.tensors = {
            f"{name.replace('_w', '')}.weight": value for name, value in tensors.items()
        }
        self.largest_read = 0

    def shape(self, name):
        return self.tensors[name].shape

    def read_rows(self, name, start, stop):
        rows = self.tensors[name][start:stop]
        self.largest_read = max(self.largest_read, rows.size)
        return rows


def weights_of(tied=False, **tensors):
    return ModelWeights(Reader(**tensors), tied=tied, action_start_id=3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad):
    values = np.ones((4, 5), np.float32)
    values[2, 3] = bad
    with pytest.raises(CheckpointError, match=r"a\.weight: expected finite weights"):
        list(matrix_chunks(weights_of(a=values), ("a",)))


def test_a_tied_head_is_the_embedding_and_its_text_rows_end_before_the_actions():
    embedding = np.arange(20, dtype=np.float16).reshape(5, 4)
    weights = ModelWeights(Reader(), tied=True, action_start_id=3)
    weights._reader.tensors["model.embed_tokens.weight"] = embedding
    assert weights.shape("lm_head.weight") == (5, 4)
    assert weights.shape("text_head.weight") == (3, 4)
    np.testing.assert_array_equal(weights.rows("lm_head.weight", 3, 5), embedding[3:])


def test_an_untied_head_is_read_from_its_own_tensor():
    weights = weights_of(lm_head=np.full((5, 4), 7, np.float32))
    np.testing.assert_array_equal(weights.rows("text_head.weight", 0, 3), np.full((3, 4), 7))


def test_modules_are_stacked_in_order_and_read_in_chunks():
    big = np.arange(3 * CHUNK_ELEMENTS, dtype=np.float32).reshape(-1, 1024)
    weights = weights_of(a=big, b=-big[:5])
    assert matrix_shape(weights, ("a", "b")) == (len(big) + 5, 1024)
    chunks = list(matrix_chunks(weights, ("a", "b")))
    np.testing.assert_array_equal(np.concatenate(chunks), np.concatenate([big, -big[:5]]))
    assert weights._reader.largest_read <= CHUNK_ELEMENTS


def test_a_convolution_counts_as_a_matrix():
    kernel = np.arange(48, dtype=np.float32).reshape(2, 3, 2, 2, 2)
    (chunk,) = matrix_chunks(weights_of(a=kernel), ("a",))
    np.testing.assert_array_equal(chunk, kernel.reshape(2, 24))


def test_modules_of_different_width_cannot_be_stacked():
    with pytest.raises(ValueError, match="cannot stack"):
        matrix_shape(weights_of(a=np.ones((2, 3)), b=np.ones((2, 4))), ("a", "b"))
