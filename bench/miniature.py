"""How well the miniature drives: open loop on unseen scenes, and in closed loop.

    python bench/miniature.py open ENGINE OUT.jsonl --scenes 1000
    python bench/miniature.py closed ENGINE OUT.jsonl --drives 200 --latency-ms 0
    python bench/miniature.py report OUT.jsonl ...

Every scene and drive is one line of OUT.jsonl, so a run that was stopped goes on where it was.
Seeds are disjoint from training's. Intervals are 95 %, from 10,000 bootstrap resamples of scenes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from autovla_rt.demo.render import render_moments
from autovla_rt.demo.scenes import Scene, record_scene
from autovla_rt.kernels.contour import follow, roll_out
from autovla_rt.output_file import write_file
from autovla_rt.runtime.actions import Codebook
from autovla_rt.runtime.planner import Plan, Planner
from autovla_rt.runtime.scene import Request

Record = dict[str, Any]
Array = NDArray[np.float64]

FIRST_SEED = 2_000_000_000
"""Training's seeds stay below, the foundation's lie above."""
RESAMPLES = 10_000
PROCESSES = 2


def open_loop(engine: Path, seed: int) -> Record:
    """Plan one scene in every way that the report compares."""
    planner, codebook = _engine(engine)
    scene = record_scene(seed)
    request = _request(scene)
    plan = planner.plan(request)
    tokens = follow(codebook.corners, scene.trajectory)
    plans = {"model": plan, "fast": planner.plan(request, mode="fast")}
    if scene.complex:
        plans["blind"] = planner.plan(_request(scene, blind=True))
        plans["shuffled"] = planner.plan(_with_frames(request, record_scene(seed + 500_000)))
    trajectories = {name: np.array(p.trajectory) for name, p in plans.items()}
    trajectories["constant velocity"] = constant_velocity(scene.now)
    trajectories["codebook"] = roll_out(codebook.corners[tokens])
    record: Record = {
        "seed": seed,
        "complex": scene.complex,
        "errors": {name: _errors(t, scene.trajectory) for name, t in trajectories.items()},
        "mode": plan.mode,
        "p_slow": plan.p_slow,
        "thinking_tokens": plan.thinking_tokens,
        "milliseconds": sum(plan.stages_ms.values()),
        "forward_passes": plan.forward_passes,
    }
    if scene.complex and plan.mode == "slow":
        record["mention"] = _mention(scene, plan)
    return record


def closed_loop(engine: Path, latency_ms: float, seed: int) -> Record:
    """Drive one world with every driver; every plan is applied `latency_ms` late."""
    planner, _ = _engine(engine)
    record: Record = {"seed": seed, "latency_ms": latency_ms, "drives": {}}
    for name, driver in (
        ("model", ModelDriver(planner)),
        ("expert", ExpertDriver()),
        ("constant velocity", ConstantVelocityDriver()),
    ):
        drive = Drive(draw_drive_world(seed), driver, DriveSettings(latency_ms=latency_ms))
        modes = [tick.decision.plan.mode for tick in drive if tick.decision.plan is not None]
        slow = modes.count("slow") / len(modes) if modes else None
        record["drives"][name] = {**drive.score().as_dict(), "slow_share": slow}
    return record


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
    mentions = [s["mention"] for s in scenes if "mention" in s]
    table = {
        f"{part}, {name}": {
            key: mean_interval([s["errors"][name][key] for s in group]) for key in ("ade", "fde")
        }
        for part, group in (("all", scenes), ("complex", hard), ("straightforward", easy))
        for name in group[0]["errors"]
        if all(name in s["errors"] for s in group)
    }
    return {
        "scenes": len(scenes),
        "errors": table,
        "ADE ratio, model to constant velocity": _ratio(scenes, "model", "constant velocity"),
        "ADE ratio, blind to seeing, complex": _ratio(hard, "blind", "model"),
        "ADE ratio, shuffled to seeing, complex": _ratio(hard, "shuffled", "model"),
        "ADE ratio, forced fast to auto, complex": _ratio(hard, "fast", "model"),
        "slow share, complex": mean_interval([s["mode"] == "slow" for s in hard]),
        "slow share, straightforward": mean_interval([s["mode"] == "slow" for s in easy]),
        "names the right kind": mean_interval([m["kind"] for m in mentions]),
        "right kind, distance within 30 % or 3 m": mean_interval([m["place"] for m in mentions]),
        "thinking tokens, slow": float(
            np.mean([s["thinking_tokens"] for s in scenes if s["mode"] == "slow"])
        ),
        "plan ms, median fast": _median_ms(scenes, "fast"),
        "plan ms, median slow": _median_ms(scenes, "slow"),
    }


def _report_closed(drives: list[Record]) -> Record:
    keys = ("score", "no_collision", "on_road", "progress", "time_to_collision", "comfort")
    return {
        "drives": len(drives),
        **{
            name: {
                **{key: mean_interval([d[name][key] for d in drives]) for key in keys},
                "red light crossed": mean_interval([d[name]["red_light"] for d in drives]),
            }
            for name in drives[0]
        },
    }


def mean_interval(values: Iterable[float]) -> list[float]:
    """Return [mean, low, high]: the mean and its 95 % bootstrap interval."""
    numbers = np.asarray(list(values), np.float64)
    if numbers.size == 0:
        return []
    rng = np.random.default_rng(0)
    means = [
        numbers[rng.integers(len(numbers), size=len(numbers))].mean() for _ in range(RESAMPLES)
    ]
    return [round(float(v), 4) for v in (numbers.mean(), *np.percentile(means, [2.5, 97.5]))]


def _ratio(scenes: list[Record], above: str, below: str) -> list[float]:
    """Return [ratio of mean ADEs, low, high], paired by scene."""
    a = np.array([s["errors"][above]["ade"] for s in scenes])
    b = np.array([s["errors"][below]["ade"] for s in scenes])
    rng = np.random.default_rng(0)
    picks = (rng.integers(len(a), size=len(a)) for _ in range(RESAMPLES))
    ratios = [a[pick].mean() / b[pick].mean() for pick in picks]
    return [round(float(v), 4) for v in (a.mean() / b.mean(), *np.percentile(ratios, [2.5, 97.5]))]


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


def _request(scene: Scene, *, blind: bool = False) -> Request:
    drawn = render_moments(scene.moments, FRAME_WIDTH, FRAME_HEIGHT)
    return request_of(scene.now, drawn, blind=blind)


def _with_frames(request: Request, other: Scene) -> Request:
    """Return a request with the numbers of one scene and the frames of another."""
    frames = _request(other).frames
    return Request(frames, request.velocity, request.acceleration, request.instruction)


_ENGINES: dict[Path, tuple[Planner, Codebook]] = {}


def _engine(folder: Path) -> tuple[Planner, Codebook]:
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
    commands.add_parser("report").add_argument("out", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "report":
        print(json.dumps(report(arguments.out), indent=1))
        return
    work = partial(open_loop, arguments.engine)
    if arguments.command == "closed":
        work = partial(closed_loop, arguments.engine, arguments.latency_ms)
    run(work, range(FIRST_SEED, FIRST_SEED + arguments.count), arguments.out)
    print(json.dumps(report([arguments.out]), indent=1))


if __name__ == "__main__":
    main()
