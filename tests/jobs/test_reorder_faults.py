"""What goes wrong around a shuffle or sort, and going on afterwards: not one byte differs, or nothing is published."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import nginx
from support.faultproxy import Answer, Cut, CutUpload, Fault, FaultProxy, Flip, LoseAnswer, Reset
from support.maps import (
    Running,
    bytes_of,
    command,
    counts_balance,
    environment,
    finished_shards,
    is_alive,
    leftovers,
    read_json,
    records_in,
)
from support.reorders import (
    FROM_ANYWHERE,
    PLANS,
    AtStage,
    doomed,
    every_plan,
    manifest_of,
    put_shards,
    scratch_in,
    shuffle,
    sort,
    state_files,
)
from support.waiting import wait_for

from tarmill import storage
from tarmill.errors import ChangedError, JobFailed, OutputExistsError, TarmillError
from tarmill.jobs import reorder, reorder_prepare
from tarmill.spec import ReorderOptions, ShuffleSpec

TOOLS = {"shuffle": shuffle, "sort": sort}
every_tool = pytest.mark.parametrize("tool", TOOLS)

GATED = """
import os
def reduce_samples(key, samples):
    if key >= {stop!r} and not os.path.exists({gate!r}):
        open({gate!r} + "-held", "a").close()
        {action}
    yield from samples
