"""htshuffle and htsort: all samples of the inputs in another order, cut into new shards, perhaps reduced on the way.

One engine for both: a shuffle is a sort by a keyed random function of each sample's place. The first pass finds where
samples lie and their keys, the last copies them; `reorder_local` and `external` are the ways in between.
"""

from __future__ import annotations

import time
from typing import Any

from tarmill import storage
from tarmill.errors import (
    Interrupted,
    JobFailed,
)
from tarmill.formats.digest import MASK_128, to_hex
from tarmill.jobs.cut_outputs import named
from tarmill.jobs.inputs import name_in
from tarmill.jobs.listener import Listener
from tarmill.jobs.manifests import amend, publish
from tarmill.jobs.mapped_files import kept
from tarmill.jobs.output_index import index_outputs, plan_index, recorded_index
from tarmill.jobs.reorder_job import Reorder
from tarmill.jobs.reorder_prepare import prepare
from tarmill.jobs.reorder_state import begin, clear_after_kill, clear_scratch, is_complete, pointer_of
from tarmill.jobs.report import Failure, Report
from tarmill.jobs.scratch_files import release_memory
from tarmill.spec import ReorderOptions, ReorderSpec, RunOptions, SortSpec


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
    is_done = work.spec.exists == "resume" and work.is_pinned and is_complete(work)
    if is_done:
        clear_after_kill(work)
        if work.index is None:
            return report
    try:
        if is_done:
            _add_index(work)
        else:
            begin(work)
            _do_passes(work)
            report.wall_s = time.monotonic() - started
            _finish(work)
    except Interrupted:
        report.interrupted = True
        raise
    finally:
        report.wall_s = time.monotonic() - started
        work.sweep()
        release_memory()
        kept.release()
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
    if not _index(work):
        return
    spec = work.spec
    facts: dict[str, Any] = {"index": sorted(set(spec.index))} if spec.index else {}
    if isinstance(spec, SortSpec):
        facts["keys"] = list(spec.keys or ("__key__",))
    else:
        facts["seed"] = work.job.seed
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
    ours = {name_in(work.out.folder, url) for url in named(work.out, len(work.outputs))}
    for name in sorted(work.stale - ours):
        storage.delete(work.out.folder + name)
        work.listener.note(f"removed {work.out.folder}{name}, which was a shard of the data set that was overwritten")
    clear_scratch(work)
    storage.delete(pointer_of(work))


def _index(work: Reorder) -> bool:
    """Write the files for other readers; False when that failed."""
    done = [work.done[number] for number in range(len(work.outputs))]
    places = plan_index(work.spec.index, work.out, named(work.out, len(done)))
    if places:
        recount = work.spec.key_function != "base_plus_ext"
        index_outputs(places, done, work.folder, work.options, work.listener, work.report, recount=recount)
    return not work.report.failures


def _add_index(work: Reorder) -> None:
    """Write the files for other readers beside the outputs of a job that an earlier run has finished."""
    before = recorded_index(work.manifest, work.job.job)
    if _index(work) and not set(work.spec.index).issubset(before):
        amend(work.manifest, {"index": sorted({*before, *work.spec.index})}, work.job.job)


def _verdict(report: Report) -> str:
    if report.counts.missing and not report.failures:
        return f"{report.counts.missing} samples are unaccounted for: this is a fault in tarmill, please report it"
    first = report.failures[0].message if report.failures else "not all shards were done"
    more = f" ({len(report.failures)} failures in all)" if len(report.failures) > 1 else ""
    return first + more
