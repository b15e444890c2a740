"""The reduce step of a sort: what each reduce leaves, that its books balance, that it holds no group in memory."""

from __future__ import annotations

import io
import json
import pickle
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise, repeat
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarmill.errors import LimitError, SampleError, ScriptError, SpecError, StorageError, TarmillError
from tarmill.formats.samples import Record
from tarmill.formats.tar_read import iter_samples
from tarmill.formats.tar_write import TarSink, check_key
from tarmill.jobs.reduce import (
    Reducer,
    check_scripts,
    check_spec,
    combinable,
    load_sort_key,
    make_combiner,
    make_reducer,
)
from tarmill.jobs.reduce_builtin import storable_key
from tarmill.spec import SortSpec

Group = list[Record]


def spec(reduce: str = "", body: str = "", **fields: Any) -> SortSpec:
    """A sort that reduces: by name, or by a `reduce_samples` with this body."""
    if body:
        fields["reduce_script"] = "def reduce_samples(key, samples):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    return SortSpec(input="in.tar", output="out-@.tar", reduce=reduce, **fields)


def sample(key: str, part: int = 0, **fields: bytes) -> Record:
    names = {name.replace("_", "."): value for name, value in fields.items()}
    return {"__key__": key, "__url__": f"mem://{part}.tar", "key": key, "__part__": part, **names}


def fields_of(record: Record) -> dict[str, Any]:
    return {k: v for k, v in record.items() if not k.startswith("__") and (k != "key" or not isinstance(v, str))}


def copies(group: Iterable[Record]) -> Iterator[Record]:
    return iter([dict(record) for record in group])


def reduced(job: SortSpec, group: Iterable[Record], key: Any = "a", parts: int = 2) -> list[tuple[str, dict[str, Any]]]:
    """(key, fields) of what a reduce leaves of one group."""
    return [(name, fields_of(record)) for record, name in make_reducer(job, parts).reduce(key, copies(group))]


def books(reducer: Reducer) -> tuple[int, int, int, dict[str, int]]:
    return reducer.fed, reducer.added, reducer.written, dict(reducer.dropped)


def error_of(body: str, *group: Record, key: Any = "g") -> ScriptError:
    with pytest.raises(ScriptError) as caught:
        reduced(spec(body=body), group or [sample("a", x=b"1"), sample("b", x=b"2")], key)
    return caught.value


A1, A2, A3 = (sample("a", part, txt=b"%d" % part, cls=b"same") for part in range(3))


# Each built-in


def test_first_keeps_the_first_sample_under_its_own_key() -> None:
    assert reduced(spec("first"), [sample("x", t=b"1"), sample("y", t=b"2")], key=7) == [("x", {"t": b"1"})]


def test_last_keeps_the_last_sample_under_its_own_key() -> None:
    assert reduced(spec("last"), [sample("x", t=b"1"), sample("y", t=b"2")], key=7) == [("y", {"t": b"2"})]


def test_dedup_keeps_the_first_of_each_key() -> None:
    assert reduced(spec("dedup"), [A1, A2]) == [("a", {"txt": b"0", "cls": b"same"})]


def test_dedup_by_content_keeps_the_first_of_each_content_whatever_key_order_and_url() -> None:
    group = [
        sample("a", x=b"1", y=b"2"),
        {"y": b"2", "x": b"1", "__key__": "b", "__url__": "u", "__part__": 1, "key": "b"},
        sample("c", x=b"2", y=b"1"),
        sample("d", x=b"12", y=b""),
    ]
    assert [key for key, _ in reduced(spec("dedup", dedup_by="content"), group)] == ["a", "c", "d"]


def test_dedup_by_content_sees_a_field_that_is_named_key() -> None:
    group = [{**sample("a", x=b"1"), "key": b"door"}, {**sample("b", x=b"1"), "key": b"gate"}, sample("c", x=b"1")]
    assert [key for key, _ in reduced(spec("dedup", dedup_by="content"), group)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("a/b", "a/b", b"a/b"),
        ("a.b/c.d", "a.b/c_d", b"a.b/c.d"),
        (5, "5", b"5"),
        (-1.5, "-1_5", b"-1.5"),
        (b"cat", "cat", b"cat"),
        (b"\xff\0", "ff00", b"\xff\0"),
        (None, "missing", b""),
        (True, "true", b"true"),
        ([1, (True, "x")], "1-true-x", b'[1, [true, "x"]]'),
        ("", "empty", b""),
        (("a", 1.5, None, b"x"), "a-1_5-missing-x", b'["a", 1.5, null, "x"]'),
        ("__meta__/a", "key__meta__/a", b"__meta__/a"),
        ("a/", "a/_", b"a/"),
        ("\udcff", "\udcff", b"\xff"),
        ("\ud800", "?", b"?"),
    ],
)
def test_count_is_one_sample_with_the_groups_key_and_value(key: Any, name: str, value: bytes) -> None:
    assert reduced(spec("count"), [A1, A2, A3], key) == [(name, {"count": b"3", "value": value})]


