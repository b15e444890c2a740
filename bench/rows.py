"""The rows of the benchmark: which tool does which job on which set, and how its result is proven to be right."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from measure import BenchError
from places import served_folder
from sets import View, digest_of_shards, keys_of_shards, members_digest

HERE = Path(__file__).parent
PEERS = HERE / "peers"
TOOLS = Path(sys.executable).parent
"""htmapper and the others of this very environment."""
IDENTITY = str(PEERS / "identity.py")
PACKING = str(PEERS / "packing.py")
MEMORY = "512MB"
"""What a shuffle or sort may use, so that it does not depend on what the machine has free."""

Command = Callable[[View, str], list[str]]
Check = Callable[[View, Path, bytes, bool], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One tool at one job on one set."""

    set: str
    job: str
    tool: str
    command: Command
    """(view, where to write) -> argv."""
    check: Check
    """(view, where it wrote, standard output, thoroughly?): raises BenchError when the result is not right."""
    digest_flag: bool = False
    """Whether the thorough round runs the command with --digest."""
    stdout_to_file: bool = False
    full_only: bool = False
    """Left out of the quick batch: no bar needs it."""
    place: str = ""
    """Of `places.py`, when it reads and writes there: shards and `where to write` are URLs; "" = files."""
    times_itself: bool = False
    """Its CPU time is the number that it prints first: making its input up costs more than the job."""

    @property
    def name(self) -> str:
        """What results are stored under."""
        return f"{self.set}/{self.job}/{self.tool}"


def peer(script: str, *options: str, out: bool = False) -> Command:
    """Make the command of one of the scripts in peers/."""

    def command(view: View, target: str) -> list[str]:
        where = ["--out", target] if out else []
        return [sys.executable, str(PEERS / script), *options, *where, *view.shards]

    return command


def htmapper(*options: str, script: str = IDENTITY) -> Command:
    """Make the command of an htmapper row."""

    def command(view: View, target: str) -> list[str]:
        suffix = ".tar.gz" if view.name.endswith(".gz") else ".tar"
        output = f"{target}/out-@{len(view.shards)}{suffix}"
        return [str(TOOLS / "htmapper"), *options, "-p", script, view.pattern, output]

    return command


def htextract(view: View, _: str) -> list[str]:
    """Make the command of an htextract row: the small field, tab-separated text on standard output."""
    return [str(TOOLS / "htextract"), "-j", "1", "-f", view.field, view.pattern]


def webdataset_extract(view: View, _: str) -> list[str]:
    """Make the command of webdataset's nearest to it."""
    return [sys.executable, str(PEERS / "webdataset_extract.py"), "--field", view.field, *view.shards]


def reorder(tool: str, plan: str, workers: int) -> Command:
    """Make the command of a shuffle or sort; as many output shards as there are inputs."""

    def command(view: View, target: str) -> list[str]:
        options = ["--memory", MEMORY] if plan == "external" else []
        command = [str(TOOLS / tool), "--plan", plan, "-j", str(workers), *options]
        return [*command, view.pattern, f"{target}/out-@{len(view.shards)}.tar"]

    return command


