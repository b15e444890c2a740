"""The contract of the user's script: what it may return, what is told when it returns something else."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import pytest
from support.maps import IDENTITY, map_records, put_records, put_shards, records_in, run_map

from tarmill import storage
from tarmill.errors import JobFailed, ScriptError, SpecError, TarmillError

A, B, C = ({"__key__": key, "txt": key.encode(), "cls": b"1"} for key in "abc")


def mapped(place: str, body: str, *records: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    """What `process_sample` with this body makes of the samples a, b and c, or of those given."""
    script = "def process_sample(record):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    return map_records(place, records or (A, B, C), script, **fields)


def streamed(place: str, body: str, **fields: Any) -> list[dict[str, Any]]:
    """What `process_samples` with this body makes of the samples a, b and c."""
    script = "def process_samples(records):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    return map_records(place, (A, B, C), script, **fields)


def error_of(place: str, body: str, *records: dict[str, Any], **fields: Any) -> TarmillError:
    with pytest.raises(TarmillError) as caught:
        mapped(place, body, *records, **fields)
    return caught.value


# What comes in


def test_a_record_has_its_key_url_alias_and_fields(place: str) -> None:
    body = """
    assert sorted(record) == ["__key__", "__url__", "cls", "key", "txt"], record
    assert record["key"] == record["__key__"] and record["txt"] == record["key"].encode()
    return {"url": record["__url__"]}
    """
    assert mapped(place, body)[0] == {"__key__": "a", "url": b"mem://here/in.tar"}


def test_a_field_named_key_is_a_field(place: str) -> None:
    record = {"__key__": "a", "key": b"door", "txt": b"t"}
    assert mapped(place, "assert record['key'] == b'door'\nreturn record", record) == [record]
    assert mapped(place, "record['key'] += b's'\nreturn record", record, exists="overwrite")[0]["key"] == b"doors"


# What may come back


def test_a_dict_is_one_sample_none_is_dropped(place: str) -> None:
    assert mapped(place, "return None if record['key'] == 'b' else record") == [A, C]


@pytest.mark.parametrize("form", ["[{}, {}]", "({}, {})", "iter([{}, {}])", "(x for x in [{}, {}])"])
def test_an_iterable_is_several_samples_with_their_own_keys(place: str, form: str) -> None:
    pair = form.format(*(f'{{"__key__": record["key"] + "-{i}", "n": b"{i}"}}' for i in range(2)))
    assert [record["__key__"] for record in mapped(place, f"return {pair}")] == [
        f"{key}-{number}" for key in "abc" for number in range(2)
    ]


def test_a_generator_function_is_an_iterable(place: str) -> None:
    body = "yield record\nif record['key'] == 'b':\n    yield {'__key__': 'b2', 'txt': b''}"
    assert [record["__key__"] for record in mapped(place, body)] == ["a", "b", "b2", "c"]


def test_an_empty_iterable_drops_the_sample(place: str) -> None:
    assert mapped(place, "return [] if record['key'] == 'a' else record") == [B, C]


def test_several_samples_with_one_key_are_refused_with_the_cure(place: str) -> None:
    error = error_of(place, "return [record, dict(record)]")
    assert "'a'" in error.message
    assert "own __key__" in error.message


def test_of_several_samples_none_is_written_when_one_is_refused(place: str) -> None:
    body = """
    n = 5 if record["key"] == "b" else b"2"
    return [{"__key__": record["key"] + "x", "n": b"1"}, {"__key__": "y", "n": n}]
    """
    found = mapped(place, body, on_error="skip")
    assert [record["__key__"] for record in found] == ["ax", "y", "cx", "y"]


@pytest.mark.parametrize("name", ["__key__", "key"])
def test_the_key_may_be_changed_under_either_name(place: str, name: str) -> None:
    found = mapped(place, f"record['{name}'] = 'new/' + record['{name}']\nreturn record")
    assert [record["__key__"] for record in found] == ["new/a", "new/b", "new/c"]
    assert all("key" not in record or record["key"] is record["__key__"] for record in found)


def test_the_key_may_be_changed_under_both_names_alike(place: str) -> None:
    found = mapped(place, "record['key'] = record['__key__'] = record['key'] * 2\nreturn record")
    assert [record["__key__"] for record in found] == ["aa", "bb", "cc"]


def test_a_key_changed_differently_under_both_names_is_an_error_that_shows_both(place: str) -> None:
    error = error_of(place, "record['key'] = 'x'; record['__key__'] = 'y'\nreturn record")
    assert isinstance(error, ScriptError)
    for word in ("'a'", "'x'", "'y'"):
        assert word in error.message


def test_a_new_dict_without_a_key_keeps_the_key(place: str) -> None:
    assert mapped(place, "return {'n': b'1'}")[1] == {"__key__": "b", "n": b"1"}


@pytest.mark.parametrize("key", ["a.b", "", "__x__/a", "a\\0b", "d/a.b"])
def test_a_key_that_would_not_read_back_is_refused(place: str, key: str) -> None:
    assert "cannot be stored" in error_of(place, f"record['__key__'] = '{key}'\nreturn record").message


@pytest.mark.parametrize("key", ["5", "b'k'", "None"])
def test_a_key_that_is_no_str_is_refused_by_its_type(place: str, key: str) -> None:
    error = error_of(place, f"record['__key__'] = {key}\nreturn record")
    assert "expected a str" in error.message
    assert "'a'" in error.message


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("bytearray(b'x')", b"x"),
        ("memoryview(b'xyz')[::2]", b"xz"),
        ("__import__('array').array('B', [1, 2])", b"\1\2"),
        ("'ü'", "ü".encode()),
        ("''", b""),
    ],
)
def test_bytes_like_and_str_values_are_stored(place: str, value: str, stored: bytes) -> None:
    assert mapped(place, f"return {{'v': {value}}}")[0]["v"] == stored


@pytest.mark.parametrize("value", ["5", "None", "[b'x']", "{}", "1.5", "True", "object()"])
def test_other_values_are_refused_by_sample_field_type_and_shard(place: str, value: str) -> None:
    error = error_of(place, f"record['txt'] = {value} if record['key'] == 'b' else b''\nreturn record")
    kind = type(eval(value)).__name__
    for word in ("'b'", "'txt'", kind, "bytes or str", "mem://here/in.tar"):
        assert word in error.message


def test_other_names_with_two_underscores_are_left_out(place: str) -> None:
    assert mapped(place, "record['__mine__'] = object()\nreturn record") == [A, B, C]


@pytest.mark.parametrize("name", ["a/b", "a\\0b"])
def test_a_field_name_that_would_not_read_back_is_refused(place: str, name: str) -> None:
    assert "no field name" in error_of(place, f"return {{'{name}': b''}}").message


def test_a_sample_without_fields_is_refused(place: str) -> None:
    assert "no field" in error_of(place, "return {'__key__': 'x'}").message


@pytest.mark.parametrize("result", ["5", "b'x'", "'text'", "True", "[1]", "['ab']", "[None]", "{1, 2}"])
def test_other_results_are_refused_with_what_was_expected(place: str, result: str) -> None:
    error = error_of(place, f"return {result}")
    assert isinstance(error, ScriptError)
    assert "expected a dict, None to drop the sample, or an iterable of dicts" in error.message
    assert "'a'" in error.message


def test_an_exception_is_told_with_file_line_sample_and_shard(place: str) -> None:
    error = error_of(place, "x = 1\nreturn record['no such']")
    assert error.message.startswith("process_sample.py, line 3: KeyError: 'no such'")
    assert "'a' of mem://here/in.tar" in error.message
    assert "return record['no such']" in error.script_traceback


def test_an_exception_in_the_second_sample_fails_the_shard_and_nothing_is_written(place: str) -> None:
    error = error_of(place, "return record if record['key'] != 'b' else 1 / 0")
    assert isinstance(error, JobFailed)
    assert "ZeroDivisionError" in error.message
    with pytest.raises(TarmillError):
        storage.stat(f"{place}out.tar")


@pytest.mark.parametrize("where", ["a", "b"])
def test_a_script_that_exits_is_an_error_and_no_quiet_end(place: str, where: str) -> None:
    error = error_of(place, f"import sys\nif record['key'] == '{where}': sys.exit(0)\nreturn record")
    assert "SystemExit" in error.message
    assert f"'{where}'" in error.message


def test_errors_of_tarmill_that_a_script_raises_follow_the_policy_too(place: str) -> None:
    body = """
    from tarmill import storage
    if record["key"] == "b":
        storage.read_bytes("mem://here/nothing")
    return record
    """
    assert mapped(place, body, on_error="skip") == [A, C]


# A whole shard at once


def test_process_samples_sees_all_and_may_add_drop_and_change(place: str) -> None:
    body = """
    for record in records:
        if record["key"] != "b":
            yield record
    yield {"__key__": "sum", "n": b"3"}
    """
    assert streamed(place, body) == [A, C, {"__key__": "sum", "n": b"3"}]


def test_process_samples_may_batch(place: str) -> None:
    body = """
    batch = list(records)
    yield from reversed(batch)
    """
    assert streamed(place, body) == [C, B, A]


@pytest.mark.parametrize("name", ["__key__", "key"])
def test_process_samples_may_change_the_key_under_either_name(place: str, name: str) -> None:
    body = f"""
    for record in reversed(list(records)):
        record["{name}"] = "new-" + record["{name}"]
        yield record
    """
    assert [record["__key__"] for record in streamed(place, body)] == ["new-c", "new-b", "new-a"]


def test_process_samples_that_changes_both_names_differently_is_refused(place: str) -> None:
    body = "for record in records:\n    record['__key__'] = 'xx'; record['key'] = 'yy'\n    yield record"
    with pytest.raises(JobFailed, match="'xx' and key 'yy'"):
        streamed(place, body)


def test_process_samples_that_closes_its_input_has_dropped_the_rest(place: str) -> None:
    source = put_records(f"{place}in.tar", (A, B, C))
    script = "def process_samples(records):\n    yield next(records)\n    records.close()\n"
    report = run_map(source, f"{place}out.tar", script)
    assert (report.counts.read, report.counts.dropped) == (3, {"by-script": 2})


def test_process_samples_may_return_a_list(place: str) -> None:
    assert streamed(place, "return [dict(record) for record in records]") == [A, B, C]


def test_process_samples_that_stops_early_drops_the_rest_and_balances(place: str) -> None:
    source = put_records(f"{place}in.tar", (A, B, C))
    report = run_map(source, f"{place}out.tar", "def process_samples(records):\n    yield next(records)\n")
    assert records_in(f"{place}out.tar") == [A]
    assert report.counts.dropped == {"by-script": 2}
    assert report.counts.missing == 0


def test_process_samples_that_raises_fails_the_shard_with_line_and_sample(place: str) -> None:
    with pytest.raises(JobFailed) as caught:
        streamed(place, "for record in records:\n    yield record\n    assert record['key'] != 'b', 'no b'")
    assert "line 4: AssertionError: no b" in caught.value.message
    assert "'b'" in caught.value.message


@pytest.mark.parametrize("body", ["return 5", "return None", "list(records)", "yield 5", "yield b'x'"])
def test_process_samples_that_gives_nonsense_is_told_what_was_expected(place: str, body: str) -> None:
    with pytest.raises(JobFailed) as caught:
        streamed(place, body)
    assert "expected" in caught.value.message
    assert "process_samples" in caught.value.message


def test_process_samples_records_need_a_key(place: str) -> None:
    with pytest.raises(JobFailed, match="without __key__"):
        streamed(place, "next(records)\nyield {'n': b'1'}")


def test_process_samples_cannot_hide_that_its_input_was_damaged(place: str) -> None:
    source = put_records(f"{place}in.tar", (A, B, C))
    whole = storage.read_bytes(source)
    storage.write_bytes(source, whole[: len(whole) // 2])
    script = """
