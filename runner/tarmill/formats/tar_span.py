"""Single samples as ranges of tar bytes: decoded into a record, and a record encoded into such a range.

A range that `tar_scan` or the complete reader found is known to be whole, and its header checksums were verified then.
"""

from __future__ import annotations

import io
from typing import Any

from tarmill.errors import SampleError, ScriptError
from tarmill.formats.digest import sample_digest
from tarmill.formats.keys import KEY_FUNCTIONS, KeyFunction
from tarmill.formats.samples import DEFAULT_MAX_MEMBER_BYTES, Record
from tarmill.formats.tar_header import BLOCK
from tarmill.formats.tar_headers import MTIME_BYTES, is_mtime_only
from tarmill.formats.tar_members import END_MARK, MemberReader
from tarmill.formats.tar_window import Window
from tarmill.formats.tar_write import END_OF_ARCHIVE, TarSink, check_key, odd_header

_FILES = (ord("0"), 0)
_PAX = ord("x")
_ENDS = b"\0 "
"""Of a size; some old writers put a twelfth digit there."""


def decode_span(
    data: bytes, shard: str, split: KeyFunction, max_member_bytes: int = DEFAULT_MAX_MEMBER_BYTES
) -> Record:
    """Turn the bytes of one sample into its record, as readers give it.

    Args:
        data: headers, contents and padding of all its members.
        shard: goes into the record as `__url__`.
        split: the key function.
        max_member_bytes: the largest field that a record may hold.

    Raises:
        LimitError: a field is larger than that.
    """
    record: Record = {}
    at = 0
    find = data.find
    while at < len(data):
        flag, size_text = data[at + 156], data[at + 124 : at + 135]
        if not size_text.isdigit() or data[at + 135] not in _ENDS or data[at + 345] or data[at + 99]:
            return _decode_slowly(data, shard, split, max_member_bytes)
        size = int(size_text, 8)
        if flag == _PAX and is_mtime_only(data[at + BLOCK : at + BLOCK + MTIME_BYTES], size):
            at += 2 * BLOCK
            continue
        if flag not in _FILES:
            return _decode_slowly(data, shard, split, max_member_bytes)
        pair = split(data[at : find(b"\0", at)].decode("utf-8", "surrogateescape"))
        if pair is None or size > max_member_bytes:
            return _decode_slowly(data, shard, split, max_member_bytes)
        if not record:
            record = {"__key__": pair[0], "__url__": shard, "key": pair[0]}
        record[pair[1]] = data[at + BLOCK : at + BLOCK + size]
        at = (at + 1023 + size) & ~511
    return record


def _decode_slowly(data: bytes, shard: str, split: KeyFunction, max_member_bytes: int) -> Record:
    members = MemberReader(Window(io.BytesIO(data + END_OF_ARCHIVE)), shard, max_member_bytes)
    record: Record = {}
    try:
        while (member := members.next()) is not None and member.kind != END_MARK:
            pair = split(member.text) if member.kind in ("file", "sparse") else None
            if pair is None:
                members.skip_data(member)
                continue
            if not record:
                record = {"__key__": pair[0], "__url__": shard, "key": pair[0]}
            record[pair[1]] = members.read_data(member)
    finally:
        members.window.close()
    return record


def key_in_span(head: bytes, shard: str, split: KeyFunction) -> str:
    """Give the key of a sample from the beginning of its range: its first header, and pax headers before it."""
    if head[156] in _FILES and not head[345] and not head[99]:
        pair = split(head[: head.find(b"\0")].decode("utf-8", "surrogateescape"))
        if pair is not None:
            return pair[0]
    members = MemberReader(Window(io.BytesIO(head + END_OF_ARCHIVE)), shard, DEFAULT_MAX_MEMBER_BYTES)
    try:
        member = members.next()
    finally:
        members.window.close()
    pair = split(member.text) if member is not None else None
    assert pair is not None  # the range of a sample begins with a member of it
    return pair[0]


def encode_sample(record: Record, key: str, key_function: str) -> tuple[bytes, int, int]:
    """Turn a record into the bytes of a sample as `TarSink` writes them; these, its digest, its number of members.

    Raises:
        SampleError: the key function cannot name members so that they give this key again.
    """
    if key_function == "base_plus_ext":
        pieces: list[bytes] = []
        sink = TarSink(pieces.append)
        try:
            check_key(key)
            sink.add(record, key)
        except ScriptError as error:
            raise SampleError(error.message, shard=record.get("__url__", ""), key=key, reason="bad-key") from None
        sink.drain()
        return b"".join(pieces), sink.digest, sink.members
    if key_function in ("dir_plus_file", "last_dir"):
        return _encode_in_folder(record, key, KEY_FUNCTIONS[key_function])
    shard = record.get("__url__", "")
    raise SampleError(
        f"sample {key!r} of {shard} has to be written anew (hard links, or a neighbour with the same key), which is "
        f"impossible under the key function {key_function!r}; write the shards again with tarmill cat first",
        shard=shard,
        key=key,
        reason="key-function",
    )


def _encode_in_folder(record: Record, key: str, split: KeyFunction) -> tuple[bytes, int, int]:
    fields = fields_of_record(record)
    pieces = []
    for name in sorted(fields):
        body = fields[name]
        if split(f"{key}/{name}") != (key, name) or "\0" in key + name:
            shard = record.get("__url__", "")
            raise SampleError(
                f"sample {key!r} of {shard} has to be written anew, but a member {key + '/' + name!r} would not be "
                f"read back as its field {name!r}; write the shards again with tarmill cat first",
                shard=shard,
                key=key,
                reason="bad-key",
            )
        path = f"{key}/{name}".encode("utf-8", "surrogateescape")
        pieces += [odd_header(path, len(body)), body, bytes(-len(body) % BLOCK)]
    return b"".join(pieces), sample_digest(key, fields), len(fields)


def fields_of_record(record: Record) -> dict[str, Any]:
    """Take the fields out of a record: not `__names__`, nor the key's alias."""
    return {
        name: body
        for name, body in record.items()
        if not name.startswith("__") and not (name == "key" and isinstance(body, str))
    }
