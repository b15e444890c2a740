"""Files for other readers, judged by the rules of those readers, written here once more from their sources."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tars
from support.tar_reading import URL

from tarmill.errors import SpecError
from tarmill.formats import sidecar_names, sidecars
from tarmill.formats.index import index_shard
from tarmill.formats.sidecars import DaliIndex, ShardFacts

FACTS = [ShardFacts("b/x-1.tar", 3, 4096, "ab" * 16), ShardFacts("a/x-0.tar", 2, 2048, "cd" * 16)]
PAIRS = [("d/a.cls", b"1"), ("d/a.seg.jpg", b"j" * 600), ("d.x/b.cls", b""), ("d.x/b.key", b"k" * 512), ("c.txt", b"t")]


def dali_of(data: bytes) -> bytes:
    dali = DaliIndex(URL)
    index_shard(io.BytesIO(data), URL, visit=dali.add)
    return dali.to_bytes()


def dali_rule(data: bytes) -> bytes:
    """Do as DALI's wds2idx.py: regular files, split at the first dot of the last component, hidden ones left out."""
    samples: list[list[str]] = []
    last = None
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
        for entry in archive:
            if entry.type != tarfile.REGTYPE:
                continue
            dot = entry.name.find(".", entry.name.rfind("/") + 1)
            base, extension = entry.name[:dot], entry.name[dot + 1 :]
            if not base or base.endswith("/"):
                continue
            if base != last:
                samples.append([])
                last = base
            samples[-1].append(f"{extension} {entry.offset_data} {entry.size} {entry.name}")
    lines = [f"v1.2 {len(samples)}", *map(" ".join, samples)]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def dali_reads(index: bytes, data: bytes) -> list[tuple[str, bytes]]:
    """Do as DALI's webdataset_loader.cc: words between blanks, four for each member; name and contents of each."""
    head, *lines = index.decode("utf-8", "surrogateescape").splitlines()
    assert head == f"v1.2 {len(lines)}"
    found = []
    for line in lines:
        words = line.split()
        for extension, offset, size, name in zip(*(iter(words),) * 4, strict=True):
            assert name.endswith("." + extension)
            assert int(offset) % 512 == 0
            found.append((name, data[int(offset) : int(offset) + int(size)]))
    return found


def energon_rule(data: bytes) -> list[int]:
    """Do as energon's prepare.py: the offset of each sample's first header, and of the end of the archive."""
    found, last = [], None
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for entry in archive:
            folder, slash, base = entry.name.rpartition("/")
            key, dot, _ = base.partition(".")
            if entry.isreg() and dot and folder + slash + key != last:
                found.append(entry.offset)
                last = folder + slash + key
        return [*found, archive.offset]


def energon_reads(offsets: Sequence[int], data: bytes) -> list[list[tuple[str, bytes]]]:
    """Do as energon's itar.py: each slice between two offsets is a tar of its own."""
    slices = [data[start:stop] for start, stop in pairwise(offsets)]
    return [tars.tarfile_listing(piece) for piece in slices]


BUILDERS = {
    "ustar": tars.ustar,
    "tarfile, ustar": lambda pairs: tars.by_tarfile(pairs, tarfile.USTAR_FORMAT),
    "tarfile, gnu": lambda pairs: tars.by_tarfile(pairs, tarfile.GNU_FORMAT),
    "tarfile, pax": lambda pairs: tars.by_tarfile(pairs, tarfile.PAX_FORMAT, mtime=1.5),
    "with directories": lambda pairs: tars.header("d/", flag=b"5") + tars.ustar(pairs),
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())
def test_dali_index_is_the_one_that_dali_makes_and_leads_to_the_contents(build):
    data = build(PAIRS)
    index = dali_of(data)
    assert index == dali_rule(data)
    assert dali_reads(index, data) == PAIRS


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())
def test_energon_index_is_the_one_that_energon_makes_and_cuts_samples_apart(build):
    data = build(PAIRS)
    text = sidecars.energon_index(index_shard(io.BytesIO(data), URL), URL)
    offsets = list(struct.unpack(f"={len(text) // 8}Q", text))
    assert offsets == energon_rule(data)
    assert energon_reads(offsets, data) == [PAIRS[:2], PAIRS[2:4], PAIRS[4:]]


parts = st.lists(
    st.tuples(st.lists(st.sampled_from(["a", "b.c", "KEY", "key"]), min_size=1, unique=True), st.binary(max_size=1200)),
    min_size=1,
    max_size=5,
)


@given(parts, st.sampled_from(list(BUILDERS)))
def test_any_samples_are_found_by_both_rules(samples, builder):
    pairs = [(f"s{n}.{field}", body) for n, (fields, body) in enumerate(samples) for field in fields]
    data = BUILDERS[builder](pairs)
    assert dali_of(data) == dali_rule(data)
    text = sidecars.energon_index(index_shard(io.BytesIO(data), URL), URL)
    assert list(struct.unpack(f"={len(text) // 8}Q", text)) == energon_rule(data)


LINKED = tars.member("a.x", b"1") + tars.header("b.x", flag=b"1", link=b"a.x") + tars.END
GLOBAL = tars.pax(tars.pax_record("path", "b.x"), flag=b"g") + tars.member("any", b"2") + tars.END


