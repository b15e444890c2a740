"""Archives that nobody here wrote: the test data of CPython's tarfile and of Go's archive/tar.

Each file has a row that says what must come out and why, or it must give what tarfile gives. Where tarfile and Go do
not agree, the row says who is right.
"""

from __future__ import annotations

import base64
import bz2
import importlib.util
import io
import lzma
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from support import tars
from support.tar_reading import URL, digest

from tarmill.errors import FormatError, LimitError
from tarmill.formats.compression import decompress
from tarmill.formats.samples import ReadOptions, Tally
from tarmill.formats.tar_read import iter_members, iter_samples

LIMIT = 64 << 20

Found = tuple[str, int, str]
"""Name, size and SHA-256 of a member with contents."""


@dataclass
class Row:
    """What must come of an archive."""

    why: str
    error: str | None = None
    """Reason of the error that ends it."""
    members: list[tuple[str, bytes]] | None = None
    """Names and contents before that; None for those that tarfile lists."""
    size_bytes: int | None = None
    """What the error says of a member that is too large."""


NO_END = "it has no end mark: complete members, then truncated"
DAMAGED = "Go refuses it too"
TOO_LARGE = "sparse or without its data: too large for a record"
SPARSE_DATA = b"0123456789" * 100

ROWS = {
    # Go's archive/tar/testdata
    "gnu-incremental.tar": Row(
        "GNU keeps atime and ctime where ustar has its prefix; tarfile takes them for a folder, Go and GNU tar do not; "
        "then a sparse file of 512 MiB",
        error="too-large",
        members=[("test2/foo", b"fewafewa\nfewa\nfeawfehahaha\nhahaafwe\nhahafawe\nhahawafe\na\nfwefewa\n")],
        size_bytes=536_870_912,
    ),
    "gnu-multi-hdrs.tar": Row(NO_END, error="truncated"),
    "pax-multi-hdrs.tar": Row(NO_END, error="truncated"),
    "nil-uid.tar": Row(NO_END, error="truncated"),
    "ustar-file-reg.tar": Row(NO_END, error="truncated"),
    "pax-bad-mtime-file.tar": Row("the mtime, which Go cannot read, is of no interest; " + NO_END, error="truncated"),
    "pax-pos-size-file.tar": Row(
        "a size with leading zeros is a number for Go and tarfile; " + NO_END, error="truncated"
    ),
    "gnu-sparse-big.tar.base64": Row(TOO_LARGE, error="too-large", members=[], size_bytes=60_000_000_000),
    "pax-sparse-big.tar.base64": Row(TOO_LARGE, error="too-large", members=[], size_bytes=60_000_000_000),
    "writer-big.tar": Row("16 GiB of data that are not there", error="truncated", members=[]),
    "writer-big-long.tar.base64": Row("16 GiB of data that are not there", error="truncated", members=[]),
    "gnu-sparse-many-zeros.tar.bz2": Row("ten million sparse entries; " + DAMAGED, error="bad-header", members=[]),
    "issue10968.tar": Row(DAMAGED, error="bad-header", members=[]),
    "issue11169.tar": Row("ends within a pax header; " + DAMAGED, error="truncated", members=[]),
    "issue12435.tar": Row(DAMAGED, error="bad-header", members=[]),
    "neg-size.tar.base64": Row(DAMAGED, error="bad-header", members=[]),
    "pax-bad-hdr-file.tar": Row("a damaged pax record; " + DAMAGED, error="bad-header", members=[]),
    "pax-bad-hdr-large.tar.bz2": Row("a pax header of more than 1 MiB; " + DAMAGED, error="too-large", members=[]),
    "pax-nul-path.tar": Row("a NUL in a pax path; " + DAMAGED, error="bad-header", members=[]),
    "pax-path-hdr.tar": Row("a pax header and no member; " + DAMAGED, error="truncated", members=[]),
    "pax-nil-sparse-data.tar": Row(
        "tarfile 3.11 takes the map for data, Go does not", members=[("sparse.db", SPARSE_DATA)]
    ),
    "pax-nil-sparse-hole.tar": Row(
        "tarfile 3.11 takes the map for data, Go does not", members=[("sparse.db", bytes(1000))]
    ),
    "pax-global-records.tar": Row(
        "a path for all members, one of its own, then an empty one for all that takes the first back (POSIX); "
        "tarfile ends with empty names, Go does not follow records for all",
        members=[("global1", b""), ("file2", b""), ("file3", b""), ("file4", b"")],
    ),
    # CPython's test folder
    "recursion.tar": Row("ends within its first header's data", error="truncated", members=[]),
}


