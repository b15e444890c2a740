"""Extraction jobs: rows in order whatever the workers do, reports that balance, nothing half in a file."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from support.daskcluster import DaskCluster

from tarmill import ShardWriter, storage
from tarmill.engine.base import Outcome
from tarmill.errors import JobFailed, OutputExistsError, SampleError, UsageError
from tarmill.jobs import extract as driver
from tarmill.jobs import extract_shard as worker
from tarmill.jobs.extract import in_order, plan, run
from tarmill.jobs.report import Report
from tarmill.planning.counts import Counts
from tarmill.planning.extract_tasks import ExtractDone, ExtractTask
from tarmill.planning.tasks import Shard
from tarmill.spec import ExtractSpec, RunOptions

SHARDS, PER_SHARD = 5, 7


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with five shards; every third sample has no json, one in shard 3 is odd."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "scratch").mkdir()
    for shard in range(SHARDS):
        with ShardWriter(f"in-{shard}.tar") as writer:
            for n in range(PER_SHARD):
                number = shard * PER_SHARD + n
                sample: dict[str, Any] = {
                    "__key__": f"{number:03d}",
                    "cls": str(number % 4),
                    "txt": f"line\t{number}\n",
                }
                if number % 3:
                    sample["m.json"] = json.dumps({"n": number, "lang": "de" if number % 2 else "en"})
                writer.write(sample)
    return tmp_path


def extract(output: str = "rows", options: RunOptions | None = None, **fields: Any) -> tuple[bytes, Report]:
    fields = {"input": "in-@5.tar", "output": output, "exists": "overwrite", **fields}
    report = run(ExtractSpec(**fields), options or RunOptions(workers=1))
    return Path(output).read_bytes(), report


def lines(**fields: Any) -> list[str]:
    rows, report = extract(**fields)
    assert report.succeeded
    assert report.counts.missing == 0
    return rows.decode().splitlines()


ALL = range(SHARDS * PER_SHARD)


def test_without_columns_the_rows_are_keys(here: Path) -> None:
    assert lines() == [f"{n:03d}" for n in ALL]


def test_a_single_field_as_text_is_one_escaped_line_for_each_sample(here: Path) -> None:
    assert lines(columns=("txt",)) == [f"line\\t{n}\\n" for n in ALL]


@pytest.mark.parametrize("columns", [("m.json",), ("m.json", "cls"), ("m.json:n:int",)])
def test_missing_values_are_skipped_or_null_and_the_report_balances(here: Path, columns: tuple[str, ...]) -> None:
    rows, report = extract(columns=columns, missing="skip")
    assert len(rows.splitlines()) == report.counts.written == sum(n % 3 > 0 for n in ALL)
    assert report.counts.dropped == {"missing": len(ALL) - report.counts.written}
    rows, report = extract(columns=columns, missing="null")
    assert len(rows.splitlines()) == report.counts.written == len(ALL)
    assert [n for n, line in enumerate(rows.split(b"\n")[:-1]) if line.startswith(b"\\N")] == list(ALL)[::3]
    assert report.counts.missing == 0


def test_a_missing_value_is_an_error_by_default_which_names_sample_and_cure(here: Path) -> None:
    with pytest.raises(JobFailed, match=r"'000' of in-0.tar has no m.json; .*--missing skip"):
        extract(columns=("m.json",))
    assert not Path("rows").exists()


@pytest.mark.parametrize("fields", [
    {"columns": ("txt",)},
    {"columns": ("__key__", "m.json:n", "cls:int"), "missing": "null", "format": "jsonl"},
    {"columns": ("__key__", "txt"), "format": "csv"},
    {"columns": ("m.json:lang", "cls"), "missing": "null", "top": 5},
    {"columns": ("m.json:n:float", "txt"), "stats": True},
    {"keys": True},
    {"count": True, "where": "m.json"},
    {"columns": ("__key__", "m.json:n:int", "txt"), "missing": "null", "format": "parquet"},
])  # fmt: skip
def test_the_bytes_are_the_same_for_any_number_of_workers(
    here: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    one, report = extract(**fields)
    two, other = extract(options=RunOptions(workers=2), **fields)
    monkeypatch.setattr(driver, "HERE_BYTES", 10)  # everything through the scratch folder
    spooled, _ = extract(**fields)
    assert one == two == spooled
    assert report.counts.to_dict() == other.counts.to_dict()
    assert os.listdir("scratch") == []


def test_batches_do_not_show_in_the_rows(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {name: lines(columns=("m.json",), missing=name) for name in ("skip", "null")}
    general = {name: lines(columns=("m.json",), missing=name, where="true") for name in ("skip", "null")}
    assert general == expected
    for size in (1, 2, 3):
        monkeypatch.setattr(worker, "BATCH_ROWS", size)
        for name, rows in expected.items():
            assert lines(columns=("m.json",), missing=name) == rows
            assert lines(columns=("m.json",), missing=name, where="true") == rows


def test_a_filter_leaves_out_and_counts(here: Path) -> None:
    rows, report = extract(columns=("__key__",), where="m.json:lang == 'de' and cls:int in (1, 3)")
    kept = [n for n in ALL if n % 3 and n % 2]
    assert rows.decode().split() == [f"{n:03d}" for n in kept]
    assert report.counts.dropped == {"by-where": len(ALL) - len(kept)}
    assert report.counts.errors == 0


def test_json_lines_and_csv_hold_the_values(here: Path) -> None:
    found = [json.loads(line) for line in lines(columns=("__key__,m.json:n",), missing="null", format="jsonl")]
    assert found == [{"__key__": f"{n:03d}", "m.json:n": n if n % 3 else None} for n in ALL]
    rows, _ = extract(columns=("__key__", "txt"), format="csv")
    table = list(csv.reader(io.StringIO(rows.decode(), newline="")))
    assert table == [["__key__", "txt"], *([f"{n:03d}", f"line\t{n}\n"] for n in ALL)]


def test_parquet_holds_typed_columns_in_one_file_or_a_part_for_each_shard(here: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = ("__key__", "m.json:n:int", "m.json:n:float", "txt", "m.json", "m.json:lang", "__fields__")
    extract("all.parquet", columns=columns, missing="null", format="parquet")
    whole = parquet.read_table("all.parquet")
    names = ["string", "int64", "double", "binary", "binary", "string", "list<element: string>"]
    assert [str(kind) for kind in whole.schema.types] == names
    assert whole.column("m.json:n:int").to_pylist() == [n if n % 3 else None for n in ALL]
    assert whole.column("txt").to_pylist() == [f"line\t{n}\n".encode() for n in ALL]
    assert whole.column("__fields__").to_pylist()[:2] == [["cls", "txt"], ["cls", "m.json", "txt"]]
    report = run(
        ExtractSpec(input="in-@5.tar", output="p-@.parquet", columns=columns, missing="null", format="parquet")
    )
    assert report.succeeded
    parts = [parquet.read_table(f"p-{n:06d}.parquet") for n in range(SHARDS)]
    assert [row for part in parts for row in part.to_pylist()] == whole.to_pylist()


def test_a_number_beyond_64_bits_does_not_fit_parquet_and_says_so(here: Path) -> None:
    pytest.importorskip("pyarrow")
    with ShardWriter("big.tar") as writer:
        writer.write({"__key__": "a", "n": str(1 << 64)})
    with pytest.raises(JobFailed, match=r"n:int does not fit its Parquet type int64"):
        extract(input="big.tar", columns=("n:int",), format="parquet")
    assert lines(input="big.tar", columns=("n:int",)) == [str(1 << 64)]


def test_a_part_for_each_shard_is_whole_with_its_own_header_and_may_be_compressed(here: Path) -> None:
    import gzip

    report = run(ExtractSpec(input="in-@5.tar", output="out/part-@.csv.gz", columns=("__key__",), format="csv"))
    assert report.succeeded
    for shard in range(SHARDS):
        text = gzip.decompress(Path(f"out/part-{shard:06d}.csv.gz").read_bytes()).decode()
        assert text.split() == ["__key__", *(f"{shard * PER_SHARD + n:03d}" for n in range(PER_SHARD))]


def test_aggregates_give_their_tables(here: Path) -> None:
    assert lines(count=True) == [str(len(ALL))]
    assert lines(count=True, where="not m.json") == [str(len(list(ALL)[::3]))]
    assert lines(columns=("cls:int",), top=2) == ["9\t0", "9\t1"]
    assert lines(columns=("cls:int",), top=1, format="csv") == ["count,cls:int", "9,0"]
    assert lines(keys=True)[:3] == [
        "field\tsamples\tbytes",
        f"__key__\t35\t{lines(keys=True)[1].split()[2]}",
        "cls\t35\t35",
    ]
    (found,) = map(json.loads, lines(columns=("m.json:n:float",), stats=True, format="jsonl"))
    assert (found["n"], found["missing"], found["min"], found["max"]) == (23, 12, 1.0, 34.0)
    stats = dict(line.split("\t") for line in lines(columns=("m.json:n:float",), stats=True))
    assert (stats["column"], stats["n"], stats["missing"]) == ("m.json:n:float", "23", "12")


def test_keys_count_fields_that_a_filter_loads_too(here: Path) -> None:
    with_filter = lines(keys=True, where="cls:int >= 0 and m.json:n != 99999")
    assert with_filter == lines(keys=True)


def test_only_what_is_asked_for_is_read(here: Path) -> None:
    with ShardWriter("large.tar") as writer:
        for n in range(30):
            writer.write({"__key__": f"{n}", "bin": bytes(500_000), "cls": "1"})
    _, report = extract(input="large.tar", columns=("cls", "bin:bytes"), where="bin")
    assert report.counts.read_bytes < Path("large.tar").stat().st_size / 4


@pytest.mark.parametrize(
    ("policy", "rows", "dropped", "kept"),
    [
        ("skip", "a c", {"unparsable": 1}, {}),
        ("stop", "a", {"unparsable": 1, "after-stop": 1}, {}),
        ("ignore", "a b c", {}, {"unparsable": 1}),
    ],
)
def test_bad_values_are_treated_as_the_policy_says(
    here: Path, policy: str, rows: str, dropped: dict[str, int], kept: dict[str, int]
) -> None:
    with ShardWriter("bad.tar") as writer:
        for key, value in (("a", "1"), ("b", "x"), ("c", "3")):
            writer.write({"__key__": key, "n": value})
    found, report = extract(input="bad.tar", columns=("__key__", "n:int"), on_error=policy)
    assert [line.split("\t")[0] for line in found.decode().splitlines()] == rows.split()
    assert (report.counts.dropped, report.counts.kept_damaged) == (dropped, kept)
    assert report.counts.missing == 0
    if policy == "ignore":
        assert found.splitlines()[1] == b"b\t\\N"
    with pytest.raises(JobFailed, match=r"'b' of bad\.tar"):
        extract("never", input="bad.tar", columns=("n:int",))
    assert not Path("never").exists()


@pytest.mark.parametrize("policy", ["skip", "stop", "ignore"])
def test_a_filter_that_cannot_decide_drops_the_sample_and_counts_it(here: Path, policy: str) -> None:
    with ShardWriter("bad.tar") as writer:
        for key, value in (("a", "1"), ("b", "x"), ("c", "3")):
            writer.write({"__key__": key, "n": value})
    _, report = extract(input="bad.tar", where="n:int > 0", on_error=policy)
    assert report.counts.dropped["unparsable"] == 1
    assert report.counts.missing == 0


@pytest.mark.parametrize(
    ("missing", "policy", "reason"), [("error", "skip", "missing-field"), ("skip", "fail", "missing")]
)
def test_a_limit_on_errors_counts_bad_samples_and_not_those_left_out_on_purpose(
    here: Path, missing: str, policy: str, reason: str
) -> None:
    fields = {"columns": ("m.json",), "missing": missing, "on_error": policy}
    _, report = extract(**fields)
    assert set(report.counts.dropped) == {reason}
    for limit in ("3", "10%"):
        if reason == "missing":
            extract(max_errors=limit, **fields)
        else:
            with pytest.raises(JobFailed, match="--max-errors"):
                extract("limited", max_errors=limit, **fields)
            assert not Path("limited").exists()


def test_a_failed_shard_ends_the_rows_before_it_and_publishes_no_file(
    here: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    damaged = Path("in-2.tar").read_bytes()
    Path("in-2.tar").write_bytes(damaged[:2000])
    for workers in (1, 2):
        with pytest.raises(JobFailed, match=r"in-2\.tar"):
            run(ExtractSpec(input="in-@5.tar", output="-"), RunOptions(workers=workers))
        assert capfdbinary.readouterr().out.decode().split() == [f"{n:03d}" for n in range(2 * PER_SHARD)]
    with pytest.raises(JobFailed):
        extract("whole")
    assert not Path("whole").exists()
    assert sorted(os.listdir()) == ["in-0.tar", "in-1.tar", "in-2.tar", "in-3.tar", "in-4.tar", "scratch"]
    with pytest.raises(JobFailed) as caught:
        run(ExtractSpec(input="in-@5.tar", output="part-@.txt"), RunOptions(workers=1))
    assert caught.value.report.shards_done == 4
    assert sorted(Path().glob("part-*")) == [Path(f"part-{n:06d}.txt") for n in (0, 1, 3, 4)]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"count": True, "keys": True}, "--count and --keys"),
        ({"top": 3}, "at least one column"),
        ({"stats": True}, "at least one column"),
        ({"top": -1, "columns": ("cls",)}, "how many rows"),
        ({"keys": True, "columns": ("cls",)}, "leave -f away"),
        ({"count": True, "format": "parquet"}, "text, jsonl or csv"),
        ({"count": True, "output": "o-@.txt"}, "name one file"),
        ({"output": "o-@4.txt"}, "5 input shards but 4 outputs"),
        ({"output": "in-0.tar"}, "both input and output"),
        ({"output": "o.txt.lz4"}, "not written here"),
        ({"output": "o.parquet.gz", "format": "parquet"}, "compressed inside"),
        ({"columns": ("a b",)}, "another column"),
        ({"where": "a ="}, "=="),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(here: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan(ExtractSpec(**{"input": "in-@5.tar", **fields}))


@pytest.mark.parametrize(
    ("module", "fields", "extra"),
    [
        ("pyarrow", {"format": "parquet"}, "parquet"),
        ("datasketches", {"stats": True, "columns": ("cls",)}, "stats"),
        ("PIL", {"columns": ("cls:width",)}, "images"),
    ],
)
def test_a_library_that_is_not_there_is_named_before_any_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, module: str, fields: dict[str, Any], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"tarmill\[{extra}\]"):
        plan(ExtractSpec(input="in-@5.tar", **fields))


def test_an_output_that_is_there_is_not_written_over_unless_asked(here: Path) -> None:
    Path("rows").write_text("precious")
    with pytest.raises(OutputExistsError, match="--exists overwrite"):
        extract(exists="fail")
    assert Path("rows").read_text() == "precious"
    assert len(lines()) == len(ALL)


def test_results_come_in_the_order_of_shards_and_wait_on_disk_when_they_are_many(here: Path) -> None:
    def outcome(index: int) -> Outcome[ExtractTask, ExtractDone]:
        shard = Shard(f"{index}.tar", f"{index}.tar")
        task = ExtractTask(index, shard, ExtractSpec(input="x"), "job", "", "", 0, None)
        if index == 6:
            return Outcome(task, None, SampleError("bad"), 1, "here")
        return Outcome(task, ExtractDone(index, Counts(), b"%d" % index * 100, ""), None, 1, "here")

    order = list(range(20))
    random.Random(3).shuffle(order)
    on_disk = 0
    for turn, ready in enumerate(in_order(map(outcome, order), "scratch/", waiting_bytes=500)):
        assert ready.task.index == turn
        if ready.result is not None:
            on_disk += bool(ready.result.part)
            found = storage.read_bytes(ready.result.part) if ready.result.part else ready.result.payload
            assert found == b"%d" % turn * 100
    assert turn == 19
    assert on_disk == len(os.listdir("scratch")) > 5


def test_rows_too_many_to_be_sent_need_a_place_that_workers_share(here: Path) -> None:
    found = plan(ExtractSpec(input="in-@5.tar"))
    task = found.tasks("", 10, storage.StorageSettings())[0]
    with pytest.raises(UsageError, match=r"-o rows.txt.*--scratch-dir"):
        worker.extract_shard(task)


def test_it_works_in_memory_stores(here: Path) -> None:
    storage.write_bytes("mem://x/in-0.tar", Path("in-0.tar").read_bytes())
    report = run(ExtractSpec(input="mem://x/in-@1.tar", output="mem://x/keys.txt"))
    assert report.succeeded
    assert storage.read_bytes("mem://x/keys.txt").decode().split() == [f"{n:03d}" for n in range(PER_SHARD)]


@pytest.mark.real
def test_on_dask_large_rows_wait_beside_the_output_and_standard_output_needs_a_shared_folder(
    here: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for shard in range(3):
        with ShardWriter(f"wide-{shard}.tar") as writer:
            for n in range(3):
                writer.write({"__key__": f"{shard}{n}", "txt": f"{shard}{n}" * 300_000})
    expected, _ = extract("serial", input="wide-@3.tar", columns=("txt",))
    with DaskCluster(here / "dask", workers=2) as cluster:
        options = RunOptions(scheduler=cluster.host_and_port)
        rows, report = extract(str(here / "out" / "rows"), options, input=str(here / "wide-@3.tar"), columns=("txt",))
        assert rows == expected
        assert report.counts.written == 9
        assert os.listdir("out") == ["rows"]
        spec = ExtractSpec(input=str(here / "wide-@3.tar"), columns=("txt",))
        with pytest.raises(JobFailed, match="--scratch-dir"):
            run(spec, options)
        capfdbinary.readouterr()
        run(spec, RunOptions(scheduler=cluster.host_and_port, scratch_dir=str(here / "scratch")))
        assert capfdbinary.readouterr().out == expected
        assert [name for name in os.listdir("scratch") if name.startswith("tarmill")] == []
