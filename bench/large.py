"""Does a shuffle or sort of more than memory cost what a small one costs? `make bench-large`; never in CI.

usage: large.py [--sizes 1,2,5,10,20] [--scale 1.0] [--json FILE] [--write docs/performance.md] [--from FILE] ...

Text samples on the disk, in lists of 1 to 20 GB, go through htshuffle and htsort by `--plan external` while the whole
process tree is held to 512 MB. Bars: CPU time per sample, without start-up, at the largest size is at most 1.25 times
that at the smallest; anonymous memory of all processes together stays within the limit; the result is proven. Inputs
are dropped from the page cache before each run, so that no size is read from memory. A control group counts the page
cache too: what is read from the disk more than once because it did not stay there shows in "read". Small sizes run
several times around the largest, and their mean counts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
import sets
from measure import BenchError, Cost, measure
from plot import Line, line_plot
from rows import TOOLS
from run import machine

SHARD_SAMPLES = 20_000
SHARD_BYTES = 102_400_000
"""Of so many samples, about."""
CLASSES = 1000
GROWTH = 1.25
MOST_RUNS = 8
"""Of a small size, around the one of the largest."""
COSTS = ("cpu_s", "start_s", "cpu_us", "net_us", "wall_s", "read_bytes", "proof_s")
HEADROOM = 3.5
"""Disk for each byte of data: itself, the runs, the output, and room."""
LEAST_S, MOST_S_PER_GB = 120, 180
"""How long a run may take: one that goes around in circles over a full page cache is stopped."""
JOBS = ("shuffle", "sort", "count")
TITLES = {
    "shuffle": "htshuffle",
    "sort": "htsort -k __key__",
    "count": "htsort -k cls:int --reduce count",
}
START, END = "<!-- large: written by bench/large.py -->", "<!-- end of large -->"


# -- the data --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Data:
    """Shards of text samples on the disk; all keys differ."""

    home: Path
    shards: list[Path]
    shard_bytes: int
    shard_samples: int
    classes: dict[str, int]
    """How often each class is in one shard."""

    def pattern(self, count: int) -> str:
        """Name the first shards."""
        return str(self.home / f"text-{{000000..{count - 1:06d}}}.tar")


def content(samples: int) -> Iterator[tuple[str, sets.Fields]]:
    """Make text samples as those of the benchmark, with a class."""
    chance = random.Random("large")
    for key, fields in sets._CONTENT["text"](samples):
        yield key, {**fields, "cls": b"%d" % int(CLASSES * chance.random() ** 2)}  # some classes are larger


def make_data(folder: Path, samples: int, shards: int) -> Data:
    """Make the shards that are not there from an earlier run."""
    home = folder / f"large-{samples}-v{sets.FORMAT}"
    base, one = home / "base.tar", home / "one" / "text-000000.tar"
    made = list(content(samples))
    if not base.exists():
        one.parent.mkdir(parents=True, exist_ok=True)
        sets._write(one, made[:1])
        sets._write(home / "base.tmp", made)
        (home / "base.tmp").rename(base)
    template = sets.Template(base, "text")
    paths = [home / f"text-{index:06d}.tar" for index in range(shards)]
    for index, path in enumerate(paths):
        if not path.exists():
            template.write(home / "shard.tmp", index)
            (home / "shard.tmp").rename(path)
    classes = Counter(fields["cls"].decode() for _, fields in made)
    return Data(home, paths, base.stat().st_size, samples, dict(classes))


def forget(paths: list[Path]) -> None:
    """Drop files from the page cache."""
    os.sync()
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


# -- the limit -------------------------------------------------------------------------------------------------------


@dataclass
class Held:
    """A limit on memory for one run."""

    how: str
    command: list[str]
    """What the command is put behind."""
    folder: Path | None = None
    peak_file: str = ""
    kills_file: str = ""

    def peak_bytes(self) -> int | None:
        """What the kernel charged at most, page cache included."""
        if self.folder is None or not (self.folder / self.peak_file).exists():
            return None
        return int((self.folder / self.peak_file).read_text())

    def killed(self) -> bool:
        """Whether a process was killed for want of memory."""
        if self.folder is None:
            return False
        found = re.search(r"^oom_kill (\d+)", (self.folder / self.kills_file).read_text(), re.MULTILINE)
        return found is not None and int(found[1]) > 0


@contextmanager
def held_to(limit: int) -> Iterator[Held]:
    """Hold a process tree to so much memory: by a control group below our own, else each process by RLIMIT_DATA."""
    held = _by_cgroup(limit)
    if held is None:
        how = "RLIMIT_DATA of each process (no control group could be made)"
        yield Held(how, ["sh", "-c", f'ulimit -d {limit >> 10} && exec "$@"', "sh"])
        return
    assert held.folder is not None
    try:
        yield held
    finally:
        for _ in range(50):
            try:
                held.folder.rmdir()
                break
            except OSError:  # someone stopped us, or the last process is not gone yet
                for pid in (held.folder / "cgroup.procs").read_text().split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.1)


def _by_cgroup(limit: int) -> Held | None:
    ours = [line.strip().split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    v1 = next((path for _, names, path in ours if "memory" in names.split(",")), None)
    v2 = next((path for number, names, path in ours if number == "0" and not names), None)
    if v1 is not None:
        root, path, file = Path("/sys/fs/cgroup/memory"), v1, "memory.limit_in_bytes"
        how, peak, kills = "memory control group (v1)", "memory.max_usage_in_bytes", "memory.oom_control"
    elif v2 is not None:
        root, path, file = Path("/sys/fs/cgroup"), v2, "memory.max"
        how, peak, kills = "memory control group (v2)", "memory.peak", "memory.events"
    else:
        return None
    parent = root / path.lstrip("/")
    folder = (parent if parent.is_dir() else root) / f"tarmill-bench-{os.getpid()}-{time.monotonic_ns()}"
    try:
        folder.mkdir()
    except OSError:
        return None
    try:
        (folder / file).write_text(str(limit))
    except OSError:
        folder.rmdir()
        return None
    enter = ["sh", "-c", 'echo $$ > "$1" && shift && exec "$@"', "sh", str(folder / "cgroup.procs")]
    return Held(f"{how} of the whole process tree", enter, folder, peak, kills)


# -- one run ---------------------------------------------------------------------------------------------------------


def command_of(job: str, pattern: str, out: Path, shards: int, options: argparse.Namespace) -> list[str]:
    """Build the command of a job."""
    tool = "htshuffle" if job == "shuffle" else "htsort"
    more = {"shuffle": [], "sort": ["-k", "__key__"], "count": ["-k", "cls:int", "--reduce", "count"]}[job]
    target = f"{out}/out-@{min(shards, 10) if job == 'count' else shards}.tar"
    flags = ["--plan", "external", "-j", str(options.workers), "--memory", options.memory, "-q"]
    return [str(TOOLS / tool), *flags, *more, pattern, target]


def run(job: str, data: Data, count: int, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one job over the first shards, prove its result, and tell what it cost."""
    shards = data.shards[:count]
    samples = count * data.shard_samples
    costs: list[Cost] = []
    limit_s = int(LEAST_S + count * data.shard_bytes / 1e9 * MOST_S_PER_GB)
    for pattern, number in ((str(data.home / "one" / "text-000000.tar"), 1), (data.pattern(count), count)):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        forget(shards)
        with held_to(options.limit) as held:
            command = command_of(job, pattern, out, number, options)
            try:
                costs.append(measure([*held.command, *command], limit_s=limit_s))
            except BenchError as error:
                why = " (the kernel killed a process for want of memory)" if held.killed() else ""
                raise BenchError(f"{job} of {count * data.shard_bytes / 1e9:.2f} GB{why}: {error}") from error
            charged = held.peak_bytes()
    began = time.monotonic()
    prove(job, data, count, out)
    start, cost = costs
    return {
        "job": job,
        "bytes": count * data.shard_bytes,
        "samples": samples,
        "limit": held.how,
        "cpu_s": cost.cpu_s,
        "start_s": start.cpu_s,
        "cpu_us": cost.cpu_s / samples * 1e6,
        "net_us": (cost.cpu_s - start.cpu_s) / samples * 1e6,
        "wall_s": cost.wall_s,
        "read_bytes": cost.read_bytes,
        "peak_anon_mb": cost.peak_anon_bytes / 1e6,
        "peak_anon_mb_of_all": cost.peak_anon_bytes_of_all / 1e6,
        "peak_charged_mb": None if charged is None else charged / 1e6,
        "proof_s": time.monotonic() - began,
    }


