import numpy as np
import torch

from autovla_rt.kernels.action_head import action_logits, best_actions


def test_equals_the_rows_of_the_full_head():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((3, 64)).astype(np.float32)
    head = rng.standard_normal((100, 64)).astype(np.float32)
    full = torch.nn.functional.linear(torch.from_numpy(hidden), torch.from_numpy(head)).numpy()
    logits = action_logits(hidden, head[40:])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, full[:, 40:], atol=1e-5)


def test_best_actions_are_the_largest_allowed_and_of_equal_ones_the_first():
    logits = np.array([[1, 3, 3, 2, 9]], np.float32)
    allowed = np.array([[True, True, True, True, False]])
    ids, best = best_actions(logits, allowed, 3)
    assert (ids.dtype, best.dtype) == (np.int32, np.float32)
    assert ids.tolist() == [[1, 2, 3]]
    assert best.tolist() == [[3, 3, 2]]


def test_where_fewer_are_allowed_there_is_no_action():
    ids, best = best_actions(
        np.zeros((2, 4), np.float32), np.array([[False] * 4, [False, True, False, False]]), 2
    )
    assert ids.tolist() == [[-1, -1], [1, -1]]
    assert best.tolist() == [[-np.inf, -np.inf], [0, -np.inf]]


def test_nan_comes_first_as_infinite():
    ids, best = best_actions(np.array([[5, np.nan, 7]], np.float32), np.ones((1, 3), bool), 2)
    assert ids.tolist() == [[1, 2]]
    assert best.tolist() == [[np.inf, 7]]
