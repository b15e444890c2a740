"""The specs: what a job is, as frozen values; the one source of command line options, spec files and, later, CRDs.

A spec says what bytes come out, never where it runs: that is `RunOptions`.
"""

from __future__ import annotations

import re
from typing import Any

from tarmill.errors import SpecError
from tarmill.formats.samples import DEFAULT_MAX_MEMBER_BYTES, OnError
from tarmill.formats.sidecar_names import SIDECARS
from tarmill.spec_base import Spec, option
from tarmill.values import valueclass

API_VERSION = "tarmill.dev/v1alpha1"
FORMAT_VERSION = 1
"""Goes into every job id: raise it when the same spec would give other bytes."""

_ON_ERROR = tuple(policy.value for policy in OnError)


# ---- fields that several specs have, each at its own place in the help ----------------------------------------------


def _key_function(*flags: str) -> Any:
    return option(
        "base_plus_ext",
        identity=True,
        flags=flags,
        metavar="NAME|REGEX",
        help="How a member's name splits into key and field: base_plus_ext, dir_plus_file, last_dir, or a regex with "
        "two groups.",
    )


def _level() -> Any:
    return option(
        -1, identity=True, metavar="N", help="Compression level of the output; the codec's own default when negative."
    )


def _max_errors() -> Any:
    return option(
        "",
        metavar="N|P%",
        help="Fail the job when more samples than this were left out because of errors: a count, or a percentage.",
    )


def _max_member() -> Any:
    return option(
        DEFAULT_MAX_MEMBER_BYTES, unit="bytes", metavar="SIZE", help="The largest field that is held in memory."
    )


def _samples_per_shard() -> Any:
    return option(0, identity=True, metavar="N", help="Cut after exactly N samples; the last shard may hold fewer.")


def _shard_size(more: str = "") -> Any:
    return option(
        0,
        identity=True,
        unit="bytes",
        metavar="SIZE",
        help=f"Cut so that no shard is larger (uncompressed) than SIZE, unless a single sample is.{more}",
    )


def _num_shards(more: str = ".") -> Any:
    return option(0, identity=True, metavar="N", help=f"Cut into N shards that differ by one sample at most{more}")


def _empty_shards() -> Any:
    return option(False, identity=True, help="With more shards than samples: write empty ones, instead of an error.")


def _rejected() -> Any:
    return option("", metavar="URL", help="Write the samples left out, with reasons and tracebacks, as JSON lines.")


def _exists() -> Any:
    return option(
        "resume",
        choices=("fail", "resume", "overwrite"),
        help="Outputs that are there already: fail, resume the same job (another job's: fail), or overwrite.",
    )


def _index() -> Any:
    return option(
        (),
        choices=SIDECARS,
        metavar="A,B",
        help="Write the index files of these readers beside the output: wids, energon, dali, sizes (open_clip), timm.",
    )


# ---- the specs -------------------------------------------------------------------------------------------------------


class JobSpec(Spec):
    """What the specs of all kinds have, each at its own place in the help."""

    output: str
    key_function: str
    on_error: str
    max_errors: str
    max_member: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_errors and not re.fullmatch(r"\d+|\d+(\.\d+)?%", self.max_errors):
            self.refuse("max_errors", "expected a count such as 100, or a percentage such as 0.5%")
        if self.max_member < 1:
            self.refuse("max_member", "expected a size above 0, such as 4GB")

    def _check_cuts(self) -> None:
        """Refuse numbers of samples, bytes or shards that cannot be, or more than one of them."""
        given = [name for name in ("samples_per_shard", "shard_size", "num_shards") if getattr(self, name)]
        for name in given:
            if getattr(self, name) < 0:
                self.refuse(name, "expected a number above 0")
        if len(given) > 1:
            self.refuse(given[1], f"--{given[0].replace('_', '-')} decides about the cuts already; give one of them")

    def _check_seed(self, seed: str) -> None:
        number = seed.isascii() and seed.isdigit()
        if seed not in ("", "random") and not (number and int(seed) < 1 << 64):
            self.refuse("seed", "expected a whole number from 0 to 2^64 - 1, or 'random'")


