"""`tarmill verify`: a data set read again, and held against its manifest or against the data set it was made of.

What is compared with the manifest: that each shard is there and is a whole tar, its size, the hash of its bytes, its
counts, and the digests of its samples. What is compared with another data set: count and multiset hash of the samples,
so that order and cuts do not matter.

Where two data sets differ, a second reading finds the samples: every sample is noted as 64 bits of its digest and 64 of
its key's hash, equal ones are paired off, and what is left over on either side is the difference. Memory is bounded by
taking one part of the keys after the other. A third reading, of few shards, gives the keys of the samples to be named.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from xxhash import xxh3_64_intdigest, xxh3_128

from tarmill import storage
from tarmill.engine.base import Engine, Outcome
from tarmill.engine.meter import Meter, current
from tarmill.errors import FormatError, NotFoundError, ShardPatternError, StorageError, TarmillError, UsageError
from tarmill.formats.compression import decompress
from tarmill.formats.digest import MASK_64, sample_digest, to_hex
from tarmill.formats.keys import key_function as check_key_function
from tarmill.formats.samples import ReadOptions, Record, Tally
from tarmill.formats.shard_grammar import find_regions
from tarmill.formats.shards import ShardPattern
from tarmill.formats.tar_read import iter_samples
from tarmill.formats.tar_window import RawInput
from tarmill.jobs.drive import choose_engine, from_anywhere, probe_workers, run_tasks, settings_of
from tarmill.jobs.inputs import MANIFEST_SUFFIX, list_shards, manifest_url, name_in
from tarmill.jobs.listener import Listener
from tarmill.jobs.manifests import in_parallel, read_manifest
from tarmill.jobs.report import Report
from tarmill.jobs.shard_io import open_samples
from tarmill.planning.tasks import Shard
from tarmill.spec import RunOptions
from tarmill.storage.urls import local_path

SAMPLES_PER_PASS = 4_000_000
"""How many samples, of both sides together, are compared at a time: about 300 MB."""
MAX_NAMED = 10
"""How many samples are named where two data sets differ."""

_DRAIN_BYTES = 256 << 10
_ROW_BYTES = 16

R = TypeVar("R")


# ---- one shard, in a worker -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VerifyTask:
    """Read one shard."""

    index: int
    shard: Shard
    key_function: str
    settings: Any
    """`storage.StorageSettings`, to be put in force in the worker."""
    part: tuple[int, int] = (0, 1)
    """(i, n): the samples whose key's hash is i modulo n."""
    wanted: frozenset[int] = frozenset()
    """Low halves of the digests of the samples to be named."""

    @property
    def label(self) -> str:
        """What messages call the task."""
        return self.shard.label


@dataclass(frozen=True, slots=True)
class ShardFound:
    """What was read of one shard."""

    samples: int
    members: int
    size_bytes: int
    content_hash: str
    """xxh3_128 of the stored bytes."""
    digest: str
    """Multiset hash of the samples, 32 hex digits."""
    reason: str = ""
    """That of the error where the shard is no whole tar; counts and digest are of what comes before it."""
    error: str = ""
    """The error's message."""


def read_shard(task: VerifyTask) -> ShardFound:
    """Read all of one shard, and what of it can be read of a damaged one; a function that engines run.

    Raises:
        StorageError: reading failed for good.
    """
    storage.configure(task.settings)
    found = _read(task, current())
    if task.shard.content_hash not in ("", found.content_hash):
        found = _read(task, current())  # damage on the way may pass; what lies in the store stays
    return found


def _read(task: VerifyTask, meter: Meter) -> ShardFound:
    shard, tally, total = task.shard, Tally(), 0
    fault: FormatError | None = None
    meter.samples = meter.read_bytes = 0
    with storage.open_read(shard.url, version=shard.version) as stream, ExitStack() as again:
        raw = _Hashed(stream, meter)

        def reopen() -> RawInput:
            again.close()  # the one before
            return decompress(again.enter_context(storage.open_read(shard.url, version=shard.version)), shard.label)[0]

        try:
            contents, _ = decompress(raw, shard.label)
            samples = iter_samples(contents, shard.label, ReadOptions(task.key_function), tally, reopen)
            for _, digest in _digests(samples, meter):
                total += digest
        except FormatError as error:
            fault = error
        raw.drain()
        stream.verify()
    return ShardFound(
        tally.samples,
        tally.members,
        raw.size_bytes,
        raw.hexdigest(),
        to_hex(total),
        fault.reason if fault else "",
        fault.message if fault else "",
    )


