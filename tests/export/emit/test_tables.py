import numpy as np
import pytest

from autovla_rt.config import Precision
from autovla_rt.errors import CheckpointError
from autovla_rt.export.emit.tables import emit_embeddings


class Table:
    """A source with an embedding table alone."""

    def __init__(self, values):
        self.values = values

    def shape(self, name):
        return self.values.shape

    def rows(self, name, start, stop):
        return self.values[start:stop]


@pytest.mark.parametrize(("language", "dtype"), [("fp32", "float32"), ("int4", "float16")])
def test_embeddings_can_be_mapped_row_by_row(tmp_path, language, dtype):
    values = np.random.default_rng(0).standard_normal((33, 8)).astype(np.float32)
    path = tmp_path / "embeddings.npy"
    emit_embeddings(Table(values), Precision(vision="int8", language=language), path)
    mapped = np.load(path, mmap_mode="r")
    assert mapped.dtype == dtype
    np.testing.assert_array_equal(mapped, values.astype(dtype))


def test_embeddings_beyond_float16_are_refused(tmp_path):
    table = Table(np.full((2, 2), 1e5, np.float32))
    with pytest.raises(CheckpointError, match="fit float16, got 100000"):
        emit_embeddings(table, Precision(vision="int8", language="int8"), tmp_path / "e.npy")
    emit_embeddings(table, Precision(vision="fp32", language="fp32"), tmp_path / "e.npy")
