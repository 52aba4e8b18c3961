"""Runs the GPU's tests on this device and writes a report to send back.

    python bench/gpu_report.py OUT.json [--engine BUNDLE] [--cubins FOLDER]

What the device is (doctor), every test with its result or why it was skipped, and the kernels'
times with their protocol.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]


def main() -> None:
    """Read the arguments, run everything, write the report; exit code 1 where a test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--engine", type=Path)
    parser.add_argument("--cubins", type=Path, default=REPO / "build" / "cubins")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPO),
        "PYTHONSAFEPATH": "1",
        "AUTOVLA_CUBINS": str(given.cubins),
    }
    if given.engine is not None:
        environment["AUTOVLA_ENGINE"] = str(given.engine.resolve())
    results = given.out.with_suffix(".xml")
    tests = ["pytest", "-q", "--confcutdir", "tests/gpu", "tests/gpu", f"--junitxml={results}"]
    subprocess.run([sys.executable, "-m", *tests], cwd=REPO, env=environment, check=False)
    doctor = output([sys.executable, "-m", "autovla_rt", "doctor", "--json"], environment)
    report = {
        "commit": output(["git", "rev-parse", "HEAD"], environment).strip(),
        "doctor": json.loads(doctor) if doctor else None,
        "tests": read_results(results),
        "kernels": [
            json.loads(line)
            for folder in sorted(given.cubins.glob("sm_*"))
            for line in output(
                [sys.executable, "bench/gpu_kernels.py", str(folder)], environment
            ).splitlines()
        ],
    }
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    outcomes = [test["outcome"] for test in report["tests"]]
    told = ", ".join(f"{outcomes.count(of)} {of}" for of in ("passed", "failed", "skipped"))
    print(f"{told}; the report is {given.out}")
    sys.exit("failed" in outcomes or not outcomes)


def output(command: list[str], environment: dict[str, str]) -> str:
    """Return what a command prints; nothing where it fails (no device of these kernels)."""
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    return "" if done.returncode else done.stdout


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read a JUnit file: name, outcome, seconds, and what was said of each test."""
    if not path.exists():
        return []
    results = []
    for case in ElementTree.parse(path).iter("testcase"):
        told = {child.tag: child.get("message", "") for child in case}
        failed = told.keys() & {"failure", "error"}
        outcome = "failed" if failed else "skipped" if "skipped" in told else "passed"
        name = f"{case.get('classname')}::{case.get('name')}"
        said = next(iter(told.values()), "")
        seconds = float(case.get("time", 0))
        results.append({"test": name, "outcome": outcome, "seconds": seconds, "said": said})
    return results


if __name__ == "__main__":
    main()
