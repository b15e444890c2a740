"""Samples into a tar shard: plain ustar whenever name and size fit, pax only for the member that needs it.

Same samples, same bytes: integer mtime, fixed owner and mode, fields sorted by name. What is written reads back as
the same samples under the default key function `base_plus_ext`, or it is refused. Names are written as their UTF-8 (or
surrogate-escaped) bytes, which fit a ustar header up to 100 bytes, or 255 with a '/' in the right place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from isal.isal_zlib import adler32
from xxhash import xxh3_128, xxh3_128_intdigest

from tarmill.errors import ScriptError
from tarmill.formats.digest import MASK_64, MASK_128, field_seed
from tarmill.formats.keys import base_plus_ext
from tarmill.formats.samples import Record
from tarmill.formats.tar_header import BLOCK

END_OF_ARCHIVE = bytes(2 * BLOCK)
MAX_USTAR_BYTES = 8**11 - 1

_OWNER = b"0000444\0" + b"0000000\0" * 2
_JOIN_BYTES = 256 << 10
_LARGE_PIECE_BYTES = 4 << 10
"""On average, and five of six pieces are parts of headers: to copy more costs more than to write many pieces."""
_MAX_CACHED = 16384
_BODY_PADS = [bytes(n) for n in range(BLOCK)]

_Field = tuple[str, bytes, int]
"""A field to write: its name, the same in bytes, its digest seed."""


def _tail(flag: bytes, prefix: bytes = b"") -> bytes:
    """Build what stands behind the checksum: type flag to the end of the header block."""
    names = b"tarmill".ljust(32, b"\0") * 2
    return (flag + bytes(100) + b"ustar\x0000" + names + b"0000000\0" * 2 + prefix.ljust(155, b"\0")).ljust(356, b"\0")


def _header(name: bytes, size: int, mtime_s: int, flag: bytes = b"0", prefix: bytes = b"") -> bytes:
    front = name.ljust(100, b"\0") + _OWNER + b"%011o\0%011o\0" % (size, mtime_s)
    tail = _tail(flag, prefix)
    return front + b"%06o\0 " % (sum(front) + sum(tail) + 8 * 32) + tail


def _pax_record(keyword: bytes, value: bytes) -> bytes:
    """Format one pax record, whose length counts its own digits."""
    body = b" " + keyword + b"=" + value + b"\n"
    length = len(body)
    while length != len(body) + len(b"%d" % length):
        length = len(body) + len(b"%d" % length)
    return b"%d" % length + body


def odd_header(name: bytes, size: int, mtime_s: int = 0) -> bytes:
    """Build the header blocks of a member that does not fit the plain 100-byte form: ustar prefix, or pax.

    Args:
        name: the member's name in bytes.
        size: of its contents, in bytes.
        mtime_s: seconds since 1970, at least 0.
    """
    if size <= MAX_USTAR_BYTES and len(name) <= 256:
        split = name.find(b"/", max(0, len(name) - 101), 156)
        if split > 0 and len(name) - split - 1 > 0:
            return _header(name[split + 1 :], size, mtime_s, prefix=name[:split])
    records = b""
    if len(name) > 100:
        try:
            name.decode()
        except UnicodeDecodeError:
            records += _pax_record(b"hdrcharset", b"BINARY")
        records += _pax_record(b"path", name)
    if size > MAX_USTAR_BYTES:
        records += _pax_record(b"size", b"%d" % size)
    head = _header(b"././@PaxHeader", len(records), mtime_s, flag=b"x")
    return (
        head
        + records
        + _BODY_PADS[-len(records) % BLOCK]
        + _header(name[:100], size if size <= MAX_USTAR_BYTES else 0, mtime_s)
    )


def check_key(key: str) -> None:
    """Refuse a key that would not read back as itself (`ScriptError`): the first dot of a name ends the key."""
    if base_plus_ext(key + ".x") != (key, "x") or "\0" in key or _encoded(key) is None:
        raise ScriptError(
            f"the sample key {key!r} cannot be stored: expected a name with no '.' or NUL in its last path "
            "component, since the first dot there ends the key, and no __x__ in front; try "
            f"{key.strip('_/').replace('.', '_') or 'sample-0'!r}",
            key=key,
            reason="bad-key",
        )


class _Fronts(dict[int, tuple[bytes, int, bytes]]):
    """Size -> what stands between name and checksum, the checksum without the name's part, the padding of the body."""

    def __init__(self, mtime_s: int, tail: bytes) -> None:
        super().__init__()
        self.mtime = b"%011o\0" % mtime_s
        self.constant = sum(_OWNER) + sum(self.mtime) + sum(tail) + 8 * 32 - 1

    def __missing__(self, size: int) -> tuple[bytes, int, bytes]:
        if len(self) > _MAX_CACHED:
            self.clear()
        digits = b"%011o\0" % size
        self[size] = known = (_OWNER + digits + self.mtime, self.constant + sum(digits), _BODY_PADS[-size % BLOCK])
        return known