class _Hashed:
    """A raw input that hashes and counts all that passes; it cannot seek, since everything has to pass."""

    def __init__(self, stream: storage.ReadStream, meter: Meter) -> None:
        self._stream = stream
        self._meter = meter
        self._hash = xxh3_128()
        self.size_bytes = 0
        self.hexdigest = self._hash.hexdigest

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._stream.readinto(buffer) or 0
        self._hash.update(buffer[:count])
        self.size_bytes += count
        self._meter.read_bytes += count
        return count

    def seekable(self) -> bool:
        return False

    def drain(self) -> None:
        """Read what nobody has read."""
        block = memoryview(bytearray(_DRAIN_BYTES))
        while self.readinto(block):
            pass


def _digests(samples: Iterable[Record], meter: Meter) -> Iterator[tuple[str, int]]:
    """Give key and digest of each sample."""
    for record in samples:
        meter.samples += 1
        meter.key = key = record.pop("__key__")
        del record["__url__"]
        if record["key"] is key:  # else a field of that name has taken its place
            del record["key"]
        yield key, sample_digest(key, record)


def _digests_again(task: VerifyTask) -> Iterator[tuple[str, int]]:
    storage.configure(task.settings)
    meter = current()
    with (
        open_samples(task.shard, ReadOptions(task.key_function), Tally(), meter, verify=False) as samples,
        closing(samples),  # type: ignore[type-var]  # a generator
    ):
        yield from _digests(samples, meter)


def collect_digests(task: VerifyTask) -> bytes:
    """Note each sample of `task.part`: low half of its digest, hash of its key; a function that engines run."""
    part, parts = task.part
    rows = bytearray()
    for key, digest in _digests_again(task):
        key_hash = xxh3_64_intdigest(key.encode("utf-8", "surrogateescape"))
        if key_hash % parts == part:
            rows += (digest & MASK_64 | key_hash << 64).to_bytes(_ROW_BYTES, "little")
    return bytes(rows)


def name_samples(task: VerifyTask) -> dict[int, str]:
    """Give the keys of the samples that `task.wanted` knows by their digests; a function that engines run."""
    found: dict[int, str] = {}
    with closing(_digests_again(task)) as samples:  # type: ignore[type-var]  # a generator
        for key, digest in samples:
            if digest & MASK_64 in task.wanted:
                found[digest & MASK_64] = key
                if len(found) == len(task.wanted):
                    break
    return found


