"""Guesses are counted by source and step, up to the first wrong one."""

import drafts

from autovla_rt.runtime.decode import Decoded
from autovla_rt.runtime.tape import Guess

ANSWER = (7, 8, 9, *range(1000, 1010), 5)


def decoded(*guesses):
    return Decoded(
        output_ids=ANSWER,
        action_ids=tuple(range(1000, 1010)),
        action_indices=tuple(range(10)),
        reasoning="",
        mode="fast",
        p_slow=0.1,
        finish_reason="stop",
        forward_passes=4,
        thinking_tokens=0,
        guesses=guesses,
    )


def test_guesses_behind_a_wrong_one_are_not_reached():
    found = drafts.outcomes(decoded(Guess(1, 11, 4), Guess(7, 5, 5), Guess(12, 1, 0)), first=True)
    assert found == [
        ("constant speed", 0, True),
        ("constant speed", 1, True),
        ("constant speed", 2, False),
        *(("own choices, corrected", step, True) for step in range(4, 9)),
        ("own choices, corrected", 9, False),
    ]


def test_later_requests_start_from_the_plan_before():
    found = drafts.outcomes(decoded(Guess(1, 4, 4)), first=False)
    assert found == [("plan before, carried on", step, True) for step in (0, 1)]


def test_text_behind_the_prefill_is_reasoning():
    assert drafts.outcomes(decoded(Guess(0, 1, 1), Guess(1, 2, 1)), first=False) == [
        ("reasoning, looked up", -1, True),
        ("reasoning, looked up", -1, False),
    ]


def test_acceptance_is_the_share_of_those_reached():
    table = drafts.acceptance([("a", 0, True), ("a", 0, False), ("a", 1, True), ("b", 3, False)])
    assert table == {
        "a": {"0": [2, 0.5], "1": [1, 1.0], "all": [3, 0.667]},
        "b": {"3": [1, 0.0], "all": [1, 0.0]},
    }


def test_differences_pair_with_exact_fast_plans():
    def tick(ade, passes):
        return {"ade": ade, "fde": 2.0, "score": 1.0, "no_collision": True, "on_road": True} | {
            "passes": passes,
            "outcomes": [],
        }

    ways = dict.fromkeys(drafts.WAYS, tick(1.0, 4))
    drives = [
        {"seed": n, "ticks": [{**ways, "refine:2": tick(1.5, 2), drafts.EXACT: tick(1.0, 8)}] * 3}
        for n in range(4)
    ]
    table = drafts.report(drives)
    assert table["plans"] == 12
    assert table["refine:2"]["ade, difference"] == [0.5, 0.5, 0.5]
    assert table["refine:2"]["passes"] == {2: 12}
    assert table["exact"]["at most 9"] == 1
