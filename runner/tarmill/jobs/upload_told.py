"""What an upload tells people of its plan, and of what it has left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarmill import storage
from tarmill.planning.counts import Counts
from tarmill.planning.upload_listing import Found
from tarmill.spec import UploadSpec

if TYPE_CHECKING:
    from tarmill.jobs.upload_plan import Upload


def counts_of(found: Found) -> Counts:
    """Give what was found and left out before any task runs, as counts that balance."""
    counts = Counts(read=sum(found.dropped.values()), renamed=found.renamed)
    counts.dropped += found.dropped
    counts.unread += found.unread
    counts.skipped_members += found.skipped
    return counts


def nothing_found(spec: UploadSpec, found: Found) -> str:
    """Say that there is nothing to pack, and why that may be."""
    left = ", ".join(
        f"{kind} {count}" for kind, count in sorted((found.skipped + found.dropped + found.unread).items())
    )
    hint = ""
    if any("://" in source and not source.endswith("/") for source in spec.sources):
        hint = "; the URL of a folder ends with a slash"
    elif found.skipped["no-extension"]:
        hint = "; names divide into key and field at a dot: choose another way with -k, such as dir_plus_file"
    sources = ", ".join(storage.mask(source) for source in spec.sources[:3])
    return f"there is no sample to pack in {sources}" + (f" (left out: {left})" if left else "") + hint


def bytes_left(work: Upload) -> int | None:
    """Give how much there is to read; None where nobody knows."""
    if work.found.listing.unknown or work.found.by_name:
        return None
    return max(0, work.found.listing.content_bytes - work.report.counts.read_bytes)


def describe(work: Upload) -> list[str]:
    """Tell the plan to people."""
    found, listing, report = work.found, work.found.listing, work.report
    size = "" if found.by_name and not listing.content_bytes else f", {listing.content_bytes / 1e6:,.1f} MB"
    if listing.unknown:
        size += f" and {listing.unknown:,} objects of unknown size"
    todo = report.shards_total - report.shards_done
    if work.is_complete:
        return [f"job {report.job}: {_shards(work)}, appended before, nothing to do"]
    lines = [
        f"job {report.job}: {len(listing):,} samples of {listing.files:,} fields{size}, into {_shards(work)}, "
        f"{report.shards_done:,} finished before, {todo:,} to do"
    ]
    if work.base is not None:
        lines[0] += f"; appended to {work.base.samples:,} samples in {len(work.base.shards):,} shards"
    for label, place in (("first", 0), ("last", len(listing) - 1)):
        if len(listing):
            key, _, parts = listing.entry(work.order[place] if work.order is not None else place)
            shard = work.outputs[0 if label == "first" else -1]
            lines.append(f"{label + ':':<7}{key} ({', '.join(part[0] for part in parts)}) -> {storage.mask(shard)}")
    if work.spec.shuffle:
        lines.append(f"seed:  {work.seed}" + ("" if work.spec.seed else ", derived from inputs and options"))
    told = {**found.skipped, **found.dropped, **found.unread}
    lines += [f"left out: {count:,} {kind}" for kind, count in sorted(told.items())]
    lines += [f"empty files, packed: {found.empty:,}"] if found.empty else []
    return lines + ([f"manifest: {storage.mask(work.manifest)}"] if work.manifest else [])


def _shards(work: Upload) -> str:
    count = work.report.shards_total
    return f"{count:,} shard{'' if count == 1 else 's'}"