@pytest.mark.parametrize(("data", "what"), [(LINKED, "hard link"), (GLOBAL, "pax header")], ids=["link", "global"])
def test_energon_index_is_refused_where_a_slice_would_not_tell_all(data, what):
    with pytest.raises(SpecError, match=rf"{URL}.*energon.*'b' needs.*{what}"):
        sidecars.energon_index(index_shard(io.BytesIO(data), URL), URL)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (LINKED, "stored as a hardlink"),
        (tars.old_gnu_sparse("s.bin", [(100, 3)], b"abc", 1024) + tars.END, "stored as a sparse"),
        (tars.ustar([("a b.x", b"")]), "a blank in its name"),
        (tars.ustar([("a.x\ty", b"")]), "a blank in its name"),
        (tars.ustar([("a.x ", b"")]), "a blank in its name"),
        (tars.ustar([("a.", b"")]), "nothing after the dot"),
        (tars.END, "no sample"),
    ],
    ids=["hard link", "sparse", "blank", "tab", "blank at the end", "empty field", "empty shard"],
)
def test_dali_index_is_refused_where_dali_would_misread_it(data, what):
    with pytest.raises(SpecError, match=what):
        dali_of(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (LINKED, "stored as a hardlink"),
        (tars.old_gnu_sparse("s.bin", [(100, 3)], b"abc", 1024) + tars.END, "stored as a sparse"),
        (tars.by_tarfile([("k" * 99 + ".x", b"1")], tarfile.PAX_FORMAT), "more than 100 bytes"),
    ],
    ids=["hard link", "sparse", "long name"],
)
def test_wids_index_is_refused_where_wids_would_misread_the_shard(data, what):
    with pytest.raises(SpecError, match=rf"{URL}: no wids index.*{what}"):
        index_shard(io.BytesIO(data), URL, visit=lambda record: sidecars.check_for_wids(record, URL))


def test_wids_reads_names_of_100_bytes():
    data = tars.ustar([("k" * 98 + ".x", b"1")])
    index_shard(io.BytesIO(data), URL, visit=lambda record: sidecars.check_for_wids(record, URL))


def test_bytes_of_names_come_into_dalis_index_as_they_are():
    assert dali_of(tars.ustar([(b"\xff.x", b"1")])).endswith(b"x 512 1 \xff.x\n")


@pytest.mark.parametrize(
    ("name", "dali"), [("a.tar", "a.idx"), ("d.x/a-0.tar", "d.x/a-0.idx"), ("a.b.tar", "a.idx"), ("a", "a.idx")]
)
def test_dali_index_is_named_as_wds2idx_names_it(name, dali):
    assert sidecar_names.dali_index_name(name) == dali


def test_energon_index_is_named_as_energon_looks_for_it():
    assert sidecar_names.energon_index_name("d/a.tar") == "d/a.tar.idx"
    with pytest.raises(SpecError, match=r"ends with '\.tar'"):
        sidecar_names.energon_index_name("a.shard")


def test_wids_index_has_every_shard_sorted_by_url():
    assert json.loads(sidecars.wids_json(FACTS, "x")) == {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": "x",
        "shardlist": [
            {"url": "a/x-0.tar", "md5sum": "cd" * 16, "nsamples": 2, "filesize": 2048},
            {"url": "b/x-1.tar", "md5sum": "ab" * 16, "nsamples": 3, "filesize": 4096},
        ],
    }


def test_sizes_are_by_base_name_and_keep_what_is_said_of_other_shards():
    known = b'{"val-0.tar": 7, "x-0.tar": 1}'
    assert json.loads(sidecars.sizes_json(FACTS, known)) == {"val-0.tar": 7, "x-0.tar": 2, "x-1.tar": 3}


def test_energon_info_keeps_order_and_other_shards_and_leaves_empty_ones_out():
    known = json.dumps({"energon_version": "7.1", "shard_counts": {"v.tar": 7, "a/x-0.tar": 1}}).encode()
    info = json.loads(sidecars.energon_info([*FACTS, ShardFacts("empty.tar", 0, 1024)], known))
    assert info["energon_version"] == "7.1"
    assert list(info["shard_counts"].items()) == [("v.tar", 7), ("a/x-0.tar", 2), ("b/x-1.tar", 3)]
    assert json.loads(sidecars.energon_info(FACTS)) == {
        "energon_version": None,
        "shard_counts": {"b/x-1.tar": 3, "a/x-0.tar": 2},
    }


def test_timm_info_has_the_split_and_keeps_others_and_their_labels():
    known = json.dumps({"splits": {"val": {"name": "val"}, "x": {"alt_label": "y", "num_samples": 1}}, "more": 1})
    assert json.loads(sidecars.timm_info(FACTS, "x", known.encode())) == {
        "more": 1,
        "splits": {
            "val": {"name": "val"},
            "x": {
                "name": "x",
                "num_samples": 5,
                "filenames": ["b/x-1.tar", "a/x-0.tar"],
                "shard_lengths": [3, 2],
                "alt_label": "y",
            },
        },
    }


@pytest.mark.parametrize("known", [b"{", b"[1]", b"\xff"], ids=["cut", "list", "binary"])
def test_a_file_that_is_there_and_no_such_file_is_not_written_over(known):
    for write in (sidecars.sizes_json, sidecars.energon_info):
        with pytest.raises(SpecError, match="remove it"):
            write(FACTS, known)
    with pytest.raises(SpecError, match="remove it"):
        sidecars.timm_info(FACTS, "x", b'{"splits": []}')


def test_compressed_shards_are_refused_only_for_readers_that_seek():
    sidecar_names.refuse_compressed(URL, "gz", ("sizes", "timm"))
    sidecar_names.refuse_compressed(URL, "none", sidecar_names.SIDECARS)
    with pytest.raises(SpecError, match=r"compressed \(zst\).*only into plain tars.*leave out wids, energon, dali"):
        sidecar_names.refuse_compressed(URL, "zst", sidecar_names.SIDECARS)