# ---- the data sets, in the driver -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it should be."""

    shard: str
    """What messages call the shard; "" for the whole data set."""
    kind: str
    """missing, extra, unnamed, unreadable, size, hash, samples, members, digest, or the reason of a format error."""
    message: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What a manifest says of one shard."""

    size_bytes: int
    content_hash: str
    samples: int
    members: int
    """0 where the job did not count them."""
    digest: str
    """"" where the job did not digest the shard by itself."""


@dataclass(slots=True)
class Entry:
    """One shard of a data set, as far as it is known before anything is read."""

    name: str
    """As manifests name it."""
    url: str
    expected: Expected | None
    """None where the manifest does not list it."""
    named: bool
    """Whether the pattern names it."""
    stat: storage.Stat | None = None
    """What the store says of it, once it was looked at; None where it is not there."""
    found: ShardFound | None = None

    @property
    def label(self) -> str:
        """What messages call the shard."""
        return storage.mask(self.url)


@dataclass
class DataSet:
    """The shards that a pattern or a manifest stands for, and what the manifest says of them."""

    text: str
    """The pattern, for people."""
    manifest_url: str
    """Where the manifest is or would be, for people."""
    manifest: dict[str, Any] | None
    entries: list[Entry]
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    """Manifests that could be meant."""

    def totals(self) -> Totals | None:
        """Sum up the shards that the pattern names; None when one of them could not be read."""
        found = [entry.found for entry in self.entries if entry.named]
        whole = [shard for shard in found if shard is not None and not shard.error]
        return Totals.of(whole) if len(whole) == len(found) else None


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over shards."""

    shards: int
    samples: int
    members: int
    size_bytes: int
    digest: str

    @classmethod
    def of(cls, shards: Sequence[ShardFound]) -> Totals:
        """Sum up."""
        return cls(
            len(shards),
            sum(shard.samples for shard in shards),
            sum(shard.members for shard in shards),
            sum(shard.size_bytes for shard in shards),
            to_hex(sum(int(shard.digest, 16) for shard in shards)),
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """One sample in which two data sets differ."""

    kind: str
    """One of `KINDS`."""
    key: str
    source_shard: str
    """Where it is in IN; "" where it is not."""
    output_shard: str
    """Where it is in OUT; "" where it is not."""

    def __str__(self) -> str:
        text = f"{KINDS[self.kind]}: key {self.key!r}"
        if self.kind == "changed":
            return f"{text} of shard {self.source_shard} and of {self.output_shard}"
        return f"{text} of shard {self.source_shard or self.output_shard}"


KINDS = {
    "lost": "only in IN",
    "added": "only in OUT",
    "changed": "changed, same key on both sides and other contents",
    "doubled": "doubled, more often in OUT than in IN",
    "fewer": "fewer, not as often in OUT as in IN",
}


@dataclass
class VerifyReport:
    """What was found."""

    output: DataSet
    source: DataSet | None
    faults: list[Fault] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """How many samples differ, by kind of `KINDS`."""
    differences: list[Difference] = field(default_factory=list)
    """Some of them."""
    notes: list[str] = field(default_factory=list)
    is_permutation: bool | None = None
    """Whether OUT holds just the samples of IN; None where that was not asked or a shard could not be read."""

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return not self.faults and (self.source is None or self.is_permutation is True)

    def to_dict(self) -> dict[str, Any]:
        """Give JSON-able values."""

        def told(data: DataSet) -> dict[str, Any]:
            totals = data.totals()
            sums = {name: getattr(totals, name) for name in Totals.__slots__} if totals else {}
            return {"name": data.text, "manifest": data.manifest_url if data.manifest else "", **sums}

        found: dict[str, Any] = {
            "ok": self.ok,
            "output": told(self.output),
            "faults": [{"shard": f.shard, "kind": f.kind, "message": f.message} for f in self.faults],
            "notes": self.notes,
        }
        if self.source is not None:
            found["input"] = told(self.source)
            found["permutation"] = self.is_permutation
            found["differences"] = dict(sorted(self.counts.items()))
            found["examples"] = [
                {"kind": d.kind, "key": d.key, "input_shard": d.source_shard, "output_shard": d.output_shard}
                for d in self.differences
            ]
        return found


def run(
    output: str,
    source: str = "",
    *,
    key_function: str = "base_plus_ext",
    options: RunOptions | None = None,
    listener: Listener | None = None,
) -> VerifyReport:
    """Read a data set again and compare it with its manifest, and with the data set it was made of where that is named.

    Args:
        output: shard pattern, folder, or URL of a manifest.
        source: the same; then the output's manifest is compared only if there is one.
        key_function: as in `ReadOptions`; that of the job that made the output.
        options: where and how it runs.
        listener: is told how it goes.

    Raises:
        UsageError: there is nothing to compare with, or a pattern stands for nothing.
    """
    options, listener = options or RunOptions(), listener or Listener()
    settings = settings_of(options)
    check_key_function(key_function)
    report = VerifyReport(find_data_set(output), _as_source(find_data_set(source)) if source else None)
    if report.source is None:
        _need_manifest(report.output)
    sides = [report.source, report.output] if report.source else [report.output]
    for side in sides:
        report.faults += side.faults
        report.notes += side.notes
        report.faults += _look_at(side)
    entries = [
        entry
        for side in sides
        for entry in side.entries
        if entry.stat and (entry.expected or report.source is not None)
    ]
    tasks = [_task(number, entry, key_function, settings) for number, entry in enumerate(entries)]
    sizes = [task.shard.size_bytes for task in tasks]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    what = f"{len(tasks)} shards" + ("" if total is None else f", {total / 1e6:,.1f} MB")
    listener.plan(Report("ShardVerify", "", len(tasks)), total, [what])
    with ExitStack() as stack:
        reader = _Reader(None, listener)
        if tasks:
            engine = choose_engine(options, len(tasks), sorted({tasks[0].shard.url, tasks[-1].shard.url}))
            reader.engine = stack.enter_context(engine)
            probe_workers(reader.engine, tasks[0].shard, "-")  # nothing is written, so that no folder needs a look
        _read_all(reader, tasks, entries, report.faults, listener)
        _compare(report.output, report.faults)
        if report.source:
            _compare_sides(report, reader, key_function, settings)
    return report


def _look_at(data: DataSet) -> Iterator[Fault]:
    """Look at all shards, and tell of those that are not there, or should not be."""

    def look(entry: Entry) -> storage.Stat | StorageError:
        try:
            return storage.stat(entry.url)
        except StorageError as error:
            return error

    for entry, seen in zip(data.entries, in_parallel(look, data.entries), strict=True):
        if not isinstance(seen, StorageError):
            entry.stat = seen
            if data.manifest is not None and entry.expected is None:
                yield _extra(data, entry.url)
        elif isinstance(seen, NotFoundError):
            yield Fault(entry.label, "missing", f"{entry.label} is not there")
        else:
            yield Fault(entry.label, "unreadable", f"{entry.label} cannot be read: {seen.message}")


def _task(number: int, entry: Entry, key_function: str, settings: Any) -> VerifyTask:
    assert entry.stat is not None
    known = entry.expected.content_hash if entry.expected else ""
    shard = Shard(from_anywhere(entry.url), entry.label, entry.stat.size_bytes, entry.stat.version, known)
    return VerifyTask(number, shard, key_function, settings)


@dataclass
class _Reader:
    """Runs tasks on the engine that was chosen; results and errors by the tasks' numbers."""

    engine: Engine | None
    listener: Listener

    def outcomes(
        self, work: Callable[[VerifyTask], R], tasks: Sequence[VerifyTask]
    ) -> Iterator[Outcome[VerifyTask, R]]:
        if self.engine is not None and tasks:
            with closing(run_tasks(self.engine, work, tasks, self.listener)) as outcomes:  # type: ignore[type-var]
                yield from outcomes

    def results(self, work: Callable[[VerifyTask], R], tasks: Sequence[VerifyTask]) -> list[R]:
        """Give the results in the order of the tasks; raises the first error."""
        found: dict[int, R] = {}
        with closing(self.outcomes(work, tasks)) as outcomes:  # type: ignore[type-var]
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
                assert outcome.result is not None
                found[outcome.task.index] = outcome.result
        return [found[task.index] for task in tasks]


def _read_all(
    reader: _Reader, tasks: Sequence[VerifyTask], entries: Sequence[Entry], faults: list[Fault], listener: Listener
) -> None:
    unread: dict[int, Fault] = {}
    for outcome in reader.outcomes(read_shard, tasks):
        number, found = outcome.task.index, outcome.result
        if found is not None:
            entries[number].found = found
            listener.finished(number, found.samples, found.size_bytes, 0)
        elif outcome.error is not None:
            told = f"{outcome.task.label} cannot be read: {outcome.error.message}"
            unread[number] = Fault(outcome.task.label, "unreadable", told)
    for number, entry in enumerate(entries):
        if number in unread:
            faults.append(unread[number])
        elif entry.found is not None:
            faults += _faults_of(entry, entry.found)


# ---- held against the manifest ----------------------------------------------------------------------------------


def _faults_of(entry: Entry, found: ShardFound) -> Iterator[Fault]:
    """Tell how a shard that was read differs from what the manifest says of it (pure)."""
    label, expected = entry.label, entry.expected
    if expected is not None:
        if found.size_bytes != expected.size_bytes:
            told = f"{label} has {found.size_bytes:,} bytes; the manifest says {expected.size_bytes:,}"
            yield Fault(label, "size", told)
        elif expected.content_hash not in ("", found.content_hash):
            told = f"{label}: its bytes have the hash {found.content_hash}; the manifest says {expected.content_hash}"
            yield Fault(label, "hash", told)
    if found.error:
        yield Fault(label, found.reason, found.error)
    elif expected is not None:
        # a job that copies samples as they lie does not look into them: 0 members, and no digest of a shard
        for kind in ("samples", "members") if expected.members else ("samples",):
            if getattr(found, kind) != getattr(expected, kind):
                told = f"{label} has {getattr(found, kind):,} {kind}; the manifest says {getattr(expected, kind):,}"
                yield Fault(label, kind, told)
        if expected.digest not in ("", found.digest):
            told = f"{label}: its samples have the digest {found.digest}; the manifest says {expected.digest}"
            yield Fault(label, "digest", told)


def _compare(data: DataSet, faults: list[Fault]) -> None:
    """Hold the sums against the manifest, where every shard that it lists could be read."""
    if data.manifest is None:
        return
    found = [entry.found for entry in data.entries if entry.expected]
    whole = [shard for shard in found if shard is not None and not shard.error]
    if len(whole) < len(found):
        return
    totals, shards = Totals.of(whole), [entry for entry in data.entries if entry.expected]
    as_written = not faults and all(entry.expected and entry.expected.content_hash for entry in shards)
    told_already = {fault.kind for fault in faults}
    for kind in ("samples", "members", "digest"):
        value, known = getattr(totals, kind), data.manifest[kind]
        if value == known or kind in told_already:
            continue
        if kind != "digest":
            told = f"all shards together have {value:,} {kind}; {data.manifest_url} says {known}"
        else:
            told = f"all samples together have the digest {value}; {data.manifest_url} says {known}"
            if as_written:
                told += (
                    "; every byte is as it was written, so that names were split into key and field in another way "
                    "then: give the --key-function of that job"
                )
        faults.append(Fault("", kind, told))


def _need_manifest(data: DataSet) -> None:
    if data.manifest is not None:
        return
    if data.ambiguous:
        raise UsageError(
            f"{data.text} could be checked against {', '.join(data.ambiguous)}; name one of these instead",
            url=data.ambiguous[0],
        )
    raise UsageError(
        f"{data.text} has no manifest to be checked against: {data.manifest_url} is not there. Without one, "
        "`tarmill verify IN OUT` compares with the data set it was made of, and `tarmill index` reads it and gives "
        "counts and digests",
        url=data.manifest_url,
    )


def find_data_set(text: str) -> DataSet:
    """Find the shards that a pattern, a folder or a manifest stands for, and the manifest where there is one.

    Raises:
        UsageError: they cannot be known, or there are none.
        TarmillError: the manifest is damaged.
    """
    zones = find_regions(text)
    if text[: zones.query].endswith(MANIFEST_SUFFIX):
        return _of_manifest(text, text[: zones.last], text[zones.query :])
    pattern = ShardPattern.parse(_with_slash(text))
    if "-" in pattern.text.split("::"):
        raise UsageError(
            "standard input can be read only once, and has no manifest; name files or URLs, or count and digest it "
            "with `tarmill cat --check -`"
        )
    url = manifest_url(pattern)
    manifest = _manifest_at(url)
    if pattern.is_open:
        return _of_open(pattern, url, manifest)
    try:
        urls = list_shards(pattern)
    except ShardPatternError:
        if manifest is None or not pattern.needs_listing:
            raise
        urls = []
    names = {_name(pattern.folder, shard): shard for shard in urls}
    data = DataSet(storage.mask(text), storage.mask(url), manifest, [])
    if manifest is None and pattern.needs_listing:
        _search_manifest(data, pattern, set(names))
    expected = _expected(data.manifest, data.manifest_url) if data.manifest else {}
    for name, known in expected.items():
        shard = names.get(name) or _place(data, pattern.folder, name)
        if shard is not None:
            data.entries.append(Entry(name, shard, known, pattern.match(shard) if name not in names else True))
            if not data.entries[-1].named:
                told = f"{storage.mask(shard)} is in {data.manifest_url}, but not in {data.text}"
                data.faults.append(Fault(storage.mask(shard), "unnamed", told))
    data.entries += [Entry(name, shard, None, True) for name, shard in names.items() if name not in expected]
    return data


def _of_manifest(text: str, folder: str, query: str) -> DataSet:
    """Take the shards that a manifest lists, whose URL is given."""
    shown = storage.mask(text)
    manifest = _manifest_at(text)
    if manifest is None:
        raise UsageError(f"{shown} is not there; name the shards, or an existing manifest", url=shown)
    data = DataSet(shown, shown, manifest, [])
    for name, known in _expected(manifest, shown).items():
        shard = _place(data, folder, name, query)
        if shard is not None:
            data.entries.append(Entry(name, shard, known, True))
    return data


def _of_open(pattern: ShardPattern, url: str, manifest: dict[str, Any] | None) -> DataSet:
    """Take the shards that the manifest lists, or those that are there, for a pattern whose count is open."""
    data = DataSet(storage.mask(pattern.text), storage.mask(url), manifest, [])
    expected = _expected(manifest, data.manifest_url) if manifest else {}
    query = pattern.text[find_regions(pattern.text).query :]
    for name, known in expected.items():
        shard = _place(data, pattern.folder, name, query)
        if shard is not None:
            data.entries.append(Entry(name, shard, known, True))
    try:
        there = [(_name(pattern.folder, shard), shard + query) for shard in _siblings(pattern)]
    except StorageError as error:
        if manifest is None:
            raise UsageError(
                f"{data.text} leaves the count open, and there is neither a manifest nor a listing that tells it "
                f"({error.message}); write the count after '@'"
            ) from None
        data.notes.append(f"shards that the manifest does not list were not looked for: {error.message}")
        there = []
    if manifest is not None:
        data.faults += [_extra(data, shard) for name, shard in there if name not in expected]
    elif there:
        data.entries += [Entry(name, shard, None, True) for name, shard in there]
    else:
        raise UsageError(f"{data.text} leaves the count open, and no such shard is there; check its name and place")
    return data


def _siblings(pattern: ShardPattern) -> list[str]:
    """List the shards that an open count could stand for, whatever their numbers; without the query."""
    first, second = pattern.with_count(2).expand()
    end = next(at for at, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1]) + 1
    start = len(first[:end].rstrip("0"))
    last = find_regions(first).query
    name = re.compile(re.escape(first[:start]) + r"\d+" + re.escape(first[end:last]))
    return [info.url for info in storage.list_urls(first[:start]) if name.fullmatch(info.url)]