@given(
    st.recursive(st.none() | st.text() | st.binary() | st.integers() | st.floats(), lambda part: st.tuples(part, part))
)
def test_any_key_of_a_group_becomes_one_that_can_be_stored(key: Any) -> None:
    check_key(storable_key(key))


def test_long_keys_of_groups_are_cut_and_stay_different() -> None:
    one, two = storable_key("x" * 10_000 + "1"), storable_key("x" * 10_000 + "2")
    assert one != two
    assert len(one) < 255


def test_concat_joins_the_contents_of_equal_fields_in_order() -> None:
    group = [sample("a", log=b"1\n", x=b"only"), sample("a", log=b"2\n"), sample("a", log=b"")]
    assert reduced(spec("concat"), group) == [("a", {"log": b"1\n2\n", "x": b"only"})]


@pytest.mark.parametrize("reduce", ["merge", "concat"])
def test_a_sample_made_of_several_has_the_groups_key_unless_grouped_by_the_samples_own(reduce: str) -> None:
    group = [sample("x", a=b""), sample("y", b=b"")]
    assert reduced(spec(reduce, keys=("cls:int",)), group, key=5)[0][0] == "5"
    assert reduced(spec(reduce, keys=("cls",), group_by=("__key__:natural:desc",)), group, key=("x", 0))[0][0] == "x"


@pytest.mark.parametrize("field", ["concat", "rename"])
def test_what_would_not_fit_in_memory_is_an_error_with_the_cure(field: str) -> None:
    job = spec("concat", max_member=10) if field == "concat" else spec("merge", max_member=10, same_field="rename")
    with pytest.raises(LimitError, match="--max-member") as caught:
        reduced(job, (sample("a", log=b"123") for _ in range(1000)))
    assert (caught.value.field, caught.value.size_bytes, caught.value.limit_bytes) == ("log", 12, 10)


def test_a_key_that_cannot_be_stored_is_refused_where_it_would_be_kept() -> None:
    with pytest.raises(ScriptError, match="cannot be stored"):
        reduced(spec("first", key_function="dir_plus_file"), [sample("d.x", a=b"")])


# Merge


def test_merge_is_the_union_of_the_fields_over_the_parts() -> None:
    assert reduced(spec("merge"), [sample("a", 0, jpg=b"i"), sample("a", 1, txt=b"t")]) == [
        ("a", {"jpg": b"i", "txt": b"t"})
    ]


@pytest.mark.parametrize(
    ("join", "kept"),
    [
        ("inner", {"01": True, "0": False, "1": False, "12": False, "012": True, "02": False}),
        ("left", {"01": True, "0": True, "1": False, "12": False, "012": True, "02": True}),
        ("outer", dict.fromkeys(("01", "0", "1", "12", "012", "02"), True)),
    ],
)
def test_join_says_which_groups_stay(join: str, kept: dict[str, bool]) -> None:
    for present, stays in kept.items():
        parts = 3 if "2" in present else 2
        group = [sample("a", int(part), **{f"f{part}": b""}) for part in present]
        reducer = make_reducer(spec("merge", join=join), parts)
        found = list(reducer.reduce("a", iter(group)))
        n = len(present)
        if join == "inner":
            stays = n == parts
        assert len(found) == stays, (join, present)
        reasons = {"merged": n - 1} if stays else {"not-joined": n}
        assert books(reducer) == (n, 0, int(stays), {k: v for k, v in reasons.items() if v})


