"""htshuffle and htsort (`tarmill shuffle`, `sort`, `run --spec`) as a person or a program uses them."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.maps import BIN, bytes_of, command, counts_balance, environment, read_json
from support.reorders import keys_in, manifest_of, put_records, put_shards, samples_in

from tarmill.cli import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of each test: three shards in-0.tar ..."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda fd: None)
    put_shards(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    """Run `tarmill ...` in this process, without workers unless the test asks for them."""
    here = ("-j", "1") if arguments[0] in ("shuffle", "sort", "run") and not {"-j", "--help"} & {*arguments} else ()
    return CliRunner().invoke(main.command, [*arguments, *here])


def good(*arguments: str) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


tools = pytest.mark.parametrize("tool", ["shuffle", "sort"])


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("tool", ["htshuffle", "htsort"])
def test_closed_standard_streams_do_no_harm(folder: Path, tool: str, closed: str) -> None:
    run = shlex.join([str(BIN / tool), "in-@3.tar", "out-@2.tar", "-j", "2"])
    done = subprocess.run(["sh", "-c", f"{run} {closed}"], cwd=folder, env=environment(), timeout=100)
    assert done.returncode == 0
    assert len(samples_in("out-@2.tar")) == 15


# Commands


@pytest.mark.parametrize("tool", [["htshuffle"], ["htsort"], ["tarmill", "shuffle"], ["tarmill", "sort"]], ids=" ".join)
def test_the_commands_write_shards_and_keep_standard_output_for_data(folder: Path, tool: list[str]) -> None:
    done = command([*tool[1:], "in-@3.tar", "sub/out-@2.tar"], folder, tool=tool[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    assert len(samples_in("sub/out-@2.tar")) == 15
    for words in (b"2 of 2 done", b"written", b"out.manifest.json"):
        assert words in done.stderr
    assert sorted(path.name for path in (folder / "sub").iterdir()) == [
        *("_tarmill", "out-0.tar", "out-1.tar", "out.manifest.json")
    ]


@tools
def test_the_same_command_gives_the_same_bytes_and_then_has_nothing_to_do(folder: Path, tool: str) -> None:
    good(tool, "in-@3.tar", "one/out-@2.tar.gz", "-j", "2", "--report", "one.json")
    good(tool, "in-@3.tar", "one/out-@2.tar.gz", "--report", "two.json")
    assert read_json("two.json")["shards"] == {"total": 2, "done": 2, "resumed": 2}
    seed = ["--seed", str(seed_of("one/out-@2.tar.gz"))] if tool == "shuffle" else []
    good(tool, "in-@3.tar", "two/out-@2.tar.gz", *seed)
    assert bytes_of(folder / "one") == bytes_of(folder / "two")


def seed_of(output: str) -> int:
    return int(manifest_of(output)["seed"])


@pytest.mark.parametrize("way", ["plain", "compressed"])
def test_standard_input_is_an_input(folder: Path, way: str) -> None:
    data = (folder / "in-0.tar").read_bytes()
    done = command(
        ["-", "out-@1.tar", "-k", "__key__:desc"],
        folder,
        tool="htsort",
        input=gzip.compress(data) if way == "compressed" else data,
    )
    assert done.returncode == 0, done.stderr
    assert keys_in("out-@1.tar") == [f"s0-00{n}" for n in range(4, -1, -1)]


def test_the_seed_is_told_and_recorded(folder: Path) -> None:
    good("shuffle", "in-@3.tar", "out-@2.tar", "--seed", "42", "--report", "report.json")
    assert seed_of("out-@2.tar") == 42
    shown = good("shuffle", "in-@3.tar", "other-@2.tar", "--seed", "random", "--dry-run").stderr
    drawn = re.search(r"seed (\d+)", shown)
    assert drawn
    assert "derived" not in shown
    assert "derived from inputs and options" in good("shuffle", "in-@3.tar", "other-@2.tar", "--dry-run").stderr


def test_scripts_and_params_come_from_files_and_options(folder: Path) -> None:
    (folder / "key.py").write_text(
        "def setup(params):\n    global turn\n    turn = int(params['turn'])\n"
        "def sort_key(record):\n    return turn * int(record['key'][-1]), record['key']\n"
    )
    (folder / "red.py").write_text(
        "def reduce_samples(key, samples):\n    return {'__key__': str(abs(key[0])), 'n': str(len(list(samples)))}\n"
    )
    good("sort", "in-@3.tar", "a-@1.tar", "-k", "script", "-p", "key.py", "--param", "turn=-1")
    assert keys_in("a-@1.tar")[:4] == ["s0-004", "s1-004", "s2-004", "s0-003"]
    (folder / "class.py").write_text("def sort_key(record):\n    return (int(record['key'][-1]),)\n")
    good("sort", "in-@3.tar", "b-@1.tar", "-k", "script", "-p", "class.py", "-r", "red.py")
    assert [(one["__key__"], one["n"]) for one in samples_in("b-@1.tar")] == [(str(n), b"3") for n in range(5)]


def test_keys_with_commas_and_several_options_are_one_list(folder: Path) -> None:
    for shard in range(2):
        put_records(
            folder / f"x-{shard}.tar",
            [{"__key__": f"{shard}{n}", "cls": b"%d" % (n % 2), "m.json": b'{"s": %d}' % n} for n in range(4)],
        )
    good("sort", "x-@2.tar", "y-@1.tar", "-k", "cls:int:desc,m.json:s:float", "-k", "__key__:desc")
    assert keys_in("y-@1.tar") == ["11", "01", "13", "03", "10", "00", "12", "02"]
    assert manifest_of("y-@1.tar")["keys"] == ["cls:int:desc,m.json:s:float", "__key__:desc"]


# Help


@tools
def test_help_names_every_option_and_its_examples_can_be_read(folder: Path, tool: str) -> None:
    text = good(tool, "--help").output
    for option in (
        "--samples-per-shard",
        "--shard-size",
        "--num-shards",
        "--plan",
        "--memory",
        "--scratch",
        "--exists",
    ):
        assert option in text
    examples = [line.strip()[2:] for line in text.splitlines() if line.strip().startswith("$ ht")]
    assert len(examples) >= 3
    for example in examples:
        name, *arguments = shlex.split(example)
        assert name == f"ht{tool}"
        patterns = [word for word in arguments if "@" in word][:1]
        for pattern in patterns[0].split("::"):
            stem, count = re.fullmatch(r"(\w+)-@(\d+)\.tar", pattern).groups()  # type: ignore[union-attr]
            for shard in range(int(count)):
                field = {"captions": "txt"}.get(stem, "cls")
                record = {"__key__": f"k{shard:03d}", field: b"1"}
                if stem == "train":
                    record["meta.json"] = b'{"score": 1}'
                put_records(folder / f"{stem}-{shard:0{len(count)}}.tar", [record])
        more = [] if "--dry-run" in example else ["--exists", "overwrite"]
        if "@0100" in example or "@100" in example:
            more.append("--empty-shards")
        good(tool, *arguments, *more)


@tools
def test_help_imports_nothing_heavy(tool: str) -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        f"from tarmill.cli.ht{tool} import make_command\n"
        "assert CliRunner().invoke(make_command(), ['--help']).exit_code == 0\n"
        "heavy = {'numpy', 'distributed', 'dask', 'urllib3', 'rich', 'yaml', 'zstandard', 'lz4'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


@tools
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_plain_run_imports_nothing_dear_but_numpy(folder: Path, tool: str, workers: str) -> None:
    """Not even `subprocess`: workers are copies of the driver."""
    code = (
        "import sys\n"
        f"from tarmill.cli.ht{tool} import main\n"
        f"sys.argv[1:] = ['-j', '{workers}', '--plan', 'local', 'in-@3.tar', 'out-@3.tar']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "dear = 'click dataclasses pathlib shutil subprocess tempfile urllib.parse'.split()\n"
        "assert not set(dear) & set(sys.modules), set(dear) & set(sys.modules)\n"
        f"assert ('numpy.random' in sys.modules) == ('{tool}' == 'shuffle')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("shuffle", "in-@3.tar"), "OUT"),
        (("shuffle", "in-@3.tar", "out-@2.tar", "--seed", "x"), "'random'"),
        (("shuffle", "in-@3.tar", "out-@2.tar", "--sead", "1"), "--seed"),
        (("shuffle", "in-@3.tar", "out-@2.tar", "-k", "x"), "-k"),
        (("shuffle", "in-@3.tar", "out-@.tar", "--num-shards", "2", "--shard-size", "1MB"), "one of them"),
        (("shuffle", "in-@3.tar", "out-@4.tar", "--samples-per-shard", "2"), "'out-@.tar'"),
        (("shuffle", "in-@3.tar", "out-@.tar", "--shard-size", "big"), "500MB"),
        (("shuffle", "in-@3.tar", "out-@99.tar"), "--empty-shards"),
        (("shuffle", "in-@3.tar", "out-*.tar"), "out-@.tar"),
        (("shuffle", "in-@3.tar", "-"), "out-@.tar"),
        (("shuffle", "in-@3.tar", "in-@3.tar"), "both input and output"),
        (("shuffle", "in-@3.tar", "out-@2.tar", "--plan", "fast"), "local"),
        (("shuffle", "in-@3.tar", "out-@2.tar", "--memory", "-1"), "--memory"),
        (("shuffle", "in-@9.tar", "out-@2.tar"), "number 4 of 9"),
        (("shuffle", "mem://x/in-@3.tar", "out-@2.tar"), "in-0.tar"),
        (("sort", "in-@3.tar", "out-@2.tar", "--seed", "1"), "--seed"),
        (("sort", "in-@3.tar", "out-@2.tar", "-k", "a:int:int"), "out of place"),
        (("sort", "in-@3.tar", "out-@2.tar", "-k", "script"), "script"),
        (("sort", "in-@3.tar", "out-@2.tar", "--reduce", "sum"), "count"),
        (("sort", "in-@3.tar", "out-@2.tar", "--group-by", "cls"), "--reduce"),
        (("sort", "in-@3.tar", "out-@2.tar", "--missing", "skip"), "first"),
        (("sort", "in-@3.tar", "out-@2.tar", "-r", "nothing.py"), "nothing.py"),
        (("sort", "in-@3.tar", "out-@2.tar", "--reduce", "count", "--join", "left"), "merge"),
    ],
)
def test_a_mistake_is_told_with_the_cure_and_nothing_is_written(
    folder: Path, arguments: tuple[str, ...], words: str
) -> None:
    before = sorted(folder.rglob("*.tar"))
    result = call(*arguments)
    assert result.exit_code == (1 if "number 4" in words or "in-0" in words else 2), result.output
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert sorted(folder.rglob("*.tar")) == before


def test_outputs_of_another_job_are_refused_with_the_cure(folder: Path) -> None:
    good("shuffle", "in-@3.tar", "out-@2.tar", "--seed", "1")
    before = bytes_of(folder)
    result = call("shuffle", "in-@3.tar", "out-@2.tar", "--seed", "2")
    assert result.exit_code == 2
    assert "--exists overwrite" in result.stderr
    assert bytes_of(folder) == before
    good("shuffle", "in-@3.tar", "out-@2.tar", "--seed", "2", "--exists", "overwrite")
    assert bytes_of(folder) != before


# Plans and reports


@pytest.mark.parametrize("plan", ["local", "memory", "external", "auto"])
@tools
def test_a_dry_run_shows_plan_reads_writes_scratch_and_memory_and_writes_nothing(
    folder: Path, tool: str, plan: str
) -> None:
    before = sorted(folder.rglob("*"))
    shown = good(tool, "in-@3.tar", "out-@2.tar", "--plan", plan, "--dry-run").stderr
    assert sorted(folder.rglob("*")) == before
    name = "local" if plan == "auto" else plan
    assert re.search(rf"plan {name}: \w+", shown)
    assert re.search(
        r"reads [\d.,]+ (MB|bytes), writes [\d.,]+ (MB|bytes), scratch [\d.,]+ (MB|bytes), memory [\d.,]+ (MB|bytes)",
        shown,
    )
    for words in ("3 input shards", "in-0.tar", "out-@2.tar"):
        assert words in shown


@tools
def test_a_dry_run_tells_a_mistake_too(folder: Path, tool: str) -> None:
    assert call(tool, "in-@3.tar", "in-*.tar", "--dry-run").exit_code == 2


@tools
def test_the_report_balances(folder: Path, tool: str) -> None:
    reduce = ["-k", "__key__", "--reduce", "first"] if tool == "sort" else []
    source = "in-@3.tar::in-0.tar"
    good(tool, source, "out-@2.tar", *reduce, "--report", "report.json")
    report = read_json("report.json")
    assert report["succeeded"]
    assert counts_balance(report)
    assert report["samples"]["read"] == 20
    assert report["samples"].get("dropped", {}) == ({"not-first": 5} if reduce else {})
    assert report["digest"] == manifest_of("out-@2.tar")["digest"]
    assert report["kind"] == {"shuffle": "ShardShuffle", "sort": "ShardSort"}[tool]


def test_renamed_samples_are_told_to_the_person_too(folder: Path) -> None:
    result = good("sort", "in-0.tar::in-0.tar", "out-@1.tar")
    assert re.search(r"5 .*has the same", result.stderr)


def test_a_failed_job_reports_and_exits_with_one(folder: Path) -> None:
    (folder / "in-1.tar").write_bytes((folder / "in-1.tar").read_bytes()[:3000])
    result = call("shuffle", "in-@3.tar", "out-@2.tar", "--report", "report.json")
    assert result.exit_code == 1
    assert "in-1.tar" in result.stderr
    report = read_json("report.json")
    assert not report["succeeded"]
    assert report["failures"]
    result = good("shuffle", "in-@3.tar", "two-@2.tar", "--on-error", "skip", "--report", "report.json")
    assert counts_balance(read_json("report.json"))
    assert "truncated" in result.stderr


@tools
@pytest.mark.parametrize("way", ["good", "bad shard", "refused"])
def test_json_progress_is_json_to_the_last_line(folder: Path, tool: str, way: str) -> None:
    if way == "bad shard":
        (folder / "in-1.tar").write_bytes(b"no tar")
    output = "in-@3.tar" if way == "refused" else "out-@2.tar"
    result = call(tool, "in-@3.tar", output, "--log-format", "json")
    events = [json.loads(line)["event"] for line in result.stderr.splitlines()]
    assert events[-1] == {"good": "report", "bad shard": "error", "refused": "error"}[way]
    assert result.stdout == ""


@tools
def test_quiet_says_nothing_when_all_is_well(folder: Path, tool: str) -> None:
    assert good(tool, "in-@3.tar", "out-@2.tar", "-q").output == ""


@tools
def test_verify_agrees_that_the_output_is_a_permutation(folder: Path, tool: str) -> None:
    good(tool, "in-@3.tar", "out-@2.tar.zst")
    good("verify", "out-@2.tar.zst")
    good("verify", "in-@3.tar", "out-@2.tar.zst")


def test_clean_removes_what_an_unfinished_job_left(folder: Path) -> None:
    (folder / "r.py").write_text("def reduce_samples(key, samples):\n    raise RuntimeError('no')\n")
    assert call("sort", "in-@3.tar", "out-@2.tar", "-r", "r.py").exit_code == 1
    (job,) = [path for path in (folder / "_tarmill").iterdir() if path.is_dir()]
    done = command(["clean", str(job), "--force"], folder, tool="tarmill")
    assert done.returncode == 0, done.stderr
    assert not job.exists()


# Spec files

SPECS: dict[str, Any] = {
    "shuffle": {"kind": "ShardShuffle", "spec": {"seed": "5", "samplesPerShard": 4}},
    "sort": {"kind": "ShardSort", "spec": {"keys": ["txt:desc"], "numShards": 4}},
    "reduce": {"kind": "ShardSort", "spec": {"keys": ["cls"], "reduce": "count", "numShards": 1}},
}
OPTIONS = {
    "shuffle": ["shuffle", "--seed", "5", "--samples-per-shard", "4"],
    "sort": ["sort", "-k", "txt:desc", "--num-shards", "4"],
    "reduce": ["sort", "-k", "cls", "--reduce", "count", "--num-shards", "1"],
}


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_file_runs_the_same_job_as_the_command(folder: Path, name: str) -> None:
    spec = {**SPECS[name], "spec": {**SPECS[name]["spec"], "input": "in-@3.tar", "output": "out-@.tar"}}
    (folder / "job.json").write_text(json.dumps(spec))
    good("run", "--spec", "job.json", "--report", "run.json")
    assert read_json("run.json")["succeeded"]
    before = bytes_of(folder)
    assert before
    tool, *options = OPTIONS[name]
    good(tool, "in-@3.tar", "out-@.tar", *options, "--report", "command.json")
    assert read_json("command.json")["job"] == read_json("run.json")["job"]
    assert read_json("command.json")["shards"]["resumed"] == len(before)


def test_a_spec_file_with_a_mistake_is_refused_with_the_cure(folder: Path) -> None:
    (folder / "job.yaml").write_text(
        "kind: ShardShuffle\nspec: {input: in-@3.tar, output: out-@.tar, samplesPerShards: 4}\n"
    )
    result = call("run", "--spec", "job.yaml")
    assert result.exit_code == 2
    assert "did you mean 'samplesPerShard'?" in result.stderr


def test_a_spec_file_takes_the_options_of_how_to_run(folder: Path) -> None:
    (folder / "job.yaml").write_text("kind: ShardShuffle\nspec: {input: in-@3.tar, output: out-@2.tar}\n")
    shown = good("run", "--spec", "job.yaml", "--dry-run").stderr
    assert "plan local" in shown
    assert not (folder / "_tarmill").exists()
