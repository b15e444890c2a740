"""The clients of one bucket in this process: obstore's for bytes, botocore's for what obstore cannot ask.

Built with the first request, kept for the process, never taken through a fork: obstore's threads do not live on in a
child, where a request would wait for ever.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

from tarmill.errors import AccessError, NotFoundError, SpecError, StorageError
from tarmill.storage import s3_credentials as credentials
from tarmill.storage.s3_errors import EXPIRED, read_botocore_failure, read_failure, storage_error
from tarmill.storage.s3_options import bucket_config, client_config, host_of_bucket, options_for
from tarmill.storage.settings import StorageSettings
from tarmill.storage.urls import mask

Answer = TypeVar("Answer")
_IDLE = "15s"  # let go of a connection before the server does
_MANY = 1_000_000
_lock = threading.Lock()
_clients: dict[tuple[object, ...], S3Client] = {}
_asked_in: int | None = None
"""The process that has used obstore."""


def _forget_in_child() -> None:
    global _lock, _clients
    _lock = threading.Lock()
    _clients = {}


os.register_at_fork(after_in_child=_forget_in_child)


def forget_clients() -> None:
    """Ask environment and files anew at the next request (after a login, in tests)."""
    with _lock:
        _clients.clear()


def client_for(bucket: str, settings: StorageSettings, url: str) -> S3Client:
    """Give the client of a bucket.

    Raises:
        StorageError: this process is the fork of one that has used s3:// before.
        AccessError: there are no credentials.
        SpecError, UsageError: options, profile or files that cannot be used, or libraries that are not there.
    """
    global _asked_in
    key = (
        bucket,
        settings.s3_endpoint,
        settings.anonymous,
        settings.requester_pays,
        settings.ca_file,
        settings.retry_budget_s,
        settings.backoff_first_s,
        settings.backoff_most_s,
        settings.connect_timeout_s,
        settings.read_timeout_s,
        tuple(sorted(settings.options_of("s3").items())),
    )
    with _lock:
        found = _clients.get(key)
        if found is None:
            if _asked_in not in (None, os.getpid()):
                raise StorageError(
                    f"{mask(url)}: this process was forked from one that had used s3://, whose client does not live "
                    "through a fork; start workers by spawn or forkserver (PyTorch: multiprocessing_context='spawn')",
                    url=mask(url),
                )
            found = _clients[key] = S3Client(bucket, settings)
            _asked_in = os.getpid()
    return found


class S3Client:
    """One bucket under one set of settings.

    Stores of obstore: `asking` tries once, and who asks tries again; `putting` too, and waits for the answer as long as
    a slow line needs for the body; `uploading` tries again by itself, since the bytes of a part are with it alone.
    """

    def __init__(self, bucket: str, settings: StorageSettings) -> None:
        self.bucket = bucket
        self.settings = settings
        self._exists = False
        self._session: Any = None
        self._credentials: credentials.Credentials | None = None
        self._keys: dict[str, Any] = {}
        profile: dict[str, Any] = {}
        named = settings.options_of("s3").get("profile")
        knows_who = settings.anonymous or credentials.are_keys_for_good(os.environ)
        if named or not (knows_who and credentials.has_no_profile(os.environ)):
            self._session = credentials.new_session(named)
            profile = credentials.profile_facts(self._session)
        self.options = options_for(bucket, settings, profile)
        if settings.anonymous:
            pass
        elif self._session is None:
            self._keys = credentials.environment_keys(os.environ)
        else:
            self._credentials = credentials.find_credentials(self._session, self.options.place)
        self.asking = self._new_store(retries=0, patient=False)

    @cached_property
    def putting(self) -> Any:
        """See the class."""
        return self._new_store(retries=0, patient=True)

    @cached_property
    def uploading(self) -> Any:
        """See the class."""
        return self._new_store(retries=_MANY, patient=True)

    def _new_store(self, *, retries: int, patient: bool) -> Any:
        try:
            from obstore.store import S3Store
        except ImportError as error:
            raise credentials.not_installed("obstore") from error
        settings = self.settings
        pauses = {
            "init_backoff": timedelta(seconds=settings.backoff_first_s),
            "max_backoff": timedelta(seconds=settings.backoff_most_s),
            "base": 2,
        }
        budget = timedelta(seconds=settings.retry_budget_s)
        client = {"pool_idle_timeout": _IDLE, **client_config(self.options, settings, patient=patient)}
        try:
            return S3Store(
                self.bucket,
                config={**bucket_config(self.bucket, self.options, settings), **self._keys},
                client_options=client,
                retry_config={"max_retries": retries, "retry_timeout": budget, "backoff": pauses},
                credential_provider=self._credentials,
            )
        except Exception as error:  # obstore checks the options by raising all kinds
            told = str(error).partition("\n\nDebug source")[0]
            raise SpecError(
                f"s3://{self.bucket}: {told}; see --store-option s3.NAME=VALUE", field="store_option"
            ) from error

    def ask(self, method: str, url: str, function: Callable[..., Answer], *args: Any, **options: Any) -> Answer:
        """Call a function of obstore or botocore once.

        Raises:
            StorageError: what its exception means.
        """
        try:
            return call_interruptibly(lambda: function(*args, **options))
        except Exception as error:
            raise self.meaning(error, method, url) from error

    def keys_now(self) -> credentials.Keys | None:
        """Give the keys to sign a request of our own with; None = ask without a signature."""
        keys = self._credentials() if self._credentials is not None else self._keys
        if not keys:
            return None
        token = keys.get("token") or keys.get("session_token")
        return credentials.Keys(keys["access_key_id"], keys["secret_access_key"], token)

    @cached_property
    def botocore(self) -> Any:
        """The client for lists, unfinished uploads and exclusive puts; takes as long to load as a list does."""
        from botocore import UNSIGNED
        from botocore.config import Config

        settings, options = self.settings, self.options
        session = self._session or credentials.new_session(None)
        config = Config(
            connect_timeout=settings.connect_timeout_s,
            read_timeout=settings.read_timeout_s,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "virtual" if options.virtual_hosted else "path"},
            **({"signature_version": UNSIGNED} if settings.anonymous else {}),
        )
        return session.create_client(
            "s3",
            region_name=options.region,
            endpoint_url=_without_bucket(options.endpoint, self.bucket),
            verify=options.ca_path,
            config=config,
        )

    def meaning(self, error: Exception, method: str, url: str) -> StorageError:
        """Tell what an exception of obstore or botocore means."""
        if self._credentials is not None and self._credentials.error is not None:
            return credentials.credentials_failed(self._credentials.error, self.options.place)
        module = type(error).__module__
        failure = read_botocore_failure(error) if module.startswith("botocore") else read_failure(error)
        found = storage_error(failure, method, url, self.options.place, self.options.region)
        if failure.code in EXPIRED:
            forget_clients()  # after a new login the next request has new ones
        elif isinstance(found, NotFoundError) and method == "HEAD":
            self._must_exist(url, found)
        elif isinstance(found, AccessError) and method == "HEAD" and not failure.code:
            return self._why_refused(url, found)
        return found

    def _must_exist(self, url: str, missing: NotFoundError) -> None:
        """Find out, once, whether it is the bucket that is missing: HEAD does not say."""
        if self._exists:
            return
        try:
            self._get_in_words(url)
        except StorageError as error:
            if error.facts.get("code") == "NoSuchBucket":
                raise error from missing
            self._exists = error.facts.get("code") == "NoSuchKey"

    def _why_refused(self, url: str, refused: AccessError) -> StorageError:
        """Ask again by GET: the answer to a HEAD has no words."""
        try:
            self._get_in_words(url)
        except StorageError as error:
            return error if error.facts.get("code") else refused
        return refused

    def _get_in_words(self, url: str) -> None:
        import obstore

        key = url.partition("://")[2].partition("/")[2]
        try:
            obstore.get(self.asking, key, options={"range": (0, 1)})
        except Exception as error:
            raise storage_error(read_failure(error), "GET", url, self.options.place, self.options.region) from error


def _without_bucket(endpoint: str | None, bucket: str) -> str | None:
    """Give the endpoint as botocore takes it, which puts the bucket before it itself (pure)."""
    if endpoint is None or host_of_bucket(endpoint, bucket) != endpoint:
        return endpoint
    return endpoint.replace(f"://{bucket}.", "://", 1)


def call_interruptibly(call: Callable[[], Answer]) -> Answer:
    """Call what waits for a network inside a library, so that Ctrl-C and SIGTERM are heard meanwhile.

    Python hears signals in its main thread, between two of its own steps: the waiting is done by another thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    found: list[Answer] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="s3", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
