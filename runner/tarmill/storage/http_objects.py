"""Looking at and removing whole web objects."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime

from tarmill.errors import NotFoundError, StorageError
from tarmill.storage.base import Stat
from tarmill.storage.http_client import drain, exchange
from tarmill.storage.http_read import header_stat, length_of
from tarmill.storage.retry import Retrier, with_retries
from tarmill.storage.settings import StorageSettings

STORED = frozenset({200, 201, 202, 204})


def server_age_s(headers: Mapping[str, str]) -> float | None:
    """Tell how long ago an object was last changed, by its server's own clock; None where it does not say (pure)."""
    try:
        now = parsedate_to_datetime(headers["Date"])
        changed = parsedate_to_datetime(headers["Last-Modified"])
        return (now - changed).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None


def head_once(url: str, settings: StorageSettings) -> tuple[Stat, Mapping[str, str]]:
    """Ask for the headers of an object, once."""
    try:
        response = exchange("HEAD", url, settings)
    except StorageError as error:
        if error.facts.get("status") not in (405, 501):
            raise
        response = exchange("GET", url, settings)  # some servers know only GET; its body is not waited for
    drain(response) if response.length_remaining == 0 else response.close()
    return header_stat(url, response.headers, length_of(response.headers)), response.headers


def head(url: str, settings: StorageSettings, retrier: Retrier | None = None) -> Stat:
    """Ask for the stat of an object, again where that helps."""
    return with_retries(lambda: head_once(url, settings), retrier or Retrier(settings))[0]


def remove(url: str, settings: StorageSettings) -> None:
    """Delete an object; a missing one is fine."""
    with suppress(NotFoundError):
        drain(with_retries(lambda: exchange("DELETE", url, settings, accept=STORED), Retrier(settings)))
