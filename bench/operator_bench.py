"""Measure the operator: `make bench-operator`; needs root, and the folder tests/ on PYTHONPATH, for its node.

A thousand resources on a real control plane whose pods are simulated, and then, on a real node, how long a job takes
from `kubectl apply` to its first sample.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report
from cluster.scale import Measured, control_plane, measure
from cluster.starts import Start, measure_starts
from support import kube_clusters

START, END = "<!-- figures: written by bench/operator_bench.py -->", "<!-- end of figures -->"
Line = tuple[str, ...]


def percentile(values: Sequence[float], share: float) -> float:
    """Give the smallest value that so large a share of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def figures_of(run: Measured, per_second: float, run_s: float) -> dict[str, Any]:
    """Turn what was seen into figures."""
    stories = run.stories.values()
    count = len(run.stories)
    succeeded = sum(story.phase == "Succeeded" for story in stories)
    reactions = [story.first_status_s - story.created_s for story in stories if story.first_status_s is not None]
    jobs = [story.first_job_s - story.created_s for story in stories if story.first_job_s is not None]
    progress = sum(story.progress_writes for story in stories)
    writes = sum(run.writes.values())
    return {
        "resources": count,
        "succeeded": succeeded,
        "left": run.left,
        "per_second": per_second,
        "run_s": run_s,
        "seconds": run.seconds,
        "cpu_ms_per_resource": run.cpu_s / count * 1e3,
        "cpu_start_s": run.cpu_start_s,
        "peak_rss_mb": run.peak_rss_bytes / 1e6,
        "idle_cpu_percent": run.idle_cpu_share * 100,
        "writes_per_resource": (writes - progress) / count,
        "progress_writes_per_resource": progress / count,
        "writes": {name: number / count for name, number in run.writes.most_common()},
        "reaction_p50_s": percentile(reactions, 0.5),
        "reaction_p99_s": percentile(reactions, 0.99),
        "job_p50_s": percentile(jobs, 0.5),
        "job_p99_s": percentile(jobs, 0.99),
    }


def scale_lines(scale: dict[str, Any]) -> list[Line]:
    """Hold the figures against their goals."""

    def line(name: str, goal: float, unit: str, value: float, digits: int = 1) -> Line:
        return name, f"<= {goal:g} {unit}", f"{value:.{digits}f} {unit}", "reached" if value <= goal else "missed"

    ended = "reached" if scale["succeeded"] == scale["resources"] and not scale["left"] else "missed"
    told = f"{scale['succeeded']:,} of {scale['resources']:,}, {len(scale['left'])} objects left"
    return [
        ("all succeed, nothing is left that should go", "all", told, ended),
        line("peak memory", 256, "MB", scale["peak_rss_mb"], 0),
        line("CPU time for each resource", 40, "ms", scale["cpu_ms_per_resource"]),
        line("writes to the API for each resource, besides progress", 16, "writes", scale["writes_per_resource"]),
        line("idle, with all of them there", 1, "% of a core", scale["idle_cpu_percent"], 2),
        line("from creation to the first status, 99th percentile", 2, "s", scale["reaction_p99_s"], 2),
    ]


def start_lines(starts: Sequence[Start]) -> list[Line]:
    """One line for each number of workers, cold and warm."""
    lines = []
    for workers in dict.fromkeys(start.workers for start in starts):
        of = [start for start in starts if start.workers == workers]
        warm = [start.first_sample_s for start in of if not start.cold]
        cold = [f"{start.first_sample_s:.1f} s" for start in of if start.cold]
        value = statistics.median(warm)
        result = "reached" if value <= 10 else "missed"
        lines.append((f"{workers} workers", *(cold or ["-"]), f"{value:.1f} s", "<= 10 s warm", result))
    return lines


def as_text(figures: dict[str, Any], *, page: bool) -> str:
    """Lay all of it out, for a page or a terminal."""
    lay_out = report.markdown if page else report.aligned
    parts = [f"{figures['date']}; {figures['processors']} processors, {figures['system']}."]
    if scale := figures.get("scale"):
        parts.append(lay_out(("figure", "goal", "measured", "result"), scale_lines(scale), 1))
        writes = ", ".join(f"{name} {number:.2f}" for name, number in scale["writes"].items())
        parts.append(
            f"Created at {scale['per_second']:g} a second, each running for {scale['run_s']:g} s; all were done after "
            f"{scale['seconds']:.0f} s. The first status is there after {scale['reaction_p50_s']:.2f} s in the median, "
            f"the Job after {scale['job_p50_s']:.2f} s (99th percentile {scale['job_p99_s']:.2f} s). Progress is "
            f"written {scale['progress_writes_per_resource']:.1f} times for each. Writes for each resource: {writes}. "
            f"The operator's start takes {scale['cpu_start_s']:.1f} s of CPU time."
        )
    if starts := figures.get("starts"):
        lines = start_lines([Start(**start) for start in starts])
        parts.append(lay_out(("from apply to the first sample", "cold", "warm", "goal", "result"), lines, 1))
    return "\n\n".join(parts)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="resources (1000); 0 leaves this part out")
    parser.add_argument("--per-second", type=float, default=5.0, help="how many are created in a second (5)")
    parser.add_argument("--run", type=float, default=20.0, metavar="S", help="how long a runner takes (20)")
    parser.add_argument("--starts", type=int, default=5, help="warm starts of each kind (5); 0 leaves this part out")
    parser.add_argument("--json", type=Path, help="write all figures here; a part that is left out is kept as it is")
    parser.add_argument("--write", type=Path, help="a page with marks to put the figures between")
    return parser.parse_args()


def main() -> int:
    """Run it; the exit code is 1 when not all resources have succeeded, 2 when it cannot be run here."""
    options = arguments()
    if lacking := kube_clusters.lacking():
        print(f"no node: {lacking}", file=sys.stderr)
        return 2
    figures: dict[str, Any] = {}
    if options.json and options.json.exists():
        figures = json.loads(options.json.read_text())
    figures |= {
        "date": time.strftime("%Y-%m-%d"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": len(os.sched_getaffinity(0)),
    }
    if options.count:
        with tempfile.TemporaryDirectory(prefix="tarmill-bench-") as name:
            folder = Path(name)
            with control_plane(folder) as node:
                job = measure(node, folder, options.count, options.per_second, options.run)
                figures["scale"] = figures_of(asyncio.run(job), options.per_second, options.run)
    if options.starts:
        figures["starts"] = [start.to_dict() for start in measure_starts(options.starts)]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(as_text(figures, page=False))
    if options.write:
        report.put_between(options.write, START, END, as_text(figures, page=True))
    scale = figures.get("scale")
    return 1 if scale and (scale["succeeded"] < scale["resources"] or scale["left"]) else 0


if __name__ == "__main__":
    sys.exit(main())
