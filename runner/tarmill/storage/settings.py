"""How the stores of this process behave: plain values that travel to workers inside a task, never a secret.

Credentials come from each process's own environment (see `http_auth`), so that no scheduler or pickle ever holds one.
"""

from __future__ import annotations

from collections.abc import Mapping

from tarmill.errors import SpecError
from tarmill.values import field, valueclass

VERIFY_UPLOADS = ("none", "size", "hash")
_SECRET_WORDS = ("secret", "password", "passwd", "token", "credential", "access_key", "private_key", "customer_key")


@valueclass
class StorageSettings:
    """Settings of all stores.

    Attributes:
        s3_endpoint: URL of an S3-compatible store; None = $AWS_ENDPOINT_URL_S3, else Amazon's.
        anonymous: ask object stores without credentials.
        requester_pays: agree to pay for reading from object stores that ask for it.
        store_options: "SCHEME.OPTION" -> value, for the library that serves a scheme; never a secret.
        ca_file: PEM file with certificate authorities to trust besides the system's (`--ca-file`).
        retry_budget_s: how long a request is tried again without any progress before its error is told.
        backoff_first_s, backoff_most_s: bounds of the pauses between tries; each is drawn evenly from 0 to the bound.
        connect_timeout_s, read_timeout_s: longest silence while connecting, and between two pieces of an answer.
        scratch_dir: where outputs wait for their upload once they outgrow `spool_memory_bytes`; None = $TMPDIR or /tmp.
        spool_memory_bytes: what one output may hold in memory before it goes to `scratch_dir`.
        verify_uploads: "none", "size" (ask the server for the stored size), "hash" (read everything back).
        read_ahead_bytes: buffer of one remote input stream.
        merge_gap_bytes: neighbouring ranges closer than this are fetched by one request.
        parallel_requests: requests in flight of one `read_ranges` or `stat_many` call.
        fsync: outputs reach the disk before they appear under their name.
    """

    ca_file: str | None = None
    s3_endpoint: str | None = None
    anonymous: bool = False
    requester_pays: bool = False
    store_options: Mapping[str, str] = field(default_factory=dict)
    retry_budget_s: float = 300.0
    backoff_first_s: float = 0.5
    backoff_most_s: float = 30.0
    connect_timeout_s: float = 15.0
    read_timeout_s: float = 60.0
    scratch_dir: str | None = None
    spool_memory_bytes: int = 16 << 20
    verify_uploads: str = "size"
    read_ahead_bytes: int = 8 << 20
    merge_gap_bytes: int = 256 << 10
    parallel_requests: int = 8
    fsync: bool = True

    def __post_init__(self) -> None:
        for name in self.store_options:
            _check_store_option(name)
        if self.verify_uploads not in VERIFY_UPLOADS:
            raise SpecError(
                f"verify_uploads is {self.verify_uploads!r}; expected one of {', '.join(VERIFY_UPLOADS)}",
                field="verify_uploads",
                value=self.verify_uploads,
            )

    def options_of(self, scheme: str) -> dict[str, str]:
        """Give the options of `store_options` for one scheme, without its name."""
        start = f"{scheme}."
        return {name[len(start) :]: value for name, value in self.store_options.items() if name.startswith(start)}


def _check_store_option(name: str) -> None:
    scheme, dot, option = name.partition(".")
    if not (scheme and dot and option):
        raise SpecError(
            f"store option {name!r} names no scheme; write it as SCHEME.OPTION=VALUE, such as s3.region=eu-west-1",
            field="store_option",
            value=name,
        )
    # Options stand in process lists and specs, and travel to workers.
    if any(word in option.lower() for word in _SECRET_WORDS):
        raise SpecError(
            f"store option {name!r} looks like a secret; expected credentials in the environment or in the files that "
            "the store's own tools read, never on a command line",
            field="store_option",
            value=name,
        )


_current = StorageSettings()


def configure(settings: StorageSettings) -> None:
    """Use these settings in this process from now on; streams that are open keep theirs."""
    global _current
    _current = settings


def current_settings() -> StorageSettings:
    """Give the settings in force in this process."""
    return _current
