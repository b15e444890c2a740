"""What the cloud does and the emulator does not: credentials, preconditions, checksums, resumed uploads."""

from __future__ import annotations

import base64
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import tls, webserver
from support.bodies import body_of, read_whole
from support.gcscloud import ACCOUNT, TOKEN, GcsCloud, Saying

from tarmill import storage
from tarmill.errors import AccessError, ChangedError, NotFoundError, OutputExistsError, SpecError, StorageError
from tarmill.storage.gs_upload import crc32c_of, crc32c_text
from tarmill.values import replace

UNIT = 256 << 10
BIG = 3 * UNIT + 5


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[GcsCloud]:
    """A cloud in which we have an account; chunks are of 256 KiB."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    with GcsCloud() as cloud:
        options = cloud.use(monkeypatch, tmp_path)
        settings(store_options={**options, "gs.block_size": str(UNIT)})
        yield cloud


def settings(**changes: object) -> None:
    storage.configure(replace(storage.current_settings(), **changes))


def options(**more: str) -> None:
    settings(store_options={**storage.current_settings().store_options, **{f"gs.{k}": v for k, v in more.items()}})


# Versions


def test_every_request_of_a_stream_names_the_generation_once_it_is_known(cloud: GcsCloud) -> None:
    generation = cloud.put("shards", "x.tar", body_of(100_000))
    assert read_whole("gs://shards/x.tar", f"generation:{generation}") == body_of(100_000)
    ranges = [(n * 20_000, 10) for n in range(5)]
    settings(merge_gap_bytes=1)
    assert storage.read_ranges("gs://shards/x.tar", ranges) == [body_of(100_000)[o : o + n] for o, n in ranges]
    media = [asked for asked in cloud.asked if asked.query.get("alt") == "media"]
    assert len(media) == 6
    assert {asked.query.get("generation") for asked in media} == {str(generation)}


def test_a_replaced_object_is_an_error_by_its_generation(cloud: GcsCloud) -> None:
    old = cloud.put("shards", "x.tar", b"old")
    new = cloud.put("shards", "x.tar", b"new")
    for read in (storage.open_read, storage.read_bytes):
        with pytest.raises(ChangedError, match=f"was generation:{old}, now generation:{new}"):
            read("gs://shards/x.tar", version=f"generation:{old}")
    del cloud.objects["shards", "x.tar"]
    with pytest.raises(NotFoundError):
        storage.open_read("gs://shards/x.tar", version=f"generation:{old}")


def test_gcs_is_another_name_of_gs(cloud: GcsCloud) -> None:
    cloud.put("shards", "x.tar", b"body")
    assert storage.read_bytes("gcs://shards/x.tar") == b"body"
    assert [stat.url for stat in storage.list_urls("gcs://shards")] == ["gcs://shards/x.tar"]


# Uploads


@pytest.mark.parametrize("size", [0, 1, UNIT, UNIT + 1, BIG])
def test_uploads_carry_their_checksum_and_are_taken_by_it(cloud: GcsCloud, size: int) -> None:
    body = body_of(size)
    with storage.open_write("gs://shards/a b/x#?.tar", content_type="application/x-tar") as out:
        for start in range(0, size, 100_000):
            out.write(body[start : start + 100_000])
    data, generation = cloud.objects["shards", "a b/x#?.tar"]
    assert data == body
    assert out.receipt.version == f"generation:{generation}"
    assert out.receipt.size_bytes == size
    assert out.receipt.mtime_s == 1767323045.678
    assert cloud.count("GET") == 0  # the answer to the last byte says it all


@pytest.mark.parametrize("size", [10, BIG])
def test_exclusive_uploads_are_refused_by_the_server(cloud: GcsCloud, size: int) -> None:
    first = storage.write_bytes("gs://shards/x.tar", body_of(size), exclusive=True)
    with pytest.raises(OutputExistsError, match="exists already and was to be created"):
        storage.write_bytes("gs://shards/x.tar", body_of(size), exclusive=True)
    assert storage.stat("gs://shards/x.tar").version == first.version
    conditions = [asked.query["ifGenerationMatch"] for asked in cloud.asked if "uploadType" in asked.query]
    assert conditions == ["0", "0"]


def test_a_large_exclusive_upload_that_loses_the_race_at_its_end_is_refused(cloud: GcsCloud) -> None:
    out = storage.open_write("gs://shards/x.tar", exclusive=True)
    out.write(body_of(BIG))
    cloud.put("shards", "x.tar", b"faster")
    with pytest.raises(OutputExistsError):
        out.commit()
    assert cloud.objects["shards", "x.tar"][0] == b"faster"


@pytest.mark.parametrize("size", [10, BIG])
def test_a_lost_answer_to_the_last_byte_of_an_exclusive_upload_is_known_as_ours(cloud: GcsCloud, size: int) -> None:
    quiet = [None] * (0 if size == 10 else 4)
    cloud.say(*quiet, Saying(200, after=True))
    receipt = storage.write_bytes("gs://shards/x.tar", body_of(size), exclusive=True)
    data, generation = cloud.objects["shards", "x.tar"]
    assert data == body_of(size)
    assert receipt.version == f"generation:{generation}"


CHUNKS: dict[str, list[Saying | None]] = {
    "the start refused": [Saying(503), Saying(429, {"Retry-After": "0"}, "rateLimitExceeded")],
    "chunks refused": [None, Saying(500), Saying(408), None, Saying(503)],
    "throttled by 403": [None, Saying(403, reason="userRateLimitExceeded")],
    "answers lost": [None, Saying(200, after=True), None, Saying(200, after=True), None, Saying(200, after=True)],
    "half a chunk kept": [None, Saying(308, keeps=1000), None, Saying(308, keeps=UNIT // 2)],
    "nothing kept": [None, Saying(308, keeps=0)],
    "half of the last kept": [None, None, None, None, Saying(308, keeps=2)],
}


@pytest.mark.parametrize("sayings", CHUNKS.values(), ids=CHUNKS.keys())
def test_a_resumable_upload_goes_on_where_the_server_stands(cloud: GcsCloud, sayings: list[Saying | None]) -> None:
    cloud.say(*sayings)
    receipt = storage.write_bytes("gs://shards/x.tar", body_of(BIG))
    assert receipt.size_bytes == BIG
    assert cloud.objects["shards", "x.tar"][0] == body_of(BIG)


@pytest.mark.parametrize("status", [404, 410])
def test_an_upload_that_the_server_forgot_is_to_be_written_again(cloud: GcsCloud, status: int) -> None:
    cloud.say(None, None, Saying(status))
    with pytest.raises(StorageError, match="has to be written once more") as caught:
        storage.write_bytes("gs://shards/x.tar", body_of(BIG))
    assert caught.value.retryable  # by who has the bytes
    assert cloud.objects == {}


def test_an_aborted_upload_is_cancelled_at_the_server(cloud: GcsCloud) -> None:
    out = storage.open_write("gs://shards/x.tar")
    out.write(body_of(BIG))
    out.abort()
    assert cloud.sessions == {}
    assert cloud.objects == {}


def test_a_damaged_small_object_is_stored_again(cloud: GcsCloud) -> None:
    cloud.damage = 2
    storage.write_bytes("gs://shards/x.tar", b"body")
    assert cloud.objects["shards", "x.tar"][0] == b"body"


@pytest.mark.parametrize("size", [10, BIG])
def test_a_damaged_object_is_removed_and_told(cloud: GcsCloud, size: int) -> None:
    cloud.damage = 9
    with pytest.raises(StorageError, match=r"CRC32C .* were sent, the server stored .*it was removed") as caught:
        storage.write_bytes("gs://shards/x.tar", body_of(size))
    assert caught.value.retryable
    assert cloud.objects == {}
    deleted = next(asked for asked in cloud.asked if asked.method == "DELETE")
    assert deleted.query["generation"] == deleted.query["ifGenerationMatch"]


def test_what_was_changed_on_the_way_is_refused_by_the_server(cloud: GcsCloud) -> None:
    cloud.say(Saying(400, reason="invalid", message="Provided CRC32C doesn't match calculated CRC32C."))
    with pytest.raises(StorageError, match="doesn't match calculated CRC32C"):
        storage.write_bytes("gs://shards/x.tar", b"body")


@pytest.mark.parametrize("size", [10, BIG])
def test_hash_verification_reads_the_stored_generation_back(cloud: GcsCloud, size: int) -> None:
    settings(verify_uploads="hash")
    storage.write_bytes("gs://shards/x.tar", body_of(size))
    back = [asked.query.get("generation") for asked in cloud.asked if asked.query.get("alt") == "media"]
    assert back == [str(cloud.objects["shards", "x.tar"][1])]


def test_checksums_are_written_as_the_server_does() -> None:
    # RFC 3720, B.4: 32 bytes of zeroes
    assert crc32c_of(bytes(16), crc32c_of(bytes(16))) == 0x8A9136AA
    assert crc32c_text(0x8A9136AA) == base64.b64encode(bytes.fromhex("8a9136aa")).decode()


# Lists


def test_lists_go_on_past_a_thousand_names(cloud: GcsCloud) -> None:
    names = [f"many/{number:05d}.tar" for number in range(2345)]
    for name in names:
        cloud.put("shards", name, name.encode())
    cloud.put("shards", "many/", b"")  # a folder's marker is no shard
    cloud.say(None, Saying(503), None)
    found = list(storage.list_urls("gs://shards/many/"))
    assert [stat.url for stat in found] == [f"gs://shards/{name}" for name in names]
    assert found[7].size_bytes == len(names[7])
    assert found[7].version == f"generation:{cloud.objects['shards', names[7]][1]}"
    assert cloud.count("GET") == 4


# Refusals


def refused(kind: type[StorageError], url: str, write: bool = False) -> str:
    with pytest.raises(kind) as caught:
        storage.write_bytes(url, b"x") if write else storage.read_bytes(url)
    text = str(caught.value)
    assert "\n" not in text
    assert url in text
    everything = "".join(traceback.format_exception(caught.value)) + str(caught.value.facts)
    assert TOKEN not in everything
    assert "PRIVATE KEY" not in everything
    return text


def test_a_wrong_token_is_renewed_once_and_then_told_with_the_account(cloud: GcsCloud) -> None:
    cloud.put("shards", "x.tar", b"body")
    cloud.say(Saying(401, reason="authError", message="Invalid Credentials"))
    assert storage.read_bytes("gs://shards/x.tar") == b"body"
    assert cloud.count("POST", "/token") == 2
    cloud.token = "ya29.another"
    options(user_project="another-client")  # which has no token yet
    text = refused(AccessError, "gs://shards/x.tar")
    assert f"the credentials of {ACCOUNT} were refused" in text
    assert "gcloud auth application-default login" in text


def test_a_key_that_google_refuses_is_told(cloud: GcsCloud) -> None:
    cloud.refuses_key = True
    text = refused(AccessError, "gs://shards/x.tar")
    assert f"the credentials of {ACCOUNT} are expired, revoked or wrong (invalid_grant: Invalid JWT Signature." in text


def test_a_key_file_that_is_none_is_named(cloud: GcsCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    for name in ("bad.json", "missing.json"):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / name))
        text = refused(AccessError, "gs://shards/x.tar")
        assert f"GOOGLE_APPLICATION_CREDENTIALS, {tmp_path / name}, cannot be used" in text


def test_without_credentials_it_is_told_what_was_tried(
    cloud: GcsCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    text = refused(AccessError, "gs://shards/x.tar")
    assert "no Google credentials were found: GOOGLE_APPLICATION_CREDENTIALS is not set" in text
    assert f"{tmp_path}/application_default_credentials.json" in text
    assert "metadata server (workload identity)" in text
    assert "--anon" in text


def test_public_buckets_are_read_without_credentials(cloud: GcsCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    settings(anonymous=True)
    cloud.put("public", "x.tar", b"body")
    assert storage.read_bytes("gs://public/x.tar") == b"body"
    assert "bucket 'shards' is not public" in refused(AccessError, "gs://shards/x.tar")
    assert "leave out --anon" in refused(AccessError, "gs://public/y.tar", write=True)
    assert not [asked for asked in cloud.asked if "Authorization" in asked.headers]


def test_who_may_only_read_is_told_which_role_is_missing(cloud: GcsCloud) -> None:
    cloud.put("readonly", "x.tar", b"body")
    assert storage.read_bytes("gs://readonly/x.tar") == b"body"
    text = refused(AccessError, "gs://readonly/x.tar", write=True)
    assert f"{ACCOUNT} may not do this in bucket 'readonly'" in text
    assert "storage.objects.create" in text
    assert "Storage Object User" in text


def test_requester_pays_buckets_ask_for_consent_and_a_project(cloud: GcsCloud) -> None:
    cloud.put("payer", "x.tar", b"body")
    assert "agree by --requester-pays" in refused(AccessError, "gs://payer/x.tar")
    settings(requester_pays=True)
    assert storage.read_bytes("gs://payer/x.tar") == b"body"
    assert cloud.asked[-1].query["userProject"] == "project"
    options(user_project="another")
    assert storage.read_bytes("gs://payer/x.tar") == b"body"
    assert cloud.asked[-1].query["userProject"] == "another"


def test_a_missing_bucket_is_told_as_such(cloud: GcsCloud) -> None:
    for write in (False, True):
        assert "there is no bucket 'nowhere'" in refused(NotFoundError, "gs://nowhere/x.tar", write)
    with pytest.raises(NotFoundError, match="there is no bucket 'nowhere'"):
        list(storage.list_urls("gs://nowhere/"))
    with pytest.raises(NotFoundError, match=r"gs://shards/no\.tar: it does not exist"):
        storage.stat("gs://shards/no.tar")


def test_throttling_is_waited_out_and_told_when_the_budget_ends(cloud: GcsCloud) -> None:
    cloud.put("shards", "x.tar", b"body")
    cloud.say(
        Saying(429, {"Retry-After": "0"}, "rateLimitExceeded"), Saying(503), Saying(403, reason="rateLimitExceeded")
    )
    assert storage.read_bytes("gs://shards/x.tar") == b"body"
    settings(retry_budget_s=0.05)
    cloud.say(*[Saying(429, reason="rateLimitExceeded", message="slow down")] * 200)
    text = refused(StorageError, "gs://shards/x.tar")
    assert "the server answered 429 (slow down); gave up after" in text


@pytest.mark.parametrize("status", [400, 401, 403, 404, 412])
def test_what_waiting_cannot_mend_is_not_asked_again(cloud: GcsCloud, status: int) -> None:
    cloud.say(*[Saying(status, reason="forbidden")] * 3)
    with pytest.raises(StorageError):
        storage.read_bytes("gs://shards/x.tar")
    assert cloud.count("GET") == (2 if status == 401 else 1)


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:9")
    settings(retry_budget_s=0.05)
    with pytest.raises(StorageError, match=r"reading gs://b/x: 127\.0\.0\.1:9 cannot be reached .*gave up after"):
        storage.read_bytes("gs://b/x")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://no-such-host.invalid")
    with pytest.raises(StorageError, match=r"no-such-host\.invalid cannot be reached") as caught:
        storage.read_bytes("gs://b/x")
    assert "gave up" not in str(caught.value)


def test_over_tls_the_authority_must_be_known(tmp_path: Path) -> None:
    authority = tls.make_authority(tmp_path)
    with GcsCloud(authority.server) as cloud:
        cloud.put("public", "x.tar", b"body")
        settings(anonymous=True, store_options={"gs.endpoint_url": cloud.base})
        assert "--ca-file" in refused(StorageError, "gs://public/x.tar")
        settings(ca_file=str(authority.ca_file))
        assert storage.read_bytes("gs://public/x.tar") == b"body"
        settings(ca_file=str(tmp_path / "none.pem"))
        with pytest.raises(SpecError, match=r"none\.pem' cannot be used"):
            storage.stat("gs://public/x.tar")


def test_proxies_of_the_environment_are_used(cloud: GcsCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    settings(anonymous=True)
    cloud.put("public", "x.tar", b"body")
    with webserver.WebServer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:pa55@127.0.0.1:{proxy.port}")
        assert storage.read_bytes("gs://public/x.tar") == b"body"
        assert [asked.path.partition("?")[0] for asked in proxy.asked if "/b/" in asked.path] == [
            f"{cloud.base}/storage/v1/b/public/o/x.tar"
        ]
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert storage.read_bytes("gs://public/x.tar") == b"body"
        assert len([asked for asked in proxy.asked if "/b/" in asked.path]) == 1
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTP_PROXY", "http://me:pa55@127.0.0.1:9")
    settings(retry_budget_s=0.02)
    assert "pa55" not in refused(StorageError, "gs://public/x.tar")


@pytest.mark.parametrize("url", ["gs://", "gs://bucket", "gs://bucket/", "gs:///x.tar"])
def test_urls_without_a_name_are_refused(url: str) -> None:
    for call in (storage.stat, storage.read_bytes, storage.open_write, storage.delete):
        with pytest.raises(SpecError, match=r"gs://BUCKET/NAME"):
            call(url)
    with pytest.raises(SpecError, match="names a folder"):
        storage.open_write("gs://bucket/folder/")


@pytest.mark.parametrize(("name", "value", "why"), [
    ("gs.colour", "red", r"gs\.colour is not known; expected one of gs\.endpoint_url"),
    ("gs.block_size", "1000", "multiple of 262144"),
    ("gs.block_size", "big", "multiple of 262144"),
])  # fmt: skip
def test_options_are_looked_at(monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:9")
    settings(store_options={name: value})
    with pytest.raises(SpecError, match=why):
        storage.open_write("gs://b/x.tar")
