"""What a shuffle or sort decides before it begins: inputs pinned, options and scripts checked, a plan chosen."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tarmill import storage
from tarmill.engine.cores import usable_cores
from tarmill.engine.process_fork import has_one_thread
from tarmill.formats.shards import ShardPattern
from tarmill.jobs import resources
from tarmill.jobs.cut_outputs import check_output
from tarmill.jobs.drive import from_anywhere, settings_of, urls_of_this_process
from tarmill.jobs.inputs import find_shards, manifest_url, refuse_inputs
from tarmill.jobs.listener import Listener
from tarmill.jobs.manifests import (
    JobFolder,
)
from tarmill.jobs.output_index import plan_index
from tarmill.jobs.reorder_job import Reorder, runs_scripts
from tarmill.jobs.report import Report
from tarmill.jobs.scratch_files import MEMORY
from tarmill.planning.jobid import job_id
from tarmill.planning.reorder_plan import Facts, choose_plan
from tarmill.planning.span_tasks import InputShard, Job
from tarmill.spec import ReorderOptions, ReorderSpec, ShuffleSpec, SortSpec, kind_of
from tarmill.values import replace

_SHARE_OF_MEMORY = 2
"""Half of what is free is used when nothing is said."""


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
    check_output(spec, out)
    index = plan_index(spec.index, out, (out.with_count(2) if out.is_open else out).expand())
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
    facts = _facts(spec, options, inputs, where, spill, scratch)
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
            plan.maps,
            settings,
        ),
        folder,
        manifest_url(out),
        plan,
        listener,
        report,
        index,
    )
    told = ""
    if isinstance(spec, ShuffleSpec):
        told = f", seed {seed}" if spec.seed else f", seed {seed} derived from inputs and options"
    lines = [f"job {job}: {len(inputs)} input shards, {facts.input_bytes / 1e6:,.1f} MB, plan {plan.kind}{told}"]
    lines += [*plan.lines(), f"first input: {inputs[0].shard.label}", f"output: {storage.mask(spec.output)}"]
    lines += [f"index for {kind}" for kind in index.wanted] if index else []
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


def _facts(
    spec: ReorderSpec, options: ReorderOptions, inputs: Sequence[InputShard], where: str, spill: str, scratch: str
) -> Facts:
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
        memory_bytes=options.memory or free // _SHARE_OF_MEMORY,
        physical_bytes=total,
        scratch_bytes=min(options.scratch or disk, disk),
        workers=1 if streams else options.workers or usable_cores(),
        cluster=bool(options.scheduler),
        apart=_runs_apart(spec, options, [inputs[0].shard.url, where]),
        spills_here=storage.scheme_of(spill) == "file",
    )


def _runs_apart(spec: ReorderSpec, options: ReorderOptions, urls: Sequence[str]) -> bool:
    """Tell whether tasks run in worker processes of this machine, or may at little cost."""
    if options.scheduler or runs_scripts(spec) or urls_of_this_process(urls):
        return False
    return (options.workers or usable_cores()) > 1 or has_one_thread()  # one that begins as a copy of this process


def _looks_plain(url: str) -> bool:
    return url.partition("?")[0].endswith(".tar")