def prove(job: str, data: Data, count: int, out: Path) -> None:
    """Prove a result: `tarmill verify` against the input, the order of keys, or the sum for each class."""
    outputs = sorted(out.glob("*.tar"))
    if job == "count":
        _expect_counts(outputs, {name: number * count for name, number in data.classes.items()})
        return
    measure([str(TOOLS / "tarmill"), "verify", "-q", data.pattern(count), f"{out}/out-@{count}.tar"], limit_s=4 * 3600)
    last = b""
    for output in outputs if job == "sort" else []:
        for key in sets.keys_of_shards([output]):
            if key <= last:
                raise BenchError(f"{output}: key {key!r} stands behind {last!r}")
            last = key


def _expect_counts(outputs: list[Path], expected: dict[str, int]) -> None:
    import tarfile

    found: dict[str, bytes] = {}
    for output in outputs:
        with tarfile.open(output) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    counts = {name.removesuffix(".count"): int(body) for name, body in found.items() if name.endswith(".count")}
    if counts != expected:
        raise BenchError(f"the counts of {len(counts)} classes are not those of the {len(expected)} in the input")


# -- the result ------------------------------------------------------------------------------------------------------


def judge(rows: list[dict[str, Any]], limit: int) -> list[str]:
    """Say what misses its bar."""
    missed = []
    for job in JOBS:
        ours = [row for row in rows if row["job"] == job]
        if len(ours) > 1 and (growth := ours[-1]["net_us"] / ours[0]["net_us"]) > GROWTH:
            missed.append(f"{TITLES[job]}: a sample costs {growth:.2f} times as much at the largest size (<= {GROWTH})")
        missed += [
            f"{TITLES[job]}, {row['bytes'] / 1e9:.2f} GB: {row['peak_anon_mb_of_all']:.0f} MB of anonymous memory"
            for row in ours
            if row["peak_anon_mb_of_all"] > limit / 1e6
        ]
    return missed


