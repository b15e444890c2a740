"""Map jobs as the tests see them: small data sets, scripts, the command in this process or as one, and its outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support import tars
from support.tar_reading import bare
from support.waiting import wait_for
from tarmill import storage
from tarmill.formats.compression import decompress
from tarmill.formats.samples import ReadOptions
from tarmill.formats.tar_read import iter_samples
from tarmill.jobs.map import run
from tarmill.jobs.report import Report
from tarmill.spec import MapSpec, RunOptions

BIN = Path(sys.executable).parent
TESTS = Path(__file__).parents[1]

IDENTITY = "def process_sample(record):\n    return record\n"
UPPER = "def process_sample(record):\n    record['txt'] = record['txt'].upper()\n    return record\n"


def pairs_of(shard: int, samples: int = 5, size: int = 20) -> list[tuple[str, bytes]]:
    """Members of one shard: keys `s0-000`, ... with the fields cls and txt."""
    return [
        (f"s{shard}-{number:03d}.{field}", f"{field} {shard} {number} ".encode() + b"x" * size)
        for number in range(samples)
        for field in ("cls", "txt")
    ]


def put_shards(folder: str | Path, shards: int = 3, samples: int = 5, size: int = 20, name: str = "in") -> str:
    """Write a data set into a folder (a URL ends with '/'), and give its pattern."""
    where = f"{folder}/" if isinstance(folder, Path) else folder
    for shard in range(shards):
        storage.write_bytes(f"{where}{name}-{shard}.tar", tars.ustar(pairs_of(shard, samples, size)))
    return f"{where}{name}-@{shards}.tar"


def put_records(url: str | Path, records: Iterable[dict[str, Any]]) -> str:
    """Write one shard of such records, {"__key__": str, field: bytes}, and give its URL."""
    pairs = [
        (f"{record['__key__']}.{field}", body)
        for record in records
        for field, body in record.items()
        if field[:2] != "__"
    ]
    storage.write_bytes(str(url), tars.ustar(pairs))
    return str(url)


def records_in(url: str | Path) -> list[dict[str, Any]]:
    """Read all samples of a shard: {"__key__": str, field: bytes}."""
    with storage.open_read(str(url)) as stream:
        raw, _ = decompress(stream, str(url))
        return [bare(record) for record in iter_samples(raw, str(url), ReadOptions())]


def run_map(source: str | Path, output: str | Path, script: str = IDENTITY, **fields: Any) -> Report:
    """Run a map job in this process; RunOptions in `options`, everything else is a field of the spec."""
    options = fields.pop("options", {})
    spec = MapSpec(input=str(source), output=str(output), script=script, **fields)
    return run(spec, RunOptions(**{"workers": 1, **options}))


def map_records(place: str, records: Iterable[dict[str, Any]], script: str, **fields: Any) -> list[dict[str, Any]]:
    """Map one shard of such records in memory, and give what came out."""
    run_map(put_records(f"{place}in.tar", records), f"{place}out.tar", script, **fields)
    return records_in(f"{place}out.tar")


def counts_balance(report: dict[str, Any]) -> bool:
    """Whether the report's numbers, added up here, balance: read + added = written + dropped."""
    samples = report["samples"]
    dropped = sum(samples.get("dropped", {}).values())
    return bool(report["balanced"] and samples["read"] + samples.get("added", 0) == samples["written"] + dropped)


def bytes_of(folder: Path, pattern: str = "out*") -> dict[str, bytes]:
    """Contents of the outputs in a folder, by name; the data set's manifest is not among them."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern)) if path.suffix != ".json"}


def leftovers(folder: Path) -> list[str]:
    """Temp files anywhere below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith(".tmp"))


def finished_shards(folder: Path) -> list[Path]:
    """Manifests of finished shards below a folder, of any job."""
    return sorted(folder.glob("_tarmill/*/shard-*.json"))


def environment() -> dict[str, str]:
    """What commands of the tests run with: no proxies, no credentials of the machine."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    return {**kept, "NETRC": os.devnull, "PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "error"}


def command(
    arguments: Sequence[str | Path], cwd: Path, input: bytes | None = None, tool: str = "htmapper", **env: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command of tarmill to its end; the bound only ends a hang."""
    return subprocess.run(
        [str(BIN / tool), *map(str, arguments)],
        cwd=cwd,
        input=input if input is not None else b"",
        capture_output=True,
        timeout=100,
        env={**environment(), **env},
    )


