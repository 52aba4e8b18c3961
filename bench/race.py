"""The race: one request of AutoVLA's shape on a CPU, ours and the peers, in turn.

    python bench/race.py WORK OUT [--rounds 3] [--threads 2] [--peers-python .venv-bench/bin/python]
    python bench/race.py WORK OUT --quick

Every round starts every contestant once, one after the other, in a process of its own: it loads,
warms up and measures a request. So slow drifts of the machine meet all of them alike, and no two
are in memory together. Medians over rounds, with the least and the most; ratios are of medians.
OUT.json, OUT.md and OUT.png are written after every round; the first two with the ledger of a plan,
which holds on any hardware (bench/ledger.py). A contestant that is not installed, or has no files,
is skipped by name. `--quick` races on the miniature, for the tests; of the peers, transformers runs
on it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from export_3b import REPO
from ledger import Costs, Ledger, at_the_official_prompt
from ledger import markdown as ledger_table
from race_files import ENGINES, PEERS, peer_environment, prepare, prepare_miniature

from autovla_rt.bundle import MANIFEST, load_bundle
from autovla_rt.runtime.device import describe_device

Record = dict[str, Any]
Table = dict[str, dict[str, list[float]]]

BENCH = Path(__file__).parent
STAGES = ("vision", "prefill", "decode")
VISION_OF = "OpenVINO, tuned, int4"
"""Peers without a vision tower are given this one's time: the fastest."""
OFFICIAL = "transformers, bfloat16"
PEERS_PYTHON = REPO / ".venv-bench/bin/python"
COUNTED = "ours-onnxruntime-int4"
"""The engine whose graphs the ledger counts."""


@dataclass(frozen=True)
class Contestant:
    """Who runs.

    Attributes:
        worker: Its script.
        needs: What must be in the folder of files.
        is_peer: Whether it runs in the peers' environment.
    """

    worker: Path
    needs: str
    is_peer: bool = True


CONTESTANTS = {
    OFFICIAL: Contestant(PEERS / "transformers_official.py", "base/config.json"),
    "llama.cpp, Q4_0": Contestant(PEERS / "llama_cpp_language.py", "llama.gguf"),
    "onnxruntime-genai, int4": Contestant(PEERS / "genai_language.py", "genai/genai_config.json"),
    VISION_OF: Contestant(PEERS / "openvino_tuned.py", "openvino-vision-7.xml"),
    **{
        name: Contestant(BENCH / "race_ours.py", f"{name}/engine.json", is_peer=False)
        for name in ENGINES
    },
}


def run(
    work: Path, name: str, contestant: Contestant, python: Path, threads: int
) -> list[Record] | str:
    """Run one contestant once; returns its lines, or why there are none."""
    if not python.exists():
        return f"skipped: {python} is missing"
    if not (work / contestant.needs).exists():
        return f"skipped: {contestant.needs} is missing in {work}"
    engine = () if contestant.is_peer else (name,)
    command = [python, contestant.worker, work, *engine, "--threads", str(threads)]
    beside = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCH), *sys.path])}
    environment = peer_environment() if contestant.is_peer else beside
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def collect(table: Table, facts: Record, name: str, lines: list[Record]) -> None:
    """Add a run's seconds to the table, and what is told once to the facts."""
    for line in lines:
        way = f"{name}, {line['way']}" if "way" in line else name
        for key in (*STAGES, "passes", "accepted"):
            if key in line:
                table.setdefault(way, {}).setdefault(key, []).append(line[key])
        if "load_s" in line:
            facts.setdefault(name, []).append(line)


def summary(table: Table) -> dict[str, Record]:
    """Return medians, extremes and the whole request of everyone; vision is lent where missing."""
    lent = table.get(VISION_OF, {}).get("vision")
    rows: dict[str, Record] = {}
    for name, measured in table.items():
        vision = measured.get("vision", lent)
        if vision is None:
            continue
        totals = [
            sum(parts)
            for parts in zip(vision, measured["prefill"], measured["decode"], strict=False)
        ]
        stages = {"vision": vision, **{key: measured[key] for key in STAGES[1:]}}
        rows[name] = {
            **{key: float(np.median(values)) for key, values in stages.items()},
            "request": float(np.median(totals)),
            "least": min(totals),
            "most": max(totals),
            "lent vision": "vision" not in measured,
            **{k: float(np.median(measured[k])) for k in ("passes", "accepted") if k in measured},
        }
    return rows


