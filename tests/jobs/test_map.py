"""What a map job writes and counts."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import pytest
from support import tars
from support.maps import (
    IDENTITY,
    UPPER,
    counts_balance,
    map_records,
    pairs_of,
    put_records,
    put_shards,
    records_in,
    run_map,
)

from tarmill import storage
from tarmill.errors import (
    ChangedError,
    JobFailed,
    NotFoundError,
    OutputExistsError,
    SpecError,
    TarmillError,
    UsageError,
)
from tarmill.formats.compression import decompress

A, B, C = ({"__key__": key, "txt": key.encode(), "cls": b"1"} for key in "abc")
FAILS_ON_B = "def process_sample(record):\n    return {'n': record['txt'] if record['key'] != 'b' else 1 / 0}\n"
CUT = tars.ustar([("a.txt", b"a"), ("b.txt", b"b" * 600), ("c.txt", b"c")])[: 512 * 5]
DOUBLED = tars.ustar([("a.txt", b"1"), ("b.txt", b"2"), ("b.txt", b"3"), ("c.txt", b"4")])


def lines_of(url: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_bytes(url).splitlines()]


# Shapes of output


def test_shard_i_becomes_shard_i(place: str) -> None:
    report = run_map(put_shards(place, 3), f"{place}out-@.tar", UPPER)
    for shard in range(3):
        found = records_in(f"{place}out-{shard:06d}.tar")
        assert [record["__key__"] for record in found] == [f"s{shard}-{number:03d}" for number in range(5)]
        assert found[0]["txt"].startswith(f"TXT {shard} 0 ".encode())
        assert found[0]["cls"].startswith(b"cls")
    assert (report.counts.read, report.counts.written, report.shards_done) == (15, 15, 3)
    assert report.succeeded


@pytest.mark.parametrize("extension", [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2"])
def test_outputs_are_compressed_as_their_names_say_and_others_read_them(place: str, extension: str) -> None:
    run_map(put_shards(place, 1), f"{place}out-@1{extension}", UPPER)
    data = storage.read_bytes(f"{place}out-0{extension}")
    raw, codec = decompress(io.BytesIO(data), "out")
    assert codec == {".tar": "none", ".tgz": "gz"}.get(extension, extension.rpartition(".")[2])
    plain = b"".join(iter(lambda: _read(raw), b""))
    wanted = [(name, body.upper() if name.endswith("txt") else body) for name, body in pairs_of(0)]
    assert tars.tarfile_listing(plain) == wanted
    if codec != "zst":  # Python's tarfile knows no zstd
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert archive.getnames() == [name for name, _ in wanted]


def _read(raw: Any) -> bytes:
    block = bytearray(1 << 16)
    return bytes(block[: raw.readinto(block)])


@pytest.mark.parametrize("extension", [".tar", ".tar.gz"])
def test_webdataset_reads_the_outputs(tmp_path: Any, extension: str) -> None:
    run_map(put_shards(tmp_path, 2), tmp_path / f"out-@{extension}", UPPER)
    for shard in range(2):
        found = tars.webdataset_listing((tmp_path / f"out-{shard:06d}{extension}").read_bytes())
        assert found == [{**sample, "txt": sample["txt"].upper()} for sample in tars.samples_of(pairs_of(shard))]


@pytest.mark.parametrize(("level", "extension"), [(0, ".tar.gz"), (9, ".tar.gz"), (1, ".tar.zst")])
def test_the_compression_level_is_kept(place: str, level: int, extension: str) -> None:
    source = put_shards(place, 1, 50)
    run_map(source, f"{place}a{extension}", level=level)
    run_map(source, f"{place}b{extension}")
    sizes = [storage.stat(f"{place}{name}{extension}").size_bytes for name in "ab"]
    assert sizes[0] != sizes[1]
    assert records_in(f"{place}a{extension}") == records_in(f"{place}b{extension}")


@pytest.mark.parametrize(("level", "output"), [(99, "out.tar.gz"), (5, "out.tar"), (0, "out.tar.bz2")])
def test_a_level_that_the_codec_does_not_have_is_refused_before_work(place: str, level: int, output: str) -> None:
    source = put_shards(place, 1)
    with pytest.raises(SpecError, match="level"):
        run_map(source, f"{place}{output}", level=level)
    assert [info.url for info in storage.list_urls(place)] == [f"{place}in-0.tar"]


def test_a_shard_without_samples_stays_a_shard_without_samples(place: str) -> None:
    storage.write_bytes(f"{place}in.tar", tars.END)
    report = run_map(f"{place}in.tar", f"{place}out.tar")
    assert records_in(f"{place}out.tar") == []
    assert report.succeeded


def test_the_same_job_twice_gives_the_same_bytes(place: str) -> None:
    source = put_shards(place, 1)
    run_map(source, f"{place}one.tar.gz", UPPER)
    run_map(source, f"{place}two.tar.gz", UPPER)
    assert storage.read_bytes(f"{place}one.tar.gz") == storage.read_bytes(f"{place}two.tar.gz")


def test_the_identity_keeps_the_digest(place: str) -> None:
    source = put_shards(place, 2)
    one = run_map(source, f"{place}one-@.tar")
    two = run_map(f"{place}one-@2.tar".replace("@2", "@000002"), f"{place}two-@.tar.gz")
    assert one.digest == two.digest != ""


def test_hard_links_are_stored_as_files(place: str) -> None:
    data = tars.member("a.txt", b"one") + tars.header("b.txt", flag=b"1", link=b"a.txt") + tars.END
    storage.write_bytes(f"{place}in.tar", data)
    run_map(f"{place}in.tar", f"{place}out.tar", UPPER)
    assert [record["txt"] for record in records_in(f"{place}out.tar")] == [b"ONE", b"ONE"]


# Options that choose


def test_only_the_fields_asked_for_are_loaded(place: str) -> None:
    script = "def process_sample(record):\n    assert 'cls' not in record\n    return record\n"
    assert map_records(place, (A, B), script, fields=("txt",)) == [
        {"__key__": "a", "txt": b"a"},
        {"__key__": "b", "txt": b"b"},
    ]


KEEPING = """
def process_sample(record):
    assert sorted(record) == ["__key__", "__url__", "key", "txt"], sorted(record)
    if record["key"] == "b":
        return None
    if record["key"] == "c":
        return [{"__key__": f"c{n}", "txt": record["txt"]} for n in range(2)]
    return {"__key__": "new", "txt": b"new", "more": b"m"}