@pytest.mark.parametrize("join", ["inner", "left", "outer"])
def test_one_part_joins_with_itself(join: str) -> None:
    assert reduced(spec("merge", join=join), [sample("a", 0, x=b"")], parts=1) == [("a", {"x": b""})]


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        ("first", {"txt": b"0"}),
        ("last", {"txt": b"2"}),
        ("rename", {"txt": b"0", "2.txt": b"1", "3.txt": b"2"}),
    ],
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_field_of_several_samples_is_treated_by_the_rule_in_the_order_of_parts(
    rule: str, fields: dict[str, bytes], order: tuple[int, ...]
) -> None:
    group = [sample("a", part, txt=b"%d" % part) for part in order]
    assert reduced(spec("merge", same_field=rule), group, parts=3) == [("a", fields)]


@pytest.mark.parametrize("rule", ["first", "last"])
def test_within_a_part_the_rule_goes_by_the_order_of_samples(rule: str) -> None:
    group = [sample("a", 0, txt=b"1"), sample("a", 0, txt=b"2"), sample("a", 0, txt=b"3")]
    assert reduced(spec("merge", same_field=rule), group)[0][1] == {"txt": b"1" if rule == "first" else b"3"}


def test_renamed_fields_take_no_name_that_a_sample_has() -> None:
    group = [sample("a", 0, seg_png=b"0"), sample("a", 1, **{"2.seg.png": b"own", "seg.png": b"1"})]
    assert reduced(spec("merge", same_field="rename"), group)[0][1] == {
        "seg.png": b"0",
        "2.seg.png": b"own",
        "3.seg.png": b"1",
    }


def test_a_field_that_comes_twice_is_an_error_with_sample_field_both_shards_and_the_cure() -> None:
    with pytest.raises(SampleError) as caught:
        reduced(spec("merge"), [A2, A1])
    for word in ("'a'", "'txt'", "mem://0.tar and", "mem://1.tar", "--same-field"):
        assert word in caught.value.message
    assert caught.value.reason == "same-field"
    assert caught.value.shards == ("mem://0.tar", "mem://1.tar")


# Options


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "name of a reduce"),
        ({"reduce": "first", "join": "inner"}, "--join.*--reduce merge"),
        ({"reduce": "concat", "same_field": "last"}, "--same-field.*--reduce merge"),
        ({"reduce": "count", "dedup_by": "content"}, "--dedup-by.*--reduce dedup"),
        ({"reduce": "concat", "keys": ("n:int",), "group_by": ("cls",), "combine": True}, "--combine.*concat"),
    ],
)
def test_options_that_cannot_work_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        check_spec(spec(**fields))
    with pytest.raises(SpecError, match=words):
        make_reducer(spec(**fields), 1)


def test_a_combiner_is_refused_where_batches_of_a_group_mingle() -> None:
    job = spec("merge", keys=("n:int",), group_by=("cls",))
    assert not combinable(job)
    with pytest.raises(SpecError, match="--combine"):
        make_combiner(job, 1)
    assert combinable(spec("merge", group_by=("__key__",)))
    assert combinable(spec("merge", keys=("a,b:int",), group_by=("a", "b:int")))
    assert combinable(spec("last", keys=("n:int",), group_by=("cls",)))


# Memory


class Tracked(dict[str, Any]):
    """A record that counts how many of its kind there are."""

    alive: ClassVar[int] = 0

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        Tracked.alive += 1

    def __del__(self) -> None:
        Tracked.alive -= 1


class Long:
    """A group of many samples that tells how far it was read and how many samples were alive at once."""

    def __init__(self, size: int) -> None:
        self.size, self.read, self.alive = size, 0, 0

    def __iter__(self) -> Iterator[Record]:
        for number in range(1, self.size + 1):
            self.read = number
            self.alive = max(self.alive, Tracked.alive)
            yield Tracked(sample(f"k{self.read}", txt=b"same"))


LONG = {
    "first": spec("first"),
    "last": spec("last"),
    "dedup": spec("dedup"),
    "dedup by content": spec("dedup", dedup_by="content"),
    "count": spec("count"),
    "concat": spec("concat"),
    "merge first": spec("merge", same_field="first"),
    "merge last": spec("merge", same_field="last"),
    "script that passes all": spec(body="return samples"),
    "script that yields some": spec(body="for s in samples:\n    if s['key'].endswith('0'):\n        yield s"),
    "script that counts": spec(body="return {'n': str(sum(1 for _ in samples))}"),
    "script that leaves the rest": spec(body="return next(samples)"),
}


@pytest.mark.parametrize("job", LONG.values(), ids=LONG)
def test_no_more_than_a_few_samples_of_a_long_group_are_in_memory_at_once(job: SortSpec) -> None:
    Tracked.alive = 0
    group = Long(20_000)
    reducer = make_reducer(job, 1)
    for _ in reducer.reduce("g", iter(group)):
        pass
    assert group.read == reducer.fed == 20_000
    assert group.alive <= 5