class _Backs(dict[int, bytes]):
    """Checksum -> its field and all behind it."""

    def __init__(self, tail: bytes) -> None:
        super().__init__()
        self.tail = tail

    def __missing__(self, checksum: int) -> bytes:
        self[checksum] = back = b"%06o\0 " % checksum + self.tail
        return back


class _Plans(dict[int, list[tuple[str, int, bytes, bytes | None, int]]]):
    """How to write samples whose records have the same names: length of the stem -> what is known of each field.

    That is: field, digest seed, its name in bytes, the same with the padding of a name field behind it (None where the
    name is too long for that), the sum of its bytes.
    """

    def __init__(self, fields: list[_Field], has_alias: bool) -> None:
        super().__init__()
        self.fields = fields
        self.has_alias = has_alias

    def __missing__(self, stem_length: int) -> list[tuple[str, int, bytes, bytes | None, int]]:
        room = 100 - stem_length
        self[stem_length] = plan = [
            (field, seed, name, name.ljust(room, b"\0") if len(name) <= room else None, sum(name))
            for field, name, seed in self.fields
        ]
        return plan


# What one shard teaches serves the next: plain values by mtime, so that threads may share them.
_known_headers: dict[int, tuple[_Fronts, _Backs]] = {}


def _headers(mtime_s: int) -> tuple[_Fronts, _Backs]:
    if mtime_s not in _known_headers:
        _known_headers.clear()
        tail = _tail(b"0")
        _known_headers[mtime_s] = _Fronts(mtime_s, tail), _Backs(tail)
    return _known_headers[mtime_s]