HEADER = (
    "job",
    "GB",
    "runs",
    "samples",
    "CPU us/sample",
    "to the smallest",
    "wall s",
    "GB read",
    "anonymous MB",
    "largest process",
)


def lines_of(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Format one line for each run."""
    first: dict[str, float] = {}
    return [
        (
            TITLES[row["job"]],
            f"{row['bytes'] / 1e9:.2f}",
            str(row.get("runs", 1)),
            f"{row['samples']:,}",
            f"{row['net_us']:.2f}",
            f"{row['net_us'] / first.setdefault(row['job'], row['net_us']):.2f}",
            f"{row['wall_s']:.1f}",
            f"{row['read_bytes'] / 1e9:.2f}",
            f"{row['peak_anon_mb_of_all']:.0f}",
            f"{row['peak_anon_mb']:.0f}",
        )
        for row in rows
    ]


def about(told: dict[str, Any]) -> str:
    """Say on what and how it was measured."""
    where = told["machine"]
    return (
        f"{told['date']}; {where['processors']} processors, {where['system']}, Python {where['python']}; "
        f"`{told['flags']}`, held to {told['limit_bytes'] / 1e6:.0f} MB by {told['rows'][0]['limit']}."
    )


def write_page(page: Path, told: dict[str, Any]) -> None:
    """Put the table into a page between its marks, and the plot beside the page."""
    picture = page.with_name("performance.svg")
    lines = [
        Line(TITLES[job], [(row["bytes"] / 1e9, row["net_us"]) for row in told["rows"] if row["job"] == job])
        for job in JOBS
    ]
    picture.write_text(line_plot([line for line in lines if line.points], "GB of samples", "CPU us per sample"))
    table = report.markdown(HEADER, lines_of(told["rows"]), 1)
    text = f"{about(told)}\n\n![CPU time per sample against size]({picture.name})\n\n{table}"
    report.put_between(page, START, END, text)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1,2,5,10,20", help="GB, smallest first")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the size of each shard")
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--limit", type=int, default=512_000_000, help="bytes of memory for the process tree")
    parser.add_argument("--memory", default="256MB", help="what the tool is told")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--json", type=Path, help="write all figures here, after each run")
    parser.add_argument("--write", type=Path, help="put the table into this page")
    parser.add_argument("--from", dest="source", type=Path, help="only write the page, from figures measured before")
    return parser.parse_args()


def main() -> int:
    """Run the batch; 1 when a bar is missed, 2 when a run failed or its result is wrong."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the control group and the outputs go too
    if options.source:
        write_page(options.write, json.loads(options.source.read_text()))
        return 0
    options.data.mkdir(parents=True, exist_ok=True)
    samples = max(1, int(SHARD_SAMPLES * options.scale))
    unit = 1e9 / SHARD_BYTES
    sizes = [max(1, round(float(size) * unit)) for size in options.sizes.split(",")]
    sizes = fitting(sizes, int(SHARD_BYTES * options.scale), options.data)
    data = make_data(options.data.resolve(), samples, max(sizes))
    out = options.data.resolve() / "large-out"
    told: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "flags": f"--plan external -j {options.workers} --memory {options.memory}",
        "limit_bytes": options.limit,
        "scale": options.scale,
        "rows": [],
    }
    failed: list[str] = []
    found: dict[tuple[str, int], dict[str, Any]] = {}
    try:
        for job, count in in_turn(options.jobs.split(","), sizes, failed):
            try:
                row = run(job, data, count, out, options)
            except BenchError as error:
                failed.append(job)
                print(f"bench: {error}", file=sys.stderr, flush=True)
                continue
            found[job, count] = together(found.get((job, count)), row)
            told["rows"] = [found[key] for key in sorted(found, key=lambda key: (JOBS.index(key[0]), key[1]))]
            print("  ".join(lines_of([row])[0]), file=sys.stderr, flush=True)
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(told, indent=1) + "\n")
    finally:
        shutil.rmtree(out, ignore_errors=True)
    if told["rows"]:
        print(about(told), report.aligned(HEADER, lines_of(told["rows"]), 1), sep="\n\n")
        if options.write:
            write_page(options.write, told)
    missed = judge(told["rows"], options.limit)
    for line in [*(f"{TITLES[job]}: a run failed" for job in failed), *missed]:
        print(f"missed: {line}")
    return 2 if failed else 1 if missed else 0