@pytest.mark.parametrize(
    ("job", "read"),
    [
        (spec("first"), [1]),
        (spec("dedup"), [1]),
        (spec("dedup", dedup_by="content"), [1]),
        (spec("last"), [20_000]),
        (spec("count"), [20_000]),
        (spec(body="yield next(samples)\nnext(samples)\nyield next(samples)"), [1, 3]),
        (spec(body="return (s for s in samples if int(s['key'][1:]) % 8_000 == 0)"), [8_000, 16_000]),
    ],
    ids=["first", "dedup", "dedup by content", "last", "count", "generator function", "generator"],
)
def test_samples_are_read_no_further_than_a_result_needs(job: SortSpec, read: list[int]) -> None:
    group = Long(20_000)
    reducer = make_reducer(job, 1)
    assert [group.read for _ in reducer.reduce("g", iter(group))] == read
    assert reducer.fed == group.read == 20_000
    assert reducer.dropped.total() == 20_000 - len(read)


def test_a_group_of_a_million_samples_is_counted_one_by_one() -> None:
    one = sample("a", x=b"")
    assert [record["count"] for record, _ in make_reducer(spec("count"), 1).reduce("g", repeat(one, 1_000_000))] == [
        b"1000000"
    ]


# The books

REDUCES: dict[str, dict[str, Any]] = {
    "first": {"reduce": "first"},
    "last": {"reduce": "last"},
    "dedup": {"reduce": "dedup"},
    "dedup content": {"reduce": "dedup", "dedup_by": "content"},
    "count": {"reduce": "count"},
    "concat": {"reduce": "concat"},
} | {
    f"merge {join} {rule}": {"reduce": "merge", "join": join, "same_field": rule}
    for join in ("inner", "left", "outer")
    for rule in ("first", "last", "rename")
}
SCRIPTS = {
    "drops": "return None",
    "passes": "return samples",
    "doubles": "for s in samples:\n    yield s\n    yield {**s, '__key__': s['__key__'] + '-2'}",
    "stops early": "yield next(samples)",
    "closes": "yield next(samples)\nsamples.close()",
    "some more, some less": "return [{'__key__': f'{key}-{i}', 'x': b''} for i in range(3)]",
}
PARTS = 3
bodies = st.binary(max_size=2)
fields = st.dictionaries(st.sampled_from(["x", "y", "2.x", "key", "count", "count.partial"]), bodies, min_size=1)
groups = st.lists(st.tuples(st.integers(0, PARTS - 1), fields), min_size=1, max_size=7).map(
    lambda items: [
        {"key": "a", **found, "__key__": "a", "__url__": f"mem://{part}", "__part__": part}
        for part, found in sorted(items, key=lambda item: item[0])
    ]
)


@pytest.mark.parametrize("case", [*REDUCES, *SCRIPTS])
@given(found=st.lists(groups, max_size=4))
def test_the_books_balance_after_each_group(case: str, found: list[Group]) -> None:
    job = spec(**REDUCES[case]) if case in REDUCES else spec(body=SCRIPTS[case])
    reducer = make_reducer(job, PARTS)
    fed = written = 0
    for group in found:
        before = reducer.dropped.total()
        here = len(list(reducer.reduce("a", iter([dict(record) for record in group]))))
        fed, written = fed + len(group), written + here
        assert (reducer.fed, reducer.written) == (fed, written)
        assert reducer.fed + reducer.added == reducer.written + reducer.dropped.total()
        assert reducer.dropped.total() - before == max(0, len(group) - here)
    assert not [reason for reason, count in reducer.dropped.items() if count <= 0]


@pytest.mark.parametrize(
    ("job", "reasons"),
    [
        (spec("first"), {"not-first": 2}),
        (spec("last"), {"not-last": 2}),
        (spec("dedup"), {"duplicate": 2}),
        (spec("dedup", dedup_by="content"), {}),
        (spec("count"), {"counted": 2}),
        (spec("merge", same_field="first"), {"merged": 2}),
        (spec("merge", same_field="first", join="inner"), {"not-joined": 3}),
        (spec("concat"), {"merged": 2}),
        (spec(body="return None"), {"by-reduce": 3}),
    ],
)
def test_what_is_left_out_has_a_reason(job: SortSpec, reasons: dict[str, int]) -> None:
    reducer = make_reducer(job, 4)
    list(reducer.reduce("a", iter([A1, A2, A3])))
    assert reducer.dropped == reasons


