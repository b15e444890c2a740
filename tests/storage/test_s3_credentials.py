"""Who we are to S3, and what is told when that does not work: real refusals of a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import s3_places
from support import seaweed as server_of
from support.nginx import free_port
from support.seaweed import BUCKET, NOBODY, PUBLIC, READER, STRANGER, WRITER, SeaweedFS
from support.tars import ustar
from support.tls import make_authority
from support.webserver import Reply, WebServer

from tarmill import storage
from tarmill.errors import AccessError, NotFoundError, SpecError, StorageError, TarmillError, UsageError
from tarmill.storage import s3_client, s3_credentials
from tarmill.storage.s3_peek import may_have_uploads
from tarmill.values import replace

pytestmark = s3_places.MARKS


@pytest.fixture
def url(seaweed: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    s3_places.isolate(monkeypatch, seaweed.environment())
    seaweed.put(f"{tmp_path.name}/x.tar", b"body")
    return f"s3://{BUCKET}/{tmp_path.name}/x.tar"


def settings(**changes: Any) -> None:
    storage.configure(replace(storage.current_settings(), **changes))


@contextmanager
def refused(kind: type[TarmillError], *words: str) -> Iterator[None]:
    """One clear line with these words, and no secret in it."""
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert "Debug source" not in message
    for keys in (WRITER, STRANGER, NOBODY, READER):
        assert keys.secret not in message


def without_keys(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    s3_client.forget_clients()


def with_keys(monkeypatch: pytest.MonkeyPatch, seaweed: SeaweedFS, keys: server_of.Keys) -> None:
    for name, value in seaweed.environment(keys).items():
        monkeypatch.setenv(name, value)
    s3_client.forget_clients()


# ---- where they come from ---------------------------------------------------------------------------------------


def test_a_job_with_keys_in_the_environment_loads_neither_botocore_nor_urllib3(
    seaweed: SeaweedFS, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It also looks for unfinished uploads at its begin and end."""
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    folder = url.rpartition("/")[0]
    seaweed.put(f"{tmp_path.name}/in-0.tar", ustar([("a.txt", b"x")]))
    (tmp_path / "same.py").write_text("def process_sample(record):\n    return record\n")
    program = (
        "import sys\n"
        "from tarmill.cli.htmapper import main\n"
        f"sys.argv[1:] = ['-j', '1', '-p', '{tmp_path}/same.py', '{folder}/in-0.tar', '{folder}/out.tar']\n"
        "main()\n"
        "dear = {'botocore', 'urllib3', 'dataclasses', 'inspect'} & set(sys.modules)\n"
        "assert not dear, dear\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"x" in seaweed.get(f"{tmp_path.name}/out.tar")


@pytest.mark.parametrize("chosen", ["default", "AWS_PROFILE", "option"])
def test_a_profile_gives_keys_region_and_endpoint(
    seaweed: SeaweedFS, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: str
) -> None:
    name = "default" if chosen == "default" else "team"
    header = name if name == "default" else f"profile {name}"
    keys = f"aws_access_key_id = {WRITER.access}\naws_secret_access_key = {WRITER.secret}\n"
    (tmp_path / "credentials").write_text(f"[{name}]\n{keys}")
    (tmp_path / "config").write_text(
        f"[{header}]\nregion = eu-west-1\nservices = ours\n[services ours]\ns3 =\n  endpoint_url = {seaweed.endpoint}\n"
    )
    without_keys(
        monkeypatch,
        AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "credentials"),
        AWS_CONFIG_FILE=str(tmp_path / "config"),
        **({"AWS_PROFILE": name} if chosen == "AWS_PROFILE" else {}),
    )
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    settings(store_options={"s3.profile": name} if chosen == "option" else {})
    assert storage.read_bytes(url) == b"body"
    assert s3_client.client_for(BUCKET, storage.current_settings(), url).options.region == "eu-west-1"


