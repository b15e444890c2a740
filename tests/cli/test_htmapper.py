"""htmapper and its neighbours (`tarmill map`, `try`, `cat`, `run`) as a person or a program uses them."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pty
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support import tars
from support.maps import (
    BIN,
    IDENTITY,
    UPPER,
    bytes_of,
    command,
    counts_balance,
    environment,
    pairs_of,
    put_shards,
    read_json,
    records_in,
)

from tarmill.cli import main, output

UPPER_PAIRS = [(name, body.upper() if name.endswith("txt") else body) for name, body in pairs_of(0)]

BAD_SHARD_1 = "def process_sample(record):\n    return record if record['key'][:2] != 's1' else 1 / 0\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of each test: three shards in-0.tar ..., and the script up.py."""
    monkeypatch.chdir(tmp_path)
    put_shards(tmp_path, 3)
    (tmp_path / "up.py").write_text(UPPER)
    return tmp_path


def call(*arguments: str) -> Result:
    """Run `tarmill ...` in this process, without workers unless the test asks for them."""
    here = ("-j", "1") if arguments[0] in ("map", "run") and "-j" not in arguments else ()
    return CliRunner().invoke(main.command, [*arguments, *here])


def good(*arguments: str) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# Mapping


@pytest.mark.parametrize("tool", [["htmapper"], ["tarmill", "map"]])
def test_the_command_maps_shards_and_keeps_standard_output_for_data(folder: Path, tool: list[str]) -> None:
    done = command([*tool[1:], "-p", "up.py", "in-@3.tar", "out-@.tar"], folder, tool=tool[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    assert tars.tarfile_listing((folder / "out-000000.tar").read_bytes()) == UPPER_PAIRS
    report = done.stderr.decode()
    for words in ("shards", "3 of 3 done", "15 samples", "out.manifest.json"):
        assert words in report


@pytest.mark.parametrize("workers", ["1", "2"])
def test_relative_names_work_in_worker_processes_too(folder: Path, workers: str) -> None:
    good("map", "-p", "up.py", "in-@3.tar", "sub/out-@.tar", "-j", workers)
    assert sorted(path.name for path in (folder / "sub").iterdir()) == [
        "_tarmill",
        *(f"out-00000{shard}.tar" for shard in range(3)),
        "out.manifest.json",
    ]


def test_a_pipe_of_commands(folder: Path) -> None:
    done = command(["-p", "up.py", "-", "-"], folder, input=(folder / "in-0.tar").read_bytes())
    assert done.returncode == 0, done.stderr
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert archive.getnames() == [name for name, _ in pairs_of(0)]
    assert not (folder / "_tarmill").exists()


@pytest.mark.parametrize("data", ["gz", "one more archive behind"])
def test_a_pipe_takes_what_files_take(folder: Path, data: str) -> None:
    plain = (folder / "in-0.tar").read_bytes()
    extra = (folder / "in-1.tar").read_bytes() if data != "gz" else b""
    done = command(
        ["-p", "up.py", "-", "-", "-q"], folder, input=gzip.compress(plain) if data == "gz" else plain + extra
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(tars.tarfile_listing(done.stdout)) == (10 if data == "gz" else 20)


def test_what_a_script_prints_does_not_mix_with_the_tar_on_standard_output(folder: Path) -> None:
    (folder / "loud.py").write_text("print('loading')\n" + UPPER.replace("\n", "\n    print('noise')\n", 1))
    done = command(["-p", "loud.py", "in-0.tar", "-"], folder)
    assert tars.tarfile_listing(done.stdout) == UPPER_PAIRS
    assert b"noise" in done.stderr


def test_a_reader_that_goes_away_ends_the_command_quietly(folder: Path) -> None:
    put_shards(folder, 1, samples=2000, size=1000, name="big")
    line = f"{BIN}/htmapper -q -p up.py big-0.tar - | head -c 512 >/dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, timeout=100)
    assert done.returncode == 141
    assert done.stderr == b""


def test_fields_params_and_key_function_come_from_options(folder: Path) -> None:
    (folder / "p.py").write_text(
        "import json\n"
        "def setup(params):\n"
        "    global found\n"
        "    found = params\n"
        "def process_sample(record):\n"
        "    assert 'cls' not in record\n"
        "    return {'p': json.dumps(found, sort_keys=True)}\n"
    )
    good(
        "map", "-p", "p.py", "in-0.tar", "out.tar", "-f", "txt,jpg", "-f", "png", "--param", "a=1", "--param", "b=x=y,z"
    )
    assert json.loads(records_in("out.tar")[0]["p"]) == {"a": "1", "b": "x=y,z"}
    good("map", "-p", "p.py", "in-0.tar", "two.tar", "-k", r"^(s\d)-(.*)$", "--param", "a=1", "--limit", "1")
    assert [record["__key__"] for record in records_in("two.tar")] == ["s0"]


def test_a_dry_run_shows_the_plan_and_writes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    result = good("map", "-p", "up.py", "in-@3.tar", "out-@.tar.gz", "--dry-run")
    assert sorted(folder.rglob("*")) == before
    for words in (
        "3 shards",
        "3 to do",
        "in-0.tar -> out-000000.tar.gz",
        "in-2.tar -> out-000002.tar.gz",
        "out.manifest",
    ):
        assert words in result.stderr
    assert result.stdout == ""


def test_a_dry_run_knows_what_is_finished(folder: Path) -> None:
    good("map", "-p", "up.py", "in-@3.tar", "out-@.tar")
    (folder / "out-000001.tar").unlink()
    assert "2 finished before, 1 to do" in good("map", "-p", "up.py", "in-@3.tar", "out-@.tar", "--dry-run").stderr


def test_the_report_balances_and_names_what_was_dropped(folder: Path) -> None:
    (folder / "some.py").write_text(
        "def process_sample(record):\n"
        "    number = int(record['key'][-1])\n"
        "    if number == 0: return None\n"
        "    if number == 1: return [{**record, '__key__': f'{record[\"key\"]}-{n}', 'key': b''} for n in range(3)]\n"
        "    if number == 2: 1 / 0\n"
        "    return record\n"
    )
    good("map", "-p", "some.py", "in-@3.tar", "out-@.tar", "--on-error", "skip", "--report", "report.json")
    report = read_json("report.json")
    assert report["succeeded"]
    assert report["balanced"]
    assert counts_balance(report)
    assert report["samples"]["dropped"] == {"by-script": 3, "script-error": 3}
    assert (report["samples"]["read"], report["samples"]["added"], report["samples"]["written"]) == (15, 6, 15)
    assert report["digest"] == read_json("out.manifest.json")["digest"]


def test_a_failed_job_reports_too(folder: Path) -> None:
    (folder / "bad.py").write_text(
        "def process_sample(record):\n    return record if record['key'][:2] != 's1' else 1 / 0\n"
    )
    result = call("map", "-p", "bad.py", "in-@3.tar", "out-@.tar", "--report", "report.json")
    assert result.exit_code == 1
    report = read_json("report.json")
    assert not report["succeeded"]
    assert report["shards"] == {"total": 3, "done": 2, "resumed": 0}
    assert [failure["shard"] for failure in report["failures"]] == ["in-1.tar"]
    assert "bad.py, line 2: ZeroDivisionError" in report["failures"][0]["message"]
    assert "2 of 3 done, 1 failed" in result.stderr


@pytest.mark.parametrize("way", ["good", "failed shard", "bad script", "refused"])
def test_json_progress_is_json_to_the_last_line(folder: Path, way: str) -> None:
    (folder / "bad.py").write_text(
        "def process_sample(record):\n    return record if record['key'][:2] != 's1' else 1 / 0\n"
    )
    (folder / "broken.py").write_text("def process_sample(:\n")
    script = {"failed shard": "bad.py", "bad script": "broken.py"}.get(way, "up.py")
    output = "in-@3.tar" if way == "refused" else "out-@.tar"
    result = call("map", "-p", script, "in-@3.tar", output, "--log-format", "json")
    assert "TARMILL_LOG_FORMAT" not in os.environ
    events = events_of(result.stderr)
    # after ten seconds, on a machine that stands still, there is progress too
    assert [event["event"] for event in events if event["event"] != "progress"] == {
        "good": ["plan", "shard", "shard", "shard", "report"],
        "failed shard": ["plan", "shard", "failed", "shard", "report", "error"],
        "bad script": ["error"],
        "refused": ["error"],
    }[way]
    assert result.stdout == ""


def test_quiet_says_nothing_when_all_is_well(folder: Path) -> None:
    assert good("map", "-p", "up.py", "in-@3.tar", "out-@.tar", "-q").output == ""


def test_a_terminal_gets_a_bar_and_the_report(folder: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [str(BIN / "htmapper"), "-p", "up.py", "in-@3.tar", "out-@.tar", "-j", "1"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**environment(), "TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while piece := os.read(ours, 4096):
                shown += piece
        os.close(ours)
        assert process.wait(60) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b""
    assert b"htmapper" in shown
    assert b"\x1b[" in shown
    assert b"3 of 3 done" in shown


def test_without_a_terminal_progress_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PLAIN_PERIOD_S", 0)
    lines = good("map", "-p", "up.py", "in-@3.tar", "out-@.tar").stderr.splitlines()
    assert [line for line in lines if line.startswith("3/3 shards, 15 samples")]
    assert not [line for line in lines if "\x1b" in line]


def test_memory_is_a_store_like_others_within_one_process(folder: Path) -> None:
    good("map", "-p", "up.py", "in-@3.tar", "mem://x/out-@.tar")
    good("map", "-p", "up.py", "mem://x/out-@000003.tar", "mem://y/out-@.tar.zst", "-j", "2")
    assert records_in("mem://y/out-000002.tar.zst")[0]["txt"].startswith(b"TXT 2")


def test_help_shows_an_example_that_works(folder: Path) -> None:
    text = good("map", "--help").output
    assert "htmapper -p keep3.py" in text
    body = text.partition("$ cat keep3.py\n")[2].partition("  $ htmapper")[0]
    (folder / "keep3.py").write_text(textwrap.dedent(body))
    good("map", "-p", "keep3.py", "in-@3.tar", "small-@.tar.gz")


@pytest.mark.parametrize("name", ["map", "cat", "try", "run"])
def test_help_imports_nothing_heavy(name: str) -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from tarmill.cli import main\n"
        f"assert CliRunner().invoke(main.command, ['{name}', '--help']).exit_code == 0\n"
        "heavy = {'numpy', 'distributed', 'dask', 'urllib3', 'rich', 'yaml', 'zstandard', 'lz4'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command",
    ["htmapper -j 1 -p double.py in-@3.tar out-@.tar", "htextract -j 1 -f txt in-@3.tar"],
    ids=["htmapper", "htextract"],
)
def test_a_plain_run_in_one_process_imports_nothing_dear(folder: Path, command: str) -> None:
    (folder / "double.py").write_text("def process_sample(record):\n    return record\n")
    name, *arguments = command.split()
    code = (
        "import sys\n"
        f"from tarmill.cli.{name} import main\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "dear = 'click dataclasses inspect hashlib tempfile concurrent.futures urllib.parse csv'.split()\n"
        "assert not set(dear) & set(sys.modules), set(dear) & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_script_with_a_byte_order_mark_is_read(folder: Path) -> None:
    (folder / "bom.py").write_bytes(b"\xef\xbb\xbf" + UPPER.encode())
    good("map", "-p", "bom.py", "in-0.tar", "out.tar")


# tarmill run


MANIFEST = {
    "apiVersion": "tarmill.dev/v1alpha1",
    "kind": "ShardMap",
    "spec": {"input": "in-@3.tar", "output": "out-@.tar.gz", "script": UPPER, "onError": "skip", "fields": ["txt"]},
}
YAML = """
apiVersion: tarmill.dev/v1alpha1
kind: ShardMap
spec:
  input: in-@3.tar
  output: out-@.tar.gz
  onError: skip
  fields: [txt]
  script: |
    def process_sample(record):
        record['txt'] = record['txt'].upper()
        return record
"""


def test_a_spec_file_runs_the_same_job_as_the_command(folder: Path) -> None:
    (folder / "job.json").write_text(json.dumps(MANIFEST))
    (folder / "job.yaml").write_text(YAML)
    good("map", "-p", "up.py", "in-@3.tar", "out-@.tar.gz", "--on-error", "skip", "-f", "txt", "--report", "map.json")
    wanted = bytes_of(folder)
    for name in ("job.json", "job.yaml"):
        good("run", "--spec", name, "--report", "run.json")
        report = read_json("run.json")
        assert report["job"] == read_json("map.json")["job"]
        assert report["shards"]["resumed"] == 3
        for path in folder.glob("out-*"):
            path.unlink()
        good("run", "--spec", name)
        assert bytes_of(folder) == wanted


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outptu": "x.tar"}, ("unknown field 'outptu'", "did you mean 'output'?")),
        ({"keyfunction": "last_dir"}, ("did you mean 'keyFunction'?",)),
        ({"limit": "5"}, ("'limit' is '5'", "expected int")),
        ({"limit": True}, ("'limit' is True", "expected int")),
        ({"fields": "txt"}, ("'fields' is 'txt'", "expected list")),
        ({"params": {"size": 224}}, ("'params'", "'size': 224", "quotes")),
        ({"onError": "skipp"}, ("'skipp'", "skip")),
        ({"script": None}, ("'script' is None", "expected str")),
    ],
)
def test_a_spec_file_with_a_mistake_is_refused_with_the_cure(
    folder: Path, change: dict[str, Any], words: tuple[str, ...]
) -> None:
    (folder / "job.json").write_text(json.dumps({**MANIFEST, "spec": {**MANIFEST["spec"], **change}}))  # type: ignore[dict-item]
    result = call("run", "--spec", "job.json")
    assert result.exit_code == 2
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: ShardMop\nspec: {}\n", ("ShardMop", "ShardMap")),
        ("kind: ShardMap\n", ("no 'spec'",)),
        ("kind: ShardMap\nspec: {output: x.tar, script: x}\n", ("'input' is missing",)),
        ("kind: ShardMap\napiVersion: tarmill.dev/v9\nspec: {}\n", ("tarmill.dev/v9", "tarmill.dev/v1alpha1")),
        ("- 1\n", ("list", "'kind' and 'spec'")),
        ("", ("'kind' and 'spec'",)),
        ("{", ("YAML or JSON",)),
        ("a: [\n", ("YAML or JSON",)),
        ("kind: ShardMap\nspec: {1: x}\n", ("unknown field 1",)),
    ],
)
def test_what_is_no_spec_file_is_refused_with_what_was_expected(
    folder: Path, text: str, words: tuple[str, ...]
) -> None:
    (folder / "job.yaml").write_text(text)
    result = call("run", "--spec", "job.yaml")
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in result.stderr


# tarmill try


def test_try_shows_samples_before_and_after_and_writes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    result = good("try", "-p", "up.py", "in-@3.tar", "-n", "2")
    assert sorted(folder.rglob("*")) == before
    assert result.stdout.count("before") == result.stdout.count("after") == 2
    assert "b'txt 0 0 " in result.stdout
    assert "b'TXT 0 0 " in result.stdout


def test_try_shows_dropped_and_added_samples_in_their_place(folder: Path) -> None:
    (folder / "s.py").write_text(
        "def process_sample(record):\n"
        "    if record['key'] != 's0-000':\n"
        "        return [{'__key__': name, 'n': b''} for name in 'xy']\n"
    )
    shown = good("try", "-p", "s.py", "in-0.tar", "-n", "2").stdout
    lines = [line.split()[:2] for line in shown.splitlines() if line[0] != " "]
    assert lines == [["before", "s0-000"], ["after", "s0-000:"], ["before", "s0-001"], ["after", "x"], ["after", "y"]]


def test_try_takes_params_and_batches(folder: Path) -> None:
    (folder / "s.py").write_text(
        "def setup(params):\n    global add\n    add = params['add'].encode()\n"
        "def process_samples(records):\n    for record in records:\n        yield {**record, 'txt': add}\n"
    )
    result = good("try", "-p", "s.py", "in-0.tar", "-n", "1", "--param", "add=me=too")
    assert "b'me=too'" in result.stdout


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("process_sample(record):\n    return record['nothing']", "line 2: KeyError"),
        ("process_sample(record):\n    return 5", "expected a dict"),
        ("process_sample(record):\n    raise SystemExit", "SystemExit"),
        ("process_samples(records):\n    return 5", "expected a generator"),
        ("process_samples(records):\n    yield 5", "expected a dict"),
        ("process_samples(records):\n    yield {}", "__key__"),
        ("process_samples(records):\n    next(records)\n    1 / 0\n    yield", "line 3: ZeroDivisionError"),
    ],
)
def test_try_tells_what_is_wrong_with_a_script(folder: Path, body: str, words: str) -> None:
    (folder / "s.py").write_text(f"def {body}\n")
    result = call("try", "-p", "s.py", "in-0.tar")
    assert result.exit_code == 1
    assert words in result.stderr


