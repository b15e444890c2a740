"""One field of every sample: a hot loop that builds no record.

It knows plain members of plainly good samples only. Whatever else comes it leaves to the loop of `tar_read`, in the
middle of a sample too, and takes over again behind it: the same checks, counts and errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from isal.isal_zlib import adler32

from tarmill.formats.samples import OnError, ReadOptions, Record, Tally
from tarmill.formats.tar_header import BLOCK
from tarmill.formats.tar_learned import FILE, PARTS, PAX, Expected
from tarmill.formats.tar_read import SampleReader
from tarmill.formats.tar_window import RawInput

BATCH_BYTES = 64 << 10
BATCH_VALUES = 512
_MAX_FRUITLESS = 8
"""So often in a row the hot loop may find nothing for it, before the shard is left to the other one."""
_WANTED = 1
"""The bit of the field that is asked for, in the sets of fields that a sample has had; others take the next ones."""


def iter_values(
    raw: RawInput,
    shard: str,
    field: str,
    options: ReadOptions,
    tally: Tally,
    reopen: Callable[[], RawInput] | None = None,
) -> Iterator[list[bytes] | Record]:
    """Read one field of the samples of a shard, in order.

    Args:
        raw, shard, tally, reopen: as for `tar_read.iter_samples`.
        field: the one whose contents are wanted.
        options: which key function and limit; what is wrong with a shard is always an error.

    Yields:
        The values of samples in a row that have the field, and the record of each sample that has not.

    Raises:
        FormatError: at the first thing that is wrong with the shard.
    """
    only = ReadOptions(options.key_function, frozenset([field]), False, OnError.FAIL, options.max_member_bytes)
    return _ValueReader(raw, shard, field, only, tally, reopen).values()


class _ValueReader(SampleReader):
    """State of one pass: `_plain` is the hot loop."""

    def __init__(
        self,
        raw: RawInput,
        shard: str,
        field: str,
        options: ReadOptions,
        tally: Tally,
        reopen: Callable[[], RawInput] | None,
    ) -> None:
        super().__init__(raw, shard, options, tally, reopen)
        self.field = field
        self.bit_of_field = {field: _WANTED}
        self._bits: dict[bytes, int] = {}
        """As `wanted` and `unwanted`, both together -> the bit of the field."""

    def values(self) -> Iterator[list[bytes] | Record]:
        """Alternate between the two loops until the shard is read."""
        members, fruitless = self.tally.members, 0
        try:
            while True:
                if self.fast and fruitless < _MAX_FRUITLESS:
                    yield from self._plain()
                fruitless = 0 if self.tally.members > members else fruitless + 1
                for record in self.run(brief=self.fast and fruitless < _MAX_FRUITLESS):
                    value = record.get(self.field)
                    yield record if value is None else [value]
                if not self.paused:
                    return
                members = self.tally.members
        finally:
            self.window.close()

    def _plain(self) -> Iterator[list[bytes] | Record]:
        """Read on as long as everything is plain; leaves before the first member that is not."""
        window, seen, tails = self.window, self.seen, self.tails
        buffer, parts_of, size_of = window.buffer, PARTS.unpack_from, self.plain_sizes()
        bit_of = self._known_bits().get
        field_of = {bit: field for field, bit in self.bit_of_field.items()}
        tail, expected = b"-", Expected(b"")
        stem, begun, pos, have = self.stem, self.begun, window.pos, window.have
        stem_length = len(stem)
        values: list[bytes] = []
        had = self._take_record(values)  # the fields of the sample in progress, as bits; 0 where there is none
        held = members = samples = 0
        try:
            while True:
                if have - pos < BLOCK:
                    window.pos = pos
                    window.ensure(BLOCK)
                    pos, have = window.pos, window.have
                    if have < BLOCK:
                        break
                front, checksum, mark = parts_of(buffer, pos)
                if mark != tail:
                    kind, sums = tails.get(mark) or self.learn(buffer[pos : pos + BLOCK])
                    if kind == FILE:
                        tail, expected = mark, sums
                    elif kind == PAX and self.is_trivial_pax(pos, sums):
                        begun = window.base + pos
                        pos += 2 * BLOCK
                        continue
                    else:
                        break
                if adler32(front) & 0xFFFF != expected[checksum]:
                    break
                size = size_of[front[124:136]]
                after = pos + ((size + 1023) & ~511)
                fresh = front[:stem_length] != stem
                if fresh:
                    head, _, name = front[:100].partition(b".")
                    bit = bit_of(name)
                    new_stem = head + b"."
                    name_hash = hash(new_stem)
                    # as in `SampleReader.run`; 0, 47 and 95 are NUL, "/" and "_"
                    if bit is None or 0 in head or not head or head[-1] == 47 or head[0] == 95 or name_hash in seen:
                        break
                else:
                    bit = bit_of(front[stem_length:100])
                if bit is None or (bit & had and not fresh):
                    break
                value = None
                if bit == _WANTED:
                    if after <= have:
                        value = buffer[pos + BLOCK : pos + BLOCK + size]
                    elif (value := window.direct(pos + BLOCK, size, after)) is not None:
                        after = have = 0
                    else:
                        window.pos = pos
                        complete = window.ensure(after - pos)
                        pos, have = window.pos, window.have
                        if complete:
                            continue
                        break
                members += 1
                if fresh:
                    if had:
                        samples += 1
                        if not had & _WANTED:
                            if values:
                                yield values
                                values, held = [], 0
                            yield self._record(stem)
                        elif held >= BATCH_BYTES:
                            yield values
                            values, held = [], 0
                    seen[name_hash] = field_of[bit]
                    stem, stem_length, had = new_stem, len(new_stem), bit
                else:
                    had |= bit
                if value is not None:
                    values.append(value)
                    held += size + BATCH_BYTES // BATCH_VALUES
                    pos = after
                elif after <= have:
                    pos = after
                elif window.jump(after):
                    pos, have = 0, window.have
                else:
                    window.pos = pos + BLOCK
                    self.members.skip_data(self.plain_member(front, size, window.base + pos, begun))
                    pos, have = window.pos, window.have
        except ValueError:  # a number that has to be looked at with care
            pass
        finally:
            self.tally.members += members
            self.tally.samples += samples
        window.pos, self.begun = pos, begun
        self._leave_record(stem, had, values)
        if values:
            yield values

    def _known_bits(self) -> dict[bytes, int]:
        """Give the bits of all names that the other loop has learned so far."""
        if len(self._bits) != len(self.wanted) + len(self.unwanted):
            names = self.wanted | self.unwanted
            self._bits = {name: self._bit(field) for name, field in names.items()}
        return self._bits

    def _bit(self, field: str) -> int:
        return self.bit_of_field.setdefault(field, 1 << len(self.bit_of_field))

    def _take_record(self, values: list[bytes]) -> int:
        """Take over the sample in progress from the other loop: its value, and what fields it has had."""
        record, self.record = self.record, None
        if record is None:
            return 0
        had = sum(map(self._bit, self.passed))
        if self.field in record:
            values.append(record[self.field])
            had |= _WANTED
        return had

    def _leave_record(self, stem: bytes, had: int, values: list[bytes]) -> None:
        """Hand the sample in progress to the other loop."""
        self.stem = stem
        self.passed.clear()
        if not had:
            return
        self.record = record = self._record(stem)
        self.key = record["__key__"]
        if had & _WANTED:
            record[self.field] = values.pop()
        self.passed.update(field for field, bit in self.bit_of_field.items() if bit & had and bit != _WANTED)

    def _record(self, stem: bytes) -> Record:
        key = stem[:-1].decode("utf-8", "surrogateescape")
        return {"__key__": key, "__url__": self.shard, "key": key}
