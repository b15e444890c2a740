"""What the figures are held against: ratios only, since seconds say more about the machine than about the tools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from measure import Cost

INDEX_BYTES = 24


@dataclass(slots=True)
class Figures:
    """All runs of one row in one batch."""

    samples: int
    runs: list[Cost] = field(default_factory=list)
    """Over the long view."""
    starts: list[Cost] = field(default_factory=list)
    """Over a single sample: what the tool costs before the work begins."""
    largest_sample: int = 0
    key_bytes: int = 0

    @property
    def cpu_us(self) -> float:
        """CPU microseconds per sample of the whole process tree, start-up included: the least of all runs.

        Whatever else the machine does only ever adds to it.
        """
        return min(run.cpu_s for run in self.runs) / self.samples * 1e6

    @property
    def start_s(self) -> float:
        """CPU seconds of a run over one sample."""
        return min(run.cpu_s for run in self.starts)

    @property
    def net_us(self) -> float:
        """CPU microseconds per sample with start-up taken off."""
        return max(0.0, self.cpu_us - self.start_s / self.samples * 1e6)

    @property
    def wall_s(self) -> float:
        """The shortest wall time: what the others on the machine disturbed least."""
        return min(run.wall_s for run in self.runs)

    @property
    def peak_rss_mb(self) -> float:
        """Peak memory of the largest process, in 10^6 bytes."""
        return max(run.peak_rss_bytes for run in self.runs) / 1e6

    @property
    def peak_anon_mb(self) -> float:
        """Peak of the anonymous memory of one process, without mapped files, in 10^6 bytes."""
        return max(run.peak_anon_bytes for run in self.runs) / 1e6

    @property
    def index_mb(self) -> float:
        """What an index of all samples may take: place, length, order and key of each, in 10^6 bytes."""
        return self.samples * (INDEX_BYTES + self.key_bytes) / 1e6


@dataclass(frozen=True, slots=True)
class Bar:
    """One ratio with what is required and what is hoped for."""

    name: str
    rows: tuple[str, ...]
    required: float
    hoped: float | None
    at_most: bool = False
    """Whether small is good."""
    floor: float | None = None
    """What `--check` insists on, where it is not what is required: a figure that was missed so far must not get worse,
    and one that was reached by a little must not fail a change for the machine's mood."""
    measure: str = "cpu"
    """cpu (first row / second row), wall (same), rss, rss of s3, anon, seconds, sum (first / (second + third)), or
    longer (wall times: first / the longer of second and third)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar and what was measured."""

    bar: Bar
    measured: float
    net: float | None
    """The same ratio with start-up taken off both sides."""
    judged: bool = True

    @property
    def passed(self) -> bool:
        """Whether what is required was reached (always so where the machine gives no ground to judge)."""
        return not self.judged or self.reaches(self.bar.required)

    def reaches(self, value: float) -> bool:
        """Tell whether the measured ratio is as good as a value."""
        return self.measured <= value if self.bar.at_most else self.measured >= value

    @property
    def holds(self) -> bool:
        """Whether it is no worse than the floor that `--check` insists on; seconds and wall times have none.

        CPU ratios hold on a machine that does other work too; wall times do not.
        """
        return (
            not self.judged
            or self.bar.measure in ("seconds", "wall", "longer")
            or self.reaches(self.bar.required if self.bar.floor is None else self.bar.floor)
        )

    @property
    def word(self) -> str:
        """One word for the table."""
        if not self.judged:
            return "not judged"
        if not self.holds:
            return "FAILED"
        if not self.passed:
            return "missed"
        return "hoped" if self.bar.hoped is not None and self.reaches(self.bar.hoped) else "passed"


def _against(name: str, theirs: str, ours: str, required: float, hoped: float, floor: float) -> Bar:
    return Bar(name, (theirs, ours), required, hoped, floor=floor)


def _two_processes(name: str) -> Bar:
    rows = (f"{name}.wide/map/htmapper", f"{name}.wide/map/htmapper -j 2")
    return Bar(f"map {name}: wall time, 1 process / 2", rows, 1.7, 1.9, measure="wall")


def _over_http(name: str) -> Bar:
    rows = (f"{name}/http/htmapper", f"{name}/map/htmapper", f"{name}/http/curl")
    return Bar(f"map {name}, http: htmapper / (files + curl)", rows, 1.5, None, at_most=True, floor=1.8, measure="sum")