def _search_manifest(data: DataSet, pattern: ShardPattern, names: set[str]) -> None:
    """Find the manifest in the folder whose shards a wildcard matches, where none is called after the pattern."""
    if len(pattern.parts) > 1:
        return
    found: list[tuple[str, dict[str, Any]]] = []
    for info in storage.list_urls(pattern.folder or "./"):
        if info.url.endswith(MANIFEST_SUFFIX) and "/" not in _name(pattern.folder, info.url):
            with suppress(TarmillError):
                manifest = read_manifest(info.url)
                if names & _expected(manifest, info.url).keys():
                    found.append((storage.mask(info.url.removeprefix("./")), manifest))
    if len(found) == 1:
        [(data.manifest_url, data.manifest)] = found
    data.ambiguous = [url for url, _ in found]


def _as_source(data: DataSet) -> DataSet:
    """Take a data set as what another was made of: what its own manifest says of bytes and counts is not at stake."""
    entries = [replace(entry, expected=None) for entry in data.entries if entry.named]
    read = {entry.label for entry in entries}
    faults = [fault for fault in data.faults if fault.kind != "unnamed" and fault.shard not in read]
    return replace(data, manifest=None, entries=entries, faults=faults)


def _manifest_at(url: str) -> dict[str, Any] | None:
    try:
        return read_manifest(url)
    except NotFoundError:
        return None


