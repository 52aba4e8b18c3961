import numpy as np
import torch

from autovla_rt.kernels.action_head import action_logits


def test_equals_the_rows_of_the_full_head():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((3, 64)).astype(np.float32)
    head = rng.standard_normal((100, 64)).astype(np.float32)
    full = torch.nn.functional.linear(torch.from_numpy(hidden), torch.from_numpy(head)).numpy()
    logits = action_logits(hidden, head[40:])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, full[:, 40:], atol=1e-5)