def in_turn(jobs: list[str], sizes: list[int], failed: list[str]) -> Iterator[tuple[str, int]]:
    """Give the runs: of each job the small sizes several times before the largest and as often after it.

    A machine that others share is at times twice as slow as at others, for minutes: what takes seconds must not meet
    only its best times, and what takes minutes its average. None of a job that has failed, since larger ones would
    take longer still.
    """
    *smaller, largest = sizes
    for job in jobs:
        repeats = {count: -(-min(MOST_RUNS, largest // count) // 2) for count in smaller}
        before = [count for count in smaller for _ in range(repeats[count])]
        for count in (*before, largest, *reversed(before)):
            if job not in failed:
                yield job, count


def together(before: dict[str, Any] | None, row: dict[str, Any]) -> dict[str, Any]:
    """Put the runs of one job and size into one row: the mean of what they cost, the most of their memory."""
    if before is None:
        return {**row, "runs": 1}
    runs = before["runs"] + 1
    means = {name: (before[name] * before["runs"] + row[name]) / runs for name in COSTS}
    peaks = {name: max(before[name], row[name]) for name in ("peak_anon_mb", "peak_anon_mb_of_all")}
    return {**before, **means, **peaks, "runs": runs}


def fitting(sizes: list[int], shard_bytes: int, folder: Path) -> list[int]:
    """Leave out the sizes for which the disk has no room."""
    there = sum(path.stat().st_size for path in folder.glob("large-*/text-*.tar"))
    room = shutil.disk_usage(folder).free + there
    most = int(room / HEADROOM / shard_bytes)
    if max(sizes) <= most:
        return sizes
    kept = [size for size in sizes if size < most] + [most]
    print(
        f"{folder} has {room / 1e9:.0f} GB free, {max(sizes) * shard_bytes * HEADROOM / 1e9:.0f} GB are needed for "
        f"{max(sizes) * shard_bytes / 1e9:.1f} GB of data: the largest size is {most * shard_bytes / 1e9:.1f} GB",
        file=sys.stderr,
    )
    return kept


if __name__ == "__main__":
    sys.exit(main())
