"""The builders of the tests, judged by Python's tarfile, before they judge the reader."""

from __future__ import annotations

import tarfile

import pytest
from support import tars

PAIRS = [("a.txt", b""), ("a.jpg", b"x" * 511), ("d/b.txt", b"y" * 512), ("d/b.jpg", b"z" * 513)]

needs_gnu_tar = pytest.mark.skipif(tars.gnu_tar_command() is None, reason="GNU tar is not on this machine")


def test_hand_made_ustar_is_what_tarfile_reads():
    assert tars.tarfile_listing(tars.ustar(PAIRS)) == PAIRS


def test_hand_made_prefix_pax_and_long_names_are_what_tarfile_reads():
    data = (
        tars.member("c.txt", b"1", prefix=b"deep/folder")
        + tars.pax(tars.pax_record("path", "ü" * 200 + ".txt"))
        + tars.member("short", b"2")
        + tars.gnu_long("n" * 300 + ".txt")
        + tars.member("short", b"3", magic=tars.GNU_MAGIC)
        + tars.END
    )
    assert tars.tarfile_listing(data) == [
        ("deep/folder/c.txt", b"1"),
        ("ü" * 200 + ".txt", b"2"),
        ("n" * 300 + ".txt", b"3"),
    ]


@pytest.mark.parametrize("length", [*range(80, 100), *range(980, 1000), 9990])
def test_hand_made_pax_records_count_their_own_length(length):
    record = tars.pax_record("path", "n" * length)
    assert int(record.split(b" ")[0]) == len(record)
    assert tars.tarfile_listing(tars.pax(record) + tars.member("x", b"1") + tars.END) == [("n" * length, b"1")]


@pytest.mark.parametrize("pieces", [1, 4, 5, 25, 26, 60])
def test_hand_made_old_gnu_sparse_is_what_tarfile_reads(pieces):
    entries = [(1024 * i, 3) for i in range(pieces)]
    whole = bytearray(1024 * pieces)
    for offset, length in entries:
        whole[offset : offset + length] = b"abc"
    data = (
        tars.old_gnu_sparse("s.bin", entries, b"abc" * pieces, len(whole)) + tars.member("t.txt", b"after") + tars.END
    )
    assert tars.tarfile_listing(data) == [("s.bin", bytes(whole)), ("t.txt", b"after")]


@pytest.mark.parametrize("value", [0, 1, 511, 2**33, 2**62, -1, -512])
def test_base256_is_what_tarfile_reads(value):
    assert tarfile.nti(tars.base256(value, 12)) == value


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tarfile_builder_round_trips(format):
    assert tars.tarfile_listing(tars.by_tarfile(PAIRS, format)) == PAIRS


@needs_gnu_tar
@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_gnu_tar_builder_writes_the_names_without_dot_slash(tmp_path, format):
    tars.put_files(tmp_path, PAIRS)
    assert sorted(tars.tarfile_listing(tars.by_gnu_tar(tmp_path, f"--format={format}"))) == sorted(PAIRS)


def test_webdataset_builder_puts_a_pax_header_before_members_unless_the_mtime_is_whole():
    samples = [{"__key__": "a", "txt": b"1"}]
    assert tars.tarfile_listing(tars.by_webdataset(samples)) == [("a.txt", b"1")]
    assert tars.by_webdataset(samples)[156:157] == b"x"
    assert tars.by_webdataset(samples, mtime=0)[156:157] == b"0"


def test_trickle_hands_out_the_sizes_asked_for():
    raw = tars.Trickle(b"abcdefgh", (1, 3))
    buffer = bytearray(8)
    assert [raw.readinto(buffer) for _ in range(6)] == [1, 3, 1, 3, 0, 0]
    assert not raw.seekable()
