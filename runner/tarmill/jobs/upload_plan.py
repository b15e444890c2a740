"""All that an upload decides before its first task runs: what is packed, in which order, into which shards."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tarmill import storage
from tarmill.engine.base import Engine
from tarmill.engine.cores import usable_cores
from tarmill.engine.serial import serial_engine
from tarmill.errors import UsageError
from tarmill.formats.digest import to_hex
from tarmill.formats.shards import ShardPattern
from tarmill.jobs.cut_outputs import check_output, named, shards_before
from tarmill.jobs.drive import choose_engine, from_anywhere, settings_of
from tarmill.jobs.inputs import manifest_url, name_in
from tarmill.jobs.listener import Listener
from tarmill.jobs.manifests import (
    JobFolder,
    is_of_another_job,
    refuse_existing,
)
from tarmill.jobs.output_index import plan_index
from tarmill.jobs.report import Report
from tarmill.jobs.upload_collect import Collector
from tarmill.jobs.upload_named import refuse_changed
from tarmill.jobs.upload_resolve import CLASSES, resolve
from tarmill.jobs.upload_scan import look_at_tree, name_tree
from tarmill.jobs.upload_shard import upload_shard
from tarmill.jobs.upload_sources import collect, first_local
from tarmill.jobs.upload_told import counts_of, nothing_found
from tarmill.planning.counts import Counts
from tarmill.planning.jobid import job_id
from tarmill.planning.tasks import Shard, ShardDone
from tarmill.planning.upload_cuts import cuts_by_count, shard_edges, shuffled
from tarmill.planning.upload_listing import Found, Listing
from tarmill.planning.upload_names import fault_of_key
from tarmill.planning.upload_runs import Run, RunListing
from tarmill.planning.upload_tasks import UploadJob, UploadTask
from tarmill.spec import RunOptions, UploadSpec
from tarmill.values import field, replace, valueclass

if TYPE_CHECKING:
    from tarmill.jobs.sidecar_places import Places
    from tarmill.jobs.upload_append import Base

KIND = "ShardUpload"
LISTING = "listing"
_ANY_NUMBER = 1 << 20
_FEW_KEYS = 50_000
"""Are read before a worker has started."""
_FEW_BYTES = 4 << 20
"""Of entries of all shards, which then travel with the tasks."""


@valueclass(frozen=False)
class Upload:
    """One job: all that is decided before its first task runs, and what is known as it goes on."""

    spec: UploadSpec
    found: Found
    order: Sequence[int] | None
    edges: list[int]
    outputs: list[str]
    job: UploadJob
    seed: int
    folder: JobFolder | None
    manifest: str
    probe: Shard
    """A local file that workers must see, or none."""
    report: Report
    finished: dict[int, ShardDone] = field(default_factory=dict)
    stale: set[str] = field(default_factory=set)
    """Shards of a data set that this one overwrites."""
    base: Base | None = None
    """The data set that shards are added to."""
    index: Places | None = None
    """Of the files for other readers that are wanted, for old shards and new."""
    is_complete: bool = False
    """Whether this very job was finished before, so that nothing is to be done or written."""

    @property
    def classes_url(self) -> str:
        """Where the names of the classes go; "" for nowhere."""
        return f"{self.job.folder}{CLASSES}" if self.spec.class_from_dir and self.folder else ""

    def take(self, done: ShardDone) -> None:
        """Take note of a finished shard."""
        self.finished[done.index] = done
        self.report.shards_done += 1
        self.report.counts.merge(done.counts)
        if done.output is not None:
            self.report.digest = to_hex(int(self.report.digest or "0", 16) + int(done.output.digest, 16))

    def sweep(self) -> None:
        """Remove what killed processes of this job left."""
        if self.folder:
            index = self.index.of_data_set().values() if self.index else ()
            files = [*self.outputs, self.manifest, self.classes_url, self.spec.rejected, *index]
            self.folder.sweep(url for url in files if url)


class Engines:
    """The one engine of a job, made when it is first needed.

    Args:
        options: where to run.
        urls: what tasks read and write.
        stack: closes it.
    """

    def __init__(self, options: RunOptions, urls: Sequence[str], stack: ExitStack) -> None:
        self.options = options
        self._urls = urls
        self._stack = stack
        self._engine: Engine | None = None

    def for_looks(self) -> Callable[[], Engine] | None:
        """Give what gives the engine with its workers about to start, where it has several on this machine."""
        options = self.options
        alone = options.workers == 1 or (not options.workers and usable_cores() == 1)
        here = any(storage.capabilities(url).shared == "process" for url in self._urls)
        return None if alone or here or options.scheduler else self._starting

    def _starting(self) -> Engine:
        engine = self.get(_ANY_NUMBER)
        engine.prepare(upload_shard)
        return engine

    def get(self, tasks: int) -> Engine:
        """Give the engine, for so many tasks at least."""
        if self._engine is None:
            self._engine = self._stack.enter_context(choose_engine(self.options, tasks, self._urls))
        return self._engine


def plan(spec: UploadSpec, engines: Engines, listener: Listener) -> Upload:
    """List what is to be packed, order it, cut it, name outputs and find what an earlier run has finished.

    Raises:
        UsageError: sources or output cannot be, there is nothing to pack, or the outputs belong to another job.
        SampleError: two samples have one key.
        TarmillError: a source cannot be looked into.
    """
    options = engines.options
    settings = settings_of(options)
    if spec.seed == "random":
        import secrets

        spec = replace(spec, seed=str(secrets.randbits(63)))
    out = ShardPattern.parse(spec.output)
    if spec.output != "-":
        check_output(spec, out)
    if spec.key_prefix and (fault := fault_of_key(f"{spec.key_prefix}x")) is not None:
        spec.refuse("key_prefix", fault[1])
    known = _known_classes(spec, out)
    fixed = 1 if spec.output == "-" else None if out.is_open else out.count
    begun_ns = time.time_ns()
    by_name = cuts_by_count(spec, fixed) and not spec.append
    collector, inputs = _collected(spec, out, engines, listener, known, by_name=by_name)
    found = collector.found
    found.listing.finish()
    listing = Shard("", "listing", found.listing.content_bytes, found.listing.version)
    job = job_id(KIND, spec, [*inputs, listing], [storage.mask(spec.output)])
    if not len(found.listing) and not spec.empty_shards:
        raise UsageError(nothing_found(spec, found))
    base = _base(spec, out, job, collector, engines, listener) if spec.append else None
    seed = int(spec.seed or str(int(job, 16))) % (1 << 64)
    order = shuffled(len(found.listing), seed) if spec.shuffle else None
    edges = shard_edges(spec, fixed, found.listing.sizes, order, sizes_known=not found.listing.unknown)
    if spec.output == "-" and len(edges) != 2:
        raise UsageError("standard output takes one shard; leave the options about their number away, or name files")
    outputs = _name_outputs(spec, out, base, len(edges) - 1)
    folder = None if spec.output == "-" else JobFolder(out.folder, job)
    manifest = manifest_url(out) if folder else ""
    report = Report(KIND, job, len(outputs), storage.mask(spec.output), storage.mask(manifest))
    report.counts = counts_of(found)
    report.samples_total = len(found.listing) + report.counts.read
    local = first_local(collector)
    state = from_anywhere(folder.url) if folder else ""
    shared = UploadJob(
        job=job,
        spec=replace(spec, sources=("(listed)",)),
        state=state,
        folder=state.removesuffix(f"_tarmill/{job}/"),
        roots=tuple(from_anywhere(root or "./") for root in collector.roots),
        follow=spec.follow_symlinks or bool(spec.columns),
        begun_ns=begun_ns if found.by_name else 0,
        remote=bool(found.listing.unknown) or any(storage.scheme_of(url) != "file" for url in places_of(spec)),
        settings=settings,
    )
    probe = Shard(from_anywhere(local[0]), local[0], version=local[1]) if local else Shard("", "")
    work = Upload(spec, found, order, edges, outputs, shared, seed, folder, manifest, probe, report)
    work.index = plan_index(spec.index, out, [*(base.urls if base else ()), *outputs])
    if base is not None:
        _find_appended(work, base)
    elif folder:
        _find_finished(work, out, listener)
    return work


def _base(
    spec: UploadSpec, out: ShardPattern, job: str, collector: Collector, engines: Engines, listener: Listener
) -> Base:
    """Find the data set to add to, and see to it that its keys are not given once more."""
    from tarmill.jobs.upload_append import existing_keys, find_base, without_taken

    base = find_base(out)
    if base.part_of(job) is None:
        few = base.samples < _FEW_KEYS
        engine = serial_engine() if few else engines.get(_ANY_NUMBER)
        without_taken(spec, collector, existing_keys(base, engine, listener))
    return base


def _name_outputs(spec: UploadSpec, out: ShardPattern, base: Base | None, count: int) -> list[str]:
    if spec.output == "-":
        return ["-"]
    if base is None:
        return named(out, count)
    from tarmill.jobs.upload_append import names_after

    return names_after(base, out, count)


def _find_appended(work: Upload, base: Base) -> None:
    """Take over what an earlier run of this job has added, or was about to add."""
    from tarmill.jobs.upload_append import begun_at

    assert work.folder is not None
    work.base = base
    work.report.shards_before = base.first
    if (part := base.part_of(work.job.job)) is not None:
        report = work.report
        report.shards_total = report.shards_done = report.shards_resumed = int(part["shards"])
        report.shards_before = base.first - report.shards_total
        report.counts = Counts.from_dict(part["counts"])
        work.is_complete, work.outputs = True, []
    elif begun_at(work.folder) == base.first and work.spec.exists != "fail":
        for done in work.folder.finished(range(len(work.outputs)), work.outputs).values():
            work.take(done)
        work.report.shards_resumed = work.report.shards_done
    else:
        refuse_existing(work.outputs, work.job.job)


def _collected(
    spec: UploadSpec, out: ShardPattern, engines: Engines, listener: Listener, known: dict[str, int], *, by_name: bool
) -> tuple[Collector, list[Shard]]:
    """Put all samples into a listing; give it with what stands for the sources in the job's id.

    With `by_name` nobody looks at the files of a tree, if that is all there is: where sizes decide nothing.
    """
    collector = Collector(spec, Listing(engines.options.scratch_dir or None))
    if spec.columns:
        from tarmill.jobs.upload_lists import entries_of, find_lists

        lists = find_lists(spec)
        collector.take_in_order(entries_of(spec, lists, collector))
        return collector, lists

    def look_at_all(runs: Iterable[Run], root: int, taker: Collector) -> None:
        if by_name:
            name_tree(spec, runs, root, taker, engines.options.scratch_dir or None)
        else:
            look_at_tree(spec, runs, root, taker, engines.for_looks(), listener)

    collect(spec, resolve(spec, out), collector, known, look_at_all)
    return collector, [Shard("", storage.mask(source)) for source in spec.sources]


def _known_classes(spec: UploadSpec, out: ShardPattern) -> dict[str, int]:
    """Read the numbers that classes have already in this folder, so that data sets beside each other agree."""
    if not spec.class_from_dir or spec.output == "-" or spec.exists == "overwrite":
        return {}
    from tarmill.errors import NotFoundError

    url = f"{out.folder}{CLASSES}"
    try:
        known = json.loads(storage.read_bytes(url))
        if isinstance(known, dict) and all(type(number) is int for number in known.values()):
            return known
    except NotFoundError:
        return {}
    except ValueError:
        pass
    raise UsageError(f"{storage.mask(url)} is no file of tarmill's: expected names of classes with their numbers")


def _find_finished(work: Upload, out: ShardPattern, listener: Listener) -> None:
    """Refuse outputs of others, and take over what an earlier run of this job has finished."""
    spec, job, folder = work.spec, work.job.job, work.folder
    assert folder is not None
    if spec.exists == "overwrite":
        names = {name_in(out.folder, url) for url in work.outputs}
        work.stale = shards_before(work.manifest) - names
        return
    taken = is_of_another_job(work.manifest, job, {name_in(out.folder, url) for url in work.outputs})
    if spec.exists == "fail" or taken or not folder.has_begun():
        refuse_existing(work.outputs, job)
        return
    finished = folder.finished(range(len(work.outputs)), work.outputs).values()
    refuse_changed(work, finished, listener)
    for done in finished:
        work.take(done)
    work.report.shards_resumed = work.report.shards_done


def make_tasks(work: Upload) -> list[UploadTask]:
    """Give the tasks that are left to do; entries of very many files go into a file of the job's folder."""
    listing, edges, by_run = work.found.listing, work.edges, isinstance(work.found.listing, RunListing)
    todo = [index for index in range(len(work.outputs)) if index not in work.finished]
    spans = {index: listing.span(edges[index], edges[index + 1]) for index in todo}
    lengths = {index: listing.lengths(work.order, first, last) for index, (first, last, _) in spans.items()}
    url, version, begins = "", None, dict[int, int]()
    if work.folder and sum(map(sum, lengths.values())) > _FEW_BYTES:
        url = work.job.state + LISTING
        version, begins = _write_listing(work, url, spans)
    tasks = []
    for index, (first, last, skip) in spans.items():
        samples, output, sizes = edges[index + 1] - edges[index], from_anywhere(work.outputs[index]), lengths[index]
        data = b"" if url else b"".join(listing.blocks(work.order, first, last))
        begin = begins.get(index, 0)
        task = UploadTask(index, output, work.job, samples, sizes.tobytes(), data, url, version, begin, by_run, skip)
        tasks.append(task)
    return tasks


def _write_listing(
    work: Upload, url: str, spans: Mapping[int, tuple[int, int, int]]
) -> tuple[str | None, dict[int, int]]:
    """Write the pieces of tasks to a file; give its version, and where each task's begin."""
    listing, begins = work.found.listing, dict[int, int]()
    with storage.open_write(url, owner=work.job.job) as stream:
        if work.order is None:  # as it is: tasks of small shards share pieces
            for block in listing.blocks(None, 0, len(listing.ends)):
                stream.write(block)
            begins = {index: listing.begin(first) for index, (first, _, _) in spans.items()}
        else:
            for index, (first, last, _) in spans.items():
                begins[index] = stream.bytes_written
                for block in listing.blocks(work.order, first, last):
                    stream.write(block)
    return stream.receipt.version or None, begins


def places_of(spec: UploadSpec) -> list[str]:
    """Give one source of each scheme: what decides where tasks can run."""
    return list({storage.scheme_of(source): source for source in spec.sources}.values())