@cache
def go_testdata() -> Path | None:
    go = shutil.which("go")
    if go is None:
        return None
    root = subprocess.run([go, "env", "GOROOT"], capture_output=True, text=True).stdout.strip()
    folder = Path(root) / "src/archive/tar/testdata"
    return folder if root and folder.is_dir() else None


@cache
def cpython_testdata() -> Path | None:
    found = importlib.util.find_spec("test")
    folders = list(found.submodule_search_locations or []) if found else []
    return Path(folders[0]) if folders else None


def archives() -> list:
    """Collect the archives on this machine; a row that skips and says why where there are none."""
    rows = []
    for what, folder in (("Go's archive/tar/testdata", go_testdata()), ("CPython's test package", cpython_testdata())):
        paths = sorted(p for p in folder.rglob("*") if ".tar" in p.name and p.is_file()) if folder else []
        paths = [p for p in paths if p.suffix in (".tar", ".base64", ".bz2", ".xz")]
        if not paths:
            rows.append(pytest.param(None, id=what, marks=pytest.mark.skip(reason=f"{what} is not on this machine")))
        rows += [pytest.param(path, id=path.name) for path in paths]
    return rows


def contents(path: Path) -> bytes:
    data = path.read_bytes()
    unpack = {".base64": base64.b64decode, ".bz2": bz2.decompress, ".xz": lzma.decompress}.get(path.suffix)
    return unpack(data) if unpack else data


def by_tarfile(data: bytes) -> list[Found]:
    found: list[Found] = []
    try:
        found += [(name, len(body), digest(body)) for name, body in tars.tarfile_listing(data)]
    except tarfile.TarError:
        return []
    return found


def by_tarmill(data: bytes) -> tuple[list[Found], FormatError | None]:
    found: list[Found] = []
    members = iter_members(io.BytesIO(data), URL, ReadOptions(max_member_bytes=LIMIT), reopen=lambda: io.BytesIO(data))
    try:
        for member, body in members:
            if body is not None:
                found.append((member.text, len(body), digest(body)))
    except FormatError as error:
        return found, error
    return found, None


@pytest.mark.parametrize("path", archives())
def test_a_foreign_archive_gives_what_its_row_says_or_what_tarfile_gives(path):
    data = contents(path)
    row = ROWS.get(path.name, Row("as tarfile"))
    found, error = by_tarmill(data)
    assert (error.reason if error else None) == row.error, (row.why, error)
    if row.size_bytes is not None:
        assert isinstance(error, LimitError)
        assert error.size_bytes == row.size_bytes
    expected = by_tarfile(data) if row.members is None else [(n, len(b), digest(b)) for n, b in row.members]
    assert found == expected, row.why


@pytest.mark.parametrize("path", archives())
@pytest.mark.parametrize("policy", ["skip", "ignore"])
def test_a_foreign_archive_is_read_to_its_end_or_told_as_unread(path, policy):
    data = contents(path)
    tally = Tally()
    options = ReadOptions(on_error=policy, max_member_bytes=LIMIT)
    samples = list(iter_samples(io.BytesIO(data), URL, options, tally, lambda: io.BytesIO(data)))
    assert tally.samples == len(samples) + sum(tally.dropped.values())
    row = ROWS.get(path.name, Row(""))
    if row.error in ("truncated", "bad-header"):
        assert sum(tally.unread.values()) == 1


@pytest.mark.parametrize("path", archives())
def test_fast_and_slow_path_agree_about_a_foreign_archive(path):
    data = contents(path)

    def told(fast: bool) -> tuple:
        tally = Tally()
        options = ReadOptions(on_error="ignore", max_member_bytes=LIMIT, fast=fast)
        samples = list(iter_samples(io.BytesIO(data), URL, options, tally, lambda: io.BytesIO(data)))
        return samples, tally

    assert told(True) == told(False)


def compressed_archives() -> list:
    folder = cpython_testdata()
    paths = list(folder.rglob("testtar.tar.*")) if folder else []
    if not paths:
        reason = "CPython's compressed test archives are not on this machine"
        return [pytest.param(None, id="testtar", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(path, id=path.name) for path in paths]


@pytest.mark.parametrize("path", compressed_archives())
def test_the_compressed_test_archive_of_cpython_holds_the_same_members(path):
    with io.FileIO(path) as raw:
        stream, codec = decompress(raw, shard=URL)
        assert codec == path.suffix[1:]
        members = iter_members(stream, URL, reopen=lambda: decompress(io.FileIO(path), shard=URL)[0])
        found = [(member.text, len(body), digest(body)) for member, body in members if body is not None]
    assert found == by_tarfile(contents(path))