def _over_s3(name: str) -> Bar:
    rows = (f"{name}.s3/s3/htmapper", f"{name}.s3/map/htmapper", f"{name}.s3/s3/obstore")
    return Bar(f"map {name}, s3: htmapper / (files + obstore)", rows, 1.3, None, at_most=True, floor=1.4, measure="sum")


def _reshuffle(name: str, plan: str, required: float, hoped: float, floor: float) -> Bar:
    ours = "htshuffle external" if plan == "external" else "htshuffle"
    theirs = f"{name}.unique/shuffle/webdataset"
    return _against(
        f"shuffle {name}, {plan}: webdataset / ours", theirs, f"{name}.unique/shuffle/{ours}", required, hoped, floor
    )


def _wall_of_cat(name: str, plan: str, required: float, hoped: float) -> Bar:
    ours = "htshuffle external -j 2" if plan == "external" else "htshuffle -j 2"
    rows = (f"{name}.unique/shuffle/{ours}", f"{name}.unique/copy/cat")
    title = f"shuffle {name}, {plan}: wall time, 2 processes / cat"
    return Bar(title, rows, required, hoped, at_most=True, measure="wall")


def _sort(name: str) -> Bar:
    rows = (f"{name}.unique/sort/htsort", f"{name}.unique/shuffle/htshuffle")
    return Bar(f"sort {name} by key: htsort / htshuffle", rows, 1.5, 1.15, at_most=True, floor=1.6)


def _upload(name: str, set_name: str, floor: float) -> list[Bar]:
    rows = {tool: f"{set_name}.files/upload/{tool}" for tool in ("GNU tar", "htupload")}
    both = f"{set_name}.morefiles/upload/htupload", f"{set_name}.morefiles/upload/htupload -j 2"
    return [
        Bar(
            f"upload {name}: htupload / GNU tar", (rows["htupload"], rows["GNU tar"]), 2, 1.3, at_most=True, floor=floor
        ),
        Bar(f"upload {name}: wall time, 1 process / 2", both, 1.7, 1.9, measure="wall"),
    ]


BARS = [
    _against("read text: webdataset / tarmill", "text/read/webdataset", "text/read/tarmill", 10, 15, 8.5),
    _against("read images: webdataset / tarmill", "images/read/webdataset", "images/read/tarmill", 4, 5.5, 3.3),
    _against("map text: webdataset / htmapper", "text/map/webdataset", "text/map/htmapper", 12, 17, 8.5),
    _against("map images: webdataset / htmapper", "images/map/webdataset", "images/map/htmapper", 2.5, 3.3, 2.1),
    _against("map tiny: webdataset / htmapper", "tiny/map/webdataset", "tiny/map/htmapper", 12, 20, 10),
    _against("extract text: webdataset / htextract", "text/extract/webdataset", "text/extract/htextract", 12, 20, 10.5),
    _against(
        "extract images: webdataset / htextract",
        "images.long/extract/webdataset",
        "images.long/extract/htextract",
        15,
        30,
        12.5,
    ),
    _against("read .tar.gz: webdataset / tarmill", "text.gz/read/webdataset", "text.gz/read/tarmill", 8, 13, 6.5),
    _against("map .tar.gz: webdataset / htmapper", "text.gz/map/webdataset", "text.gz/map/htmapper", 8, 15, 7),
    _against("map text: tarp cat / htmapper", "text/map/tarp cat", "text/map/htmapper", 2, 5.7, 2),
    _against("map images: tarp cat / htmapper", "images/map/tarp cat", "images/map/htmapper", 2, 3.3, 1.8),
    Bar("map text: htmapper / cat", ("text/map/htmapper", "text/copy/cat"), 6, 3.5, at_most=True, floor=8.5),
    Bar("map images: htmapper / cat", ("images/map/htmapper", "images/copy/cat"), 2, 1.5, at_most=True, floor=2.5),
    _two_processes("text"),
    _two_processes("images"),
    _reshuffle("text", "local", 22, 35, 13),
    _reshuffle("images", "local", 3, 4, 2.5),
    _reshuffle("text", "external", 14, 24, 10),
    _reshuffle("images", "external", 1.4, 1.9, 1.3),
    _wall_of_cat("text", "local", 3, 2),
    _wall_of_cat("images", "local", 1.4, 1.0),
    _wall_of_cat("text", "external", 5, 3),
    _wall_of_cat("images", "external", 5, 3),
    _sort("text"),
    _sort("images"),
    *_upload("small files", "text", 2.8),
    *_upload("images", "images", 2.0),
    _against(
        "upload small files: tarfile / htupload", "text.files/upload/tarfile", "text.files/upload/htupload", 8, 13, 4
    ),
    Bar("sort an index of 10 million keys, CPU s", ("keys/sort/order_of",), 6, None, at_most=True, measure="seconds"),
    _against("sort an index: numpy's argsort / ours", "keys/sort/numpy", "keys/sort/order_of", 1, 1.5, 0.7),
    Bar(
        "peak memory of a process, MB above the largest sample",
        ("*",),
        80,
        None,
        at_most=True,
        measure="rss",
    ),
    Bar(
        "shuffle, sort: peak anonymous memory of a process, MB above the largest sample and the index",
        ("*",),
        80,
        None,
        at_most=True,
        measure="anon",
    ),
    _over_http("text"),
    _over_http("images"),
    _over_s3("text"),
    _over_s3("images"),
    Bar(
        "map images, far s3: wall time, htmapper / the longer of (obstore, files)",
        ("images.s3/far/htmapper", "images.s3/far/obstore", "images.s3/work/htmapper"),
        1.2,
        None,
        at_most=True,
        measure="longer",
    ),
    Bar("s3: peak memory of a process, MB", ("*",), 150, None, at_most=True, measure="rss of s3"),
]

