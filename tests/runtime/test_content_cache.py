import pytest

from autovla_rt.errors import InputError
from autovla_rt.runtime.content_cache import ContentCache


def test_the_one_not_used_for_longest_goes_first():
    cache = ContentCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert len(cache) == 2
    assert cache.get("b") is None
    assert cache.get("a") == 1
    assert (cache.hits, cache.misses) == (2, 1)


def test_a_size_of_zero_keeps_nothing_and_less_is_refused():
    cache = ContentCache(0)
    cache.put("a", 1)
    assert cache.get("a") is None
    assert len(cache) == 0
    with pytest.raises(InputError, match="0 \\(none\\) or more, got -1"):
        ContentCache(-1)
