"""htupload of lists: columns as values, as paths and as URLs; keys; rows that are wrong."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.maps import counts_balance
from support.uploads import members_of, put_files, run_upload, shards_of
from support.webserver import Reply, WebServer

from tarmill import storage
from tarmill.errors import JobFailed, SampleError, TarmillError, UsageError
from tarmill.jobs.upload_fetch import Pool

ROWS: list[dict[str, Any]] = [
    {"id": "k1", "image": "i/1.jpg", "caption": 'one, "two"', "meta": {"w": 1}},
    {"id": "k2", "image": "i/2.jpg", "caption": "three\nfour", "meta": {"w": 2}},
    {"id": "k3", "image": "i/3.jpg", "caption": "é", "meta": {"w": 3}},
]
COLUMNS = {"jpg": "@image", "txt": "caption", "json": "meta"}
EXPECTED = [
    (f"k{number}.{field}", body)
    for number, caption in ((1, 'one, "two"'), (2, "three\nfour"), (3, "é"))
    for field, body in (
        ("jpg", b"image %d" % number),
        ("json", b'{"w":%d}' % number),
        ("txt", caption.encode()),
    )
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    put_files(tmp_path / "l", {f"i/{number}.jpg": f"image {number}" for number in (1, 2, 3)})
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write_csv(path: Path, rows: list[dict[str, Any]], dialect: str = "excel") -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]), dialect=dialect)
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: json.dumps(v, separators=(",", ":")) if isinstance(v, dict) else v for k, v in row.items()}
            )


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "csv": write_csv,
    "tsv": lambda path, rows: write_csv(path, rows, "excel-tab"),
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_rows_become_samples_in_the_order_of_the_list(here: Path, kind: str) -> None:
    WRITERS[kind](here / "l" / f"list.{kind}", ROWS)
    report = run_upload(f"l/list.{kind}", "out-@.tar", columns=COLUMNS, key_column="id")
    assert members_of(shards_of(here)) == EXPECTED
    assert counts_balance(report.to_dict())


@pytest.mark.parametrize("kind", WRITERS)
def test_lists_in_a_store_are_read_there(here: Path, place: str, kind: str) -> None:
    WRITERS[kind](here / "l" / f"list.{kind}", ROWS)
    for name in (f"list.{kind}", "i/1.jpg", "i/2.jpg", "i/3.jpg"):
        storage.write_bytes(place + name, (here / "l" / name).read_bytes())
    run_upload(f"{place}list.{kind}", f"{place}out-@.tar", columns=COLUMNS, key_column="id")
    assert members_of([f"{place}out-000000.tar"]) == EXPECTED


def test_rows_are_numbered_where_nothing_names_a_key(here: Path) -> None:
    write_jsonl(here / "a.jsonl", [{"n": 1.5}, {"n": [True, None]}])
    write_jsonl(here / "b.jsonl", [{"n": {"deep": {"x": "y"}}}])
    run_upload(["a.jsonl", "b.jsonl"], "out-@.tar", columns={"n": "n"})
    assert members_of(shards_of(here)) == [
        ("000000000.n", b"1.5"),
        ("000000001.n", b"[true,null]"),
        ("000000002.n", b'{"deep":{"x":"y"}}'),
    ]
    run_upload("b.jsonl", "deep-@.tar", columns={"n": "n.deep.x"})
    assert members_of(shards_of(here, "deep")) == [("000000000.n", b"y")]
    write_jsonl(here / "c.jsonl", [{"__key__": 7, "n": 1}])
    run_upload("c.jsonl", "own-@.tar", columns={"n": "n"}, key_prefix="p/")
    assert members_of(shards_of(here, "own")) == [("p/7.n", b"1")]


def test_values_of_a_list_can_be_shuffled_and_wait_on_disk(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tarmill.jobs import upload_plan

    monkeypatch.setattr(upload_plan, "_FEW_BYTES", 100)
    write_jsonl(here / "a.jsonl", [{"__key__": f"k{number}", "t": "x" * number} for number in range(50)])
    run_upload("a.jsonl", "out-@.tar", columns={"t": "t"}, shuffle=True, seed="1", samples_per_shard=20)
    found = members_of(shards_of(here))
    assert dict(found) == {f"k{number}.t": b"x" * number for number in range(50)}
    assert [name for name, _ in found] != sorted(name for name, _ in found)


BAD_ROWS: list[tuple[str, str, dict[str, int]]] = [
    ('{"id": "a.b", "t": "x"}', "cannot be stored", {"bad-key": 1}),
    ('{"t": "x"}', "the key is empty", {"bad-key": 1}),
    ("[1]", "list where an object", {"bad-row": 1}),
    ("{broken", "no JSON", {"bad-row": 1}),
    ('{"id": "x"}', "has no value for the column 't'", {"missing-value": 1}),
    ('{"id": "x", "t": null}', "has no value for the column 't'", {"missing-value": 1}),
    ('{"id": "x", "t": "y", "p": "none.txt"}', "does not exist", {"not-found": 1}),
    ('{"id": "x", "t": "y", "p": "l"}', "no regular file", {"no-file": 1}),
    ('{"id": "x", "t": "y", "p": "gopher://x/y"}', "unknown scheme", {"unreadable": 1}),
]


@pytest.mark.parametrize(("line", "message", "dropped"), BAD_ROWS)
def test_a_row_that_is_wrong_is_told_by_its_number_or_left_out(
    here: Path, line: str, message: str, dropped: dict[str, int]
) -> None:
    columns = {"t": "t"} | ({"p": "@p"} if '"p"' in line else {})
    good = '{"id": "good", "t": "1", "p": "l/i/1.jpg"}'
    (here / "a.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(TarmillError, match=rf"a\.jsonl, row 2.*{message}"):
        run_upload("a.jsonl", "out-@.tar", columns=columns, key_column="id")
    report = run_upload("a.jsonl", "out-@.tar", columns=columns, key_column="id", on_error="skip", rejected="r.jsonl")
    assert dict(report.counts.dropped) == dropped
    assert (report.counts.read, report.counts.written) == (2, 1)
    assert message.split("'")[0] in json.loads((here / "r.jsonl").read_text())["message"]


def test_missing_values_may_leave_out_the_row_or_only_the_field(here: Path) -> None:
    write_jsonl(here / "a.jsonl", [{"a": "1", "b": "2"}, {"a": "3"}])
    report = run_upload("a.jsonl", "skip-@.tar", columns={"a": "a", "b": "b"}, missing="skip", max_errors="0")
    assert dict(report.counts.dropped) == {"missing": 1}
    run_upload("a.jsonl", "omit-@.tar", columns={"a": "a", "b": "b"}, missing="omit")
    assert [name for name, _ in members_of(shards_of(here, "omit"))] == ["000000000.a", "000000000.b", "000000001.a"]


def test_a_key_that_comes_twice_is_refused_or_renamed(here: Path) -> None:
    write_jsonl(here / "a.jsonl", [{"id": key, "t": str(n)} for n, key in enumerate(["a", "b", "a", "a-1", "a"])])
    with pytest.raises(SampleError, match="'a'"):
        run_upload("a.jsonl", "out-@.tar", columns={"t": "t"}, key_column="id")
    report = run_upload("a.jsonl", "out-@.tar", columns={"t": "t"}, key_column="id", same_key="rename")
    assert [name for name, _ in members_of(shards_of(here))] == ["a.t", "b.t", "a-1.t", "a-1-1.t", "a-2.t"]
    assert report.counts.renamed == 3


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ("a,b\n1,2\n", {"columns": {"t": "c"}}, "has no column 'c'; it has 'a', 'b'"),
        ("a,b\n1,2\n", {"columns": {"t": "a"}, "key_column": "k"}, "has no column 'k'"),
        ("a,a\n1,2\n", {"columns": {"t": "a"}}, "two columns 'a'"),
        ("", {"columns": {"t": "a"}}, "is empty"),
        ("a\n1\n", {"columns": {"a/b": "a"}}, "no field name"),
    ],
)
def test_lists_that_cannot_be_are_told(here: Path, text: str, fields: dict[str, Any], message: str) -> None:
    (here / "a.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        run_upload("a.csv", "out-@.tar", **fields)


def test_a_row_of_a_csv_with_too_many_values_is_left_out(here: Path) -> None:
    (here / "a.csv").write_text("a,b\n1,2\n1,2,3\n\n4,5\n")
    report = run_upload("a.csv", "out-@.tar", columns={"a": "a"}, on_error="skip")
    assert dict(report.counts.dropped) == {"bad-row": 1}
    assert report.counts.written == 2


# From the web


def test_urls_are_fetched_and_failures_are_told_with_their_reason(here: Path) -> None:
    replies = {f"/{number}.jpg": Reply(200, b"web %d" % number) for number in range(20)}
    replies["/hidden.jpg"], replies["/odd.jpg"] = Reply(403), Reply(200, b"no length", chunked=True)
    with WebServer(replies) as server:
        urls = [f"{server.base}/{name}.jpg" for name in (*range(20), "gone", "hidden", "odd")]
        write_jsonl(here / "a.jsonl", [{"u": url, "__key__": f"k{n:02d}"} for n, url in enumerate(urls)])
        fields: dict[str, Any] = {"columns": {"jpg": "@u"}, "samples_per_shard": 9}
        with pytest.raises(JobFailed, match="404"):
            run_upload("a.jsonl", "fail-@.tar", **fields)
        report = run_upload("a.jsonl", "out-@.tar", **fields, on_error="skip", rejected="r.jsonl", fetches=4)
    found = dict(members_of(shards_of(here)))
    assert found == {f"k{n:02d}.jpg": b"web %d" % n for n in range(20)} | {"k22.jpg": b"no length"}
    assert dict(report.counts.dropped) == {"not-found": 1, "unreadable": 1}
    lines = {line["key"]: line for line in map(json.loads, (here / "r.jsonl").read_text().splitlines())}
    assert {key: line["reason"] for key, line in lines.items()} == {"k20": "not-found", "k21": "unreadable"}
    assert "403" in lines["k21"]["message"]
    assert counts_balance(report.to_dict())


def test_a_busy_server_is_asked_again_until_patience_ends(here: Path) -> None:
    with WebServer({"/a.jpg": Reply(503, headers={"Retry-After": "0"})}) as server:
        write_jsonl(here / "a.jsonl", [{"u": f"{server.base}/a.jpg"}])
        report = run_upload("a.jsonl", "out-@.tar", columns={"jpg": "@u"}, on_error="skip", fetch_timeout=0.0)
    assert dict(report.counts.dropped) == {"unreadable": 1}
    assert len(server.asked) == 4


def test_objects_that_are_large_are_not_held(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tarmill.jobs import upload_fetch

    monkeypatch.setattr(upload_fetch, "LARGE_BYTES", 1000)
    with WebServer({"/a.jpg": Reply(200, b"x" * 5000, {"ETag": '"1"'}), "/b.jpg": Reply(200, b"y")}) as server:
        write_jsonl(here / "a.jsonl", [{"u": f"{server.base}/{name}.jpg", "t": name} for name in "ab"])
        run_upload("a.jsonl", "out-@.tar", columns={"jpg": "@u", "txt": "t"})
        server.replies["/a.jpg"] = Reply(200, b"x" * 5000, chunked=True)
        with pytest.raises(JobFailed, match="--max-member"):
            run_upload("a.jsonl", "limit-@.tar", columns={"jpg": "@u", "txt": "t"}, max_member=2000)
    assert members_of(shards_of(here)) == [
        ("000000000.jpg", b"x" * 5000),
        ("000000000.txt", b"a"),
        ("000000001.jpg", b"y"),
        ("000000001.txt", b"b"),
    ]


def test_no_host_is_asked_for_more_at_once_than_it_may_be() -> None:
    pool = Pool(6, 2)
    gate, lock = threading.Event(), threading.Lock()
    busy: dict[str, int] = {}
    most: dict[str, int] = {}
    started = threading.Semaphore(0)

    def call(host: str) -> bytes:
        with lock:
            busy[host] = busy.get(host, 0) + 1
            most[host] = max(most.get(host, 0), busy[host])
        started.release()
        assert gate.wait(60)
        with lock:
            busy[host] -= 1
        return host.encode()

    futures = [pool.submit(host, lambda host=host: call(host)) for host in ("a", "a", "a", "a", "b", "b", "b", "c")]
    for _ in range(5):  # two of a, two of b, one of c: the sixth thread has nothing that it may do
        assert started.acquire(timeout=60)
    gate.set()
    assert [pool.take(future) for future in futures] == [b"a"] * 4 + [b"b"] * 3 + [b"c"]
    assert most == {"a": 2, "b": 2, "c": 1}
    pool.close()