"""


def gated(folder: Path, stop: str = "s1-000", action: str = "raise RuntimeError('not yet')") -> dict[str, str]:
    """A reduce that lets all samples pass, and fails (or waits) from a key on until `folder/gate` is there."""
    return {"reduce_script": GATED.format(stop=stop, gate=str(folder / "gate"), action=action)}


# Resuming


@every_plan
@every_tool
def test_a_finished_job_does_nothing_again(tmp_path: Path, plan: str, tool: str) -> None:
    source = put_shards(tmp_path)
    TOOLS[tool](source, tmp_path / "out-@4.tar", plan=plan)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tmp_path.glob("out*")}
    report = TOOLS[tool](source, tmp_path / "out-@4.tar", plan=plan)
    assert report.shards_resumed == report.shards_done == 4
    assert report.counts.read == 15
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tmp_path.glob("out*")}


@every_plan
@pytest.mark.parametrize("damage", ["gone", "changed", "no small manifest", "broken small manifest"])
def test_a_shard_that_is_not_what_was_finished_is_made_again_and_no_other(
    tmp_path: Path, plan: str, damage: str
) -> None:
    source = put_shards(tmp_path)
    shuffle(source, tmp_path / "out-@4.tar", plan=plan)
    wanted = bytes_of(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("out-*.tar")}
    victim = tmp_path / "out-2.tar"
    if damage == "gone":
        victim.unlink()
    elif damage == "changed":
        victim.write_bytes(bytes(victim.stat().st_size))
    else:
        small = finished_shards(tmp_path)[2]
        small.unlink() if damage == "no small manifest" else small.write_bytes(b'{"index":')
    report = shuffle(source, tmp_path / "out-@4.tar", plan=plan)
    assert (report.shards_resumed, report.shards_done) == (3, 4)
    assert bytes_of(tmp_path) == wanted
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("out-*.tar")}
    assert {name for name in before if before[name] != after[name]} == {"out-2.tar"}


@every_plan
@pytest.mark.parametrize("workers", [1, 2])
def test_a_rerun_does_only_what_is_missing_and_gives_the_same_bytes(tmp_path: Path, plan: str, workers: int) -> None:
    source = put_shards(tmp_path)
    fields: dict[str, Any] = {"plan": plan, "workers": workers, **gated(tmp_path)}
    with pytest.raises(JobFailed, match="not yet"):
        sort(source, tmp_path / "out-@5.tar", **fields)
    done = {path.name: path.stat().st_ino for path in tmp_path.glob("out-*.tar")}
    assert sorted(done) == ["out-0.tar"]  # of three samples; the second has the one that fails
    assert not (tmp_path / "out.manifest.json").exists()
    (tmp_path / "gate").touch()
    report = sort(source, tmp_path / "out-@5.tar", **fields)
    assert (report.shards_resumed, report.shards_done) == (1, 5)
    assert (report.counts.read, report.counts.written) == (15, 15)
    assert done["out-0.tar"] == (tmp_path / "out-0.tar").stat().st_ino
    sort(source, tmp_path / "other" / "out-@5.tar", **fields)
    assert bytes_of(tmp_path) == bytes_of(tmp_path / "other")


@pytest.mark.parametrize("plan", [plan for plan in PLANS if plan != "memory"])
def test_what_the_first_pass_found_is_used_again(tmp_path: Path, plan: str) -> None:
    source = put_shards(tmp_path)
    kept = []
    for _ in range(2):
        with pytest.raises(JobFailed, match="not yet"):
            sort(source, tmp_path / "out-@5.tar", plan=plan, **gated(tmp_path))
        names = state_files(tmp_path, "*")
        kept.append(
            {name: facts for name, facts in names.items() if "scan-" in name or "batch-" in name or "run" in name}
        )
    assert kept[0]
    assert kept[0] == kept[1]
    stages = AtStage(lambda: None)
    (tmp_path / "gate").touch()
    sort(source, tmp_path / "out-@5.tar", plan=plan, listener=stages, **gated(tmp_path))
    assert stages.stages[0].endswith(" 0"), "the first pass has no tasks"


@every_plan
@every_tool
def test_nothing_but_small_manifests_is_left_of_a_finished_job(tmp_path: Path, plan: str, tool: str) -> None:
    TOOLS[tool](put_shards(tmp_path), tmp_path / "out-@2.tar", plan=plan)
    (job,) = (tmp_path / "_tarmill").iterdir()
    assert sorted(path.name for path in job.rglob("*")) == ["job.json", "shard-0000000.json", "shard-0000001.json"]


@every_plan
def test_scratch_that_was_put_elsewhere_is_removed(tmp_path: Path, plan: str) -> None:
    shuffle(put_shards(tmp_path), tmp_path / "out-@2.tar", plan=plan, scratch_dir=str(tmp_path / "elsewhere"))
    assert not list((tmp_path / "elsewhere").rglob("*"))


def test_overwriting_does_everything_again_and_removes_shards_that_are_no_more(tmp_path: Path) -> None:
    source = put_shards(tmp_path)
    shuffle(source, tmp_path / "out-@.tar", num_shards=5)
    (tmp_path / "out-000009.tar").write_bytes(b"not ours")
    with pytest.raises(OutputExistsError, match="--exists overwrite"):
        shuffle(source, tmp_path / "out-@.tar", num_shards=2)
    assert len(manifest_of(tmp_path / "out-@.tar")["shards"]) == 5
    report = shuffle(source, tmp_path / "out-@.tar", num_shards=2, exists="overwrite")
    assert report.shards_resumed == 0
    assert sorted(bytes_of(tmp_path)) == ["out-000000.tar", "out-000001.tar", "out-000009.tar"]


@pytest.mark.parametrize("field", ["seed", "salt", "keys"])
def test_another_job_does_not_touch_what_is_there(tmp_path: Path, field: str) -> None:
    source = put_shards(tmp_path)
    tool = sort if field == "keys" else shuffle
    tool(source, tmp_path / "out-@3.tar")
    before = bytes_of(tmp_path)
    with pytest.raises(OutputExistsError, match="--exists overwrite"):
        tool(source, tmp_path / "out-@3.tar", **{field: "txt" if field == "keys" else "7"})
    assert bytes_of(tmp_path) == before
    assert (tmp_path / "out.manifest.json").exists()


@every_plan
@pytest.mark.parametrize("output", ["out-@3.tar", "out-@.tar"])
def test_a_file_of_somebody_else_is_never_written_over(tmp_path: Path, plan: str, output: str) -> None:
    """Also where the number of outputs, and so their names, are known only after the first pass."""
    source = put_shards(tmp_path)
    theirs = tmp_path / ("out-1.tar" if "3" in output else "out-000001.tar")
    theirs.write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match="--exists overwrite"):
        shuffle(source, tmp_path / output, plan=plan)
    assert bytes_of(tmp_path) == {theirs.name: b"precious"}
    assert not (tmp_path / "out.manifest.json").exists()


@pytest.mark.parametrize("output", ["out-@3.tar", "out-@.tar"])
def test_exists_fail_refuses_the_jobs_own_outputs_too(tmp_path: Path, output: str) -> None:
    source = put_shards(tmp_path)
    shuffle(source, tmp_path / output, exists="fail")
    with pytest.raises(OutputExistsError):
        shuffle(source, tmp_path / output, exists="fail")


@every_plan
def test_changed_inputs_under_an_unfinished_job_are_refused_with_the_cure(tmp_path: Path, plan: str) -> None:
    source = put_shards(tmp_path)
    fields: dict[str, Any] = {"plan": plan, **gated(tmp_path)}
    with pytest.raises(JobFailed, match="not yet"):
        sort(source, tmp_path / "out-@5.tar", **fields)
    before = bytes_of(tmp_path)
    (tmp_path / "gate").touch()
    put_shards(tmp_path, 1, 7)
    with pytest.raises(TarmillError) as caught:
        sort(source, tmp_path / "out-@5.tar", **fields)
    for words in ("inputs have changed", "tarmill clean", "--exists overwrite"):
        assert words in caught.value.message
    assert bytes_of(tmp_path) == before
    report = sort(source, tmp_path / "out-@5.tar", exists="overwrite", **fields)
    assert report.counts.read == 17


def test_what_killed_processes_left_is_swept_and_what_is_of_others_stays(tmp_path: Path) -> None:
    source = put_shards(tmp_path)
    with pytest.raises(JobFailed):
        sort(source, tmp_path / "out-@5.tar", **gated(tmp_path))
    (job,) = [path.name for path in (tmp_path / "_tarmill").iterdir() if path.is_dir()]
    ours = tmp_path / f".out-1.tar.{job}.0123456789abcdef.tmp"
    other = tmp_path / ".out-1.tar.0000000000000000.0123456789abcdef.tmp"
    for path in (ours, other):
        path.write_bytes(b"half")
    (tmp_path / "gate").touch()
    with pytest.raises(AssertionError):  # the other one is left, which `sort` minds
        sort(source, tmp_path / "out-@5.tar", **gated(tmp_path))
    assert leftovers(tmp_path) == [other.name]


# Inputs that change between the passes


def replaced(folder: Path) -> None:
    """Another file of the same size, renamed over an input."""
    data = (folder / "in-1.tar").read_bytes().replace(b"txt 1 ", b"txt X ")
    (folder / "new").write_bytes(data)
    (folder / "new").rename(folder / "in-1.tar")


def truncated(folder: Path) -> None:
    os.truncate(folder / "in-1.tar", 1024)


def written_over(folder: Path) -> None:
    data = (folder / "in-1.tar").read_bytes()
    (folder / "in-1.tar").write_bytes(data.replace(b"txt 1 ", b"txt X "))


CHANGES: dict[str, Callable[[Path], None]] = {
    "replaced": replaced,
    "truncated": truncated,
    "written over": written_over,
    "removed": lambda folder: (folder / "in-1.tar").unlink(),
}


@every_plan
@every_tool
@pytest.mark.parametrize("change", CHANGES)
def test_an_input_that_changes_between_the_passes_is_never_mixed_in(
    tmp_path: Path, plan: str, tool: str, change: str
) -> None:
    """Refused where it is read again; where it was copied before, the result is that of what was read."""
    source = put_shards(tmp_path)
    fields: dict[str, Any] = {"plan": plan, "seed": "1"} if tool == "shuffle" else {"plan": plan}
    TOOLS[tool](source, tmp_path / "undisturbed" / "out-@2.tar", **fields)
    meddler = AtStage(lambda: CHANGES[change](tmp_path))
    try:
        TOOLS[tool](source, tmp_path / "out-@2.tar", listener=meddler, **fields)
    except JobFailed as error:
        told = error.message
    else:
        assert plan != "local"
        told = ""
        assert bytes_of(tmp_path) == bytes_of(tmp_path / "undisturbed")
    assert len(meddler.stages) >= 2
    if told:
        assert "in-1.tar" in told
        assert not told.startswith("unexpected")
        assert not (tmp_path / "out.manifest.json").exists()
        assert leftovers(tmp_path) == []
        assert bytes_of(tmp_path).items() <= bytes_of(tmp_path / "undisturbed").items()


@pytest.mark.real
@every_plan
def test_an_input_that_is_truncated_while_it_is_copied_fails_clearly(tmp_path: Path, plan: str) -> None:
    put_shards(tmp_path, 2, 300, 3000)
    action = f"os.truncate({str(tmp_path / 'in-1.tar')!r}, 4096)"
    arguments = ["in-@2.tar", "out-@4.tar", "--seed", "1", "-j", "1", "--plan", plan]
    done = doomed("htshuffle", arguments, tmp_path, ".out-2.tar", action)
    if done.returncode:
        assert done.returncode == 1
        assert b"in-1.tar" in done.stderr
        assert b"run the command again" in done.stderr.lower()
        assert not (tmp_path / "out.manifest.json").exists()
    else:
        assert plan == "external", "which has copied it before"
        assert sum(len(records_in(tmp_path / f"out-{shard}.tar")) for shard in range(4)) == 600
    assert leftovers(tmp_path) == []


TRUNCATED_WHEN_MAPPED = """
import os
from tarmill.formats.mapped_window import MappedWindow
begin = MappedWindow.__init__

