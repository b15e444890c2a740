"""Tar builders and readers that use nothing of tarmill: byte by byte, Python's tarfile, GNU tar, webdataset.

What is built here is judged by tarfile in `test_tar_builders.py`, so that the tests of the reader stand on firm ground.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import webdataset
from webdataset import tariterators

BLOCK = 512
END = bytes(2 * BLOCK)
GNU_MAGIC = b"ustar  \0"
POSIX_MAGIC = b"ustar\x0000"
V7_MAGIC = bytes(8)

Pairs = Sequence[tuple[str, bytes]]


def encode(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    """GNU's binary numbers: the highest bit marks them, negative ones are two's complement over the whole field."""
    if value < 0:
        return (value + (1 << 8 * width)).to_bytes(width, "big")
    return bytes([0x80]) + value.to_bytes(width - 1, "big")


def resum(block: bytes) -> bytes:
    """Give the header block a checksum that holds."""
    rest = block[:148] + b" " * 8 + block[156:]
    return rest[:148] + b"%06o\0 " % sum(rest) + rest[156:]


def header(
    name: str | bytes,
    size: int = 0,
    *,
    flag: bytes = b"0",
    link: bytes = b"",
    magic: bytes = POSIX_MAGIC,
    prefix: bytes = b"",
    size_field: bytes | None = None,
    uid_field: bytes | None = None,
    tail: bytes = b"",
) -> bytes:
    """Build one header block; `tail` overwrites the bytes from the prefix field (345) on."""
    block = (
        encode(name).ljust(100, b"\0")
        + octal(0o644, 8)
        + (octal(1000, 8) if uid_field is None else uid_field)
        + octal(1000, 8)
        + (octal(size, 12) if size_field is None else size_field)
        + octal(1_500_000_000, 12)
        + b" " * 8
        + flag
        + link.ljust(100, b"\0")
        + magic
        + b"someone".ljust(32, b"\0")
        + b"somegroup".ljust(32, b"\0")
        + octal(0, 8) * 2
    )
    block = (block + (tail or prefix)).ljust(BLOCK, b"\0")
    assert len(block) == BLOCK, len(block)
    return resum(block)


def padded(body: bytes) -> bytes:
    return body + bytes(-len(body) % BLOCK)


def member(name: str | bytes, body: bytes = b"", **fields: Any) -> bytes:
    return header(name, len(body), **fields) + padded(body)


def ustar(pairs: Iterable[tuple[str | bytes, bytes]], end: bytes = END) -> bytes:
    return b"".join(member(name, body) for name, body in pairs) + end


def pax_record(keyword: str | bytes, value: str | bytes | int) -> bytes:
    body = b" " + encode(keyword) + b"=" + (b"%d" % value if isinstance(value, int) else encode(value)) + b"\n"
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length += 1
    return b"%d" % length + body


def pax(*records: bytes, flag: bytes = b"x") -> bytes:
    """Build a whole pax header (its header block and its records), to stand before a member."""
    return member("PaxHeaders/x", b"".join(records), flag=flag)


def gnu_long(text: str | bytes, flag: bytes = b"L") -> bytes:
    return member("././@LongLink", encode(text) + b"\0", flag=flag, magic=GNU_MAGIC)


def old_gnu_sparse(name: str | bytes, entries: Sequence[tuple[int, int]], data: bytes, real_size: int) -> bytes:
    """Build an old GNU sparse member: four pieces in the header, 21 in each block that follows."""

    def pack(pieces: Sequence[tuple[int, int]]) -> bytes:
        fields = [octal(n, 12) if 0 <= n < 8**11 else base256(n, 12) for piece in pieces for n in piece]
        return b"".join(fields)

    more = [entries[i : i + 21] for i in range(4, len(entries), 21)]
    real = octal(real_size, 12) if 0 <= real_size < 8**11 else base256(real_size, 12)
    tail = bytes(41) + pack(entries[:4]).ljust(96, b"\0") + bytes([bool(more)]) + real
    blocks = [
        pack(part).ljust(504, b"\0") + bytes([number < len(more)]) + bytes(7) for number, part in enumerate(more, 1)
    ]
    head = header(name, len(data), flag=b"S", magic=GNU_MAGIC, tail=tail)
    return head + b"".join(blocks) + padded(data)


# Other people's writers


def by_tarfile(pairs: Pairs, format: int, **info: Any) -> bytes:
    """Write with Python's tarfile; `info` sets attributes of every TarInfo (mtime, uid, pax_headers, ...)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as archive:
        for name, body in pairs:
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            for attribute, value in info.items():
                setattr(entry, attribute, value)
            archive.addfile(entry, io.BytesIO(body))
    return out.getvalue()