class TarSink:
    """Writes samples as one tar stream, and digests them on the way.

    Args:
        write: takes each block of bytes, in order; small samples come joined, 256 KiB and more at a time.
        write_all: takes many pieces at once, which large samples are not joined for then.
        mtime_s: the modification time of every member, in whole seconds since 1970.

    `add` writes one sample, `finish` the end mark, without which the stream is visibly cut. `samples`, `members` and
    `digest` (the multiset hash, see module `digest`) tell what was written.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        write_all: Callable[[Sequence[bytes]], object] | None = None,
        *,
        mtime_s: int = 0,
    ) -> None:
        self.samples = 0
        self.members = 0
        self._digest = 0
        self._write = write
        self._write_all = write_all
        self._mtime_s = mtime_s
        self._fronts, self._backs = _headers(mtime_s)
        self._plans: dict[tuple[str, ...], _Plans] = {}
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._last_stem = b""
        self._held = False

    @property
    def digest(self) -> int:
        """Multiset hash of the samples written so far."""
        return self._digest & MASK_128

    def add(self, record: Record, key: str | None = None) -> None:
        """Write one sample: the record's fields, without `__names__` and without a str under "key" (the key's alias).

        Args:
            record: field -> bytes-like or str (written as UTF-8).
            key: the sample's key; the record's `__key__` when None. It must have passed `check_key`.

        Raises:
            ScriptError: the record has no field, a value of another type, or the key of the sample before it.
        """
        shape = tuple(record)
        plans = self._plans.get(shape)
        if plans is None:
            plans = self._plan(shape)
        if plans.has_alias and record["key"] is not key and not isinstance(record["key"], str):
            plans = _Plans(_fields_of(shape), False)
        if key is None:
            key = record["__key__"]
        try:
            stem = key.encode() + b"."
        except UnicodeEncodeError:
            if (raw_key := _encoded(key)) is None:
                raise _no_text(key, "its key") from None
            stem = raw_key + b"."
        plan = plans[len(stem)]
        if stem == self._last_stem or not plan:
            raise self._refusal(key, bool(plan))
        fronts, backs, extend, before = self._fronts, self._backs, self._pieces.extend, len(self._pieces)
        stem_sum = adler32(stem) & 0xFFFF
        total, waiting = 0, 2 * BLOCK * len(plan)
        try:
            for field, seed, name, rest_of_name, name_sum in plan:
                body = record[field]
                if body.__class__ is not bytes:
                    body = as_bytes(body, key, field)
                size = len(body)
                waiting += size
                total += xxh3_128_intdigest(body, seed)
                front, checksum, padding = fronts[size]
                if rest_of_name is not None:
                    extend((stem, rest_of_name, front, backs[stem_sum + name_sum + checksum], body, padding))
                else:
                    extend((odd_header(stem + name, size, self._mtime_s), body, padding))
        except BaseException:
            del self._pieces[before:]  # a sample is in the shard whole or not at all
            raise
        self._last_stem = stem
        self._digest += total + xxh3_128_intdigest(stem, total & MASK_64)
        self.samples += 1
        self.members += len(plan)
        self._waiting += waiting
        if self._waiting > _JOIN_BYTES and not self._held:
            self._flush()

    def add_streams(self, key: str, fields: Mapping[str, Callable[[], tuple[int, Iterable[Any]]]]) -> None:
        """Write one sample whose contents need not be held in memory.

        Args:
            key: as for `add`.
            fields: gives for each field, when its turn has come, its size and then its contents in blocks. A block is
                done with before the next is asked for.

        Raises:
            ScriptError: as `add`, before anything is written.
            Exception: what the contents raise; the archive is torn then, and must be thrown away. So it is when they
                are not of the size that was told (`ValueError`).
        """
        stem, plan = (_encoded(key) or b"") + b".", _fields_of(tuple(fields))
        if stem == self._last_stem or not plan:
            raise self._refusal(key, bool(plan))
        total = 0
        for field, name, seed in plan:
            size, blocks = fields[field]()
            plain = len(stem) + len(name) <= 100 and size <= MAX_USTAR_BYTES
            self._pieces.append((_header if plain else odd_header)(stem + name, size, self._mtime_s))
            done, state = 0, xxh3_128(seed=seed)
            for block in blocks:
                self.drain()
                done += len(block)
                state.update(block)
                self._write(block)
            if done != size:
                raise ValueError(f"field {field!r} of sample {key!r} has {done} bytes instead of {size}")
            self._pieces.append(_BODY_PADS[-size % BLOCK])
            total += state.intdigest()
        self._last_stem = stem
        self._digest += total + xxh3_128_intdigest(stem, total & MASK_64)
        self.samples += 1
        self.members += len(plan)

    def add_all(self, records: Sequence[tuple[Record, str]]) -> None:
        """Write several samples, (record, key) each, all of them or, when one is refused, none.

        Raises:
            ScriptError: as `add`.
        """
        state = len(self._pieces), self._waiting, self._digest, self.samples, self.members, self._last_stem
        self._held = True
        try:
            for record, key in records:
                self.add(record, key)
        except BaseException:
            pieces, self._waiting, self._digest, self.samples, self.members, self._last_stem = state
            del self._pieces[pieces:]
            raise
        finally:
            self._held = False
        if self._waiting > _JOIN_BYTES:
            self._flush()

    def drain(self) -> None:
        """Hand over what waits, so that something else can be written behind it."""
        if self._pieces:
            self._flush()

    def finish(self) -> None:
        """Write what waits and the two zero blocks that end an archive."""
        self._pieces.append(END_OF_ARCHIVE)
        self._flush()

    def _flush(self) -> None:
        pieces, waiting = self._pieces, self._waiting
        self._pieces = []
        self._waiting = 0
        if self._write_all is not None and waiting > _LARGE_PIECE_BYTES * len(pieces):
            self._write_all(pieces)
        else:
            self._write(b"".join(pieces))

    def _plan(self, shape: tuple[str, ...]) -> _Plans:
        plans = _Plans(_fields_of(tuple(name for name in shape if name != "key")), "key" in shape)
        if len(self._plans) > _MAX_CACHED:
            self._plans.clear()
        self._plans[shape] = plans
        return plans

    def _refusal(self, key: str, has_fields: bool) -> ScriptError:
        if not has_fields:
            return ScriptError(
                f"sample {key!r} has no field; expected at least one besides __key__; return None to drop a sample",
                key=key,
                reason="no-fields",
            )
        return ScriptError(
            f"sample {key!r} has the key of the sample before it, so that both would read back as one; give each its "
            "own __key__, as in f\"{record['__key__']}-{i}\"",
            key=key,
            reason="same-key",
        )


def _fields_of(names: tuple[str, ...]) -> list[_Field]:
    found = []
    for name in names:
        if not isinstance(name, str) or "/" in name or "\0" in name:
            raise ScriptError(
                f"{name!r} is no field name; expected a str without '/' or NUL, such as 'jpg'",
                field=name,
                reason="bad-field",
            )
        if not name.startswith("__"):
            if (suffix := _encoded(name)) is None:
                raise _no_text(name, "a field name")
            found.append((name, suffix, field_seed(suffix)))
    return sorted(found, key=lambda item: item[1])


def as_bytes(value: Any, key: str, field: str) -> bytes:
    """Turn a value that a script returned into bytes: str as UTF-8, anything bytes-like copied.

    Raises:
        ScriptError: it is neither.
    """
    if isinstance(value, str):
        if (data := _encoded(value)) is None:
            raise _no_text(key, f"field {field!r}")
        return data
    try:
        return bytes(memoryview(value))
    except TypeError:
        raise ScriptError(
            f"sample {key!r}, field {field!r} is {type(value).__name__}; expected bytes or str; encode it, for example "
            "with json.dumps or a BytesIO",
            key=key,
            field=field,
            reason="bad-value",
        ) from None


def _encoded(text: str) -> bytes | None:
    """Encode a name or text as UTF-8, bytes that were no UTF-8 when they were read as they were; None if impossible."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None


def _no_text(key: str, what: str) -> ScriptError:
    return ScriptError(
        f"sample {key!r}: {what} holds half a surrogate pair, which UTF-8 cannot hold; expected proper text, or bytes",
        key=key,
        reason="bad-value",
    )
