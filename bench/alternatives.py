"""How many passes a plan would take if each verified several guesses of one action.

    python bench/alternatives.py ENGINE [--drives 20]

A simulation: nothing of it is in the runtime. Behind the last known action a pass would carry, next
to its one chain of guesses, the `n` likeliest others of the first step, each behind the same known
actions (it takes an attention mask). Where one is right, the action behind it is known, too. Which
guesses are right is told by the exact plan, so a pass is counted and not run. The chain is that of
`runtime/decode.py`, and with no alternatives the count is its own. The expert drives.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
from drive_requests import TICK, drive_requests
from numpy.typing import NDArray

from autovla_rt.bundle import Bundle, load_bundle
from autovla_rt.runtime.actions import Codebook
from autovla_rt.runtime.backends import Float, LanguageEngine
from autovla_rt.runtime.draft import Draft, corrected
from autovla_rt.runtime.engines import open_engines
from autovla_rt.runtime.planner import GREEDY, Planner
from autovla_rt.runtime.sampling import Sampler
from autovla_rt.runtime.scene import Request
from autovla_rt.runtime.stream import Stream
from autovla_rt.runtime.trace import Trace

ALTERNATIVES = (0, 1, 2, 4, 8, 16, 32)
CONSIDERED = 64
"""The model's likeliest actions that are alternatives once they are corrected."""

FIRST_SEED = 2_910_000_000


class Drafted(Stream):
    """A stream that shows its last draft."""

    def _draft(self, request: Request, time: float) -> Draft:
        self.last_draft = super()._draft(request, time)
        return self.last_draft


class Counting:
    """Counts the passes that a plan takes."""

    def __init__(self, language: LanguageEngine, codebook: Codebook, first_action_id: int) -> None:
        self._language, self._codebook = language, codebook
        self._first = first_action_id

    def passes(self, scaffold: list[int], plan: list[int], draft: list[int], n: int) -> int:
        """Return those behind the prefill, with `n` alternatives.

        Args:
            scaffold: Ids between what the engine holds and the first action.
            plan: The exact plan, as rows of the codebook.
            draft: What the prefill carries, likewise.
            n: Alternatives of a pass.
        """
        known, passes, sure = 0, 0, 0
        chain, others = draft[: len(plan) - 1], list[int]()
        while True:
            logits = self._logits(scaffold, [*plan[:known], *chain])[known:]
            own = logits.argmax(-1).tolist()
            right = 0
            while right < len(chain) and chain[right] == own[right]:
                right += 1
            hit = right == sure < len(chain) and plan[known + sure] in others
            known += right + 1
            if known >= len(plan):
                return passes
            passes += 1
            better = [*corrected(self._codebook, chain, own[:-1]), own[-1]][right + 1 :]
            moved = self._codebook.poses[better] - self._codebook.poses[own[right + 1 :]]
            sure = int(hit)
            chain, others = [*plan[known : known + sure], *better[sure:]], []
            chain = chain[: len(plan) - 1 - known]
            if sure < len(better):
                others = self._alternatives(logits[right + 1 + sure], moved[sure])[:n]

    def _logits(self, scaffold: list[int], actions: list[int]) -> Float:
        """Return the logits [1 + n, num_actions] behind the scaffold and each of `n` actions."""
        held = self._language.length
        ids = [*scaffold, *(self._first + index for index in actions)]
        hidden = self._language.extend(self._language.embed(np.array(ids)), 1 + len(actions))
        self._language.truncate(held)
        return self._language.action_logits(hidden)

    def _alternatives(self, logits: Float, moved: NDArray[np.float64]) -> list[int]:
        """Return a row's likeliest actions, corrected, but for the first: the chain has it."""
        likely = np.argsort(-logits)[:CONSIDERED]
        nearest = self._codebook.nearest(self._codebook.poses[likely] + moved).tolist()
        return list(dict.fromkeys(nearest))[1:]


def count_passes(bundle: Bundle, drives: int) -> dict[int, Counter[int]]:
    """Count by number of alternatives, over the fast plans of drives."""
    vision, language = open_engines(bundle, None)
    planner, actions = Planner(bundle, vision, language), bundle.manifest.actions
    codebook = Codebook.load(bundle.path("codebook.safetensors"), actions.num_actions)
    counting = Counting(language, codebook, actions.action_start_id)
    counts = {n: Counter[int]() for n in ALTERNATIVES}
    for seed in range(FIRST_SEED, FIRST_SEED + drives):
        stream = Drafted(planner)
        for tick, request in enumerate(drive_requests(seed)):
            prompted = planner.encode(request, seen=stream.seen)
            decoded = stream.answer(
                prompted,
                request,
                time=TICK * tick,
                sampler=Sampler(GREEDY),
                trace=Trace(),
                mode="fast",
            )
            language.truncate(len(prompted.ids))
            scaffold = list(decoded.output_ids[: decoded.first_action])
            plan, draft = list(decoded.action_indices), list(stream.last_draft.actions)
            for n, passes in counts.items():
                passes[counting.passes(scaffold, plan, draft, n)] += 1
    return counts


def main() -> None:
    """Read the arguments, count, print the shares of plans as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--drives", type=int, default=20)
    arguments = parser.parse_args()
    counts = count_passes(load_bundle(arguments.engine), arguments.drives)
    report = {}
    for n, passes in counts.items():
        plans = passes.total()
        shares = {k: round(passes[k] / plans, 4) for k in sorted(passes)}
        mean = sum(k * number for k, number in passes.items()) / plans
        report[f"{n} alternatives"] = {"plans": plans, "mean": round(mean, 2), "shares": shares}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
