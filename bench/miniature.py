"""How well the miniature drives: open loop on unseen scenes, and in closed loop.

    python bench/miniature.py open ENGINE OUT.jsonl --scenes 1000
    python bench/miniature.py closed ENGINE OUT.jsonl --drives 200 --latency-ms 0
    python bench/miniature.py report OUT.jsonl ...
    python bench/miniature.py compare BEFORE.jsonl AFTER.jsonl

Every scene and drive is one line of OUT.jsonl, so a run that was stopped goes on where it was.
Seeds are disjoint from training's. Intervals are 95 %, from 10,000 bootstrap resamples of scenes.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.bootstrap import difference_interval, mean_interval, ratio_interval
from autovla_rt.cli_options import EXACT, read_decode
from autovla_rt.cli_world import require_world_layout
from autovla_rt.demo.drive import Drive, DriveSettings, draw_drive_world
from autovla_rt.demo.drivers import (
    FRAME_HEIGHT,
    FRAME_WIDTH,
    ConstantVelocityDriver,
    ExpertDriver,
    ModelDriver,
    constant_velocity,
    request_of,
)
from autovla_rt.demo.narrator import critical_object, narrate, read_mention
from autovla_rt.demo.plan_score import PlanJudge
from autovla_rt.demo.render import render_moments
from autovla_rt.demo.scenes import Scene, record_scene
from autovla_rt.kernels.contour import follow, roll_out
from autovla_rt.output_file import write_file
from autovla_rt.runtime.actions import Codebook
from autovla_rt.runtime.draft import Refinement
from autovla_rt.runtime.plan import Plan
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.scene import Request

Record = dict[str, Any]
Array = NDArray[np.float64]

FIRST_SEED = 2_000_000_000
"""Training's seeds stay below, the foundation's lie above."""
SCORES = ("score", "no_collision", "on_road", "progress", "time_to_collision", "comfort")
PROCESSES = 2


def open_loop(engine: Path, seed: int) -> Record:
    """Plan one scene in every way that the report compares."""
    planner, codebook = load_engine(engine)
    scene = record_scene(seed)
    request = scene_request(scene)
    plan = planner.plan(request)
    tokens = follow(codebook.corners, scene.trajectory)
    plans = {"model": plan, **{m: planner.plan(request, mode=m) for m in ("fast", "slow")}}
    if scene.complex:
        plans["blind"] = planner.plan(scene_request(scene, blind=True))
        plans["shuffled"] = planner.plan(_with_frames(request, record_scene(seed + 500_000)))
    trajectories = {name: np.array(p.trajectory) for name, p in plans.items()}
    trajectories["constant velocity"] = constant_velocity(scene.now)
    trajectories["codebook"] = roll_out(codebook.corners[tokens])
    judge = PlanJudge(scene.now)
    record: Record = {
        "seed": seed,
        "complex": scene.complex,
        "errors": {name: _errors(t, scene.trajectory) for name, t in trajectories.items()},
        "scores": {
            name: judge.score(t).as_dict()
            for name, t in {**trajectories, "expert": scene.trajectory}.items()
        },
        "mode": plan.mode,
        "p_slow": plan.p_slow,
        "thinking_tokens": plan.thinking_tokens,
        "milliseconds": sum(plan.stages_ms.values()),
        "forward_passes": plan.forward_passes,
    }
    if scene.complex and plan.mode == "slow":
        record["mention"] = _mention(scene, plan)
    return record


def closed_loop(
    engine: Path, latency_ms: float, refinement: Refinement | None, seed: int
) -> Record:
    """Drive one world with every driver; every plan is applied `latency_ms` late."""
    planner, _ = load_engine(engine)
    record: Record = {"seed": seed, "latency_ms": latency_ms, "drives": {}}
    for name, driver in (
        ("model", ModelDriver(planner, refinement=refinement)),
        ("expert", ExpertDriver()),
        ("constant velocity", ConstantVelocityDriver()),
    ):
        drive = Drive(draw_drive_world(seed), driver, DriveSettings(latency_ms=latency_ms))
        plans = [tick.decision.plan for tick in drive if tick.decision.plan is not None]
        record["drives"][name] = {**drive.score().as_dict(), **_thinking(plans)}
    return record


def _thinking(plans: list[Plan]) -> Record:
    """Return how much a drive's plans reasoned; nothing where no model planned."""
    if not plans:
        return {}
    return {
        "slow_share": float(np.mean([plan.mode == "slow" for plan in plans])),
        "forward_passes": float(np.mean([plan.forward_passes for plan in plans])),
        "passes_of_fast_plans": dict(
            Counter(str(plan.forward_passes) for plan in plans if plan.mode == "fast")
        ),
        "thinking_tokens": float(np.mean([plan.thinking_tokens for plan in plans])),
    }


