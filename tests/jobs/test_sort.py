"""What a sort writes: the order that Python would give, stable over shards; and what a reduce leaves of each group."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tars
from support.maps import bytes_of, records_in
from support.reorders import (
    PLANS,
    every_plan,
    keys_in,
    manifest_of,
    multiset,
    one_shard_a_task,
    put_records,
    put_shards,
    samples_in,
    sizes_in,
    sort,
)

from tarmill.errors import JobFailed, SpecError, UsageError
from tarmill.jobs import verify
from tarmill.spec import RunOptions

Record = dict[str, Any]


def put(folder: Path, shards: Sequence[Sequence[Record]], name: str = "in") -> str:
    """Write such shards, and give their pattern."""
    for number, records in enumerate(shards):
        put_records(folder / f"{name}-{number:03d}.tar", records)
    return f"{folder}/{name}-@{len(shards):03d}.tar"


def record(key: str, **fields: Any) -> Record:
    return {
        "__key__": key,
        **{name: str(value).encode() if not isinstance(value, bytes) else value for name, value in fields.items()},
    }


def sorted_keys(folder: Path, source: str, keys: str | tuple[str, ...] = (), **fields: Any) -> list[str]:
    """The keys of all samples after a sort."""
    sort(source, folder / "out-@.tar", keys=keys, exists="overwrite", **fields)
    return keys_in(folder / "out-@.tar")


# Orders

NAMES = ["b", "a/b", "a", "ab", "a-", "é", "Z", "aa/a", "10", "9", "a0", "\N{SNOWMAN}", "\U0001f600"]


@every_plan
def test_samples_are_sorted_by_name_when_nothing_is_said(tmp_path: Path, plan: str) -> None:
    source = put(tmp_path, [[record(name, t=name) for name in NAMES[i::3]] for i in range(3)])
    assert sorted_keys(tmp_path, source, plan=plan) == sorted(NAMES)
    assert manifest_of(tmp_path / "out-@.tar")["keys"] == ["__key__"]
    assert sizes_in(tmp_path / "out-@.tar") == [4, 4, 5]


@every_plan
def test_descending_is_the_other_way_round(tmp_path: Path, plan: str) -> None:
    source = put(tmp_path, [[record(name, t=name) for name in NAMES[i::3]] for i in range(3)])
    assert sorted_keys(tmp_path, source, "__key__:desc", plan=plan) == sorted(NAMES, reverse=True)
    assert manifest_of(tmp_path / "out-@.tar")["keys"] == ["__key__:desc"]


SCRIPT = """
def setup(params):
    global turn
    turn = int(params["turn"])
def sort_key(record):
    return (int(record["n"]) * turn) % 17, record["key"]