"""


def test_keep_rest_passes_the_other_fields_through(place: str) -> None:
    assert map_records(place, (A, B, C), KEEPING, fields=("txt",), keep_rest=True) == [
        {"__key__": "new", "cls": b"1", "more": b"m", "txt": b"new"},
        {"__key__": "c0", "cls": b"1", "txt": b"c"},
        {"__key__": "c1", "cls": b"1", "txt": b"c"},
    ]


def test_keep_rest_keeps_a_field_named_key_too(place: str) -> None:
    script = "def process_sample(record):\n    assert record['key'] == 'a'\n    return {'txt': b'new'}\n"
    record = {"__key__": "a", "key": b"door", "txt": b"t"}
    found = map_records(place, (record,), script, fields=("txt",), keep_rest=True)
    assert found == [{"__key__": "a", "key": b"door", "txt": b"new"}]


def test_keep_rest_tells_nonsense_as_ever(place: str) -> None:
    with pytest.raises(TarmillError, match=r"process_sample\.py: process_sample returned int 5 for sample 'a'"):
        map_records(place, (A,), "def process_sample(record):\n    return 5\n", fields=("txt",), keep_rest=True)


@pytest.mark.parametrize(
    ("function", "keys"),
    [("base_plus_ext", ["d/a", "d/b"]), ("last_dir", ["d"]), ("dir_plus_file", ["d"]), (r"^d/(\w)\.(.*)", ["a", "b"])],
)
def test_the_key_function_can_be_chosen(place: str, function: str, keys: list[str]) -> None:
    storage.write_bytes(f"{place}in.tar", tars.ustar([("d/a.txt", b"1"), ("d/b.txt", b"2")]))
    script = "def process_sample(record):\n    return {'n': record['key']}\n"
    run_map(f"{place}in.tar", f"{place}out.tar", script, key_function=function)
    assert [record["n"].decode() for record in records_in(f"{place}out.tar")] == keys


def test_an_unknown_key_function_is_refused_before_work(place: str) -> None:
    with pytest.raises(SpecError, match="base_plus_ext"):
        run_map(put_shards(place, 1), f"{place}out.tar", key_function="base_plus")


def test_limit_takes_the_first_samples_of_each_shard(place: str) -> None:
    report = run_map(put_shards(place, 2), f"{place}out-@.tar", limit=2)
    assert [len(records_in(f"{place}out-{shard:06d}.tar")) for shard in range(2)] == [2, 2]
    assert (report.counts.read, report.counts.written, report.counts.missing) == (4, 4, 0)


def test_limit_does_not_mind_what_comes_later(place: str) -> None:
    storage.write_bytes(f"{place}in.tar", CUT)
    run_map(f"{place}in.tar", f"{place}out.tar", limit=1)
    assert len(records_in(f"{place}out.tar")) == 1


@pytest.mark.parametrize("fields", [{"limit": -1}, {"max_errors": "many"}, {"keep_rest": True}, {"on_error": "hope"}])
def test_values_that_cannot_work_are_refused(place: str, fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        run_map(f"{place}in.tar", f"{place}out.tar", **fields)


@pytest.mark.parametrize("workers", [-1, -5])
def test_a_negative_number_of_workers_is_refused(place: str, workers: int) -> None:
    with pytest.raises(SpecError, match="workers"):
        run_map(put_shards(place, 1), f"{place}out.tar", options={"workers": workers})


# Patterns that do not fit


def test_another_count_of_outputs_is_refused_and_names_the_commands_that_change_it(place: str) -> None:
    with pytest.raises(SpecError) as caught:
        run_map(put_shards(place, 3), f"{place}out-@4.tar")
    for word in ("3 input shards", "4 outputs", "out-@.tar", "htshuffle", "htsort"):
        assert word in caught.value.message


@pytest.mark.parametrize("output", ["in-@3.tar", "in-{0..2}.tar"])
def test_an_output_that_is_also_input_is_refused(place: str, output: str) -> None:
    source = put_shards(place, 3)
    with pytest.raises(SpecError, match="both input and output"):
        run_map(source, f"{place}{output}", exists="overwrite")


def test_an_output_that_is_also_input_is_found_behind_other_spellings(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_shards(tmp_path / "real", 1)
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    before = (tmp_path / "real/in-0.tar").read_bytes()
    for output in ("real/in-0.tar", f"{tmp_path}/real/in-0.tar", "./link/../real//in-0.tar", "link/in-0.tar"):
        with pytest.raises(SpecError, match="both input and output"):
            run_map("real/in-@1.tar", output, UPPER, exists="overwrite")
    assert (tmp_path / "real/in-0.tar").read_bytes() == before


def test_two_outputs_of_one_name_are_refused(place: str) -> None:
    with pytest.raises(SpecError, match="twice"):
        run_map(put_shards(place, 2), f"{place}out.tar::{place}out.tar")


def test_every_output_has_a_known_extension(place: str) -> None:
    with pytest.raises(SpecError, match=r"out\.tar\.foo"):
        run_map(put_shards(place, 2), f"{place}out.tar::{place}out.tar.foo")


def test_an_unknown_extension_is_never_a_plain_tar(place: str) -> None:
    with pytest.raises(SpecError, match=r"\.tar\.zst"):
        run_map(put_shards(place, 1), f"{place}out.tar.lzma4")


@pytest.mark.parametrize("output", ["out-*.tar", "@list.txt"])
def test_an_output_known_only_after_looking_is_refused(place: str, output: str) -> None:
    with pytest.raises(SpecError, match="only after looking"):
        run_map(put_shards(place, 1), output)


def test_a_missing_input_shard_is_named_before_work(place: str) -> None:
    source = put_shards(place, 3)
    storage.delete(f"{place}in-1.tar")
    with pytest.raises(NotFoundError, match=r"in-1\.tar \(number 2 of 3\)"):
        run_map(source, f"{place}out-@.tar")


@pytest.mark.parametrize("source", ["", "mem://here/*.tar", "mem://here/folder/"])
def test_a_pattern_that_stands_for_nothing_is_refused(place: str, source: str) -> None:
    with pytest.raises(UsageError):
        run_map(source, f"{place}out-@.tar")


def test_one_shard_may_be_read_twice(place: str) -> None:
    source = put_records(f"{place}in.tar", (A,))
    run_map(f"{source}::{source}", f"{place}out-@.tar")
    assert [records_in(f"{place}out-{shard:06d}.tar") for shard in range(2)] == [[A], [A]]


# Bad samples and failing scripts


@pytest.mark.parametrize("policy", ["skip", "stop", "ignore", "fail"])
@pytest.mark.parametrize("script", ["raises", "nonsense", "bad value"])
def test_what_a_script_fails_on_is_treated_by_the_policy_and_balances(place: str, policy: str, script: str) -> None:
    bad = {"raises": "1 / 0", "nonsense": "5", "bad value": "{'n': 5}"}[script]
    text = f"def process_sample(record):\n    return record if record['key'] != 'b' else {bad}\n"
    source, output = put_records(f"{place}in.tar", (A, B, C)), f"{place}out.tar"
    if policy == "fail":
        with pytest.raises(JobFailed) as caught:
            run_map(source, output, text)
        assert caught.value.report.shards_done == 0
        with pytest.raises(NotFoundError):
            storage.stat(output)
        return
    report = run_map(source, output, text, on_error=policy, rejected=f"{place}rejected.jsonl")
    assert records_in(output) == {"skip": [A, C], "stop": [A], "ignore": [A, B, C]}[policy]
    assert counts_balance(report.to_dict())
    assert report.counts.read == 3
    (line,) = lines_of(f"{place}rejected.jsonl")
    assert (line["shard"], line["key"], line["kept"]) == (source, "b", policy == "ignore")
    assert line["reason"] == {"raises": "script-error", "nonsense": "bad-result", "bad value": "bad-value"}[script]
    assert "ZeroDivisionError" in line.get("traceback", "") or script != "raises"


@pytest.mark.parametrize("policy", ["skip", "stop", "ignore"])
@pytest.mark.parametrize("data", [CUT, DOUBLED], ids=["cut", "doubled"])
def test_bad_samples_are_treated_by_the_policy_and_balance(place: str, policy: str, data: bytes) -> None:
    storage.write_bytes(f"{place}in.tar", data)
    report = run_map(f"{place}in.tar", f"{place}out.tar", on_error=policy, rejected=f"{place}rejected.jsonl")
    assert counts_balance(report.to_dict())
    assert report.counts.written == len(records_in(f"{place}out.tar"))
    counts = report.counts
    assert counts.errors + sum(counts.kept_damaged.values()) >= 1
    lines = lines_of(f"{place}rejected.jsonl")
    assert lines
    assert all(line["shard"] == f"{place}in.tar" and line["message"] and line["reason"] for line in lines)


def test_a_bad_shard_fails_alone(place: str) -> None:
    source = put_shards(place, 3)
    storage.write_bytes(f"{place}in-0.tar", storage.read_bytes(f"{place}in-0.tar")[:700])
    with pytest.raises(JobFailed) as caught:
        run_map(source, f"{place}out-@.tar")
    report = caught.value.report
    assert (report.shards_done, len(report.failures)) == (2, 1)
    assert "in-0.tar" in report.failures[0].message
    assert [info.url for info in storage.list_urls(f"{place}out")] == [
        f"{place}out-000001.tar",
        f"{place}out-000002.tar",
    ]


def test_an_ignored_sample_whose_key_cannot_be_stored_fails_and_is_not_renamed_in_silence(place: str) -> None:
    storage.write_bytes(f"{place}in.tar", tars.ustar([("d.e/a.txt", b"1"), ("d.f/a.txt", b"2")]))
    with pytest.raises(JobFailed, match="cannot be stored"):
        run_map(
            f"{place}in.tar",
            f"{place}out.tar",
            "def process_sample(record):\n    return {'__key__': 'x', 'n': b''} if record['key'] == 'd.e' else 1 / 0\n",
            key_function="last_dir",
            on_error="ignore",
        )


@pytest.mark.parametrize(("limit", "works"), [("0", False), ("1", False), ("2", True), ("39%", False), ("40%", True)])
def test_more_errors_than_allowed_fail_the_job_and_publish_no_manifest(place: str, limit: str, works: bool) -> None:
    script = "def process_sample(record):\n    return record if record['key'][-1] not in '12' else 1 / 0\n"
    source, output = put_shards(place, 1), f"{place}out-@.tar"
    fields = {"on_error": "skip", "max_errors": limit}
    if works:
        assert run_map(source, output, script, **fields).counts.dropped == {"script-error": 2}
        return
    for _ in range(2):  # and a rerun, for which nothing is left to do, must not pass either
        with pytest.raises(JobFailed, match=rf"^2 samples .* more than --max-errors {limit}"):
            run_map(source, output, script, **fields)
    with pytest.raises(NotFoundError):
        storage.stat(f"{place}out.manifest.json")


def test_too_many_errors_end_the_job_before_the_last_shard(place: str) -> None:
    with pytest.raises(JobFailed) as caught:
        run_map(
            put_shards(place, 5),
            f"{place}out-@.tar",
            "def process_sample(r):\n    if r['key'] > 's0-000': 1 / 0\n    return r\n",
            on_error="skip",
            max_errors="3",
        )
    assert caught.value.report.shards_done < 5


def test_rejected_samples_are_told_in_shard_order_for_any_number_of_workers(tmp_path: Any) -> None:
    script = "def process_sample(record):\n    return record if record['key'][-1] not in '12' else 1 / 0\n"
    source = put_shards(tmp_path, 3)
    texts = []
    for workers in (1, 2):
        rejected = tmp_path / f"rejected-{workers}.jsonl"
        run_map(
            source,
            tmp_path / f"out{workers}-@.tar",
            script,
            on_error="skip",
            rejected=str(rejected),
            options={"workers": workers},
        )
        texts.append(rejected.read_text())
    assert texts[0] == texts[1]
    keys = [json.loads(line)["key"] for line in texts[0].splitlines()]
    assert keys == [f"s{shard}-00{number}" for shard in range(3) for number in (1, 2)]


def test_nothing_rejected_is_an_empty_file(place: str) -> None:
    run_map(put_shards(place, 1), f"{place}out.tar", on_error="skip", rejected=f"{place}rejected.jsonl")
    assert storage.read_bytes(f"{place}rejected.jsonl") == b""


# The same bytes wherever it runs


def test_worker_processes_give_the_bytes_of_this_process(tmp_path: Any) -> None:
    source = put_shards(tmp_path, 4)
    reports = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        reports.append(run_map(source, folder / "out-@.tar.gz", UPPER, options={"workers": workers}))
    for name in ("out-000000.tar.gz", "out-000003.tar.gz"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert reports[0].digest == reports[1].digest


# Inputs that a manifest vouches for


@pytest.mark.parametrize("at", [-1, 600, 100], ids=["body", "second body", "header"])
@pytest.mark.parametrize("policy", ["fail", "skip"])
@pytest.mark.parametrize("script", [IDENTITY, FAILS_ON_B.replace("'b'", "'s0-001'")], ids=["identity", "failing"])
def test_an_input_changed_since_its_manifest_is_never_used(place: str, at: int, policy: str, script: str) -> None:
    run_map(put_shards(place, 1), f"{place}mid-@1.tar")
    data = bytearray(storage.read_bytes(f"{place}mid-0.tar"))
    data[at if at > 0 else 512 + 3] ^= 1
    storage.write_bytes(f"{place}mid-0.tar", bytes(data))
    with pytest.raises(JobFailed) as caught:
        run_map(f"{place}mid-@1.tar", f"{place}out.tar", script, on_error=policy)
    assert "manifest" in caught.value.message
    with pytest.raises(NotFoundError):
        storage.stat(f"{place}out.tar")


@pytest.mark.parametrize("policy", ["fail", "skip", "stop", "ignore"])
def test_a_compressed_input_changed_since_its_manifest_is_never_used(place: str, policy: str) -> None:
    run_map(put_shards(place, 1), f"{place}mid-@1.tar.gz")
    data = bytearray(storage.read_bytes(f"{place}mid-0.tar.gz"))
    data[len(data) // 2] ^= 1
    storage.write_bytes(f"{place}mid-0.tar.gz", bytes(data))
    with pytest.raises(JobFailed, match="manifest"):
        run_map(f"{place}mid-@1.tar.gz", f"{place}out.tar", on_error=policy)


def test_an_output_that_another_writer_touches_is_noticed_before_the_manifest(place: str) -> None:
    source = put_shards(place, 2)
    script = """
from tarmill import storage
def process_sample(record):
    if record["key"].startswith("s1"):
        storage.write_bytes("mem://here/out-000000.tar", b"intruder")
    return record
"""
    with pytest.raises(ChangedError, match=r"out-000000\.tar"):
        run_map(source, f"{place}out-@.tar", script)
    with pytest.raises(NotFoundError):
        storage.stat(f"{place}out.manifest.json")


def test_existing_outputs_of_nobody_are_not_overwritten(place: str) -> None:
    source = put_shards(place, 2)
    storage.write_bytes(f"{place}out-000001.tar", b"precious")
    with pytest.raises(OutputExistsError, match=r"out-000001\.tar"):
        run_map(source, f"{place}out-@.tar")
    assert storage.read_bytes(f"{place}out-000001.tar") == b"precious"
