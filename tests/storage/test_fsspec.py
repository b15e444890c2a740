"""Any fsspec file system: which serve, how errors and versions read, and that none can hang us or cross a fork."""

from __future__ import annotations

import datetime
import gc
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from support import motos3
from support.bodies import body_of, read_whole
from support.faultproxy import Answer, Cut, FaultProxy, Reset

from tarmill import storage
from tarmill.errors import (
    AccessError,
    ChangedError,
    NoSpaceError,
    NotFoundError,
    SpecError,
    StorageError,
)
from tarmill.storage import fsspec_mount, registry
from tarmill.storage.body import Stopped
from tarmill.storage.fsspec_info import info_stat
from tarmill.storage.fsspec_store import FsspecStore
from tarmill.values import replace

BODY = body_of(3_000_000)


def settings(**changes: object) -> None:
    storage.configure(replace(storage.current_settings(), **changes))


# A file system that does what a test wants


class OddFileSystem(MemoryFileSystem):
    """Memory, of which a test may break any part: `before[method](path)` is called first, and may raise or wait."""

    protocol = "odd"
    store: dict[str, Any] = {}  # noqa: RUF012 - as in its base
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    before: dict[str, Callable[[str], object]] = {}  # noqa: RUF012
    made = 0
    replaces = True

    def __init__(self, colour: str | None = None, number: int = 0, use_listings_cache: bool = True) -> None:
        super().__init__()
        self.options = (colour, number)
        type(self).made += 1
        self._call("connect", "")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("odd://", "memory://")))

    def _call(self, method: str, path: str) -> None:
        call = self.before.get(method)
        if call is not None:
            call(path)

    def info(self, path: str, **kwargs: Any) -> Any:
        self._call("info", path)
        return super().info(path, **kwargs)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        self._call("cat_file", path)
        return bytes(super().cat_file(path, start, end, **kwargs))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        self._call("open", path)
        return super()._open(path, mode, **kwargs)

    def mv(self, old: str, new: str, **kwargs: Any) -> None:
        self._call("mv", old)
        if not self.replaces and self.exists(new):
            return  # as HDFS does, which says "false" to who asks
        super().mv(old, new, **kwargs)


@pytest.fixture
def odd() -> Iterator[type[OddFileSystem]]:
    """The file system of odd:// URLs, as new."""
    kind = type("Odd", (OddFileSystem,), {"store": {}, "pseudo_dirs": [""], "before": {}})
    fsspec.register_implementation("odd", kind, clobber=True)
    registry._store_of_scheme.cache_clear()
    yield kind
    _registry.pop("odd", None)
    registry._store_of_scheme.cache_clear()
    fsspec_mount._mounts.clear()


def once(error: Exception) -> Callable[[str], None]:
    """Fail the first time."""
    left = [error]

    def call(path: str) -> None:
        if left:
            raise left.pop()

    return call


def test_an_object_goes_there_and_back(odd: type[OddFileSystem]) -> None:
    receipt = storage.write_bytes("odd://a/x.tar", BODY)
    assert read_whole("odd://a/x.tar", receipt.version) == BODY
    assert list(odd.store) == ["/a/x.tar"]
    assert not storage.capabilities("odd://a/x.tar").exclusive_create


def test_a_call_that_never_returns_is_left_after_the_time_limit(odd: type[OddFileSystem]) -> None:
    storage.write_bytes("odd://a/x.tar", BODY[:5000])
    settings(read_timeout_s=0.1, retry_budget_s=0.05)
    never = threading.Event()
    for method in ("info", "cat_file", "open"):
        odd.before.clear()
        odd.before[method] = lambda path: never.wait()
        with pytest.raises(StorageError, match=r"odd://a/.*no answer within") as caught:
            storage.write_bytes("odd://a/y.tar", b"x") if method == "open" else storage.read_bytes("odd://a/x.tar")
        assert caught.value.network
    odd.before.clear()
    assert read_whole("odd://a/x.tar") == BODY[:5000]  # by a new instance: the old one's lock is taken for ever
    never.set()


def test_closing_does_not_wait_for_a_call_that_never_returns(odd: type[OddFileSystem]) -> None:
    storage.write_bytes("odd://a/x.tar", BODY)
    settings(read_timeout_s=600.0)
    never = threading.Event()
    asked = threading.Event()
    odd.before["cat_file"] = lambda path: (asked.set(), never.wait())
    stream = storage.open_read("odd://a/x.tar")

    def read() -> None:
        with suppress(Stopped):
            stream.readinto(bytearray(1))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert asked.wait(30)
    thread = stream._thread  # type: ignore[attr-defined]
    stream.close()
    assert not thread.is_alive()
    never.set()
    reader.join(30)