@valueclass(kw_only=True)
class ReadSpec(JobSpec):
    """How inputs are read: shared by all kinds that read shards."""

    input: str = option(
        help="Input shards: `train-@0100.tar`, `{000..099}`, a glob, a prefix, `@list.txt`, URL or `-`.",
        file_help="Input shards: `train-@0100.tar`, `{000..099}`, a glob, a prefix, `@list.txt` or a URL.",
        argument=True,
        metavar="IN",
    )
    key_function: str = _key_function("-k", "--key-function")
    on_error: str = option(
        "fail",
        identity=True,
        choices=_ON_ERROR,
        help="A bad sample or shard: fail it, skip the sample, stop the shard there, or ignore and keep what there is.",
    )
    max_errors: str = _max_errors()
    max_member: int = _max_member()


@valueclass(kw_only=True)
class MapSpec(ReadSpec):
    """Every sample through a user's script, input shard i to output shard i."""

    output: str = option(
        help="Output shards, as many as inputs: `out-@0100.tar.gz`, or `out-@.tar` for just as many.",
        argument=True,
        metavar="OUT",
    )
    script: str = option(
        flags=("-p", "--script"),
        identity=True,
        metavar="FILE",
        help="Python file that defines process_sample(record) -> dict, None or several; or process_samples(records).",
        file_help="Text of a Python file that defines process_sample(record) -> dict, None or several; or "
        "process_samples(records).",
    )
    script_name: str = option("process_sample.py", hidden=True, help="What tracebacks call the script.")
    params: dict[str, str] = option(
        {},
        flags=("--param",),
        identity=True,
        metavar="K=V",
        help="A parameter for the script's setup(params).",
        file_help="Parameters for the script's setup(params).",
    )
    fields: tuple[str, ...] = option(
        (), flags=("-f", "--fields"), identity=True, metavar="A,B", help="Load only these fields."
    )
    keep_rest: bool = option(
        False,
        identity=True,
        help="With -f: pass the other fields through, as they are.",
        file_help="Beside these fields, pass the others through as they are.",
    )
    limit: int = option(0, identity=True, metavar="N", help="Only the first N samples of each shard; 0 for all.")
    level: int = _level()
    exists: str = _exists()
    index: tuple[str, ...] = _index()
    rejected: str = _rejected()
    salt: str = option(
        "", identity=True, metavar="TEXT", help="Make it another job: for helper modules or models that changed."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_rest and not self.fields:
            self.refuse("keep_rest", "it needs -f FIELDS, the fields to load")
        if self.limit < 0:
            self.refuse("limit", "expected a number of samples, or 0 for all")


@valueclass(kw_only=True)
class ExtractSpec(ReadSpec):
    """Fields or keys of every sample as rows, or aggregates over them."""

    columns: tuple[str, ...] = option(
        (),
        flags=("-f", "--columns"),
        identity=True,
        metavar="COLUMN",
        help="A column: field, __key__, a|b, meta.json:path, field:int, ... Several, or comma-separated.",
        file_help="Columns: field, __key__, a|b, meta.json:path, field:int, ...",
    )
    where: str = option("", identity=True, metavar="EXPR", help="Only the samples for which this holds.")
    missing: str = option(
        "error",
        identity=True,
        choices=("skip", "error", "null"),
        help="A sample without the field: leave it out (counted), fail, or write an empty value.",
    )
    format: str = option(
        "text",
        flags=("-F", "--format"),
        identity=True,
        choices=("text", "jsonl", "csv", "parquet"),
        help="Form of the rows.",
    )
    output: str = option(
        "-",
        flags=("-o", "--output"),
        metavar="URL",
        help="Where rows go: `-`, a file, or `part-@.jsonl`.",
        file_help="Where rows go: a URL or file, or `part-@.jsonl`.",
    )
    count: bool = option(False, identity=True, help="Write only how many rows there are.")
    top: int = option(0, identity=True, metavar="N", help="Write the N most frequent rows with their counts.")
    stats: bool = option(False, identity=True, help="Write statistics of each column.")
    keys: bool = option(False, identity=True, help="Write the field names and how often each occurs.")
    exists: str = option(
        "fail", choices=("fail", "overwrite"), help="An output that is there already: fail, or overwrite."
    )


@valueclass(kw_only=True)
class ReorderSpec(ReadSpec):
    """What shuffle and sort share: all samples of the inputs in another order, cut into new shards."""

    output: str = option(
        help="Output shards: `out-@0100.tar` for just 100, or `out-@.tar` for as many as the cut gives.",
        argument=True,
        metavar="OUT",
    )
    key_function: str = _key_function("--key-function")
    samples_per_shard: int = _samples_per_shard()
    shard_size: int = _shard_size()
    num_shards: int = _num_shards("; as many as there are inputs when no cut is named.")
    empty_shards: bool = _empty_shards()
    same_key: str = option(
        "rename",
        identity=True,
        choices=("rename", "fail"),
        help="Two samples with one key that come to stand side by side, where no reader could tell them apart: give "
        "the second another key, or fail.",
    )
    level: int = _level()
    exists: str = _exists()
    index: tuple[str, ...] = _index()
    salt: str = option(
        "",
        identity=True,
        metavar="TEXT",
        help="Make it another job: for helper modules of scripts that changed, or to derive another seed.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_cuts()


@valueclass(kw_only=True)
class ShuffleSpec(ReorderSpec):
    """A global random permutation of all samples, into new shards."""

    seed: str = option(
        "",
        numeric=True,
        identity=True,
        metavar="N|random",
        help="Seed of the permutation: a number, or `random` to draw one each time; by default it is derived from "
        "inputs, options and output.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_seed(self.seed)


@valueclass(kw_only=True)
class SortSpec(ReorderSpec):
    """All samples in the order of keys, perhaps reduced key by key, into new shards."""

    keys: tuple[str, ...] = option(
        (),
        flags=("-k", "--key"),
        identity=True,
        metavar="KEY",
        help="Sort by FIELD[:JSONPATH][:str|int|float|bytes|natural][:asc|desc], or `script`; several, or with "
        "commas, the first counts most; `__key__` by default.",
        file_help="Sort by FIELD[:JSONPATH][:str|int|float|bytes|natural][:asc|desc], or `script`; of several the "
        "first counts most; `__key__` by default.",
    )
    missing: str = option(
        "error",
        identity=True,
        choices=("first", "last", "error", "drop"),
        help="Samples whose key is missing or cannot be read: before or behind all others, an error, or left out and "
        "counted.",
    )
    group_by: tuple[str, ...] = option(
        (),
        flags=("--group-by",),
        identity=True,
        metavar="KEY",
        help="Reduce samples that agree in this key; -k then orders the samples of each group. By default -k itself.",
        file_help="Reduce samples that agree in this key; `keys` then orders those of each group. By default `keys`.",
    )
    reduce: str = option(
        "",
        identity=True,
        choices=("first", "last", "count", "dedup", "merge", "concat"),
        help="Make one sample of those of equal key: the first or last, one of each (dedup), a count, their fields "
        "joined (merge), or their contents one behind the other (concat).",
    )
    join: str = option(
        "outer",
        identity=True,
        choices=("inner", "outer", "left"),
        help="With --reduce merge: which keys to keep: those in all parts of IN (`a-@4.tar::b-@2.tar` has two), in "
        "any, or in the first.",
        file_help="With `reduce: merge`: which keys to keep: those in all parts of input (`a-@4.tar::b-@2.tar` has "
        "two), in any, or in the first.",
    )
    same_field: str = option(
        "error",
        identity=True,
        choices=("error", "first", "last", "rename"),
        help="With --reduce merge: a field that two samples of a key have: an error, that of the first or last part, "
        "or all, the others under new names.",
        file_help="With `reduce: merge`: a field that two samples of a key have: an error, that of the first or last "
        "part, or all, the others under new names.",
    )
    dedup_by: str = option(
        "key",
        identity=True,
        choices=("key", "content"),
        help="With --reduce dedup: keep one sample of each key, or of each key one of each content.",
        file_help="With `reduce: dedup`: keep one sample of each key, or of each key one of each content.",
    )
    reduce_script: str = option(
        "",
        flags=("-r", "--reduce-script"),
        identity=True,
        metavar="FILE",
        help="Reduce by a script: a Python file that defines reduce_samples(key, samples) -> sample, several, or None.",
        file_help="Reduce by a script: text of a Python file that defines reduce_samples(key, samples) -> sample, "
        "several, or None.",
    )
    reduce_script_name: str = option("reduce_samples.py", hidden=True, help="What tracebacks call the reduce script.")
    script: str = option(
        "",
        flags=("-p", "--script"),
        identity=True,
        metavar="FILE",
        help="Python file that defines sort_key(record), for `-k script`.",
        file_help="Text of a Python file that defines sort_key(record), for the key `script`.",
    )
    script_name: str = option("sort_key.py", hidden=True, help="What tracebacks call the script.")
    params: dict[str, str] = option(
        {},
        flags=("--param",),
        identity=True,
        metavar="K=V",
        help="A parameter for the scripts' setup(params).",
        file_help="Parameters for the scripts' setup(params).",
    )
    combine: bool = option(
        False,
        identity=True,
        help="Reduce on the map side too, before samples are moved; for a reduce that may be applied twice. Implies "
        "--exact.",
        file_help="Reduce on the map side too, before samples are moved; for a reduce that may be applied twice. "
        "Implies exact.",
    )
    exact: bool = option(
        False,
        identity=True,
        help="With a reduce: cut by what comes out of it, which writes everything once more; else by what goes in.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduce and self.reduce_script:
            self.refuse("reduce", "-r names a script for that already; give one of them")
        if not self.reduces:
            for name, usual in (("join", "outer"), ("same_field", "error"), ("dedup_by", "key")):
                if getattr(self, name) != usual:
                    self.refuse(name, "it needs --reduce")
            for name in ("group_by", "combine", "exact"):
                if getattr(self, name):
                    self.refuse(name, "it needs --reduce or -r")

    @property
    def reduces(self) -> bool:
        """Whether samples of equal key are reduced."""
        return bool(self.reduce or self.reduce_script)

    @property
    def cuts_exactly(self) -> bool:
        """Whether shards are cut by what comes out of the reduce.

        Always so where samples are combined before they are moved: how many then go in depends on batches.
        """
        return self.reduces and (self.exact or self.combine)


DEFAULT_UPLOAD_SHARD_BYTES = 500_000_000
DEFAULT_UPLOAD_SAMPLES = 10_000
"""Of a shard, where the sizes of what is fetched are not known before."""


@valueclass(kw_only=True)
class UploadSpec(JobSpec):
    """Files, lists of files or a tar into new shards."""

    sources: tuple[str, ...] = option(
        help="What to pack: folders, files, globs, URLs of folders; with --column lists of files (.csv, .tsv, .jsonl, "
        ".parquet); or `-`, a tar on standard input.",
        file_help="What to pack: URLs of folders, mounted folders, files, globs; with columns lists of files (.csv, "
        ".tsv, .jsonl, .parquet).",
        argument=True,
        metavar="SOURCE...",
    )
    output: str = option(
        help="Output shards: `out-@0100.tar` for just 100, or `out-@.tar` for as many as the cut gives.",
        argument=True,
        metavar="OUT",
    )
    key_function: str = _key_function("-k", "--key-function")
    key_prefix: str = option("", identity=True, metavar="TEXT", help="Put this before every key, such as `2024/`.")
    include: tuple[str, ...] = option(
        (),
        identity=True,
        metavar="GLOB",
        help="Only these files: `*.jpg` by name in any folder, `train/**/*.jpg` by path. Several, or comma-separated.",
        file_help="Only these files: `*.jpg` by name in any folder, `train/**/*.jpg` by path.",
    )
    exclude: tuple[str, ...] = option(
        (), identity=True, metavar="GLOB", help="Not these files; `thumbs/` leaves a whole folder out."
    )
    hidden: bool = option(False, identity=True, help="Take files and folders whose names begin with a dot, too.")
    follow_symlinks: bool = option(
        False, identity=True, help="Take what symbolic links lead to; else they are left out and counted."
    )
    class_from_dir: bool = option(
        False,
        identity=True,
        help="The first folder is the class: adds a field `cls` with its number, and writes classes.json beside the "
        "manifest.",
    )
    columns: dict[str, str] = option(
        {},
        flags=("--column",),
        identity=True,
        metavar="FIELD=COLUMN",
        help="Sources are lists: a field is the value of a column or, with `@COLUMN`, what lies at that path or URL.",
    )
    key_column: str = option(
        "",
        identity=True,
        metavar="COLUMN",
        help="The column with the keys; by default `__key__` where there is one, else rows are numbered.",
    )
    missing: str = option(
        "error",
        identity=True,
        choices=("error", "skip", "omit"),
        help="A row without a value: fail, leave the row out (counted), or only the field.",
    )
    samples_per_shard: int = _samples_per_shard()
    shard_size: int = _shard_size(
        f" By default {DEFAULT_UPLOAD_SHARD_BYTES // 10**6}MB, or {DEFAULT_UPLOAD_SAMPLES:,} samples where sizes are "
        "not known before."
    )
    num_shards: int = _num_shards()
    empty_shards: bool = _empty_shards()
    shuffle: bool = option(False, identity=True, help="Write the samples in random order; costs no extra pass.")
    seed: str = option(
        "",
        numeric=True,
        identity=True,
        metavar="N|random",
        help="Seed of that order: a number, or `random` to draw one each time; by default it is derived from inputs "
        "and options.",
    )
    append: bool = option(
        False,
        identity=True,
        help="Add shards to the data set of that name: numbers go on, the manifest then holds old and new.",
    )
    same_key: str = option(
        "fail",
        identity=True,
        choices=("fail", "rename"),
        help="Two samples with one key: fail, or give the second another key.",
    )
    on_error: str = option(
        "fail",
        identity=True,
        choices=("fail", "skip"),
        help="A file or row that cannot be read, has vanished or changes while it is read: fail its shard, or leave "
        "its sample out (counted).",
    )
    max_errors: str = _max_errors()
    rejected: str = _rejected()
    max_member: int = _max_member()
    regroup: int = option(
        64 << 20,
        unit="bytes",
        identity=True,
        metavar="SIZE",
        help="Of a tar on standard input: members of a sample may stand so far apart.",
        file_help="Of a tar as source, which a pod cannot have: members of a sample may stand so far apart.",
    )
    fetches: int = option(16, metavar="N", help="Objects that a process fetches at once from stores and the web.")
    fetches_per_host: int = option(4, metavar="N", help="Of these, at most so many from one web server.")
    fetch_timeout: float = option(
        60.0,
        unit="seconds",
        metavar="TIME",
        help="Give an object up that could not be had for so long; retried so far.",
    )
    level: int = _level()
    exists: str = _exists()
    index: tuple[str, ...] = _index()
    salt: str = option("", identity=True, metavar="TEXT", help="Make it another job.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources or not all(self.sources):
            self.refuse("sources", "expected at least one file, folder, list or URL, or '-'")
        self._check_cuts()
        self._check_seed(self.seed)
        if self.seed and not self.shuffle:
            self.refuse("seed", "it needs --shuffle")
        for name in ("fetches", "fetches_per_host"):
            if getattr(self, name) < 1:
                self.refuse(name, "expected a number above 0")
        for name in ("regroup", "fetch_timeout"):
            if getattr(self, name) < 0:
                self.refuse(name, "expected nothing below 0")
        if self.append and self.exists == "overwrite":
            self.refuse("append", "--exists overwrite is the contrary of it")
        self._check_lists()

    def _check_lists(self) -> None:
        """Refuse options that only lists, or only trees of files, have."""
        if self.columns:
            for name in ("include", "exclude", "hidden", "follow_symlinks", "class_from_dir"):
                if getattr(self, name):
                    self.refuse(name, "with --column the list says what is packed")
            if bad := [column for column in self.columns.values() if column in ("", "@")]:
                self.refuse("columns", f"expected the name of a column instead of {bad[0]!r}")
        elif self.key_column or self.missing != "error":
            self.refuse("key_column" if self.key_column else "missing", "it needs --column")


@valueclass(kw_only=True)
class RunOptions(Spec):
    """Where and how a job runs; nothing here changes the bytes that come out."""

    scheduler: str = option(
        "",
        flags=("-c", "--scheduler"),
        local=True,
        metavar="ADDR|FILE",
        help="Run on a Dask scheduler: HOST:PORT, or a scheduler file.",
    )
    workers: int = option(
        0, flags=("-j", "--workers"), local=True, metavar="N", help="Local processes; 0 for one per core."
    )
    tls_ca: str = option("", local=True, metavar="FILE", help="Certificate authority of the Dask scheduler.")
    tls_cert: str = option("", local=True, metavar="FILE", help="Certificate to show to the Dask scheduler.")
    tls_key: str = option("", local=True, metavar="FILE", help="Key of that certificate.")
    wait_for_workers: float = option(
        300.0,
        unit="seconds",
        metavar="TIME",
        help="With a Dask scheduler: fail when it has had no worker for so long; 0 to wait for ever.",
        file_help="Fail when no worker has been there for so long; 0 to wait for ever.",
    )
    fail_fast: bool = option(False, help="Stop at the first shard that fails, instead of finishing the others.")
    task_timeout: float = option(
        0.0, unit="seconds", metavar="TIME", help="End a shard that made no progress for so long; 0 for never."
    )
    scratch_dir: str = option("", metavar="DIR", help="Where outputs wait for their upload; $TMPDIR by default.")
    s3_endpoint: str = option(
        "", metavar="URL", help="An S3-compatible store for s3:// URLs; $AWS_ENDPOINT_URL_S3 or Amazon's by default."
    )
    anonymous: bool = option(False, flags=("--anon",), help="Read s3:// and gs:// without credentials.")
    requester_pays: bool = option(False, help="Agree to pay for reading from buckets whose owners ask for it.")
    store_options: dict[str, str] = option(
        {},
        flags=("--store-option",),
        metavar="K=V",
        help="An option of a store's library: s3.region=eu-west-1, s3.sse=aws:kms, sftp.port=2222; no secrets.",
        file_help='Options of the stores\' libraries: s3.region: eu-west-1, sftp.port: "2222"; no secrets.',
    )
    ca_file: str = option("", metavar="FILE", help="Certificate authorities to trust for https, as PEM.")
    verify_uploads: str = option(
        "size", choices=("none", "size", "hash"), help="After an upload compare the stored size, or read it all back."
    )
    dry_run: bool = option(False, local=True, help="Show the plan and do nothing.")
    print_manifest: bool = option(
        False, local=True, help="Print the job as a file for `tarmill run` or `kubectl apply`, and do nothing."
    )
    report: str = option(
        "", local=True, metavar="FILE", help="Write the closing report as JSON; `auto` for a file beside the output."
    )
    log_format: str = option(
        "text", local=True, choices=("text", "json"), help="Progress for people, or as JSON lines."
    )
    quiet: bool = option(False, flags=("-q", "--quiet"), local=True, help="No progress and no report; errors only.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 0:
            self.refuse("workers", "expected a number of processes, or 0 for one per core")
        if self.task_timeout < 0:
            self.refuse("task_timeout", "expected a duration such as 5m, or 0 for never")
        if self.wait_for_workers < 0:
            self.refuse("wait_for_workers", "expected a duration such as 5m, or 0 to wait for ever")


@valueclass(kw_only=True)
class ReorderOptions(RunOptions):
    """How a shuffle or sort uses memory and disk; nothing here changes the bytes that come out either."""

    scratch_dir: str = option(
        "",
        metavar="DIR",
        help="Where scratch files go, with -c on all workers alike, and outputs wait for their upload; by default the "
        "folder of the outputs, or $TMPDIR where that is a URL.",
        file_help="Where scratch files go, on all workers alike, and outputs wait for their upload; by default the "
        "folder of the outputs, or $TMPDIR where that is a URL.",
    )
    plan: str = option(
        "auto",
        choices=("auto", "local", "memory", "external"),
        help="Copy straight from local inputs, from memory, or in two passes over scratch files; chosen by sizes.",
    )
    memory: int = option(
        0, unit="bytes", metavar="SIZE", help="Memory to use, all processes together; half of what is free by default."
    )
    scratch: int = option(
        0, unit="bytes", metavar="SIZE", help="Scratch space that the plan may count on; all that is free by default."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("memory", "scratch"):
            if getattr(self, name) < 0:
                self.refuse(name, "expected a size such as 4GB, or 0 for what is free")


@valueclass
class Kind:
    """One row of KINDS: a resource kind, its commands and its spec."""

    name: str
    command: str
    verb: str
    spec: type[JobSpec]


KINDS = (
    Kind("ShardMap", "htmapper", "map", MapSpec),
    Kind("ShardExtract", "htextract", "extract", ExtractSpec),
    Kind("ShardShuffle", "htshuffle", "shuffle", ShuffleSpec),
    Kind("ShardSort", "htsort", "sort", SortSpec),
    Kind("ShardUpload", "htupload", "upload", UploadSpec),
)


def spec_from_manifest(manifest: dict[str, Any]) -> JobSpec:
    """Read a spec file: `{"kind": "ShardMap", "spec": {...}}`.

    Raises:
        SpecError: it names no known kind, or a field cannot be.
    """
    kinds = {kind.name: kind for kind in KINDS}
    name = manifest.get("kind")
    if name not in kinds:
        raise SpecError(f"kind is {name!r}; expected one of {', '.join(kinds)}", field="kind", value=name)
    if manifest.get("apiVersion", API_VERSION) != API_VERSION:
        found = manifest["apiVersion"]
        raise SpecError(f"apiVersion is {found!r}; expected {API_VERSION}", field="apiVersion", value=found)
    if not isinstance(manifest.get("spec"), dict):
        raise SpecError("the file has no 'spec' with the fields of the job", field="spec", value=manifest.get("spec"))
    return kinds[name].spec.from_dict(manifest["spec"])


def to_manifest(spec: JobSpec) -> dict[str, Any]:
    """Write a spec as `spec_from_manifest` reads it."""
    return {"apiVersion": API_VERSION, "kind": kind_of(spec).name, "spec": spec.to_dict()}


def kind_of(spec: JobSpec) -> Kind:
    """Find the row of KINDS for a spec."""
    return next(kind for kind in KINDS if type(spec) is kind.spec)