def run(work: Callable[[int], Record], seeds: Iterable[int], out: Path) -> None:
    """Append a line for every seed that has none; a line that was cut short is dropped."""
    kept = list(read(out)) if out.exists() else []
    write_file(out, "".join(json.dumps(record) + "\n" for record in kept).encode())
    done = {record["seed"] for record in kept}
    missing = [seed for seed in seeds if seed not in done]
    with (
        ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool,
        out.open("a", encoding="utf-8") as file,
    ):
        for record in pool.map(work, missing):
            file.write(json.dumps(record) + "\n")
            file.flush()


def read(path: Path) -> Iterator[Record]:
    """Read whole lines; one that was cut short by a kill is done again."""
    for line in path.read_text(encoding="utf-8").splitlines(True):
        if line.endswith("\n"):
            yield json.loads(line)


def report(paths: Iterable[Path]) -> Record:
    """Sum up open-loop and closed-loop records."""
    records = [record for path in paths for record in read(path)]
    scenes = [record for record in records if "errors" in record]
    drives = [record["drives"] for record in records if "drives" in record]
    return {
        **({"open loop": _report_open(scenes)} if scenes else {}),
        **({"closed loop": _report_closed(drives)} if drives else {}),
    }


def _report_open(scenes: list[Record]) -> Record:
    hard = [s for s in scenes if s["complex"]]
    easy = [s for s in scenes if not s["complex"]]
    parts = {"all": scenes, "complex": hard, "straightforward": easy}
    mentions = [s["mention"] for s in scenes if "mention" in s]
    table = {
        f"{part}, {name}": {
            key: mean_interval([s["errors"][name][key] for s in group]) for key in ("ade", "fde")
        }
        for part, group in parts.items()
        for name in group[0]["errors"]
        if all(name in s["errors"] for s in group)
    }
    return {
        "scenes": len(scenes),
        "errors": table,
        "scores": {
            f"{part}, {name}": _score_intervals([s["scores"][name] for s in group])
            for part, group in parts.items()
            for name in group[0]["scores"]
            if all(name in s["scores"] for s in group)
        },
        "ADE ratio, model to constant velocity": _ade_ratio(scenes, "model", "constant velocity"),
        "ADE ratio, blind to seeing, complex": _ade_ratio(hard, "blind", "model"),
        "ADE ratio, shuffled to seeing, complex": _ade_ratio(hard, "shuffled", "model"),
        "ADE ratio, forced fast to auto, complex": _ade_ratio(hard, "fast", "model"),
        "slow share, complex": mean_interval([s["mode"] == "slow" for s in hard]),
        "slow share, straightforward": mean_interval([s["mode"] == "slow" for s in easy]),
        "names the right kind": mean_interval([m["kind"] for m in mentions]),
        "right kind, distance within 30 % or 3 m": mean_interval([m["place"] for m in mentions]),
        "thinking tokens, slow": mean_interval(
            [s["thinking_tokens"] for s in scenes if s["mode"] == "slow"]
        ),
        "plan ms, median fast": _median_ms(scenes, "fast"),
        "plan ms, median slow": _median_ms(scenes, "slow"),
    }


def _report_closed(drives: list[Record]) -> Record:
    return {
        "drives": len(drives),
        **{name: _score_intervals([d[name] for d in drives]) for name in drives[0]},
    }


def _score_intervals(scores: list[Record]) -> Record:
    """Return mean and interval of every part of a score."""
    return {
        **{key: mean_interval([s[key] for s in scores]) for key in SCORES},
        "red light crossed": mean_interval([s["red_light"] for s in scores]),
    }


def compare(before: Path, after: Path) -> Record:
    """Pair two runs by scene or drive; differences are after less before.

    Raises:
        ValueError: they have no seed in common.
    """
    first, second = ({r["seed"]: r for r in read(path)} for path in (before, after))
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise ValueError(f"{before} and {after} have no seed in common")
    pairs = [(first[seed], second[seed]) for seed in seeds]
    if "drives" in pairs[0][0]:
        return _compare_drives([(a["drives"]["model"], b["drives"]["model"]) for a, b in pairs])
    parts = {
        "all": pairs,
        "complex": [pair for pair in pairs if pair[0]["complex"]],
        "straightforward": [pair for pair in pairs if not pair[0]["complex"]],
    }
    return {"scenes": len(pairs), **{name: _compare_scenes(part) for name, part in parts.items()}}


def _compare_drives(pairs: list[tuple[Record, Record]]) -> Record:
    thinking = {key: _change(pairs, itemgetter(key)) for key in ("slow_share", "thinking_tokens")}
    return {"drives": len(pairs), **thinking, **_compare_scores(pairs)}