def test_what_a_script_makes_more_of_is_added() -> None:
    reducer = make_reducer(spec(body="return [{'__key__': f'{key}-{i}', 'x': b''} for i in range(5)]"), 1)
    assert [key for _, key in reducer.reduce("g", iter([A1, A2]))] == [f"g-{i}" for i in range(5)]
    assert books(reducer) == (2, 3, 5, {})


BREAKS: dict[str, tuple[dict[str, Any], str]] = {
    "raises": ({"body": "yield next(samples)\nnext(samples)\n1 / 0"}, "script-error"),
    "gives no sample": ({"body": "yield next(samples)\nyield 5"}, "bad-result"),
    "gives a key that cannot be": ({"body": "yield next(samples)\nyield {'__key__': 'a.b'}"}, "bad-key"),
    "same field": ({"reduce": "merge"}, "same-field"),
    "too large": ({"reduce": "concat", "max_member": 1}, "too-large"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_after_a_group_that_failed_the_books_hold_and_the_next_can_follow(case: str) -> None:
    options, reason = BREAKS[case]
    reducer = make_reducer(spec(**options, on_error="skip"), 3)
    source, written = iter([dict(A1), dict(A2), dict(A3)]), list[Any]()
    with pytest.raises(TarmillError) as caught:
        written.extend(reducer.reduce("a", source))
    assert caught.value.reason == reason
    assert list(source) == []
    assert books(reducer) == (3, 0, len(written), {reason: 3 - len(written)})


def test_a_group_that_failed_is_read_no_further_when_the_job_ends_there() -> None:
    group = Long(1000)
    with pytest.raises(ScriptError):
        list(make_reducer(spec(body="next(samples)\n1 / 0"), 1).reduce("a", iter(group)))
    assert group.read == 1


@pytest.mark.parametrize("body", ["yield from samples", "try:\n    yield from samples\nexcept Exception:\n    pass"])
@pytest.mark.parametrize("error", [StorageError("gone"), SampleError("cut"), ValueError("any")])
def test_a_fault_of_the_source_comes_through_as_it_is(body: str, error: Exception) -> None:
    def source() -> Iterator[Record]:
        yield sample("a", x=b"")
        raise error

    for job in (spec(body=body), spec("last"), spec("merge"), spec("first")):
        with pytest.raises(type(error)) as caught:
            list(make_reducer(job, 1).reduce("a", source()))
        assert caught.value is error


# Combining


def stored(results: Iterable[tuple[Record, str]]) -> list[Record]:
    """Send what a combiner gave through a tar file each, as scratch does."""
    found = []
    for record, key in results:
        blocks: list[bytes] = []
        sink = TarSink(blocks.append)
        sink.add(record, key)
        sink.finish()
        found += [back | {"__part__": 99} for back in iter_samples(io.BytesIO(b"".join(blocks)), "scratch")]
    return found


def outcome(reducer: Reducer, group: Iterable[Record]) -> tuple[str, Any]:
    try:
        found = [(key, fields_of(record)) for record, key in reducer.reduce("a", iter(list(group)))]
    except TarmillError as error:
        return "error", error.reason
    return "samples", found


def cut(group: Group, cuts: set[int]) -> list[Group]:
    edges = sorted({0, len(group), *(number % (len(group) + 1) for number in cuts)})
    return [group[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("case", [*REDUCES, "merge error", "concat small"])
@given(group=groups, cuts=st.sets(st.integers(0, 7)), twice=st.booleans(), some=st.integers(0, 255))
def test_combining_batches_first_gives_the_same(
    case: str, group: Group, cuts: set[int], twice: bool, some: int
) -> None:
    options = REDUCES.get(case) or {"merge error": {"reduce": "merge"}, "concat small": {"reduce": "concat"}}[case]
    options = options | {"max_member": 3} if case == "concat small" else options
    job, plain = spec(**options, combine=True), spec(**options)
    expected = outcome(make_reducer(plain, PARTS), [dict(record) for record in group])
    combiner = make_combiner(job, PARTS)
    batches = cut(group, cuts)
    chosen = [batch for i, batch in enumerate(batches) if some >> i & 1]  # a plan without scratch combines none
    try:
        combined = [stored(combiner.reduce("a", iter(batch))) if batch in chosen else batch for batch in batches]
        if twice:
            combined[:2] = [stored(combiner.reduce("a", iter([record for batch in combined[:2] for record in batch])))]
    except TarmillError as error:
        found = "error", error.reason  # of the first field that is met
    else:
        found = outcome(make_reducer(job, PARTS), [record for batch in combined for record in batch])
        assert combiner.fed == combiner.written + combiner.dropped.total()
    assert found == expected


@pytest.mark.parametrize("case", ["first", "last", "dedup", "dedup content", "count"])
@given(group=groups, order=st.randoms(use_true_random=False), cuts=st.sets(st.integers(0, 7)))
def test_combining_gives_the_same_where_batches_of_a_group_mingle(
    case: str, group: Group, order: Any, cuts: set[int]
) -> None:
    ranks = list(range(len(group)))
    order.shuffle(ranks)
    group = [record | {"__rank__": rank, "__key__": f"a{rank}"} for record, rank in zip(group, ranks, strict=True)]

    def by_rank(records: Iterable[Record]) -> Iterator[Record]:
        return iter(sorted(records, key=lambda record: record.get("__rank__", 0)))

    options = REDUCES[case] | {"group_by": ("cls",), "keys": ("n:int",)}
    job = spec(**options, combine=True)
    combiner = make_combiner(job, PARTS)
    combined = [record for batch in cut(group, cuts) for record, _ in combiner.reduce("a", by_rank(batch))]
    plain = outcome(make_reducer(spec(**options), PARTS), by_rank(group))
    assert outcome(make_reducer(job, PARTS), by_rank(combined)) == plain


def test_what_looks_like_a_partial_result_is_taken_as_data_without_combine() -> None:
    partial = [record for record, _ in make_combiner(spec("count", combine=True), 1).reduce("a", iter([A1, A2]))]
    assert reduced(spec("count"), [*partial, A3])[0][1]["count"] == b"2"
    assert reduced(spec("count", combine=True), [*partial, A3])[0][1]["count"] == b"3"


@pytest.mark.parametrize("body", [b"{}", b"[]", b"5", b"", b"\xff", json.dumps({"tarmill": 1, "fields": []}).encode()])
def test_a_users_field_with_the_name_of_the_mark_is_data(body: bytes) -> None:
    group = [sample("a", 0, **{"merge.partial": body, "x": b"1"})]
    assert reduced(spec("merge", combine=True), group)[0][1] == {"merge.partial": body, "x": b"1"}


def test_a_script_is_combined_when_the_user_asks() -> None:
    body = "return {'__key__': key, 'n': str(sum(int(s['n']) for s in samples))}"
    job = spec(body=body, combine=True)
    combiner = make_combiner(job, 1)
    halves = [
        *stored(combiner.reduce("a", iter([sample("x", n=b"1"), sample("y", n=b"2")]))),
        *stored(combiner.reduce("a", iter([sample("z", n=b"4")]))),
    ]
    assert reduced(job, halves) == [("a", {"n": "7"})]


# The contract of the script


def test_a_script_gets_the_typed_key_and_records_with_their_part() -> None:
    body = """
    assert key == (5, b"x"), key
    for s in samples:
        assert sorted(s) == ["__key__", "__part__", "__url__", "cls", "key", "txt"], sorted(s)
        assert s["key"] == s["__key__"] == "a"
        yield {"__key__": f"{s['key']}-{s['__part__']}", "url": s["__url__"]}
    """
    found = reduced(spec(body=body), [dict(A1), dict(A2)], key=(5, b"x"))
    assert found == [("a-0", {"url": "mem://0.tar"}), ("a-1", {"url": "mem://1.tar"})]


def test_none_drops_the_group() -> None:
    assert reduced(spec(body="return None"), [dict(A1)]) == []


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("return {'x': b''}", "1_5"),
        ("return {'x': b'', '__key__': 'new'}", "new"),
        ("return {'x': b'', 'key': 'new'}", "new"),
        ("return next(samples)", "a"),
        ("s = next(samples); s['__key__'] = 'n'; return s", "n"),
        ("s = next(samples); s['key'] = 'n'; return s", "n"),
        ("s = next(samples); s['key'] = s['__key__'] = 'n'; return s", "n"),
        ("s = next(samples); return {**s, 'key': 'n' + s['key']}", "na"),
        ("s = next(samples); del s['__key__']; return s", "a"),
        ("s = next(samples); del s['key']; return s", "a"),
        ("s, t = samples; s['key'] = 'b2'; return s", "b2"),
        ("s, t = samples; return {**s, '__key__': t['key']}", None),
    ],
)
def test_the_key_of_a_result_is_the_one_that_was_changed_or_the_groups(body: str, name: str | None) -> None:
    group = [sample("a", x=b"1"), sample("b", x=b"2")]
    if name is None:
        with pytest.raises(ScriptError, match="change one of them"):
            reduced(spec(body=body), group, key=1.5)
    else:
        assert [key for key, _ in reduced(spec(body=body), group, key=1.5)] == [name]


def test_a_field_named_key_stays_a_field() -> None:
    group = [{**sample("a", x=b"1"), "key": b"door"}]
    assert reduced(spec(body="return next(samples)"), group) == [("a", {"x": b"1", "key": b"door"})]


def test_keys_are_handed_out_as_text_that_can_be_pickled() -> None:
    body = "import pickle\ns = next(samples)\nreturn {'__key__': 'n', 'p': pickle.dumps(s['key'])}"
    [(_, found)] = reduced(spec(body=body), [sample("a", x=b"")])
    assert pickle.loads(found["p"]).__class__ is str


def test_the_iterator_ends_with_the_call() -> None:
    body = """
    global kept
    if kept is not None:
        assert list(kept) == []
    kept = samples
    return next(samples)
    """
    job = spec(body=body)
    reducer = make_reducer(spec(reduce_script="kept = None\n" + job.reduce_script), 1)
    found = [key for group in "ab" for _, key in reducer.reduce(group, iter([sample(group, x=b""), dict(A1)]))]
    assert found == ["a", "b"]
    assert books(reducer) == (4, 0, 2, {"by-reduce": 2})


@pytest.mark.parametrize("result", ["5", "b'x'", "'text'", "True", "[1]", "['ab']", "[None]"])
def test_other_results_are_refused_with_what_was_expected(result: str) -> None:
    error = error_of(f"return {result}", key=("g", 1))
    for word in ("reduce_samples.py", "('g', 1)", "expected a dict, None to drop the group, or an iterable of dicts"):
        assert word in error.message
    assert (error.reason, error.key) == ("bad-result", "g-1")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("{'__key__': 5}", ("int 5", "expected a str")),
        ("{'__key__': 'a.b'}", ("'a.b'", "cannot be stored")),
        ("{'__key__': ''}", ("cannot be stored",)),
        ("{'__key__': 'x', 'key': 'y'}", ("'x'", "'y'", "change one")),
    ],
)
def test_keys_that_cannot_be_are_told_with_script_and_group(record: str, words: tuple[str, ...]) -> None:
    error = error_of(f"return {record}", key=7)
    for word in ("reduce_samples.py", "group 7", *words):
        assert word in error.message
    assert error.reason == "bad-key"