"""

KEYS: dict[str, tuple[str | tuple[str, ...], Callable[[Record], Any], dict[str, Any]]] = {
    "bytes": ("n", lambda r: r["n"], {}),
    "int": ("n:int", lambda r: int(r["n"]), {}),
    "int desc": ("n:int:desc", lambda r: -int(r["n"]), {}),
    "float": ("f:float", lambda r: float(r["f"]), {}),
    "JSON path": ("meta.json:score", lambda r: json.loads(r["meta.json"])["score"], {}),
    "JSON path, float, desc": ("meta.json:score:float:desc", lambda r: -json.loads(r["meta.json"])["score"], {}),
    "JSON path, deep": ("meta.json:tags[1].name", lambda r: json.loads(r["meta.json"])["tags"][1]["name"], {}),
    "natural": ("__key__:natural", lambda r: tuple(map(int, r["__key__"][1:].split("x"))), {}),
    "several": (("c:int,f:float:desc", "__key__"), lambda r: (int(r["c"]), -float(r["f"]), r["__key__"]), {}),
    "script": (
        "script",
        lambda r: ((int(r["n"]) * 5) % 17, r["__key__"]),
        {"script": SCRIPT, "params": {"turn": "5"}},
    ),
}


def varied(count: int = 60) -> list[Record]:
    """Samples whose fields do not agree about an order."""
    draw = random.Random(7)
    return [
        record(
            f"k{draw.randrange(30)}x{number:03d}",
            n=draw.choice([draw.randrange(-50, 50), draw.randrange(10**30)]),
            f=draw.choice([draw.uniform(-1, 1), draw.uniform(-1e300, 1e300), "1e-5", "-0", "0"]),
            c=draw.randrange(3),
            **{
                "meta.json": json.dumps(
                    {"score": draw.randrange(-9, 9) / 4, "tags": [None, {"name": draw.choice("abcé")}]}
                )
            },
        )
        for number in range(count)
    ]


@every_plan
@pytest.mark.parametrize("name", KEYS)
def test_the_order_is_pythons_with_the_same_key(tmp_path: Path, plan: str, name: str) -> None:
    keys, key, fields = KEYS[name]
    records = varied()
    source = put(tmp_path, [records[:7], [], records[7:40], records[40:]])
    wanted = [one["__key__"] for one in sorted(records, key=key)]
    assert sorted_keys(tmp_path, source, keys, plan=plan, **fields) == wanted


@every_plan
def test_the_url_is_a_key_too(tmp_path: Path, plan: str) -> None:
    source = put(tmp_path, [[record(f"{shard}-{n}", t=b"") for n in range(3)] for shard in range(3)])
    wanted = [f"{shard}-{n}" for shard in (2, 1, 0) for n in range(3)]
    assert sorted_keys(tmp_path, source, "__url__:desc", plan=plan) == wanted


VALUES = {
    "t": st.binary(max_size=3) | st.sampled_from([b"", b"\0", b"\0\0", b"a\0", b"a\0b", b"a", b"\xff"]),
    "i:int": st.integers(-300, 300) | st.integers(-(10**40), 10**40),
    "f:float": st.floats(allow_nan=False),
}


@settings(max_examples=25)
@given(st.data())
def test_any_data_in_any_shards_is_sorted_as_python_sorts_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("any")
    columns = data.draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True, max_size=3))
    turned = [data.draw(st.booleans()) for _ in columns]
    rows = data.draw(st.lists(st.tuples(st.sampled_from("abc"), *(VALUES[name] for name in VALUES)), max_size=25))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    records = [
        record(f"{letter}{number}", **dict(zip(("t", "i", "f"), values, strict=True)))
        for number, (letter, *values) in enumerate(rows)
    ]
    edges = [0, *cuts, len(rows)]
    source = put(folder, [records[begin:end] for begin, end in itertools.pairwise(edges)])
    ordered = list(range(len(rows)))
    for name, reverse in reversed(list(zip(columns, turned, strict=True))):  # stable: the first counts most
        column = list(VALUES).index(name) + 1
        ordered = _stably(ordered, [row[column] for row in rows], reverse)
    if not columns:
        ordered.sort(key=lambda number: records[number]["__key__"])
    keys = tuple(f"{name}:desc" if reverse else name for name, reverse in zip(columns, turned, strict=True))
    plan = data.draw(st.sampled_from(PLANS))
    assert sorted_keys(folder, source, keys, plan=plan) == [records[number]["__key__"] for number in ordered]


def _stably(numbers: list[int], values: list[Any], reverse: bool) -> list[int]:
    """Sort by values, equal ones in the order they had, whichever the direction."""
    return sorted(numbers, key=values.__getitem__, reverse=reverse)  # Python keeps the order of equals in both


@every_plan
def test_a_script_may_give_all_kinds_of_keys(tmp_path: Path, plan: str) -> None:
    script = "def sort_key(record):\n    return eval(record['t'])\n"
    wanted = ["-1", "0.5", "True", "2", "'a'", "'b'", "b'a'", "(1, 'a')", "(1, 'b')"]
    source = put(tmp_path, [[record(f"k{wanted.index(text)}", t=text) for text in reversed(wanted)]])
    assert sorted_keys(tmp_path, source, "script", script=script, plan=plan) == [f"k{n}" for n in range(len(wanted))]


# Ties


@every_plan
@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_equal_keys_stay_in_the_order_of_the_input_within_and_across_shards(
    tmp_path: Path, plan: str, direction: str
) -> None:
    draw = random.Random(3)
    shards = [[record(f"s{shard}-{n:02d}", c=draw.randrange(3)) for n in range(9)] for shard in range(4)]
    records = [one for shard in shards for one in shard]
    wanted = sorted(records, key=lambda one: one["c"], reverse=direction == "desc")
    found = sorted_keys(tmp_path, put(tmp_path, shards), f"c:int:{direction}", plan=plan, num_shards=5)
    assert found == [one["__key__"] for one in wanted]


@every_plan
@pytest.mark.parametrize("workers", [1, 2])
def test_all_keys_equal_leave_the_order_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str, workers: int
) -> None:
    one_shard_a_task(monkeypatch)
    shards = [[record(f"s{shard}-{n:02d}", c=7) for n in range(9)] for shard in range(4)]
    found = sorted_keys(tmp_path, put(tmp_path, shards), "c:int", plan=plan, workers=workers, num_shards=5)
    assert found == [one["__key__"] for shard in shards for one in shard]
    assert sizes_in(tmp_path / "out-@.tar") == [7, 7, 7, 7, 8]


@every_plan
def test_equal_names_come_side_by_side_and_are_told_apart(tmp_path: Path, plan: str) -> None:
    shards = [[record(key, t=f"{shard} {key}") for key in "abc"] for shard in range(3)]
    report = sort(put(tmp_path, shards), tmp_path / "out-@.tar", plan=plan, samples_per_shard=4)
    assert keys_in(tmp_path / "out-@.tar") == ["a", "a-1", "a-2", "b", "b", "b-1", "c", "c-1", "c"]
    assert [one["t"].decode() for one in samples_in(tmp_path / "out-@.tar")] == [
        f"{shard} {key}" for key in "abc" for shard in range(3)
    ]
    assert report.counts.renamed == 4
    for name, data in bytes_of(tmp_path).items():
        assert tars.webdataset_listing(data) == records_in(tmp_path / name)
    assert "renamed" in report.to_dict()["samples"]


def test_equal_names_side_by_side_are_refused_when_asked_for(tmp_path: Path) -> None:
    source = put(tmp_path, [[record("a", t=1)], [record("a", t=2)]])
    with pytest.raises(JobFailed, match="--same-key rename"):
        sort(source, tmp_path / "out-@1.tar", same_key="fail")
    assert not (tmp_path / "out.manifest.json").exists()
    sort(source, tmp_path / "out-@2.tar", same_key="fail")  # each in its own shard


# Missing and unparsable

HOLES = [[record("a", s=3), record("b", t=b"")], [record("c", s=1), record("d", s="x"), record("e", s=2)]]


@every_plan
@pytest.mark.parametrize("direction", ["asc", "desc"])
@pytest.mark.parametrize("missing", ["first", "last", "drop"])
def test_samples_without_a_key_have_a_stated_place_and_are_counted(
    tmp_path: Path, plan: str, missing: str, direction: str
) -> None:
    source = put(tmp_path, HOLES)
    report = sort(source, tmp_path / "out-@.tar", plan=plan, keys=f"s:int:{direction}", missing=missing)
    good = ["c", "e", "a"] if direction == "asc" else ["a", "e", "c"]
    wanted = {"first": ["b", "d", *good], "last": [*good, "b", "d"], "drop": good}[missing]
    assert keys_in(tmp_path / "out-@.tar") == wanted
    told = {"missing-key": 1, "unparsable-key": 1}
    assert report.counts.dropped == (told if missing == "drop" else {})
    assert report.counts.kept_damaged == ({} if missing == "drop" else told)
    assert report.counts.errors == 0
    assert report.counts.read == 5


@every_plan
def test_a_sample_without_a_key_is_an_error_that_names_it(tmp_path: Path, plan: str) -> None:
    with pytest.raises(JobFailed) as caught:
        sort(put(tmp_path, HOLES), tmp_path / "out-@.tar", plan=plan, keys="s:int")
    for words in ("'b'", "in-000.tar", "s:int", "--missing first|last|drop"):
        assert words in caught.value.message
    assert bytes_of(tmp_path) == {}


@every_plan
def test_samples_without_a_key_are_bad_samples_that_may_be_skipped(tmp_path: Path, plan: str) -> None:
    report = sort(put(tmp_path, HOLES), tmp_path / "out-@.tar", plan=plan, keys="s:int", on_error="skip")
    assert keys_in(tmp_path / "out-@.tar") == ["c", "e", "a"]
    assert report.counts.dropped == {"missing-key-error": 1, "unparsable-key-error": 1}
    assert report.counts.errors == 2


@every_plan
def test_samples_without_a_key_stop_their_shard_when_asked_for(tmp_path: Path, plan: str) -> None:
    report = sort(put(tmp_path, HOLES), tmp_path / "out-@.tar", plan=plan, keys="s:int", on_error="stop")
    assert keys_in(tmp_path / "out-@.tar") == ["c", "a"]
    assert report.counts.written == 2


@every_plan
def test_samples_on_which_the_script_fails_may_be_skipped(tmp_path: Path, plan: str) -> None:
    script = "def sort_key(record):\n    return 1 / int(record['s'])\n"
    shards = [[record("a", s=1), record("b", s=0)], [record("c", s=2), record("d", s="x")]]
    source = put(tmp_path, shards)
    with pytest.raises(JobFailed, match="ZeroDivisionError") as caught:
        sort(source, tmp_path / "out-@.tar", plan=plan, keys="script", script=script)
    assert "'b'" in caught.value.message
    report = sort(source, tmp_path / "skip-@.tar", plan=plan, keys="script", script=script, on_error="skip")
    assert keys_in(tmp_path / "skip-@.tar") == ["c", "a"]
    assert report.counts.dropped == {"script-error": 2}


@every_plan
def test_all_samples_dropped_leave_no_shards(tmp_path: Path, plan: str) -> None:
    report = sort(put(tmp_path, HOLES), tmp_path / "out-@.tar", plan=plan, keys="nothing", missing="drop")
    assert bytes_of(tmp_path) == {}
    assert report.counts.dropped == {"missing-key": 5}


# Long keys


@every_plan
@pytest.mark.parametrize("field", ["__key__", "t"])
@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_keys_of_10_kb_are_sorted_to_their_last_byte(tmp_path: Path, plan: str, field: str, direction: str) -> None:
    tails = ["b", "a", "", "ab", "c", "aa"]
    records = [
        record("n" * 10_000 + tail, t=b"") if field == "__key__" else record(f"k{n}", t="n" * 10_000 + tail)
        for n, tail in enumerate(tails)
    ]
    source = put(tmp_path, [records[:2], records[2:]])
    ordered = sorted(records, key=lambda one: one[field], reverse=direction == "desc")
    found = sorted_keys(tmp_path, source, f"{field}:{direction}", plan=plan)
    assert found == [one["__key__"] for one in ordered]


@every_plan
@pytest.mark.parametrize(
    "byte",
    [b"p", b"\xff", b"\0"],
    ids=["a letter", "a high byte", "a zero byte"],
)
def test_keys_that_share_more_than_the_index_keeps_are_told_apart(tmp_path: Path, plan: str, byte: bytes) -> None:
    """With each of some bytes at the place where the index cuts."""
    records = [
        record(f"k{length}-{number}", t=b"p" * length + end)
        for length in range(246, 260)
        for number, end in enumerate([byte + b"b", byte + b"a", byte * 3, byte, byte + byte + b"b", b""])
    ]
    source = put(tmp_path, [records[i::3] for i in range(3)])
    given_order = [one for i in range(3) for one in records[i::3]]
    for direction in ("asc", "desc"):
        wanted = sorted(given_order, key=lambda one: one["t"], reverse=direction == "desc")
        found = sorted_keys(tmp_path, source, f"t:bytes:{direction}", plan=plan)
        assert found == [one["__key__"] for one in wanted]


@every_plan
def test_long_equal_keys_keep_their_order(tmp_path: Path, plan: str) -> None:
    shards = [[record(f"s{shard}-{n}", t="x" * 300 + "ab"[n % 2]) for n in range(6)] for shard in range(3)]
    records = [one for shard in shards for one in shard]
    found = sorted_keys(tmp_path, put(tmp_path, shards), "t", plan=plan)
    assert found == [one["__key__"] for one in sorted(records, key=lambda one: one["t"])]


@every_plan
def test_a_second_key_decides_behind_a_long_first_one(tmp_path: Path, plan: str) -> None:
    records = [record(f"k{n}", t="x" * 400, n=(n * 7) % 10) for n in range(10)]
    found = sorted_keys(tmp_path, put(tmp_path, [records[:5], records[5:]]), "t,n:int", plan=plan)
    assert found == [one["__key__"] for one in sorted(records, key=lambda one: int(one["n"]))]


# The same bytes


@pytest.mark.parametrize("fields", [{"keys": "t"}, {"keys": "c:int", "reduce": "count"}])
def test_bytes_do_not_depend_on_plan_or_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    one_shard_a_task(monkeypatch)
    draw = random.Random(5)
    shards = [
        [record(f"s{shard}-{n:02d}", c=draw.randrange(5), t="x" * 300 * draw.randrange(2)) for n in range(8)]
        for shard in range(6)
    ]
    source = put(tmp_path, shards)
    found = []
    for plan, workers in itertools.product(PLANS, (1, 3)):
        if plan == "memory" and workers > 1:
            continue  # which has none
        place = tmp_path / f"{plan}-{workers}"
        sort(source, place / "out-@4.tar.gz", plan=plan, workers=workers, **fields)
        found.append(bytes_of(place))
    assert all(one == found[0] for one in found)
    assert len(found[0]) == 4


def test_a_sorted_data_set_is_a_permutation_of_its_input(tmp_path: Path) -> None:
    source = put_shards(tmp_path, 3, 10)
    sort(source, tmp_path / "out-@4.tar", keys="txt:desc")
    assert verify.run(f"{tmp_path}/out-@4.tar", source, options=RunOptions(workers=1)).ok


# Reduce

CLASSES = [[record(f"s{shard}-{n}", cls=(shard + n) % 3, t=f"{shard} {n}") for n in range(5)] for shard in range(3)]
OF_CLASS = Counter(one["cls"].decode() for shard in CLASSES for one in shard)


@every_plan
def test_count_gives_a_sample_for_each_class(tmp_path: Path, plan: str) -> None:
    report = sort(put(tmp_path, CLASSES), tmp_path / "out-@1.tar", plan=plan, keys="cls:int", reduce="count")
    found = samples_in(tmp_path / "out-@1.tar")
    assert {one["__key__"]: int(one["count"]) for one in found} == OF_CLASS
    assert [one["value"] for one in found] == [b"0", b"1", b"2"]
    assert report.counts.dropped == {"counted": 12}
    assert (report.counts.read, report.counts.written) == (15, 3)


@every_plan
@pytest.mark.parametrize(("reduce", "reason", "place"), [("first", "not-first", 0), ("last", "not-last", -1)])
def test_first_and_last_keep_one_sample_of_each_class(
    tmp_path: Path, plan: str, reduce: str, reason: str, place: int
) -> None:
    report = sort(put(tmp_path, CLASSES), tmp_path / "out-@1.tar", plan=plan, keys="cls:int", reduce=reduce)
    classes = defaultdict(list)
    for one in itertools.chain.from_iterable(CLASSES):
        classes[one["cls"]].append(one)
    assert samples_in(tmp_path / "out-@1.tar") == [classes[name][place] for name in sorted(classes)]
    assert report.counts.dropped == {reason: 12}


@every_plan
def test_a_second_order_within_groups_decides_which_is_first(tmp_path: Path, plan: str) -> None:
    """The best of each class: grouped by class, sorted by score."""
    draw = random.Random(1)
    shards = [
        [record(f"s{shard}-{n}", cls=draw.randrange(4), score=draw.random()) for n in range(12)] for shard in range(3)
    ]
    report = sort(
        put(tmp_path, shards),
        tmp_path / "out-@2.tar",
        plan=plan,
        keys="score:float:desc",
        group_by="cls:int",
        reduce="first",
    )
    best: dict[bytes, Record] = {}
    for one in itertools.chain.from_iterable(shards):
        if one["cls"] not in best or float(one["score"]) > float(best[one["cls"]]["score"]):
            best[one["cls"]] = one
    assert samples_in(tmp_path / "out-@2.tar") == [best[name] for name in sorted(best)]
    assert report.counts.dropped == {"not-first": 36 - len(best)}


@every_plan
@pytest.mark.parametrize("by", ["key", "content"])
def test_dedup_keeps_one_of_each(tmp_path: Path, plan: str, by: str) -> None:
    shards = [[record("a", t=1), record("b", t=2)], [record("a", t=1), record("c", t=2)], [record("a", t=3)]]
    report = sort(put(tmp_path, shards), tmp_path / "out-@1.tar", plan=plan, reduce="dedup", dedup_by=by)
    found = samples_in(tmp_path / "out-@1.tar")
    if by == "key":
        assert found == [record("a", t=1), record("b", t=2), record("c", t=2)]
    else:
        assert multiset(found, keys=False) == multiset([record("", t=t) for t in (1, 3, 2, 2)], keys=False)
    assert report.counts.dropped == {"duplicate": 5 - len(found)}


IMAGES = [[record("a", jpg="A"), record("b", jpg="B")], [record("c", jpg="C")]]
CAPTIONS = [[record("c", txt="see"), record("a", txt="ay")], [record("d", txt="dee")]]


@every_plan
@pytest.mark.parametrize("join", ["inner", "outer", "left"])
def test_merge_joins_the_fields_of_two_data_sets(tmp_path: Path, plan: str, join: str) -> None:
    source = f"{put(tmp_path, IMAGES, 'images')}::{put(tmp_path, CAPTIONS, 'captions')}"
    report = sort(source, tmp_path / "out-@1.tar", plan=plan, reduce="merge", join=join)
    whole = {
        "a": record("a", jpg="A", txt="ay"),
        "b": record("b", jpg="B"),
        "c": record("c", jpg="C", txt="see"),
        "d": record("d", txt="dee"),
    }
    wanted = {"inner": "ac", "outer": "abcd", "left": "abc"}[join]
    assert samples_in(tmp_path / "out-@1.tar") == [whole[key] for key in wanted]
    merged = {"merged": 2}
    assert report.counts.dropped == merged | ({} if join == "outer" else {"not-joined": 4 - len(wanted)})


@every_plan
def test_merge_tells_a_field_that_both_have(tmp_path: Path, plan: str) -> None:
    source = f"{put(tmp_path, IMAGES, 'a')}::{put(tmp_path, IMAGES, 'b')}"
    with pytest.raises(JobFailed) as caught:
        sort(source, tmp_path / "out-@1.tar", plan=plan, reduce="merge")
    for words in ("'jpg'", "a-000.tar", "b-000.tar", "--same-field"):
        assert words in caught.value.message
    sort(source, tmp_path / "two-@1.tar", plan=plan, reduce="merge", same_field="rename")
    assert samples_in(tmp_path / "two-@1.tar")[0] == {"__key__": "a", "jpg": b"A", "2.jpg": b"A"}


@every_plan
def test_concat_joins_contents_in_order(tmp_path: Path, plan: str) -> None:
    report = sort(put(tmp_path, CLASSES), tmp_path / "out-@1.tar", plan=plan, keys="cls:int", reduce="concat")
    wanted = defaultdict(bytes)
    for one in itertools.chain.from_iterable(CLASSES):
        wanted[one["cls"]] += one["t"]
    assert [one["t"] for one in samples_in(tmp_path / "out-@1.tar")] == [wanted[name] for name in sorted(wanted)]
    assert report.counts.dropped == {"merged": 12}


SCRIPTS: dict[str, tuple[str, list[str], dict[str, int], int]] = {
    "one": ("return {'n': str(sum(1 for _ in samples))}", ["0", "1", "2"], {"by-reduce": 12}, 0),
    "none": ("return None", [], {"by-reduce": 15}, 0),
    "some": ("return None if key == 1 else next(samples)", ["s0-0", "s0-2"], {"by-reduce": 13}, 0),
    "all": (
        "yield from samples",
        [one["__key__"] for one in sorted(itertools.chain.from_iterable(CLASSES), key=lambda one: one["cls"])],
        {},
        0,
    ),
    "more": (
        "for r in samples:\n        yield {**r, '__key__': r['key'] + 'x', 'key': b''}\n"
        "        yield {**r, '__key__': r['key'] + 'y', 'key': b''}",
        [
            one["__key__"] + letter
            for one in sorted(itertools.chain.from_iterable(CLASSES), key=lambda one: one["cls"])
            for letter in "xy"
        ],
        {},
        15,
    ),
    "a list": ("return [{'__key__': f'{key}-{n}', 'n': b''} for n in range(2)]", [], {"by-reduce": 9}, 0),
}


@every_plan
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_reduces_each_group_to_what_it_likes(tmp_path: Path, plan: str, name: str) -> None:
    body, keys, dropped, added = SCRIPTS[name]
    script = f"def reduce_samples(key, samples):\n    {body}\n"
    report = sort(put(tmp_path, CLASSES), tmp_path / "out-@2.tar", plan=plan, keys="cls:int", reduce_script=script)
    if name == "a list":
        keys = [f"{cls}-{n}" for cls in range(3) for n in range(2)]
    assert keys_in(tmp_path / "out-@2.tar") == keys
    assert (report.counts.dropped, report.counts.added) == (dropped, added)
    assert report.counts.read == 15


@every_plan
def test_a_script_sees_typed_keys_and_samples_in_order(tmp_path: Path, plan: str) -> None:
    script = (
        "def reduce_samples(key, samples):\n"
        "    found = [r['key'] for r in samples]\n"
        "    return {'__key__': 'x', 'seen': repr((key, found))}\n"
    )
    sort(
        put(tmp_path, CLASSES),
        tmp_path / "out-@1.tar",
        plan=plan,
        keys="t:bytes:desc",
        group_by="cls:int",
        reduce_script=script,
    )
    seen = [eval(one["seen"]) for one in samples_in(tmp_path / "out-@1.tar")]
    for cls in range(3):
        members = [one for one in itertools.chain.from_iterable(CLASSES) if int(one["cls"]) == cls]
        members.sort(key=lambda one: one["t"], reverse=True)
        assert seen[cls] == (cls, [one["__key__"] for one in members])


LAZY = """
import gc
def reduce_samples(key, samples):
    seen = alive = 0
    for record in samples:
        seen += 1
        del record
        if seen % 50 == 0:
            alive = max(alive, sum(isinstance(o, dict) and "__url__" in o for o in gc.get_objects()))
    return {"seen": str(seen), "alive": str(alive)}
