"""What settings, environment and profile mean for one bucket, as the words that obstore understands (mostly pure).

Options are given as `--store-option s3.NAME=VALUE`. Secrets never come this way, see `s3_credentials`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from tarmill import __version__
from tarmill.errors import SpecError
from tarmill.storage.settings import StorageSettings
from tarmill.storage.urls import mask
from tarmill.values import valueclass

DEFAULT_REGION = "us-east-1"
PART_BYTES = 8 << 20
LEAST_PART_BYTES, MOST_PART_BYTES = 5 << 20, 5 << 30
MAX_PARTS = 10_000
PARTS_IN_FLIGHT = 4
_SLOW_UPLINK_BYTES_PER_S = 250e3

_RENAMED = {
    "sse": "server_side_encryption",
    "virtual_hosted_style": "virtual_hosted_style_request",
    "endpoint_url": "endpoint",
}
_BUCKET_OPTIONS = (
    "checksum_algorithm",
    "disable_tagging",
    "endpoint",
    "region",
    "s3_express",
    "server_side_encryption",
    "sse_bucket_key_enabled",
    "sse_kms_key_id",
    "unsigned_payload",
    "virtual_hosted_style_request",
)
_CLIENT_OPTIONS = ("allow_invalid_certificates", "http1_only", "pool_idle_timeout", "pool_max_idle_per_host")
_OUR_OPTIONS = ("part_size", "profile")
KNOWN = tuple(sorted((*_RENAMED, *_BUCKET_OPTIONS, *_CLIENT_OPTIONS, *_OUR_OPTIONS)))
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


@valueclass
class S3Options:
    """All that is decided about one bucket before it is asked anything.

    Attributes:
        endpoint: URL of the server; None = Amazon's.
        region: what requests are signed for.
        region_is_known: somebody named it; it is not just the default.
        virtual_hosted: the bucket stands in the host's name, not in the path.
        bucket_options, client_options: further options, by obstore's names.
        part_bytes: of a multipart upload.
        ca_pem: certificate authorities to trust besides the system's.
        ca_path: the file they come from.
    """

    endpoint: str | None
    region: str
    region_is_known: bool
    virtual_hosted: bool
    bucket_options: Mapping[str, str]
    client_options: Mapping[str, str]
    part_bytes: int
    ca_pem: bytes | None
    ca_path: str | None

    @property
    def place(self) -> str:
        """The server as a person knows it, for messages."""
        return mask(self.endpoint) if self.endpoint else f"Amazon S3 ({self.region})"


def sorted_out(given: Mapping[str, str]) -> dict[str, str]:
    """Give options by obstore's names (pure).

    Raises:
        SpecError: an unknown name; those that look like it are named.
    """
    found: dict[str, str] = {}
    for name, value in given.items():
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, 3, 0.65)
            hint = f"did you mean {' or '.join(f's3.{one}' for one in near)}? " if near else ""
            raise SpecError(
                f"store option 's3.{name}' is not known; {hint}known are {', '.join(KNOWN)}",
                field="store_option",
                value=f"s3.{name}",
            )
        found[_RENAMED.get(name, name)] = value
    return found


def options_for(bucket: str, settings: StorageSettings, profile: Mapping[str, Any]) -> S3Options:
    """Decide what holds for a bucket: options first, then the environment, then the profile.

    Args:
        bucket: its name.
        settings: those in force.
        profile: `region` and `endpoint_url` of the shared files, where there are any.

    Raises:
        SpecError: an option or file that cannot be used.
    """
    given = sorted_out(settings.options_of("s3"))
    env = os.environ
    endpoint = (
        settings.s3_endpoint
        or given.pop("endpoint", None)
        or env.get("AWS_ENDPOINT_URL_S3")
        or env.get("AWS_ENDPOINT_URL")
        or profile.get("endpoint_url")
    )
    region = given.pop("region", None) or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION")
    region = region or profile.get("region")
    virtual = given.pop("virtual_hosted_style_request", env.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", ""))
    is_virtual = _is_yes(virtual) if virtual else endpoint is None and "." not in bucket
    ca_path = settings.ca_file or env.get("AWS_CA_BUNDLE") or env.get("SSL_CERT_FILE") or None
    encrypted = endpoint is None or endpoint.lower().startswith("https:")
    return S3Options(
        endpoint=_checked_endpoint(endpoint),
        region=region or DEFAULT_REGION,
        region_is_known=bool(region),
        virtual_hosted=is_virtual,
        bucket_options={name: value for name, value in given.items() if name in _BUCKET_OPTIONS},
        client_options={name: value for name, value in given.items() if name in _CLIENT_OPTIONS},
        part_bytes=_part_bytes(given.get("part_size")),
        ca_pem=_read_authorities(ca_path) if ca_path and encrypted else None,
        ca_path=ca_path if encrypted else None,
    )


def _is_yes(value: str) -> bool:
    lower = value.lower()
    if lower in ("1", "true", "on", "yes", "y"):
        return True
    if lower in ("0", "false", "off", "no", "n"):
        return False
    raise SpecError(
        f"store option s3.virtual_hosted_style_request is {value!r}; expected true or false", field="store_option"
    )


def _checked_endpoint(endpoint: str | None) -> str | None:
    if endpoint is None:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or "@" in parts.netloc:
        raise SpecError(
            f"the S3 endpoint {mask(endpoint)!r} cannot be used; expected a URL such as https://minio.example.com:9000",
            field="s3_endpoint",
            value=mask(endpoint),
        )
    return endpoint.rstrip("/")


def _part_bytes(text: str | None) -> int:
    if text is None:
        return PART_BYTES
    digits = text.strip().rstrip("BbGgIiKkMm")
    unit = _UNITS.get(text.strip()[len(digits) :].lower())
    size = int(digits) * unit if unit and digits.isascii() and digits.isdigit() else 0
    if not LEAST_PART_BYTES <= size <= MOST_PART_BYTES:
        raise SpecError(
            f"store option s3.part_size is {text!r}; expected 5MiB to 5GiB, such as 64MiB",
            field="store_option",
            value=text,
        )
    return size


def _read_authorities(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            pem = file.read()
    except OSError as error:
        raise SpecError(
            f"the CA file {path!r} cannot be used: {error.strerror}; expected a PEM file", field="ca_file", value=path
        ) from error
    if b"-----BEGIN" not in pem:
        raise SpecError(f"the CA file {path!r} cannot be used: expected a PEM file", field="ca_file", value=path)
    return pem


def bucket_config(bucket: str, options: S3Options, settings: StorageSettings) -> dict[str, Any]:
    """Give the `config` of an obstore S3Store (pure).

    Bodies are not hashed for the signature (over TLS nobody else could change them, and it is two thirds of the CPU of
    an upload); CRC64NVME, which the server compares, covers what happens by accident.
    """
    config: dict[str, Any] = {
        "region": options.region,
        "virtual_hosted_style_request": options.virtual_hosted,
        "checksum_algorithm": "CRC64NVME",
        "unsigned_payload": True,
        "disable_bulk_delete": True,
        **options.bucket_options,
    }
    if settings.anonymous:
        config["skip_signature"] = True
    if settings.requester_pays:
        config["request_payer"] = True
    if options.endpoint:
        # obstore lets $AWS_ENDPOINT_URL_S3 win over `endpoint`, and over nothing under this name
        config["aws_endpoint_url_s3"] = (
            host_of_bucket(options.endpoint, bucket) if options.virtual_hosted else (options.endpoint)
        )
    return config


def host_of_bucket(endpoint: str, bucket: str) -> str:
    """Put the bucket before the host of an endpoint, unless it stands there already (pure)."""
    parts = urlsplit(endpoint)
    if parts.netloc.startswith(f"{bucket}."):
        return endpoint
    return urlunsplit(parts._replace(netloc=f"{bucket}.{parts.netloc}"))


def client_config(options: S3Options, settings: StorageSettings, *, patient: bool) -> dict[str, Any]:
    """Give the `client_options` of an obstore S3Store (pure).

    Args:
        options, settings: of the bucket.
        patient: the answer to a part comes after the part: silence lasts as long as a slow line needs for it.
    """
    patience = settings.read_timeout_s
    if patient:
        patience += options.part_bytes * PARTS_IN_FLIGHT / _SLOW_UPLINK_BYTES_PER_S
    config: dict[str, Any] = {
        "timeout": "24h",  # of a whole request: a slow reader is no error
        "connect_timeout": f"{max(1, round(settings.connect_timeout_s * 1000))}ms",
        "read_timeout": f"{max(1, round(patience * 1000))}ms",
        "user_agent": f"tarmill/{__version__}",
        "allow_http": options.endpoint is not None and options.endpoint.lower().startswith("http:"),
        **options.client_options,
    }
    if options.ca_pem is not None:
        config["root_certificate"] = options.ca_pem
    return config


def split_url(url: str) -> tuple[str, str]:
    """Cut a URL into bucket and key; both are raw, nothing in them is quoted (pure).

    Raises:
        SpecError: no bucket, or what looks like keys in the URL.
    """
    bucket, _, key = url.partition("://")[2].partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        secret = ":" in bucket or "@" in bucket
        shown = "s3://***" if secret else url
        more = ", and credentials not in the URL but in the environment or ~/.aws/credentials" if secret else ""
        raise SpecError(f"{shown!r} names no bucket; expected s3://bucket/key{more}", field="url", value=shown)
    return bucket, key


def split_object(url: str) -> tuple[str, str]:
    """Cut the URL of an object into bucket and key (pure).

    Raises:
        SpecError: it names a folder, or a key that S3 would take and its client would not, or would change.
    """
    bucket, key = split_url(url)
    if not key or key.endswith("/"):
        raise SpecError(f"{mask(url)!r} names a folder; expected a file name at its end", field="url", value=mask(url))
    if {"", ".", ".."} & set(key.split("/")) or not key.isprintable():
        raise SpecError(
            f"{mask(url)!r} cannot be reached: expected parts between its slashes that are neither empty nor '.' nor "
            "'..', and no control characters",
            field="url",
            value=mask(url),
        )
    return bucket, key