def _expected(manifest: dict[str, Any], url: str) -> dict[str, Expected]:
    """Take what a manifest says of its shards, by name.

    Raises:
        TarmillError: it is damaged.
    """
    try:
        found = {
            str(shard["name"]): Expected(
                int(shard["size_bytes"]),
                str(shard["content_hash"]),
                int(shard["samples"]),
                int(shard["members"]),
                str(shard["digest"]),
            )
            for shard in manifest["shards"]
        }
        if len(found) == len(manifest["shards"]) and {"samples", "members", "digest"} <= manifest.keys():
            return found
        fact = "it names a shard twice, or has no sums"
    except (KeyError, TypeError, ValueError) as error:
        fact = f"{type(error).__name__}: {error}"
    raise TarmillError(f"{url} is damaged: {fact}; restore it, or run the job again", url=url)


def _place(data: DataSet, folder: str, name: str, query: str = "") -> str | None:
    """Give the URL of a shard that a manifest lists; one that leaves the folder is a fault, and is not opened."""
    if name.startswith("/") or "://" in name or ".." in name.split("/"):
        told = f"{data.manifest_url} lists {name!r}, which is no name below its folder"
        data.faults.append(Fault(name, "unreadable", told))
        return None
    return f"{folder}{name}{query}"


def _name(folder: str, url: str) -> str:
    """Name a shard as manifests do, also where a listing began with './'."""
    return name_in(folder, url).removeprefix("./")