@pytest.mark.parametrize("method", ["connect", "info", "cat_file", "open", "mv"])
@pytest.mark.parametrize(
    "error", [ConnectionResetError("reset"), TimeoutError(), EOFError(), BlockingIOError(11, "busy")]
)
def test_what_may_pass_is_tried_again(odd: type[OddFileSystem], method: str, error: Exception) -> None:
    if method in ("open", "mv"):  # what is half written is tried again by who has the bytes
        odd.before[method] = once(error)
        with pytest.raises(StorageError) as caught:
            storage.write_bytes("odd://a/x.tar", BODY)
        assert caught.value.retryable
    storage.write_bytes("odd://a/x.tar", BODY)
    odd.before[method] = once(error)
    assert read_whole("odd://a/x.tar") == BODY
    assert storage.read_ranges("odd://a/x.tar", [(5, 5), (1_000_000, 7)]) == [BODY[5:10], BODY[1_000_000:1_000_007]]


ERRORS: list[tuple[Exception, type[StorageError], str]] = [
    (PermissionError(13, "denied"), AccessError, "the store refuses"),
    (FileNotFoundError("x"), NotFoundError, "it does not exist"),
    (OSError(28, "No space left on device"), NoSpaceError, "the store is full"),
    (type("NoCredentialsError", (Exception,), {})("none"), AccessError, "no credentials were found for odd://"),
    (type("HttpResponseError", (Exception,), {"status_code": 403})("no"), AccessError, "the store refuses"),
    (type("HttpResponseError", (Exception,), {"status_code": 404})("no"), NotFoundError, "it does not exist"),
    (type("HttpResponseError", (Exception,), {"status_code": 400})("what?"), StorageError, "HttpResponseError: what?"),
    (ValueError("two\nlines"), StorageError, "ValueError: two lines"),
]


@pytest.mark.parametrize(("error", "kind", "text"), ERRORS)
def test_what_cannot_pass_is_told_at_once(
    odd: type[OddFileSystem], error: Exception, kind: type[StorageError], text: str
) -> None:
    def fail(path: str) -> None:
        raise error

    odd.before["info"] = fail
    with pytest.raises(kind) as caught:
        storage.stat("odd://a/x.tar")
    assert text in str(caught.value)
    assert "odd://a/x.tar" in str(caught.value)
    assert "gave up" not in str(caught.value)


def test_throttling_is_tried_again_until_the_budget_ends(odd: type[OddFileSystem]) -> None:
    settings(retry_budget_s=0.02)
    slow_down = type("HttpResponseError", (Exception,), {"status_code": 503})

    def fail(path: str) -> None:
        raise slow_down("slow down")

    odd.before["info"] = fail
    with pytest.raises(StorageError, match=r"slow down; gave up after \d+ tries"):
        storage.stat("odd://a/x.tar")


def test_an_object_replaced_between_windows_is_an_error_never_a_mix(odd: type[OddFileSystem]) -> None:
    settings(read_ahead_bytes=1 << 20)
    storage.write_bytes("odd://a/x.tar", b"o" * len(BODY))
    got = bytearray()
    with storage.open_read("odd://a/x.tar") as stream:
        window = bytearray(100_000)
        got += window[: stream.readinto(window)]
        storage.write_bytes("odd://a/x.tar", b"n" * len(BODY))
        with pytest.raises(ChangedError, match="replaced while it was being read"):
            got += stream.readall()
    assert set(got) == {ord("o")}


def test_an_object_that_vanishes_between_windows_is_an_error(odd: type[OddFileSystem]) -> None:
    settings(read_ahead_bytes=1 << 20)
    storage.write_bytes("odd://a/x.tar", BODY)
    with storage.open_read("odd://a/x.tar") as stream:
        stream.readinto(bytearray(10))
        storage.delete("odd://a/x.tar")
        with pytest.raises(ChangedError, match="now nothing"):
            stream.readall()


def test_a_rename_that_does_not_replace_is_helped(odd: type[OddFileSystem]) -> None:
    odd.replaces = False
    storage.write_bytes("odd://a/x.tar", b"old")
    storage.write_bytes("odd://a/x.tar", b"newer")
    assert storage.read_bytes("odd://a/x.tar") == b"newer"
    assert list(odd.store) == ["/a/x.tar"]


def test_a_store_that_keeps_less_than_it_took_is_caught(odd: type[OddFileSystem]) -> None:
    def lose(path: str) -> None:
        odd.store[path].seek(0)
        odd.store[path].truncate(5)

    odd.before["mv"] = lose
    with pytest.raises(StorageError, match="10 bytes were written, the store has 5"):
        storage.write_bytes("odd://a/x.tar", b"0123456789")


