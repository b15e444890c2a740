"""Samples out of a shard: one hot loop for plain members, with the complete `MemberReader` behind it.

What is plain is decided by comparing the fixed part of a header (type flag to its end) with those understood before:
regular files of ustar, GNU or v7 headers without a prefix, and pax headers that hold nothing but an mtime, as
webdataset's writer puts before every member. Everything else, and everything that looks wrong, goes through
`tar_members`, which either reads it or says what is the matter. Each header's checksum is verified on both paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from isal.isal_zlib import adler32

from tarmill.errors import FormatError, LimitError, SampleError
from tarmill.formats.keys import key_function
from tarmill.formats.samples import OnError, ReadOptions, Record, Tally
from tarmill.formats.tar_header import BLOCK, ZERO_BLOCK, parse_header
from tarmill.formats.tar_learned import (
    FILE,
    MAX_CACHED,
    MAX_NAMES,
    MAX_TAILS,
    NOTHING,
    OTHER,
    PARTS,
    PAX,
    Expected,
    Sizes,
    known_names,
    known_sizes,
    known_tails,
)
from tarmill.formats.tar_members import END_MARK, Member, MemberReader
from tarmill.formats.tar_window import RawInput, Window

Place = tuple[int, int, str]
"""Where a field lies in the decompressed stream: offset of its data, bytes stored there, kind of its member."""

NO_STEM = b"\0"  # a name never begins with NUL, so no member continues this stem
_NAMES_OF_OURS = ("__key__", "__url__", "key")


def iter_samples(
    raw: RawInput,
    shard: str,
    options: ReadOptions | None = None,
    tally: Tally | None = None,
    reopen: Callable[[], RawInput] | None = None,
) -> Iterator[Record]:
    """Read the samples of one (decompressed) shard in order, in one pass and bounded memory.

    Args:
        raw: the stream; consumed, not closed. Passed over by seeks where contents are not wanted and it can seek.
        shard: goes into each record as `__url__` and into errors.
        options: what to load, which key function, what to do about bad samples.
        tally: counts, complete when the iterator ends or raises.
        reopen: gives the shard's stream from its start once more; only hard links need it.

    Raises:
        FormatError: under `on_error="fail"`, at the first thing that is wrong with the shard.
    """
    return SampleReader(raw, shard, options or ReadOptions(), tally or Tally(), reopen).run()


def iter_places(
    raw: RawInput,
    shard: str,
    gaps: list[tuple[int, int]],
    key_function: str = "base_plus_ext",
    tally: Tally | None = None,
) -> Iterator[Record]:
    """Find the samples of a shard and where their fields lie, without reading contents (see module `index`).

    Args:
        raw, shard, tally: as for `iter_samples`; anything that is wrong with the shard is an error.
        gaps: takes (start, end) of what belongs to no sample, before the sample behind it comes: members that are
            passed over, pax headers for all members, end marks. The end mark of the shard is the last.
        key_function: as in `ReadOptions`.

    Yields:
        Records with a `Place` for each field: offset of its data, bytes stored there, kind. The kind is that of the
        member, or "pax-global" where it depends on a pax header for all members.
    """
    options = ReadOptions(key_function, frozenset(), sizes=True)
    reader = SampleReader(raw, shard, options, tally or Tally(), None)
    reader.gaps = reader.members.gaps = gaps
    return reader.run()


def iter_members(
    raw: RawInput,
    shard: str,
    options: ReadOptions | None = None,
    reopen: Callable[[], RawInput] | None = None,
) -> Iterator[tuple[Member, bytes | None]]:
    """List every member of a shard in order, of any kind, with its contents where it has some (complete slow path).

    Raises:
        FormatError: at the first thing that is wrong.
    """
    members = MemberReader(Window(raw), shard, (options or ReadOptions()).max_member_bytes, reopen)
    while (member := members.next()) is not None:
        if member.kind in ("file", "sparse", "hardlink"):
            yield member, members.read_data(member)
        elif member.kind != END_MARK:
            members.skip_data(member)
            yield member, None


def _split_dotted(name: bytes) -> tuple[bytes, bytes]:
    """Split a name whose folders have dots as the key function `base_plus_ext` does."""
    slash = name.rfind(b"/") + 1
    stem, _, field = name[slash:].partition(b".")
    return name[:slash] + stem, field


class SampleReader:
    """State of one pass over a shard: `run` is the hot loop, the other methods are what it does seldom."""

    def __init__(
        self, raw: RawInput, shard: str, options: ReadOptions, tally: Tally, reopen: Callable[[], RawInput] | None
    ) -> None:
        self.shard = shard
        self.options = options
        self.tally = tally
        self.window = Window(raw, sparse_reading=options.load is not None)
        self.members = MemberReader(self.window, shard, options.max_member_bytes, reopen)
        self.split = key_function(options.key_function)
        self.policy = OnError(options.on_error)
        self.fast = options.fast and options.key_function == "base_plus_ext"
        self.tails = known_tails if self.fast else {}
        self.wanted: dict[bytes, str]
        """What stands behind the key's dot in a name field, NUL padding included -> the field, where it is loaded."""
        self.unwanted: dict[bytes, str]
        """The same for fields that are passed over."""
        self.wanted, self.unwanted = self._known_fields()
        self.seen: dict[int, str] = {}
        """Hash of each key so far -> its first field: tells doubled keys from interleaved samples."""
        self.again: str | None = None
        """First field of an earlier sample with the key of the one in progress."""
        self.fault: FormatError | None = None
        """What is wrong with the sample in progress."""
        self.passed: set[str] = set()
        """Fields of the sample in progress that are not in its record."""
        self.at = 0
        """Offset that errors about the sample in progress tell."""
        self.stopped = False
        self.record: Record | None = None
        """The sample in progress, while no loop runs."""
        self.key = ""
        self.stem = NO_STEM
        self.begun = -1
        """Where the pax header begins that a hot loop has passed last."""
        self.paused = False
        """Whether `run` has left at a place where another loop goes on."""
        self.gaps: list[tuple[int, int]] | None = None
        """What lies between samples, where the places of fields are asked for and not their sizes."""

    def run(self, brief: bool = False) -> Iterator[Record]:
        """Yield the samples; counts are in the tally when the loop leaves, however it leaves.

        Args:
            brief: leave behind the first member after which the sample in progress is plainly good, so that a loop that
                only knows such samples can go on; `paused` tells that this was the case.
        """
        tally, window, shard, sizes = self.tally, self.window, self.shard, self.options.sizes
        buffer, parts_of = window.buffer, PARTS.unpack_from
        gaps, tails, wanted, unwanted, seen = self.gaps, self.tails, self.wanted, self.unwanted, self.seen
        passed = self.passed
        size_of = self.plain_sizes()
        tail, expected = b"-", Expected(b"")
        record, key, stem, begun = self.record, self.key, self.stem, self.begun
        stem_length, pos, have = len(stem), window.pos, window.have
        body: bytes | int | Place | None
        odd = False  # whether the sample in progress needs a second look
        members = samples = 0
        self.paused = False
        try:
            while True:
                field: str | None = None
                if have - pos >= BLOCK:
                    front, checksum, mark = parts_of(buffer, pos)
                else:
                    window.pos = pos
                    complete = window.ensure(BLOCK)
                    pos, have = window.pos, window.have
                    front, checksum, mark = parts_of(buffer, pos) if complete else NOTHING
                if mark != tail and mark:
                    kind, sums = tails.get(mark) or self.learn(buffer[pos : pos + BLOCK])
                    if kind == FILE:
                        tail, expected = mark, sums
                    elif kind == PAX and self.is_trivial_pax(pos, sums):
                        begun = window.base + pos
                        pos += 2 * BLOCK
                        continue
                    else:
                        front = b""
                try:
                    if adler32(front) & 0xFFFF == expected[checksum]:
                        size = size_of[front[124:136]]
                        after = pos + ((size + 1023) & ~511)
                        if front[:stem_length] == stem:
                            fresh = False
                            field = wanted.get(name := front[stem_length:100])
                        else:
                            fresh = True
                            # the first dot of the last part; 0, 47 and 95 are NUL, "/" and "_"
                            head, _, name = front[:100].partition(b".")
                            field = wanted.get(name)
                            if field is None and 47 in name:  # in no name that was learned
                                head, name = _split_dotted(front[:100])
                                field = wanted.get(name)
                            if 0 in head or not head or head[-1] == 47 or (head[0] == 95 and head[:2] == b"__"):
                                raise ValueError("for the key function to decide")
                            new_key = head.decode()
                            new_stem = head + b"."
                            if odd:
                                self.at = window.base + pos + BLOCK
                        if field is not None:
                            if after > have:
                                body = window.direct(pos + BLOCK, size, after)
                                if body is None:
                                    window.pos = pos
                                    complete = window.ensure(after - pos)
                                    pos, have = window.pos, window.have
                                    if complete:
                                        continue
                                    field = None
                                else:
                                    pos = have = 0
                            elif fresh:
                                body = buffer[pos + BLOCK : pos + BLOCK + size]
                                pos = after
                            elif field not in record:  # type: ignore[operator]  # a stem is only set with a record
                                record[field] = buffer[pos + BLOCK : pos + BLOCK + size]  # type: ignore[index]
                                pos = after
                                members += 1
                                continue
                            else:
                                field = None
                        elif (field := unwanted.get(name)) is not None:
                            body = None
                            if sizes:
                                body = size if gaps is None else (window.base + pos + BLOCK, size, "file")
                            if after <= have:
                                pos = after
                            elif window.jump(after):
                                pos, have = 0, window.have
                            else:
                                window.pos = pos + BLOCK
                                self.members.skip_data(self.plain_member(front, size, window.base + pos, begun))
                                pos, have = window.pos, window.have
                except ValueError:
                    field = None
                if field is None:
                    window.pos = pos
                    block_name = window.peek(100)
                    # a pax header that the hot loop has passed belongs to the member, wherever that is told
                    member = self.members.next(begun if begun + 2 * BLOCK == window.offset else None)
                    self.at = window.offset
                    if member is None or member.kind == END_MARK:
                        if record is not None:
                            good = not odd or self._settle(record)
                            samples += 1
                            if good:
                                yield record
                            record, stem, stem_length = None, NO_STEM, 1
                            self.fault, odd = None, self.stopped
                        if member is None or (member := self.members.next()) is None:
                            return
                        block_name = b""
                    if self.members.global_pax:
                        tails = self.tails = {}
                        tail = b"-"
                    pair = self._split(member)
                    if pair is None:
                        pos, have = window.pos, window.have
                        if brief and not odd:
                            break
                        continue
                    new_key, field = pair
                    fresh = record is None or new_key != key
                    if fresh and record is not None:  # before the new sample may raise: what is complete is handed on
                        good = not odd or self._settle(record)
                        samples += 1
                        if good:
                            yield record
                        record = None
                    new_stem = self._remember(block_name, member, new_key, field)
                    if fresh:
                        self.fault, odd = None, self.stopped
                    body, fine = self._read(member, new_key, field)
                    odd = odd or not fine
                    pos, have = window.pos, window.have
                members += 1
                if fresh:
                    if record is not None:
                        samples += 1
                        if not odd:
                            yield record
                        else:
                            if self._settle(record):
                                yield record
                            self.fault, odd = None, self.stopped
                    key, stem, stem_length = new_key, new_stem, len(new_stem)
                    name_hash = hash(key if stem is NO_STEM else stem)
                    if name_hash in seen:
                        odd, self.again = True, seen[name_hash]
                    else:
                        seen[name_hash] = field
                    record = {"__key__": key, "__url__": shard, "key": key}
                    if passed:
                        passed.clear()
                elif field in passed or (field in record and record[field] is not key):  # type: ignore[operator,index]
                    odd = True
                    window.pos = pos
                    self._doubled(key, field)
                if body is not None:
                    record[field] = body  # type: ignore[index]
                else:
                    passed.add(field)
                if brief and not odd:
                    break
            self.record, self.key, self.stem, self.begun = record, key, stem, begun
            window.pos = pos
            self.paused = True
        except FormatError as error:
            if self.policy is OnError.FAIL:
                raise
            tally.lose_rest(shard, error)
            if record is not None:
                self.fault, self.at = self.fault or error, window.offset
                good = self._settle(record)
                samples += 1
                if good:
                    yield record
        finally:
            if not self.paused:
                window.close()
            tally.members += members
            tally.samples += samples

    def plain_sizes(self) -> dict[bytes, int]:
        """Give the sizes, by size field, of members that a hot loop may take."""
        limit = min(self.options.max_member_bytes, self.window.size // 2)
        return known_sizes.setdefault(limit, Sizes(limit))

    def plain_member(self, front: bytes, size: int, at: int, begun: int) -> Member:
        """Describe a member that a hot loop has found, as the slow path does.

        Args:
            front: the beginning of its header.
            size: of its contents.
            at: offset of its header.
            begun: offset of the pax header that was passed last.
        """
        start = begun if begun + 2 * BLOCK == at else at
        return Member(front[:100].partition(b"\0")[0], "file", size, size, start)

    def learn(self, block: bytes) -> tuple[int, Expected]:
        """Find out what the fixed part of this header stands for, and remember it."""
        tail = block[156:]
        kind = OTHER
        if self.members.global_pax:
            return kind, Expected(tail)
        if self.fast and block != ZERO_BLOCK:
            try:
                header = parse_header(block)
            except ValueError:
                return kind, Expected(tail)  # the slow path will say what is the matter
            if header.kind == "pax":
                kind = PAX
            elif header.kind == "file" and header.name == block[:100].partition(b"\0")[0]:
                kind = FILE
        known = kind, Expected(tail)
        if kind != OTHER:  # what these stand for is the same in every shard
            if len(self.tails) > MAX_TAILS:
                self.tails.clear()
            self.tails[tail] = known
        return known

    def is_trivial_pax(self, pos: int, expected: Expected) -> bool:
        """Tell whether the header at `pos` is a pax header with one record, the mtime, and wholly in the window."""
        buffer = self.window.buffer
        try:
            size = int(buffer[pos + 124 : pos + 135], 8)
            good = adler32(buffer[pos : pos + 148]) & 0xFFFF == expected[buffer[pos + 148 : pos + 156]]
        except ValueError:
            return False
        start = pos + BLOCK
        return (
            good
            and start + 2 * BLOCK <= self.window.have
            and buffer[start + BLOCK] != 0
            and 10 <= size < BLOCK
            and buffer[start : start + size].startswith(b"%d mtime=" % size)
            and buffer[start + size - 1] == 10
            and not self.members.global_pax
        )

    def _split(self, member: Member) -> tuple[str, str] | None:
        """Find key and field of a member that the slow path found; None, and passed over, when it is in no sample."""
        readable = member.kind in ("file", "sparse", "hardlink")
        if readable and (pair := self.split(member.text)) is not None:
            return pair
        self.tally.skipped["no-extension" if readable else member.kind] += 1
        self.members.skip_data(member)
        if self.gaps is not None:
            self.gaps.append((member.offset, self.window.offset))
        return None

    def _read(self, member: Member, key: str, field: str) -> tuple[bytes | int | Place | None, bool]:
        """Read what is wanted of a member, and tell whether nothing was wrong with it."""
        try:
            if field.startswith("__"):
                self.members.skip_data(member)
                self._fault(key, f"the field name {field!r} begins with '__', which is reserved", "reserved-field")
                return None, False
            if self.options.load is None or field in self.options.load:
                return self.members.read_data(member), True
        except (LimitError, SampleError) as error:
            if self.policy is OnError.FAIL:
                raise
            self.fault = self.fault or error
            return None, False
        if self.gaps is not None:
            place = self._place(member, self.gaps)
            self.members.skip_data(member)
            return place, True
        if self.options.sizes and member.kind == "hardlink":
            return len(self.members.read_data(member)), True
        self.members.skip_data(member)
        return member.size_bytes if self.options.sizes else None, True

    def _place(self, member: Member, gaps: list[tuple[int, int]]) -> Place:
        """Tell where the data of a member is; the window stands at it."""
        dependent = self.members.global_pax or (gaps and gaps[-1][0] > member.offset)
        return self.window.offset, member.stored_bytes, "pax-global" if dependent else member.kind

    def _known_fields(self) -> tuple[dict[bytes, str], dict[bytes, str]]:
        """Divide the names that other shards taught into those of fields that are loaded, and others."""
        wanted: dict[bytes, str] = {}
        unwanted: dict[bytes, str] = {}
        load = self.options.load
        if self.fast:
            for name, field in list(known_names.items()):
                (wanted if load is None or field in load else unwanted)[name] = field
        return wanted, unwanted

    def _remember(self, block_name: bytes, member: Member, key: str, field: str) -> bytes:
        """Let the hot loop know the field, where its name stands plainly in the header; give the stem of the key."""
        if not self.fast:
            return NO_STEM
        stem = key.encode("utf-8", "surrogateescape") + b"."
        name = block_name[len(stem) :]
        plain = block_name.partition(b"\0")[0] == member.name and name and 47 not in name
        if plain and field != "key" and not field.startswith("__"):
            names = self.wanted if self.options.load is None or field in self.options.load else self.unwanted
            if len(names) > MAX_CACHED:
                names.clear()
            names[name] = field
            if len(known_names) < MAX_NAMES:
                known_names[name] = field
        return stem

    def _doubled(self, key: str, field: str) -> None:
        self.at = self.window.offset
        self._fault(key, f"field {field!r} comes twice; expected each field once in a sample", "duplicate-field")

    def _fault(self, key: str, fact: str, reason: str) -> None:
        """Note what is wrong with the sample in progress, or raise it at once where that is the policy."""
        error = SampleError(
            f"{self.shard}, before byte {self.at}, sample {key!r}: {fact}; write the shard again, or choose "
            "what to do with --on-error skip, stop or ignore",
            shard=self.shard,
            key=key,
            member=key,
            offset=self.at,
            reason=reason,
        )
        if self.policy is OnError.FAIL:
            raise error
        self.fault = self.fault or error

    def _settle(self, record: Record) -> bool:
        """Decide about a sample that is not plainly good; count it, and tell whether it is handed on."""
        key = record["__key__"]
        if self.again is not None and self.fault is None:
            self._compare_with_earlier(record, self.again)
        self.again = None
        if self.stopped:
            self.tally.dropped["after-stop"] += 1
            return False
        if self.fault is None:
            return True
        if self.policy is OnError.IGNORE and len(record) > 3:
            self.tally.keep(self.shard, key, self.fault)
            return True
        self.tally.reject(self.shard, key, self.fault)
        self.stopped = self.policy is OnError.STOP
        return False

    def _compare_with_earlier(self, record: Record, first_field: str) -> None:
        """Tell a doubled key, whose fields come again, from a sample whose members are not adjacent."""
        if first_field in record or first_field in self.passed:
            self.tally.duplicate_keys += 1
            return
        here = ", ".join(repr(name) for name in (*record, *sorted(self.passed)) if name not in _NAMES_OF_OURS)
        fact = (
            f"its members are not adjacent ({first_field!r} came before, {here} after other samples); expected all "
            "members of a sample in a row, as `tar --sort=name` gives"
        )
        self._fault(record["__key__"], fact, "interleaved")
