"""htshuffle and htsort: all samples of the inputs in another order, cut into new shards, perhaps reduced on the way.

One engine for both: a shuffle is a sort by a keyed random function of each sample's place. The first pass finds where
samples lie and their keys, the last copies them; `reorder_local` and `external` are the ways in between.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress

from tarmill import storage
from tarmill.errors import (
    ChangedError,
    Interrupted,
    JobFailed,
    NoSpaceError,
    NotFoundError,
    SpecError,
    StorageError,
    TarmillError,
)
from tarmill.formats.codec_write import check_level
from tarmill.formats.compression import codec_for
from tarmill.formats.digest import MASK_128, to_hex
from tarmill.formats.shards import ShardPattern
from tarmill.jobs import resources
from tarmill.jobs.drive import from_anywhere, settings_of
from tarmill.jobs.error_limit import ErrorLimit
from tarmill.jobs.inputs import find_shards, manifest_url, name_in, refuse_inputs
from tarmill.jobs.listener import Listener
from tarmill.jobs.manifests import (
    JobFolder,
    in_parallel,
    is_of_another_job,
    publish,
    read_manifest,
    refuse_existing,
    withdraw,
)
from tarmill.jobs.report import Failure, Report
from tarmill.jobs.scratch_files import MEMORY, release_memory
from tarmill.planning.counts import Counts
from tarmill.planning.cuts import Cuts
from tarmill.planning.jobid import job_id
from tarmill.planning.reorder_plan import Facts, Plan, choose_plan
from tarmill.planning.span_tasks import InputShard, Job
from tarmill.planning.tasks import ShardDone
from tarmill.spec import ReorderOptions, ReorderSpec, RunOptions, ShuffleSpec, SortSpec, kind_of
from tarmill.storage.urls import local_path
from tarmill.values import field, replace, valueclass

_WINDOW_OF_MEMORY = 2


@valueclass(frozen=False)
class Reorder:
    """One job: all that is decided before it begins, and what is known as it goes on."""

    spec: ReorderSpec
    options: ReorderOptions
    kind: str
    inputs: list[InputShard]
    parts: int
    out: ShardPattern
    job: Job
    folder: JobFolder
    manifest: str
    plan: Plan
    listener: Listener
    report: Report
    is_ours: bool = False
    """Whether this very job was begun before, so that what is there already is its own."""
    outputs: list[str] = field(default_factory=list)
    """URLs of the output shards, once the cuts are known."""
    done: dict[int, ShardDone] = field(default_factory=dict)
    """Output shards that are finished, by number."""
    samples: int = 0
    """That are to be written, or reduced."""
    members: int = 0
    digest: int = 0
    proof: int = 0
    """Sum of the hashes of the ranges of all those samples."""
    scratch_files: set[str] = field(default_factory=set)
    """URLs of what the passes leave for each other."""
    stale: set[str] = field(default_factory=set)
    """Shards of a data set that this one overwrites."""

    @property
    def is_pinned(self) -> bool:
        """Whether all inputs have a version, so that the same job id means the same bytes."""
        return all(found.shard.version is not None for found in self.inputs)

    @property
    def fixed_count(self) -> int | None:
        """How many shards the output pattern has; None when its count is open."""
        return None if self.out.is_open else self.out.count

    @property
    def count_is_asked(self) -> bool:
        """Whether somebody said how many shards there are to be, so that some may be empty."""
        return self.fixed_count is not None or bool(self.spec.num_shards)

    def name_outputs(self, cuts: Cuts) -> None:
        """Name the output shards, and find those that an earlier run has finished.

        Raises:
            OutputExistsError: one is there already, and not of this job.
            SpecError: one is also an input.
        """
        count = len(cuts)
        self.outputs = [from_anywhere(url) for url in _named(self.out, count)]
        self.report.shards_total = count
        refuse_inputs([found.shard for found in self.inputs], self.outputs, self.spec.output)
        if self.spec.exists == "overwrite":
            return
        if self.spec.exists == "fail":
            refuse_existing(self.outputs, self.job.job)
        self.done = self.folder.finished(range(count), self.outputs) if self.is_ours else {}
        others = [url for number, url in enumerate(self.outputs) if number not in self.done]
        if not self.is_ours:
            refuse_existing(others, self.job.job)
        for found in self.done.values():
            self.take(found)
        self.report.shards_resumed = len(self.done)

    def take(self, found: ShardDone) -> None:
        """Take note of a finished output shard."""
        self.done[found.index] = found
        self.report.shards_done += 1
        self.report.counts.merge(found.counts)

    def fail(self, index: int, label: str, error: TarmillError) -> None:
        """Take note of a task that failed for good."""
        trace = error.facts.get("script_traceback", "")
        message = error.message
        if isinstance(error, NoSpaceError) and self.plan.scratch_bytes:
            message += f"; the job needs about {self.plan.scratch_bytes / 1e6:,.0f} MB of scratch space in all"
        self.report.failures.append(Failure(index, label, message, trace))
        self.listener.failed(label, error)

    def check_limit(self, counts: Counts, *, final: bool) -> bool:
        """Tell whether too many samples were left out because of errors."""
        limit = ErrorLimit.parse(self.spec.max_errors)
        if not limit.exceeded(counts, final=final):
            return False
        self.report.notes.append(limit.message(counts))
        self.report.failures.append(Failure(-1, "the whole job", self.report.notes[-1]))
        return True

    def sweep(self) -> None:
        """Remove what killed processes of this job left beside its files."""
        self.folder.sweep([*self.outputs, self.manifest])
        for place in {self.job.spill, self.job.scratch} - {"", MEMORY}:
            with suppress(NotFoundError):
                storage.sweep(place, self.job.job)


def run(spec: ReorderSpec, options: RunOptions | None = None, listener: Listener | None = None) -> Report:
    """Run a shuffle or sort to its end and report.

    Every finished output shard stays, and so does what the passes left for the next; run the same job again and it does
    what is missing.

    Raises:
        UsageError: it cannot be started as asked for.
        JobFailed: it could not be finished; `report` says why.
        Interrupted: someone asked to stop; temp files are gone, finished work stays.
    """
    started = time.monotonic()
    work = prepare(spec, _reorder_options(options), listener or Listener())
    report = work.report
    if options is not None and options.dry_run:
        report.plan_only = True
        return report
    if work.spec.exists == "resume" and work.is_pinned and _is_complete(work):
        _clear_after_kill(work)
        return report
    try:
        _begin(work)
        _do_passes(work)
        report.wall_s = time.monotonic() - started
        _finish(work)
    except Interrupted:
        report.interrupted = True
        raise
    finally:
        report.wall_s = time.monotonic() - started
        work.sweep()
        _release(work)
    if not report.succeeded:
        raise JobFailed(_verdict(report), report=report)
    return report


def _reorder_options(options: RunOptions | None) -> ReorderOptions:
    if isinstance(options, ReorderOptions):
        return options
    return ReorderOptions(**vars(options)) if options is not None else ReorderOptions()


def _do_passes(work: Reorder) -> None:
    if work.plan.kind == "external":
        from tarmill.jobs.external import reorder_externally

        reorder_externally(work)
    else:
        from tarmill.jobs.reorder_local import reorder_locally

        reorder_locally(work)


def prepare(spec: ReorderSpec, options: ReorderOptions, listener: Listener) -> Reorder:
    """Resolve patterns, pin inputs, check options and scripts, choose a plan and tell it.

    Raises:
        UsageError: it cannot be carried out as asked for, or the outputs belong to another job.
        StorageError: an input cannot be looked at.
    """
    settings = settings_of(options)
    if isinstance(spec, SortSpec):
        _check_sort(spec)
    if isinstance(spec, ShuffleSpec) and spec.seed == "random":
        import secrets

        spec = replace(spec, seed=str(secrets.randbits(63)))
    kind = kind_of(spec).name
    pattern, out = ShardPattern.parse(spec.input), ShardPattern.parse(spec.output)
    _check_output(spec, out)
    parts = pattern.parts
    shards = [(part, shard) for part, piece in enumerate(parts) for shard in find_shards(piece)]
    inputs = [
        InputShard(ordinal, part, replace(shard, url=from_anywhere(shard.url)))
        for ordinal, (part, shard) in enumerate(shards)
    ]
    if not out.is_open:
        refuse_inputs([found.shard for found in inputs], out.expand(), spec.output)
    job = job_id(kind, spec, [shard for _, shard in shards], [storage.mask(spec.output)])
    folder = JobFolder(out.folder, job)
    where = from_anywhere(folder.url)
    spill, scratch = _scratch_places(options, where, job)
    facts = _facts(spec, options, inputs, scratch)
    plan = choose_plan(options.plan, facts)
    if plan.kind == "memory":
        spill = scratch = MEMORY
    elif plan.kind == "local" and options.scheduler:
        scratch = spill  # what one worker copies another one reads
    seed = int(getattr(spec, "seed", "") or str(int(job, 16))) % (1 << 64)
    report = Report(kind, job, len(inputs), storage.mask(spec.output), storage.mask(manifest_url(out)))
    work = Reorder(
        spec,
        options,
        kind,
        inputs,
        len(parts),
        out,
        Job(
            job,
            spec,
            len(parts),
            where,
            spill,
            scratch,
            where.removesuffix(f"_tarmill/{job}/"),
            seed,
            settings,
        ),
        folder,
        manifest_url(out),
        plan,
        listener,
        report,
    )
    told = ""
    if isinstance(spec, ShuffleSpec):
        told = f", seed {seed}" if spec.seed else f", seed {seed} derived from inputs and options"
    lines = [f"job {job}: {len(inputs)} input shards, {facts.input_bytes / 1e6:,.1f} MB, plan {plan.kind}{told}"]
    lines += [*plan.lines(), f"first input: {inputs[0].shard.label}", f"output: {storage.mask(spec.output)}"]
    listener.plan(report, None, lines)
    return work


def _check_sort(spec: SortSpec) -> None:
    from tarmill.formats.sort_keys import parse_sort_keys
    from tarmill.jobs.reduce import check_scripts, check_spec

    parse_sort_keys(spec.keys)
    parse_sort_keys(spec.group_by)
    if spec.reduces:
        check_spec(spec)
    check_scripts(spec)


def _check_output(spec: ReorderSpec, out: ShardPattern) -> None:
    shown = storage.mask(spec.output)
    if spec.output == "-" or out.needs_listing or out.list_files:
        raise SpecError(
            f"output {shown!r} names no shards; write 'out-@.tar', or a count as in 'out-@0100.tar'",
            field="output",
            value=shown,
        )
    if not out.is_open:
        chosen = next((name for name in ("samples_per_shard", "shard_size") if getattr(spec, name)), "")
        if chosen or spec.num_shards not in (0, out.count):
            chosen = chosen or "num_shards"
            raise SpecError(
                f"output {shown!r} has {out.count} shards, and --{chosen.replace('_', '-')} decides about their number "
                "too; leave the count open, as in 'out-@.tar'",
                field="output",
                value=shown,
            )
    example = out.with_count(1).expand()[0] if out.is_open else out.format(0)
    check_level(codec_for(example), spec.level if spec.level >= 0 else None)
    if not out.is_open and len(set(names := out.expand())) < len(names):
        raise SpecError(
            f"output {shown!r} names one shard twice; expected another name for each", field="output", value=shown
        )


def _scratch_places(options: ReorderOptions, state: str, job: str) -> tuple[str, str]:
    """Choose where run files go, which all workers must reach, and where a worker keeps its own copies."""
    if options.scratch_dir:
        place = f"{os.path.abspath(options.scratch_dir)}/tarmill-{job}/"
        return (f"{state}spill/" if options.scheduler else place), place
    if storage.scheme_of(state) == "file":
        return f"{state}spill/", f"{state}spill/"
    import tempfile

    local = f"{tempfile.gettempdir()}/tarmill-{job}/"
    return (f"{state}spill/" if options.scheduler else local), local


def _facts(spec: ReorderSpec, options: ReorderOptions, inputs: Sequence[InputShard], scratch: str) -> Facts:
    free, total = resources.memory_bytes()
    sizes = [found.shard.size_bytes for found in inputs]
    plain = all(_looks_plain(found.shard.url) for found in inputs)
    streams = any(found.shard.url == "-" for found in inputs)
    local = plain and all(storage.scheme_of(found.shard.url) == "file" for found in inputs)
    disk = resources.free_bytes(scratch)
    return Facts(
        input_bytes=sum(size or 0 for size in sizes),
        plain=plain,
        local=local,
        streams=streams,
        sample_bytes=resources.sample_bytes(inputs[0].shard) if local else 4096,
        sorts=isinstance(spec, SortSpec),
        memory_bytes=options.memory or free // _WINDOW_OF_MEMORY,
        physical_bytes=total,
        scratch_bytes=min(options.scratch or disk, disk),
        workers=1 if streams else options.workers or len(os.sched_getaffinity(0)),
        cluster=bool(options.scheduler),
    )


def _looks_plain(url: str) -> bool:
    return url.partition("?")[0].endswith(".tar")


def _is_complete(work: Reorder) -> bool:
    """Take over the result of the same job, if it was finished before and everything is still there."""
    try:
        found = read_manifest(work.manifest)
        if found["job"] != work.job.job:
            return False
        count = len(found["shards"])
        work.outputs = [from_anywhere(url) for url in _named(work.out, count)]
        if len(work.folder.finished(range(count), work.outputs)) < count:
            return False
        work.report.counts = Counts.from_dict(found["counts"])
        work.report.digest = found["digest"]
    except (TarmillError, KeyError, TypeError):
        return False  # there is none, or it is no use: the job itself will tell
    work.report.shards_total = work.report.shards_done = work.report.shards_resumed = count
    return True


def _named(out: ShardPattern, count: int) -> list[str]:
    return (out.with_count(count) if out.is_open else out).expand() if count else []


def _begin(work: Reorder) -> None:
    """Refuse what belongs to others, and note that this job may write from now on."""
    spec, job = work.spec, work.job.job
    if spec.exists != "overwrite":
        is_of_another_job(work.manifest, job, ())
    pointer = _pointer(work)
    other = _unfinished_other(work, pointer)
    if other and spec.exists != "overwrite":
        raise ChangedError(
            f"inputs have changed since job {other} began to write {storage.mask(spec.output)!r}: they have other "
            f"sizes or versions; put them back, give that job up by `tarmill clean "
            f"{work.folder.url.replace(job, other)}`, or allow it with --exists overwrite",
            job=other,
        )
    # what a stream held the last time nobody knows, so that nothing can be resumed
    work.is_ours = work.is_pinned and work.folder.has_begun()
    if not work.out.is_open and (spec.exists == "fail" or (spec.exists == "resume" and not work.is_ours)):
        refuse_existing(work.out.expand(), job)
    work.sweep()
    if spec.exists == "overwrite":
        work.stale = _shards_before(work.manifest)
    withdraw(work.manifest)
    places = sorted({work.job.spill, work.job.scratch} - {MEMORY})
    name = pointer.rpartition("/")[2]
    masked = [storage.mask(place) for place in places]
    facts = {"kind": work.kind, "output": storage.mask(spec.output), "scratch": masked, "pointer": name}
    work.folder.begin(facts)
    storage.write_bytes(pointer, job.encode(), owner=job)


def _shards_before(manifest: str) -> set[str]:
    """Name the shards of the data set that is overwritten; only plain names, whatever a manifest says."""
    try:
        names = {shard["name"] for shard in read_manifest(manifest)["shards"]}
    except (TarmillError, KeyError, TypeError):
        return set()
    return {name for name in names if isinstance(name, str) and "/" not in name and name.strip(".")}


def _pointer(work: Reorder) -> str:
    """Name the file that tells which unfinished job has these inputs, in whatever version, and these options."""
    bare = [replace(found.shard, size_bytes=None, version=None) for found in work.inputs]
    base = job_id(work.kind, work.spec, bare, [storage.mask(work.spec.output)])
    return f"{work.folder.url.removesuffix(work.job.job + '/')}unfinished-{base}"


def _unfinished_other(work: Reorder, pointer: str) -> str:
    try:
        other = storage.read_bytes(pointer).decode("ascii", "replace").strip()
    except NotFoundError:
        return ""
    if other == work.job.job or not JobFolder(work.out.folder, other).has_begun():
        return ""
    return other


def _finish(work: Reorder) -> None:
    """Prove that what was written is what was read, publish the manifest, and remove scratch files."""
    report = work.report
    counts = report.counts
    if not report.failures:
        work.check_limit(counts, final=True)
    if report.failures or report.shards_done != report.shards_total:
        return
    done = [work.done[number] for number in range(report.shards_total)]
    proof = sum(int(found.proof, 16) for found in done) & MASK_128
    if counts.missing or proof != work.proof & MASK_128:
        report.failures.append(
            Failure(
                -1,
                "the whole job",
                f"the proof does not hold: {work.samples:,} samples with the hash {to_hex(work.proof)} were found, and "
                f"{to_hex(proof)} was written ({counts.missing} samples are unaccounted for); an input was changed in "
                "place, or this is a fault in tarmill: run it again with --exists overwrite, and report it if it stays",
            )
        )
        return
    if isinstance(work.spec, SortSpec) and work.spec.reduces and not work.spec.cuts_exactly:
        work.digest = sum(int(found.output.digest or "0", 16) for found in done if found.output)
        work.members = sum(found.output.members for found in done if found.output)
    else:
        work.digest += sum(int(found.change or "0", 16) for found in done)
    report.digest = to_hex(work.digest)
    spec = work.spec
    facts = {"keys": list(spec.keys or ("__key__",))} if isinstance(spec, SortSpec) else {"seed": work.job.seed}
    publish(
        work.manifest,
        work.kind,
        work.job.job,
        done,
        work.outputs,
        counts,
        digest=report.digest,
        members=work.members,
        facts=facts,
    )
    ours = {name_in(work.out.folder, url) for url in _named(work.out, len(work.outputs))}
    for name in sorted(work.stale - ours):
        storage.delete(work.out.folder + name)
        work.listener.note(f"removed {work.out.folder}{name}, which was a shard of the data set that was overwritten")
    clear_scratch(work)
    storage.delete(_pointer(work))


def clear_scratch(work: Reorder) -> None:
    """Remove what the passes of a finished job left for each other, by name, and all of a folder where that is local.

    Failing to is told and no failure of the job: its outputs are complete.
    """
    try:
        in_parallel(storage.delete, sorted(work.scratch_files))
        for place in {work.job.spill, work.job.scratch} - {MEMORY}:
            if storage.scheme_of(place) == "file":
                import shutil

                shutil.rmtree(local_path(place), ignore_errors=True)
    except StorageError as error:
        work.listener.note(f"scratch files of the job stay in {storage.mask(work.job.spill)}: {error.message}")


def _clear_after_kill(work: Reorder) -> None:
    """Remove what a job left that was killed between its manifest and its end."""
    if not _exists(_pointer(work)):
        return
    for name in ("scan-", "batch-", "places"):
        with suppress(StorageError):  # where nothing can be listed, `tarmill clean` says what to do
            work.scratch_files.update(found.url for found in storage.list_urls(work.job.state + name))
    clear_scratch(work)
    storage.delete(_pointer(work))


def _exists(url: str) -> bool:
    try:
        storage.stat(url)
    except NotFoundError:
        return False
    return True


def _release(work: Reorder) -> None:
    release_memory()


def _verdict(report: Report) -> str:
    if report.counts.missing and not report.failures:
        return f"{report.counts.missing} samples are unaccounted for: this is a fault in tarmill, please report it"
    first = report.failures[0].message if report.failures else "not all shards were done"
    more = f" ({len(report.failures)} failures in all)" if len(report.failures) > 1 else ""
    return first + more