class Running:
    """A command that is running; the context manager ends it, whatever the test did."""

    def __init__(self, arguments: Sequence[str | Path], cwd: Path, tool: str = "htmapper", **env: str) -> None:
        self.errors_path = cwd / "stderr.txt"
        with self.errors_path.open("wb") as errors:
            self.process = subprocess.Popen(
                [str(BIN / tool), *map(str, arguments)],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**environment(), **env},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def errors(self) -> str:
        return self.errors_path.read_text("utf-8", "replace")

    def wait_until(self, condition: Any, what: str) -> None:
        """Wait for a condition; fails at once when the command has ended before."""

        def look() -> bool:
            ended = self.process.poll() is not None
            met = bool(condition())
            assert met or not ended, f"ended with {self.process.returncode} before {what}:\n{self.errors}"
            return met

        wait_for(look, what=what)

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Exit code; the bound only ends a hang."""
        return self.process.wait(60)

    def children(self) -> list[int]:
        """Processes that the command has started and that live."""
        return children_of(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def children_of(pid: int) -> list[int]:
    """Process ids of the children of a process, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            state, parent = text.rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(entry.name))
    return sorted(found)


def is_alive(pid: int) -> bool:
    """Whether a process lives; one that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text("utf-8"))


HOLDING = """
import os, time
def process_sample(record):
    shard, number = record["key"][1:].split("-")
    if int(shard) >= {first} and number == "003":
        open({folder!r} + "/held-" + shard, "w").close()
        while not os.path.exists({folder!r} + "/gate"):
            time.sleep(0.005)
    record["txt"] = record["txt"].upper()
    return record
"""


class Held:
    """A job that comes to a stop by itself: its script waits in the middle of shards `first` and later for a gate.

    Kills and signals then hit a known state, whatever the machine is busy with.
    """

    def __init__(self, folder: Path, shards: int = 5, first: int = 2, size: int = 20_000) -> None:
        self.folder = folder
        self.first = first
        self.marks = folder / "marks"
        self.marks.mkdir(parents=True)
        self.data = folder / "data"
        put_shards(self.data, shards, 5, size)
        (folder / "hold.py").write_text(HOLDING.format(first=first, folder=str(self.marks)))
        self.arguments = ["-p", "hold.py", f"data/in-@{shards}.tar", "data/out-@.tar.gz"]
        self.shards = shards

    def is_held(self, workers: int = 1) -> bool:
        """Whether all shards before the first held one are finished, and so many wait."""
        return len(finished_shards(self.data)) == self.first and len(list(self.marks.glob("held-*"))) >= workers

    def release(self) -> None:
        (self.marks / "gate").touch()

    def expected(self) -> dict[str, bytes]:
        """What an undisturbed job writes, elsewhere; made after the release."""
        script = (self.folder / "hold.py").read_text()
        run_map(f"{self.data}/in-@{self.shards}.tar", self.folder / "undisturbed" / "out-@.tar.gz", script)
        return bytes_of(self.folder / "undisturbed")

    def assert_unfinished_is_clean(self) -> None:
        """Finished shards are whole, nothing else is there."""
        names = sorted(bytes_of(self.data))
        assert names == [f"out-{shard:06d}.tar.gz" for shard in range(self.first)]
        assert all(len(records_in(self.data / name)) == 5 for name in names)
        assert not (self.data / "out.manifest.json").exists()

    def assert_completes(self, *more: str) -> dict[str, Any]:
        """The same command again does what is missing and gives the bytes of an undisturbed job; its report."""
        self.release()
        done = command([*self.arguments, *more, "--report", "report.json"], self.folder)
        assert done.returncode == 0, done.stderr.decode()
        self.assert_complete()
        report: dict[str, Any] = read_json(self.folder / "report.json")
        assert counts_balance(report)
        return report

    def assert_complete(self) -> None:
        assert bytes_of(self.data) == self.expected()
        assert leftovers(self.folder) == []
        assert (self.data / "out.manifest.json").exists()