def process_samples(records):
    try:
        for record in records:
            yield record
    except Exception:
        pass
"""
    with pytest.raises(JobFailed) as caught:
        run_map(source, f"{place}out.tar", script)
    assert "in.tar" in caught.value.message


def test_keep_rest_needs_process_sample(place: str) -> None:
    with pytest.raises(SpecError, match="process_sample"):
        streamed(place, "return records", fields=("txt",), keep_rest=True)


# Loading


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("def process_sample(record:\n    pass\n", ("line 1", "never closed")),
        ("x = 1\n  y = 2\n", ("line 2", "indent")),
        ("import no_such_module_anywhere\n", ("line 1", "ModuleNotFoundError", "no_such_module_anywhere")),
        (
            "def process(record):\n    return record\n",
            ("neither process_sample nor process_samples", "def process_sample"),
        ),
        (IDENTITY + "def process_samples(records):\n    return records\n", ("both",)),
        ("process_sample = 5\n", ("process_sample is int", "function")),
        (IDENTITY + "setup = {}\n", ("setup is dict", "function")),
        ("import sys\nsys.exit(0)\n" + IDENTITY, ("line 2", "SystemExit")),
        (IDENTITY + "\0", ("null bytes",)),
    ],
)
def test_a_script_that_cannot_be_used_fails_before_anything_is_looked_at(
    place: str, script: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(ScriptError) as caught:
        run_map(f"{place}not-there.tar", f"{place}out.tar", script, script_name="mine.py")
    for word in ("mine.py", *words):
        assert word in caught.value.message
    assert list(storage.list_urls(place)) == []


def test_a_script_may_define_classes_that_pickle_and_dataclasses(place: str) -> None:
    script = """
