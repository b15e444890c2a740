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


@valueclass(kw_only=True)
class ReadSpec(Spec):
    """How inputs are read: shared by all kinds that read shards."""

    input: str = option(
        help="Input shards: `train-@0100.tar`, `{000..099}`, a glob, a prefix, `@list.txt`, URL or `-`.",
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
    max_errors: str = option(
        "",
        metavar="N|P%",
        help="Fail the job when more samples than this were left out because of errors: a count, or a percentage.",
    )
    max_member: int = option(
        DEFAULT_MAX_MEMBER_BYTES, unit="bytes", metavar="SIZE", help="The largest field that is held in memory."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_errors and not re.fullmatch(r"\d+|\d+(\.\d+)?%", self.max_errors):
            self.refuse("max_errors", "expected a count such as 100, or a percentage such as 0.5%")
        if self.max_member < 1:
            self.refuse("max_member", "expected a size above 0, such as 4GB")


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
    )
    script_name: str = option("process_sample.py", hidden=True, help="What tracebacks call the script.")
    params: dict[str, str] = option(
        {}, flags=("--param",), identity=True, metavar="K=V", help="A parameter for the script's setup(params)."
    )
    fields: tuple[str, ...] = option(
        (), flags=("-f", "--fields"), identity=True, metavar="A,B", help="Load only these fields."
    )
    keep_rest: bool = option(False, identity=True, help="With -f: pass the other fields through, as they are.")
    limit: int = option(0, identity=True, metavar="N", help="Only the first N samples of each shard; 0 for all.")
    level: int = _level()
    exists: str = _exists()
    index: tuple[str, ...] = _index()
    rejected: str = option(
        "", metavar="URL", help="Write the samples left out, with reasons and tracebacks, as JSON lines."
    )
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
        "-", flags=("-o", "--output"), metavar="URL", help="Where rows go: `-`, a file, or `part-@.jsonl`."
    )
    count: bool = option(False, identity=True, help="Print only how many rows there are.")
    top: int = option(0, identity=True, metavar="N", help="Print the N most frequent rows with their counts.")
    stats: bool = option(False, identity=True, help="Print statistics of each column.")
    keys: bool = option(False, identity=True, help="Print the field names and how often each occurs.")
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
    samples_per_shard: int = option(
        0, identity=True, metavar="N", help="Cut after exactly N samples; the last shard may hold fewer."
    )
    shard_size: int = option(
        0,
        identity=True,
        unit="bytes",
        metavar="SIZE",
        help="Cut so that no shard is larger (uncompressed) than SIZE, unless a single sample is.",
    )
    num_shards: int = option(
        0,
        identity=True,
        metavar="N",
        help="Cut into N shards that differ by one sample at most; as many as there are inputs when no cut is named.",
    )
    empty_shards: bool = option(
        False, identity=True, help="With more shards than samples: write empty ones, instead of an error."
    )
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
        given = [name for name in ("samples_per_shard", "shard_size", "num_shards") if getattr(self, name)]
        for name in given:
            if getattr(self, name) < 0:
                self.refuse(name, "expected a number above 0")
        if len(given) > 1:
            self.refuse(given[1], f"--{given[0].replace('_', '-')} decides about the cuts already; give one of them")


@valueclass(kw_only=True)
class ShuffleSpec(ReorderSpec):
    """A global random permutation of all samples, into new shards."""

    seed: str = option(
        "",
        identity=True,
        metavar="N|random",
        help="Seed of the permutation: a number, or `random` to draw one each time; by default it is derived from "
        "inputs, options and output.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        number = self.seed.isascii() and self.seed.isdigit()
        if self.seed not in ("", "random") and not (number and int(self.seed) < 1 << 64):
            self.refuse("seed", "expected a whole number from 0 to 2^64 - 1, or 'random'")


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
    )
    same_field: str = option(
        "error",
        identity=True,
        choices=("error", "first", "last", "rename"),
        help="With --reduce merge: a field that two samples of a key have: an error, that of the first or last part, "
        "or all, the others under new names.",
    )
    dedup_by: str = option(
        "key",
        identity=True,
        choices=("key", "content"),
        help="With --reduce dedup: keep one sample of each key, or of each key one of each content.",
    )
    reduce_script: str = option(
        "",
        flags=("-r", "--reduce-script"),
        identity=True,
        metavar="FILE",
        help="Reduce by a script: a Python file that defines reduce_samples(key, samples) -> sample, several, or None.",
    )
    reduce_script_name: str = option("reduce_samples.py", hidden=True, help="What tracebacks call the reduce script.")
    script: str = option(
        "",
        flags=("-p", "--script"),
        identity=True,
        metavar="FILE",
        help="Python file that defines sort_key(record), for `-k script`.",
    )
    script_name: str = option("sort_key.py", hidden=True, help="What tracebacks call the script.")
    params: dict[str, str] = option(
        {}, flags=("--param",), identity=True, metavar="K=V", help="A parameter for the scripts' setup(params)."
    )
    combine: bool = option(
        False,
        identity=True,
        help="Reduce on the map side too, before samples are moved; for a reduce that may be applied twice. Implies "
        "--exact.",
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
    spec: type[ReadSpec]


KINDS = (
    Kind("ShardMap", "htmapper", "map", MapSpec),
    Kind("ShardExtract", "htextract", "extract", ExtractSpec),
    Kind("ShardShuffle", "htshuffle", "shuffle", ShuffleSpec),
    Kind("ShardSort", "htsort", "sort", SortSpec),
)


def spec_from_manifest(manifest: dict[str, Any]) -> ReadSpec:
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


def to_manifest(spec: ReadSpec) -> dict[str, Any]:
    """Write a spec as `spec_from_manifest` reads it."""
    return {"apiVersion": API_VERSION, "kind": kind_of(spec).name, "spec": spec.to_dict()}


def kind_of(spec: ReadSpec) -> Kind:
    """Find the row of KINDS for a spec."""
    return next(kind for kind in KINDS if type(spec) is kind.spec)
