"""What is done without botocore, since its import costs more than a small job, is what botocore would do."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.s3_places import isolate

from tarmill.storage import s3_credentials
from tarmill.storage.s3_credentials import Keys
from tarmill.storage.s3_sign import signed_headers

CONFIG = "[default]\nregion = eu-west-1\nendpoint_url = http://config\n[profile team]\nregion = eu-west-2\n"
SHARED = "[default]\naws_access_key_id = FILE\naws_secret_access_key = its\nregion = eu-west-3\n[team]\nregion = x\n"
VARIABLES: dict[str, Any] = {
    "AWS_ACCESS_KEY_ID": st.sampled_from(["", "KEY"]),
    "AWS_SECRET_ACCESS_KEY": st.sampled_from(["", "secret"]),
    "AWS_SESSION_TOKEN": st.sampled_from(["", "token"]),
    "AWS_SECURITY_TOKEN": st.sampled_from(["", "old name"]),
    "AWS_CREDENTIAL_EXPIRATION": st.just("2035-01-01T00:00:00Z"),
    "AWS_PROFILE": st.just("team"),
    "AWS_DEFAULT_PROFILE": st.just("team"),
    "AWS_CONFIG_FILE": st.sampled_from([os.devnull, "~/none", "~/.aws/config", "$HOME/.aws/config", "$HOME"]),
    "AWS_SHARED_CREDENTIALS_FILE": st.sampled_from([os.devnull, "~/none", "~/.aws/credentials"]),
}
KEYS = {"AWS_ACCESS_KEY_ID": "KEY", "AWS_SECRET_ACCESS_KEY": "secret"}


@given(
    env=st.fixed_dictionaries({}, optional=VARIABLES),
    files=st.sets(st.sampled_from([("config", CONFIG), ("credentials", SHARED)])),
)
@example(env=KEYS, files=set())
@example(env={**KEYS, "AWS_SESSION_TOKEN": "token", "AWS_SECURITY_TOKEN": "old name"}, files=set())
@example(env={**KEYS, "AWS_CONFIG_FILE": os.devnull}, files={("config", CONFIG)})
@example(env=KEYS, files={("credentials", SHARED)})
def test_what_the_environment_decides_alone_is_what_botocore_finds(
    tmp_path_factory: pytest.TempPathFactory, env: dict[str, str], files: set[tuple[str, str]]
) -> None:
    home = tmp_path_factory.mktemp("home")
    (home / ".aws").mkdir()
    for name, text in files:
        (home / ".aws" / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, {"HOME": str(home)})
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        if not s3_credentials.has_no_profile(os.environ):
            return
        session = s3_credentials.new_session(None)
        assert s3_credentials.profile_facts(session) == {"region": None, "endpoint_url": None}
        if s3_credentials.are_keys_for_good(os.environ):
            found = s3_credentials.find_credentials(session, "here")()
            assert found.pop("expires_at") is None
            ours = s3_credentials.environment_keys(os.environ)
            assert found == {"token": None, **{name.replace("session_", ""): key for name, key in ours.items()}}


def test_a_device_in_place_of_a_file_is_none() -> None:
    """`AWS_CONFIG_FILE=/dev/null` is how people say that there shall be no file."""
    nothing = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
    assert s3_credentials.has_no_profile(nothing)


def test_a_file_that_is_there_may_hold_a_profile(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
    (tmp_path / "file").touch()
    for name in nothing:
        assert not s3_credentials.has_no_profile({**nothing, name: str(tmp_path / "file")})


@given(
    url=st.sampled_from([
        "http://127.0.0.1:8333/bucket?max-uploads=1&prefix=a%20b%2F%C3%A9%3D%26&uploads=",
        "http://[::1]:8333/bucket?uploads=",
        "http://host:80/base/bucket?max-uploads=1&prefix=&uploads=",
        "https://bucket.s3.eu-west-1.amazonaws.com/?max-uploads=1&prefix=x&uploads=",
        "https://Store.Example.COM:443/?uploads=",
        "https://store.example.com:9000/?uploads=",
    ]),
    token=st.none() | st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1),
    secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1),
    region=st.sampled_from(["us-east-1", "auto"]),
    more=st.sampled_from([{}, {"x-amz-request-payer": "requester"}]),
    now=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)),
)  # fmt: skip
def test_our_signature_is_that_of_botocore(
    url: str, token: str | None, secret: str, region: str, more: dict[str, str], now: datetime
) -> None:
    from botocore import auth, awsrequest

    keys = Keys("KEY", secret, token)
    request = awsrequest.AWSRequest("GET", url, dict(more))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auth, "get_current_datetime", lambda: now)
        auth.S3SigV4Auth(keys, "s3", region).add_auth(request)
    ours = signed_headers("GET", url, more, keys, region, now)
    ours.pop("host")  # which botocore leaves to its HTTP client
    assert ours == {name.lower(): value for name, value in request.headers.items()}