def _compare_scenes(pairs: list[tuple[Record, Record]]) -> Record:
    costs: dict[str, Callable[[Record], float]] = {
        "thinking tokens": lambda r: r["thinking_tokens"],
        "forward passes": lambda r: r["forward_passes"],
        "milliseconds": lambda r: r["milliseconds"],
        "ADE": lambda r: r["errors"]["model"]["ade"],
        "FDE": lambda r: r["errors"]["model"]["fde"],
    }
    plans = {
        name: _compare_scores([(a["scores"][name], b["scores"][name]) for a, b in pairs])
        for name in ("model", "fast", "slow")
    }
    return {
        "slow share": _change(pairs, lambda r: r["mode"] == "slow"),
        **{name: _change(pairs, value, ratio=True) for name, value in costs.items()},
        **plans,
    }


def _compare_scores(pairs: list[tuple[Record, Record]]) -> Record:
    return {key: _change(pairs, itemgetter(key)) for key in (*SCORES, "red_light")}


def _change(
    pairs: list[tuple[Record, Record]], value: Callable[[Record], float], *, ratio: bool = False
) -> Record:
    """Return means before and after, their difference and on request their ratio, as intervals."""
    before, after = ([float(value(pair[i])) for pair in pairs] for i in (0, 1))
    change: Record = {
        "before": mean_interval(before),
        "after": mean_interval(after),
        "difference": difference_interval(after, before),
    }
    return {**change, "ratio": ratio_interval(after, before)} if ratio else change


def _ade_ratio(scenes: list[Record], above: str, below: str) -> list[float]:
    """Return [ratio of mean ADEs, low, high], paired by scene."""
    a, b = ([s["errors"][name]["ade"] for s in scenes] for name in (above, below))
    return ratio_interval(a, b)


def _median_ms(scenes: list[Record], mode: str) -> float | None:
    values = [s["milliseconds"] for s in scenes if s["mode"] == mode]
    return float(np.median(values)) if values else None


def _errors(trajectory: Array, truth: Array) -> Record:
    """Return average and final displacement over 5 s, m."""
    distance = np.hypot(*(trajectory - truth)[:, :2].T)
    return {"ade": float(distance.mean()), "fde": float(distance[-1])}


def _mention(scene: Scene, plan: Plan) -> Record:
    """Compare the object that the reasoning names with the true one."""
    said, true = read_mention(plan.reasoning), critical_object(scene)
    kind = said is not None and said.kind == true.kind
    near = said is not None and abs(said.metres - true.metres) <= max(3.0, 0.3 * true.metres)
    return {"kind": kind, "place": kind and near, "said": plan.reasoning, "true": narrate(scene)}


def scene_request(scene: Scene, *, blind: bool = False) -> Request:
    """Return what a car would ask in a scene."""
    drawn = render_moments(scene.moments, FRAME_WIDTH, FRAME_HEIGHT)
    return request_of(scene.now, drawn, blind=blind)


def _with_frames(request: Request, other: Scene) -> Request:
    """Return a request with the numbers of one scene and the frames of another."""
    frames = scene_request(other).frames
    return Request(frames, request.velocity, request.acceleration, request.instruction)


_ENGINES: dict[Path, tuple[Planner, Codebook]] = {}


def load_engine(folder: Path) -> tuple[Planner, Codebook]:
    """Load an engine once a process, with one thread."""
    if folder not in _ENGINES:
        planner = Planner.load(folder, threads=1)
        require_world_layout(planner)
        count = planner.bundle.manifest.actions.num_actions
        codebook = Codebook.load(planner.bundle.path("codebook.safetensors"), count)
        _ENGINES[folder] = planner, codebook
    return _ENGINES[folder]


def main() -> None:
    """Read the arguments, evaluate, print the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, unit, count in (("open", "scenes", 1000), ("closed", "drives", 200)):
        command = commands.add_parser(name)
        command.add_argument("engine", type=Path)
        command.add_argument("out", type=Path)
        command.add_argument(f"--{unit}", dest="count", type=int, default=count)
    command.add_argument("--latency-ms", type=float, default=0.0)
    command.add_argument("--decode", type=read_decode, default=EXACT)
    commands.add_parser("report").add_argument("out", type=Path, nargs="+")
    comparison = commands.add_parser("compare")
    comparison.add_argument("before", type=Path)
    comparison.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "report":
        print(json.dumps(report(arguments.out), indent=1))
        return
    if arguments.command == "compare":
        print(json.dumps(compare(arguments.before, arguments.after), indent=1))
        return
    work = partial(open_loop, arguments.engine)
    if arguments.command == "closed":
        work = partial(closed_loop, arguments.engine, arguments.latency_ms, arguments.decode)
    run(work, range(FIRST_SEED, FIRST_SEED + arguments.count), arguments.out)
    print(json.dumps(report([arguments.out]), indent=1))


if __name__ == "__main__":
    main()
