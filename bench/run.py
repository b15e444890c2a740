"""Measure the tools against their peers: `make bench`, or `make bench-check` for the quick batch that fails on ratios.

CPU time of the whole process tree per sample, start-up included; the least of n rounds, all competitors in turn within
each round; outputs on a memory file system where there is one. Before the first round each row runs once on the short
view and what it read or wrote is hashed: a row whose samples are not right fails the benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import report
import sets
from bars import Figures, Verdict, judge, rows_of
from measure import BenchError, Cost, measure
from places import Place, has_s3, opened
from rows import Row, all_rows, command_of, scratch_folder
from sets import View
from webserver import find_nginx

Views = dict[str, tuple[View, View, View]]
BASE, VIEW, ONE = range(3)
SLOW_S = 4.0
BURN = "n = 0\nfor i in range(12_000_000): n += i"
PEERS = ("tarmill", "webdataset", "numpy", "isal", "xxhash", "urllib3")


class Batch:
    """One batch: the sets, the scratch folder, the results so far."""

    def __init__(self, rows: list[Row], views: Views, scratch: Path, places: Mapping[str, Place]) -> None:
        self.rows = rows
        self.views = views
        self.scratch = scratch
        self.places = places
        self.results = {
            row.name: Figures(view.samples, largest_sample=view.largest_sample, key_bytes=view.key_bytes)
            for row in rows
            for view in [views[row.set][VIEW]]
        }
        self.burns: list[tuple[float, float]] = []
        self.count = 0

    def warm(self, size_bytes: int) -> None:
        """Fill and empty as much memory as an output takes.

        A virtual machine gets its memory from its host at the first touch, which costs several times the copy, and may
        give it back when it is free: without this, whoever comes first pays for all.
        """
        block = bytes(1 << 20)
        path = self.scratch / "warm"
        with path.open("wb") as out:
            for _ in range(size_bytes * 5 // 4 >> 20):
                out.write(block)
        path.unlink()

    def prove(self) -> None:
        """Run each row once on the short view and hash what it read or wrote."""
        for row in self.rows:
            self.run(row, BASE, thorough=True)

    def round(self, names: set[str] | None = None, spare_slow: bool = False) -> None:
        """Run every row (or those named) once, over the long view and over a single sample.

        Args:
            spare_slow: leave out rows that took longer than `SLOW_S` before.
        """
        for row in self.rows:
            figures = self.results[row.name]
            if spare_slow and figures.runs and figures.runs[-1].cpu_s > SLOW_S:
                continue
            if names is None or row.name in names or "*" in names:
                figures.starts.append(self.run(row, ONE))
                self.warm(written_bytes(row.set, self.views[row.set][VIEW]))
                figures.runs.append(self.run(row, VIEW))
        self.burns.append(burn())

    def run(self, row: Row, length: int, thorough: bool = False) -> Cost:
        """Run a row in a fresh folder and check its result."""
        view = self.views[row.set][length]
        self.count += 1
        out = self.scratch / f"out-{self.count}"
        out.mkdir()
        try:
            target, asked, variables = str(out), view, {}
            place = self.places[row.place] if row.place else None
            if place:
                target, there, variables = place.target(out.name), place.view(view), place.environment
                asked = view if row.tool == "curl" else there  # curl sends files
            stdout = out / "stdout" if row.stdout_to_file else None
            cost = measure(command_of(row, asked, target, thorough), stdout=stdout, variables=variables)
            if place:
                place.gather(out.name, out, thorough)
            row.check(view, out, cost.stdout, thorough)
            return replace(cost, cpu_s=float(cost.stdout.split()[0])) if row.times_itself else cost
        except BenchError as error:
            raise BenchError(f"{row.name}: {error}") from error
        finally:
            shutil.rmtree(out)

    @property
    def parallel(self) -> float:
        """How much two computing processes gain over one on this machine, at best, in this batch."""
        return max((2 * one / two for one, two in self.burns), default=0.0)


def largest_output(views: Views) -> int:
    """Tell how many bytes a row may have written at once, scratch files too; long lists are only read."""
    return max((written_bytes(name, view) for name, (_, view, _) in views.items()), default=0)


def written_bytes(name: str, view: View) -> int:
    """Tell how many bytes a row over a set may write."""
    if name.endswith(".long"):
        return 0
    return view.tar_bytes * (2 if name.endswith(".unique") else 1)


def make_views(rows: list[Row], options: argparse.Namespace, copies: Path, memory: Path) -> Views:
    """Make the sets that rows need; those that are not kept go into `copies` or, many small files, into `memory`."""
    views: Views = {}
    for name in dict.fromkeys(row.set for row in rows):
        plain, _, variant = name.partition(".")
        if name == "keys":
            views[name] = sets.make_keys(options.scale)
        elif variant.endswith("files"):
            views[name] = sets.make_files(name, options.scale, options.data, memory)
        elif variant == "unique":
            views[name] = sets.make_unique(plain, options.scale, options.data, copies)
        else:
            views[name] = sets.make(name, options.scale, options.data)
    return views


def burn() -> tuple[float, float]:
    """Time one process that only computes, and two at once."""
    walls = []
    for count in (1, 2):
        start = time.perf_counter()
        processes = [subprocess.Popen([sys.executable, "-I", "-S", "-c", BURN]) for _ in range(count)]
        for process in processes:
            process.wait()
        walls.append(time.perf_counter() - start)
    return walls[0], walls[1]


def machine() -> dict[str, object]:
    """Describe where the figures come from."""
    versions = {}
    for name in PEERS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "-"
    return {
        "processors": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "load": os.getloadavg()[0],
    }


def as_json(batch: Batch, verdicts: list[Verdict], options: argparse.Namespace) -> dict[str, object]:
    """Gather all that is needed to print the table again, and to doubt it."""
    rows = {
        name: {
            "samples": figures.samples,
            "cpu_us": figures.cpu_us,
            "net_us": figures.net_us,
            "start_s": figures.start_s,
            "wall_s": figures.wall_s,
            "peak_rss_mb": figures.peak_rss_mb,
            "peak_anon_mb": figures.peak_anon_mb,
            "cpu_s_of_runs": [run.cpu_s for run in figures.runs],
            "wall_s_of_runs": [run.wall_s for run in figures.runs],
        }
        for name, figures in batch.results.items()
    }
    bars = [
        {**asdict(verdict.bar), "measured": verdict.measured, "net": verdict.net, "word": verdict.word}
        for verdict in verdicts
    ]
    data = {
        name: {
            "samples_on_disk": base.samples,
            "bytes_on_disk": base.tar_bytes,
            "samples": view.samples,
            "bytes": view.tar_bytes,
            "unique_keys": bool(view.key_bytes),
        }
        for name, (base, view, _) in batch.views.items()
        if view.shards
    }
    return {
        "date": time.strftime("%Y-%m-%d"),
        "scale": options.scale,
        "rounds": len(batch.burns),
        "machine": machine(),
        "parallel": batch.parallel,
        "sets": data,
        "rows": rows,
        "bars": bars,
    }


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only what bars need; exit 1 below a floor")
    parser.add_argument("--rounds", type=int, help="rounds (5, with --check 2)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="1.0 keeps 100 MB on the disk, and 2.5 GB while it runs"
    )
    parser.add_argument("--only", help="only rows whose name contains this")
    parser.add_argument("--no-http", action="store_true", help="leave out the rows that need nginx")
    parser.add_argument("--no-s3", action="store_true", help="leave out the rows that need SeaweedFS")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data", help="where the sets are kept")
    parser.add_argument("--json", type=Path, help="write all figures here")
    return parser.parse_args()


def places_of(options: argparse.Namespace) -> set[str]:
    """Choose the servers to measure on; says which are left out because they are not installed."""
    places = set() if options.no_http else {"http"}
    places |= set() if options.no_s3 else {"s3", "far"}
    absent = {"nginx": {"http"} if find_nginx() is None else set(), "SeaweedFS": set() if has_s3() else {"s3", "far"}}
    for name, gone in absent.items():
        if places & gone:
            print(f"{name} was not found: the rows that need it are left out", file=sys.stderr)
        places -= gone
    return places


def main() -> int:
    """Run a batch; the exit code is 1 when a ratio is below its floor (with --check), 2 when it cannot be trusted."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the web server and the scratch folder go too
    rounds = options.rounds or (2 if options.check else 5)
    rows = [
        row for row in all_rows(not options.check, places_of(options)) if not options.only or options.only in row.name
    ]
    with ExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix="tarmill-bench-", dir=scratch_folder()))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        options.data.mkdir(parents=True, exist_ok=True)
        copies = Path(tempfile.mkdtemp(prefix="copies-", dir=options.data))
        stack.callback(shutil.rmtree, copies, ignore_errors=True)
        views = make_views(rows, options, copies.resolve(), scratch)
        needed = 2 * largest_output(views)
        if (free := shutil.disk_usage(scratch).free) < needed:
            print(f"{scratch} has {free} bytes free, {needed} are needed: use a smaller --scale", file=sys.stderr)
            return 2
        (scratch / "www").mkdir()
        places = stack.enter_context(opened({row.place for row in rows}, scratch / "www"))
        batch = Batch(rows, views, scratch / "www", places)
        try:
            batch.prove()
            for number in range(rounds):
                print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
                # Long runs wander less: one of them is enough for a check.
                batch.round(spare_slow=options.check and number > 0)
            verdicts = judge(batch.results, batch.parallel)
            if failed := [verdict for verdict in verdicts if not verdict.holds]:
                print(f"{len(failed)} bars failed: two more rounds of their rows", file=sys.stderr, flush=True)
                for _ in range(2):
                    batch.round(rows_of(failed))
                verdicts = judge(batch.results, batch.parallel)
        except BenchError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 2
    told = as_json(batch, verdicts, options)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    print(report.as_text(told))
    if names := [verdict.bar.name for verdict in verdicts if not verdict.passed]:
        print(f"\nmissed: {'; '.join(names)}")
    failed = [verdict.bar.name for verdict in verdicts if not verdict.holds]
    if failed:
        print(f"below the floor: {'; '.join(failed)}")
    return 1 if failed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
