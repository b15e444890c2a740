"""What a person sees: progress and reports on standard error, errors as exit codes; standard output is for data."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tarmill.errors import Interrupted, JobFailed, TarmillError, exit_code_of
from tarmill.jobs.listener import Listener, Several

if TYPE_CHECKING:
    from tarmill.engine.base import Progress
    from tarmill.jobs.report import Report
    from tarmill.spec import RunOptions

PLAIN_PERIOD_S = 10.0


def say(text: str) -> None:
    """Print a line for a person, on standard error."""
    print(text, file=sys.stderr, flush=True)


def _say_json(facts: dict[str, Any]) -> None:
    import json

    say(json.dumps(facts))


class Console(Listener):
    """Listens to a job and shows it: a bar on a terminal, a line every ten seconds elsewhere, or JSON lines.

    Args:
        options: `quiet`, `log_format`.
        title: what the bar calls the job.
    """

    def __init__(self, options: RunOptions, title: str) -> None:
        self._json = options.log_format == "json"
        self._quiet = options.quiet
        self._dry = options.dry_run
        self._title = title
        self._bar: Any = None
        self._bar_task: Any = None
        self._started = self._shown = time.monotonic()
        self._shards = self._shards_done = self._shards_before = self._samples_done = self._bytes_done = 0
        self._bytes_total: int | None = None
        self._samples_total: int | None = None
        self._running: dict[int, Progress] = {}
        self.report: Report | None = None
        """Of the job that was planned, as far as it is."""

    def plan(self, report: Report, total_bytes: int | None, lines: Sequence[str]) -> None:
        """Show the plan, and a bar where there is a terminal."""
        self.report = report
        self._started = self._shown = time.monotonic()
        self._shards, self._shards_done, self._bytes_total = report.shards_total, report.shards_done, total_bytes
        self._shards_before = report.shards_done
        self._samples_total = None if report.samples_total is None else report.samples_total - report.counts.read
        if self._json:
            self._emit("plan", job=report.job, shards=report.shards_total, resumed=report.shards_resumed)
        elif self._dry:
            say("\n".join(lines))
        elif not self._quiet:
            say(lines[0])
            if sys.stderr.isatty() and self._shards > self._shards_done:
                self._open_bar()

    def stage(self, name: str, tasks: int, total_bytes: int | None) -> None:
        """Begin to count anew for the next pass of a job."""
        self._title, self._started = name, time.monotonic()
        self._shards, self._shards_done, self._bytes_total = tasks, 0, total_bytes
        self._shards_before = self._samples_done = self._bytes_done = 0
        self._samples_total = None
        self._running.clear()
        if self._json:
            self._emit("stage", name=name, tasks=tasks)
        elif not self._quiet and not self._dry and sys.stderr.isatty():
            self.close()
            self._open_bar()

    def progress(self, progress: Progress) -> None:
        """Take note of a running task, and show it when it is time."""
        if progress.done:
            self._running.pop(progress.index, None)
        else:
            self._running[progress.index] = progress
        self._show()

    def finished(self, index: int, samples: int, read_bytes: int, written_bytes: int) -> None:
        """Count a finished shard."""
        self._running.pop(index, None)
        self._shards_done += 1
        self._samples_done += samples
        self._bytes_done += read_bytes
        if self._json:
            self._emit("shard", index=index, samples=samples, read_bytes=read_bytes, written_bytes=written_bytes)
        self._show()

    def failed(self, shard: str, error: TarmillError) -> None:
        """Tell of a failed shard at once."""
        if self._json:
            self._emit("failed", shard=shard, error=error.message)
        else:
            self._print(f"failed: {error.message}")
            if trace := error.facts.get("script_traceback") or error.facts.get("worker_traceback"):
                self._print(trace.rstrip())

    def note(self, message: str) -> None:
        """Pass on a message."""
        if self._json:
            self._emit("note", message=message)
        elif not self._quiet:
            self._print(message)

    def tell(self, event: str, message: str, before: str = "") -> None:
        """Pass on a result, quiet or not; `before` stands before it where no JSON names the event."""
        if self._json:
            self._emit(event, message=message)
        else:
            self._print(before + message)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            say(text)

    def _totals(self) -> tuple[int, int]:
        running = list(self._running.values())
        samples = self._samples_done + sum(item.samples for item in running)
        return samples, self._bytes_done + sum(item.read_bytes for item in running)

    def _share_done(self, samples: int, read_bytes: int) -> float:
        """Tell which part of what was to do is done: by bytes, else by samples, else by shards."""
        if self._bytes_total:
            return min(1.0, read_bytes / self._bytes_total)
        if self._samples_total:
            return min(1.0, samples / self._samples_total)
        todo = self._shards - self._shards_before
        return (self._shards_done - self._shards_before) / todo if todo else 0.0

    def _show(self) -> None:
        now = time.monotonic()
        samples, read = self._totals()
        elapsed = max(now - self._started, 1e-6)
        if self._bar is not None:
            rates = f"{samples / elapsed:,.0f} samples/s, {read / elapsed / 1e6:,.0f} MB/s"
            self._bar.update(
                self._bar_task,
                completed=self._share_done(samples, read),
                shards=f"{self._shards_done}/{self._shards} shards",
                rates=rates,
            )
        elif now - self._shown >= PLAIN_PERIOD_S and not self._quiet:
            self._shown = now
            share = self._share_done(samples, read)
            left = (1 - share) * elapsed / share if share else 0
            if self._json:
                self._emit(
                    "progress", shards_done=self._shards_done, shards=self._shards, samples=samples, read_bytes=read
                )
            else:
                say(
                    f"{self._shards_done}/{self._shards} shards, {samples:,} samples ({samples / elapsed:,.0f}/s), "
                    f"{read / 1e6:,.0f} MB ({read / elapsed / 1e6:,.0f}/s)" + (f", {left:,.0f} s left" if left else "")
                )

    def _open_bar(self) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn(self._title),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[shards]}"),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(),
            console=RichConsole(stderr=True),
            transient=True,
        )
        self._bar_task = self._bar.add_task(self._title, total=1.0, shards="", rates="")
        self._bar.start()

    def _emit(self, event: str, **facts: Any) -> None:
        _say_json({"event": event, "time_s": round(time.time(), 3), **facts})


def show_report(report: Report, options: RunOptions) -> None:
    """Print the closing report and write it where `--report` says."""
    if options.report:
        import json

        from tarmill import storage

        storage.write_bytes(options.report, (json.dumps(report.to_dict(), indent=1) + "\n").encode())
        report.url = storage.mask(options.report)
    if options.log_format == "json":
        _say_json({"event": "report", **report.to_dict()})
    elif not options.quiet and not report.plan_only:
        for line in report_lines(report):
            say(line)


def report_lines(report: Report) -> Iterator[str]:
    """Write the report as aligned lines: shards, then samples as a sum that balances."""
    counts = report.counts
    resumed = f", {report.shards_resumed} of them by an earlier run" if report.shards_resumed else ""
    failed = sum(1 for item in report.failures if item.index >= 0)
    shards = f"of {report.shards_total:,} done{resumed}" + (f", {failed} failed" if failed else "")
    rate = f", {counts.read / report.wall_s:,.0f} samples/s" if report.wall_s > 0 else ""
    work = f"read, {counts.written_bytes:,} written, {report.wall_s:.1f} s{rate}"
    rows = [
        ("shards", report.shards_done, shards),
        ("read", counts.read, "samples"),
        *([("+ added", counts.added, "samples")] if counts.added else []),
        *((f"- {reason}", -count, "samples") for reason, count in sorted(counts.dropped.items())),
        ("= written", counts.written, _balance(report)),
        *(("kept", count, reason) for reason, count in sorted(counts.kept_damaged.items())),
        *(("unread rest", count, reason) for reason, count in sorted(counts.unread.items())),
        *(("members", count, reason) for reason, count in sorted(counts.skipped_members.items())),
        *([("keys", counts.duplicate_keys, "duplicate")] if counts.duplicate_keys else []),
        *([("keys", counts.renamed, "renamed, since another sample has the same")] if counts.renamed else []),
        ("bytes", counts.read_bytes, work),
    ]
    width = max(12, *(len(label) + 2 for label, _, _ in rows))
    for label, number, text in rows:
        yield f"{label:<{width}}{number:>12,} {text}"
    if report.manifest and report.succeeded:
        yield f"{'manifest':<{width}}{report.manifest}"
    for written in report.index:
        yield f"{'index':<{width}}{written}"


def _balance(report: Report) -> str:
    if not report.counts.missing:
        return "samples"
    unfinished = report.interrupted or report.failures or report.shards_done < report.shards_total
    return "samples so far" if unfinished else "samples  DOES NOT BALANCE"


@contextmanager
def _stopping() -> Iterator[None]:
    from tarmill.engine.interrupts import interruptible

    with interruptible():
        yield


@contextmanager
def _warnings_as(log_format: str) -> Iterator[None]:
    """Give what stores warn of the form of the other lines, also in processes that are started meanwhile."""
    if log_format != "json":
        yield
        return
    from tarmill.storage.log import FORMAT_VARIABLE

    before = os.environ.get(FORMAT_VARIABLE)
    os.environ[FORMAT_VARIABLE] = log_format
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORMAT_VARIABLE]
        else:
            os.environ[FORMAT_VARIABLE] = before


def run_command(work: Callable[[], None], log_format: str = "text") -> None:
    """Run a command's work and leave the process with its exit code; the only place where errors become codes."""
    code = 0
    _open_missing_streams()
    try:
        with _stopping(), _warnings_as(log_format):
            work()
    except Interrupted as stop:
        name = "Ctrl-C" if stop.signal_number == 2 else "SIGTERM"
        _say_end("stopped", f"stopped by {name}; run the same command again to go on", "", log_format)
        code = exit_code_of(stop)
    except KeyboardInterrupt as stop:
        code = exit_code_of(stop)
    except BrokenPipeError as error:
        _quiet_stdout()
        code = exit_code_of(error)
    except TarmillError as error:
        # a failed job has told the tracebacks with its shards
        trace = "" if isinstance(error, JobFailed) else error.facts.get("script_traceback", "")
        _say_end("error", error.message, trace, log_format)
        code = exit_code_of(error)
    sys.exit(code)