def markdown(rows: dict[str, Record], skipped: dict[str, str], facts: Record) -> str:
    """Return the table that people read."""
    peers = {n: r["request"] for n, r in rows.items() if n in CONTESTANTS}
    best = min(peers, key=peers.__getitem__, default=None)
    official = rows.get(OFFICIAL)
    lines = [
        "| | Vision s | Prefill s | Decode s | Request s (least-most) | Passes | "
        "against the best peer | against transformers | Load s | Peak RSS GiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["request"]):
        told = next((facts[key] for key in facts if name.startswith(key)), [])
        ratios = [
            f"{base['request'] / row['request']:.2f}x" if base else ""
            for base in (rows.get(best or ""), official)
        ]
        ends = [f"{float(np.median([t[k] for t in told])):.1f}" for k in ("load_s", "peak_rss_gib")]
        lines.append(
            f"| {name} | {row['vision']:.2f}{' (lent)' if row['lent vision'] else ''} "
            f"| {row['prefill']:.2f} | {row['decode']:.2f} "
            f"| {row['request']:.2f} ({row['least']:.2f}-{row['most']:.2f}) "
            f"| {row.get('passes', '')} | {' | '.join(ratios)} | {' | '.join(ends)} |"
        )
    lines += ["", *(f"{name}: {why}" for name, why in skipped.items())]
    return "\n".join(lines) + "\n"


def count(engine: Path) -> dict[str, Ledger]:
    """Return the ledger of a fast plan, official and ours; nothing without the engine."""
    if not (engine / MANIFEST).exists():
        return {}
    bundle = load_bundle(engine)
    return at_the_official_prompt(Costs(bundle), bundle)


def draw(rows: dict[str, Record], path: Path) -> None:
    """Draw the stages, stacked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted(rows, key=lambda name: -rows[name]["request"])
    figure = Figure(figsize=(9, 0.5 * len(names) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    left = np.zeros(len(names))
    for stage, color in zip(STAGES, ("#4c72b0", "#dd8452", "#55a868"), strict=True):
        widths = np.array([rows[name][stage] for name in names])
        axes.barh(names, widths, left=left, color=color, label=stage)
        left += widths
    for index in range(len(names)):
        axes.text(left[index], index, f" {left[index]:.1f} s", va="center")
    axes.set_xlabel("seconds of a request")
    axes.set_xlim(0, 1.12 * left.max())
    axes.legend(loc="upper right")
    FigureCanvasAgg(figure).print_png(str(path))


def race(work: Path, out: Path, *, rounds: int, threads: int, peers_python: Path) -> None:
    """Run the rounds; writes the report after each."""
    table: Table = {}
    facts: Record = {}
    skipped: dict[str, str] = {}
    gemm: list[float] = []
    counted = count(work / COUNTED)
    for number in range(rounds):
        rate = [sys.executable, str(BENCH / "gemm.py"), "--threads", str(threads)]
        done = subprocess.run(rate, capture_output=True, text=True, check=True)
        gemm.append(json.loads(done.stdout)["gops"])
        for name, contestant in CONTESTANTS.items():
            python = peers_python if contestant.is_peer else Path(sys.executable)
            lines = run(work, name, contestant, python, threads)
            if isinstance(lines, str):
                skipped[name] = lines
                print(f"{name}: {lines}", file=sys.stderr, flush=True)
                continue
            print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
            collect(table, facts, name, lines)
        rows = summary(table)
        report = {
            "device": describe_device(),
            "threads": threads,
            "rounds": number + 1,
            "int8 GEMM, GOP/s": gemm,
            "rows": rows,
            "seconds": table,
            "facts": facts,
            "skipped": skipped,
            "ledger": {name: asdict(ledger) for name, ledger in counted.items()},
        }
        out.with_suffix(".json").write_text(json.dumps(report, indent=1))
        out.with_suffix(".md").write_text(
            "\n".join([markdown(rows, skipped, facts), ledger_table(counted) if counted else ""])
        )
        draw(rows, out.with_suffix(".png"))


def main() -> None:
    """Read the arguments, make what is missing, race."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of files; 30 GB at the 3B geometry")
    parser.add_argument("out", type=Path, help="of the report, without a suffix")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers-python", type=Path)
    parser.add_argument("--quick", action="store_true", help="the miniature, one round")
    given = parser.parse_args()
    rounds, python = given.rounds, given.peers_python or PEERS_PYTHON
    given.out.parent.mkdir(parents=True, exist_ok=True)
    if given.quick:
        rounds, python = 1, given.peers_python or Path(sys.executable)
        prepare_miniature(given.work)
    else:
        prepare(given.work, [], python)
    race(given.work, given.out, rounds=rounds, threads=given.threads, peers_python=python)
    print(given.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
