"""A command line as a spec file, and back: the same job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import ClickException
from click.testing import CliRunner, Result
from hypothesis import assume, given
from hypothesis import strategies as st
from support.maps import IDENTITY, UPPER, bytes_of, command, put_shards, read_json

from tarmill.cli import htextract, htmapper, htshuffle, htsort, htupload, main
from tarmill.cli.arguments import base_of, flags_of, plain_values
from tarmill.cli.job_command import JobCommand
from tarmill.cli.manifest import report_url, to_yaml
from tarmill.errors import TarmillError
from tarmill.planning.jobid import job_id
from tarmill.spec import KINDS, ExtractSpec, MapSpec, ReorderOptions, RunOptions, ShuffleSpec
from tarmill.spec_base import camel, option_of
from tarmill.spec_file import options_of, read_spec_file, resource_name, write_spec_file
from tarmill.values import Field, fields

COMMANDS = {one.COMMAND.script: one.COMMAND for one in (htmapper, htextract, htshuffle, htsort, htupload)}
TEXT = st.one_of(
    st.sampled_from(
        ["y", "no", "1e3", "010", "0x1F", "~", "null", "12:30:00", "2026-11-27", ".5", "a: b", "# x", "&a"]
    ),
    st.text(st.characters(exclude_categories=()), min_size=1, max_size=12),
    st.text("a \n\t:#-'\"\\é😀", min_size=1, max_size=20),
)


def value_of(field: Field) -> st.SearchStrategy[str]:
    known = option_of(field)
    if known.choices:
        return st.sampled_from(known.choices)
    if known.unit == "bytes":
        return st.sampled_from(["1", "500MB", "1.5GiB", "12345"])
    if known.unit == "seconds":
        return st.sampled_from(["0", "90s", "0.1s", "5m", "1.5h", "0.3ms", "0.0000001s"])
    if base_of(field) in ("int", "float"):
        return st.integers(0, 1 << 40).map(str)
    if base_of(field) == "dict":
        return st.tuples(TEXT, TEXT).map("=".join)
    return TEXT


@st.composite
def command_lines(draw: st.DrawFn, job: JobCommand) -> list[str]:
    """Words that a person may write: some options, in any order, then the arguments."""
    words = []
    every = [field for kind in job.kinds for field in fields(kind) if not option_of(field).hidden]
    options = [field for field in every if not option_of(field).argument]
    for field in draw(st.lists(st.sampled_from(options), max_size=6)):
        if "script" in field.name:
            continue
        flag = flags_of(field, option_of(field))[-1]
        words.append(flag if base_of(field) == "bool" else f"{flag}={draw(value_of(field))}")
    script = ["-p", __file__] if job.script == "htmapper" else []
    return [*words, *script, *(draw(TEXT) for field in every if option_of(field).argument)]


@pytest.mark.parametrize("job", COMMANDS.values(), ids=COMMANDS)
@given(data=st.data())
def test_flags_make_a_file_that_is_read_as_the_same_job(job: JobCommand, data: st.DataObject) -> None:
    values = plain_values(data.draw(command_lines(job)), *job.kinds)
    assume(values is not None)
    assert values is not None
    try:
        spec, options = job.read(values)
    except (TarmillError, ClickException):
        assume(False)
    text = to_yaml(write_spec_file(spec, options))
    found, found_options = read_spec_file(yaml.safe_load(text), lambda path: "")
    assert found == spec
    for field in fields(found_options):
        if not option_of(field).local:
            assert getattr(found_options, field.name) == getattr(options, field.name)
    assert text.encode("utf-8")
    assert to_yaml(write_spec_file(found, found_options)) == text
    again = json.loads(json.dumps(write_spec_file(spec, options)))
    assert read_spec_file(again, lambda path: "")[0] == spec


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_field_has_its_place_in_a_file(kind: Any) -> None:
    run = {camel(field.name) for field in fields(options_of(kind.spec)) if not option_of(field).local}
    assert run >= {"taskTimeout", "verifyUploads", "s3Endpoint", "anonymous", "storeOptions", "failFast", "caFile"}
    assert not run & {"scheduler", "workers", "tlsCa", "dryRun", "report", "logFormat", "quiet", "printManifest"}
    assert not any(option_of(field).local for field in fields(kind.spec))


# -- the commands ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    put_shards(tmp_path, 3)
    (tmp_path / "up.py").write_text(UPPER)
    (tmp_path / "files").mkdir()
    for name in ("a.txt", "b.txt", "b.cls"):
        (tmp_path / "files" / name).write_text(name)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main.command, arguments)


JOBS = {
    "htmapper": ["-p", "up.py", "in-@3.tar", "out-@.tar", "--param", "n=y", "-f", "txt", "--task-timeout", "5m"],
    "htextract": ["in-@3.tar", "-f", "__key__,txt", "-o", "out.csv", "-F", "csv"],
    "htshuffle": ["in-@3.tar", "out-@4.tar", "--seed", "7", "--memory", "1GB"],
    "htsort": ["in-@3.tar", "out-@.tar", "-k", "__key__:desc", "--samples-per-shard", "4"],
    "htupload": ["files", "out-@.tar", "--shuffle", "--seed", "3", "--fetch-timeout", "1.5s", "--include", "*.txt"],
}


@pytest.mark.parametrize(("tool", "arguments"), JOBS.items(), ids=JOBS)
def test_a_printed_manifest_runs_the_same_job(folder: Path, tool: str, arguments: list[str]) -> None:
    printed = command([*arguments, "--print-manifest"], folder, tool=tool)
    assert (printed.returncode, printed.stderr) == (0, b"")
    assert not list(folder.glob("out*")), "nothing is run"
    assert command([*arguments, "-j", "1", "-q"], folder, tool=tool).returncode == 0
    wanted = bytes_of(folder)
    for path in folder.glob("out*"):
        path.unlink()
    done = command(["run", "--spec", "-", "-j", "1"], folder, printed.stdout, tool="tarmill")
    assert done.returncode == 0, done.stderr.decode()
    assert bytes_of(folder) == wanted


@pytest.mark.usefixtures("folder")
def test_a_printed_manifest_reads_as_a_person_would_write_it() -> None:
    more = ("--param", "n=010", "-f", "txt", "--fail-fast", "--print-manifest")
    shown = call("map", "-p", "up.py", "in-@3.tar", "http://h/Loud_2-@.tar", *more)
    assert shown.stdout == (
        "apiVersion: tarmill.dev/v1alpha1\nkind: ShardMap\nmetadata:\n  name: loud-2\nspec:\n  input: in-@3.tar\n"
        "  output: http://h/Loud_2-@.tar\n  script: |\n    def process_sample(record):\n"
        "        record['txt'] = record['txt'].upper()\n        return record\n  scriptName: up.py\n"
        '  params:\n    "n": "010"\n  fields:\n    - txt\n  options:\n    failFast: true\n'
    )


@pytest.mark.usefixtures("folder")
def test_a_secret_that_would_be_printed_is_noted() -> None:
    shown = call("shuffle", "http://me:secret@h/in-@3.tar", "out-@.tar", "--print-manifest")
    assert "note: input holds a secret" in shown.stderr


@pytest.mark.usefixtures("folder")
def test_flags_count_more_than_the_options_of_a_file() -> None:
    options = {"taskTimeout": "5m", "verifyUploads": "hash", "storeOptions": {"a": "1", "b": "2"}}
    spec = {"input": "in-@3.tar", "output": "out-@.tar", "options": options}
    Path("job.json").write_text(json.dumps({"kind": "ShardShuffle", "spec": spec}))
    flags = ["--task-timeout", "9s", "--store-option", "b=3", "--memory", "1GB"]
    shown = yaml.safe_load(call("run", "--spec", "job.json", "--print-manifest", *flags).stdout)
    wanted = {"taskTimeout": "9s", "verifyUploads": "hash", "storeOptions": {"a": "1", "b": "3"}, "memory": 10**9}
    assert shown["spec"]["options"] == wanted


@pytest.mark.usefixtures("folder")
def test_sizes_as_people_write_them_give_the_same_job() -> None:
    jobs = []
    for size in ("500MB", 500_000_000, "500000000"):
        found = {"kind": "ShardShuffle", "spec": {"input": "in-@3.tar", "output": "out-@.tar", "shardSize": size}}
        spec, _ = read_spec_file(found, lambda path: "")
        jobs.append(job_id("ShardShuffle", spec, [], ["out-@.tar"]))
    assert len(set(jobs)) == 1


@pytest.mark.usefixtures("folder")
def test_scripts_are_read_from_their_paths() -> None:
    Path("r.py").write_text("def reduce_samples(key, samples):\n    return next(iter(samples))\n")
    paths = {"scriptPath": "up.py", "reduceScriptPath": "r.py"}
    found = {"kind": "ShardSort", "spec": {"input": "in-@3.tar", "output": "out-@.tar", **paths}}
    spec, _ = read_spec_file(found, htmapper.read_script)
    assert (spec.script, spec.script_name, spec.reduce_script_name) == (UPPER, "up.py", "r.py")


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("out-@.tar", "out"),
        ("s3://bucket/deep/Train_Set.v2-@0100.tar.gz", "train-set-v2"),
        ("x/{a,b}-@3.tar", "shards"),
        ("-", "extract"),
        ("2024-@.tar", "extract-2024"),
        ("é-@.tar", "extract"),
        (f"{'long' * 30}-@.tar", "long" * 10),
        ("rows.jsonl", "rows-jsonl"),
    ],
)
def test_a_resource_is_named_after_the_output(output: str, name: str) -> None:
    assert resource_name(ExtractSpec(input="in.tar", output=output)) == name


def test_a_report_lies_beside_the_output_where_there_is_a_beside() -> None:
    assert report_url(MapSpec(input="a.tar", output="s3x/out-@.tar", script=IDENTITY)) == "s3x/out.report.json"
    assert report_url(ExtractSpec(input="a.tar", output="-")) == ""
    assert report_url(ShuffleSpec(input="a.tar", output="http://h/x/out-@4.tar")) == "http://h/x/out.report.json"


@pytest.mark.usefixtures("folder")
def test_the_report_beside_the_output_tells_reasons_too() -> None:
    Path("bad.py").write_text(UPPER.replace("    record", "    if record['key'] == 's1-000': 1 / 0\n    record", 1))
    assert call("map", "-p", "bad.py", "in-@3.tar", "out-@.tar", "-j", "1", "--report", "auto").exit_code == 1
    assert read_json("out.report.json")["failures"][0]["reason"] == "ScriptError"


def test_local_options_are_those_of_where_a_job_runs() -> None:
    assert {field.name for field in fields(RunOptions) if option_of(field).local} == {
        *("scheduler", "workers", "tls_ca", "tls_cert", "tls_key", "dry_run", "print_manifest", "report", "log_format"),
        "quiet",
    }
    assert not [field.name for field in fields(ReorderOptions) if field.name == "memory" and option_of(field).local]