@pytest.mark.parametrize("scheme", ["odd", "memory"])
def test_hash_verification_finds_what_size_does_not(
    odd: type[OddFileSystem], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(verify_uploads="hash")
    storage.write_bytes(f"{scheme}://a/good.tar", BODY)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda self, path, start=0, end=0: b"\0" * (end - start))
    with pytest.raises(StorageError, match="read back is not what was written; it was removed") as caught:
        storage.write_bytes(f"{scheme}://a/bad.tar", BODY)
    assert caught.value.retryable
    with pytest.raises(NotFoundError):
        storage.stat(f"{scheme}://a/bad.tar")


def test_unfinished_outputs_are_not_listed_and_swept_by_their_owner_only(odd: type[OddFileSystem]) -> None:
    storage.open_write("odd://a/x.tar", owner="job-1").write(b"half")
    storage.write_bytes("odd://a/y.tar", b"y", owner="job-1")
    assert len(odd.store) == 2
    assert [stat.url for stat in storage.list_urls("odd://a/")] == ["odd://a/y.tar"]
    assert storage.sweep("odd://a/", "job-2") == 0
    assert storage.sweep("odd://a/", "job-1") == 1
    assert list(odd.store) == ["/a/y.tar"]
    assert storage.sweep("odd://nothing/", "job-1") == 0


def test_options_arrive_typed_and_one_instance_serves_a_place(odd: type[OddFileSystem]) -> None:
    settings(store_options={"odd.colour": "red", "odd.number": "7", "other.thing": "x"})
    storage.write_bytes("odd://a/x.tar", b"x")
    storage.read_bytes("odd://a/x.tar")
    assert odd.made == 1
    assert fsspec_mount.mount_for("odd://a/x.tar", storage.current_settings()).fs.options == ("red", 7)
    settings(store_options={"odd.shape": "round"})
    with pytest.raises(SpecError, match=r"odd:// cannot be made with these options \(shape\)"):
        storage.stat("odd://a/x.tar")


def test_folders_are_not_objects(odd: type[OddFileSystem]) -> None:
    storage.write_bytes("odd://a/b/x.tar", b"x")
    with pytest.raises(NotFoundError, match="it is a folder"):
        storage.stat("odd://a/b")
    for call in (storage.open_write, storage.delete):
        with pytest.raises(SpecError, match="names a folder"):
            call("odd://a/b/")
    assert storage.read_bytes("odd://a/b/x.tar") == b"x"


# Which schemes are served