def begin_and_truncate(window, *arguments):
    begin(window, *arguments)
    print("mapped", flush=True)
    os.truncate("in-0.tar", 4096)

MappedWindow.__init__ = begin_and_truncate
from tarmill.cli.htshuffle import main
main()
"""


@pytest.mark.real
@every_plan
def test_an_input_that_is_truncated_while_it_is_scanned_fails_clearly(tmp_path: Path, plan: str) -> None:
    put_shards(tmp_path, 1, 300, 3000)
    arguments = ["in-0.tar", "out-@2.tar", "-j", "1", "--plan", plan]
    done = subprocess.run(
        [sys.executable, "-c", TRUNCATED_WHEN_MAPPED, *arguments],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        env=environment(),
    )
    if plan != "local":
        assert (done.returncode, b"mapped" in done.stderr) == (0, False), "what is read once is not mapped for it"
        return
    assert done.returncode == 1
    assert b"mapped" in done.stderr
    assert b"in-0.tar" in done.stderr
    assert b"run the command again" in done.stderr.lower()
    assert leftovers(tmp_path) == []


# Killed


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[int, dict[str, bytes]]]:
    """How many moments a command has, and its outputs; each found once."""
    known: dict[tuple[str, str], tuple[int, dict[str, bytes]]] = {}

    def find(tool: str, plan: str) -> tuple[int, dict[str, bytes]]:
        if (tool, plan) not in known:
            folder = tmp_path_factory.mktemp("moments")
            put_shards(folder, 4, 10, 2000)
            done = doomed(tool, job_of(tool, plan), folder, 0)
            assert done.returncode == 0, done.stderr.decode()
            known[tool, plan] = int(done.stdout), bytes_of(folder)
        return known[tool, plan]

    return find


def job_of(tool: str, plan: str) -> list[str]:
    options = ["--seed", "1"] if tool == "htshuffle" else ["-k", "txt:desc"]
    return ["in-@4.tar", "out-@6.tar.gz" if plan != "local" else "out-@6.tar", "--plan", plan, "-j", "1", *options]


def kill_and_rerun(folder: Path, tool: str, plan: str, moment: int, expected: dict[str, bytes]) -> None:
    put_shards(folder, 4, 10, 2000)
    killed = doomed(tool, job_of(tool, plan), folder, moment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert bytes_of(folder).items() <= expected.items(), "what is there is whole"
    if (folder / "out.manifest.json").exists():
        assert bytes_of(folder) == expected, "who trusts the manifest is right"
    done = command([*job_of(tool, plan), "--report", "report.json"], folder, tool=tool)
    assert done.returncode == 0, done.stderr.decode()
    assert bytes_of(folder) == expected
    assert leftovers(folder) == []
    assert scratch_in(folder) == []
    assert counts_balance(read_json(folder / "report.json"))


@pytest.mark.real
@pytest.mark.long
@pytest.mark.parametrize("moment", range(20))
@every_plan
def test_a_driver_may_be_killed_at_any_moment(tmp_path: Path, moments: Any, plan: str, moment: int) -> None:
    tool = ("htshuffle", "htsort")[moment % 2]
    count, expected = moments(tool, plan)
    kill_and_rerun(tmp_path, tool, plan, random.Random(moment).randrange(1, count), expected)


@pytest.mark.real
@every_plan
def test_a_kill_between_the_manifest_and_the_end_leaves_no_scratch_for_ever(tmp_path: Path, plan: str) -> None:
    put_shards(tmp_path, 4, 10)
    action = "import sys; os.path.exists('out.manifest.json') and os.kill(os.getpid(), 9)"
    arguments = ["in-@4.tar", "out-@2.tar", "--seed", "1", "--plan", plan, "-j", "1"]
    killed = doomed("htshuffle", arguments, tmp_path, "_tarmill/", action)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "out.manifest.json").exists()
    done = command(arguments, tmp_path, tool="htshuffle")
    assert done.returncode == 0, done.stderr.decode()
    assert scratch_in(tmp_path) == []
    assert not list((tmp_path / "_tarmill").glob("unfinished-*"))


WAITING = """
import os, time
def reduce_samples(key, samples):
    if key >= "s2" and not os.path.exists({gate!r}):
        with open({gate!r} + "-held", "a") as held:
            held.write(f"{{os.getpid()}}\\n")
        while not os.path.exists({gate!r}):
            time.sleep(0.005)
    yield from samples