OURS = ("tarmill", "htmapper", "htmapper -j 2", "htextract", "htupload", "htupload -j 2")
S3_JOBS = ("s3", "far")
REORDERS = ("htshuffle", "htsort")


def judge(results: Mapping[str, Figures], parallel: float) -> list[Verdict]:
    """Hold the results against every bar whose rows were run.

    Args:
        parallel: how much faster two processes that only compute were than one, in the same batch. Wall times are
            not judged where the machine itself does not give 1.8.
    """
    return [verdict for bar in BARS if (verdict := _judge(bar, results, parallel)) is not None]


def _judge(bar: Bar, results: Mapping[str, Figures], parallel: float) -> Verdict | None:
    if bar.measure in ("rss", "rss of s3"):
        jobs = [(name.split("/"), figures) for name, figures in results.items()]
        on_s3 = bar.measure == "rss of s3"
        ours = [one for (_, job, tool), one in jobs if tool in OURS and (job in S3_JOBS) == on_s3]
        if not ours:
            return None
        return Verdict(bar, max(one.peak_rss_mb - (0 if on_s3 else one.largest_sample / 1e6) for one in ours), None)
    if bar.measure == "anon":
        ours = [one for name, one in results.items() if name.rsplit("/", 1)[1].split()[0] in REORDERS]
        if not ours:
            return None
        return Verdict(bar, max(one.peak_anon_mb - one.largest_sample / 1e6 - one.index_mb for one in ours), None)
    if not all(row in results for row in bar.rows):
        return None
    rows = [results[row] for row in bar.rows]
    if bar.measure == "wall":
        return Verdict(bar, rows[0].wall_s / rows[1].wall_s, _net_wall(rows), judged=parallel >= 1.8)
    if bar.measure == "seconds":
        return Verdict(bar, min(run.cpu_s for run in rows[0].runs), None)
    if bar.measure == "longer":
        return Verdict(bar, rows[0].wall_s / max(rows[1].wall_s, rows[2].wall_s), None, judged=parallel >= 1.8)
    if bar.measure == "sum":
        net = rows[0].net_us / (rows[1].net_us + rows[2].net_us)
        return Verdict(bar, rows[0].cpu_us / (rows[1].cpu_us + rows[2].cpu_us), net)
    return Verdict(bar, rows[0].cpu_us / rows[1].cpu_us, rows[0].net_us / max(rows[1].net_us, 1e-9))


def _net_wall(rows: Iterable[Figures]) -> float:
    one, two = (max(1e-9, row.wall_s - min(start.wall_s for start in row.starts)) for row in rows)
    return one / two


def rows_of(verdicts: Iterable[Verdict]) -> set[str]:
    """Collect the rows that some verdicts rest on."""
    return {row for verdict in verdicts for row in verdict.bar.rows}