@pytest.mark.parametrize(("url", "text"), [
    ("abfs://c/x.tar", "abfs:// needs a package that is not installed: Install adlfs"),
    ("sftp://me:pa55@host/x.tar", '"paramiko"'),
    ("htps://host/x.tar", "unknown scheme 'htps'"),
    ("zip://x.zip", "unknown scheme 'zip'"),
    ("simplecache://x", "unknown scheme 'simplecache'"),
])  # fmt: skip
def test_schemes_that_cannot_be_served_come_with_the_cure(url: str, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        storage.stat(url)
    assert text in str(caught.value)
    assert "pa55" not in str(caught.value)


@pytest.mark.parametrize(("missing", "url", "cure"), [
    ("gcsfs", "gs://b/x.tar", "gs:// needs the library gcsfs, which is not installed; pip install 'tarmill[gs]'"),
    ("google_crc32c", "gcs://b/x.tar", "pip install 'tarmill[gs]'"),
    ("fsspec", "sftp://host/x.tar", "pip install 'tarmill[fsspec]'"),
    ("s3fs", "s3://b/x.tar", "pip install 'tarmill[s3]'"),
])  # fmt: skip
def test_a_missing_library_is_named_with_its_cure(missing: str, url: str, cure: str) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = sys.modules['obstore'] = None\n"
        "from tarmill import storage, errors\n"
        f"try: storage.stat({url!r})\n"
        "except errors.SpecError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert cure in done.stdout


def test_a_password_in_a_url_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    settings(retry_budget_s=0.02)

    def refuse(*args: object, **more: object) -> None:
        raise ConnectionRefusedError(111, f"refused {args} {more} of ftp://me:s3cr%2Fet@127.0.0.1 s3cr/et")

    monkeypatch.setattr("ftplib.FTP.connect", refuse)
    with pytest.raises(StorageError, match="me:\\*\\*\\*@127") as caught:
        storage.stat("ftp://me:s3cr%2Fet@127.0.0.1:9/x.tar")
    assert "s3cr" not in str(caught.value)


def test_memory_is_of_one_process_and_disks_of_one_host() -> None:
    shared = {scheme: storage.capabilities(f"{scheme}://x/y").shared for scheme in ("memory", "local", "ftp")}
    assert shared == {"memory": "process", "local": "host", "ftp": "everywhere"}


# What infos say

WHEN = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


@pytest.mark.parametrize(("info", "version", "mtime_s"), [
    ({"size": 5, "ETag": '"abc"', "LastModified": WHEN}, "etag:abc;5", WHEN.timestamp()),
    ({"size": 5, "etag": "0x8D", "last_modified": WHEN}, "etag:0x8D;5", WHEN.timestamp()),
    ({"size": 5, "generation": "17", "updated": "2026-01-02T03:04:05Z"}, "generation:17;5", WHEN.timestamp()),
    ({"size": 5, "mtime": 12.5, "ino": 7}, "modified:12.5;5;7", 12.5),
    ({"size": 5, "modificationTime": 1767323045000}, "modified:1767323045000;5", 1767323045.0),
    ({"size": None}, "", None),
])  # fmt: skip
def test_versions_are_what_names_the_content_best(info: dict[str, Any], version: str, mtime_s: float | None) -> None:
    stat = info_stat("x://y", info)
    assert (stat.version, stat.mtime_s, stat.size_bytes) == (version, mtime_s, info["size"])


# S3 by s3fs


@pytest.fixture
def s3(moto_s3: motos3.MotoS3, monkeypatch: pytest.MonkeyPatch) -> motos3.MotoS3:
    moto_s3.use(monkeypatch)
    return moto_s3


@pytest.mark.real
def test_without_obstore_s3_is_served_by_s3fs(s3: motos3.MotoS3) -> None:
    assert isinstance(registry.store_for(f"s3://{motos3.BUCKET}/x"), FsspecStore)
    receipt = storage.write_bytes(f"s3://{motos3.BUCKET}/by-s3fs/x.tar", BODY)
    assert receipt.version.startswith("etag:")
    assert read_whole(f"s3://{motos3.BUCKET}/by-s3fs/x.tar", receipt.version) == BODY


@pytest.mark.real
def test_a_failed_body_leaves_no_object_and_no_upload(s3: motos3.MotoS3) -> None:
    url = f"s3://{motos3.BUCKET}/failed.tar"
    with pytest.raises(ValueError), storage.open_write(url) as out:  # noqa: PT012 - the block is the case
        for _ in range(20):
            out.write(bytes(1 << 20))
        raise ValueError
    del out
    gc.collect()  # s3fs finishes what is forgotten
    with pytest.raises(NotFoundError):
        storage.stat(url)
    fs = fsspec_mount.mount_for(url, storage.current_settings()).fs
    assert fs.call_s3("list_multipart_uploads", Bucket=motos3.BUCKET).get("Uploads", []) == []


@pytest.mark.real
def test_s3fs_reads_through_faults(s3: motos3.MotoS3, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"s3://{motos3.BUCKET}/faults.tar"
    storage.write_bytes(url, BODY)
    settings(read_ahead_bytes=2 << 20)
    with FaultProxy(s3.port, [Cut(1000), Reset(500_000), Answer(503), Cut(0)]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.base)
        assert read_whole(url) == BODY
        assert proxy.hurt == 4


@pytest.mark.real
def test_s3fs_lists_past_a_thousand_keys(s3: motos3.MotoS3) -> None:
    s3.put_many("many/", 1105)
    found = [stat.url for stat in storage.list_urls(f"s3://{motos3.BUCKET}/many/")]
    assert found == [f"s3://{motos3.BUCKET}/many/{number:05d}.tar" for number in range(1105)]
    part = [stat.url for stat in storage.list_urls(f"s3://{motos3.BUCKET}/many/000")]
    assert part == found[:100]


@pytest.mark.real
def test_a_missing_bucket_and_missing_credentials_are_told(
    s3: motos3.MotoS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    with pytest.raises(NotFoundError, match="s3://no-such-bucket/x"):
        storage.write_bytes("s3://no-such-bucket/x.tar", b"x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(AccessError, match="no credentials were found for s3://"):
        storage.write_bytes(f"s3://{motos3.BUCKET}/x.tar", b"x")
    settings(anonymous=True)
    assert storage.write_bytes(f"s3://{motos3.BUCKET}/x.tar", b"x").size_bytes == 1


def _child(url: str, answers: multiprocessing.Queue[object]) -> None:
    try:
        answers.put(storage.read_bytes(url) == BODY)
    except BaseException as error:
        answers.put(repr(error))


@pytest.mark.real
def test_a_forked_child_has_file_systems_of_its_own(s3: motos3.MotoS3) -> None:
    url = f"s3://{motos3.BUCKET}/forked.tar"
    storage.write_bytes(url, BODY)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_child, args=(url, answers))
    child.start()
    assert answers.get(timeout=60) is True
    child.join()
    assert child.exitcode == 0
    assert storage.read_bytes(url) == BODY
