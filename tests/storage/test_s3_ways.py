"""How s3:// asks: options passed on, hosts and paths, processes and forks, memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import s3_places
from support.faultproxy import FaultProxy, Stall
from support.places import Place
from support.seaweed import BUCKET, NOBODY, READER, WRITER, Keys, SeaweedFS
from support.webserver import Asked, Reply, WebServer

from tarmill import storage
from tarmill.errors import SpecError, StorageError
from tarmill.formats.shards import ShardPattern
from tarmill.jobs.clean import Outputs
from tarmill.storage import registry, s3_client
from tarmill.storage.s3_options import (
    S3Options,
    bucket_config,
    client_config,
    host_of_bucket,
    options_for,
    sorted_out,
    split_object,
    split_url,
)
from tarmill.storage.s3_peek import may_have_uploads, says_uploads, uploads_url
from tarmill.values import replace

SETTINGS = storage.StorageSettings()
KEYS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "the-secret"}


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return s3_places.place(request, tmp_path.name)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    s3_places.isolate(monkeypatch, KEYS)


def settings(**changes: Any) -> None:
    storage.configure(replace(storage.current_settings(), **changes))


def decided(bucket: str = "data", profile: dict[str, Any] | None = None, **changes: Any) -> S3Options:
    return options_for(bucket, replace(SETTINGS, **changes), profile or {})


# ---- what is decided --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("keys")
def test_region_and_endpoint_come_from_options_then_the_environment_then_the_profile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profile = {"region": "from-profile", "endpoint_url": "https://profile"}
    assert (decided().region, decided().endpoint) == ("us-east-1", None)
    assert (decided(profile=profile).region, decided(profile=profile).endpoint) == ("from-profile", "https://profile")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "from-default")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://global")
    assert (decided(profile=profile).region, decided(profile=profile).endpoint) == ("from-default", "https://global")
    monkeypatch.setenv("AWS_REGION", "from-region")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://service/")
    assert (decided(profile=profile).region, decided(profile=profile).endpoint) == ("from-region", "https://service")
    named = {"store_options": {"s3.region": "named", "s3.endpoint": "https://option"}}
    assert (decided(profile=profile, **named).region, decided(profile=profile, **named).endpoint) == (
        "named", "https://option",
    )  # fmt: skip
    assert decided(s3_endpoint="http://flag:9000", **named).endpoint == "http://flag:9000"


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(("bucket", "changes", "expected"), [
    ("data", {}, True), ("my.data", {}, False), ("data", {"s3_endpoint": "http://minio:9000"}, False),
    ("data", {"s3_endpoint": "http://minio", "store_options": {"s3.virtual_hosted_style_request": "true"}}, True),
    ("data", {"store_options": {"s3.virtual_hosted_style_request": "false"}}, False),
])  # fmt: skip
def test_buckets_stand_in_the_host_at_amazon_and_in_the_path_elsewhere(
    bucket: str, changes: dict[str, Any], expected: bool
) -> None:
    assert decided(bucket, **changes).virtual_hosted is expected


@pytest.mark.parametrize(("endpoint", "expected"), [
    ("http://minio:9000", "http://data.minio:9000"), ("https://data.s3.example.com", "https://data.s3.example.com"),
])  # fmt: skip
def test_a_bucket_is_put_before_its_host_once(endpoint: str, expected: str) -> None:
    assert host_of_bucket(endpoint, "data") == expected
    assert s3_client._without_bucket(expected, "data") == endpoint.replace("data.", "")


@pytest.mark.parametrize(("name", "near"), [
    ("regoin", "s3.region"), ("server_side_encrypton", "s3.server_side_encryption"), ("kms_key_id", "sse_kms_key_id"),
])  # fmt: skip
def test_an_unknown_option_is_refused_with_those_that_look_like_it(name: str, near: str) -> None:
    with pytest.raises(SpecError, match=rf"'s3\.{name}' is not known; did you mean .*{near}"):
        sorted_out({name: "x"})


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("options", [
    {"s3.part_size": "1KB"}, {"s3.part_size": "many"}, {"s3.part_size": "6GiB"},
    {"s3.virtual_hosted_style_request": "perhaps"}, {"s3.server_side_encryption": "rot13"},
    {"s3.unsigned_payload": "perhaps"}, {"s3.endpoint": "minio:9000"}, {"s3.endpoint": "http://me:pw@minio:9000"},
])  # fmt: skip
def test_a_value_that_cannot_work_is_refused_before_anything_is_asked(options: dict[str, str]) -> None:
    settings(store_options=options)
    with pytest.raises(SpecError) as caught:
        storage.stat("s3://data/x.tar")
    assert "me:pw" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://me:secret@data/x", "s3://me:sec/ret@data/x", "s3://a b/x"])
def test_what_names_no_bucket_is_refused_without_a_secret(url: str) -> None:
    with pytest.raises(SpecError) as caught:
        split_url(url)
    assert "sec" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "x/", "a//b", "/a", "a/./b", "../b", "a\nb"])
def test_keys_that_the_client_would_change_are_refused(key: str) -> None:
    with pytest.raises(SpecError, match=r"folder|reached"):
        split_object(f"s3://data/{key}")


@given(st.text(st.characters(codec="utf-8", exclude_characters="/", exclude_categories=("C", "Z")), min_size=1))
def test_keys_are_kept_as_they_are_written(name: str) -> None:
    url = storage.join_url("s3://data/folder/", name)
    if name not in (".", ".."):
        assert split_object(url) == ("data", f"folder/{name}")


@pytest.mark.usefixtures("keys")
def test_the_time_limits_are_of_silence_not_of_the_whole() -> None:
    """A slow reader of a large object is no error; the answer to a part may take as long as a slow line needs."""
    reading = client_config(decided(), SETTINGS, patient=False)
    writing = client_config(decided(), SETTINGS, patient=True)
    assert (reading["timeout"], reading["read_timeout"], reading["connect_timeout"]) == ("24h", "60000ms", "15000ms")
    assert int(writing["read_timeout"][:-2]) > 2 * int(reading["read_timeout"][:-2])
    assert not reading["allow_http"]
    assert bucket_config("data", decided(), SETTINGS)["checksum_algorithm"] == "CRC64NVME"


# ---- what is asked ----------------------------------------------------------------------------------------------


def all_ways(server: WebServer) -> list[Asked]:
    """Write, look, read, list and sweep, and give what the server was asked."""
    head = {"ETag": '"e"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
    server.replies |= {
        "PUT /data/x.tar": Reply(200, b"", head),
        "HEAD /data/x.tar": Reply(200, b"body", head),
        "GET /data/x.tar": Reply(200, b"body", head),
        "/data": Reply(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"),
    }
    settings(s3_endpoint=server.base, verify_uploads="none")
    storage.write_bytes("s3://data/x.tar", b"body")
    storage.write_bytes("s3://data/x.tar", b"body", exclusive=True)
    assert storage.read_bytes("s3://data/x.tar") == b"body"
    assert list(storage.list_urls("s3://data/folder/")) == []
    server.replies |= {"/data": Reply(200, UNFINISHED), "DELETE /data/left.tar": Reply(204)}
    assert storage.sweep("s3://data/", "any", ["s3://data/left.tar"]) == 1
    return server.asked


UNFINISHED = (
    b"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated><Upload><Key>left.tar</Key>"
    b"<UploadId>7</UploadId></Upload></ListMultipartUploadsResult>"
)


@pytest.mark.usefixtures("keys")
def test_encryption_is_asked_for_with_each_upload() -> None:
    settings(store_options={"s3.sse": "aws:kms", "s3.sse_kms_key_id": "arn:aws:kms:eu-west-1:1:key/k"})
    with WebServer() as server:
        put, create, *_ = all_ways(server)
    for asked in (put, create):
        assert asked.headers["X-Amz-Server-Side-Encryption"] == "aws:kms"
        assert asked.headers["X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id"] == "arn:aws:kms:eu-west-1:1:key/k"
    assert create.headers["If-None-Match"] == "*"


@pytest.mark.usefixtures("keys")
def test_who_pays_is_told_with_each_request() -> None:
    settings(requester_pays=True)
    with WebServer() as server:
        asked = all_ways(server)
    assert {one.headers.get("X-Amz-Request-Payer") for one in asked} == {"requester"}


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("token", [b"", b"<NextContinuationToken>same</NextContinuationToken>"])
def test_a_list_that_never_ends_is_an_error(token: bytes) -> None:
    with WebServer() as server:
        page = b"<ListBucketResult><IsTruncated>true</IsTruncated>%b</ListBucketResult>" % token
        server.replies["/data"] = Reply(200, page)
        settings(s3_endpoint=server.base)
        with pytest.raises(StorageError, match="there is more, but not from where on"):
            storage.list_urls("s3://data/folder/")
        assert len(server.asked) == (2 if token else 1)


@pytest.mark.usefixtures("keys")
def test_bodies_carry_their_checksum_and_content_type_and_no_secret_travels() -> None:
    with WebServer() as server:
        asked = all_ways(server)
        assert storage.stat("s3://data/x.tar") == storage.Stat("s3://data/x.tar", 4, 'etag:"e"', 1445412480.0)
    assert "X-Amz-Checksum-Crc64Nvme" in asked[0].headers
    assert asked[0].headers["Content-Type"] == "application/octet-stream"
    assert not [one for one in asked if "the-secret" in str(one)]
    assert all("Credential=me/" in one.headers["Authorization"] for one in asked)


@pytest.mark.usefixtures("keys")
def test_anonymous_requests_are_not_signed_though_there_are_keys() -> None:
    settings(anonymous=True)
    with WebServer() as server:
        asked = all_ways(server)
    assert not [one for one in asked if "Authorization" in one.headers]


# ---- processes --------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.xdist_group("s3")
def test_a_fork_of_a_process_that_used_s3_is_told_instead_of_hanging(place: Place) -> None:
    """A process that forks before it uses s3:// may use it in both."""
    program = """
import os, sys
from tarmill import storage
from tarmill.errors import StorageError

def in_child(call):
    pid = os.fork()
    if not pid:
        os._exit(call())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

url = sys.argv[1]
stream = []

def read():
    return 0 if storage.read_bytes(url) == b"x" * 3_000_000 else 1

def told():
    for call in (read, lambda: storage.write_bytes(url, b"y"), lambda: list(storage.list_urls(url)),
                 lambda: stream[0].read(1)):
        try:
            call()
        except StorageError as error:
            assert "fork" in str(error), error
        else:
            return 2
    return 0

storage.store_for(url)
assert in_child(lambda: storage.write_bytes(url, b"x" * 3_000_000) and 0) == 0
assert in_child(read) == 0
assert read() == 0
stream.append(storage.open_read(url))
assert in_child(told) == 0
assert read() == 0
"""
    done = subprocess.run([sys.executable, "-c", program, place.url("x.tar")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.real
@pytest.mark.xdist_group("s3")
def test_an_interrupt_is_heard_while_the_store_is_silent(seaweed: SeaweedFS, place: Place) -> None:
    program = (
        "import sys; from tarmill import storage; "
        "storage.configure(storage.StorageSettings(s3_endpoint=sys.argv[2])); storage.stat(sys.argv[1])"
    )
    silent = threading.Event()

    class Noticed(FaultProxy):
        def _take(self, line: str) -> Any:
            silent.set()
            return super()._take(line)

    with Noticed(seaweed.port, [Stall(0)], only=("HEAD",)) as proxy:
        arguments = [sys.executable, "-c", program, place.url("x.tar"), proxy.base]
        with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as process:
            assert silent.wait(60)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) in (-signal.SIGINT, 1)  # the time limit of reading alone is 60 s


@pytest.mark.parametrize("missing", [("obstore", "s3fs"), ("obstore", "s3fs", "fsspec")])
def test_without_obstore_and_s3fs_the_cure_is_named(monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    registry._store_of_scheme.cache_clear()
    with pytest.raises(SpecError, match=r"obstore, which is not installed; pip install 'tarmill\[s3\]'"):
        storage.stat("s3://data/x.tar")


MEMORY = """
import sys
from tarmill import storage
block = bytes(1 << 20)
with storage.open_write(sys.argv[1]) as out:
    for _ in range(300):
        out.write(block)
window = memoryview(bytearray(1 << 20))
count = 0
with storage.open_read(sys.argv[1]) as stream, storage.open_write(sys.argv[1] + "-copy") as out:
    while got := stream.readinto(window):
        count += got
        out.write(window[:got])
assert count == 300 << 20
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.real
@pytest.mark.xdist_group("s3")
@pytest.mark.long
def test_a_copy_of_a_large_object_takes_little_memory(place: Place) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, place.url("x.tar")], capture_output=True, check=True)
    assert int(done.stdout) < 150_000


@pytest.mark.usefixtures("keys")
def test_an_object_of_more_parts_than_s3_takes_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tarmill.storage.s3_write.MAX_PARTS", 1)
    out = storage.open_write("s3://data/x.tar")
    with pytest.raises(StorageError, match=r"larger than 1 parts of 8388608 bytes.*s3\.part_size"):
        out.write(bytes((8 << 20) + 1))
    out.abort()


# ---- whose an unfinished upload is ------------------------------------------------------------------------------


@pytest.mark.parametrize(("pattern", "ours", "others"), [
    ("s3://b/f/out-@.tar.gz", ["out-000000.tar.gz", "out-1234567.tar.gz"],
     ["out-00000.tar.gz", "out-000000.tar", "out-abcdef.tar.gz", "out-000000-x.tar.gz", "g/out-000000.tar.gz"]),
    ("s3://b/f/out-@03.tar", ["out-00.tar", "out-02.tar"], ["out-03.tar", "out-000.tar"]),
])  # fmt: skip
def test_outputs_are_known_by_the_pattern_of_their_job(pattern: str, ours: list[str], others: list[str]) -> None:
    outputs = Outputs(ShardPattern.parse(pattern), "s3://b/f/")
    assert [name for name in [*ours, *others] if f"s3://b/f/{name}" in outputs] == ours
    elsewhere = Outputs(ShardPattern.parse(pattern), "s3://b/other/")
    assert not [name for name in ours if f"s3://b/f/{name}" in elsewhere]


@pytest.mark.real
@pytest.mark.xdist_group("s3")
def test_only_uploads_of_the_owners_names_and_folders_are_swept(seaweed: SeaweedFS, place: Place) -> None:
    names = [
        "out-0.tar", "out-1.tar", "other.tar", "_tarmill/job-1/shard-0.json", "_tarmill/job-1/spill/run-0",
        "_tarmill/job-2/run-0", "tarmill-job-1/run-1", "tarmill-job-11/run-1",
    ]  # fmt: skip
    client = seaweed.client()
    for name in names:
        client.create_multipart_upload(Bucket=BUCKET, Key=place.url(name).removeprefix(f"s3://{BUCKET}/"))
    assert storage.sweep(place.folder, "job-1", {place.url("out-0.tar"), place.url("out-1.tar")}) == 5
    left = [key.rpartition(f"{place.folder.split('/')[-2]}/")[2] for key in place.unfinished()]
    assert left == sorted(["other.tar", "_tarmill/job-2/run-0", "tarmill-job-11/run-1"])
    assert storage.sweep("s3://no-such-bucket/x/", "job-1") == 0


@pytest.mark.real
@pytest.mark.xdist_group("s3")
@pytest.mark.parametrize("keys", [WRITER, READER, NOBODY])
def test_the_look_for_unfinished_uploads_never_misses_one(
    seaweed: SeaweedFS, place: Place, monkeypatch: pytest.MonkeyPatch, keys: Keys
) -> None:
    """Without rights, or without an answer, it does not know, and says that there may be some."""
    for name, value in seaweed.environment(keys).items():
        monkeypatch.setenv(name, value)
    s3_client.forget_clients()
    client = s3_client.client_for(BUCKET, storage.current_settings(), place.folder)
    folder = place.url("a b+c/é=&/").removeprefix(f"s3://{BUCKET}/")
    assert may_have_uploads(client, folder) == (keys is NOBODY)
    upload = seaweed.client().create_multipart_upload(Bucket=BUCKET, Key=f"{folder}x.tar")
    assert may_have_uploads(client, folder)
    seaweed.client().abort_multipart_upload(Bucket=BUCKET, Key=f"{folder}x.tar", UploadId=upload["UploadId"])


@pytest.mark.real
@pytest.mark.xdist_group("s3")
def test_the_look_goes_through_the_proxy_of_the_environment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    client = s3_client.client_for(BUCKET, storage.current_settings(), place.folder)
    with WebServer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.base)
        assert not may_have_uploads(client, "none/")
        assert [asked.path.partition("?")[2] for asked in proxy.asked] == ["max-uploads=1&prefix=none%2F&uploads="]


@pytest.mark.parametrize("body", [b"", b"<ListBucketResult></ListBucketResult>", b"<ListMultipartUploadsResult>"])
def test_an_answer_that_is_none_to_the_question_leaves_it_open(body: bytes) -> None:
    assert says_uploads(body)


@pytest.mark.usefixtures("keys")
def test_the_look_goes_where_all_other_requests_go() -> None:
    near = decided("b", s3_endpoint="http://h:1/base")
    assert uploads_url("b", near, "a b/") == "http://h:1/base/b?max-uploads=1&prefix=a%20b%2F&uploads="
    amazon = decided("b", {"region": "eu-west-1"})
    assert uploads_url("b", amazon, "") == "https://b.s3.eu-west-1.amazonaws.com/?max-uploads=1&prefix=&uploads="