"""


@every_plan
def test_samples_of_a_large_group_come_one_by_one(tmp_path: Path, plan: str) -> None:
    source = put(tmp_path, [[record(f"s{shard}-{n:03d}", c=0) for n in range(200)] for shard in range(2)])
    sort(source, tmp_path / "out-@1.tar", plan=plan, keys="c:int", reduce_script=LAZY)
    (found,) = samples_in(tmp_path / "out-@1.tar")
    assert found["seen"] == b"400"
    assert int(found["alive"]) < 50


@every_plan
@pytest.mark.parametrize("cut", [{"num_shards": 4}, {"samples_per_shard": 10}, {"shard_size": 12_000}])
def test_a_group_of_nearly_all_samples_stays_together(tmp_path: Path, plan: str, cut: dict[str, int]) -> None:
    draw = random.Random(2)
    shards = [
        [record(f"s{shard}-{n:02d}", c=5 if n % 10 else draw.randrange(10)) for n in range(20)] for shard in range(4)
    ]
    wanted = Counter(int(one["c"]) for shard in shards for one in shard)
    assert wanted[5] >= 0.9 * 80
    report = sort(put(tmp_path, shards), tmp_path / "out-@.tar", plan=plan, keys="c:int", reduce="count", **cut)
    assert {int(one["value"]): int(one["count"]) for one in samples_in(tmp_path / "out-@.tar")} == wanted
    assert report.counts.dropped == {"counted": 80 - len(wanted)}


@every_plan
def test_groups_are_never_cut_by_the_border_of_a_shard(tmp_path: Path, plan: str) -> None:
    """Groups of three, shards of one to twelve samples: the border falls everywhere."""
    source = put(tmp_path, [[record(f"s{shard}-{n}", c=n) for n in range(8)] for shard in range(3)])
    for each in range(1, 13):
        sort(
            source,
            tmp_path / "out-@.tar",
            plan=plan,
            keys="c:int",
            reduce="count",
            samples_per_shard=each,
            exists="overwrite",
        )
        assert [one["count"] for one in samples_in(tmp_path / "out-@.tar")] == [b"3"] * 8


@every_plan
def test_exact_cuts_count_what_comes_out_of_the_reduce(tmp_path: Path, plan: str) -> None:
    source = put(tmp_path, [[record(f"s{shard}-{n:02d}", c=n) for n in range(20)] for shard in range(3)])
    sort(source, tmp_path / "out-@.tar", plan=plan, keys="c:int", reduce="first", samples_per_shard=6, exact=True)
    assert sizes_in(tmp_path / "out-@.tar") == [6, 6, 6, 2]


@every_plan
def test_a_reduce_leaves_no_empty_shards_where_their_number_is_open(tmp_path: Path, plan: str) -> None:
    source = put(tmp_path, [[record(f"s{shard}-{n:02d}", c=n // 9) for n in range(10)] for shard in range(3)])
    fields: dict[str, Any] = {"plan": plan, "keys": "c:int", "reduce": "count", "samples_per_shard": 4}
    sort(source, tmp_path / "out-@.tar", **fields)
    assert sum(sizes_in(tmp_path / "out-@.tar")) == 2
    assert all(sizes_in(tmp_path / "out-@.tar"))


@every_plan
@pytest.mark.parametrize("reduce", ["first", "last", "count", "dedup", "merge", "concat"])
def test_combining_first_gives_the_same_samples(tmp_path: Path, plan: str, reduce: str) -> None:
    fields: dict[str, Any] = {"same_field": "rename"} if reduce == "merge" else {}
    source = put(tmp_path, CLASSES)
    for name in ("plain", "combined"):
        sort(
            source,
            tmp_path / name / "out-@2.tar",
            plan=plan,
            keys="cls:int",
            reduce=reduce,
            combine=name == "combined",
            **fields,
        )
    assert samples_in(tmp_path / "plain" / "out-@2.tar") == samples_in(tmp_path / "combined" / "out-@2.tar")


@every_plan
def test_missing_keys_form_a_group_of_their_own(tmp_path: Path, plan: str) -> None:
    sort(put(tmp_path, HOLES), tmp_path / "out-@1.tar", plan=plan, keys="s:int", missing="last", reduce="count")
    assert keys_in(tmp_path / "out-@1.tar") == ["1", "2", "3", "missing"]


@every_plan
@pytest.mark.parametrize("long", [False, True])
def test_groups_of_long_keys_are_told_apart(tmp_path: Path, plan: str, long: bool) -> None:
    prefix = "x" * (400 if long else 3)
    shards = [[record(f"s{shard}-{n}", t=prefix + "ab"[n % 2]) for n in range(4)] for shard in range(3)]
    sort(put(tmp_path, shards), tmp_path / "out-@1.tar", plan=plan, keys="t", reduce="count")
    assert [one["count"] for one in samples_in(tmp_path / "out-@1.tar")] == [b"6", b"6"]


@every_plan
def test_a_reduce_by_name_finds_equal_names_that_are_long(tmp_path: Path, plan: str) -> None:
    names = ["n" * 300 + tail for tail in "ab"]
    source = put(tmp_path, [[record(name, t=shard) for name in names] for shard in range(3)])
    sort(source, tmp_path / "out-@1.tar", plan=plan, reduce="last")
    assert samples_in(tmp_path / "out-@1.tar") == [record(name, t=2) for name in names]


@every_plan
def test_results_with_equal_keys_are_told_apart(tmp_path: Path, plan: str) -> None:
    script = "def reduce_samples(key, samples):\n    for r in samples:\n        yield {'__key__': 'x', 't': r['t']}\n"
    report = sort(put(tmp_path, CLASSES), tmp_path / "out-@1.tar", plan=plan, keys="cls", reduce_script=script)
    keys = keys_in(tmp_path / "out-@1.tar")
    assert len(keys) == 15
    assert all(one != two for one, two in itertools.pairwise(keys))
    assert report.counts.renamed == sum(key != "x" for key in keys)
    with pytest.raises(JobFailed, match="--same-key rename"):
        sort(
            put(tmp_path, CLASSES),
            tmp_path / "two-@1.tar",
            plan=plan,
            keys="cls",
            reduce_script=script,
            same_key="fail",
        )


@every_plan
@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_a_reduce_that_fails_on_a_group_is_told_or_leaves_it_out(tmp_path: Path, plan: str, policy: str) -> None:
    script = "def reduce_samples(key, samples):\n    return {'n': str(1 / (key - 1))}\n"
    fields: dict[str, Any] = {"plan": plan, "keys": "cls:int", "reduce_script": script, "on_error": policy}
    source = put(tmp_path, CLASSES)
    if policy == "fail":
        with pytest.raises(JobFailed, match="ZeroDivisionError"):
            sort(source, tmp_path / "out-@1.tar", **fields)
        assert not (tmp_path / "out.manifest.json").exists()
        return
    report = sort(source, tmp_path / "out-@1.tar", **fields)
    assert len(samples_in(tmp_path / "out-@1.tar")) == 2
    assert report.counts.dropped == {"script-error": OF_CLASS["1"], "by-reduce": 15 - OF_CLASS["1"] - 2}


@every_plan
def test_one_group_per_sample_and_one_group_of_all(tmp_path: Path, plan: str) -> None:
    source = put_shards(tmp_path, 3, 10)
    report = sort(source, tmp_path / "each-@3.tar", plan=plan, reduce="count")
    assert {one["count"] for one in samples_in(tmp_path / "each-@3.tar")} == {b"1"}
    assert report.counts.dropped == {}
    script = "def sort_key(record):\n    return 0\n"
    sort(source, tmp_path / "all-@1.tar", plan=plan, keys="script", script=script, reduce="count")
    assert [one["count"] for one in samples_in(tmp_path / "all-@1.tar")] == [b"30"]


@every_plan
def test_nothing_to_reduce_gives_no_shards(tmp_path: Path, plan: str) -> None:
    (tmp_path / "in-0.tar").write_bytes(tars.END)
    sort(tmp_path / "in-@1.tar", tmp_path / "out-@.tar", plan=plan, reduce="count")
    assert bytes_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"keys": "n:int:int"}, "out of place"),
        ({"keys": "script"}, "script"),
        ({"keys": "a,a"}, "twice"),
        ({"group_by": "a"}, "--reduce"),
        ({"exact": True}, "--reduce"),
        ({"combine": True}, "--reduce"),
        ({"reduce": "count", "join": "inner"}, "merge"),
        ({"reduce": "first", "dedup_by": "content"}, "dedup"),
        ({"reduce": "first", "reduce_script": "def reduce_samples(key, samples): ..."}, "-r"),
        ({"reduce_script": "def reduce(key, samples): ..."}, "reduce_samples"),
        ({"missing": "skip"}, "first"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    from tarmill.errors import TarmillError

    source = put(tmp_path, CLASSES)
    with pytest.raises(TarmillError) as caught:
        sort(source, tmp_path / "out-@1.tar", **fields)
    assert words in caught.value.message
    assert not (tmp_path / "_tarmill").exists()
    assert isinstance(caught.value, UsageError | SpecError) or "reduce_samples" in words


def test_floats_that_are_no_numbers_stand_last(tmp_path: Path) -> None:
    source = put(
        tmp_path, [[record("a", f="nan"), record("b", f="inf"), record("c", f="-inf"), record("d", f=math.pi)]]
    )
    assert sorted_keys(tmp_path, source, "f:float") == ["c", "d", "b", "a"]