def _extra(data: DataSet, url: str) -> Fault:
    label = storage.mask(url)
    return Fault(
        label, "extra", f"{label} is named like a shard of the data set, but {data.manifest_url} does not list it"
    )


def _with_slash(text: str) -> str:
    """Write the name of a local folder as patterns have it."""
    if storage.scheme_of(text) == "file" and not text.endswith("/"):
        with suppress(TarmillError):
            if os.path.isdir(local_path(text)):
                return text + "/"
    return text


# ---- held against another data set ------------------------------------------------------------------------------


def _compare_sides(report: VerifyReport, reader: _Reader, key_function: str, settings: Any) -> None:
    """Find out whether both sides hold the same samples; if not, how they differ."""
    assert report.source is not None
    ours, theirs = report.source.totals(), report.output.totals()
    if ours is None or theirs is None:
        report.notes.append("samples were not compared, since not every shard could be read")
        return
    report.is_permutation = (ours.samples, ours.digest) == (theirs.samples, theirs.digest)
    if report.is_permutation:
        return
    entries = [[entry for entry in side.entries if entry.named] for side in (report.source, report.output)]
    try:
        _find_differences(report, reader, entries, key_function, settings)
    except TarmillError as error:
        report.notes.append(f"which samples differ could not be found: {error.message}")