@pytest.mark.parametrize("form", ["return next(samples)['no']", "yield next(samples)['no']"])
def test_an_exception_is_told_with_file_line_group_sample_and_trimmed_traceback(form: str) -> None:
    error = error_of(f"x = 1\n{form}", key=1.5)
    assert error.message.startswith("reduce_samples.py, line 3: KeyError: 'no'")
    assert "group 1.5, at sample 'a' of mem://0.tar" in error.message
    assert (error.line, error.key, error.shard) == (3, "1_5", "mem://0.tar")
    assert "tarmill" not in error.script_traceback
    assert form in error.script_traceback
    assert pickle.loads(pickle.dumps(error)).message == error.message


def test_a_script_that_exits_is_an_error() -> None:
    assert "SystemExit" in error_of("import sys\nsys.exit(0)").message


# Loading


def sorting(**fields: Any) -> SortSpec:
    return SortSpec(input="in.tar", output="out-@.tar", **fields)


def test_setup_runs_once_for_both_functions_of_one_file() -> None:
    script = """
calls = []
def setup(params):
    calls.append(params)
def sort_key(record):
    return len(calls)
def reduce_samples(key, samples):
    return {"__key__": "n", "calls": repr(calls)}
"""
    job = sorting(reduce_script=script, keys=("script",), params={"size": "1"})
    sort_key = load_sort_key(job)
    assert sort_key is not None
    assert sort_key(A1) == 1
    for _ in range(2):
        assert reduced(job, [A1]) == [("n", {"calls": "[{'size': '1'}]"})]


