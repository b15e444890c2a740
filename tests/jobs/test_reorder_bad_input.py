"""Shards as they come from elsewhere: shuffle and sort keep what readers read, and tell what is wrong, in each plan."""

from __future__ import annotations

import gzip
import io
import resource
import subprocess
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zstandard
from support import tars
from support.maps import BIN, bytes_of, command, environment, leftovers, pairs_of, records_in, run_map
from support.reorders import (
    FROM_ANYWHERE,
    PLANS,
    every_plan,
    keys_in,
    manifest_of,
    multiset,
    samples_in,
    shuffle,
    sizes_in,
    sort,
)
from support.tar_reading import bare

from tarmill.errors import JobFailed, OutputExistsError, TarmillError
from tarmill.formats.samples import ReadOptions
from tarmill.formats.tar_read import iter_samples

TOOLS = {"shuffle": partial(shuffle, seed="2"), "sort": sort}
every_tool = pytest.mark.parametrize("tool", TOOLS)

PAIRS = [(f"{key}.{field}", f"{key} {field}".encode() * 60) for key in "abcd" for field in ("cls", "txt")]
WHOLE = tars.ustar(PAIRS)
LONG = "folder/" * 30 + "name"


def doubled_field() -> bytes:
    return tars.ustar([*PAIRS[:2], PAIRS[2], PAIRS[2], *PAIRS[2:]])


def flipped_header() -> bytes:
    data = bytearray(WHOLE)
    data[len(tars.ustar(PAIRS[:4], end=b"")) + 3] ^= 1
    return bytes(data)


def flipped_gzip() -> bytes:
    """Compressed without loss, so that a flipped bit is one of the contents and only the checksum tells."""
    data = bytearray(gzip.compress(WHOLE, 0))
    data[data.index(b"c txtc txt") + 1] ^= 4
    return bytes(data)


def from_gnu_tar(folder: Path, *options: str) -> bytes:
    if tars.gnu_tar_command() is None:
        pytest.skip("GNU tar is not installed")
    tars.put_files(folder, PAIRS)
    tars.put_sparse(folder / "e.bin", [(100_000, b"x" * 5000), (900_000, b"y")], 1_000_000)
    return tars.by_gnu_tar(folder, "--sparse", *options)


ODD: dict[str, Any] = {
    "directories": tars.header("d/", flag=b"5") + tars.ustar(PAIRS),
    "a directory inside a sample": tars.ustar(PAIRS[:1], b"") + tars.header("d/", flag=b"5") + tars.ustar(PAIRS[1:]),
    "symlinks": tars.header("l.txt", flag=b"2", link=b"a.txt") + tars.ustar(PAIRS),
    "hard links": tars.ustar(PAIRS[:2], b"") + tars.header("b.txt", flag=b"1", link=b"a.txt") + tars.ustar(PAIRS[4:]),
    "devices and pipes": tars.header("n.txt", flag=b"6") + tars.header("c.x", flag=b"3") + tars.ustar(PAIRS),
    "old GNU sparse": tars.ustar(PAIRS[:4], b"")
    + tars.old_gnu_sparse("c.bin", [(512, 512), (4096, 100)], b"x" * 612, 4196)
    + tars.ustar(PAIRS[6:]),
    "PAX sparse 0.1": lambda folder: from_gnu_tar(folder, "--format=pax", "--sparse-version=0.1"),
    "PAX sparse 1.0": lambda folder: from_gnu_tar(folder, "--format=pax", "--sparse-version=1.0"),
    "GNU long names": tars.by_tarfile([(LONG + name, body) for name, body in PAIRS], tarfile.GNU_FORMAT),
    "ustar prefixes": tars.by_tarfile([(LONG[:140] + "/" + name, body) for name, body in PAIRS], tarfile.USTAR_FORMAT),
    "PAX names": tars.by_tarfile([(LONG + "é" + name, body) for name, body in PAIRS], tarfile.PAX_FORMAT),
    "PAX for all": tars.pax(tars.pax_record("comment", "x"), flag=b"g") + tars.ustar(PAIRS),
    "PAX path for all": tars.pax(tars.pax_record("path", "g.txt"), flag=b"g") + tars.ustar(PAIRS[:1]),
    "webdataset's PAX times": tars.by_webdataset(tars.samples_of(PAIRS)),
    "GNU headers": b"".join(tars.member(name, body, magic=tars.GNU_MAGIC) for name, body in PAIRS) + tars.END,
    "v7 headers": b"".join(tars.member(name, body, magic=tars.V7_MAGIC) for name, body in PAIRS) + tars.END,
    "base-256 sizes": b"".join(
        tars.header(name, size_field=tars.base256(len(body), 12)) + tars.padded(body) for name, body in PAIRS
    )
    + tars.END,
    "hidden files": tars.ustar([("._a.txt", b"mac"), (".hidden", b"x"), *PAIRS, ("d/.DS_Store", b"")]),
    "names without extension": tars.ustar([("README", b"x"), *PAIRS[:2], ("LICENSE", b"y"), *PAIRS[2:]]),
    "names that are no text": tars.ustar([(b"\xff\xfe.txt", b"1"), (b"d\xc3.\x80", b"2")]),
    "empty fields": tars.ustar([(name, b"") for name, _ in PAIRS]),
    "no members": tars.END,
    "one archive behind another": WHOLE + tars.ustar([("z" + name, body) for name, body in PAIRS]),
    "end marks inside": WHOLE + bytes(20 * 512) + tars.ustar([("z" + name, body) for name, body in PAIRS]),
    "blocks of zeros behind": WHOLE + bytes(19 * 512),
    "keys that come again": tars.ustar([*PAIRS, *[(name, body + b"2") for name, body in PAIRS]]),
}


