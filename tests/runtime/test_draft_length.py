"""Drafts are as long as pays: acceptance and the cost of passes decide."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autovla_rt.runtime.draft_length import EXPLORED, DraftLength

FREE = {1: 5.0, 9: 5.0}
DEAR = {1: 1.0, 2: 1.0, 3: 2.0, 10: 9.0}


def after(notes, pass_ms, most=9):
    length = DraftLength(most, pass_ms)
    for count, right in notes:
        length.note(count, right)
    return length.choose()


@pytest.mark.parametrize("pass_ms", [{}, FREE])
@pytest.mark.parametrize("right", [0, 2, 9])
def test_where_rows_cost_nothing_the_longest_is_taken(pass_ms, right):
    assert after([(9, right)] * 20, pass_ms) == 9


def test_where_rows_cost_only_what_is_accepted_is_guessed():
    assert after([(9, 9)] * 20, {1: 1.0, 10: 5.5}) == 9
    assert after([(9, 0)] * 20, {1: 1.0, 10: 5.5}) == 0
    assert after([(9, 3)] * 20, {1: 1.0, 10: 5.5}) == 3


def test_a_row_that_is_free_is_filled():
    assert after([(9, 0)] * 20, DEAR) == 1


def test_recent_answers_count_more():
    changed = [(9, 9)] * 50 + [(9, 0)] * 20
    assert after(changed, {1: 1.0, 10: 5.5}) == 0
    assert after([*changed, *[(9, 9)] * 40], {1: 1.0, 10: 5.5}) == 9


def test_what_was_not_tried_is_not_learnt():
    """Short guesses say nothing of the places behind them."""
    length = DraftLength(9, {1: 1.0, 10: 5.5})
    for _ in range(50):
        length.note(3, 3)
    assert length.choose() == 9


def test_guesses_behind_a_wrong_one_say_nothing():
    notes = [(9, 3)] * 20 + [(4, 4)] * 60
    assert after(notes, {1: 1.0, 10: 5.5}) == 9


def test_the_longest_is_tried_again_now_and_then():
    length = DraftLength(9, DEAR)
    for _ in range(20):
        length.note(9, 0)
    chosen = [length.choose() for _ in range(2 * EXPLORED)]
    assert chosen.count(9) == 2
    assert set(chosen) == {1, 9}


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))),
    st.dictionaries(st.integers(1, 20), st.floats(0.1, 100)),
)
def test_it_is_always_a_length(notes, pass_ms):
    notes = [(max(pair), min(pair)) for pair in notes]
    assert 0 <= after(notes, pass_ms) <= 9