"""


class Held:
    """A sort whose reduce waits for a gate in its later shards."""

    def __init__(self, folder: Path, plan: str, workers: int) -> None:
        self.folder = folder
        put_shards(folder, 4, 10, 150_000)  # 12 MB: several tasks
        (folder / "r.py").write_text(WAITING.format(gate=str(folder / "gate")))
        self.arguments = ["in-@4.tar", "out-@8.tar", "-r", "r.py", "--plan", plan, "-j", str(workers)]

    def is_held(self) -> bool:
        held = self.folder / "gate-held"
        return held.exists() and held.read_text().endswith("\n") and len(finished_shards(self.folder)) >= 2

    def assert_completes(self) -> None:
        (self.folder / "gate").touch()
        done = command([*self.arguments, "--report", "report.json"], self.folder, tool="htsort")
        assert done.returncode == 0, done.stderr.decode()
        self.assert_complete()

    def assert_complete(self) -> None:
        sizes = [len(records_in(self.folder / f"out-{shard}.tar")) for shard in range(8)]
        assert sizes == [5] * 8
        keys = [record["__key__"] for shard in range(8) for record in records_in(self.folder / f"out-{shard}.tar")]
        assert keys == [f"s{shard}-{n:03d}" for shard in range(4) for n in range(10)]
        assert leftovers(self.folder) == []
        assert scratch_in(self.folder) == []


def workers_of(running: Running) -> list[int]:
    """Process ids of the worker processes of a command."""
    return [pid for pid in running.children() if b"process_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


WITH_WORKERS = [plan for plan in PLANS if plan != "memory"]


@pytest.mark.real
@pytest.mark.parametrize("plan", WITH_WORKERS)
def test_a_killed_worker_costs_nothing_but_its_task_again(tmp_path: Path, plan: str) -> None:
    job = Held(tmp_path, plan, 2)
    with Running(job.arguments, tmp_path, tool="htsort") as running:
        running.wait_until(job.is_held, "the reduce was held")
        victim = int((tmp_path / "gate-held").read_text().split()[0])
        assert victim in workers_of(running)
        os.kill(victim, signal.SIGKILL)
        (tmp_path / "gate").touch()
        assert running.wait() == 0, running.errors
    job.assert_complete()


@pytest.mark.real
def test_what_a_kill_left_of_the_note_that_a_job_has_begun_is_swept(tmp_path: Path) -> None:
    job = Held(tmp_path, "local", 1)
    with Running(job.arguments, tmp_path, tool="htsort") as running:
        running.wait_until(job.is_held, "the reduce was held")
        running.process.kill()
        running.process.wait()
    [note] = (tmp_path / "_tarmill").glob("unfinished-*")
    note.with_name(f".{note.name}.{note.read_text()}.0123456789abcdef.tmp").write_text("half")
    job.assert_completes()


@pytest.mark.real
@pytest.mark.parametrize(
    ("plan", "workers", "number"),
    [
        *((plan, 2, signal.SIGINT) for plan in WITH_WORKERS),
        *((plan, 2, signal.SIGTERM) for plan in WITH_WORKERS[-1:]),
        *((plan, 1, signal.SIGTERM) for plan in PLANS),
    ],
)
def test_a_signal_stops_the_job_cleanly_and_a_rerun_completes_it(
    tmp_path: Path, plan: str, workers: int, number: int
) -> None:
    job = Held(tmp_path, plan, workers)
    with Running([*job.arguments, "--report", "stopped.json"], tmp_path, tool="htsort") as running:
        running.wait_until(job.is_held, "the reduce was held")
        children = workers_of(running)
        running.send(number)
        assert running.wait() == 128 + number
        wait_for(lambda: not any(map(is_alive, children)), what="the end of the workers")
        assert "run the same command again" in running.errors
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "out.manifest.json").exists()
    assert read_json(tmp_path / "stopped.json")["interrupted"]
    # what was published a moment before its manifest could be written is done again
    finished = {read_json(path)["output"]["name"] for path in finished_shards(tmp_path)}
    kept = {name: (tmp_path / name).stat().st_ino for name in finished}
    job.assert_completes()
    assert kept.items() <= {path.name: path.stat().st_ino for path in tmp_path.glob("out-*.tar")}.items()


@pytest.mark.real
@pytest.mark.parametrize("plan", WITH_WORKERS)
def test_a_killed_driver_takes_its_workers_with_it(tmp_path: Path, plan: str) -> None:
    job = Held(tmp_path, plan, 2)
    with Running(job.arguments, tmp_path, tool="htsort") as running:
        running.wait_until(job.is_held, "the reduce was held")
        children = workers_of(running)
        running.send(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        wait_for(lambda: not any(map(is_alive, children)), what="the end of the orphans")
    job.assert_completes()


# No room


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{size}", str(disk)], check=True)


@pytest.mark.real
@pytest.mark.parametrize("size", ["64K", "700K"], ids=["the first pass", "the last pass"])
@every_plan
def test_a_full_disk_is_told_leaves_nothing_half_written_and_a_rerun_completes(
    tmp_path: Path, small_disk: Path, plan: str, size: str
) -> None:
    workers = "1" if size == "64K" else "2"
    put_shards(tmp_path, 4, 600, 10)
    resize(small_disk, f"size={size}")
    arguments = ["in-@4.tar", "small/out-@6.tar", "--seed", "1", "--plan", plan, "-j", workers]
    done = command(arguments, tmp_path, tool="htshuffle")
    assert done.returncode == 1, done.stderr
    assert b"space" in done.stderr
    assert b"free some" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"unexpected" not in done.stderr
    assert leftovers(small_disk) == []
    assert not (small_disk / "out.manifest.json").exists()
    resize(small_disk, "size=64M")
    done = command(arguments, tmp_path, tool="htshuffle")
    assert done.returncode == 0, done.stderr
    shuffle(tmp_path / "in-@4.tar", tmp_path / "big" / "out-@6.tar", seed="1")
    assert bytes_of(small_disk) == bytes_of(tmp_path / "big")
    assert scratch_in(small_disk) == []


@pytest.mark.real
@pytest.mark.parametrize("plan", FROM_ANYWHERE)
def test_too_little_scratch_space_is_told_before_the_work_or_by_it(tmp_path: Path, small_disk: Path, plan: str) -> None:
    put_shards(tmp_path, 4, 600, 10)
    resize(small_disk, "size=64K")
    arguments = ["in-@4.tar", "out-@6.tar", "--plan", plan, "--scratch-dir", "small", "--seed", "1"]
    done = command(arguments, tmp_path, tool="htshuffle")
    if plan == "external":
        assert done.returncode == 1
        assert b"scratch" in done.stderr
        assert b"--scratch-dir" in done.stderr
        assert not (tmp_path / "_tarmill").exists(), "told before the work"
    else:
        assert done.returncode == 0, "it needs none"
    assert list(small_disk.iterdir()) == []


@pytest.mark.real
@every_plan
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, small_disk: Path, plan: str) -> None:
    put_shards(tmp_path, 2)
    resize(small_disk, "ro")
    done = command(["in-@2.tar", "small/out-@.tar", "--plan", plan], tmp_path, tool="htshuffle")
    assert done.returncode == 1
    assert b"small/" in done.stderr
    assert b"Traceback" not in done.stderr
    assert list(small_disk.iterdir()) == []


# Stores that fail

QUICK = storage.StorageSettings(
    retry_budget_s=60, backoff_first_s=0.001, backoff_most_s=0.01, connect_timeout_s=10, read_timeout_s=1
)


@pytest.fixture
def root(web: nginx.Nginx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The test's own folder on the server, with three shards in it; short pauses between tries, in this process."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    before = storage.current_settings()
    monkeypatch.setattr(reorder_prepare, "settings_of", lambda options: storage.configure(QUICK) or QUICK)
    folder = web.root / tmp_path.name
    put_shards(folder, 3, 20, 5000)
    yield folder
    storage.configure(before)


READING: dict[str, list[Fault | None]] = {
    "cuts": [Cut(0), Cut(1), Cut(700), Cut(100_000)],
    "resets": [Reset(0), Reset(5000), Reset(200_000)],
    "refusals": [Answer(503, retry_after="0"), Answer(500), Answer(429, retry_after="0"), Answer(502)],
}
WRITING: dict[str, list[Fault | None]] = {
    "cut uploads": [None, CutUpload(0), CutUpload(50), CutUpload(900)],
    "lost answers": [LoseAnswer(), LoseAnswer(), None, LoseAnswer()],
    "refusals": [Answer(503, retry_after="0"), None, Answer(500), Answer(429, retry_after="0")],
}


@pytest.mark.real
@pytest.mark.parametrize("faults", READING)
@pytest.mark.parametrize("plan", FROM_ANYWHERE)
def test_reading_through_faults_gives_the_same_bytes(
    web: nginx.Nginx, root: Path, tmp_path: Path, plan: str, faults: str
) -> None:
    with FaultProxy(web.port, READING[faults], only=("GET",)) as proxy:
        shuffle(f"{proxy.base}/{root.name}/in-@3.tar", tmp_path / "out-@4.tar", plan=plan, seed="1")
        assert proxy.hurt >= 3
    shuffle(root / "in-@3.tar", tmp_path / "files" / "out-@4.tar", seed="1")
    assert bytes_of(tmp_path) == bytes_of(tmp_path / "files")


@pytest.mark.real
@pytest.mark.parametrize("faults", WRITING)
@every_plan
def test_writing_through_faults_gives_the_same_bytes(
    web: nginx.Nginx, root: Path, tmp_path: Path, plan: str, faults: str
) -> None:
    with FaultProxy(web.port, WRITING[faults], only=("PUT",)) as proxy:
        report = reorder.run(spec_of(root / "in-@3.tar", f"{proxy.base}/{root.name}/out-@4.tar"), options_of(plan))
        assert proxy.hurt >= 3
    assert report.succeeded
    shuffle(root / "in-@3.tar", tmp_path / "files" / "out-@4.tar", seed="1")
    assert bytes_of(root) == bytes_of(tmp_path / "files")


def spec_of(source: str | Path, output: str | Path) -> ShuffleSpec:
    return ShuffleSpec(input=str(source), output=str(output), seed="1")


def options_of(plan: str, **fields: Any) -> ReorderOptions:
    return ReorderOptions(plan=plan, workers=1, **fields)


@pytest.mark.real
@pytest.mark.parametrize("plan", FROM_ANYWHERE)
def test_from_web_to_web_and_once_more(web: nginx.Nginx, root: Path, tmp_path: Path, plan: str) -> None:
    there = f"{web.base}/{root.name}"
    arguments = [f"{there}/in-@3.tar", f"{there}/out-@4.tar.gz", "--plan", plan, "--seed", "1"]
    done = command(arguments, tmp_path, tool="htshuffle")
    assert done.returncode == 0, done.stderr
    shuffle(root / "in-@3.tar", tmp_path / "files" / "out-@4.tar.gz", seed="1")
    assert bytes_of(root) == bytes_of(tmp_path / "files")
    before = len(web.requests())
    done = command(arguments, tmp_path, tool="htshuffle")
    assert done.returncode == 0
    assert not [line for line in web.requests()[before:] if '"PUT' in line and "out-" in line]
    assert scratch_in(root) == []


@pytest.mark.real
@pytest.mark.parametrize("plan", FROM_ANYWHERE)
def test_a_bit_that_flips_on_the_way_is_found_where_a_manifest_vouches_for_the_input(
    web: nginx.Nginx, root: Path, tmp_path: Path, plan: str
) -> None:
    shuffle(root / "in-@3.tar", root / "mid-@3.tar", seed="5")
    with (
        FaultProxy(web.port, [None, None, Flip(700), Flip(700), Flip(700)], only=("GET",), endless=True) as proxy,
        pytest.raises(TarmillError) as caught,
    ):
        shuffle(f"{proxy.base}/{root.name}/mid-@3.tar", tmp_path / "out-@2.tar", plan=plan)
    assert "unexpected" not in caught.value.message
    assert not (tmp_path / "out.manifest.json").exists()


@pytest.mark.real
@pytest.mark.parametrize("plan", FROM_ANYWHERE)
def test_an_input_that_is_replaced_in_the_store_between_the_passes_is_never_mixed_in(
    web: nginx.Nginx, root: Path, tmp_path: Path, plan: str
) -> None:
    meddler = AtStage(lambda: replaced(root))
    source, output = f"{web.base}/{root.name}/in-@3.tar", tmp_path / "out-@2.tar"
    shuffle(root / "in-@3.tar", tmp_path / "files" / "out-@2.tar", seed="1")
    try:
        shuffle(source, output, plan=plan, seed="1", listener=meddler)
    except (JobFailed, ChangedError) as error:
        told = str(error)
    else:
        told = ""
        assert bytes_of(tmp_path) == bytes_of(tmp_path / "files")
    if told:
        assert "in-1.tar" in told
        assert not (tmp_path / "out.manifest.json").exists()