def by_webdataset(samples: Iterable[Mapping[str, Any]], mtime: float | None = None) -> bytes:
    """Write with webdataset's TarWriter; samples are {"__key__": str, field: bytes}."""
    out = io.BytesIO()
    with webdataset.TarWriter(out, encoder=False, mtime=mtime) as writer:
        for sample in samples:
            writer.write(dict(sample))
    return out.getvalue()


@cache
def gnu_tar_command() -> str | None:
    """Find GNU tar on this machine."""
    for name in ("gtar", "tar"):
        if (path := shutil.which(name)) and b"GNU tar" in subprocess.run([path, "--version"], stdout=-1).stdout:
            return path
    return None


def by_gnu_tar(folder: Path, *options: str, names: Sequence[str] = (".",)) -> bytes:
    """Write what lies in `folder` with GNU tar, by names relative to it, in a stable order."""
    command = gnu_tar_command()
    assert command, "gnu_tar_command() is asked before"
    done = subprocess.run(
        [command, "-C", str(folder), "--sort=name", "--transform=s,^\\./,,", *options, "-cf", "-", "--", *names],
        capture_output=True,
        env={**os.environ, "LC_ALL": "C", "TAR_OPTIONS": ""},
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def put_files(folder: Path, pairs: Iterable[tuple[str, bytes]]) -> None:
    for name, body in pairs:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)


def put_sparse(path: Path, pieces: Sequence[tuple[int, bytes]], size: int) -> bytes:
    """Write a file with holes, and give its contents."""
    with path.open("wb") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
        file.truncate(size)
    return path.read_bytes()


# Other people's readers


def tarfile_listing(data: bytes) -> list[tuple[str, bytes]]:
    """List (name, contents) of the regular members and hard links, as Python's tarfile reads them."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
        for entry in archive:
            if entry.isreg() or entry.islnk():
                file = archive.extractfile(entry)
                assert file is not None
                found.append((entry.name, file.read()))
    return found


def gnu_tar_listing(data: bytes, folder: Path) -> dict[str, bytes]:
    """Extract with GNU tar into an empty folder and give what lies there, by name."""
    command = gnu_tar_command()
    assert command
    done = subprocess.run(
        [command, "-C", str(folder), "-xf", "-"],
        input=data,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C", "TAR_OPTIONS": ""},
    )
    assert done.returncode == 0, done.stderr.decode()
    assert not done.stderr, done.stderr.decode()
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def webdataset_listing(data: bytes) -> list[dict[str, Any]]:
    """Read a shard with webdataset's reader: {"__key__": str, field in lower case: bytes} in order."""
    files = tariterators.tar_file_expander([{"url": "s.tar", "stream": io.BytesIO(data)}])
    samples = tariterators.group_by_keys(files)
    return [{k: v for k, v in sample.items() if k == "__key__" or k[:2] != "__"} for sample in samples]


def samples_of(pairs: Iterable[tuple[str, bytes]]) -> list[dict[str, Any]]:
    """Group (name, contents) to samples by the rule for plain names: adjacent, first dot of the last component."""
    samples: list[dict[str, Any]] = []
    for name, body in pairs:
        folder, slash, last = name.rpartition("/")
        stem, dot, field = last.partition(".")
        if not dot:
            continue
        key = folder + slash + stem
        if not samples or samples[-1]["__key__"] != key:
            samples.append({"__key__": key})
        samples[-1][field] = body
    return samples


# Raw inputs


class Trickle(io.RawIOBase):
    """A stream that cannot seek and hands out pieces of the sizes given, in a circle; counts what it handed out."""

    def __init__(self, data: bytes, sizes: Sequence[int] = (1 << 20,)) -> None:
        super().__init__()
        self._data = memoryview(data)
        self._sizes = sizes
        self._turn = 0
        self.handed_out = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._sizes[self._turn % len(self._sizes)], len(self._data) - self.handed_out)
        self._turn += 1
        buffer[:size] = self._data[self.handed_out : self.handed_out + size]
        self.handed_out += size
        return size


class AtOffsets(io.BytesIO):
    """An input that can be read at offsets, as a file of this machine."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data
        self.size_bytes = len(data)
        self.positional = self
        self.handed_out = 0

    def readinto_at(self, buffer: Any, offset: int) -> int:
        found = self.read_at(len(buffer), offset)
        buffer[: len(found)] = found
        return len(found)

    def read_at(self, size: int, offset: int) -> bytes:
        found = self.data[offset : offset + size]
        self.handed_out += len(found)
        return found


class Endless(io.RawIOBase):
    """A stream made from pieces as they are asked for, never held as a whole; counts what it handed out."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._rest = memoryview(b"")
        self.handed_out = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        self.handed_out += size
        return size