def _open_missing_streams() -> None:
    """Open the null device where a standard stream is closed, or another file gets its number and is taken for it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _say_end(event: str, message: str, trace: str, log_format: str) -> None:
    if log_format == "json":
        _say_json({"event": event, "message": message} | ({"traceback": trace} if trace else {}))
        return
    say(f"error: {message}" if event == "error" else message)
    if trace:
        say(trace.rstrip())


def _quiet_stdout() -> None:
    """Keep the interpreter from complaining, at its end, about a pipe that nobody reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def finish_job(
    start: Callable[[Listener], Report], options: RunOptions, title: str, listeners: Sequence[Listener] = ()
) -> None:
    """Run a job under a console and show its report, also when it failed or was stopped.

    Args:
        start: runs it, and tells the listener that it is given.
        options: `quiet`, `log_format`, `report`, `dry_run`.
        title: what the bar calls the job.
        listeners: who wants to know too.
    """
    console = Console(options, title)
    try:
        report = start(Several([console, *listeners]) if listeners else console)
    except (JobFailed, Interrupted) as error:
        console.close()
        found = error.facts.get("report") if isinstance(error, JobFailed) else console.report  # what was finished
        if found is not None:
            try:
                show_report(found, options)
            except TarmillError as second:  # why the job failed says more
                console.note(f"the report could not be written: {second.message}")
        raise
    finally:
        console.close()
    show_report(report, options)