from __future__ import annotations
import dataclasses, pickle

@dataclasses.dataclass
class Note:
    text: str

def process_sample(record):
    return {"n": pickle.loads(pickle.dumps(Note(record["key"]))).text}
"""
    assert [record["n"] for record in map_records(place, (A, B), script)] == [b"a", b"b"]


def test_what_a_script_prints_never_reaches_standard_output(place: str, capfd: pytest.CaptureFixture[str]) -> None:
    script = """
print("loaded")
def setup(params):
    print("set up")
def process_sample(record):
    print("sample")
    return record
"""
    map_records(place, (A,), script)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "loaded" in shown.err
    assert "set up" in shown.err
    assert "sample" in shown.err


# setup and params


def test_setup_gets_the_params_once_per_process(place: str) -> None:
    script = """
calls = []
def setup(params):
    calls.append(params)
def process_sample(record):
    assert len(calls) == 1, calls
    return {"p": repr(calls[0])}
"""
    source = put_shards(place, 2, 1)
    run_map(source, f"{place}out-@.tar", script, params={"size": "224", "mode": "a=b"})
    for shard in range(2):
        assert eval(records_in(f"{place}out-{shard:06d}.tar")[0]["p"]) == {"size": "224", "mode": "a=b"}


def test_setup_runs_once_in_each_worker_process(tmp_path: Path) -> None:
    script = f"""
import os
def setup(params):
    with open({str(tmp_path / "setups")!r}, "a") as log:
        log.write(f"{{os.getpid()}}\\n")
def process_sample(record):
    return {{"pid": str(os.getpid())}}
"""
    run_map(put_shards(tmp_path, 6, 2), tmp_path / "out-@.tar", script, options={"workers": 2})
    setups = (tmp_path / "setups").read_text().split()
    used = {record["pid"].decode() for shard in range(6) for record in records_in(tmp_path / f"out-{shard:06d}.tar")}
    assert len(setups) == len(set(setups))
    assert used <= set(setups)
    assert str(os.getpid()) not in setups


def test_setup_that_fails_is_told_with_file_and_line(place: str) -> None:
    script = IDENTITY + "def setup(params):\n    return params['model']\n"
    with pytest.raises(JobFailed) as caught:
        map_records(place, (A,), script)
    assert "line 4: KeyError: 'model' (setup(params) failed" in caught.value.message