def test_a_command_gives_keys_and_is_asked_again_when_they_end(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = {"Version": 1, "AccessKeyId": WRITER.access, "SecretAccessKey": WRITER.secret}
    (tmp_path / "keys.json").write_text(json.dumps({**keys, "Expiration": "2035-01-01T00:00:00Z"}))
    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {tmp_path}/keys.json\n")
    without_keys(monkeypatch, AWS_CONFIG_FILE=str(tmp_path / "config"))
    assert storage.read_bytes(url) == b"body"
    found = s3_credentials.find_credentials(s3_credentials.new_session(None), "here")
    assert found()["expires_at"] is not None  # obstore comes back before that; botocore decides


def test_a_web_identity_is_exchanged_for_keys(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on EKS (IRSA); the answer is that of AWS's token service."""
    (tmp_path / "token").write_text("a-web-identity-token")
    answer = f"""<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
      <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{WRITER.access}</AccessKeyId>
      <SecretAccessKey>{WRITER.secret}</SecretAccessKey><SessionToken></SessionToken>
      <Expiration>2035-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
      </AssumeRoleWithWebIdentityResponse>"""
    with WebServer({"/": Reply(200, answer.encode(), {"Content-Type": "text/xml"})}) as tokens:
        without_keys(
            monkeypatch,
            AWS_WEB_IDENTITY_TOKEN_FILE=str(tmp_path / "token"),
            AWS_ROLE_ARN="arn:aws:iam::123456789012:role/reader",
            AWS_ENDPOINT_URL_STS=tokens.base,
            AWS_REGION="us-east-1",
            AWS_DEFAULT_REGION="us-east-1",
        )
        assert storage.read_bytes(url) == b"body"
    (asked,) = tokens.asked
    assert b"a-web-identity-token" in asked.body


def test_a_container_role_gives_keys(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on ECS, and on EKS with Pod Identity."""
    keys = {
        "AccessKeyId": WRITER.access,
        "SecretAccessKey": WRITER.secret,
        "Token": "",
        "Expiration": "2035-01-01T00:00:00Z",
    }
    with WebServer({"/role": Reply(200, json.dumps(keys).encode())}) as agent:
        without_keys(monkeypatch, AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{agent.base}/role")
        assert storage.read_bytes(url) == b"body"


# ---- and what is told without them ------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [storage.stat, storage.read_bytes, lambda url: list(storage.list_urls(url))])
def test_without_credentials_what_was_tried_is_told(url: str, monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    without_keys(monkeypatch)
    with refused(AccessError, "no credentials", "AWS_ACCESS_KEY_ID", "'default'", "instance's role", "--anon"):
        call(url)


def test_a_profile_that_does_not_exist_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_keys(monkeypatch, AWS_PROFILE="no-such-profile")
    with refused(UsageError, "no-such-profile", "AWS_PROFILE"):
        storage.stat(url)


def test_a_source_of_credentials_that_fails_is_told(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[default]\ncredential_process = false\n")
    without_keys(monkeypatch, AWS_CONFIG_FILE=str(tmp_path / "config"))
    with refused(AccessError, "cannot be had", "custom-process"):
        storage.stat(url)


def test_an_sso_session_that_ended_is_told_with_the_cure(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text(
        "[default]\nsso_start_url = https://example.invalid/start\nsso_region = eu-west-1\n"
        "sso_account_id = 123456789012\nsso_role_name = reader\n"
    )
    without_keys(monkeypatch, AWS_CONFIG_FILE=str(tmp_path / "config"), HOME=str(tmp_path))
    with refused(AccessError, "cannot be had", "SSO", "aws sso login"):
        storage.stat(url)


CALLS = [
    pytest.param(storage.stat, id="stat"),
    pytest.param(storage.read_bytes, id="read"),
    pytest.param(lambda url: storage.write_bytes(url, b"x"), id="write"),
    pytest.param(lambda url: storage.write_bytes(url, bytes(10 << 20)), id="write parts"),
    pytest.param(lambda url: storage.write_bytes(url, b"x", exclusive=True), id="create"),
    pytest.param(lambda url: list(storage.list_urls(url)), id="list"),
    pytest.param(storage.delete, id="delete"),
]


@pytest.mark.parametrize("call", CALLS)
def test_keys_that_the_server_does_not_know_are_told(
    seaweed: SeaweedFS, url: str, monkeypatch: pytest.MonkeyPatch, call: Any
) -> None:
    with_keys(monkeypatch, seaweed, STRANGER)
    with refused(AccessError, "SignatureDoesNotMatch", "does not take the credentials", seaweed.endpoint):
        call(url)
    with_keys(monkeypatch, seaweed, NOBODY)
    with refused(AccessError, "InvalidAccessKeyId"):
        call(url)
    assert seaweed.get(url.removeprefix(f"s3://{BUCKET}/")) == b"body"


def test_a_read_only_bucket_can_be_read_and_says_so_when_written(
    seaweed: SeaweedFS, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_keys(monkeypatch, seaweed, READER)
    assert storage.read_bytes(url) == b"body"
    assert [stat.url for stat in storage.list_urls(url)] == [url]
    for data in (b"x", bytes(10 << 20)):
        with refused(AccessError, "AccessDenied", "may not write there"):
            storage.write_bytes(url, data)
    with refused(AccessError, "may not delete there"):
        storage.delete(url)
    # unfinished uploads that may not be seen are no reason to fail
    assert storage.sweep(url.rpartition("/")[0] + "/", "job", [url]) == 0
    assert seaweed.uploads(url.split("/")[3]) == []


def test_public_buckets_are_read_without_credentials_only_when_asked_to(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_keys(monkeypatch)
    settings(anonymous=True)
    there = f"s3://{PUBLIC}/ready"
    assert storage.read_bytes(there) == b"yes"
    assert storage.read_ranges(there, [(0, 1), (1, 1)]) == [b"y", b"e"]
    assert there in [stat.url for stat in storage.list_urls(f"s3://{PUBLIC}/")]
    with refused(AccessError, "403", "--anon"):
        storage.stat(url)
    with refused(AccessError, "may not write there"):
        storage.write_bytes(f"s3://{PUBLIC}/mine", b"x")


@pytest.mark.parametrize("call", CALLS[:-1])
def test_a_bucket_that_does_not_exist_is_told_as_such(url: str, call: Any) -> None:
    with refused(NotFoundError, "there is no bucket 'no-such-bucket'", "--s3-endpoint"):
        call("s3://no-such-bucket/x.tar")


def test_keys_that_have_expired_are_asked_for_anew_by_the_next_request(
    seaweed: SeaweedFS, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired = Reply(400, b"<Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>")
    path = f"/{BUCKET}/{url.removeprefix(f's3://{BUCKET}/')}"
    with WebServer({path: expired}) as server:
        settings(s3_endpoint=server.base)
        before = s3_client.client_for(BUCKET, storage.current_settings(), url)
        with refused(AccessError, "ExpiredToken", "log in again"):
            storage.read_bytes(url)
        assert s3_client.client_for(BUCKET, storage.current_settings(), url) is not before


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (
            Reply(301, b"<Error><Code>PermanentRedirect</Code><Message>Use the endpoint</Message></Error>"),
            ["301 PermanentRedirect", "us-east-1", "s3.region=REGION"],
        ),
        (
            Reply(
                400,
                b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>The region 'us-east-1' is wrong; "
                b"expecting 'eu-west-1'</Message><Region>eu-west-1</Region></Error>",
            ),
            ["the bucket is in eu-west-1", "AWS_REGION=eu-west-1"],
        ),
    ],
    ids=["redirect", "malformed"],
)
def test_a_wrong_region_is_told_with_the_right_one(url: str, reply: Reply, words: list[str]) -> None:
    path = f"/{BUCKET}/{url.removeprefix(f's3://{BUCKET}/')}"
    with WebServer({path: reply}) as server:
        settings(s3_endpoint=server.base)
        with refused(StorageError, *words):
            storage.read_bytes(url)


def test_a_server_that_cannot_be_reached_is_named(url: str) -> None:
    settings(s3_endpoint=f"http://127.0.0.1:{free_port()}", retry_budget_s=0.05)
    for call in (storage.stat, lambda where: list(storage.list_urls(where))):
        with refused(StorageError, "http://127.0.0.1:", "gave up"):
            call(url)
    settings(s3_endpoint="http://no-such-host.invalid", retry_budget_s=20)
    with refused(StorageError, "no-such-host.invalid", "cannot be resolved"):
        storage.stat(url)


# ---- TLS --------------------------------------------------------------------------------------------------------


def test_tls_is_checked_against_the_authority_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    with SeaweedFS(tmp_path / "server", authority.server) as server:
        s3_places.isolate(monkeypatch, server.environment())
        endpoint = f"https://127.0.0.1:{server.tls_port}"
        url = f"s3://{BUCKET}/x.tar"
        settings(s3_endpoint=endpoint)
        with refused(StorageError, "certificate is not trusted", "--ca-file"):
            storage.stat(url)
        with refused(StorageError, "certificate", "--ca-file"):
            list(storage.list_urls(url))
        settings(s3_endpoint=endpoint, ca_file=str(authority.ca_file))
        storage.write_bytes(url, b"body")
        assert storage.read_bytes(url) == b"body"
        assert [stat.url for stat in storage.list_urls(url)] == [url]
        assert not may_have_uploads(s3_client.client_for(BUCKET, storage.current_settings(), url), "")
        settings(ca_file=None)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.ca_file))
        s3_client.forget_clients()
        assert storage.read_bytes(url) == b"body"
        settings(s3_endpoint=f"https://127.0.0.1:{server.port}")
        with refused(StorageError, "does not speak TLS"):
            storage.stat(url)


def test_a_file_that_holds_no_authority_is_told(url: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    for name in (tmp_path / "ca.pem", tmp_path / "missing.pem"):
        settings(s3_endpoint="https://127.0.0.1:1", ca_file=str(name))
        with refused(SpecError, str(name), "PEM"):
            storage.stat(url)