@pytest.mark.parametrize("arguments", [["-n", "0"], ["-n", "-1"], ["--param", "novalue"]])
def test_try_refuses_values_that_cannot_work(arguments: list[str]) -> None:
    assert call("try", "-p", "up.py", "in-0.tar", *arguments).exit_code == 2


# tarmill cat


def test_cat_joins_shards_in_order(folder: Path) -> None:
    result = good("cat", "in-@3.tar", "-o", "all.tar.gz")
    assert [record["__key__"] for record in records_in("all.tar.gz")] == [
        f"s{shard}-{number:03d}" for shard in range(3) for number in range(5)
    ]
    assert "15 samples, 30 members" in result.stderr


def test_cat_writes_to_standard_output(folder: Path) -> None:
    done = command(["cat", "in-{0,1}.tar"], folder, tool="tarmill")
    assert done.returncode == 0, done.stderr
    assert tars.tarfile_listing(done.stdout) == pairs_of(0) + pairs_of(1)


def test_cat_check_gives_counts_and_the_digest_of_the_manifest(folder: Path) -> None:
    (folder / "id.py").write_text(IDENTITY)
    good("map", "-p", "id.py", "in-@3.tar", "out-@.tar.zst")
    before = sorted(folder.rglob("*"))
    result = good("cat", "--check", "out-@000003.tar.zst")
    assert result.stdout == f"15 samples, 30 members, digest {read_json('out.manifest.json')['digest']}\n"
    assert result.stdout == good("cat", "--check", "in-@3.tar").stdout
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_cat_check_finds_damage(folder: Path, damage: str) -> None:
    (folder / "id.py").write_text(IDENTITY)
    good("map", "-p", "id.py", "in-@3.tar", "out-@.tar")
    victim = folder / "out-000001.tar"
    data = bytearray(victim.read_bytes())
    data[515] ^= 1  # contents: only the manifest's hash can tell
    victim.write_bytes(data[:-1024] if damage == "cut" else data)
    result = call("cat", "--check", "out-@000003.tar")
    assert result.exit_code == 1
    assert "out-000001.tar" in result.stderr


def test_cat_says_what_belongs_to_no_sample(folder: Path) -> None:
    data = tars.header("d/", flag=b"5") + tars.member("README", b"x") + tars.ustar([("a.txt", b"1")])
    (folder / "odd.tar").write_bytes(data)
    result = good("cat", "odd.tar", "-o", "x.tar")
    assert "1 members belong to no sample and were left out: directory" in result.stderr
    assert "no-extension" in result.stderr