def test_scripts_are_checked_without_their_setup() -> None:
    check_scripts(spec(body="return None\ndef setup(params):\n    1 / 0"))
    with pytest.raises(ScriptError, match=r"setup\(params\) failed"):
        make_reducer(sorting(reduce_script="def reduce_samples(k, s): ...\ndef setup(params):\n    1 / 0"), 1)


@pytest.mark.parametrize("check", [check_scripts, lambda job: make_reducer(job, 1)])
@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "def reduce(key, samples): ...\n",
            ("does not define reduce_samples", "it defines reduce", "def reduce_samples"),
        ),
        ("", ("does not define reduce_samples", "def reduce_samples(key, samples)")),
        ("reduce_samples = 5\n", ("reduce_samples is int", "function")),
        ("def reduce_samples(key, samples): ...\nsetup = 5\n", ("setup is int", "function")),
        ("def reduce_samples(:\n", ("line 1",)),
        ("import no_such_module_anywhere\n", ("line 1", "ModuleNotFoundError")),
    ],
)
def test_a_reduce_script_that_cannot_be_used_is_told(
    script: str, words: tuple[str, ...], check: Callable[[SortSpec], object]
) -> None:
    with pytest.raises(ScriptError) as caught:
        check(sorting(reduce_script=script or "\n", reduce_script_name="mine.py"))
    for word in ("mine.py", *words):
        assert word in caught.value.message