def _find_differences(
    report: VerifyReport, reader: _Reader, sides: Sequence[Sequence[Entry]], key_function: str, settings: Any
) -> None:
    import numpy

    shards = [entry for side in sides for entry in side]
    tasks = [_task(number, entry, key_function, settings) for number, entry in enumerate(shards)]
    samples = sum(entry.found.samples for entry in shards if entry.found)
    passes = max(1, -(-samples // SAMPLES_PER_PASS))
    middle, examples = len(sides[0]), dict[str, list[_Pair]]()
    for part in range(passes):
        blocks = reader.results(collect_digests, [replace(task, part=(part, passes)) for task in tasks])
        rows = [numpy.frombuffer(b"".join(half), "<u8").reshape(-1, 2) for half in (blocks[:middle], blocks[middle:])]
        owners = numpy.repeat(numpy.arange(len(blocks)), [len(block) // _ROW_BYTES for block in blocks])
        owner = [owners[: len(rows[0])], owners[len(rows[0]) :]]
        del blocks
        for kind, (count, pairs) in differences(rows[0], rows[1]).items():
            report.counts[kind] += count
            known = examples.setdefault(kind, [])
            for pair in pairs[: MAX_NAMED - len(known)]:
                known.append(
                    tuple(
                        None if row is None else (int(owner[side][row]), int(rows[side][row, 0]))
                        for side, row in enumerate(pair)
                    )
                )
    _name_examples(report, reader, tasks, _mixed(examples))


_Pair = tuple["tuple[int, int] | None", ...]
"""Where a sample that differs is in IN and in OUT: number of the shard, low half of the digest."""


def differences(ours: Any, theirs: Any) -> dict[str, tuple[int, list[tuple[int | None, int | None]]]]:
    """Compare two multisets of samples; each is an array of rows (digest, key hash) (pure).

    Returns:
        For each kind of `KINDS` that there is: how many, and up to `MAX_NAMED` of them as row numbers on both sides.
    """
    import numpy

    left = numpy.flatnonzero(~_paired(ours[:, 0], theirs[:, 0]))
    right = numpy.flatnonzero(~_paired(theirs[:, 0], ours[:, 0]))
    # a copy more of a sample that the other side has too
    left_again, right_again = numpy.isin(ours[left, 0], theirs[:, 0]), numpy.isin(theirs[right, 0], ours[:, 0])
    fewer, doubled = left[left_again], right[right_again]
    left, right = left[~left_again], right[~right_again]
    left_changed = _paired(ours[left, 1], theirs[right, 1])
    right_changed = _paired(theirs[right, 1], ours[left, 1])
    changed = left[left_changed], right[right_changed]
    # both have the same keys equally often, so that in the order of keys they stand side by side
    changed = tuple(
        rows[numpy.argsort(side[rows, 1], kind="stable")] for side, rows in zip((ours, theirs), changed, strict=True)
    )
    order = numpy.argsort(changed[0], kind="stable")
    found = {
        "lost": (left[~left_changed], None),
        "added": (None, right[~right_changed]),
        "changed": (changed[0][order], changed[1][order]),
        "doubled": (None, doubled),
        "fewer": (fewer, None),
    }
    result: dict[str, tuple[int, list[tuple[int | None, int | None]]]] = {}
    for kind, (mine, other) in found.items():
        count = len(mine if mine is not None else other)
        if count:
            first = [[None] * MAX_NAMED if rows is None else rows[:MAX_NAMED].tolist() for rows in (mine, other)]
            result[kind] = count, list(zip(*first, strict=False))[: min(count, MAX_NAMED)]
    return result


def _paired(values: Any, others: Any) -> Any:
    """Tell for each value whether it has a partner among the others: equal ones pair off, one to one, first come."""
    import numpy

    order = numpy.argsort(values, kind="stable")
    ranked, others = values[order], numpy.sort(others)
    rank = numpy.arange(len(ranked)) - numpy.searchsorted(ranked, ranked, "left")
    partners = numpy.searchsorted(others, ranked, "right") - numpy.searchsorted(others, ranked, "left")
    result = numpy.empty(len(values), bool)
    result[order] = rank < partners
    return result


def _mixed(examples: dict[str, list[_Pair]]) -> list[tuple[str, _Pair]]:
    """Take up to `MAX_NAMED` examples, of every kind some."""
    found: list[tuple[str, _Pair]] = []
    for rank in range(MAX_NAMED):
        found += [(kind, examples[kind][rank]) for kind in KINDS if rank < len(examples.get(kind, []))]
    kinds = list(KINDS)
    return sorted(found[:MAX_NAMED], key=lambda item: kinds.index(item[0]))


def _name_examples(
    report: VerifyReport, reader: _Reader, tasks: Sequence[VerifyTask], examples: Sequence[tuple[str, _Pair]]
) -> None:
    """Read the shards of the examples once more, for their keys."""
    wanted: dict[int, set[int]] = {}
    for _, pair in examples:
        for place in pair:
            if place is not None:
                wanted.setdefault(place[0], set()).add(place[1])
    asked = [replace(tasks[number], wanted=frozenset(digests)) for number, digests in sorted(wanted.items())]
    keys = dict(zip((task.index for task in asked), reader.results(name_samples, asked), strict=True))
    for kind, pair in examples:
        key = next(keys[place[0]][place[1]] for place in pair if place is not None)
        shard, other = ("" if place is None else tasks[place[0]].label for place in pair)
        report.differences.append(Difference(kind, key, shard, other))


def told_by_manifest(data: DataSet) -> str:
    """Tell what a data set's manifest counts that explains other samples than its input's; "" for nothing."""
    counts = (data.manifest or {}).get("counts")
    if not isinstance(counts, dict):
        return ""
    words = {"dropped": "dropped samples", "added": "added samples", "renamed": "renamed keys"}
    told = [f"{number:,} {word}" for name, word in words.items() if (number := _number(counts.get(name)))]
    return f"the manifest of OUT tells of {', '.join(told)}" if told else ""


def _number(value: Any) -> int:
    """Read a count, or counts by reason."""
    if isinstance(value, dict):
        return sum(map(_number, value.values()))
    return value if isinstance(value, int) else 0