def webdataset_reshuffle(view: View, target: str) -> list[str]:
    """Make webdataset's command for as many output shards as there are inputs."""
    most = -(-view.samples // len(view.shards))
    command = [sys.executable, str(PEERS / "webdataset_reshuffle.py"), "--maxcount", str(most)]
    return [*command, "--out", target, *view.shards]


def sort_index(by: str) -> Command:
    """Make the command that sorts keys without any samples."""
    return lambda view, _: [sys.executable, str(PEERS / "sort_index.py"), str(view.samples), "--by", by]


def gnu_tar_pack(view: View, target: str) -> list[str]:
    """Make the command that packs a folder by GNU tar."""
    return ["tar", "-cf", f"{target}/out.tar", "-C", view.pattern, Path(next(Path(view.pattern).iterdir())).name]


def htupload(workers: int) -> Command:
    """Make the command of an htupload row: 16 shards, so that two processes have enough to share."""

    def command(view: View, target: str) -> list[str]:
        shards = str(min(16, view.samples))
        return [
            str(TOOLS / "htupload"),
            "-j",
            str(workers),
            "--num-shards",
            shards,
            view.pattern,
            f"{target}/out-@.tar",
        ]

    return command


def curl(view: View, target: str) -> list[str]:
    """Make the command that moves a view's bytes by curl: GET each shard, PUT each shard."""
    source = target.rsplit("/", 1)[0]
    names = [Path(shard).name for shard in view.shards]
    get = [f"{source}/{served_folder(view)}/{name}" for name in names]
    put = "{" + ",".join(view.shards) + "}"
    script = 'put=$1; out=$2; shift 2; curl -sSf "$@" > /dev/null && exec curl -sSf -T "$put" "$out/"'
    return ["sh", "-c", script, "curl", put, target, *get]


def tar_list(view: View, _: str) -> list[str]:
    """Make the command that lists all members by GNU tar."""
    return ["sh", "-c", 'for shard; do tar -tf "$shard" || exit 1; done', "tar", *view.shards]


def tarp_cat(view: View, target: str) -> list[str]:
    """Make the command that copies samples by tarp, into one tar."""
    return ["tarp", "cat", "-o", f"{target}/out.tar", *view.shards]


# -- proofs ----------------------------------------------------------------------------------------------------------


def _expect(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise BenchError(f"{what}: found {found}, expected {expected}")


def same_bytes(view: View, out: Path, stdout: bytes, thorough: bool) -> None:
    """Prove a plain copy."""
    _expect(sum(path.stat().st_size for path in files_in(out)), view.tar_bytes, "bytes copied")


def lists_members(view: View, out: Path, stdout: bytes, thorough: bool) -> None:
    """Prove a list of members."""
    _expect(stdout.count(b"\n"), view.members, "members listed")


def reads_samples(view: View, out: Path, stdout: bytes, thorough: bool) -> None:
    """Prove a read by the counts and the digest that it printed."""
    expected = f"{view.samples} {view.digest}" if thorough else f"{view.samples}"
    _expect(stdout.decode().strip(), expected, "samples read")


def copies_samples(view: View, out: Path, stdout: bytes, thorough: bool) -> None:
    """Prove what a tool wrote: thoroughly by reading it back with tarfile, else by the files' number and size."""
    shards = files_in(out)
    size = sum(path.stat().st_size for path in shards)
    if thorough:
        _expect(digest_of_shards(shards), (view.samples, view.digest), "samples written")
        return
    if stdout.strip().isdigit():
        _expect(int(stdout), view.samples, "samples copied")
    least = 0 if view.name.endswith(".gz") else view.members * 512 + view.samples * 18
    if len(shards) not in (1, len(view.shards)) or size < least:
        raise BenchError(f"{len(shards)} shards with {size} bytes written for {len(view.shards)} of {view.tar_bytes}")


def reorders_samples(view: View, out: Path, stdout: bytes, thorough: bool) -> None:
    """Prove a shuffle or sort: every key once, in as many shards as went in; thoroughly the contents too."""
    _expect(len(files_in(out)), len(view.shards), "shards written")
    _expect(sorted(keys_of_shards(files_in(out))), _sorted_keys(tuple(view.shards)), "keys of the samples written")
    if thorough:
        _expect(digest_of_shards(files_in(out)), (view.samples, view.digest), "samples written")


def shuffles_samples(view: View, out: Path, stdout: bytes, thorough: bool) -> None:
    """Prove a shuffle over all samples: one moves by a third of their number in the mean, through no buffer."""
    reorders_samples(view, out, stdout, thorough)
    before = {key: place for place, key in enumerate(keys_of_shards(map(Path, view.shards)))}
    moves = [abs(place - before[key]) for place, key in enumerate(keys_of_shards(files_in(out)))]
    mean = sum(moves) / len(moves) ** 2
    if len(moves) > 1000 and not 0.3 < mean < 0.37:
        raise BenchError(f"samples have moved by {mean:.3f} of their number in the mean: that is no shuffle")


def sorts_samples(view: View, out: Path, stdout: bytes, thorough: bool) -> None:
    """Prove a sort by key."""
    reorders_samples(view, out, stdout, thorough)
    if keys_of_shards(files_in(out)) != _sorted_keys(tuple(view.shards)):
        raise BenchError("the samples written are not in the order of their keys")


def sorts_index(view: View, out: Path, stdout: bytes, thorough: bool) -> None:
    """Prove a sort of keys alone, which looks at its result itself."""
    _expect(stdout.split()[1:], [b"1"], "keys in order")


@cache
def _sorted_keys(shards: tuple[str, ...]) -> list[bytes]:
    return sorted(keys_of_shards(map(Path, shards)))


def extracts_rows(view: View, out: Path, stdout: bytes, thorough: bool) -> None:
    """Prove the rows of an extraction by their number, and thoroughly by what webdataset's script prints too."""
    rows = b"".join(path.read_bytes() for path in files_in(out))
    _expect(rows.count(b"\n"), view.samples, "rows")
    if thorough:
        _expect(hashlib.sha256(rows).hexdigest(), _rows_digest(view), "content of the rows")


def packs_files(view: View, out: Path, stdout: bytes, thorough: bool) -> None:
    """Prove what was packed: by its size, and thoroughly by the contents of all files."""
    shards = files_in(out)
    if thorough:
        _expect(members_digest(shards), (view.members, view.digest), "files packed")
    size = sum(path.stat().st_size for path in shards)
    if not view.tar_bytes < size < view.tar_bytes + view.members * 1100 + 40_000:  # tarfile adds pax headers
        raise BenchError(f"{size} bytes were written for {view.members} files, which take {view.tar_bytes} at least")


def _rows_digest(view: View) -> str:
    import tarfile

    state = hashlib.sha256()
    for shard in view.shards:
        with tarfile.open(shard, "r") as tar:
            for member in tar:
                if member.name.endswith("." + view.field):
                    state.update(tar.extractfile(member).read() + b"\n")  # type: ignore[union-attr]
    return state.hexdigest()


def files_in(folder: Path) -> list[Path]:
    """List the data files of an output folder: not those of manifests and job state."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".json")


# -- the table -------------------------------------------------------------------------------------------------------


def all_rows(full: bool, places: Container[str]) -> list[Row]:
    """List the rows in the order in which one round runs them."""
    return [row for row in _rows() if (full or not row.full_only) and (not row.place or row.place in places)]


def _rows() -> Iterable[Row]:
    has_tarp = shutil.which("tarp") is not None
    for name in ("images", "text", "tiny"):
        yield Row(name, "copy", "cat", lambda v, _: ["cat", *v.shards], same_bytes, stdout_to_file=True)
        yield Row(name, "list", "GNU tar", tar_list, lists_members, full_only=True)
        yield Row(name, "read", "tarfile", peer("tarfile_read.py"), reads_samples, digest_flag=True, full_only=True)
        if name != "tiny":
            yield Row(name, "read", "webdataset", peer("webdataset_read.py"), reads_samples, digest_flag=True)
            yield Row(name, "read", "tarmill", peer("tarmill_read.py"), reads_samples, digest_flag=True)
        if has_tarp:
            yield Row(name, "map", "tarp cat", tarp_cat, copies_samples)
        copy = peer("webdataset_copy.py", out=True)
        default = peer("webdataset_copy.py", "--mtime", "default", out=True)
        yield Row(name, "map", "webdataset", copy, copies_samples)
        yield Row(name, "map", "webdataset, default mtime", default, copies_samples, full_only=True)
        yield Row(name, "map", "htmapper", htmapper("-j", "1"), copies_samples)
        if name != "tiny":
            yield Row(f"{name}.wide", "map", "htmapper", htmapper("-j", "1"), copies_samples)
            yield Row(f"{name}.wide", "map", "htmapper -j 2", htmapper("-j", "2"), copies_samples)
            many = "images.long" if name == "images" else name
            yield Row(many, "extract", "webdataset", webdataset_extract, extracts_rows, stdout_to_file=True)
            yield Row(many, "extract", "htextract", htextract, extracts_rows, stdout_to_file=True)
    yield Row("text.gz", "read", "webdataset", peer("webdataset_read.py"), reads_samples, digest_flag=True)
    yield Row("text.gz", "read", "tarmill", peer("tarmill_read.py"), reads_samples, digest_flag=True)
    yield Row("text.gz", "map", "webdataset", peer("webdataset_copy.py", out=True), copies_samples)
    level = peer("webdataset_copy.py", "--level", "1", out=True)
    yield Row("text.gz", "map", "webdataset, level 1", level, copies_samples, full_only=True)
    yield Row("text.gz", "map", "htmapper", htmapper("-j", "1"), copies_samples)
    yield from _reorder_rows()
    for name in ("text", "images"):
        yield Row(f"{name}.files", "upload", "GNU tar", gnu_tar_pack, packs_files)
        yield Row(f"{name}.files", "upload", "tarfile", peer("tarfile_add.py", out=True), packs_files)
        yield Row(f"{name}.files", "upload", "htupload", htupload(1), packs_files)
        yield Row(f"{name}.morefiles", "upload", "htupload", htupload(1), packs_files)
        yield Row(f"{name}.morefiles", "upload", "htupload -j 2", htupload(2), packs_files)
    yield from _remote_rows()


def _remote_rows() -> Iterable[Row]:
    """List the rows of stores."""
    for name in ("images", "text"):
        yield Row(name, "http", "curl", curl, copies_samples, place="http")
        yield Row(name, "http", "htmapper", htmapper("-j", "1"), copies_samples, place="http")
    copy = peer("obstore_copy.py", out=True)
    for name, full_only in (("images.s3", True), ("text.s3", False)):  # the server is slow: one is enough for a check
        ours = htmapper("-j", "1")
        yield Row(name, "map", "htmapper", ours, copies_samples, full_only=full_only)
        yield Row(name, "s3", "obstore", copy, copies_samples, place="s3", full_only=full_only)
        yield Row(name, "s3", "htmapper", ours, copies_samples, place="s3", full_only=full_only)
    packing = htmapper("-j", "1", script=PACKING)
    yield Row("images.s3", "work", "htmapper", packing, copies_samples, full_only=True)
    yield Row("images.s3", "far", "obstore", copy, copies_samples, place="far", full_only=True)
    yield Row("images.s3", "far", "htmapper", packing, copies_samples, place="far", full_only=True)


def _reorder_rows() -> Iterable[Row]:
    """List the rows of shuffles and sorts. What the external plan holds at once follows from `--memory`."""
    for name in ("images.unique", "text.unique"):
        yield Row(name, "copy", "cat", lambda v, _: ["cat", *v.shards], same_bytes, stdout_to_file=True)
        yield Row(name, "shuffle", "webdataset", webdataset_reshuffle, reorders_samples)
        for workers, end in ((1, ""), (2, " -j 2")):
            for plan, middle in (("local", ""), ("external", " external")):
                command = reorder("htshuffle", plan, workers)
                yield Row(name, "shuffle", f"htshuffle{middle}{end}", command, shuffles_samples)
        yield Row(name, "sort", "htsort", reorder("htsort", "local", 1), sorts_samples)
        yield Row(name, "sort", "htsort external", reorder("htsort", "external", 1), sorts_samples, full_only=True)
    for tool, by in (("order_of", "order_of"), ("numpy", "argsort")):
        yield Row("keys", "sort", tool, sort_index(by), sorts_index, times_itself=True, full_only=tool == "numpy")


def command_of(row: Row, view: View, target: str, thorough: bool) -> list[str]:
    """Build the argv of one run."""
    command = row.command(view, target)
    return [*command[:2], "--digest", *command[2:]] if thorough and row.digest_flag else command


def scratch_folder() -> Path:
    """Choose where outputs go: memory where there is a memory file system."""
    shm = Path("/dev/shm")
    return shm if shm.is_dir() and os.access(shm, os.W_OK) else Path(os.environ.get("TMPDIR", "/tmp"))