def content_of(data: Any, folder: Path) -> bytes:
    return data if isinstance(data, bytes) else data(folder / "files")


@pytest.mark.parametrize("name", ODD)
@every_plan
def test_shards_that_are_not_plain_give_the_samples_that_a_map_reads(tmp_path: Path, plan: str, name: str) -> None:
    (tmp_path / "in-0.tar").write_bytes(content_of(ODD[name], tmp_path))
    (tmp_path / "in-1.tar").write_bytes(tars.ustar(pairs_of(1)))
    source = tmp_path / "in-@2.tar"
    mapped = run_map(source, tmp_path / "map-@2.tar").counts
    wanted = [record for shard in range(2) for record in records_in(tmp_path / f"map-{shard}.tar")]
    for tool, function in TOOLS.items():
        counts = function(source, tmp_path / tool / "out-@.tar", plan=plan).counts
        found = samples_in(tmp_path / tool / "out-@.tar")
        assert multiset(found, keys=False) == multiset(wanted, keys=False)
        if not counts.renamed:
            assert multiset(found) == multiset(wanted)
        assert counts.read == mapped.read
        assert counts.skipped_members == mapped.skipped_members
        assert counts.duplicate_keys == mapped.duplicate_keys
        if tool == "sort":
            bare = [
                key.rpartition("-")[0] if counts.renamed and key.endswith("-1") else key
                for key in keys_in(tmp_path / tool / "out-@.tar")
            ]
            assert bare == sorted(bare, key=lambda key: key.encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("name", ["hard links", "keys that come again", "PAX sparse 1.0", "names without extension"])
@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
@pytest.mark.parametrize("plan", FROM_ANYWHERE)
def test_compressed_shards_that_are_not_plain_are_read_too(tmp_path: Path, plan: str, pack: Any, name: str) -> None:
    data = content_of(ODD[name], tmp_path)
    extension = "gz" if pack is gzip.compress else "zst"
    (tmp_path / "in-0.tar").write_bytes(data)
    (tmp_path / f"in-0.tar.{extension}").write_bytes(pack(data))
    for source in ("in-0.tar", f"in-0.tar.{extension}"):
        shuffle(tmp_path / source, tmp_path / source[5:] / "out-@1.tar", plan=plan, seed="1")
    assert bytes_of(tmp_path / "tar") == bytes_of(tmp_path / f"tar.{extension}")


# What must be told

BAD: dict[str, bytes] = {
    "cut in a header": WHOLE[: 512 * 9 + 100],
    "cut in contents": WHOLE[: 512 * 8 + 100],
    "cut between members": tars.ustar(PAIRS, end=b""),
    "a flipped header": flipped_header(),
    "garbage behind the end": WHOLE + b"garbage" * 200,
    "garbage between members": tars.ustar(PAIRS[:4], b"") + b"g" * 512 + tars.ustar(PAIRS[4:]),
    "no tar at all": b"<html>404</html>" * 100,
    "an empty file": b"",
    "a doubled field": doubled_field(),
    "members of two samples mixed": tars.ustar([PAIRS[0], PAIRS[2], PAIRS[1], PAIRS[3], *PAIRS[4:]]),
    "a cut PAX header": tars.pax(b"30 path=x\n") + tars.ustar(PAIRS),
    "an absurd size": tars.ustar(PAIRS[:2], b"")
    + tars.header("b.txt", size_field=tars.base256(1 << 62, 12))
    + tars.END,
    "a link to nowhere": tars.ustar(PAIRS[:2], b"")
    + tars.header("b.x", flag=b"1", link=b"no.x")
    + tars.ustar(PAIRS[4:]),
}
BAD_STREAMS: dict[str, tuple[str, bytes]] = {
    "cut gzip": ("gz", gzip.compress(WHOLE, 0)[:-3000]),
    "cut gzip of a shard that is not plain": ("gz", gzip.compress(ODD["hard links"], 0)[:-2500]),
    "gzip without its last bytes": ("gz", gzip.compress(WHOLE)[:-4]),
    "gzip without its last bytes of a shard that is not plain": ("gz", gzip.compress(ODD["hard links"])[:-4]),
    "gzip with a wrong checksum": ("gz", flipped_gzip()),
    "garbage behind gzip": ("gz", gzip.compress(WHOLE) + b"garbage" * 100),
    "gzip of nothing": ("gz", gzip.compress(b"")),
    "gzip of a flipped header": ("gz", gzip.compress(flipped_header() + bytes(3 << 20))),
    "gzip of a doubled field": ("gz", gzip.compress(doubled_field())),
    "cut zstd": ("zst", zstandard.compress(WHOLE)[:-10]),
    "no gzip at all": ("gz", b"no gzip"),
}
POLICIES = ["fail", "skip", "stop", "ignore"]


def check_bad(folder: Path, plan: str, data: bytes, extension: str, policy: str) -> None:
    """Both tools, with a good shard before and behind the bad one; a map with the same policy is the judge."""
    for shard in (0, 2):
        pack = {"tar": bytes, "tar.gz": gzip.compress, "tar.zst": zstandard.compress}[extension]
        (folder / f"in-{shard}.{extension}").write_bytes(pack(tars.ustar(pairs_of(shard))))
    (folder / f"in-1.{extension}").write_bytes(data)
    source = folder / f"in-@3.{extension}"
    for tool, function in TOOLS.items():
        output = folder / tool / "out-@.tar"
        if policy == "fail":
            with pytest.raises(JobFailed) as caught:
                function(source, output, plan=plan)
            assert f"in-1.{extension}" in caught.value.message
            assert not caught.value.message.startswith("unexpected")
            assert bytes_of(folder / tool) == {}
            assert leftovers(folder) == []
            assert not (folder / tool / "out.manifest.json").exists()
            continue
        mapped = run_map(source, folder / "map" / "out-@3.tar", on_error=policy).counts
        counts = function(source, output, plan=plan, on_error=policy).counts
        found = multiset(samples_in(output), keys=False)
        wanted = multiset(
            [
                bare(record)
                for shard in range(3)
                for record in iter_samples(
                    io.BytesIO((folder / "map" / f"out-{shard}.tar").read_bytes()), "", ReadOptions(on_error="ignore")
                )
            ],
            keys=False,
        )
        if extension == "tar":
            assert found == wanted
            assert (counts.read, counts.kept_damaged) == (mapped.read, mapped.kept_damaged)
        else:  # where a stream breaks off, what was decompressed before may be kept
            assert found >= wanted
            assert counts.read >= mapped.read
            assert set(counts.dropped) <= {"truncated"} | set(mapped.dropped)
        for name in ("unread", "skipped_members", *(["dropped"] if extension == "tar" else [])):
            assert getattr(counts, name) == getattr(mapped, name), name
        assert counts.errors + sum(counts.kept_damaged.values()) >= 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", BAD)
@every_plan
def test_what_is_wrong_is_told_or_treated_and_counted_as_in_a_map(
    tmp_path: Path, plan: str, name: str, policy: str
) -> None:
    check_bad(tmp_path, plan, BAD[name], "tar", policy)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", BAD_STREAMS)
@pytest.mark.parametrize("plan", FROM_ANYWHERE)
def test_what_is_wrong_in_a_compressed_stream_is_told_or_treated_and_counted_as_in_a_map(
    tmp_path: Path, plan: str, name: str, policy: str
) -> None:
    extension, data = BAD_STREAMS[name]
    check_bad(tmp_path, plan, data, f"tar.{extension}", policy)


@every_plan
@every_tool
def test_the_manifest_counts_the_members_that_were_written(tmp_path: Path, plan: str, tool: str) -> None:
    (tmp_path / "in-0.tar").write_bytes(doubled_field())
    TOOLS[tool](tmp_path / "in-0.tar", tmp_path / "out-@.tar", plan=plan, on_error="skip")
    assert manifest_of(tmp_path / "out-@.tar")["members"] == 6


@every_plan
@every_tool
def test_too_many_errors_fail_the_job(tmp_path: Path, plan: str, tool: str) -> None:
    (tmp_path / "in-0.tar").write_bytes(doubled_field())
    fields = {"plan": plan, "on_error": "skip"}
    with pytest.raises(JobFailed, match="--max-errors 0"):
        TOOLS[tool](tmp_path / "in-0.tar", tmp_path / "out-@.tar", max_errors="0", **fields)
    assert not (tmp_path / "out.manifest.json").exists()
    report = TOOLS[tool](tmp_path / "in-0.tar", tmp_path / "two-@.tar", max_errors="1", **fields)
    assert sum(report.counts.dropped.values()) == 1


@every_plan
@pytest.mark.parametrize(
    ("odd", "policy"), [(False, "fail"), (False, "skip"), (True, "fail"), (True, "skip"), (True, "ignore")]
)
def test_a_field_larger_than_what_may_be_held_costs_no_other_sample(
    tmp_path: Path, plan: str, odd: bool, policy: str
) -> None:
    """A shuffle holds no field; whether it minds or not, every other sample comes out as it went in."""
    pairs = [("a.t", b"a"), ("b.t", b"b" * 5000), ("c.t", b"c"), ("d.t", b"d" * 3)]
    data = (tars.header("d/", flag=b"5") if odd else b"") + tars.ustar(pairs)
    (tmp_path / "in-0.tar").write_bytes(data)
    job = partial(shuffle, tmp_path / "in-0.tar", tmp_path / "out-@1.tar", plan=plan, max_member=1000, on_error=policy)
    if odd and policy == "fail":
        with pytest.raises(JobFailed, match="--max-member"):
            job()
        return
    report = job()
    found = {record["__key__"]: record.get("t") for record in samples_in(tmp_path / "out-@1.tar")}
    wanted = {name[0]: body for name, body in pairs}
    if report.counts.dropped:
        assert report.counts.dropped == {"too-large": 1}
        del wanted["b"]
    assert found == wanted


# Bytes


def spans_of(data: bytes) -> dict[str, bytes]:
    """Headers, contents and padding of each plain member, by name."""
    found, at = {}, 0
    while at < len(data) - 1024:
        size = int(data[at + 124 : at + 135], 8)
        end = at + 512 + size + -size % 512
        found[data[at : data.index(b"\0", at)].decode()] = data[at:end]
        at = end
    return found


@every_plan
@every_tool
def test_just_the_samples_whose_bytes_do_not_stand_alone_are_written_anew(tmp_path: Path, plan: str, tool: str) -> None:
    def plain(key: str) -> bytes:
        return tars.member(f"{key}.txt", key.encode() * 700, uid_field=tars.octal(77, 8))

    data = (
        plain("a")
        + tars.header("b.txt", flag=b"1", link=b"a.txt")
        + plain("c")
        + tars.member("d.cls", b"1")
        + tars.header("d/", flag=b"5")
        + tars.member("d.txt", b"d")
        + plain("e")
        + tars.END
    )
    (tmp_path / "in-0.tar").write_bytes(data)
    TOOLS[tool](tmp_path / "in-0.tar", tmp_path / "out-@1.tar", plan=plan)
    found = spans_of((tmp_path / "out-0.tar").read_bytes())
    for key in "ace":
        assert found[f"{key}.txt"] == plain(key)
    for name in ("b.txt", "d.cls", "d.txt"):
        assert found[name][136:148] == tars.octal(0, 12), "written anew, at no time"
    assert found["b.txt"][512:1212] == b"a" * 700
    with tarfile.open(tmp_path / "out-0.tar") as archive:
        assert {
            member.name: member.uid for member in archive if member.name in ("a.txt", "c.txt", "e.txt")
        } == dict.fromkeys(["a.txt", "c.txt", "e.txt"], 77)


@every_plan
def test_headers_of_other_writers_are_copied_with_their_samples(tmp_path: Path, plan: str) -> None:
    samples = tars.samples_of(PAIRS)
    (tmp_path / "in-0.tar").write_bytes(tars.by_webdataset(samples, mtime=1.25))
    sort(tmp_path / "in-0.tar", tmp_path / "out-@1.tar", plan=plan)
    whole, before = (tmp_path / "out-0.tar").read_bytes(), (tmp_path / "in-0.tar").read_bytes()
    assert whole == before[: len(whole) - 1024] + tars.END
    assert tars.webdataset_listing(whole) == samples


@pytest.mark.real
@pytest.mark.parametrize("plan", ["local", "external"])
def test_shards_for_the_complete_reader_are_read_by_several_workers_at_once(tmp_path: Path, plan: str) -> None:
    """Workers begin as copies of the driver: the memory into which each of them reads must be its own."""
    pairs = [[(f"{LONG}{shard}-{n:04d}.txt", b"%d %d " % (shard, n) * 100) for n in range(600)] for shard in range(6)]
    for shard, members in enumerate(pairs):
        (tmp_path / f"in-{shard}.tar").write_bytes(tars.by_tarfile(members, tarfile.PAX_FORMAT))
    done = command(["in-@6.tar", "out-@4.tar", "-j", "2", "--plan", plan], tmp_path, tool="htshuffle")
    assert done.returncode == 0, done.stderr.decode()
    expected = tars.samples_of([pair for members in pairs for pair in members])
    assert multiset(samples_in(tmp_path / "out-@4.tar")) == multiset(expected)


# Sizes


@every_plan
@every_tool
def test_a_sample_larger_than_every_window_is_copied(tmp_path: Path, plan: str, tool: str) -> None:
    big = bytes(range(256)) * (5 << 12)
    (tmp_path / "in-0.tar").write_bytes(tars.ustar([("a.x", b"1"), ("b.bin", big), ("b.x", b"2"), ("c.x", b"3")]))
    TOOLS[tool](tmp_path / "in-0.tar", tmp_path / "out-@.tar", plan=plan, shard_size=4096)
    assert multiset(samples_in(tmp_path / "out-@.tar")) == multiset(
        tars.samples_of([("a.x", b"1"), ("b.bin", big), ("b.x", b"2"), ("c.x", b"3")])
    )


@every_plan
def test_one_huge_shard_becomes_many(tmp_path: Path, plan: str) -> None:
    pairs = [(f"k{n:03d}.bin", n.to_bytes(2, "big") * 40_000) for n in range(250)]
    (tmp_path / "in-0.tar").write_bytes(tars.ustar(pairs))
    shuffle(tmp_path / "in-0.tar", tmp_path / "out-@.tar", plan=plan, shard_size=2_000_000, workers=2)
    assert len(sizes_in(tmp_path / "out-@.tar")) >= 10
    assert multiset(samples_in(tmp_path / "out-@.tar")) == multiset(tars.samples_of(pairs))


@pytest.fixture
def usual_limit() -> Iterator[None]:
    """As many open files as most systems allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("usual_limit")
@pytest.mark.parametrize(
    ("tool", "plan", "shards"),
    [
        *(("shuffle", plan, 2000) for plan in PLANS),
        ("sort", "local", 2000),
        *(pytest.param("shuffle", plan, 10_000, marks=pytest.mark.long) for plan in PLANS),
    ],
)
def test_thousands_of_tiny_shards(tmp_path: Path, plan: str, tool: str, shards: int) -> None:
    for shard in range(shards):
        (tmp_path / f"in-{shard:05d}.tar").write_bytes(tars.ustar([(f"{shard:05d}.t", b"%d" % shard)]))
    report = TOOLS[tool](tmp_path / f"in-@{shards:05d}.tar", tmp_path / "out-@3.tar", plan=plan)
    assert report.counts.written == shards
    assert sorted(keys_in(tmp_path / "out-@3.tar")) == [f"{shard:05d}" for shard in range(shards)]


@pytest.mark.real
@pytest.mark.parametrize("plan", ["local", "external"])
def test_more_shards_than_may_be_mapped_at_a_time_are_read(tmp_path: Path, plan: str) -> None:
    """A mapped file holds a descriptor; here a process may have 200."""
    for shard in range(500):
        (tmp_path / f"in-{shard:03d}.tar").write_bytes(tars.ustar([(f"{shard:03d}.t", b"%d" % shard)]))
    done = subprocess.run(
        ["sh", "-c", f'ulimit -n 200; exec "{BIN}/htshuffle" in-@500.tar out-@3.tar -j 1 --plan {plan}'],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr.decode()
    assert sorted(keys_in(tmp_path / "out-@3.tar")) == [f"{shard:03d}" for shard in range(500)]


# Inputs that are not there, or not alone


@every_plan
def test_a_missing_input_is_named_before_anything_is_written(tmp_path: Path, plan: str) -> None:
    (tmp_path / "in-0.tar").write_bytes(WHOLE)
    with pytest.raises(TarmillError, match=r"in-1\.tar \(number 2 of 2\)"):
        shuffle(tmp_path / "in-@2.tar", tmp_path / "out-@.tar", plan=plan)
    assert not (tmp_path / "_tarmill").exists()


@pytest.mark.parametrize("plan", FROM_ANYWHERE)
@every_tool
def test_standard_input_is_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str, tool: str) -> None:
    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": io.BytesIO(WHOLE)}))
    TOOLS[tool]("-", tmp_path / "out-@2.tar", plan=plan)
    assert multiset(samples_in(tmp_path / "out-@2.tar")) == multiset(tars.samples_of(PAIRS))


@pytest.mark.parametrize("plan", FROM_ANYWHERE)
def test_another_stream_under_the_same_command_is_no_finished_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": io.BytesIO(WHOLE)}))
    shuffle("-", tmp_path / "out-@2.tar", plan=plan)
    other = tars.ustar(pairs_of(7))
    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": io.BytesIO(other)}))
    with pytest.raises(OutputExistsError):
        shuffle("-", tmp_path / "out-@2.tar", plan=plan)
    shuffle("-", tmp_path / "out-@2.tar", plan=plan, exists="overwrite")
    assert multiset(samples_in(tmp_path / "out-@2.tar")) == multiset(tars.samples_of(pairs_of(7)))


@pytest.mark.parametrize("plan", FROM_ANYWHERE)
def test_plain_and_compressed_shards_may_be_mixed(tmp_path: Path, plan: str) -> None:
    (tmp_path / "a.tar").write_bytes(tars.ustar(pairs_of(0)))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(tars.ustar(pairs_of(1))))
    (tmp_path / "c.tar.zst").write_bytes(zstandard.compress(tars.ustar(pairs_of(2))))
    source = "::".join(f"{tmp_path}/{name}" for name in ("c.tar.zst", "a.tar", "b.tar.gz"))
    sort(source, tmp_path / "out-@3.tar", plan=plan)
    assert keys_in(tmp_path / "out-@3.tar") == [f"s{shard}-00{n}" for shard in range(3) for n in range(5)]


@every_plan
def test_an_archive_that_was_packed_twice_under_a_plain_name_is_read(tmp_path: Path, plan: str) -> None:
    """A .tar that is gzip inside, as browsers and mirrors leave it."""
    (tmp_path / "in-0.tar").write_bytes(gzip.compress(WHOLE))
    shuffle(tmp_path / "in-0.tar", tmp_path / "out-@1.tar", plan=plan)
    assert multiset(samples_in(tmp_path / "out-@1.tar")) == multiset(tars.samples_of(PAIRS))