def test_there_is_no_sort_key_unless_one_is_asked_for() -> None:
    assert load_sort_key(sorting(keys=("cls",))) is None
    assert load_sort_key(spec(body="return None", keys=("scripted",))) is None


@pytest.mark.parametrize("fields", [{"keys": ("cls,script:desc",)}, {"group_by": ("script",), "reduce": "first"}])
def test_a_sort_by_script_needs_one(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="-p"):
        load_sort_key(sorting(**fields))
    with pytest.raises(SpecError, match="-p"):
        check_scripts(sorting(**fields))


def test_the_sort_script_comes_before_the_reduce_script() -> None:
    other = "def reduce_samples(key, samples): ...\ndef sort_key(record):\n    return 2\n"
    job = sorting(script="def sort_key(record):\n    return 1\n", reduce_script=other, keys=("script",))
    found = load_sort_key(job)
    assert found is not None
    assert found(A1) == 1


@pytest.mark.parametrize("source", ["script", "reduce_script"])
def test_a_script_without_sort_key_is_told_what_it_lacks(source: str) -> None:
    job = sorting(**{source: "def process_sample(record):\n    return record\n"}, keys=("script",))
    with pytest.raises(ScriptError) as caught:
        load_sort_key(job)
    for word in ("does not define sort_key", "it defines process_sample", "def sort_key(record)"):
        assert word in caught.value.message


def test_a_sort_key_that_fails_is_told_with_line_sample_and_shard() -> None:
    sort_key = load_sort_key(sorting(script="def sort_key(record):\n    return record['no']\n", keys=("script",)))
    assert sort_key is not None
    with pytest.raises(ScriptError) as caught:
        sort_key(A1)
    assert caught.value.message.startswith("sort_key.py, line 2: KeyError: 'no'")
    assert "'a' of mem://0.tar" in caught.value.message


def test_two_scripts_of_one_job_are_two_modules() -> None:
    classes = "import pickle\nclass Note:\n    pass\n"
    job = sorting(
        script=classes + "def sort_key(record):\n    return pickle.dumps(Note())\n",
        reduce_script=classes + "def reduce_samples(key, samples):\n    return {'n': pickle.dumps(Note())}\n",
        keys=("script",),
    )
    sort_key = load_sort_key(job)
    assert sort_key is not None
    assert reduced(job, [A1])
    assert sort_key(A1)


def test_reasons_of_combiner_and_reducer_add_up_to_those_of_one_step() -> None:
    group = [A1, A2, A3] * 3
    for reduce in ("first", "last", "dedup", "count", "concat"):
        job = spec(reduce, combine=True)
        combiner, reducer, whole = make_combiner(job, 3), make_reducer(job, 3), make_reducer(spec(reduce), 3)
        combined = [record for batch in cut(group, {2, 5}) for record, _ in combiner.reduce("a", iter(batch))]
        list(reducer.reduce("a", iter(combined)))
        list(whole.reduce("a", iter(group)))
        assert Counter(combiner.dropped) + Counter(reducer.dropped) == whole.dropped
