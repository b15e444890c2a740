"""How a shuffle or sort moves its samples: chosen by sizes, free memory and free disk; pure."""

from __future__ import annotations

from tarmill.errors import NoSpaceError, SpecError
from tarmill.values import valueclass

INDEX_BYTES = 40
"""Memory for each sample whose place is held at once, with its order; sort keys come on top."""
KEY_BYTES = 32
_SMALL_SAMPLE = 256 << 10
_PLAIN_GAIN = 8
"""What compressed inputs are taken to grow by, when nothing better is known."""


@valueclass
class Facts:
    """What is known before anything is read."""

    input_bytes: int
    """As the inputs lie in their store."""
    plain: bool
    """Whether none of them is compressed."""
    local: bool
    """Whether all of them are plain local files, from which samples can be copied in any order."""
    streams: bool
    """Whether one of them is standard input, whose size nobody knows."""
    sample_bytes: int
    """Size of a sample, estimated from a look at the first."""
    sorts: bool
    memory_bytes: int
    """That may be used, by all processes together."""
    physical_bytes: int
    """Memory of the machine: what lies in files beyond that is read from the disk again."""
    scratch_bytes: int
    """Free for scratch files."""
    workers: int
    cluster: bool
    """Whether workers run elsewhere (`-c`)."""
    apart: bool = False
    """Whether tasks run in processes of this machine that may end by a fault: a page of a mapped file may be gone."""
    spills_here: bool = True
    """Whether run files go to a file system, and not to a store, of which nobody knows how much is free."""

    @property
    def plain_bytes(self) -> int:
        """Estimate of the samples' size, not compressed."""
        return self.input_bytes if self.plain else self.input_bytes * _PLAIN_GAIN

    @property
    def samples(self) -> int:
        """Estimate of their number."""
        return self.plain_bytes // max(self.sample_bytes, 1024)


@valueclass
class Plan:
    """How the samples are moved, and what that takes."""

    kind: str
    """local, memory or external."""
    why: str
    reads_bytes: int
    writes_bytes: int
    scratch_bytes: int
    memory_bytes: int
    batch_bytes: int = 0
    """External: what a task of the first pass holds in scratch at once."""
    bucket_bytes: int = 0
    """External: what a task of the second pass orders at once."""
    maps: bool = False
    """Whether there is room for mapped files: the inputs of the local plan, the batch of the external one."""

    def lines(self) -> list[str]:
        """Tell it to people."""
        return [
            f"plan {self.kind}: {self.why}",
            f"reads {_mb(self.reads_bytes)}, writes {_mb(self.writes_bytes)}, scratch {_mb(self.scratch_bytes)}, "
            f"memory {_mb(self.memory_bytes)} in all",
        ]


def choose_plan(asked: str, facts: Facts) -> Plan:
    """Choose a plan, or make the one that is asked for.

    Args:
        asked: "auto", "local", "memory" or "external".
        facts: sizes and limits.

    Raises:
        SpecError: the plan that is asked for cannot be.
        NoSpaceError: there is not enough scratch space, as far as that is known now.
    """
    kind, why = (asked, "asked for") if asked != "auto" else _choice(facts)
    if kind == "local" and not facts.local:
        raise SpecError(
            "plan is 'local', but not all inputs are plain .tar files on this machine; leave --plan away, or choose "
            "memory or external",
            field="plan",
            value=kind,
        )
    if kind == "memory" and facts.cluster:
        raise SpecError(
            "plan is 'memory', but with -c the work is done elsewhere; choose local or external",
            field="plan",
            value=kind,
        )
    size = facts.plain_bytes
    index = facts.samples * (INDEX_BYTES + (KEY_BYTES if facts.sorts else 8))
    if kind == "local":
        maps = facts.apart and facts.input_bytes <= facts.memory_bytes // 2
        return Plan(kind, why, 2 * facts.input_bytes, size, 0, index, maps=maps)
    if kind == "memory":
        return Plan(kind, why, facts.input_bytes, size, 0, size + index)
    return _external(facts, why, size)


def _choice(facts: Facts) -> tuple[str, str]:
    index = facts.samples * (INDEX_BYTES + (KEY_BYTES if facts.sorts else 8))
    size = facts.plain_bytes
    if facts.local:
        if index > facts.memory_bytes // 2:
            return "external", f"an index of about {facts.samples:,} samples does not fit the memory"
        if size > facts.physical_bytes * 0.8 and facts.sample_bytes < _SMALL_SAMPLE:
            return "external", "small samples in more bytes than there is memory would be read one by one from the disk"
        return "local", "the inputs are plain local files: samples are copied from them in their new order"
    if not facts.cluster and not facts.streams and size + index <= facts.memory_bytes:
        return "memory", "the inputs fit into memory: read once, written once"
    return "external", "inputs that are compressed or remote, and more than memory holds, go through scratch files"


def _external(facts: Facts, why: str, size: int) -> Plan:
    memory = max(64 << 20, facts.memory_bytes // max(1, facts.workers))
    copies = 0 if facts.local else 1
    # what a batch takes beside its samples is little; its pages in the kernel's cache, read and written, come on top
    batch = max(16 << 20, min(1 << 30, memory // 2, facts.scratch_bytes // (3 * max(1, facts.workers))))
    needed = size + copies * min(batch, size) * facts.workers
    if needed > facts.scratch_bytes and facts.plain and not facts.streams and facts.spills_here:
        raise NoSpaceError(
            f"this needs {_mb(needed)} of scratch space and there are {_mb(facts.scratch_bytes)}; give more by "
            "--scratch, choose another place by --scratch-dir, or free some",
            needed_bytes=needed,
            free_bytes=facts.scratch_bytes,
        )
    return Plan("external", why, 2 * size, 2 * size, needed, memory * facts.workers, batch, batch, facts.apart)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size:,} bytes"
