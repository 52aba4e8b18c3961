import numpy as np
import pytest

from autovla_rt.errors import InputError
from autovla_rt.runtime.feature_cache import FeatureCache, content_key


def pair(value):
    return np.full((4, 8), value, np.uint8)


def test_the_key_is_the_content_not_the_array():
    levels = pair(3)
    key = content_key("front", levels)
    assert content_key("front", pair(3)) == key
    assert content_key("front_left", levels) != key
    levels[2, 5] += 1  # changed in place
    assert content_key("front", levels) != key
    assert content_key("front", pair(3)[:, ::-1]) == key


def test_the_one_not_used_for_longest_goes_first():
    cache = FeatureCache(2)
    for name in "ab":
        cache.put(name, np.full((2, 3), ord(name), np.float32))
    assert cache.get("a") is not None
    cache.put("c", np.zeros((2, 3), np.float32))
    assert len(cache) == 2
    assert cache.get("b") is None
    np.testing.assert_array_equal(cache.get("a"), np.full((2, 3), ord("a")))
    assert (cache.hits, cache.misses) == (2, 1)


def test_what_is_kept_is_a_copy():
    cache, features = FeatureCache(1), np.ones((2, 3), np.float32)
    cache.put("a", features)
    features[:] = 7
    np.testing.assert_array_equal(cache.get("a"), np.ones((2, 3)))


def test_a_budget_of_zero_keeps_nothing_and_less_is_refused():
    cache = FeatureCache(0)
    cache.put("a", np.ones((2, 3), np.float32))
    assert cache.get("a") is None
    assert len(cache) == 0
    with pytest.raises(InputError, match="0 \\(none\\) or more, got -1"):
        FeatureCache(-1)
